"""Models of sentence-transformers by name, read as safely as causal language models are.

Knows: `modules.json`, what each module's folder may hold. Does not know: what embeddings are for.

A folder of another's may name a hub kernel, weights that are pickles, or code of a package; and what transformers
misses among the weights it fills with random numbers. All of that is refused before, or right after, it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from broadsheet.cache import fingerprint as content
from broadsheet.console import InputError
from broadsheet.models import hub, reading
from broadsheet.models.loading import device_of, dtype_of, fingerprint
from broadsheet.models.safefiles import check_config, check_folder, check_safetensors, read_json, read_list

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    T = TypeVar("T", bound=SentenceTransformer)

MODULES = "modules.json"
_OURS = "broadsheet.embed."
_TRUSTED = ("sentence_transformers.", _OURS)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def load_sentences(spec: str | Path, kind: type[T], *, device: str | None = None, dtype: Any = None) -> T:
    """Read a model of sentence-transformers.

    Args:
        spec: a folder with `modules.json`, or a hub id `org/name[@revision]` of such a repository.
        kind: `SentenceTransformer`, or a class below it.
        device, dtype: as in `models.load`; without a dtype, the folder's own.

    Raises:
        InputError: nothing of that name; it is damaged or unsafe; it lacks weights.
    """
    folder = sentences_folder(spec)
    check_sentences(folder)
    parts = list(modules(folder))
    foreign = {i: path for i, (path, of) in enumerate(parts) if _is_model(path) and not of.startswith(_OURS)}
    options: dict[str, Any] = {"use_safetensors": True}
    if foreign:
        first = next(iter(foreign.values()))
        options["attn_implementation"] = reading.attention_of_base(read_json(first / "config.json"))
    place = device_of(device)
    if dtype is not None:
        options["dtype"] = dtype_of(dtype, place)
    try:
        with reading.quiet():
            made = _knowing_ours(kind)(
                str(folder), device=str(place), trust_remote_code=False, local_files_only=True, model_kwargs=options
            )
            made.__class__ = kind
            lacking = [name for i, path in foreign.items() for name in _missing(made[i], path)]
    except InputError:
        raise
    except Exception as error:  # a foreign file can be wrong in any way: the libraries raise whatever they trip over
        raise InputError(f"{spec} cannot be read as an embedder: {' '.join(str(error).split())[:300]}") from error
    if lacking:
        raise InputError(f"{spec} lacks {len(lacking)} of the weights its config asks for, such as {lacking[0]}")
    return made.eval()


def _knowing_ours(kind: type[T]) -> type[T]:
    """The class, also for broadsheet's modules, which sentence-transformers reads with `trust_remote_code` alone."""

    from torch.nn import Module

    class Reading(kind):  # type: ignore[misc, valid-type]
        def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
            if not class_ref.startswith(_OURS):
                return super()._load_module_class_from_ref(class_ref, *args, **kwargs)
            module, _, name = class_ref.rpartition(".")
            found: Any = getattr(import_module(module), name, None)
            if not (isinstance(found, type) and issubclass(found, Module) and found.__module__ == module):
                raise InputError(f"{class_ref[:80]} is no module of an embedder")
            return found

    return Reading


def sentences_fingerprint(model: SentenceTransformer) -> str:
    """A fingerprint of its language model's weights, its modules' settings, and its prompts.

    Raises:
        InputError: no language model is in it.
    """
    own: Any = getattr(model[0], "model", None)  # broadsheet's modules hold theirs there
    inner = model.transformers_model if own is None else own
    if inner is None:
        raise InputError(f"got an embedder of {type(model[0]).__name__}; expected one with a model of transformers")
    modules: list[Any] = list(model)
    parts: list[Any] = [[type(each).__name__, getattr(each, "get_config_dict", dict)()] for each in modules]
    return content([fingerprint(inner), json.loads(json.dumps(parts, default=str)), dict(model.prompts)])


def sentences_folder(spec: str | Path) -> Path:
    """The folder of a model of sentence-transformers, fetched after saying so where it is a hub id.

    Raises:
        InputError: there is none of that name.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    name = str(spec)
    if hub.is_id(name) and not folder.exists():
        return hub.folder(name, below=True)
    raise InputError(f"unknown embedder {name!r}: not a folder, and not a hub id (org/name)")


def modules(folder: Path) -> Iterator[tuple[Path, str]]:
    """The modules of a model: (folder, class) of each, as `modules.json` has them.

    Raises:
        InputError: it is damaged, names a folder elsewhere, or a class of another package.
    """
    path = folder / MODULES
    for row in read_list(path):
        place, of = (row.get("path"), row.get("type")) if isinstance(row, dict) else (None, None)
        if not isinstance(place, str) or not isinstance(of, str):
            raise InputError(f"{path}: a module without path or type; expected what sentence-transformers saves")
        if not of.startswith(_TRUSTED):
            raise InputError(f"{path} wants code of its own ({of[:80]}), which is not run")
        inside = (folder / place).resolve()
        if not inside.is_relative_to(folder.resolve()):
            raise InputError(f"{path} names a folder outside its own: {place[:80]}")
        yield folder / place, of


def check_sentences(folder: Path) -> None:
    """Check that a folder of sentence-transformers is whole and asks for nothing but reading it.

    Raises:
        InputError: as `modules`, `check_config` and `check_safetensors`; weights are missing, or pickles.
    """
    for path, of in modules(folder):
        if of.startswith(_OURS):
            continue  # reads its own folder by `models.load`
        if _is_model(path):
            check_folder(path)
            continue
        if (path / "config.json").is_file():
            check_config(path)
        weights = path / "model.safetensors"
        if weights.is_file():
            check_safetensors(weights)
        elif path != folder and (pickles := [file for file in path.glob("*") if file.suffix in _PICKLES]):
            raise InputError(f"{pickles[0]} is a pickle, which is not read: save the module as safetensors")


def _is_model(path: Path) -> bool:
    """Whether a module is a model of transformers: its config names a type."""
    return (path / "config.json").is_file() and "model_type" in read_json(path / "config.json")


def _missing(module: Any, path: Path) -> list[str]:
    """The weights that a module's model has and its folder does not; told from shapes, so no data is read."""
    from transformers import PreTrainedModel

    model = next(each for each in module.modules() if isinstance(each, PreTrainedModel))
    _, loading = type(model).from_pretrained(
        path, device_map="meta", output_loading_info=True, use_safetensors=True, local_files_only=True
    )
    # A pooler follows the last layer, and no embedding is made of it.
    return sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
