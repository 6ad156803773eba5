"""Fill gaps in a text with a T5-type model, as DetectGPT does.

Knows: `<extra_id_k>` gaps. A fill is a function `(masked texts, seed) -> filled texts`, None where the model left a gap
out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from broadsheet.console import InputError
from broadsheet.models import token_budget_batches
from broadsheet.seeds import seeded

SpanFill = Callable[[Sequence[str], int], Sequence[str | None]]

_GAP = re.compile(r"<extra_id_\d+>")
_ATTEMPTS = 20


def fill_spans(text: str, spans: Sequence[Sequence[tuple[int, int]]], fill: SpanFill, *, seed: int) -> list[str]:
    """Copies of `text`, one for each list of character spans, with the spans filled; missing fills are asked for again.

    Raises:
        InputError: the fill model leaves gaps out again and again.
    """
    masked = [mask(text, gaps) for gaps in spans]
    filled: list[str | None] = [None] * len(masked)
    for attempt in range(_ATTEMPTS):
        missing = [i for i, copy in enumerate(filled) if copy is None]
        if not missing:
            break
        for i, copy in zip(missing, fill([masked[i] for i in missing], seed + attempt), strict=True):
            filled[i] = copy
    whole = [copy for copy in filled if copy is not None]
    if len(whole) < len(filled):
        raise InputError(
            f"the fill model left gaps unfilled in {_ATTEMPTS} attempts; give one trained on span filling (T5)"
        )
    return whole


def mask(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`text` with the k-th span (in order) replaced by `<extra_id_k>`."""
    parts, done = [], 0
    for k, (start, end) in enumerate(spans):
        parts += [text[done:start], f"<extra_id_{k}>"]
        done = end
    return "".join([*parts, text[done:]])


def unmask(masked: str, generated: str) -> str | None:
    """`masked` with its gaps filled from a T5 output `<extra_id_0> a <extra_id_1> b …`; None where one is missing."""
    gaps = _GAP.findall(masked)
    fills = [piece.strip() for piece in _GAP.split(generated)[1:]]
    if len(fills) < len(gaps):
        return None
    for gap, piece in zip(gaps, fills, strict=False):
        masked = masked.replace(gap, piece, 1)
    return masked


class T5Fill:
    """A T5-type model as a fill function; it samples from the whole distribution (top-p 1).

    Args:
        model: hub id or folder, e.g. `"google-t5/t5-3b"`. Weights load from safetensors only.
        device: as in `models.load`.

    Raises:
        InputError: there is no such model.
    """

    def __init__(self, model: str, device: str | None = None, token_budget: int = 4096):
        from broadsheet.models.loading import load_seq2seq

        self.model, self.tokenizer = load_seq2seq(model, device=device)
        self.token_budget = token_budget

    def __call__(self, masked: Sequence[str], seed: int) -> list[str | None]:
        filled: list[str | None] = [None] * len(masked)
        ids = [self.tokenizer(text).input_ids for text in masked]
        for batch in token_budget_batches([len(row) for row in ids], self.token_budget):
            inputs = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(
                self.model.device
            )
            with seeded(seed), torch.inference_mode():
                output = self.model.generate(**inputs, do_sample=True, top_p=1.0, max_new_tokens=150)
            for i, generated in zip(batch, self.tokenizer.batch_decode(output, skip_special_tokens=False), strict=True):
                text = generated.replace(self.tokenizer.pad_token, "").replace(self.tokenizer.eos_token, "")
                filled[i] = unmask(masked[i], text)
        return filled
