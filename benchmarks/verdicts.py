"""How often verdicts are right, in simulation: false verdicts where nothing differs, and power at the stated effect.

    python benchmarks/verdicts.py [--repetitions 1000] [--record]

Draws data of many kinds (clustered, skewed, heavy-tailed, rarely won, 0/1, AUROC, rates, rank correlations, paired
times, training runs), asks `compare_samples` and `compare_seconds` for verdicts, and prints, for each kind:

- false: how often two equal arms are called different; at most 6 % is promised.
- power: how often an effect of the size that "could have been seen" is called; 80 % is promised. The size is the one
  stated on other draws of the same kind, at the median. Where one tail is longer, the direction counts in which an
  effect is called less often.

Kinds that start with a pilot ask 30 items, decide as a trial does how many it takes to see the effect, and ask so many:
power is that of the effect for which they were chosen. Their n is how many the true spread would need.

`--record` keeps the table as evidence/verdicts.benchmark.json.

Knows: the statistics, random numbers. Does not know: models, trials.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from broadsheet.page import evidence
from broadsheet.trial.claims import Claim
from broadsheet.trial.sampling import PILOT, PilotSampling
from broadsheet.trial.stats import Floats, auroc, power_factor, spearman, tpr_at_fpr
from broadsheet.trial.verdicts import Comparison, compare_samples, compare_seconds

Generator = np.random.Generator
FOUND = ("helps", "hurts")
FALSE, POWER = 0.06, 0.80


@dataclass(frozen=True)
class Kind:
    """One kind of data.

    Args:
        draw: `(generator, n, effect)` to a comparison of two arms of which the second is better by `effect`.
        sizes: items (or blocks, clusters, runs) at which it is drawn.
        powered: whether power is asked too: an effect of any size has to be drawable.
        sides: the signs of the effects whose power is asked; the smaller one is told.
        target: the effect to plant at a size; by default the one stated.
    """

    name: str
    draw: Callable[[Generator, int, float], Comparison]
    sizes: tuple[int, ...] = (12, 30, 100)
    powered: bool = True
    sides: tuple[int, ...] = (1,)
    target: Callable[[int], float] | None = None


def compare(a: Any, b: Any, **options: Any) -> Comparison:
    return compare_samples(a, b, **{"metric": "m", "baseline": "A", "arm": "B", "resamples": 1000, **options})


def normal(rng: Generator, n: int, effect: float) -> Comparison:
    items = rng.normal(size=n)
    return compare(items + rng.normal(size=n), items + rng.normal(size=n) + effect)


def skewed(rng: Generator, n: int, effect: float) -> Comparison:
    items = rng.lognormal(size=n)
    return compare(items + rng.lognormal(sigma=1.5, size=n), items + rng.lognormal(sigma=1.5, size=n) + effect)


def one_sided_tail(rng: Generator, n: int, effect: float) -> Comparison:
    """Differences of mean `effect` that are exponential: few items win much."""
    return compare(np.zeros(n), rng.exponential(size=n) - 1 + effect)


def heavy(rng: Generator, n: int, effect: float) -> Comparison:
    """Differences of Student's t with three degrees of freedom."""
    return compare(np.zeros(n), rng.standard_t(3, size=n) + effect)


def laplace(rng: Generator, n: int, effect: float) -> Comparison:
    return compare(np.zeros(n), rng.laplace(size=n) + effect)


def log_normal(rng: Generator, n: int, effect: float) -> Comparison:
    """Differences of two log-normal values: symmetric, with long tails."""
    return compare(rng.lognormal(size=n), rng.lognormal(size=n) + effect)


def large_wins(rng: Generator, n: int, effect: float) -> Comparison:
    """One item in ten is won by eight standard deviations of the others."""
    return compare(np.zeros(n), rng.normal(size=n) + 8 * (rng.random(n) < 0.1) - 0.8 + effect)


def rarely_won(rng: Generator, n: int, effect: float) -> Comparison:
    """Values that mostly tie, as nDCG does: each arm wins a few items."""
    moved, sizes = rng.random(n) < 0.1, rng.uniform(0.2, 1, size=n)
    return compare(np.zeros(n), moved * sizes * rng.choice([-1, 1], size=n))


def shares(rng: Generator, n: int, effect: float) -> Comparison:
    """0/1 items: each is solved with its own chance; the better arm turns a share `effect` of the failures."""
    chance = rng.uniform(0.1, 0.6, size=n)
    first, second = (rng.random(n) < chance for _ in range(2))
    failed = 1 - float(chance.mean())
    return compare(first, second | (rng.random(n) < effect / failed), binary=True)


def rare_shares(rng: Generator, n: int, effect: float) -> Comparison:
    """0/1 items of which the arms disagree on few."""
    same = rng.random(n) < 0.5
    differ = rng.random(n) < max(0.04, effect)
    won = rng.random(n) < (1 + effect / max(0.04, effect)) / 2
    return compare(np.where(differ, ~won, same), np.where(differ, won, same), binary=True)


def _scores(rng: Generator, n: int, apart: float, effect: float) -> tuple[Floats, Floats]:
    """Two detectors' scores of n pairs of texts; what both see is shared."""
    seen = rng.normal(size=(n, 2)) + np.array([0, apart])
    return (seen + 0.7 * rng.normal(size=(n, 2)), seen + 0.7 * rng.normal(size=(n, 2)) + np.array([0, effect]))


def _shifted(statistic: Any, apart: float) -> Callable[[Generator, int, float], Comparison]:
    """Scores whose statistic is better by `effect`: the shift that gives it is found on 20,000 pairs."""
    table: list[tuple[float, float]] = []

    def shift(effect: float) -> float:
        if not table:
            fixed = np.random.default_rng(0)
            first, _ = _scores(fixed, 20_000, apart, 0)
            ones = np.ones((1, 20_000))
            start = float(statistic(first, ones)[0])
            for step in np.linspace(0, 6, 61):
                moved = first + np.array([0, step])
                table.append((float(statistic(moved, ones)[0]) - start, float(step)))
        effects, steps = zip(*table, strict=True)
        return float(np.interp(effect, effects, steps))

    def draw(rng: Generator, n: int, effect: float) -> Comparison:
        return compare(*_scores(rng, n, apart, shift(effect) if effect else 0.0), statistic=statistic, bounds=(0, 1))

    return draw


def correlations(rng: Generator, n: int, effect: float) -> Comparison:
    """Similarities beside gold scores; the better arm's noise is smaller, so that Spearman's ρ rises by `effect`."""
    gold = rng.normal(size=n)

    def arm(rho: float) -> Floats:
        pearson = 2 * math.sin(math.pi * min(rho, 0.999) / 6)
        return np.stack([pearson * gold + math.sqrt(1 - pearson**2) * rng.normal(size=n), gold], axis=1)

    return compare(arm(0.6), arm(0.6 + effect), statistic=spearman, bounds=(-1, 1))


def clustered(rng: Generator, n: int, effect: float) -> Comparison:
    """n documents of ten questions each: what makes a document hard for one arm makes all of its questions so."""
    documents = np.repeat(np.arange(n), 10)
    spread = rng.normal(size=n)[documents]
    return compare(
        rng.normal(size=10 * n),
        spread + rng.normal(size=10 * n) + effect,
        clusters=list(documents),
        counted="documents",
    )


def clustered_shares(rng: Generator, n: int, effect: float) -> Comparison:
    """The same for right and wrong answers; clusters of different sizes."""
    documents = np.repeat(np.arange(n), rng.integers(2, 18, size=n))
    better = rng.normal(0, 0.25, size=n)[documents]
    chance = 0.5 + np.array([-better, better]) / 2
    first, second = (rng.random(len(documents)) < np.clip(each, 0, 1) for each in chance)
    return compare(first, second, binary=True, clusters=list(documents))


def trained(rng: Generator, n: int, effect: float) -> Comparison:
    """Three training runs of each arm; a run is good or bad on all of its n items."""
    items = rng.normal(size=n)

    def arm(shift: float) -> Floats:
        return items + shift + rng.normal(0, 0.5, size=(3, 1)) + rng.normal(size=(3, n))

    return compare(arm(0), arm(effect), runs=True)


def twice_trained(rng: Generator, n: int, effect: float) -> Comparison:
    """Two training runs of each arm."""
    items = rng.normal(size=n)
    base, arm = (items + rng.normal(0, 0.5, size=(2, 1)) + rng.normal(size=(2, n)) for _ in range(2))
    return compare(base, arm + effect, runs=True)


def one_trained(rng: Generator, n: int, effect: float) -> Comparison:
    """Three training runs of the arm beside a baseline that is not trained."""
    items = rng.normal(size=n)
    arm = items + effect + rng.normal(0, 0.5, size=(3, 1)) + rng.normal(size=(3, n))
    return compare((items + rng.normal(size=n))[None], arm, runs=True)


def times(rng: Generator, n: int, effect: float) -> Comparison:
    """Seconds of n blocks, timed in turn; `effect` is a factor of speed (0 and 1: none)."""
    blocks = rng.lognormal(sigma=0.5, size=n)
    first, second = (blocks * rng.lognormal(sigma=0.1, size=n) for _ in range(2))
    return compare_seconds(first, second / (effect or 1), baseline="A", arm="B", metric="items/s")


def item_times(rng: Generator, n: int, effect: float) -> Comparison:
    """Milliseconds of n items, lower is better; `effect` is the factor that the arm is faster by."""
    items = rng.lognormal(sigma=0.8, size=n)
    first, second = (items * rng.lognormal(sigma=0.3, size=n) for _ in range(2))
    return compare(first, second / (effect or 1), scale="ratio", higher_is_better=False)


def _after_pilot(
    draw: Callable[[Generator, int], tuple[Floats, Floats]], spread: float, block: int = 1
) -> tuple[Callable[[Generator, int, float], Comparison], Callable[[int], float]]:
    """What a trial that samples by pilot finds, and the effect it looks for where n units would do.

    Args:
        draw: the two arms' values of so many items, of equal mean; what they share is known of every item.
        spread: standard deviation of a unit's mean difference.
        block: items in a unit, which are drawn together.
    """

    def target(n: int) -> float:
        return power_factor(n - 1) * spread / math.sqrt(n)

    def found(rng: Generator, n: int, effect: float) -> Comparison:
        most = 10 * n * block
        first, second = draw(rng, most)
        documents = [i // block for i in range(most)]

        def asked(items: int) -> Comparison:
            clusters = documents[:items] if block > 1 else None
            return compare(first[:items], second[:items] + effect, clusters=clusters, counted="documents")

        plan = PilotSampling([Claim("m", "A", "B", effect=target(n))], "items", PILOT, most, None).plan
        with contextlib.redirect_stderr(io.StringIO()):  # it says what it decides
            taken = plan.decide([asked(plan.pilot)], plan.pilot, 0.0)
        return asked(taken)

    return found, target


def _normal_items(rng: Generator, items: int) -> tuple[Floats, Floats]:
    return rng.normal(size=items), rng.normal(size=items)


def _skewed_items(rng: Generator, items: int) -> tuple[Floats, Floats]:
    return rng.lognormal(size=items), rng.lognormal(size=items)


def _clustered_items(rng: Generator, items: int) -> tuple[Floats, Floats]:
    """Documents of five questions each."""
    documents = np.repeat(rng.normal(size=-(-items // 5)), 5)[:items]
    return rng.normal(size=items), documents + rng.normal(size=items)


# Standard deviations: of N(0, 2); of the difference of two log-normal values; of a document's mean difference.
_PILOTS = {
    "pilot, normal": _after_pilot(_normal_items, math.sqrt(2)),
    "pilot, log-normal": _after_pilot(_skewed_items, math.sqrt(2 * math.e * (math.e - 1))),
    "pilot, clusters of 5": _after_pilot(_clustered_items, math.sqrt(1 + 2 / 5), block=5),
}

KINDS = [
    Kind("normal", normal),
    Kind("skewed", skewed),
    Kind("t with 3 degrees of freedom", heavy, (20, 50, 200)),
    Kind("Laplace", laplace, (20, 50, 200)),
    Kind("log-normal differences", log_normal, (20, 50, 200)),
    Kind("rare large wins", large_wins, (50, 200), sides=(1, -1)),
    Kind("one-sided tail", one_sided_tail, (30, 100, 300), sides=(1, -1)),
    Kind("rarely won", rarely_won, (20, 40, 100, 300), powered=False),
    Kind("0/1", shares, (30, 100, 300)),
    Kind("0/1, few disagreements", rare_shares, (30, 100, 300)),
    Kind("AUROC", _shifted(auroc, 1.0), (30, 100, 300)),
    Kind("AUROC near 1", _shifted(auroc, 2.5), (30, 100, 300), powered=False),
    Kind("TPR at 10 % FPR", _shifted(tpr_at_fpr(0.1), 1.0), (30, 100, 300)),
    Kind("TPR at 1 % FPR", _shifted(tpr_at_fpr(0.01), 1.0), (100, 300)),
    Kind("Spearman", correlations, (30, 100, 300)),
    Kind("clusters of 10", clustered, (8, 20, 60)),
    Kind("0/1 in clusters", clustered_shares, (8, 20, 60), powered=False),
    Kind("2 + 2 training runs", twice_trained, (30, 100)),
    Kind("3 + 3 training runs", trained, (30, 100)),
    Kind("3 training runs, fixed baseline", one_trained, (30, 100)),
    Kind("paired times", times, (6, 12, 30)),
    Kind("item times", item_times, (12, 30, 100)),
    *(Kind(name, draw, (60, 250), target=target) for name, (draw, target) in _PILOTS.items()),
]


def measure(kind: Kind, n: int, repetitions: int, seed: int = 0) -> dict[str, Any]:
    """Rates of one kind at one size.

    Returns:
        `false`, `power` (None where it is not asked), and `effect`, the size that was planted.
    """
    rng = np.random.default_rng([seed, n, *kind.name.encode()])
    nulls = [kind.draw(rng, n, 0.0) for _ in range(repetitions)]
    false = sum(each.verdict in FOUND for each in nulls) / repetitions
    power = effect = None
    if kind.target is not None:
        effect = kind.target(n)
    elif kind.powered:
        stated = [each.minimum_detectable_effect for each in nulls if math.isfinite(each.minimum_detectable_effect)]
        effect = float(np.median(stated))
    if effect is not None:
        power = min(
            sum(kind.draw(rng, n, sign * effect).verdict == FOUND[sign < 0] for _ in range(repetitions)) / repetitions
            for sign in kind.sides
        )
    return {"kind": kind.name, "n": n, "false": false, "power": power, "effect": effect}


def rows(repetitions: int, only: str = "") -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        if only in kind.name:
            for n in kind.sizes:
                yield measure(kind, n, repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often verdicts are right, in simulation.")
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--record", action="store_true", help="keep the table as evidence/verdicts.benchmark.json")
    given = parser.parse_args()
    print(f"{'kind':<32}{'n':>5}{'false':>9}{'power':>9}{'effect':>9}")
    table = []
    for row in rows(given.repetitions, given.only):
        table.append(row)
        power = "" if row["power"] is None else f"{row['power']:.1%}"
        effect = "" if row["effect"] is None else f"{row['effect']:.3g}"
        mark = " !" if row["false"] > FALSE else ""
        print(f"{row['kind']:<32}{row['n']:>5}{row['false']:>9.1%}{power:>9}{effect:>9}{mark}", flush=True)
    if given.record:
        command = f"python benchmarks/verdicts.py --repetitions {given.repetitions} --record"
        made = {"command": command, "provenance": evidence.provenance(), "rows": table}
        print(evidence.record("verdicts.benchmark", made, evidence.folder()))


if __name__ == "__main__":
    main()
