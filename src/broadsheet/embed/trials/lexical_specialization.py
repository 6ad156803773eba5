"""Try BabelBERT: does a model specialised on word sets find the synonyms and translations of words it has not seen?

Knows: word lists, their split, the layer that reads words best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.data.pydocs import is_pydocs
from broadsheet.embed.data import lexicon
from broadsheet.embed.data.tasks import sts
from broadsheet.embed.data.word_splits import Questions, Split, apart, held, shuffled, split_lexicon
from broadsheet.embed.trials.base import sts_task, training_note
from broadsheet.options import best_of, option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.examples import first_found, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.embed.data.induction import BilingualLexiconInduction

SPECIALISED, SHUFFLED, PEER = "specialised", "specialised, pairs shuffled", "MultipleNegativesRankingLoss"
UNTOUCHED, START, LAST = "untouched, best layer", "untouched, the layer trained", "untouched, last layer"
LEAST = 0.02  # of MRR
_USED = 4000  # synonym pairs of WordNet, the most used ones
RATES = {"full": (3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3)}  # that each trained arm's is chosen from


@dataclass
class LexicalTrial(TrainedTrial):
    """Words and their synonyms or translations: does training on word sets help with words it has not seen?

    Test words are looked up in a vocabulary by cosine; no pair with one of them is trained on, of whichever list. The
    plain baseline is the untouched model at the layer that finds most for other words, the input embeddings being layer
    0. The specialised model is trained at, and read off, the best layer from 1, so that training has weights to change;
    another is trained as long on the same words paired by chance, and a third by sentence-transformers' own loss, which
    does not know that several pairs of a batch may be of one set. Each has its best learning rate. How near unlike
    words are shows whether the model has collapsed, and --sts what specialising costs on sentences. Several lists, such
    as synonyms and translations, train one model and are asked apart.
    """

    paper: ClassVar[str] = "lexical_specialization"
    title: ClassVar[str] = "Words: the same meaning, nearest by"

    words: tuple[str, ...] = option(
        ("abbreviations",),
        "A TSV of word pairs, `wordnet`, `freedict:eng-fra` and so on, or `abbreviations` of the data's texts and what "
        "they stand for; or several.",
        metavar="NAME,…",
    )
    encoder: str | None = option(
        None, "A sentence-transformers encoder (multilingual, say) instead of the model.", metavar="FOLDER"
    )
    pairs: int = option(4000, "Of each list, to train on, at most.", quick=200, least=2)
    queries: int | None = option(
        None,
        "Words of each list that are looked up; by default 400 (with --quick 40), or a third of a small list.",
        least=1,
    )
    vocabulary: int = option(3000, "Words that are searched.", quick=300, least=2)
    first: int | None = option(
        None,
        f"Pairs of a list that are used, from its start; by default all, of WordNet the {_USED} most used.",
        least=2,
    )
    steps: int = option(100, "Of training.", quick=8, least=1)
    batch: int = option(64, "Pairs of a batch (the paper: 256).", least=2)
    learning_rate: float | None = option(
        None,
        f"By default {best_of(RATES['full'])} for each arm (of adapters ten "
        "times that), by the words that layers are chosen on; with --quick the second. The paper: 5e-6, in many more "
        "steps.",
        least=0,
    )
    tune: Literal["full", "lora"] = option("full", "Train all weights, or adapters.")
    layer: int | None = option(
        None, "To train, instead of the best one from 1 on other words; the paper trains the last.", least=1
    )
    sts: str | None = option(None, "Sentence pairs with scores: what specialising costs.", metavar="FILE")
    pairs_of_sts: int = option(300, "Sentence pairs of --sts.", quick=30, least=1)

    def check(self) -> None:
        if not self.words:
            raise InputError("got --words with nothing in it; expected one list at least")
        if not is_pydocs(self.data) and "abbreviations" not in self.words:
            raise InputError(
                f"got --data {self.data} and --words {','.join(self.words)}; the data gives abbreviations alone"
            )

    def question(self) -> str:
        name = self.encoder or self.model_name
        return f"Does specialising {name} on word sets find synonyms or translations of words it has not seen?"

    def tasks(self) -> list[EvalTask]:
        from broadsheet.embed.lexical_specialization import LexicalSpecialization
        from broadsheet.embed.modules.word_layers import depth

        self._method = self.configured(LexicalSpecialization)
        self._splits = apart({name: self._words(name) for name in self.words})
        start = self._start()
        self._asked = {name: split.test.task() for name, split in self._splits.items()}
        for task in self._asked.values():
            lexicon.check_words([*task.queries, *task.vocabulary], start.tokenizer)
        self._known, self._depth = _fingerprint(start), depth(start)
        self._best, self._trained, self._curve = self._layers(start)
        asked = [words_task(task, asdict(self._splits[name]), self._called(name)) for name, task in self._asked.items()]
        if self.sts:
            asked.append(sts_task(sts(self.sts, self.pairs_of_sts, self.seed), self.sts))
        return asked

    def facts(self) -> dict[str, Any]:
        return {"model": {"name": self.encoder or self.model, "fingerprint": self._known}}

    def setting(self) -> Mapping[str, Any]:
        method = self._method
        return {
            "model": self.encoder or self.model_name,
            "lexicon": "; ".join(f"{name}: {len(split.train):,} pairs" for name, split in self._splits.items())
            + " to train on, none with a word of the test",
            "layers": f"{self._best} of {self._depth} read by the baseline, {self._trained} trained",
            "training": f"{self.steps} steps of {self.batch} pairs, {self.tune}, "
            f"temperature {method.temperature:g}, similarity {method.similarity}, learning rate "
            + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items()),
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.embed.base import load
        from broadsheet.embed.modules.word_layers import cut_behind

        def untouched(name: str, layer: int, role: Any = None) -> ModelArm:
            return ModelArm(name, lambda: cut_behind(self._start(), layer), role, f"subword mean, layer {layer}")

        def back(folder: Path) -> SentenceTransformer:
            return load(folder, device=self.device, dtype=self.dtype)

        def trained(name: str, about: str, role: Any = None, paper: str = "") -> ModelArm:
            told = f"trained {about}, layer {self._trained}"
            return self.trained(name, partial(self._train, name), back, role, told, paper)

        self._rates = {name: self._rate(name) for name in (SPECIALISED, SHUFFLED, PEER)}
        return [
            untouched(UNTOUCHED, self._best, "baseline"),
            trained(SPECIALISED, "on word sets", paper=self._method.paper),
            trained(SHUFFLED, "as long on the same words, paired by chance", "sibling"),
            trained(PEER, "on the same pairs by sentence-transformers' loss", "peer"),
            *([untouched(START, self._trained)] if self._trained != self._best else []),
            ModelArm(LAST, self._start, description="subword mean, as the model ends"),
        ]

    def claims(self) -> list[Claim]:
        finds = "specialising on word sets finds more for words it has not seen (abstract)"
        because = "because the words of a pair mean the same, and not since words are spread apart"
        return [
            Claim(f"MRR {self._called(name)}".strip(), baseline, SPECIALISED, says, least=LEAST)
            for name in self.words
            for baseline, says in ((UNTOUCHED, finds), (SHUFFLED, because))
        ]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        pairs = sum(len(split.train) for split in self._splits.values())
        return (
            "It trains mBERT and XLM-R on word sets of fifty languages, and finds that how many pairs there are "
            f"matters far more than which languages; here {self.encoder or self.model_name} draws "
            f"{self.steps * self.batch:,} times from {pairs:,} pairs."
        )

    def also_compare(self) -> list[tuple[str, str]]:
        return [
            (PEER, SPECIALISED),
            (LAST, SPECIALISED),
            *([(START, SPECIALISED)] if self._trained != self._best else []),
        ]

    def _called(self, name: str) -> str:
        """What stands behind the metrics of a list; nothing where there is one."""
        return "" if len(self.words) == 1 else f"of {Path(name).stem}"

    def figures(self, outcome: Outcome) -> list[Curve]:
        return [self._curve]

    def notes(self, outcome: Outcome) -> list[str]:
        values, best, layer = self._curve.lines["untouched"], self._best, self._trained
        others = sum(len(split.dev.task().queries) for split in self._splits.values())
        notes = [
            f"Layers were chosen on {others} other words: the untouched model reads words "
            f"best at layer {best} (MRR {values[best]:.3f} there; layer {layer}, which is trained, {values[layer]:.3f};"
            f" the last layer {values[-1]:.3f})."
            + " Layer 0 is the input embeddings: words one by one, without a model."
            * (best == 0),
        ]
        for name, task in self._asked.items():
            right = float(np.mean([len(gold) for gold in task.gold]))
            without = f" {task.missing_} pairs had no word in the vocabulary."
            notes.append(
                f"{name}: a word has {right:.1f} right answers on average; P@1 by chance is "
                f"{right / len(task.vocabulary):.4f}." + without * bool(task.missing_)
            )
        folders = {name: self.folder(name) for name in self._rates}
        return notes + [
            training_note(name, each) for name, each in folders.items() if (each / "training.json").exists()
        ]

    def _words(self, name: str) -> Split:
        if name == "abbreviations":
            pairs = lexicon.abbreviations(document.text for document in corpora.load(self.data))
        else:
            pairs = lexicon.load(name)
        pairs = pairs[: self.first or (_USED if name.startswith("wordnet") else None)]
        if not pairs:
            raise InputError(f"{self.data} spells out no abbreviations; give word pairs as --words FILE")
        queries = self.queries or min(40 if self.quick else 400, max(1, len(pairs) // 3))
        return split_lexicon(pairs, queries, max(1, queries // 2), self.pairs, self.vocabulary, self.seed)

    def _start(self, *, own: bool = False) -> SentenceTransformer:
        """The untouched model, all its layers; with weights of its own, or those that the other arms share."""
        from broadsheet.embed.base import load

        place: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.encoder:
            adopted: SentenceTransformer = self._method.adopt(load(self.encoder, **place))
            return adopted
        made: SentenceTransformer = self._method.embedder(models.load(self.model, **place) if own else self.loaded)
        return made

    def _layers(self, model: SentenceTransformer) -> tuple[int, int, Curve]:
        """The layers whose words find most of the dev words, from 0 and from 1, the lowest of equals; and a figure."""
        from broadsheet.embed.modules.word_layers import layer_vectors

        say("choosing layers")
        values = np.mean([_found(split.dev, partial(layer_vectors, model)) for split in self._splits.values()], axis=0)
        found: list[float | None] = values.tolist()
        title = "MRR of the untouched model by layer, on the words the layers are chosen on"
        curve = Curve(title, "layer", "MRR", [float(i) for i in range(len(found))], {"untouched": found})
        return int(values.argmax()), self.layer or 1 + int(values[1:].argmax()), curve

    # The specialised models

    def _rate(self, name: str) -> float:
        """The learning rate given, or the one whose model finds most of the words that layers are chosen on."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.quick:
            return RATES[self.tune][1]

        def train(rate: float, out: Path) -> Any:
            return self._fit(name, rate, self.seed, out)

        def finds(folder: Path) -> float:
            from broadsheet.embed.base import load

            model = load(folder, device=self.device, dtype=self.dtype)
            return float(np.mean([_found(split.dev, lambda words: [_encoded(model, words)]) for split in splits]))

        splits = self._splits.values()
        others = sum(len(split.dev.task().queries) for split in splits)
        on = f"{others} other words, the mean of the lists' MRR"
        return self.best_run(name, RATES[self.tune], train, finds, on=on, open_ended=True)

    def _train(self, name: str, seed: int, out: Path) -> Any:
        if self.take_best(name, self._rates[name], seed, out):
            return None
        return self._fit(name, self._rates[name], seed, out)

    def _fit(self, name: str, rate: float, seed: int, out: Path) -> Any:
        from broadsheet.embed.modules.word_layers import cut_behind
        from broadsheet.embed.trials.peers import both_ways

        sets = [pair for split in self._splits.values() for pair in split.train]
        model = cut_behind(self._start(own=True), self._trained)
        settings: dict[str, Any] = {
            "batch_size": self.batch,
            "steps": self.steps,
            "method": self.tune,
            "learning_rate": rate,
        }
        pairs = shuffled(sets, self.seed) if name == SHUFFLED else sets
        loss = both_ways(model, self._method.temperature) if name == PEER else None
        return self._method.fit(model, pairs, out, held_out=held(self._splits), loss=loss, seed=seed, **settings)


def _found(dev: Questions, vectors: Callable[[list[str]], Sequence[Any]]) -> list[float]:
    """The MRR of dev words by each of the (words, width) arrays that are made of words."""
    from broadsheet.embed.data.induction import induction_scores

    task = dev.task()
    words = list(dict.fromkeys([*task.queries, *task.vocabulary]))
    where = {word: i for i, word in enumerate(words)}
    queries, vocabulary = ([where[word] for word in part] for part in (task.queries, task.vocabulary))
    return [induction_scores(task.ranks(each[queries], each[vocabulary]))["mrr"] for each in vectors(words)]


def _encoded(model: SentenceTransformer, words: list[str]) -> Any:
    """(words, width) unit vectors, float64."""
    vectors = np.asarray(model.encode(words, show_progress_bar=False), dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def words_task(task: BilingualLexiconInduction, split: Mapping[str, Any], called: str = "") -> EvalTask:
    """Words to look up: reciprocal rank, P@1, and how near unlike words are.

    Args:
        split: all words of the list, for the fingerprint.
        called: put behind the task's and the metrics' names, where there are several lists.
    """

    def metric(name: str, of: str, **settings: Any) -> Metric:
        return Metric(f"{name} {called}".strip(), of=of, **settings)

    return EvalTask(
        f"words {called}".strip(),
        range(len(task.queries)),
        [
            metric("MRR", "RR", bounds=(0, 1)),
            metric("P@1", "P@1", binary=True, bounds=(0, 1)),
            metric("cosine of unlike words", "cosine", higher_is_better=False, bounds=(-1, 1)),
        ],
        lambda arm, model, kept: words_arm(arm, model, task),
        item="text",
        about=f"{len(task.queries)} words searched among {len(task.vocabulary):,}",
        fingerprint=fingerprint([split, task.queries, task.vocabulary, task.gold]),
        examples=partial(_examples, task),
    )


def _examples(task: BilingualLexiconInduction, asked: Sequence[int], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Words with the word that each arm finds nearest."""
    nearest = [{name: int(arm.samples["nearest"][i]) for name, arm in arms.items()} for i in range(len(asked))]
    found = []
    for place in most_apart([{name: str(word) for name, word in row.items()} for row in nearest]):
        gold = task.gold[asked[place]]
        made = {name: (word in gold, task.vocabulary[word]) for name, word in nearest[place].items()}
        found.append(
            first_found(task.queries[asked[place]], made, ", ".join(task.vocabulary[word] for word in sorted(gold)))
        )
    return found


def words_arm(arm: ModelArm, model: LazyModel, task: BilingualLexiconInduction) -> Arm:
    """Places of queries to reciprocal ranks, P@1 and the mean cosine with all words that are not right.

    The vocabulary is encoded while the arm is prepared.
    """
    made: dict[str, Any] = {}

    def prepare() -> None:
        made["vocabulary"] = _encoded(model(), task.vocabulary)

    def run(block: Sequence[int]) -> Outputs:
        from broadsheet.embed.data.induction import gold_ranks

        queries = _encoded(model(), [task.queries[i] for i in block])
        gold, excluded = [task.gold[i] for i in block], [task.excluded[i] for i in block]
        ranks = gold_ranks(queries, made["vocabulary"], gold, excluded)
        cosines = queries @ made["vocabulary"].T
        unlike = np.ones(cosines.shape, dtype=bool)
        for row, right, own in zip(unlike, gold, excluded, strict=True):
            row[[*right, *own]] = False
        return {
            "RR": (1 / ranks).tolist(),
            "P@1": (ranks == 1).astype(float).tolist(),
            "cosine": (np.where(unlike, cosines, 0).sum(1) / unlike.sum(1)).tolist(),
            "nearest": _nearest(cosines, excluded),
        }

    return Arm(arm.name, run, description=arm.description, prepare=prepare)


def _nearest(cosines: Any, excluded: Sequence[Iterable[int]]) -> list[int]:
    """(queries, words) to the nearest word of each query that is no candidate left out."""
    allowed = cosines.copy()
    for row, own in zip(allowed, excluded, strict=True):
        row[[*own]] = -np.inf
    return [int(i) for i in allowed.argmax(1)]


def _fingerprint(model: SentenceTransformer) -> str:
    lm = getattr(model[0], "model", None)
    return models.fingerprint(model.transformers_model if lm is None else lm)
