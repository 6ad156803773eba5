"""A word's vector: the mean over its subwords, without what the tokenizer puts around every text.

Knows: token embeddings, attention masks, special tokens of a tokenizer. Does not know: models, words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.modules import Module

from broadsheet.console import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SubwordMean(Module):
    """Pool the real tokens of a row but for the first `before` and the last `after`, by their mean.

    [CLS] and [SEP] of an encoder, or a decoder's beginning-of-text token, say nothing of the word; the first token of a
    decoder is also where attention puts what it has no use for, and its vector is large. Padding may stand on either
    side and changes nothing.

    Args:
        width: of the token embeddings.
        before, after: special tokens at both ends; `SubwordMean.of` counts them.

    Raises:
        InputError: when a row has no token between the two.

    Example:
        SubwordMean.of(tokenizer, width=768)

    Source: arXiv:2208.01018; authors' code umanlp/babelbert, whose pooling always drops one token at each end.
    """

    config_keys: list[str] = ["width", "before", "after"]  # noqa: RUF012

    def __init__(self, width: int, before: int = 0, after: int = 0) -> None:
        super().__init__()
        if before < 0 or after < 0:
            raise InputError(f"got {before} and {after} special tokens around a word; expected 0 or more")
        self.width = width
        self.before = before
        self.after = after

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, width: int, prefix: str = "", suffix: str = "") -> SubwordMean:
        """With the special tokens that this tokenizer puts around a text; `prefix` and `suffix` are a template's."""
        ids = tokenizer(f"{prefix}a{suffix}", verbose=False)["input_ids"]
        special = [i in set(tokenizer.all_special_ids) for i in ids]
        before = special.index(False) if False in special else len(special)
        return cls(width, before, special[::-1].index(False) if False in special else 0)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, (batch, width)."""
        states = features["token_embeddings"]
        mask = features.get("attention_mask")
        real = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        place = real.long().cumsum(1)
        inside = real.bool() & (place > self.before) & (place <= place[:, -1:] - self.after)
        count = inside.sum(1, keepdim=True)
        if not bool(count.all()):
            raise InputError(
                f"a text has no subword besides {self.before + self.after} special tokens; leave empty words out"
            )
        wide = torch.float32 if states.dtype in (torch.float16, torch.bfloat16) else states.dtype
        # Not a product: what stands in padding may be NaN.
        total = torch.where(inside[..., None], states, 0).sum(1, dtype=wide)
        features["sentence_embedding"] = (total / count).to(states.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Width of a vector."""
        return self.width

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the settings."""
        self.save_config(output_path)
