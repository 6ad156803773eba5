"""Hear: a causal LM that answers about speech and sounds.

A model is built, loaded and asked through `SalmonnForConditionalGeneration`, trained by `fit` on rows of audio and
answers, and tuned by `activate`. An encoder implements `AudioEncoder`. `make_data` makes clips to learn from.

Names are imported on first use, so that commands which need no model start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broadsheet.hear.base import AudioEncoder, encoder
    from broadsheet.hear.configuration import SalmonnConfig
    from broadsheet.hear.data import make_data
    from broadsheet.hear.data.rows import AudioRow, read_rows
    from broadsheet.hear.encoders.audio_features import AudioFeatures
    from broadsheet.hear.processing import SalmonnProcessor
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
    from broadsheet.hear.training.activating import activate
    from broadsheet.hear.training.fitting import TrainOutput, fit
    from broadsheet.hear.trials.cascade import Cascade

_HOMES = {
    "base": ("AudioEncoder", "encoder"),
    "configuration": ("SalmonnConfig",),
    "data": ("make_data",),
    "data.rows": ("AudioRow", "read_rows"),
    "encoders.audio_features": ("AudioFeatures",),
    "processing": ("SalmonnProcessor",),
    "salmonn": ("SalmonnForConditionalGeneration",),
    "training.activating": ("activate",),
    "training.fitting": ("TrainOutput", "fit"),
    "trials.cascade": ("Cascade",),
}

__all__ = [
    "AudioEncoder",
    "AudioFeatures",
    "AudioRow",
    "Cascade",
    "SalmonnConfig",
    "SalmonnForConditionalGeneration",
    "SalmonnProcessor",
    "TrainOutput",
    "activate",
    "encoder",
    "fit",
    "make_data",
    "read_rows",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
