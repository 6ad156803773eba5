"""Token ids of the pieces that a prompt is joined from, whatever a tokenizer would merge over their borders.

Knows: tokenizers and chat templates. Does not know: what a prompt says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broadsheet.console import InputError
from broadsheet.models.tokens import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER = "@@broadsheet-user-text@@"


class Pieces:
    """Encodes texts as they are written in the middle of a prompt, and finds the chat template's two ends.

    Args:
        tokenizer: any; its control tokens are read in text only where `control` allows them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._anchors = {anchor: self.encode(anchor) for anchor in ("\n", "a")}

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Ids of a text on its own; with `control`, `<|im_end|>` and the like become control tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not control, verbose=False)
        return list(encoded.input_ids)

    def piece(self, text: str, control: bool = False) -> list[int]:
        """Ids of one text as it is written after other text, see `pieces`."""
        return self.pieces([text], control)[0]

    def pieces(self, texts: Sequence[str], control: bool = False) -> list[list[int]]:
        """Ids of each text as it is written after other text.

        SentencePiece tokenizers put a space before whatever they are given, but not after a newline (or, where the text
        begins with one, a letter): so texts are encoded behind one, which is cut off again.
        """
        if not texts:
            return []
        anchors = ["a" if text.startswith("\n") else "\n" for text in texts]
        anchored = self.tokenizer(
            [anchor + text for anchor, text in zip(anchors, texts, strict=True)],
            add_special_tokens=False,
            split_special_tokens=not control,
            verbose=False,  # the prompter reports texts that are too long
        ).input_ids
        known = [self._anchors[anchor] for anchor in anchors]
        return [
            list(ids[len(start) :]) if ids[: len(start)] == start else self.encode(text, control)
            for text, start, ids in zip(texts, known, anchored, strict=True)
        ]

    def frame(self, system: str, plain_tail: str) -> tuple[str, str]:
        """The text before and after the user's, with a system sentence.

        Args:
            plain_tail: the text after the user's where the tokenizer has no chat template.

        Raises:
            InputError: the chat template does not show the user's text once.
        """
        if self.tokenizer.chat_template is None:
            bos = self.tokenizer.bos_token
            begins = bos and self.tokenizer("a").input_ids[0] == self.tokenizer.bos_token_id
            return f"{bos if begins else ''}{system}\n\n", plain_tail
        try:
            text = self._render([{"role": "system", "content": system}, {"role": "user", "content": _USER}])
        except InputError:  # many refuse the role
            text = ""
        if system not in text:
            text = self._render([{"role": "user", "content": f"{system}\n {_USER}"}])
        head, found, tail = text.partition(_USER)
        if not found or _USER in tail:
            raise InputError(
                "the tokenizer's chat template does not show the user's text once; set tokenizer.chat_template to one"
                " that does, or to None for plain text"
            )
        return head, tail

    def _render(self, messages: list[dict[str, str]]) -> str:
        # Models that think before they answer are told not to; other templates ignore the setting.
        return rendered(self.tokenizer, messages, enable_thinking=False)
