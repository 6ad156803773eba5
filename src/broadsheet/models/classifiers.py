"""Classifiers by name: a model with a classification head and its tokenizer, from a folder or a hub id.

Knows: names, devices, dtypes. Does not know: what the classes are for.
"""

from __future__ import annotations

from pathlib import Path

from broadsheet.console import InputError
from broadsheet.models import hub, reading
from broadsheet.models.loading import Loaded, device_of, dtype_of


def load_classifier(spec: str | Path, *, device: str | None = None, dtype: str | None = "float32") -> Loaded:
    """Load a model for `AutoModelForSequenceClassification` and its tokenizer, as safely as `models.load`.

    Args:
        spec: a folder, or a hub id `org/name` or `org/name@revision` whose weights are safetensors.
        device, dtype: as in `models.load`.

    Raises:
        InputError: nothing of that name; it is damaged, unsafe, or no such model; it lacks weights of its head.

    Example:
        model, tokenizer = load_classifier("runs/nli")
    """
    place = device_of(device)
    name, path = str(spec), Path(spec).expanduser()
    if path.is_dir():
        folder = path
    elif hub.is_id(name) and not path.exists():
        folder = hub.folder(name)
    else:
        raise InputError(f"unknown classifier {name!r}: not a folder, and not a hub id (org/name)")
    return Loaded(*reading.classifier_from_folder(folder, device=place, dtype=dtype_of(dtype, place)), name)
