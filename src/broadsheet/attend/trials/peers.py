"""A peer in a trial of the stage: a program that reads the same long texts, and is measured at the same lengths.

Knows: external processes, long texts, what is measured. Does not know: what the program does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from broadsheet.attend.trials.longtexts import LongText
from broadsheet.attend.trials.metrics import LengthMetrics, Plan, outputs
from broadsheet.attend.trials.reader import DECODED
from broadsheet.console import InputError
from broadsheet.models import embedded, hub
from broadsheet.trial.engine import Arm, Measured
from broadsheet.trial.outside.external import ExternalProcess
from broadsheet.trial.outside.peers import PeerCall

_FIELDS = ("loss", "seconds", "decode_seconds", "held", "right", "said")


def command(call: PeerCall, model: str, dtype: str) -> list[str]:
    """What the arm of a peer runs; a known one gets the model's folder.

    Raises:
        InputError: the model is no folder.
    """
    if not call.peer:
        return call.command()
    if model == "default":
        folder = embedded.folder()
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().resolve()
    elif hub.is_id(model):
        folder = hub.folder(model)
    else:
        raise InputError(f"got --peer {call.peer.name} and --model {model}; it reads a Hugging Face folder or a hub id")
    return call.command(model=str(folder), dtype=dtype, threads=torch.get_num_threads())


def item_of(text: LongText, lengths: Sequence[int], scored: int) -> dict[str, Any]:
    """What the program is asked about a text: see docs/external.md."""
    return {
        "ids": text.ids[: lengths[-1] + DECODED],
        "lengths": list(lengths),
        "scored": scored,
        "decoded": DECODED,
        "questions": [asdict(question) for question in text.questions],
        "answers": text.answers,
    }


def external(name: str, description: str, process: ExternalProcess, plan: Plan) -> Arm:
    """An arm that a program answers: for each text, a value of each of `_FIELDS` by length."""
    warm = False

    def run(texts: Sequence[LongText]) -> Measured:
        nonlocal warm
        if not warm:  # the engine's untimed first run, whose outputs nobody reads: the first length will do
            warm = True
            process.run([item_of(texts[0], plan.lengths[:1], plan.scored)])
            return Measured({})
        answer = process.run([item_of(text, plan.lengths, plan.scored) for text in texts])
        rows = [outputs(plan, _by_length(answer.outputs, place, plan), []) for place in range(len(texts))]
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        return Measured(columns, sum(columns["prefill seconds"]), answer.peak_bytes)

    return Arm(name, run, description=description, prepare=process.start, close=process.close)


def _by_length(given: Any, place: int, plan: Plan) -> list[LengthMetrics]:
    """What a program answered about one text.

    Raises:
        ValueError: a field is missing, or has not one value for each length.
    """
    found = {}
    for name in _FIELDS:
        values = given.get(name, [])
        if len(values) <= place or len(values[place]) != len(plan.lengths):
            raise ValueError(f"expected `{name}` with {len(plan.lengths)} values, one a length, for each text")
        found[name] = values[place]
    by_length = zip(*(found[name] for name in _FIELDS), strict=True)
    return [
        LengthMetrics(loss, seconds, decode, held, _known(right), _known(said))
        for loss, seconds, decode, held, right, said in by_length
    ]


def _known(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else float(value) for value in values]
