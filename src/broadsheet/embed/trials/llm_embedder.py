"""Try LLM-Embedder: is what an embedder fetches what makes the output likelier, once a language model taught it so?

Knows: long documents, documentation, the scorer, the losses. Text itself says what follows it, and the summary of a
docstring what its body says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
from broadsheet.data.pydocs import is_pydocs
from broadsheet.embed.data.chunks import Continuation, continuations
from broadsheet.embed.data.doc_tasks import answers
from broadsheet.embed.trials.base import training_note
from broadsheet.embed.trials.fetching import (
    ANSWERS,
    BEST,
    NOTHING,
    RANDOM,
    TEXT,
    WORDS,
    YARDSTICKS,
    Kind,
    Scored,
    examples_of,
    fetching_arm,
    yardstick,
)
from broadsheet.models.sentences import sentences_fingerprint
from broadsheet.options import best_of, option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.data.corpora import Document
    from broadsheet.embed.data.feedback import LikelihoodScorer
    from broadsheet.embed.llm_embedder import Distill, LLMEmbedder

BASE, INFONCE, PEER = "untrained", "InfoNCE", "DistillKLDivLoss"
MAIN, SWEPT = "LLM-Embedder", "LLM-Embedder, sharp grades"
# How each trained embedder is taught: the distillation of running text and of answers.
TAUGHT: dict[str, tuple[Distill, Distill, str]] = {
    INFONCE: ("none", "none", "hard labels: the teacher's best for running text, the right body for answers"),
    PEER: ("kl", "kl", "sentence-transformers' loss on the same keys: the teacher's distribution, temperature 0.1"),
    MAIN: ("kl", "graded", "the paper's: KL for running text; for answers the teacher's order, temperature 1"),
    SWEPT: ("kl", "graded", "the same, the temperature of answers' grades chosen"),
}
RATES = {"full": (1e-5, 3e-5, 1e-4), "lora": (1e-4, 3e-4, 1e-3)}  # that each arm's is chosen from
TEMPERATURES = (0.3, 0.1, 0.03)  # of the grades, that SWEPT's is chosen from
LEAST = 0.02  # nats a token of an answer
_FETCHED = 0.21  # nats a token that what MiniLM fetches adds to running text, on documents to train on
_TUNING = 120  # queries of each kind
_OWN = "model"  # in the place of an encoder


@dataclass
class LLMEmbedderTrial(TrainedTrial):
    """Does an embedder that a language model has taught fetch what that model predicts better with?

    Running text: a query is a chunk of a long document, the wanted output the text right after it, the candidates
    earlier chunks of the document and chunks of others. Answers: a query asks what a function does, the output is its
    summary, the candidates are bodies of docstrings. BM25 finds the candidates. The model's mean log-likelihood of the
    output given each candidate teaches, on training documents and each task with its own loss, embedders for equal
    steps: by hard labels; by sentence-transformers' KL; as the paper does; and as the paper does with sharper grades.
    Each has its best learning rate. For running text the paper's loss is that KL. On packages that no training saw it
    is then asked how likely the output is with the candidate that each puts first. With none, a random one, and the
    best one there is, the scale is known. Data other than pydocs ask for running text alone.
    """

    paper: ClassVar[str] = "llm_embedder"
    title: ClassVar[str] = "LLM-Embedder: fetch what makes the output likelier"

    queries: int = option(750, "In the test, of each kind.", quick=12, least=1)
    train: int = option(500, "Queries to train on, of each kind.", quick=16, least=1)
    candidates: int = option(8, "Of a query.", quick=4, least=2)
    chunk: int = option(64, "Tokens of a chunk (the paper: 128).", least=1)
    output: int = option(24, "Tokens of running text's output (the paper: 128).", least=1)
    words: int = option(40, "Of a body that may hold the answer.", least=1)
    encoder: str = option(
        "resource:minilm",
        "The embedder: a folder of sentence-transformers, a resource, or `model` for the model's own mean pooling.",
        metavar="NAME",
    )
    layer: int | None = option(
        None, "That mean pooling reads and training reaches; by default a third of the model's.", least=1
    )
    group: int = option(8, "Keys of a query in training, the positive included.", quick=3, least=2)
    steps: int = option(60, "Of training, each arm.", quick=2, least=1)
    batch: int = option(16, "Queries of a step.", quick=4, least=1)
    teacher_scores_margin: float = option(
        0.1, "Leave out queries of running text whose candidates differ by less, in nats.", quick=0.0, least=0
    )
    temperature: float = option(0.01, "τ of cosines.", least=1e-6)
    learning_rate: float | None = option(
        None,
        f"By default {best_of(RATES['full'])} for each arm (of adapters ten "
        "times that), by other queries of the training packages.",
        quick=3e-5,
        least=0,
    )
    tune: Literal["lora", "full"] = option("lora", "Of `--encoder model`: train adapters, or all weights.")

    def check(self) -> None:
        if self.train < self.batch:
            raise InputError(f"got --train {self.train} for a --batch of {self.batch}; expected a batch at least")

    def question(self) -> str:
        return f"Does {self.model_name} predict better from what is fetched by an embedder that it has taught?"

    def tasks(self) -> list[EvalTask]:
        from broadsheet.embed.modules.layers import decoder_layers

        self._scorer: LikelihoodScorer | None = self._load_scorer()
        self._depth = len(decoder_layers(self._scorer.model))
        self._dtype, self._place = str(self._scorer.model.dtype).removeprefix("torch."), str(self._scorer.model.device)
        self._cases = {(kind, test): self._cut(kind, test) for kind in self._kinds for test in (False, True)}
        return [self._task(kind) for kind in self._kinds]

    @property
    def _kinds(self) -> list[Kind]:
        """What is asked: answers are those of documentation."""
        return [TEXT, ANSWERS] if is_pydocs(self.data) else [TEXT]

    def _task(self, kind: Kind) -> EvalTask:
        train, test = self._cases[kind, False], self._cases[kind, True]
        return EvalTask(
            "running text" if kind is TEXT else "answers",
            range(len(test)),
            kind.measured(),
            partial(self._arm, kind),
            item="query",
            about=f"{self.data}: {len(train)} queries to train and tune on, {len(test)} of other packages or documents",
            fingerprint=fingerprint([[asdict(case) for case in cases] for cases in (train, test)]),
            block_size=8,
            examples=lambda asked, arms: examples_of(self._asked[kind], kind.shown, asked, arms),
        )

    def facts(self) -> dict[str, Any]:
        assert self._scorer
        known = {"model": {"name": self.model, "fingerprint": models.fingerprint(self._scorer.model)}}
        if self.encoder != _OWN:
            known["encoder"] = {"name": self.encoder, "fingerprint": sentences_fingerprint(self._start())}
        return known

    def setting(self) -> Mapping[str, Any]:
        return {
            "embedder": f"mean pooling of the same model, layer {self._layer}"
            if self.encoder == _OWN
            else self.encoder,
            "candidates": f"{self.candidates}; of running text chunks of {self.chunk} tokens, at most half from the "
            f"same document, before an output of {self.output} tokens; of answers bodies of at most {self.words} words",
            "training": f"{self.steps} steps of {self.batch} queries with {self.group} keys each, one task a step, "
            f"temperature {self.temperature:g}, margin {self.teacher_scores_margin:g}, learning rate "
            + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items()),
            **({"grades": f"temperature {self._sharpened:g} ({SWEPT})"} if SWEPT in self._rates else {}),
            "dtype": self._dtype,
            "device": self._place,
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.llm_embedder import LLMEmbedder

        assert self._scorer
        scored = {(kind, test): self._score(kind, test) for kind, test in self._cases}
        self._scorer = None  # its memory is free for training
        self._asked = {kind: scored[kind, True] for kind in self._kinds}
        # Others of the training packages choose the rates.
        self._taught = {kind: scored[kind, False][: self.train] for kind in self._kinds}
        self._held = {kind: scored[kind, False][self.train :] for kind in self._kinds}
        self._rates = {name: self._rate(name) for name in (INFONCE, PEER, MAIN)}
        self._sharpened = 1.0
        made = [ModelArm(BASE, partial(self._start, self.dtype), "baseline", "as it is, without task prompts")]
        if ANSWERS in self._kinds:
            self._rates[SWEPT], self._sharpened = self._rates[MAIN], self._sharpness()
        for name in self._rates:
            paper = LLMEmbedder.paper if name == MAIN else ""
            role: Any = {SWEPT: "sibling", PEER: "peer"}.get(name)
            made.append(self.trained(name, partial(self._train, name), self._load, role, TAUGHT[name][-1], paper))
        return [*made, *(ModelArm(name, lambda: None, description=about) for name, about in YARDSTICKS.items())]

    def claims(self) -> list[Claim]:
        # The paper starts from BGE, a trained retriever; the model's own mean pooling is an untrained one.
        kind: Literal["claim", "control"] = "control" if self.encoder == _OWN else "claim"
        # Long-range language modelling: a perplexity of 6.400 with nothing fetched, of 6.134 by BGE, of 6.097 by
        # LLM-Embedder, which adds a seventh to what BGE gives. Outputs are shorter here, so what is fetched gives more.
        likelier = _FETCHED * math.log(6.134 / 6.097) / math.log(6.400 / 6.134)
        fetched = "what it fetches makes {} likelier (Tables: {})"
        taught = "the model's likelihoods teach more than hard labels"
        text, answers = TEXT.metrics[0], ANSWERS.metrics[0]
        claims = [
            Claim(text, BASE, MAIN, fetched.format("the text", "perplexity 6.134 → 6.097"), kind=kind, least=likelier),
            Claim(text, INFONCE, MAIN, taught, least=likelier),
        ]
        if ANSWERS in self._kinds:
            claims += [
                Claim(answers, BASE, MAIN, fetched.format("answers", "PopQA 0.449 → 0.505"), kind=kind, least=LEAST),
                Claim(answers, INFONCE, MAIN, taught, least=LEAST),
            ]
        return claims

    def also_compare(self) -> list[tuple[str, str]]:
        pairs = [(PEER, MAIN), (NOTHING, BASE), (RANDOM, BASE), (WORDS, MAIN), (MAIN, BEST)]
        return [(SWEPT, MAIN), (BASE, SWEPT), (INFONCE, SWEPT), *pairs] if ANSWERS in self._kinds else pairs

    def notes(self, outcome: Outcome) -> list[str]:
        notes = [note for kind in self._kinds for note in self._gains(kind, outcome)]
        return notes + [
            training_note(name, self.folder(name)) for name in TAUGHT if (self.folder(name) / "training.json").exists()
        ]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        reached = ""
        values = {name: arm.values.get(claim.metric) for name, arm in outcome.usable.items()}
        mean = {name: value.estimate for name, value in values.items() if value}
        if {BEST, NOTHING} <= mean.keys() and mean[BEST] > mean[NOTHING]:
            share = (mean[claim.baseline] - mean[NOTHING]) / (mean[BEST] - mean[NOTHING])
            reached = f" {claim.baseline} reaches {share:.0%} of what the best candidates give.".replace("-", "−")
        return (
            "It trains an encoder of 110 million weights for 10,000 steps by the likelihoods of a model of 7 billion; "
            f"here it is {self.steps} steps of {self.batch} queries.{reached}"
        )

    def _gains(self, kind: Kind, outcome: Outcome) -> list[str]:
        """What there is to gain in a task, and how much of it each arm reaches."""
        taught, asked = self._taught[kind], self._asked[kind]
        spread = float(np.mean([max(s.scores) - min(s.scores) for s in taught]))
        weights = [np.exp(s.scores) / np.exp(s.scores).sum() for s in taught]
        gain = float(np.mean([max(s.scores) - s.alone for s in asked]))
        what = "running text" if kind is TEXT else "answers"
        notes = [
            f"What there is to gain in {what}: the best of {self.candidates} candidates makes the output {gain:.3f} "
            f"nats a token likelier than none. Best and worst differ by {spread:.3f} nats on average in training: "
            f"without a temperature the best has a weight of {np.mean([row.max() for row in weights]):.2f}, where "
            f"{1 / self.candidates:.2f} would be even."
        ]
        name = kind.metrics[0]
        mean = {arm: each.values[name].estimate for arm, each in outcome.usable.items() if name in each.values}
        if {BEST, NOTHING} <= mean.keys() and mean[BEST] > mean[NOTHING]:
            low, high = mean[NOTHING], mean[BEST]
            shares = [f"{arm} {(mean[arm] - low) / (high - low):.0%}" for arm in mean if arm not in (BEST, NOTHING)]
            notes.append(f"Share of that gain that is reached in {what}: {', '.join(shares)}.".replace("-", "−"))
        return notes

    # What is asked

    def _load_scorer(self) -> LikelihoodScorer:
        from broadsheet.embed.data.feedback import LikelihoodScorer
        from broadsheet.training.weights import autocast_dtype

        loaded = models.load(self.model, device=self.device, dtype=self.dtype)
        fast = None if self.dtype else autocast_dtype("auto", loaded.model.device)
        model = loaded.model if fast is None else loaded.model.to(fast)
        return LikelihoodScorer(model, loaded.tokenizer, spec=self.model)

    def _cut(self, kind: Kind, test: bool) -> list[Continuation]:
        """The queries of a task for the test, or for training and tuning."""
        assert self._scorer
        wanted = self.queries if test else self.train + (_TUNING if self.learning_rate is None else 0)
        if kind is ANSWERS:
            return answers(wanted, self.candidates, test=test, words=self.words, seed=self.seed, data=self.data)
        return continuations(
            corpora.load(self.data),
            self._scorer.tokenizer,
            wanted,
            test=test,
            chunk=self.chunk,
            output=self.output,
            candidates=self.candidates,
            seed=self.seed,
        )

    def _score(self, kind: Kind, test: bool) -> list[Scored]:
        """Every candidate of every case scored; what an interrupted run has scored is kept."""
        from broadsheet.embed.data.feedback import ScoreRequest

        assert self._scorer
        cases, scorer, name = self._cases[kind, test], self._scorer, f"{kind.task}-{'test' if test else 'train'}"
        asked, scored = self.workdir / f"{name}.jsonl", self.workdir / f"{name}-scored.jsonl"
        if not scored.exists():
            with atomic_write(asked) as file:
                file.writelines(json.dumps(asdict(case) | {"text": case.query}) + "\n" for case in cases)

            def score(batch: list[Document]) -> list[dict[str, Any]]:
                given = [(doc.text, doc.metadata["output"], [*doc.metadata["keys"], None]) for doc in batch]
                found = scorer.score_batch([ScoreRequest(*each, task=kind.task) for each in given])
                return [{"scores": row[:-1], "alone": row[-1]} for row in found]

            say(f"{self.model} scores {len(cases) * (self.candidates + 1):,} outputs: {name}")
            map_corpus(corpora.load(asked), scored, score, batch_size=8, settings=scorer.settings())
        rows = [json.loads(line) for line in scored.read_text(encoding="utf-8").splitlines()]
        return [Scored(case, row["scores"], row["alone"]) for case, row in zip(cases, rows, strict=True)]

    # The embedders

    def _load(self, folder: Path) -> SentenceTransformer:
        """A trained embedder, read back in the trial's dtype."""
        from broadsheet.embed.base import load

        return load(folder, device=self.device, dtype=self.dtype)

    def _start(self, dtype: str | None = None) -> SentenceTransformer:
        """The embedder before training; that of training computes in its own types."""
        from broadsheet.embed.base import embedder, load

        if self.encoder != _OWN:
            return load(self.encoder, device=self.device, dtype=dtype)
        loaded = models.load(self.model, device=self.device, dtype=dtype or "float32")
        return embedder(loaded, "mean", layer=self._layer, normalize=True)

    @property
    def _layer(self) -> int:
        return self.layer or max(1, self._depth // 3)

    @property
    def _whole(self) -> bool:
        """Whether all weights are trained."""
        return self.tune == "full" or self.encoder != _OWN

    def _rate(self, name: str) -> float:
        """The learning rate given, or the one by which the arm's embedder fetches best."""
        if self.learning_rate is not None:
            return self.learning_rate
        if not all(self._held.values()):
            raise InputError(f"no queries are left beside --train {self.train} to choose a rate by; give fewer")
        rates = RATES["full" if self._whole else "lora"]

        def train(rate: float, out: Path) -> Any:
            return self._fit(name, rate, 1.0, self.seed, out)

        return self.best_run(name, rates, train, self._fetches, on=self._other, open_ended=True)

    def _sharpness(self) -> float:
        """The temperature of the grades by which an embedder, at the paper's best rate, fetches best."""
        if self.learning_rate is not None:
            return TEMPERATURES[1]

        def train(temperature: float, out: Path) -> Any:
            return self._fit(SWEPT, self._rates[MAIN], temperature, self.seed, out)

        return self.best_run(SWEPT, TEMPERATURES, train, self._fetches, on=self._other, open_ended=True)

    @property
    def _other(self) -> str:
        return f"{sum(map(len, self._held.values()))} other queries"

    def _fetches(self, folder: Path) -> float:
        """The mean log-likelihood with what a trained embedder puts first, over other queries of all tasks."""
        model = LazyModel(partial(self._load, folder))
        found: list[float] = []
        for kind, held in self._held.items():
            arm = fetching_arm(ModelArm("tuning", model), model, held, task=kind.task)
            values: Any = arm.run(range(len(held)))
            found.append(float(np.mean(values["log-likelihood"])))
        return float(np.mean(found))

    def _taught_by(self, name: str, temperature: float) -> LLMEmbedder:
        from broadsheet.embed.data.groups import GroupConfig
        from broadsheet.embed.llm_embedder import LLMEmbedder, Task
        from broadsheet.embed.trials.peers import ByDistillKLDivLoss

        of_text, of_answers, _ = TAUGHT[name]
        chosen = GroupConfig(select_positive="teacher", teacher_scores_margin=self.teacher_scores_margin or None)
        labelled = GroupConfig(stable_distill=of_answers == "graded")

        def task(group: GroupConfig, distill: Distill) -> Task:
            sharp = {"kl": 0.1, "graded": temperature}.get(distill, 1.0)
            return Task(group, distill, 0.2 if distill == "none" else 0.0, teacher_temperature=sharp)

        tasks: dict[str, Task] = {TEXT.task: task(chosen, of_text), ANSWERS.task: task(labelled, of_answers)}
        return (ByDistillKLDivLoss if name == PEER else LLMEmbedder)(tasks, self.group, self.temperature)

    def _train(self, name: str, seed: int, out: Path) -> Any:
        temperature = self._sharpened if name == SWEPT else 1.0
        chosen = temperature if name == SWEPT else self._rates[name]
        if self.take_best(name, chosen, seed, out):
            return None
        return self._fit(name, self._rates[name], temperature, seed, out)

    def _fit(self, name: str, rate: float, temperature: float, seed: int, out: Path) -> Any:
        rows = [_row(kind, each) for kind, taught in self._taught.items() for each in taught]
        return self._taught_by(name, temperature).fit(
            self._start(),
            rows,
            out,
            steps=self.steps,
            batch_size=self.batch,
            method="full" if self._whole else "lora",
            learning_rate=rate,
            merge=not self._whole,
            seed=seed,
        )

    def _arm(self, kind: Kind, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        if arm.name in YARDSTICKS:
            return yardstick(arm, self._asked[kind], self.seed)
        return fetching_arm(arm, model, self._asked[kind], task="" if arm.name == BASE else kind.task)


def _row(kind: Kind, scored: Scored) -> dict[str, Any]:
    """A query as `LLMEmbedder.fit` takes it: with its candidates, or with the right one before the others."""
    keys, scores, right = list(scored.case.keys), list(scored.scores), scored.case.right
    row = {"query": scored.case.query, "task": kind.task}
    if right is None:
        return {**row, "history": keys, "teacher_scores": scores}
    return {**row, "pos": [keys.pop(right)], "neg": keys, "teacher_scores": [scores.pop(right), *scores]}
