"""How fast the laboratory trains, and what a method adds to a step: `python benchmarks/train.py`.

1. *The laboratory.* The same documents are read by a small Llama three times: by HF's `Trainer` with its defaults, a
   row a document, padded to the longest of the batch; by that `Trainer` over documents joined and cut; and by `fit`
   over the same, as the trials train. Trainings stand in processes of their own, in turns, and what counts is a text's
   own tokens in a second, after the first steps. Beside it: the share of what the machine multiplies at most in
   matrices, by the multiplications that the model needs.
2. *Methods.* A step of each method beside a plain step, in one process, in turns. SALT's teacher reads along, or what
   it says was kept beforehand.
3. *Pruning.* The default model and the same without a quarter of its MLP channels, in turns: reading 512 tokens, and
   writing 32 after 16.
4. *Processes.* `fit` in one process, and in two and four under torchrun, each with one thread and rows of its own: what
   they read together, over what one reads. No more than the machine's cores can be gained.
5. *Attention.* Forward and backward of the default model's heads in bfloat16, by torch's kernel and by products, in
   turns; and of the whole model's LoRA step, inside `short_attention` and outside.

`--record` keeps the result as evidence/train.benchmark.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from figures import ends, ratio, told
from torch.nn.functional import scaled_dot_product_attention

from broadsheet import models
from broadsheet.data import corpora
from broadsheet.models import adapters
from broadsheet.models.attention import AttentionByProducts, short_attention
from broadsheet.page import evidence
from broadsheet.train import SALT, DropStage, LLMPruner, LossReweighting
from broadsheet.train.base import LossMethod, MethodObjective
from broadsheet.train.salt import teacher_rows
from broadsheet.training import memory
from broadsheet.training.fit import fit
from broadsheet.training.scratch import TokenBlocks, joined, size, tokenizer

BATCH, LENGTH, VOCABULARY, WARM = 16, 256, 2048, 5
WAYS = ("Trainer, padded", "Trainer, joined", "fit")


# The laboratory


def texts(data: str) -> list[str]:
    return [document.text for document in corpora.load(data).take(4_000, 0)]


def trained(way: str, of: str, data: str, steps: int) -> dict[str, float]:
    """Tokens of texts in a second, and ms a step, of a training in this process."""
    documents = texts(data)
    by = tokenizer(documents, VOCABULARY)
    model, times, read = size(of).model(len(by), LENGTH, 0), [], []
    model.register_forward_pre_hook(lambda *_: times.append(time.perf_counter()))
    if way == "fit":
        rows = TokenBlocks(joined(documents, by), LENGTH)
        fit(model, rows, MethodObjective(LossMethod()), steps=steps, batch_size=BATCH, learning_rate=1e-3)
        read = [BATCH * LENGTH] * steps
    else:
        read = in_trainer(model, by, documents, padded=way == "Trainer, padded", steps=steps)
    seconds = np.diff(times)[WARM:]
    return {"tokens/s": sum(read[WARM : steps - 1]) / float(seconds.sum()), "ms": 1000 * float(np.median(seconds))}


def in_trainer(model: Any, by: Any, documents: Sequence[str], *, padded: bool, steps: int) -> list[int]:
    """Train by HF's `Trainer` as it comes; the texts' own tokens of each step."""
    import tempfile

    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    collate = DataCollatorForLanguageModeling(by, mlm=False)
    read: list[int] = []

    def counted(rows: Sequence[Any]) -> Any:
        read.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    if padded:
        cut = by(list(documents), truncation=True, max_length=LENGTH, add_special_tokens=False)["input_ids"]
        rows: Any = [{"input_ids": ids} for ids in cut if len(ids) > 1]
    else:
        rows = [{"input_ids": row} for row in TokenBlocks(joined(documents, by), LENGTH).ids.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True, disable_tqdm=True
        )
        Trainer(model, settings, train_dataset=rows, data_collator=counted).train()
    return read


def multiplications(of: str, vocabulary: int = VOCABULARY, length: int = LENGTH) -> float:
    """Floating-point operations that a token of a training step needs in products of matrices.

    Six for each weight that is multiplied (the embedding once, as the head), and attention's 12 · width · length a
    layer, half of it, as tokens look back alone.
    """
    made = size(of)
    model = made.model(vocabulary, length, 0)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2)
    return 6 * weights + 6 * made.layers * made.width * length


def most(seconds: float = 2.0, side: int = 2048) -> float:
    """Floating-point operations a second in products of square matrices, the median of some."""
    a, b, spent, end = torch.randn(side, side), torch.randn(side, side), [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        spent.append(time.perf_counter() - start)
    return 2 * side**3 / float(np.median(spent))


def laboratory(of: str, data: str, steps: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
            command = [sys.executable, __file__, "--way", way, "--size", of, "--data", data, "--steps", str(steps)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(ran.stdout.splitlines()[-1]))
    rates = {way: [each["tokens/s"] for each in rows] for way, rows in found.items()}
    limit = most()
    return {
        "size": of,
        "tokens/s": {way: ends(rate) for way, rate in rates.items()},
        "times": {way: ratio(rates["fit"], rate) for way, rate in rates.items() if way != "fit"},
        "of_limit": float(np.median(rates["fit"])) * multiplications(of) / limit,
        "limit": limit,
    }


# Methods


def methods(of: str, data: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each method: its step's time over a plain step's."""
    documents = texts(data)
    by = tokenizer(documents, VOCABULARY)
    rows = TokenBlocks(joined(documents, by), LENGTH)
    teacher = size("0.4M").model(len(by), LENGTH, 1).eval()
    kept = teacher_rows(teacher, [rows[i] for i in range(8 * BATCH)])
    ways: dict[str, LossMethod] = {
        "plain": LossMethod(),
        "plain again": LossMethod(),
        "loss_reweighting": LossReweighting(burn_in=0),
        "salt, taught by 0.4M": SALT(teacher, steps=10**6),
        "salt, what 0.4M says kept": SALT(steps=10**6),
        "salt, afterwards": SALT(teacher, steps=0),
        "token_crisis, before its start": DropStage(0.1, start=10**6),
        "token_crisis, attention left out": DropStage(0.1, attention=False),
        "token_crisis": DropStage(0.1),
    }
    steppers = {
        name: stepper(size(of).model(len(by), LENGTH, 0), kept if "kept" in name else rows, way)
        for name, way in ways.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with memory.kept():
        for turn in range(rounds + 2):
            for name, step in steppers.items():
                begun = time.perf_counter()
                step(turn)
                if turn >= 2:
                    spent[name].append(time.perf_counter() - begun)
    return [{"method": name, "times": ratio(spent[name], spent["plain"])} for name in ways if name != "plain"]


def stepper(model: Any, rows: Sequence[Any], method: LossMethod) -> Callable[[int], None]:
    objective = MethodObjective(method)
    objective.prepare(model)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def step(number: int) -> None:
        batch = objective.collate([(i, rows[(number * BATCH + i) % len(rows)]) for i in range(BATCH)])
        objective.step = number
        objective.loss(model, batch, torch.Generator()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# Pruning


@torch.no_grad()
def pruned(rounds: int) -> list[dict[str, Any]]:
    """How many times as fast the default model reads and writes without a quarter of its MLP channels."""
    dense, cut = (models.load("default", dtype="float32").model for _ in range(2))
    LLMPruner(criterion="l2", kinds=("mlp",)).prune(cut)
    ids = torch.randint(1000, 40_000, (1, 512), generator=torch.Generator().manual_seed(0))

    def read(model: Any) -> None:
        model(ids, use_cache=False)

    def write(model: Any) -> None:
        prompt = ids[:, :16]
        told = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **told)

    rows = []
    for name, do in (("reading 512 tokens", read), ("writing 32 tokens", write)):
        spent: list[tuple[float, float]] = []
        for turn in range(rounds + 1):
            pair = []
            for model in (dense, cut):
                begun = time.perf_counter()
                do(model)
                pair.append(time.perf_counter() - begun)
            if turn:
                spent.append((pair[0], pair[1]))
        rows.append({"what": name, "times": ratio(*map(list, zip(*spent, strict=True)))})
    return rows


# Processes


def processes(of: str, data: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens that several processes read in a second, together, and over what one reads."""
    words = ["--way", "fit", "--size", of, "--data", data, "--steps", str(steps)]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONWARNINGS": "ignore"}
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for turn in range(rounds):
        for count in [*rates][turn % 3 :] + [*rates][: turn % 3]:
            run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__, *words]
            ran = subprocess.run([sys.executable, *run], check=True, capture_output=True, text=True, env=surroundings)
            read = [json.loads(each)["tokens/s"] for each in re.findall(r"\{[^{}]*\}", ran.stdout)]  # maybe on one line
            assert len(read) == count, ran.stdout
            rates[count].append(sum(read))
    return [
        {"processes": count, "tokens/s": ends(rate), "times": ratio(rate, rates[1])} for count, rate in rates.items()
    ]


# Attention


def attention(rounds: int) -> list[dict[str, Any]]:
    """How many times as fast causal attention with its backward pass is by products, by (rows, tokens)."""
    rows, draw = [], torch.Generator().manual_seed(0)
    for count, length in ((32, 44), (16, 128), (8, 256), (4, 512), (2, 1024)):
        given = [
            torch.randn(count, heads, length, 64, generator=draw).bfloat16().requires_grad_() for heads in (9, 3, 3)
        ]
        upstream = torch.randn(count, 9, length, 64, generator=draw).bfloat16()

        def kernel(query: Any, key: Any, value: Any) -> Any:
            key, value = (each.repeat_interleave(3, 1) for each in (key, value))
            return scaled_dot_product_attention(query, key, value, is_causal=True)

        def products(query: Any, key: Any, value: Any) -> Any:
            return AttentionByProducts.apply(query, key, value, None, True, 1 / 8)

        def both(way: Any, given: Any = given, upstream: Any = upstream) -> None:
            torch.autograd.grad(way(*given), given, upstream)

        rows.append(
            {"rows": count, "tokens": length, "times": paired(partial(both, kernel), partial(both, products), rounds)}
        )
    return rows


def steps(rounds: int) -> list[dict[str, Any]]:
    """How many times as fast a LoRA step of the default model is inside `short_attention`, by (rows, tokens)."""
    model = models.load("default", dtype="float32").model
    adapters.add(model, 16)
    rows, draw = [], torch.Generator().manual_seed(0)
    for count, length in ((32, 44), (8, 256), (4, 512)):
        ids = torch.randint(1000, 40_000, (count, length), generator=draw)

        def step(ids: Any = ids) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                model.model(input_ids=ids, use_cache=False).last_hidden_state[:, -1].float().square().mean().backward()

        def inside() -> None:
            with short_attention(model):
                step()

        rows.append({"rows": count, "tokens": length, "times": paired(step, inside, rounds)})
    return rows


def paired(one: Callable[[], None], other: Callable[[], None], rounds: int) -> list[float]:
    """How many times as fast `other` is, in turns, after a first turn that does not count."""
    spent: list[list[float]] = []
    with memory.kept():
        for _ in range(rounds + 1):
            pair = []
            for do in (one, other):
                begun = time.perf_counter()
                do()
                pair.append(time.perf_counter() - begun)
            spent.append(pair)
    return ratio(*map(list, zip(*spent[1:], strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1M")
    parser.add_argument("--data", default="pydocs:stdlib")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(trained(arguments.way, arguments.size, arguments.data, arguments.steps)))
        return
    found = laboratory(arguments.size, arguments.data, arguments.steps, arguments.rounds)
    print(f"a Llama of {arguments.size}, {arguments.steps} steps of {BATCH} × {LENGTH} tokens; own tokens a second")
    for way, rate in found["tokens/s"].items():
        over = "" if way == "fit" else f"; fit {told(found['times'][way])} times as fast"
        print(f"  {way:16} {told(rate, 0)}{over}")
    print(f"  {found['of_limit']:.0%} of the {found['limit'] / 1e9:.0f} GFLOP/s that square matrices reach")
    rows = methods(arguments.size, arguments.data, 4 * arguments.rounds)
    print("a step's time over a plain step's")
    for row in rows:
        print(f"  {row['method']:26} {told(row['times'], 3)}")
    cut = pruned(2 * arguments.rounds)
    print("the default model without a quarter of its MLP channels is so many times as fast")
    for row in cut:
        print(f"  {row['what']:26} {told(row['times'], 3)}")
    several = processes(arguments.size, arguments.data, arguments.steps, max(5, arguments.rounds // 2))
    print(f"own tokens a second of several processes of one thread, on {os.cpu_count()} cores")
    for row in several:
        print(f"  {row['processes']:<4} {told(row['tokens/s'], 0)}; {told(row['times'])} of one's")
    alone, whole = attention(2 * arguments.rounds), steps(arguments.rounds)
    print("attention by products in bfloat16, with its backward pass, is so many times as fast as torch's kernel")
    for row in alone:
        print(f"  {row['rows']:2} × {row['tokens']:<5,} {told(row['times'])}")
    print("and a LoRA step of the default model")
    for row in whole:
        print(f"  {row['rows']:2} × {row['tokens']:<5,} {told(row['times'])}")
    if arguments.record:
        facts = {"data": arguments.data, "seed": 0}
        result = {
            "laboratory": found,
            "methods": rows,
            "pruned": cut,
            "processes": several,
            "attention": {"alone": alone, "lora step": whole},
            "command": " ".join(["python", *sys.argv]),
        }
        print(
            evidence.record(
                "train.benchmark", {**result, "provenance": evidence.provenance(**facts)}, evidence.folder()
            )
        )


if __name__ == "__main__":
    main()
