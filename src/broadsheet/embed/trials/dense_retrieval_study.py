"""Run a table of the dense-retrieval study: train and ask its cells, and set their numbers beside one another.

Knows: presets, cells and their records, intervals and verdicts. Does not know: how a cell is trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.embed.dense_retrieval_study import (
    CellRecord,
    Study,
    StudyBackbone,
    StudyCell,
    StudyQuestion,
    StudyRecipe,
)
from broadsheet.embed.modules.from_scratch import BATCH, LENGTH
from broadsheet.embed.trials.base import Count, number
from broadsheet.embed.trials.study_notes import of_backbones, of_rates, of_table
from broadsheet.embed.trials.study_presets import PRESETS, Axes, PresetRow, Table, table
from broadsheet.options import best_of, option
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.base import Outcome
from broadsheet.trial.claims import judge
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.results import ArmResult, Curve, Example, TrialResult
from broadsheet.trial.sampling import seconds_of
from broadsheet.trial.stats import Floats, Interval, interval
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison, compare_samples, margins

METRICS = {"nDCG@10": "nDCG@10", "RR@10": "RR@10", "Recall@10": "R@10", "Recall@100": "R@100"}
_SEVERAL = ("nDCG@10", "RR@10")  # of a table that asks several questions
_UNITS = (("B", 1e9), ("M", 1e6), ("k", 1e3))
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # that each training's is chosen from; the first is the study's
SIZES = ("scratch:1M", "scratch:3M", "scratch:10M")
_OF_SIZE = ("A", "B", "C")  # tables that are about sizes


@dataclass
class DenseRetrievalStudyTrial(TrainedTrial):
    """One recipe for many dense retrievers: a table of the study, on your backbones.

    Every cell is trained (or read back: cells are kept under the cache by all that decides them), asked the same
    queries, and recorded with its parameters, steps, tokens, time and memory. Training and asked packages are
    different ones. Each training takes the best of as many learning rates as every other. Presets: A sizes in-domain,
    beside the raw models; B accuracy by steps of one run; C sizes on other sets; D long passages, by tokens read; E
    with and without instruction; F joint and single-task training; `grid` every combination of the axes below.
    """

    paper: ClassVar[str] = "dense_retrieval_study"
    title: ClassVar[str] = "Dense retrieval"

    preset: str = option("A", "Which table.", choices=PRESETS)
    backbones: tuple[str, ...] = option(
        (),
        "Causal LMs, as --model takes them, or scratch:0.4M, scratch:1M, …: pre-trained here on equal tokens. By "
        f"default that of --model; where neither is given, nor --layers, A, B and C take {', '.join(SIZES)}.",
    )
    pretraining: int = option(
        StudyRecipe.pretraining, f"Steps of {BATCH} × {LENGTH} tokens of backbones from nothing.", quick=12, least=1
    )
    layers: tuple[int, ...] = option(
        (),
        "Depths of each backbone; by default all of several; of one a fifth, two fifths, three fifths, all.",
        least=1,
    )
    poolings: tuple[str, ...] = option(
        ("last-token",),
        "The last token is an appended end-of-text token.",
        choices=("last-token", "mean", "weighted-mean"),
    )
    attentions: tuple[str, ...] = option(("causal",), "Of the backbones.", choices=("causal", "bidirectional"))
    losses: tuple[str, ...] = option(
        ("infonce",), "Contrastive losses.", choices=("infonce", "ntxent-cos", "ntxent-l2")
    )
    tunings: tuple[str, ...] = option(("lora",), "What is trained.", choices=("lora", "full"))
    instructions: tuple[str, ...] = option(("without",), "For grid.", choices=("without", "with"))
    train_on: tuple[str, ...] = option(
        ("summary", "name"),
        "Tasks that F trains for.",
        choices=("summary", "name", "half"),
    )
    sets: tuple[str, ...] = option(
        ("name", "half"), "That C asks: summary, name, half, long, or BEIR folders.", metavar="NAME,…"
    )
    cutoffs: tuple[int, ...] = option((64, 128, 256, 512), "Tokens that D reads.", least=1)
    steps: int = option(25, "Of training.", quick=3, least=1)
    batch: int = option(32, "Queries of a step.", quick=4, least=1)
    negatives: int = option(1, "Hard negatives of a query.", least=0)
    learning_rate: float | None = option(
        None,
        f"Of all trainings, {RATES[0]:g} in the study; by default {best_of(RATES)} for each, on queries that no table "
        "asks.",
        quick=RATES[1],
        least=0,
    )
    temperature: float = option(0.02, "The study's.", least=1e-6)
    words: int = option(24, "Of a passage.", quick=12, least=1)
    length: int = option(64, "Tokens of a text in training.", quick=48, least=1)
    queries: Count = option(100, "Asked.", quick=10, least=1)
    passages: Count = option(300, "Searched.", quick=40, least=1)
    chunk: int = option(
        8,
        "Queries that are read at once; 0: all. What does not fit in memory is read again for the gradients.",
        least=0,
    )

    def check(self) -> None:
        several = ("poolings", "attentions", "losses", "tunings", "instructions", "train_on", "sets", "cutoffs")
        for name in several:
            if not getattr(self, name):
                raise InputError(f"got --{name.replace('_', '-')} with nothing in it; expected at least one value")

    def run(self) -> TrialResult:
        """Train and ask the cells, compare, explain; more seeds follow where they would decide a claim.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        seconds_of(self.budget)  # refused before anything is trained
        known = margins(self.margin, METRICS)
        if unknown := known.keys() - METRICS.keys():
            raise InputError(f"got --margin {min(unknown)}; expected some of {', '.join(METRICS)}")
        begin = time.monotonic()
        recipe, question = self._recipe(), self._question()
        self.study_ = Study(device=self.device or "", dtype=self.dtype or "")
        axes = self._axes()
        made = table(self.preset, axes, recipe, question)
        facts = {"seed": self.seed, **self._facts(axes, made)}
        key = fingerprint([versions(), facts, self.given(), self.tried])
        self.workdir = home() / "trials" / f"{self.tried}-{key}"  # the choice of rates
        self.workdir.mkdir(parents=True, exist_ok=True)
        made = self._tuned_table(made)
        while True:
            arms, records, answers = self._arms(made)
            comparisons = _comparisons(made, answers, self.seed, known)
            judged = judge(made.claims, comparisons, trained=[row.name for row in made.rows if row.step])
            if not self._extended(judged, time.monotonic() - begin):
                break
        return TrialResult(
            paper=self.tried,
            title=f"{self.title}, table {self.preset}: {made.title}",
            question=made.question,
            setting={
                "backbone": ", ".join(map(models.title, axes.backbones)),
                "recipe": self._told_of(recipe),
                "asked": "; ".join(self._asked(made)),
                "seeds": ", ".join(map(str, self.seeds)),
                **self._told_of_tuning(),
            },
            arms=arms,
            comparisons=comparisons,
            item="query",
            judged=judged,
            figures=[curve] if (curve := _curve(made, arms)) else [],
            examples=self._examples(made, records),
            notes=[
                *made.notes,
                *of_backbones(made, self._found(axes)),
                *of_rates({name: (kept["best"], self.settings_tried(name)) for name, kept in self._tuning.items()}),
                *of_table(made, comparisons, records),
                *self._absent(judged, Outcome([], arms, comparisons)),
            ],
            provenance=provenance(
                **facts, cells={name: [_told(record) for record in each] for name, each in records.items()}
            ),
        )

    def _tuned_table(self, made: Table) -> Table:
        """The table with the best learning rate for each of its trainings; their whole runs are kept, and used."""
        if self.learning_rate is not None:
            return made
        trained = list(dict.fromkeys(row.recipe for row in made.rows if row.step))
        chosen = dict(zip(trained, map(self._best, trained, _names(trained)), strict=True))
        return replace(made, rows=[replace(row, recipe=chosen.get(row.recipe, row.recipe)) for row in made.rows])

    def _best(self, recipe: StudyRecipe, name: str) -> StudyRecipe:
        asked = self.study_.tuning(recipe)

        def score(rate: float) -> float:
            return self.study_.score(replace(recipe, learning_rate=rate), asked)

        try:
            rate = self.tuned(name, RATES, score, on="; ".join(task.about for task in asked), open_ended=True)
        except InputError:  # its rows fail, and say why
            return recipe
        return replace(recipe, learning_rate=rate)

    def _told_of(self, recipe: StudyRecipe) -> str:
        rate = "its own" if self.learning_rate is None else f"{self.learning_rate:g}"
        return (
            f"{recipe.steps} steps of {recipe.batch} queries with {recipe.negatives} hard negatives, "
            f"{recipe.loss} at τ = {recipe.temperature:g}, learning rate {rate}, falling to 0, {recipe.words} words a "
            f"passage, {recipe.length} tokens a text"
        )

    def _recipe(self) -> StudyRecipe:
        first: dict[str, Any] = {
            "pooling": self.poolings[0],
            "attention": self.attentions[0],
            "loss": self.losses[0],
            "method": self.tunings[0],
        }
        return StudyRecipe(
            backbone=self.model,
            temperature=self.temperature,
            learning_rate=RATES[0] if self.learning_rate is None else self.learning_rate,
            steps=self.steps,
            batch=self.batch,
            negatives=self.negatives,
            words=self.words,
            length=self.length,
            chunk=self.chunk,
            pretraining=self.pretraining,
            split=self.seed,
            seed=self.seed,
            data=self._documentation,
            **first,
        )

    def _question(self) -> StudyQuestion:
        return StudyQuestion(
            task="summary" if is_pydocs(self.data) else self.data,
            queries=number(self.queries),
            passages=number(self.passages),
            words=self.words,
            length=self.length,
            seed=self.seed,
            data=self._documentation,
        )

    @property
    def _documentation(self) -> str:
        """What is trained on, and searched by the tasks of documentation."""
        return self.data if is_pydocs(self.data) else "pydocs"

    def _found(self, axes: Axes) -> dict[str, StudyBackbone]:
        recipe = self._recipe()
        return {name: self.study_.backbone(replace(recipe, backbone=name)) for name in axes.backbones}

    def _axes(self) -> Axes:
        recipe = self._recipe()
        found = {name: self.study_.backbone(replace(recipe, backbone=name)) for name in self._backbones()}
        backbones = sorted(found, key=lambda name: found[name].weights)
        layers = {name: self._layers(name, found[name].depth, several=len(found) > 1) for name in backbones}
        return Axes(
            tuple(backbones),
            layers,
            poolings=self.poolings,
            attentions=self.attentions,
            losses=self.losses,
            methods=self.tunings,
            tasks=self.train_on,
            sets=self.sets,
            cutoffs=tuple(sorted(self.cutoffs)),
            instructed=tuple(name == "with" for name in self.instructions),
        )

    def _backbones(self) -> tuple[str, ...]:
        if self.backbones or self.layers or self.model != "default" or self.preset not in _OF_SIZE:
            return self.backbones or (self.model,)
        return SIZES[:2] if self.quick else SIZES

    def _layers(self, name: str, depth: int, *, several: bool) -> tuple[int, ...]:
        """Of a backbone, ascending; 0 for all layers of one among several."""
        if self.layers and max(self.layers) > depth:
            raise InputError(f"got --layers {','.join(map(str, self.layers))}; {name} has {depth}")
        if not several:
            return tuple(sorted(self.layers)) or _fifths(depth, quick=self.quick)
        return (
            *sorted(each for each in self.layers if each < depth),
            *([0] if depth in (self.layers or [depth]) else []),
        )

    def _arms(self, made: Table) -> tuple[list[ArmResult], dict[str, list[CellRecord]], dict[str, dict[str, Floats]]]:
        """Each row's result, records and answers: its cells are trained and asked, one after the other."""
        arms, records, answers = [], {}, {}
        for i, row in enumerate(made.rows, start=1):
            say(f"cell {i} of {len(made.rows)}: {row.name}")
            try:
                found = {label: self._records(row, question) for label, question in row.questions.items()}
            except InputError as error:
                arms.append(ArmResult(row.name, row.role, row.about, status="failed", error=str(error)))
                continue
            records[row.name] = next(iter(found.values()))
            answers[row.name] = _answers(found)
            arms.append(_arm(row, records[row.name], answers[row.name], self.seed))
        if all(arm.status == "failed" for arm in arms):
            raise InputError(f"no cell could be run; the first one: {arms[0].error}")
        return arms, records, answers

    def _records(self, row: PresetRow, question: StudyQuestion) -> list[CellRecord]:
        """A record for each seed; what is asked is the same."""
        seeds = [row.recipe.seed + i for i in range(self._runs if row.step else 1)]
        return [self.study_.cell(StudyCell(replace(row.recipe, seed=seed), row.step, question)) for seed in seeds]

    def _examples(self, made: Table, records: Mapping[str, list[CellRecord]]) -> list[Example]:
        """Queries with the place at which each row has the right passage; none where rows are asked several things."""
        questions = list(dict.fromkeys(question for row in made.rows for question in row.questions.values()))
        if len(questions) > 1:
            return []
        task, asked = self.study_.task(questions[0]), next(iter(records.values()))[0].queries
        texts = {query.id: query.text for query in task.queries}
        reciprocals = [{name: each[0].values["RR@10"][i] for name, each in records.items()} for i in range(len(asked))]
        found = []
        for i in most_apart(reciprocals):
            told = {
                name: f"the right passage at place {1 / each:.0f}" if each else "no right passage among the first ten"
                for name, each in reciprocals[i].items()
            }
            right = next((task.corpus[name] for name, grade in task.qrels[asked[i]].items() if grade > 0), "")
            found.append(Example(excerpt(texts[asked[i]]), told, f"Right: {excerpt(right)}"))
        return found

    def _asked(self, made: Table) -> list[str]:
        questions = {question for row in made.rows for question in row.questions.values()}
        return sorted({self.study_.task(question).about for question in questions})

    def _facts(self, axes: Axes, made: Table) -> dict[str, Any]:
        """Backbones and data."""
        questions = {question for row in made.rows for question in row.questions.values()}
        asked = {question.task: self.study_.task(question).fingerprint() for question in questions}
        backbones: dict[str, Any] = {}
        for name, found in self._found(axes).items():
            backbones[name] = {"fingerprint": found.fingerprint}
            if found.pretrained is not None:
                backbones[name]["pretrained"] = asdict(found.pretrained)
        return {"models": backbones, "data": {"name": self.data, "fingerprint": asked}}


def _names(recipes: Sequence[StudyRecipe]) -> list[str]:
    """A name for each: where they differ from one another."""
    fields = [asdict(recipe) for recipe in recipes]
    varied = [name for name in fields[0] if len({repr(each[name]) for each in fields}) > 1]
    return [
        ", ".join(f"{name} {' and '.join(v) if isinstance(v := each[name], tuple) else v}" for name in varied)
        or "all rows"
        for each in fields
    ]


def _fifths(depth: int, *, quick: bool) -> tuple[int, ...]:
    """Depths of about one, two, three and five fifths; the first and the last where it has to be quick."""
    found = sorted({max(1, round(depth * i / 5)) for i in ((1, 5) if quick else (1, 2, 3, 5))})
    return tuple(found)


def _answers(found: Mapping[str, list[CellRecord]]) -> dict[str, Floats]:
    """(runs, queries) by metric, of each question that is asked."""
    wanted = METRICS if len(found) == 1 else {name: METRICS[name] for name in _SEVERAL}
    return {
        f"{name} ({label})" if label else name: np.stack([record.values[measure] for record in records])
        for label, records in found.items()
        for name, measure in wanted.items()
    }


def _arm(row: PresetRow, records: list[CellRecord], answers: Mapping[str, Floats], seed: int) -> ArmResult:
    first = records[0]
    told = [_size(first), row.about]
    if row.step:
        told.insert(
            1,
            f"{row.step} steps, {first.tokens:,} tokens, {first.seconds:,.0f} s, "
            f"learning rate {row.recipe.learning_rate:g}",
        )
    spans = {
        name: interval(values if len(values) > 1 else values[0], runs=len(values) > 1, seed=seed)
        for name, values in answers.items()
    }
    return ArmResult(
        row.name,
        row.role,
        "; ".join(filter(None, told)),
        n_items=len(first.queries),
        runs=len(records),
        values={name: _within(span) for name, span in spans.items()},
        prepare_seconds=sum(record.seconds for record in records),
        peak_bytes=max(max(record.peak_bytes, record.answer_peak_bytes) for record in records),
        samples={name: values.mean(0).tolist() for name, values in answers.items()},
    )


def _within(span: Interval) -> Interval:
    return Interval(span.estimate, max(0.0, span.low), min(1.0, span.high))


def _comparisons(
    made: Table, answers: Mapping[str, Mapping[str, Floats]], seed: int, known: Mapping[str, float]
) -> list[Comparison]:
    """The baseline against every row, and the pairs; on a CPU a cell run again gives the same, so there is no floor.

    Args:
        known: margins by metric, of whatever is asked.
    """
    baseline = next(row.name for row in made.rows if row.role == "baseline")
    wanted = [(baseline, row.name) for row in made.rows if row.name != baseline]
    wanted += [pair for pair in made.pairs if pair not in wanted]
    wanted += [pair for claim in made.claims if (pair := (claim.baseline, claim.arm)) not in wanted]
    return [
        compare_samples(
            values,
            answers[b][name],
            metric=name,
            baseline=a,
            arm=b,
            runs=True,
            bounds=(0, 1),
            seed=seed,
            margin=known.get(name.partition(" (")[0]),
        )
        for a, b in wanted
        if {a, b} <= answers.keys()
        for name, values in answers[a].items()
        if name in answers[b]
    ]


def _curve(made: Table, arms: Sequence[ArmResult]) -> Curve | None:
    if made.curve is None:
        return None
    title, axis, points = made.curve
    usable = {arm.name: arm for arm in arms if arm.status == "ok"}
    xs = sorted({x for _, x, _ in points})
    place = {(line, x): usable[row].values["nDCG@10"] for line, x, row in points if row in usable}
    names = list(dict.fromkeys(line for line, _, _ in points))

    def drawn(end: str) -> dict[str, list[float | None]]:
        return {name: [getattr(place.get((name, x)), end, None) for x in xs] for name in names}

    return Curve(title, axis, "nDCG@10", xs, drawn("estimate"), drawn("low"), drawn("high"), log_x=True)


def _told(record: CellRecord) -> dict[str, Any]:
    """A record without its answers, for the evidence."""
    return {key: value for key, value in asdict(record).items() if key not in ("queries", "values")}


def _size(record: CellRecord) -> str:
    def short(number: int) -> str:
        unit, scale = next(((unit, scale) for unit, scale in _UNITS if number >= scale), ("", 1.0))
        return f"{number / scale:.3g}{unit}"

    return f"{short(record.parameters)} parameters, {short(record.non_embedding)} besides embeddings"
