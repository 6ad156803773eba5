"""Tokens without more work than they are worth: an id by its string, the beginning of a text that holds so many."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHARACTERS = 16  # of a token, at first: a text has fewer of them, but for runs of spaces and of signs
_MARGIN = 64  # tokens beyond, since the last ones of a cut text are not those of the whole


def head(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """A beginning of a text whose first tokens, so many and some more, are those of the whole text.

    To tokenize ten million characters takes a minute, and most of it is cut off where 512 tokens are read.
    """
    cut = _CHARACTERS * (tokens + _MARGIN)
    while cut < len(text):
        beginning = text[:cut]
        if len(tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"]) >= tokens + _MARGIN:
            return beginning
        cut *= 4
    return text


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of `token`, an added one too; None where the tokenizer has no such token.

    `tokenizer.get_vocab()` builds a dict of all tokens: a tenth of a second for 49,152 of them.
    """
    found = tokenizer.convert_tokens_to_ids(token)  # of an unknown token, the unknown token's id or None
    if found is None or tokenizer.convert_ids_to_tokens(found) != token:
        return None
    return int(found)
