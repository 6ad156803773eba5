"""What stands around a text before it is embedded.

Knows strings. Does not know tokens: `CausalEncoder.rows` makes them, and cuts the text, never what stands around it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from broadsheet.console import InputError


@dataclass(frozen=True)
class Template:
    """`prefix + prompt + text + suffix`, where the prompt is sentence-transformers' own (`model.prompts`), if any.

    Args:
        prefix, suffix: strings around the text, as they are; no space is added.
        clean: make a text one sentence without double quotes first: a full stop is added where none of `. ? " '` ends
            it, double quotes become single ones, and a question mark at the end becomes a full stop. What the Token
            Prepending paper's evaluation does (arXiv:2412.11556, authors' code) for templates that quote the text.

    Example:
        >>> Template('"', '" means in one word:"', clean=True).around("Who is there?")
        '"Who is there." means in one word:"'
    """

    prefix: str = ""
    suffix: str = ""
    clean: bool = False

    def text(self, text: str) -> str:
        """The text as it is put between prefix and suffix."""
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
        """As saved in a folder."""
        return asdict(self)

    @classmethod
    def of(cls, value: Template | dict[str, Any] | None) -> Template:
        """A template from what a folder or a caller gives; None is the empty one.

        Raises:
            InputError: a field it does not have.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls(**(value or {}))  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(f"got a template {value!r}: {error}; expected prefix, suffix and clean") from None


PROMPT_EOL = Template('This sentence : "', '" means in one word:"', clean=True)
"""PromptEOL (Jiang et al., 2023): the last token must say the sentence in one word."""
