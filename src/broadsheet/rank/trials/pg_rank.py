"""Try PG-RANK: scorers trained for the metric itself against ListNet, at equal steps; and rerankers tuned with it.

Knows: synthetic lists, the stage's losses and rerankers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data.retrieval.lists import RankList
from broadsheet.data.retrieval.metrics import evaluate_lists
from broadsheet.options import option
from broadsheet.rank.trials.base import FIRST_STAGE, METRICS, RerankerTrial
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Outcome
from broadsheet.trial.engine import Arm
from broadsheet.trial.results import Curve

if TYPE_CHECKING:
    from torch import Tensor

    from broadsheet.rank.base import ListwiseReranker

LISTNET, FOR_NDCG, FOR_MRR = "ListNet", "PG-RANK for nDCG@10", "PG-RANK for MRR@10"
BEFORE, AFTER = "before PG-RANK", "after PG-RANK"
_FEATURES, _DOCUMENTS, _TRAINING, _BATCH, _RATE = 64, 20, 500, 50, 0.1
_CERTAIN, _MANY = 1, 5  # documents of the two kinds of relevance in a list, see `synthetic`


@dataclass
class PGRankTrial(RerankerTrial):
    """A scorer trained for nDCG or MRR by policy gradient: does it win on the metric it was trained for?

    Without a reranker, no model and no text: linear scorers over 64 features of 20 synthetic documents a query, trained
    with ListNet, or for nDCG@10, or for MRR@10, at equally many steps from the same start. One relevant document a
    query can be told for certain; five that are twice as relevant are easily confused with others. A linear scorer has
    to weigh the two kinds against each other, and the metrics want that done differently.

    With --reranker and --after, two rerankers on real lists instead: one that FIRST trained, and the same after PG-RANK
    on its identifiers' logits (`broadsheet apply pg_rank`).
    """

    paper: ClassVar[str] = "pg_rank"
    title: ClassVar[str] = "Rank: train for the metric itself"

    reranker: str | None = option(None, "A reranker before PG-RANK.", metavar="FOLDER")
    after: str | None = option(
        None, "The same after it, or after as many further steps of another loss.", metavar="FOLDER"
    )
    steps: int = option(300, "Training steps of the linear scorers.", quick=100, least=1)
    samples: int = option(32, "Rankings drawn a query and step, of the linear scorers.", least=2)
    queries: int | Literal["all"] | None = option(
        None, "To evaluate on; by default 500 synthetic ones or 100 real ones (with --quick 100 and 12).", least=1
    )

    def check(self) -> None:
        if bool(self.reranker) != bool(self.after):
            raise InputError("got one of --reranker and --after; expected both, before and after PG-RANK, or neither")
        if self.queries is None:
            self.queries = (12 if self.quick else 100) if self.after else (100 if self.quick else 500)
        if self.queries == "all" and not self.after:
            raise InputError("got --queries all for synthetic queries; expected a number")

    def question(self) -> str:
        if self.after:
            return "Does PG-RANK on the identifiers' logits improve a reranker that FIRST has trained?"
        return "Does a scorer trained for a metric by policy gradient win on that metric, at equal steps?"

    def tasks(self) -> list[EvalTask]:
        if self.after:
            return [self.ordering()]
        n = int(self.queries or 0)
        self._train, self._test = synthetic(_TRAINING, self.seed, 0), synthetic(n, self.seed, 1)
        about = (
            f"{_TRAINING} training queries of {_DOCUMENTS} documents, {n} others to evaluate on; relevance: {_CERTAIN} "
            f"document of 1 that is told for certain, {_MANY} of 2 that others resemble"
        )
        known = fingerprint([float(self._test[0].double().sum()), _CERTAIN, _MANY])
        return [EvalTask("synthetic", range(n), METRICS, self.arm, item="list", about=about, fingerprint=known)]

    def facts(self) -> dict[str, Any]:
        if not self.after:
            return {"model": {"name": "linear scorers", "fingerprint": fingerprint([_FEATURES, _RATE, _BATCH])}}
        folders = {"model": self.after, "before": self.reranker}
        return {
            key: {"name": name, "fingerprint": models.fingerprint(self._rerankers[str(name)].model)}
            for key, name in folders.items()
        }

    @cached_property
    def _rerankers(self) -> dict[str, ListwiseReranker]:
        return {str(name): self.load(str(name), decode="first_token") for name in (self.reranker, self.after)}

    def setting(self) -> Mapping[str, Any]:
        if self.after:
            return {
                **self.ranking_setting(self._rerankers[self.after]),
                "model": f"{self.reranker}, and {self.after}",
            }
        return {
            "model": f"linear scorers over {_FEATURES} features",
            "training": f"{self.steps} steps of {_BATCH} queries, Adam, learning rate {_RATE:g}, {self.samples} "
            "rankings drawn a query",
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.rank.pg_rank import PlackettLucePolicyGradient

        paper = PlackettLucePolicyGradient.paper
        if self.after:
            folders = self._rerankers
            return [
                ModelArm(BEFORE, lambda: folders[str(self.reranker)], "baseline", "first token"),
                ModelArm(AFTER, lambda: folders[str(self.after)], None, "first token", paper),
                *(
                    ModelArm(Path(name).name, partial(self.load, name, decode="first_token"), description="first token")
                    for name in self.also
                ),
                self.unranked(),
            ]
        self._scorers = {
            name: LinearScorer(self._train, self._test, loss, self.steps, self.seed)
            for name, loss in losses(self.samples, self.seed).items()
        }
        plain, ours = "cross-entropy of softmaxed relevance", "policy gradient, leave-one-out baseline"
        return [
            ModelArm(LISTNET, lambda: self._scorers[LISTNET], "baseline", plain),
            ModelArm(FOR_NDCG, lambda: self._scorers[FOR_NDCG], None, ours, paper),
            ModelArm(FOR_MRR, lambda: self._scorers[FOR_MRR], None, ours, paper),
        ]

    def arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        if self.after:
            return super().arm(arm, model, kept)
        scorer: LinearScorer = model()
        return Arm(arm.name, scorer.run, description=arm.description, prepare=scorer.prepare)

    def claims(self) -> list[Claim]:
        if self.after:
            return [Claim("nDCG@10", BEFORE, AFTER, "tuning for the metric improves the metric (abstract)")]
        says = "training for a metric wins on that metric (abstract)"
        return [
            Claim("nDCG@10", LISTNET, FOR_NDCG, says),
            Claim("RR@10", LISTNET, FOR_MRR, says),
            Claim("RR@10", FOR_NDCG, FOR_MRR, says),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        return [(name, AFTER) for name in (FIRST_STAGE, *(Path(name).name for name in self.also))] if self.after else []

    def figures(self, outcome: Outcome) -> list[Curve]:
        return super().figures(outcome) if self.after else []

    def notes(self, outcome: Outcome) -> list[str]:
        if self.after:
            return super().notes(outcome)
        return [
            f"{name}: {1000 * one.seconds / self.steps:.1f} ms a step of {_BATCH} queries of {_DOCUMENTS} documents."
            for name, one in self._scorers.items()
            if one.seconds
        ]


def synthetic(queries: int, seed: int, part: int) -> tuple[Tensor, Tensor]:
    """Features (queries, 20, 64) and relevance (queries, 20) of documents; `part` tells training from test.

    Direction a marks the certain kind of document: all of them, and nothing else. Direction b marks the many, and, less
    strongly on average but overlapping, the irrelevant ones. The other features are noise.
    """
    import torch

    generator = torch.Generator().manual_seed(2 * seed + part)
    directions = torch.linalg.qr(torch.randn(_FEATURES, 2, generator=torch.Generator().manual_seed(seed)))[0].T
    labels = torch.zeros(queries, _DOCUMENTS)
    labels[:, :_CERTAIN] = 1
    labels[:, _CERTAIN : _CERTAIN + _MANY] = 2
    labels = labels.gather(1, torch.rand(queries, _DOCUMENTS, generator=generator).argsort(1))
    features = torch.randn(queries, _DOCUMENTS, _FEATURES, generator=generator)
    features -= features @ directions.T @ directions  # noise has no part in the two directions
    certain = (labels == 1).float() * 2
    many = (labels == 2).float() * 0.8 + torch.randn(queries, _DOCUMENTS, generator=generator)
    features += certain[..., None] * directions[0] + many[..., None] * directions[1]
    return features, labels


def losses(samples: int, seed: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The losses compared: scores (batch, n) and relevance (batch, n) to a scalar."""
    from broadsheet.rank.pg_rank import PlackettLucePolicyGradient

    def listnet(scores: Tensor, labels: Tensor) -> Tensor:
        return -(labels.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()

    return {
        LISTNET: listnet,
        FOR_NDCG: PlackettLucePolicyGradient(utility="ndcg@10", n_samples=samples, seed=seed),
        FOR_MRR: PlackettLucePolicyGradient(utility="mrr@10", n_samples=samples, seed=seed),
    }


class LinearScorer:
    """Scores of synthetic documents by one weight a feature, trained when its arm is prepared."""

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        seed: int,
    ) -> None:
        self.train, self.test = train, test
        self.loss, self.steps, self.seed = loss, steps, seed
        self.seconds = 0.0
        self.weights: Any = None

    def prepare(self) -> None:
        import torch

        # Not `training.fit`: its own work takes longer than such a step, and the notes say how long the losses take.
        features, labels = self.train
        self.weights = torch.zeros(features.shape[-1], requires_grad=True)
        optimizer = torch.optim.Adam([self.weights], lr=_RATE)
        generator = torch.Generator().manual_seed(self.seed)
        begin = time.perf_counter()
        for _ in range(self.steps):
            batch = torch.randint(len(features), (_BATCH,), generator=generator)
            optimizer.zero_grad()
            self.loss(features[batch] @ self.weights, labels[batch]).backward()
            optimizer.step()
        self.seconds = time.perf_counter() - begin

    def run(self, block: Sequence[int]) -> dict[str, Any]:
        features, labels = self.test
        scores = (features[list(block)] @ self.weights).detach().numpy()
        orders = np.argsort(-scores, axis=1, kind="stable")
        names = tuple(str(i) for i in range(_DOCUMENTS))
        lists = [
            RankList(str(i), "", names, names, judged={str(j): int(r) for j, r in enumerate(labels[i])}) for i in block
        ]
        return dict(evaluate_lists(lists, [[str(i) for i in order] for order in orders]))
