"""Change that is planted, so that one knows what is to be found: words with a new name, and words that change places.

Knows: texts of periods, words, counts. Does not know: models, scores.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broadsheet.console import InputError
from broadsheet.curate.periods.counts import LETTERS, counted

RENAMED, SWAPPED = "renamed", "swapped"
_COMMON = 50  # the most frequent words, which stay as they are
_SYLLABLES = [a + b for a in ("bl", "d", "f", "gr", "k", "l", "m", "n", "pr", "s", "t", "v", "z") for b in "aeiou"]


@dataclass(frozen=True)
class Planted:
    """A changed word and a word like it that is left alone.

    Attributes:
        kind: `RENAMED` or `SWAPPED`.
        word: that is to be found: the new name, or the word as it was before it changed places.
        control: a word of the same texts, about as frequent in the first period.
        group: what was planted together.
    """

    kind: str
    word: str
    control: str
    group: str


def planted(
    texts: Sequence[Sequence[str]], count: int, seed: int, least: int = 10
) -> tuple[list[list[str]], list[Planted]]:
    """Texts of periods in which some words change at a period of their own, drawn by a seed.

    From that period on a renamed word has a made-up name, and two swapped words, as frequent as each other in the first
    period, stand in each other's place: their counts move as those of others do. Capitals stay.

    Args:
        texts: of each period, in order.
        count: renamed words, and as many swapped ones; fewer where few words are frequent enough.
        seed: of the choice.
        least: times that a word stands in each period.

    Raises:
        InputError: there are fewer than two periods, or too few words.
    """
    counts = [counted(some) for some in texts]
    if len(counts) < 2:
        raise InputError(f"got texts of {len(counts)} period; expected two or more")
    # Neighbours by the first period alone: words that were as frequent in all together would, in each other's place,
    # move less than their controls do.
    common = [word for word in counts[0] if len(word) > 2 and min(each[word] for each in counts) >= least]
    frequent = sorted(common, key=lambda word: (-counts[0][word], word))[_COMMON:]
    count = min(count, len(frequent) // 4) // 2 * 2
    if count < 2:
        raise InputError(
            f"got {len(frequent)} words that stand {least} times or more in each period, without the {_COMMON} most "
            f"frequent; expected 8: give more text"
        )
    drawn = random.Random(seed)
    # Eight neighbours by frequency: two are renamed, two swapped, four are their controls.
    found: list[Planted] = []
    changes: list[dict[str, str]] = [{} for _ in texts]
    known = set().union(*counts)
    for start in sorted(drawn.sample(range(len(frequent) // 8), count // 2)):
        some = frequent[8 * start : 8 * start + 8]
        drawn.shuffle(some)
        one, other, first, second, *controls = some
        for word in (one, other):
            name = _name(drawn, known)
            found.append(Planted(RENAMED, name, controls.pop(), word))
            _from(changes, drawn, {word: name})
        found += [Planted(SWAPPED, word, controls.pop(), f"{first} {second}") for word in (first, second)]
        _from(changes, drawn, {first: second, second: first})
    return [[_changed(text, words) for text in some] for some, words in zip(texts, changes, strict=True)], found


def _from(changes: Sequence[dict[str, str]], drawn: random.Random, words: Mapping[str, str]) -> None:
    for each in changes[drawn.randrange(1, len(changes)) :]:
        each.update(words)


def _name(drawn: random.Random, known: set[str]) -> str:
    """A word that no text has."""
    while (name := "".join(drawn.choices(_SYLLABLES, k=3))) in known:
        pass
    known.add(name)
    return name


def _changed(text: str, words: Mapping[str, str]) -> str:
    def instead(match: object) -> str:
        was: str = match[0]  # type: ignore[index]
        now = words.get(was.lower())
        return was if now is None else now.capitalize() if was[0].isupper() else now

    return LETTERS.sub(instead, text)
