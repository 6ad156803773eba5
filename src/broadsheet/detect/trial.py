"""Try the detectors: human passages against a model's own continuations of them, every detector on the same pairs.

Knows: the stage's detectors, pairs of texts, the A/B engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from broadsheet import corpora, models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.detect.base import Detector
from broadsheet.detect.curvature import Binoculars, FastDetectGPT
from broadsheet.detect.lastde import Lastde, LastdePP
from broadsheet.detect.likelihood import LRR, Entropy, Likelihood, LogRank, Rank
from broadsheet.detect.pairs import Pair, Protocol, passages, write_pairs
from broadsheet.detect.reading import Pass, Reader
from broadsheet.detect.resampling import DNAGPT, NPR, DetectGPT
from broadsheet.evidence import provenance
from broadsheet.stats import auroc, tpr_at_fpr
from broadsheet.trial import Arm, ArmResult, Distribution, Metric, TrialResult, run_arms

_PAPER = ("Lastde", "Lastde++")
# What the paper says its two detectors beat: the best detector of one pass, and the best that samples.
_RIVALS = {"Lastde": "LRR", "Lastde++": "Fast-DetectGPT"}


@dataclass
class DetectTrial:
    """Human passages against a model's own continuations of them, cut to equal word counts (arXiv:2410.06072, Sec. 4).

    Every detector scores the same pairs. Quality is the AUROC, and the share of machine texts found when 1 % of the
    human ones are flagged. The plain baseline is the mean log-likelihood.

    Options:
        --pairs N: pairs of texts (60; with --quick 24).
        --generator MODEL: a second model writes, and the scoring model judges without having written (black-box),
            beside the white-box setting, where the scoring model judges its own text.
        --reference MODEL: what Fast-DetectGPT, Binoculars and Lastde++ compare with or sample from.
        --perturbations N, --regenerations N: of DetectGPT and NPR (10; the papers use 100), and of DNA-GPT (10).
            With --quick, and with 0, these slow detectors are left out.
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    pairs: int = 0
    generator: str = ""
    reference: str = ""
    perturbations: int = -1
    regenerations: int = -1
    text_field: str = "text"
    device: str = ""
    dtype: str = "float32"

    def run(self) -> TrialResult:
        """Make the pairs, run the arms, explain.

        Raises:
            InputError: an option, the model or the data cannot be used.
        """
        n_pairs = self.pairs or (24 if self.quick else 60)
        if n_pairs < 2:
            raise InputError(f"got --pairs {self.pairs}; expected at least 2")
        reader = Reader(self.model, self.reference or None, device=self.device or None, dtype=self.dtype)
        corpus = corpora.load(self.data, text_field=self.text_field)
        protocol = Protocol(max_new_tokens=120) if self.quick else Protocol()
        human = passages(corpus, 2 * n_pairs, protocol, self.seed)
        written, dropped = self._write(human, n_pairs, reader, protocol)
        items = list(zip(*written.values(), strict=False))

        detectors = self._detectors()
        settings = sorted(written)  # black-box only beside white-box
        metrics = []
        for setting in reversed(settings):
            suffix = "" if setting == "white-box" else ", black-box"
            metrics.append(Metric(f"AUROC{suffix}", of=setting, statistic=auroc, bounds=(0, 1)))
            metrics.append(Metric(f"TPR at 1 % FPR{suffix}", of=setting, statistic=tpr_at_fpr(0.01), bounds=(0, 1)))

        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": models.fingerprint(reader.model)},
            "data": {"name": self.data, "fingerprint": corpus.fingerprint()},
            "texts": fingerprint(
                [asdict(pair) for pair in items[0]] + [asdict(pair) for item in items for pair in item]
            ),
        }
        key = fingerprint([facts, asdict(self), sorted(detectors)])
        journal = home() / "trials" / f"detect-{key}.jsonl"
        journal.parent.mkdir(exist_ok=True)
        arms = _arms(detectors, reader, list(written))
        say(f"scoring {len(items) * (1 + len(written))} texts with {len(arms)} detectors")
        results, comparisons = run_arms(
            arms,
            items,
            metrics,
            block_size=4,
            pairs=[(_RIVALS[name], name) for name in _PAPER],
            item="text",
            per_item=1 + len(written),
            seed=self.seed,
            journal=journal,
        )
        result = TrialResult(
            paper="detect",
            title="Detect: is this text machine-written?",
            question=(
                f"Can a detector tell documents of {self.data} from what {self.generator or self.model} writes "
                f"after their first {protocol.prompt_tokens} tokens?"
            ),
            setting={
                "scoring model": self.model,
                "reference model": self.reference or "the scoring model",
                "generator": "the scoring model (white-box)"
                + (f" and {self.generator} (black-box)" if self.generator else ""),
                "data": corpus.describe(),
                "pairs": len(items),
                "human passages": f"at least {protocol.min_words} words",
                "continuations": f"at most {protocol.max_new_tokens} tokens, temperature 1, cut to equal word counts",
                "dtype": self.dtype,
                "device": str(reader.model.device),
            },
            arms=results,
            comparisons=comparisons,
            item="text",
            claims=[("AUROC", _RIVALS[name], name) for name in _PAPER],
            figures=_figures(results, list(written)),
            notes=self._notes(results, items, dropped, list(written)),
            provenance=provenance(**facts),
        )
        journal.unlink(missing_ok=True)
        return result

    def _write(self, human: list[Any], n: int, reader: Reader, protocol: Protocol) -> tuple[dict[str, list[Pair]], int]:
        """Pairs by setting; both settings have the same documents, in the same order."""
        from broadsheet.teacher import Teacher
        from broadsheet.teacher.local import Local

        generators = {"white-box": (reader.model, reader.tokenizer)}
        if self.generator:
            generators["black-box"] = tuple(models.load(self.generator, device=self.device or None, dtype=self.dtype))
        written = {}
        dropped = 0
        for setting, (model, tokenizer) in generators.items():
            say(f"writing {n} continuations of human passages ({setting})")
            pairs, lost = write_pairs(human, n, Teacher(Local(model, tokenizer)), tokenizer, protocol, self.seed)
            written[setting] = pairs
            dropped += lost
            chosen = {pair.id for pair in pairs}
            human = [document for document in human if document.id in chosen]
        both = set.intersection(*({pair.id for pair in pairs} for pairs in written.values()))
        return {setting: [p for p in pairs if p.id in both] for setting, pairs in written.items()}, dropped

    def _detectors(self) -> dict[str, Detector]:
        perturbations = self.perturbations if self.perturbations >= 0 else (0 if self.quick else 10)
        regenerations = self.regenerations if self.regenerations >= 0 else (0 if self.quick else 10)
        detectors: dict[str, Detector] = {
            "Likelihood": Likelihood(),
            "Rank": Rank(),
            "LogRank": LogRank(),
            "Entropy": Entropy(),
            "LRR": LRR(),
            "Fast-DetectGPT": FastDetectGPT(),
            "Binoculars": Binoculars(),
            "Lastde": Lastde(),
            "Lastde++": LastdePP(),
        }
        if perturbations:
            detectors["DetectGPT"] = DetectGPT(n_perturbations=perturbations)
            detectors["NPR"] = NPR(n_perturbations=perturbations)
        if regenerations:
            detectors["DNA-GPT"] = DNAGPT(n_regenerations=regenerations)
        for detector in detectors.values():
            detector.seed = self.seed
        return detectors

    def _notes(
        self, results: list[ArmResult], items: Sequence[tuple[Pair, ...]], dropped: int, settings: list[str]
    ) -> list[str]:
        """What a reader should know before trusting the numbers; each note is made from this run."""
        notes = []
        characters = np.array([[len(item[0].human), len(item[0].machine)] for item in items], dtype=np.float64)
        length = float(auroc(characters, np.ones((1, len(items))))[0])
        notes.append(
            "The two texts of a pair have the same number of words and begin alike. Their number of characters alone "
            f"gives an AUROC of {length:.2f}: how far that lies from 0.5 is what length gives away."
        )
        baseline = next(result for result in results if result.role == "baseline")
        if baseline.status == "ok" and baseline.values["AUROC"].estimate < 0.5:
            scores = np.asarray(baseline.samples["white-box"]).mean(0)
            notes.append(
                "Likelihood points the wrong way here. The model finds these human texts more predictable "
                f"({scores[0]:.2f} nats a token) than its own samples at temperature 1 ({scores[1]:.2f}): "
                "documentation is formulaic, and a sample wanders. Whatever asks only how likely a text is (Likelihood,"
                " Rank, LogRank, LRR, the numerator of Lastde) inherits this; detectors that compare it with what the "
                "model expected (Fast-DetectGPT, Binoculars, Lastde++) do not."
            )
        if dropped:
            notes.append(f"{dropped} documents gave no pair, because the model stopped early; others took their place.")
        if any(result.name in ("DetectGPT", "NPR") for result in results):
            notes.append(
                "DetectGPT and NPR fill their gaps from the scoring model's own predictions instead of T5-3B, "
                "and with fewer copies than the 100 of their papers unless --perturbations 100 was given."
            )
        if len(items) < 100:
            notes.append(
                f"With {len(items)} pairs no false positive at all is allowed at a false-positive rate of 1 %: "
                "read that column as the share of machine texts above the highest human score."
            )
        return notes


def _arms(detectors: dict[str, Detector], reader: Reader, settings: list[str]) -> list[Arm]:
    """One arm a detector; the forward pass over a block's texts is shared by all."""

    def texts_of(block: Sequence[tuple[Pair, ...]]) -> list[str]:
        return [text for item in block for text in (item[0].human, *(pair.machine for pair in item))]

    def read(block: Sequence[tuple[Pair, ...]]) -> tuple[list[str], list[Pass]]:
        texts = texts_of(block)
        return texts, list(reader.passes(texts))

    def score(detector: Detector) -> Any:
        def run(shared: tuple[list[str], list[Pass]]) -> dict[str, np.ndarray]:
            texts, passes = shared
            readings = reader.read(texts, detector.needs, n_samples=detector.draws, seed=detector.seed, passes=passes)
            scores = detector.score_readings(texts, readings, reader).reshape(-1, 1 + len(settings))
            return {setting: scores[:, [0, 1 + i]] for i, setting in enumerate(settings)}

        return run

    return [
        Arm(
            name,
            score(detector),
            role="baseline" if name == "Likelihood" else "method" if name in _PAPER else "sibling",
            description=(type(detector).__doc__ or "").split("\n", 1)[0],
            shared=read,
        )
        for name, detector in detectors.items()
    ]


def _figures(results: list[ArmResult], settings: list[str]) -> list[Any]:
    figures = []
    for result in results:
        if result.status != "ok":
            continue
        groups = {"human": np.asarray(result.samples[settings[0]])[:, 0].tolist()}
        for setting in settings:
            name = "machine" if len(settings) == 1 else f"machine, {setting}"
            groups[name] = np.asarray(result.samples[setting])[:, 1].tolist()
        figures.append(Distribution(f"{result.name}: scores", "score, higher = more machine-like", groups))
    return figures
