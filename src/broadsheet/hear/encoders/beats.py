"""BEATs (Chen et al., 2022, arXiv:2212.09058): SALMONN's encoder of sounds and music.

Knows: the published checkpoint files, a folder of safetensors, and waves. Does not know: language models, caches.

A wave becomes a spectrogram of 128 mel bins every 10 ms; the spectrogram is cut into patches of 16 frames by 16 bins; a
transformer reads them in order of time, the 8 bands of a block of 160 ms one after another, low to high. So "50 frames
a second" are 8 tokens every 160 ms: token i starts at ⌊i/8⌋·0.16 s and is band i mod 8.

Source: arXiv:2212.09058; authors' code microsoft/unilm, folder beats (MIT); arXiv:2310.13289 for its use.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.hear.base import AudioEncoder
from broadsheet.hear.encoders.beats_layers import Backbone, BeatsConfig, few
from broadsheet.hear.encoders.fbank import fbank, fbank_frames, fbank_samples
from broadsheet.models.batching import halve_on_oom, token_budget_batches
from broadsheet.models.safefiles import WEIGHTS, check_safetensors, read_json

CONFIG = "config.json"
FRAMES_PER_SECOND = 100  # of the spectrogram
# The authors' statistics of log-mel energies; the deviation is doubled where it is used (their code's `preprocess`).
MEAN, DEVIATION = 15.41663, 6.55582
BATCH_TOKENS = 6_000  # padded tokens of a batch: four waves of 30 s; their attention takes 0.4 GB at 12 heads
WHERE = "the published files are linked at github.com/microsoft/unilm, folder beats"


class BeatsEncoder(AudioEncoder):
    """The frozen BEATs encoder: 768 numbers for each patch of 160 ms by 16 mel bins, nominally 50 a second.

    A wave shorter than one patch (2,800 samples) is padded with zeros up to it; what remains after the last whole patch
    is not heard. Attention takes memory by the square of the length: give waves of at most 30 s.

    Waves in a batch are padded, and the padding is hidden token by token, so that a batch gives what each wave gives
    alone. (The authors' mask is spread in proportion over samples, spectrogram and tokens: near a wave's end it may
    hide or show a few tokens more.)

    Use when sounds and music matter; prefer `WhisperEncoder` for speech alone.

    Args:
        spec: a published checkpoint, pre-trained or fine-tuned (its classifier is not used), such as
            BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, or a folder that `save` wrote. A checkpoint is read as
            tensors and plain values only: no code in it is run.
        config: instead of `spec`, fields of `BeatsConfig`, for random weights.
        seed: of random weights.

    Attributes:
        config: its shape.

    Raises:
        InputError: the file cannot be read, is not such a checkpoint, or its weights are not those its cfg describes.

    Example:
        beats = BeatsEncoder("BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt")
        beats.encode(torch.randn(480_000)).shape     # (1496, 768)

    Source: arXiv:2212.09058, Sec. 3; authors' code microsoft/unilm, folder beats.
    """

    kind = "beats"

    def __init__(
        self, spec: str | Path | None = None, *, config: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if spec is not None and config is not None:
            raise InputError("got both a file and a config for a BEATs encoder; expected one of them")
        self.seed = seed
        self.source = None if config is not None else str(_absolute(spec or ""))
        self.config = _config({"spec": spec} if config is None else {"config": config})
        self.width = self.config.encoder_embed_dim
        self.frame_rate = _frame_rate(self.config)
        # No memory for weights that a file brings along.
        with torch.device("meta"):
            self._build()
        if self.source is None:
            self._draw(seed)
        else:
            self._load(Path(self.source))
        self.freeze()

    @classmethod
    def random(cls, config: Mapping[str, Any], seed: int = 0) -> Self:
        """One with random weights, none of them zero or one by design, so that each part shows in what comes out."""
        return cls(config=config, seed=seed)

    def settings(self) -> dict[str, Any]:
        """Its file, or its config and seed."""
        if self.source is not None:
            return {"kind": self.kind, "spec": self.source}
        return {"kind": self.kind, "config": self.config.as_dict(), "seed": self.seed}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> tuple[int, float]:
        """`(width, frame_rate)`; of a file, only its cfg is read."""
        config = _config(settings)
        return config.encoder_embed_dim, _frame_rate(config)

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        """Tokens of a wave of `samples`: 1496 for 30 s, 48 for 1 s, 8 for anything shorter than two patches."""
        return _tokens(_config(settings), samples)

    def encode(self, wave: Tensor) -> Tensor:
        """Tokens of one wave, in order of time and then of band.

        Args:
            wave: (samples,) at 16 kHz, in [-1, 1].

        Returns:
            (tokens, width) float32 on the encoder's device.
        """
        return self.encode_all([wave])[0]

    def encode_all(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Tokens of several waves, each as `encode` gives it (float32, 1e-5), in padded batches of like lengths."""
        results: dict[int, Tensor] = {}
        lengths = [_tokens(self.config, len(wave)) for wave in waves]
        for batch in token_budget_batches(lengths, BATCH_TOKENS):
            encoded = halve_on_oom(self._encode_batch, [waves[i] for i in batch])
            results.update(zip(batch, encoded, strict=True))
        return [results[i] for i in range(len(waves))]

    def spectrogram(self, wave: Tensor) -> Tensor:
        """The normalised log-mel energies that patches are cut from, as many frames as whole patches need.

        Args:
            wave: (samples,) at 16 kHz, in [-1, 1].

        Returns:
            (frames, 128) float32 on the encoder's device; frames are a multiple of the patch's size.
        """
        if wave.ndim != 1:
            raise ValueError(f"got a wave of shape {tuple(wave.shape)}; expected (samples,)")
        wave = wave.to(self.patch_embedding.weight.device)
        short = fbank_samples(self.config.input_patch_size) - len(wave)
        if short > 0:
            wave = torch.cat([wave, wave.new_zeros(short)])
        energies = fbank(wave * 2**15)
        whole = len(energies) // self.config.input_patch_size * self.config.input_patch_size
        return (energies[:whole] - MEAN) / (2 * DEVIATION)

    def patches(self, spectrogram: Tensor) -> Tensor:
        """Vectors of patches, before any attention between them.

        Args:
            spectrogram: (batch, frames, 128).

        Returns:
            (batch, tokens, width), in order of time and then of band.
        """
        grid: Tensor = self.patch_embedding(spectrogram[:, None])  # (batch, embed_dim, blocks, bands)
        tokens = self.layer_norm(grid.flatten(2).transpose(1, 2))
        return tokens if self.post_extract_proj is None else self.post_extract_proj(tokens)

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors, under the published names) and config.json, which `BeatsEncoder(folder)` reads.

        Raises:
            InputError: `folder` is a file.
        """
        from safetensors.torch import save

        folder = _absolute(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder to save the BEATs encoder in")
        with atomic_write(folder / WEIGHTS, "wb") as file:
            file.write(save({name: weight.contiguous() for name, weight in self.state_dict().items()}))
        with atomic_write(folder / CONFIG) as file:
            json.dump({"model_type": "beats", **self.config.as_dict()}, file, indent=2)
        return folder

    @torch.no_grad()
    def _encode_batch(self, waves: Sequence[Tensor]) -> list[Tensor]:
        spectrograms = [self.spectrogram(wave) for wave in waves]
        lengths = [len(one) // self.config.input_patch_size * self.config.bands for one in spectrograms]
        tokens = self.patches(pad_sequence(spectrograms, batch_first=True))
        padding = None
        if min(lengths) < max(lengths):
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            padding = positions >= torch.tensor(lengths, device=tokens.device)[:, None]
        out = self.encoder(tokens, padding)
        return [one[:length].float() for one, length in zip(out, lengths, strict=True)]

    def _build(self) -> None:
        config = self.config
        self.patch_embedding = nn.Conv2d(
            1, config.embed_dim, config.input_patch_size, stride=config.input_patch_size, bias=config.conv_bias
        )
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        same = config.embed_dim == config.encoder_embed_dim
        self.post_extract_proj = None if same else nn.Linear(config.embed_dim, config.encoder_embed_dim)
        self.encoder = Backbone(config)

    def _draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, weight in self.state_dict().items():
            drawn = torch.randn(weight.shape, generator=generator, device="cpu")
            if name.endswith(("norm.weight", "grep_a", "weight_g")):
                drawn = 1 + 0.1 * drawn
            elif name.endswith("bias"):
                drawn *= 0.1
            elif not name.endswith("relative_attention_bias.weight"):
                drawn /= math.sqrt(weight[0].numel())
            weights[name] = drawn
        self.load_state_dict(weights, strict=True, assign=True)

    def _load(self, path: Path) -> None:
        weights = _folder_weights(path) if path.is_dir() else _checkpoint(path)["model"]
        expected = {name: weight.shape for name, weight in self.state_dict().items()}
        weights = _one_table(path, {name: w for name, w in weights.items() if not name.startswith("predictor.")})
        if missing := sorted(expected.keys() - weights.keys()):
            raise InputError(f"{path} lacks weights that its BEATs cfg describes: {few(missing)}; {WHERE}")
        if beside := sorted(weights.keys() - expected.keys()):
            raise InputError(f"{path} has weights that its BEATs cfg does not describe: {few(beside)}; {WHERE}")
        if wrong := [name for name, shape in expected.items() if weights[name].shape != shape]:
            got, wanted = tuple(weights[wrong[0]].shape), tuple(expected[wrong[0]])
            raise InputError(f"{path} has {wrong[0]} of shape {got}; its cfg describes {wanted}; {WHERE}")
        # Copies: the file's own tensors are a view of the file.
        copies = {name: weights[name].to(torch.float32, copy=True).contiguous() for name in expected}
        self.load_state_dict(copies, strict=True, assign=True)


def _tokens(config: BeatsConfig, samples: int) -> int:
    samples = max(samples, fbank_samples(config.input_patch_size))
    return fbank_frames(samples) // config.input_patch_size * config.bands


def _frame_rate(config: BeatsConfig) -> float:
    return config.bands * FRAMES_PER_SECOND / config.input_patch_size


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def _config(settings: Mapping[str, Any]) -> BeatsConfig:
    if "config" in settings:
        return BeatsConfig.of(settings["config"])
    if not settings.get("spec"):
        raise InputError(f"got the audio encoder beats without a file; expected beats:FILE; {WHERE}")
    path = _absolute(settings["spec"])
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist; expected a BEATs checkpoint, or a folder that was saved; {WHERE}")
    return _config_in(path, file.stat().st_mtime_ns, file.stat().st_size)


@lru_cache(maxsize=16)
def _config_in(path: Path, changed: int, size: int) -> BeatsConfig:
    """The config in a file or folder, kept as long as it is not `changed`."""
    return BeatsConfig.of(read_json(path / CONFIG) if path.is_dir() else _checkpoint(path)["cfg"])


def _checkpoint(path: Path) -> dict[str, Any]:
    """A published file: `cfg`, a dictionary of plain values, and `model`, a dictionary of tensors.

    Weights are mapped, not read: what only looks at the cfg takes milliseconds.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # a damaged or hostile pickle may fail in any way
        # torch says why over several lines, and advises to unpickle freely: both are of no use here.
        raise InputError(
            f"{path} is not a file of tensors and plain values; others can run code and are not read; {WHERE}"
        ) from None
    parts = found if isinstance(found, dict) else {}
    cfg, model = parts.get("cfg"), parts.get("model")
    named = isinstance(model, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in model.items())
    if not (isinstance(cfg, dict) and named):
        holds = few(parts) or type(found).__name__
        raise InputError(f"{path} holds {holds}; expected cfg, with plain values, and model, with tensors; {WHERE}")
    return {"cfg": cfg, "model": model}


def _folder_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; expected a folder that BeatsEncoder.save wrote")
    check_safetensors(path)
    return load_file(path)


def _one_table(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the copies of the table of biases that a published checkpoint holds in all layers but the first."""
    first, rest = "encoder.layers.0.", "self_attn.relative_attention_bias.weight"
    table = weights.get(first + rest)
    copies = [name for name in weights if name.endswith("." + rest) and not name.startswith(first)]
    for name in copies:
        if table is None or not torch.equal(weights[name], table):
            raise InputError(f"{path} has another {name} than in its first layer; a BEATs model shares one; {WHERE}")
    return {name: weight for name, weight in weights.items() if name not in copies}
