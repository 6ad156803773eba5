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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet.clock import measure
from broadsheet.console import progress, say
from broadsheet.trial.results import ArmResult, Role, plural
from broadsheet.trial.stats import Comparison, Interval, Statistic, compare_samples, compare_seconds, interval, mean

Outputs = Mapping[str, Sequence[Any]]
RERUN = "baseline, run again"


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
        close: called at the end, also after a failure.
        shared: work that several arms need, computed once a block for all arms that name the same function; its
            seconds count for each of them.
    """

    name: str
    run: Callable[[Any], Outputs | Measured]
    role: Role = "method"
    description: str = ""
    prepare: Callable[[], None] | None = None
    close: Callable[[], None] | None = None
    shared: Callable[[Sequence[Any]], Any] | None = None


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
        bounds: the metric's range; an arm's own interval is cut to it.
    """

    name: str
    of: str = ""
    statistic: Statistic = mean
    higher_is_better: bool = True
    binary: bool = False
    unit: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass
class _Record:
    """What an arm has done so far."""

    outputs: dict[str, list[Any]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
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
    resamples: int = 4000,
    journal: Path | None = None,
) -> tuple[list[ArmResult], list[Comparison]]:
    """Run every arm on every item and compare them.

    Args:
        arms: exactly one with role `"baseline"`.
        block_size: items in a block; one paired timing a block.
        pairs: further comparisons, `(baseline name, arm name)`, beside those of every arm with the baseline.
        item: the unit of the speed metric, in the singular: `"text"` gives texts/s.
        per_item: units in one item (2 for a pair of texts).
        seed, resamples: of the bootstrap.
        journal: a JSONL file that finished blocks are appended to; a rerun with the same file resumes after them. The
            caller names it after everything that decides the outcome and removes it when the result is written.

    An arm that raises is reported as failed with its reason and takes no further part; the others go on. A metric
    that an arm's values do not allow (missing, NaN) is an error of that arm.

    Raises:
        ValueError: no items, no or several baselines, two arms of one name, or a pair that names no arm.
    """
    _check(arms, items, pairs)
    records = {arm.name: _Record() for arm in arms}
    baseline = next(arm for arm in arms if arm.role == "baseline")
    records[RERUN] = _Record()
    runners = [*arms, Arm(RERUN, baseline.run, "sibling", shared=baseline.shared)]
    blocks = [items[start : start + block_size] for start in range(0, len(items), block_size)]
    done = _replay(journal, records)
    try:
        for arm in arms:
            _prepare(arm, records[arm.name], blocks[0][:1], warm=done < len(blocks))
        with progress("running the arms", total=len(blocks)) as bar:
            bar.update(bar.task_ids[0], completed=done)
            for index in range(done, len(blocks)):
                failed = {name for name, record in records.items() if record.error}
                finished = _run_block(runners, blocks[index], index, failed)
                _absorb(finished, records)
                if journal:
                    with journal.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(finished) + "\n")
                bar.advance(bar.task_ids[0])
    finally:
        for arm in arms:
            if arm.close:
                arm.close()
    speed = f"{plural(item)}/s"
    results = [_summarise(arm, records[arm.name], metrics, blocks, per_item, seed, resamples) for arm in arms]
    usable = {result.name for result in results if result.status == "ok"}
    wanted = [(baseline.name, arm.name) for arm in arms if arm is not baseline]
    wanted += [pair for pair in pairs if pair not in wanted]
    comparisons: list[Comparison] = []
    for a, b in wanted:
        if {a, b} <= usable:
            comparisons += _compare(a, b, records, metrics, speed, baseline.name, seed, resamples)
    return results, comparisons


def _check(arms: Sequence[Arm], items: Sequence[Any], pairs: Sequence[tuple[str, str]]) -> None:
    names = [arm.name for arm in arms]
    baselines = [arm.name for arm in arms if arm.role == "baseline"]
    if not items:
        raise ValueError("got no items; expected at least one to run the arms on")
    if len(baselines) != 1:
        raise ValueError(f"got {len(baselines)} baseline arms {baselines}; expected exactly one")
    if len({*names, RERUN}) != len(names) + 1:
        raise ValueError(f"got arms {names}; expected different names, none of them {RERUN!r}")
    if unknown := {name for pair in pairs for name in pair} - set(names):
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


def _run_block(runners: Sequence[Arm], block: Sequence[Any], index: int, failed: set[str]) -> dict[str, Any]:
    """What each runner made of one block, as JSON: `{"outputs", "seconds", "peak_bytes"}` or `{"error"}`."""
    turn = index % len(runners)
    computed: dict[Any, tuple[Any, float, int]] = {}
    finished: dict[str, Any] = {}
    for arm in [*runners[turn:], *runners[:turn]]:
        if arm.name in failed:
            continue
        try:
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
            finished[arm.name] = {"outputs": outputs, "seconds": seconds, "peak_bytes": peak_bytes}
        except Exception as error:
            finished[arm.name] = {"error": f"in block {index + 1}: {_describe(error)}"}
    return finished


def _absorb(finished: Mapping[str, Any], records: Mapping[str, _Record]) -> None:
    for name, made in finished.items():
        record = records[name]
        if "error" in made:
            record.error = made["error"]
            continue
        for output, values in made["outputs"].items():
            record.outputs.setdefault(output, []).extend(values)
        record.seconds.append(made["seconds"])
        record.peak_bytes = max(record.peak_bytes, made["peak_bytes"])


def _replay(journal: Path | None, records: Mapping[str, _Record]) -> int:
    """Take in the blocks an earlier, interrupted run finished; how many. A half-written last line is dropped."""
    if journal is None or not journal.exists():
        return 0
    done = 0
    whole = b""
    for line in journal.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        _absorb(json.loads(line), records)
        whole += line
        done += 1
    journal.write_bytes(whole)
    if done:
        say(f"resuming after {done} blocks that an interrupted run had finished")
    return done


def _describe(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _summarise(
    arm: Arm,
    record: _Record,
    metrics: Sequence[Metric],
    blocks: Sequence[Sequence[Any]],
    per_item: int,
    seed: int,
    resamples: int,
) -> ArmResult:
    result = ArmResult(arm.name, arm.role, arm.description, prepare_seconds=record.prepare_seconds)
    result.n_items = sum(len(block) for block in blocks[: len(record.seconds)])
    result.peak_bytes = record.peak_bytes
    result.samples = record.outputs
    try:
        if record.error:
            raise ValueError(record.error)
        for metric in metrics:
            values = _values(record, metric)
            span = interval(values, metric.statistic, seed=seed, resamples=resamples)
            low, high = metric.bounds
            result.values[metric.name] = Interval(span.estimate, max(low, span.low), min(high, span.high))
        result.items_per_second = _speed(record.seconds, [per_item * len(block) for block in blocks])
    except ValueError as error:
        result.status, result.error = "failed", str(error)
    return result


def _values(record: _Record, metric: Metric) -> NDArray[np.float64]:
    output = metric.of or metric.name
    if output not in record.outputs:
        raise ValueError(f"gave no output {output!r} for {metric.name}; got {sorted(record.outputs)}")
    values = np.asarray(record.outputs[output], dtype=np.float64)
    if missing := int(np.isnan(values).sum()):
        raise ValueError(f"{missing} of {values.size} values of {output!r} are NaN")
    return values


def _speed(seconds: Sequence[float], sizes: Sequence[int]) -> Interval:
    """Units per second over all blocks, with a t interval on the blocks' log rates."""
    from scipy import stats as distributions

    rates = np.log(np.asarray(sizes) / np.asarray(seconds))
    total = sum(sizes) / sum(seconds)
    if len(rates) < 2:
        return Interval(total, 0.0, float("inf"))
    half = distributions.t.ppf(0.975, len(rates) - 1) * rates.std(ddof=1) / len(rates) ** 0.5
    return Interval(total, total * float(np.exp(-half)), total * float(np.exp(half)))


def _compare(
    a: str,
    b: str,
    records: Mapping[str, _Record],
    metrics: Sequence[Metric],
    speed: str,
    baseline: str,
    seed: int,
    resamples: int,
) -> Iterator[Comparison]:
    """Every metric and the speed of arm `b` against arm `a`, with the baseline's own A/A difference as the floor."""
    again = records[RERUN]
    for metric in metrics:
        ones = np.ones((1, len(_values(records[a], metric))))
        floor = 0.0
        if not again.error:
            runs = [metric.statistic(_values(records[name], metric), ones)[0] for name in (baseline, RERUN)]
            floor = abs(float(runs[1] - runs[0]))
        yield compare_samples(
            _values(records[a], metric),
            _values(records[b], metric),
            metric=metric.name,
            baseline=a,
            arm=b,
            statistic=metric.statistic,
            binary=metric.binary,
            higher_is_better=metric.higher_is_better,
            noise_floor=floor,
            seed=seed,
            resamples=resamples,
            unit=metric.unit,
        )
    floor = 0.0
    if not again.error:
        floor = abs(float(np.mean(np.log(records[baseline].seconds) - np.log(again.seconds))))
    yield compare_seconds(
        np.asarray(records[a].seconds),
        np.asarray(records[b].seconds),
        metric=speed,
        baseline=a,
        arm=b,
        noise_floor=floor,
    )
