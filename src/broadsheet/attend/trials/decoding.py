"""What one more token costs a model after a long text: time, whether that grows with the text, and bytes kept.

Knows: models that read texts with a cache, clocks. Does not know: how a model attends, or how it was trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from broadsheet.attend.memory import cache_bytes
from broadsheet.cache import fingerprint
from broadsheet.trial.base import EvalTask, ModelArm
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.lazy import LazyModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

SHORT, MIDDLE, LONG = 256, 2048, (4096, 8192)  # contexts in tokens; each text has a long one of its own
STEPS = 24  # tokens that are read one at a time after each context
SPEED = Metric("decode ms/token", higher_is_better=False, scale="ratio", unit="ms")
GROWTH = Metric("growth of decode time", higher_is_better=False, scale="ratio", unit="×")
KEPT = Metric("kept of a text", higher_is_better=False, scale="ratio", unit="MiB")


def decoding_task(whole: Tensor, texts: int, once: tuple[str, ...]) -> EvalTask:
    """Texts to what a token costs after `LONG` tokens of each, and by how much more time than after `SHORT` ones.

    Args:
        whole: (n,) tokens that texts are cut from, from places evenly apart; repeated where they are too few.
        texts: how many, the first with the shortest context.
        once: names of the arms that take part.
    """
    items = cut(whole, texts)
    return EvalTask(
        "decoding",
        items,
        [SPEED, GROWTH, KEPT],
        _decoder,
        item="text",
        about=f"{STEPS} tokens one at a time after {LONG[0]:,} to {LONG[1]:,} tokens of {texts} texts, and after "
        f"{SHORT:,} of each, all arms in turns",
        fingerprint=fingerprint([each.tolist() for each in items]),
        block_size=1,
        once=once,
    )


def cut(whole: Tensor, texts: int) -> list[Tensor]:
    """Texts of `LONG` tokens and `STEPS` more, lengths and places evenly apart."""
    lengths = np.linspace(*LONG, texts).astype(int) + STEPS
    starts = np.linspace(0, len(whole), texts, endpoint=False).astype(int)
    return [
        whole.roll(-int(s)).repeat(-(-int(n) // len(whole)))[: int(n)] for s, n in zip(starts, lengths, strict=True)
    ]


def contexts(text: Tensor) -> list[int]:
    """Where decoding is timed in a text of `cut`."""
    return [SHORT, MIDDLE, len(text) - STEPS]


def _decoder(arm: ModelArm, lazy: LazyModel, kept: Path | None = None) -> Arm:
    def run(block: Sequence[Tensor]) -> dict[str, Any]:
        found = [decoded(lazy(), text) for text in block]
        milliseconds = 1000 * np.array([seconds for seconds, _ in found])
        held = np.array([held for _, held in found], dtype=np.float64)
        return {
            SPEED.name: milliseconds[:, -1],
            GROWTH.name: milliseconds[:, -1] / milliseconds[:, 0],
            KEPT.name: held[:, -1] / 2**20,
            "milliseconds": milliseconds,
            "bytes": held,
        }

    return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)


@torch.no_grad()
def decoded(model: PreTrainedModel, text: Tensor) -> tuple[list[float], list[float]]:
    """Seconds a token, the median of `STEPS`, and bytes of the cache before them, after each of a text's contexts."""
    ids = text.to(model.device)
    cache: Any = None
    read, seconds, held = 0, [], []
    for context in contexts(text):
        given = {} if cache is None else {"cache": cache}
        cache = model(ids[None, read:context], use_cache=True, logits_to_keep=1, **given).cache
        held.append(float(cache_bytes(cache).on_device))
        read = context + STEPS
        seconds.append(
            float(np.median(decode_seconds({"": model}, {("", context): cache}, ids[context:read])["", context]))
        )
    return seconds, held


@torch.no_grad()
def decode_seconds(
    models: dict[str, PreTrainedModel], caches: dict[tuple[str, int], Cache], ids: Tensor
) -> dict[tuple[str, int], list[float]]:
    """Seconds for each token of `ids` (n,), by model and context, read one at a time after what a cache holds.

    All take turns token by token, so that a drift of the machine falls on all alike.
    """
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in caches}
    for token in ids.split(1):
        for (name, context), cache in caches.items():
            start = time.perf_counter()
            models[name](token[None], cache=cache, use_cache=True)
            if ids.is_cuda:
                torch.cuda.synchronize()
            seconds[name, context].append(time.perf_counter() - start)
    return seconds
