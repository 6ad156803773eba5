"""What TransNormer's attention and decoding cost, beside the floor: `python benchmarks/transnormer.py`.

Four questions, each answered within one interleaved run:
1. The block form against the masked form (all pairs at once, its decays laid out beforehand), and against all blocks
   at once in place of one after another.
2. The block form's time and FLOPs against length and block size, beside the rate of a plain matrix product.
3. One decoded token against context, for TransNormer and a Llama of its size, beside the time that reading its weights
   and its cache takes at the memory's measured rate.
4. The same forms forwards and backwards, as training uses them.

`--record` keeps the result as evidence/transnormer.benchmark.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaForCausalLM

from broadsheet.attend.transnormer import decayed_attention, log_decay
from broadsheet.attend.transnormer_config import TransNormerCache
from broadsheet.attend.trials.decoding import decode_seconds
from broadsheet.attend.trials.transnormer import Shape
from broadsheet.page import evidence
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison

HEADS, HEAD_DIM = 4, 64
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(1, HEADS, n, HEAD_DIM, generator=generator) for _ in range(3)]


def rates() -> Tensor:
    return torch.tensor(log_decay(HEADS, 1, 8))


def block_form(block_size: int = 128) -> Form:
    decays = rates()
    return lambda q, k, v: decayed_attention(q, k, v, decays, block_size=block_size, kernel="torch")[0]


def decays_of(steps: Tensor) -> Tensor:
    """λ^(t−s) where s ≤ t, else 0: (heads, n, n)."""
    return (rates()[:, None, None] * (steps[:, None] - steps).clamp(min=0)).exp().tril()


def masked_form(n: int) -> Form:
    """((QKᵀ) ⊙ D) V over the whole text: how one writes it down first."""
    decays = decays_of(torch.arange(n, dtype=torch.float32))
    return lambda q, k, v: ((q @ k.mT) * decays) @ v


def all_blocks_form(size: int) -> Form:
    """The block form with the products of all blocks in one call each, and only the states in a loop."""
    steps = torch.arange(1, size + 1, dtype=torch.float32)
    within = decays_of(steps)[:, None]
    rate = rates()[:, None, None]
    since, to_end = (rate * steps).exp()[..., None], (rate * (size - steps)).exp()[..., None]
    whole = (rate * size).exp()

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (-1, size)) for x in (q, k, v))
        written = (k * to_end).mT @ v
        states, state = [], torch.zeros_like(written[:, :, 0])
        for block in written.unbind(2):
            states.append(state)
            state = state * whole + block
        return (((q @ k.mT) * within) @ v + (q * since) @ torch.stack(states, 2)).flatten(2, 3)

    return form


def race(n: int, runs: int, backwards: bool) -> list[Comparison]:
    """The three forms at one length; their outputs must agree too."""

    def arm(name: str, form: Form, role: Any) -> Arm:
        def run(block: Sequence[list[Tensor]]) -> dict[str, list[float]]:
            q, k, v = (x.detach().requires_grad_(backwards) for x in block[0])
            with torch.set_grad_enabled(backwards):
                out = form(q, k, v)
                if backwards:
                    out.square().mean().backward()
            return {"output": [float(out.detach().square().mean().sqrt())]}

        return Arm(name, run, role)

    arms = [
        arm("masked form", masked_form(n), "baseline"),
        arm("block form", block_form(), "method"),
        arm("all blocks at once", all_blocks_form(128), "sibling"),
    ]
    items = [inputs(n)] * runs
    metric = Metric("output")
    results, comparisons = run_arms(
        arms, items, [metric], block_size=1, pairs=[("all blocks at once", "block form")], item="run"
    )
    outputs = [np.asarray(result.samples["output"]) for result in results]
    assert all(np.allclose(output, outputs[0], rtol=1e-4) for output in outputs), "the forms do not agree"
    found = [comparison for comparison in comparisons if comparison.metric == "runs/s"]
    for comparison in found:
        print(f"  {n:6,} tokens: {sentence(comparison)}")
    return found


def turns(works: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """The least seconds of each piece of work, all taking turns; the first turn is not counted."""
    seconds: dict[Any, list[float]] = {key: [] for key in works}
    for turn in range(rounds + 1):
        for key, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[key].append(time.perf_counter() - start)
    return {key: min(values) for key, values in seconds.items()}


@torch.no_grad()
def scaling(lengths: Sequence[int], sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds and FLOPs of the block form by length and by block size, and what a matrix product reaches."""
    given = {n: inputs(n) for n in lengths}
    form, side = block_form(), 1024
    square = torch.randn(side, side)
    works: dict[Any, Callable[[], Any]] = {("length", n): lambda n=n: form(*given[n]) for n in lengths}
    middle = lengths[len(lengths) // 2]
    works |= {("block", size): lambda size=size: block_form(size)(*given[middle]) for size in sizes}
    works["product"] = lambda: square @ square
    seconds = turns(works, rounds)
    peak = 2 * side**3 / seconds["product"]
    found: dict[str, Any] = {"matmul_flops_per_second": peak, "length": {}, "block_size": {}}
    print(f"  a product of two {side} × {side} matrices runs at {peak / 1e9:.0f} GFLOP/s")
    for n in lengths:
        with FlopCounterMode(display=False) as counter:
            form(*given[n])
        flops, spent = counter.get_total_flops(), seconds["length", n]
        found["length"][n] = {"seconds": spent, "flops": flops}
        print(
            f"  {n:6,} tokens: {1000 * spent:8.2f} ms; {1e6 * spent / n:6.2f} µs and {flops / n / 1000:.1f} kFLOP a "
            f"token; {flops / spent / 1e9:.0f} GFLOP/s, {flops / spent / peak:.0%} of the product's"
        )
    for size in sizes:
        found["block_size"][size] = seconds["block", size]
        print(f"  blocks of {size:4}: {1000 * seconds['block', size]:8.2f} ms for {middle:,} tokens")
    return found


@torch.no_grad()
def decoding(contexts: Sequence[int], shape: Shape, steps: int) -> dict[str, Any]:
    """Seconds for one token by model and context, beside the floor of reading weights and cache once.

    The Llama's cache is filled with random keys and values: its time depends on how many there are, not on what they
    say, and reading 32k tokens of text with it would take minutes. TransNormer reads all its context.
    """
    llama: Any = shape.llama(max(contexts) + steps)
    models = {"TransNormer": shape.transnormer("code").eval(), "Llama": llama.eval()}
    text = torch.randint(256, (max(contexts) + steps,), generator=torch.Generator().manual_seed(0))
    caches: dict[tuple[str, int], Any] = {}
    for context in contexts:
        cache = TransNormerCache(models["TransNormer"].config)
        for chunk in text[:context].split(4096):
            models["TransNormer"](chunk[None], cache=cache, use_cache=True, logits_to_keep=1)
        caches["TransNormer", context] = cache
        caches["Llama", context] = filled(llama, context)
    seconds = decode_seconds(models, caches, text[-steps:])
    many = torch.ones(64 * 1024 * 1024)
    rate = 4 * len(many) / turns({"read": many.sum}, 5)["read"]
    found: dict[str, Any] = {"bytes_per_second": rate, "models": {}}
    print(f"  memory is read at {rate / 1e9:.0f} GB/s")
    for (name, context), values in seconds.items():
        cache = caches[name, context]
        held = (
            cache.bytes().on_device if name == "TransNormer" else sum(2 * layer.keys.nbytes for layer in cache.layers)
        )
        weights = sum(p.nbytes for p in models[name].parameters()) - models[name].get_input_embeddings().weight.nbytes
        # A state is written back as well as read.
        floor = (weights + held * (2 if name == "TransNormer" else 1)) / rate
        spent = float(np.median(values))
        found["models"].setdefault(name, {})[context] = {"seconds": spent, "cache_bytes": held, "floor_seconds": floor}
        first = found["models"][name][contexts[0]]["seconds"]
        print(
            f"  {name:12} at {context:6,}: {1000 * spent:7.2f} ms a token, {spent / first:5.2f}× that at {contexts[0]}"
            f"; cache {held / 1e6:8.2f} MB; floor {1000 * floor:6.2f} ms"
        )
    return found


def filled(model: LlamaForCausalLM, context: int) -> DynamicCache:
    cache, config = DynamicCache(config=model.config), model.config
    for layer in range(config.num_hidden_layers):
        keys = torch.randn(1, config.num_key_value_heads, context, config.head_dim)
        cache.update(keys, keys.clone(), layer)
    return cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", default="1024,2048,4096,8192", help="of the forms that are raced, multiples of 128"
    )
    parser.add_argument("--contexts", default="256,2048,8192,32768", help="of decoding")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    lengths = [int(n) for n in arguments.lengths.split(",")]
    contexts = [int(n) for n in arguments.contexts.split(",")]
    if any(n % 128 for n in lengths):
        parser.error("--lengths must be multiples of 128")

    print(f"1. Block form against masked form, {HEADS} heads of {HEAD_DIM}, float32, {torch.get_num_threads()} threads")
    forward = [comparison for n in lengths for comparison in race(n, arguments.runs, backwards=False)]
    print("2. The block form against length and block size")
    scaled = scaling([*lengths, 4 * lengths[-1]], [32, 64, 128, 256], arguments.runs)
    print("3. One decoded token, width 512, 8 layers")
    decoded = decoding(contexts, Shape(width=512, layers=8, heads=8, block_size=128), 3 * arguments.runs)
    print("4. Forwards and backwards")
    training = [comparison for n in lengths[:3] for comparison in race(n, arguments.runs, backwards=True)]

    if arguments.record:
        result = {
            "forward": dict(zip(_labels(lengths, forward), map(asdict, forward), strict=True)),
            "forward_and_backward": dict(zip(_labels(lengths[:3], training), map(asdict, training), strict=True)),
            "scaling": scaled,
            "decoding": decoded,
            "command": "python benchmarks/transnormer.py --record",
            "provenance": evidence.provenance(seed=0, threads=torch.get_num_threads()),
        }
        print(evidence.record("transnormer.benchmark", result, evidence.folder()))


def _labels(lengths: Sequence[int], comparisons: Sequence[Comparison]) -> list[str]:
    each = len(comparisons) // len(lengths)
    return [f"{lengths[i // each]}: {c.arm} against {c.baseline}" for i, c in enumerate(comparisons)]


if __name__ == "__main__":
    main()
