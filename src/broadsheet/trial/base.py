"""`Trial`: a paper's trial says its question, tasks, arms and claims; what holds for all trials is done here.

Knows: options, arms, tasks, the A/B engine, the work folder. Does not know: any stage. The base owns sizes and
`--quick`, the work folder and its journals (a stopped trial is resumed), facts and fingerprints, provenance, roles,
tuning, power (`sampling`), the check that claims are the tried paper's own, what comes of them, and the note that a
gain is absent. Trials whose arms are trained have a base of their own, in `trained`.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import numpy as np

from broadsheet.cache import atomic_write, fingerprint, home
from broadsheet.console import DivergenceError, InputError, duration, say
from broadsheet.methods import ForPaper
from broadsheet.options import MOST_SEED, option
from broadsheet.page.evidence import provenance, versions
from broadsheet.seeds import seeded
from broadsheet.took import Took
from broadsheet.training.workdir import starting_over
from broadsheet.trial.claims import Claim, JudgedClaim, judge
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.examples import together
from broadsheet.trial.lazy import LazyModel, ModelPool
from broadsheet.trial.results import ArmResult, Curve, Distribution, Example, Role, TrialResult, joined, plural
from broadsheet.trial.sampling import PilotSampling, seconds_of
from broadsheet.trial.stats import MIN_UNITS
from broadsheet.trial.verdicts import Comparison, margins

if TYPE_CHECKING:
    from broadsheet.models import Loaded

Figure = Curve | Distribution
Setting = TypeVar("Setting")
MOST_BEYOND = 2  # settings beyond those given that an open-ended scale is continued by


@dataclass(frozen=True)
class ModelArm:
    """What takes part in a trial: a model, method or program that is made once, and runs as one arm of each task.

    Args:
        name: as printed.
        make: loads, trains or builds it, when it is first asked for.
        by_seed: for an arm that is trained: a seed to its `make`. It takes part with as many training runs as the
            trial's `--runs`, and `make` is that of the first. `TrainedTrial.trained` makes such arms.
        train: for such an arm: trains it from a seed where that is not done, and keeps nothing in memory.
        role: `"baseline"` for one arm; `"sibling"` and `"peer"` as in `Arm`. None: `"method"` where it is of the paper
            that is tried, else `"sibling"`.
        description: one line.
        paper: the id of the paper it is of; empty for what no paper of the page adds.
    """

    name: str
    make: Callable[[], Any] = field(repr=False)
    role: Literal["baseline", "sibling", "peer"] | None = None
    description: str = ""
    paper: str = ""
    by_seed: Callable[[int], Callable[[], Any]] | None = field(default=None, repr=False)
    train: Callable[[int], None] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, name: str, made: Any, role: Literal["baseline", "sibling", "peer"] | None = None, description: str = ""
    ) -> ModelArm:
        """An arm of what is made already; its class says of which paper it is."""
        return cls(name, lambda: made, role, description, getattr(made, "paper", ""))


@dataclass(frozen=True)
class EvalTask:
    """What every arm is asked.

    Args:
        name: as errors and files name it.
        items: what the arms answer.
        metrics: computed from the answers.
        arm: `(model arm, its lazy model, path for what it may keep)` to the arm; the base sets its role.
        item: what is counted, in the singular; `per_item` of them in an item (2 for a pair of texts).
        about: one line for the trial's setting.
        fingerprint: of the items.
        blocks: timed turns of each arm; `block_size`, items in a turn, decides instead where it is given.
        pilot: items that are asked before it is decided how many of `items`, which are in random order, the claims
            need; 0: all are asked. The pilot has five blocks at least.
        once: names of the arms that are asked, each by its first training run alone, where what is measured hangs on no
            training (times, sizes): claims about it need no further runs. By default, and in the first task, every run
            of every arm is asked.
        examples: the items that were asked, and the arms that did not fail by name, to a few items with what arms made
            of them, those on which they differ most first.
    """

    name: str
    items: Sequence[Any]
    metrics: Sequence[Metric]
    arm: Callable[[ModelArm, LazyModel, Path], Arm] = field(repr=False)
    item: str = "item"
    per_item: int = 1
    about: str = ""
    fingerprint: str = ""
    blocks: int = 10
    block_size: int | None = None
    pilot: int = 0
    once: tuple[str, ...] = ()
    examples: Callable[[Sequence[Any], Mapping[str, ArmResult]], Sequence[Example]] | None = field(
        default=None, repr=False
    )


@dataclass(frozen=True)
class Outcome:
    """What the arms did, for figures and notes; `tasks` hold the items that were asked."""

    tasks: Sequence[EvalTask]
    results: list[ArmResult]
    comparisons: list[Comparison]

    @cached_property
    def usable(self) -> dict[str, ArmResult]:
        """The arms that did not fail, by name."""
        return {arm.name: arm for arm in self.results if arm.status == "ok"}

    def comparison(self, metric: str, baseline: str, arm: str) -> Comparison | None:
        """That comparison, or None where it was not made."""
        key = (metric, baseline, arm)
        return next((c for c in self.comparisons if (c.metric, c.baseline, c.arm) == key), None)


@dataclass
class Trial(ForPaper):
    """The base of trials. A subclass sets `paper` (or `stage`) and `title`, declares its options, and says:

    - `question()`: what is asked, in one sentence.
    - `tasks()`: data and metrics; may load data, and raises InputError where it cannot be used.
    - `arms()`: who takes part, the baseline among them.
    - `claims()`: what the paper says it wins.
    - and, where there is more to say, `setting()`, `also_compare()`, `figures()`, `notes()`, `absence()`, `examples()`.

    A stage's own trial (`stage = "detect"`) serves each paper of the stage that has no trial of its own: arms get the
    role `method`, and claims hold, by the paper that is tried.
    """

    title: ClassVar[str] = ""
    of_training: ClassVar[tuple[str, ...]] = ()  # metrics of how arms were trained

    model: str = option("default", "`default`, a hub id, a folder, or a .gguf file.", metavar="MODEL")
    data: str = option(
        "pydocs",
        "`pydocs`, `pydocs:stdlib`, a file or folder of documents, `resource:NAME`, or `hf:[org/]name:split`.",
        metavar="DATA",
    )
    quick: bool = option(False, "Fewer items: minutes instead of tens of minutes.")
    seed: int = option(0, "Of sampling, shuffling, training and the bootstrap.", least=0, most=MOST_SEED)
    device: str | None = option(None, "Where models run; chosen by default.", metavar="NAME")
    dtype: str | None = option(None, "Of the models; chosen by default.", metavar="NAME")
    margin: tuple[str, ...] = option(
        (),
        "How much worse still counts as no worse, in the metric's unit (a share for speed): nDCG@10=0.01.",
        metavar="METRIC=δ,…",
    )
    budget: str | None = option(
        None,
        "The most time that may be spent where a trial takes as many items or training runs as it needs: 30m, 2h.",
        metavar="TIME",
    )
    method: str | None = option(
        None, "Fields of the method that is tried, as in 'lm_infinite(n_local=1024)'.", metavar="NAME(FIELD=VALUE)"
    )

    # What a subclass says

    def question(self) -> str:
        """What is asked, in one sentence."""
        raise NotImplementedError

    def tasks(self) -> Sequence[EvalTask]:
        """What the arms are asked. Loads data, and keeps on `self` what `arms` needs of it."""
        raise NotImplementedError

    def arms(self) -> Sequence[ModelArm]:
        """Who takes part; `self.workdir` exists by then."""
        raise NotImplementedError

    def claims(self) -> Sequence[Claim]:
        """What the tried paper says it wins, among these arms."""
        return []

    def also_compare(self) -> Sequence[tuple[str, str]]:
        """Further comparisons, `(baseline, arm)`, beside those of every arm with the baseline and of every claim."""
        return []

    def facts(self) -> dict[str, Any]:
        """What decides the outcome besides options and items; by default the model's fingerprint."""
        kept = "loaded" in self.__dict__
        known = {"model": {"name": self.model, "fingerprint": self.loaded.fingerprint}}
        if not kept:
            self.release()
        return known

    def setting(self) -> Mapping[str, Any]:
        """What a reader should know of this run, by name; model and tasks are added by themselves."""
        return {}

    def demonstration(self) -> str:
        """Why this run is a demonstration alone: its features or weights are not real. Empty where they are."""
        return ""

    def figures(self, outcome: Outcome) -> Sequence[Figure]:
        """The trial's own figures."""
        return []

    def examples(self, outcome: Outcome) -> Sequence[Example]:
        """Three to five items with what arms made of them, for readers to judge by; by default its tasks'."""
        return together([task.examples(task.items, outcome.usable) for task in outcome.tasks if task.examples])

    def notes(self, outcome: Outcome) -> Sequence[str]:
        """What a reader should know before trusting the numbers; each is made from this run."""
        return []

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        """Why a gain that the paper reports may be absent here: scale, data, or what was measured of the mechanism."""
        return ""

    # What a subclass uses

    @cached_property
    def loaded(self) -> Loaded:
        """The model and its tokenizer; `release` lets go of them."""
        from broadsheet import models

        return models.load(self.model, device=self.device, dtype=self.dtype)

    def release(self) -> None:
        """Free `loaded`."""
        self.__dict__.pop("loaded", None)
        gc.collect()

    @property
    def model_name(self) -> str:
        """The model, in words."""
        from broadsheet import models

        return models.title(self.model)

    def folder(self, name: str) -> Path:
        """Where the arm of that name, or a part of it, is kept until the trial's result is written."""
        return self.workdir / fingerprint(name)

    def tuned(
        self,
        name: str,
        settings: Sequence[Setting],
        score: Callable[[Setting], float],
        *,
        on: str,
        open_ended: bool = False,
    ) -> Setting:
        """The best setting of an arm by its score on data that the test does not use; kept, so that it is not redone.

        Every tuned arm of a trial has to be given as many settings: a baseline is tuned as the method is. The best of a
        few rates may be the end of them, and the truth lie further out: an open-ended scale is then continued. A
        setting by which a training diverges, or whose score is no number, is the worst there is.

        Args:
            name: of the arm.
            settings: to choose from; JSON values.
            score: of a setting, higher is better.
            on: what it is scored on, for the report.
            open_ended: whether the settings are numbers, three at least and in order, of a scale that has no ends, such
                as learning rates: while the best is the first or the last, the next one beyond it is tried, of at most
                `MOST_BEYOND`.

        Raises:
            ValueError: no settings, fewer than three of an open-ended scale, or two arms are given different numbers of
                them.
            DivergenceError: by all settings.
        """
        if open_ended and len(settings) < 3:
            raise ValueError(f"got {len(settings)} settings of an open-ended scale; expected 3 at least")
        counts = {other: kept["given"] for other, kept in self._tuning.items()} | {name: len(settings)}
        if not settings or len(set(counts.values())) > 1:
            raise ValueError(f"got settings to choose from: {counts}; expected as many for each arm, one at least")
        path = self.folder(f"tuning of {name}").with_suffix(".json")
        scores: list[float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        tried = list(settings)  # as many as there are scores, or will be; what lies beyond follows from the scores
        done = 0
        while done < len(tried):
            if done == len(scores):
                say(f"tuning: {name}, {tried[done]}")
                with seeded(self.seed):
                    scores.append(_finite(score, tried[done]))
                with atomic_write(path) as file:
                    json.dump(scores, file)
            done += 1
            if open_ended and done == len(tried) < len(settings) + MOST_BEYOND:
                tried += cast(list[Setting], _beyond(cast(list[float], tried), scores[:done]))
        if max(scores[:done]) == -math.inf:
            raise DivergenceError(f"{name}: no setting of {tried} brings a finite score; give lower ones")
        best = tried[int(np.argmax(scores[:done]))]
        self._tuning[name] = {"given": len(settings), "tried": tried, "best": best, "on": on, "open": open_ended}
        return best

    def settings_tried(self, name: str) -> list[Any]:
        """Those that an arm was tuned over, with what lay beyond the ones given."""
        return list(self._tuning[name]["tried"])

    @cached_property
    def _tuning(self) -> dict[str, dict[str, Any]]:
        return {}

    # What the base does

    def run(self) -> TrialResult:
        """Load the data, run every arm on every task, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        with starting_over():  # a training that another version began is of no use
            return self._tried_whole()

    def _tried_whole(self) -> TrialResult:
        seconds_of(self.budget), margins(self.margin)  # refused before any data is read
        tasks = list(self.tasks())
        facts = {
            "seed": self.seed,
            **self.facts(),
            "data": {"name": self.data, "fingerprint": {task.name: task.fingerprint for task in tasks}},
        }
        key = fingerprint([versions(), facts, self.given(), self.tried])
        self.workdir = home() / "trials" / f"{self.tried}-{key}"
        self.workdir.mkdir(parents=True, exist_ok=True)
        arms, claims = list(self.arms()), list(self.claims())
        self._margins = {claim.metric: claim.margin for claim in claims if claim.margin is not None}
        self._margins |= margins(self.margin, self._comparable(tasks))
        self._check(arms, tasks, claims)
        took = Took(self.tried, {name: value for name, value in self.given().items() if name != "seed"})
        self._announce(arms, took.before)
        untaught = [metric.name for task in tasks if task.once for metric in task.metrics]
        resumed, begin = any(self.workdir.iterdir()), time.monotonic()
        while True:
            outcome = self._run(arms, tasks, claims)
            outcome.comparisons.extend(self._training(arms))
            seeded_arms = [arm.name for arm in arms if arm.by_seed]
            judged = judge(claims, outcome.comparisons, seeded_arms, untaught)
            if not self._extended(judged, time.monotonic() - begin):
                break
        if not resumed:
            took.keep(time.monotonic() - begin)
        return TrialResult(
            paper=self.tried,
            title=self.title,
            question=self.question(),
            setting={"model": self.model_name, **{task.name: task.about for task in tasks if task.about}}
            | dict(self.setting())
            | self._told_of_tuning()
            | ({"power": self._power} if self._power else {}),
            arms=outcome.results,
            comparisons=outcome.comparisons,
            item=tasks[0].item,
            judged=judged,
            figures=list(self.figures(outcome)),
            examples=list(self.examples(outcome)),
            notes=[*self.notes(outcome), *self._absent(judged, outcome)],
            provenance=provenance(**facts),
            demonstration=self.demonstration(),
        )

    def _announce(self, arms: Sequence[ModelArm], before: float | None) -> None:
        """Say what will be done, how long that took here before, and that it can be stopped."""
        say(f"{self.question()}\n{len(arms)} arms take part: {' · '.join(arm.name for arm in arms)}.")
        say(
            (f"This took {duration(before)} here before. " if before is not None else "")
            + "Stop it with Ctrl-C at any time: the same command goes on from there."
        )

    def finish(self) -> None:
        """Remove what `run` kept to be resumed; called when its result is written."""
        shutil.rmtree(self.workdir, ignore_errors=True)

    def _comparable(self, tasks: Sequence[EvalTask]) -> list[str]:
        """What a margin may be of: the tasks' metrics, the speed, those of training."""
        metrics = [metric.name for task in tasks for metric in task.metrics]
        return [*metrics, f"{plural(tasks[0].item)}/s", *self.of_training]

    def _check(self, arms: Sequence[ModelArm], tasks: Sequence[EvalTask], claims: Sequence[Claim]) -> None:
        """See that the trial is the tried paper's own.

        Raises:
            InputError: no arm is of the paper; `--method` names a method that takes no part; `--margin` names no
                metric, or gives no number; `--budget` is no time, or nothing is chosen by it.
            ValueError: a claim names no arm of the paper, no baseline, or no metric; two tasks share a metric's name.
        """
        self.check_calls()
        if seconds_of(self.budget) and not any(task.pilot for task in tasks) and not self._extensible:
            raise InputError("got --budget; the number of items is fixed here, by the trial or by an option")
        metrics = [metric.name for task in tasks for metric in task.metrics]
        known = self._comparable(tasks)
        if unknown := [name for name in margins(self.margin, known) if name not in known]:
            raise InputError(f"got --margin {unknown[0]}=…; expected one of the metrics {', '.join(known)}")
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"got metrics {metrics}; expected each name once")
        names = [arm.name for arm in arms]
        own = {arm.name for arm in arms if self._role(arm) == "method"}
        if not own:
            raise InputError(f"this trial has no arm of {self.tried}, so it cannot try it")
        for claim in claims:
            if claim.arm not in own:
                raise ValueError(f"the claim {claim} names no arm of {self.tried}; its arms are {sorted(own)}")
            if claim.baseline not in names:
                raise ValueError(f"the claim {claim} names no arm as its baseline; the arms are {names}")
            if claim.metric not in known:
                raise ValueError(f"the claim {claim} names no metric; the metrics are {known}")

    def _role(self, arm: ModelArm) -> Role:
        return arm.role or ("method" if self.of_tried_paper(arm) else "sibling")

    def _run(self, arms: Sequence[ModelArm], tasks: Sequence[EvalTask], claims: Sequence[Claim]) -> Outcome:
        """Every task with every arm: one result an arm, with the metrics of all tasks. Speed is the first task's."""
        turns = [(arm, number) for number in range(self._runs) for arm in arms if number == 0 or arm.by_seed]
        pool = ModelPool()
        lazy = {
            (arm.name, number): LazyModel(arm.by_seed(self.seed + number) if arm.by_seed else arm.make, pool)
            for arm, number in turns
        }
        wanted = [*((claim.baseline, claim.arm) for claim in claims), *self.also_compare()]
        whole: list[ArmResult] = []
        comparisons: list[Comparison] = []
        asked: list[EvalTask] = []
        power: list[str] = []
        try:
            for turn, task in enumerate(tasks):
                say(f"{task.name}: {task.about or f'{len(task.items)} {plural(task.item)}'}")
                made = []
                taking_part = [(a, n) for a, n in turns if not task.once or (a.name in task.once and n == 0)]
                names = {arm.name for arm, _ in taking_part}
                for arm, number in taking_part:
                    kept = self.workdir / f"{task.name}-{fingerprint(arm.name if not number else [arm.name, number])}"
                    model = lazy[arm.name, number]
                    run = task.arm(arm, model, kept)
                    made.append(replace(run, role=self._role(arm), run_number=number, ready=model.again))
                block_size = task.block_size or max(1, -(-len(task.items) // task.blocks))
                pilot = None
                if task.pilot and not self.quick:
                    budget = seconds_of(self.budget)
                    least = max(task.pilot, MIN_UNITS * block_size)
                    counted = plural(task.item) if task.per_item == 1 else "items"
                    pilot = PilotSampling(claims, counted, least, len(task.items), budget)
                results, found = run_arms(
                    made,
                    list(task.items),
                    task.metrics,
                    block_size=block_size,
                    pairs=[pair for pair in dict.fromkeys(wanted) if names.issuperset(pair)],
                    item=task.item,
                    per_item=task.per_item,
                    seed=self.seed,
                    journal=self.workdir / f"{task.name}-{1 if task.once else self._runs}.jsonl",
                    margins=self._margins,
                    plan=pilot.plan if pilot else None,
                    # Of later tasks no speed is told, but what they measure themselves: times and sizes are ratios.
                    timed=not turn or any(metric.scale == "ratio" for metric in task.metrics),
                )
                taken = max(result.n_items for result in results) or len(task.items)  # all arms failed at once
                asked.append(replace(task, items=task.items[:taken]) if pilot else task)
                if pilot and (told := pilot.told(taken)):
                    power.append(told)
                if len(tasks) > 1:
                    results = [replace(r, error=f"{task.name}: {r.error}") if r.error else r for r in results]
                by_name = {result.name: result for result in results}
                whole = [joined(a, by_name[a.name]) if a.name in by_name else a for a in whole] if turn else results
                comparisons += [c for c in found if not turn or c.metric != f"{plural(task.item)}/s"]
        finally:
            for each in lazy.values():
                each.drop()
            gc.collect()
        self._power = "; ".join(power)
        usable = {arm.name for arm in whole if arm.status == "ok"}
        return Outcome(asked, whole, [c for c in comparisons if {c.baseline, c.arm} <= usable])

    @property
    def _runs(self) -> int:
        """Training runs of each arm that is trained by seed."""
        return 1

    @property
    def _extensible(self) -> bool:
        """Whether `_extended` may be true."""
        return False

    def _extended(self, judged: Sequence[JudgedClaim], spent: float) -> bool:
        """Whether more training runs are to be made, after `spent` seconds; see `TrainedTrial`."""
        return False

    def _training(self, arms: Sequence[ModelArm]) -> list[Comparison]:
        """Comparisons of how the arms were trained; see `TrainedTrial`."""
        return []

    def _told_of_tuning(self) -> dict[str, str]:
        told = {}
        for name, kept in self._tuning.items():
            best, tried = kept["best"], kept["tried"]
            end = {min(tried): " and the lowest", max(tried): " and the highest"}.get(best, "") if kept["open"] else ""
            told[f"tuning of {name}"] = f"{best}, the best{end} of {len(tried)} on {kept['on']}"
        return told

    def _absent(self, judged: Sequence[JudgedClaim], outcome: Outcome) -> list[str]:
        """One note for each claim that this run does not show, and why that may be."""
        told: dict[str, list[str]] = {}
        for claim in judged:
            found = outcome.comparison(*claim.key)
            if found is None or found.verdict == "helps":
                continue  # a gain that does not stand beside the other claims is not absent
            if claim.kind == "claim" and claim.verdict != "shown":
                why = self.absence(claim, found, outcome)
                told.setdefault(why, []).append(f"{claim.metric} of {claim.arm} over {claim.baseline}")
        return [
            f"The gain that the paper reports is absent here in {' and '.join(gains)}." + f" {why}" * bool(why)
            for why, gains in told.items()
        ]


def _finite(score: Callable[[Setting], float], setting: Setting) -> float:
    """The score of a setting; −∞ where a training diverges by it, or where it is no number."""
    try:
        value = float(score(setting))
    except DivergenceError as error:
        say(str(error))
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def _beyond(tried: Sequence[float], scores: Sequence[float]) -> list[float]:
    """The next setting of a scale past its end, if the best is that end: of 1, 3, 10 it is 30, or 0.3."""
    best, scale = tried[int(np.argmax(scores))], sorted(tried)
    if best == scale[-1]:
        return [float(f"{scale[-2] * scale[-1] / scale[-3]:.3g}")]
    if best == scale[0]:
        return [float(f"{scale[1] * scale[0] / scale[2]:.3g}")]
    return []
