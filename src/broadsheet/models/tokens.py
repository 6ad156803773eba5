"""Tokenizers read and used safely, from a folder and by a chat template; tokens without more work than they are worth.

Knows: tokenizers of transformers. Does not know: models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError

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


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies in a folder: no code of its own is run, and nothing is fetched.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # a foreign file can be wrong in any way: transformers raises whatever it trips over
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot read the tokenizer in {folder}: {reason}") from error
    return found


def rendered(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, str]], **options: Any) -> str:
    """A conversation as the chat template writes it, up to where an answer begins.

    Args:
        options: the template's own, which another template passes over.

    Raises:
        InputError: the template is damaged, or refuses the conversation.
    """
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options))
    except Exception as error:  # templates refuse by raising whatever they like
        name = tokenizer.name_or_path or "the tokenizer"
        raise InputError(f"the chat template of {name} refuses the conversation: {error}") from None
