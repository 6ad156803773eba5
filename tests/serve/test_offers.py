"""What a browser may ask to be tried becomes words of a command that were offered, and nothing else."""

from __future__ import annotations

import math

import pytest

from broadsheet.console import InputError
from broadsheet.options import construct, form, pairs
from broadsheet.page.papers import load, ours
from broadsheet.serve.trials.offers import Offers, fields

OFFERS = Offers(("default", "tiny"), ("pydocs:stdlib",))


def test_a_form_becomes_a_command_and_what_is_empty_is_not_given():
    asked = {"model": ["tiny"], "data": [""], "quick": ["yes"], "seed": ["3"], "prompts": ["12"], "megabytes": ["1.5"]}
    assert OFFERS.arguments("aded", asked) == [
        "aded", "--model", "tiny", "--quick", "--seed", "3", "--prompts", "12", "--megabytes", "1.5",
    ]  # fmt: skip
    assert OFFERS.arguments("gem", {"tune": ["full"], "init": [""]}) == ["gem", "--tune", "full"]
    assert OFFERS.arguments("salmonn", {"also": ["one", "text", ""]}) == ["salmonn", "--also", "one,text"]
    assert OFFERS.arguments("first", {"titles": ["no"]}) == ["first", "--no-titles"]


@pytest.mark.parametrize(
    ("paper", "asked", "told"),
    [
        ("nothing", {}, "nothing"),
        ("aded", {"model": ["/etc/passwd"]}, "expected one of default, tiny"),
        ("aded", {"data": ["hf:org/data"]}, "expected one of pydocs:stdlib"),
        ("aded", {"peer": ["program"]}, "no option 'peer' that a form offers"),
        ("aded", {"out": ["/"]}, "no option 'out'"),
        ("aded", {"record": ["yes"]}, "no option 'record'"),
        ("aded", {"method": ["aded()"]}, "no option 'method'"),
        ("aded", {"prompts": ["2"]}, "a whole number from 3"),
        ("aded", {"prompts": ["12 --peer x"]}, "a whole number"),
        ("aded", {"prompts": ["1e400"]}, "a whole number"),
        ("aded", {"megabytes": ["nan"]}, "a number"),
        ("aded", {"seed": ["-1"]}, "a whole number from 0"),
        ("aded", {"prompts": ["12", "13"]}, "2 times"),
        ("gem", {"tune": ["--peer"]}, "expected one of lora, full"),
        ("salmonn", {"also": ["one", "--peer"]}, "expected some of"),
        ("first", {"titles": ["maybe"]}, "yes or no"),
    ],
)
def test_what_was_not_offered_is_refused(paper, asked, told):
    with pytest.raises(InputError, match=told):
        OFFERS.arguments(paper, asked)


@pytest.mark.parametrize("paper", [paper.id for paper in ours() if paper.trial])
def test_each_trial_takes_what_its_form_offers(paper):
    [kind] = [load(each.trial) for each in ours() if each.id == paper]
    offered = fields(paper)
    assert offered == form(kind, skip=("quick", "seed")), "run python docs/generate.py"
    asked = {}
    for each in offered:
        number = f"{min(max(16, each.least or 0), math.inf if each.most is None else each.most):g}"
        asked[each.name] = [{"switch": "yes", "whole": number, "number": number}.get(each.kind) or each.choices[0]]
    words = OFFERS.arguments(paper, asked)[1:]
    for name, value in pairs(words).items():
        told = ""
        try:
            construct(kind, {name: value})
        except InputError as error:  # of options that need each other
            told = str(error)
        assert not any(word in told for word in ("no option", "expected a ", "expected one of"))
    assert {"peer", "model", "data", "method"}.isdisjoint(asked)
