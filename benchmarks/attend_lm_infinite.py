"""What LM-Infinite costs beside full attention: `python benchmarks/attend_lm_infinite.py`.

1. A prompt, in one layer: random queries, keys and values of the default model's shape (9 heads, 3 key heads, 64
   dimensions, float32), beside causal `scaled_dot_product_attention`; with `--flex` also the compiled kernel.
2. One more token after so many, in one layer: beside the stock cache and the same function over all keys.
3. One more token with the whole default model, beside the model as it is with its stock cache.

The arms of a comparison are timed in turns, and the least time of each counts, since what disturbs a run only ever adds
to it. `--cpu-time` counts seconds of work of one thread instead of seconds on the clock: on a machine that others use
at the same time, ratios of those are what an idle machine's clock would show.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from layer import layer, least_seconds, text
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from broadsheet import models
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.memory import Layer, State, cache_bytes


def prefill_attention(
    length: int = 16384,
    windows: Sequence[int] = (1024, 2048),
    *,
    flex: bool = False,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of one layer's attention over a prompt: `sdpa` from rotated keys on, the others from un-rotated ones.

    Returns:
        By arm: `sdpa`; `1024`, `2048` … by window; `1024 flex` … with the kernel.
    """
    query, key, value = text(length)
    here = layer()

    def read(method: LMInfinite) -> Tensor:
        return method.state(here).attend(query, key, value)

    arms: dict[str, Callable[[], object]] = {
        "sdpa": lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    }
    for window in windows:
        method = LMInfinite(n_local=window, backend="chunked")
        arms[str(window)] = partial(read, method)
        if flex:
            arms[f"{window} flex"] = partial(read, replace(method, backend="flex"))
    with torch.no_grad():
        return least_seconds(arms, repeats, clock)


def decode_steps(
    lengths: Sequence[int] = (2048, 8192, 32768),
    window: int = 2048,
    *,
    layers: int = 30,
    repeats: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of one layer's attention to one more token; layers take turns, so that processor caches are no help.

    Returns:
        By arm and tokens seen: `lm_infinite 2048` …, and `full 2048` …, which adds the key to a stock cache.
    """
    here, method = layer(), LMInfinite(n_local=window)
    query, key, value = text(1, seed=1)
    first = torch.zeros(1, dtype=torch.long)
    arms: dict[str, Callable[[], object]] = {}
    number = {}

    def own(states: list[State]) -> None:
        for state in states:
            state.attend(query, key, value)

    def full(held: list[DynamicLayer]) -> None:
        for each in held:
            keys, values = each.update(key, value)
            scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    with torch.no_grad():
        for length in lengths:
            state = seen(method, here, length)
            arms[f"lm_infinite {length}"] = partial(own, [state.select(first) for _ in range(layers)])
            number[f"lm_infinite {length}"] = layers
            few = max(1, min(layers, 2**17 // length))  # no more than 131,072 tokens: 200 MB
            stock = [DynamicLayer() for _ in range(few)]
            for each in stock:
                each.update(*text(length)[1:])
            arms[f"full {length}"] = partial(full, stock)
            number[f"full {length}"] = few
        return {name: taken / number[name] for name, taken in least_seconds(arms, repeats, clock).items()}


def model_steps(
    model: PreTrainedModel,
    lengths: Sequence[int] = (2048, 8192, 32768),
    window: int = 2048,
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of one more token with the whole model, by arm and tokens seen; and the bytes that each cache holds.

    Caches are filled with random keys and values: what a step costs does not depend on what they are.
    """
    method, token = LMInfinite(n_local=window), torch.tensor([[5]])
    ours, stock = {}, {}
    with torch.no_grad():
        method.install(model)
        for length in lengths:
            ours[length] = method.cache(model)
            state = seen(method, layer(), length)
            for each in ours[length].layers:
                each.lazy_initialization(token, token)
                filled = state.select(torch.zeros(1, dtype=torch.long))
                filled.layer = each.layer
                each._parts = [(torch.zeros(1, dtype=torch.long), filled)]
                each.seen = length
        arms = {f"lm_infinite {length}": partial(model, token, cache=ours[length]) for length in lengths}
        seconds = least_seconds(arms, repeats, clock)
        method.remove(model)
        for length in lengths:
            stock[length] = DynamicCache(config=model.config)
            for index in range(model.config.num_hidden_layers):
                stock[length].update(*text(length, seed=index)[1:], index)
        arms = {f"full {length}": partial(model, token, cache=stock[length]) for length in lengths}
        seconds |= least_seconds(arms, repeats, clock)
    held = {f"lm_infinite {length}": cache_bytes(ours[length]).on_device for length in lengths}
    return seconds, held | {f"full {length}": cache_bytes(stock[length]).on_device for length in lengths}


def seen(method: LMInfinite, here: Layer, length: int) -> State:
    """A state that has read so many random tokens."""
    state = method.state(here)
    state.attend(*text(length))
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384, help="tokens of the prompt")
    parser.add_argument("--windows", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--flex", action="store_true", help="the compiled kernel too; compiling takes a while")
    parser.add_argument("--no-model", action="store_true", help="only one layer's attention")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of work, with one thread")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.cpu_time else arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    print(f"1. Attention of one layer to a prompt of {arguments.length} tokens")
    seconds = prefill_attention(arguments.length, arguments.windows, flex=arguments.flex, clock=clock)
    for name, value in seconds.items():
        print(f"  {name:20} {1000 * value:9.1f} ms   {seconds['sdpa'] / value:6.2f}x as fast as sdpa")
    print("2. Attention of one layer to one more token")
    _print(decode_steps(clock=clock))
    if not arguments.no_model:
        print("3. One more token with the whole default model")
        steps, held = model_steps(models.load("default", device="cpu", dtype="float32").model, clock=clock)
        _print(steps)
        for name, value in held.items():
            print(f"  {name:20} {value / 2**20:9.1f} MiB of cache")


def _print(seconds: dict[str, float]) -> None:
    slowest = max((name for name in seconds if name.startswith("full")), key=lambda name: seconds[name])
    for name, value in seconds.items():
        print(f"  {name:20} {1000 * value:9.3f} ms   {seconds[slowest] / value:6.2f}x as fast as {slowest}")


if __name__ == "__main__":
    main()
