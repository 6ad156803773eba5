"""Every option of every recipe and trial is given what it cannot take: one line, before anything is loaded."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from test_inputs_of_all import limited, one_line
from workshop import RECIPES, Workshop, run

from broadsheet.apply.base import Recipe
from broadsheet.options import FormField, flag, form
from broadsheet.page import discovery
from broadsheet.page.papers import get_recipe, get_trial, ours

FEW, MANY = 1, 20  # values of each, in `make test` and in `make attack`
TRIALS = [paper.id for paper in ours() if paper.trial]


def wrong(field: FormField) -> Iterator[str]:
    """Texts that are no value of an option."""
    if field.kind in ("whole", "number"):
        yield from ("", "many", "nan", "-inf", "1e999", "0x10", "1 2")
        if field.kind == "whole":
            yield from ("1.5", "1e-3")
        if field.least is not None:
            yield str(int(field.least) - 1)
        if field.most is not None:
            yield str(int(field.most) + 1)
    elif field.kind == "choice":
        yield from ("", "nowhere", field.choices[0].upper() + "!")


def recipe_class(paper: str) -> type[Recipe]:
    found: type[Recipe] = discovery.load(get_recipe(paper)[1])
    return found


def nowhere(kind: type) -> list[str]:
    """A model that is none, so that an option that is accepted costs nothing."""
    return ["--model", "nowhere"] if any(each.name == "model" for each in fields(kind)) else []


def asked(words: list[str], options: list[FormField], home: Path, name: str, attack) -> None:
    """All of the options are asked; a fault is what is accepted, hangs, or is told without the option's name."""
    faults = {}
    for field in options:
        values = list(wrong(field))
        for value in random.Random(field.name).sample(values, min(len(values), attack.of(FEW, MANY))):
            given = [*words, f"{flag(field.name)}={value}"]
            try:
                with limited(" ".join(given), 20):
                    ended = run(given)
            except Exception as raised:
                faults[given[-1]] = f"raised {type(raised).__name__}: {raised}"
                continue
            if ended.status == 0:
                faults[given[-1]] = "accepted"
            elif fault := one_line(ended):
                faults[given[-1]] = fault
            elif flag(field.name) not in ended.error:
                faults[given[-1]] = f"is not named in {ended.error}"
            else:
                attack.count("options", name)
    assert not faults, "\n".join(f"{each}: {fault}" for each, fault in faults.items())


@pytest.mark.parametrize("paper", RECIPES)
def test_of_a_recipe(paper: str, tmp_path: Path, home, attack) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    kind = recipe_class(paper)
    words = ["apply", paper, str(rows), "--out", str(tmp_path / "out"), *nowhere(kind)]
    asked(words, form(kind), home, f"apply {paper}", attack)


@pytest.mark.parametrize("paper", TRIALS)
def test_of_a_trial(paper: str, tmp_path: Path, home, attack) -> None:
    kind = discovery.load(get_trial(paper)[1])
    words = ["try", paper, "--out", str(tmp_path), "--data", "nowhere", *nowhere(kind)]
    asked(words, form(kind), home, f"try {paper}", attack)


@pytest.mark.parametrize("paper", RECIPES)
def test_the_example_of_a_recipe_gives_what_it_does_not_run_without(paper: str, workshop: Workshop, tmp_path, home):
    needs = recipe_class(paper).needs.split()
    words = workshop.words(paper, tmp_path / "out")
    if not needs:
        asked_for = re.compile(r"needs --|expected --")
        assert not asked_for.search(run([*words[:5], *nowhere(recipe_class(paper))]).error)
        return
    place = words.index(needs[0])
    ended = run([*words[:place], *words[place + 2 :]])
    assert ended.status == 2
    assert needs[0] in ended.error
