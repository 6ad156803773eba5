"""Records of a catalogue of datasets, as the survey's catalogue writes them: read, written, and found by words.

Knows: the catalogue's lines, its sizes and languages. Does not know: any data.

A record is a line `- **NAME  2020-7 | All | EN | CI | [Paper](…) | [Dataset](…)**`, and below it lines `  - Field: …`.
Those of traditional tasks say neither whether they are public nor how they were made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from broadsheet.console import InputError

CATALOGUE = Path(__file__).with_name("catalogue.jsonl")
PUBLIC = ("All", "Partial", "Not")
CONSTRUCTIONS = ("HG", "MC", "CI")  # by people, by models, collected and improved
UNKNOWN = "-"
_HEAD = re.compile(r"-\s+\*\*\s*(?P<name>.+?)\s*(?<=\s)(?P<released>\d{4}(?:-(?:\d{1,2}|X))?|-)\s*(?:\||$)(?P<rest>.*)")
_LINK = re.compile(r"\[(?P<kind>[^\]]+)\]\s*(?:\((?P<url>[^)]*)\)|(?P<bare>\S+))?")
_FIELD = re.compile(r"\s+-\s*(?P<name>[^:]+?)\s*:\s*(?P<value>.*)")
_SECTION = re.compile(r"#+\s*(?P<title>.+?)\s*$")
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15}
_SIZE = re.compile(
    r"(?P<number>\d[\d,]*(?:\.\d+)?|\.\d+)\s*(?P<scale>[kKMBGTP]?)(?:(?P<bytes>B)\b|\+?\s*(?P<unit>[A-Za-z].*)?)$"
)
_MULTI = re.compile(r"Multi(?:\s*\(\s*(?P<count>\d+)\s*\))?")


@dataclass(frozen=True)
class DatasetSize:
    """How large a dataset is. Units are never converted into each other: bytes are not tokens.

    Args:
        value: in units; prefixes are decimal (1 KB is 1,000 bytes).
        unit: `bytes`, `tokens`, `instances`, or what a catalogue counts besides (`files`, `datasets`).
    """

    value: float
    unit: str

    def __str__(self) -> str:
        names = ("", "K", "M", "G" if self.unit == "bytes" else "B", "T")
        name = max((each for each in names if _SCALES[each] <= self.value), key=_SCALES.__getitem__, default="")
        if self.unit == "bytes":
            return f"{self.value / _SCALES[name]:.15g} {name}B"
        whole = self.value < 1e6 and self.value == int(self.value)
        return f"{self.value:,.0f} {self.unit}" if whole else f"{self.value / _SCALES[name]:.15g}{name} {self.unit}"


def parse_size(text: str) -> DatasetSize | None:
    """A size as catalogues write it: `2.5 TB`, `30.4 T Tokens`, `110K instances`, `364K`; None for `-`.

    Raises:
        InputError: it is none.
    """
    text = text.strip()
    if text in ("", UNKNOWN):
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"got the size {text[:60]!r}; expected a number and a unit, as in 2.5 TB or 110K instances")
    value = float(found["number"].replace(",", "")) * _SCALES[found["scale"]]
    if found["bytes"] or (found["scale"] == "B" and found["unit"] is None and not found["bytes"]):
        return DatasetSize(value if found["bytes"] else value / _SCALES["B"], "bytes")
    unit = (found["unit"] or "instances").strip().lower()
    return DatasetSize(value, {"instance": "instances", "token": "tokens", "byte": "bytes"}.get(unit, unit))


@dataclass(frozen=True)
class Language:
    """The languages of a dataset, as catalogues write them.

    Args:
        codes: ISO 639-1, in small letters; none where only their number is told.
        multilingual: in more than one.
        count: how many; None where it is not told.
        programming: code beside, or alone: the catalogue's `PL`, which is no Polish.
    """

    codes: tuple[str, ...]
    multilingual: bool
    count: int | None
    programming: bool = False

    def __str__(self) -> str:
        told = [code.upper() for code in self.codes]
        if not told and self.multilingual:
            told = ["Multi" if self.count is None else f"Multi ({self.count})"]
        return " & ".join([*told, *["PL"] * self.programming]) or UNKNOWN


def parse_language(text: str) -> Language:
    """Languages as catalogues write them: `EN`, `EN & ZH`, `Multi (100)`, `Multi & PL`."""
    told = [each.strip() for each in text.split("&") if each.strip() not in ("", UNKNOWN)]
    multi = next(filter(None, map(_MULTI.fullmatch, told)), None)
    codes = tuple(each.lower() for each in told if each != "PL" and not _MULTI.fullmatch(each))
    if multi is None:
        return Language(codes, len(codes) > 1, len(codes), "PL" in told)
    return Language(codes, True, int(multi["count"]) if multi["count"] else None, "PL" in told)


@dataclass(frozen=True)
class CatalogueRecord:
    """A dataset in a catalogue.

    Args:
        name: of the dataset.
        released: `2020-7`; `2009-X` where the month is not known, `-` where nothing is.
        language: as written; `languages` reads it.
        public: `All`, `Partial` or `Not`; empty where it is not told.
        construction: `HG`, `MC`, `CI`, as listed; none where it is not told.
        links: by what they lead to.
        fields: the lines below, by name.
        section: titles of the parts of the catalogue that it stands in, from the outside in.
    """

    name: str
    released: str
    language: str = UNKNOWN
    public: str = ""
    construction: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    section: tuple[str, ...] = ()

    @property
    def languages(self) -> Language:
        """Those of `language`."""
        return parse_language(self.language)

    @property
    def size(self) -> DatasetSize | None:
        """Of `Size`, or the last of `Train/Dev/Test/All Size`; None where it is not told, or is no size."""
        told = self.fields.get("Size") or self.fields.get("Train/Dev/Test/All Size", UNKNOWN).rpartition("/")[2]
        try:
            return parse_size(told)
        except InputError:
            return None

    @property
    def license(self) -> str:
        """As written; `-` where it is not known."""
        return self.fields.get("License", UNKNOWN)

    def render(self) -> str:
        """The record as the catalogue writes it; without its section."""
        cells = [self.public, self.language, " & ".join(self.construction)]
        cells = [each for each in cells if each]
        cells += [f"[{kind}]({url})" if url else f"[{kind}]" for kind, url in self.links.items()]
        lines = [f"- **{self.name}  {self.released}" + "".join(f" | {each}" for each in cells) + "**"]
        return "\n".join([*lines, *(f"  - {name}: {value}" for name, value in self.fields.items())])


def parse_record(text: str, section: Sequence[str] = ()) -> CatalogueRecord:
    """A record of the catalogue.

    Raises:
        InputError: it is none.
    """
    head, fields = "", {}
    for line in text.strip("\n").splitlines():
        found = _FIELD.fullmatch(line)
        if found and head:
            fields[found["name"]] = found["value"].strip()
        elif line.strip():
            head = f"{head} {line.strip()}" if head else line.strip()  # a head may go over two lines
    found = _HEAD.fullmatch(head.rstrip().removesuffix("**"))
    if found is None:
        raise InputError(f"got {text[:60]!r}; expected a record, as in '- **NAME  2020-7 | All | EN | CI**'")
    told = _cells(found["rest"])
    return CatalogueRecord(found["name"], found["released"], **told, fields=fields, section=tuple(section))


def _cells(rest: str) -> dict[str, Any]:
    """What stands between the date and the fields: what is no link, and no word of a list, is the language."""
    told: dict[str, Any] = {"links": {}}
    for cell in map(str.strip, rest.split("|")):
        made = tuple(each.strip() for each in cell.split("&"))
        if link := _LINK.match(cell):
            told["links"][link["kind"]] = (link["url"] or link["bare"] or "").strip()
        elif cell in PUBLIC and "public" not in told:
            told["public"] = cell
        elif cell and set(made) <= set(CONSTRUCTIONS):
            told["construction"] = made
        elif cell and "language" not in told:
            told["language"] = cell
    return told


def parse_catalogue(text: str) -> Iterator[CatalogueRecord]:
    """The records of a catalogue's page, each with the headings above it; undated lists and prose are passed over."""
    section: list[str] = []
    block: list[str] = []
    for line in [*text.splitlines(), "#"]:
        opens = line.startswith("- **")
        if block and (opens or line.startswith("#") or not line.strip()):
            with suppress(InputError):
                yield parse_record("\n".join(block), section)
            block = []
        if opens or (block and line.strip()):
            block.append(line)
        elif heading := _SECTION.fullmatch(line):
            depth = len(line) - len(line.lstrip("#"))
            section = [*section[: depth - 2], heading["title"]] if depth > 1 else []


# The catalogue that ships


def catalogue(path: Path | None = None) -> tuple[CatalogueRecord, ...]:
    """All records: of the survey's catalogue by default, or of a page of that form.

    Raises:
        InputError: the file is not there, or holds no records.
    """
    if path is None:
        return _shipped()
    try:
        found = tuple(parse_catalogue(path.read_text("utf-8")))
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise InputError(f"{path} holds no records; expected lines as '- **NAME  2020-7 | All | EN | CI**'")
    return found


@cache
def _shipped() -> tuple[CatalogueRecord, ...]:
    return tuple(_record(json.loads(line)) for line in CATALOGUE.read_text("utf-8").splitlines())


def _record(row: dict[str, Any]) -> CatalogueRecord:
    lists: dict[str, Any] = {name: tuple(row[name]) for name in ("construction", "section") if name in row}
    return CatalogueRecord(**row | lists)


def as_row(record: CatalogueRecord) -> dict[str, Any]:
    """A record as JSON values, without what is empty."""
    row = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(record).items()}
    return {name: value for name, value in row.items() if value}


def search(records: Iterable[CatalogueRecord], query: str) -> list[CatalogueRecord]:
    """The records that hold each word of a query; those with more of them in the name first, then the newest."""
    words = query.casefold().split()
    found = []
    for record in records:
        name = record.name.casefold()
        told = " ".join([name, record.language, record.license, *record.section, *record.construction])
        told = f"{told} {' '.join(record.fields.values())}".casefold()
        if all(word in told for word in words):
            found.append((-sum(word in name for word in words), [-each for each in _date(record)], record))
    return [record for *_, record in sorted(found, key=lambda each: (each[0], each[1], each[2].name.casefold()))]


def _date(record: CatalogueRecord) -> tuple[int, int]:
    year, _, month = record.released.partition("-")
    return (int(year) if year.isdigit() else 0, int(month) if month.isdigit() else 0)
