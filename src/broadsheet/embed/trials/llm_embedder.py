"""Try LLM-Embedder: is what an embedder fetches what makes the next text likelier, once a language model taught it so?

Knows: long documents, the scorer, the losses, the A/B engine. No labels are needed: the text itself says what follows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet import models
from broadsheet.apply.corpus import map_corpus
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, at_least, say
from broadsheet.data import corpora
from broadsheet.embed.data.chunks import Continuation, continuations
from broadsheet.embed.trials.base import LazyModel, clear, trained, training_note, workdir
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Metric, Outputs, run_arms
from broadsheet.trial.results import ArmResult, Role, TrialResult

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.data.corpora import Document
    from broadsheet.embed.data.feedback import LikelihoodScorer
    from broadsheet.embed.llm_embedder import LLMEmbedder

BASE, INFONCE, KL, GRADED = "untrained", "InfoNCE", "KL distillation", "graded distillation"
NOTHING, RANDOM, WORDS, BEST = "no chunk", "random chunk", "BM25's first", "the teacher's best"
METRICS = [Metric("log-likelihood", unit="nats/token"), Metric("nDCG@10", bounds=(0, 1))]
_BLOCK = 8


@dataclass(frozen=True)
class Scored:
    """A continuation, and how likely the language model finds it with each candidate, and with none."""

    case: Continuation
    scores: list[float]
    alone: float

    @property
    def best(self) -> int:
        """The candidate that helps most."""
        return int(np.argmax(self.scores))


@dataclass
class LLMEmbedderTrial:
    """Chunks of long documents: does an embedder taught by a language model fetch what that model predicts better with?

    A query is a chunk, the wanted output the text right after it, and the candidates are earlier chunks of the document
    and chunks of others, found by BM25. The model's mean log-likelihood of the output given each candidate teaches, on
    training documents, three embedders for equal steps: by the best candidate as a hard label (InfoNCE), by KL, and by
    the graded loss. On documents of other packages it is then asked how likely the output is with the chunk that each
    puts first. With no chunk, a random one, and the best one there is, the scale is known.

    Options:
        --queries N: in the test (64; with --quick 12).
        --train N: queries to train on (96; with --quick 16).
        --candidates N: of a query (8; with --quick 4).
        --chunk N, --output N: tokens of a chunk and of the output (64 and 24; the paper 128 and 128).
        --encoder FOLDER: the embedder, as a sentence-transformers folder; the model's own mean pooling by default.
        --layer N: that mean pooling reads and training reaches (a third of the model's layers).
        --group N: keys of a query in training, the positive included (5; with --quick 3; the paper 8).
        --steps N: of training, each arm (24; with --quick 2).
        --batch N: queries of a step (8; with --quick 4).
        --margin N: leave out training queries whose candidates differ by less, in nats (0; the paper 0.1).
        --temperature N: τ of cosines (0.01).
        --learning-rate N: (2e-4 for adapters, 2e-5 with --full).
        --full: train all weights instead of adapters, as is done with --encoder.
        --device NAME, --dtype NAME: of the language model that scores (bfloat16 where the device computes in it).
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    queries: int = 0
    train: int = 0
    candidates: int = 0
    chunk: int = 64
    output: int = 24
    encoder: str = ""
    layer: int = 0
    group: int = 0
    steps: int = 0
    batch: int = 0
    margin: float = 0.0
    temperature: float = 0.01
    learning_rate: float = 0.0
    full: bool = False
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Cut the documents, have the model score, train the embedders, run the arms, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        self._complete()
        scorer = self._scorer()
        cases = {test: self._cases(scorer, test) for test in (False, True)}
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": models.fingerprint(scorer.model)},
            "data": {
                "name": self.data,
                "fingerprint": fingerprint([[asdict(c) for c in cases[test]] for test in cases]),
            },
        }
        if self.encoder:
            facts["encoder"] = {"name": self.encoder, "fingerprint": _fingerprint(self._start())}
        self.folder_ = workdir("llm_embedder", versions(), facts, asdict(self))
        taught = self._score(scorer, cases[False], "train")
        asked = self._score(scorer, cases[True], "test")
        dtype = str(scorer.model.dtype).removeprefix("torch.")
        place = str(scorer.model.device)
        del scorer
        arms, comparisons = run_arms(
            self._arms(taught, asked),
            range(len(asked)),
            METRICS,
            block_size=_BLOCK,
            pairs=[(INFONCE, GRADED), (KL, GRADED), (NOTHING, BASE), (RANDOM, BASE), (WORDS, GRADED), (GRADED, BEST)],
            item="query",
            seed=self.seed,
            journal=self.folder_ / "arms.jsonl",
        )
        model = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        return TrialResult(
            paper="llm_embedder",
            title="LLM-Embedder: fetch what makes the next text likelier",
            question=f"Does {model} predict text better from the chunk that an embedder fetches which it has taught?",
            setting={
                "model": model,
                "embedder": self.encoder or f"mean pooling of the same model, layer {self._layer(None)}",
                "data": f"{self.data}: {len(taught)} queries to train on, {len(asked)} of other packages or documents",
                "candidates": f"{self.candidates} chunks of {self.chunk} tokens, at most half from the same document; "
                f"the output is {self.output} tokens",
                "training": f"{self.steps} steps of {self.batch} queries with {self.group} keys each, temperature "
                f"{self.temperature:g}, margin {self.margin:g}",
                "dtype": dtype,
                "device": place,
            },
            arms=arms,
            comparisons=comparisons,
            item="query",
            claims=[
                ("log-likelihood", BASE, GRADED),
                ("log-likelihood", INFONCE, GRADED),
                ("nDCG@10", BASE, GRADED),
            ],
            notes=self._notes(arms, taught, asked),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _complete(self) -> None:
        small = self.quick
        self.queries = self.queries or (12 if small else 64)
        self.train = self.train or (16 if small else 96)
        self.candidates = self.candidates or (4 if small else 8)
        self.group = self.group or (3 if small else 5)
        self.steps = self.steps or (2 if small else 24)
        self.batch = self.batch or (4 if small else 8)
        at_least(2, self, "candidates", "group")
        at_least(1, self, "queries", "train", "steps", "batch")
        if self.train < self.batch:
            raise InputError(f"got --train {self.train} for a --batch of {self.batch}; expected a batch at least")

    # What is asked

    def _scorer(self) -> LikelihoodScorer:
        from broadsheet.embed.data.feedback import LikelihoodScorer
        from broadsheet.training.weights import autocast_dtype

        loaded = models.load(self.model, device=self.device or None, dtype=self.dtype or None)
        fast = None if self.dtype else autocast_dtype("auto", loaded.model.device)
        model = loaded.model if fast is None else loaded.model.to(fast)
        return LikelihoodScorer(model, loaded.tokenizer, spec=self.model)

    def _cases(self, scorer: LikelihoodScorer, test: bool) -> list[Continuation]:
        return continuations(
            corpora.load(self.data),
            scorer.tokenizer,
            self.queries if test else self.train,
            test=test,
            chunk=self.chunk,
            output=self.output,
            candidates=self.candidates,
            seed=self.seed,
        )

    def _score(self, scorer: LikelihoodScorer, cases: Sequence[Continuation], name: str) -> list[Scored]:
        """Every candidate of every case scored; what an interrupted run has scored is kept."""
        from broadsheet.embed.data.feedback import ScoreRequest

        asked, scored = self.folder_ / f"{name}.jsonl", self.folder_ / f"{name}-scored.jsonl"
        if not scored.exists():
            with atomic_write(asked) as file:
                file.writelines(json.dumps(asdict(case) | {"text": case.query}) + "\n" for case in cases)

            def score(batch: list[Document]) -> list[dict[str, Any]]:
                given = [(doc.text, doc.metadata["output"], [*doc.metadata["keys"], None]) for doc in batch]
                found = scorer.score_batch([ScoreRequest(*each, task="lrlm") for each in given])
                return [{"scores": row[:-1], "alone": row[-1]} for row in found]

            say(f"{self.model} scores {len(cases) * (self.candidates + 1):,} continuations to {name}")
            map_corpus(corpora.load(asked), scored, score, batch_size=8, settings=scorer.settings())
        rows = [json.loads(line) for line in scored.read_text(encoding="utf-8").splitlines()]
        return [Scored(case, row["scores"], row["alone"]) for case, row in zip(cases, rows, strict=True)]

    # The embedders

    def _start(self) -> SentenceTransformer:
        from broadsheet.embed.base import embedder, load

        if self.encoder:
            return load(self.encoder, device=self.device or None)
        loaded = models.load(self.model, device=self.device or None, dtype="float32")
        return embedder(loaded, "mean", layer=self._layer(loaded), normalize=True)

    def _layer(self, loaded: models.Loaded | None) -> int:
        from broadsheet.embed.modules.layers import decoder_layers

        if loaded is not None:
            self._depth = len(decoder_layers(loaded.model))
        return self.layer or max(1, self._depth // 3)

    def _method(self, distill: Any) -> LLMEmbedder:
        from broadsheet.embed.data.groups import GroupConfig
        from broadsheet.embed.llm_embedder import LLMEmbedder, Task

        group = GroupConfig(
            select_positive="teacher", teacher_scores_margin=self.margin or None, stable_distill=distill == "graded"
        )
        weight = 0.2 if distill == "none" else 0.0
        task = Task(group, distill, weight, teacher_temperature=0.1 if distill == "kl" else 1.0)
        return LLMEmbedder({"lrlm": task}, self.group, self.temperature)

    def _arms(self, taught: Sequence[Scored], asked: Sequence[Scored]) -> list[Arm]:
        rows = [
            {"query": s.case.query, "task": "lrlm", "history": list(s.case.keys), "teacher_scores": s.scores}
            for s in taught
        ]
        whole = self.full or bool(self.encoder)
        arms = [fetching_arm(BASE, LazyModel(self._start), asked, "baseline", "as it is, without task prompts")]
        for name, distill, role, about in (
            (INFONCE, "none", "sibling", "the teacher's best as a hard label"),
            (KL, "kl", "sibling", "the teacher's distribution over a query's keys, temperature 0.1"),
            (GRADED, "graded", "method", "the teacher's order, against other queries' keys too"),
        ):

            def train(out: Path, name: str = name, distill: str = distill) -> Any:
                say(f"training {self.steps} steps: {name}")
                return self._method(distill).fit(
                    self._start(),
                    rows,
                    out,
                    steps=self.steps,
                    batch_size=self.batch,
                    method="full" if whole else "lora",
                    learning_rate=self.learning_rate or None,
                    merge=not whole,
                    seed=self.seed,
                )

            source = trained(self.folder_ / distill, train, dtype=None)
            arms.append(fetching_arm(name, LazyModel(source), asked, role, about, task="lrlm"))  # type: ignore[arg-type]
        return [*arms, *_yardsticks(asked, self.seed)]

    def _notes(self, arms: Sequence[ArmResult], taught: Sequence[Scored], asked: Sequence[Scored]) -> list[str]:
        spread = float(np.mean([max(s.scores) - min(s.scores) for s in taught]))
        weights = [np.exp(s.scores) / np.exp(s.scores).sum() for s in taught]
        gain = float(np.mean([max(s.scores) - s.alone for s in asked]))
        notes = [
            f"What there is to gain: the best of {self.candidates} candidates makes the output {gain:.3f} nats a token "
            f"likelier than no chunk. Best and worst candidate differ by {spread:.3f} nats on average in training, so "
            f"the graded loss, which takes the scores without a temperature, gives the best key a weight of "
            f"{np.mean([row.max() for row in weights]):.2f} where {1 / self.candidates:.2f} would be even."
        ]
        usable = {arm.name: arm for arm in arms if arm.status == "ok"}
        if {BASE, BEST, NOTHING} <= usable.keys():
            low, high = (float(np.mean(usable[name].samples["log-likelihood"])) for name in (NOTHING, BEST))
            shares = [
                f"{name} {(float(np.mean(usable[name].samples['log-likelihood'])) - low) / (high - low):.0%}"
                for name in (BASE, INFONCE, KL, GRADED, WORDS, RANDOM)
                if name in usable and high > low
            ]
            notes.append(f"Share of that gain that is reached: {', '.join(shares)}.".replace("-", "−"))
        for name, folder in ((INFONCE, "none"), (KL, "kl"), (GRADED, "graded")):
            if (self.folder_ / folder / "training.json").exists():
                notes.append(training_note(name, self.folder_ / folder))
        return notes


def fetching_arm(
    name: str, held: LazyModel, asked: Sequence[Scored], role: Role = "method", description: str = "", *, task: str = ""
) -> Arm:
    """Places in `asked` to the log-likelihood with the candidate put first, and nDCG@10 of the teacher's best.

    Args:
        task: whose prompts the embedder is given; none by default.
    """

    def encode(texts: list[str], side: str) -> Any:
        prompt = f"{task}-{side}" if task else None
        vectors = np.asarray(held().encode(texts, prompt_name=prompt, show_progress_bar=False), dtype=np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def prepare() -> None:
        held()

    def run(block: Sequence[int]) -> Outputs:
        keys = list(dict.fromkeys(key for i in block for key in asked[i].case.keys))
        where = {key: place for place, key in enumerate(keys)}
        queries, vectors = encode([asked[i].case.query for i in block], "query"), encode(keys, "key")
        orders = [
            np.argsort(-(vectors[[where[key] for key in asked[i].case.keys]] @ query), kind="stable").tolist()
            for i, query in zip(block, queries, strict=True)
        ]
        return _outputs([asked[i] for i in block], orders)

    return Arm(name, run, role, description, prepare=prepare)


def _outputs(asked: Sequence[Scored], orders: Sequence[Sequence[int]]) -> Outputs:
    places = [list(order).index(each.best) for each, order in zip(asked, orders, strict=True)]
    return {
        "log-likelihood": [each.scores[order[0]] for each, order in zip(asked, orders, strict=True)],
        "nDCG@10": [1 / np.log2(2 + place) if place < 10 else 0.0 for place in places],
    }


def _yardsticks(asked: Sequence[Scored], seed: int) -> list[Arm]:
    """Arms that fetch without an embedder: nothing, anything, what shares words, and what is best."""

    def shuffled(each: Scored) -> list[int]:
        count = len(each.scores)
        return random.Random(f"{seed}/{each.case.id}").sample(range(count), count)

    def nothing(block: Sequence[int]) -> Outputs:
        return {"log-likelihood": [asked[i].alone for i in block], "nDCG@10": [0.0] * len(block)}

    orders = {
        RANDOM: shuffled,
        WORDS: lambda each: list(range(len(each.scores))),
        BEST: lambda each: sorted(range(len(each.scores)), key=lambda i: -each.scores[i]),
    }
    abouts = {
        RANDOM: "of the candidates",
        WORDS: "the candidates as they were found",
        BEST: "the most there is to gain",
    }
    arms = [Arm(NOTHING, nothing, "sibling", "the query alone; its empty ranking counts 0")]
    for name, order in orders.items():

        def run(block: Sequence[int], order: Any = order) -> Outputs:
            return _outputs([asked[i] for i in block], [order(asked[i]) for i in block])

        arms.append(Arm(name, run, "sibling", abouts[name]))
    return arms


def _fingerprint(model: SentenceTransformer) -> str:
    lm = getattr(model[0], "model", None)
    return models.fingerprint(model.transformers_model if lm is None else lm)
