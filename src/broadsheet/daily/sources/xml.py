"""XML of strangers: no entities of their own, no document types, nothing fetched, no huge trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broadsheet.daily.records import line
from broadsheet.daily.sources.base import LARGEST, SourceError

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

ATOM = "{http://www.w3.org/2005/Atom}"
ARXIV = "{http://arxiv.org/schemas/atom}"
DC = "{http://purl.org/dc/elements/1.1/}"
SEARCH = "{http://a9.com/-/spec/opensearch/1.1/}"
OAI = "{http://www.openarchives.org/OAI/2.0/}"
META = "{http://arxiv.org/OAI/arXiv/}"


def root(data: bytes, name: str) -> Element:
    """The root of a document.

    Raises:
        SourceError: it is none, is cut, has a document type (entities may be bombs), or is too large.
    """
    from lxml import etree

    if len(data) > LARGEST:
        raise SourceError(f"{name}: got {len(data) >> 20} MiB; expected at most {LARGEST >> 20}")
    head = data[:4096].lower()
    if b"<!doctype html" in head or b"<html" in head:
        raise SourceError(f"{name}: got a web page; expected XML")
    if b"<!doctype" in head or b"<!entity" in head:
        raise SourceError(f"{name}: got XML with a document type, which may define entities; expected none")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        found = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise SourceError(
            f"{name}: got XML that is cut or broken ({line(str(error))[:70]}); nothing of it is kept"
        ) from None
    if found.getroottree().docinfo.internalDTD is not None:
        raise SourceError(f"{name}: got XML with a document type, which may define entities; expected none")
    return found


def text(element: Element, path: str) -> str:
    """The text of the first element of this path, on one line; empty where there is none."""
    found = element.find(path)
    return "" if found is None else line("".join(found.itertext()))


def texts(element: Element, path: str) -> tuple[str, ...]:
    """The texts of all elements of this path, without empty ones."""
    return tuple(said for each in element.iterfind(path) if (said := line("".join(each.itertext()))))
