"""Word pairs that mean the same: from the user's file, WordNet, FreeDict's dictionaries, or abbreviations of `pydocs`.

Knows: file formats, and which words must not be trained on. Does not know: models.

A lexicon is named by
- rows of `WordRow`, as `rows.read` takes them. A TSV needs no names in its first line: two columns are the words, three
  have a label, four are word, language, word, language, five have a label. Quotes are part of a word there, and so are
  "null", "nan" and "NA";
- `wordnet`, or `wordnet:FOLDER`: synonyms, English (Debian: `apt install wordnet-base`);
- `freedict:eng-fra`, or another pair: translations (Debian: `apt install dict-freedict-eng-fra`);
- `abbreviations`: what the documentation of installed packages spells out, "abstract syntax tree (AST)". No download.

Pairs of one label are one set of words that mean the same. Without labels, the pairs of one first word are one set.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from broadsheet.console import InputError
from broadsheet.data import corpora, rows
from broadsheet.data.resources import local
from broadsheet.data.rows import Rows, column
from broadsheet.data.schemas import POSITIVE, QUERY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDNET = Path("/usr/share/wordnet")
FREEDICT = Path("/usr/share/dictd")


@dataclass(frozen=True)
class WordPair:
    """Two words that mean the same.

    Args:
        first, second: the words.
        label: of the set that both belong to.
        languages: of the two; empty where that is not known.
    """

    first: str
    second: str
    label: str
    languages: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class WordRow:
    """Two words that mean the same, with the set that both belong to and their languages where those are known."""

    word1: str = column("word1", *QUERY, "text")
    word2: str = column("word2", *POSITIVE)
    label: str = column("label", "synset", "synsetid", default="", kind="text")
    lang1: str = column(default="")
    lang2: str = column(default="")

    LAYOUTS: ClassVar[Mapping[int, Sequence[str]]] = {
        2: ("word1", "word2"),
        3: ("word1", "word2", "label"),
        4: ("word1", "lang1", "word2", "lang2"),
        5: ("word1", "lang1", "word2", "lang2", "label"),
    }

    def pair(self) -> WordPair:
        first, second, label = self.word1.strip(), self.word2.strip(), self.label.strip()
        return WordPair(first, second, label or first, (self.lang1.strip(), self.lang2.strip()))


def load(name: str) -> list[WordPair]:
    """The pairs of a lexicon by name; see the module.

    Raises:
        InputError: nothing of that name, with what to install; or a line that is no pair, named with its number.

    Example:
        pairs = load("freedict:eng-fra")
    """
    kind, _, rest = name.partition(":")
    if kind == "wordnet":
        return wordnet(local(rest) if rest else WORDNET)
    if kind == "freedict":
        return freedict(rest)
    if name == "abbreviations":
        return abbreviations()
    if not name.startswith("hf:") and not local(name).exists():
        raise InputError(f"no file {name}; give rows of word pairs, wordnet, freedict:eng-fra, or abbreviations")
    return pairs_of(rows.read(name, WordRow))


def pairs_of(found: Rows[WordRow]) -> list[WordPair]:
    """Rows as pairs.

    Raises:
        InputError: a row is no pair, named with its line; or there are none.
    """
    return [row.pair() for row in found.some("word pairs")]


def wordnet(folder: Path = WORDNET) -> list[WordPair]:
    """Synonyms of English WordNet, the most used synsets first: every two words of a synset that were seen in use.

    A synset's use is that of its least used word, as WordNet's texts with marked senses count it; words that never
    occur in them are left out. Spellings that differ in hyphens or case alone are one word.

    Raises:
        InputError: WordNet is not there, or damaged.
    """
    counts = _wordnet_counts(folder)
    used: list[tuple[int, WordPair]] = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in _lines(folder / f"data.{kind}", "wordnet-base"):
            if line.startswith(" "):  # the licence
                continue
            fields = line.split(" ")
            number = int(fields[3], 16)
            words: dict[str, tuple[str, int]] = {}
            for lemma, sense in zip(fields[4 : 4 + 2 * number : 2], fields[5 : 5 + 2 * number : 2], strict=True):
                word = re.sub(r"\(\w+\)$", "", lemma).replace("_", " ")
                times = counts[word.lower().replace(" ", "_"), int(fields[1]), int(sense, 16)]
                words.setdefault(re.sub(r"[^\w]", "", word).lower(), (word, times))
            shown = [(word, times) for word, times in words.values() if times]
            for i, (first, one) in enumerate(shown):
                for second, other in shown[i + 1 :]:
                    used.append((min(one, other), WordPair(first, second, f"{kind}{fields[0]}", ("en", "en"))))
    if not used:
        raise InputError(f"{folder} holds no WordNet synonyms; reinstall it: apt install wordnet-base")
    used.sort(key=lambda each: -each[0])
    return [pair for _, pair in used]


def _wordnet_counts(folder: Path) -> Counter[tuple[str, int, int]]:
    """How often a lemma was seen in a sense: by lemma, lexicographer file and number within it."""
    counts: Counter[tuple[str, int, int]] = Counter()
    for line in _lines(folder / "cntlist.rev", "wordnet-base"):
        key, _, times = line.split(" ")
        lemma, _, rest = key.partition("%")
        _, file, sense = rest.split(":")[:3]
        counts[lemma, int(file), int(sense)] += int(times)
    return counts


def freedict(languages: str, folder: Path = FREEDICT) -> list[WordPair]:
    """Translations of a FreeDict dictionary: each headword with the first translation of each of its meanings.

    Notes, pronunciations, grammar and examples are left out, and so are entries of more than three words.

    Args:
        languages: two codes of three letters, `eng-fra`.

    Raises:
        InputError: the dictionary is not there, or damaged.
    """
    source, _, target = languages.partition("-")
    path = folder / f"freedict-{languages}.dict.dz"
    package = f"dict-freedict-{languages}"
    if not path.is_file() or not path.with_name(f"freedict-{languages}.index").is_file():
        raise InputError(f"no FreeDict dictionary {path}; install one: apt install {package}")
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); reinstall it: apt install --reinstall {package}") from None
    pairs: dict[WordPair, None] = {}
    spans = {
        (_base64(fields[1]), _base64(fields[2]))
        for line in _lines(path.with_name(f"freedict-{languages}.index"), package)
        if len(fields := line.split("\t")) == 3 and not fields[0].startswith(("00database", "00-database"))
    }
    for offset, length in sorted(spans):
        head, *lines = text[offset : offset + length].decode("utf-8", "replace").splitlines()
        word = _plain(re.sub(r"/.*", "", head))
        if not word:
            continue
        for line in lines:
            # What is indented belongs to the meaning above it.
            meaning = "" if line.startswith(" ") else re.sub(r"^\d+\.\s*", "", line)
            if translation := _plain(re.split(r"[,;]", _unmarked(meaning))[0]):
                pairs[WordPair(word, translation, word, (source, target))] = None
    return list(pairs)


def _unmarked(text: str) -> str:
    """Without what stands in brackets."""
    return re.sub(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}", " ", text)


def _plain(text: str) -> str:
    """A word or a short phrase; empty where it is neither."""
    words = _unmarked(text).replace("\u2010", "-").split()
    return (
        " ".join(words)
        if 0 < len(words) <= 3 and all(re.fullmatch(r"[^\W\d_][\w'’.-]*", word) for word in words)
        else ""
    )


_DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def _base64(text: str) -> int:
    """A number as dictd writes it."""
    value = 0
    for character in text:
        value = value * 64 + _DIGITS[character]
    return value


def _lines(path: Path, package: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
    except FileNotFoundError:
        raise InputError(f"no file {path}; install it: apt install {package}") from None


def abbreviations(texts: Iterable[str] | None = None) -> list[WordPair]:
    """Abbreviations that texts spell out, "run length encoding (RLE)", with what they stand for, most frequent first.

    The letters of the abbreviation are the first letters of the words before it, an "of" or "and" not counted. One that
    is spelled out in several ways keeps the most frequent.

    Args:
        texts: `pydocs` by default.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for text in (document.text for document in corpora.load("pydocs")) if texts is None else texts:
        for match in re.finditer(r"\(([A-Z][A-Za-z]*[A-Z])\)", text):
            if long := _spelled_out(text[max(0, match.start() - 160) : match.start()], match[1]):
                found[match[1]][long] += 1
    best = {short: counts.most_common(1)[0] for short, counts in found.items()}
    ordered = sorted(best.items(), key=lambda item: (-item[1][1], item[0]))
    return [WordPair(short, long, short, ("en", "en")) for short, (long, _) in ordered]


def _spelled_out(before: str, short: str) -> str:
    """The words at the end of `before` whose first letters make `short`; empty where they do not."""
    if len(short) < 2 or not re.search(r"[A-Za-z]\s*$", before):
        return ""
    words = re.findall(r"[A-Za-z]+", re.split(r"[.;:()\n]\s", before)[-1])
    letters = list(short.lower())
    taken: list[str] = []
    while letters and words:
        word = words.pop().lower()
        if word[0] == letters[-1]:
            letters.pop()
        elif not taken or word not in ("of", "and", "the", "for", "in", "to", "on"):
            return ""
        taken.append(word)
    return "" if letters or len(taken) < 2 else " ".join(reversed(taken))


# What may be trained on


def without(pairs: Iterable[WordPair], words: Iterable[str]) -> tuple[list[WordPair], int]:
    """The pairs that hold none of the words, upper and lower case being the same; and how many were taken out.

    What a test asks about must not be trained on in any pair.
    """
    tested = {word.casefold() for word in words}
    everything = list(pairs)
    kept = [pair for pair in everything if not {pair.first.casefold(), pair.second.casefold()} & tested]
    return kept, len(everything) - len(kept)


def check_words(words: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """See that each word has a token.

    Raises:
        InputError: some have none.
    """
    asked = list(dict.fromkeys(words))
    if not asked:
        return
    ids = tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]
    if empty := [word for word, row in zip(asked, ids, strict=True) if not row]:
        raise InputError(f"{len(empty):,} words have no token, such as {empty[0]!r}; leave them out of the word list")
