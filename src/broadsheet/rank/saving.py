"""A reranker as a folder: an ordinary Hugging Face model or PEFT adapter, its tokenizer, and `reranker.json`.

Knows: folders and their settings. Does not know: how anything ranks. Folders from elsewhere are checked before a
library reads them: weights are safetensors, and an adapter is plain LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from broadsheet.cache import atomic_folder, locked
from broadsheet.console import InputError
from broadsheet.models import adapters
from broadsheet.models import load as load_model
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import read_json
from broadsheet.rank.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    adapter = hasattr(reranker.model, "peft_config")
    settings = {"format": _FORMAT, **reranker.settings()}
    if adapter:
        config = reranker.model.peft_config["default"]
        settings["base_model"] = reranker.spec or config.base_model_name_or_path
    try:
        with locked(folder), atomic_folder(folder) as temporary, quiet():
            # Left to itself, peft asks the hub whether the embeddings have grown.
            reranker.model.save_pretrained(temporary, **({"save_embedding_layers": False} if adapter else {}))
            reranker.tokenizer.save_pretrained(temporary)
            (temporary / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None


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
        model, tokenizer = _adapted(folder, base, options)
        spec = base
    else:
        model, tokenizer = load_model(folder, **options)
        spec = str(source)
    try:
        return kind(model, tokenizer, **{"spec": spec} | settings | changes)
    except TypeError as error:
        raise InputError(f"{folder / SETTINGS} cannot be used: {error}; save the reranker anew") from None


def _adapted(folder: Path, base: str, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The base model with the adapter in `folder`, and the adapter's tokenizer."""
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError(f"{folder} is an adapter, which needs peft: pip install 'broadsheet[rank]'") from None
    from transformers import AutoTokenizer

    adapters.check(folder)
    model, tokenizer = load_model(base, **options)
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the adapter in {folder} does not fit {base}: {reason}") from None
    return adapted.eval(), tokenizer
