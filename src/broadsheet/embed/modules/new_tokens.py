"""New tokens in a tokenizer, with rows for them in its model's tables.

Knows embedding tables, output layers and generation settings. Does not know how such tokens are used or trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch

from broadsheet.console import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Init = Literal["mean", "end"]


def check_init(init: str) -> None:
    """Raises InputError unless new rows can be initialised so."""
    if init not in get_args(Init):
        raise InputError(f"got init {init!r}; expected one of {', '.join(get_args(Init))}")


def add_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[str],
    *,
    init: Init = "mean",
    noise: float = 0.1,
    multiple: int = 64,
    seed: int = 0,
) -> list[int]:
    """Add special tokens to a tokenizer and rows for them to a model, both in place; generation never emits them.

    Their embeddings begin as the mean of all others (or as the end-of-text token's, with `init="end"`) plus noise, by
    which several of them differ; an output layer of its own gets the mean row. All other rows stay as they are.

    Args:
        noise: its standard deviation, as a share of the other embeddings'.
        multiple: a table that has to grow is filled up to a multiple of it, for speed on GPUs; the filling rows are
            suppressed in generation too.
        seed: of the noise.

    Returns:
        The tokens' ids.

    Raises:
        InputError: the tokenizer has one of them already, or another `init`.
    """
    from transformers import AddedToken

    check_init(init)
    if known := [token for token in tokens if token in tokenizer.get_vocab()]:
        raise InputError(f"the tokenizer has {', '.join(known)} already; load that folder as it is, or name others")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids: list[int] = [int(i) for i in tokenizer.convert_tokens_to_ids(list(tokens))]
    before = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= before:
        with torch.random.fork_rng():
            model.resize_token_embeddings(max(ids) + 1, pad_to_multiple_of=multiple, mean_resizing=False)
    after = model.get_input_embeddings().weight.shape[0]
    new = sorted({*ids, *range(before, after)})
    old = torch.ones(after, dtype=torch.bool)
    old[new] = False
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        spread, mean = torch.std_mean(weight[old].float(), 0)
        drawn = torch.randn(len(new), weight.shape[1], generator=torch.Generator().manual_seed(seed))
        start = weight[tokenizer.eos_token_id].float() if init == "end" else mean
        weight[new] = (start + noise * spread * drawn.to(spread)).to(weight)
        head = model.get_output_embeddings()
        if head.weight is not weight:
            head.weight[new] = head.weight[old].float().mean(0).to(head.weight)
        if getattr(head, "bias", None) is not None:
            head.bias[new] = head.bias[old].mean()
    suppressed = model.generation_config.suppress_tokens or []
    model.generation_config.suppress_tokens = sorted({*suppressed, *new})
    return ids
