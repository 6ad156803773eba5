"""A profile for readers: a dataset card as the Hugging Face hub takes it, and the same in a few lines.

Knows: profiles, filled dimensions, the hub's header. Does not know: how anything is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from broadsheet.console import InputError
from broadsheet.curate.cards.columns import EVALUATION, INSTRUCTION, PREFERENCE, PRETRAINING, TRADITIONAL
from broadsheet.curate.cards.records import CatalogueRecord, DatasetSize
from broadsheet.curate.cards.steps import QUALITY
from broadsheet.curate.datasets_survey import UNKNOWN, Filled, Profile

SECTIONS = {
    PRETRAINING: "Pre-training Corpora",
    INSTRUCTION: "Instruction Fine-tuning Datasets",
    PREFERENCE: "Preference Datasets",
    EVALUATION: "Evaluation Datasets",
    TRADITIONAL: "Traditional NLP Datasets",
}
_STEPS = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_LARGER = ((1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B"), (1e12, "100B<n<1T"))
_HEADER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_DECLARED = {"pretty_name": "name", "license": "license"}  # of a hub card's header


def declared_in(folder: Path) -> dict[str, str]:
    """What the card of a dataset's folder declares in its header: name and license; empty where there is none.

    Raises:
        InputError: the header cannot be read.
    """
    path = folder / "README.md"
    found = _HEADER.match(path.read_text("utf-8", "replace")) if path.is_file() else None
    if found is None:
        return {}
    try:
        told = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise InputError(
            f"the header of {path} is no YAML: {str(error).splitlines()[0]}; mend it, or move it"
        ) from None
    if not isinstance(told, Mapping):
        return {}
    values = {name: told.get(key) for key, name in _DECLARED.items()}
    return {
        name: " & ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values.items()
        if value
    }


def header(profile: Profile, filled: Sequence[Filled]) -> dict[str, Any]:
    """The hub's fields that are known: language, license, pretty_name, size_categories, task_categories."""
    values = {each.dimension.name: each.value for each in filled if each.value != UNKNOWN and each.how == "declared"}
    told: dict[str, Any] = {}
    if codes := profile.language.codes:
        told["language"] = list(codes)
    if "license" in values:
        licenses = [each.strip().lower() for each in values["license"].split("&")]
        told["license"] = licenses[0] if len(licenses) == 1 else licenses
    if "name" in values:
        told["pretty_name"] = values["name"]
    sizes = (*_STEPS, *_LARGER)
    told["size_categories"] = [next((name for most, name in sizes if profile.instances < most), "n>1T")]
    if profile.family in (PRETRAINING, INSTRUCTION):
        told["task_categories"] = ["text-generation"]
    return told


def card(profile: Profile, filled: Sequence[Filled]) -> str:
    """The card, as `README.md` on the hub: the header, the dimensions, what was measured beside them."""
    name = next((each.value for each in filled if each.dimension.number == 1 and each.value != UNKNOWN), profile.spec)
    lines = [
        "---", yaml.safe_dump(header(profile, filled), sort_keys=False, allow_unicode=True).strip(), "---", "",
        f"# {name}", "",
        "| | Dimension | Value | How it is known |", "|-:|:-|:-|:-|",
    ]  # fmt: skip
    for each in filled:
        how = f"{each.how}; {each.note}" if each.note else each.how
        lines.append(f"| {each.dimension.number} | {each.dimension.name} | {_cell(each.value)} | {_cell(how)} |")
    lines += ["", "## Measured", "", "| What | |", "|:-|:-|"]
    lines += [f"| {what} | {_cell(value)} |" for what, value in figures(profile)]
    lines += ["", "## Columns", "", "| Column | Values |", "|:-|:-|"]
    for column, kinds in profile.columns.items():
        told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        lines.append(f"| `{_cell(column)}` | {told} |")
    lines += [
        "", "The dimensions are those of [arXiv:2402.18041](https://arxiv.org/abs/2402.18041). What is measured was "
        "counted over all rows by `broadsheet profile`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def figures(profile: Profile) -> Iterator[tuple[str, str]]:
    """What was measured beside the dimensions: (what, value) pairs."""
    rows = max(1, profile.instances)
    instances = profile.table("instances")
    if list(instances) != ["all"]:
        yield "rows by split", ", ".join(f"{split} {count:,}" for split, count in instances.most_common())
    if profile.table("lengths"):
        low, middle, high = (f"{each:,.0f}" for each in profile.quantiles("lengths"))
        yield "characters of a row", f"median {middle} ({low} to {high}, 5th to 95th percentile)"
    yield "equal to an earlier row", _share(profile.exact, rows)
    if profile.near is not None:
        yield "nearly equal to an earlier row", f"{_share(profile.near, rows)}, by MinHash"
    held = instances["test"] + instances["dev"]
    if instances["train"] and held:
        yield "test and dev rows that train has", _share(profile.shared, held)
    if profile.overlap:
        found = profile.overlap
        short = f"; {found.short:,} are too short to look for" if found.short else ""
        told = f"{_share(found.held, found.items - found.short)} items, by {found.words} words in a row{short}"
        yield f"held of {found.benchmark}", told
    if empty := profile.total("empty"):
        yield "empty rows", _share(empty, rows)
    for reason, count in profile.table("unreadable").most_common():
        yield "rows that cannot be read", f"{count:,}: {reason}"
    for name in ("e-mail addresses", "public IP addresses"):
        counts = profile.table(name)
        yield name, f"{counts['hits']:,} in {_share(counts['documents'], rows)} rows"
    yield "of a row's characters or lines", "median (5th to 95th percentile)"
    for name in QUALITY:
        if shown := profile.quantiles(f"quality, {name}"):
            low, middle, high = (f"{100 * each:.3g}" for each in shown)
            yield name, f"{middle} % ({low} to {high})"


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({100 * count / max(1, of):.3g} %)"


def standing(profile: Profile, family: str, records: Iterable[CatalogueRecord]) -> str:
    """How the dataset's size stands beside a catalogue's of its family, told in the same unit; empty where none is."""
    own = (
        DatasetSize(profile.total("bytes"), "bytes")
        if family == PRETRAINING
        else DatasetSize(profile.instances, "instances")
    )
    sizes = [
        each.size for each in records if each.section[:1] == (SECTIONS[family],) and each.size and each.size.value > 0
    ]
    alike = [each.value for each in sizes if each.unit == own.unit]
    if not alike:
        return ""
    return f"larger than {sum(each < own.value for each in alike)} of the catalogue's {len(alike)} of its family"
