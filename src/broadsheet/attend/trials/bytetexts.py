"""Texts as bytes, for models that are trained from nothing: what they learn, and how well they read.

Knows: corpora, bytes, `fit`'s objectives. Does not know: which models. A text is its UTF-8 bytes, so that small models
spend their weights on mixing tokens, any language can be read, and losses do not depend on a vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.training.objective import Objective
from broadsheet.training.schedules import SCHEDULES, Progress
from broadsheet.training.scratch import near_duplicates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BEGIN = 256  # the token before each text; all others are bytes
VOCABULARY = 257
STRETCH = 8  # held-out texts are this many times as long as those of training
TUNING_TEXTS = 16


@dataclass(frozen=True)
class ByteTexts:
    """Bytes to train on and to read.

    Args:
        stream: (n,) training texts, one after another, each after a BEGIN.
        held_out: (texts, 1 + STRETCH · length), a BEGIN and the first bytes of texts that are not in the stream.
        tuning: (16, 1 + length) of still other texts, for the loss along the way and the choice of learning rates.
        whole: (m,) the held-out texts in full, one after another, to be read before timed decoding.
        dropped: documents that were too like a held-out or tuning text to be learnt from.
    """

    stream: Tensor
    held_out: Tensor
    tuning: Tensor
    whole: Tensor
    dropped: int

    def batch(self, step: int, seed: int, rows: int, length: int) -> Tensor:
        """The texts of a step, (rows, length + 1): the same for every arm of that seed, whatever ran before."""
        generator = torch.Generator().manual_seed(int(fingerprint([seed, step])[:15], 16))
        starts = torch.randint(len(self.stream) - length, (rows,), generator=generator)
        return self.stream[starts[:, None] + torch.arange(length + 1)]


def split(corpus: corpora.Corpus, data: str, asked: int, length: int, wanted: int, seed: int) -> ByteTexts:
    """Whole documents are held out: a sample of those long enough, none a near duplicate of another in what is read.

    Documents that are near duplicates of what is read of them are dropped.

    Args:
        data: the corpus's name, for messages.
        asked: texts to hold out, at most.
        length: bytes of a training text.
        wanted: bytes that training reads.

    Raises:
        InputError: too few documents are long enough, or too little is left to train on.
    """
    documents = corpus.take(max(4000, wanted // 200), seed)
    random.Random(seed).shuffle(documents)
    long = STRETCH * length
    fit_to_ask: list[str] = []
    asked_parts: list[str] = []  # what is read of them
    for text in (document.text for document in documents):
        whole = text.encode()
        part = whole[:long].decode(errors="ignore")
        if len(whole) >= long and not near_duplicates([part], asked_parts):
            fit_to_ask.append(text)
            asked_parts.append(part)
        if len(fit_to_ask) == asked + TUNING_TEXTS:
            break
    # Up to a third is left to choose learning rates on: never the texts that are asked.
    spared = min(TUNING_TEXTS, len(fit_to_ask) // 3)
    count = min(asked, len(fit_to_ask) - spared)
    chosen, tuning = fit_to_ask[:count], fit_to_ask[count:][:TUNING_TEXTS]
    if len(chosen) < 2 or not tuning:
        raise InputError(
            f"{data} gives {len(fit_to_ask)} documents of at least {long} bytes; expected 3 at least, 2 to "
            "hold out and 1 to choose learning rates on: make --length smaller"
        )
    if len(chosen) < asked:
        say(f"{len(chosen)} documents are held out, of {asked} wanted: {len(fit_to_ask)} are long enough")
    out = {*chosen, *tuning}
    rest = [document.text for document in documents if document.text not in out]
    like = near_duplicates(rest, asked_parts)
    stream = torch.cat([to_bytes(text) for i, text in enumerate(rest) if i not in like] or [to_bytes("")])
    if len(stream) <= length:
        raise InputError(
            f"{data} leaves {len(stream)} bytes to train on; expected more than {length}, and a few "
            "hundred thousand to learn from"
        )
    return ByteTexts(
        stream,
        torch.stack([to_bytes(text)[: long + 1] for text in chosen]),
        torch.stack([to_bytes(text)[: length + 1] for text in tuning]),
        torch.cat([to_bytes(text) for text in chosen]),
        len(like),
    )


def to_bytes(text: str) -> Tensor:
    """A BEGIN, and the text as UTF-8."""
    return torch.tensor([BEGIN, *text.encode("utf-8")])


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor, parts: int) -> np.ndarray:
    """Mean loss, in nats, of equal stretches of each text: ids (texts, 1 + parts · m) -> (texts, parts)."""
    ids = ids.to(model.device)
    logits = model(ids[:, :-1], use_cache=False).logits.float()
    losses = cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    return losses.unflatten(1, (parts, -1)).mean(-1).cpu().numpy().astype(np.float64)


def next_byte_loss(model: Any, ids: Tensor) -> Tensor:
    """The mean over texts (rows, length + 1), in nats."""
    logits = model(ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class NextByte(Objective):
    """Next-byte prediction on texts drawn by the number of the step; held-out loss ten times along the way.

    Args:
        texts: what is learnt, and the tuning texts whose loss is told.
        rows, length: of a step: texts, and bytes of each.
        steps, seed: of the training.
    """

    def __init__(self, texts: ByteTexts, rows: int, length: int, steps: int, seed: int) -> None:
        self.texts, self.rows, self.length = texts, rows, length
        self.steps, self.seed = steps, seed

    def collate(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        ids = self.texts.batch(items[0][0], self.seed, self.rows, self.length)
        return {"input_ids": ids, "tokens": torch.tensor(ids[:, 1:].numel())}

    def loss(self, model: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        return next_byte_loss(model, batch["input_ids"])

    def parameter_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]  # vectors decay too

    def after_step(self, model: Any, step: int) -> dict[str, float]:
        if step % max(1, self.steps // 10):
            return {}
        found = float(read(model.eval(), self.texts.tuning, 1).mean())
        model.train()
        return {"held_out": found}


def _cosine_to_a_tenth(progress: Progress, warmup: float) -> float:
    """Rises over the steps of the warm-up, then falls as a cosine to a tenth."""
    step, rise = progress.step, max(1, int(warmup * progress.steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, progress.steps - rise)))


SCHEDULES["cosine to a tenth"] = _cosine_to_a_tenth
