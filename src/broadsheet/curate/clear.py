"""CLEAR (Chen and Mueller, 2024, arXiv:2403.12776): drop or correct the answers to fine-tune on that a model doubts.

Knows: rows to fine-tune on, the confidence of a model in their targets, thresholds. Does not know: how a model is
fine-tuned, files, ranks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from broadsheet.console import InputError, say, within
from broadsheet.curate.targets.confidence import (
    FORMS,
    TOKEN_F1,
    Asks,
    Contradicts,
    Floats,
    Reflection,
    as_text,
    consistency,
    contradictions,
    contradictor,
    letter_of,
    letters,
    log_probability,
    matches,
    pmi,
    reflections,
    samples,
)
from broadsheet.curate.targets.exchanges import Exchange, exchanges

if TYPE_CHECKING:
    from broadsheet.teacher import Teacher

CONFIDENCE, LOG_PROBABILITY, PMI = "confidence", "log-probability", "PMI"
KEPT, DROPPED, CORRECTED = "kept", "dropped", "corrected"
COLUMNS = ("confidence", "consistency", "reflection", "action")
CANDIDATE, TARGET, TIE = "candidate", "target", "tie"


# The paper's rules, on numbers


def combined(consistent: Any, reflected: Any, beta: float = 0.7) -> Floats:
    """(n,) confidence of a model in given targets, by BSDetector's rule.

    Args:
        consistent: (n,) observed consistency, O.
        reflected: (n, questions) values of its reflections, of which S is the mean.
        beta: weight of O.
    """
    found: Floats = beta * np.asarray(consistent) + (1 - beta) * np.asarray(reflected).mean(-1)  # C = β O + (1 − β) S
    return found


def auto_filter(confidence: Any, threshold: str | float | None = "median") -> tuple[float, list[int]]:
    """The threshold γ, and the places of what is kept: confidence from γ on, so that a tie is kept.

    Args:
        confidence: (n,).
        threshold: `"median"`, of which half is kept, and more with ties; a number; None keeps all.

    Raises:
        InputError: a confidence is NaN.
    """
    values = np.asarray(confidence, dtype=np.float64)
    if np.isnan(values).any():
        raise InputError(
            f"{int(np.isnan(values).sum())} of {len(values)} rows have no confidence; expected a number each"
        )
    if threshold == "median":
        threshold = float(np.median(values)) if len(values) else -np.inf
    gamma = -np.inf if threshold is None else float(threshold)
    return gamma, np.flatnonzero(values >= gamma).tolist()  # keep C ≥ γ


def auto_correct(preferences: Sequence[str], confidence: Any, eta: float = 0.8) -> list[bool]:
    """Whether each target is replaced by its candidate: one that is preferred, with a confidence above η."""
    sure = np.asarray(confidence, dtype=np.float64) > eta
    return [preferred == CANDIDATE and bool(yes) for preferred, yes in zip(preferences, sure, strict=True)]


@dataclass(frozen=True)
class Scores:
    """What a model makes of n targets.

    Args:
        confidence: (n,).
        consistency, reflection: (n,) its parts; None where the score has none.
        unreadable: reflections that gave no letter.
    """

    confidence: Floats
    consistency: Floats | None = None
    reflection: Floats | None = None
    unreadable: int = 0

    def told(self) -> str:
        """How far each part spreads, in one line: a part that hardly does decides nothing."""
        parts = {"confidence": self.confidence, "consistency": self.consistency, "reflection": self.reflection}
        spread = [f"{name} {v.mean():.3f} ± {v.std():.3f}" for name, v in parts.items() if v is not None and len(v)]
        return "; ".join(spread) + (f"; {self.unreadable:,} reflections gave no letter" if self.unreadable else "")


@dataclass(frozen=True)
class Verdicts:
    """Which of two answers a model prefers, for each of n rows, and how sure it is of that.

    Args:
        preferences: `"candidate"`, `"target"` or `"tie"`.
        confidence: (n,), the mean of both orders.
    """

    preferences: list[str]
    confidence: Floats


@dataclass
class Clear:
    """Score the targets of rows to fine-tune on by the model that will be tuned, drop those it doubts, correct some.

    Use when targets are noisy and no better model is at hand, before any fine-tuning. A model that is too small to
    judge an answer gives a reflection that hardly varies; then prefer `by="PMI"`, which is ours and costs two forward
    passes. Confidence also drops what is hard: compare with a random half.

    Inputs: rows with `messages`, or `prompt` and `completion` (texts or messages), as a `datasets.Dataset` or a list of
        dicts. They come back in their order with `confidence`, `consistency`, `reflection` and `action` (`"kept"`,
        `"dropped"`, `"corrected"`); none is left out. What the model said is in the teacher's cache.
    Relation: the other filters of this stage judge a text by itself; this asks whether an answer fits its prompt.

    Args:
        teacher: the model before fine-tuning: a `Teacher`, or what `Teacher.load` takes.
        by: `"confidence"`, the paper's. `"PMI"` and `"log-probability"` are ours.
        filter: the threshold γ: `"median"`, a number, or None, which drops nothing.
        nli: a model of natural language inference, by folder or hub id. `"token-F1"` is a stand-in that needs none.
        k: answers sampled to a prompt (5), at `temperature` (1.0).
        reasoning: ask for an explanation before a sampled answer, as the paper does.
        asks: how reflections and verdicts are read: `"text"`, an explanation and a letter, as in the paper; or
            `"letters"`, ours, from the probabilities of the letters: no text is generated.
        alpha: weight of no contradiction in consistency (0.8); beta: of consistency in confidence (0.7).
        eta: confidence in a verdict above which a candidate replaces a target (0.8).
        max_tokens: of a sampled answer, and of an explanation.
        device, dtype: of a model that is loaded by name.
        seed: of what is sampled.

    Attributes:
        threshold_: γ, once fitted. scores_: the `Scores` of the rows that were fitted.

    Raises:
        InputError: a field is out of range.

    Example:
        from broadsheet.curate import Clear

        rows = [{"prompt": "What is 2 + 2?", "completion": "4"}, {"prompt": "What is 3 + 3?", "completion": "Paris"}]
        clear = Clear(asks="letters", reasoning=False, max_tokens=16)
        for row in clear.fit_transform(rows):
            print(row["action"], row["confidence"], row["completion"])

    Source: arXiv:2403.12776; its confidence is BSDetector's, arXiv:2308.16175.
    """

    paper: ClassVar[str] = "clear"

    teacher: Any = field(default="default", compare=False)
    by: str = CONFIDENCE
    filter: str | float | None = "median"
    nli: Any = TOKEN_F1
    k: int = 5
    temperature: float = 1.0
    reasoning: bool = True
    asks: Asks = "text"
    alpha: float = 0.8
    beta: float = 0.7
    eta: float = 0.8
    max_tokens: int = 256
    device: str | None = None
    dtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, eta=(0, 1), seed=(0, None))
        if self.by not in (CONFIDENCE, LOG_PROBABILITY, PMI):
            raise InputError(f"got by {self.by!r}; expected {CONFIDENCE}, {PMI} or {LOG_PROBABILITY}")
        if self.asks not in ("text", "letters"):
            raise InputError(f"got asks {self.asks!r}; expected text or letters")
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1):
            raise InputError(f"got alpha {self.alpha}, beta {self.beta}; expected shares from 0 to 1")
        if self.k < 1 or self.max_tokens < 1 or not self.temperature >= 0:
            raise InputError(
                f"got k {self.k}, max_tokens {self.max_tokens}, temperature {self.temperature}; expected 1 or more, "
                "and a temperature from 0"
            )
        if isinstance(self.filter, str) and self.filter != "median":
            raise InputError(f"got filter {self.filter!r}; expected median, a number, or None")

    def fit_transform(self, dataset: Any, tuned: Any = None) -> Any:
        """Score all rows, set the threshold by them, and say what becomes of each.

        Args:
            dataset: rows, see the class.
            tuned: the model that was fine-tuned on what was kept, a `Teacher` or what `Teacher.load` takes. It proposes
                an answer in place of each that is dropped (Auto-Correct); None drops them (Auto-Filter).

        Returns:
            The rows with four more columns, of the same type. A row that is dropped keeps its target, and what was
            kept is not changed.

        Raises:
            InputError: a row is none, or what the teacher refuses.
        """
        asked = exchanges(dataset)
        scores = self.score(asked)
        self.fit(scores)
        actions, targets = self.act(asked, scores.confidence, tuned)
        say(f"{self.title}: {scores.told()}; " + ", ".join(f"{n:,} {name}" for name, n in Counter(actions).items()))
        rows = [
            {**(each.row if target == each.target else each.answered(target)), **columns}
            for each, target, columns in zip(asked, targets, as_columns(scores, actions), strict=True)
        ]
        return _like(dataset, rows)

    def score(self, asked: Sequence[Exchange]) -> Scores:
        """The model's confidence in each target; nothing is generated for `by` other than the paper's."""
        prompts, targets = [each.prompt for each in asked], [each.target for each in asked]
        if self.by != CONFIDENCE:
            return Scores((pmi if self.by == PMI else log_probability)(self._teacher, prompts, targets))
        contradicts = self._contradicts  # refused before anything is asked
        answers = samples(
            self._teacher,
            prompts,
            self.k,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
            reasoning=self.reasoning,
        )
        # The given target is scored, never one of the samples.
        contradicted = contradictions(contradicts, targets, answers)
        consistent = consistency(contradicted, matches(targets, answers), self.alpha)
        reflected = self._reflections(prompts, targets)
        whole = combined(consistent, reflected.values, self.beta)
        return Scores(whole, consistent, reflected.values.mean(1), reflected.unreadable)

    def fit(self, scores: Scores) -> Clear:
        """Set γ by the scores of all rows."""
        self.scores_ = scores
        self.threshold_, _ = auto_filter(scores.confidence, self.filter)
        return self

    def act(
        self, asked: Sequence[Exchange], confidence: Floats, tuned: Any = None, threshold: float | None = None
    ) -> tuple[list[str], list[str]]:
        """What becomes of each row, and the target that it has then.

        Args:
            tuned: as in `fit_transform`.
            threshold: γ; by default the fitted one.
        """
        gamma = self.threshold_ if threshold is None else threshold
        kept = set(auto_filter(confidence, gamma)[1])
        actions = [KEPT if place in kept else DROPPED for place in range(len(asked))]
        targets = [each.target for each in asked]
        doubted = [place for place in range(len(asked)) if place not in kept]
        if tuned is None or not doubted:
            return actions, targets
        rows = [asked[place] for place in doubted]
        candidates = self.propose(rows, tuned)
        verdicts = self.judge(rows, candidates)
        replaced = auto_correct(verdicts.preferences, verdicts.confidence, self.eta)
        for place, candidate, yes in zip(doubted, candidates, replaced, strict=True):
            if yes:
                actions[place], targets[place] = CORRECTED, candidate
        return actions, targets

    # Auto-Correct

    def propose(self, asked: Sequence[Exchange], tuned: Any) -> list[str]:
        """The fine-tuned model's own answer to each prompt, its likeliest."""
        made = _loaded(tuned, self.device, self.dtype).chat(
            [each.prompt for each in asked], temperature=0.0, max_tokens=self.max_tokens
        )
        return [row[0].text.strip() for row in made]

    def judge(self, asked: Sequence[Exchange], candidates: Sequence[str]) -> Verdicts:
        """Which answer the model prefers, the target or the candidate, asked in both orders: where they disagree, a
        tie. An empty candidate, or one that is the target, is a tie that is not asked about."""
        preferences: list[str] = [TIE] * len(asked)
        confidence = np.zeros(len(asked))
        open_ = [i for i, each in enumerate(asked) if candidates[i] and candidates[i] != each.target.strip()]
        requests = [as_text(asked[i].prompt) for i in open_]
        pairs = [(asked[i].target, candidates[i]) for i in open_]
        first = self._preferred([_which(*each) for each in zip(requests, pairs, strict=True)])
        turned = self._preferred([_which(request, pair[::-1]) for request, pair in zip(requests, pairs, strict=True)])
        # The letter of the first order is A for the target; that of the second, A for the candidate.
        for i, one, other, sure, sure_too in zip(open_, first[0], turned[0], first[1], turned[1], strict=True):
            names: tuple[str, ...] = (TARGET, CANDIDATE, TIE)
            both = names[one], names[(1, 0, 2)[other]]
            preferences[i] = both[0] if both[0] == both[1] else TIE
            confidence[i] = (sure + sure_too) / 2
        return Verdicts(preferences, confidence)

    def _preferred(self, questions: Sequence[str]) -> tuple[list[int], Floats]:
        """The place of the letter that answers each question, and the confidence in that verdict, as in a target."""
        form = FORMS[self.asks]
        asked: list[Any] = [[{"role": "user", "content": f"{question}\n{form}"}] for question in questions]
        if not asked:
            return [], np.zeros(0)
        if self.asks == "letters":
            shares = letters(self._teacher, asked)
            chosen = shares.argmax(1)
            agreed = shares[np.arange(len(asked)), chosen]  # the share of samples that would say so too
            said = ["ABC"[i] for i in chosen]
        else:
            most = self.max_tokens
            greedy = self._teacher.chat(asked, temperature=0.0, max_tokens=most)
            more = self._teacher.chat(asked, n=self.k, temperature=self.temperature, max_tokens=most, seed=self.seed)
            said = [letter_of(row[0].text) or "C" for row in greedy]
            chosen = np.array(["ABC".index(letter) for letter in said])
            # Another letter contradicts the verdict, and the same one is equal to it: s_i is 1 or 0.
            agreed = np.array(
                [
                    np.mean([(letter_of(each.text) or "C") == letter for each in row])
                    for row, letter in zip(more, said, strict=True)
                ]
            )
        reflected = self._reflections(asked, said)
        return chosen.tolist(), combined(agreed, reflected.values, self.beta)

    def _reflections(self, prompts: Sequence[Any], targets: Sequence[str]) -> Reflection:
        return reflections(self._teacher, prompts, targets, self.asks, self.max_tokens)

    # What is loaded by name

    @cached_property
    def _teacher(self) -> Teacher:
        return _loaded(self.teacher, self.device, self.dtype)

    @cached_property
    def _contradicts(self) -> Contradicts:
        return contradictor(self.nli, self.device)

    @property
    def title(self) -> str:
        """What the confidence is called: what stands in for a part of the paper's is named."""
        if self.by != CONFIDENCE:
            return f"{self.by} (ours)"
        return "CLEAR" + f" with {TOKEN_F1} in place of NLI" * (self.nli == TOKEN_F1)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was loaded by name: a worker loads it itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_teacher", "_contradicts")}

    def __deepcopy__(self, memo: Any) -> Clear:
        return self  # the copies of a pipeline's ranks share the models


def _which(request: str, answers: tuple[str, str]) -> str:
    """The judge's question: what is to be done, the request, answer A, answer B, the choices."""
    return (
        "Compare two answers to a request, and say which of them fulfils it better.\n\n"
        f"Request: {request}\n\nAnswer A: {answers[0]}\n\nAnswer B: {answers[1]}\n\n"
        "Which answer is better?\n(A) Answer A.\n(B) Answer B.\n(C) Neither: they are equally good."
    )


def _loaded(teacher: Any, device: str | None, dtype: str | None) -> Teacher:
    """A teacher that is one already, or by name; a folder may hold an adapter alone."""
    from broadsheet.teacher import Teacher

    if isinstance(teacher, Teacher):
        return teacher
    options: dict[str, Any] = {
        name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None
    }
    if (Path(teacher) / "adapter_config.json").is_file():
        from broadsheet.models import adapters
        from broadsheet.teacher.local import Local

        return Teacher(Local(*adapters.load(Path(teacher), options)))
    return Teacher.load(teacher, **options)


def as_columns(scores: Scores, actions: Sequence[str]) -> list[dict[str, Any]]:
    """What is added to each row."""
    parts = [scores.confidence, scores.consistency, scores.reflection]
    values = [[None] * len(actions) if part is None else part.tolist() for part in parts]
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*values, actions, strict=True)]


def _like(dataset: Any, rows: list[dict[str, Any]]) -> Any:
    """Rows as the type that they came in; a `Dataset` keeps its features."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(dataset, datasets.Dataset):
        return rows
    number, text = datasets.Value("float64"), datasets.Value("string")
    features = {**dataset.features, **dict(zip(COLUMNS, (number, number, number, text), strict=True))}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))
