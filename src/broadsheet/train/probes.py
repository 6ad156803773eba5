"""Short trainings at several mixtures of two texts, with both losses measured along the way.

Knows: `fit`, mixtures, folders. Does not know: what is made of the losses, or where models come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet.cache import atomic_write
from broadsheet.models.safefiles import read_json
from broadsheet.train.base import LossMethod, MethodObjective
from broadsheet.train.cmr import MixtureRun
from broadsheet.training.fit import fit
from broadsheet.training.mixing import Mixture

MEASURES = 16  # places of a run at which losses are measured, the denser the earlier


def places(steps: int, count: int = MEASURES) -> list[int]:
    """Steps after which losses are measured: as far apart by their ratios as steps allow."""
    return sorted({int(each) for each in np.geomspace(1, steps, count).round()})


def mixture_run(
    ratio: float,
    model: Any,
    domain: Sequence[Any],
    general: Sequence[Any],
    measure: Callable[[Any], tuple[float, float]],
    out: Path,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int = 0,
    **settings: Any,
) -> MixtureRun:
    """Train a model at one ratio, or read what a finished folder holds; a stopped run is resumed.

    The rate is constant after a short warm-up: one that falls would bend losses down by itself.

    Args:
        ratio: share of the domain's rows.
        model: that the run begins with.
        domain, general: rows of each text; their tokens are counted by the length of the first.
        measure: a model to its (domain, general) loss on held-out texts.
        out: the folder of the trained model.
        settings: further ones of `fit`.

    Raises:
        KeyboardInterrupt: the run was stopped; the same call goes on.
    """
    wanted = set(places(steps))

    def watch(model: Any, step: int) -> Mapping[str, float]:
        if step not in wanted:
            return {}
        return dict(zip(("domain", "general"), measure(model), strict=True))

    before = out.with_name(f"{out.name} before.json")
    if not before.exists():
        domain_loss, general_loss = measure(model)
        with atomic_write(before) as file:
            json.dump({"domain": domain_loss, "general": general_loss}, file)
    if not (out / "training.json").exists():
        rows = Mixture(domain, general, 1 - ratio, batch, steps, seed)
        done = fit(
            model, rows, MethodObjective(LossMethod(), watch), out, steps=steps, batch_size=batch, learning_rate=rate,
            schedule="constant", warmup=0.05, seed=seed, **settings,
        )  # fmt: skip
        if not done.finished:
            raise KeyboardInterrupt
    kept = read_json(before)
    told = [each for each in read_json(out / "training.json")["history"] if "eval_domain" in each]
    tokens = batch * len(domain[0]["input_ids"])
    return MixtureRun(
        ratio,
        [each["step"] * tokens for each in told],
        [each["eval_domain"] for each in told],
        [each["eval_general"] for each in told],
        (kept["domain"], kept["general"]),
    )
