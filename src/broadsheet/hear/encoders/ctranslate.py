"""CTranslate2's binary Whisper model, read into transformers' `WhisperForConditionalGeneration` without CTranslate2.

Knows the file format, version 6 (one header, then named arrays, then aliases), and how CTranslate2 names and fuses
Whisper's weights. Lengths are checked against the file before anything is read. Knows no cache and no network.

Source: the interface of CTranslate2's converters (OpenNMT/CTranslate2, `python/ctranslate2/specs`).
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet.console import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import GenerationConfig, WhisperConfig

VERSION = 6
_SPEC, _REVISION = "WhisperSpec", 3
_ARRAYS_LIMIT = 65_536
# Quantized weights (int8, int16) come with scales and are not read: the encoder is to be exact.
_TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}
_GELU = 3
# What transformers' Whisper does as well, and nothing else may be asked for.
_SWITCHES = {
    "decoder/activation": _GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
_IGNORED = {"decoder/alignment_heads", "decoder/alignment_layer", "decoder/num_heads", "encoder/num_heads"}

_MODULES = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "layer_norm": "layer_norm",
    "position_encodings": "embed_positions",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_FUSED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
_PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a CTranslate2 Whisper file by name, each with its shape and type.

    Raises:
        InputError: the file is cut off, of another version or model, or its header claims more than the file holds.
    """
    with path.open("rb") as file:
        if path.stat().st_size < 16:
            raise _damaged(path, "it ends within its header")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Walk(path, view).arrays()


def convert(weights: Path, settings: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    """Write an English-only Whisper as a Hugging Face folder; weights keep the type they are stored in.

    Args:
        weights: CTranslate2's `model.bin`.
        settings: CTranslate2's `config.json` beside it: `alignment_heads`, `suppress_ids`, `suppress_ids_begin`.
        tokenizer: the `tokenizer.json` beside it.
        folder: an empty folder.

    Raises:
        InputError: `read`'s; or the weights are quantized, or are not those of a Whisper.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    arrays = read(weights)
    ids = _special_tokens(tokenizer)
    config = _config(weights, arrays, ids)
    state = dict(_state(weights, arrays))
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    wrong = sorted(wanted.keys() ^ state.keys()) or [n for n, shape in wanted.items() if state[n].shape != shape]
    if wrong:
        raise InputError(f"{weights} does not hold a Whisper's weights: {len(wrong)} do not fit, such as {wrong[0]}")
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = _generation(settings, config, ids)
    model.save_pretrained(folder, max_shard_size="100GB")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    named = {"tokenizer_class": "WhisperTokenizer", "model_max_length": config.max_target_positions, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")


class _Walk:
    """One pass over the memory-mapped file; no read goes past its end."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.view, self.position = path, view, 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        version = self.number("I")
        if version != VERSION:
            raise _damaged(self.path, f"its format is version {version}, expected {VERSION}")
        found = self.string(), self.number("I")
        if found != (_SPEC, _REVISION):
            raise _damaged(self.path, f"it holds {found[0][:40]!r} revision {found[1]}, expected {_SPEC} {_REVISION}")
        count = self.number("I")
        if count > _ARRAYS_LIMIT:
            raise _damaged(self.path, f"its header claims {count:,} arrays, at most {_ARRAYS_LIMIT:,} are read")
        arrays = dict(self.array() for _ in range(count))
        # Aliases name a tied array once more (the projection is the embeddings); transformers ties it itself.
        for _ in range(self.number("I")):
            _, original = self.string(), self.string()
            if original not in arrays:
                raise _damaged(self.path, f"it has an alias of {original[:80]!r}, which is not there")
        if self.position != len(self.view):
            raise _damaged(self.path, f"{len(self.view) - self.position:,} bytes are left over at its end")
        return arrays

    def array(self) -> tuple[str, NDArray[Any]]:
        name, rank = self.string(), self.number("B")
        shape = tuple(self.number("I") for _ in range(rank))
        kind, size = self.number("B"), self.number("I")
        dtype = _TYPES.get(kind)
        if dtype is None or math.prod(shape) * dtype.itemsize != size:
            raise _damaged(self.path, f"its entry for {name[:80]!r} is not consistent")
        return name, np.frombuffer(self.take(size), dtype).reshape(shape)

    def string(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode("utf-8", "replace")

    def number(self, format: str) -> int:
        number: int = struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}")))[0]
        return number

    def take(self, length: int) -> bytes:
        remain = len(self.view) - self.position
        if length > remain:
            raise _damaged(self.path, f"it asks for {length:,} bytes where {remain:,} remain")
        self.position += length
        return self.view[self.position - length : self.position]


def _state(path: Path, arrays: dict[str, NDArray[Any]]) -> Iterator[tuple[str, Tensor]]:
    """Weights under transformers' names."""
    import torch

    for name, array in arrays.items():
        if name in _SWITCHES:
            if array.item() != _SWITCHES[name]:
                raise InputError(f"{path}: {name} is {array.item()}, transformers' Whisper has {_SWITCHES[name]}")
            continue
        if name in _IGNORED:
            continue
        if array.dtype.kind != "f":
            raise InputError(f"{path}: {name} is quantized ({array.dtype}); only float weights are read")
        side, _, rest = name.partition("/")
        prefix = f"model.{side}."
        if rest.startswith("layer_") and rest[6].isdigit():
            layer, _, rest = rest.partition("/")
            prefix += f"layers.{layer.removeprefix('layer_')}."
        module, _, parameter = rest.rpartition("/")
        if parameter not in _PARAMETERS or module not in _MODULES.keys() | _FUSED.keys():
            raise InputError(f"{path}: {name} is not one of the arrays of a Whisper")
        weight = torch.from_numpy(array.copy())
        modules = _FUSED.get(module) or (_MODULES[module],)
        for target, part in zip(modules, weight.chunk(len(modules)), strict=True):
            if target.endswith(".k_proj") and parameter == "bias":  # Whisper's keys have no bias
                if part.any():
                    raise InputError(f"{path}: {name} has a bias for keys, which Whisper has not")
                continue
            yield f"{prefix}{target}.{_PARAMETERS[parameter]}", part.clone()


def _config(path: Path, arrays: dict[str, NDArray[Any]], ids: dict[str, int]) -> WhisperConfig:
    from transformers import WhisperConfig

    def layers(side: str) -> int:
        return len({name.split("/")[1] for name in arrays if name.startswith(f"{side}/layer_") and "/ffn/" in name})

    try:
        vocabulary, width = arrays["decoder/embeddings/weight"].shape
        return WhisperConfig(
            vocab_size=vocabulary,
            d_model=width,
            num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
            encoder_layers=layers("encoder"),
            decoder_layers=layers("decoder"),
            encoder_attention_heads=arrays["encoder/num_heads"].item(),
            decoder_attention_heads=arrays["decoder/num_heads"].item(),
            encoder_ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            decoder_ffn_dim=arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
            max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
            max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
            activation_function="gelu",
            bos_token_id=ids["<|startoftranscript|>"],
            eos_token_id=ids["<|endoftext|>"],
            pad_token_id=ids["<|endoftext|>"],
            decoder_start_token_id=ids["<|startoftranscript|>"],
        )
    except KeyError as error:
        raise InputError(f"{path} does not hold a Whisper: {error.args[0]} is missing") from None


def _generation(settings: dict[str, Any], config: WhisperConfig, ids: dict[str, int]) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        max_length=config.max_target_positions,
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
    )


def _special_tokens(tokenizer: Path) -> dict[str, int]:
    added = json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not a whole CTranslate2 Whisper file: {why}; get the file again")
