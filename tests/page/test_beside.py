"""What it takes to lead another implementation."""

import pytest

from broadsheet.page.beside import Found, is_cost, leads

CHEAPER, AS_GOOD = Found("texts/s", "", "helps", None), Found("F1", "", "no measurable difference", True)


@pytest.mark.parametrize(
    ("metric", "unit", "cost"),
    [
        ("texts/s", "", True),
        ("prefill seconds", "", True),
        ("decode ms/token", "", True),
        ("cache MiB", "", True),
        ("peak bytes", "", True),
        ("prompt tokens", "", True),
        ("latency", "ms", True),
        ("retrieval beyond 8,192", "", False),
        ("loss", "nats", False),
    ],
)
def test_time_memory_and_tokens_are_costs_and_all_else_is_a_quality(metric, unit, cost):
    assert is_cost(metric, unit) == cost


def test_what_leads_is_cheaper_and_no_worse_and_worse_in_nothing():
    assert leads([CHEAPER, AS_GOOD])
    assert leads([Found("latency", "ms", "helps", None), AS_GOOD])
    assert not leads([CHEAPER])
    assert not leads([AS_GOOD])
    assert not leads([CHEAPER, AS_GOOD._replace(no_worse=False)])
    assert not leads([CHEAPER, AS_GOOD._replace(no_worse=None, verdict="helps")]), "no margin was named before"
    assert not leads([CHEAPER, AS_GOOD, Found("accuracy", "", "hurts", None)])
    assert not leads([CHEAPER, CHEAPER._replace(metric="cache MiB", no_worse=True)]), "a cost is no quality"
    assert leads([CHEAPER, AS_GOOD, Found("cache MiB", "", "hurts", None)]), "leaner or faster"
