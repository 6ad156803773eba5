"""Try GEM: special tokens trained on plain texts against pooling the untouched model, and what that costs generation.

Knows: the objective in its two phases, tasks, perplexity, the A/B engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, at_least, say
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import EvalTask, ModelArm, clear, compare, trained, training_note, workdir
from broadsheet.embed.trials.ullme import likelihood
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.results import ArmResult, TrialResult
from broadsheet.trial.stats import Comparison

if TYPE_CHECKING:
    from broadsheet.embed.fitting import TrainOutput

MEAN, LAST, NTP, MAIN = "mean pooling", "last token", "GEM, next tokens alone", "GEM"
_FIRST = "GEM's first phase"


@dataclass
class GEMTrial:
    """Can a causal LM learn to embed from plain texts, with a token of its own for that, and go on generating?

    GEM is trained on passages without queries or labels: first next tokens through the bottleneck, then contrast
    between views of a text. It is compared with mean pooling and the last token of the model as it came, and with next
    tokens alone for as many steps. What generation has lost is measured by perplexity on held-out passages. Retrieval
    is asked of packages that no training text comes from.

    Options:
        --sts FILE: sentence pairs with gold scores, such as STS-B's TSV, or `hf:org/name:split`.
        --pairs N: sentence pairs of --sts (300; with --quick 30; 0: all).
        --steps N: of next tokens through the bottleneck (60; with --quick 3).
        --contrast-steps N: of contrast after it (60; with --quick 3).
        --batch N: texts a step (16; with --quick 4).
        --learning-rate X, --contrast-learning-rate X: of the two phases (0.0005 and 0.0001).
        --full: train all weights instead of an adapter (give rates for that, such as 0.0001 and 0.00001).
        --specials N: special tokens (1).
        --init NAME: what they begin as: mean or end (mean).
        --raw-share X: of the texts, those that stay plain (0.8).
        --reconstruction X: of the others, those that repeat their text instead of being cut (0.5).
        --hidden-share X: of a prefix, what its second view hides (0.3).
        --alpha X: α of the second phase; below 1 next tokens go on beside it (1).
        --contrast NAME: `all` texts of a batch, or `compression` rows alone, as the paper does with larger batches
            (all).
        --length N: tokens of a row (128).
        --queries N, --passages N: of the retrieval task (60 and 300; with --quick 10 and 40).
        --words N: of a passage (30; with --quick 15).
        --device NAME: as in models.load.
        --dtype NAME: that the embedders are tried in.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    sts: str = ""
    pairs: int = -1
    steps: int = 0
    contrast_steps: int = 0
    batch: int = 0
    learning_rate: float = 5e-4
    contrast_learning_rate: float = 1e-4
    full: bool = False
    specials: int = 1
    init: str = "mean"
    raw_share: float = 0.8
    reconstruction: float = 0.5
    hidden_share: float = 0.3
    alpha: float = 1.0
    contrast: str = "all"
    length: int = 128
    queries: int = -1
    passages: int = -1
    words: int = 0
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Train the arms, run them, explain.

        Raises:
            InputError: an option, a model or the data cannot be used.
        """
        self._settle()
        jobs, texts = self._jobs()
        loaded = models.load(self.model, device=self.device or None)
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": loaded.fingerprint},
            "data": {"name": self.data, "fingerprint": {job.name: job.fingerprint for job in jobs}},
            "training data": fingerprint(texts),
        }
        self.folder_ = workdir("gem", versions(), facts, asdict(self))
        del loaded
        arms, comparisons = compare(
            self._candidates(texts), jobs, self.folder_, pairs=[(LAST, MAIN), (NTP, MAIN)], seed=self.seed
        )
        name = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        quality = [job.metrics[0].name for job in jobs if job.name in ("STS", "retrieval")]
        return TrialResult(
            paper="gem",
            title="GEM: a token to embed with, a model that still generates",
            question=f"Do special tokens trained on plain texts embed better than pooling {name} as it is?",
            setting={
                "model": name,
                "training": f"{self.steps_} and {self.contrast_steps_} steps of {self.batch_} passages of at most "
                f"{self.words_} words from {self._source()}, {'all weights' if self.full else 'LoRA'}, learning rates "
                f"{self.learning_rate:g} and {self.contrast_learning_rate:g}",
                "special tokens": str(self.specials),
                **{job.name: job.about for job in jobs},
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[(metric, MEAN, MAIN) for metric in quality],
            notes=self._notes(arms, comparisons, quality),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _settle(self) -> None:
        """Sizes where none are given, and what cannot be."""
        from broadsheet.embed.gem import check_settings
        from broadsheet.embed.modules.new_tokens import check_init

        check_init(self.init)
        check_settings(self.raw_share, self.reconstruction, self.hidden_share, self.alpha, contrast=self.contrast)
        quick = self.quick
        self.steps_, self.batch_ = self.steps or (3 if quick else 60), self.batch or (4 if quick else 16)
        self.contrast_steps_ = self.contrast_steps or (3 if quick else 60)
        self.words_ = self.words or (15 if quick else 30)
        at_least(1, self, "steps_", "contrast_steps_", "batch_", "words_", "specials")

    def _source(self) -> str:
        return "packages of pydocs that no test asks about" if self.data == "pydocs" else f"{self.data}, not searched"

    def _jobs(self) -> tuple[list[EvalTask], list[str]]:
        """What is asked of the embedders, and the texts that they are trained on: others."""
        quick, wanted = self.quick, min(2 * max(self.steps_, self.contrast_steps_) * self.batch_, 4000)
        search = tasks.retrieval(
            self.data,
            (10 if quick else 60) if self.queries == -1 else self.queries,
            (40 if quick else 300) if self.passages == -1 else self.passages,
            words=self.words_,
            seed=self.seed,
        )
        if self.data == "pydocs":
            texts = [row["positive"] for row in tasks.training_pairs(wanted, words=self.words_, seed=self.seed)]
        else:
            from broadsheet.data.retrieval.beir import Beir, searched

            found = Beir(Path(self.data).expanduser(), self.words_).documents
            others = sorted(set(found) - set(search.corpus), key=lambda name: fingerprint([self.seed, name]))
            texts = [searched(found[name]) for name in others[:wanted]]
            if len(texts) < self.batch_:
                raise InputError(
                    f"{self.data} has {len(texts)} passages besides those searched; give fewer --passages, so that "
                    "there are others to train on"
                )
        held_out = sorted(search.corpus, key=lambda name: fingerprint([self.seed, "perplexity", name]))
        jobs = [
            EvalTask.retrieval(search),
            likelihood([search.corpus[name] for name in held_out[: 8 if quick else 60]]),
        ]
        if self.sts:
            pairs = tasks.sts(self.sts, (30 if quick else 300) if self.pairs == -1 else self.pairs, self.seed)
            jobs.insert(0, EvalTask.sts(pairs, Path(self.sts).name))
        return jobs, texts

    def _candidates(self, texts: Sequence[str]) -> list[ModelArm]:
        from broadsheet.embed.base import baseline

        base = models.load(self.model, device=self.device or None, dtype=self.dtype or None)
        options = {"max_seq_length": self.length}
        dtype = self.dtype or None
        return [
            ModelArm(MEAN, baseline("mean", base, **options), "baseline", "the model as it came"),
            ModelArm(LAST, baseline("last-token", base, **options), "sibling", "the model as it came"),
            ModelArm(
                NTP,
                trained(self._folder(NTP), lambda out: self._second(out, texts, contrast=False), dtype=dtype),
                "sibling",
                "special tokens, and next tokens through the bottleneck in both phases",
            ),
            ModelArm(
                MAIN,
                trained(self._folder(MAIN), lambda out: self._second(out, texts, contrast=True), dtype=dtype),
                "method",
                "the same first phase, then contrast between views of a text",
            ),
        ]

    def _first(self, texts: Sequence[str]) -> Path:
        """The first phase, which both trained arms begin with."""
        from broadsheet.embed.gem import gem_embedder

        folder = self._folder(_FIRST)
        if not (folder / "modules.json").exists():
            say(f"training: {_FIRST}")
            init: Any = self.init
            made = gem_embedder(
                self.model,
                self.specials,
                init=init,
                max_seq_length=self.length,
                device=self.device or None,
                seed=self.seed,
            )
            fitted = self._fit(made, texts, folder, self.steps_, self.learning_rate, self.seed, alpha_max=0.0)
            if not fitted.finished:
                raise KeyboardInterrupt
        return folder

    def _second(self, out: Path, texts: Sequence[str], *, contrast: bool) -> TrainOutput:
        from broadsheet.embed.base import load

        made = load(self._first(texts), device=self.device or None)
        say(f"training: {MAIN if contrast else NTP}")
        rate = self.contrast_learning_rate if contrast else self.learning_rate
        alpha = self.alpha if contrast else 0.0
        # Another seed: other draws than in the first phase, and another order of the texts.
        phase = {"alpha_max": alpha, "ntp_rows": 0, "ramp_rows": 0}
        return self._fit(made, texts, out, self.contrast_steps_, rate, self.seed + 1, **phase)

    def _fit(self, made: Any, texts: Any, out: Path, steps: int, rate: float, seed: int, **phase: Any) -> TrainOutput:
        from broadsheet.embed.fitting import fit
        from broadsheet.embed.gem import GEM

        contrast: Any = self.contrast
        objective = GEM(
            made,
            raw_share=self.raw_share,
            reconstruction=self.reconstruction,
            hidden_share=self.hidden_share,
            contrast=contrast,
            seed=seed,
            **phase,
        )
        return fit(
            made,
            texts,
            objective,
            out,
            steps=steps,
            batch_size=self.batch_,
            learning_rate=rate,
            method="full" if self.full else "lora",
            merge=not self.full,
            schedule="cosine",
            seed=seed,
        )

    def _folder(self, name: str) -> Path:
        return self.folder_ / fingerprint(name)

    def _notes(self, arms: Sequence[ArmResult], comparisons: Sequence[Comparison], quality: list[str]) -> list[str]:
        usable = {arm.name: arm for arm in arms if arm.status == "ok"}
        notes = [perplexities(list(usable.values()), MEAN)] if MEAN in usable else []
        notes += [
            training_note(name, self._folder(name))
            for name in (_FIRST, NTP, MAIN)
            if (self._folder(name) / "training.json").exists()
        ]
        notes.append(
            "Both GEM arms share the first phase and take as many steps after it. The baselines take none: the "
            "question is what training on plain texts buys."
        )
        absent = [
            metric
            for metric in quality
            for c in comparisons
            if (c.metric, c.baseline, c.arm) == (metric, MEAN, MAIN) and c.verdict != "helps"
        ]
        if absent:
            notes.append(
                f"The gain that the paper reports is absent here in {' and '.join(absent)}. Its models have 1 to 8 "
                f"billion parameters and read 32,000 texts in batches of 32; here they are "
                f"{(self.steps_ + self.contrast_steps_) * self.batch_:,} in batches of {self.batch_}."
            )
        return notes


def perplexities(arms: Sequence[ArmResult], base: str) -> str:
    """Every arm's perplexity in per cent of the base's, in one sentence."""
    values = {arm.name: arm.values["perplexity"].estimate for arm in arms}
    told = [f"{name} {value:.1f} ({value / values[base]:.0%})" for name, value in values.items() if name != base]
    return f"Perplexity of held-out passages, in per cent of the model as it came ({values[base]:.1f}): " + (
        ", ".join(told) + ". Special tokens take no part in it."
    )
