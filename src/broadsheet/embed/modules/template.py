"""Templates: the prefix and suffix of a text that is embedded.

Knows strings. Does not know tokens: `CausalEncoder.rows` makes them, and cuts the text, never its template.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from broadsheet.console import InputError


@dataclass(frozen=True)
class Template:
    """`prefix + prompt + text + suffix`, where the prompt is sentence-transformers' own (`model.prompts`), if any.

    Args:
        prefix, suffix: strings around the text; no space is added.
        clean: make a text one sentence without double quotes first: a full stop is added where none of `. ? " '` ends
            it, double quotes become single ones, and a question mark at the end becomes a full stop. As in the Token
            Prepending paper's evaluation (arXiv:2412.11556, authors' code), for templates that quote the text.

    Example:
        >>> Template('"', '" means in one word:"', clean=True).around("Who is there?")
        '"Who is there." means in one word:"'
    """

    prefix: str = ""
    suffix: str = ""
    clean: bool = False

    def text(self, text: str) -> str:
        """The text between prefix and suffix."""
        if not self.clean:
            return text
        text = text.strip()
        if not text.endswith((".", "?", '"', "'")):
            text += "."
        text = text.replace('"', "'")
        return text[:-1] + "." if text.endswith("?") else text

    def around(self, text: str) -> str:
        """The whole string."""
        return self.prefix + self.text(text) + self.suffix

    def to_dict(self) -> dict[str, Any]:
        """The template as a folder stores it."""
        return asdict(self)

    @classmethod
    def of(cls, value: Template | dict[str, Any] | None) -> Template:
        """A template from a folder's or a caller's value; None is the empty one.

        Raises:
            InputError: an unknown field.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls(**(value or {}))  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"got a template {value!r}: {error}; expected prefix, suffix and clean") from None


PROMPT_EOL = Template('This sentence : "', '" means in one word:"', clean=True)
"""PromptEOL (Jiang et al., 2023): the last token has to express the sentence in one word."""
