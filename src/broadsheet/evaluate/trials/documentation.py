"""LooGLE's four tasks asked of documentation that is installed here, for a trial without a download.

A document is the docstrings of one module in the order of its source, each under the name it belongs to. These are not
LooGLE's documents and questions, which annotators made from articles, papers and scripts: they are its tasks, made by
rule, so that every gold answer is known to be right and to stand where it is said to stand.

Knows: rows of `pydocs`, questions. Does not know: models, scores.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from broadsheet.console import InputError
from broadsheet.data.pydocs import split_summary
from broadsheet.evaluate.loogle import Question

if TYPE_CHECKING:
    from broadsheet.data.corpora import Document

_CHARACTERS_PER_TOKEN = 4  # of English documentation, roughly; the prompts themselves are counted in tokens
_NUMERALS = ("I", "II", "III", "IV")
_NAME = re.compile(r"[A-Za-z]\w{3,}(\.[A-Za-z]\w*)?")


@dataclass(frozen=True)
class DocumentedEntry:
    """A function or class: its name within the module, its docstring, and that one's first paragraph on one line."""

    name: str
    text: str
    summary: str


@dataclass(frozen=True)
class Module:
    """A module's documentation; `summary` is the first paragraph of its own docstring, which the entries leave out."""

    name: str
    summary: str
    entries: tuple[DocumentedEntry, ...]

    @property
    def text(self) -> str:
        """The document that is asked about."""
        return "\n\n".join(f"{entry.name}\n{entry.text}" for entry in self.entries)


def questions(
    documents: Iterable[Document], *, n_documents: int, per_document: int, tokens: int, seed: int
) -> list[Question]:
    """Questions on the modules of `pydocs`, document by document.

    Of ten questions on a document five are short-dependency QA (how does the text describe a function, or which one is
    so described), three cloze, one timeline reorder (in which order does the text come to four functions) and one a
    summary. Of other numbers three in eight short-dependency questions are cloze; a reorder is asked from four
    questions on, a summary from eight.

    Args:
        documents: the corpus `pydocs`, whose rows stand module by module.
        n_documents: modules, each from another package.
        per_document: questions on each.
        tokens: length of a document, roughly.
        seed: of the choice of modules and of what is asked.

    Raises:
        InputError: the corpus has no such modules.
    """
    chosen: dict[str, Module] = {}
    candidates = list(_modules(documents, tokens * _CHARACTERS_PER_TOKEN, max(8, per_document)))
    generator = random.Random(seed)
    generator.shuffle(candidates)
    for module in candidates:
        chosen.setdefault(module.name.partition(".")[0], module)
    if len(chosen) < n_documents:
        raise InputError(
            f"{len(chosen)} packages have a module with some {tokens:,} tokens of docstrings; expected {n_documents}: "
            "give fewer --documents or --tokens"
        )
    modules = list(chosen.values())[:n_documents]
    return [question for module in modules for question in _ask(module, per_document, generator)]


def _modules(documents: Iterable[Document], size: int, n_entries: int) -> Iterator[Module]:
    """Modules with a summary, documentation of `size` characters, and enough entries that can be asked about."""
    rows = (row for row in documents if row.metadata["kind"] in ("module", "class", "function"))
    for name, group in groupby(rows, key=lambda row: row.metadata["module"]):
        summary, entries, length = "", [], 0
        for row in group:
            if row.metadata["kind"] == "module":
                summary = split_summary(row.text)[0]
            elif length < size and "<locals>" not in row.metadata["title"]:
                entries.append(
                    DocumentedEntry(row.metadata["title"].removeprefix(f"{name}."), row.text, row.metadata["summary"])
                )
                length += len(row.text) + len(entries[-1].name) + 3
        module = Module(name, summary, tuple(entries))
        if length >= size and 5 <= len(summary.split()) <= 60 and len(_telling(module)) >= n_entries:
            yield module


def _telling(module: Module) -> list[DocumentedEntry]:
    """Entries whose name and summary stand for each other: both are found once, and neither gives the other away."""
    text = module.text
    plain = " ".join(text.split())
    return [
        entry
        for entry in module.entries
        if _NAME.fullmatch(entry.name)
        and 4 <= len(entry.summary.split()) <= 20
        and plain.count(entry.summary) == 1
        and len(re.findall(rf"(?<![\w.]){re.escape(entry.name)}(?![\w.])", text)) == 1
        and entry.name.lower() not in entry.summary.lower()
    ]


def _ask(module: Module, n: int, generator: random.Random) -> Iterator[Question]:
    """`n` questions on one module."""
    document = module.text
    telling = _telling(module)
    n_short = n - (n >= 4) - (n >= 8)
    n_cloze = n_short * 3 // 8
    asked = sorted(generator.sample(range(len(telling)), n_short))
    cloze = set(generator.sample(asked, n_cloze))
    for turn, i in enumerate(asked):
        entry = telling[i]
        if i in cloze:
            yield _cloze([entry, telling[i + 1 if i + 1 < len(telling) else i - 1]], document, module.name)
        elif turn % 2:
            question = f"Which function or class is described as “{entry.summary}”?"
            yield Question("shortdep_qa", document, question, entry.name, module.name, (entry.summary,))
        else:
            question = f"How does the text describe {entry.name} in its first sentence?"
            yield Question("shortdep_qa", document, question, entry.summary, module.name, (entry.summary,))
    if n >= 4:
        yield _reorder(telling, document, module.name, generator)
    if n >= 8:
        yield Question("longdep_summarization", document, "", module.summary, module.name)


def _cloze(entries: list[DocumentedEntry], document: str, title: str) -> Question:
    """Two neighbours' names, to be told from their summaries."""
    masks = [f"<mask-{i}>" for i in range(len(entries))]
    text = " ".join(f"{mask} is described as “{entry.summary}”." for mask, entry in zip(masks, entries, strict=True))
    answer = {mask: entry.name for mask, entry in zip(masks, entries, strict=True)}
    return Question("shortdep_cloze", document, text, answer, title, tuple(entry.summary for entry in entries))


def _reorder(telling: list[DocumentedEntry], document: str, title: str, generator: random.Random) -> Question:
    """Four entries, one from each quarter of the document, to be put into the document's order."""
    edges = [len(telling) * i // 4 for i in range(5)]
    entries = [telling[generator.randrange(a, b)] for a, b in pairwise(edges)]
    listed = generator.sample(entries, 4)
    items = "\n".join(f"{numeral}. {entry.name}" for numeral, entry in zip(_NUMERALS, listed, strict=True))
    question = f"In which order does the text describe these? Answer with their numerals.\n{items}"
    answer = ",".join(_NUMERALS[listed.index(entry)] for entry in entries)
    evidence = tuple(entry.summary for entry in entries)
    return Question("longdep_qa", document, question, answer, title, evidence, "timeline_reorder")
