"""Try a profile: languages, duplicates and overlap that are known, measured over all rows, over some, and guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from broadsheet.cache import fingerprint
from broadsheet.console import quiet
from broadsheet.curate.datasets_survey import Profile, Profiler
from broadsheet.curate.trials.planted_sets import PlantedSet, passages, planted
from broadsheet.data import corpora
from broadsheet.options import option
from broadsheet.trial.base import EvalTask, ModelArm, Trial
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Example

if TYPE_CHECKING:
    from broadsheet.teacher import Teacher

SAMPLE, ALL = "a hundred rows", "all rows"
EXACT, GUESSED = "all rows, equal texts alone", "a hundred rows, languages guessed by the model"
ERRORS = LANGUAGES, DUPLICATES, HELD = "error, languages", "error, duplicates", "error, benchmark"
SECONDS = Metric("seconds", higher_is_better=False, scale="ratio", unit="s")
_SAMPLE = 100
_READ = 100  # characters of a row that the model reads
_ASKED = "{}\n\nThe text above is written in"
NAMES = {
    "ar": "Arabic", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fr": "French", "hr": "Croatian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
Estimate = tuple[Mapping[str, float], float, float]  # languages, duplicates, held of the benchmark


@dataclass
class DatasetsSurveyTrial(Trial):
    """Is a card that is measured over all rows nearer the truth than one from a look at some, or from a model's guess?

    Small datasets of one to four languages are made of a handbook's translations, with copies of rows and with items of
    a benchmark in them. What is true of each is known. The same figures are taken over all rows; over a hundred drawn
    ones, as a maintainer looks at some; with equal texts alone as duplicates, as a viewer counts them; and with
    languages named by the model. The survey measures nothing and claims no effect, so no claim is judged here.
    """

    paper: ClassVar[str] = "datasets_survey"
    title: ClassVar[str] = "Datasets survey: a card that fills itself"

    data: str = option(
        "resource:handbook/pages.jsonl",
        "Pages with a field `language`, in English and three languages more.",
        metavar="DATA",
    )
    sets: int = option(40, "Datasets that are made.", quick=6, least=5)
    rows: int = option(400, "Of each.", quick=150, least=110)

    def question(self) -> str:
        return (
            "Are languages, duplicates and overlap nearer the truth where they are measured over all rows than over a "
            "hundred, and than a model's guess?"
        )

    # What is asked

    def tasks(self) -> list[EvalTask]:
        with quiet():
            found = passages(corpora.load(self.data))
        self._known = {name: NAMES[name] for name in found if name in NAMES}
        made = {name: some for name, some in found.items() if name in NAMES}
        sets = [planted(made, number, self.rows, self.seed) for number in range(self.sets)]
        errors = [Metric(name, higher_is_better=False, bounds=(0, 1)) for name in (LANGUAGES, DUPLICATES, HELD)]
        return [
            EvalTask(
                "cards",
                sets,
                [*errors, SECONDS],
                self._arm,
                item="dataset",
                about=f"{self.sets} datasets of {self.rows} rows, from {len(made)} languages of {self.data}",
                fingerprint=fingerprint([[each.rows, each.benchmark] for each in sets]),
                block_size=max(1, self.sets // 10),
                examples=self._examples,
            )
        ]

    def setting(self) -> Mapping[str, Any]:
        return {
            "languages": ", ".join(self._known),
            "rows": f"{self.rows}; up to a third are copies, one in three to the letter",
            "benchmark": "40 items, a share of them planted",
        }

    # Arms

    def arms(self) -> list[ModelArm]:
        ours = Profiler.paper
        return [
            ModelArm(SAMPLE, self._sampled, "baseline", "as a maintainer looks at some"),
            ModelArm(ALL, self._whole, None, "one pass over the data", ours),
            ModelArm(EXACT, partial(self._whole, near=False), "sibling", "without MinHash, as a viewer counts them"),
            ModelArm(GUESSED, self._guessed, "sibling", "the most probable name of a language, row by row"),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        """The survey claims no effect, so nothing is judged as its claim: these are compared, and no more."""
        return [(SAMPLE, ALL), (EXACT, ALL), (GUESSED, ALL)]

    def _profiler(self, **given: Any) -> Profiler:
        return self.configured(Profiler, **given)

    def _whole(self, **given: Any) -> Callable[[PlantedSet], Estimate]:
        profiler = self._profiler(**given)

        def estimate(planted: PlantedSet) -> Estimate:
            found = _measured(profiler, planted)
            assert found.overlap is not None
            copies = found.exact if found.near is None else found.near
            return found.languages, copies / found.instances, found.overlap.share

        return estimate

    def _sampled(self) -> Callable[[PlantedSet], Estimate]:
        whole = self._whole()
        return lambda planted: whole(_some(planted, self.seed))

    def _guessed(self) -> Callable[[PlantedSet], Estimate]:
        whole, teacher = self._whole(), self._teacher()
        codes = list(self._known)

        def estimate(planted: PlantedSet) -> Estimate:
            some = _some(planted, self.seed)
            _, copies, held = whole(some)
            scores = teacher.score(
                [_ASKED.format(text[:_READ]) for text in some.rows],
                [f" {self._known[code]}" for code in codes],
                calibration="content_free",
                content_free_prompts=[_ASKED.format(text) for text in ("", "N/A")],
                raw=True,
            )
            sizes: dict[str, float] = {}
            for text, row in zip(some.rows, scores, strict=True):
                code = codes[int(np.argmax(row))]
                sizes[code] = sizes.get(code, 0.0) + len(text.encode())
            total = sum(sizes.values())
            return {code: size / total for code, size in sizes.items()}, copies, held

        return estimate

    def _teacher(self) -> Teacher:
        from broadsheet.teacher import Teacher
        from broadsheet.teacher.local import Local

        return Teacher(Local(*self.loaded), cache=False)

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[PlantedSet]) -> dict[str, Any]:
            made: dict[str, list[float]] = {LANGUAGES: [], DUPLICATES: [], HELD: [], SECONDS.name: []}
            for each in block:
                started = time.perf_counter()
                languages, copies, held = lazy()(each)
                made[SECONDS.name].append(time.perf_counter() - started)
                made[LANGUAGES].append(apart(each.languages, languages))
                made[DUPLICATES].append(abs(copies - each.duplicates))
                made[HELD].append(abs(held - each.held))
            return {name: np.array(values) for name, values in made.items()}

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _examples(self, sets: Sequence[PlantedSet], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Datasets, what is true of them, and how far off each arm is."""
        errors = [{name: float(arm.samples[DUPLICATES][i]) for name, arm in arms.items()} for i in range(len(sets))]
        found = []
        for i in most_apart(errors, 3):
            told = ", ".join(f"{name} {share:.0%}" for name, share in sets[i].languages.items())
            about = (
                f"{len(sets[i].rows)} rows: {told}; {sets[i].duplicates:.0%} copies; {sets[i].held:.0%} of the items"
            )
            shown = {
                name: ", ".join(f"{arm.samples[each][i]:.3f} {each.removeprefix('error, ')}" for each in ERRORS)
                for name, arm in arms.items()
            }
            found.append(Example(about.replace("%", " %"), shown))
        return found


def _measured(profiler: Profiler, planted: PlantedSet) -> Profile:
    with TemporaryDirectory() as folder, quiet():
        data, benchmark = planted.write(Path(folder))
        return profiler.measure(str(data), Path(folder) / "work", benchmark=str(benchmark))


def _some(planted: PlantedSet, seed: int) -> PlantedSet:
    """The same dataset, of which a hundred rows were drawn."""
    drawn = np.random.default_rng([seed, planted.number]).choice(len(planted.rows), _SAMPLE, replace=False)
    return replace(planted, rows=tuple(planted.rows[i] for i in drawn))


def apart(true: Mapping[str, float], told: Mapping[str, float]) -> float:
    """How far two distributions are apart: half the sum of the differences, from 0 to 1 (total variation)."""
    return sum(abs(true.get(name, 0.0) - told.get(name, 0.0)) for name in {*true, *told}) / 2
