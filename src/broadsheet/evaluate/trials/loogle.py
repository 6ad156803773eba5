"""Try LooGLE: the same questions with the document whole, cut to its two ends, retrieved from, or under a method.

Knows: questions, routes, the A/B engine, the methods of `broadsheet.attend` by name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.evaluate.answering import ContextMethod, DocumentReader, Route
from broadsheet.evaluate.loogle import LooGLE, Question, Score, evidence_depth
from broadsheet.evaluate.methods import attend_methods, describe_methods, options_of, parse_methods
from broadsheet.evaluate.trials import documentation
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.results import ArmResult, Curve, TrialResult
from broadsheet.trial.stats import Comparison, Floats, Interval, Statistic, compare_samples, interval
from broadsheet.trial.stats import mean as mean_statistic

ENDS, WHOLE, RETRIEVED = "two ends", "whole document", "BM25 passages"
_DEFAULT_METHODS = ("lm_infinite", "infllm")
_LIKELIHOOD = "log-likelihood"
_BUCKETS = 5


@dataclass
class LooGLETrial:
    """The same questions on long documents, answered greedily by one model that gets the documents in several ways.

    The plain baseline keeps the two ends of the prompt. Beside it stand the whole document (as far as the context and
    --max-length reach), the passages that BM25 finds for the question, as long together as the two ends, and the whole
    document under methods of `broadsheet.attend`.

    Quality is what LooGLE scores, and how likely the gold answer is to the model after the prompt (mean log-probability
    of its tokens): a small model's answers lie near 0 on every metric, but which text it was given shows in that.

    What is claimed: the paper finds that the same model answers better from more of the document (GPT-4 by its judge,
    with 32k against 8k tokens: 71.5 and 54.0 on short, 54.1 and 42.1 on long dependencies). So `whole document` is
    claimed to beat `two ends` in log-likelihood. It also finds that retrieval serves short dependencies and not long
    ones; too few long-dependency questions are asked here to claim that.

    The default data, `pydocs`, are not LooGLE's: its tasks, asked by rule of documentation that is installed here (see
    `evaluate.documentation`). Give LooGLE itself as --data FILE, or --data hf:bigainlco/LooGLE/longdep_qa:test.

    Options:
        --documents N: how many (4; with --quick 2).
        --questions N: on each at most (10; with --quick 5).
        --tokens N: length of a document made of pydocs (2,000; with --quick 700).
        --length N: tokens of the baseline's prompt, and of the retrieved passages (768; with --quick 256).
        --max-length N: tokens of a whole prompt (4,096 on a CPU, elsewhere the model's context).
        --methods LIST: of `broadsheet.attend`, by paper id and with options: "lm_infinite(n_local=1024),infllm";
            "none" for none (lm_infinite,infllm). A field `n_local` that is not given is half of --length.
        --max-new-tokens N: of an answer (48; with --quick 16; the paper 50 to 500). Answers end with their first line.
        --batch-size N: questions answered at once (5).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    documents: int = 0
    questions: int = 0
    tokens: int = 0
    length: int = 0
    max_length: int = 0
    methods: str = ""
    max_new_tokens: int = 0
    batch_size: int = 5
    device: str = ""
    dtype: str = "float32"

    def run(self) -> TrialResult:
        """Collect the questions, run the arms, explain.

        Raises:
            InputError: an option, a method, the model or the data cannot be used.
        """
        for name, full, quick in (
            ("documents", 4, 2),
            ("questions", 10, 5),
            ("tokens", 2000, 700),
            ("length", 768, 256),
            ("max_new_tokens", 48, 16),
        ):
            setattr(self, name, getattr(self, name) or (quick if self.quick else full))
        for name in ("documents", "questions", "tokens", "length", "max_new_tokens", "batch_size", "max_length"):
            if getattr(self, name) < (name != "max_length"):
                raise InputError(f"got --{name.replace('_', '-')} {getattr(self, name)}; expected a positive number")
        methods, absent = self._methods()
        asked, source = self._questions()
        model, tokenizer = models.load(self.model, device=self.device or None, dtype=self.dtype)
        reader = DocumentReader(
            model, tokenizer, max_new_tokens=self.max_new_tokens, first_line=True, batch_size=self.batch_size
        )
        routes = self._routes(model, methods)
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": models.fingerprint(model)},
            "data": {"name": self.data, "fingerprint": fingerprint([asdict(question) for question in asked])},
        }
        key = fingerprint([versions(), facts, asdict(self), [repr(route) for route in routes]])
        self.journal_ = home() / "trials" / f"loogle-{key}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)
        n_documents = len({question.document for question in asked})
        say(f"{len(asked)} questions on {n_documents} documents, {len(routes)} ways to read them")
        arms, comparisons = run_arms(
            [_arm(route, reader) for route in routes],
            asked,
            [Metric(_LIKELIHOOD, unit="nats a token")],
            block_size=self.questions,
            item="question",
            seed=self.seed,
            journal=self.journal_,
        )
        speed = [comparison for comparison in comparisons if comparison.metric == "questions/s"]
        quality = [comparison for comparison in comparisons if comparison not in speed]
        comparisons = [*quality, *_score(arms, asked, self.seed), *speed]
        return TrialResult(
            paper="loogle",
            title="LooGLE: can a language model use a long document?",
            question=f"Does {self._model_name} answer better from a whole document than from its two ends?",
            setting={
                "model": self._model_name,
                "data": source,
                "questions": f"{len(asked)} on {n_documents} documents, "
                + ", ".join(f"{count} {task}" for task, count in _tasks(asked).items()),
                "two ends": f"{self.length:,} tokens of the prompt",
                "retrieval": f"BM25, {routes[2].passages} passages of {routes[2].passage_tokens} tokens",
                "answers": f"greedy, at most {self.max_new_tokens} tokens, the first line",
                "dtype": self.dtype,
                "device": str(model.device),
            },
            arms=arms,
            comparisons=comparisons,
            item="question",
            claims=[(_LIKELIHOOD, ENDS, WHOLE)],
            figures=_figures(arms, asked, self.seed),
            notes=_notes(arms, asked, self.data, absent),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    @property
    def _model_name(self) -> str:
        return "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model

    def _questions(self) -> tuple[list[Question], str]:
        """What is asked, document by document, and where it comes from, as printed."""
        if self.data == "pydocs":
            corpus = corpora.load("pydocs")
            asked = documentation.questions(
                corpus,
                n_documents=self.documents,
                per_document=self.questions,
                tokens=self.tokens,
                seed=self.seed,
            )
            return asked, f"LooGLE's tasks on modules of {corpus.describe()}"
        generator = random.Random(self.seed)
        groups = [list(group) for _, group in groupby(LooGLE().read(self.data), key=lambda each: each.document)]
        if not groups:
            raise InputError(f"{self.data} holds no questions; expected rows of LooGLE")
        chosen = sorted(generator.sample(range(len(groups)), min(self.documents, len(groups))))
        asked = []
        for i in chosen:
            kept = sorted(generator.sample(range(len(groups[i])), min(self.questions, len(groups[i]))))
            asked += [groups[i][j] for j in kept]
        return asked, f"{self.data}: {len(chosen)} of {len(groups)} documents"

    def _routes(self, model: Any, methods: Mapping[str, ContextMethod]) -> list[Route]:
        """The ways to read a document, the baseline first."""
        affordable = self.max_length or (4096 if model.device.type == "cpu" else None)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = context - self.max_new_tokens if context else None
        whole = min((limit for limit in (affordable, room) if limit), default=None)
        piece = min(256, max(32, self.length // 4))
        return [
            Route(ENDS, max_length=self.length),
            Route(WHOLE, max_length=whole),
            Route(RETRIEVED, max_length=whole, passages=max(1, self.length // piece), passage_tokens=piece),
            # Only a method that bounds the distances it places keys at can read beyond the model's context.
            *(
                Route(name, max_length=affordable if hasattr(method, "reach") else whole, method=method)
                for name, method in methods.items()
            ),
        ]

    def _methods(self) -> tuple[dict[str, ContextMethod], list[str]]:
        """The methods asked for, by the name that is printed, and default ones that are not there."""
        if self.methods == "none":
            return {}, []
        known = attend_methods()
        wanted = parse_methods(self.methods or ",".join(_DEFAULT_METHODS))
        absent = [name for name, _ in wanted if name not in known]
        if absent and self.methods:
            raise InputError(f"no method {absent[0]!r} in --methods; expected some of {describe_methods(known)}")
        found = {}
        for name, options in wanted:
            if name not in known:
                continue
            fields = options_of(known[name])
            if unknown := set(options) - set(fields):
                raise InputError(f"no option {min(unknown)!r}; expected {describe_methods({name: known[name]})}")
            window = {"n_local": self.length // 2} if "n_local" in fields else {}
            method = known[name](**window | options)
            found[f"{type(method).__name__}({', '.join(f'{k}={v!r}' for k, v in (window | options).items())})"] = method
        return found, absent


def _arm(route: Route, reader: DocumentReader) -> Arm:
    def run(block: Sequence[Question]) -> dict[str, Any]:
        made = reader.answers(block, route)
        return {
            _LIKELIHOOD: [answer.log_likelihood for answer in made],
            "answer": [answer.text for answer in made],
            "prompt_tokens": [answer.prompt_tokens for answer in made],
            "cut": [answer.cut for answer in made],
        }

    return Arm(route.name, run, "baseline" if route.name == ENDS else "method" if route.name == WHOLE else "sibling")


@dataclass(frozen=True)
class _Metric:
    """A metric of some of the questions: those whose scores have `of`, in the tasks named."""

    name: str
    of: str
    tasks: tuple[str, ...]
    statistic: Statistic = mean_statistic
    binary: bool = False
    higher_is_better: bool = True


def _hits(values: Floats, weights: Floats) -> Floats:
    """Sum of hits over sum of possible hits: values (n, 2), weights (resamples, n) -> (resamples,)."""
    sums: NDArray[np.float64] = weights @ values
    return sums[:, 0] / sums[:, 1]


_QA = ("shortdep_qa", "longdep_qa")
_METRICS = (
    _Metric("token F1", "token_f1", _QA),
    _Metric("containment", "containment", _QA, binary=True),
    _Metric("ROUGE-L F1", "rouge_l", (*_QA, "longdep_summarization")),
    _Metric("cloze exact", "cloze_exact", ("shortdep_cloze",), _hits),
    _Metric("cloze partial", "cloze_partial", ("shortdep_cloze",), _hits),
    _Metric("misplacement", "lmd", ("longdep_qa",), higher_is_better=False),
)


def _score(arms: list[ArmResult], asked: Sequence[Question], seed: int) -> list[Comparison]:
    """Add LooGLE's metrics to the arms, each over the questions that it is for, and compare them with the baseline.

    Greedy answers do not change from run to run, as the noise floor of the log-likelihood shows, so theirs is 0.
    """
    usable = [arm for arm in arms if arm.status == "ok"]
    scores = {arm.name: _all_scores(asked, arm.samples["answer"]) for arm in usable}
    baseline = next((arm for arm in usable if arm.role == "baseline"), None)
    comparisons = []
    for metric in _METRICS:
        values = {name: _values(rows, asked, metric) for name, rows in scores.items()}
        for arm in usable:
            if not len(values[arm.name]):
                continue
            span = interval(values[arm.name], metric.statistic, seed=seed)
            arm.values[metric.name] = Interval(span.estimate, max(0.0, span.low), min(1.0, span.high))
            if baseline and arm is not baseline:
                comparisons.append(
                    compare_samples(
                        values[baseline.name],
                        values[arm.name],
                        metric=metric.name,
                        baseline=baseline.name,
                        arm=arm.name,
                        statistic=metric.statistic,
                        binary=metric.binary,
                        higher_is_better=metric.higher_is_better,
                        seed=seed,
                    )
                )
    return comparisons


def _all_scores(asked: Sequence[Question], texts: Sequence[str]) -> list[dict[str, Score]]:
    loogle = LooGLE()
    return [loogle.score(question, text) for question, text in zip(asked, texts, strict=True)]


def _values(rows: Sequence[Mapping[str, Score]], asked: Sequence[Question], metric: _Metric) -> Floats:
    chosen = [
        row[metric.of]
        for row, question in zip(rows, asked, strict=True)
        if question.task in metric.tasks and metric.of in row
    ]
    return np.asarray(chosen, dtype=np.float64)


def _tasks(asked: Iterable[Question]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for question in asked:
        name = question.kind or question.task
        counts[name] = counts.get(name, 0) + 1
    return counts


def _figures(arms: Sequence[ArmResult], asked: Sequence[Question], seed: int) -> list[Any]:
    """Log-likelihood against where in the document the evidence of a short-dependency question stands."""
    depths = [evidence_depth(question) if question.task.startswith("short") else None for question in asked]
    buckets = [None if depth is None else min(int(depth * _BUCKETS), _BUCKETS - 1) for depth in depths]
    if len({bucket for bucket in buckets if bucket is not None}) < 2:
        return []
    curve = Curve(
        "Gold answers by evidence depth",
        "where in the document the evidence stands (0 = beginning)",
        "log-likelihood, nats a token",
        [(bucket + 0.5) / _BUCKETS for bucket in range(_BUCKETS)],
        {},
    )
    for arm in arms:
        if arm.status != "ok":
            continue
        spans = []
        for bucket in range(_BUCKETS):
            values = [v for v, b in zip(arm.samples[_LIKELIHOOD], buckets, strict=True) if b == bucket]
            spans.append(interval(values, seed=seed) if values else None)
        curve.lines[arm.name] = [span.estimate if span else None for span in spans]
        curve.low[arm.name] = [span.low if span and math.isfinite(span.low) else None for span in spans]
        curve.high[arm.name] = [span.high if span and math.isfinite(span.high) else None for span in spans]
    return [curve]


def _notes(arms: Sequence[ArmResult], asked: Sequence[Question], data: str, absent: Sequence[str]) -> list[str]:
    """What a reader should know before trusting the numbers; each note is made from this run."""
    notes = []
    if data == "pydocs":
        notes.append(
            "These are not LooGLE's documents and questions, but its tasks and metrics on documentation that is "
            "installed here, with questions made by rule: compare the rows with one another, not with the paper."
        )
    usable = [arm for arm in arms if arm.status == "ok"]
    for arm in usable:
        read, cut = sum(arm.samples["prompt_tokens"]), sum(arm.samples["cut"])
        if cut:
            prompts = sum(value > 0 for value in arm.samples["cut"])
            notes.append(
                f"{arm.name}: {prompts} of {len(asked)} prompts lost their middle, {cut / (cut + read):.0%} of all "
                "tokens; what stands there cannot be answered from the text."
            )
    best = max((arm.values["token F1"].estimate for arm in usable if "token F1" in arm.values), default=1.0)
    if best < 0.3:
        notes.append(
            f"The best token F1 is {best:.2f}: this model's answers are too near the floor to tell ways of reading "
            "apart. The log-likelihood of the gold answers is the column to look at."
        )
    documents = len({question.document for question in asked})
    notes.append(
        f"Questions on one document are not independent of one another: {documents} documents are fewer pieces of "
        f"evidence than {len(asked)} questions suggest, and the intervals do not know that."
    )
    if absent:
        notes.append(f"Not tried, since broadsheet.attend does not offer it here: {', '.join(absent)}.")
    return notes
