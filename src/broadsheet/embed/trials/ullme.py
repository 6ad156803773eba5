"""Try GRL: contrastive training alone, with a generation loss beside it, and with agreement between the two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.retrieval.lists import RankList
from broadsheet.embed.data import tasks
from broadsheet.embed.data.doc_tasks import examples
from broadsheet.embed.trials.base import Count, GeneratingTrial, retrieval_task, training_note
from broadsheet.options import best_of, option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

UNTRAINED, CONTRASTIVE = "mean, causal, untrained", "contrastive"
SFT, DPO, GRL_CODE, GRL_PAPER = "contrastive + SFT", "contrastive + DPO", "GRL", "GRL, KL as printed"
KEPT = "contrastive + kept scores"
OPTIONAL = {"sft": SFT, "printed": GRL_PAPER, "kept": KEPT}
RATES = (2e-4, 5e-4, 1e-3)  # of the adapters, that each arm's is chosen from
LEAST = {"nDCG@10": 0.03, "Kendall τ": 0.05}
# What each trained arm adds to the contrastive loss, and what that is.
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    CONTRASTIVE: ({"generation": None, "consistency": None}, "bidirectional attention, NT-Xent alone"),
    SFT: ({"generation": "sft", "consistency": None}, "and the passage is learnt to be written"),
    DPO: ({"generation": "sigmoid", "consistency": None}, "and preferred to the wrong one when writing"),
    GRL_CODE: (
        {"generation": "sigmoid", "consistency": "gen-rt", "detach_generator": True},
        "and KL(generator ‖ embedding), as the authors' code has it: the generator teaches",
    ),
    GRL_PAPER: (
        {"generation": "sigmoid", "consistency": "rt-gen", "detach_generator": False},
        "and KL(embedding ‖ generator), as the paper prints it: both learn",
    ),
    KEPT: (
        {"generation": None, "consistency": "gen-rt", "generator": "kept"},
        "and KL(generator ‖ embedding) to the untrained model's own likelihoods, computed once",
    ),
}
TAU = Metric("Kendall τ", bounds=(-1, 1))


@dataclass
class UllmeTrial(GeneratingTrial, TrainedTrial):
    """Does learning to write the right passage, and agreeing with the writer, make a better embedder?

    The same queries with a right and wrong passages (found by BM25 in packages that no test asks about), in the same
    order, train LoRA adapters for equally many steps, each at its own best learning rate: the contrastive loss alone,
    with DPO beside it, and with DPO and the KL between both rankings. --also adds a supervised generation loss (sft),
    the KL as the paper prints it (printed), and the KL to what the untrained model finds likely, computed once, which
    costs next to nothing (kept). They are tried on retrieval in held-out documentation, on sentence pairs with --sts,
    by perplexity on held-out passages and elsewhere, and by the direct claim: how far cosine and likelihood rank a
    query's candidates alike. No arm has the paper's projector: in so few steps it would be learnt instead of the
    embedding, which is read before it.
    """

    paper: ClassVar[str] = "ullme"
    title: ClassVar[str] = "ULLME: embed and write with one model"

    steps: int = option(80, "Of training.", quick=2, least=1)
    batch: int = option(8, "Queries a step.", quick=3, least=1)
    negatives: int = option(1, "Wrong passages of a query in training.", least=1)
    also: tuple[str, ...] = option(("kept",), "Arms besides those of the claims.", choices=OPTIONAL, metavar="NAME,…")
    learning_rate: float | None = option(
        None,
        f"Of the adapters; by default {best_of(RATES)} for each arm after a third of the steps, on documentation that "
        "no test asks about.",
        quick=5e-4,
        least=0,
    )
    queries: Count = option(600, "That search; `all` of a BEIR folder.", quick=10, least=1)
    passages: Count = option(600, "That are searched; `all` of a BEIR folder.", quick=40, least=1)
    lists: int = option(270, "Queries whose candidates are ranked both ways.", quick=4, least=1)
    candidates: int = option(5, "Of each such query.", quick=4, least=2)
    words: int = option(24, "Of a passage.", quick=12, least=1)

    def check(self) -> None:
        if not is_pydocs(self.data):
            raise InputError(f"got --data {self.data}; this trial trains and tests on pydocs, which comes with it")

    def question(self) -> str:
        return f"Does training {self.model_name} to write passages, and to agree with itself, make it embed better?"

    def tasks(self) -> list[EvalTask]:
        from broadsheet.embed.ullme import GRL

        self._fields = self.fields(GRL)
        alike = self.similarity()
        # Each is seen once, as long as there are enough.
        wanted = min(self.steps * self.batch, 4000)
        self._items: Sequence[Any] = examples(
            "summary", wanted, self.negatives, words=self.words, seed=self.seed, data=self.data
        )
        docs = tasks.documentation(self.words, self.seed, self.data)
        held_out = [entry.text for entry in docs.pairs(8 if self.quick else 60, held_out=True)]
        both = agreement(docs.test(self.lists, self.candidates), self._temperature)
        return [retrieval_task(self.retrieval()), both, *self.written(held_out), *alike]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "training data": fingerprint(self._items)}

    def setting(self) -> Mapping[str, Any]:
        return {
            "training": f"{self.steps} steps of {self.batch} queries with {self.negatives} wrong passages each from "
            f"{self.data} packages that no test asks about, {self.words} words a passage, LoRA, no projector, learning "
            "rate " + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items())
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.ullme import GRL

        without = {name for short, name in OPTIONAL.items() if short not in self.also}
        self._rates = {name: self._rate(name) for name in ARMS if name not in without}
        made = [ModelArm(UNTRAINED, lambda: self._start("causal", self.dtype), description="before training")]
        for name in self._rates:
            role: Any = {CONTRASTIVE: "baseline", KEPT: "sibling"}.get(name)
            paper = GRL.paper if name in (GRL_CODE, GRL_PAPER) else ""
            made.append(self.trained(name, partial(self._train, name), self.load, role, ARMS[name][1], paper))
        return made

    def claims(self) -> list[Claim]:
        improves, adds = (
            "generation and agreement improve retrieval (abstract)",
            "agreement adds to DPO (its rows DPO + CL and GRL)",
        )
        wanted = {
            "nDCG@10": [(CONTRASTIVE, improves), (DPO, adds)],
            TAU.name: [(CONTRASTIVE, "both ways to rank come to agree (the KL loss)")],
        }
        return [
            Claim(metric, baseline, GRL_CODE, says, least=LEAST[metric])
            for metric, each in wanted.items()
            for baseline, says in each
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        pairs = [(DPO, GRL_PAPER), (KEPT, GRL_CODE), (UNTRAINED, CONTRASTIVE), (UNTRAINED, GRL_CODE)]
        return [pair for pair in pairs if {*pair} <= {UNTRAINED, *self._rates}]

    def notes(self, outcome: Outcome) -> list[str]:
        notes = [training_note(name, self.folder(name)) for name in ARMS if name in outcome.usable]
        notes.append(
            "All trained arms take the same queries in the same order; steps are equal, work is not: the tokens above "
            "are those that are embedded, written passages and the reference's reading come on top."
        )
        if GRL_CODE in outcome.usable:
            top = np.asarray(outcome.usable[GRL_CODE].samples["sharpness"])
            notes.append(
                f"Over {self.candidates} candidates the generator gives its first {top.mean():.2f} of the probability "
                f"(1/{self.candidates} = {1 / self.candidates:.2f} would be no opinion) at a temperature of "
                f"{self._temperature:g}: that is all that the KL has to teach."
            )
        return notes

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if claim.metric == TAU.name:
            return ""
        return (
            "Its models are 10 to 60 times as large and train for thousands of steps; a generator that hardly tells "
            f"passages apart has little to teach, and here it ranks {1 + self.negatives} passages a query in training."
        )

    @property
    def _temperature(self) -> float:
        return float(self._fields.get("generation_temperature", 1.0))

    def _start(self, attention: Any, dtype: str | None = None) -> Any:
        from broadsheet.embed.base import embedder

        return embedder(self.model, "mean", attention=attention, max_seq_length=128, device=self.device, dtype=dtype)

    def _rate(self, name: str) -> float:
        """The learning rate given, or the one by which the arm finds most after a third of the steps."""
        if self.learning_rate is not None:
            return self.learning_rate
        task = self.tuning([item["positive"] for item in self._items])

        def score(rate: float) -> float:
            return self.found(task, self._fit(name, rate, max(1, self.steps // 3), self.seed))

        return self.tuned(name, RATES, score, on=f"{task.about}, after a third of the steps", open_ended=True)

    def _train(self, name: str, seed: int, out: Path) -> Any:
        return self._fit(name, self._rates[name], self.steps, seed, out)

    def _fit(self, name: str, rate: float, steps: int, seed: int, out: Path | None = None) -> Any:
        """What training an arm into a folder did; without one the trained embedder."""
        from broadsheet.embed import fit
        from broadsheet.embed.ullme import GRL

        model = self._start("bidirectional")
        fields = {"projector": False, **ARMS[name][0], **self._fields}
        items = self._scored if name == KEPT else self._items
        done = fit(
            model, items, GRL(model, seed=seed, **fields), out, steps=steps, batch_size=self.batch,
            learning_rate=rate, method="lora", seed=seed,
        )  # fmt: skip
        return done if out else model

    @cached_property
    def _scored(self) -> Sequence[Any]:
        """What is learnt, with what the untrained model finds likely; kept, so that it is not read again."""
        from broadsheet.embed.ullme import keep_scores

        path = self.folder("teacher scores").with_suffix(".json")
        if not path.exists():
            say(f"{self.model_name} reads {len(self._items):,} queries with their passages")
            scored = keep_scores(self._start("bidirectional"), self._items)
            with atomic_write(path) as file:
                json.dump(scored, file)
        return list(json.loads(path.read_text(encoding="utf-8")))


def agreement(lists: Sequence[RankList], temperature: float = 1.0) -> EvalTask:
    """Queries with candidates, ranked by cosine and by mean log-likelihood: Kendall's τ between the two.

    The second output, "sharpness", is the share that the generator's softmax, at `temperature`, gives its first
    candidate.
    """

    def arm(arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        def run(block: Sequence[RankList]) -> Outputs:
            return _both_rankings(model, block, temperature)

        return Arm(arm.name, run, description=arm.description, prepare=model.prepare)

    return EvalTask(
        "agreement",
        lists,
        [TAU],
        arm,
        item="text",
        per_item=1 + len(lists[0].ids),
        about=f"{len(lists)} held-out queries, {len(lists[0].ids)} candidates each by BM25, ranked by cosine and by "
        "writing",
        fingerprint=fingerprint([[each.query, list(each.documents)] for each in lists]),
    )


def _both_rankings(held: LazyModel, block: Sequence[RankList], temperature: float) -> Outputs:
    from scipy.stats import kendalltau

    from broadsheet.embed.base import Embedder
    from broadsheet.embed.data.writing import mean_log_probs

    model = cast(Embedder, held())
    queries = model.encode_query([each.query for each in block], normalize_embeddings=True)
    documents = [[str(text) for text in each.documents] for each in block]
    vectors = model.encode_document([text for group in documents for text in group], normalize_embeddings=True)
    likely = mean_log_probs(
        model.encoder, [(each.query, text) for each, group in zip(block, documents, strict=True) for text in group]
    )
    taus, sharpness, start = [], [], 0
    for query, group in zip(queries, documents, strict=True):
        place = slice(start, start := start + len(group))
        tau = float(kendalltau(vectors[place] @ query, likely[place]).statistic)
        taus.append(0.0 if np.isnan(tau) else tau)  # all alike: no order to agree with
        shares = np.exp((likely[place] - likely[place].max()) / temperature)
        sharpness.append(float(shares.max() / shares.sum()))
    return {TAU.name: taus, "sharpness": sharpness}
