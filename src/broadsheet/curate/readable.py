"""What is no text is dropped before anything reads it: empty, binary, wrongly decoded, HTML, endless.

Knows: characters. Does not know: languages, quality.
"""

from __future__ import annotations

import re
from typing import Any

from datatrove.data import Document

from broadsheet.curate.base import Decision, Step

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
_SHARE = 0.02  # of characters that are no text, or are wrongly decoded
_TAGS = 0.2  # of characters that stand in tags
_READ = 100_000  # characters that are looked at


class Readable(Step):
    """Drop a document that is empty, `binary`, `undecodable`, `html` or `too_long`; the text is not mended.

    Args:
        longest: characters of a document.
        others: as of a `Step`.
    """

    name = "text at all"

    def __init__(self, longest: int = 5_000_000, **others: Any) -> None:
        super().__init__(**others)
        self.longest = longest

    def decide(self, documents: list[Document]) -> list[Decision]:
        return [self._decide(document.text) for document in documents]

    def _decide(self, text: str) -> Decision:
        if len(text) > self.longest:
            return False, "too_long"
        if not text.strip():
            return False, "empty"
        read = text[:_READ]
        if len(_CONTROL.findall(read)) > _SHARE * len(read):
            return False, "binary"
        if read.count("\ufffd") > _SHARE * len(read):
            return False, "undecodable"
        if sum(map(len, _TAG.findall(read))) > _TAGS * len(read):
            return False, "html"
        return True
