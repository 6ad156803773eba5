"""Word lists, split for a test: what is asked, what settings are chosen by, and what may be trained on.

Knows: word pairs and their sets. Does not know: models.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.embed.data import lexicon
from broadsheet.embed.data.lexicon import WordPair

if TYPE_CHECKING:
    from broadsheet.embed.data.induction import BilingualLexiconInduction


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


def shuffled(pairs: Sequence[WordPair], seed: int = 0) -> list[WordPair]:
    """As many pairs of the same words and languages, paired by chance, each a set of its own."""
    by_languages: dict[tuple[str, str], list[WordPair]] = defaultdict(list)
    for pair in pairs:
        by_languages[pair.languages].append(pair)
    made: list[WordPair] = []
    for languages, some in by_languages.items():
        second = [pair.second for pair in some]
        random.Random(f"{seed}/{languages}").shuffle(second)
        made += [WordPair(pair.first, word, "", languages) for pair, word in zip(some, second, strict=True)]
    return [replace(pair, label=str(i)) for i, pair in enumerate(made)]


def held(splits: Mapping[str, Split]) -> set[str]:
    """What must not be trained on: the words that any list asks."""
    return set[str]().union(*(each.words for split in splits.values() for each in (split.dev, split.test)))


def apart(splits: Mapping[str, Split]) -> dict[str, Split]:
    """The splits, no list training on a word that another one asks.

    Raises:
        InputError: a list has no pairs left.
    """
    words, made = held(splits), {}
    for name, split in splits.items():
        left, _ = lexicon.without(split.train, words)
        if not left:
            raise InputError(f"no word pairs of {name} are left to train on; ask for fewer --queries")
        made[name] = replace(split, train=left)
    return made
