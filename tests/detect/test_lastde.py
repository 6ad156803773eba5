"""What must be true of Lastde and Lastde++ (arXiv:2410.06072)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.detect import Lastde, LastdePP, TokenScores
from broadsheet.detect.base import standard_score
from broadsheet.detect.lastde import aggregate, multiscale_diversity_entropy

AGGREGATIONS = ("std", "range", "2norm", "exprange", "expstd")


def log_probabilities(n: int, seed: int = 0, columns: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, columns) if columns else (n,)
    return torch.rand(shape, generator=generator, dtype=torch.float64).log() * 2


def lastde(series: torch.Tensor, *, bins: int, **parameters) -> torch.Tensor:
    """Scores of series with exactly `bins` bins."""
    return Lastde(bins_per_token=(bins + 0.5) / len(series), **parameters).score_series(series)


def by_the_book(series: list[float], window: int, bins: int, scales: int) -> list[float]:
    """Eq. 2–8 word by word, in plain Python."""
    entropies = []
    for scale in range(1, scales + 1):
        averages = [sum(series[i : i + scale]) / scale for i in range(len(series) - scale + 1)]
        orbits = [averages[i : i + window] for i in range(len(averages) - window + 1)]
        counts: dict[int, int] = {}
        for a, b in pairwise(orbits):
            cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
            index = min(bins - 1, int((min(1.0, max(-1.0, cosine)) + 1) / 2 * bins))
            counts[index] = counts.get(index, 0) + 1
        total = sum(counts.values())
        entropies.append(-sum(c / total * math.log(c / total) for c in counts.values()) / math.log(bins))
    return entropies


@pytest.mark.parametrize(("window", "bins", "scales"), [(3, 17, 5), (4, 8, 15), (2, 400, 3), (1, 5, 2)])
def test_entropy_follows_the_equations(window, bins, scales):
    # Values of both signs, so that the lower half of the histogram is used too.
    series = log_probabilities(60, seed=3) + 1.5
    got = multiscale_diversity_entropy(series, window=window, bins=bins, scales=scales)
    assert got.tolist() == pytest.approx(by_the_book(series.tolist(), window, bins, scales), abs=1e-12)


@given(st.integers(0, 10_000), st.integers(9, 60), st.integers(2, 300))
@settings(max_examples=60, deadline=None)
def test_entropy_is_bounded(seed, n, bins):
    scales, window = 4, 3
    entropies = multiscale_diversity_entropy(log_probabilities(n, seed), window=window, bins=bins, scales=scales)
    for scale, entropy in enumerate(entropies.tolist(), start=1):
        assert 0 <= entropy <= math.log(min(bins, n - scale - window + 1)) / math.log(bins) + 1e-12


@pytest.mark.parametrize("value", [-3.7, 0.0])
def test_constant_series_have_no_diversity_and_score_minus_infinity(value):
    series = torch.full((30,), value, dtype=torch.float64)
    assert multiscale_diversity_entropy(series, window=3, bins=20, scales=5).abs().max() < 1e-12
    if value:
        assert lastde(series, bins=20) == -math.inf


def test_one_bin_for_all_cosines_means_zero():
    # All-negative values: every cosine is positive, so with two bins all fall into the upper one.
    assert multiscale_diversity_entropy(log_probabilities(50), window=3, bins=2, scales=5).abs().max() == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_scaling_the_series_scales_the_score(aggregation):
    series = log_probabilities(80, seed=1)
    scores = [float(lastde(factor * series, bins=100, aggregation=aggregation)) for factor in (1, 4)]
    assert scores[1] == pytest.approx(4 * scores[0])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_score_is_the_mean_over_the_aggregate(aggregation):
    series = log_probabilities(80, seed=4)
    entropies = torch.tensor(by_the_book(series.tolist(), 3, 200, 5), dtype=torch.float64)
    expected = float(series.mean() / aggregate(entropies, aggregation))
    assert float(lastde(series, bins=200, aggregation=aggregation)) == pytest.approx(expected)


def test_shifting_the_series_is_not_scaling():
    series = log_probabilities(80, seed=1)
    before = multiscale_diversity_entropy(series, window=3, bins=100, scales=5)
    assert (multiscale_diversity_entropy(series - 3, window=3, bins=100, scales=5) - before).abs().max() > 0.01


def test_order_matters_to_lastde_and_not_to_its_numerator():
    series = log_probabilities(80, seed=2)
    shuffled = series[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert float(lastde(series, bins=800)) != pytest.approx(float(lastde(shuffled, bins=800)), rel=1e-3)
    assert float(series.mean()) == pytest.approx(float(shuffled.mean()))


def test_many_series_at_once_equal_one_by_one():
    series = log_probabilities(70, seed=5, columns=9)
    together = lastde(series, window=4, bins=560, scales=15)
    alone = [float(lastde(column, window=4, bins=560, scales=15)) for column in series.T]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_std_is_unbiased_and_aggregates_are_what_they_are_called():
    entropies = torch.tensor([0.1, 0.4, 0.2], dtype=torch.float64)
    assert float(aggregate(entropies, "std")) == pytest.approx(0.1527525232)
    assert float(aggregate(entropies, "range")) == pytest.approx(0.3)
    assert float(aggregate(entropies, "2norm")) == pytest.approx(math.sqrt(0.21))
    assert float(aggregate(entropies, "exprange")) == pytest.approx(math.exp(0.3))
    assert float(aggregate(entropies, "expstd")) == pytest.approx(math.exp(0.1527525232))
    with pytest.raises(ValueError, match="expected one of std, range"):
        aggregate(entropies, "median")  # type: ignore[arg-type]


def test_too_short_or_too_few_scales_is_an_error():
    with pytest.raises(ValueError, match="at least 9"):
        multiscale_diversity_entropy(log_probabilities(8), window=3, bins=10, scales=5)
    assert multiscale_diversity_entropy(log_probabilities(9), window=3, bins=10, scales=5).shape == (5,)
    with pytest.raises(ValueError, match="at least 2"):
        lastde(log_probabilities(20), bins=10, scales=1)


def reading(n: int, n_samples: int, seed: int = 0) -> TokenScores:
    return TokenScores(log_probabilities(n, seed), samples=log_probabilities(n, seed + 1, columns=n_samples))


def test_lastde_pp_is_the_hand_made_z_score():
    method, one = LastdePP(n_samples=20), reading(60, 20)
    assert one.samples is not None
    own = [float(lastde(c, window=4, bins=480, scales=15)) for c in one.samples.T]
    mean = sum(own) / 20
    std = math.sqrt(sum((value - mean) ** 2 for value in own) / 19)
    value = float(lastde(one.log_likelihood, window=4, bins=480, scales=15))
    assert method.statistic(one) == pytest.approx((value - mean) / std)


def test_lastde_pp_with_identical_samples_divides_by_one():
    one = reading(60, 1)
    assert one.samples is not None
    one.samples = one.samples.expand(-1, 5)
    method = LastdePP(n_samples=5)
    values = method.score_series(torch.cat([one.log_likelihood[:, None], one.samples], 1))
    assert method.statistic(one) == pytest.approx(float(values[0] - values[1]))


def test_standard_score_leaves_out_what_is_not_finite():
    samples = torch.tensor([1.0, 3.0, -math.inf], dtype=torch.float64)
    assert standard_score(4.0, samples) == pytest.approx((4 - 2) / math.sqrt(2))
    assert standard_score(4.0, samples, unbiased=False) == pytest.approx(2.0)


def test_defaults_are_the_papers():
    assert (Lastde().window, Lastde().bins(100), Lastde().scales) == (3, 1000, 5)
    assert (LastdePP().window, LastdePP().bins(100), LastdePP().scales, LastdePP().n_samples) == (4, 800, 15, 100)
