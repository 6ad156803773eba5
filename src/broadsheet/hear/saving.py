"""A trained model as a folder: the weights that were trained, and the names of the language model and the encoders.

Knows: folders, safetensors, fingerprints. Does not know: what a connector computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from broadsheet.cache import atomic_folder
from broadsheet.console import InputError
from broadsheet.hear.configuration import FIELDS, SalmonnConfig
from broadsheet.hear.processing import SalmonnProcessor
from broadsheet.models import adapters, card
from broadsheet.models.safefiles import check_safetensors, read_json

_WEIGHTS = "connector.safetensors"
PAPER = "salmonn"


def save(
    folder: Path, config: SalmonnConfig, llm: Any, processor: SalmonnProcessor, trained: Mapping[str, nn.Module]
) -> None:
    """Write a folder, whole or not at all.

    Args:
        trained: modules whose weights are written, by name; the adapter in `llm` is written beside them.

    Raises:
        InputError: the folder cannot be written.
    """
    weights = {
        f"{prefix}.{name}": weight.detach().cpu().contiguous()
        for prefix, module in trained.items()
        for name, weight in module.state_dict().items()
    }
    try:
        with atomic_folder(folder) as temporary:
            save_file(weights, str(temporary / _WEIGHTS))
            if adapters.has_adapter(llm):
                adapters.save(llm, temporary, config.llm)
            kind = {"model_type": "salmonn", "architectures": ["SalmonnForConditionalGeneration"]}
            settings = {**kind, **config.settings()}
            (temporary / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
            processor.save_pretrained(temporary)
            card.write(temporary, to=folder, paper=PAPER, base=config.llm)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None


def read_config(folder: Path) -> SalmonnConfig:
    """The config of a saved folder.

    Raises:
        InputError: a file is missing, or it is another kind of model.
    """
    for name in ("config.json", _WEIGHTS, "processor_config.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; expected a folder that `broadsheet apply salmonn` wrote")
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "salmonn":
        raise InputError(f"{folder} holds a {settings.get('model_type')} model; expected a salmonn")
    check_safetensors(folder / _WEIGHTS)
    return SalmonnConfig(**{name: settings[name] for name in FIELDS if name in settings})


def load_weights(folder: Path, trained: Mapping[str, nn.Module]) -> None:
    """Load the saved weights into modules, by name as in `save`.

    Raises:
        InputError: they do not fit.
    """
    try:
        kept = load_file(str(folder / _WEIGHTS))
        for prefix, module in trained.items():
            module.load_state_dict(_under(prefix, kept))
    except RuntimeError as error:
        raise InputError(f"{folder / _WEIGHTS} does not fit its config: {' '.join(str(error).split())[:200]}") from None


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): weight for name, weight in weights.items() if name.startswith(f"{prefix}.")
    }
