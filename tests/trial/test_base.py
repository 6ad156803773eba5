"""`Trial`: whose a trial is, what it keeps to be resumed, and what it says; all on toy arms, no model."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from broadsheet.cache import home
from broadsheet.cli.trials import check_arms
from broadsheet.console import DivergenceError, InputError, duration
from broadsheet.options import construct, option
from broadsheet.training.workdir import workdir
from broadsheet.trial import base
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.lazy import LazyModel, Memory
from broadsheet.trial.results import Example
from broadsheet.trial.trained.arms import TRAINING, TrainedTrial

pytestmark = pytest.mark.usefixtures("home")

GIB = 1 << 30


@dataclass
class Plain:
    shift: float = 0.0


@dataclass
class Alpha:
    paper: ClassVar[str] = "alpha"

    shift: float = 1.0


@dataclass
class Beta:
    paper: ClassVar[str] = "beta"

    shift: float = 2.0


@dataclass
class ToyTrial(Trial):
    """Numbers, and what each method adds to them."""

    stage: ClassVar[str] = "toys"
    title: ClassVar[str] = "Toys"

    n: int = option(24, "Numbers.", quick=6, least=2)
    seen: list[tuple[str, int]] = field(default_factory=list)
    watch: Callable[[str, int], None] | None = None

    def question(self) -> str:
        return "Which one adds the most?"

    def facts(self) -> dict[str, Any]:
        return {}

    def tasks(self) -> list[EvalTask]:
        return [self.task("numbers", "score")]

    def arms(self) -> list[ModelArm]:
        methods = [ModelArm.of(kind.__name__, self.configured(kind)) for kind in (Alpha, Beta)]
        return [ModelArm.of("plain", Plain(), "baseline"), *methods]

    def claims(self) -> list[Claim]:
        return [Claim("score", "plain", kind.__name__) for kind in (Alpha, Beta) if self.of_tried_paper(kind)]

    def task(self, name: str, metric: str, item: str = "number") -> EvalTask:
        def arm(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
            def run(block: list[int]) -> dict[str, list[float]]:
                for number in block:
                    if self.watch is not None:
                        self.watch(arm.name, number)
                    self.seen.append((arm.name, number))
                return {metric: [number % 3 + lazy().shift * (1 + (number % 2 - 0.5) / 25) for number in block]}

            return Arm(arm.name, run)

        def examples(numbers: list[int], arms: dict[str, Any]) -> list[Example]:
            return [
                Example(f"{name} {i}", {each: str(arms[each].samples[metric][i]) for each in arms}) for i in numbers
            ]

        marks = {"item": item, "fingerprint": f"of {name}", "examples": examples}
        return EvalTask(name, list(range(self.n)), [Metric(metric)], arm, **marks)  # type: ignore[arg-type]


def tried(paper: str, trial: Trial | None = None, **options: Any) -> Any:
    return (trial or ToyTrial(**options)).for_paper(paper).run()


def roles(result: Any) -> dict[str, str]:
    return {arm.name: arm.role for arm in result.arms}


# Whose it is


def test_a_stages_trial_credits_only_the_paper_that_is_tried():
    alpha, beta = tried("alpha"), tried("beta")
    assert roles(alpha) == {"plain": "baseline", "Alpha": "method", "Beta": "sibling"}
    assert roles(beta) == {"plain": "baseline", "Alpha": "sibling", "Beta": "method"}
    assert (alpha.paper, alpha.claims) == ("alpha", [("score", "plain", "Alpha")])
    assert (beta.paper, beta.claims) == ("beta", [("score", "plain", "Beta")])


def test_for_the_stage_every_papers_method_is_one():
    result = tried("toys")
    assert roles(result) == {"plain": "baseline", "Alpha": "method", "Beta": "method"}
    assert result.claims == [("score", "plain", "Alpha"), ("score", "plain", "Beta")]


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim("score", "plain", "Beta"), "names no arm of alpha; its arms are"),
        (Claim("score", "plain", "nobody"), "names no arm of alpha"),
        (Claim("score", "nobody", "Alpha"), "names no arm as its baseline"),
        (Claim("beauty", "plain", "Alpha"), "names no metric; the metrics are"),
    ],
)
def test_a_claim_that_is_not_the_papers_own_is_refused_before_anything_runs(monkeypatch, claim, message):
    monkeypatch.setattr(ToyTrial, "claims", lambda self: [claim])
    trial = ToyTrial()
    with pytest.raises(ValueError, match=message):
        tried("alpha", trial)
    assert trial.seen == []


def test_a_claim_may_name_the_speed(monkeypatch):
    monkeypatch.setattr(ToyTrial, "claims", lambda self: [Claim("numbers/s", "plain", "Alpha")])
    assert [claim.metric for claim in tried("alpha").judged] == ["numbers/s"]


def test_a_trial_without_an_arm_of_the_paper_is_refused():
    with pytest.raises(InputError, match="no arm of gamma, so it cannot try it"):
        tried("gamma")


def test_two_tasks_do_not_share_a_metric(monkeypatch):
    monkeypatch.setattr(ToyTrial, "tasks", lambda self: [self.task("one", "score"), self.task("two", "score")])
    with pytest.raises(ValueError, match="expected each name once"):
        tried("alpha")


def test_fields_of_the_method_are_given_by_method():
    result = tried("alpha", method="alpha(shift=5)")
    values = {arm.name: arm.values["score"].estimate for arm in result.arms}
    assert values["Alpha"] - values["plain"] == pytest.approx(5)
    assert values["Beta"] - values["plain"] == pytest.approx(2)
    with pytest.raises(InputError, match=r"Alpha has no field 'shft'; expected Alpha\(shift=1.0\)"):
        tried("alpha", method="alpha(shft=5)")
    with pytest.raises(InputError, match=r"got --method nobody; expected Alpha\(shift=1.0\); Beta\(shift=2.0\)"):
        tried("alpha", method="nobody(shift=5)")


# What it keeps


def killed_at(name: str, number: int) -> Callable[[str, int], None]:
    """Ctrl-C when that arm comes to that number, outside the warm-up on the first one."""

    def watch(arm: str, item: int) -> None:
        if (arm, item) == (name, number):
            raise KeyboardInterrupt

    return watch


def test_a_killed_trial_is_resumed_and_gives_what_an_undisturbed_one_gives():
    undisturbed = ToyTrial(seed=3).for_paper("alpha")
    whole = undisturbed.run()
    undisturbed.finish()
    killed = ToyTrial(seed=3, watch=killed_at("Beta", 17)).for_paper("alpha")
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = ToyTrial(seed=3).for_paper("alpha")
    result = again.run()
    assert again.workdir == killed.workdir
    assert {item for _, item in again.seen} == {0, *range(15, 24)}, "five blocks of three are read back; 0 warms up"
    assert [(arm.name, arm.samples, arm.values) for arm in result.arms] == [
        (arm.name, arm.samples, arm.values) for arm in whole.arms
    ]
    quality = [[replace(c, noise_floor=0) for c in r.comparisons if c.metric == "score"] for r in (whole, result)]
    assert quality[0] == quality[1]


def test_finish_removes_the_folder_and_nothing_else():
    trial, other = ToyTrial().for_paper("alpha"), ToyTrial(seed=1).for_paper("alpha")
    trial.run(), other.run()
    assert (trial.workdir / "numbers-1.jsonl").exists(), "until the result is written it can be resumed"
    trial.finish()
    assert not trial.workdir.exists()
    assert other.workdir.exists()
    trial.finish()


def test_what_another_version_began_to_train_does_not_stop_a_trial(tmp_path):
    class Training(ToyTrial):
        rate = 1

        def setting(self) -> dict[str, str]:
            with workdir(tmp_path / "arm", {"rate": self.rate}, finished="done.json"):
                return dict(super().setting())

    first = Training().for_paper("alpha")
    first.run()
    again = Training().for_paper("alpha")
    again.rate = 2
    assert again.run().arms
    with pytest.raises(InputError, match="begun with other rate"):
        workdir(tmp_path / "arm", {"rate": 3}, finished="done.json").__enter__()
    first.finish()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"n": 12}, {"quick": True}, {"method": "alpha(shift=5)"}])
def test_another_setting_is_not_resumed_from_what_is_kept(changed):
    one, other = ToyTrial().for_paper("alpha"), ToyTrial(**changed).for_paper("alpha")
    one.run()
    other.run()
    assert one.workdir != other.workdir
    assert {item for _, item in other.seen} == set(range(other.n))


def test_another_paper_other_items_and_other_facts_are_not_resumed_either(monkeypatch):
    trials = [ToyTrial().for_paper("alpha"), ToyTrial().for_paper("beta"), ToyTrial().for_paper("alpha")]
    trials[2].facts = lambda: {"model": {"fingerprint": "another"}}
    for trial in trials:
        trial.run()
    monkeypatch.setattr(ToyTrial, "tasks", lambda self: [replace(self.task("numbers", "score"), fingerprint="new")])
    trials.append(ToyTrial().for_paper("alpha"))
    trials[-1].run()
    assert len({trial.workdir for trial in trials}) == 4


@dataclass
class LearntTrial(ToyTrial, TrainedTrial):
    """One arm is trained into a folder first."""

    runs: int = 1
    trained_: list[Path] = field(default_factory=list)
    finished: bool = True

    def arms(self) -> list[ModelArm]:
        def train(seed: int, folder: Path) -> Any:
            self.trained_.append(folder)
            folder.mkdir(exist_ok=True)
            (folder / "checkpoint").write_text("kept")
            if self.finished:
                (folder / "training.json").write_text(json.dumps({"shift": 7}))
            return SimpleNamespace(finished=self.finished)

        def load(folder: Path) -> Alpha:
            return Alpha(json.loads((folder / "training.json").read_text())["shift"])

        made = self.trained("Alpha", train, load, paper="alpha")
        return [ModelArm.of("plain", Plain(), "baseline"), made]


def test_what_is_trained_is_trained_once_and_read_back_after_a_kill():
    killed = LearntTrial(watch=killed_at("Alpha", 17)).for_paper("alpha")
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    assert killed.trained_ == [killed.folder("Alpha")]
    again = LearntTrial().for_paper("alpha")
    result = again.run()
    assert again.trained_ == []
    assert {arm.name: arm.values["score"].estimate for arm in result.arms}["Alpha"] == pytest.approx(8)
    again.finish()
    assert not killed.folder("Alpha").exists()


def test_a_training_that_was_stopped_stops_the_trial_and_its_checkpoint_stays():
    stopped = LearntTrial(finished=False).for_paper("alpha")
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert (stopped.folder("Alpha") / "checkpoint").read_text() == "kept"
    again = LearntTrial().for_paper("alpha")
    again.run()
    assert again.trained_ == stopped.trained_, "the same folder"


def test_what_a_training_draws_depends_on_its_seed_alone(tmp_path):
    """A trial that was killed has drawn less before: its trainings are the same all the same."""

    def drawn(before: int, seed: int) -> list[float]:
        trial, found = LearntTrial().for_paper("alpha"), []
        trial.workdir = tmp_path / f"{before} {seed}"

        def draw(*_: Any) -> float:
            found.extend([random.random(), float(np.random.rand()), float(torch.rand(()))])
            return 0.0

        torch.rand(before), np.random.rand(before), [random.random() for _ in range(before)]
        trial.tuned("Alpha", ["one setting"], draw, on="other pairs")
        arm = trial.trained("Alpha", draw, Alpha, paper="alpha")
        assert arm.train is not None
        state = torch.get_rng_state()
        arm.train(seed)
        assert torch.equal(torch.get_rng_state(), state), "who draws next is not disturbed"
        return found

    first, later, other = drawn(0, 4), drawn(3, 4), drawn(0, 5)
    assert first == later
    assert first[:3] == other[:3], "tuning is from the trial's own seed"
    assert not set(first[3:]) & set(other[3:])


def test_the_best_of_whole_trainings_is_the_arms_own_and_the_others_are_removed(tmp_path):
    trial, trained = LearntTrial().for_paper("alpha"), []
    trial.workdir = tmp_path

    def train(setting: float, folder: Path) -> Any:
        trained.append(setting)
        folder.mkdir()
        (folder / "training.json").write_text(json.dumps(setting))
        if setting == 3 and len(trained) == 3:
            return SimpleNamespace(finished=False)
        return SimpleNamespace(finished=True)

    def score(folder: Path) -> float:
        return -abs(json.loads((folder / "training.json").read_text()) - 2)

    with pytest.raises(KeyboardInterrupt):
        trial.best_run("Alpha", [1, 2, 3], train, score, on="other pairs")
    shutil.rmtree(trial._tuning_run("Alpha", 3))  # a training that is stopped leaves no folder of that name
    again = LearntTrial().for_paper("alpha")
    again.workdir = tmp_path
    assert again.best_run("Alpha", [1, 2, 3], train, score, on="other pairs") == 2
    assert trained == [1, 2, 3, 3], "those that ended before are not trained again"
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [again._tuning_run("Alpha", 2).name]
    own = again.folder("Alpha")
    assert not again.take_best("Alpha", 2, again.seed + 1, own), "it is of the trial's own seed"
    assert again.take_best("Alpha", 2, again.seed, own)
    assert json.loads((own / "training.json").read_text()) == 2
    assert not again.take_best("Alpha", 2, again.seed, own)


def test_an_arm_is_made_once_for_all_tasks_and_dropped(monkeypatch):
    made: list[LazyModel] = []
    monkeypatch.setattr(ToyTrial, "tasks", lambda self: [self.task("one", "score"), self.task("two", "other")])
    monkeypatch.setattr(
        ToyTrial,
        "arms",
        lambda self: [
            ModelArm.of("plain", Plain(), "baseline"),
            ModelArm("Alpha", lambda: made.append(None) or Alpha(), paper="alpha"),
        ],
    )
    dropped = []
    drop = LazyModel.drop
    monkeypatch.setattr(LazyModel, "drop", lambda self: dropped.append(self) or drop(self))
    tried("alpha")
    assert len(made) == 1
    assert len(dropped) == 2


# What it says


def test_a_trial_in_little_memory_gives_what_it_gives_in_much(monkeypatch):
    trial = ToyTrial(n=12).for_paper("alpha")
    plenty = trial.run()
    trial.finish()
    events: list[tuple[str, str]] = []
    make = LazyModel.__call__

    def call(self: LazyModel) -> Any:
        if self._made is None:
            events.append(("made", type(self.make()).__name__.lower()))
        return make(self)

    monkeypatch.setattr(LazyModel, "__call__", call)
    own = iter(range(0, 1 << 40, GIB))  # every model takes a GiB, and none is ever free
    monkeypatch.setattr("broadsheet.trial.lazy._of_machine", lambda: Memory(0, 8 * GIB, next(own)))
    tight = tried("alpha", n=12, watch=lambda arm, number: events.append(("asked", arm.lower())))
    assert min(events.count(("made", name)) for name in ("plain", "alpha")) > 2  # made again and again
    turns = events[len(tight.arms) * 2 :]  # without the warm-ups, in which each is made
    late = [(one, other) for one, other in pairwise(turns) if (one[0], other[0]) == ("asked", "made")]
    assert all(one[1] != other[1] for one, other in late), "a model is made before its turn, not in it"
    assert [arm.samples for arm in tight.arms] == [arm.samples for arm in plenty.arms]


def test_two_tasks_are_one_result(monkeypatch):
    monkeypatch.setattr(
        ToyTrial, "tasks", lambda self: [self.task("one", "score"), self.task("two", "other", item="letter")]
    )
    monkeypatch.setattr(
        ToyTrial, "claims", lambda self: [Claim("other", "plain", "Alpha"), Claim("score", "plain", "Alpha")]
    )
    result = tried("alpha")
    alpha = next(arm for arm in result.arms if arm.name == "Alpha")
    assert list(alpha.values) == ["score", "other"]
    assert result.item == "number"
    speeds = {c.metric for c in result.comparisons if c.metric.endswith("/s")}
    assert speeds == {"numbers/s"}, "speed is the first task's"
    assert {(c.metric, c.arm) for c in result.comparisons} >= {("score", "Alpha"), ("other", "Alpha")}


@pytest.mark.parametrize(("scale", "timed"), [("difference", [True, False]), ("ratio", [True, True])])
def test_of_later_tasks_blocks_are_run_again_only_where_they_measure_times(monkeypatch, scale, timed):
    asked = []
    run = base.run_arms
    monkeypatch.setattr(base, "run_arms", lambda *a, timed, **given: asked.append(timed) or run(*a, **given))
    other = Metric("other", scale=scale, of="score")
    monkeypatch.setattr(
        ToyTrial,
        "tasks",
        lambda self: [self.task("one", "score"), replace(self.task("two", "score"), metrics=[other])],
    )
    tried("alpha")
    assert asked == timed


def test_the_examples_are_those_of_its_tasks_with_the_arms_that_did_not_fail(monkeypatch):
    monkeypatch.setattr(ToyTrial, "tasks", lambda self: [self.task("one", "first"), self.task("two", "second")])
    monkeypatch.setattr(ToyTrial, "claims", lambda self: [])

    def watch(arm: str, number: int) -> None:
        if arm == "Beta":
            raise RuntimeError("no")

    result = tried("alpha", ToyTrial(watch=watch))
    assert [each.item for each in result.examples] == ["one 0", "one 1", "one 2", "two 0", "two 1"]
    assert all(list(each.answers) == ["plain", "Alpha"] for each in result.examples)
    assert result.examples[1].answers["plain"] == str(result.arms[0].samples["first"][1])


def test_an_arm_that_fails_is_reported_with_its_task_and_the_others_are_compared(monkeypatch):
    def tasks(self: ToyTrial) -> list[EvalTask]:
        return [self.task("one", "score"), replace(self.task("two", "other"), arm=broken)]

    def broken(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: list[int]) -> dict[str, list[float]]:
            if arm.name == "Beta":
                raise RuntimeError("no such model")
            return {"other": [number + lazy().shift for number in block]}

        return Arm(arm.name, run)

    monkeypatch.setattr(ToyTrial, "tasks", tasks)
    result = tried("alpha")
    beta = next(arm for arm in result.arms if arm.name == "Beta")
    assert beta.status == "failed"
    assert beta.error.startswith("two: ")
    assert "RuntimeError: no such model" in beta.error
    assert {c.arm for c in result.comparisons} == {"Alpha"}, "what it did in the first task counts no more"


def test_a_model_that_cannot_be_loaded_fails_its_arm_alone(monkeypatch):
    def fail() -> Any:
        raise OSError("no such file")

    arms = [
        ModelArm.of("plain", Plain(), "baseline"),
        ModelArm.of("Alpha", Alpha()),
        ModelArm("Beta", fail, paper="beta"),
    ]
    monkeypatch.setattr(ToyTrial, "arms", lambda self: arms)
    result = tried("alpha")
    assert {arm.name: arm.status for arm in result.arms} == {"plain": "ok", "Alpha": "ok", "Beta": "failed"}
    assert "no such file" in result.arms[2].error
    check_arms(result)  # what failed is in no claim
    with pytest.raises(InputError, match=r"nothing is recorded, as arms of claims failed: Beta: .*no such file"):
        check_arms(tried("beta"))


def test_a_claim_that_is_not_shown_gets_a_note_with_the_trials_reason(monkeypatch):
    assert tried("alpha").notes == []
    monkeypatch.setattr(ToyTrial, "absence", lambda self, claim, comparison, outcome: "The numbers are small.")
    assert tried("alpha").notes == [], "only where the gain is absent"
    with monkeypatch.context() as unsure:
        unsure.setattr("broadsheet.trial.claims.CONFIDENCE", 1.0)
        helping = tried("alpha", seed=1)
    assert [claim.verdict for claim in helping.judged] == ["open"]
    assert helping.notes == [], "what helps is not absent, though it is not shown"
    assert tried("alpha", method="alpha(shift=-1)").notes == [
        "The gain that the paper reports is absent here in score of Alpha over plain. The numbers are small."
    ]


def test_claims_with_one_reason_share_a_note_after_the_trials_own(monkeypatch):
    monkeypatch.setattr(ToyTrial, "notes", lambda self, outcome: [f"{len(outcome.usable)} arms."])
    result = tried("toys", method="alpha(shift=-1),beta(shift=0)")
    assert result.notes == [
        "3 arms.",
        "The gain that the paper reports is absent here in score of Alpha over plain and score of Beta over plain.",
    ]


def test_each_claims_own_comparison_and_those_asked_for_are_made(monkeypatch):
    monkeypatch.setattr(ToyTrial, "claims", lambda self: [Claim("score", "Beta", "Alpha")])
    monkeypatch.setattr(ToyTrial, "also_compare", lambda self: [("Alpha", "Beta")])
    pairs = {(c.baseline, c.arm) for c in tried("alpha").comparisons}
    assert pairs == {("plain", "Alpha"), ("plain", "Beta"), ("Beta", "Alpha"), ("Alpha", "Beta")}


def test_a_result_says_what_it_was_measured_on(monkeypatch):
    monkeypatch.setattr(ToyTrial, "facts", lambda self: {"model": {"name": "toy", "fingerprint": "f"}})
    monkeypatch.setattr(ToyTrial, "setting", lambda self: {"dtype": "float32"})
    monkeypatch.setattr(ToyTrial, "tasks", lambda self: [replace(self.task("numbers", "score"), about="24 numbers")])
    result = tried("alpha", seed=4)
    assert result.provenance["seed"] == 4
    assert result.provenance["model"] == {"name": "toy", "fingerprint": "f"}
    assert result.provenance["data"] == {"name": "pydocs", "fingerprint": {"numbers": "of numbers"}}
    assert {"date", "versions", "machine"} <= result.provenance.keys()
    assert list(result.setting) == ["model", "numbers", "dtype"]
    assert result.setting["numbers"] == "24 numbers"
    assert (result.title, result.question) == ("Toys", "Which one adds the most?")


def test_the_models_facts_are_its_name_and_fingerprint_and_it_is_let_go_of(monkeypatch):
    loads = []
    monkeypatch.setattr("broadsheet.models.load", lambda *_, **__: loads.append(1) or SimpleNamespace(fingerprint="f"))
    trial = ToyTrial(model="m")
    assert Trial.facts(trial) == {"model": {"name": "m", "fingerprint": "f"}}
    assert "loaded" not in vars(trial)
    assert trial.loaded.fingerprint == "f"
    Trial.facts(trial)
    assert "loaded" in vars(trial), "what the trial uses stays"
    assert len(loads) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": "1"}, "got --n 1; expected 2 or more"),
        ({"seed": "-1"}, "got --seed -1; expected 0 or more"),
        ({"pairs": "3"}, "no option --pairs; expected one of --model, --data, --quick, --seed, --device, --dtype, "),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError) as refused:
        construct(ToyTrial, options)
    assert str(refused.value).startswith(message)


# ---- seeds, tuning, power


@dataclass
class SeededTrial(TrainedTrial):
    """Numbers, and an offset that each training run finds anew."""

    stage: ClassVar[str] = "toys"
    pooled: bool = False
    effect: float | None = 1.0
    step_seconds: float = 0.01
    trained_: list[Path] = field(default_factory=list)

    def question(self) -> str:
        return "Does training help?"

    def facts(self) -> dict[str, Any]:
        return {}

    def tasks(self) -> list[EvalTask]:
        def arm(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
            def run(block: list[int]) -> dict[str, list[float]]:
                return {"score": [lazy() + random.Random(f"{arm.name} {lazy()} {n}").gauss(0, 1) for n in block]}

            return Arm(arm.name, run, prepare=lazy.prepare)

        numbers = list(range(400 if self.pooled else 40))
        return [
            EvalTask("numbers", numbers, [Metric("score")], arm, item="number", block_size=5, pilot=30 * self.pooled)
        ]

    def arms(self) -> list[ModelArm]:
        def train(gain: float, pace: float, seed: int, folder: Path) -> None:
            self.trained_.append(folder)
            folder.mkdir(parents=True)
            steps = [pace * random.Random(f"{gain}{seed}{i}").uniform(0.95, 1.05) for i in range(41)]
            (folder / "training.json").write_text(json.dumps({"step_seconds": steps}))
            (folder / "offset").write_text(str(gain + seed / 100))

        def load(folder: Path) -> float:
            return float((folder / "offset").read_text())

        return [
            self.trained("plain", partial(train, 0.0, 0.02), load, "baseline"),
            self.trained("Alpha", partial(train, 2.0, self.step_seconds), load, paper="alpha"),
        ]

    def claims(self) -> list[Claim]:
        return [Claim("score", "plain", "Alpha", effect=self.effect), Claim(TRAINING, "plain", "Alpha")]

    def notes(self, outcome: Outcome) -> list[str]:
        return [f"The last number was {outcome.tasks[0].items[-1]}."]


def seeded(trial: SeededTrial) -> Any:
    """The trial's result, with nothing left for the next one to resume."""
    result = tried("alpha", trial)
    trial.finish()
    return result


def test_an_arm_that_is_trained_is_trained_from_several_seeds():
    trial = SeededTrial()
    result = seeded(trial)
    assert [(arm.name, arm.runs) for arm in result.arms] == [("plain", 3), ("Alpha", 3)]
    assert len(set(trial.trained_)) == 6
    assert trial.trained_[::2] == [trial.run_folder("plain", seed) for seed in range(3)], "in turn"
    assert [claim.verdict for claim in result.judged] == ["shown", "shown"]
    assert result.verdict == "shown"
    assert [arm.runs for arm in seeded(construct(SeededTrial, {"quick": True})).arms] == [1, 1]


def test_all_is_trained_before_anything_is_kept_in_memory_and_a_training_that_fails_is_tried_once():
    class Told(SeededTrial):
        def arms(self) -> list[ModelArm]:
            self.log: list[str] = []
            arms = []
            for name in ("plain", "Alpha", "broken"):

                def train(seed: int, folder: Path, name: str = name) -> None:
                    self.log.append("train")
                    if name == "broken":
                        raise RuntimeError("no memory left")
                    folder.mkdir(parents=True)
                    (folder / "training.json").write_text('{"step_seconds": [0.01]}')

                def load(folder: Path) -> float:
                    self.log.append("load")
                    return 1.0

                role: Any = "baseline" if name == "plain" else None
                arms.append(self.trained(name, train, load, role, paper="" if role else "alpha"))
            return arms

        def claims(self) -> list[Claim]:
            return [Claim("score", "plain", "Alpha")]

    trial = Told(runs=2)
    result = seeded(trial)
    assert trial.log == ["train"] * 6 + ["load"] * 4
    assert {arm.name: arm.status for arm in result.arms} == {"plain": "ok", "Alpha": "ok", "broken": "failed"}
    assert "no memory left" in next(arm.error for arm in result.arms if arm.name == "broken")


def test_the_time_of_training_is_compared_seed_by_seed():
    [time] = [c for c in seeded(SeededTrial()).comparisons if c.metric == TRAINING]
    assert time.difference.estimate == pytest.approx(2.0, rel=0.02)
    assert (time.verdict, time.n) == ("helps", 30)
    assert 0 < time.noise_floor < 0.05
    [same] = [c for c in seeded(SeededTrial(step_seconds=0.02)).comparisons if c.metric == TRAINING]
    assert same.verdict == "no measurable difference"


def test_the_time_of_training_is_compared_with_that_of_peers_too():
    class Rivalled(SeededTrial):
        def arms(self) -> list[ModelArm]:
            plain, method = super().arms()
            return [plain, method, replace(plain, name="peer", role="peer"), replace(plain, name="other", role=None)]

        def run_folder(self, name: str, seed: int) -> Path:
            return super().run_folder("Alpha" if name == "Alpha" else "plain", seed)

    times = {(c.baseline, c.arm): c for c in seeded(Rivalled()).comparisons if c.metric == TRAINING}
    assert times.keys() == {("plain", "Alpha"), ("plain", "peer"), ("plain", "other"), ("peer", "Alpha")}
    assert times["peer", "Alpha"].difference == times["plain", "Alpha"].difference
    assert times["plain", "peer"].difference.estimate == 1

    class Untrained(Rivalled):
        def arms(self) -> list[ModelArm]:
            _, method, peer, other = super().arms()
            return [ModelArm("plain", lambda: 0.0, "baseline"), method, peer, other]

    [time] = [c for c in seeded(Untrained()).comparisons if c.metric == TRAINING]
    assert (time.baseline, time.arm, time.difference) == ("peer", "Alpha", times["peer", "Alpha"].difference)


def test_a_training_is_as_noisy_as_two_arms_drift_apart_from_seed_to_seed():
    class Noisy(SeededTrial):
        slow: ClassVar[tuple[str, ...]] = ()

        def arms(self) -> list[ModelArm]:
            plain, method = super().arms()
            return [plain, method, replace(plain, name="peer", role="peer")]

        def run_folder(self, name: str, seed: int) -> Path:
            return super().run_folder("plain" if name == "peer" else name, seed)

        def _pace(self, name: str, seed: int) -> Any:
            # Seed by seed 1, 2 and 4 where it is slow: the first lies farther from the last than from the next.
            return np.full(10, 2.0**seed if name in self.slow else 1.0)

    pairs = [("plain", "Alpha"), ("plain", "peer"), ("peer", "Alpha")]
    for slow, floors in (
        ((), (1, 1, 1)),
        (("Alpha",), (4, 1, 4)),
        (("peer",), (1, 4, 4)),
        (("plain", "Alpha"), (1, 4, 4)),
        (("plain", "Alpha", "peer"), (1, 1, 1)),
    ):
        Noisy.slow = slow
        found = {(c.baseline, c.arm): c.noise_floor for c in seeded(Noisy()).comparisons if c.metric == TRAINING}
        assert found == pytest.approx(dict(zip(pairs, np.log(floors), strict=True)))


def test_a_run_that_was_made_while_tuning_is_not_timed_beside_others():
    class Tuned(SeededTrial):
        def arms(self) -> list[ModelArm]:
            def train(rate: float, folder: Path) -> None:
                folder.mkdir(parents=True)
                (folder / "training.json").write_text(json.dumps({"step_seconds": [0.5] * 41}))
                (folder / "offset").write_text(str(2.0))

            plain, method = super().arms()
            best = self.best_run("Alpha", (0.1, 0.2), train, lambda folder: 1.0, on="others")

            def taken(seed: int) -> None:
                if not self.take_best("Alpha", best, seed, self.run_folder("Alpha", seed)):
                    method.train(seed)  # type: ignore[misc]

            return [plain, replace(method, train=taken)]

    [time] = [c for c in seeded(Tuned()).comparisons if c.metric == TRAINING]
    assert time.n == 20, "two of three runs"
    assert time.difference.estimate == pytest.approx(2.0, rel=0.02)
    assert not [c for c in seeded(Tuned(runs=2)).comparisons if c.metric == TRAINING], "one alone has no noise floor"


def test_as_many_items_are_asked_as_the_claim_needs(capsys):
    few = seeded(SeededTrial(pooled=True, runs=1, effect=3.0))
    many = seeded(SeededTrial(pooled=True, runs=1, effect=0.35))
    assert few.arms[0].n_items == 30  # the pilot
    assert "The last number was 29." in few.notes, "notes see the items that were asked"
    assert 100 < many.arms[0].n_items < 400
    assert f"{many.arms[0].n_items} of 400 were asked" in many.setting["power"]
    assert "after a pilot of 30: " in capsys.readouterr().err
    short = seeded(SeededTrial(pooled=True, runs=1, effect=0.35, budget="0.001s"))
    assert short.arms[0].n_items == 30
    everything = seeded(SeededTrial(pooled=True, runs=1, effect=0.01))
    assert everything.arms[0].n_items == 400


@pytest.mark.parametrize("budget", ["soon", "0m", "30", "-1h"])
def test_a_budget_is_a_time(budget):
    with pytest.raises(InputError, match="expected a time such as 90s, 30m or 2h"):
        seeded(SeededTrial(budget=budget))


def test_a_margin_is_reported_of_the_metric_it_names():
    result = tried("alpha", margin=("score=0.5",))
    assert {c.margin for c in result.comparisons if c.metric == "score"} == {0.5}
    assert all(c.no_worse for c in result.comparisons if c.metric == "score")
    for given, message in (
        ("beauty=1", "expected one of the metrics score"),
        ("score", "such as nDCG@10=0.01"),
        ("score=-1", "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            tried("alpha", margin=(given,))


def test_every_arm_is_tuned_as_much_and_what_was_found_is_kept():
    trial = ToyTrial().for_paper("alpha")
    trial.workdir = Path(home()) / "tuning"
    asked: list[int] = []

    def score(setting: int) -> float:
        asked.append(setting)
        return -abs(setting - 3)

    assert trial.tuned("plain", [1, 3, 5], score, on="other pairs") == 3
    assert trial.tuned("plain", [1, 3, 5], score, on="other pairs") == 3
    assert asked == [1, 3, 5]
    assert trial._told_of_tuning() == {"tuning of plain": "3, the best of 3 on other pairs"}
    with pytest.raises(ValueError, match="expected as many for each arm"):
        trial.tuned("Alpha", [1, 2, 3, 4], score, on="other pairs")


@pytest.mark.parametrize(
    ("settings", "best", "asked"),
    [
        ([1e-4, 3e-4, 1e-3], 3e-4, [1e-4, 3e-4, 1e-3]),  # inside: all is said
        ([1e-4, 3e-4, 1e-3], 3e-3, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),  # the next, and one more to see that it is the best
        ([1e-4, 3e-4, 1e-3], 3e-5, [1e-4, 3e-4, 1e-3, 3e-5, 1e-5]),
        ([1e-3, 2e-3, 4e-3, 8e-3], 1.0, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]),  # no more than two
        ([0.3, 0.1, 0.03], 1.0, [0.3, 0.1, 0.03, 1.0, 3.0]),
    ],
)
def test_a_scale_without_ends_is_continued_while_its_best_is_an_end(settings, best, asked):
    trial = ToyTrial().for_paper("alpha")
    trial.workdir = Path(home()) / "tuning"
    seen: list[float] = []

    def score(setting: float) -> float:
        seen.append(setting)
        return -abs(math.log(setting / best))

    found = min(asked, key=lambda setting: abs(math.log(setting / best)))
    for _ in range(2):  # what was found is not asked again
        assert trial.tuned("plain", settings, score, on="other pairs", open_ended=True) == found
        assert seen == pytest.approx(asked)
        assert trial.settings_tried("plain") == seen
    end = " and the highest" if found == max(asked) else ""
    told = f"{found}, the best{end} of {len(asked)} on other pairs"
    assert trial._told_of_tuning() == {"tuning of plain": told}
    trial.tuned("Alpha", settings, score, on="other pairs", open_ended=True)  # given as many: no complaint


def test_a_setting_that_diverges_or_has_no_number_is_the_worst():
    trial = ToyTrial().for_paper("alpha")
    trial.workdir = Path(home()) / "tuning"
    asked: list[float] = []

    def score(rate: float) -> float:
        asked.append(rate)
        if rate > 1:
            raise DivergenceError("the loss is inf at step 3")
        return float("nan") if rate < 0.1 else rate

    for _ in range(2):  # what is kept says so too
        assert trial.tuned("plain", [0.01, 0.1, 1.0], score, on="other pairs", open_ended=True) == 1.0
        assert asked == [0.01, 0.1, 1.0, 10.0]
    assert trial._told_of_tuning() == {"tuning of plain": "1.0, the best of 4 on other pairs"}

    def fails(rate: float) -> float:
        raise InputError("no such file")

    with pytest.raises(InputError, match="no such file"):
        trial.tuned("Alpha", [0.01, 0.1, 1.0], fails, on="other pairs")
    with pytest.raises(DivergenceError, match="Beta: no setting of"):
        trial.tuned("Beta", [2.0, 3.0, 4.0], score, on="other pairs")


def test_settings_that_are_no_scale_are_not_continued():
    trial = ToyTrial().for_paper("alpha")
    trial.workdir = Path(home()) / "tuning"
    assert trial.tuned("plain", [1, 3, 5], lambda setting: float(setting), on="other pairs") == 5
    assert trial.settings_tried("plain") == [1, 3, 5]
    assert trial._told_of_tuning() == {"tuning of plain": "5, the best of 3 on other pairs"}
    with pytest.raises(ValueError, match="got 2 settings of an open-ended scale; expected 3 at least"):
        trial.tuned("Alpha", [1.0, 3.0], float, on="other pairs", open_ended=True)


def test_a_budget_for_a_fixed_number_of_items_is_refused():
    with pytest.raises(InputError, match="got --budget; the number of items is fixed here"):
        tried("alpha", budget="30m")


def test_one_training_run_has_no_noise_floor_so_its_time_is_not_compared():
    result = seeded(SeededTrial(runs=1))
    assert not [c for c in result.comparisons if c.metric == TRAINING]
    assert [(claim.verdict, claim.trained_once) for claim in result.judged] == [("open", True), ("open", False)]


def test_a_trial_says_what_it_will_do_and_how_long_that_took_before(capsys):
    seeded(SeededTrial())
    said = capsys.readouterr().err
    assert "Does training help?\n2 arms take part: plain · Alpha.\nStop it with Ctrl-C at any time" in said
    assert "This took" not in said
    seeded(SeededTrial(seed=1))
    assert "This took " in capsys.readouterr().err, "another seed takes as long"
    seeded(SeededTrial(runs=1))
    assert "This took" not in capsys.readouterr().err


def test_a_pilot_sizes_claims_about_speed_too(monkeypatch):
    class Timed(SeededTrial):
        def claims(self) -> list[Claim]:
            return [Claim("numbers/s", "plain", "Alpha", effect=1.5)]

    result = seeded(Timed(pooled=True, runs=1))
    assert "would show 1.5 in numbers/s of Alpha over plain" in result.setting["power"]


@dataclass
class UnevenTrial(SeededTrial):
    """Training whose outcome hangs on the seed: three runs do not decide, more would."""

    gap: float = 0.3

    def arms(self) -> list[ModelArm]:
        def train(gain: float, seed: int, folder: Path) -> None:
            self.trained_.append(folder)
            folder.mkdir(parents=True)
            (folder / "training.json").write_text("{}")
            (folder / "offset").write_text(str(gain + 0.45 * (-1) ** seed))

        def load(folder: Path) -> float:
            return float((folder / "offset").read_text())

        return [
            self.trained("plain", partial(train, 0.0), load, "baseline"),
            self.trained("Alpha", partial(train, self.gap), load, paper="alpha"),
        ]

    def claims(self) -> list[Claim]:
        return [Claim("score", "plain", "Alpha", effect=0.9)]


def test_more_training_runs_are_made_where_they_decide_a_claim(capsys, monkeypatch):
    monkeypatch.setattr("broadsheet.trial.trained.arms.MOST_RUNS", 8)
    trial = UnevenTrial()
    result = seeded(trial)
    told = [line for line in capsys.readouterr().err.splitlines() if "would decide an open claim" in line]
    runs = int(told[-1].split()[0])
    assert 3 < runs <= 8
    assert [arm.runs for arm in result.arms] == [runs, runs]
    assert len(trial.trained_) == len(set(trial.trained_)) == 2 * runs, "what was trained stays"
    assert [arm.runs for arm in seeded(UnevenTrial(runs=3)).arms] == [3, 3], "a number that is given is kept"
    monkeypatch.setattr("broadsheet.trial.trained.arms.MOST_RUNS", 3)
    assert [arm.runs for arm in seeded(UnevenTrial()).arms] == [3, 3], "out of reach"


def test_more_runs_take_their_own_training_and_the_asking_of_all(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    for module in ("base", "trained.arms"):
        monkeypatch.setattr(f"broadsheet.trial.{module}.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("broadsheet.trial.trained.arms.MOST_RUNS", 8)

    class Clocked(UnevenTrial):
        def trained(self, name: str, train: Any, *others: Any, **more: Any) -> ModelArm:
            def clocked(seed: int, folder: Path) -> None:
                clock.now += 3600
                train(seed, folder)

            return super().trained(name, clocked, *others, **more)

        def tasks(self) -> list[EvalTask]:
            [task] = super().tasks()

            def arm(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
                made = task.arm(arm, lazy, kept)

                def close() -> None:
                    clock.now += 1800

                return replace(made, close=close)

            return [replace(task, arm=arm)]

    trial = Clocked()
    [runs] = {arm.runs for arm in seeded(trial).arms}
    told = [line for line in capsys.readouterr().err.splitlines() if "would decide an open claim" in line]
    assert told[0].endswith(f"of each arm, about {duration(2 * 3600 * (runs - 3) + 2 * 1800 * runs)}")
    assert len(told) == 1


def test_what_hangs_on_no_training_is_asked_of_the_arms_named_once_and_decides(monkeypatch):
    monkeypatch.setattr("broadsheet.trial.trained.arms.MOST_RUNS", 8)
    asked: list[str] = []

    class Sized(UnevenTrial):
        def arms(self) -> list[ModelArm]:
            plain, method = super().arms()
            return [plain, method, replace(plain, name="other", role="sibling")]

        def tasks(self) -> list[EvalTask]:
            def arm(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
                def run(block: list[int]) -> dict[str, list[float]]:
                    asked.append(arm.name)
                    return {"size": [(2.0 if arm.name == "plain" else 1.0) + n / 1000 for n in block]}

                return Arm(arm.name, run)

            size = Metric("size", higher_is_better=False, scale="ratio")
            once = ("plain", "Alpha")
            return [*super().tasks(), EvalTask("sizes", list(range(20)), [size], arm, block_size=5, once=once)]

        def claims(self) -> list[Claim]:
            return [*super().claims(), Claim("size", "plain", "Alpha", effect=1.5)]

    result = seeded(Sized())
    assert {name: asked.count(name) for name in asked} == {"plain": 9, "Alpha": 5}, "4 blocks, the warm-up, the rerun"
    assert min(arm.runs for arm in result.arms) > 3, "more runs were made"
    assert [set(arm.values) for arm in result.arms] == [{"score", "size"}, {"score", "size"}, {"score"}]
    [compared] = [c for c in result.comparisons if c.metric == "size"]
    assert (compared.baseline, compared.arm, compared.runs) == ("plain", "Alpha", (1, 1))
    assert [(c.verdict, c.trained_once) for c in result.judged if c.metric == "size"] == [("shown", False)]
    [score, size] = seeded(Sized(runs=1)).judged
    assert (score.trained_once, size.trained_once) == (True, False)


def test_a_budget_caps_training_runs_too(monkeypatch):
    monkeypatch.setattr("broadsheet.trial.trained.arms.MOST_RUNS", 8)
    assert [arm.runs for arm in seeded(UnevenTrial(budget="0.001s")).arms] == [3, 3]
    with pytest.raises(InputError, match="got --budget; the number of items is fixed here"):
        seeded(UnevenTrial(budget="1h", runs=3))


def test_a_claims_margin_is_that_of_its_metric_unless_one_is_given():
    class Kept(ToyTrial):
        def claims(self) -> list[Claim]:
            return [Claim("score", "plain", "Alpha", margin=0.5)]

    assert {c.margin for c in tried("alpha", Kept()).comparisons if c.metric == "score"} == {0.5}
    assert {c.margin for c in tried("alpha", Kept(margin=("score=0.1",))).comparisons if c.metric == "score"} == {0.1}


def test_where_every_arm_fails_in_the_pilot_that_is_reported_and_nothing_else_breaks():
    class Failing(SeededTrial):
        def tasks(self) -> list[EvalTask]:
            [task] = super().tasks()

            def arm(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
                def run(block: list[int]) -> dict[str, list[float]]:
                    raise RuntimeError("no room")

                return Arm(arm.name, run)

            return [replace(task, arm=arm)]

    result = seeded(Failing(pooled=True, runs=1))
    assert {arm.status for arm in result.arms} == {"failed"}
    assert all("no room" in arm.error for arm in result.arms)
    assert "The last number was 399." in result.notes
