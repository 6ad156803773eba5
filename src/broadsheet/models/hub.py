"""Model folders from the Hugging Face hub: taken from its local cache when whole, else fetched after saying so.

Knows which files of a repository a causal LM needs. Does not know how they are read. `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
`HF_HOME` and `HF_TOKEN` are honoured by the hub client itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from broadsheet.console import InputError, say
from broadsheet.models.safefiles import WEIGHTS, WEIGHTS_INDEX, check_config, read_list, weight_files

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_UNWANTED = ["*/*", "consolidated*"]  # subfolders hold other formats; `consolidated` repeats the weights
_UNWANTED_BELOW = ["[!0-9]*/*", "*/*/*", "consolidated*"]  # modules of sentence-transformers lie in 1_Pooling, 2_Dense
_MODULES = "modules.json"


class Cached(NamedTuple):
    """A model on this disk.

    Attributes:
        name: what `load` takes: "default" or a hub id.
        path: its folder.
        size: bytes on disk, all revisions and source files together.
        whole: whether it can be loaded without fetching anything.
    """

    name: str
    path: Path
    size: int
    whole: bool


def is_id(spec: str) -> bool:
    """Whether `spec` has the form of a hub id: `org/name` or `org/name@revision`."""
    return _ID.fullmatch(spec) is not None


def folder(spec: str, *, below: bool = False) -> Path:
    """The local folder of the hub repository `spec`, fetched if the local hub cache does not hold it whole.

    Only top-level safetensors, JSON and tokenizer files are fetched, and only after the config has been checked.

    Args:
        spec: `org/name` or `org/name@revision`.
        below: fetch those in subfolders too, where a model of sentence-transformers has its modules.

    Raises:
        InputError: the hub cannot be reached, has no such repository or revision, or refuses access; the repository has
            no safetensors weights, or its config is refused (see `safefiles.check_config`).
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    repository, _, revision = spec.partition("@")
    unwanted = _UNWANTED_BELOW if below else _UNWANTED
    if (local := _local(repository, revision or "main", unwanted)) and not (below and _parts_missing(local)):
        return local
    with _hub_errors(spec):
        files = _listing(repository, revision or "main", unwanted)
        if below and _MODULES not in files:
            raise InputError(f"{spec} is no model of sentence-transformers: it has no {_MODULES}")
        if WEIGHTS not in files and WEIGHTS_INDEX not in files:
            raise InputError(
                f"{spec} has no safetensors weights on the hub; choose a model that has, or convert it first"
            )
        check_config(Path(hf_hub_download(repository, "config.json", revision=revision or "main")).parent)
        say(f"downloading {spec} from the hub: {len(files)} files, {sum(files.values()) / 1e6:,.1f} MB (safetensors)")
        with _bars_on_terminals_only():
            return Path(
                snapshot_download(
                    repository, revision=revision or "main", allow_patterns=_WANTED, ignore_patterns=unwanted
                )
            )


def has(spec: str, file: str) -> bool:
    """Whether a hub repository has that file; asked at the hub where the local cache does not hold the repository.

    Raises:
        InputError: the hub cannot be reached, has no such repository or revision, or refuses access.
    """
    repository, _, revision = spec.partition("@")
    if local := _local(repository, revision or "main"):
        return (local / file).is_file()
    with _hub_errors(spec):
        return file in _listing(repository, revision or "main")


def config_folder(spec: str) -> Path:
    """A local folder that holds the `config.json` of a hub repository, fetched if the hub cache does not hold it.

    Raises:
        InputError: the hub cannot be reached, has no such repository or revision, or refuses access.
    """
    from huggingface_hub import hf_hub_download

    repository, _, revision = spec.partition("@")
    if local := _local(repository, revision or "main"):
        return local
    with _hub_errors(spec):
        return Path(hf_hub_download(repository, "config.json", revision=revision or "main")).parent


def cached() -> list[Cached]:
    """The hub models in the local hub cache, by name. Looks at names and sizes only."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repository in repositories:
        if repository.repo_type != "model" or not repository.revisions:
            continue
        local = _local(repository.repo_id, "main")
        newest = max(repository.revisions, key=lambda revision: revision.last_modified)
        path = local or newest.snapshot_path
        found.append(Cached(repository.repo_id, path, repository.size_on_disk, local is not None))
    return sorted(found)


def _parts_missing(folder: Path) -> bool:
    """Whether a model of sentence-transformers lacks `modules.json` or the config of a module."""
    path = folder / _MODULES
    rows = read_list(path) if path.is_file() else []
    places = [
        row.get("path") for row in rows if isinstance(row, dict) and not str(row.get("type")).endswith("Normalize")
    ]
    return not places or not all((folder / str(place) / "config.json").is_file() for place in places)


def _local(repository: str, revision: str, unwanted: list[str] = _UNWANTED) -> Path | None:
    """The repository's folder in the local hub cache, if everything needed to load it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=_WANTED,
                ignore_patterns=unwanted,
                local_files_only=True,
            )
        )
        weight_files(folder)
    except (LocalEntryNotFoundError, InputError):
        return None
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
    return folder if has_tokenizer and (folder / "config.json").is_file() else None


def _listing(repository: str, revision: str, unwanted: list[str] = _UNWANTED) -> dict[str, int]:
    """The wanted files of a repository on the hub and their sizes in bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return {name: sizes[name] for name in filter_repo_objects(sizes, allow_patterns=_WANTED, ignore_patterns=unwanted)}


@contextmanager
def _hub_errors(spec: str) -> Iterator[None]:
    """Turn what the hub client raises into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        raise InputError(f"{spec} is gated on the hub; accept its terms there and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{spec}: the hub has this model but not this revision") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"unknown model {spec!r}: no folder here, and no such model on the hub (a private one needs HF_TOKEN)"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise InputError(
            f"{spec} is not whole in the hub cache, and HF_HUB_OFFLINE forbids fetching it; unset it"
        ) from None
    except Exception as error:  # transport errors have no common class across versions of the hub client
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"cannot fetch {spec} from the hub ({reason}); check the network and HF_ENDPOINT, or give a local folder"
        ) from error


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    from huggingface_hub import utils

    hide = not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            utils.enable_progress_bars()
