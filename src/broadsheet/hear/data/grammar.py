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
# slot → further words, of a set with many: each one token too, and none of two slots.
_MORE = {
    "how": (
        "brave calm clever cruel famous gentle hungry kind lazy lonely lucky nervous patient polite poor proud "
        "rich rude sad shy silent strange strong tired weak wise"
    ),
    "who": (
        "actor aunt baker boy brother captain clerk cook cousin dancer daughter dentist driver father friend "
        "girl guard guest hunter judge lady lawyer leader maid monk neighbor nephew nurse painter pilot pirate "
        "player poet priest prince prisoner pupil rider runner servant singer sister son student tailor thief "
        "tourist uncle visitor widow wife winner witness woman worker writer camel cat cow dog donkey fox goat "
        "lion monkey mouse pig rabbit sheep tiger wolf"
    ),
    "does": (
        "arrived climbed danced dreamed escaped fell hesitated jumped listened nodded paused prayed returned "
        "rested shouted sighed smiled stood stumbled swam vanished whispered"
    ),
    "acts": (
        "admired borrowed bought broke buried burned chose collected covered described destroyed dragged drew "
        "examined fixed folded forgot hated hid held hit ignored improved kept kicked lifted liked measured "
        "moved needed noticed offered opened owned packed pulled pushed raised repaired sold stained touched "
        "washed watched"
    ),
    "like": (
        "ancient blue bright brown clean cold crooked damp dark dirty dusty empty expensive fancy flat fresh "
        "golden gray hidden hollow huge narrow pink plain purple round sharp shiny silver simple small smooth "
        "soft square thick thin tiny ugly warm wet white wide wooden yellow"
    ),
    "what": (
        "anchor apple arrow axe bag ball banner barrel bench blanket book bowl box branch bread brush bucket "
        "button cake camera card carpet carriage cart clock coat coin crown cup curtain desk dish door dress "
        "egg fence flag flower fork gate glass glove hammer hat helmet jacket jar key ladder map mask medal "
        "mirror nail necklace needle net newspaper oven paper pencil photo picture pillow pipe plate pot purse "
        "ribbon ring rope rug saddle shelf shield shirt shoe shovel spoon statue stone stove sword tent ticket "
        "towel toy tray tree trunk umbrella vase wagon wallet wheel"
    ),
    "by": "above below",
    "where": (
        "airport bakery bank barn beach bridge castle cave desert factory farm field fountain harbor hill "
        "hospital hotel island lake library mill mountain museum office palace park prison stable street swamp "
        "temple theater tower tunnel valley village wall"
    ),
    "when": "later sometimes twice soon",
}
MANY = {slot: (*words, *_MORE.get(slot, "").split()) for slot, words in WORDS.items()}
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


def held_out_pairs(many: bool = False) -> frozenset[tuple[str, str]]:
    """Adjective and noun, one pair for every noun: each word occurs in training, the two together never do.

    Those of many words hold those of few.
    """
    return frozenset(
        (WORDS[left][i % len(WORDS[left])], noun)
        for left, right in PAIRED
        for i, noun in enumerate(words_of(many)[right])
    )


def words_of(many: bool) -> dict[str, tuple[str, ...]]:
    """slot → its words: some 60 in all, or some 400."""
    return MANY if many else WORDS


_PAIRS = held_out_pairs(many=True)


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


def draw(rng: np.random.Generator, way: str | None = None, *, most: int = 6, many: bool = False) -> str:
    """A sentence, each word drawn evenly from its slot.

    Args:
        way: how it must be held out: "pair", "sentence", or None for a sentence of training.
        most: words.
        many: draw from some 400 words instead of some 60.
    """
    words = words_of(many)
    allowed = [(slots, often) for slots, often in TEMPLATES if len(slots) <= most]
    often = np.array([weight for _, weight in allowed], dtype=float)
    while True:
        slots = allowed[int(rng.choice(len(allowed), p=often / often.sum()))][0]
        sentence = " ".join(words[slot][int(rng.integers(len(words[slot])))] for slot in slots)
        if held_out(sentence) == way:
            return sentence


def size(many: bool = False) -> int:
    """How many sentences there are."""
    return sum(math.prod(len(words_of(many)[slot]) for slot in slots) for slots, _ in TEMPLATES)


def vocabulary(many: bool = False) -> list[str]:
    """Every word, once."""
    return list(dict.fromkeys(word for words in words_of(many).values() for word in words))


def parses(sentence: str) -> Iterator[tuple[str, ...]]:
    """The templates, as slots, that give this sentence: one for a sentence of the grammar, none for any other text."""
    words = sentence.split(" ")
    for slots, _ in TEMPLATES:
        if len(slots) == len(words) and all(word in MANY[slot] for word, slot in zip(words, slots, strict=True)):
            yield slots
