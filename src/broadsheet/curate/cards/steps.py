"""What a pass over the rows of a dataset counts: sizes, languages, lengths, quality, personal data, labels, doublets.

Knows: rows, counts that ranks add up. Does not know: cards, dimensions.

Every figure is a sum of whole numbers over rows, so it is the same in any order and for any number of ranks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.formatters.pii import PIIFormatter
from datatrove.pipeline.stats import DocStats, LineStats

from broadsheet.cache import atomic_write
from broadsheet.console import quiet
from broadsheet.curate.cards import columns
from broadsheet.curate.files import PLACE, RankStatistics, parts
from broadsheet.curate.languages.lid import Languages
from broadsheet.curate.minhash import simplified
from broadsheet.data import corpora, pydocs
from broadsheet.data.sources import InvalidRow, Text, is_unicode, open_source

ROW, SPLIT, BAD = "row", "split", "bad"  # in a document's metadata
UNDETERMINED = "und"
LETTERS = 20  # of a text: with fewer, a language is not told
READ = 3_000  # characters of a text, from which its language is told
SURE = 0.5  # the score from which a text counts as of a language
QUALITY = {
    "digits": "digit_ratio",
    "capitals": "uppercase_ratio",
    "white space": "white_space_ratio",
    "signs": "non_alpha_digit_ratio",
    "lines that end a sentence": "lines_ending_with_terminal_mark_ratio",
    "lines of 30 characters or less": "short_line_ratio_chars_30",
    "repeated lines": "line_duplicates",
    "characters in repeated lines": "line_char_duplicates",
}
_RECORD = np.dtype([("exact", "<u8"), ("plain", "<u8"), ("split", "u1")])
Tables = dict[str, Counter[str]]


class RowReader(PipelineStep):
    """A rank's share of the rows of a dataset, those that cannot be read among them.

    A document's text is that of its row; `metadata` holds the `row`, its `split`, and for a row that is none the
    reason, `bad`.

    Args:
        spec: `pydocs`, a file, a folder, or `hf:…`.
        text_field: the field that holds the text, where there is one.
    """

    type = "📖 - READER"
    name = "rows"

    def __init__(self, spec: str, text_field: str = "text") -> None:
        super().__init__()
        self.spec, self.text_field = spec, text_field

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for place, (name, row) in enumerate(self._rows()):
            if place % world_size == rank:
                self.stat_update("documents")
                yield self._document(place, name, row)

    def _rows(self) -> Iterator[tuple[str, Any]]:
        with quiet():  # every rank opens it
            if pydocs.is_pydocs(self.spec):
                rows: Iterable[tuple[str, Any]] = (
                    (each.id, {self.text_field: each.text, "title": each.metadata["title"]})
                    for each in corpora.load(self.spec)
                )
            else:
                rows = ((place.id, row) for place, row in open_source(self.spec, documents=True).rows())
        yield from rows

    def _document(self, place: int, name: str, row: Any) -> Document:
        place_of_split = name
        if isinstance(row, Text) or pydocs.is_pydocs(self.spec):
            place_of_split = ""  # the name of a document is no name of a split
        if isinstance(row, Text):
            row = {self.text_field: str(row)}
        bad, text = "", ""
        if isinstance(row, InvalidRow):
            bad = row.reason
        elif not isinstance(row, Mapping):
            bad = "not a JSON object"
        elif not is_unicode(text := columns.text_of(row, self.text_field)):
            bad = "half a surrogate pair"
        if bad:
            return Document("", name, metadata={PLACE: place, BAD: bad})
        return Document(text, name, metadata={PLACE: place, ROW: row, SPLIT: columns.split_of(place_of_split, row)})


class CharacterStats(DocStats):
    """datatrove's ratios of kinds of characters, the same and many times faster: each character is looked at once.

    Without `elipsis_ratio` and `punctuation_ratio`, which look for strings.
    """

    def extract_stats(self, doc: Document) -> dict[str, int | float]:
        counts, length = Counter(doc.text), max(1, len(doc.text))
        digits = sum(n for each, n in counts.items() if each.isdigit())
        other = sum(n for each, n in counts.items() if not each.isalpha() and not each.isdigit())
        return {
            "length": len(doc.text),
            "white_space_ratio": sum(n for each, n in counts.items() if each.isspace()) / length,
            "non_alpha_digit_ratio": other / length,
            "digit_ratio": digits / length,
            "uppercase_ratio": sum(n for each, n in counts.items() if each.isupper()) / length,
        }


class Measure(RankStatistics):
    """Count what rows hold; those that cannot be read are counted, and dropped.

    Args:
        folder: for the ranks' files.
        tokenizer: counts tokens: called with a text, it gives a list of them; None: none are counted.
        lid: of languages; by default fastText's 176.
    """

    name = "measures"

    def __init__(self, folder: str | Path, tokenizer: Any = None, lid: Languages | None = None) -> None:
        super().__init__(folder)
        self.tokenizer = tokenizer
        self.lid = lid or Languages(k=1)
        self._quality = (CharacterStats(str(folder), []), LineStats(str(folder), groups_to_compute=[]))

    @cached_property
    def _personal(self) -> Mapping[str, Any]:
        made = PIIFormatter()
        return {"e-mail addresses": made.emails_replacer, "public IP addresses": made.ip_replacer}

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in super().run(data, rank, world_size):
            if BAD not in document.metadata:
                yield document

    def empty(self) -> Tables:
        return defaultdict(Counter)

    def note(self, found: Tables, document: Document) -> None:
        if reason := document.metadata.get(BAD):
            _count(found, "unreadable", reason)
            return
        text, row, split = (document.text, document.metadata[ROW], document.metadata[SPLIT])
        size = len(text.encode())
        _count(found, "instances", split)
        _count(found, "bytes", split, size)
        _count(found, "characters", split, len(text))
        _count(found, "lengths", str(len(text)))
        if self.tokenizer is not None:
            _count(found, "tokens", split, len(self.tokenizer(text)))
        for name, value in row.items():
            _count(found, "columns", f"{name}: {columns.kind(value)}")
        for what, label in columns.labels(row):
            _count(found, what, label)
        for license in columns.licenses(row, text):
            _count(found, "licenses", license)
        if host := columns.host(row):
            _count(found, "hosts", host)
        if not text.strip():
            _count(found, "empty", split)
            return
        language = self._language(text)
        _count(found, "languages", language)
        _count(found, "language bytes", language, size)
        self._figures(found, text, document)

    def _language(self, text: str) -> str:
        beginning = text[:READ]
        if sum(map(str.isalpha, beginning)) < LETTERS:
            return UNDETERMINED
        label, score = self.lid.best([beginning])[0]
        return label if score >= SURE else UNDETERMINED

    def _figures(self, found: Tables, text: str, document: Document) -> None:
        told = {name: value for step in self._quality for name, value in step.extract_stats(document).items()}
        for name, stat in QUALITY.items():
            _count(found, f"quality, {name}", f"{told[stat]:.3f}")
        for name, replacer in self._personal.items():
            if ("@" if name.startswith("e") else ".") not in text:
                continue
            hits = [each[0] for each in replacer.regex.finditer(text)]
            hits = [each for each in hits if replacer.validator is None or replacer.validator(each)]
            if hits:
                _count(found, name, "hits", len(hits))
                _count(found, name, "documents")


def _count(found: Tables, table: str, key: str, value: int = 1) -> None:
    found[table][key] += value


def added(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> Tables:
    """The sums of tables: of ranks, or of datasets that share no row."""
    found: Tables = {}
    for each in tables:
        for name, counts in each.items():
            found.setdefault(name, Counter()).update(counts)
    return {name: Counter(dict(sorted(found[name].items()))) for name in sorted(found)}


class Fingerprints(PipelineStep):
    """Keep 16 bytes of each text, so that equal ones are found: `<rank>.npy`. Documents pass through.

    Args:
        folder: for the ranks' files.
    """

    type = "📊 - STATS"
    name = "fingerprints"

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        rows = []
        for document in data:
            text, split = document.text, columns.SPLITS.index(document.metadata[SPLIT])
            plain = 0 if document.metadata[SPLIT] == "all" else xxhash.xxh64_intdigest(simplified(text))
            rows.append((xxhash.xxh64_intdigest(text), plain, split))
            self.stat_update("total")
            yield document
        with atomic_write(self.folder / f"{rank:05d}.npy", "wb") as file:
            np.save(file, np.array(rows, _RECORD))


def doublets(folder: Path) -> dict[str, int]:
    """What the fingerprints of all ranks tell.

    Returns:
        `exact`: documents whose text is that of an earlier one, to the letter. `shared`: documents of the splits test
        and dev whose words train has as one document too, whatever case, signs and numbers.
    """
    found = np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    train, dev, test = (found["split"] == columns.SPLITS.index(each) for each in ("train", "dev", "test"))
    asked = (dev | test) & (found["plain"] != xxhash.xxh64_intdigest(""))
    shared = np.isin(found["plain"][asked], found["plain"][train])
    return {"exact": len(found) - len(np.unique(found["exact"])), "shared": int(shared.sum())}


def tables_of(folder: Path, ranks: int) -> Tables:
    """What `Measure` found, over all ranks."""
    return added(parts(folder, ranks))
