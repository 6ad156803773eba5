"""Activation tuning: stories that the model writes with a weaker adapter, learnt in few steps at its full strength.

Knows: the adapter's scaling, generation, `fit`. Does not know: where clips come from, how following is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, progress
from broadsheet.hear.data.rows import AudioRow, write_rows
from broadsheet.hear.prompts import instruction
from broadsheet.hear.training.fitting import fit
from broadsheet.models.seeds import seeded
from broadsheet.training.trainer import TrainOutput

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

FACTOR = 0.5  # of the adapter's scaling while stories are written: 4 becomes 2
STEPS = 12  # one story each
_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1}


def write_stories(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    *,
    factor: float = FACTOR,
    max_new_tokens: int = 120,
    least_words: int = 15,
    tries: int = 4,
    seed: int = 0,
    **generation: Any,
) -> list[AudioRow]:
    """Rows with the stories that the model writes about their clips at a weaker adapter.

    Args:
        rows: whose audio and instruction count; an instruction that is missing is the task's fixed one.
        factor: of the adapter's scaling meanwhile.
        max_new_tokens, generation: of `generate`; sampled by default, seeded.
        least_words: a shorter story is written anew, at most `tries` times in all.

    Raises:
        InputError: no story came out long enough for any row.

    Source: arXiv:2310.13289, Sec. 3.2 (activation tuning).
    """
    written: list[AudioRow] = []
    settings = {**_SAMPLING, "max_new_tokens": max_new_tokens, **generation}
    with model.scale_lora(factor), seeded(seed), progress("writing stories", total=len(rows)) as bar:
        for row in rows:
            asked = row.instruction or instruction(row.task or "story")
            for _ in range(tries):
                story = " ".join(model.answer(list(row.audio), asked, **settings).split())
                if len(story.split()) >= least_words:
                    written.append(replace(row, answer=story, instruction=asked))
                    break
            bar.advance(bar.task_ids[0])
    if not written:
        raise InputError(
            f"no story of {least_words} words or more came out of {len(rows)} clips at {factor:g} of the adapter's "
            "scaling; give a smaller factor"
        )
    return written


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
        warmup=0.0,
        schedule="constant",
        seed=seed,
        **training,
    )
    if fitted.folder is not None:
        write_rows(fitted.folder / "stories.jsonl", told)
    return fitted, told
