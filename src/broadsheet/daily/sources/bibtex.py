"""BibTeX files: the entries that name an arXiv article in eprint, url, doi, journal, note or key.

The parsing is bibtexparser's, reading LaTeX pylatexenc's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from broadsheet.daily import ids
from broadsheet.daily.records import line
from broadsheet.daily.sources.base import Page, SourceError, decoded, exactly, told

_PLACES = ("url", "doi", "journal", "journaltitle", "howpublished", "note", "number", "volume")
_PREPRINT = re.compile(r"arxiv|corr\b|preprint", re.IGNORECASE)
_UNESCAPED = re.compile(r"(?<!\\)([%&#])")  # which people write as they are, and LaTeX reads as more than a sign
# Signs that the library leaves out, or takes for others.
_MACROS = {"textbraceleft": "{", "textbraceright": "}", "textasciicircum": "^", "textasciitilde": "~"}


def parse(data: bytes, *, name: str = "bibtex") -> Page:
    """Read entries; those that name no arXiv article are left out.

    Raises:
        SourceError: an entry is cut or broken; then nothing of the file is kept.
    """
    import bibtexparser
    from bibtexparser import middlewares, model

    text = decoded(data, name)
    logging.getLogger("bibtexparser").setLevel(logging.ERROR)  # what failed is told below
    logging.getLogger("pylatexenc").setLevel(logging.ERROR)
    people = [middlewares.SeparateCoAuthors(), middlewares.SplitNameParts(), middlewares.MergeNameParts(style="first")]
    try:
        library = bibtexparser.parse_string(text, append_middleware=people)
    except RecursionError:
        raise SourceError(f"{name}: got BibTeX that is nested too deeply; nothing of it is kept") from None
    entries = list(library.entries)
    for failed in library.failed_blocks:
        again = failed.ignore_error_block if isinstance(failed, model.DuplicateBlockKeyBlock) else None
        if not isinstance(again, model.Entry):
            number = (failed.start_line or 0) + 1
            raise SourceError(f"{name}, line {number}: got an entry that is cut or broken; nothing of the file is kept")
        for each in people:  # entries whose key is another's too
            [again] = each.transform(bibtexparser.Library([again])).blocks
        entries.append(again)
    read = _reader()
    found, left = [], []
    for entry in entries:
        fields = {field.key.lower(): field.value for field in entry.fields}
        identifier = _identifier(fields, entry.key)
        if identifier is None:
            left.append("no arXiv identifier")
            continue
        journal = read(fields.get("journal") or fields.get("journaltitle"))
        doi = line(str(fields.get("doi") or ""))
        found.append(
            told(
                identifier,
                "bibtex",
                title=read(fields.get("title")),
                abstract=read(fields.get("abstract")),
                authors=tuple(author for each in _people(fields) if (author := read(each))),
                journal="" if _PREPRINT.search(journal) else journal,
                doi="" if "10.48550" in doi else doi,
            )
        )
    return Page(tuple(found), tuple(left), len(entries))


def _identifier(fields: Mapping[str, Any], key: str) -> ids.ArxivId | None:
    kind = str(fields.get("archiveprefix") or fields.get("eprinttype") or "arxiv").strip()
    eprint = exactly(str(fields.get("eprint") or "")) if kind.lower() == "arxiv" else None
    if eprint is not None:
        return eprint
    for place in _PLACES:
        text = str(fields.get(place) or "")
        if "arxiv" in text.lower() or "/papers/" in text:
            found = ids.find(text)
            if found:
                return found[0]
    return exactly(key)


def _people(fields: Mapping[str, Any]) -> list[str]:
    given = fields.get("author") or []
    return [str(each) for each in given] if isinstance(given, list) else [str(given)]


def _reader() -> Callable[[object], str]:
    """What makes one line of text out of LaTeX; formulas stay as they are."""
    from pylatexenc import latex2text

    context = latex2text.get_default_latex_context_db()
    known = [latex2text.MacroTextSpec(macro, sign) for macro, sign in _MACROS.items()]
    context.add_context_category("signs", known, prepend=True)
    reader = latex2text.LatexNodes2Text(latex_context=context, math_mode="verbatim", strict_latex_spaces=True)

    def read(value: object) -> str:
        text = _UNESCAPED.sub(r"\\\1", str(value or ""))
        try:
            return line(reader.latex_to_text(text))
        except (RecursionError, ValueError, IndexError, TypeError):  # no LaTeX that it knows
            return line(re.sub(r"[{}]", "", str(value)))

    return read
