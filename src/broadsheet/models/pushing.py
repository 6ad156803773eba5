"""Saved models to the Hugging Face hub, with their cards.

Knows: folders, cards, the hub's client. `HF_ENDPOINT` and `HF_TOKEN` are honoured by the client itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from broadsheet.console import InputError
from broadsheet.models import card
from broadsheet.models.hub import is_id

_WEIGHTS = (".safetensors",)
_REFUSED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # may hold programs
_LEFT = ("runs", "checkpoints")  # a training's own folders


def push(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a saved model to the hub, in one commit; the repository is made if there is none.

    The card that goes with it names the repository where the folder's own names the folder. A card on the hub that
    somebody wrote is kept.

    Args:
        folder: what `apply`, `fit` or `save` wrote.
        repository: on the hub: `someone/name`.
        private: of a repository that is made.

    Returns:
        Its address.

    Raises:
        InputError: no such folder, no model in it, files that may hold programs, a name that is none, or the hub
            refuses.
    """
    root = Path(folder).expanduser()
    if not is_id(repository) or "@" in repository:
        raise InputError(f"got {repository!r}; expected the name of a repository on the hub, such as someone/name")
    files = _files(root)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        there = card.is_ours(_text(api, repository)) if api.file_exists(repository, card.CARD) else True
        added = [CommitOperationAdd(str(path.relative_to(root)), str(path)) for path in files if path.name != card.CARD]
        if there and (root / card.CARD).is_file():
            text = card.renamed((root / card.CARD).read_text("utf-8"), repository)
            added.append(CommitOperationAdd(card.CARD, text.encode()))
        api.create_commit(repository, added, commit_message="Upload a model saved by broadsheet")
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no answer")
        raise InputError(
            f"the hub refuses {repository} ({status}); set HF_TOKEN to a token that may write there"
        ) from None
    except OSError as error:  # all that the transport raises
        raise InputError(f"cannot reach the hub ({type(error).__name__}); check the network and HF_ENDPOINT") from error
    return address


def push_saved(save: Callable[[Path], object], repository: str, *, private: bool = True) -> str:
    """As `push`, of what `save` writes into a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repository.rpartition("/")[2]
        save(folder)
        return push(folder, repository, private=private)


def _files(root: Path) -> list[Path]:
    """The files of a saved model."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; expected one that `broadsheet apply` or `save` wrote")
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {part for part in path.relative_to(root).parts if part[0] == "." or part in _LEFT}
    ]
    if refused := [path.name for path in files if path.suffix in _REFUSED]:
        raise InputError(f"{root} holds {refused[0]}, which may hold a program; save the model as safetensors")
    if not any(path.suffix in _WEIGHTS for path in files):
        raise InputError(f"{root} holds no weights; expected a folder that `broadsheet apply` or `save` wrote")
    return files


def _text(api: object, repository: str) -> str:
    """The card on the hub."""
    path: str = api.hf_hub_download(repository, card.CARD)  # type: ignore[attr-defined]
    return Path(path).read_text("utf-8")
