"""Datasets for Large Language Models: A Comprehensive Survey (arXiv:2402.18041): 20 dimensions that describe a dataset.

Knows: the dimensions, which are measured and from what. Does not know: passes over files, cards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from broadsheet.console import InputError
from broadsheet.curate.cards import columns
from broadsheet.curate.cards.columns import EVALUATION, FAMILIES, INSTRUCTION, PREFERENCE, PRETRAINING, TRADITIONAL
from broadsheet.curate.cards.overlap import WORDS, HeldItems
from broadsheet.curate.cards.records import DatasetSize, Language
from broadsheet.curate.cards.steps import QUALITY, UNDETERMINED
from broadsheet.curate.languages.thresholds import ValueCounts

How = Literal["measured", "declared", "unknown"]
UNKNOWN = "unknown"
_MADE = (PRETRAINING, INSTRUCTION, PREFERENCE, EVALUATION)  # families that tell how a dataset was made
_SHOWN = 12  # names of a list


@dataclass(frozen=True)
class Dimension:
    """One of the survey's dimensions.

    Args:
        number: in the survey, from 1.
        name: by which a value is declared.
        families: of datasets that it describes.
        measured: whether rows tell it; else it is declared, or unknown.
        partly: rows tell what they name of it, which is not the whole: what is declared goes before.
    """

    number: int
    name: str
    families: tuple[str, ...] = FAMILIES
    measured: bool = False
    partly: bool = False


DIMENSIONS = (
    Dimension(1, "name"),
    Dimension(2, "publisher"),
    Dimension(3, "release time"),
    Dimension(4, "size", measured=True),
    Dimension(5, "public", _MADE),
    Dimension(6, "license", measured=True, partly=True),
    Dimension(7, "language", measured=True),
    Dimension(8, "construction method", _MADE),
    Dimension(9, "category", (PRETRAINING,)),
    Dimension(10, "source", (PRETRAINING, INSTRUCTION, PREFERENCE), measured=True, partly=True),
    Dimension(11, "domain", (PRETRAINING, INSTRUCTION, PREFERENCE)),
    Dimension(12, "instruction category", (INSTRUCTION, PREFERENCE)),
    Dimension(13, "preference evaluation method", (PREFERENCE,), measured=True),
    Dimension(14, "question type", (EVALUATION,), measured=True),
    Dimension(15, "evaluation method", (EVALUATION,), measured=True),
    Dimension(16, "focus", (EVALUATION,)),
    Dimension(17, "numbers of evaluation categories", (EVALUATION,), measured=True),
    Dimension(18, "evaluation category", (EVALUATION,), measured=True),
    Dimension(19, "number of entity categories", (TRADITIONAL,), measured=True),
    Dimension(20, "number of relationship categories", (TRADITIONAL,), measured=True),
)
NAMES = tuple(each.name for each in DIMENSIONS)


@dataclass(frozen=True)
class Filled:
    """A dimension of one dataset.

    Args:
        dimension: which.
        value: what is known; `unknown` where nothing is.
        how: it is known.
        note: what else there is to know of it.
    """

    dimension: Dimension
    value: str
    how: How
    note: str = ""


@dataclass(frozen=True)
class Profile:
    """What was counted in a dataset; all figures are sums over rows, or follow from such.

    Args:
        spec: the dataset, as it was named.
        tables: of counts, as `cards.steps.Measure` makes them.
        exact: documents whose text is that of an earlier one, to the letter.
        near: documents that MinHash finds nearly equal to an earlier one, those included; None: not looked for.
        shared: documents of test and dev whose words train has.
        least: the share of the text from which a language counts.
        tokenizer: that counted tokens; empty: none did.
        overlap: with a benchmark, where one was named.
    """

    spec: str
    tables: Mapping[str, Mapping[str, int]]
    exact: int
    near: int | None
    shared: int
    least: float
    tokenizer: str = ""
    overlap: HeldItems | None = None

    def table(self, name: str) -> Counter[str]:
        """Counts by key; empty where there are none."""
        return Counter(self.tables.get(name, {}))

    def total(self, name: str) -> int:
        """The sum of a table."""
        return sum(self.table(name).values())

    @property
    def instances(self) -> int:
        """Rows that could be read."""
        return self.total("instances")

    @property
    def columns(self) -> dict[str, dict[str, int]]:
        """By column, how many rows have which kind of value there."""
        found: dict[str, dict[str, int]] = {}
        for key, count in self.tables.get("columns", {}).items():
            name, _, kind = key.rpartition(": ")
            found.setdefault(name, {})[kind] = count
        return found

    @property
    def family(self) -> str:
        """Which of the five families its columns make it."""
        return columns.family(self.columns)

    @property
    def languages(self) -> dict[str, float]:
        """The share of the text that is in each language, the largest first; `und` where that is not sure."""
        sizes = self.table("language bytes")
        return {code: count / sizes.total() for code, count in sizes.most_common()}

    @property
    def language(self) -> Language:
        """Those with `least` of the text that is in a language for sure: what is below may be noise."""
        sure = self.table("language bytes")
        del sure[UNDETERMINED]
        codes = tuple(code for code, count in sure.most_common() if count >= self.least * sure.total())
        return Language(codes, len(codes) > 1, len(codes))

    def quantiles(self, name: str, shares: tuple[float, ...] = (0.05, 0.5, 0.95)) -> list[float]:
        """Of `lengths`, or of a figure of quality (`quality, digits`), over documents; none where there are none."""
        counts = self.tables.get(name)
        return [ValueCounts.counted(counts).quantile(share) for share in shares] if counts else []

    def as_json(self) -> dict[str, Any]:
        """JSON values: figures, and the tables they come from."""
        figures: dict[str, Any] = {
            "data": self.spec,
            "family": self.family,
            "instances": self.instances,
            "bytes": self.total("bytes"),
            "characters": self.total("characters"),
            "tokens": self.total("tokens") if self.tokenizer else None,
            "tokenizer": self.tokenizer or None,
            "exact duplicates": self.exact,
            "near duplicates": self.near,
            "held-out rows that train has": self.shared,
            "languages": {code: round(share, 6) for code, share in self.languages.items()},
            "lengths": self.quantiles("lengths"),
            "quality": {name: self.quantiles(f"quality, {name}") for name in QUALITY},
            "unreadable": self.total("unreadable"),
            "columns": self.columns,
        }
        if self.overlap:
            figures["overlap"] = {**vars(self.overlap), "share": round(self.overlap.share, 6)}
        return {**figures, "tables": {name: dict(counts) for name, counts in self.tables.items() if name != "columns"}}


@dataclass
class Profiler:
    """Describes a dataset by the survey's 20 dimensions: what rows tell is measured, the rest declared, or unknown.

    Use when you publish a dataset or are about to train on one: its card is filled from its rows, not from memory.

    Each dimension says how it is known. Size, languages, licences seen, hosts, how preferences are given and which
    labels there are come from the rows; nobody guesses them. What rows do not tell, such as who published it, is
    `unknown` until it is declared. Beside the dimensions: lengths, quality figures of datatrove, personal data,
    exact and near duplicates, what train shares with test, and what a benchmark shares with the data.

    All figures are sums over rows: the same in any order, and for any number of ranks.

    Inputs: any rows, by name. `pydocs`, a file or folder (JSONL, Parquet, CSV, TSV, text), or `hf:org/name:split`.
    Relation: datatrove's statistics (`DocStats`, `LineStats`) are the quality figures; near duplicates are those of
        `fineweb2`. A `datasets` viewer shows lengths and missing values, not languages, duplicates or overlap.
    Source: arXiv:2402.18041, Sec. 2 to 6 (dimensions) and the catalogue lmmlzn/Awesome-LLMs-Datasets.

    Args:
        least: the share of the text from which a language counts; below it may be noise.
        near: look for near duplicates by MinHash.
        words: in a row, by which an item of a benchmark is known.

    Example:
        from broadsheet.curate import Profiler

        profiler = Profiler()
        profile = profiler.measure("pydocs:stdlib")
        for each in profiler.fill(profile, {"license": "PSF-2.0"}):
            print(each.dimension.name, each.value, each.how)
    """

    paper: ClassVar[str] = "datasets_survey"

    least: float = 0.05
    near: bool = True
    words: int = WORDS

    def __post_init__(self) -> None:
        if not 0 < self.least < 1 or self.words < 1:
            raise InputError(f"got least {self.least} and words {self.words}; expected a share, and 1 or more")

    def measure(
        self,
        data: str,
        folder: Path | None = None,
        *,
        benchmark: str | None = None,
        tokenizer: str | None = None,
        text_field: str = "text",
        tasks: int = 1,
        workers: int = 1,
    ) -> Profile:
        """Count what a dataset holds, in one pass over its rows.

        Args:
            data: by name, as of `broadsheet.data.sources`; or `pydocs`.
            folder: to work in, where a run that was cut off resumes; by default a temporary one.
            benchmark: whose items are looked for in the data.
            tokenizer: of this model, counts tokens.
            text_field: the field that holds a row's text; where it is missing, all texts of the row are its text.
            tasks, workers: parts that it is read in, and processes at once.

        Raises:
            InputError: it cannot be opened, or holds no row that can be read.
        """
        from broadsheet.curate.cards.passes import measured

        if folder is None:
            with TemporaryDirectory() as temporary:
                return self.measure(
                    data, Path(temporary), benchmark=benchmark, tokenizer=tokenizer, text_field=text_field,
                    tasks=tasks, workers=workers,
                )  # fmt: skip
        found = measured(
            data, folder, near=self.near, benchmark=benchmark, words=self.words, tokenizer=tokenizer,
            text_field=text_field, tasks=tasks, workers=workers,
        )  # fmt: skip
        return Profile(data, least=self.least, tokenizer=tokenizer or "", **found)

    def check(self, declared: Mapping[str, str], family: str = "") -> None:
        """Refuse names that `fill` would refuse, before anything is measured.

        Raises:
            InputError: no dimension, or no family, of that name.
        """
        for name in declared:
            if name not in NAMES:
                raise InputError(f"there is no dimension {name!r}; expected one of {', '.join(NAMES)}")
        if family and family not in FAMILIES:
            raise InputError(f"there is no family {family!r}; expected one of {', '.join(FAMILIES)}")

    def fill(self, profile: Profile, declared: Mapping[str, str] | None = None, family: str = "") -> list[Filled]:
        """The dimensions that describe datasets of the family, in the survey's order.

        Args:
            profile: what was measured.
            declared: values by the names of dimensions. What is measured stands, and a declared value that differs is
                told in the note; but rows name licenses and hosts in part only, so there what is declared stands.
            family: the dataset's, where its columns do not tell it rightly.

        Raises:
            InputError: no dimension, or no family, of that name.
        """
        declared = declared or {}
        self.check(declared, family)
        family = family or profile.family
        found = []
        for dimension in DIMENSIONS:
            if family in dimension.families:
                told = declared.get(dimension.name, "")
                value, note = _measured(dimension, profile, family) if dimension.measured else ("", "")
                found.append(_filled(dimension, value, note, told))
        return found


def _filled(dimension: Dimension, value: str, note: str, declared: str) -> Filled:
    if value and dimension.partly and declared:
        return Filled(dimension, declared, "declared", f"rows name {value}")
    if value:
        if declared and declared != value:
            note = "; ".join(filter(None, [note, f"declared: {declared}"]))
        return Filled(dimension, value, "measured", note)
    return Filled(dimension, declared or UNKNOWN, "declared" if declared else "unknown", note)


def _measured(dimension: Dimension, profile: Profile, family: str) -> tuple[str, str]:
    """What rows tell of a dimension, and a note; an empty value where they do not."""
    match dimension.name:
        case "size":
            return _size(profile, family)
        case "license":
            seen = profile.table("licenses")
            return _listed(seen), "named in rows: not of the whole" if seen else ""
        case "language":
            return _language(profile)
        case "source":
            hosts = profile.table("hosts")
            return _listed(hosts), f"{len(hosts):,} hosts" if hosts else ""
        case "preference evaluation method":
            return columns.preference(profile.columns), "who judged, people (-H) or a model (-M), rows do not tell"
        case "question type":
            return columns.question_type(profile.columns), ""
        case "evaluation method":
            by_code = columns.question_type(profile.columns)
            return ("CE", "an option is right or wrong") if by_code else ("", "")
        case "numbers of evaluation categories":
            whole, below = (len(profile.table(name)) for name in ("category", "subcategory"))
            return (f"{whole}/{below or '-'}", "") if whole else ("", "")
        case "evaluation category":
            return _listed(profile.table("category")), ""
        case "number of entity categories":
            return _number(profile.table("entity"))
        case "number of relationship categories":
            return _number(profile.table("relation"))
    raise InputError(f"the dimension {dimension.name} is not measured")


def _size(profile: Profile, family: str) -> tuple[str, str]:
    """Bytes and tokens of a corpus, rows of the rest, by split where there are any. Units are not converted."""
    instances, size = profile.table("instances"), _rounded(profile.total("bytes"), "bytes")
    tokens = f"{_rounded(profile.total('tokens'), 'tokens')} of {profile.tokenizer}" if profile.tokenizer else ""
    if family == TRADITIONAL:
        told = [f"{instances[each]:,}" if each in instances else "-" for each in ("train", "dev", "test")]
        return "/".join([*told, f"{instances.total():,}"]), f"train/dev/test/all; {size}"
    if family == PRETRAINING:
        return size, ", ".join(filter(None, [tokens, f"{instances.total():,} documents"]))
    return f"{instances.total():,} instances", ", ".join(filter(None, [size, tokens]))


def _rounded(value: float, unit: str) -> str:
    """A size to three digits, whole numbers below a million as they are."""
    return str(DatasetSize(float(value) if unit != "bytes" and value < 1e6 else float(f"{value:.3g}"), unit))


def _language(profile: Profile) -> tuple[str, str]:
    found = profile.language
    shares = [f"{code} {share:.1%}" for code, share in list(profile.languages.items())[:5]]
    note = f"{', '.join(shares)} of the text; one counts from {profile.least:.0%} on".replace("%", " %")
    if not found.codes:
        return "", note if profile.languages else ""
    told = f"Multi ({found.count})" if found.multilingual else str(found)
    return told, note


def _listed(counts: Counter[str]) -> str:
    """The most frequent keys, those alike in number by name."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _number(counts: Counter[str]) -> tuple[str, str]:
    return (str(len(counts)), _listed(counts)) if counts else ("", "")
