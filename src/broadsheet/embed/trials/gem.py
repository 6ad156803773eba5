"""Try GEM: special tokens trained on plain texts against pooling the model as it came, and against contrast alone.

What generation loses is measured by perplexity, on passages as those of training and on texts of another kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.resources import local
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import GeneratingTrial, retrieval_task, training_note
from broadsheet.options import best_of, option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.results import ArmResult
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

if TYPE_CHECKING:
    from broadsheet.training.trainer import TrainOutput

MEAN, LAST, NTP, MAIN = "mean pooling", "last token", "GEM, next tokens alone", "GEM"
CONTRAST = "contrast alone"
RATES = (1e-4, 3e-4, 1e-3)  # of the second phase, that each arm's is chosen from
_RAW = 0.2  # of texts; the paper's 0.8 would leave the few here no more than some hundred compression rows
_TUNING = 320  # passages that no arm learns, the answers of 100 queries among them
_FIRST = "GEM's first phase"
_OTHER_SEEDS = 1000  # between the seeds of the two phases


@dataclass
class GEMTrial(GeneratingTrial, TrainedTrial):
    """Can a causal LM learn to embed from plain texts, with a token of its own for that, and go on generating?

    GEM is trained on passages without queries or labels: first next tokens through the bottleneck, then contrast
    between views of a text. It is compared with mean pooling and the last token of the model as it came; with next
    tokens alone for as many steps, which is what the bottleneck gives; and with contrast alone for as many steps, which
    is what it adds. The rate of what follows the first phase is chosen for each arm alike. One text in five is learnt
    untouched, in the paper four (its ablation has both), so that enough go through the bottleneck. What generation has
    lost is measured by perplexity on held-out passages, and on texts of another kind with --elsewhere. Retrieval is
    asked of packages that no training text comes from.
    """

    paper: ClassVar[str] = "gem"
    title: ClassVar[str] = "GEM: a token to embed with, a model that still generates"

    steps: int = option(60, "Of next tokens through the bottleneck.", quick=3, least=1)
    contrast_steps: int = option(60, "Of contrast after it.", quick=3, least=1)
    batch: int = option(16, "Texts a step.", quick=4, least=1)
    learning_rate: float = option(5e-4, "Of the first phase.", least=0)
    contrast_learning_rate: float | None = option(
        None,
        f"Of the second phase; by default {best_of(RATES)} for each arm, on documentation that no test asks about and "
        "no arm learns.",
        quick=1e-4,
        least=0,
    )
    tune: Literal["lora", "full"] = option("lora", "Train adapters, or all weights (at rates such as 1e-4 and 1e-5).")
    specials: int = option(1, "Special tokens.", least=1)
    init: Literal["mean", "end"] = option("mean", "What the special tokens begin as.")
    length: int = option(128, "Tokens of a row.", least=1)

    def question(self) -> str:
        return f"Do special tokens trained on plain texts embed better than pooling {self.model_name} as it is?"

    def tasks(self) -> list[EvalTask]:
        alike = self.similarity()
        search = self.retrieval()
        self._texts = self._training_texts(set(search.corpus))
        held_out = sorted(search.corpus, key=lambda name: fingerprint([self.seed, "perplexity", name]))
        passages = [search.corpus[name] for name in held_out[: 8 if self.quick else 60]]
        return [*alike, retrieval_task(search), *self.written(passages)]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "training data": fingerprint(self._texts)}

    def setting(self) -> Mapping[str, Any]:
        source = (
            f"packages of {self.data} that no test asks about" if is_pydocs(self.data) else f"{self.data}, not searched"
        )
        return {
            "training": f"{self.steps} and {self.contrast_steps} steps of {self.batch} passages of at most "
            f"{self.words} words from {source}, {'all weights' if self.tune == 'full' else 'LoRA'}, learning rates "
            f"{self.learning_rate:g} and " + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items()),
            "special tokens": str(self.specials),
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.base import baseline
        from broadsheet.embed.gem import GEM, check_settings
        from broadsheet.methods import hyperparameters

        # In batches this small, all texts of a batch are contrasted, not compression rows alone as in the paper.
        self._fields = self.fields(GEM, contrast="all", raw_share=_RAW)
        whole = {**hyperparameters(GEM), **self._fields}
        names = ("raw_share", "reconstruction", "hidden_share", "alpha_max", "ntp_rows", "ramp_rows", "contrast")
        check_settings(**{name: whole[name] for name in names})  # now, before anything is trained
        self._alpha = self._fields.pop("alpha_max", 1.0)
        self._rates = {name: self._rate(name) for name in (CONTRAST, NTP, MAIN)}

        def pooled(pooling: str) -> Any:
            loaded = models.load(self.model, device=self.device, dtype=self.dtype)
            return baseline(pooling, loaded, max_seq_length=self.length)

        def ours(name: str, role: Any, about: str, paper: str = GEM.paper) -> ModelArm:
            return self.trained(name, partial(self._train, name), self.load, role, about, paper)

        untouched, both = (
            "the model as it came",
            "special tokens, and next tokens through the bottleneck in both phases",
        )
        contrasted = "the same first phase, then contrast between views of a text"
        return [
            ModelArm(MEAN, lambda: pooled("mean"), "baseline", untouched),
            ModelArm(LAST, lambda: pooled("last-token"), description=untouched),
            ours(CONTRAST, "sibling", "special tokens, and contrast between views of a text in both phases", ""),
            ours(NTP, None, both),
            ours(MAIN, None, contrasted),
        ]

    def claims(self) -> list[Claim]:
        # MTEB with Llama-3.2-1B, its smallest model: STS 33.32 → 68.42; retrieval 4.38 → 25.6 as its text and its
        # summary say (30.10 in another table).
        effects = {"Spearman": 0.351, "nDCG@10": 0.212}
        whole = "it embeds better than pooling the model's last layer (MTEB)"
        bottleneck = "next tokens through the bottleneck alone make an embedding (ablation: 18.29 → 48.11, MTEB mean)"
        adds = "the bottleneck, and not contrast alone, makes the embedding (its mechanism, Sec. 3)"
        quality = ["Spearman", "nDCG@10"] if self.sts else ["nDCG@10"]
        return [
            *(Claim(metric, MEAN, MAIN, whole, effects[metric]) for metric in quality),
            *(Claim(metric, MEAN, NTP, bottleneck) for metric in quality),
            *(Claim(metric, CONTRAST, MAIN, adds) for metric in quality),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        return [(LAST, MAIN), (NTP, MAIN)]

    def notes(self, outcome: Outcome) -> list[str]:
        usable = outcome.usable
        notes = [perplexities(list(usable.values()), MEAN)] if MEAN in usable else []
        folders = {name: self.folder(name) for name in (CONTRAST, _FIRST, NTP, MAIN)}
        notes += [training_note(name, each) for name, each in folders.items() if (each / "training.json").exists()]
        return [
            *notes,
            "Both GEM arms share the first phase and take as many steps after it; contrast alone takes the steps of "
            "both. The baselines take none: the question is what training on plain texts buys.",
        ]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have 1 to 8 billion parameters and read 32,000 texts in batches of 32; here they are "
            f"{(self.steps + self.contrast_steps) * self.batch:,} in batches of {self.batch}, of which "
            f"{1 - self._fields['raw_share']:.0%} go through the bottleneck (there 20%)."
        )

    def _training_texts(self, searched: set[str]) -> list[str]:
        """Texts of packages that are not asked about; of a BEIR folder, those that are not searched."""
        wanted = min(2 * max(self.steps, self.contrast_steps) * self.batch, 4000)
        if is_pydocs(self.data):
            rows = tasks.training_pairs(wanted + _TUNING, words=self.words, seed=self.seed, data=self.data)
            texts = list(dict.fromkeys(row["positive"] for row in rows))
            return texts[: max(self.batch, min(wanted, len(texts) - _TUNING))]
        from broadsheet.data.retrieval import beir

        found = beir.Beir(local(self.data), self.words).documents
        others = sorted(set(found) - searched, key=lambda name: fingerprint([self.seed, name]))
        texts = [beir.searched(found[name]) for name in others[:wanted]]
        if len(texts) < self.batch:
            raise InputError(
                f"{self.data} has {len(texts)} passages besides those searched; give fewer --passages, so that there "
                "are others to train on"
            )
        return texts

    def _first(self, seed: int) -> Path:
        """The first phase, which both GEM arms of a seed begin with."""
        folder = self.run_folder(_FIRST, seed)
        if not (folder / "training.json").exists():
            say(f"training: {_FIRST}" + f", seed {seed}" * (self._runs > 1))
            if not self._fit(self._new(seed), folder, self.steps, self.learning_rate, seed, alpha_max=0.0).finished:
                raise KeyboardInterrupt
        return folder

    def _new(self, seed: int) -> Any:
        from broadsheet.embed.gem import gem_embedder

        return gem_embedder(
            self.model, self.specials, init=self.init, max_seq_length=self.length, device=self.device, seed=seed
        )

    def _rate(self, name: str) -> float:
        """The rate of the second phase given, or the one whose embedder finds most."""
        if self.contrast_learning_rate is not None:
            return self.contrast_learning_rate
        task = self.tuning(self._texts)

        def train(rate: float, out: Path) -> TrainOutput:
            return self._second(name, rate, self.seed, out)

        def score(out: Path) -> float:
            return self.found(task, self.load(out))

        return self.best_run(name, RATES, train, score, on=task.about, open_ended=True)

    def _train(self, name: str, seed: int, out: Path) -> TrainOutput | None:
        """An arm's training run; that of the trial's own seed may stand from the choice of rates."""
        if self.take_best(name, self._rates[name], seed, out):
            return None
        return self._second(name, self._rates[name], seed, out)

    def _second(self, name: str, rate: float, seed: int, out: Path) -> TrainOutput:
        """What follows the first phase; of contrast alone, what takes the place of both."""
        from broadsheet.embed.base import load

        if name == CONTRAST:
            phase = {"alpha_max": 1.0, "ntp_rows": 0, "ramp_rows": 0}
            return self._fit(self._new(seed), out, self.steps + self.contrast_steps, rate, seed, **phase)
        alpha_max = self._alpha if name == MAIN else 0.0
        made = load(self._first(seed), device=self.device)
        # Another seed, of no other run: other draws than in the first phase, and another order of the texts.
        phase = {"alpha_max": alpha_max, "ntp_rows": 0, "ramp_rows": 0}
        return self._fit(made, out, self.contrast_steps, rate, seed + _OTHER_SEEDS, **phase)

    def _fit(self, made: Any, out: Path, steps: int, rate: float, seed: int, **phase: Any) -> TrainOutput:
        from broadsheet.embed import fit
        from broadsheet.embed.gem import GEM

        return fit(
            made,
            self._texts,
            GEM(made, seed=seed, **{**self._fields, **phase}),
            out,
            steps=steps,
            batch_size=self.batch,
            learning_rate=rate,
            method=self.tune,
            merge=self.tune == "lora",
            schedule="cosine",
            seed=seed,
        )


def perplexities(arms: Sequence[ArmResult], base: str) -> str:
    """Every arm's perplexity in per cent of the base's, in one sentence."""
    values = {arm.name: arm.values["perplexity"].estimate for arm in arms}
    told = [f"{name} {value:.1f} ({value / values[base]:.0%})" for name, value in values.items() if name != base]
    return f"Perplexity of held-out passages, in per cent of the model as it came ({values[base]:.1f}): " + (
        ", ".join(told) + ". Special tokens take no part in it."
    )
