"""Options: what is parsed, what is refused, and what is printed of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from broadsheet.console import InputError
from broadsheet.options import OptionRow, Options, construct, describe, option, pairs


@dataclass
class Sizes(Options):
    quick: bool = option(False, "Fewer.")
    pairs: int = option(60, "Pairs of texts.", quick=20, least=2)
    rate: float = option(1e-4, "Learning rate.", least=0)
    name: str = option("plain", "A name.", metavar="NAME")
    folder: Path | None = option(None, "Where.")
    limit: int | None = option(None, "At most; no limit where not given.", least=1)
    lengths: tuple[int, ...] = option((1, 2), "Lengths.", quick=(1,), least=1)
    temperatures: tuple[float, ...] = option((1.0, 0.8), "Temperatures.")
    share: float = option(0.5, "A share.", least=0, most=0.9)
    parts: tuple[str, ...] = option((), "Parts.", choices=("a", "b"))
    tune: Literal["lora", "full"] = option("lora", "What is trained.")
    documents: int | Literal["all"] = option(100, "Documents, or all.", least=1)
    shuffle: bool = option(True, "In another order.")
    other: int = 7  # no option: of the class alone

    def check(self) -> None:
        if self.limit is not None and self.limit > self.pairs:
            raise InputError(f"got --limit {self.limit} and --pairs {self.pairs}; expected a limit below")


def sizes(*arguments: str) -> Sizes:
    return construct(Sizes, pairs(arguments))


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--pairs", "3"], "pairs", 3),
        (["--pairs=3"], "pairs", 3),
        (["--rate", "1e-3"], "rate", 1e-3),
        (["--rate", "2"], "rate", 2.0),
        (["--name", "x y"], "name", "x y"),
        (["--name="], "name", ""),
        (["--folder", "a/b"], "folder", Path("a/b")),
        (["--limit", "4"], "limit", 4),
        (["--lengths", "3,4, 5"], "lengths", (3, 4, 5)),
        (["--lengths", "3"], "lengths", (3,)),
        (["--temperatures", "0.5,1"], "temperatures", (0.5, 1.0)),
        (["--parts", "b,a"], "parts", ("b", "a")),
        (["--tune", "full"], "tune", "full"),
        (["--documents", "all"], "documents", "all"),
        (["--documents", "5"], "documents", 5),
        (["--quick"], "quick", True),
        (["--quick", "true"], "quick", True),
        (["--quick=yes"], "quick", True),
        (["--quick", "off"], "quick", False),
        (["--no-shuffle"], "shuffle", False),
        (["--shuffle", "false"], "shuffle", False),
        (["--shuffle"], "shuffle", True),
    ],
)
def test_each_kind_is_parsed(arguments, name, value):
    found = getattr(sizes(*arguments), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such", "1"], "no option --no-such; expected one of --quick, --pairs, "),
        (["--other", "1"], "no option --other"),
        (["--pairs", "many"], "got --pairs 'many'; expected a whole number"),
        (["--pairs", "2.5"], "got --pairs '2.5'; expected a whole number"),
        (["--pairs", "0"], "got --pairs 0; expected 2 or more"),
        (["--share", "1"], "got --share 1; expected 0.9 or less"),
        (["--share", "nan"], "got --share nan; expected a finite number"),
        (["--pairs"], "got --pairs without a value; expected a whole number"),
        (["--pairs", "--quick"], "got --pairs without a value"),
        (["--rate", "-1"], "got --rate -1; expected 0 or more"),
        (["--rate", "fast"], "got --rate 'fast'; expected a number"),
        (["--limit", "0"], "got --limit 0; expected 1 or more"),
        (["--lengths", "3,x"], "got --lengths '3,x'; expected whole numbers separated by commas"),
        (["--lengths", "3,0"], "got --lengths 0; expected 1 or more"),
        (["--lengths", "3,3"], "got --lengths 3,3; expected each value once"),
        (["--parts", "a,c"], "got --parts 'c'; expected one of a, b"),
        (["--tune", "half"], "got --tune 'half'; expected one of lora, full"),
        (["--documents", "none"], "got --documents 'none'; expected a whole number or all"),
        (["--documents", "0"], "got --documents 0; expected 1 or more"),
        (["--quick", "maybe"], "got --quick 'maybe'; expected true or false"),
        (["--no-quick", "1"], "got --no-quick 1; expected --quick VALUE"),
        (["--no-pairs"], "got --no-pairs; expected --pairs VALUE"),
        (["--pairs", "3", "--pairs", "4"], "got --pairs twice"),
        (["stray"], "got 'stray' where an option was expected"),
        (["--"], "got '--' where an option was expected"),
        (["--pairs", "3", "--limit", "4"], "got --limit 4 and --pairs 3; expected a limit below"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError) as refused:
        sizes(*arguments)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_what_is_not_given_has_its_default_and_quick_has_others():
    plain, quick, given = Sizes(), Sizes(quick=True), Sizes(quick=True, pairs=60)
    assert (plain.pairs, plain.lengths, plain.rate, plain.limit, plain.other) == (60, (1, 2), 1e-4, None, 7)
    assert (quick.pairs, quick.lengths, quick.rate) == (20, (1,), 1e-4)
    assert given.pairs == 60, "what is given holds, quick or not"
    assert sizes("--quick", "--pairs", "50").pairs == 50


def test_in_python_the_same_checks_hold():
    with pytest.raises(InputError, match="got --pairs 1; expected 2 or more"):
        Sizes(pairs=1)
    with pytest.raises(InputError, match="got --tune 'half'"):
        Sizes(tune="half")


def test_given_is_json():
    given = Sizes(folder=Path("a")).given()
    assert given["folder"] == "a"
    assert given["pairs"] == 60
    assert given["limit"] is None
    assert "other" not in given


def test_describe_says_each_option_once():
    rows = {row.name: row for row in describe(Sizes)}
    assert list(rows)[:2] == ["--quick", "--pairs"]
    assert rows["--pairs"] == OptionRow("--pairs", "N", "60; with --quick 20", "Pairs of texts.")
    assert rows["--rate"] == OptionRow("--rate", "X", "0.0001", "Learning rate.")
    assert rows["--quick"] == OptionRow("--quick", "", "", "Fewer.")
    assert rows["--no-shuffle"] == OptionRow("--no-shuffle", "", "", "In another order.")
    assert rows["--limit"].default == "", "None is not given"
    assert rows["--folder"].value == "PATH"
    assert rows["--name"].value == "NAME"
    assert rows["--lengths"].value == "N,…"
    assert rows["--lengths"].default == "1,2; with --quick 1"
    assert rows["--documents"].value == "N|all"
    assert rows["--tune"].value == "lora|full"
    assert rows["--parts"].value == "a|b"
    assert "--other" not in rows
    assert "--pairs" not in {row.name for row in describe(Sizes, skip=("pairs",))}


def test_what_help_shows_can_be_typed():
    for row in describe(Sizes):
        if not row.value:
            assert sizes(row.name).given()
