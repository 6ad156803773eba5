"""How prompts are answered in batches: logits of the next token, or a written permutation.

Knows: causal LMs, batches of token ids. Does not know: queries, documents, windows, tokenizers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.models import halve_on_oom, token_budget_batches

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Tokens of one batch. Reading is bound by arithmetic, and a few hundred tokens keep a CPU busy. Writing one token per
# step is bound by memory, so many sequences cost little more than one.
_READING = {"cpu": 2048, "cuda": 32_768}
_WRITING = {"cpu": 16_384, "cuda": 65_536}


def read_next(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    *,
    batch_tokens: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> list[list[float]]:
    """Logits of some tokens right after each prompt: one forward pass per prompt, nothing written.

    They are float32's, also of a model in bfloat16, whose own logits near 30 are spaced by 0.125 and often tie.

    Args:
        model: in eval mode.
        prompts: token ids.
        wanted: for each prompt, the ids of the tokens whose logits are returned.
        batch_tokens: padded tokens in one pass; by default 2,048 on a CPU. Results do not depend on it.
        done: called after each batch with its number of prompts.

    Returns:
        Per prompt, one logit per wanted token.

    Raises:
        InputError: a logit is NaN.
    """
    import torch

    def run(batch: Sequence[int]) -> list[list[float]]:
        last = torch.tensor([len(prompts[index]) - 1 for index in batch])
        with torch.inference_mode(), _exactly(model, {one for index in batch for one in wanted[index]}):
            logits = last_logits(model, _padded(model, [prompts[index] for index in batch]), last).float()
        rows = [logits[row, list(wanted[index])].tolist() for row, index in enumerate(batch)]
        if any(value != value for row in rows for value in row):
            raise InputError(
                f"the model's logits are NaN ({str(model.dtype).removeprefix('torch.')}); its weights are damaged or"
                " overflow: load it with dtype='float32', or load an earlier checkpoint"
            )
        done(len(batch))
        return rows

    budget = batch_tokens or _READING.get(model.device.type, _READING["cuda"])
    return _in_batches(run, prompts, budget)


def last_logits(model: PreTrainedModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits (batch, vocabulary) at one position of each row, with gradients where they are on.

    Rows are padded on the right, where causal attention does not look: so no mask is needed, attention takes its
    fastest path, and a row's logits do not depend on its neighbours.

    Args:
        input_ids: (batch, length).
        positions: (batch,) index of the token whose successor is asked for.
    """
    import torch

    positions = positions.to(input_ids.device)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    if not keeps_logits(model):
        return model(input_ids=input_ids, use_cache=False).logits[rows, positions]
    kept, place = positions.unique(return_inverse=True)
    logits: Tensor = model(input_ids=input_ids, use_cache=False, logits_to_keep=kept).logits
    return logits[rows, place]


@contextmanager
def _exactly(model: PreTrainedModel, tokens: set[int]) -> Iterator[None]:
    """Inside, a head of less than float32 gives the logits of these tokens from its input and its rows in float32.

    It does where the model computes few logits, by a plain matrix.
    """
    import torch
    from torch.nn.functional import linear

    head = model.get_output_embeddings() if model.dtype in (torch.bfloat16, torch.float16) else None
    if type(head) is not torch.nn.Linear or not keeps_logits(model):
        yield
        return
    rows = torch.tensor(sorted(tokens), device=head.weight.device)

    def widened(head: Any, given: tuple[Tensor], logits: Tensor) -> Tensor:
        bias = None if head.bias is None else head.bias[rows].float()
        exact = linear(given[0].float(), head.weight[rows].float(), bias)
        return logits.float().index_copy(-1, rows, exact)

    handle = head.register_forward_hook(widened)
    try:
        yield
    finally:
        handle.remove()


def permutation(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    end: int | None,
    batch_tokens: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """What the model writes after each prompt, greedily, up to its end of text.

    Args:
        model: in eval mode.
        prompts: token ids.
        lengths: tokens each may write at most.
        end: the token that ends an answer, besides those the model's generation config names.
        batch_tokens: padded tokens of one batch's prompts; by default 16,384 on a CPU.
        done: called after each batch with its number of prompts.

    Returns:
        Token ids per prompt, the end of text not among them.

    Source: arXiv:2412.14574 and the listwise rerankers before it; the baseline of arXiv:2406.15657.
    """
    import torch
    from transformers import GenerationConfig

    ends = _ends(model, end)

    def run(batch: Sequence[int]) -> list[list[int]]:
        longest = max(lengths[index] for index in batch)
        config = GenerationConfig(
            max_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
        ids = [prompts[index] for index in batch]
        width = max(map(len, ids))
        padded = _padded(model, [[0] * (width - len(one)) + list(one) for one in ids])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids], device=padded.device)
        with torch.inference_mode():
            written = model.generate(padded, attention_mask=mask, generation_config=config)[:, width:].tolist()
        done(len(batch))
        return [_until(tokens[: lengths[index]], ends) for index, tokens in zip(batch, written, strict=True)]

    budget = batch_tokens or _WRITING.get(model.device.type, _WRITING["cuda"])
    return _in_batches(run, prompts, budget)


def _in_batches(run: Callable[[Sequence[int]], list[Any]], prompts: Sequence[Sequence[int]], budget: int) -> list[Any]:
    results: list[Any] = [None] * len(prompts)
    for batch in token_budget_batches([len(prompt) for prompt in prompts], budget):
        for index, result in zip(batch, halve_on_oom(run, batch), strict=True):
            results[index] = result
    return results


def _padded(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """(batch, length), padded on the right with token 0, which is never looked at."""
    import torch

    width = max(map(len, prompts))
    return torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=model.device)


def keeps_logits(model: PreTrainedModel) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _ends(model: PreTrainedModel, end: int | None) -> set[int]:
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = named if isinstance(named, list) else [named]
    return {one for one in [*known, end] if one is not None}


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
