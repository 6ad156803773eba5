"""Try PG-RANK: scorers trained for the metric itself against ListNet, at equal steps; and rerankers tuned with it.

Knows: synthetic lists, the stage's losses and rerankers, the A/B engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.data.retrieval.lists import RankList
from broadsheet.data.retrieval.metrics import evaluate_lists
from broadsheet.page.evidence import provenance, versions
from broadsheet.rank.trials import arms as parts
from broadsheet.rank.trials.arms import METRICS, first_stage, reranking
from broadsheet.rank.trials.items import ListSource
from broadsheet.trial.engine import Arm, run_arms
from broadsheet.trial.results import TrialResult

if TYPE_CHECKING:
    from torch import Tensor

    from broadsheet.rank.base import ListwiseReranker

LISTNET, FOR_NDCG, FOR_MRR = "ListNet", "PG-RANK for nDCG@10", "PG-RANK for MRR@10"
BEFORE, AFTER = "before PG-RANK", "after PG-RANK"
_FEATURES, _DOCUMENTS, _TRAINING, _BATCH, _RATE = 64, 20, 500, 50, 0.1
_CERTAIN, _MANY = 1, 5  # documents of the two kinds of relevance in a list, see `synthetic`


@dataclass
class PGRankTrial:
    """A scorer trained for nDCG or MRR by policy gradient: does it win on the metric it was trained for?

    Without a reranker, no model and no text: linear scorers over 64 features of 20 synthetic documents a query, trained
    with ListNet, or for nDCG@10, or for MRR@10, at equally many steps from the same start. One relevant document a
    query can be told for certain; five that are twice as relevant are easily confused with others. A linear scorer has
    to weigh the two kinds against each other, and the metrics want that done differently.

    With --reranker and --tuned, two rerankers on real lists instead: one that FIRST trained, and the same after PG-RANK
    on its identifiers' logits (`broadsheet apply pg_rank`).

    Options:
        --reranker FOLDER: a reranker before PG-RANK.
        --tuned FOLDER: the same after it, or after as many further steps of another loss.
        --also FOLDER,…: further rerankers, each an arm named after its folder.
        --steps N: training steps of the linear scorers (300; with --quick 100).
        --samples N: rankings drawn a query and step (32).
        --queries N: to evaluate on (500 synthetic ones, or 100 real; with --quick 100 and 12).
        --candidates N: of a real list, the best of the first stage (20).
        --words N: of a passage that is searched and shown (40; 0: all).
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
    tuned: str = ""
    also: str = ""
    steps: int = 0
    samples: int = 32
    queries: int = -1
    candidates: int = 20
    words: int = 40
    titles: bool = False
    first_stage: str = ""
    split: str = "test"
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Train or load the scorers, run the arms, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        if bool(self.reranker) != bool(self.tuned):
            raise InputError("got one of --reranker and --tuned; expected both, before and after PG-RANK, or neither")
        self.steps = self.steps or (100 if self.quick else 300)
        if self.steps < 1 or self.samples < 2 or self.queries < -1:
            raise InputError(
                f"got --steps {self.steps} --samples {self.samples} --queries {self.queries}; expected from 1, 2 and 0"
            )
        return self._tuned() if self.tuned else self._synthetic()

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    def _synthetic(self) -> TrialResult:
        n = self.queries if self.queries > 0 else (100 if self.quick else 500)
        train, test = synthetic(_TRAINING, self.seed, 0), synthetic(n, self.seed, 1)
        facts: dict[str, Any] = {
            "seed": self.seed,
            "model": {"name": "linear scorers", "fingerprint": fingerprint([_FEATURES, _RATE, _BATCH])},
            "data": {"name": "synthetic", "fingerprint": fingerprint([float(test[0].double().sum()), _CERTAIN, _MANY])},
        }
        self._journal(facts)
        trained: dict[str, _Trained] = {
            name: _Trained(train, test, loss, self.steps, self.seed)
            for name, loss in losses(self.samples, self.seed).items()
        }
        say(f"training {len(trained)} linear scorers for {self.steps} steps")
        arms, comparisons = run_arms(
            [trained[name].arm(name) for name in trained],
            list(range(n)),
            METRICS,
            block_size=max(1, n // 10),
            pairs=[(FOR_NDCG, FOR_MRR)],
            item="list",
            seed=self.seed,
            journal=self.journal_,
        )
        notes = [
            f"{name}: {1000 * one.seconds / self.steps:.1f} ms a step of {_BATCH} queries of {_DOCUMENTS} documents."
            for name, one in trained.items()
            if one.seconds
        ]
        return TrialResult(
            paper="pg_rank",
            title="Rank: train for the metric itself",
            question="Does a scorer trained for a metric by policy gradient win on that metric, at equal steps?",
            setting={
                "model": f"linear scorers over {_FEATURES} features",
                "data": f"synthetic: {_TRAINING} training queries of {_DOCUMENTS} documents, {n} others to evaluate on",
                "relevance": f"{_CERTAIN} document of 1 that is told for certain, {_MANY} of 2 that others resemble",
                "training": f"{self.steps} steps of {_BATCH} queries, Adam, learning rate {_RATE:g}, {self.samples} "
                "rankings drawn a query",
            },
            arms=arms,
            comparisons=comparisons,
            item="list",
            claims=[("nDCG@10", LISTNET, FOR_NDCG), ("RR@10", LISTNET, FOR_MRR), ("RR@10", FOR_NDCG, FOR_MRR)],
            notes=notes,
            provenance=provenance(**facts),
        )

    def _tuned(self) -> TrialResult:
        from broadsheet.rank.base import ListwiseReranker

        source = ListSource(self.data, self.words, self.titles, self.first_stage, self.split, self.seed)
        items = source.test(self.queries if self.queries != -1 else (12 if self.quick else 100), self.candidates)
        folders = {BEFORE: self.reranker, AFTER: self.tuned}
        folders |= {Path(name).name: name for name in filter(None, self.also.split(","))}
        rerankers: dict[str, ListwiseReranker] = {
            name: ListwiseReranker.load(
                folder, device=self.device or None, dtype=self.dtype or None, decode="first_token"
            )
            for name, folder in folders.items()
        }
        facts = {
            "seed": self.seed,
            "model": {"name": self.tuned, "fingerprint": models.fingerprint(rerankers[AFTER].model)},
            "before": {"name": self.reranker, "fingerprint": models.fingerprint(rerankers[BEFORE].model)},
            "data": {"name": self.data, "fingerprint": items.data_fingerprint},
            "lists": items.fingerprint,
        }
        self._journal(facts)
        roles: dict[str, Any] = {BEFORE: "baseline", AFTER: "method"}
        arms, comparisons = run_arms(
            [
                *(
                    reranking(name, one, roles.get(name, "sibling"), "first token", width=self.candidates)
                    for name, one in rerankers.items()
                ),
                first_stage("sibling", self.candidates),
            ],
            items.lists,
            METRICS,
            block_size=5,
            pairs=[(parts.FIRST_STAGE, AFTER)] + [(name, AFTER) for name in rerankers if name != AFTER],
            item="list",
            seed=self.seed,
            journal=self.journal_,
        )
        return TrialResult(
            paper="pg_rank",
            title="Rank: train for the metric itself",
            question="Does PG-RANK on the identifiers' logits improve a reranker that FIRST has trained?",
            setting={
                "model": f"{self.reranker}, and {self.tuned}",
                **parts.setting(
                    items,
                    rerankers[AFTER].model,
                    candidates=self.candidates,
                    words=self.words,
                    titles=self.titles,
                    first_stage=self.first_stage,
                ),
            },
            arms=arms,
            comparisons=comparisons,
            item="list",
            claims=[("nDCG@10", BEFORE, AFTER)],
            figures=[parts.success(arms, items.lists, "Right passage among the first k")],
            notes=[parts.ceiling(items.lists), *parts.account(arms, items.lists)],
            provenance=provenance(**facts),
        )

    def _journal(self, facts: dict[str, Any]) -> None:
        key = fingerprint([versions(), facts, asdict(self)])
        self.journal_ = home() / "trials" / f"pg_rank-{key}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)


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


class _Trained:
    """A linear scorer, trained when its arm is prepared."""

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

    def arm(self, name: str) -> Arm:
        role: Any = "baseline" if name == LISTNET else "method"
        about = "cross-entropy of softmaxed relevance" if name == LISTNET else "policy gradient, leave-one-out baseline"
        return Arm(name, self.run, role, about, prepare=self.prepare)

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
