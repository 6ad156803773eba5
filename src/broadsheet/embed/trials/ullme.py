"""Try GRL: contrastive training alone, with a generation loss beside it, and with agreement between the two.

Knows: the objective, its arms, how embedding and generation rank the same candidates, the A/B engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, at_least, say
from broadsheet.data.retrieval.lists import RankList
from broadsheet.embed.data import tasks
from broadsheet.embed.data.doc_tasks import examples
from broadsheet.embed.trials.base import (
    EvalTask,
    LazyModel,
    ModelArm,
    clear,
    compare,
    trained,
    training_note,
    workdir,
)
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.results import ArmResult, Role, TrialResult
from broadsheet.trial.stats import Comparison

UNTRAINED, CONTRASTIVE = "mean, causal, untrained", "contrastive"
SFT, DPO, GRL_CODE, GRL_PAPER = "contrastive + SFT", "contrastive + DPO", "GRL", "GRL, KL as printed"
# What each trained arm adds to the contrastive loss.
ARMS: dict[str, dict[str, Any]] = {
    CONTRASTIVE: {"generation": None, "consistency": None},
    SFT: {"generation": "sft", "consistency": None},
    DPO: {"generation": "sigmoid", "consistency": None},
    GRL_CODE: {"generation": "sigmoid", "consistency": "gen-rt", "detach_generator": True},
    GRL_PAPER: {"generation": "sigmoid", "consistency": "rt-gen", "detach_generator": False},
}
_ABOUT = {
    CONTRASTIVE: "bidirectional attention, NT-Xent alone",
    SFT: "and the passage is learnt to be written",
    DPO: "and preferred to the wrong one when writing",
    GRL_CODE: "and KL(generator ‖ embedding), as the authors' code has it: the generator teaches",
    GRL_PAPER: "and KL(embedding ‖ generator), as the paper prints it: both learn",
}
TAU = Metric("Kendall τ", bounds=(-1, 1))


@dataclass
class UllmeTrial:
    """Does learning to write the right passage, and agreeing with the writer, make a better embedder?

    The same triples of query, passage and wrong passage (found by BM25 in packages that no test asks about), in the
    same order, train five LoRA adapters for equally many steps: the contrastive loss alone, with a generation loss
    beside it (supervised, DPO), and with the KL between both rankings in its two forms. They are tried on retrieval in
    held-out documentation, on sentence pairs with --sts, by perplexity on held-out passages, and by the direct claim:
    how far cosine and likelihood rank a query's candidates alike.

    Options:
        --sts FILE: sentence pairs with gold scores, such as STS-B's TSV, or `hf:org/name:split`.
        --pairs N: sentence pairs of --sts (300; with --quick 30; 0: all).
        --steps N, --batch N: of training (24 and 8; with --quick 2 and 3).
        --learning-rate X: of the adapters (0.0005).
        --temperature X, --generation-temperature X: of the embedding and of the generator (0.05 and 1, the authors').
        --weights A,B,C: of contrastive, generation and agreement (1,1,1).
        --chunk N: queries whose activations are kept at once; 0: all (0).
        --queries N, --passages N: of the retrieval task (60 and 300; with --quick 10 and 40).
        --lists N, --candidates N: queries whose candidates are ranked both ways, and how many each (20 and 5; with
            --quick 4 and 4).
        --words N: of a passage (24; with --quick 12).
        --device NAME: as in models.load.
        --dtype NAME: that the embedders are tried in.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    sts: str = ""
    pairs: int = -1
    steps: int = 0
    batch: int = 0
    learning_rate: float = 5e-4
    temperature: float = 0.05
    generation_temperature: float = 1.0
    weights: str = "1,1,1"
    chunk: int = 0
    queries: int = 0
    passages: int = 0
    lists: int = 0
    candidates: int = 0
    words: int = 0
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Train the arms, run them, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        self._settle()
        items, jobs = self._items(), self._jobs()
        loaded = models.load(self.model, device=self.device or None)
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": loaded.fingerprint},
            "data": {"name": self.data, "fingerprint": {job.name: job.fingerprint for job in jobs}},
            "training data": fingerprint(items),
        }
        self.folder_ = workdir("ullme", versions(), facts, asdict(self))
        del loaded
        arms, comparisons = compare(self._candidates(items), jobs, self.folder_, pairs=_PAIRS, seed=self.seed)
        name = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        return TrialResult(
            paper="ullme",
            title="ULLME: embed and write with one model",
            question=f"Does training {name} to write passages, and to agree with itself, make it embed better?",
            setting={
                "model": name,
                "training": f"{self.steps_} steps of {self.batch_} triples from {self.data} packages that no test "
                f"asks about, LoRA, learning rate {self.learning_rate:g}, weights {self.weights}, {self.words_} words "
                "a passage",
                **{job.name: job.about for job in jobs},
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[("nDCG@10", CONTRASTIVE, GRL_CODE), (TAU.name, CONTRASTIVE, GRL_CODE)],
            notes=self._notes(arms, comparisons),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _settle(self) -> None:
        """Sizes where none are given."""
        if self.data != "pydocs":
            raise InputError(f"got --data {self.data}; this trial trains and tests on pydocs, which comes with it")
        quick = self.quick
        self.steps_, self.batch_ = self.steps or (2 if quick else 24), self.batch or (3 if quick else 8)
        self.words_ = self.words or (12 if quick else 24)
        self.lists_, self.candidates_ = self.lists or (4 if quick else 20), self.candidates or (4 if quick else 5)
        at_least(1, self, "steps_", "batch_", "words_", "lists_")
        at_least(2, self, "candidates_")
        at_least(0, self, "chunk")
        try:
            self.weights_ = cast("tuple[float, float, float]", tuple(float(each) for each in self.weights.split(",")))
        except ValueError:
            raise InputError(f"got --weights {self.weights!r}; expected three numbers such as 1,1,1") from None

    def _items(self) -> list[dict[str, Any]]:
        # Each triple is seen once, as long as there are enough.
        return examples("summary", min(self.steps_ * self.batch_, 4000), 1, words=self.words_, seed=self.seed)

    def _jobs(self) -> list[EvalTask]:
        quick = self.quick
        docs = tasks.documentation(self.words_, self.seed)
        search = tasks.retrieval(
            "pydocs",
            self.queries or (10 if quick else 60),
            self.passages or (40 if quick else 300),
            words=self.words_,
            seed=self.seed,
        )
        jobs = [
            EvalTask.retrieval(search),
            agreement(docs.test(self.lists_, self.candidates_), self.generation_temperature),
            likelihood([entry.text for entry in docs.pairs(8 if quick else 60, held_out=True)]),
        ]
        if self.sts:
            pairs = tasks.sts(self.sts, (30 if quick else 300) if self.pairs == -1 else self.pairs, self.seed)
            jobs.append(EvalTask.sts(pairs, Path(self.sts).name))
        return jobs

    def _candidates(self, items: Sequence[Any]) -> list[ModelArm]:
        from broadsheet.embed.base import Embedder, embedder

        def untrained() -> Embedder:
            return embedder(
                self.model, "mean", max_seq_length=128, device=self.device or None, dtype=self.dtype or None
            )

        made = [ModelArm(UNTRAINED, untrained, "sibling", "before training")]
        for name in ARMS:
            role: Role = "baseline" if name == CONTRASTIVE else "method" if name.startswith("GRL") else "sibling"
            source = trained(self._folder(name), self._training(name, items), dtype=self.dtype or None)
            made.append(ModelArm(name, source, role, _ABOUT[name]))
        return made

    def _training(self, name: str, items: Sequence[Any]) -> Any:
        from broadsheet.embed.base import embedder
        from broadsheet.embed.fitting import fit
        from broadsheet.embed.ullme import GRL

        def train(out: Path) -> object:
            say(f"training: {name}")
            model = embedder(
                self.model, "mean", attention="bidirectional", max_seq_length=128, device=self.device or None
            )
            objective = GRL(
                model,
                weights=self.weights_,
                temperature=self.temperature,
                generation_temperature=self.generation_temperature,
                chunk_size=self.chunk or None,
                seed=self.seed,
                **ARMS[name],
            )
            rate = self.learning_rate
            return fit(
                model,
                items,
                objective,
                out,
                steps=self.steps_,
                batch_size=self.batch_,
                learning_rate=rate,
                seed=self.seed,
            )

        return train

    def _folder(self, name: str) -> Path:
        return self.folder_ / fingerprint(name)

    def _notes(self, arms: Sequence[ArmResult], comparisons: Sequence[Comparison]) -> list[str]:
        usable = {arm.name: arm for arm in arms if arm.status == "ok"}
        notes = [training_note(name, self._folder(name)) for name in ARMS if name in usable]
        notes.append(
            "All trained arms take the same triples in the same order; steps are equal, work is not: the tokens above "
            "are those that are embedded, written passages and the reference's reading come on top."
        )
        if GRL_CODE in usable:
            top = np.asarray(usable[GRL_CODE].samples["sharpness"])
            notes.append(
                f"Over {self.candidates_} candidates the generator gives its first {top.mean():.2f} of the probability "
                f"(1/{self.candidates_} = {1 / self.candidates_:.2f} would be no opinion) at a temperature of "
                f"{self.generation_temperature:g}: that is all that the KL has to teach."
            )
        found = [c for c in comparisons if (c.metric, c.baseline, c.arm) == ("nDCG@10", CONTRASTIVE, GRL_CODE)]
        if found and found[0].verdict != "helps":
            notes.append(
                "The gain in retrieval that the paper reports is absent here. Its models are 10 to 60 times as large "
                "and train for thousands of steps; a generator that hardly tells passages apart has little to teach."
            )
        return notes


_PAIRS = [(DPO, GRL_CODE), (DPO, GRL_PAPER), (UNTRAINED, CONTRASTIVE), (UNTRAINED, GRL_CODE)]


def agreement(lists: Sequence[RankList], temperature: float = 1.0) -> EvalTask:
    """Queries with candidates, ranked by cosine and by mean log-likelihood: Kendall's τ between the two.

    The second output, "sharpness", is the share that the generator's softmax, at `temperature`, gives its first
    candidate.
    """

    def arm(name: str, held: LazyModel, role: Role, said: str, _: Path) -> Arm:
        return Arm(name, lambda block: _both_rankings(held, block, temperature), role, said, prepare=held.prepare)

    about = (
        f"{len(lists)} held-out queries, {len(lists[0].ids)} candidates each by BM25, ranked by cosine and by writing"
    )
    content = fingerprint([[each.query, list(each.documents)] for each in lists])
    return EvalTask("agreement", lists, [TAU], arm, 1 + len(lists[0].ids), about, content)


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


def likelihood(texts: Sequence[str]) -> EvalTask:
    """Texts to their loss as the model writes them: perplexity per token, which training must not ruin."""
    from broadsheet.embed.trials.perplexity import perplexity_of, text_losses

    metric = Metric("perplexity", of="losses", statistic=perplexity_of, higher_is_better=False, bounds=(1, np.inf))

    def arm(name: str, held: LazyModel, role: Role, said: str, _: Path) -> Arm:
        from broadsheet.embed.base import Embedder

        def run(block: Sequence[str]) -> Outputs:
            return {"losses": text_losses(cast(Embedder, held()).encoder, block)}  # type: ignore[dict-item]

        return Arm(name, run, role, said, prepare=held.prepare)

    about = f"{len(texts)} held-out passages, read as the model would write them"
    return EvalTask("perplexity", texts, [metric], arm, 1, about, fingerprint(list(texts)))
