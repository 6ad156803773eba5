"""What FlexPrefill saves and what it costs: `python benchmarks/attend_flexprefill.py`.

Two questions, answered on documentation joined to one long text:
1. `attention_seconds`: on the queries and keys that layers of the model make of it, causal `sdpa`, FlexPrefill's
   selection, and selection and attention together, taken in turn; and how far the blocks are from the floor, which is
   `sdpa`'s seconds times the share of blocks that is computed.
2. `losses`: loss over all positions and over the last 256, the next-token distribution at the end, and whole-prefill
   seconds, beside full attention.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, scaled_dot_product_attention
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from broadsheet import models
from broadsheet.attend.base import PostRopeAttention
from broadsheet.attend.flexprefill import FlexPrefill
from broadsheet.data import corpora

Layers = dict[int, tuple[Tensor, Tensor, Tensor]]


def long_text(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int = 0) -> Tensor:
    """Shuffled documents of `pydocs`, an empty line between them: (1, tokens) token ids."""
    ids: list[int] = []
    documents = corpora.load("pydocs").take(tokens // 16, seed=seed)
    random.Random(seed).shuffle(documents)
    for document in documents:
        ids += tokenizer(document.text + "\n\n", truncation=False, verbose=False).input_ids
        if len(ids) >= tokens:
            break
    return torch.tensor([ids[:tokens]])


class _EnoughError(Exception):
    """Ends a forward pass whose deeper layers nobody asks for."""


@dataclass
class _Capture(PostRopeAttention):
    wanted: Sequence[int]
    layers: Layers = field(default_factory=dict)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        index: Any = module.layer_idx
        if index in self.wanted:
            self.layers[index] = query.contiguous(), key.contiguous(), value.contiguous()
        if index >= max(self.wanted):
            raise _EnoughError
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)


@torch.no_grad()
def captured(model: PreTrainedModel, ids: Tensor, wanted: Sequence[int]) -> Layers:
    """Rotated query, key and value of some layers while `ids`, (1, tokens), are read in full."""
    capture = _Capture(wanted)
    with capture(model), suppress(_EnoughError):
        model.get_decoder()(input_ids=ids, use_cache=False)
    return capture.layers


def attention_seconds(layers: Layers, method: FlexPrefill, repeats: int = 3) -> dict[str, float]:
    """Seconds a layer, the best of `repeats` in turn and averaged over `layers`, and their ratios."""
    totals = dict.fromkeys(("sdpa", "select", "attend", "computed"), 0.0)
    for query, key, value in layers.values():
        scaling = query.shape[-1] ** -0.5
        module: Any = nn.Module()
        module.layer_idx = 0

        def full(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> None:
            scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def select(q: Tensor = query, k: Tensor = key, scaling: float = scaling) -> None:
            method.select(q, k, scaling=scaling)

        def attend(
            q: Tensor = query, k: Tensor = key, v: Tensor = value, module: nn.Module = module, scaling: float = scaling
        ) -> None:
            method.attend(module, q, k, v, None, scaling=scaling)

        work: dict[str, Callable[[], None]] = {"sdpa": full, "select": select, "attend": attend}
        best = dict.fromkeys(work, float("inf"))
        for _ in range(repeats):
            for name, run in work.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            totals[name] += seconds / len(layers)
        totals["computed"] += method.computed_ratio_[0] / len(layers)
    return totals | {
        "speedup": totals["sdpa"] / totals["attend"],
        "selection_share": totals["select"] / totals["attend"],
        "of_floor": totals["computed"] * totals["sdpa"] / (totals["attend"] - totals["select"]),
    }


@torch.no_grad()
def losses(model: PreTrainedModel, ids: Tensor, method: FlexPrefill) -> dict[str, Any]:
    """Loss by token under `method`, (tokens - 1,), log-probabilities at the end, and prefill seconds."""
    with method(model):
        start = time.perf_counter()
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        seconds = time.perf_counter() - start
    head = model.get_output_embeddings()
    by_token = [
        cross_entropy(head(states).float(), labels, reduction="none")
        for states, labels in zip(hidden[:-1].split(1024), ids[0, 1:].split(1024), strict=True)
    ]
    return {"loss": torch.cat(by_token), "last": head(hidden[-1]).float().log_softmax(-1), "seconds": seconds}


def compare(model: PreTrainedModel, ids: Tensor, methods: Sequence[FlexPrefill]) -> list[dict[str, Any]]:
    """Each method beside full attention on one text."""
    full = losses(model, ids, FlexPrefill(gamma=1.0))
    rows = []
    for method in methods:
        sparse = losses(model, ids, method)
        rows.append(
            {
                "method": repr(method),
                "loss_change": float(sparse["loss"].mean() / full["loss"].mean()) - 1,
                "loss_change_last_256": float(sparse["loss"][-256:].mean() / full["loss"][-256:].mean()) - 1,
                "kl_at_the_end": float(kl_div(sparse["last"], full["last"], log_target=True, reduction="sum")),
                "computed_ratio": list(method.computed_ratio_.values()),
                "query_aware": sum(method.query_aware_.values()) / len(method.query_aware_),
                "prefill_seconds": sparse["seconds"],
                "prefill_seconds_full": full["seconds"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384], help="tokens, for attention")
    parser.add_argument("--loss-lengths", type=int, nargs="*", default=[4096, 8192], help="tokens, for the loss")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 5, 10, 15, 20])
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--min-budget", type=int, default=1024)
    parser.add_argument("--segment", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model, tokenizer = models.load(arguments.model, dtype="float32")
    methods = [
        FlexPrefill(gamma=g, min_budget=arguments.min_budget, segment=arguments.segment) for g in arguments.gamma
    ]

    print("1. A layer's attention")
    for length in arguments.lengths:
        layers = captured(model, long_text(tokenizer, length), arguments.layers)
        for method in methods:
            row = attention_seconds(layers, method, arguments.repeats)
            print(
                f"  {length:6} tokens  gamma {method.gamma:.2f}: sdpa {1000 * row['sdpa']:7.0f} ms, FlexPrefill "
                f"{1000 * row['attend']:7.0f} ms = {row['speedup']:.2f}× faster; selection "
                f"{row['selection_share']:.0%} of it; {row['computed']:.0%} of the blocks; {row['of_floor']:.0%} of "
                "the floor's speed"
            )
    print("2. Loss")
    for length in arguments.loss_lengths:
        for change in compare(model, long_text(tokenizer, length), methods):
            ratios = change["computed_ratio"]
            print(
                f"  {length:6} tokens  {change['method']}: loss {change['loss_change']:+.2%}, last 256 "
                f"{change['loss_change_last_256']:+.2%}, KL at the end {change['kl_at_the_end']:.4f}; blocks "
                f"{sum(ratios) / len(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%} by layer), "
                f"{change['query_aware']:.0%} of heads query-aware; prefill {change['prefill_seconds']:.1f} s against "
                f"{change['prefill_seconds_full']:.1f} s"
            )


if __name__ == "__main__":
    main()
