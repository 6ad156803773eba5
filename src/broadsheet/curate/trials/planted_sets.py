"""Small datasets whose languages, duplicates and overlap with a benchmark are known, from translated pages.

Knows: pages in several languages, a seed. Does not know: profiles, language identification.

Which language a passage is in is known from its edition: its lines share few runs of words with the
English one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.curate.minhash import grams, plain_words, simplified
from broadsheet.data.corpora import Document

_LINE = 60  # characters that a line of a passage has at least
_PASSAGE = 500  # characters that a passage has at least
_GRAM = 4  # words in a row, by which a line is like another
_ITEMS = 40  # of a benchmark
_SAME = {"nb": "no"}  # codes of fastText's 176


@dataclass(frozen=True)
class PlantedSet:
    """A dataset, and what is true of it.

    Args:
        number: of the set.
        rows: texts, in random order.
        benchmark: items, of which the dataset holds some.
        languages: the share of the text in each.
        duplicates: the share of rows that were copied from others, one in three to the letter.
        held: the share of the benchmark's items that rows hold.
    """

    number: int
    rows: tuple[str, ...]
    benchmark: tuple[str, ...]
    languages: Mapping[str, float]
    duplicates: float
    held: float

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Its rows and its benchmark as JSON lines, once."""
        paths = (folder / f"{self.number}.jsonl", folder / f"{self.number}-benchmark.jsonl")
        for path, texts in zip(paths, (self.rows, self.benchmark), strict=True):
            if not path.exists():
                with atomic_write(path) as file:
                    file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        return paths


def passages(documents: Iterable[Document]) -> dict[str, list[str]]:
    """By language, passages of pages that stand in several editions; each line stands in one passage alone.

    Args:
        documents: pages with `metadata["language"]`, as `de-DE`; one edition is English.

    Raises:
        InputError: they are not in several languages, or none is English.
    """
    editions: dict[str, list[str]] = {}
    for document in documents:
        language = str(document.metadata.get("language", "")).partition("-")[0]
        editions.setdefault(_SAME.get(language, language), []).append(document.text)
    english = {gram for line in _lines(editions.get("en", ())) for gram in _grams(line)}
    found = {}
    for language, texts in sorted(editions.items()):
        known = english if language != "en" else set()
        found[language] = list(_joined(line for line in _lines(texts) if not _like(line, known)))
    enough = {language: some for language, some in found.items() if len(some) >= 100}
    if "en" not in enough or len(enough) < 4:
        raise InputError(
            f"got {len(enough)} languages with 100 passages ({', '.join(enough) or 'none'}); expected pages with a "
            "field `language`, in English and three more, as resource:handbook/pages.jsonl has them"
        )
    return enough


def _lines(texts: Iterable[str]) -> list[str]:
    """The lines that are long enough, each once, whatever its numbers and signs."""
    found = {simplified(line): line.strip() for text in texts for line in text.splitlines()}
    return [line for line in found.values() if len(line) >= _LINE]


def _grams(line: str) -> list[bytes]:
    return grams(plain_words(line), _GRAM)


def _like(line: str, known: set[bytes]) -> bool:
    """Whether half of a line's runs of words are known."""
    own = _grams(line)
    return sum(gram in known for gram in own) * 2 > len(own)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        held.append(line)
        if sum(map(len, held)) >= _PASSAGE:
            yield "\n".join(held)
            held = []


def planted(found: Mapping[str, Sequence[str]], number: int, rows: int, seed: int) -> PlantedSet:
    """A dataset of one to four languages, with up to a third of copies, that holds some of a benchmark's items."""
    draw = random.Random(f"{seed} {number}")
    chosen = draw.sample(sorted(found), draw.randint(1, 4))
    weights = [draw.random() + 0.05 for _ in chosen]
    copies = round(draw.uniform(0, 0.33) * rows)
    names = draw.choices(chosen, weights, k=rows - copies)
    pools = {name: draw.sample(found[name], len(found[name])) for name in chosen}
    own = [(name, pools[name].pop()) for name in names if pools[name]]
    away = [(name, text) for name in chosen for text in pools[name]]
    held = round(draw.random() * _ITEMS)
    items = [_item(text, draw) for _, text in draw.sample(own, min(held, len(own)))]
    items += [_item(text, draw) for _, text in draw.sample(away, min(_ITEMS - held, len(away)))]
    copied = [draw.choice(own) for _ in range(copies)]
    whole = own + [(name, text if i % 3 == 0 else edited(text, draw)) for i, (name, text) in enumerate(copied)]
    draw.shuffle(whole)
    sizes: dict[str, int] = {}
    for name, text in whole:
        sizes[name] = sizes.get(name, 0) + len(text.encode())
    total = sum(sizes.values())
    return PlantedSet(
        number,
        tuple(text for _, text in whole),
        tuple(draw.sample(items, len(items))),
        {name: size / total for name, size in sizes.items()},
        copies / len(whole),
        held / len(items),
    )


def _item(text: str, draw: random.Random) -> str:
    """Part of a passage: a third of it or more, from anywhere."""
    length = draw.randint(len(text) // 3, len(text) // 2)
    begin = draw.randint(0, len(text) - length)
    return text[begin : begin + length]


def edited(text: str, draw: random.Random) -> str:
    """A copy with another beginning and end, as pages have that were taken over: a line before, a line after."""
    return f"{draw.randint(1, 12)}. {draw.randint(1900, 2026)}\n{text}\n— {draw.randint(100, 999)} —"
