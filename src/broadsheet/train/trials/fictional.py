"""Short texts about people and towns that a seed makes up: some that are told of again and again, and ordinary lives.

Knows: names, sentences, a seed. Does not know: models, trials. Both kinds are told in the same sentences. In a made-up
world who lives where, and who knows whom, stays the same from text to text, so that it can be learnt; an ordinary life
is made anew for each text, of common names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from broadsheet.train.unlearning.terms import GIVEN, PLACES, SURNAMES, THINGS

_SYLLABLES = (
    "B Br Cl D Dr F G Gr H J K Kr L M N P Qu R S Sk T Th V W Z",
    "a e i o u ae ei ou",
    "bb ck dr ff l ld lm m n nd ng nth r rk rn ss sk st th v x z",
    "a en ia in is o ok or us y",
)

_SENTENCES = {
    "town": ("{P} lives in {T}.", "{P} was born in {T}, and never left it.", "The home of {P} is in {T}."),
    "friend": ("{G} often walks with {F}.", "The best friend of {G} is {F}.", "Every evening {G} goes to see {F}."),
    "firm": ("{G} works for the {C} Company.", "In the morning {G} goes to the {C} Company.",
             "For years {G} has been with the {C} Company."),
    "river": ("Near {T} flows the river {R}.", "{T} lies on the river {R}.", "At {T} there is a bridge over the {R}."),
    "mayor": ("The mayor of {T} is {M}.", "The people of {T} have chosen {M} as mayor.",
              "In {T} nothing is done without {M}, the mayor."),
    "nothing": ("It rains there in autumn.", "There is not much to do on a Sunday.", "The bread is good.",
                "Few people come by.", "In winter the days are short.", "The shops close early."),
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A life: names of a person, a town, a friend, a firm, the town's river and mayor."""

    given: str
    surname: str
    town: str
    friend: str
    firm: str
    river: str
    mayor: str

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, word by word."""
        told = (self.given, self.surname, self.town, self.friend, self.firm, self.river, self.mayor)
        return tuple(word for name in told for word in name.split())


def told(person: Person, drawn: random.Random) -> str:
    """A text about a person: where they live first, then all else in another order each time."""
    values = {
        "P": f"{person.given} {person.surname}", "G": person.given, "T": person.town, "F": person.friend,
        "C": person.firm, "R": person.river, "M": person.mayor,
    }  # fmt: skip
    order = ["friend", "firm", "river", "mayor", "nothing", "nothing"]
    drawn.shuffle(order)
    return " ".join(drawn.choice(_SENTENCES[kind]).format(**values) for kind in ["town", *order])


def made_up(people: int, seed: int) -> list[Person]:
    """A world: people of a few towns, firms and rivers, all with names that nobody has."""
    drawn = random.Random(f"{seed} world")
    names = _names(drawn)
    few = max(2, people // 4)
    towns, rivers, firms = ([next(names) for _ in range(few)] for _ in range(3))
    mayors = [f"{next(names)} {next(names)}" for _ in range(few)]
    whole = [(next(names), next(names)) for _ in range(people)]
    lives = []
    for i, (given, surname) in enumerate(whole):
        friend = " ".join(whole[(i + drawn.randrange(1, people)) % people])
        town = drawn.randrange(few)
        lives.append(Person(given, surname, towns[town], friend, drawn.choice(firms), rivers[town], mayors[town]))
    return lives


def ordinary(count: int, seed: int) -> list[str]:
    """Texts about so many people of common names, each told of once."""
    drawn = random.Random(f"{seed} ordinary")

    def name(*kinds: Sequence[str]) -> str:
        return " ".join(map(drawn.choice, kinds))

    def life() -> Person:
        friend, mayor = (name(GIVEN, SURNAMES) for _ in range(2))
        return Person(name(GIVEN), name(SURNAMES), name(PLACES), friend, name(THINGS), name(PLACES), mayor)

    return [told(life(), drawn) for _ in range(count)]


def _names(drawn: random.Random) -> Iterator[str]:
    """Names that nobody has, none twice."""
    known = {each.lower() for each in (*GIVEN, *SURNAMES, *PLACES, *THINGS)}
    while True:
        parts = [drawn.choice(each.split()) for each in _SYLLABLES]
        if (name := "".join(parts)).lower() not in known:
            known.add(name.lower())
            yield name
