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
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend.infllm import InfLLM
from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary

HEADS, KV_HEADS, WIDTH = 9, 3, 64


def text(length: int, drift: float = 0.9, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values of a layer before rotary encoding, (1, heads, length, head_dim).

    Args:
        drift: how alike neighbours are, 0 to 1: the correlation of an entry with the next token's.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = drift ** torch.arange(64)[None, None] * (1 - drift**2) ** 0.5
    tensors = []
    for heads in (HEADS, KV_HEADS, KV_HEADS):
        noise = torch.randn(heads * WIDTH, 1, length + 63, generator=generator)
        smooth = torch.nn.functional.conv1d(noise, weights.flip(-1))
        tensors.append(smooth.reshape(1, heads, WIDTH, length).transpose(2, 3).contiguous())
    return tensors


def layer() -> Layer:
    """A layer as in the default model."""
    config = LlamaConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS)
    rotary = Rotary(LlamaRotaryEmbedding(config), apply_rotary_pos_emb)
    return Layer(0, HEADS, KV_HEADS, WIDTH, WIDTH**-0.5, None, None, rotary)


def least_seconds(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least time of each arm in so many turns, after one that does not count."""
    seconds = dict.fromkeys(arms, float("inf"))
    for turn in range(repeats + 1):
        for name, run in arms.items():
            begin = time.perf_counter()
            run()
            if turn:
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def prefill(method: InfLLM, length: int, *, drift: float = 0.9, repeats: int = 3) -> dict[str, float]:
    """Seconds of one layer's attention over a prompt: `own` and `shared` from un-rotated keys on, `sdpa` from others."""
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
