"""What is read off a docstring: what a class does, when to use it, its example."""

from __future__ import annotations

import pytest
from names import undefined

from broadsheet.page import docparts
from broadsheet.page.papers import docstring, ours

DOCSTRING = """Read a text twice (arXiv:1, Sec. 2). Then once more.

Use when: texts are long,
    or many. Prefer `Once` when they are not. A third sentence.
Prefer `Never` when: nobody reads.
Inputs: texts.

Example:
    >>> with Twice()(model):  # doctest: +SKIP
    ...     model.generate()
    4

Source: arXiv:1."""


def test_the_parts_of_a_docstring():
    assert docparts.first_sentences(DOCSTRING, 1) == "Read a text twice (arXiv:1, Sec. 2)."
    assert docparts.first_sentences(DOCSTRING, 5).endswith("Then once more.")
    assert docparts.use(DOCSTRING) == "Use when texts are long, or many. Prefer `Once` when they are not."
    assert docparts.example(DOCSTRING) == "with Twice()(model):\n    model.generate()"


def test_a_docstring_without_parts_has_none():
    assert docparts.use("Does it.") == docparts.example("Does it.") == ""
    assert docparts.first_sentences("", 2) == ""
    assert docparts.example("Example:\n    a = 1\n\n    b = 2\n") == "a = 1\n\nb = 2"


@pytest.mark.parametrize("paper", [paper for paper in ours() if paper.entry and paper.in_stage], ids=lambda p: p.id)
def test_a_built_paper_says_when_to_use_it_and_shows_how(paper):
    text = docstring(paper.entry[0])
    assert docparts.use(text).startswith("Use "), paper.entry[0]
    code = docparts.example(text)
    assert code, paper.entry[0]
    assert undefined(code) == set(), "it is printed to be pasted"


def test_what_a_program_lacks_is_seen():
    assert undefined("from math import pi\nfrom json import decoder\nx = [n for n in range(3)]\nprint(x, pi)") == set()
    assert undefined("from json import nothing\nprint(nothing, model)") == {"nothing", "model"}
