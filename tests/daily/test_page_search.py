"""`broadsheet page search` and `similar`, as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broadsheet.console import InputError
from broadsheet.daily.commands import app


def said(*words: str) -> str:
    found = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert found.exit_code == 0
    return found.output


def test_a_search_lists_papers_on_lines_of_a_terminal(tmp_path: Path):
    store = ["--store", str(tmp_path / "page.sqlite")]
    lines = said("search", "speculative", "decoding", "--limit", "3", *store).splitlines()
    assert "Adaptive Draft-Verification" in lines[0]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert "by words alone" in said("search", "nothingofthekind", *store)


def test_papers_like_one_are_listed_by_either_name(tmp_path: Path):
    store = ["--store", str(tmp_path / "page.sqlite")]
    assert said("similar", "2308.16137", *store) == said("similar", "lm_infinite", *store)
    with pytest.raises(InputError, match=r"no paper 2412\.99999"):
        said("similar", "2412.99999", *store)
