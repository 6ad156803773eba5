"""Activation tuning: stories that the model writes with a weaker adapter, learnt in few steps at its full strength.

Knows: the adapter's scaling, generation, `fit`. Does not know: where clips come from, how following is judged.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, progress
from broadsheet.hear.data.rows import AudioRow, write_rows
from broadsheet.hear.prompts import INSTRUCTIONS, instruction
from broadsheet.hear.training.fitting import fit
from broadsheet.training.trainer import TrainOutput

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

FACTOR = 0.5  # of the adapter's scaling while stories are written: 4 becomes 2
STEPS = 12  # one story each
_PENALTY = 1.1  # of repetition
_TOP_K = 50  # tokens that are drawn from, as `generate` does by itself
_TOGETHER = 16  # stories that are written at once
# Stories are asked for in any words but the first of their pool, which evaluation uses: it was not trained on.
_POOLS = {"story": INSTRUCTIONS["story"][1:]}


def write_stories(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    *,
    factor: float = FACTOR,
    max_new_tokens: int = 120,
    least_words: int = 15,
    tries: int = 4,
    seed: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.9,
    **generation: Any,
) -> list[AudioRow]:
    """Rows with the stories that the model writes about their clips at a weaker adapter.

    They are written in batches, and each is drawn from a generator of its own, seeded by `seed`, the names of its clips
    and what is asked: which rows stand beside it does not matter, but for rounding.

    Args:
        rows: whose audio and instruction count; an instruction that is missing is drawn for the clip, of a story from
            all but the fixed one.
        factor: of the adapter's scaling meanwhile.
        max_new_tokens, generation: of `generate`, which takes what is drawn.
        least_words: a shorter story is written anew, at most `tries` times in all.
        temperature, top_p: of the draws.

    Raises:
        InputError: no story came out long enough for any row.

    Source: arXiv:2310.13289, Sec. 3.2 (activation tuning).
    """
    asked = [replace(row, instruction=row.instruction or _drawn_instruction(row, seed)) for row in rows]
    settings = {"repetition_penalty": _PENALTY, "max_new_tokens": max_new_tokens, **generation}
    told: dict[int, str] = {}
    with model.scale_lora(factor), progress("writing stories", total=len(rows)) as bar:
        for attempt in range(tries):
            left = [place for place in range(len(rows)) if place not in told]
            for start in range(0, len(left), _TOGETHER):
                places = left[start : start + _TOGETHER]
                draws = _Draws([_generator(asked[place], seed, attempt) for place in places], temperature, top_p)
                requests = [(list(asked[place].audio), asked[place].instruction) for place in places]
                for place, answer in zip(
                    places, model.answers(requests, logits_processor=[draws], **settings), strict=True
                ):
                    if len(answer.split()) >= least_words:
                        told[place] = " ".join(answer.split())
                        bar.advance(bar.task_ids[0])
    if not told:
        raise InputError(
            f"no story of {least_words} words or more came out of {len(rows)} clips at {factor:g} of the adapter's "
            "scaling; give a smaller factor"
        )
    return [replace(asked[place], answer=told[place]) for place in sorted(told)]


class _Draws(LogitsProcessor):
    """Leaves each row one token, drawn from the softmax of its likeliest by the row's own generator."""

    def __init__(self, generators: Sequence[torch.Generator], temperature: float, top_p: float) -> None:
        self.generators = generators
        self.narrow = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (batch, vocabulary) to 0 for the token that is drawn and −∞ for all others."""
        best, places = scores.topk(min(_TOP_K, scores.shape[1]))
        # In the order of the vocabulary: two tokens that rounding lets change ranks change no draw.
        places, order = places.sort(dim=1)
        shares = self.narrow(input_ids, best.gather(1, order)).softmax(1).cumsum(1)  # (batch, 50)
        drawn = torch.stack([torch.rand(1, generator=each) for each in self.generators]).to(scores.device)
        chosen = (shares <= drawn * shares[:, -1:]).sum(1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, places.gather(1, chosen), 0.0)


def _names(row: AudioRow) -> list[str]:
    return [Path(clip).name for clip in row.audio]


def _drawn_instruction(row: AudioRow, seed: int) -> str:
    """What is asked of a row that does not say it: the same for the same clips."""
    return instruction(row.task or "story", random.Random(f"{seed} {_names(row)}"), _POOLS)


def _generator(row: AudioRow, seed: int, attempt: int) -> torch.Generator:
    """Of a row's draws."""
    return torch.Generator().manual_seed(int(fingerprint([seed, _names(row), row.instruction, attempt])[:15], 16))


def activate(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    out: str | Path | None = None,
    *,
    factor: float = FACTOR,
    steps: int = STEPS,
    learning_rate: float = 1e-4,
    seed: int = 0,
    stories: Sequence[AudioRow] = (),
    generation: Mapping[str, Any] | None = None,
    **training: Any,
) -> tuple[TrainOutput, list[AudioRow]]:
    """Write stories with a weaker adapter, then tune on them at its full strength, one story a step.

    Args:
        rows: clips to tell stories about (the paper: 12).
        out: where the tuned model will stand, with `stories.jsonl` in it.
        factor: of the adapter's scaling while stories are written (0.5: 4 becomes 2).
        steps, learning_rate, training: of `fit`; adapter and connector are both trained, at the same rate. With
            `rehearse=rows`, rows of the stage before join each story: a model that was taught by a few hundred steps
            forgets by a dozen, and then a rate that brings stories costs it its hearing. Not the paper's.
        stories: rows with answers, to tune on instead of writing any.
        generation: of `write_stories`, such as `max_new_tokens`.

    Returns:
        What the training did, and the stories.

    Source: arXiv:2310.13289, Sec. 3.2, Table 5: 12 steps on 12 stories.
    """
    told = list(stories) or write_stories(model, rows, factor=factor, seed=seed, **(generation or {}))
    fitted = fit(
        model,
        told,
        out,
        steps=steps,
        batch_size=1,
        learning_rate=learning_rate,
        lora_learning_rate=learning_rate,
        pools=_POOLS,
        warmup=0.0,
        schedule="constant",
        seed=seed,
        **training,
    )
    if fitted.folder is not None:
        write_rows(fitted.folder / "stories.jsonl", told)
    return fitted, told
