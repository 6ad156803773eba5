"""Methods by name and fields, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from broadsheet.console import InputError
from broadsheet.methods import Call, ForPaper, call_of, names_of, parse_calls, plain, settings, signature
from broadsheet.options import option


@dataclass
class Steady:
    """The first of its paper: called by the paper's id too."""

    paper: ClassVar[str] = "steady_state"

    window: int = 3
    how: str = "std"
    layers: tuple[int, ...] = field(default_factory=tuple)
    _kept: int = 0


@dataclass
class SteadyPP(Steady):
    """The second of its paper."""

    paper: ClassVar[str] = "steady_state"

    window: int = 4


@dataclass
class HelperLoss:
    """The first of its paper in the file; but another is called as the paper is."""

    paper: ClassVar[str] = "grl"


@dataclass
class GRL:
    paper: ClassVar[str] = "grl"


@dataclass
class Nobodys:
    size: int
    rate: float = 0.5


class Built:
    """No dataclass: built around a model."""

    def __init__(self, model, *, layer=None): ...


@dataclass
class Things(ForPaper):
    stage: ClassVar[str] = "things"

    method: str | None = option(None, "A method.")


@pytest.mark.parametrize(
    ("spec", "calls"),
    [
        ("steady", [Call("steady", {})]),
        ("a,b(x=1)", [Call("a", {}), Call("b", {"x": 1})]),
        ("a(x=-1.5, y='z', w=(1, 2), u=True)", [Call("a", {"x": -1.5, "y": "z", "w": (1, 2), "u": True})]),
        ("a(how=expstd)", [Call("a", {"how": "expstd"})]),
        ("b(y=None),c(z='u,v', w=word)", [Call("b", {"y": None}), Call("c", {"z": "u,v", "w": "word"})]),
        ("", []),
    ],
)
def test_calls_are_read(spec, calls):
    assert parse_calls(spec) == calls


NO_LIST = [
    "a(",
    "a(1)",
    "a.b",
    "1",
    "'a'",
    "a(x=f())",
    "a(x=open('f'))",
    "a(**x)",
    "a]+[b",
    "a],[b",
    "a(x=1)(y=2)",
    "(",
]
NO_LIST += ["lambda: 0", "\0", "(" * 1000]


@pytest.mark.parametrize("spec", NO_LIST, ids=lambda spec: repr(spec[:20]))
def test_what_is_no_such_list_is_refused(spec):
    with pytest.raises(InputError, match=r"got --method .*; expected names with options, as in"):
        parse_calls(spec)


def test_fields_come_from_the_call_then_from_the_defaults_given_then_from_the_class():
    made = Steady(**settings(Steady, Call("steady", {"window": 9}), window=5, how="range"))
    assert (made.window, made.how, made.layers) == (9, "range", ())
    assert settings(Steady, None, window=5) == {"window": 5}
    with pytest.raises(InputError, match=r"Steady has no field 'windw'; expected Steady\(window=3, how='std', layers"):
        settings(Steady, Call("steady", {"windw": 9}))


def test_a_class_that_is_no_dataclass_is_configured_by_its_constructor():
    assert signature(Built) == "Built(layer=None)"
    assert settings(Built, Call("built", {"layer": 3})) == {"layer": 3}
    with pytest.raises(InputError, match="Built has no field 'model'"):
        settings(Built, Call("built", {"model": 3}))


def test_signatures_and_calls():
    assert signature(Nobodys) == "Nobodys(size, rate=0.5)"
    assert "_kept" not in signature(Steady)
    assert call_of(Steady()) == "Steady()"
    assert call_of(SteadyPP()) == "SteadyPP()"
    assert call_of(Steady(window=4, layers=(1,))) == "Steady(window=4, layers=(1,))"
    assert parse_calls(call_of(Steady(how="range"))) == [Call("Steady", {"how": "range"})]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Steady, {"steady", "steadystate"}),
        (SteadyPP, {"steadypp"}),
        (HelperLoss, {"helperloss"}),
        (GRL, {"grl"}),
        (Nobodys, {"nobodys"}),
    ],
)
def test_a_class_is_called_by_its_name_and_the_first_by_its_papers_id(kind, names):
    assert names_of(kind) == names


def test_a_class_attribute_is_no_field_and_papers_of_the_page_are_written_as_one_would_call_them():
    from broadsheet.attend import FlexPrefill, LMInfinite

    with pytest.raises(InputError, match=r"LMInfinite has no field 'paper'; expected LMInfinite\(n_global=10, "):
        settings(LMInfinite, Call("lm_infinite", {"paper": "mine"}))
    assert call_of(LMInfinite(n_local=64)) == "LMInfinite(n_local=64)"
    assert signature(FlexPrefill).startswith("FlexPrefill(gamma=0.95, tau=0.1, block_size=128")


def test_lastde_is_the_class_of_that_name():
    from broadsheet.detect import Lastde, LastdePP

    assert names_of(Lastde) == {"lastde"}
    assert names_of(LastdePP) == {"lastdepp"}


def test_plain_names():
    assert plain("lm_infinite") == plain("LMInfinite") == "lminfinite"


@pytest.mark.parametrize("spec", ["steady(window=8)", "Steady(window=8)", "steady_state(window=8)"])
def test_a_method_is_configured_by_what_the_user_wrote(spec):
    things = Things(method=spec)
    assert things.fields(Steady, how="range") == {"window": 8, "how": "range"}
    assert things.configured(Steady, how="range") == Steady(window=8, how="range")
    assert things.configured(SteadyPP) == SteadyPP(), "the other class of the paper keeps its own"
    things.check_calls()


def test_a_method_that_takes_no_part_is_refused_with_those_that_do():
    things = Things(method="nobody(x=1)")
    things.configured(Steady)
    with pytest.raises(InputError, match=r"got --method nobody; expected Steady\(window=3"):
        things.check_calls()
    things.check_calls([type("Nobody", (), {"__module__": __name__})])
    with pytest.raises(InputError, match="got --method x; expected none"):
        Things(method="x").check_calls()


def test_whose_a_method_is_follows_the_paper_that_is_tried():
    things = Things()
    assert things.tried == "things"
    assert things.of_tried_paper(Steady)
    assert not things.of_tried_paper(Nobodys)
    things = Things().for_paper("grl")
    assert things.tried == "grl"
    assert things.of_tried_paper(GRL)
    assert not things.of_tried_paper(Steady)
    assert not things.of_tried_paper(Nobodys)
