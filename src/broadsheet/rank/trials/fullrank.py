"""Try full ranking: all candidates in one call against windows that slide over them, with the same model and prompt.

Knows: the stage's reranker, lists, the A/B engine; and noisy comparisons, which need no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.page.evidence import provenance, versions
from broadsheet.rank.base import strategy_named
from broadsheet.rank.fullrank import multipass_calls
from broadsheet.rank.order import run_lockstep, windows
from broadsheet.rank.trials import arms as parts
from broadsheet.rank.trials.arms import METRICS, first_stage, reranking
from broadsheet.rank.trials.bias import kendall
from broadsheet.rank.trials.items import ListSource
from broadsheet.trial.engine import run_arms
from broadsheet.trial.results import Curve, TrialResult

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

SLIDING, FULL = "sliding windows", "full ranking"
_BLOCK = 4  # queries that share batches
_FLIPS = (0.0, 0.05, 0.1, 0.2, 0.3)
_NOISE_LISTS, _NOISE_ITEMS = 40, 100


@dataclass
class FullRankTrial:
    """All candidates read at once, or a window of them at a time: which order is better, and which is cheaper?

    Both arms write the permutation with numbered passages, by the same model; the sliding sweep reads passages several
    times and writes short lists, full ranking reads them once and writes one long list. What wins hangs on the context
    length, the machine, and on whether the model was trained on whole lists: give such a model as --reranker
    (`broadsheet apply fullrank --labels` makes its labels, `broadsheet apply fullrank --train` trains it).

    Without any model, the label builder is tried on noisy comparisons: how near one sweep and several passes come to
    the true order.

    Options:
        --reranker FOLDER: a trained reranker, with its own identifiers and wording; the model itself by default.
        --decode NAME: `permutation`, or `first_token` for lists of at most 26 (permutation).
        --queries N: lists (40; with --quick 4; 0 takes all of a BEIR folder).
        --candidates N: in a list (40; with --decode first_token 20).
        --window N, --step N: of the sliding sweep (half of the candidates, and half of that).
        --words N: of a passage that is searched and shown (30; 0: all).
        --titles: passages of pydocs show the name of their function or class.
        --first-stage FILE: a TREC run over a BEIR folder, whose order is improved; BM25's by default.
        --split NAME: of the BEIR folder's qrels (test).
        --device NAME, --dtype NAME: as in models.load.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    reranker: str = ""
    decode: str = "permutation"
    queries: int = -1
    candidates: int = 0
    window: int = 0
    step: int = 0
    words: int = 30
    titles: bool = False
    first_stage: str = ""
    split: str = "test"
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Make the lists, run the arms, try the label builder, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        self._complete()
        source = ListSource(self.data, self.words, self.titles, self.first_stage, self.split, self.seed)
        items = source.test(self.queries, self.candidates)
        sliding, full = self._load("sliding"), self._load("full")
        full.model = sliding.model
        facts = {
            "seed": self.seed,
            "model": {"name": self.reranker or self.model, "fingerprint": models.fingerprint(sliding.model)},
            "data": {"name": self.data, "fingerprint": items.data_fingerprint},
            "lists": items.fingerprint,
        }
        key = fingerprint([versions(), facts, asdict(self), sliding.settings()])
        self.journal_ = home() / "trials" / f"fullrank-{key}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)
        say(f"ranking {len(items.lists)} lists of at most {self.candidates} candidates")
        width = self.candidates
        arms, comparisons = run_arms(
            [
                reranking(
                    SLIDING,
                    sliding,
                    "baseline",
                    f"windows of {self.window}, step {self.step}, from the back",
                    width=width,
                ),
                reranking(FULL, full, "method", "all candidates in one call", width=width),
                first_stage("sibling", width),
            ],
            items.lists,
            METRICS,
            block_size=_BLOCK,
            pairs=[(parts.FIRST_STAGE, FULL)],
            item="list",
            seed=self.seed,
            journal=self.journal_,
        )
        curve, noise = noisy_labels(self.seed)
        name = self.reranker or ("the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model)
        return TrialResult(
            paper="fullrank",
            title="Rank: all candidates at once, or in windows",
            question=f"Does {name} rank {self.candidates} candidates better, or faster, in one call than in windows?",
            setting={
                "model": name,
                **parts.training(self.reranker),
                **parts.setting(
                    items,
                    sliding.model,
                    candidates=self.candidates,
                    words=self.words,
                    titles=self.titles,
                    first_stage=self.first_stage,
                ),
                "windows": f"{self.window} passages, step {self.step}",
                "decoding": f"{self.decode}, {sliding.identifiers} identifiers",
            },
            arms=arms,
            comparisons=comparisons,
            item="list",
            claims=[("nDCG@10", SLIDING, FULL), ("lists/s", SLIDING, FULL)],
            figures=[parts.success(arms, items.lists, "Right passage among the first k"), curve],
            notes=[parts.ceiling(items.lists), *parts.account(arms, items.lists), noise],
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Fill in what was not given."""
        self.queries = self.queries if self.queries != -1 else (4 if self.quick else 40)
        self.candidates = self.candidates or (20 if self.decode == "first_token" else 40)
        self.window = self.window or max(2, self.candidates // 2)
        self.step = self.step or max(1, self.window // 2)
        if self.window >= self.candidates:
            raise InputError(
                f"got --window {self.window} for {self.candidates} candidates; a window that holds them all is full "
                "ranking: give a smaller one"
            )

    def _load(self, strategy: str) -> ListwiseReranker:
        from broadsheet.rank.base import ListwiseReranker

        changes: dict[str, Any] = {
            "strategy": strategy,
            "decode": self.decode,
            "window": self.window,
            "step": self.step,
        }
        if not self.reranker:
            changes["identifiers"] = "alpha" if self.candidates <= 26 else "numeric"
        return ListwiseReranker.load(
            self.reranker or self.model, device=self.device or None, dtype=self.dtype or None, **changes
        )


def noisy_labels(seed: int, window: int = 20, step: int = 10) -> tuple[Curve, str]:
    """How near one sweep and several passes come to the true order when comparisons err; a figure and a sentence.

    The comparison orders a window by how many of its pairs each item wins, and errs on each pair with a given
    probability, anew in every call.
    """
    generator = random.Random(f"{seed}/noise")
    orders = [generator.sample(range(_NOISE_ITEMS), _NOISE_ITEMS) for _ in range(_NOISE_LISTS)]
    found: dict[str, list[float]] = {"sliding": [], "multipass": []}
    for strategy, line in found.items():
        for flip in _FLIPS:

            def compare(asked: list[tuple[int, list[int]]], flip: float = flip) -> list[list[int]]:
                return [_by_wins([orders[index][item] for item in items], flip, generator) for index, items in asked]

            sweeps = [strategy_named(strategy)(_NOISE_ITEMS, window, step) for _ in orders]
            ranked = run_lockstep(sweeps, compare)
            taus = [
                kendall(list(range(_NOISE_ITEMS)), [order[item] for item in final])
                for order, final in zip(orders, ranked, strict=True)
            ]
            line.append(float(np.mean(taus)))
    calls = len(windows(_NOISE_ITEMS, window, step)), sum(multipass_calls(_NOISE_ITEMS, window, step))
    names = {"sliding": f"one sweep, {calls[0]} calls", "multipass": f"several passes, {calls[1]} calls"}
    curve = Curve(
        "Labels from noisy comparisons",
        "share of pairs the comparison gets wrong",
        "Kendall's τ to the true order",
        list(_FLIPS),
        {names[strategy]: list(line) for strategy, line in found.items()},
    )
    at = _FLIPS.index(0.1)
    said = (
        f"Label builder, no model: {_NOISE_ITEMS} items in windows of {window}, step {step}, compared with one pair in "
        f"ten wrong: τ to the true order {found['sliding'][at]:.2f} after one sweep ({calls[0]} calls) and "
        f"{found['multipass'][at]:.2f} after several passes ({calls[1]} calls)."
    )
    return curve, said


def _by_wins(ranks: Sequence[int], flip: float, generator: random.Random) -> list[int]:
    """Positions by pairs won, a pair going to the lower rank unless the comparison errs; ties in incoming order."""
    n = len(ranks)
    wins = [0] * n
    for i in range(n):
        for j in range(i):
            right = i if ranks[i] < ranks[j] else j
            wins[(i + j - right) if generator.random() < flip else right] += 1
    return sorted(range(n), key=lambda i: -wins[i])
