"""What `broadsheet index` and `broadsheet search` do, and the lines that report it.

Knows: names of embedders, corpora, folders. Does not know: options and terminals.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus
from broadsheet.data.sources import is_unicode
from broadsheet.search import store
from broadsheet.search.searching import Check, Hit, Mode
from broadsheet.search.vectorindex import Change, VectorIndex

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def update(
    corpus: Corpus,
    folder: Path,
    embedder: str | None = None,
    *,
    prune: bool = False,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[VectorIndex, Change]:
    """Index a corpus into `folder`, or bring the index that stands there up to it.

    Args:
        corpus: documents; those with no text are left out.
        folder: of the index.
        embedder: what `broadsheet.embed.load` takes; by default the index's own, for a new one `"default"`.
        prune: remove what the corpus does not hold.
        device, dtype: of the embedder.

    Raises:
        InputError: see `VectorIndex.create`, `VectorIndex.open` and `VectorIndex.add`.
    """
    if not any(document.text.strip() for document in corpus):
        raise InputError(f"{corpus.spec} holds no documents with text; nothing was changed")
    if not (folder / store.NAME).is_file():
        if reason := store.occupied(folder):
            raise InputError(f"{folder} {reason}")
        source = _name(embedder or "default")
        index = VectorIndex.create(folder, _load(source, device, dtype), source=source)
    else:
        index = opened(folder, embedder, device, dtype)
    return index, index.add(corpus, prune=prune)


def opened(
    folder: Path, embedder: str | None = None, device: str | None = None, dtype: str | None = None
) -> VectorIndex:
    """The index in `folder`, with an embedder of that name, or with its own on a device.

    Raises:
        InputError: see `VectorIndex.open`.
    """
    index = VectorIndex.open(folder)
    if embedder is not None or device is not None or dtype is not None:
        made_by = index.manifest.embedder
        source = embedder or made_by.get("source")
        if source is None:
            raise InputError(f"{folder} was made without an embedder; give vectors")
        index = VectorIndex.open(folder, _load(_name(source), device, dtype or made_by.get("dtype")))
    return index


def rebuild(folder: Path, embedder: str | None = None) -> VectorIndex:
    """See `VectorIndex.rebuild`; `embedder` is a name."""
    return VectorIndex.rebuild(folder, _load(_name(embedder), None, None) if embedder else None)


def search(index: VectorIndex, query: str, k: int, mode: Mode | None, exact: bool) -> list[Hit]:
    """The hits for one query; by default hybrid, or dense where the index has no keywords.

    Raises:
        InputError: the query is no text: bytes that a shell passed on as they were.
    """
    if not is_unicode(query):
        raise InputError(f"the query {query!r} is not UTF-8")
    if mode is None:
        mode = "hybrid" if index.manifest.settings["keywords"] else "dense"
    hits = index.search([query], k, mode=mode, exact=exact)[0]
    if k > len(index):
        say(f"asked for {k:,}; {index.folder} holds {len(index):,} documents, and no more are shown")
    elif not hits:
        say("no document shares a word with the query; --mode dense searches by meaning")
    return hits


def _load(source: str, device: str | None, dtype: str | None) -> SentenceTransformer:
    from broadsheet.embed import base

    return base.load(source, device=device, dtype=dtype)


def _name(source: str) -> str:
    """A folder by its whole path, so that the index can be searched from anywhere."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def state(index: VectorIndex) -> dict[str, Any]:
    """What an index is, in numbers."""
    graph = index.manifest.graph
    return {
        "documents": len(index),
        "dimensions": index.dimensions,
        "bytes": index.bytes,
        "width": graph.width if graph else None,
        "sampled_recall": graph.recall if graph else 1.0,
        "embedder": index.manifest.embedder.get("source"),
    }


def lines(index: VectorIndex, change: Change | None, deleted: int, check: Check | None) -> list[str]:
    """What was done, what the index is now, and what its check found, for people."""
    said = []
    if change is not None:
        counts = [
            (change.finished, "of a stopped run finished"),
            (change.added, "added"),
            (change.changed, "changed"),
            (change.removed, "removed as they vanished from the source"),
            (change.unchanged, "unchanged"),
            (change.empty, "without text left out"),
        ]
        said.append(f"{index.folder}: " + ", ".join(f"{n:,} {what}" for n, what in counts if n))
    if deleted:
        said.append(f"{index.folder}: {deleted:,} deleted")
    graph = index.manifest.graph
    how = f"a graph of width {graph.width}, recall@10 {graph.recall:.3f} on new vectors" if graph else "exact search"
    said.append(f"{len(index):,} documents, {index.dimensions:,} dimensions, {index.bytes / 1e6:,.1f} MB; {how}")
    if check is not None:
        times = f"{1000 * check.seconds:.2f} ms a query"
        if check.width is not None:
            times += f", {1000 * check.exact_seconds:.2f} ms exactly"
        said.append(
            f"recall@{check.k} {check.recall:.3f} against exact search, on {check.queries:,} documents; {times}; "
            "every file is as it was written"
        )
    return said
