"""The A/B engine: honest on identical arms, able to see what is there, and no arm's failure lost."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as distributions

from broadsheet.page.evidence import finite, record
from broadsheet.trial.claims import Claim, judge
from broadsheet.trial.engine import RERUN, Arm, Measured, Metric, SamplePlan, _say_left, run_arms
from broadsheet.trial.outside.external import external_arm
from broadsheet.trial.results import TrialResult
from broadsheet.trial.stats import auroc

MEAN = Metric("value")


def noisy(name: str, seed: int, effect: float = 0.0, role: str = "method", sigma: float = 1.0) -> Arm:
    """An arm whose value for item x is x + effect + its own noise."""
    generator = np.random.default_rng(seed)
    return Arm(name, lambda block: {"value": [x + effect + sigma * generator.normal() for x in block]}, role)  # type: ignore[arg-type]


def verdicts(arms: list[Arm], items: list[float], **options) -> dict[tuple[str, str], str]:
    _, comparisons = run_arms(arms, items, [MEAN], resamples=600, **options)
    return {(c.arm, c.metric): c.verdict for c in comparisons}


def test_identical_noisy_arms_rarely_look_different():
    items = np.random.default_rng(0).normal(size=24).tolist()
    repetitions = 300
    called = sum(
        verdicts([noisy("a", 3 * i, role="baseline"), noisy("b", 3 * i + 1)], items)["b", "value"]
        != "no measurable difference"
        for i in range(repetitions)
    )
    # The noise floor makes the engine stricter than 5 %: only the upper side is a promise.
    assert called <= distributions.binom.ppf(0.999, repetitions, 0.05)


def test_a_planted_effect_is_found_and_signed():
    items = np.random.default_rng(0).normal(size=60).tolist()
    for effect, expected in ((2.0, "helps"), (-2.0, "hurts")):
        arms = [noisy("a", 1, role="baseline", sigma=0.5), noisy("b", 2, effect, sigma=0.5)]
        assert verdicts(arms, items)["b", "value"] == expected


def test_a_difference_within_the_baselines_own_noise_is_not_called():
    # The baseline drifts by 1 between its two runs; an arm that differs by 0.5 without noise is not told from that.
    runs = iter(range(10_000))

    def drifting(block):
        shift = next(runs) % 2
        return {"value": [x + shift for x in block]}

    # Warm-up, then per block: the baseline and its rerun alternate, so the shift falls on one of them throughout.
    items = list(np.random.default_rng(0).normal(size=16))
    arms = [Arm("a", drifting, "baseline"), Arm("b", lambda block: {"value": [1.01 * x + 0.5 for x in block]})]
    results, comparisons = run_arms(arms, items, [MEAN], block_size=16)
    [comparison] = [c for c in comparisons if c.metric == "value"]
    assert comparison.noise_floor == pytest.approx(1.0)
    assert comparison.verdict == "no measurable difference"
    assert results[0].status == "ok"


def test_binary_metrics_get_mcnemar():
    items = list(range(40))
    arms = [
        Arm("a", lambda block: {"right": [int(x % 2) for x in block]}, "baseline"),
        Arm("b", lambda block: {"right": [1 for _ in block]}),
    ]
    _, comparisons = run_arms(arms, items, [Metric("accuracy", of="right", binary=True)])
    assert comparisons[0].test == "exact McNemar"
    assert comparisons[0].verdict == "helps"
    assert comparisons[0].difference.estimate == pytest.approx(0.5)


def test_statistics_over_items_are_compared_as_wholes():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(50, 2)).tolist()
    arms = [
        Arm("chance", lambda block: {"scores": block}, "baseline"),
        Arm("told apart", lambda block: {"scores": [[h, m + 3] for h, m in block]}),
    ]
    results, comparisons = run_arms(arms, items, [Metric("AUROC", of="scores", statistic=auroc)])
    assert results[1].values["AUROC"].estimate > 0.95
    assert comparisons[0].verdict == "helps"


def test_an_arm_that_fails_halfway_is_reported_and_the_others_go_on():
    def breaks(block):
        if 9 in block:
            raise RuntimeError("out of\nluck")
        return {"value": list(block)}

    arms = [
        Arm("a", lambda block: {"value": list(block)}, "baseline"),
        Arm("breaks", breaks),
        Arm("b", lambda block: {"value": [x + 1 for x in block]}),
    ]
    results, comparisons = run_arms(arms, list(range(20)), [MEAN], block_size=4)
    broken = results[1]
    assert (broken.status, broken.error, broken.n_items) == ("failed", "in block 3: RuntimeError: out of luck", 8)
    assert {c.arm for c in comparisons} == {"b"}
    assert results[2].n_items == 20


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda block: {"value": [1.0]}, "expected one each"),
        (lambda block: {"other": list(block)}, "gave no output 'value'"),
        (lambda block: {"value": [float("nan") for _ in block]}, "are NaN"),
    ],
)
def test_unusable_outputs_fail_the_arm(run, reason):
    arms = [Arm("a", lambda block: {"value": list(block)}, "baseline"), Arm("b", run)]
    results, comparisons = run_arms(arms, list(range(8)), [MEAN], block_size=4)
    assert results[1].status == "failed"
    assert reason in results[1].error
    assert comparisons == []


def test_a_failing_preparation_is_reported_and_everything_is_closed():
    closed = []

    def fail():
        raise OSError("no such model")

    arms = [
        Arm("a", lambda block: {"value": list(block)}, "baseline", close=lambda: closed.append("a")),
        Arm("b", lambda block: {"value": list(block)}, prepare=fail, close=lambda: closed.append("b")),
    ]
    results, _ = run_arms(arms, [1.0, 2.0], [MEAN])
    assert results[1].error == "while preparing: OSError: no such model"
    assert closed == ["a", "b"]


def test_order_rotates_and_the_baseline_runs_twice():
    seen: list[tuple[str, int]] = []

    def arm(name: str, role: str = "method") -> Arm:
        return Arm(name, lambda block: (seen.append((name, block[0])), {"value": list(block)})[1], role)  # type: ignore[arg-type]

    run_arms([arm("a", "baseline"), arm("b")], list(range(3)), [MEAN], block_size=1)
    timed = seen[2:]  # after the warm-up
    assert [[name for name, item in timed if item == block] for block in range(3)] == [
        ["a", "b", "a"],
        ["b", "a", "a"],
        ["a", "a", "b"],
    ]


def test_shared_work_is_done_once_a_block_and_once_more_for_the_rerun():
    calls = []

    def shared(block):
        calls.append(len(block))
        return [2 * x for x in block]

    def arm(name: str, role: str = "method") -> Arm:
        return Arm(name, lambda doubled: {"value": doubled}, role, shared=shared)  # type: ignore[arg-type]

    results, _ = run_arms([arm("a", "baseline"), arm("b"), arm("c")], [1.0, 2.0, 3.0], [MEAN], block_size=3)
    assert calls == [1, 1, 1, 3, 3]
    assert results[2].samples["value"] == [2.0, 4.0, 6.0]


def test_an_arm_that_clocks_itself_is_believed():
    arms = [
        Arm("a", lambda block: Measured({"value": list(block)}, seconds=2.0, peak_bytes=7), "baseline"),
        Arm("b", lambda block: Measured({"value": list(block)}, 1.001 if block[0] % 4 else 0.999, peak_bytes=9)),
    ]
    results, comparisons = run_arms(arms, list(range(10)), [MEAN], block_size=2, item="text", per_item=3)
    assert results[0].items_per_second is not None
    assert results[0].items_per_second.estimate == pytest.approx(3.0)
    assert results[1].peak_bytes == 9
    [speed] = [c for c in comparisons if c.metric == "texts/s"]
    assert speed.difference.estimate == pytest.approx(2.0, rel=1e-3)
    assert speed.verdict == "helps"


def test_pairs_add_comparisons():
    arms = [noisy("a", 1, role="baseline"), noisy("b", 2), noisy("c", 3)]
    _, comparisons = run_arms(arms, [1.0] * 8, [MEAN], pairs=[("b", "c")])
    assert [(c.baseline, c.arm) for c in comparisons if c.metric == "value"] == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize(
    ("arms", "items", "message"),
    [
        ([Arm("a", dict, "baseline")], [], "no items"),
        ([Arm("a", dict)], [1], "0 baseline arms"),
        ([Arm("a", dict, "baseline"), Arm("a", dict)], [1], "different names"),
        ([Arm(RERUN, dict, "baseline")], [1], "different names"),
    ],
)
def test_impossible_trials_are_refused(arms, items, message):
    with pytest.raises(ValueError, match=message):
        run_arms(arms, items, [MEAN])


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from broadsheet.trial.engine import Arm, Metric, run_arms

    journal, kill_at, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    def arm(name, role="method"):
        def run(block):
            with log.open("a") as file:
                file.write(f"{name} {block[0]}\\n")
            if name == "b" and kill_at in block:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"value": [x * (1 if name == "a" else 2) for x in block]}
        return Arm(name, run, role)

    arms, items = [arm("a", "baseline"), arm("b")], list(range(12))
    results, _ = run_arms(arms, items, [Metric("value")], block_size=3, journal=journal)
    print(results[1].samples["value"])
    """
)


def test_a_killed_trial_goes_on_after_its_last_block(tmp_path):
    journal, log = tmp_path / "journal.jsonl", tmp_path / "log"

    def start(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(journal), str(kill_at), str(log)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start(kill_at=7).returncode == -signal.SIGKILL
    with journal.open("a") as file:
        file.write('{"a": {"outp')  # what a crash may leave
    log.unlink()
    finished = start(kill_at=-1)
    assert finished.stdout.strip() == str([2 * x for x in range(12)])
    assert "resuming after 2 blocks" in finished.stderr
    assert "b 3" not in log.read_text().splitlines()  # the warm-up may run item 0 again, no finished block is
    assert len(journal.read_text().splitlines()) == 4


def example() -> TrialResult:
    arms = [noisy("a", 1, role="baseline"), noisy("b", 2)]
    results, comparisons = run_arms(arms, [1.0] * 8, [MEAN], block_size=8)
    return TrialResult(
        "p",
        "t",
        "q",
        {"model": "m"},
        results,
        comparisons,
        judged=judge([Claim("value", "a", "b", effect=0.5)], comparisons),
    )


def test_a_result_survives_json_and_evidence_is_strict(tmp_path):
    result = example()  # one block: its speed interval is infinite
    path = record("p", result.to_dict(), tmp_path)
    text = path.read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    again = TrialResult.from_dict(json.loads(text))
    assert again.arms[1].values == result.arms[1].values
    assert again.claims == [("value", "a", "b")]
    assert again.judged == result.judged
    assert finite(again.to_dict()) == finite(result.to_dict())


PEER = textwrap.dedent(
    """
    import json, os, sys
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        items = json.loads(line)["items"]
        if "die" in items:
            sys.exit("peer: cannot go on")
        if "talk" in items:
            print("hello", flush=True)
        elif "complain" in items:
            print(json.dumps({"error": "not my kind of item"}), flush=True)
        elif "hang" in items:
            import time; time.sleep(60)
        else:
            print(json.dumps({"outputs": {"value": [2 * x for x in items]}, "seconds": 0.5}), flush=True)
    """
)


def peer(items: list, **options):
    arms = [
        Arm("a", lambda block: {"value": [x if isinstance(x, int) else 0 for x in block]}, "baseline"),
        external_arm("peer", [sys.executable, "-c", PEER], **options),
    ]
    return run_arms(arms, items, [MEAN], block_size=2)


def test_an_external_process_is_measured_beside_us():
    results, comparisons = peer([1, 2, 3, 4])
    assert results[1].samples["value"] == [2, 4, 6, 8]
    assert results[1].items_per_second is not None
    assert results[1].items_per_second.estimate == pytest.approx(4.0)
    assert results[1].peak_bytes > 1_000_000
    assert results[1].prepare_seconds > 0
    assert {c.arm for c in comparisons} == {"peer"}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([1, 2, "die", 4], "ended with status 1: peer: cannot go on"),
        ([1, 2, "talk", 4], "expected one JSON object a line, got 'hello'"),
        ([1, 2, "complain", 4], "reported: not my kind of item"),
    ],
)
def test_an_external_process_that_breaks_is_a_failed_arm(items, reason):
    results, _ = peer(items)
    assert results[1].status == "failed"
    assert reason in results[1].error
    assert results[0].status == "ok"


def test_a_silent_process_is_given_up_on_and_ended():
    results, _ = peer([1, 2, "hang", 4], timeout=1)
    assert "no answer within 1 s" in results[1].error


def test_a_program_that_is_not_there_is_a_failed_arm():
    arms = [Arm("a", lambda block: {"value": list(block)}, "baseline"), external_arm("peer", ["/no/such/program"])]
    results, _ = run_arms(arms, [1, 2], [MEAN])
    assert "cannot start /no/such/program" in results[1].error


def test_peak_memory_sees_what_was_allocated():
    if not Path("/proc/self/clear_refs").exists() or not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only the Linux kernel keeps a high-water mark that can be reset")

    def hungry(block):
        # mapped anew: an array could take what earlier tests gave back to the allocator, which is resident as it is
        with mmap.mmap(-1, 200_000_000) as ballast:
            for page in range(0, len(ballast), mmap.PAGESIZE):
                ballast[page] = 1
            return {"value": [float(ballast[0]) for _ in block]}

    arms = [Arm("a", lambda block: {"value": [1.0 for _ in block]}, "baseline"), Arm("b", hungry)]
    results, _ = run_arms(arms, [1, 2], [MEAN])
    assert results[1].peak_bytes - results[0].peak_bytes > 150_000_000


# ---- blocks that do not settle, training runs, a pilot


def clocked(name: str, seconds, role: str = "method") -> Arm:
    """An arm that says how long each of its turns took."""
    return Arm(name, lambda block: Measured({"value": list(block)}, seconds=next(seconds)), role)  # type: ignore[arg-type]


@pytest.mark.parametrize("timed", [True, False])
def test_a_block_on_which_the_baseline_disagrees_with_itself_is_run_again_for_its_time(timed):
    times = iter([1.0, 1.0, 9.0, 1.0, 1.01, *[1.0] * 20])  # the warm-up; in the second block 1 and 9, then 1 and 1.01
    arms = [clocked("a", times, "baseline"), clocked("b", iter([1.0] * 40))]
    turns = []
    arms[1].run = lambda block: (turns.append(block[0]), Measured({"value": list(block)}, seconds=0.5))[1]
    results, comparisons = run_arms(arms, list(range(6)), [MEAN], block_size=1, timed=timed)
    assert turns.count(0) == 2 + timed  # warm-up, once, and once more where the time is asked for
    assert results[0].samples["value"] == list(range(6))
    [speed] = [c for c in comparisons if c.metric == "items/s"]
    assert (speed.n, speed.left_out) == (5 + timed, 1 - timed)
    assert speed.noise_floor < 0.01


def test_a_block_that_never_settles_does_not_count_for_the_time():
    turn = iter(range(1000))

    def unsteady(block):
        return Measured({"value": list(block)}, seconds=1.0 + 9 * (next(turn) % 2) * (block[0] == 3))

    arms = [Arm("a", unsteady, "baseline"), Arm("b", lambda block: Measured({"value": list(block)}, seconds=0.5))]
    results, comparisons = run_arms(arms, list(range(7)), [MEAN], block_size=1)
    [speed] = [c for c in comparisons if c.metric == "items/s"]
    assert (speed.n, speed.left_out) == (6, 1)
    assert speed.difference.estimate == pytest.approx(2.0)
    assert results[0].n_items == 7, "its answers count"


def test_arms_of_one_name_are_training_runs_of_one_arm():
    items = list(np.random.default_rng(0).normal(size=30))

    def run(shift):
        return lambda block: {"value": [x + shift + 0.01 * x for x in block]}

    arms = [noisy("a", 1, role="baseline")]
    arms += [Arm("b", run(shift), run_number=i) for i, shift in enumerate((0.5, 1.0, 1.5))]
    results, comparisons = run_arms(arms, items, [MEAN])
    assert [(arm.name, arm.runs) for arm in results] == [("a", 1), ("b", 3)]
    [found] = [c for c in comparisons if c.metric == "value"]
    assert found.runs == (1, 3)
    assert found.run_error == pytest.approx(0.5 / 3**0.5, rel=0.01)
    assert results[1].values["value"].estimate == pytest.approx(1.0 + 1.01 * float(np.mean(items)))


def test_a_training_run_that_fails_fails_its_arm():
    arms = [noisy("a", 1, role="baseline"), Arm("b", lambda block: {"value": list(block)})]
    arms.append(Arm("b", lambda block: {}, run_number=1))
    results, _ = run_arms(arms, [1.0] * 8, [MEAN])
    assert [(arm.name, arm.status) for arm in results] == [("a", "ok"), ("b", "failed")]


def test_a_plan_decides_after_the_pilot_and_a_resumed_run_keeps_to_it(tmp_path):
    seen, journal = [], tmp_path / "journal.jsonl"

    def decide(comparisons, asked, seconds):
        seen.append((asked, {c.metric for c in comparisons}))
        return 11

    arms = [noisy("a", 1, role="baseline"), noisy("b", 2)]
    plan = SamplePlan(pilot=6, decide=decide)
    results, comparisons = run_arms(arms, [1.0] * 40, [MEAN], block_size=2, plan=plan, journal=journal)
    assert seen == [(6, {"value", "items/s"})]
    assert {arm.n_items for arm in results} == {12}  # whole blocks
    again, same = run_arms(arms, [1.0] * 40, [MEAN], block_size=2, plan=plan, journal=journal)
    assert len(seen) == 1
    assert [arm.values for arm in again] == [arm.values for arm in results]
    assert same == comparisons


def test_a_plan_is_told_what_the_clock_says_and_shared_work_once():
    turn, seen = iter(range(1000)), []

    def shared(block):
        time.sleep(0.01)
        return block

    def unsteady(block):
        return Measured({"value": list(block)}, seconds=1.0 + 9 * (next(turn) % 2) * (block[0] == 3))

    def decide(comparisons, asked, seconds):
        seen.append(seconds)
        return 8

    def steady(block):
        return Measured({"value": list(block)}, seconds=0.5)

    arms = [Arm("a", unsteady, "baseline", shared=shared)]
    arms += [Arm(name, steady, shared=shared) for name in "bcdefgh"]
    begin = time.perf_counter()
    run_arms(arms, list(range(12)), [MEAN], block_size=1, plan=SamplePlan(pilot=6, decide=decide))
    assert 0 < 6 * seen[0] < time.perf_counter() - begin


def test_items_that_each_are_a_cluster_of_their_own_are_compared_as_items():
    def arm(name: str, role: str, value: float) -> Arm:
        return Arm(name, lambda block: {"right": [value] * len(block)}, role)  # type: ignore[arg-type]

    for cluster, test in ((lambda item: item, "exact McNemar"), (lambda item: item // 2, "paired bootstrap")):
        metric = Metric("right", binary=True, cluster=cluster, counted="clips")
        _, comparisons = run_arms([arm("a", "baseline", 0.0), arm("b", "method", 1.0)], list(range(12)), [metric])
        assert comparisons[0].test == test


def test_after_the_first_block_it_is_told_how_long_the_others_take(capsys):
    _say_left(20.0, 10, None, 5)
    _say_left(20.0, 100, SamplePlan(30, lambda *_: 30), 5)
    _say_left(0.1, 100, None, 5)
    assert capsys.readouterr().err == "about 3 min more\nabout 1.67 min more for the pilot\n"
