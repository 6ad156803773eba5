"""Models that are no causal ones, by name: classifiers, and models from sequence to sequence, with their tokenizers.

Knows: names, devices, dtypes. Does not know: what classes or texts are for.
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
    read = reading.classifier_from_folder(_folder(spec, "classifier"), device=place, dtype=dtype_of(dtype, place))
    return Loaded(*read, str(spec))


def load_seq2seq(spec: str | Path, *, device: str | None = None, dtype: str | None = "float32") -> Loaded:
    """Load a model for `AutoModelForSeq2SeqLM`, such as T5, and its tokenizer, as safely as `models.load`.

    Args:
        spec, device, dtype: as in `load_classifier`.

    Raises:
        InputError: nothing of that name; it is damaged, unsafe, or no such model; it lacks weights.

    Example:
        model, tokenizer = load_seq2seq("google-t5/t5-small")
    """
    place = device_of(device)
    folder = _folder(spec, "model from sequence to sequence")
    return Loaded(*reading.seq2seq_from_folder(folder, device=place, dtype=dtype_of(dtype, place)), str(spec))


def _folder(spec: str | Path, wanted: str) -> Path:
    name, path = str(spec), Path(spec).expanduser()
    if path.is_dir():
        return path
    if hub.is_id(name) and not path.exists():
        return hub.folder(name)
    raise InputError(f"unknown {wanted} {name!r}: not a folder, and not a hub id (org/name)")
