"""No method takes a number that means nothing: NaN, a count or a seed below zero, a share beyond one."""

from __future__ import annotations

import dataclasses
import math

import pytest

from broadsheet.console import InputError, within
from broadsheet.curate.fineweb2 import FineWeb2
from broadsheet.detect.lastde import LastdePP
from broadsheet.page import discovery

METHODS = sorted({each.entry for each in discovery.classes() if each.kind == "method"})


def numbers(kind: type) -> list[tuple[str, int | float]]:
    """The fields that are numbers by default."""
    return [
        (each.name, each.default)
        for each in (dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ())
        if each.init and isinstance(each.default, int | float) and not isinstance(each.default, bool)
    ]


@pytest.mark.parametrize("entry", METHODS)
def test_what_is_no_number_or_a_count_below_zero_is_refused(entry):
    kind = discovery.load(entry)
    if hasattr(kind, "install"):
        return  # checked against the model that it is installed in
    try:
        kind()
    except (TypeError, InputError):
        return  # needs a model, or an extra: it is no dataclass of numbers alone
    for name, default in numbers(kind):
        wrong = [-1] if isinstance(default, int) else [math.nan]
        for value in wrong:
            with pytest.raises(InputError):
                kind(**{name: value})


def test_the_guard_sees_most_methods():
    seen = [entry for entry in METHODS if numbers(discovery.load(entry))]
    assert len(seen) > 25


def test_shares_and_counts_have_their_bounds():
    for value in (-0.1, 1.1, 2.0):
        with pytest.raises(InputError, match=f"got affinity {value}; expected 0 to 1"):
            FineWeb2(affinity=value)
    with pytest.raises(InputError, match="got n_samples 0; expected 1 or more"):
        LastdePP(n_samples=0)


def test_bounds_are_told_and_none_is_none():
    @dataclasses.dataclass
    class Some:
        a: float | None = 1.0
        b_: float = math.nan

    within(Some(), a=(1, 1))
    within(Some(a=None), a=(5, None))
    for least, most, told in ((2, None, "2 or more"), (2, 3, "2 to 3"), (None, 0, "a number")):
        with pytest.raises(InputError, match=f"got a 1.0; expected {told}"):
            within(Some(), a=(least, most))
    with pytest.raises(InputError, match="got b nan; expected a number"):
        within(Some(), b_=(None, None))
