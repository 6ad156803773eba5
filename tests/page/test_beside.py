"""What it takes to lead another implementation."""

import pytest

from broadsheet.page.beside import Found, cost, leads, of_methods

CHEAPER, AS_GOOD = Found("texts/s", "", "helps", None), Found("F1", "", "no measurable difference", True)


@pytest.mark.parametrize(
    ("metric", "unit", "kind"),
    [
        ("texts/s", "", "time"),
        ("training steps/s", "", "time"),
        ("prefill seconds", "", "time"),
        ("decode ms/token", "", "time"),
        ("latency", "ms", "time"),
        ("tokens per forward", "", "time"),
        ("cache MiB", "", "size"),
        ("memory", "MB", "size"),
        ("peak GiB", "", "size"),
        ("peak bytes", "", "size"),
        ("prompt tokens", "", "size"),
        ("tokens, gaps", "", "size"),
        ("retrieval beyond 8,192", "", None),
        ("F1, matches", "", None),
        ("loss", "nats", None),
    ],
)
def test_time_memory_and_tokens_are_costs_and_all_else_is_a_quality(metric, unit, kind):
    assert cost(metric, unit) == kind


def test_the_arm_of_the_first_claim_stands_for_a_method():
    assert of_methods(["plain", "second"], ["first", "second"]) == "second"
    assert of_methods(["plain"], ["first", "second"]) == "first"
    assert of_methods([], []) == ""


def test_what_leads_is_cheaper_and_no_worse_and_found_worse_in_nothing():
    assert leads([CHEAPER, AS_GOOD])
    assert leads([Found("latency", "ms", "helps", None), AS_GOOD])
    assert not leads([CHEAPER])
    assert not leads([AS_GOOD])
    assert not leads([CHEAPER, AS_GOOD._replace(no_worse=False)])
    assert not leads([CHEAPER, AS_GOOD._replace(no_worse=None, verdict="helps")]), "no margin was named before"
    assert not leads([CHEAPER, AS_GOOD, Found("accuracy", "", "hurts", None)])
    assert not leads([CHEAPER, AS_GOOD, Found("accuracy", "", "hurts", False)])
    assert leads([CHEAPER, AS_GOOD, Found("accuracy", "", "hurts", True)]), "within its margin"
    assert not leads([CHEAPER, CHEAPER._replace(metric="cache MiB", no_worse=True)]), "a cost is no quality"
    assert leads([CHEAPER, AS_GOOD, Found("cache MiB", "", "hurts", None)]), "leaner or faster"
