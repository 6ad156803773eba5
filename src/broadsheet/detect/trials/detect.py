"""Try detectors: human passages against a model's own continuations of them, every detector on the same pairs.

Knows: the stage's detectors, pairs of texts. Serves each paper of the stage: its detectors are the method, and claim to
beat the detector that their class names as `beats`.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.detect.base import Detector, Scores
from broadsheet.detect.baselines import ONE_PASS, RESAMPLING
from broadsheet.detect.reading import ForwardPass, Reader
from broadsheet.detect.trials.pairs import ContinuationWriter, PairConfig, TextPair, match, passages, write_pairs
from broadsheet.options import option
from broadsheet.page import papers
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Measured, Metric
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.outside import peers
from broadsheet.trial.outside.external import ExternalProcess
from broadsheet.trial.results import ArmResult, Distribution, Example
from broadsheet.trial.sampling import PILOT
from broadsheet.trial.stats import Statistic, auroc, over_groups, tpr_at_fpr
from broadsheet.trial.verdicts import Comparison

_SHOWN_PAIRS, _SHOWN_CHARACTERS = 2, 400  # examples of a report, and of a text in them
_PAIRS = 60  # that a model writes, where their number is not given


@dataclass(frozen=True)
class Texts:
    """What a trial scores.

    Args:
        pairs: by setting; the first one decides the headline. All settings have the same human texts in the same order.
        writers: who wrote the machine texts of each setting, as printed.
        dropped: human texts that gave no pair, because the model stopped early.
        about: how the pairs were made, as printed.
    """

    pairs: dict[str, list[TextPair]]
    writers: dict[str, str]
    dropped: int
    about: str

    @property
    def settings(self) -> list[str]:
        return list(self.pairs)

    @property
    def sets(self) -> int:
        """How many data sets the pairs are of."""
        return 1 + max(pair.source for pair in self.pairs[self.settings[0]])

    def sources(self, block: Sequence[tuple[TextPair, ...]]) -> list[int] | None:
        """The data set of each item; None where there is one."""
        return [item[0].source for item in block] if self.sets > 1 else None

    @property
    def items(self) -> list[tuple[TextPair, ...]]:
        """One item a human text: its pair in each setting."""
        return list(zip(*self.pairs.values(), strict=True))


@dataclass
class DetectTrial(Trial):
    """Human passages against a model's own continuations of them, cut to equal word counts (arXiv:2410.06072, Sec. 4).

    Every detector scores the same pairs. Quality is the AUROC, and the share of machine texts found when 1 % of the
    human ones are flagged. The plain baseline is the mean log-likelihood.
    """

    stage: ClassVar[str] = "detect"
    title: ClassVar[str] = "Detect: is this text machine-written?"

    pairs: int | None = option(
        None,
        "Pairs of texts; by default 60 that a model writes, and of those that are there (--machine) as many as the "
        "claims need.",
        quick=20,
        least=2,
    )
    generator: str | None = option(
        None,
        "A second model writes, and the scoring model judges without having written (black-box), beside the white-box "
        "setting, where the scoring model judges its own text.",
        metavar="MODEL",
    )
    machine: tuple[str, ...] = option(
        (),
        "Texts that a machine wrote, one for each document of the data, matched by id where the ids agree and else by "
        "order; nothing is generated then. Several, with as many in --data, are data sets of their own: metrics are "
        "means over them.",
        metavar="FILE,…",
    )
    temperatures: tuple[float, ...] = option(
        (1.0, 0.8), "At which the scoring model writes: the paper's setting, which decides the headline, and others."
    )
    top_p: float = option(1.0, "Of the sampling.", least=0, most=1)
    reference: str | None = option(
        None, "What Fast-DetectGPT, Binoculars and Lastde++ compare with or sample from.", metavar="MODEL"
    )
    perturbations: int = option(
        5, "Of DetectGPT and NPR (the paper compares with 100); 0 leaves them out.", quick=0, least=0
    )
    regenerations: int = option(3, "Of DNA-GPT (the paper: 10); 0 leaves it out.", quick=0, least=0)
    peer: str | None = option(
        None,
        "A program that scores texts, measured beside ours (docs/external.md; items are texts, and the output `score` "
        "has one number for each), or a known peer (`broadsheet peer`).",
        metavar="NAME|COMMAND",
    )
    text_field: str = option("text", "The field of the data that holds the text.")
    dtype: str = option("float32", "Of the models.", metavar="NAME")

    def check(self) -> None:
        if self.machine and self.generator:
            raise InputError(
                "got --machine and --generator; expected texts that are there, or a model that writes them"
            )
        self._peer_call = peers.parse(self.peer, self.stage) if self.peer else None

    def question(self) -> str:
        writer = ", ".join(self.machine) or models.title(self.generator or self.model)
        return f"Which detector tells human texts ({self.data}) from those of {writer}?"

    def tasks(self) -> list[EvalTask]:
        self._reader = Reader(tuple(self.loaded), self.reference, device=self.device, dtype=self.dtype)
        texts = self._texts = self._given() if self.machine else self._written()
        per_item = 1 + len(texts.settings)
        return [
            EvalTask(
                "pairs",
                texts.items,
                _metrics(texts.settings, texts.sets),
                self._arm,
                item="text",
                per_item=per_item,
                about=f"{len(texts.items)} from {texts.about}",
                fingerprint=fingerprint([asdict(pair) for item in texts.items for pair in item]),
                block_size=4,
                pilot=PILOT if self.machine and self.pairs is None else 0,
            )
        ]

    def setting(self) -> Mapping[str, Any]:
        writers = "; ".join(f"{writer} ({setting})" for setting, writer in self._texts.writers.items())
        return {
            "reference model": models.title(self.reference) if self.reference else "the scoring model",
            "written by": writers,
            "dtype": self.dtype,
            "device": str(self._reader.model.device),
        }

    def arms(self) -> list[ModelArm]:
        first, *others = [(name, kind()) for name, kind in ONE_PASS.items()]
        arms = [ModelArm.of(*first, "baseline"), *(ModelArm.of(*each) for each in others)]
        for kind in self._detectors():
            arms.append(ModelArm.of(kind.title or kind.__name__, self.configured(kind)))
            if not self.quick:  # the settings that its paper tries beside its main one
                arms += [
                    ModelArm.of(f"{kind.title or kind.__name__}, {name}", self.configured(kind, **changes), "sibling")
                    for name, changes in kind.variants.items()
                ]
        if self.perturbations:
            arms += [
                ModelArm.of(name, RESAMPLING[name](n_perturbations=self.perturbations)) for name in ("DetectGPT", "NPR")
            ]
        if self.regenerations:
            arms.append(ModelArm.of("DNA-GPT", RESAMPLING["DNA-GPT"](n_regenerations=self.regenerations)))
        if self._peer_call:
            command = self._peer_call.command()
            arms.append(ModelArm(self._peer_call.label, lambda: ExternalProcess(command), "peer", shlex.join(command)))
        return arms

    def claims(self) -> list[Claim]:
        says = "it tells machine texts better (Sec. 4, Table 1)"
        black_box = self._texts.settings[0] != "white-box"
        return [
            Claim("AUROC", kind.beats, kind.title or kind.__name__, says, kind.beats_by[black_box])
            for kind in self._detectors()
            if kind.beats
        ]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if self._texts.settings[0] == "white-box":
            return f"Its figure is a mean over 12 models that write and judge; here {self.model_name} does."
        return f"It scores with GPT-J, of 6 billion weights; here {self.model_name} does."

    def also_compare(self) -> list[tuple[str, str]]:
        if not self._peer_call:
            return []
        return [(self._peer_call.label, kind.title or kind.__name__) for kind in self._detectors()]

    def figures(self, outcome: Outcome) -> list[Distribution]:
        return _figures(outcome.results, self._texts.settings)

    def examples(self, outcome: Outcome) -> list[Example]:
        return _examples(outcome.usable, self._asked(outcome))

    def notes(self, outcome: Outcome) -> list[str]:
        return _notes(outcome.results, self._asked(outcome))

    def _asked(self, outcome: Outcome) -> Texts:
        """The texts that were read, of those that there are."""
        n = len(outcome.tasks[0].items)
        return replace(self._texts, pairs={setting: pairs[:n] for setting, pairs in self._texts.pairs.items()})

    def _detectors(self) -> list[type[Detector]]:
        """The detectors of the paper that is tried; of all papers of the stage for the stage."""
        return [kind for kind in papers.stage_methods(self.stage).values() if self.of_tried_paper(kind)]

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """A detector as an arm; all read the same forward pass over a block's texts."""
        settings, reader = self._texts.settings, self._reader
        if arm.role == "peer":
            return _peer(arm, lazy, self._texts)

        def run(shared: tuple[list[str], list[ForwardPass], list[int] | None]) -> dict[str, Any]:
            texts, passes, sources = shared
            detector: Detector = lazy()
            detector.seed = self.seed
            scores = reader.read(texts, detector.needs, n_samples=detector.n_samples, seed=detector.seed, passes=passes)
            return _by_setting(detector.score_readings(texts, scores, reader), settings, sources)

        return Arm(arm.name, run, description=(lazy().__doc__ or "").split("\n", 1)[0], shared=self._read)

    def _read(self, block: Sequence[tuple[TextPair, ...]]) -> tuple[list[str], list[ForwardPass], list[int] | None]:
        texts = _texts_of(block)
        return texts, list(self._reader.passes(texts)), self._texts.sources(block)

    def _written(self) -> Texts:
        """Have the model, and the second one if there is one, continue human passages."""
        from broadsheet.teacher import Teacher
        from broadsheet.teacher.local import Local

        corpus = corpora.load(self.data, text_field=self.text_field)
        wanted = self.pairs or _PAIRS
        human = passages(corpus, 2 * wanted, PairConfig(), self.seed)
        own = (self.model, self._reader.model, self._reader.tokenizer)
        first, *others = self.temperatures
        plans = {"white-box": (*own, first)}
        if self.generator:
            loaded = models.load(self.generator, device=self.device, dtype=self.dtype)
            plans["black-box"] = (self.generator, loaded.model, loaded.tokenizer, first)
        plans |= {f"T={temperature:g}": (*own, temperature) for temperature in others}
        config = PairConfig(max_new_tokens=120 if self.quick else 200, top_p=self.top_p)
        writers = {
            setting: ContinuationWriter(
                Teacher(Local(model, tokenizer)), tokenizer, replace(config, temperature=temperature)
            )
            for setting, (_, model, tokenizer, temperature) in plans.items()
        }
        say(f"continuing {wanted} human passages: {', '.join(plans)}")
        pairs, dropped = write_pairs(human, wanted, writers, self.seed)
        return Texts(
            pairs,
            {setting: f"{models.title(plan[0])} at temperature {plan[-1]:g}" for setting, plan in plans.items()},
            dropped,
            f"{corpus.describe()}; passages of at least {config.min_words} words, continued from their first "
            f"{config.prompt_tokens} tokens by at most {config.max_new_tokens}, top-p {self.top_p:g}, cut to equal "
            "word counts",
        )

    def _given(self) -> Texts:
        """Pair the data with machine texts that are there, in random order."""
        sources = self.data.split(",") if len(self.machine) > 1 else [self.data]
        if len(sources) != len(self.machine):
            raise InputError(
                f"got {len(sources)} files in --data and {len(self.machine)} in --machine; expected as many of each"
            )
        pairs = []
        for number, (human, machine) in enumerate(zip(sources, self.machine, strict=True)):
            both = (corpora.load(name, text_field=self.text_field) for name in (human, machine))
            found = [replace(pair, source=number) for pair in match(*both)]
            if len(found) < 2:
                raise InputError(f"{human} and {machine} give {len(found)} pairs of texts; expected at least 2")
            pairs += found
        chosen = random.Random(self.seed).sample(pairs, min(self.pairs or len(pairs), len(pairs)))
        about = f"{self.data}, and {', '.join(self.machine)}; as given, cut to equal word counts"
        return Texts({"given": chosen}, {"given": ", ".join(self.machine)}, 0, about)


def _metrics(settings: list[str], sets: int) -> list[Metric]:
    kinds: dict[str, Statistic] = {"AUROC": auroc, "TPR at 1 % FPR": tpr_at_fpr(0.01)}
    metrics = []
    for i, setting in enumerate(settings):
        suffix = f", {setting}" if i else ""
        for name, statistic in kinds.items():
            whole = over_groups(statistic) if sets > 1 else statistic
            metrics.append(Metric(f"{name}{suffix}", of=setting, statistic=whole, bounds=(0, 1)))
    return metrics


def _examples(arms: Mapping[str, ArmResult], texts: Texts) -> list[Example]:
    """Both texts of a pair, each with the share of human texts that a detector scores below it."""
    scores = {name: np.asarray(arm.samples[texts.settings[0]], dtype=np.float64)[:, :2] for name, arm in arms.items()}
    # (pairs, human and machine): how a detector tells the two texts of a pair apart
    below = {name: (both[:, :1, None] < both.ravel()).mean((0, 1)).reshape(both.shape) for name, both in scores.items()}
    apart = [{name: shares[i, 1] - shares[i, 0] for name, shares in below.items()} for i in range(len(texts.items))]
    found = []
    for i in most_apart(apart, _SHOWN_PAIRS):
        pair, *_ = texts.items[i]
        for column, (whose, text) in enumerate((("A person", pair.human), ("A model", pair.machine))):
            told = {name: f"{shares[i, column]:.0%} of the human texts score lower" for name, shares in below.items()}
            found.append(Example(excerpt(text, _SHOWN_CHARACTERS), told, f"{whose} wrote it."))
    return found


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


def _peer(arm: ModelArm, lazy: LazyModel, given: Texts) -> Arm:
    """A detector that is a program of its own: its items are texts, its output `score` has one number for each."""
    process: ExternalProcess = lazy()

    def run(block: Sequence[tuple[TextPair, ...]]) -> Measured:
        texts = _texts_of(block)
        measured = process.run(texts)
        scores = np.asarray(measured.outputs.get("score", []), dtype=np.float64)
        if scores.shape != (len(texts),):
            raise ValueError(f"expected one `score` for each of {len(texts)} texts, got shape {scores.shape}")
        return replace(measured, outputs=_by_setting(scores, given.settings, given.sources(block)))

    return Arm(arm.name, run, description=arm.description, prepare=process.start, close=process.close)


def _texts_of(block: Sequence[tuple[TextPair, ...]]) -> list[str]:
    """A human text and its machine texts, item by item."""
    return [text for item in block for text in (item[0].human, *(pair.machine for pair in item))]


def _by_setting(scores: Scores, settings: list[str], sources: list[int] | None) -> dict[str, Any]:
    """Scores of `_texts_of` as (items, 2) human and machine scores of each setting; the data set is a third column."""
    rows = scores.reshape(-1, 1 + len(settings))
    last = [] if sources is None else [np.asarray(sources, dtype=np.float64)]
    return {setting: np.stack([rows[:, 0], rows[:, 1 + i], *last], axis=1) for i, setting in enumerate(settings)}


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
