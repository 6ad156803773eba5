"""Reading the bodies an OpenAI-compatible server sends.

Knows: the JSON of /chat/completions and /completions. Does not know: HTTP. A body that does not follow the protocol
raises AttributeError, IndexError, KeyError, TypeError or ValueError: the caller takes it for a passing fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from broadsheet.console import InputError
from broadsheet.teacher.base import Completion, Score, TokenLogprob

_MOST_TOKENS = 100_000_000  # of one request: no model reads or writes so many


def usage(body: dict[str, Any]) -> tuple[int, int] | None:
    """Prompt and completion tokens, or None where the server does not count them."""
    counts = body.get("usage")
    if not counts:
        return None
    found = int(counts["prompt_tokens"]), int(counts.get("completion_tokens") or 0)
    if not all(0 <= count <= _MOST_TOKENS for count in found):
        raise ValueError(f"usage of {found[0]:.3g} and {found[1]:.3g} tokens")
    return found


def completions(body: dict[str, Any]) -> list[Completion]:
    """The answers, at least one, in the server's order."""
    prompt_tokens, tokens = usage(body) or (None, None)
    choices = sorted(body["choices"], key=lambda choice: choice.get("index", 0))
    if not choices:
        raise ValueError("no choices")
    return [
        Completion(
            text=_text(choice),
            finish_reason=choice.get("finish_reason") or "unknown",
            tokens=tokens if len(choices) == 1 else None,
            prompt_tokens=prompt_tokens,
            logprobs=_logprobs(choice),
        )
        for choice in choices
    ]


def _text(choice: dict[str, Any]) -> str:
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if not isinstance(text, str | None):
        raise TypeError(f"content is {type(text).__name__}")
    return text or ""  # null: nothing but thoughts, or a filtered answer; finish_reason tells


def _logprobs(choice: dict[str, Any]) -> list[TokenLogprob] | None:
    given = choice.get("logprobs")
    if not given:
        return None
    if given.get("content") is not None:
        return [TokenLogprob(str(entry["token"]), float(entry["logprob"])) for entry in given["content"]]
    if given.get("tokens") is not None:  # /completions
        pairs = zip(given["tokens"], given["token_logprobs"], strict=True)
        return [TokenLogprob(str(token), float(logprob)) for token, logprob in pairs]
    return None


def first_tokens(body: dict[str, Any], choices: Sequence[str]) -> list[Score]:
    """Score each choice by its first token, found among the alternatives of the one token that was generated.

    A choice's token is the longest alternative it begins with, a leading space set aside.

    Raises:
        InputError: the server gives no alternatives, a choice is not among them, or two begin with the same token.
    """
    entries = ((body["choices"][0].get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
    if not entries:
        raise InputError(
            "the endpoint gives no log-probabilities, which scoring needs; take a local model or another endpoint"
        )
    alternatives: dict[str, float] = {}
    for entry in entries:
        if token := str(entry["token"]).lstrip():
            logprob = float(entry["logprob"])
            alternatives[token] = float(_logadd(alternatives[token], logprob)) if token in alternatives else logprob
    chosen: dict[str, str] = {}
    for choice in choices:
        token = max((token for token in alternatives if choice.lstrip().startswith(token)), key=len, default="")
        if not token:
            raise InputError(
                f"choice {choice!r} does not begin with any of the {len(entries)} likeliest tokens, "
                "all that the endpoint tells; name the choices in the prompt, or score with a local model"
            )
        if token in chosen:
            raise InputError(
                f"choices {chosen[token]!r} and {choice!r} both begin with the token {token!r}, "
                "all that the endpoint tells; give choices that differ at once (A, B), or score with a local model"
            )
        chosen[token] = choice
    return [(alternatives[token], 1) for token in chosen]


def _logadd(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def echoed(body: dict[str, Any], prompt: str, choices: Sequence[str]) -> list[Score]:
    """Score each choice by the tokens of `prompt + choice` that reach beyond `prompt`, echoed with log-probabilities.

    Raises:
        InputError: the server does not echo, or gives no log-probabilities for what it echoes.
    """
    rows = sorted(body["choices"], key=lambda row: row["index"])
    if len(rows) != len(choices):
        raise ValueError(f"{len(rows)} choices for {len(choices)} prompts")
    return [_echoed(row, prompt, choice) for row, choice in zip(rows, choices, strict=True)]


def _echoed(row: dict[str, Any], prompt: str, choice: str) -> Score:
    given = row.get("logprobs") or {}
    starts = given.get("text_offset")
    if not starts or not row["text"].startswith(prompt + choice):
        raise InputError(
            "the endpoint does not give log-probabilities of a given text (echo in /completions); score conversations "
            "(raw=False), or take a local model"
        )
    ends = [*starts[1:], math.inf]
    spans = zip(starts, ends, given["token_logprobs"], strict=True)
    values = [value for start, end, value in spans if end > len(prompt) and start < len(prompt + choice)]
    if None in values:
        raise InputError(
            "the first token of a text has no log-probability at this endpoint; give a prompt that is not empty"
        )
    return sum(values), len(values)
