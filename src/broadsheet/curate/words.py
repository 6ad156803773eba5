"""Words of a text by one regular expression: a datatrove tokenizer that is fast, and the same for every language.

Knows: letters, digits, scripts that are written without spaces. Does not know: any language.

Thresholds on words belong to the tokenizer that they were found with: spaCy's, which datatrove takes, counts
punctuation too, and Gopher's rules then drop what they keep with these words. Fit and filter with the same one.
"""

from __future__ import annotations

import re
from typing import Any

from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer

# Han, kana, Thai, Lao, Myanmar, Khmer: no spaces between words, so each letter counts as one.
_ALONE = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
_END = re.compile("[" + re.escape("".join(sorted(TERMINAL_PUNCTUATION))) + r"]+(?=\s|$)|\n+")


class Words(WordTokenizer):
    """Runs of letters, digits and underscores; a letter alone where a script has no spaces. Punctuation is no word.

    datatrove takes an object where it takes a language: `GopherQualityFilter(language=Words())`. For words of the
    language itself, as Chinese or Thai ones, give it the language's name: it then asks spaCy, jieba or others.

    Example:
        >>> Words().word_tokenize("It isn't 3.5 km!")
        ['It', 'isn', 't', '3', '5', 'km']
    """

    def __init__(self, language: str = "any language") -> None:
        super().__init__(language)
        self._latest: tuple[str, list[str]] = ("", [])

    def word_tokenize(self, text: str) -> list[str]:
        if text is not self._latest[0]:  # the filters of a pipeline ask one after the other
            self._latest = (text, _WORD.findall(text))
        return self._latest[1].copy()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[begin:end].strip() for begin, end in self.span_tokenize(text) if text[begin:end].strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [match.end() for match in _END.finditer(text)]
        ends += [len(text)] if not ends or ends[-1] < len(text) else []
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": ("", [])}

    def __eq__(self, other: object) -> bool:
        return type(other) is Words

    def __hash__(self) -> int:
        return hash(Words)


WORDS = Words()
