"""Backbones from nothing: small causal LMs of several sizes, `scratch:1M` and so on, pre-trained here on equal tokens.

Knows: texts, sizes, how a backbone is trained once and kept. Does not know: embedders, or what is compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from broadsheet import models
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import say
from broadsheet.models.loading import device_of
from broadsheet.models.safefiles import read_json
from broadsheet.page.evidence import versions
from broadsheet.training.fit import fit
from broadsheet.training.objective import NextTokens
from broadsheet.training.scratch import (
    Size,
    SplitTexts,
    TokenBlocks,
    apart,
    document_losses,
    joined,
    size,
    tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PREFIX = "scratch:"
RATES = (1e-3, 3e-3, 6e-3)  # of AdamW, that each size's is chosen from
BATCH, LENGTH = 16, 256  # rows of a step, tokens of a row
_SHARE = 5  # a rate is chosen after a fifth of the steps
_HELD_OUT, _TUNING = 200, 32  # documents
_LEAST = 2000  # documents that are drawn


@dataclass(frozen=True)
class Pretrained:
    """What a backbone's pre-training was.

    Attributes:
        name: `scratch:SIZE`.
        tokens: that it read, of `unique` that were drawn.
        rate: the learning rate that was chosen for it.
        loss: of `documents` that it did not read, in nats a byte.
        seconds: of its pre-training, the choice of a rate left out.
    """

    name: str
    tokens: int
    unique: int
    rate: float
    loss: float
    documents: int
    seconds: float


def is_scratch(name: str) -> bool:
    """Whether a backbone's name is that of one from nothing."""
    return name.startswith(PREFIX)


def pretrained(
    name: str, texts: Sequence[str], out: Path, *, steps: int, seed: int = 0, device: str | None = None
) -> tuple[Path, Pretrained]:
    """The folder of the backbone of that name, for `models.load`, and what it is: trained once, then read back.

    All sizes have the same texts, tokenizer and number of steps, of `BATCH` rows of `LENGTH` tokens. Each one's
    learning rate is that of `RATES` by which a fifth of the steps leave the lowest loss on documents kept for that.

    Args:
        name: `scratch:SIZE`, a size of `training.scratch`.
        texts: to draw from what is read, and what is held out.
        out: backbones stand in it, each in a folder named by all that it is made from.
        seed: of weights and order.

    Raises:
        InputError: there is no such size; too few texts.
        KeyboardInterrupt: training was stopped; the same call resumes it.

    Example:
        folder, told = pretrained("scratch:1M", texts, Path("runs"), steps=1000)
    """
    made, place = size(name.removeprefix(PREFIX)), str(device_of(device))
    key = fingerprint([versions(), asdict(made), list(texts), steps, seed, place, BATCH, LENGTH, RATES, _SHARE])
    folder = out / f"backbone-{key}"
    record = folder / "backbone.json"
    if not record.exists():
        training = _Pretraining(made, _drawn(texts, 4 * steps * BATCH * LENGTH, seed), folder, seed, place)
        rate = training.rate(max(1, steps // _SHARE))
        say(f"pre-training: {name}, {steps:,} steps of {BATCH} × {LENGTH} tokens")
        training.run("model", steps, rate)
        told = Pretrained(
            name,
            steps * BATCH * LENGTH,
            training.rows.ids.numel(),
            rate,
            training.loss("model", training.held.held_out),
            len(training.held.held_out),
            read_json(folder / "model" / "training.json")["seconds"],
        )
        with atomic_write(record) as file:
            json.dump(asdict(told), file)
    return folder / "model", Pretrained(**read_json(record))


def _drawn(texts: Sequence[str], characters: int, seed: int) -> tuple[str, ...]:
    """Texts in random order that have as many characters together, where there are; a token has about three."""
    order = random.Random(seed).sample(list(texts), len(texts))
    ends = np.cumsum([len(text) for text in order])
    return tuple(order[: max(_LEAST, int(np.searchsorted(ends, characters)) + 1)])


@dataclass(frozen=True)
class _Pretraining:
    """The runs of one size."""

    size: Size
    texts: tuple[str, ...]
    folder: Path
    seed: int
    device: str

    @cached_property
    def held(self) -> SplitTexts:
        return apart(self.texts, _HELD_OUT, _TUNING, self.seed)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer(self.held.train)

    @cached_property
    def rows(self) -> TokenBlocks:
        return TokenBlocks(joined(self.held.train, self.tokenizer), LENGTH)

    def rate(self, steps: int) -> float:
        """The rate whose short run leaves the lowest loss."""
        losses = {}
        for rate in RATES:
            say(f"pre-training: learning rate {rate:g}, {steps:,} steps")
            self.run(f"rate {rate:g}", steps, rate)
            losses[rate] = self.loss(f"rate {rate:g}", self.held.tuning)
        return min(losses, key=lambda rate: losses[rate])

    def run(self, name: str, steps: int, rate: float) -> None:
        """Train a new model into the folder of that name, unless it stands there."""
        if (self.folder / name / "training.json").exists():
            return
        model = self.size.model(len(self.tokenizer), LENGTH, self.seed).to(self.device)

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        done = fit(
            model, self.rows, NextTokens(), self.folder / name, save=save, steps=steps, batch_size=BATCH,
            learning_rate=rate, schedule="cosine", warmup=0.05, weight_decay=0.1, adam_beta2=0.95, seed=self.seed,
        )  # fmt: skip
        if not done.finished:
            raise KeyboardInterrupt

    def loss(self, name: str, texts: Sequence[str]) -> float:
        """Of a trained model, in nats a byte; the mean of texts."""
        model = models.load(self.folder / name, device=self.device, dtype="float32").model
        return float(document_losses(model, self.tokenizer, texts, LENGTH).mean())
