"""Hear: a causal LM that answers about speech and sounds.

A model is built, loaded and asked through `SalmonnForConditionalGeneration`, trained by `fit` on rows of audio and
answers, and tuned by `activate`. An encoder implements `AudioEncoder`. `make_data` makes clips to learn from.

Names are imported on first use, so that commands which need no model start fast.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("AudioEncoder", "encoder"),
        "configuration": ("SalmonnConfig",),
        "data": ("make_data",),
        "data.rows": ("AudioRow", "read_rows"),
        "encoders.audio_features": ("AudioFeatures",),
        "processing": ("SalmonnProcessor",),
        "training.activating": ("activate",),
        "training.fitting": ("TrainOutput", "fit"),
        "trials.cascade": ("Cascade",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get
