"""A closed grammar of short English sentences, and which of them no training set may hold.

Knows: words, templates, and the two ways in which a sentence is held out. Does not know: voices, audio.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

# slot → its words, each drawn as often as the others. Most are one token with a leading space in common vocabularies,
# none is the name of a sound, and flite says them all right.
WORDS = {
    "whose": ("the", "my", "your", "this"),
    "how": ("old", "young", "happy", "angry", "quiet", "tall"),
    "who": ("queen", "doctor", "farmer", "sailor", "teacher", "king", "child", "mother", "horse", "soldier"),
    "does": ("waited", "laughed", "sang", "walked", "slept", "cried"),
    "acts": ("found", "lost", "painted", "wanted", "carried", "dropped", "stole", "cleaned"),
    "like": ("red", "green", "black", "heavy", "cheap", "broken"),
    "what": ("lamp", "table", "knife", "bottle", "window", "basket", "letter", "chair", "boat", "candle"),
    "by": ("near", "behind"),
    "where": ("kitchen", "garden", "market", "school", "river", "church", "forest", "station"),
    "when": ("today", "yesterday", "again", "often"),
}
# (slots, how often it is drawn beside the others): short ones are few, and would soon be drawn twice.
TEMPLATES = (
    (("whose", "who", "does"), 1),
    (("whose", "how", "who", "does"), 2),
    (("whose", "who", "does", "when"), 2),
    (("whose", "who", "acts", "whose", "what"), 3),
    (("whose", "how", "who", "does", "when"), 3),
    (("whose", "who", "does", "by", "whose", "where"), 3),
    (("whose", "how", "who", "acts", "whose", "what"), 3),
    (("whose", "who", "acts", "whose", "like", "what"), 3),
)
PAIRED = (("how", "who"), ("like", "what"))  # neighbours of which some pairs are held out
HELD_OUT_SHARE = 0.1  # of the sentences without a held-out pair
WAYS = ("pair", "sentence")  # in which a sentence is held out


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Adjective and noun, one pair for every noun: each word occurs in training, the two together never do."""
    return frozenset(
        (WORDS[left][i % len(WORDS[left])], noun) for left, right in PAIRED for i, noun in enumerate(WORDS[right])
    )


_PAIRS = held_out_pairs()


def held_out(sentence: str) -> str | None:
    """Whether no training set holds this sentence, whatever its seed and size.

    Returns:
        "pair" where it has a held-out adjective and noun, "sentence" where it is one of the tenth that is held out
        by a hash of its words, None where it may be trained on.
    """
    words = sentence.split()
    if any(pair in _PAIRS for pair in pairwise(words)):
        return "pair"
    first = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big")
    return "sentence" if first < HELD_OUT_SHARE * 2**32 else None


def draw(rng: np.random.Generator, way: str | None = None, *, most: int = 6) -> str:
    """A sentence, each word drawn evenly from its slot.

    Args:
        way: how it must be held out: "pair", "sentence", or None for a sentence of training.
        most: words.
    """
    allowed = [(slots, often) for slots, often in TEMPLATES if len(slots) <= most]
    often = np.array([weight for _, weight in allowed], dtype=float)
    while True:
        slots = allowed[int(rng.choice(len(allowed), p=often / often.sum()))][0]
        sentence = " ".join(WORDS[slot][int(rng.integers(len(WORDS[slot])))] for slot in slots)
        if held_out(sentence) == way:
            return sentence


def size() -> int:
    """How many sentences there are."""
    return sum(math.prod(len(WORDS[slot]) for slot in slots) for slots, _ in TEMPLATES)


def vocabulary() -> list[str]:
    """Every word, once."""
    return list(dict.fromkeys(word for words in WORDS.values() for word in words))


def parses(sentence: str) -> Iterator[tuple[str, ...]]:
    """The templates, as slots, that give this sentence: one for a sentence of the grammar, none for any other text."""
    words = sentence.split(" ")
    for slots, _ in TEMPLATES:
        if len(slots) == len(words) and all(word in WORDS[slot] for word, slot in zip(words, slots, strict=True)):
            yield slots
