"""Try a language model as a data preprocessor: tables with planted faults, beside what needs no model, and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from broadsheet.cache import fingerprint
from broadsheet.console import quiet
from broadsheet.curate.data_preprocessors import TablePreprocessor
from broadsheet.curate.tables.batches import batches
from broadsheet.curate.tables.messages import TablePrompt
from broadsheet.curate.tables.peers import CosineThreshold, Majority, Neighbours, SimilarityRegression, sides_of_cell
from broadsheet.curate.tables.scoring import agreement, balanced_accuracy, f1, same_value
from broadsheet.curate.tables.tasks import EntityMatching, ErrorDetection, Imputation, Task
from broadsheet.curate.trials.planted_tables import CHECKED, FILLED, PlantedCase, PlantedTask, planted
from broadsheet.data import corpora
from broadsheet.options import option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import excerpt, marked, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.stats import MIN_UNITS
from broadsheet.trial.verdicts import Comparison

if TYPE_CHECKING:
    from broadsheet.teacher import Teacher

ZERO, ONE, OURS = "no examples, row by row", "examples, row by row", "examples, several rows a request"
CLUSTERED, BARE, SCORED = "the same, alike rows together", "the same, without reasons", "log-probabilities of answers"
MAJORITY, TFIDF, REGRESSION = "most frequent answer", "TF-IDF", "regression on similarities"
MATCHED, FOUND, EXACT = "F1, matches", "values found", "values found to the letter"
BALANCED = {"errors": "balanced accuracy, errors", "entities": "balanced accuracy, matches"}
TASKS: dict[str, Task] = {
    "errors": ErrorDetection(column=CHECKED),
    "impute": Imputation(column=FILLED),
    "entities": EntityMatching(kind="function or class"),
}
WORDS = {"errors": "errors", "impute": "gaps", "entities": "matches"}
_MOST = 160  # cases of a task
_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class CaseRow:
    """What an arm made of a case."""

    value: bool | str
    tokens: float = 0.0
    prompt_tokens: float = 0.0  # of the first request
    failed: bool = False
    twice: bool = False  # it was asked again, alone


Answering = Callable[[str, Sequence[PlantedCase]], list[CaseRow]]


@dataclass
class DataPreprocessorsTrial(Trial):
    """Wrong values, gaps and duplicates are planted in a table of the standard library's functions: who finds them?

    A model is asked with examples and reasons, several rows a request (the paper's way); without examples, row by row
    (the baseline); and by the log-probabilities of its answers, which is ours. Beside it stand the most frequent
    answer, TF-IDF, and a regression on similarities. These are fitted on labelled rows; a prompt holds a few examples.
    """

    paper: ClassVar[str] = "data_preprocessors"
    title: ClassVar[str] = "Data preprocessors: errors, gaps and duplicates in tables"

    model: str = option(
        "default", "`default`, a hub id, a folder, a .gguf file, or endpoint:NAME for a service.", metavar="MODEL"
    )
    data: str = option("pydocs:stdlib", "`pydocs:stdlib` or `pydocs`: what the tables are made of.", metavar="DATA")
    cases: int | None = option(
        None, f"Of each task; by default as many as the claims need, at most {_MOST}.", quick=6, least=4
    )
    labelled: int = option(120, "Labelled cases of each task, for what is fitted.", quick=40, least=8)
    shots: int = option(4, "Examples in a prompt.", quick=2, least=2)

    def question(self) -> str:
        return (
            f"Does {self.model_name} find planted errors, gaps and duplicates better with examples, as well as simple "
            "classifiers, and for fewer tokens in batches?"
        )

    # Cases

    def tasks(self) -> list[EvalTask]:
        documents = corpora.load(self.data)
        self._planted = planted(documents, self.cases or _MOST, self.labelled, self.shots, self.seed)
        self._block = 4 * self._method().batch_size if self.cases is None else min(16, self.cases)
        return [self._task(name, made) for name, made in self._planted.items()]

    def _task(self, name: str, made: PlantedTask) -> EvalTask:
        def group(case: PlantedCase) -> str:
            return case.group

        shared: dict[str, Any] = {"cluster": group, "counted": "modules", "bounds": (0, 1)}
        if name in BALANCED:
            f1_name = MATCHED if name == "entities" else "F1, errors"
            metrics = [
                Metric(BALANCED[name], of=name, statistic=balanced_accuracy, chance=0.5, **shared),
                Metric(f1_name, of=name, statistic=f1, **shared),
            ]
        else:
            metrics = [Metric(FOUND, **shared), Metric(EXACT, **shared)]
        told = WORDS[name]
        cost: dict[str, Any] = {
            "higher_is_better": False,
            "unit": "tokens",
            "cluster": lambda case: self._request(case.number, len(made.asked)),  # its rows have shares of one cost
            "counted": "requests",
        }
        metrics += [
            Metric(f"tokens, {told}", **cost),
            Metric(f"prompt tokens asked first, {told}", **cost),
            Metric(f"not read, {told}", higher_is_better=False, **shared),
        ]
        what = {
            "errors": f"{CHECKED} mistyped or another's in every second row",
            "impute": f"{FILLED} missing",
            "entities": "pairs, every second a duplicate with slips, else the most similar other",
        }[name]
        return EvalTask(
            name,
            made.asked,
            metrics,
            partial(self._arm, name),
            item="case",
            about=f"rows of {self.data}, {what}",
            fingerprint=fingerprint([[case.about, case.gold] for case in [*made.asked, *made.labelled]]),
            block_size=self._block,
            pilot=MIN_UNITS * self._block if self.cases is None else 0,
            examples=partial(_examples, name),
        )

    def _request(self, number: int, cases: int) -> tuple[int, int]:
        """Which request asks a case in the paper's way: its block, and the batch in it."""
        block, place = divmod(number, self._block)
        method = self._method()
        size = min(self._block, cases - block * self._block)
        cut = batches([""] * size, method.batch_size, "random", method.seed)
        return block, next(i for i, places in enumerate(cut) if place in places)

    def facts(self) -> dict[str, Any]:
        return {"model": {"name": self.model, "fingerprint": fingerprint(self._teacher.backend.identity())}}

    def setting(self) -> Mapping[str, Any]:
        method = self._method()
        return {
            "examples": f"{self.shots}, with reasons",
            "rows a request": str(method.batch_size),
            "labelled rows": f"{self.labelled} of each task, for what is fitted and for thresholds",
        }

    # Arms

    @cached_property
    def _teacher(self) -> Teacher:
        from broadsheet.teacher import Teacher
        from broadsheet.teacher.local import Local

        if self.model.startswith(("endpoint:", "llamacpp:")):
            return Teacher.load(self.model)  # what was paid for is kept
        return Teacher(Local(*self.loaded), cache=False)

    def _method(self, **changes: Any) -> TablePreprocessor:
        shorter = {"answer_tokens": 32} if self.quick else {}
        made = replace(self.configured(TablePreprocessor, **shorter), **changes)
        made.teacher = self._teacher
        return made

    def arms(self) -> list[ModelArm]:
        ours = TablePreprocessor.paper
        size = self._method().batch_size
        asking = partial(partial, self._asked)
        arms = [
            ModelArm(ZERO, asking(self._method(batch_size=1), 0), "baseline", "a prompt as one would write it"),
            ModelArm(ONE, asking(self._method(batch_size=1), self.shots), "sibling", "the paper's, without batches"),
            ModelArm(OURS, asking(self._method(), self.shots), None, f"reasons first, {size} rows a request", ours),
        ]
        if not self.quick:  # of the paper's parts, and of what a small model does better
            arms += [
                ModelArm(
                    CLUSTERED, asking(self._method(batching="cluster"), self.shots), None, "batches by k-means", ours
                ),
                ModelArm(BARE, asking(self._method(reasons=False), self.shots), "sibling", "an answer, no reason"),
                ModelArm(SCORED, self._scored, "sibling", "ours: nothing is written; thresholds from labelled rows"),
            ]
        return [
            *arms,
            ModelArm(MAJORITY, partial(self._fitted, MAJORITY), "peer", "of the labelled rows"),
            ModelArm(TFIDF, partial(self._fitted, TFIDF), "peer", "cosine and threshold; the nearest row fills a gap"),
            ModelArm(REGRESSION, partial(self._fitted, REGRESSION), "peer", "logistic; three nearest rows fill a gap"),
        ]

    def _asked(self, method: TablePreprocessor, shots: int) -> Answering:
        def answer(name: str, cases: Sequence[PlantedCase]) -> list[CaseRow]:
            examples = self._planted[name].shots[:shots]
            with quiet():
                found = method.ask(TASKS[name], [case.about for case in cases], examples)
            return [
                CaseRow(each.value, each.tokens, each.first_prompt_tokens, each.status == "failed", each.requests > 1)
                for each in found
            ]

        return answer

    def _scored(self) -> Answering:
        """Answers by log-probability: values among those of labelled rows, thresholds from these."""
        thresholds: dict[str, float] = {}
        method = self._method(scorer="log-probabilities")

        def ask(name: str, cases: Sequence[PlantedCase]) -> Any:
            made = self._planted[name]
            choices = () if name in BALANCED else sorted({str(case.gold) for case in made.labelled})
            with quiet():
                return method.ask(TASKS[name], [case.about for case in cases], made.shots, choices=choices)

        def answer(name: str, cases: Sequence[PlantedCase]) -> list[CaseRow]:
            if name in BALANCED and name not in thresholds:
                some = self._planted[name].labelled
                thresholds[name] = best_threshold(
                    [bool(case.gold) for case in some], [each.score for each in ask(name, some)]
                )
            return [
                CaseRow(each.score > thresholds[name] if name in BALANCED else each.value, each.tokens, each.tokens)
                for each in ask(name, cases)
            ]

        return answer

    def _fitted(self, kind: str) -> Answering:
        fitted: dict[str, Any] = {}

        def answer(name: str, cases: Sequence[PlantedCase]) -> list[CaseRow]:
            if name not in fitted:
                some = self._planted[name].labelled
                fitted[name] = _fit(kind, name, _seen(name, some), [case.gold for case in some])
            return [CaseRow(value) for value in fitted[name].predict(_seen(name, cases))]

        return answer

    def _arm(self, name: str, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[PlantedCase]) -> dict[str, Any]:
            rows = lazy()(name, block)
            told = WORDS[name]
            made: dict[str, Any] = {
                f"tokens, {told}": [row.tokens for row in rows],
                f"prompt tokens asked first, {told}": [row.prompt_tokens for row in rows],
                f"not read, {told}": [float(row.failed) for row in rows],
                f"asked twice, {told}": [float(row.twice) for row in rows],
            }
            if name in BALANCED:
                made[name] = [[float(case.gold), float(row.value)] for case, row in zip(block, rows, strict=True)]
            else:
                both = [(str(case.gold), str(row.value)) for case, row in zip(block, rows, strict=True)]
                made |= {
                    FOUND: [float(same_value(*each)) for each in both],
                    EXACT: [float(so == said) for so, said in both],
                }
            return made

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    # What the paper says

    def claims(self) -> list[Claim]:
        """Effects where the authors' own table gives them; what matters least, where only the words do."""
        lifts = "examples and a reason before the answer make a better prompt (its framework)"
        shares = "rows of a request share the task and the examples (batch prompting)"
        return [
            Claim(FOUND, ZERO, OURS, lifts, least=0.05),
            *(Claim(BALANCED[name], ZERO, OURS, lifts, least=0.05) for name in BALANCED),
            # GPT-4 over the best method of another kind: +3.5 on Buy, +20.5 on Restaurant.
            Claim(FOUND, TFIDF, OURS, "it fills gaps better than the best method of another kind", effect=0.035),
            # +5.6, +2.9, +3.5 on the three sets where it wins.
            Claim(MATCHED, REGRESSION, OURS, "it matches records better than the best of another kind", effect=0.03),
            *(Claim(f"prompt tokens asked first, {told}", ONE, OURS, shares, least=50) for told in WORDS.values()),
            *(
                Claim(f"tokens, {told}", ONE, OURS, "and so a row costs less, what is asked again included", least=50)
                for told in WORDS.values()
            ),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        pairs = [(MAJORITY, OURS), (TFIDF, OURS)]
        return pairs if self.quick else [*pairs, (OURS, CLUSTERED), (BARE, OURS), (SCORED, OURS), (TFIDF, SCORED)]

    def figures(self, outcome: Outcome) -> list[Curve]:
        """Tokens of a row that is asked, over rows a request, as the prompts are; known without asking."""
        if self.model.startswith("endpoint:"):
            return []
        lines: dict[str, list[float | None]] = {}
        for name, made in self._planted.items():
            lines[WORDS[name]] = [prompt_tokens(self._teacher, TASKS[name], made, size) for size in _SIZES]
        return [
            Curve(
                "Prompt tokens of a row, by rows a request",
                "rows a request",
                "tokens",
                [float(size) for size in _SIZES],
                lines,
                log_x=True,
            )
        ]

    def notes(self, outcome: Outcome) -> list[str]:
        told = []
        for arm in outcome.results:
            if arm.status == "ok" and arm.name in (ZERO, ONE, OURS, CLUSTERED, BARE):
                rates = [
                    " and ".join(
                        f"{np.mean(arm.samples[f'{rate}, {each}']):.0%}" for rate in ("asked twice", "not read")
                    )
                    + f" of {each}"
                    for each in WORDS.values()
                ]
                told.append(f"{arm.name}: asked twice, and not read even then: {'; '.join(rates)}.")
        told.append(
            "The paper was known by its abstract and its table of results alone: wording and defaults are ours, and "
            "nothing here reproduces it. Classifiers were fitted on labelled rows; prompts hold the examples alone."
        )
        return told

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        larger = (
            "The same trial with a larger model: broadsheet try data_preprocessors --model Qwen/Qwen2.5-7B-Instruct "
            "--device cuda, or --model endpoint:gpt-4o."
        )
        if "tokens" in claim.metric:
            return (
                "What a batch saves in prompts is spent again where its answers are not numbered as the questions are: "
                f"such rows are asked once more, alone. A model that keeps to the form asks once. {larger}"
            )
        return (
            f"The paper's figures are of GPT-3.5, GPT-4 and a 13B model; {self.model_name} has to read a record, hold "
            f"it against examples and keep to a form of two lines. {larger}"
        )


def prompt_tokens(teacher: Teacher, task: Task, made: PlantedTask, size: int) -> float:
    """Prompt tokens of a row, with so many rows a request."""
    prompt = TablePrompt(task, made.shots)
    questions = [task.question(case.about) for case in made.asked]
    whole = len(questions) // size * size or len(questions)
    batches = [prompt.numbered(questions[start : start + size]) for start in range(0, whole, size)]
    readings = teacher.backend.read(batches, 1)
    return sum(len(reading["ids"] if isinstance(reading, dict) else reading) for reading in readings) / whole


def best_threshold(so: Sequence[bool], scores: Sequence[float]) -> float:
    """The score above which yes is told best, by balanced accuracy; from those halfway between scores."""
    known = np.unique(np.asarray(scores, dtype=np.float64))
    between = [float(known[0]) - 1.0, *((known[:-1] + known[1:]) / 2).tolist()]
    return max(between, key=lambda each: agreement(so, [score > each for score in scores])["balanced_accuracy"])


def _seen(name: str, cases: Sequence[PlantedCase]) -> list[Any]:
    """What is fitted is given of cases: pairs, or rows."""
    return [sides_of_cell(case.about, CHECKED) if name == "errors" else case.about for case in cases]


def _fit(kind: str, name: str, seen: Sequence[Any], answers: Sequence[Any]) -> Any:
    if kind == MAJORITY:
        return Majority().fit(answers)
    if name == "impute":
        return Neighbours(FILLED, k=1 if kind == TFIDF else 3).fit(seen)
    if kind == TFIDF:
        return CosineThreshold(reverse=name == "errors").fit(seen, answers)
    return SimilarityRegression().fit(seen, answers)


def _examples(name: str, cases: Sequence[PlantedCase], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Two cases with whether each arm was right."""
    output = name if name in BALANCED else FOUND
    right: list[dict[str, bool]] = []
    for place in range(len(cases)):
        said = {arm: result.samples[output][place] for arm, result in arms.items()}
        right.append({arm: each[0] == each[1] if name in BALANCED else bool(each) for arm, each in said.items()})
    found = []
    for place in most_apart(right, 2):
        case = cases[place]
        told = {arm: marked(good, "right" if good else "wrong") for arm, good in right[place].items()}
        gold = ("yes" if case.gold else "no") if isinstance(case.gold, bool) else case.gold
        found.append(Example(excerpt(TASKS[name].question(case.about), 400), told, f"Right: {gold}"))
    return found
