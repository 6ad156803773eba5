"""What the methods that read past the window cost, beside full attention and the floor: `python benchmarks/attend.py`.

1. Attention of one layer to a prompt, each method beside causal `scaled_dot_product_attention` in one run. The floor is
   `sdpa`'s own rate over the pairs of query and key that the method has to look at.
2. Attention of one layer to one more token, beside the same function over all keys. The floor is the time in which the
   keys and values that the method reads come from memory, at the rate at which this machine reads a large tensor.
3. The whole default model: seconds of a prompt and of one more token, so that attention's share can be seen.

`attend_lm_infinite.py` and `attend_flexprefill.py` have more options. `--record` keeps the result as
evidence/attend.benchmark.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from attend_flexprefill import attention_seconds, captured, compare, long_text
from attend_lm_infinite import model_steps
from layer import HEADS, KV_HEADS, WIDTH, layer, least_seconds, text
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from broadsheet import models
from broadsheet.attend import FlexPrefill, InfLLM, LMInfinite, LongHeads, PreRopeAttention
from broadsheet.page import evidence

WINDOW = 2048
TEXTS = 3  # whose loss FlexPrefill is compared on
METHODS: dict[str, PreRopeAttention] = {
    "LM-Infinite": LMInfinite(n_local=WINDOW, backend="chunked"),
    "LM-Infinite, window 1,024": LMInfinite(n_local=1024, backend="chunked"),
    "InfLLM": InfLLM(n_local=WINDOW, n_init=64, block_size=32, top_k=16),
    "InfLLM, shared lookup": InfLLM(n_local=WINDOW, n_init=64, block_size=32, top_k=16, execution_block=512),
    "LongHeads": LongHeads(attention_length=WINDOW),
}


def visible(method: PreRopeAttention, length: int) -> int:
    """Keys that a query far into the text of `length` tokens reads."""
    if isinstance(method, LMInfinite):
        return min(length, method.n_global + method.n_local)
    if isinstance(method, InfLLM):
        return min(length, method.n_local + method.n_init + method.top_k * method.block_size)
    assert isinstance(method, LongHeads)
    return min(length, method.attention_length)


def pairs(method: PreRopeAttention, length: int) -> int:
    """Pairs of query and key in a causal prompt of `length` tokens."""
    most = visible(method, length)
    return most * (most + 1) // 2 + (length - most) * most


def prompts(lengths: Sequence[int], repeats: int) -> dict[str, Any]:
    """Seconds of one layer's attention to a prompt of neighbours that are alike; `sdpa` gets its keys rotated."""
    found: dict[str, Any] = {}
    here = layer()
    for length in lengths:
        query, key, value = text(length, drift=0.9)

        def full(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def read(method: PreRopeAttention, q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
            return method.state(here).attend(q, k, v)

        arms: dict[str, Callable[[], object]] = {"sdpa": full}
        arms |= {name: partial(read, method) for name, method in METHODS.items()}
        seconds = least_seconds(arms, repeats)
        found[str(length)] = {"sdpa": {"seconds": seconds["sdpa"]}}
        print(f"  {length:,} tokens: sdpa {1000 * seconds['sdpa']:.0f} ms")
        for name, method in METHODS.items():
            floor = seconds["sdpa"] * pairs(method, length) / (length * (length + 1) // 2)
            found[str(length)][name] = {
                "seconds": seconds[name],
                "times_sdpa": seconds["sdpa"] / seconds[name],
                "floor_seconds": floor,
            }
            print(
                f"    {name:26} {1000 * seconds[name]:7.0f} ms, {seconds['sdpa'] / seconds[name]:5.2f}× as fast; "
                f"{floor / seconds[name]:4.0%} of the floor's speed"
            )
    return found


def tokens(lengths: Sequence[int], repeats: int) -> dict[str, Any]:
    """Seconds of one layer's attention to one more token after so many."""
    many = torch.ones(64 * 1024 * 1024)
    rate = 4 * len(many) / least_seconds({"read": many.sum}, 5)["read"]
    print(f"  memory is read at {rate / 1e9:.0f} GB/s")
    found: dict[str, Any] = {"bytes_per_second": rate}
    for length in lengths:
        spare = repeats + 1
        query, key, value = text(length + spare, drift=0.9)
        last, keys, values = query[:, :, -1:], key[:, :, :length].contiguous(), value[:, :, :length].contiguous()

        def full(q: Tensor = last, k: Tensor = keys, v: Tensor = values) -> Tensor:
            return scaled_dot_product_attention(q, k, v, enable_gqa=True)

        def step(state: Any, q: Tensor = query, k: Tensor = key, v: Tensor = value) -> None:
            now = slice(state.seen, state.seen + 1)
            state.attend(q[:, :, now], k[:, :, now], v[:, :, now])

        arms: dict[str, Callable[[], object]] = {"sdpa": full}
        for name, method in METHODS.items():
            if name == "InfLLM, shared lookup":  # a single token shares its lookup with nobody
                continue
            state = method.state(layer())
            for start in range(0, length, 4096):
                part = slice(start, min(length, start + 4096))
                state.attend(query[:, :, part], key[:, :, part], value[:, :, part])
            arms[name] = partial(step, state)
        seconds = least_seconds(arms, repeats)
        found[str(length)] = {}
        print(f"  after {length:,} tokens")
        for name, spent in seconds.items():
            heads = HEADS if name == "LongHeads" else KV_HEADS  # its heads read chunks of their own
            read = length if name == "sdpa" else visible(METHODS[name], length)
            floor = 2 * 4 * heads * WIDTH * read / rate
            found[str(length)][name] = {
                "seconds": spent,
                "times_sdpa": seconds["sdpa"] / spent,
                "floor_seconds": floor,
            }
            print(
                f"    {name:26} {1000 * spent:8.3f} ms, {seconds['sdpa'] / spent:6.2f}× as fast; "
                f"{floor / spent:4.0%} of the floor's speed"
            )
    return found


def flexprefill(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, trained: int) -> Any:
    """FlexPrefill on what layers of the model make of documentation: attention at `length`, loss at `trained`."""
    method = FlexPrefill()
    row = attention_seconds(captured(model, long_text(tokenizer, length), [1, 5, 10, 15, 20]), method)
    print(
        f"  {length:,} tokens of documentation, mean of 5 layers: sdpa {1000 * row['sdpa']:.0f} ms, FlexPrefill "
        f"{1000 * row['attend']:.0f} ms, {row['speedup']:.2f}× as fast; selection {row['selection_share']:.0%} of it; "
        f"{row['computed']:.0%} of the blocks; {row['of_floor']:.0%} of the floor's speed"
    )
    changes = [compare(model, long_text(tokenizer, trained, seed), [method])[0] for seed in range(TEXTS)]
    for change in changes:
        print(
            f"  {trained:,} tokens: loss {change['loss_change']:+.2%}, that of the last 256 "
            f"{change['loss_change_last_256']:+.2%}; whole prefill {change['prefill_seconds']:.1f} s against "
            f"{change['prefill_seconds_full']:.1f} s"
        )
    return {"attention": {str(length): row}, "loss": {str(trained): changes}}


@torch.no_grad()
def whole_prompt(model: PreTrainedModel, length: int) -> dict[str, float]:
    """Seconds of the whole model's forward pass over a prompt."""
    ids = torch.randint(100, 10_000, (1, length), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, method in (("sdpa", None), ("LM-Infinite", METHODS["LM-Infinite"])):
        if method:
            method.install(model)
        start = time.perf_counter()
        model(ids, logits_to_keep=1, use_cache=True)
        found[name] = time.perf_counter() - start
        if method:
            method.remove(model)
        print(f"  a prompt of {length:,} tokens, {name}: {found[name]:.1f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--token-lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()

    threads = torch.get_num_threads()
    print(f"1. A layer's attention to a prompt; {HEADS} heads, {KV_HEADS} key heads of {WIDTH}, {threads} threads")
    with torch.no_grad():
        result: dict[str, Any] = {"prompt": prompts(arguments.prompt_lengths, arguments.repeats)}
    model, tokenizer = models.load("default", device="cpu", dtype="float32")
    result["flexprefill"] = flexprefill(model, tokenizer, max(arguments.prompt_lengths), 8192)
    print("2. A layer's attention to one more token")
    with torch.no_grad():
        result["token"] = tokens(arguments.token_lengths, 10 * arguments.repeats)
    print("3. The whole default model")
    result["whole_prompt_seconds"] = {"8192": whole_prompt(model, 8192)}
    steps, held = model_steps(model, arguments.token_lengths)
    result["whole_token_seconds"], result["cache_bytes"] = steps, held
    for name, spent in steps.items():
        print(f"  one more token, {name:20} {1000 * spent:7.1f} ms, cache {held[name] / 2**20:7.1f} MiB")

    if arguments.record:
        result |= {
            "command": "python benchmarks/attend.py --record",
            "provenance": evidence.provenance(model=models.fingerprint(model), seed=0, threads=threads),
        }
        print(evidence.record("attend.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
