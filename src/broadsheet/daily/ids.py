"""arXiv identifiers: the bare one that names an article, and its version.

Knows: the three forms, 2407.12021 (since 2015), 0704.0001 (since April 2007), math/0309136 (before). Without its
archive an old identifier would name several articles, so the archive stays. The class that some write after it
(math.GT/0309136) names nothing more and is left out, as arXiv's own data leave it out: one article, one identifier.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NEW = r"(?:0[7-9]|1\d|2\d|3\d)(?:0[1-9]|1[0-2])\.\d{4,5}"
_OLD = r"[a-z]+(?:-[a-z]+)?(?:\.[A-Z]{2})?/(?:9[1-9]|0[0-7])(?:0[1-9]|1[0-2])\d{3}"
_ID = re.compile(rf"(?<![\w./-])(?:arxiv:)?({_NEW}|{_OLD})(?:v([1-9]\d*))?(?![\w/-])", re.ASCII | re.IGNORECASE)
_URL = re.compile(
    rf"(?:arxiv\.org/(?:abs|pdf|html|format)/|(?:huggingface\.co|hf\.co)/papers/|oai:arXiv\.org:|10\.48550/arXiv\.)"
    rf"({_NEW}|{_OLD})(?:v([1-9]\d*))?",
    re.ASCII | re.IGNORECASE,
)


class ArxivId(NamedTuple):
    """An article, and which version of it is meant.

    Attributes:
        bare: as in `"2407.12021"` or `"math/0309136"`.
        version: from 1; 0 where none is named.
    """

    bare: str
    version: int


def parse(text: str) -> ArxivId | None:
    """The first identifier in a text, by itself, with `arXiv:`, or in an address; None where there is none.

    Example:
        >>> parse("https://arxiv.org/abs/2407.12021v2")
        ArxivId(bare='2407.12021', version=2)
    """
    return next(iter(find(text)), None)


def whole(text: str) -> ArxivId | None:
    """The identifier that a text is, and nothing else; None where it is none."""
    hit = _ID.fullmatch(text)
    return ArxivId(_canonical(hit[1]), int(hit[2] or 0)) if hit else None


def find(text: str) -> list[ArxivId]:
    """All identifiers in a text, each article once, in its first place."""
    found: dict[str, ArxivId] = {}
    hits = sorted([*_URL.finditer(text), *_ID.finditer(text)], key=lambda hit: hit.start(1))
    for hit in hits:
        bare = _canonical(hit[1])
        found.setdefault(bare, ArxivId(bare, int(hit[2] or 0)))
    return list(found.values())


def month(bare: str) -> str:
    """The month in which an article was first submitted, `"2024-07"`, as its identifier has it."""
    digits = bare.rpartition("/")[2][:4]
    year = int(digits[:2])
    return f"{1900 + year if year > 90 else 2000 + year}-{digits[2:]}"


def _canonical(bare: str) -> str:
    """In small letters, and an archive without its class."""
    archive, slash, number = bare.rpartition("/")
    return archive.lower().partition(".")[0] + slash + number
