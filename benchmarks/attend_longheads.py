"""What LongHeads' attention costs beside full attention, in one layer: `python benchmarks/attend_longheads.py`.

Random queries, keys and values of the default model's shape (9 heads, 3 key heads, 64 dimensions, float32) go through
one layer: a prompt in one piece, beside causal `scaled_dot_product_attention`; and one more token after so many, beside
the same function over all keys. Both arms of a comparison are timed in turns, and the least time of each counts, since
what disturbs a run only ever adds to it. Random text is the hard case: every head's choice is spread over all chunks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from layer import HEADS, KV_HEADS, WIDTH, layer, least_seconds, text
from torch.nn.functional import scaled_dot_product_attention

from broadsheet.attend.longheads import LongHeads


def prefill(method: LongHeads, length: int, repeats: int = 3) -> dict[str, float]:
    """Seconds of one layer's attention over a prompt: `longheads` from un-rotated keys on, `sdpa` from rotated ones."""
    query, key, value = text(length)
    here = layer()
    return least_seconds(
        {
            "longheads": lambda: method.state(here).attend(query, key, value),
            "sdpa": lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True),
        },
        repeats,
    )


def decode(method: LongHeads, seen: int, tokens: int = 32) -> dict[str, float]:
    """Seconds of one layer's attention for a token after `seen` others."""
    query, key, value = text(seen + tokens + 1)
    state = method.state(layer())
    # What is read of the prompt's outputs is nothing: its keys and summaries are what counts.
    for start in range(0, seen, 4096):
        part = slice(start, min(seen, start + 4096))
        state.attend(query[:, :, part], key[:, :, part], value[:, :, part])

    def step() -> None:
        now = slice(state.seen, state.seen + 1)
        state.attend(query[:, :, now], key[:, :, now], value[:, :, now])

    last, keys, values = query[:, :, -1:], key[:, :, :seen].contiguous(), value[:, :, :seen].contiguous()
    full = {"sdpa": lambda: scaled_dot_product_attention(last, keys, values, enable_gqa=True)}
    return least_seconds({"longheads": step, **full}, tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--attention-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    method = LongHeads(given.chunk_size, given.attention_length)
    print(f"{method}, {HEADS} heads, {KV_HEADS} key heads, {WIDTH} dimensions, float32, {given.threads} threads")
    print(f"{'tokens':>8}{'prompt, s':>12}{'sdpa, s':>12}{'ratio':>8}{'token, ms':>12}{'sdpa, ms':>12}{'ratio':>8}")
    for length in given.lengths:
        whole, one = prefill(method, length), decode(method, length)
        print(
            f"{length:8d}{whole['longheads']:12.3f}{whole['sdpa']:12.3f}{whole['sdpa'] / whole['longheads']:8.2f}"
            f"{one['longheads'] * 1e3:12.3f}{one['sdpa'] * 1e3:12.3f}{one['sdpa'] / one['longheads']:8.2f}"
        )


if __name__ == "__main__":
    with torch.no_grad():
        main()
