"""A reranker as a folder: an ordinary Hugging Face model or PEFT adapter, its tokenizer, and `reranker.json`.

Knows: folders and their settings. Does not know: how anything ranks. Folders from elsewhere are checked before a
library reads them: weights are safetensors, and an adapter is plain LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from broadsheet.cache import atomic_folder, locked
from broadsheet.console import InputError
from broadsheet.models import adapters, card
from broadsheet.models import load as load_model
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import read_json
from broadsheet.rank.prompts.prompt import Prompt

SETTINGS = "reranker.json"
_FORMAT = 1
Built = TypeVar("Built")


class Saved(Protocol):
    """What a folder keeps of a reranker."""

    model: Any
    tokenizer: Any
    spec: str | None

    def settings(self) -> dict[str, Any]: ...


def save(reranker: Saved, folder: Path) -> None:
    """Write `reranker` as `folder`, whole or not at all; a saved reranker there is replaced.

    Raises:
        InputError: `folder` holds something that is not a saved reranker, or cannot be written.
    """
    if folder.exists() and not (folder / SETTINGS).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no saved reranker; choose another folder")
    try:
        with locked(folder), atomic_folder(folder) as temporary:
            write(reranker, temporary)
            card.write(temporary, to=folder, base=base_name(reranker))
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None


def base_name(reranker: Saved) -> str:
    """The name that an adapter's base can be loaded by; empty where it is not known."""
    given = [adapter.base_model_name_or_path for adapter in getattr(reranker.model, "peft_config", {}).values()]
    return reranker.spec or next(filter(None, [*given, reranker.model.config.name_or_path]), "")


def write(reranker: Saved, folder: Path) -> None:
    """Write the files of `reranker` into an empty folder.

    Raises:
        InputError: it has an adapter whose base has no name.
    """
    settings = {"format": _FORMAT, **reranker.settings()}
    spec = base_name(reranker)
    if adapters.has_adapter(reranker.model):
        settings["base_model"] = spec
    with quiet():
        adapters.save(reranker.model, folder, spec)
        reranker.tokenizer.save_pretrained(folder)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load(kind: Callable[..., Built], source: str | Path, changes: dict[str, Any], **options: Any) -> Built:
    """See `ListwiseReranker.load`; `kind` is the class that is built."""
    folder = Path(source).expanduser()
    if not (folder / SETTINGS).is_file():
        if (folder / adapters.ADAPTER).is_file():
            raise InputError(f"{folder} is an adapter without {SETTINGS}; save it with ListwiseReranker(…).save")
        model, tokenizer = load_model(source, **options)
        return kind(model, tokenizer, **{"spec": str(source)} | changes)
    settings = read_json(folder / SETTINGS)
    if (found := settings.pop("format", None)) != _FORMAT:
        raise InputError(f"{folder / SETTINGS} has format {found!r}; this version reads {_FORMAT}: update broadsheet")
    base = settings.pop("base_model", None)
    if "prompt" in settings and isinstance(settings["prompt"], dict):
        settings["prompt"] = Prompt.from_dict(settings["prompt"])
    if (folder / adapters.ADAPTER).is_file():
        if not isinstance(base, str):
            raise InputError(f"{folder / SETTINGS} does not name the adapter's base_model; add it")
        model, tokenizer = adapters.load(folder, options, base)
        spec = base
    else:
        model, tokenizer = load_model(folder, **options)
        spec = str(source)
    try:
        return kind(model, tokenizer, **{"spec": spec} | settings | changes)
    except TypeError as error:
        raise InputError(f"{folder / SETTINGS} cannot be used: {error}; save the reranker anew") from None
