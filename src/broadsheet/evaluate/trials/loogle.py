"""Try LooGLE: the same questions with the document whole, cut to its two ends, retrieved from, or under a method.

Knows: questions, routes, the methods of `broadsheet.attend` by name.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.pydocs import is_pydocs
from broadsheet.evaluate.answering import ContextMethod, DocumentReader, Route
from broadsheet.evaluate.loogle import LooGLE, Question, evidence_depth
from broadsheet.evaluate.trials import documentation
from broadsheet.methods import call_of, hyperparameters, names_of, parse_calls, plain, settings, signature
from broadsheet.options import option
from broadsheet.page import papers
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.stats import Floats, interval
from broadsheet.trial.verdicts import Comparison

WHOLE, RETRIEVED = "whole document", "BM25 passages"
_LIKELIHOOD = "log-likelihood"
_LEAST = 0.1  # nats a token that would matter
_BUCKETS = 5


@dataclass
class LooGLETrial(Trial):
    """The same questions on long documents, answered greedily by one model that gets the documents in several ways.

    A prompt that is too long keeps its two ends. The plain baseline is given --length tokens. Beside it stands more of
    the document, as much as the context and --max-length take; the passages that BM25 finds for the question, together
    as long as the baseline's prompt; and more of the document under methods of `broadsheet.attend`. The ways are named
    by their tokens.

    Quality is what LooGLE scores, and how likely the gold answer is to the model after the prompt (mean log-probability
    of its tokens): a small model's answers lie near 0 on every metric, but which text it was given shows in that.

    What is claimed: the paper finds that the same model answers better from more of the document (GPT-4 by its judge,
    with 32k against 8k tokens: 71.5 and 54.0 on short, 54.1 and 42.1 on long dependencies). So more of the document is
    claimed to beat the baseline in log-likelihood. It also finds that retrieval serves short dependencies and not long
    ones; too few long-dependency questions are asked here to claim that.

    The default data, `pydocs`, are not LooGLE's: its tasks, asked by rule of documentation that is installed here (see
    `evaluate.documentation`). Give LooGLE itself as --data FILE, or --data hf:bigainlco/LooGLE/longdep_qa:test.
    """

    paper: ClassVar[str] = "loogle"
    lacks: ClassVar[tuple[str, ...]] = ("method",)
    title: ClassVar[str] = "LooGLE: can a language model use a long document?"

    documents: int = option(12, "How many documents are asked about.", quick=5, least=1)
    questions: int = option(10, "Questions on each at most.", quick=3, least=1)
    tokens: int = option(2000, "Length of a document made of pydocs.", quick=700, least=1)
    length: int = option(768, "Tokens of the baseline's prompt, and of the retrieved passages.", quick=256, least=1)
    max_length: int | None = option(
        None, "Tokens of a whole prompt; by default 4,096 on a CPU, elsewhere the model's context.", least=1
    )
    methods: str = option(
        "lm_infinite,infllm(n_init=64,block_size=32,top_k=16)",
        'Of `broadsheet.attend`, by paper id and with fields, as in "lm_infinite(n_local=1024),infllm"; "none" for '
        "none. A field `n_local` that is not given is half of --length.",
        metavar="NAME(FIELD=VALUE),…",
    )
    max_new_tokens: int = option(
        48, "Of an answer (the paper: 50 to 500); answers end with their first line.", quick=16, least=1
    )
    batch_size: int = option(5, "Questions answered at once.", least=1)
    dtype: str = option("float32", "Of the model.", metavar="NAME")

    def question(self) -> str:
        return f"Does {self.model_name} answer better from more of a document than {self.length:,} tokens of it?"

    def tasks(self) -> list[EvalTask]:
        methods = self._methods()
        asked, self._source = self._questions()
        self._asked = asked
        model, tokenizer = self.loaded
        self._reader = DocumentReader(
            model, tokenizer, max_new_tokens=self.max_new_tokens, first_line=True, batch_size=self.batch_size
        )
        self._routes = self._ways(model, methods)
        counts = Counter(question.kind or question.task for question in asked)
        return [
            EvalTask(
                "questions",
                asked,
                METRICS,
                self._arm,
                item="question",
                about=f"{len(asked)} on {self._n_documents} documents, "
                + ", ".join(f"{count} {task}" for task, count in counts.items()),
                fingerprint=fingerprint([asdict(question) for question in asked]),
                block_size=self.questions,
                examples=_examples,
            )
        ]

    def setting(self) -> Mapping[str, Any]:
        retrieval = self._routes[2]
        return {
            "data": self._source,
            "prompts": f"{self.length:,} tokens, or {self._whole}; a longer one keeps its two ends",
            "retrieval": f"BM25, {retrieval.passages} passages of {retrieval.passage_tokens} tokens",
            "answers": f"greedy, at most {self.max_new_tokens} tokens, the first line",
            "dtype": self.dtype,
            "device": str(self._reader.model.device),
        }

    def arms(self) -> list[ModelArm]:
        """A route each. Reading more of a document is what the benchmark's paper is about."""
        arms = [ModelArm.of(each.name, each, None if i else "baseline") for i, each in enumerate(self._routes)]
        arms[1] = replace(arms[1], paper=self.paper)
        return arms

    def claims(self) -> list[Claim]:
        # Its figures are of answers that GPT-4 judges right (see the class), not of this metric.
        says = "the same model answers better from more of the document (GPT-4 with 32k and 8k tokens)"
        less, more, *_ = (route.name for route in self._routes)
        return [Claim(_LIKELIHOOD, less, more, says, least=_LEAST)]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        longest = self._routes[1].max_length
        read = f"{longest:,} tokens at most" if longest else "documents as long as they are"
        return (
            "Its figures are of GPT-4 with 32,000 tokens; models of 3 and 7 billion weights did far worse there too. "
            f"Here {self.model_name} reads {read}."
        )

    def figures(self, outcome: Outcome) -> list[Curve]:
        """Log-likelihood against where in the document the evidence of a short-dependency question stands."""
        depths = [evidence_depth(each) if each.task.startswith("short") else None for each in self._asked]
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
        for name, arm in outcome.usable.items():
            spans = []
            for bucket in range(_BUCKETS):
                values = [v for v, b in zip(arm.samples[_LIKELIHOOD], buckets, strict=True) if b == bucket]
                spans.append(interval(values, seed=self.seed) if values else None)
            curve.lines[name] = [span.estimate if span else None for span in spans]
            curve.low[name] = [span.low if span and math.isfinite(span.low) else None for span in spans]
            curve.high[name] = [span.high if span and math.isfinite(span.high) else None for span in spans]
        return [curve]

    def notes(self, outcome: Outcome) -> list[str]:
        notes = []
        if is_pydocs(self.data):
            notes.append(
                "These are not LooGLE's documents and questions, but its tasks and metrics on documentation that is "
                "installed here, with questions made by rule: compare the rows with one another, not with the paper."
            )
        for name, arm in outcome.usable.items():
            read, cut = sum(arm.samples["prompt_tokens"]), sum(arm.samples["cut"])
            if cut:
                prompts = sum(value > 0 for value in arm.samples["cut"])
                notes.append(
                    f"{name}: {prompts} of {len(self._asked)} prompts lost their middle, {cut / (cut + read):.0%} of "
                    "all tokens; what stands there cannot be answered from the text."
                )
        scored = [arm.values["token F1"].estimate for arm in outcome.usable.values() if "token F1" in arm.values]
        if (best := max(scored, default=1.0)) < 0.3:
            notes.append(
                f"The best token F1 is {best:.2f}: this model's answers are too near the floor to tell ways of reading "
                "apart. The log-likelihood of the gold answers is the column to look at."
            )
        return notes

    @property
    def _whole(self) -> str:
        """How much of a document is more of it."""
        return self._routes[1].name

    @property
    def _n_documents(self) -> int:
        return len({question.document for question in self._asked})

    def _questions(self) -> tuple[list[Question], str]:
        """What is asked, document by document, and where it comes from, as printed."""
        if is_pydocs(self.data):
            corpus = corpora.load(self.data)
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

    def _ways(self, model: Any, methods: Mapping[str, ContextMethod]) -> list[Route]:
        """The ways to read a document, the baseline first, then more of it."""
        affordable = self.max_length or (4096 if model.device.type == "cpu" else None)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = context - self.max_new_tokens if context else None
        whole = min((limit for limit in (affordable, room) if limit), default=None)
        piece = min(256, max(32, self.length // 4))
        return [
            Route(f"{self.length:,} tokens", max_length=self.length),
            Route(f"{whole:,} tokens" if whole else WHOLE, max_length=whole),
            Route(RETRIEVED, max_length=whole, passages=max(1, self.length // piece), passage_tokens=piece),
            # Only a method that bounds the distances it places keys at can read beyond the model's context.
            *(
                Route(name, max_length=affordable if hasattr(method, "reach") else whole, method=method)
                for name, method in methods.items()
            ),
        ]

    def _methods(self) -> dict[str, ContextMethod]:
        """The methods asked for, by the name that is printed.

        Raises:
            InputError: `--methods` names none of the stage, or a field that a method does not have.
        """
        known = [kind for kind in papers.stage_methods("attend").values() if hasattr(kind, "install")]
        found: dict[str, ContextMethod] = {}
        for call in [] if self.methods == "none" else parse_calls(self.methods, "--methods"):
            kind = next((kind for kind in known if plain(call.name) in names_of(kind)), None)
            if kind is None:
                offered = ", ".join(map(signature, known))
                raise InputError(f"no method {call.name!r} in --methods; expected some of {offered}")
            window = {"n_local": self.length // 2} if "n_local" in hyperparameters(kind) else {}
            method = kind(**settings(kind, call, **window))
            found[call_of(method)] = method
        return found

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        loogle = LooGLE()

        def run(block: Sequence[Question]) -> dict[str, Any]:
            made = self._reader.answers(block, lazy())
            scores = [loogle.score(question, answer.text) for question, answer in zip(block, made, strict=True)]
            judged = {
                metric.of: [row.get(metric.of, (0, 0) if metric.statistic is _hits else 0.0) for row in scores]
                for metric in METRICS
                if metric.of
            }
            return {
                **judged,
                _LIKELIHOOD: [answer.log_likelihood for answer in made],
                "answer": [answer.text for answer in made],
                "prompt_tokens": [answer.prompt_tokens for answer in made],
                "cut": [answer.cut for answer in made],
            }

        return Arm(arm.name, run)


def _examples(asked: Sequence[Question], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Questions with what was answered to them."""
    answers = [{name: str(arm.samples["answer"][i]) for name, arm in arms.items()} for i in range(len(asked))]
    found = []
    for place in most_apart(answers):
        told = {name: excerpt(answer) or "nothing" for name, answer in answers[place].items()}
        found.append(
            Example(
                excerpt(asked[place].question or f"A summary of {asked[place].title}"),
                told,
                f"Right: {excerpt(asked[place].gold)}",
            )
        )
    return found


def _hits(values: Floats, weights: Floats) -> Floats:
    """Sum of hits over sum of possible hits: values (n, 2), weights (resamples, n) -> (resamples,)."""
    sums: NDArray[np.float64] = weights @ values
    return sums[:, 0] / sums[:, 1]


def _document(question: Question) -> str:
    return question.document


def _cloze(question: Question) -> bool:
    return question.task == "shortdep_cloze"


def _reorder(question: Question) -> bool:
    return question.kind == "timeline_reorder"


def _text(question: Question) -> bool:
    return not _cloze(question) and not _reorder(question)


def _answer(question: Question) -> bool:
    return _text(question) and question.task != "longdep_summarization"


_CLUSTERS: Any = {"cluster": _document, "counted": "documents"}
_SCORES: Any = {"bounds": (0, 1), **_CLUSTERS}
METRICS = (
    Metric(_LIKELIHOOD, unit="nats a token", **_CLUSTERS),
    Metric("token F1", "token_f1", only=_answer, **_SCORES),
    Metric("containment", "containment", only=_answer, binary=True, **_SCORES),
    Metric("ROUGE-L F1", "rouge_l", only=_text, **_SCORES),
    Metric("cloze exact", "cloze_exact", _hits, only=_cloze, **_SCORES),
    Metric("cloze partial", "cloze_partial", _hits, only=_cloze, **_SCORES),
    Metric("misplacement", "lmd", only=_reorder, higher_is_better=False, **_SCORES),
)
