"""Try BabelBERT: does a model specialised on word sets find the synonyms and translations of words it has not seen?

Knows: word lists, their split, the layer that reads words best, the A/B engine.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.embed.data import lexicon
from broadsheet.embed.data.lexicon import WordPair
from broadsheet.embed.data.tasks import sts
from broadsheet.embed.trials.base import EvalTask, LazyModel, ModelArm, clear, compare, trained, training_note, workdir
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.results import Curve, Role, TrialResult

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.embed.data.induction import BilingualLexiconInduction

SPECIALISED = "specialised"
UNTOUCHED, START, LAST = "untouched, best layer", "untouched, the layer trained", "untouched, last layer"
METRICS = [
    Metric("MRR", of="RR", bounds=(0, 1)),
    Metric("P@1", binary=True, bounds=(0, 1)),
    Metric("cosine of unlike words", of="cosine", higher_is_better=False, bounds=(-1, 1)),
]
_USED = 4000  # synonym pairs of WordNet, the most used ones


@dataclass(frozen=True)
class Questions:
    """Words to look up, and the words that are searched.

    Args:
        pairs: (query, gold word), all that the lexicon knows of each query.
        vocabulary: candidates.
        same_language: the query is in the vocabulary too, and no candidate.
    """

    pairs: list[tuple[str, str]]
    vocabulary: list[str]
    same_language: bool

    @property
    def words(self) -> set[str]:
        """What must not be trained on."""
        return {word for pair in self.pairs for word in pair}

    def task(self) -> BilingualLexiconInduction:
        """As an evaluator."""
        from broadsheet.embed.data.induction import BilingualLexiconInduction

        return BilingualLexiconInduction(self.pairs, self.vocabulary, exclude_query=self.same_language)


@dataclass(frozen=True)
class Split:
    """Word pairs to train on, and questions for the choice of the layer and for the test, that share no word."""

    train: list[WordPair]
    dev: Questions = field(repr=False)
    test: Questions = field(repr=False)


def split_lexicon(
    pairs: Sequence[WordPair], queries: int, dev: int, train: int, vocabulary: int, seed: int = 0
) -> Split:
    """Draw test queries, dev queries and training pairs; sets are drawn as a whole, one query each.

    Args:
        pairs: all of one lexicon; where languages are named, its first ones are those of the test.
        queries, dev: how many words are looked up.
        train: pairs to train on, at most. None holds a word of dev or test.
        vocabulary: words that are searched, at most; in dev half of that.

    Raises:
        InputError: the lexicon is too small for that.
    """
    languages = pairs[0].languages
    same = languages[0] == languages[1]
    asked = [pair for pair in pairs if pair.languages == languages]
    known: dict[str, dict[str, None]] = defaultdict(dict)
    for pair in pairs:
        if pair.languages == languages:
            known[pair.first][pair.second] = None
        if (pair.languages[1], pair.languages[0]) == languages:
            known[pair.second][pair.first] = None
    sets: dict[str, list[WordPair]] = defaultdict(list)
    for pair in asked:
        sets[pair.label].append(pair)
    order = sorted(sets, key=lambda label: fingerprint([seed, label]))
    if len(order) < queries + dev + 2:
        raise InputError(f"the word list has {len(order):,} sets; {queries} + {dev} queries need more: ask for fewer")
    generator = random.Random(f"{seed}/queries")
    chosen = [generator.choice(sets[label]).first for label in order[: queries + dev]]
    drawn = list(dict.fromkeys(chosen))
    everything = list(
        dict.fromkeys(word for pair in asked for word in ((pair.first, pair.second) if same else (pair.second,)))
    )
    everything.sort(key=lambda word: fingerprint([seed, word]))

    def questions(words: Iterable[str], size: int) -> Questions:
        gold = [(word, right) for word in words for right in known[word]]
        needed = list(dict.fromkeys(right for _, right in gold))
        return Questions(gold, list(dict.fromkeys([*needed, *everything]))[: max(size, len(needed))], same)

    test = questions(drawn[:queries], vocabulary)
    held = {word.casefold() for word in test.words}
    # A dev question that shows a word of the test would choose the layer on it.
    free = [word for word in drawn[queries:] if not {w.casefold() for w in (word, *known[word])} & held]
    if not free:
        raise InputError("every word to choose the layer on is in the test too; give more words, or fewer --queries")
    tuning = questions(free, vocabulary // 2)
    left, _ = lexicon.without(pairs, test.words | tuning.words)
    left.sort(key=lambda pair: fingerprint([seed, pair.first, pair.second]))
    if len(left) < 2:
        raise InputError("no word pairs are left to train on; give more words, or fewer --queries")
    return Split(left[:train], tuning, test)


@dataclass
class LexicalTrial:
    """Words and their synonyms or translations: does training on word sets help with words it has not seen?

    Test words are looked up in a vocabulary by cosine; no pair with one of them is trained on. The plain baseline is
    the untouched model at the layer that finds most for other words, the input embeddings being layer 0. The
    specialised model is trained at, and read off, the best layer from 1, so that training has weights to change. How
    near unlike words are shows whether the model has collapsed, and --sts what specialising costs on sentences.

    Options:
        --words NAME: a TSV of word pairs, `wordnet`, `freedict:eng-fra` and so on, or `abbreviations` of the data's
            texts and what they stand for (abbreviations); see broadsheet.embed.data.lexicon.
        --encoder FOLDER: a sentence-transformers encoder (multilingual, say) instead of the model.
        --pairs N: to train on, at most (2000; with --quick 200).
        --queries N: words looked up in the test (200, or a third of a small list; with --quick 40).
        --vocabulary N: words that are searched (3000; with --quick 300).
        --first N: pairs of the list that are used, from its start (4000 of WordNet, the most used; 0: all).
        --steps N: of training (100; with --quick 8).
        --batch N: pairs of a batch (64; the paper 256).
        --learning-rate N: (3e-5 for all weights, 2e-4 with --lora; the paper 5e-6 in many more steps).
        --lora: train adapters instead of all weights.
        --temperature N: τ (0.07).
        --similarity NAME: cos or csls (cos).
        --alpha N: of the language-pair sampler (0.5; -1 shuffles).
        --layer N: to train, instead of the best one from 1 on other words; the model's depth is what the paper trains.
        --sts FILE: sentence pairs with scores, what specialising costs; 300 of them (with --quick 30).
        --device NAME, --dtype NAME: as in models.load.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    words: str = "abbreviations"
    encoder: str = ""
    pairs: int = 0
    queries: int = 0
    vocabulary: int = 0
    first: int = -1
    steps: int = 0
    batch: int = 64
    learning_rate: float = 0.0
    lora: bool = False
    temperature: float = 0.07
    similarity: str = "cos"
    alpha: float = 0.5
    layer: int = 0
    sts: str = ""
    device: str = ""
    dtype: str = ""

    def run(self) -> TrialResult:
        """Split the words, choose the layer, train, run the arms, explain.

        Raises:
            InputError: an option, a model, the words or the data cannot be used.
        """
        from broadsheet.embed.modules.word_layers import depth

        self._complete()
        split = self._split()
        self._loaded = None if self.encoder else models.load(self.model, **self._place())
        start = self._start()
        task = split.test.task()
        lexicon.check_words([*task.queries, *task.vocabulary], start.tokenizer)
        facts = {
            "seed": self.seed,
            "model": {"name": self.encoder or self.model, "fingerprint": _fingerprint(start)},
            "data": {"name": self.words, "fingerprint": fingerprint(asdict(split))},
        }
        self.folder_ = workdir("lexical_specialization", versions(), facts, asdict(self))
        self._depth = depth(start)
        best, layer, curve = self._layers(start, split.dev)
        del start
        jobs = [self._job(task)]
        if self.sts:
            jobs.append(EvalTask.sts(sts(self.sts, 30 if self.quick else 300, self.seed), self.sts))
        arms, comparisons = compare(
            self._candidates(split, best, layer),
            jobs,
            self.folder_,
            pairs=[(START, SPECIALISED), (LAST, SPECIALISED)],
            seed=self.seed,
        )
        name = self.encoder or ("the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model)
        return TrialResult(
            paper="lexical_specialization",
            title="Words: the same meaning, nearest by",
            question=f"Does specialising {name} on word sets find synonyms or translations of words it has not seen?",
            setting={
                "model": name,
                "words": f"{self.words}: {len(split.train):,} pairs to train on, none with a word of the test",
                "test": f"{len(task.queries)} words, looked up among {len(task.vocabulary):,}",
                "layers": f"{best} of {self._depth} read by the baseline, {layer} trained",
                "training": f"{self.steps} steps of {self.batch} pairs, {'LoRA' if self.lora else 'all weights'}, "
                f"learning rate {self._rate():g}, temperature {self.temperature:g}, similarity {self.similarity}",
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[("MRR", UNTOUCHED, SPECIALISED)],
            figures=[curve],
            notes=self._notes(split, task, best, layer, curve),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        clear(self.folder_)

    def _complete(self) -> None:
        if self.data != "pydocs" and self.words != "abbreviations":
            raise InputError(f"got --data {self.data} and --words {self.words}; the data gives abbreviations alone")
        self.pairs = self.pairs or (200 if self.quick else 2000)
        self.vocabulary = self.vocabulary or (300 if self.quick else 3000)
        self.steps = self.steps or (8 if self.quick else 100)
        self.first = self.first if self.first >= 0 else (_USED if self.words.startswith("wordnet") else 0)
        if min(self.queries, self.layer) < 0 or self.batch < 2 or self.pairs < 2:
            raise InputError("got a negative --queries or --layer, or --batch or --pairs below 2; expected more")

    def _place(self) -> dict[str, Any]:
        return {"device": self.device or None, "dtype": self.dtype or None}

    def _split(self) -> Split:
        if self.words == "abbreviations":
            pairs = lexicon.abbreviations(document.text for document in corpora.load(self.data))
        else:
            pairs = lexicon.load(self.words)
        pairs = pairs[: self.first or None]
        if not pairs:
            raise InputError(f"{self.data} spells out no abbreviations; give word pairs as --words FILE")
        queries = self.queries or min(40 if self.quick else 200, max(1, len(pairs) // 3))
        return split_lexicon(pairs, queries, max(1, queries // 2), self.pairs, self.vocabulary, self.seed)

    def _method(self) -> Any:
        from broadsheet.embed.lexical_specialization import LexicalSpecialization

        similarity: Any = self.similarity
        return LexicalSpecialization(self.temperature, similarity, self.alpha)

    def _start(self, *, own: bool = False) -> SentenceTransformer:
        """The untouched model, all its layers; with weights of its own, or those that the other arms share."""
        from broadsheet.embed.base import load

        method = self._method()
        if not self.encoder:
            loaded = models.load(self.model, **self._place()) if own else self._loaded
            made: SentenceTransformer = method.embedder(loaded)
            return made
        adopted: SentenceTransformer = method.adopt(load(self.encoder, **self._place()))
        return adopted

    def _layers(self, model: SentenceTransformer, dev: Questions) -> tuple[int, int, Curve]:
        """The layers whose words find most of the dev words, from 0 and from 1, the lowest of equals; and a figure."""
        from broadsheet.embed.data.induction import induction_scores
        from broadsheet.embed.modules.word_layers import layer_vectors

        task = dev.task()
        say(f"choosing layers on {len(task.queries)} words")
        words = list(dict.fromkeys([*task.queries, *task.vocabulary]))
        where = {word: i for i, word in enumerate(words)}
        queries, vocabulary = ([where[word] for word in part] for part in (task.queries, task.vocabulary))
        found: list[float | None] = [
            induction_scores(task.ranks(vectors[queries], vectors[vocabulary]))["mrr"]
            for vectors in layer_vectors(model, words)
        ]
        values = np.array(found, dtype=float)
        title = "MRR of the untouched model by layer, on the words the layers are chosen on"
        curve = Curve(title, "layer", "MRR", [float(i) for i in range(len(found))], {"untouched": found})
        return int(values.argmax()), self.layer or 1 + int(values[1:].argmax()), curve

    def _candidates(self, split: Split, best: int, layer: int) -> list[ModelArm]:
        from broadsheet.embed.modules.word_layers import cut_behind

        held_out = split.test.words | split.dev.words

        def train(out: Path) -> Any:
            say(f"training on {len(split.train):,} word pairs for {self.steps} steps")
            return self._method().fit(
                cut_behind(self._start(own=True), layer),
                split.train,
                out,
                held_out=held_out,
                batch_size=self.batch,
                steps=self.steps,
                method="lora" if self.lora else "full",
                learning_rate=self._rate(),
                seed=self.seed,
            )

        specialised = trained(self.folder_ / "specialised", train, dtype=self.dtype or None)
        return [
            ModelArm(UNTOUCHED, lambda: cut_behind(self._start(), best), "baseline", f"subword mean, layer {best}"),
            ModelArm(SPECIALISED, specialised, "method", f"trained on word sets, layer {layer}"),
            ModelArm(START, lambda: cut_behind(self._start(), layer), "sibling", f"subword mean, layer {layer}"),
            ModelArm(LAST, self._start, "sibling", "subword mean, as the model ends"),
        ]

    def _rate(self) -> float:
        return self.learning_rate or (2e-4 if self.lora else 3e-5)

    def _job(self, task: BilingualLexiconInduction) -> EvalTask:
        return EvalTask(
            "words",
            range(len(task.queries)),
            METRICS,
            lambda name, held, role, said, kept: words_arm(name, held, task, role, said),
            1,
            f"{len(task.queries)} words searched among {len(task.vocabulary):,}",
            fingerprint([task.queries, task.vocabulary, task.gold]),
        )

    def _notes(self, split: Split, task: BilingualLexiconInduction, best: int, layer: int, curve: Curve) -> list[str]:
        chance = float(np.mean([len(gold) for gold in task.gold])) / len(task.vocabulary)
        notes = [
            f"A word has {np.mean([len(gold) for gold in task.gold]):.1f} right answers on average; P@1 by chance is "
            f"{chance:.4f}. {task.missing_} pairs had no word in the vocabulary."
        ]
        values = curve.lines["untouched"]
        said = (
            f"Layers were chosen on {len(split.dev.task().queries)} other words: the untouched model reads words best "
            f"at layer {best} (MRR {values[best]:.3f} there; layer {layer}, which is trained, {values[layer]:.3f}; the "
            f"last layer {values[-1]:.3f})."
        )
        notes.append(said + " Layer 0 is the input embeddings: words one by one, without a model." * (best == 0))
        if (self.folder_ / "specialised" / "training.json").exists():
            notes.append(training_note(SPECIALISED, self.folder_ / "specialised"))
        return notes


def words_arm(
    name: str, embedder: Any, task: BilingualLexiconInduction, role: Role = "method", description: str = ""
) -> Arm:
    """Places of queries to reciprocal ranks, P@1 and the mean cosine with all words that are not right.

    The vocabulary is encoded while the arm is prepared.
    """
    held = embedder if isinstance(embedder, LazyModel) else LazyModel(embedder)
    made: dict[str, Any] = {}

    def encode(words: list[str]) -> Any:
        vectors = np.asarray(held().encode(words, show_progress_bar=False), dtype=np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def prepare() -> None:
        held()
        made["vocabulary"] = encode(task.vocabulary)

    def run(block: Sequence[int]) -> Outputs:
        from broadsheet.embed.data.induction import gold_ranks

        queries = encode([task.queries[i] for i in block])
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
        }

    return Arm(name, run, role, description, prepare=prepare)


def _fingerprint(model: SentenceTransformer) -> str:
    lm = getattr(model[0], "model", None)
    return models.fingerprint(model.transformers_model if lm is None else lm)
