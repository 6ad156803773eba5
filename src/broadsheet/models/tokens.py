"""A token's id by its string, without a copy of the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of `token`, an added one too; None where the tokenizer has no such token.

    `tokenizer.get_vocab()` builds a dict of all tokens: a tenth of a second for 49,152 of them.
    """
    found = tokenizer.convert_tokens_to_ids(token)  # of an unknown token, the unknown token's id or None
    if found is None or tokenizer.convert_ids_to_tokens(found) != token:
        return None
    return int(found)
