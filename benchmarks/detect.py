"""Where the time of a detector goes, and what vectorising Lastde++ is worth: `python benchmarks/detect.py`.

Three questions, each answered by arms on the same texts in one interleaved run (see `broadsheet.trial`):
1. Lastde++'s statistic: all samples as one tensor, against a straightforward loop over samples, scales and bins' input.
2. The same with the forward pass counted in, as a user waits for it.
3. Each detector's own share beside the forward pass that they share.

`--record` keeps the result as evidence/lastde.benchmark.json.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from broadsheet import corpora, evidence
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
from broadsheet.detect.pairs import Protocol, first_words, passages
from broadsheet.stats import sentence
from broadsheet.trial import Arm, Metric, run_arms

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default=None)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()

    documents = passages(corpora.load("pydocs"), arguments.texts, Protocol(), seed=0)
    texts = [first_words(document.text, 150) for document in documents]
    reader = Reader(arguments.model, device=arguments.device)
    method = LastdePP()

    def read(block: list[str]) -> list[Reading]:
        return reader.read(block, {"samples"}, n_samples=method.n_samples)

    def statistic(score: Any) -> Any:
        return lambda readings: {"score": [score(reading) for reading in readings]}

    vectorised, looped = statistic(method.statistic), statistic(lambda reading: loop(method, reading))
    score = Metric("score")
    print("1. Lastde++, statistic alone (100 samples, 15 scales)")
    readings = read(texts)
    results, comparisons = run_arms(
        [Arm("loop over samples", looped, "baseline"), Arm("one tensor", vectorised)],
        readings,
        [score],
        block_size=2,
        item="text",
    )
    report(results, comparisons)
    alone = comparisons

    print("2. Lastde++, forward pass included")
    results, comparisons = run_arms(
        [Arm("loop over samples", looped, "baseline", shared=read), Arm("one tensor", vectorised, shared=read)],
        texts,
        [score],
        block_size=4,
        item="text",
    )
    report(results, comparisons)
    whole = comparisons

    print("3. Seconds a text: the shared forward pass, and each detector's own work after it")
    passes = Arm("forward pass", lambda block: {"score": [len(one.labels) for one in reader.passes(block)]}, "baseline")
    own = [
        Arm(
            name,
            lambda shared, detector=detector: {
                "score": detector.score_readings(
                    shared[0],
                    reader.read(shared[0], detector.needs, n_samples=detector.draws, passes=shared[1]),
                    reader,
                )
            },
            "sibling",
        )
        for name, detector in DETECTORS.items()
    ]
    # The passes are made outside the clock: what is timed is what each detector does with them.
    blocks = [(texts[i : i + 4], list(reader.passes(texts[i : i + 4]))) for i in range(0, len(texts), 4)]
    forward, _ = run_arms([passes], texts, [score], block_size=4, item="text")
    shares = {"forward pass": 1 / forward[0].items_per_second.estimate}  # type: ignore[union-attr]
    for arm in own:
        timed, _ = run_arms(
            [Arm(arm.name, lambda block, run=arm.run: {"score": [sum(run(block[0])["score"])]}, "baseline")],
            blocks,
            [score],
            block_size=1,
            item="text",
            per_item=4,
        )
        shares[arm.name] = 1 / timed[0].items_per_second.estimate  # type: ignore[union-attr]
    for name, seconds in shares.items():
        print(f"  {name:16} {1000 * seconds:9.1f} ms   {seconds / shares['forward pass']:7.1%} of a forward pass")

    if arguments.record:
        result = {
            "texts": len(texts),
            "tokens_per_text": sum(map(len, readings)) / len(readings),
            "statistic_alone": [vars(c) | {"difference": vars(c.difference)} for c in alone],
            "forward_included": [vars(c) | {"difference": vars(c.difference)} for c in whole],
            "seconds_per_text": shares,
            "provenance": evidence.provenance(model=arguments.model, seed=0),
        }
        print(evidence.record("lastde.benchmark", result, evidence.folder()))


def report(results: Any, comparisons: Any) -> None:
    for result in results:
        speed = result.items_per_second
        print(f"  {result.name:18} {speed.estimate:8.2f} texts/s [{speed.low:.2f}, {speed.high:.2f}] {result.error}")
    for comparison in comparisons:
        print(f"  {sentence(comparison)}")


if __name__ == "__main__":
    main()
