"""How well a model still predicts text: what training an embedder must not cost.

Knows token losses of plain texts. Does not know how the model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError, say
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.trial.engine import Metric
from broadsheet.trial.stats import Floats


def text_losses(
    encoder: CausalEncoder, texts: Sequence[str], *, max_length: int | None = 512, batch_tokens: int = 1024
) -> Floats:
    """Each text's −log P under the model as it generates: causal, no template, no tokens that it is not to generate.

    Tokens in the generation config's `suppress_tokens` (such as GEM's) take no share of the probability.

    Args:
        max_length: tokens of a text that are read; how many texts are longer is reported.
        batch_tokens: in a forward pass, padding included.

    Returns:
        (texts, 2) float64: the sum over predicted tokens in nats, and how many those are (the first is not predicted).
    """
    ids = list(encoder.tokenizer(list(texts), verbose=False)["input_ids"])
    if max_length is not None and (long := sum(len(row) > max_length for row in ids)):
        say(f"{long:,} of {len(ids):,} texts are read up to {max_length:,} tokens")
    ids = [row[:max_length] for row in ids]
    found = np.zeros((len(ids), 2))
    suppressed = list(getattr(encoder.model.generation_config, "suppress_tokens", None) or [])
    order = sorted((i for i, row in enumerate(ids) if len(row) > 1), key=lambda i: len(ids[i]))
    while order:
        width = len(ids[order[-1]])  # longest first: what does not fit shows at once
        batch = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // width)))]
        features = encoder.pad([ids[i] for i in batch])
        words = features["input_ids"].to(encoder.device)
        real = features["attention_mask"].to(encoder.device)
        with torch.no_grad():
            target = (real[:, 1:] & real[:, :-1]).bool()
            logits = encoder.logits(words, real)[:, :-1][target].float()
            logits[..., suppressed] = -torch.inf
            nll = cross_entropy(logits, words[:, 1:][target], reduction="none").double()
            sums = torch.zeros(target.shape, dtype=nll.dtype, device=nll.device).masked_scatter(target, nll).sum(1)
        found[batch, 0] = sums.cpu().numpy()
        found[batch, 1] = target.sum(1).cpu().numpy()
    return found


def perplexity_of(values: Floats, weights: Floats) -> Floats:
    """A statistic: rows of `text_losses` (n, 2) and weights (resamples, n) to the perplexity per token (resamples,)."""
    nats, tokens = (weights @ values).T
    return np.asarray(np.exp(nats / tokens))


PERPLEXITY = Metric("perplexity", of="losses", statistic=perplexity_of, higher_is_better=False, bounds=(1, np.inf))


def perplexity(encoder: CausalEncoder, texts: Sequence[str], **settings: int) -> float:
    """exp of the mean loss per predicted token over all texts; see `text_losses`.

    Raises:
        InputError: no text has two tokens.

    Example:
        perplexity(embedder.encoder, ["A text that was held out.", "Another."])
    """
    found = text_losses(encoder, texts, **settings)
    if not found[:, 1].sum():
        raise InputError("no text has two tokens, so nothing is predicted; give longer texts")
    return float(perplexity_of(found, np.ones((1, len(found))))[0])
