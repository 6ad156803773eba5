"""Methods by name and fields, as a command line gives them."""

from __future__ import annotations

import pytest

from broadsheet.attend import FlexPrefill, LMInfinite
from broadsheet.console import InputError
from broadsheet.methods import Call, call_of, parse_calls, settings, signature


def test_calls_are_read_as_literals_and_never_run():
    assert parse_calls("a, b(x=1, y=None),c(z='u,v', w=word)") == [
        Call("a", {}),
        Call("b", {"x": 1, "y": None}),
        Call("c", {"z": "u,v", "w": "word"}),
    ]
    for bad in ("a(", "a(x=open('f'))", "a,b]+[c", "a],[b", "a.b", "'a'", "a(x=1)(y=2)", "1", "\0", "(" * 1000):
        with pytest.raises(InputError, match="names with options"):
            parse_calls(bad)


def test_a_call_wins_over_the_defaults_and_names_fields_only():
    [call] = parse_calls("lm_infinite(n_local=64)")
    assert settings(LMInfinite, call, n_local=8, n_global=3) == {"n_local": 64, "n_global": 3}
    with pytest.raises(InputError, match=r"LMInfinite has no field 'paper'; expected LMInfinite\(n_global=10, "):
        settings(LMInfinite, Call("lm_infinite", {"paper": "mine"}))


def test_a_method_is_written_as_one_would_call_it():
    assert call_of(LMInfinite(n_local=64)) == "LMInfinite(n_local=64)"
    assert call_of(FlexPrefill()) == "FlexPrefill()"
    assert signature(FlexPrefill).startswith("FlexPrefill(gamma=0.95, tau=0.1, block_size=128")
