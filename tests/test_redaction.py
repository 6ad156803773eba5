"""Secrets are found however they are written, and nothing else is touched."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.redaction import from_environment, redacted, redacted_values

KEY = "sk-secret/with+signs=0123"


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} is wrong",
        f"wrapped {KEY[:9]}\n   {KEY[9:]} over lines",
        "spaced " + " ".join(KEY),
        f"https://host/v1?key={quote(KEY, safe='')}",
        "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode(),
        "Basic " + base64.b64encode(f"u:{KEY}x".encode()).decode(),
        "Basic " + base64.urlsafe_b64encode(KEY.encode()).decode(),
        base64.encodebytes(("x" * 40 + KEY).encode()).decode(),
    ],
)
def test_a_key_is_hidden_however_it_is_written(text):
    shown = redacted(text, [KEY])
    assert "***" in shown
    assert KEY not in "".join(shown.split())
    for start in range(3):  # no piece of base64 gives back the most of it
        for piece in shown.replace("*", " ").split():
            rest = piece[start : start + (len(piece) - start) // 4 * 4]
            try:
                assert KEY[2:-2] not in base64.b64decode(rest, validate=True).decode("latin-1")
            except ValueError:
                continue


@given(st.text(), st.text("abcdefgh0123-_", min_size=8, max_size=40))
def test_what_holds_no_secret_stays_as_it_is(text, key):
    if key not in "".join(text.split()):
        assert redacted(text, [key]) == text or base64.b64encode(key.encode()).decode()[:4] in "".join(text.split())
    assert key not in redacted(f"{text} {key} {text}", [key])


@given(st.binary(max_size=12), st.binary(max_size=12), st.text("abcdefgh0123-_", min_size=8, max_size=40))
def test_base64_hides_a_secret_at_any_place(before, after, key):
    text = base64.b64encode(before + key.encode() + after).decode()
    assert "***" in redacted(text, [key])


def test_json_values_are_redacted_throughout():
    value = {"a": [KEY, 1, None, {"b": f"x{KEY}y", KEY: True}], "c": 2.5}
    assert redacted_values(value, [KEY]) == {"a": ["***", 1, None, {"b": "x***y", "***": True}], "c": 2.5}
    assert redacted_values(value, []) == value
    assert redacted_values(value, [""]) == value
    json.dumps(redacted_values(value, [KEY]))


def test_secrets_of_the_environment_are_known_by_name(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12345678")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("MY_KEYBOARD", "qwertyuiop")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    found = from_environment()
    assert {"sk-12345678", "hf_abcdefgh"} <= set(found)
    assert not {"qwertyuiop", "abc"} & set(found)
