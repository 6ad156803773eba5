"""How fast first-token ranking is beside written permutations, and beside the machine: `python benchmarks/rank.py`.

One run, one model, the same passages of documentation in all arms, interleaved (see `broadsheet.trial.engine`):

- windows of 20 short passages, ranked by the logits of the first identifier, by a written permutation, and by
  `rerankers`' RankGPT on the same model, where `rerankers` can be imported;
- how near reading the prompts comes to what the machine can multiply: the same tokens through bare matrix products of
  the model's own shapes, and the operations a second of the largest of them;
- a sweep over more passages, and over longer ones;
- a step of PG-RANK on scores: 64 queries × 100 documents × 32 sampled rankings, forward and backward.

The permutation is written to the full length of the list, as the authors' code does, unless the model ends it sooner.
`--record` keeps the result as evidence/rank.benchmark.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from layer import least_seconds

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.page import evidence
from broadsheet.rank import Documentation, ListwiseReranker, PlackettLucePolicyGradient, RankList
from broadsheet.rank.order import calls, sliding
from broadsheet.rank.trials.base import METRICS, changed, reranking
from broadsheet.trial.engine import Arm, run_arms
from broadsheet.trial.results import ArmResult
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison

PERMUTATION, FIRST_TOKEN, PEER = "permutation", "first token", "rerankers' RankGPT"


def race(first: ListwiseReranker, lists: Sequence[RankList], peer: bool) -> tuple[list[ArmResult], list[Comparison]]:
    """The same lists by both decodings and the peer, one query at a time."""
    width = max(len(each.ids) for each in lists)
    arms = [
        reranking(PERMUTATION, changed(first, decode="permutation"), "baseline", "", width=width),
        reranking(FIRST_TOKEN, first, "method", "", width=width),
    ]
    if peer and (ranker := rankgpt(first)):
        arms.append(ranker)
    pairs = [(PEER, FIRST_TOKEN), (PEER, PERMUTATION)] if len(arms) > 2 else []
    return run_arms(arms, lists, METRICS[:1], block_size=1, pairs=pairs, item="list")


def rankgpt(first: ListwiseReranker) -> Arm | None:
    """`rerankers`' listwise ranker on our model: its prompts and parsing, answered by transformers' greedy `generate`.

    It sends the whole list in one call when told where the list ends; its default sends no passages.
    """
    model, tokenizer = first.model, first.tokenizer

    def completion(messages: list[dict[str, str]], **_: Any) -> Any:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        n = sum(message["content"].startswith("Received") for message in messages)
        with torch.inference_mode():
            written = model.generate(**inputs, do_sample=False, max_new_tokens=first.prompter.answer_length(min(n, 26)))
        text = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])

    stand_in = ModuleType("litellm")
    stand_in.completion = completion  # type: ignore[attr-defined]
    sys.modules.setdefault("litellm", stand_in)
    try:
        from rerankers.models import rankgpt_rankers
    except ImportError:
        return None
    rankgpt_rankers.completion = completion
    ranker = rankgpt_rankers.RankGPTRanker("ours", "", verbose=0)

    def run(block: Sequence[RankList]) -> dict[str, list[float]]:
        from broadsheet.rank import evaluate_lists

        rankings = []
        for each in block:
            found = ranker.rank(each.query, list(each.documents), doc_ids=list(each.ids), rank_end=len(each.ids))
            rankings.append([result.document.doc_id for result in found.results])
        return evaluate_lists(block, rankings, ["nDCG@10"])

    return Arm(PEER, run, "peer", "the same model through transformers' generate")


def limit(first: ListwiseReranker, lists: Sequence[RankList], repeats: int) -> dict[str, float]:
    """First-token ranking of one window against the bare matrix products that its tokens need.

    Returns:
        `seconds` of ranking a window, `tokens` in it, `products_seconds` of the model's own products on as many tokens,
        `operations` they take, and `peak`, operations a second of a square product.
    """
    model = first.model
    each = lists[0]
    first.rank(each.query, each.documents)
    tokens = first.account_.prompt_tokens
    shapes = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    ]
    inputs = {width: torch.randn(tokens, width, dtype=model.dtype) for width in {weight.shape[1] for weight in shapes}}
    square = torch.randn(2048, 2048, dtype=model.dtype)

    def products() -> None:
        with torch.inference_mode():
            for weight in shapes:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    seconds = least_seconds(
        {
            "rank": lambda: first.rank(each.query, each.documents),
            "products": products,
            "square": lambda: square @ square,
        },
        repeats,
    )
    operations = 2.0 * tokens * sum(weight.numel() for weight in shapes)
    return {
        "tokens": tokens,
        "seconds": seconds["rank"],
        "products_seconds": seconds["products"],
        "operations": operations,
        "peak": 2 * 2048**3 / seconds["square"],
    }


def growth(
    first: ListwiseReranker, make: Callable[[int, int], list[RankList]], sizes: Sequence[tuple[int, int]]
) -> dict[str, dict[str, float]]:
    """Seconds of a query by passages and words a passage, for both decodings."""
    found = {}
    written = changed(first, decode="permutation")
    for passages, words in sizes:
        [each] = make(passages, words)
        seconds = least_seconds(
            {
                FIRST_TOKEN: lambda each=each: first.rank(each.query, each.documents),  # type: ignore[misc]
                PERMUTATION: lambda each=each: written.rank(each.query, each.documents),  # type: ignore[misc]
            },
            1,
        )
        count = calls(sliding, passages, first.window, first.step)
        found[f"{passages} passages of {words} words"] = {
            **seconds,
            "calls": count,
            "tokens": first.account_.prompt_tokens,
        }
    return found


def policy_gradient(repeats: int) -> float:
    """Seconds of a forward and backward pass of PG-RANK on scores, the least of so many."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(64, 100, generator=generator, requires_grad=True)
    labels = (torch.rand(64, 100, generator=generator) < 0.1).float()
    loss = PlackettLucePolicyGradient(utility="ndcg@10", n_samples=32)
    return least_seconds({"step": lambda: loss(scores, labels).backward()}, repeats)["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=8, help="windows in the race")
    parser.add_argument("--words", type=int, default=30, help="of a passage")
    parser.add_argument("--repeats", type=int, default=5, help="of what is timed alone; the least counts")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--model", default="default", help="or a saved reranker")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()

    corpus = corpora.load("pydocs")
    try:
        first = ListwiseReranker.load(
            arguments.model, dtype=arguments.dtype, device=arguments.device, decode="first_token"
        )
    except InputError as error:
        parser.error(str(error))
    sources: dict[int, Documentation] = {}

    def make(passages: int, words: int, queries: int = 1) -> list[RankList]:
        if words not in sources:
            sources[words] = Documentation(corpus, words=words, seed=arguments.seed)
        return sources[words].test(queries, passages)

    lists = make(20, arguments.words, arguments.queries)
    results, comparisons = race(first, lists, peer=True)
    print(f"windows of 20 passages of {arguments.words} words")
    for result in results:
        speed = result.items_per_second
        print(f"  {result.name:20} {1 / speed.estimate:6.2f} s a list" if speed else f"  {result.name}: {result.error}")
    said = [sentence(one) for one in comparisons if one.metric == "lists/s"]
    print("".join(f"  {line}\n" for line in said))

    near = limit(first, lists, arguments.repeats)
    rate, own = near["operations"] / near["seconds"], near["products_seconds"] / near["seconds"]
    print(
        f"reading a window of {near['tokens']:,.0f} tokens: {near['seconds']:.2f} s, {rate / 1e9:.0f} GFLOP/s; "
        f"{own:.0%} of the speed of its bare matrix products, {rate / near['peak']:.0%} of that of a square one "
        f"({near['peak'] / 1e9:.0f} GFLOP/s)"
    )

    sizes = [(10, 30), (20, 30), (40, 30)] + ([] if arguments.quick else [(100, 30), (20, 15), (20, 60), (20, 120)])
    grown = growth(first, make, sizes)
    for name, row in grown.items():
        print(
            f"{name:27} {row['calls']:2.0f} calls  {FIRST_TOKEN} {row[FIRST_TOKEN]:6.2f} s   "
            f"{PERMUTATION} {row[PERMUTATION]:6.2f} s   {row[PERMUTATION] / row[FIRST_TOKEN]:.2f} times"
        )

    step = policy_gradient(4 * arguments.repeats)
    print(f"PG-RANK on scores, 64 queries × 100 documents × 32 rankings: {1000 * step:.0f} ms a step")

    if arguments.record:
        result = {
            "window": {
                arm.name: {"seconds": 1 / arm.items_per_second.estimate, "status": arm.status}
                for arm in results
                if arm.items_per_second
            },
            "words": arguments.words,
            "comparisons": said,
            "limit": near,
            "growth": grown,
            "policy_gradient_seconds": step,
            "threads": torch.get_num_threads(),
            "command": "python benchmarks/rank.py --record",
            "provenance": evidence.provenance(
                model={"name": arguments.model, "fingerprint": models.fingerprint(first.model)},
                data="pydocs",
                seed=arguments.seed,
                dtype=arguments.dtype,
            ),
        }
        print(evidence.record("rank.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
