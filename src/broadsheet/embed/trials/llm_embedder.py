"""Try LLM-Embedder: is what an embedder fetches what makes the next text likelier, once a language model taught it so?

Knows: long documents, the scorer, the losses. No labels are needed: the text itself says what follows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.apply.corpus import map_corpus
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.embed.data.chunks import Continuation, continuations
from broadsheet.embed.trials.base import training_note
from broadsheet.options import option
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.examples import ending, excerpt, most_apart
from broadsheet.trial.results import ArmResult, Example
from broadsheet.trial.trained.arms import TrainedTrial

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.data.corpora import Document
    from broadsheet.embed.data.feedback import LikelihoodScorer
    from broadsheet.embed.llm_embedder import LLMEmbedder

BASE, INFONCE, KL, GRADED = "untrained", "InfoNCE", "KL distillation", "graded distillation"
NOTHING, RANDOM, WORDS, BEST = "no chunk", "random chunk", "BM25's first", "the teacher's best"
METRICS = [Metric("log-likelihood", unit="nats/token"), Metric("nDCG@10", bounds=(0, 1))]
# How each trained embedder is taught.
TAUGHT = {
    INFONCE: ("none", "the teacher's best as a hard label"),
    KL: ("kl", "the teacher's distribution over a query's keys, temperature 0.1"),
    GRADED: ("graded", "the teacher's order, against other queries' keys too"),
}
# What fetches without an embedder.
YARDSTICKS = {
    NOTHING: "the query alone; its empty ranking counts 0",
    RANDOM: "of the candidates",
    WORDS: "the candidates as they were found",
    BEST: "the most there is to gain",
}


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
class LLMEmbedderTrial(TrainedTrial):
    """Chunks of long documents: does an embedder taught by a language model fetch what that model predicts better with?

    A query is a chunk, the wanted output the text right after it, and the candidates are earlier chunks of the document
    and chunks of others, found by BM25. The model's mean log-likelihood of the output given each candidate teaches, on
    training documents, three embedders for equal steps: by the best candidate as a hard label (InfoNCE), by KL, and by
    the graded loss. On documents of other packages it is then asked how likely the output is with the chunk that each
    puts first. With no chunk, a random one, and the best one there is, the scale is known.
    """

    paper: ClassVar[str] = "llm_embedder"
    title: ClassVar[str] = "LLM-Embedder: fetch what makes the next text likelier"

    queries: int = option(64, "In the test.", quick=12, least=1)
    train: int = option(96, "Queries to train on.", quick=16, least=1)
    candidates: int = option(8, "Of a query.", quick=4, least=2)
    chunk: int = option(64, "Tokens of a chunk (the paper: 128).", least=1)
    output: int = option(24, "Tokens of the output (the paper: 128).", least=1)
    encoder: str | None = option(
        None,
        "The embedder, as a sentence-transformers folder; the model's own mean pooling by default.",
        metavar="FOLDER",
    )
    layer: int | None = option(
        None, "That mean pooling reads and training reaches; by default a third of the model's.", least=1
    )
    group: int = option(5, "Keys of a query in training, the positive included (the paper: 8).", quick=3, least=2)
    steps: int = option(24, "Of training, each arm.", quick=2, least=1)
    batch: int = option(8, "Queries of a step.", quick=4, least=1)
    teacher_scores_margin: float = option(
        0.0, "Leave out training queries whose candidates differ by less, in nats (the paper: 0.1).", least=0
    )
    temperature: float = option(0.01, "τ of cosines.", least=1e-6)
    learning_rate: float | None = option(None, "By default 2e-4 for adapters, 2e-5 for all weights.", least=0)
    tune: Literal["lora", "full"] = option("lora", "Train adapters, or all weights, as is done with --encoder.")

    def check(self) -> None:
        if self.train < self.batch:
            raise InputError(f"got --train {self.train} for a --batch of {self.batch}; expected a batch at least")

    def question(self) -> str:
        return f"Does {self.model_name} predict text better from chunks fetched by an embedder that it has taught?"

    def tasks(self) -> list[EvalTask]:
        from broadsheet.embed.modules.layers import decoder_layers

        self._scorer: LikelihoodScorer | None = self._load_scorer()
        self._depth = len(decoder_layers(self._scorer.model))
        self._dtype, self._place = str(self._scorer.model.dtype).removeprefix("torch."), str(self._scorer.model.device)
        self._cases = {test: self._cut(self._scorer, test) for test in (False, True)}
        return [
            EvalTask(
                "fetching",
                range(len(self._cases[True])),
                METRICS,
                self._arm,
                item="query",
                about=f"{self.data}: {len(self._cases[False])} queries to train on, {len(self._cases[True])} of other "
                "packages or documents",
                fingerprint=fingerprint([[asdict(case) for case in cases] for cases in self._cases.values()]),
                block_size=8,
                examples=self._fetched,
            )
        ]

    def facts(self) -> dict[str, Any]:
        assert self._scorer
        known = {"model": {"name": self.model, "fingerprint": models.fingerprint(self._scorer.model)}}
        if self.encoder:
            known["encoder"] = {"name": self.encoder, "fingerprint": _fingerprint(self._start())}
        return known

    def setting(self) -> Mapping[str, Any]:
        return {
            "embedder": self.encoder or f"mean pooling of the same model, layer {self._layer}",
            "candidates": f"{self.candidates} chunks of {self.chunk} tokens, at most half from the same document; the "
            f"output is {self.output} tokens",
            "training": f"{self.steps} steps of {self.batch} queries with {self.group} keys each, temperature "
            f"{self.temperature:g}, margin {self.teacher_scores_margin:g}",
            "dtype": self._dtype,
            "device": self._place,
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.base import load
        from broadsheet.embed.llm_embedder import LLMEmbedder

        assert self._scorer
        self._taught = self._score(self._scorer, self._cases[False], "train")
        self._asked = self._score(self._scorer, self._cases[True], "test")
        self._scorer = None  # its memory is free for training
        made = [ModelArm(BASE, self._start, "baseline", "as it is, without task prompts")]
        for name, (distill, about) in TAUGHT.items():
            paper = LLMEmbedder.paper if name == GRADED else ""
            made.append(self.trained(name, partial(self._train, distill), load, None, about, paper))
        return [*made, *(ModelArm(name, lambda: None, description=about) for name, about in YARDSTICKS.items())]

    def claims(self) -> list[Claim]:
        # The paper starts from BGE, a trained retriever; the model's own mean pooling is an untrained one.
        kind: Literal["claim", "control"] = "claim" if self.encoder else "control"
        # Long-range language modelling: a perplexity of 6.134 with BGE, 6.097 with LLM-Embedder: ln 6.134 − ln 6.097.
        likelier = 0.0060
        return [
            Claim("log-likelihood", BASE, GRADED, "what it fetches makes the output likelier", likelier, kind),
            Claim("log-likelihood", INFONCE, GRADED, "the teacher's grades teach more than its best alone"),
            Claim("nDCG@10", BASE, GRADED, "it fetches what the teacher finds best", kind=kind),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        return [(KL, GRADED), (NOTHING, BASE), (RANDOM, BASE), (WORDS, GRADED), (GRADED, BEST)]

    def notes(self, outcome: Outcome) -> list[str]:
        taught, asked, usable = self._taught, self._asked, outcome.usable
        spread = float(np.mean([max(s.scores) - min(s.scores) for s in taught]))
        weights = [np.exp(s.scores) / np.exp(s.scores).sum() for s in taught]
        gain = float(np.mean([max(s.scores) - s.alone for s in asked]))
        notes = [
            f"What there is to gain: the best of {self.candidates} candidates makes the output {gain:.3f} nats a token "
            f"likelier than no chunk. Best and worst candidate differ by {spread:.3f} nats on average in training, so "
            f"the graded loss, which takes the scores without a temperature, gives the best key a weight of "
            f"{np.mean([row.max() for row in weights]):.2f} where {1 / self.candidates:.2f} would be even."
        ]
        if {BASE, BEST, NOTHING} <= usable.keys():
            mean = {name: float(np.mean(arm.samples["log-likelihood"])) for name, arm in usable.items()}
            low, high = mean[NOTHING], mean[BEST]
            shares = [
                f"{name} {(mean[name] - low) / (high - low):.0%}"
                for name in (BASE, INFONCE, KL, GRADED, WORDS, RANDOM)
                if name in mean and high > low
            ]
            notes.append(f"Share of that gain that is reached: {', '.join(shares)}.".replace("-", "−"))
        return notes + [
            training_note(name, self.folder(name)) for name in TAUGHT if (self.folder(name) / "training.json").exists()
        ]

    # What is asked

    def _load_scorer(self) -> LikelihoodScorer:
        from broadsheet.embed.data.feedback import LikelihoodScorer
        from broadsheet.training.weights import autocast_dtype

        loaded = models.load(self.model, device=self.device, dtype=self.dtype)
        fast = None if self.dtype else autocast_dtype("auto", loaded.model.device)
        model = loaded.model if fast is None else loaded.model.to(fast)
        return LikelihoodScorer(model, loaded.tokenizer, spec=self.model)

    def _cut(self, scorer: LikelihoodScorer, test: bool) -> list[Continuation]:
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

        asked, scored = self.workdir / f"{name}.jsonl", self.workdir / f"{name}-scored.jsonl"
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

    def _fetched(self, asked: Sequence[int], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Queries with the chunk that each arm fetches, and how likely that makes what follows."""
        known = {name: arm for name, arm in arms.items() if name not in (NOTHING, BEST)}
        fetched = [{name: int(arm.samples["fetched"][i]) for name, arm in known.items()} for i in range(len(asked))]
        found = []
        for place in most_apart([{name: str(chunk) for name, chunk in row.items()} for row in fetched]):
            scored = self._asked[asked[place]]
            told = {
                name: f"{scored.scores[chunk] - scored.alone:+.2f} nats a token, by: {excerpt(scored.case.keys[chunk])}"
                for name, chunk in fetched[place].items()
            }
            best = (
                f"Most: {scored.scores[scored.best] - scored.alone:+.2f}, by: {excerpt(scored.case.keys[scored.best])}"
            )
            found.append(
                Example(f"{ending(scored.case.query)}\n[what follows] {excerpt(scored.case.output)}", told, best)
            )
        return found

    # The embedders

    def _start(self) -> SentenceTransformer:
        from broadsheet.embed.base import embedder, load

        if self.encoder:
            return load(self.encoder, device=self.device)
        loaded = models.load(self.model, device=self.device, dtype="float32")
        return embedder(loaded, "mean", layer=self._layer, normalize=True)

    @property
    def _layer(self) -> int:
        return self.layer or max(1, self._depth // 3)

    def _taught_by(self, distill: Any) -> LLMEmbedder:
        from broadsheet.embed.data.groups import GroupConfig
        from broadsheet.embed.llm_embedder import LLMEmbedder, Task

        group = GroupConfig(
            select_positive="teacher",
            teacher_scores_margin=self.teacher_scores_margin or None,
            stable_distill=distill == "graded",
        )
        weight = 0.2 if distill == "none" else 0.0
        task = Task(group, distill, weight, teacher_temperature=0.1 if distill == "kl" else 1.0)
        return LLMEmbedder({"lrlm": task}, self.group, self.temperature)

    def _train(self, distill: str, seed: int, out: Path) -> Any:
        rows = [
            {"query": s.case.query, "task": "lrlm", "history": list(s.case.keys), "teacher_scores": s.scores}
            for s in self._taught
        ]
        whole = self.tune == "full" or bool(self.encoder)
        return self._taught_by(distill).fit(
            self._start(),
            rows,
            out,
            steps=self.steps,
            batch_size=self.batch,
            method="full" if whole else "lora",
            learning_rate=self.learning_rate,
            merge=not whole,
            seed=seed,
        )

    def _arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        if arm.name in YARDSTICKS:
            return _yardstick(arm, self._asked, self.seed)
        return fetching_arm(arm, model, self._asked, task="" if arm.name == BASE else "lrlm")


def fetching_arm(arm: ModelArm, model: LazyModel, asked: Sequence[Scored], *, task: str = "") -> Arm:
    """Places in `asked` to the log-likelihood with the candidate put first, and nDCG@10 of the teacher's best.

    Args:
        task: whose prompts the embedder is given; none by default.
    """

    def encode(texts: list[str], side: str) -> Any:
        prompt = f"{task}-{side}" if task else None
        vectors = np.asarray(model().encode(texts, prompt_name=prompt, show_progress_bar=False), dtype=np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def run(block: Sequence[int]) -> Outputs:
        keys = list(dict.fromkeys(key for i in block for key in asked[i].case.keys))
        where = {key: place for place, key in enumerate(keys)}
        queries, vectors = encode([asked[i].case.query for i in block], "query"), encode(keys, "key")
        orders = [
            np.argsort(-(vectors[[where[key] for key in asked[i].case.keys]] @ query), kind="stable").tolist()
            for i, query in zip(block, queries, strict=True)
        ]
        return _outputs([asked[i] for i in block], orders)

    return Arm(arm.name, run, description=arm.description, prepare=model.prepare)


def _outputs(asked: Sequence[Scored], orders: Sequence[Sequence[int]]) -> Outputs:
    places = [list(order).index(each.best) for each, order in zip(asked, orders, strict=True)]
    return {
        "fetched": [int(order[0]) for order in orders],
        "log-likelihood": [each.scores[order[0]] for each, order in zip(asked, orders, strict=True)],
        "nDCG@10": [1 / np.log2(2 + place) if place < 10 else 0.0 for place in places],
    }


def _yardstick(arm: ModelArm, asked: Sequence[Scored], seed: int) -> Arm:
    """An arm that fetches without an embedder: nothing, anything, what shares words, or what is best."""

    def order(each: Scored) -> list[int]:
        count = len(each.scores)
        if arm.name == RANDOM:
            return random.Random(f"{seed}/{each.case.id}").sample(range(count), count)
        return list(range(count)) if arm.name == WORDS else sorted(range(count), key=lambda i: -each.scores[i])

    def run(block: Sequence[int]) -> Outputs:
        if arm.name == NOTHING:
            return {"log-likelihood": [asked[i].alone for i in block], "nDCG@10": [0.0] * len(block)}
        return _outputs([asked[i] for i in block], [order(asked[i]) for i in block])

    return Arm(arm.name, run, description=arm.description)


def _fingerprint(model: SentenceTransformer) -> str:
    lm = getattr(model[0], "model", None)
    return models.fingerprint(model.transformers_model if lm is None else lm)
