"""A tiny audio model for tests: two encoders that need no weights from anywhere, a tiny Llama, a small Q-Former."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from broadsheet.hear.base import KINDS, AudioEncoder
from broadsheet.hear.configuration import SalmonnConfig
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

TINY = {
    "qformer_hidden": 16,
    "qformer_heads": 2,
    "qformer_layers": 2,
    "qformer_ffn": 32,
    "window_seconds": 0.1,
    "lora_rank": 4,
    "lora_alpha": 16,
}


KINDS["blocks"] = "hearing:Blocks"


class Blocks(AudioEncoder):
    """Frames that are a fixed random map of consecutive blocks of samples."""

    kind = "blocks"

    def __init__(self, width: int = 6, rate: float = 50.0, seed: int = 0) -> None:
        super().__init__()
        self.width, self.frame_rate, self.seed = width, rate, seed
        self.block = round(16_000 / rate)
        generator = torch.Generator().manual_seed(seed)
        self.map = nn.Parameter(torch.randn(self.block, width, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.calls = 0
        self.freeze()

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "width": self.width, "rate": self.frame_rate, "seed": self.seed}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> tuple[int, float]:
        return settings["width"], settings["rate"]

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        return -(-samples // round(16_000 / settings["rate"]))

    def encode(self, wave: Tensor) -> Tensor:
        self.calls += 1
        wave = nn.functional.pad(wave, (0, -len(wave) % self.block))
        return self.dropout(wave.reshape(-1, self.block) @ self.map).tanh()


def tiny(
    model: Any, tokenizer: Any, encoders: Sequence[AudioEncoder] = (), *, seed: int = 0, **settings: Any
) -> SalmonnForConditionalGeneration:
    """A seeded audio model around a tiny language model, whose adapter does something."""
    parts = list(encoders) or [Blocks(), Blocks(4, 25.0, seed=1)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = SalmonnConfig("tiny", [], **{**TINY, **settings})
        made = SalmonnForConditionalGeneration(config, (model, tokenizer), parts)
        for name, weight in made.llm.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    return made


def noise(samples: int, seed: int = 0) -> Tensor:
    """A wave of noise."""
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))
