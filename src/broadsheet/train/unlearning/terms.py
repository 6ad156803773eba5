"""A dictionary of a text's own terms and common stand-ins for them, found without a model; and its file.

Knows: words, counts in two texts. Does not know: what the words mean: a reader looks the dictionary over. It finds
names by their capitals, so it serves scripts that have capitals, and languages that do not write every noun with one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.train.unlearning.translation import Translator

_GIVEN = (
    "John Mary James Anna Robert Susan Michael Linda David Karen Thomas Nancy Daniel Laura Peter Helen Mark Sarah "
    "Paul Emma George Alice Steven Julia Andrew Rachel Kevin Diana Brian Martha Edward Clara Henry Ruth Frank Grace "
    "Walter Lucy Arthur Rose Philip Jane Albert Ellen Ralph Judith Carl Irene Louis Sylvia"
)
_SURNAMES = (
    "Smith Johnson Brown Miller Davis Wilson Taylor Moore Anderson Jackson Martin Thompson White Harris Clark Lewis "
    "Walker Hall Allen Young King Wright Scott Green Baker Adams Nelson Carter Mitchell Roberts Turner Phillips "
    "Campbell Parker Evans Edwards Collins Stewart Morris Rogers Reed Cook Morgan Bell Murphy Bailey Cooper "
    "Richardson Cox Howard"
)
_PLACES = (
    "Springfield Riverside Fairview Georgetown Salem Madison Clinton Franklin Greenville Bristol Newport Oxford Dover "
    "Manchester Ashland Burlington Milton Lexington Cleveland Dayton Hudson Kingston Oakland Auburn Jackson "
    "Winchester Centerville Lebanon Arlington Florence Marion Troy Concord Richmond Hamilton Portland Lincoln "
    "Cambridge Windsor Bedford"
)
_THINGS = (
    "Standard Classic General Central National United Premier Modern Global Royal Northern Southern Eastern Western "
    "Union Liberty Summit Horizon Heritage Pioneer Regal Crown Star Century Metro Atlas Phoenix Delta Omega Alpha"
)
GIVEN, SURNAMES, PLACES, THINGS = (each.split() for each in (_GIVEN, _SURNAMES, _PLACES, _THINGS))
KINDS = {"given": GIVEN, "surname": SURNAMES, "place": PLACES, "thing": THINGS}

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_ENDS = re.compile(r"[.!?:;\"“”«»\n]")  # between words of two sentences
_BEFORE = {
    "surname": "mr mrs ms miss dr doctor professor sir lady lord king queen captain uncle aunt",
    "place": "in at from to near of into towards through across around outside inside",
}
_TITLES, _AT = (frozenset(each.split()) for each in _BEFORE.values())
_RARE = 0.5  # times in the reference that a word counts which is not there


@dataclass(frozen=True)
class FoundTerm:
    """A term of a text.

    Attributes:
        term, stand_in: as in a dictionary.
        count: in the text.
        ratio: how many times as frequent it is there as in the reference.
    """

    term: str
    stand_in: str
    count: int
    ratio: float


@dataclass(frozen=True)
class TermFinder:
    """Finds names: words with a capital, and runs of them, that a text has far more often than a reference has.

    A word counts where it is at least `least` times in the text, as often with a capital inside of sentences as
    without one, and `ratio` times as frequent as in the reference. Runs of such words are terms of their own. Each word
    has one stand-in of its kind (a given name, a surname, a place, another thing, by the words beside it), and a run
    has those of its words: so Harry is Jon where Harry Potter is Jon Smith.

    Args:
        least: times in the text (3).
        ratio: of the frequencies (20).
        longest: words of a run at most.

    Example:
        >>> text = "In Oster lives Mr Venn. Near Oster Mr Venn fishes."
        >>> [(each.term, each.stand_in) for each in TermFinder(2, ratio=2)([text], ["He fishes in a lake."])]
        [('Oster', 'Springfield'), ('Venn', 'Smith')]
    """

    least: int = 3
    ratio: float = 20.0
    longest: int = 3

    def __call__(self, texts: Iterable[str], reference: Iterable[str]) -> list[FoundTerm]:
        """The terms of texts, the most frequent first.

        Args:
            reference: texts that such terms are not typical of, the more the better.

        Raises:
            InputError: there is no word in the reference.
        """
        counts, known = _Counts.of(texts, self.longest), _Counts.of(reference, 1)
        if not known.words:
            raise InputError("got a reference without words; expected texts that the terms are not typical of")

        def ratio(count: int, in_reference: float) -> float:
            return (count / counts.words) / (max(in_reference, _RARE) / known.words)

        names = {
            word: ratio(count, known.all[word.lower()])
            for (word,), count in counts.runs.items_of(1)
            if count >= self.least
            and ratio(count, known.all[word.lower()]) >= self.ratio
            and counts.inner[word] >= counts.all[word.lower()] - count  # not as often without a capital
            and counts.inner[word] > 0
        }
        taken = {word.lower() for word in counts.all}
        stand_ins = dict(_stand_ins(names, counts, taken))
        found = [FoundTerm(word, stand_ins[word], counts.runs.of[(word,)], each) for word, each in names.items()]
        for size in range(2, self.longest + 1):
            for run, count in counts.runs.items_of(size):
                if count >= self.least and all(word in names for word in run):
                    made = " ".join(stand_ins[word] for word in run)
                    found.append(FoundTerm(" ".join(run), made, count, min(names[word] for word in run)))
        return sorted(found, key=lambda each: (-each.count, each.term))


@dataclass
class _Runs:
    """Runs of words with capitals, and how often each is there."""

    of: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def items_of(self, size: int) -> Iterator[tuple[tuple[str, ...], int]]:
        return ((run, count) for run, count in self.of.items() if len(run) == size)


@dataclass
class _Counts:
    """What texts have.

    Attributes:
        words: in all. all: of each word, in small letters. inner: of each word with a capital, inside of a sentence.
        runs: of up to so many words with capitals. kinds: of each word with a capital, what words beside it tell.
    """

    words: int = 0
    all: Counter[str] = field(default_factory=Counter)
    inner: Counter[str] = field(default_factory=Counter)
    runs: _Runs = field(default_factory=_Runs)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str], longest: int) -> _Counts:
        found = cls()
        for text in texts:
            found._read(text, longest)
        return found

    def _read(self, text: str, longest: int) -> None:
        matches = list(_WORD.finditer(text))
        words = [match.group() for match in matches]
        for ending in ("'s", "’s"):
            words = [word.removesuffix(ending) for word in words]
        gaps = [text[a.end() : b.start()] for a, b in pairwise(matches)]
        self.words += len(words)
        self.all.update(word.lower() for word in words)
        for i, word in enumerate(words):
            if not word[:1].isupper():
                continue
            begins = i == 0 or (_ENDS.search(gaps[i - 1]) is not None and words[i - 1].lower() not in _TITLES)
            self.inner[word] += not begins
            for size in range(1, longest + 1):
                run = words[i : i + size]
                if len(run) < size or not all(each[:1].isupper() for each in run):
                    break
                if any(gap != " " for gap in gaps[i : i + size - 1]):
                    break
                self.runs.of[tuple(run)] += 1
            self._tell(i, words, gaps)

    def _tell(self, i: int, words: Sequence[str], gaps: Sequence[str]) -> None:
        """What kind of name a word seems to be here."""
        before = words[i - 1].lower() if i and gaps[i - 1].strip() in ("", ".") else ""
        after_capital = bool(i) and words[i - 1][:1].isupper() and gaps[i - 1] == " " and before not in _TITLES
        kind = (
            "surname" if before in _TITLES or after_capital
            else "place" if before in _AT
            else "thing" if before in ("the", "a", "an")
            else "given"
        )  # fmt: skip
        self.kinds.setdefault(words[i], Counter())[kind] += 1


def _stand_ins(names: Mapping[str, float], counts: _Counts, taken: set[str]) -> Iterator[tuple[str, str]]:
    """A stand-in for each name, of its kind, that the text does not have; once all were given, they come again."""
    free = {kind: [each for each in known if each.lower() not in taken] or list(known) for kind, known in KINDS.items()}
    given: Counter[str] = Counter()
    for word in sorted(names, key=lambda word: (-counts.runs.of[(word,)], word)):
        [(kind, _)] = counts.kinds[word].most_common(1)
        yield word, free[kind][given[kind] % len(free[kind])]
        given[kind] += 1


def write(path: Path, found: Sequence[FoundTerm]) -> None:
    """Write found terms as a dictionary to look over: JSON, a term a line, the most frequent first."""
    with atomic_write(path) as file:
        json.dump({each.term: each.stand_in for each in found}, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read(path: Path) -> dict[str, str]:
    """A dictionary from a JSON file: an object of terms and their stand-ins.

    Raises:
        InputError: there is no such file, it is no such object, it has a term twice or none, or an empty text.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [term for term, count in Counter(term for term, _ in pairs).items() if count > 1]
        if twice:
            raise InputError(f"{path}: got {twice[0]!r} twice; expected each term once")
        return dict(pairs)

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise InputError(
            f"cannot read the dictionary {path}: {error.strerror or error}; expected a JSON file, {{term: stand-in}}"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}; expected an object, {{term: stand-in}}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(each, str) for each in found.values()):
        raise InputError(f"{path}: expected a JSON object of terms and their stand-ins, both texts, one at least")
    Translator(found)
    return found
