"""`Trial`: whose a trial is, what it keeps to be resumed, and what it says; all on toy arms, no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from broadsheet.console import InputError
from broadsheet.options import option
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Trial
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.stats import compare_samples

pytestmark = pytest.mark.usefixtures("home")


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
    watch: Callable[[str, int], None] = lambda name, item: None

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
                    self.watch(arm.name, number)
                    self.seen.append((arm.name, number))
                return {metric: [number % 3 + lazy().shift for number in block]}

            return Arm(arm.name, run)

        return EvalTask(name, list(range(self.n)), [Metric(metric)], arm, item=item, fingerprint=f"of {name}")


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


def test_a_claim_may_name_the_speed_and_what_is_computed_further(monkeypatch):
    monkeypatch.setattr(ToyTrial, "claims", lambda self: [Claim("numbers/s", "plain", "Alpha"), FURTHER])
    monkeypatch.setattr(ToyTrial, "further_metrics", lambda self: ["gap"])
    monkeypatch.setattr(ToyTrial, "further", lambda self, outcome: [gap()])
    result = tried("alpha")
    assert [c.verdict for c in result.comparisons if c.metric == "gap"] == ["helps"]


FURTHER = Claim("gap", "plain", "Alpha")


def gap() -> Any:
    values = [[float(i % 3)] for i in range(24)], [[i % 3 + 1.0] for i in range(24)]
    return compare_samples("gap", "plain", "Alpha", *values, seed=0)


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
    armed = iter([True])

    def watch(arm: str, item: int) -> None:
        if (arm, item) == (name, number) and next(armed, False):
            raise KeyboardInterrupt

    return watch


def test_a_killed_trial_is_resumed_and_gives_what_an_undisturbed_one_gives():
    whole = tried("alpha", seed=3)
    trial = ToyTrial(seed=3, watch=killed_at("Beta", 17)).for_paper("alpha")
    trial.finish_ = None
    ToyTrial(seed=3).for_paper("alpha")
    _forget(whole)
    with pytest.raises(KeyboardInterrupt):
        trial.run()
    again = ToyTrial(seed=3).for_paper("alpha")
    result = again.run()
    before = {item for _, item in again.seen}
    assert 0 not in before or len(again.seen) < len(trial.seen) + 24 * 4, "finished blocks are read back"
    assert [(arm.name, arm.samples, arm.values) for arm in result.arms] == [
        (arm.name, arm.samples, arm.values) for arm in whole.arms
    ]
    assert [(c.metric, c.difference) for c in result.comparisons if c.metric == "score"] == [
        (c.metric, c.difference) for c in whole.comparisons if c.metric == "score"
    ]


def _forget(result: Any) -> None: ...
