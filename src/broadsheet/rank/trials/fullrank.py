"""Try full ranking: all candidates in one call against windows that slide over them, with the same model and prompt.

Knows: the stage's reranker, lists; and noisy comparisons, which need no model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.options import option
from broadsheet.rank.base import strategy_named
from broadsheet.rank.fullrank import multipass_calls
from broadsheet.rank.order import run_lockstep, windows
from broadsheet.rank.trials.base import FIRST_STAGE, training_record
from broadsheet.rank.trials.bias import kendall
from broadsheet.rank.trials.teaching import Lesson, TrainedRerankerTrial
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.results import Curve

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

SLIDING, FULL, PLAIN = "sliding windows", "full ranking", "full ranking, plain cross-entropy"
_FLIPS = (0.0, 0.05, 0.1, 0.2, 0.3)
_NOISE_LISTS, _NOISE_ITEMS = 40, 100


@dataclass
class FullRankTrial(TrainedRerankerTrial):
    """All candidates read at once, or a window of them at a time: which order is better, and which is cheaper?

    The same model is trained on the same lists three times: on whole ones with the importance-aware loss, on whole ones
    with plain cross-entropy, and on windows of them with plain cross-entropy. Those are parts of the lists, as many
    passages as a window holds, drawn at random; a step has so many more of them that all arms read equally many
    passages a step. All write the permutation. The sliding sweep reads passages several times and writes short lists,
    full ranking reads them once and writes one long list.

    With --reranker, nothing is trained: one reranker (`broadsheet label` makes its labels, `broadsheet apply fullrank`
    trains it) ranks in both ways. The paper has full ranking better only where it was trained for, so that is claimed
    of a reranker whose `training.json` says that it learnt from whole lists; of any other, that it is faster.

    Without any model, the label builder is tried on noisy comparisons: how near one sweep and several passes come to
    the true order.
    """

    paper: ClassVar[str] = "fullrank"
    trained_on: ClassVar[str] = "a model of 7 billion parameters on 1,000 lists of 100, four times"
    title: ClassVar[str] = "Rank: all candidates at once, or in windows"

    decode: Literal["permutation", "first_token"] = option(
        "permutation", "How an order is read off the model; first_token for lists of at most 26."
    )
    candidates: int = option(10, "In a list, the best of the first stage.", quick=6, least=3)
    window: int | None = option(None, "Of the sliding sweep; by default two fifths of the candidates.", least=2)
    step: int | None = option(None, "Of the sliding sweep; by default half of the window.", least=1)

    def check(self) -> None:
        self._window = self.window or max(2, 2 * self.candidates // 5)
        self._step = self.step or max(1, self._window // 2)
        if self._window >= self.candidates:
            raise InputError(
                f"got --window {self._window} for {self.candidates} candidates; a window that holds them all is full "
                "ranking: give a smaller one"
            )
        if self.decode == "first_token" and self.candidates > 26:
            raise InputError(f"got --decode first_token and --candidates {self.candidates}; expected 26 at most")

    def question(self) -> str:
        return (
            f"Does {self.model_name} rank {self.candidates} candidates better, or faster, in one call than in windows?"
        )

    def tasks(self) -> list[EvalTask]:
        return [self.asked(4)]

    @cached_property
    def _sliding(self) -> ListwiseReranker:
        return (self.load if self.reranker else self.taught)(self.main, **self._reading("sliding"))

    def _reading(self, strategy: str) -> dict[str, Any]:
        """How a reranker is read."""
        changes: dict[str, Any] = {"strategy": strategy, "decode": self.decode}
        changes |= {"window": self._window, "step": self._step}
        if not self.reranker:
            changes["identifiers"] = "alpha" if self.candidates <= 26 else "numeric"
        return changes

    def _full(self) -> ListwiseReranker:
        full = self.load(self.main, **self._reading("full"))
        full.model = self._sliding.model
        return full

    def facts(self) -> dict[str, Any]:
        known = {"name": self.main, "fingerprint": models.fingerprint(self._sliding.model)}
        learnt = {} if self.reranker else self.training_facts()
        return {"model": known, "settings": self._sliding.settings(), **learnt}

    def setting(self) -> Mapping[str, Any]:
        return {
            **self.ranking_setting(self._sliding),
            **({} if self.reranker else self.training_setting()),
            "windows": f"{self._window} passages, step {self._step}",
            "decoding": f"{self.decode}, {self._sliding.identifiers} identifiers",
        }

    def arms(self) -> list[ModelArm]:
        one = self._reading("full")
        others = [
            ModelArm(Path(name).name, partial(self.load, name, **one), description="all candidates in one call")
            for name in self.also
        ]
        return self._compared() + others

    def _compared(self) -> list[ModelArm]:
        from broadsheet.rank.first import FIRST
        from broadsheet.rank.fullrank import FullRank

        about = f"windows of {self._window}, step {self._step}, from the back"
        if self.reranker:
            return [
                ModelArm(SLIDING, lambda: self._sliding, "baseline", about),
                ModelArm(FULL, self._full, None, "all candidates in one call", FullRank.paper),
                self.unranked(),
            ]
        plain, ours = FIRST(weight=0), self.configured(FullRank)  # the mean NLL of the ranking's tokens
        sliding = Lesson(plain, self._reading("sliding"), self._window)
        whole, weighted = (Lesson(loss, self._reading("full")) for loss in (plain, ours))
        said = "trained on whole lists, all candidates in one call"
        return [
            self.learning(
                SLIDING, sliding, "baseline", f"trained on parts of that size, equally many passages a step; {about}"
            ),
            self.learning(PLAIN, whole, "sibling", said, FullRank.paper),
            self.learning(FULL, weighted, None, f"{said}; first places weigh more", FullRank.paper),
            self.unranked(),
        ]

    def claims(self) -> list[Claim]:
        # DL19: 72.55 for the model trained on whole lists, 70.34 for its twin trained on windows; one has none.
        twin = None if self.reranker else 0.0221
        better = Claim(self.quality, SLIDING, FULL, "a model trained for it ranks better in one call (DL19)", twin)
        # Mean of eight sets of BEIR: about 0.007 less without the weights. To see that takes twice as many lists.
        weighted = Claim(self.quality, PLAIN, FULL, "weighing first places more helps (ablation, BEIR)", least=0.01)
        # The latency falls by 29.3 %: 1 / (1 − 0.293).
        faster = Claim("lists/s", SLIDING, FULL, "one call is faster than a sweep of windows", effect=1.41)
        if self.reranker:
            return [better, faster] if self._learnt_whole else [faster]
        return [better, weighted, faster]

    @property
    def _learnt_whole(self) -> bool:
        """Whether the record of the given reranker's training says that it was on whole lists."""
        lists = training_record(self.reranker or "").get("settings", {}).get("objective", {}).get("lists", {})
        return "sizes" in lists and lists["sizes"] is None

    def also_compare(self) -> list[tuple[str, str]]:
        return [(FIRST_STAGE, FULL)]

    def figures(self, outcome: Outcome) -> list[Curve]:
        self._curve, self._noise = noisy_labels(self.seed)
        return [*super().figures(outcome), self._curve]

    def notes(self, outcome: Outcome) -> list[str]:
        return [*super().notes(outcome), self._noise]


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
