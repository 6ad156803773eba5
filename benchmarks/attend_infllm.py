"""What InfLLM's attention costs beside full attention, in one layer: `python benchmarks/attend_infllm.py`.

Random queries, keys and values of the default model's shape (9 heads, 3 key heads, 64 dimensions, float32) go through
one layer: a prompt in one piece, beside causal `scaled_dot_product_attention`; and one more token after so many, beside
the same function over all keys. The arms of a comparison are timed in turns, and the least time of each counts, since
what disturbs a run only ever adds to it. `own` looks up blocks for each query, `shared` for 128 of them at once.

Queries and keys drift: neighbours are alike, as they are in a text. With independent ones (`--drift 0`) every query
looks up other blocks than its neighbours, which is the hard case.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from layer import HEADS, KV_HEADS, WIDTH, layer, least_seconds, text
from torch.nn.functional import scaled_dot_product_attention

from broadsheet.attend.infllm import InfLLM


def prefill(method: InfLLM, length: int, *, drift: float = 0.9, repeats: int = 3) -> dict[str, float]:
    """Seconds of one layer's attention over a prompt; `own` and `shared` also rotate the keys, `sdpa` gets them so."""
    query, key, value = text(length, drift)
    here, shared = layer(), replace(method, execution_block=128)
    return least_seconds(
        {
            "own": lambda: method.state(here).attend(query, key, value),
            "shared": lambda: shared.state(here).attend(query, key, value),
            "sdpa": lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True),
        },
        repeats,
    )


def decode(method: InfLLM, seen: int, *, drift: float = 0.9, tokens: int = 64) -> dict[str, float]:
    """Seconds of one layer's attention for a token after `seen` others."""
    query, key, value = text(seen + tokens + 1, drift)
    state = replace(method, execution_block=128).state(layer())
    state.attend(query[:, :, :seen], key[:, :, :seen], value[:, :, :seen])

    def step() -> None:
        now = slice(state.seen, state.seen + 1)
        state.attend(query[:, :, now], key[:, :, now], value[:, :, now])

    last, keys, values = query[:, :, -1:], key[:, :, :seen].contiguous(), value[:, :, :seen].contiguous()
    full = {"sdpa": lambda: scaled_dot_product_attention(last, keys, values, enable_gqa=True)}
    return least_seconds({"own": step, **full}, tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--n-local", type=int, default=InfLLM.n_local)
    parser.add_argument("--block-size", type=int, default=InfLLM.block_size)
    parser.add_argument("--top-k", type=int, default=InfLLM.top_k)
    parser.add_argument("--drift", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    method = InfLLM(n_local=given.n_local, block_size=given.block_size, top_k=given.top_k)
    print(f"{method}, {HEADS} heads, {KV_HEADS} key heads, {WIDTH} dimensions, float32, {given.threads} threads")
    print(
        f"{'tokens':>8}{'own, s':>10}{'shared, s':>11}{'sdpa, s':>10}{'ratio':>7}{'ratio':>7}"
        f"{'token, ms':>12}{'sdpa, ms':>10}{'ratio':>7}"
    )
    for length in given.lengths:
        whole = prefill(method, length, drift=given.drift)
        one = decode(method, length, drift=given.drift)
        print(
            f"{length:8d}{whole['own']:10.3f}{whole['shared']:11.3f}{whole['sdpa']:10.3f}"
            f"{whole['sdpa'] / whole['own']:7.2f}{whole['sdpa'] / whole['shared']:7.2f}"
            f"{one['own'] * 1e3:12.3f}{one['sdpa'] * 1e3:10.3f}{one['sdpa'] / one['own']:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    with torch.no_grad():
        main()
