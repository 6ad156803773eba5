"""Where the time of a detector goes, and what vectorising Lastde++ is worth: `python benchmarks/detect.py`.

Three questions, each answered by arms on the same texts in one interleaved run (see `broadsheet.trial.engine`):
1. Lastde++'s statistic: all samples as one tensor, against a straightforward loop over samples, scales and bins' input.
2. The same with the forward pass counted in, as a user waits for it.
3. Each detector's own share beside the forward pass that they share.

`--record` keeps the result as evidence/lastde.benchmark.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from broadsheet import models
from broadsheet.data import corpora
from broadsheet.detect import (
    LRR,
    Binoculars,
    Detector,
    Entropy,
    FastDetectGPT,
    Lastde,
    LastdePP,
    Likelihood,
    LogRank,
    Rank,
    Reader,
    Reading,
)
from broadsheet.detect.trials.pairs import Protocol, first_words, passages
from broadsheet.page import evidence
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.results import ArmResult
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison

DETECTORS: dict[str, Detector] = {
    "Likelihood": Likelihood(),
    "Rank": Rank(),
    "LogRank": LogRank(),
    "LRR": LRR(),
    "Entropy": Entropy(),
    "Fast-DetectGPT": FastDetectGPT(),
    "Binoculars": Binoculars(),
    "Lastde": Lastde(),
    "Lastde++": LastdePP(),
}


def lastde_one(series: torch.Tensor, window: int, bins: int, scales: int) -> float:
    """Lastde of one series, scale by scale, with torch's own histogram: how one writes it down first."""
    entropies = []
    for scale in range(1, scales + 1):
        averages = series.unfold(0, scale, 1).mean(-1)
        orbits = averages.unfold(0, window, 1)
        cosine = torch.cosine_similarity(orbits[:-1], orbits[1:], dim=-1)
        counts = torch.histc(cosine, bins=bins, min=-1, max=1)
        shares = counts[counts > 0] / counts.sum()
        entropies.append(float(-(shares * shares.log()).sum()) / math.log(bins))
    return float(series.mean()) / float(torch.tensor(entropies).std())


def loop(method: LastdePP, reading: Reading) -> float:
    """Lastde++ with a loop over the samples."""
    assert reading.samples is not None
    bins = method.bins(len(reading))

    def one(series: torch.Tensor) -> float:
        return lastde_one(series.float(), method.window, bins, method.scales)

    samples = torch.tensor([one(column) for column in reading.samples.T])
    return (one(reading.log_likelihood) - float(samples.mean())) / float(samples.std())


def report(results: Sequence[ArmResult], comparisons: Sequence[Comparison]) -> None:
    for result in results:
        speed = result.items_per_second
        print(f"  {result.name:18} {speed.estimate:8.2f} texts/s [{speed.low:.2f}, {speed.high:.2f}] {result.error}")
    for comparison in comparisons:
        print(f"  {sentence(comparison)}")


def race(items: Sequence[Any], method: LastdePP, shared: Any = None, block_size: int = 4) -> list[Comparison]:
    """Loop against tensor over readings, or over texts when `shared` reads them; the scores must agree too."""

    def arm(name: str, score: Any, role: str = "method") -> Arm:
        return Arm(name, lambda readings: {"score": [score(one) for one in readings]}, role, shared=shared)

    arms = [arm("loop over samples", lambda one: loop(method, one), "baseline"), arm("one tensor", method.statistic)]
    results, comparisons = run_arms(arms, items, [Metric("score")], block_size=block_size, item="text")
    report(results, comparisons)
    return comparisons


def shares(texts: list[str], reader: Reader) -> dict[str, float]:
    """Seconds a text of the forward pass, and of each detector after it."""

    def speed(work: Any, items: Sequence[Any], block_size: int, per_item: int) -> float:
        arm = Arm("work", lambda block: {"done": [float(work(block))] * len(block)}, "baseline")
        [result], _ = run_arms([arm], items, [Metric("done")], block_size=block_size, per_item=per_item)
        return 1 / result.items_per_second.estimate

    groups = [texts[i : i + 4] for i in range(0, len(texts), 4)]
    seconds = {"forward pass": speed(lambda block: sum(len(p.labels) for p in reader.passes(block)), texts, 4, 1)}
    # The passes are made outside the clock: what is timed is what each detector does with them.
    passes = [(group, list(reader.passes(group))) for group in groups]
    for name, detector in DETECTORS.items():

        def score(block: Any, detector: Detector = detector) -> float:
            [(group, made)] = block
            readings = reader.read(group, detector.needs, n_samples=detector.draws, passes=made)
            return detector.score_readings(group, readings, reader).sum()

        seconds[name] = speed(score, passes, 1, 4)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24, help="a multiple of 4")
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default=None)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.texts % 4:
        parser.error("--texts must be a multiple of 4")

    documents = passages(corpora.load("pydocs"), arguments.texts, Protocol(), seed=0)
    texts = [first_words(document.text, 150) for document in documents]
    reader = Reader(arguments.model, device=arguments.device)
    method = LastdePP()

    def read(block: list[str]) -> list[Reading]:
        return reader.read(block, {"samples"}, n_samples=method.n_samples)

    print("1. Lastde++, the statistic alone (100 samples, 15 scales)")
    alone = race(read(texts), method, block_size=2)
    print("2. Lastde++, forward pass included")
    whole = race(texts, method, shared=read)
    print("3. Seconds a text: the shared forward pass, and each detector's own work after it")
    seconds = shares(texts, reader)
    for name, value in seconds.items():
        print(f"  {name:16} {1000 * value:9.1f} ms   {value / seconds['forward pass']:7.1%} of a forward pass")

    if arguments.record:
        result = {
            "texts": len(texts),
            "statistic_alone": [asdict(comparison) for comparison in alone],
            "forward_included": [asdict(comparison) for comparison in whole],
            "seconds_per_text": seconds,
            "command": "python benchmarks/detect.py --record",
            "provenance": evidence.provenance(model=models.fingerprint(reader.model), seed=0),
        }
        print(evidence.record("lastde.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
