"""Secrets kept out of what is written: keys replaced in texts, whole, wrapped over lines, in base64 or as in a URL.

Knows: texts, the environment's names. Does not know: who writes them, or where.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_NAMES = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)S?$")
_SHORTEST = 8  # characters of a secret: what is shorter stands in ordinary text


def from_environment() -> list[str]:
    """The values of variables whose names say that they are secrets, such as `OPENAI_API_KEY` and `HF_TOKEN`."""
    return [value for name, value in os.environ.items() if _NAMES.search(name.upper()) and len(value) >= _SHORTEST]


def redacted(text: str, secrets: Iterable[str]) -> str:
    """A text in which `***` stands for each secret, however it is written."""
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            text = _pattern(secret).sub(HIDDEN, text)
        elif secret:
            text = text.replace(secret, HIDDEN)
    return text


def redacted_values(value: Any, secrets: Iterable[str]) -> Any:
    """JSON values whose texts are `redacted`."""
    known = list(secrets)
    if isinstance(value, str):
        return redacted(value, known)
    if isinstance(value, list | tuple):
        return type(value)(redacted_values(each, known) for each in value)
    if isinstance(value, dict):
        return {redacted(name, known): redacted_values(each, known) for name, each in value.items()}
    return value


@lru_cache(maxsize=64)
def _pattern(secret: str) -> re.Pattern[str]:
    """A secret as it is, as a URL has it, and within base64 at any place; with white space anywhere in it."""
    forms = {secret, quote(secret, safe=""), *_base64(secret)}
    return re.compile("|".join(r"\s*".join(map(re.escape, form)) for form in sorted(forms, key=len, reverse=True)))


def _base64(secret: str) -> list[str]:
    """What base64 of a longer text holds of a secret, at each of the three places that it may begin at."""
    found = []
    for before in range(3):
        for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
            whole = alphabet(b"\0" * before + secret.encode()).decode().rstrip("=")
            first = -(-before * 8 // 6)  # letters that the bytes before it are part of
            last = len(whole) - bool((before + len(secret.encode())) % 3)  # and the bytes after it
            found.append(whole[first:last])
    return found
