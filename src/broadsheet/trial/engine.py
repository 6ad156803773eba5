"""The A/B engine: run the plain baseline and the method on the same items, time them interleaved, and say what differs.

Knows: arms that turn a block of items into numbers, and metrics over those numbers. Does not know: models, texts, or
what an item is. The statistics are in `stats`, clocks and memory in `clock`, how a result looks in `report`, arms that
run in another interpreter in `external`.

The items are cut into blocks. Every arm runs on each block, in an order that rotates from block to block, and the
baseline runs a second time as its own rival: so a drift of the machine falls on all arms alike, every block gives one
paired timing at no extra cost, and the difference between the baseline and itself is the noise floor that a verdict
has to clear.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet import events
from broadsheet.clock import measure
from broadsheet.console import duration, progress, say
from broadsheet.trial.results import ArmResult, Role, beside_chance, plural
from broadsheet.trial.stats import RESAMPLES, Interval, Statistic, interval, mean, over_runs
from broadsheet.trial.verdicts import Comparison, Scale, compare_samples, compare_seconds

Outputs = Mapping[str, Sequence[Any]]
RERUN = "baseline, run again"
SETTLED = 1.5  # a block on which the baseline's two times differ by more than this factor is run again
_UNSETTLED_SECONDS = 0.1  # and by more than this: shorter times are the clock's
_TOLD_SECONDS = 30  # what takes longer is told beforehand
_TRIES = 3  # of a block, before its time is left out


@dataclass(frozen=True)
class Measured:
    """Outputs of an arm that clocks itself, such as an external process; replaces what the engine saw."""

    outputs: Outputs
    seconds: float | None = None
    peak_bytes: int | None = None


@dataclass
class Arm:
    """One way of doing the job.

    Args:
        name: as it is printed.
        run: a block of items to its outputs, `{output name: one value (or row) per item}`. With `shared`, it gets that
            function's result instead of the block.
        role: `"baseline"` once; `"method"` for what the paper adds, `"sibling"` for related methods, `"peer"` for
            another library's implementation.
        prepare: called once before the warm-up (loading, training); its seconds are reported apart.
        ready: called before each turn, its seconds not counted: makes again what memory had no room for meanwhile.
        close: called at the end, also after a failure.
        shared: work that several arms need, computed once a block for all arms that name the same function; its
            seconds count for each of them.
        run_number: which training run of the arm it is, from 0. Arms of one name are one arm, trained as often.
    """

    name: str
    run: Callable[[Any], Outputs | Measured]
    role: Role = "method"
    description: str = ""
    prepare: Callable[[], None] | None = None
    ready: Callable[[], None] | None = None
    close: Callable[[], None] | None = None
    shared: Callable[[Sequence[Any]], Any] | None = None
    run_number: int = 0

    @property
    def label(self) -> str:
        """The name, with the training run where it is not the first."""
        return f"{self.name}, training run {self.run_number + 1}" if self.run_number else self.name


@dataclass(frozen=True)
class Metric:
    """One question asked of every arm.

    Args:
        name: as it is printed, e.g. `"AUROC"`.
        of: which output of the arm it reads; by default its own name.
        statistic: items' values `(n, ...)` and weights `(resamples, n)` to one number per row; the mean by default.
        higher_is_better: the direction of `helps`.
        binary: values are 0/1 per item, so the comparison is an exact McNemar test.
        unit: printed after the number.
        bounds: the metric's range; an arm's own interval is cut to it, and its better end is the ceiling.
        scale: `"ratio"` for times and sizes, one positive number per item: compared by the mean log ratio.
        cluster: an item's cluster (its document, speaker, prompt), where items belong together: clusters are drawn
            whole, and what is counted are clusters.
        counted: what a cluster is, in the plural: `"documents"`.
        chance: what guessing gives, where it is known: an arm whose interval reaches that helps nobody. Of an AUROC,
            and of a true-positive rate at a false-positive rate, it is known by the name.
        only: whether an item has a part in this metric; all have by default. An arm's output of the others is not
            read, and a metric in which no item has a part is not reported.
    """

    name: str
    of: str = ""
    statistic: Statistic = mean
    higher_is_better: bool = True
    binary: bool = False
    unit: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    scale: Scale = "difference"
    cluster: Callable[[Any], Hashable] | None = None
    counted: str = "clusters"
    chance: float | None = None
    only: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class SamplePlan:
    """How many items are asked: decided after a pilot.

    Args:
        pilot: items that are asked before it is decided.
        decide: comparisons on the pilot, its items, and seconds for all arms' answers to one, to the items wanted in
            all. It may look at how much values spread, and not at which arm leads.
    """

    pilot: int
    decide: Callable[[Sequence[Comparison], int, float], int]


@dataclass
class _Record:
    """What an arm has done so far."""

    outputs: dict[str, list[Any]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    prepare_seconds: float = 0.0
    error: str = ""


def run_arms(
    arms: Sequence[Arm],
    items: Sequence[Any],
    metrics: Sequence[Metric],
    *,
    block_size: int = 8,
    pairs: Sequence[tuple[str, str]] = (),
    item: str = "item",
    per_item: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
    journal: Path | None = None,
    margins: Mapping[str, float] | None = None,
    plan: SamplePlan | None = None,
    timed: bool = True,
) -> tuple[list[ArmResult], list[Comparison]]:
    """Run every arm on every item and compare them.

    Args:
        arms: exactly one name with role `"baseline"`; arms of one name are training runs of one arm.
        block_size: items in a block; one paired timing a block.
        pairs: further comparisons, `(baseline name, arm name)`, beside those of every arm with the baseline.
        item: the unit of the speed metric, in the singular: `"text"` gives texts/s.
        per_item: units in one item (2 for a pair of texts).
        seed, resamples: of the bootstrap.
        journal: a JSONL file that finished blocks are appended to; a rerun with the same file resumes after them. The
            caller names it after everything that decides the outcome and removes it when the result is written.
        margins: metric to how much worse counts as no worse (`Comparison.margin`).
        plan: decides, after a pilot, how many of the items are asked; all of them by default.
        timed: whether anybody reads the times; where nobody does, no block is run again for them.

    A block on which the baseline's two runs take very different times is run again; where they never agree, its time
    does not count. An arm that raises is reported as failed with its reason and takes no further part; the others go
    on. A metric that an arm's values do not allow (missing, NaN) is an error of that arm.

    Raises:
        ValueError: no items, no or several baselines, two arms of one name, or a pair that names no arm.
    """
    _check(arms, items, pairs)
    records = {arm.label: _Record() for arm in arms}
    baseline = next(arm for arm in arms if arm.role == "baseline")
    records[RERUN] = _Record()
    runners = [*arms, Arm(RERUN, baseline.run, "sibling", ready=baseline.ready, shared=baseline.shared)]
    blocks = [items[start : start + block_size] for start in range(0, len(items), block_size)]
    made = _Made(arms, items, metrics, f"{plural(item)}/s", records, margins or {}, seed, resamples)
    wanted = _wanted(arms, baseline.name, pairs)
    done, planned, spent = _replay(journal, records)
    blocks = blocks[: -(-planned // block_size)] if planned else blocks
    try:
        for arm in arms:
            _prepare(arm, records[arm.label], blocks[0][:1], warm=done < len(blocks))
        with progress("running the arms", total=len(blocks), done=done) as bar:
            index = done
            made.tell(index, len(blocks), spent, block_size, plan is not None and not planned)
            while index < len(blocks):
                if plan is not None and not planned and index * block_size >= plan.pilot:
                    planned = _planned(plan, made, wanted, index * block_size, len(items), spent)
                    _write(journal, {"planned": planned})
                    blocks = blocks[: max(index, -(-planned // block_size))]
                    bar.update(bar.task_ids[0], total=len(blocks))
                    continue
                begin = time.perf_counter()
                finished = _settled_block(runners, blocks[index], index, records, _TRIES if timed else 1)
                seconds = time.perf_counter() - begin
                _absorb(finished, records)
                _write(journal, {"block": finished, "seconds": seconds})
                spent += seconds
                bar.advance(bar.task_ids[0])
                index += 1
                made.tell(index, len(blocks), spent, block_size, plan is not None and not planned)
                if index == 1:
                    _say_left(seconds, len(blocks), None if planned else plan, block_size)
    finally:
        for arm in arms:
            if arm.close:
                arm.close()
    return made.outcome(wanted, per_item)


def _say_left(seconds: float, blocks: int, plan: SamplePlan | None, block_size: int) -> None:
    """After the first block: how long the others take, or those of the pilot."""
    asked = blocks if plan is None else min(blocks, -(-plan.pilot // block_size))
    if (left := seconds * (asked - 1)) > _TOLD_SECONDS:
        say(f"about {duration(left)} more" + ("" if plan is None else " for the pilot"))


def _wanted(arms: Sequence[Arm], baseline: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(baseline, arm) of every comparison: each arm with the baseline, then the further pairs."""
    wanted = [(baseline, name) for name in dict.fromkeys(arm.name for arm in arms) if name != baseline]
    return wanted + [pair for pair in dict.fromkeys(pairs) if pair not in wanted]


def _planned(
    plan: SamplePlan, made: _Made, wanted: Sequence[tuple[str, str]], asked: int, most: int, spent: float
) -> int:
    """How many items are asked in all, at least those of the pilot, which took `spent` seconds."""
    _, found = made.outcome(wanted, 1)
    return min(max(plan.decide(found, asked, spent / asked), asked), most)


def _check(arms: Sequence[Arm], items: Sequence[Any], pairs: Sequence[tuple[str, str]]) -> None:
    names = [arm.label for arm in arms]
    baselines = list(dict.fromkeys(arm.name for arm in arms if arm.role == "baseline"))
    if not items:
        raise ValueError("got no items; expected at least one to run the arms on")
    if len(baselines) != 1:
        raise ValueError(f"got {len(baselines)} baseline arms {baselines}; expected exactly one")
    if len({*names, RERUN}) != len(names) + 1:
        raise ValueError(f"got arms {names}; expected different names, none of them {RERUN!r}")
    if unknown := {name for pair in pairs for name in pair} - {arm.name for arm in arms}:
        raise ValueError(f"got pairs that name no arm: {sorted(unknown)}")


def _prepare(arm: Arm, record: _Record, warm_up: Sequence[Any], *, warm: bool) -> None:
    """Prepare an arm and let it run once untimed: lazy loading and compilation are over when the clock starts."""
    if record.error:
        return
    start = time.perf_counter()
    try:
        if arm.prepare:
            arm.prepare()
        record.prepare_seconds = time.perf_counter() - start
        if warm:
            arm.run(arm.shared(warm_up) if arm.shared else warm_up)
    except Exception as error:
        record.error = f"while preparing: {_describe(error)}"


def _settled_block(
    runners: Sequence[Arm], block: Sequence[Any], index: int, records: Mapping[str, _Record], most: int
) -> dict[str, Any]:
    """`_run_block`, again where the baseline's two times disagree; of the tries the one in which they agree best.

    Each of `most` tries starts with another arm. Where no try settles, the times are marked as unsettled.
    """
    failed = {name for name, record in records.items() if record.error}
    tries = []
    for attempt in range(most):
        tries.append(_run_block(runners, block, index + attempt, failed))
        failed |= {name for name, made in tries[-1].items() if "error" in made}
        if _disagreement(tries[-1], runners) <= math.log(SETTLED):
            break
    best = min(tries, key=lambda made: _disagreement(made, runners))
    if _disagreement(best, runners) > math.log(SETTLED):
        for made in best.values():
            made["unsettled"] = True
    return best | {name: made for made_all in tries for name, made in made_all.items() if "error" in made}


def _disagreement(finished: Mapping[str, Any], runners: Sequence[Arm]) -> float:
    """|log ratio| of the baseline's two times of a block; 0 where they are too short to tell, or one failed."""
    baseline = next(arm.label for arm in runners if arm.role == "baseline")
    times = [finished.get(name, {}).get("seconds", 0.0) for name in (baseline, RERUN)]
    if min(times) <= 0 or abs(times[0] - times[1]) < _UNSETTLED_SECONDS:
        return 0.0
    return abs(math.log(times[0] / times[1]))


def _run_block(runners: Sequence[Arm], block: Sequence[Any], index: int, failed: set[str]) -> dict[str, Any]:
    """What each runner made of one block, as JSON: `{"outputs", "seconds", "peak_bytes"}` or `{"error"}`."""
    turn = index % len(runners)
    computed: dict[Any, tuple[Any, float, int]] = {}
    finished: dict[str, Any] = {}
    for arm in [*runners[turn:], *runners[:turn]]:
        if arm.label in failed:
            continue
        try:
            if arm.ready:
                arm.ready()
            given, shared_seconds, shared_bytes = block, 0.0, 0
            if arm.shared:
                # The rerun of the baseline pays for its own shared work: it stands for a second, independent run.
                key = (arm.shared, arm.name == RERUN)
                if key not in computed:
                    computed[key] = measure(arm.shared, block)
                given, shared_seconds, shared_bytes = computed[key]
            result, seconds, peak_bytes = measure(arm.run, given)
            seconds, peak_bytes = seconds + shared_seconds, max(peak_bytes, shared_bytes)
            if isinstance(result, Measured):
                seconds = seconds if result.seconds is None else result.seconds
                peak_bytes = peak_bytes if result.peak_bytes is None else result.peak_bytes
                result = result.outputs
            outputs = {name: np.asarray(values).tolist() for name, values in result.items()}
            if wrong := {name: len(values) for name, values in outputs.items() if len(values) != len(block)}:
                raise ValueError(f"got {wrong} values for a block of {len(block)} items; expected one each")
            finished[arm.label] = {"outputs": outputs, "seconds": seconds, "peak_bytes": peak_bytes}
        except Exception as error:
            finished[arm.label] = {"error": f"in block {index + 1}: {_describe(error)}"}
    return finished


def _absorb(finished: Mapping[str, Any], records: Mapping[str, _Record]) -> None:
    for name, made in finished.items():
        record = records[name]
        if "error" in made:
            record.error = made["error"]
            continue
        for output, values in made["outputs"].items():
            record.outputs.setdefault(output, []).extend(values)
        record.seconds.append(math.nan if made.get("unsettled") else made["seconds"])
        record.sizes.append(len(next(iter(made["outputs"].values()), [])))
        record.peak_bytes = max(record.peak_bytes, made["peak_bytes"])


def _write(journal: Path | None, line: Mapping[str, Any]) -> None:
    if journal:
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _replay(journal: Path | None, records: Mapping[str, _Record]) -> tuple[int, int, float]:
    """Take in the blocks an earlier, interrupted run finished.

    Returns:
        How many there are, how many items that run had planned (or 0), and the seconds that the blocks took.

    A half-written last line is dropped.
    """
    if journal is None or not journal.exists():
        return 0, 0, 0.0
    done = planned = 0
    spent, whole = 0.0, b""
    for text in journal.read_bytes().splitlines(keepends=True):
        if not text.endswith(b"\n"):
            break
        line = json.loads(text)
        whole += text
        if "planned" in line:
            planned = line["planned"]
            continue
        _absorb(line["block"], records)
        spent += line["seconds"]
        done += 1
    journal.write_bytes(whole)
    if done:
        say(f"resuming after {done} blocks that an interrupted run had finished")
    return done, planned, spent


def _describe(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@dataclass
class _Made:
    """What the arms have made of the items so far, and what follows from it."""

    arms: Sequence[Arm]
    items: Sequence[Any]
    metrics: Sequence[Metric]
    speed: str
    records: Mapping[str, _Record]
    margins: Mapping[str, float]
    seed: int
    resamples: int

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(arm.name for arm in self.arms))

    def outcome(self, wanted: Sequence[tuple[str, str]], per_item: int) -> tuple[list[ArmResult], list[Comparison]]:
        """What each arm did, and the comparisons `wanted` of those that did not fail."""
        results = [self.result(name, per_item) for name in self.names]
        usable = {result.name for result in results if result.status == "ok"}
        comparisons = [c for a, b in wanted if {a, b} <= usable for c in self.compare(a, b)]
        levels = {metric.name: metric.chance for metric in self.metrics if metric.chance is not None}
        return results, beside_chance(comparisons, results, levels)

    def tell(self, done: int, of: int, seconds: float, block_size: int, piloting: bool) -> None:
        """Tell those who follow what the arms have made so far: values, and no verdict before the end.

        Args:
            done, of: blocks; while `piloting` it is not decided yet how many there will be.
            seconds: that the done ones took.
        """
        if not events.followed():
            return
        arms = []
        for name in self.names:
            runs, arm = self.of(name), next(arm for arm in self.arms if arm.name == name)
            values: dict[str, float] = {}
            for metric in self.metrics:
                with suppress(ValueError):  # too few items, or an arm that has failed: it is told at the end
                    values[metric.name] = self.so_far(name, metric)
            speed = _speed([t for run in runs for t in run.seconds], [n for run in runs for n in run.sizes])
            values[self.speed] = speed.estimate
            error = next((run.error for run in runs if run.error), "")
            arms.append({"name": name, "role": arm.role, "values": values, "error": error})
        left = seconds / done * (of - done) if done else None
        items = min(done * block_size, len(self.items))
        events.tell("block", done=done, of=of, items=items, piloting=piloting, left=left, arms=arms)

    def so_far(self, name: str, metric: Metric) -> float:
        """An arm's value in a metric over the items so far.

        Raises:
            ValueError: it has none.
        """
        values = self.values(name, metric)
        if not values.shape[1]:
            raise ValueError("no items yet")
        shown = np.log(values) if metric.scale == "ratio" else values
        [found] = over_runs(shown, metric.statistic, np.ones((1, values.shape[1])))
        return _exp(float(found)) if metric.scale == "ratio" else float(found)

    def of(self, name: str) -> list[_Record]:
        """The records of an arm's training runs."""
        return [self.records[arm.label] for arm in self.arms if arm.name == name]

    def result(self, name: str, per_item: int) -> ArmResult:
        """What one arm did."""
        arm = next(arm for arm in self.arms if arm.name == name)
        runs = self.of(name)
        result = ArmResult(name, arm.role, arm.description, runs=len(runs))
        result.prepare_seconds = float(np.mean([run.prepare_seconds for run in runs]))
        result.n_items = min(sum(run.sizes) for run in runs)
        result.peak_bytes = max(run.peak_bytes for run in runs)
        result.samples = runs[0].outputs
        try:
            if errors := [run.error for run in runs if run.error]:
                raise ValueError(errors[0])
            for metric in self.metrics:
                values = self.values(name, metric)
                if not values.shape[1]:
                    continue
                shown = np.log(values) if metric.scale == "ratio" else values
                span = interval(
                    shown if len(runs) > 1 else shown[0],
                    metric.statistic,
                    binary=metric.binary,
                    runs=len(runs) > 1,
                    clusters=self.clusters(metric, name),
                    seed=self.seed,
                    resamples=self.resamples,
                )
                ends = (span.estimate, span.low, span.high)
                estimate, low, high = map(_exp, ends) if metric.scale == "ratio" else ends
                result.values[metric.name] = Interval(estimate, max(metric.bounds[0], low), min(metric.bounds[1], high))
            result.items_per_second = _speed(
                [second for run in runs for second in run.seconds],
                [per_item * size for run in runs for size in run.sizes],
            )
        except ValueError as error:
            result.status, result.error = "failed", str(error)
        return result

    def values(self, name: str, metric: Metric) -> NDArray[np.float64]:
        """(training runs, items, ...)."""
        return np.stack([self._values(run, metric) for run in self.of(name)])

    def clusters(self, metric: Metric, name: str) -> list[Hashable] | None:
        """The cluster of each item that the arm `name` has answered and that has a part in the metric.

        None for yes or no where each item is a cluster of its own: then the exact test holds.
        """
        if metric.cluster is None:
            return None
        n = len(next(iter(self.of(name)[0].outputs.values())))
        found = [metric.cluster(self.items[i]) for i in self._places(metric, n)]
        return None if metric.binary and len(set(found)) == len(found) else found

    def _places(self, metric: Metric, n: int) -> list[int]:
        """Those of the first n items that have a part in the metric."""
        return [i for i in range(n) if metric.only is None or metric.only(self.items[i])]

    def _values(self, record: _Record, metric: Metric) -> NDArray[np.float64]:
        """(items, ...) of one training run."""
        output = metric.of or metric.name
        if output not in record.outputs:
            raise ValueError(f"gave no output {output!r} for {metric.name}; got {sorted(record.outputs)}")
        given = record.outputs[output]
        values = np.asarray([given[i] for i in self._places(metric, len(given))], dtype=np.float64)
        if missing := int(np.isnan(values).sum()):
            raise ValueError(f"{missing} of {values.size} values of {output!r} are NaN")
        if metric.scale == "ratio" and not (values > 0).all():
            raise ValueError(f"{int((values <= 0).sum())} of {values.size} values of {output!r} are not positive")
        return values

    def compare(self, a: str, b: str) -> Iterator[Comparison]:
        """Every metric and the speed of arm `b` against arm `a`; the baseline's A/A difference is the noise floor."""
        baseline = next(arm for arm in self.arms if arm.role == "baseline")
        first, again = self.records[baseline.label], self.records[RERUN]
        for metric in self.metrics:
            one, other = self.values(a, metric), self.values(b, metric)
            if not one.shape[1]:
                continue
            ones, floor = np.ones((1, one.shape[1])), 0.0
            if not again.error and not first.error:
                twice = [self._values(record, metric) for record in (first, again)]
                if metric.scale == "ratio":
                    twice = [np.log(values) for values in twice]
                floor = abs(
                    float(
                        over_runs(twice[1][None], metric.statistic, ones)[0]
                        - over_runs(twice[0][None], metric.statistic, ones)[0]
                    )
                )
            yield compare_samples(
                one,
                other,
                metric=metric.name,
                baseline=a,
                arm=b,
                statistic=metric.statistic,
                binary=metric.binary,
                higher_is_better=metric.higher_is_better,
                noise_floor=floor,
                scale=metric.scale,
                clusters=self.clusters(metric, a),
                counted=metric.counted,
                runs=True,
                bounds=metric.bounds,
                margin=self.margins.get(metric.name),
                seed=self.seed,
                resamples=self.resamples,
                unit=metric.unit,
            )
        seconds = [np.mean([run.seconds for run in self.of(name)], axis=0) for name in (a, b)]
        counts = np.isfinite(seconds[0])
        if not counts.any():
            return
        floor = 0.0
        if not again.error and not first.error:
            floor = abs(float(np.nanmean(np.log(first.seconds) - np.log(again.seconds))))
        yield compare_seconds(
            seconds[0][counts],
            seconds[1][counts],
            metric=self.speed,
            baseline=a,
            arm=b,
            noise_floor=floor,
            margin=self.margins.get(self.speed),
            left_out=int((~counts).sum()),
        )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _speed(seconds: Sequence[float], sizes: Sequence[int]) -> Interval:
    """Units per second over all settled blocks, with a t interval on the blocks' log rates."""
    from scipy import stats as distributions

    pairs = [(second, size) for second, size in zip(seconds, sizes, strict=True) if math.isfinite(second)]
    if not pairs:
        return Interval(math.nan, 0.0, math.inf)
    times, counts = np.array([second for second, _ in pairs]), np.array([size for _, size in pairs])
    total, rates = float(counts.sum() / times.sum()), np.log(counts / times)
    if len(rates) < 2:
        return Interval(total, 0.0, float("inf"))
    half = distributions.t.ppf(0.975, len(rates) - 1) * rates.std(ddof=1) / len(rates) ** 0.5
    return Interval(total, total * float(np.exp(-half)), total * float(np.exp(half)))
