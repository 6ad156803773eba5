"""What stands beside a row changes nothing: each is scored, embedded, ranked and answered as it would be alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import RECIPES, Workshop, run, write

FEW, MANY = 1, 8  # rows that are asked alone, in `make test` and in `make attack`
ROWS = 8
RELATIVE = 2e-6  # how far a product of matrices of other shapes may be off, in float32

# What is done with what a recipe makes; a recipe that is not named treats rows one by one itself (`ITSELF`), or is
# named in `TOGETHER`.
EMBEDS = ("gem", "lexical_specialization", "llm_embedder", "llm_ql", "token_prepending", "ullme")
RANKS = ("first", "fullrank", "pg_rank")
SCORES = (
    "cmr", "continual_pretraining", "dataset_decomposition", "llm_pruner", "loss_reweighting", "moe_survey", "salt",
    "token_crisis", "unlearning_whp",
)  # fmt: skip
ITSELF = ("data_preprocessors", "lastde")
# Recipes that make one thing of all rows, or decide on a row by the others, as their papers do.
TOGETHER = ("aded", "clear", "diachronic", "fineweb2", "in_context_pretraining", "megatron_530b", "salmonn")


def embedded(out: Path) -> list[Any]:
    return list(np.load(out / "vectors.npy"))


def lines(out: Path) -> list[Any]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_all_recipes_are_here() -> None:
    assert sorted((*EMBEDS, *RANKS, *SCORES, *ITSELF, *TOGETHER)) == sorted(RECIPES)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*EMBEDS, *RANKS, *SCORES, *ITSELF])
def test_a_row_alone_is_the_row_among_others(name: str, workshop: Workshop, tmp_path: Path, home, attack) -> None:
    rows = [json.loads(line) for line in workshop.rows.read_text().splitlines()][:ROWS]
    draw = random.Random(name)
    for i, row in enumerate(rows):  # of very different lengths, so that most are padded
        row["text"] = row["text"][: 20 * (i + 1) ** 2]
        row["documents"] = [text[: 20 * (i + 1) ** 2] for text in row["documents"]]
    read: Callable[[Path], list[Any]] = embedded if name in EMBEDS else lines

    def asked(which: list[int], out: str) -> list[Any]:
        data = write(tmp_path / f"{out}.jsonl", [rows[i] for i in which])
        result = tmp_path / out
        if name in ITSELF:
            words = workshop.words(name, result, data)
        else:
            made = workshop.made(name).out
            form = {
                EMBEDS: "encode {data} --out {out} --embedder {made}",
                RANKS: "label {data} --out {out} --reranker {made}",
                SCORES: "apply lastde {data} --out {out} --model {made} --batch 4",
            }[next(each for each in (EMBEDS, RANKS, SCORES) if name in each)]
            words = [word.format(data=data, out=result, made=made) for word in form.split()]
        ended = run(words)
        assert ended.status == 0, ended.error
        return read(result)

    order = draw.sample(range(ROWS), ROWS)
    together = dict(zip(order, asked(order, "together"), strict=True))
    for i in draw.sample(range(ROWS), attack.of(FEW, MANY)):
        [alone] = asked([i], f"alone{i}")
        if name in EMBEDS:
            assert np.abs(alone - together[i]).max() <= RELATIVE * np.abs(together[i]).max()
        else:
            assert alone.keys() == together[i].keys()
            for key, value in alone.items():
                expected = pytest.approx(together[i][key], rel=1e-4) if isinstance(value, float) else together[i][key]
                assert value == expected, key
        attack.count("rows alone", name)
