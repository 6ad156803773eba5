"""Try the detectors: human passages against a model's own continuations of them, every detector on the same pairs.

Knows: the stage's detectors, pairs of texts, the A/B engine.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus
from broadsheet.detect.base import Detector, Scores
from broadsheet.detect.curvature import Binoculars, FastDetectGPT
from broadsheet.detect.lastde import Lastde, LastdePP
from broadsheet.detect.likelihood import LRR, Entropy, Likelihood, LogRank, Rank
from broadsheet.detect.reading import ForwardPass, Reader
from broadsheet.detect.resampling import DNAGPT, NPR, DetectGPT
from broadsheet.detect.trials.pairs import ContinuationWriter, PairConfig, TextPair, match, passages, write_pairs
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Measured, Metric, run_arms
from broadsheet.trial.external import ExternalProcess
from broadsheet.trial.results import ArmResult, Distribution, Role, TrialResult
from broadsheet.trial.stats import auroc, tpr_at_fpr

_PAPER = ("Lastde", "Lastde++")
# What the paper says its two detectors beat: the best detector of one pass, and the best that samples.
_RIVALS = {"Lastde": "LRR", "Lastde++": "Fast-DetectGPT"}


@dataclass(frozen=True)
class Texts:
    """What a trial scores.

    Args:
        pairs: by setting; the first one decides the headline. All settings have the same human texts in the same order.
        writers: who wrote the machine texts of each setting, as printed.
        dropped: human texts that gave no pair, because the model stopped early.
        how: how the pairs were made, as printed.
    """

    pairs: dict[str, list[TextPair]]
    writers: dict[str, str]
    dropped: int
    how: str

    @property
    def settings(self) -> list[str]:
        return list(self.pairs)

    @property
    def items(self) -> list[tuple[TextPair, ...]]:
        """One item a human text: its pair in each setting."""
        return list(zip(*self.pairs.values(), strict=True))


@dataclass
class DetectTrial:
    """Human passages against a model's own continuations of them, cut to equal word counts (arXiv:2410.06072, Sec. 4).

    Every detector scores the same pairs. Quality is the AUROC, and the share of machine texts found when 1 % of the
    human ones are flagged. The plain baseline is the mean log-likelihood.

    Options:
        --pairs N: pairs of texts (60; with --quick 20).
        --generator MODEL: a second model writes, and the scoring model judges without having written (black-box),
            beside the white-box setting, where the scoring model judges its own text.
        --machine FILE: texts that a machine wrote, one for each document of the data, matched by id where the ids agree
            and else by order; nothing is generated then.
        --temperatures LIST: at which the scoring model writes (1,0.8: the paper's setting, which decides the headline,
            and one nearer to what people use).
        --top-p P: of the sampling (1).
        --reference MODEL: what Fast-DetectGPT, Binoculars and Lastde++ compare with or sample from.
        --perturbations N, --regenerations N: of DetectGPT and NPR (5; the paper compares with 100), and of DNA-GPT (3;
            the paper 10). With --quick, and with 0, these slow detectors are left out.
        --peer COMMAND: a program that scores texts, measured beside ours (docs/external.md; items are texts, and the
            output `score` has one number for each).
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    pairs: int = 0
    generator: str = ""
    machine: str = ""
    reference: str = ""
    temperatures: str = "1,0.8"
    top_p: float = 1.0
    perturbations: int = -1
    regenerations: int = -1
    peer: str = ""
    text_field: str = "text"
    device: str = ""
    dtype: str = "float32"

    def run(self) -> TrialResult:
        """Make the pairs, run the arms, explain.

        Raises:
            InputError: an option, the model or the data cannot be used.
        """
        self.pairs = self.pairs or (20 if self.quick else 60)
        if self.pairs < 2:
            raise InputError(f"got --pairs {self.pairs}; expected at least 2")
        temperatures = self._temperatures()
        if self.machine and self.generator:
            raise InputError(
                "got --machine and --generator; expected texts that are there, or a model that writes them"
            )
        reader = Reader(self.model, self.reference or None, device=self.device or None, dtype=self.dtype)
        corpus = corpora.load(self.data, text_field=self.text_field)
        texts = self._given(corpus) if self.machine else self._written(corpus, reader, temperatures)
        detectors = self._detectors()
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": models.fingerprint(reader.model)},
            "data": {"name": self.data, "fingerprint": corpus.fingerprint()},
            "texts": fingerprint([asdict(pair) for item in texts.items for pair in item]),
        }
        key = fingerprint([versions(), facts, asdict(self), [repr(detector) for detector in detectors.values()]])
        self.journal_ = home() / "trials" / f"detect-{key}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)
        per_item = 1 + len(texts.settings)
        say(f"scoring {len(texts.items) * per_item} texts with {len(detectors)} detectors")
        arms, comparisons = run_arms(
            _arms(detectors, reader, texts.settings, self.peer),
            texts.items,
            _metrics(texts.settings),
            block_size=4,
            pairs=[(_RIVALS[name], name) for name in _PAPER],
            item="text",
            per_item=per_item,
            seed=self.seed,
            journal=self.journal_,
        )
        return TrialResult(
            paper="detect",
            title="Detect: is this text machine-written?",
            question=f"Which detector tells human texts ({self.data}) from those of "
            f"{_name(self.generator or self.model) if not self.machine else self.machine}?",
            setting={
                "scoring model": _name(self.model),
                "reference model": _name(self.reference) if self.reference else "the scoring model",
                "written by": "; ".join(f"{writer} ({setting})" for setting, writer in texts.writers.items()),
                "data": corpus.describe(),
                "pairs": f"{len(texts.items)}, {texts.how}",
                "dtype": self.dtype,
                "device": str(reader.model.device),
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[("AUROC", _RIVALS[name], name) for name in _PAPER],
            figures=_figures(arms, texts.settings),
            notes=_notes(arms, texts),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    def _written(self, corpus: Corpus, reader: Reader, temperatures: list[float]) -> Texts:
        """Have the model, and the second one if there is one, continue human passages."""
        from broadsheet.teacher import Teacher
        from broadsheet.teacher.local import Local

        human = passages(corpus, 2 * self.pairs, PairConfig(), self.seed)
        own = (self.model, reader.model, reader.tokenizer)
        plans = {"white-box": (*own, temperatures[0])}
        if self.generator:
            loaded = models.load(self.generator, device=self.device or None, dtype=self.dtype)
            plans["black-box"] = (self.generator, loaded.model, loaded.tokenizer, temperatures[0])
        plans |= {f"T={temperature:g}": (*own, temperature) for temperature in temperatures[1:]}
        protocol = PairConfig(max_new_tokens=120 if self.quick else 200, top_p=self.top_p)
        writers = {
            setting: ContinuationWriter(
                Teacher(Local(model, tokenizer)), tokenizer, replace(protocol, temperature=temperature)
            )
            for setting, (_, model, tokenizer, temperature) in plans.items()
        }
        say(f"continuing {self.pairs} human passages: {', '.join(plans)}")
        pairs, dropped = write_pairs(human, self.pairs, writers, self.seed)
        return Texts(
            pairs,
            {setting: f"{_name(plan[0])} at temperature {plan[-1]:g}" for setting, plan in plans.items()},
            dropped,
            f"passages of at least {protocol.min_words} words, continued from their first {protocol.prompt_tokens} "
            f"tokens by at most {protocol.max_new_tokens}, top-p {self.top_p:g}, cut to equal word counts",
        )

    def _temperatures(self) -> list[float]:
        try:
            return [float(value) for value in self.temperatures.split(",")]
        except ValueError:
            raise InputError(f"got --temperatures {self.temperatures!r}; expected numbers such as 1,0.8") from None

    def _given(self, corpus: Corpus) -> Texts:
        """Pair the data with machine texts that are there."""
        machine = corpora.load(self.machine, text_field=self.text_field)
        pairs = match(corpus, machine)
        if len(pairs) < 2:
            raise InputError(f"{self.data} and {self.machine} give {len(pairs)} pairs of texts; expected at least 2")
        chosen = random.Random(self.seed).sample(pairs, min(self.pairs, len(pairs)))
        return Texts({"given": chosen}, {"given": self.machine}, 0, "as given, cut to equal word counts")

    def _detectors(self) -> dict[str, Detector]:
        perturbations = self.perturbations if self.perturbations >= 0 else (0 if self.quick else 5)
        regenerations = self.regenerations if self.regenerations >= 0 else (0 if self.quick else 3)
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
        if not self.quick:
            # The paper's other aggregates (App. D); the authors now advise ExpStd for closed-source generators.
            detectors["Lastde, ExpStd"] = Lastde(how="expstd")
            detectors["Lastde++, ExpStd"] = LastdePP(how="expstd")
            detectors["Lastde++, 2-norm"] = LastdePP(how="2norm")
        if perturbations:
            detectors["DetectGPT"] = DetectGPT(n_perturbations=perturbations)
            detectors["NPR"] = NPR(n_perturbations=perturbations)
        if regenerations:
            detectors["DNA-GPT"] = DNAGPT(n_regenerations=regenerations)
        for detector in detectors.values():
            detector.seed = self.seed
        return detectors


def _name(model: str) -> str:
    return "the default model (SmolLM2-135M-Instruct)" if model == "default" else model


def _metrics(settings: list[str]) -> list[Metric]:
    metrics = []
    for i, setting in enumerate(settings):
        suffix = f", {setting}" if i else ""
        metrics.append(Metric(f"AUROC{suffix}", of=setting, statistic=auroc, bounds=(0, 1)))
        metrics.append(Metric(f"TPR at 1 % FPR{suffix}", of=setting, statistic=tpr_at_fpr(0.01), bounds=(0, 1)))
    return metrics


def _notes(arms: list[ArmResult], texts: Texts) -> list[str]:
    """What a reader should know before trusting the numbers; each note is made from this run."""
    notes = []
    first, n = texts.settings[0], len(texts.items)
    characters = np.array([[len(item[0].human), len(item[0].machine)] for item in texts.items], dtype=np.float64)
    length = float(auroc(characters, np.ones((1, n)))[0])
    notes.append(
        "The two texts of a pair have the same number of words. Their number of characters alone gives an AUROC of "
        f"{length:.2f}: how far that lies from 0.5 is what length gives away."
    )
    baseline = next(arm for arm in arms if arm.role == "baseline")
    if baseline.status == "ok" and baseline.values["AUROC"].high < 0.5:
        human, machine = np.asarray(baseline.samples[first]).mean(0)
        notes.append(
            "Likelihood points the wrong way here: the model finds these human texts more predictable "
            f"({human:.2f} nats a token) than the machine's ({machine:.2f}). Documentation is formulaic, and a sample "
            "from the whole distribution of a small model wanders. What asks only how likely a text is (Likelihood, "
            "Rank, LogRank, LRR, the numerator of Lastde) inherits this; Entropy gains from it. Fast-DetectGPT, "
            "Binoculars and Lastde++ compare a text with what the model expected, which takes most of it out."
        )
    if texts.dropped:
        notes.append(
            f"{texts.dropped} passages gave no pair, because the model stopped early; others took their place."
        )
    if any(arm.name in ("DetectGPT", "NPR", "DNA-GPT") for arm in arms):
        notes.append(
            "DetectGPT, NPR and DNA-GPT are shown below their strength: gaps are filled from the scoring model's own "
            "predictions instead of T5-3B, and there are fewer copies than in the paper unless --perturbations 100 "
            "--regenerations 10 were given."
        )
    if n < 100:
        notes.append(
            f"With {n} pairs no false positive at all is allowed at a false-positive rate of 1 %: "
            "read that column as the share of machine texts above the highest human score."
        )
    return notes


def _arms(detectors: dict[str, Detector], reader: Reader, settings: list[str], peer: str) -> list[Arm]:
    """One arm a detector, with one forward pass over a block's texts for all of them; and the peer, if there is one."""

    def read(block: Sequence[tuple[TextPair, ...]]) -> tuple[list[str], list[ForwardPass]]:
        texts = _texts_of(block)
        return texts, list(reader.passes(texts))

    def arm(name: str, detector: Detector) -> Arm:
        def run(shared: tuple[list[str], list[ForwardPass]]) -> dict[str, Any]:
            texts, passes = shared
            readings = reader.read(
                texts, detector.needs, n_samples=detector.n_samples, seed=detector.seed, passes=passes
            )
            return _by_setting(detector.score_readings(texts, readings, reader), settings)

        role: Role = "baseline" if name == "Likelihood" else "method" if name in _PAPER else "sibling"
        return Arm(name, run, role, (type(detector).__doc__ or "").split("\n", 1)[0], shared=read)

    arms = [arm(name, detector) for name, detector in detectors.items()]
    return [*arms, _peer(shlex.split(peer), settings)] if peer else arms


def _peer(command: list[str], settings: list[str]) -> Arm:
    """A detector that is a program of its own: its items are texts, its output `score` has one number for each."""
    process = ExternalProcess(command)

    def run(block: Sequence[tuple[TextPair, ...]]) -> Measured:
        texts = _texts_of(block)
        measured = process.run(texts)
        scores = np.asarray(measured.outputs.get("score", []), dtype=np.float64)
        if scores.shape != (len(texts),):
            raise ValueError(f"expected one `score` for each of {len(texts)} texts, got shape {scores.shape}")
        return replace(measured, outputs=_by_setting(scores, settings))

    name = f"peer: {Path(command[-1]).name}"
    return Arm(name, run, "peer", shlex.join(command), prepare=process.start, close=process.close)


def _texts_of(block: Sequence[tuple[TextPair, ...]]) -> list[str]:
    """A human text and its machine texts, item by item."""
    return [text for item in block for text in (item[0].human, *(pair.machine for pair in item))]


def _by_setting(scores: Scores, settings: list[str]) -> dict[str, Any]:
    """Scores of `_texts_of` as (items, 2) human and machine scores of each setting."""
    rows = scores.reshape(-1, 1 + len(settings))
    return {setting: rows[:, [0, 1 + i]] for i, setting in enumerate(settings)}


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
