"""What the columns of a dataset tell of it: its family, how preferences are given, what is asked, what is labelled.

Knows: names and values of columns. Does not know: files, statistics.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

Row = Mapping[str, Any]
PRETRAINING, INSTRUCTION, PREFERENCE = "pre-training corpus", "instruction fine-tuning", "preference"
EVALUATION, TRADITIONAL = "evaluation", "traditional NLP"
FAMILIES = (PRETRAINING, INSTRUCTION, PREFERENCE, EVALUATION, TRADITIONAL)
_OPTIONS = ("choices", "options", "endings", "candidates", "mc1_targets")
_ANSWERS = ("answer", "answers", "answerkey", "label", "target", "gold")
_ASKED = ("instruction", "prompt", "messages", "conversations", "conversation", "question", "query", "inputs")
_ANSWERED = ("output", "response", "completion", "messages", "conversations", "conversation", "targets")
_RANKS = ("rank", "ranks", "ranking", "rankings")
_SCORES = ("score", "scores", "rating", "ratings", "reward")
_LABELLED = (
    "label", "labels", "class", "ner_tags", "tags", "entities", "spans", "relation", "relations", "summary",
    "highlights", "translation", "hypothesis", "sentence2", "answer", "answers",
)  # fmt: skip
_CATEGORY = ("category", "subject", "task", "topic")
_SUBCATEGORY = ("subcategory", "sub_category", "subtask", "subtopic")
_LICENSE = ("license", "licenses", "licence", "max_stars_repo_licenses", "repo_license")
_URL = ("url", "source_url", "link", "uri")
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9][A-Za-z0-9.+-]*)")
_LONGEST = 80  # characters of a label: what is longer is a text
SPLITS = ("all", "train", "dev", "test")
_SPLIT = re.compile(r"(?:^|[^a-z])(train(?:ing)?|dev(?:el(?:opment)?)?|valid(?:ation)?|val|test(?:ing)?)(?![a-z])")


def has(columns: Collection[str], names: Iterable[str]) -> bool:
    """Whether one of these columns is there, whatever its case."""
    return not {each.lower() for each in columns}.isdisjoint(names)


def family(columns: Collection[str]) -> str:
    """Which of the five families a dataset with these columns is of; what fits none is a pre-training corpus."""
    names = {each.lower() for each in columns}
    if preference(names):
        return PREFERENCE
    if has(names, _OPTIONS) and has(names, _ANSWERS):
        return EVALUATION
    if has(names, _ASKED) and has(names, _ANSWERED):
        return INSTRUCTION
    return TRADITIONAL if has(names, _LABELLED) else PRETRAINING


def preference(columns: Collection[str]) -> str:
    """`VO`, a vote between two; `SO`, an order of several; `SC`, scores; empty where no preference is given."""
    names = {each.lower() for each in columns}
    if {"chosen", "rejected"} <= names or (has(names, ("winner", "preferred")) and has(names, _ASKED)):
        return "VO"
    several = has(names, ("responses", "completions", "answers", "response", "completion", "output"))
    if not several or not has(names, _ASKED):
        return ""
    if has(names, _RANKS):
        return "SO"
    return "SC" if has(names, _SCORES) else ""


def question_type(columns: Collection[str]) -> str:
    """`OQ`, objective, where options are given to choose from; else unknown: empty."""
    return "OQ" if has(columns, _OPTIONS) and has(columns, _ANSWERS) else ""


def text_of(row: Row, text_field: str) -> str:
    """The text of a row: of its text field; where it has none, all of its texts, a line each, in their order."""
    own = row.get(text_field)
    return own if isinstance(own, str) else "\n".join(_texts(row))


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if name not in ("role", "id"):
            yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(each, str(key))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each, name)


def kind(value: Any) -> str:
    """What a value is: `text`, `number`, `boolean`, `list`, `object`, `null` or `bytes`."""
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (str, "text"), (int | float, "number"), (Mapping, "object"), (bytes, "bytes"))
    return next((name for of, name in kinds if isinstance(value, of)), "list")


def split_of(name: str, row: Row) -> str:
    """Which split a row is of: as its column `split` says, or the name of its file; `all` where neither does."""
    told = row.get("split")
    found = _SPLIT.search((told if isinstance(told, str) else name).lower())
    if found is None:
        return "all"
    return "train" if found[1].startswith("tr") else "test" if found[1].startswith("te") else "dev"


def labels(row: Row) -> Iterator[tuple[str, str]]:
    """(what, label) of a row: a `category` and `subcategory`, the `entity` and `relation` types it marks."""
    for name, value in row.items():
        low = name.lower()
        if low in _CATEGORY and _short(value):
            yield "category", value
        elif low in _SUBCATEGORY and _short(value):
            yield "subcategory", value
        elif low in ("entities", "spans", "ner_tags", "tags", "ner"):
            yield from {("entity", label) for label in _types(value)}
        elif low in ("relations", "relation"):
            yield from {("relation", label) for label in _types(value)}


def _short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST


def _types(value: Any) -> Iterator[str]:
    """Types that are marked: of objects with `label` or `type`, of tags (`B-PER`), of a text."""
    if isinstance(value, str):
        tag = value.removeprefix("B-").removeprefix("I-").removeprefix("E-").removeprefix("S-")
        if _short(tag) and tag != "O":
            yield tag
    elif isinstance(value, Mapping):
        yield from (each for key in ("label", "type") if isinstance(value.get(key), str) for each in _types(value[key]))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _types(each)


def licenses(row: Row, text: str) -> set[str]:
    """The licences that a row names: in a column, or by SPDX tags in its text."""
    told = [value for name, value in row.items() if name.lower() in _LICENSE]
    found = {each for value in told for each in (value if isinstance(value, list | tuple) else [value]) if _short(each)}
    return found | (set(_SPDX.findall(text)) if "SPDX-License-Identifier" in text else set())


def host(row: Row) -> str:
    """The host that a row's address names, without `www.`; empty where it has none."""
    told = next((row[name] for name in row if name.lower() in _URL and isinstance(row[name], str)), "")
    try:
        return (urlsplit(told).hostname or "").removeprefix("www.")
    except ValueError:
        return ""
