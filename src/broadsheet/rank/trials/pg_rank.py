"""Try PG-RANK: a dual encoder tuned for the metric itself, or by losses that stand in for it.

Knows: lists, encoders of sentence-transformers, `training.fit`, rerankers. Does not know: how an encoder scores, what
the losses are (both `dual`), how lists are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import resources
from broadsheet.data.retrieval.metrics import evaluate_lists
from broadsheet.models.sentences import load_sentences, sentences_fingerprint
from broadsheet.options import best_of, option
from broadsheet.rank.trials.base import FIRST_STAGE, RerankerTrial
from broadsheet.rank.trials.dual import (
    CONTRASTIVE,
    FOR_MRR,
    FOR_NDCG,
    LAMBDA,
    LISTNET,
    NO_BASELINE,
    RANKNET,
    DualScorer,
    OnLists,
)
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Outputs
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.arms import TrainedTrial

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.data.retrieval.lists import RankList
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.training.trainer import TrainOutput

UNTRAINED = "untrained"
# The role of each loss's arm, and what it is.
LOSSES: dict[str, tuple[Literal["baseline", "sibling", "peer"] | None, str]] = {
    CONTRASTIVE: ("baseline", "cross-entropy of the right passage among the candidates"),
    LISTNET: ("peer", "sentence-transformers' loss"),
    RANKNET: ("peer", "sentence-transformers' loss"),
    LAMBDA: ("peer", "sentence-transformers' loss, with NDCG-Loss 2++"),
    FOR_NDCG: (None, "policy gradient, leave-one-out baseline, a place credited with what follows it"),
    FOR_MRR: (None, "policy gradient, leave-one-out baseline"),
    NO_BASELINE: ("sibling", "that for nDCG@10, without the leave-one-out baseline"),
}
BEFORE, AFTER = "before PG-RANK", "after PG-RANK"
RATES = (1e-5, 3e-5, 1e-4)  # learning rates that each loss's is chosen from
_DEV = 0.2  # of the training lists, to choose them on


@dataclass
class PGRankTrial(RerankerTrial, TrainedTrial):
    """A dual encoder tuned for nDCG or MRR by policy gradient: does it beat one tuned by a loss in their place?

    The encoder is a small one that retrieves already, as those that the paper begins with; a score is 20 times the
    cosine of a query's and a passage's vector. All losses tune all its weights, from the same start, on the same lists
    in the same order for as many steps, and have their learning rate chosen alike on lists that no test asks: contrast,
    sentence-transformers' ListNet, RankNet and LambdaLoss, and PG-RANK for nDCG@10, for MRR@10, and without the
    baseline that lowers its variance.

    With --reranker and --after, two rerankers instead: one that FIRST trained, and the same after PG-RANK on its
    identifiers' logits (`broadsheet apply pg_rank`).
    """

    paper: ClassVar[str] = "pg_rank"
    title: ClassVar[str] = "Rank: train for the metric itself"

    model: str = option(
        "resource:minilm",
        "The encoder that is tuned: a folder of sentence-transformers, as those that embedders are saved to, a hub id, "
        "or a resource.",
        metavar="MODEL",
    )
    reranker: str | None = option(None, "A reranker before PG-RANK.", metavar="FOLDER")
    after: str | None = option(
        None, "The same after it, or after as many further steps of another loss.", metavar="FOLDER"
    )
    candidates: int = option(10, "In a list, the best of the first stage.", quick=5, least=2)
    words: int = option(30, "Of a passage that is searched and shown; 0: all.", least=0)
    lists: int = option(1500, "To train on, a fifth of them to choose learning rates on.", quick=40, least=10)
    queries: int | Literal["all"] | None = option(300, "Lists of the test; `all` of a BEIR folder.", quick=24)
    steps: int = option(100, "Of training.", quick=4, least=1)
    batch: int = option(8, "Lists of a step.", quick=4, least=1)
    learning_rate: float | None = option(
        None,
        f"By default {best_of(RATES)} for each loss, by other training lists.",
        quick=3e-5,
        least=0,
    )
    samples: int = option(32, "Rankings drawn a query and step.", least=2)

    def check(self) -> None:
        if bool(self.reranker) != bool(self.after):
            raise InputError("got one of --reranker and --after; expected both, before and after PG-RANK, or neither")
        if self.also and not self.after:
            raise InputError("got --also without --reranker and --after; it names further rerankers beside these two")

    def question(self) -> str:
        if self.after:
            return "Does PG-RANK on the identifiers' logits improve a reranker that FIRST has trained?"
        return f"Does {self.model} order passages better if it is tuned for the metric itself?"

    def tasks(self) -> list[EvalTask]:
        if not self.after:
            self._known = sentences_fingerprint(self._encoder())  # refused here, before any data is read
        asked = self.ordering()
        if not self.after:
            found = self.training_lists(self.lists, self.candidates)
            if len(found) < 2 * self.batch:
                raise InputError(f"{self.data} gives {len(found)} training lists; expected {2 * self.batch} at least")
            held = max(1, int(_DEV * len(found)))
            self._train_lists, self._dev = found[held:], found[:held]
        return [asked]

    def facts(self) -> dict[str, Any]:
        if not self.after:
            ids = [each.id for each in (*self._train_lists, *self._dev)]
            return {"model": {"name": self.model, "fingerprint": self._known}, "training data": fingerprint(ids)}
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
            "scorer": "20 times the cosine of the encoder's vectors",
            "training": f"{self.steps} steps of {self.batch} of {len(self._train_lists):,} lists, all weights, AdamW, "
            + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items())
            + f"; {self.samples} rankings drawn a query",
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
        self._rates = {name: self._rate(name) for name in LOSSES}
        found = []
        for name, (role, about) in LOSSES.items():
            of = paper if name in (FOR_NDCG, FOR_MRR, NO_BASELINE) else ""
            found.append(self.trained(name, partial(self._train, name), self._read, role, about, of))
        before = ModelArm(UNTRAINED, lambda: DualScorer(self._encoder()), description="the encoder as it is")
        return [*found, before, self.unranked()]

    def arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        if self.after or arm.name == FIRST_STAGE:
            return super().arm(arm, model, kept)

        def run(block: Sequence[RankList]) -> Outputs:
            orders = model().orders(block)
            values = evaluate_lists(block, [[each.ids[i] for i in o] for each, o in zip(block, orders, strict=True)])
            padded = [[*order, *[-1] * (self.candidates - len(order))] for order in orders]
            return {**values, "order": padded}

        return Arm(arm.name, run, description=arm.description, prepare=model.prepare)

    def claims(self) -> list[Claim]:
        if self.after:
            return [Claim("nDCG@10", BEFORE, AFTER, "tuning for the metric improves the metric (abstract)")]
        says = "training for the metric that is tested improves it in domain (abstract)"
        lower = "without the leave-one-out baseline policy gradient learns less"  # not a figure of the paper's
        return [
            Claim("nDCG@10", CONTRASTIVE, FOR_NDCG, says),
            Claim("RR@10", CONTRASTIVE, FOR_MRR, says),
            Claim("nDCG@10", NO_BASELINE, FOR_NDCG, lower, kind="control"),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        if self.after:
            return [(name, AFTER) for name in (FIRST_STAGE, *(Path(name).name for name in self.also))]
        return [(name, FOR_NDCG) for name in (LISTNET, RANKNET, LAMBDA, UNTRAINED)] + [(FOR_NDCG, FOR_MRR)]

    def notes(self, outcome: Outcome) -> list[str]:
        if self.after:
            return super().notes(outcome)
        cut, texts = DualScorer(self._encoder()).cut([*self._train_lists, *outcome.tasks[0].items])
        longer = f"{cut:,} of {texts:,} texts are longer than what the encoder reads of them: their ends are cut."
        return [*super().notes(outcome)[:1], *[longer] * bool(cut)]

    def absence(self, claim: Claim, comparison: Any, outcome: Outcome) -> str:
        if self.after:
            return ""
        return (
            "It tunes on the training queries of MS MARCO; here an encoder learns from "
            f"{min(self.steps * self.batch, len(self._train_lists)):,} lists of {self.candidates}."
        )

    # The encoder and its training

    def _encoder(self) -> SentenceTransformer:
        """The encoder as it is.

        Raises:
            InputError: it is none of sentence-transformers.
        """
        from sentence_transformers import SentenceTransformer

        folder = resources.local(self.model)
        if self.model == "default" or (folder.is_dir() and not (folder / "modules.json").is_file()):
            raise InputError(
                f"got --model {self.model}; expected an encoder of sentence-transformers: "
                f"`broadsheet.embed.baseline('mean', {self.model!r}).save_pretrained(folder)` makes one of a language "
                "model"
            )
        spec = folder if folder.is_dir() else self.model
        return load_sentences(spec, SentenceTransformer, device=self.device, dtype=self.dtype)

    def _rate(self, name: str) -> float:
        """The learning rate given, or the one whose encoder orders the lists that are held from training best."""
        if self.learning_rate is not None:
            return self.learning_rate

        def train(rate: float, out: Path) -> TrainOutput:
            return self._fit(name, rate, self.seed, out)

        def score(out: Path) -> float:
            orders = self._read(out).orders(self._dev)
            ids = [[each.ids[i] for i in order] for each, order in zip(self._dev, orders, strict=True)]
            return float(np.mean(evaluate_lists(self._dev, ids)["nDCG@10"]))

        on = f"the nDCG@10 of {len(self._dev)} lists that no arm learns"
        return self.best_run(name, RATES, train, score, on=on, open_ended=True)

    def _train(self, name: str, seed: int, out: Path) -> TrainOutput | None:
        if self.take_best(name, self._rates[name], seed, out):
            return None
        return self._fit(name, self._rates[name], seed, out)

    def _fit(self, name: str, rate: float, seed: int, out: Path) -> TrainOutput:
        from broadsheet.training.fit import fit

        scorer = DualScorer(self._encoder())
        return fit(
            scorer,
            self._train_lists,
            OnLists(name, scorer, self.samples),
            out,
            steps=self.steps,
            batch_size=self.batch,
            learning_rate=rate,
            weight_decay=0.01,
            identity=self._known,
            seed=seed,
        )

    def _read(self, folder: Path) -> DualScorer:
        from safetensors.torch import load_model

        made = DualScorer(self._encoder())
        load_model(made, folder / "model.safetensors")
        return made
