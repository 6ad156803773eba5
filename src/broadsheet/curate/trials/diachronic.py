"""Try models of periods: from nothing on each slice, beside one model that has read all and is tuned to each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say
from broadsheet.curate.diachronic import Diachronic
from broadsheet.curate.periods.battery import Battery
from broadsheet.curate.periods.change import WordReadings
from broadsheet.curate.periods.counts import CountModel, counted, later_words, symbols, trend
from broadsheet.curate.periods.planting import RENAMED, SWAPPED, Planted, planted
from broadsheet.curate.periods.reading import PeriodModel
from broadsheet.curate.periods.training import DONE, PeriodRecipe, on_device
from broadsheet.data import corpora
from broadsheet.options import option
from broadsheet.training.scratch import SIZES, SplitTexts, apart
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Example
from broadsheet.trial.stats import auroc
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

TUNED, COUNTS = "all periods, tuned to each", "word counts"
PLAIN, OURS = "from nothing", "from nothing, two teachers"
BITS, OWN, LEAK = "bits/char", "own period reads best", "later words in a million"
NAMES, COMPANY = "AUROC, new names", "AUROC, new company"
RATES = {PLAIN: (1e-3, 3e-3, 6e-3), OURS: (1e-3, 3e-3, 6e-3), TUNED: (3e-4, 1e-3, 3e-3)}  # that each one's is chosen of
SHARES = (0.1, 1.0, 10.0)  # of a period's words: the prior's strength, of which one is chosen likewise
_TUNING = 20  # texts of each period
_LATER = 60  # words whose odds are asked, of each period


@dataclass(frozen=True)
class Text:
    """A held-out text and the place of its period."""

    text: str
    period: int
    last: bool = False


@dataclass
class DiachronicTrial(TrainedTrial):
    """Do models that are trained from nothing on a period keep to it better, and do they show what changed?

    Texts of each period are learnt from by a model of its own, in three ways: from nothing; from nothing with two
    teachers, the paper's; and on from one model that has read all periods, each text as often, the plain way, which the
    paper finds to leak. All have equal steps on the period, as many learning rates to choose from, and tokenizers of
    what they have read; so they are compared by character and by word.

    In the texts change is planted beforehand: some words have a made-up name from some period on, others change places
    with one another. The last arm has no model: log-odds of words with a Dirichlet prior. It is strong on new names,
    and cannot see what changed places. Training time is not compared: the paper's tuned model has 8B weights, here all
    are of one size.
    """

    paper: ClassVar[str] = "diachronic"
    title: ClassVar[str] = "Models of periods: from nothing on each slice of time"
    of_training: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[tuple[str, ...]] = ("model", "dtype")

    data: str = option("resource:historical/train.jsonl", "Texts with a field that names their period.", metavar="DATA")
    period_field: str = option("label", "The field that holds the period; periods are in the order of their names.")
    text_field: str = option("text", "The field that holds the text.")
    periods: int = option(3, "Periods that are compared, from first to last.", quick=2, least=2)
    texts: int = option(600, "Held-out texts, of all periods together.", quick=60, least=10)
    planted: int = option(80, "Words that are renamed, and as many that change places.", quick=24, least=2)
    steps: int = option(1200, "Of training, for each model of each run.", quick=60, least=12)
    batch: int = option(4, "Rows of a step.", least=1)
    length: int = option(128, "Tokens of a row.", least=8)
    size: str = option("0.4M", "Of the models, in weights.", choices=tuple(SIZES))
    vocabulary: int = option(2048, "Tokens of each tokenizer.", least=259)
    lr: float | None = option(
        None,
        "The highest learning rate; by default the best of three after a third of the steps, on one period, for each "
        "way.",
        quick=3e-3,
    )

    def question(self) -> str:
        return (
            f"Of the periods in {self.data}, does a model of {self.size} weights that is trained from nothing on one "
            "keep to it better than one that has read all and is tuned to it, and do such models show what changed?"
        )

    def check(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"got --lr {self.lr:g}; expected more than 0")
        self.configured(Diachronic)  # what `--method` gives

    # Texts

    def tasks(self) -> list[EvalTask]:
        self._read()
        items = [
            Text(text, place, place == len(self._held) - 1)
            for place, some in enumerate(self._held)
            for text in some.held_out
        ]
        order = np.random.default_rng(self.seed).permutation(len(items))
        items = [items[i] for i in order]
        told = [
            fingerprint([[each.text, each.period] for each in items]),
            fingerprint([vars(p) for p in self._planted]),
        ]
        dropped = sum(each.dropped for each in self._held)
        return [
            EvalTask(
                "held out",
                items,
                [
                    Metric(BITS, higher_is_better=False),
                    Metric(OWN, binary=True, bounds=(0, 1), chance=1 / len(self._held)),
                    Metric(LEAK, higher_is_better=False, scale="ratio", only=lambda item: not item.last),
                ],
                self._reader,
                item="text",
                about=f"{len(items)} texts of {len(self._held)} periods; {dropped} like them are not learnt from",
                fingerprint=told[0],
                examples=self._examples,
            ),
            EvalTask(
                "changed words",
                self._planted,
                [self._auroc(NAMES, RENAMED), self._auroc(COMPANY, SWAPPED)],
                self._finder,
                item="word",
                about=f"{len(self._planted)} changed words, each beside one that is as frequent and did not change",
                fingerprint=told[1],
                block_size=len(self._planted),
            ),
        ]

    @staticmethod
    def _auroc(name: str, kind: str) -> Metric:
        return Metric(
            name, of="scores", statistic=auroc, bounds=(0, 1), chance=0.5, only=lambda item: item.kind == kind,
            cluster=lambda item: item.group, counted="changes",
        )  # fmt: skip

    def _read(self) -> None:
        """Texts by period, with planted change, some of them held out.

        Raises:
            InputError: there are fewer than two periods, too few texts of one, or too few words.
        """
        corpus = corpora.load(self.data, text_field=self.text_field)
        by_period: dict[str, list[str]] = {}
        for document in corpus:
            if (name := document.metadata.get(self.period_field)) is not None:
                by_period.setdefault(str(name), []).append(document.text)
        names = sorted(by_period)
        if len(names) < 2:
            raise InputError(
                f"got texts of {len(names)} periods in the field {self.period_field!r}; expected two or more"
            )
        if self.periods < len(names):
            names = [names[i] for i in np.linspace(0, len(names) - 1, self.periods).round().astype(int)]
        self._names = names
        raw = [by_period[name] for name in names]
        texts, self._planted = planted(raw, self.planted, self.seed)
        self._others = planted(raw, self.planted, self.seed + 1)  # other change, that the prior is chosen by
        each = max(3, self.texts // len(names))
        self._held: list[SplitTexts] = [apart(some, each, _TUNING, self.seed, least=200) for some in texts]
        counts = [counted([*some.train, *some.tuning, *some.held_out]) for some in self._held]
        made_up = {each.word for each in self._planted if each.kind == RENAMED}
        found = [[w for w in later_words(counts, place) if w not in made_up] for place in range(len(names))]
        self._later = [words[:_LATER] for words in found]
        if few := [name for name, words in zip(names[:-1], self._later, strict=False) if not words]:
            raise InputError(f"got no word that only stands after {few[0]}; expected more text")

    def facts(self) -> dict[str, Any]:
        return {}  # no model is loaded

    # Arms

    def arms(self) -> list[ModelArm]:
        self._device: Any = self.device
        self._rates: dict[str, float] = {}
        for name in (PLAIN, OURS, TUNED):  # the student's teachers are plain models, at their rate
            self._rates[name] = self._rate(name)
        self._share = SHARES[1] if self.lr is not None else self._prior()
        self._kept: dict[str, Path] = {}
        ours = Diachronic.paper
        return [
            self._arm(TUNED, "one model of all periods, tuned to each", role="baseline"),
            self._arm(PLAIN, "on each period alone", role="sibling"),
            self._arm(OURS, "on each period alone, taught by two such models", paper=ours),
            ModelArm(COUNTS, self._counts, "sibling", "log-odds with a Dirichlet prior, no model"),
        ]

    def _arm(self, name: str, about: str, role: Any = None, paper: str = "") -> ModelArm:
        def by_seed(seed: int) -> Any:
            return lambda: Battery([self._model(name, place, seed) for place in range(len(self._names))])

        return ModelArm(name, by_seed(self.seed), role, about, paper, by_seed)

    def claims(self) -> list[Claim]:
        return [
            Claim(LEAK, TUNED, OURS, "models from nothing leak far less of later times than tuned ones", least=1.25),
            Claim(OWN, TUNED, OURS, "they respect the divisions between periods better", least=0.05),
            Claim(COMPANY, COUNTS, OURS, "they detect senses that come or go, which counts do not show", least=0.1),
            Claim(NAMES, COUNTS, OURS, "and lexical change, no worse than counts", margin=0.05),
        ]

    def also_compare(self) -> Sequence[tuple[str, str]]:
        return [(PLAIN, OURS), (TUNED, PLAIN)]

    def _recipe(self, rate: float, steps: int | None = None) -> PeriodRecipe:
        return PeriodRecipe(
            self.size,
            self.vocabulary,
            self.length,
            steps or self.steps,
            batch=self.batch,
            learning_rate=rate,
            warmup=0.05,
        )

    def _rate(self, name: str) -> float:
        """The learning rate given, or the one that reads tuning texts of the middle period best."""
        if self.lr is not None:
            return self.lr
        place = len(self._names) // 2

        def score(rate: float) -> float:
            out = self.folder(f"tuning of {name}, {rate:g}")
            model = self._made(name, place, self.seed, out, self._recipe(rate, max(12, self.steps // 3)))
            return -float(model.bits(self._held[place].tuning).mean())

        on = f"{len(self._held[place].tuning)} texts of {self._names[place]}, after a third of it"
        return self.tuned(name, RATES[name], score, on=on, open_ended=True)

    def _prior(self) -> float:
        """How strong the prior of the counts is: what finds other planted change best."""
        texts, change = self._others
        counts = [counted(some) for some in texts]

        def score(share: float) -> float:
            found = _trends(counts, change, share)
            pairs = np.array([[found[word] for word in (each.control, each.word)] for each in change])
            return float(auroc(pairs, np.ones((1, len(pairs))))[0])

        return self.tuned(COUNTS, SHARES, score, on=f"{len(change)} other changed words")

    def _model(self, name: str, place: int, seed: int) -> PeriodModel:
        """A period's model of an arm, trained once."""
        out = self.run_folder(name, seed) / str(place)
        return self._made(name, place, seed, out, self._recipe(self._rates[name]))

    def _made(self, name: str, place: int, seed: int, out: Path, recipe: PeriodRecipe) -> PeriodModel:
        if not (out / DONE).exists():
            say(f"training: {name}, {self._names[place]}, seed {seed}")
            texts, weight_decay, objective = self._held[place].train, 0.0, None
            tokenizer, model = self._tokenizer(place), None
            if name == OURS:
                method = self.configured(Diachronic)
                objective, weight_decay = (
                    method.objective(self._teachers(place, seed, method.teachers)),
                    method.weight_decay,
                )
                model = recipe.new(len(tokenizer), seed + 2_000)
            elif name == TUNED:
                begun = self._begun(seed)
                tokenizer, model = begun.tokenizer, begun.model
            else:
                model = recipe.new(len(tokenizer), seed)
            model = on_device(model, self._device)
            recipe.fit(model, tokenizer, texts, out, objective, seed=seed, weight_decay=weight_decay)
        return recipe.load(out, self._device)

    def _teachers(self, place: int, seed: int, count: int) -> list[Any]:
        """The model from nothing of the same run, and others from seeds of their own."""
        found = [self._model(PLAIN, place, seed).model] if count else []
        for number in range(1, count):
            own = seed + 1_000 * number
            out = self.run_folder(f"teacher {number + 1}", seed) / str(place)
            found.append(self._made(PLAIN, place, own, out, self._recipe(self._rates[PLAIN])).model)
        return found

    def _begun(self, seed: int) -> PeriodModel:
        """The model that has read all periods, each text as often as a period's own model reads it."""
        out = self.run_folder("all periods", seed)
        recipe = self._recipe(self._rates[PLAIN], self.steps * len(self._names))
        if not (out / DONE).exists():
            say(f"training: all periods, seed {seed}")
            texts = [text for some in self._held for text in some.train]
            texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
            tokenizer = recipe.tokenizer(texts)
            recipe.fit(on_device(recipe.new(len(tokenizer), seed), self._device), tokenizer, texts, out, seed=seed)
        return recipe.load(out, self._device)

    @cached_property
    def _tokenizers(self) -> dict[int, Any]:
        return {}

    def _tokenizer(self, place: int) -> Any:
        """Of a period's text alone."""
        if place not in self._tokenizers:
            self._tokenizers[place] = self._recipe(1e-3).tokenizer(self._held[place].train)
        return self._tokenizers[place]

    def _counts(self) -> Battery:
        everything: Counter[str] = symbols(text for some in self._held for text in some.train)
        return Battery([CountModel(some.train, everything, self._share) for some in self._held])

    # What they are asked

    def _reader(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[Text]) -> dict[str, Any]:
            battery: Battery = lazy()
            own = np.array([item.period for item in block])
            bits = battery.bits([item.text for item in block])
            leak = np.ones(len(block))
            for period in set(own[[not item.last for item in block]].tolist()):
                at = np.flatnonzero(own == period)
                leak[at] = battery.later(period, [block[int(i)].text for i in at], self._later[period])
            own_bits = bits[np.arange(len(block)), own]
            return {BITS: own_bits, OWN: (bits.argmin(1) == own).astype(float), LEAK: np.maximum(1e6 * leak, 1e-9)}

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _finder(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        state: dict[str, Mapping[str, Mapping[str, float]]] = {}
        self._kept.setdefault(arm.name, kept.with_suffix(".json"))

        def prepare() -> None:
            state["scores"] = self._scores(lazy(), kept)

        def run(block: Sequence[Planted]) -> dict[str, Any]:
            scores = state["scores"]
            pairs = [[scores[item.kind].get(word, 0.0) for word in (item.control, item.word)] for item in block]
            return {"scores": np.array(pairs)}

        return Arm(arm.name, run, description=arm.description, prepare=prepare, close=state.clear)

    def _scores(self, battery: Battery, kept: Path) -> Mapping[str, Mapping[str, float]]:
        """How much each word changed, by what is asked for; and beside it who reads whose texts."""
        held = [list(some.held_out) for some in self._held]
        if isinstance(battery.models[0], CountModel):
            counts = [counted([*some.train, *some.held_out]) for some in self._held]
            found = _trends(counts, self._planted, self._share)
            return {RENAMED: found, SWAPPED: found}
        if not kept.with_suffix(".json").exists():
            readings = WordReadings.of(battery.models, held)
            moved = dict(zip(readings.words, np.abs(readings.moved()).tolist(), strict=True))
            company = dict(zip(readings.words, readings.company().tolist(), strict=True))
            matrix = [battery.bits(some).mean(0).tolist() for some in held]
            with atomic_write(kept.with_suffix(".json")) as file:
                json.dump({RENAMED: moved, SWAPPED: company, "matrix": matrix}, file)
            told: dict[str, Any] = json.loads(kept.with_suffix(".json").read_text("utf-8"))
        return told

    # What is told

    def setting(self) -> Mapping[str, Any]:
        made = self._recipe(1e-3).new(self.vocabulary, 0)
        rates = ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items())
        return {
            "model": f"Llamas of {sum(each.numel() for each in made.parameters()):,} weights, from nothing",
            "periods": ", ".join(self._names),
            "training": f"{self.steps} steps of {self.batch} × {self.length} tokens a period; learning rate {rates}",
            "later words": ", ".join(
                f"{len(words)} after {name}" for name, words in zip(self._names, self._later, strict=True) if words
            ),
        }

    def notes(self, outcome: Outcome) -> Sequence[str]:
        told = []
        for name in (OURS, PLAIN, TUNED):
            if self._kept[name].exists():
                matrix = np.array(json.loads(self._kept[name].read_text("utf-8"))["matrix"])  # (texts' period, models)
                best = int((matrix.argmin(1) == np.arange(len(matrix))).sum())
                told.append(f"{name}: {best} of {len(matrix)}")
        return [f"Periods whose texts cost fewest bits/char by their own model, in the first run: {', '.join(told)}."]

    def _examples(self, items: Sequence[Text], arms: Mapping[str, ArmResult]) -> list[Example]:
        bits = [{name: float(arm.samples[BITS][i]) for name, arm in arms.items()} for i in range(len(items))]
        return [
            Example(
                f"{self._names[items[i].period]}: {excerpt(items[i].text)}",
                {name: f"{value:.3f} bits/char" for name, value in bits[i].items()},
            )
            for i in most_apart(bits, 3)
        ]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        words = sum(len(text.split()) for some in self._held for text in some.train) // len(self._held)
        return (
            "The paper's models have 345M weights and learn from ten million words of each period, here from "
            f"{words:,}, and its tuned model has read the text of the whole web."
        )


def _trends(counts: Sequence[Mapping[str, int]], change: Sequence[Planted], share: float) -> dict[str, float]:
    """How much the log-odds of planted words and their controls move."""
    words = sorted({word for each in change for word in (each.word, each.control)})
    return dict(zip(words, np.abs(trend(counts, words, share)).tolist(), strict=True))
