"""How fast drafts from tri-grams write beside greedy decoding and prompt lookup: `python benchmarks/decode.py`.

For each dtype, arms on the same prompts in interleaved runs (see `broadsheet.trial.engine`), a run a kind of prompt:
copying a passage, going on with documentation, and answering freely. ADED, as published and with a measured tree size,
and our n-gram drafter, as a tree and as a chain, start each prompt anew with a table built from other documents; they
never saw the texts they write. What a step costs by its size is measured first, once for a
dtype. In float32 all texts must be identical; in bfloat16 the share that is, is reported.

`--record` keeps the result as evidence/aded.benchmark.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from numbers import Number
from typing import Any

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.decode import ADED, NgramDrafter, TrigramTable
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.prompts import KINDS, DecodePrompt
from broadsheet.decode.trials.timing import SOURCES, Reference, TimedWriter, Written, measured, step_seconds
from broadsheet.page import evidence
from broadsheet.trial.engine import Arm, Measured, Metric, run_arms
from broadsheet.trial.results import ArmResult
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison

METRICS = [
    Metric("identical output", binary=True, bounds=(0, 1)),
    Metric("tokens per forward", bounds=(1, float("inf"))),
]


def race(
    writer: TimedWriter, prompts: Sequence[DecodePrompt], table: TrigramTable, seconds: dict[int, float]
) -> tuple[list[ArmResult], list[Comparison]]:
    """Greedy decoding, prompt lookup, ADED and the n-gram drafter, on the same prompts."""
    reference = Reference(writer)
    drafters = {
        "ADED": ADED(table),
        "ADED, measured": ADED(table, tree_size="auto", step_seconds=seconds),
        "n-grams": NgramDrafter(table, step_seconds=seconds),
        "n-grams, chain": NgramDrafter(table, chain=True, step_seconds=seconds),
    }

    def drafting(drafter: ADED | NgramDrafter) -> Callable[[DecodePrompt], Written]:
        return lambda prompt: writer(prompt, custom_generate=drafter.fork())

    def arm(name: str, write: Callable[[DecodePrompt], Written], role: Any) -> Arm:
        def run(block: Sequence[DecodePrompt]) -> Measured:
            return measured([(write(prompt), reference.tokens(prompt)) for prompt in block], str)

        return Arm(name, run, role)

    arms = [
        arm("greedy", reference.write, "baseline"),
        arm("prompt lookup", lambda prompt: writer(prompt, prompt_lookup_num_tokens=10), "peer"),
        *(
            arm(name, drafting(drafter), "method" if name == "ADED" else "sibling")
            for name, drafter in drafters.items()
        ),
    ]
    return run_arms(
        arms,
        prompts,
        METRICS,
        block_size=1,
        pairs=[*(("prompt lookup", name) for name in drafters), ("ADED", "n-grams")],
        item="token",
        per_item=writer.tokens,
    )


def report(results: Sequence[ArmResult], comparisons: Sequence[Comparison]) -> None:
    plain = results[0].samples.get("seconds", [])
    for result in results:
        if result.status != "ok":
            print(f"    {result.name:14} failed: {result.error}")
            continue
        ratios = sorted(p / mine for p, mine in zip(plain, result.samples["seconds"], strict=True))
        print(
            f"    {result.name:14} {result.items_per_second.estimate:7.1f} tokens/s"
            f"   {result.values['tokens per forward'].estimate:5.2f} tokens a forward"
            f"   identical {result.values['identical output'].estimate:4.0%}"
            f"   times greedy {sum(plain) / sum(result.samples['seconds']):.2f}, by prompt"
            f" {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
        if "steps" in result.samples:
            total = {  # of the numbers: what was written is among the samples too
                name: sum(values)
                for name, values in result.samples.items()
                if all(isinstance(value, Number) for value in values)
            }
            steps, accepted = max(1, total["steps"]), max(1, total["accepted"])
            sources = ", ".join(f"{total[f'from {source}'] / accepted:.0%} {source}" for source in SOURCES)
            print(
                f"    {'':14} drafting {1000 * total['drafting seconds'] / steps:.2f} ms a step; no successor in"
                f" {total['unknown'] / steps:.0%} of the steps; {total['accepted'] / max(1, total['drafted']):.0%} of"
                f" the drafts accepted: {sources}"
            )
    for comparison in comparisons:
        if comparison.metric == "tokens/s":
            print(f"    {sentence(comparison)}")


def build(data: str, excluded: set[str], tokenizer: Any, megabytes: float, seed: int) -> tuple[TrigramTable, float]:
    """A table from other documents, and the seconds it took once they were read."""
    texts, size = [], 0
    for document in corpora.load(data).take(30_000, seed):
        if size < 1e6 * megabytes and tasks.beginning(document) not in excluded:
            texts.append(document.text)
            size += len(document.text.encode("utf-8", "replace"))
    start = time.perf_counter()
    table = TrigramTable.from_texts(texts, tokenizer)
    return table, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="of each kind")
    parser.add_argument("--tokens", type=int, default=96, help="written after each prompt")
    parser.add_argument("--megabytes", type=float, default=8, help="of other documents for the table")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", default="pydocs")
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()

    documents = tasks.choose(corpora.load(arguments.data), len(KINDS) * arguments.prompts, arguments.seed)
    excluded = {tasks.beginning(document) for document in documents}
    table, prompts, result = None, [], {}
    fingerprints = {}
    for dtype in arguments.dtypes.split(","):
        try:
            model, tokenizer = models.load(arguments.model, device=arguments.device, dtype=dtype)
        except InputError as error:
            parser.error(str(error))
        fingerprints[dtype] = models.fingerprint(model)
        if table is None:
            prompts = tasks.make(documents, tokenizer)
            table, took = build(arguments.data, excluded, tokenizer, arguments.megabytes, arguments.seed)
            print(
                f"the table: {len(table):,} tri-grams of {arguments.megabytes:g} MB in {took:.1f} s, "
                f"{table.nbytes / 1e6:.1f} MB"
            )
            result["table"] = {"trigrams": len(table), "bytes": table.nbytes, "build_seconds": took}
        writer = TimedWriter(model, arguments.tokens)
        seconds = step_seconds(writer, prompts[0])
        print(f"{dtype}: a step over n tokens, ms and single steps")
        print("  " + "  ".join(f"{n}: {1000 * s:.0f} ({s / seconds[1]:.2f})" for n, s in seconds.items()))
        result[dtype] = {"step_seconds": seconds}
        for kind in KINDS:
            print(f"  {kind}")
            results, comparisons = race(writer, [p for p in prompts if p.kind == kind], table, seconds)
            report(results, comparisons)
            result[dtype][kind] = {
                "arms": [asdict(arm) for arm in results],
                "comparisons": [asdict(comparison) for comparison in comparisons],
            }

    if arguments.record:
        facts = {"model": fingerprints, "data": arguments.data, "seed": arguments.seed}
        result |= {
            "prompts": arguments.prompts,
            "tokens": arguments.tokens,
            "command": "python benchmarks/decode.py --record",
            "provenance": evidence.provenance(**facts),
        }
        print(evidence.record("aded.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
