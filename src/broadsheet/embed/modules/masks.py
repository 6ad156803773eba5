"""Attention masks with four dimensions, as the attention function of a model wants them.

Knows which positions may see which. transformers passes such a mask to every layer unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

from broadsheet.console import InputError


def attention_argument(allowed: Tensor, model: PreTrainedModel) -> Tensor:
    """The `attention_mask` with which position i sees position j exactly where `allowed` is true.

    A position that may see nothing (padding) is made to see itself: a softmax over nothing is NaN.

    Args:
        allowed: boolean (batch, 1, length, length), [b, 0, i, j].
        model: its attention implementation decides the form: boolean for sdpa, 0 and the lowest number for eager.

    Raises:
        InputError: the model's attention takes no such mask (flash attention).
    """
    import torch

    from broadsheet.models.attention import is_sdpa

    blind = ~allowed.any(-1)
    if bool(blind.any()):
        allowed = allowed | (torch.diag_embed(blind))
    kind = getattr(model.config, "_attn_implementation", "sdpa")
    if is_sdpa(kind):
        return allowed
    if kind == "eager":
        dtype = model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    raise InputError(
        f"this needs a custom mask, which attention {kind!r} cannot take; load the model with "
        "attn_implementation='sdpa'"
    )


def bidirectional(attention_mask: Tensor) -> Tensor:
    """Every position sees every real one: (batch, length) of 0 and 1 to boolean (batch, 1, length, length)."""
    batch, length = attention_mask.shape
    return attention_mask.bool()[:, None, None, :].expand(batch, 1, length, length)


def causal(attention_mask: Tensor) -> Tensor:
    """Every position sees the real ones up to itself: (batch, length) to boolean (batch, 1, length, length)."""
    import torch

    length = attention_mask.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    return attention_mask.bool()[:, None, None, :] & lower
