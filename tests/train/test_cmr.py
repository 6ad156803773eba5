"""Critical mixture ratios: what fits, turning points and predictions must be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.train import CriticalMixtureRatio
from broadsheet.train.cmr import MixtureRun, PowerLaw, Ratio, RiseAndFall, fit_law, turning_point

TOKENS = np.geomspace(1, 100, 24)
RATIOS = (0.125, 0.25, 0.5, 0.75)
exponents = st.floats(0.05, 2.0) | st.floats(-2.0, -0.05)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 2), exponents, st.floats(-3, 3), st.sampled_from([1, -1]))
def test_a_power_law_is_found_again_whatever_the_sign_of_its_exponent(alpha, s, beta, sign):
    law = PowerLaw(sign * alpha, s, beta)
    for x in (TOKENS, np.linspace(0.1, 1, 8)):
        found = PowerLaw.fit(x, law(x))
        assert np.abs(found(x) - law(x)).max() < 1e-5 * max(1, np.abs(law(x)).max())
        assert np.abs(found.slope(x) - law.slope(x)).max() < 1e-3 * max(1, np.abs(law.slope(x)).max())


def test_an_exponent_near_0_is_a_logarithm_and_blows_nothing_up():
    found = PowerLaw.fit(TOKENS, 2 - 0.3 * np.log(TOKENS))
    assert np.abs(found(TOKENS) - (2 - 0.3 * np.log(TOKENS))).max() < 1e-3
    flat = PowerLaw.fit(TOKENS, np.full_like(TOKENS, 2.0))
    assert np.abs(flat(TOKENS) - 2).max() < 1e-9


@settings(deadline=None, max_examples=12)
@example(0.125, -0.40625, 0.0014395865449728484, 0.3125, 0.0)  # two falling terms that cancel are nearly as good
@given(st.floats(0.01, 0.2), st.floats(-1.5, -0.3), st.floats(0.0005, 0.005), st.floats(0.3, 1.2), st.floats(-1, 1))
def test_a_rise_and_a_fall_are_found_again(alpha2, s2, alpha3, s3, beta):
    law = RiseAndFall(-alpha2, s2, -alpha3, s3, beta)
    found = RiseAndFall.fit(TOKENS, law(TOKENS))
    assert np.abs(found(TOKENS) - law(TOKENS)).max() < 1e-6
    assert found.s2 < found.s3


DOMAIN = PowerLaw(0.5, -0.12, 0.0)
GENERAL = RiseAndFall(-0.08, -0.6, -0.002, 0.6, 0.082)


def highest(general: RiseAndFall) -> float:
    """Where general loss is highest, on a fine grid."""
    grid = np.geomspace(0.1, 1_000, 200_001)
    return float(grid[general(grid).argmax()])


def test_it_turns_before_general_loss_is_highest_and_the_nearer_the_more_that_counts():
    turns = [turning_point(DOMAIN, GENERAL, weight, 100) for weight in (10, 100, 1_000, 1e7)]
    assert all(earlier < later for earlier, later in pairwise(turns))
    assert turns[-2] < highest(GENERAL)
    assert turns[-1] == pytest.approx(highest(GENERAL), rel=1e-3)
    assert turning_point(DOMAIN, GENERAL, 1e-6, 100) == 0, "domain loss alone falls at once"
    rising = RiseAndFall(-0.08, -0.6, 0.002, 0.6, 0.082)
    assert turning_point(DOMAIN, rising, 1_000, 100) == float("inf")


def test_constants_move_no_turning_point_and_a_unit_moves_it_along():
    usual = turning_point(DOMAIN, GENERAL, 1_000, 100)
    shifted = RiseAndFall(-0.08, -0.6, -0.002, 0.6, 5.0)
    assert turning_point(PowerLaw(0.5, -0.12, 9.0), shifted, 1_000, 100) == pytest.approx(usual, rel=1e-12)
    scale = 1e6
    domain = PowerLaw(0.5 * scale**0.12, -0.12, 0.0)
    general = RiseAndFall(-0.08 * scale**0.6, -0.6, -0.002 * scale**-0.6, 0.6, 0.082)
    assert turning_point(domain, general, 1_000, 100 * scale) == pytest.approx(usual * scale, rel=1e-9)


def run(ratio: float, unit: float = 1.0, noise: float = 0.0, turn: float = 1.0) -> MixtureRun:
    """Made of the laws: the more domain text, the higher general loss rises and the later it falls."""
    drawn = np.random.default_rng(round(1000 * ratio)).normal(size=(2, len(TOKENS))) * noise
    domain = 3.0 - 0.4 * ratio - 0.1 * TOKENS**0.3 + drawn[0]
    general = 2.0 + ratio * 0.06 * (1 - TOKENS**-0.6) - turn * (1 - ratio) * 0.0015 * TOKENS**0.6 + drawn[1]
    return MixtureRun(ratio, TOKENS * unit, domain, general, (3.0, 2.0))


@pytest.fixture(scope="module")
def found() -> CriticalMixtureRatio:
    return CriticalMixtureRatio([run(ratio) for ratio in RATIOS])


def test_the_larger_the_ratio_the_later_it_turns_and_the_budget_decides(found):
    turns = list(found.turning_points.values())
    assert turns == sorted(turns)
    below, above = 0.9 * turns[0], 1.1 * turns[-1]
    assert found.predict(below) == Ratio(None)
    assert str(found.predict(below)) == "none"
    assert found.predict(above) == Ratio(RATIOS[-1], at_least=True)
    assert str(found.predict(above)) == "≥ 75 %"
    between = [found.predict(budget).value for budget in np.linspace(1.01 * turns[0], 0.99 * turns[-1], 20)]
    assert all(earlier <= later for earlier, later in pairwise(between))
    assert len(set(between)) > 10, "the law tells, not the ratios that were tried alone"
    middle = (turns[1] * turns[2]) ** 0.5
    assert RATIOS[1] < found.predict(middle).value < RATIOS[2]


def test_what_is_predicted_turns_at_the_budget(found):
    """By the laws that the runs were made of: at the ratio that is critical for T, general loss turns at T."""
    budget = float(np.median(list(found.turning_points.values())))
    there = run(found.predict(budget).value)
    curves = (PowerLaw.fit(TOKENS, there.domain - 3.0), RiseAndFall.fit(TOKENS, there.general - 2.0))
    assert turning_point(*curves, found.weight, 100) == pytest.approx(budget, rel=0.1)


def test_a_unit_of_tokens_changes_nothing(found):
    others = CriticalMixtureRatio([run(ratio, unit=2e5) for ratio in RATIOS])
    for budget in (10, 30, 60):
        assert others.predict(budget * 2e5).value == pytest.approx(found.predict(budget).value, rel=1e-3)


def test_epsilon_bounds_what_general_loss_may_rise_by(found):
    runs = found.runs
    free = CriticalMixtureRatio(runs, epsilon=1e9, weight=1e9)
    assert free.predict(1e5) == Ratio(RATIOS[-1], at_least=True), "by turning points alone"
    steep = [run(ratio, turn=0.0) for ratio in RATIOS]
    assert CriticalMixtureRatio(steep, epsilon=0.0).predict(100).value is None, "none, and not 0 %"
    tight = CriticalMixtureRatio(runs, epsilon=0.02)
    late = 1.2 * max(tight.turning_points.values())
    assert {ratio: tight.admissible(ratio, late) for ratio in RATIOS} == {
        ratio: tight.curves[ratio][1](late) <= 0.02 for ratio in RATIOS
    }
    limit = tight.predict(late).value
    assert limit < RATIOS[-1]
    loss = run(limit).general - 2.0
    assert RiseAndFall.fit(TOKENS, loss)(late) == pytest.approx(0.02, abs=0.004)


def test_an_interval_holds_what_is_predicted_and_shrinks_with_the_noise():
    widths = []
    for noise in (2e-5, 2e-4):
        made = CriticalMixtureRatio([run(ratio, noise=noise) for ratio in RATIOS])
        predicted = made.predict(30, samples=8)
        assert predicted.low <= predicted.value <= predicted.high
        widths.append(predicted.high - predicted.low)
        assert made.predict(30, samples=8) == predicted, "by its seed alone"
    assert widths[0] < widths[1]


def test_what_says_nothing_is_refused():
    runs = [run(ratio) for ratio in RATIOS]
    with pytest.raises(InputError, match="expected three or more"):
        CriticalMixtureRatio(runs[:2])
    worse = MixtureRun(1.0, TOKENS, runs[0].domain + 1, runs[0].general, (3.0, 2.0))
    with pytest.raises(InputError, match="does not fall with its share"):
        CriticalMixtureRatio([*runs, worse])
    with pytest.raises(InputError, match="expected 3 or more"):
        PowerLaw.fit([1, 2], [3, 4])
    with pytest.raises(InputError, match="above 0"):
        PowerLaw.fit([0, 1, 2], [3, 4, 5])
    with pytest.raises(InputError, match="expected 5 or more"):
        RiseAndFall.fit([1, 2, 3, 4], [1, 2, 3, 4])
    with pytest.raises(InputError, match="above 0"):
        MixtureRun(0.0, [1], [1], [1], (1, 1))
    with pytest.raises(InputError, match="different lengths"):
        MixtureRun(0.5, [1, 2], [1], [1], (1, 1))
    assert fit_law([(0.1, 0.0), (0.2, 5.0), (0.3, 9.0), (0.4, float("inf"))]) is None
