"""Try GRL: contrastive training alone, with a generation loss beside it, and with agreement between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.retrieval.lists import RankList
from broadsheet.embed.data import tasks
from broadsheet.embed.data.doc_tasks import examples
from broadsheet.embed.trials.base import EmbedderTrial, perplexity_task, retrieval_task, training_note
from broadsheet.options import option
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

UNTRAINED, CONTRASTIVE = "mean, causal, untrained", "contrastive"
SFT, DPO, GRL_CODE, GRL_PAPER = "contrastive + SFT", "contrastive + DPO", "GRL", "GRL, KL as printed"
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
}
TAU = Metric("Kendall τ", bounds=(-1, 1))


@dataclass
class UllmeTrial(EmbedderTrial, TrainedTrial):
    """Does learning to write the right passage, and agreeing with the writer, make a better embedder?

    The same triples of query, passage and wrong passage (found by BM25 in packages that no test asks about), in the
    same order, train five LoRA adapters for equally many steps: the contrastive loss alone, with a generation loss
    beside it (supervised, DPO), and with the KL between both rankings in its two forms. They are tried on retrieval in
    held-out documentation, on sentence pairs with --sts, by perplexity on held-out passages, and by the direct claim:
    how far cosine and likelihood rank a query's candidates alike.
    """

    paper: ClassVar[str] = "ullme"
    title: ClassVar[str] = "ULLME: embed and write with one model"

    steps: int = option(24, "Of training.", quick=2, least=1)
    batch: int = option(8, "Triples a step.", quick=3, least=1)
    learning_rate: float = option(5e-4, "Of the adapters.", least=0)
    lists: int = option(20, "Queries whose candidates are ranked both ways.", quick=4, least=1)
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
        # Each triple is seen once, as long as there are enough.
        wanted = min(self.steps * self.batch, 4000)
        self._items = examples("summary", wanted, 1, words=self.words, seed=self.seed, data=self.data)
        docs = tasks.documentation(self.words, self.seed, self.data)
        held_out = [entry.text for entry in docs.pairs(8 if self.quick else 60, held_out=True)]
        both = agreement(docs.test(self.lists, self.candidates), self._temperature)
        return [retrieval_task(self.retrieval()), both, perplexity_task(held_out), *alike]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "training data": fingerprint(self._items)}

    def setting(self) -> Mapping[str, Any]:
        return {
            "training": f"{self.steps} steps of {self.batch} triples from {self.data} packages that no test asks "
            f"about, LoRA, learning rate {self.learning_rate:g}, {self.words} words a passage"
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.ullme import GRL

        made = [ModelArm(UNTRAINED, lambda: self._start("causal", self.dtype), description="before training")]
        for name, (changes, about) in ARMS.items():
            made.append(
                self.trained(
                    name,
                    partial(self._train, changes),
                    self.load,
                    "baseline" if name == CONTRASTIVE else None,
                    about,
                    GRL.paper if changes["consistency"] else "",
                )
            )
        return made

    def claims(self) -> list[Claim]:
        return [
            Claim("nDCG@10", CONTRASTIVE, GRL_CODE, "generation and agreement improve retrieval (abstract)"),
            Claim(TAU.name, CONTRASTIVE, GRL_CODE, "both ways to rank come to agree (the KL loss)"),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        return [(DPO, GRL_CODE), (DPO, GRL_PAPER), (UNTRAINED, CONTRASTIVE), (UNTRAINED, GRL_CODE)]

    def notes(self, outcome: Outcome) -> list[str]:
        notes = [training_note(name, self.folder(name)) for name in ARMS if name in outcome.usable]
        notes.append(
            "All trained arms take the same triples in the same order; steps are equal, work is not: the tokens above "
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
            "passages apart has little to teach."
        )

    @property
    def _temperature(self) -> float:
        return float(self._fields.get("generation_temperature", 1.0))

    def _start(self, attention: Any, dtype: str | None = None) -> Any:
        from broadsheet.embed.base import embedder

        return embedder(self.model, "mean", attention=attention, max_seq_length=128, device=self.device, dtype=dtype)

    def _train(self, changes: Mapping[str, Any], seed: int, out: Path) -> Any:
        from broadsheet.embed import fit
        from broadsheet.embed.ullme import GRL

        model = self._start("bidirectional")
        return fit(
            model,
            self._items,
            GRL(model, seed=seed, **{**changes, **self._fields}),
            out,
            steps=self.steps,
            batch_size=self.batch,
            learning_rate=self.learning_rate,
            method="lora",
            seed=seed,
        )


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
