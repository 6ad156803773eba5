"""How an index changes: documents added, replaced, deleted, the whole made anew.

Knows: the contents that count now, and how the next ones are written and committed. Does not know: embedders (whoever
calls brings vectors), commands. Everything here runs under the index's lock.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, say, track
from broadsheet.data.corpora import Document
from broadsheet.search import documents, recall, store
from broadsheet.search.contents import BLOCK, Contents
from broadsheet.search.exact import Floats, Rows
from broadsheet.search.graph import Neighbours
from broadsheet.search.keywords import Keywords
from broadsheet.search.store import Graph, Manifest, Segment, StoredFile

DOCUMENTS, VECTORS = "documents.arrow", "vectors/vectors.npy"
MOST_DEAD = 0.25  # of the rows; with more, the index is written anew without them
FITTED = 20_000  # vectors that the graph's quantizer is fitted to
FEWEST = 50  # new vectors that a graph's width is chosen on
GROWN = 2  # times as many rows as it was fitted to make it be fitted anew
MOST_SEGMENTS = 32  # with more, they are written as one


def pending(folder: Path, manifest: Manifest) -> Path:
    """The folder of the segment in progress."""
    return folder / f"segment-{manifest.next_segment}"


def write_vectors(path: Path, blocks: Iterable[Floats], rows: int, dimensions: int, dtype: str) -> None:
    """Write a NumPy file of `rows` vectors, a block at a time, whole or not at all."""
    header = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": (rows, dimensions)}
    with atomic_write(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)


def commit_pending(contents: Contents) -> Contents:
    """Make the finished segment in progress count; documents of the same ids that counted before no longer do.

    Raises:
        InputError: its vectors are not finite, or not as many as its documents.
    """
    folder, manifest = contents.folder, contents.manifest
    number = manifest.next_segment
    part = pending(folder, manifest)
    added = documents.Documents(part / DOCUMENTS)
    vectors = np.load(part / VECTORS, mmap_mode="r", allow_pickle=False)
    if vectors.shape != (len(added), contents.dimensions):
        raise InputError(
            f"{part / VECTORS} has shape {vectors.shape}; expected {(len(added), contents.dimensions)}: remove {part}"
            " and repeat the command"
        )
    ids = added.ids()
    for start in range(0, len(vectors), BLOCK):
        bad = ~np.isfinite(vectors[start : start + BLOCK]).all(axis=1)
        if bad.any():
            raise InputError(
                f"the vector of document {ids[start + int(bad.argmax())]!r} is not finite; remove {part}, "
                "and see whether the embedder is sound"
            )
    live = contents.live()
    replaced = [live[each][0] for each in ids if each in live]
    segment = _segment(folder, number, manifest.rows, len(added))
    grown = replace(manifest, segments=(*manifest.segments, segment), next_segment=number + 1)
    return _committed(folder, _with_deleted(folder, grown, [*contents.deleted, *replaced]))


def delete(contents: Contents, rows: Iterable[int]) -> Contents:
    """Make rows count no more."""
    manifest = contents.manifest
    return _committed(contents.folder, _with_deleted(contents.folder, manifest, [*contents.deleted, *rows]))


def renew(contents: Contents) -> Contents:
    """Write what counts as one segment. Graph and keywords are made anew if rows were left out."""
    folder, manifest = contents.folder, contents.manifest
    number = manifest.next_segment + 1  # not the one in progress
    part = folder / f"segment-{number}"
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    written = documents.write(part / DOCUMENTS, _live_documents(contents))
    blocks = (block[~contents.dead[first : first + len(block)]] for first, block in contents.blocks())
    write_vectors(part / VECTORS, blocks, contents.size, contents.dimensions, manifest.settings["dtype"])
    if written != contents.size:
        raise RuntimeError(f"wrote {written} documents where {contents.size} count")
    one = (_segment(folder, number, 0, written),) if written else ()
    changed = replace(manifest, segments=one, next_segment=number + 1, deleted=None)
    if len(contents.deleted):
        changed = replace(changed, graph=None, keywords=(), keyword_rows=0)
    return _committed(folder, changed)


def repair(folder: Path, manifest: Manifest, embed: Callable[[list[str]], Floats] | None) -> Contents:
    """Make a sound index of what is left of one: graph and keywords anew, damaged vectors embedded again.

    Documents are lost where they are not what was written, each by its own hash, and where nothing can embed them
    again; that is reported, and the latter are written beside the index. What was there is removed after the new state
    counts.
    """
    dead = _readable_deletions(folder, manifest)
    segments: list[Segment] = []
    deleted: list[Rows] = []
    first = 0
    for segment in manifest.segments:
        mended, kept = _mended(folder, manifest, segment, embed)
        if mended is None:
            continue
        segments.append(replace(mended, first=first))
        mine = dead[(dead >= segment.first) & (dead < segment.first + segment.rows)] - segment.first
        deleted.append(np.flatnonzero(np.isin(kept, mine)) + first)
        first += mended.rows
    whole = replace(manifest, segments=tuple(segments), deleted=None, graph=None, keywords=(), keyword_rows=0)
    rows = np.concatenate([*deleted, _superseded(Contents(folder, whole))]) if segments else np.zeros(0, np.int64)
    return _committed(folder, _with_deleted(folder, whole, rows))


def _readable_deletions(folder: Path, manifest: Manifest) -> Rows:
    file = manifest.deleted
    if file is None:
        return np.zeros(0, np.int64)
    if reason := store.fault(folder, file, whole=True):
        say(f"{folder / file.name}: {reason}; documents that were deleted are back: delete them again")
        return np.zeros(0, np.int64)
    rows: Rows = np.load(folder / file.name, allow_pickle=False)
    return rows


def _mended(
    folder: Path, manifest: Manifest, segment: Segment, embed: Callable[[list[str]], Floats] | None
) -> tuple[Segment | None, Rows]:
    """The segment with sound files, None where nothing is left of it; and which of its rows these are."""
    name, again = folder / segment.documents.name, "repeat `broadsheet index DATA --out` to add them again"
    reason = store.fault(folder, segment.documents, whole=True)
    if reason is None:
        kept, count = np.arange(len(documents.Documents(name))), len(documents.Documents(name))
    else:
        found, texts = documents.salvage(name)
        kept, count = np.array(found, np.int64), segment.rows
        lost = count - len(found)
        say(
            f"{name}: {reason}; "
            + (f"{lost:,} of its {count:,} documents are lost: {again}" if lost else "all are whole")
        )
        if not found:
            return None, kept
        path = name.parent / f"documents-{manifest.generation + 1}.arrow"
        documents.write(path, texts)
        segment = replace(segment, documents=store.stored(folder, path))
        name = path
    segment = replace(segment, rows=len(kept))
    vectors = folder / segment.vectors.name
    why = store.fault(folder, segment.vectors, whole=True) or _unlike(
        vectors, (count, int(manifest.embedder["dimensions"]))
    )
    if why is None and reason is None:
        return segment, kept
    if why and embed is None:
        aside = folder / f"lost-{manifest.generation + 1}.jsonl"
        _write_aside(aside, documents.Documents(name))
        say(f"{vectors}: {why}; its {len(kept):,} documents are lost: nothing embeds them; their texts are in {aside}")
        return None, kept
    path = vectors.parent / f"vectors-{manifest.generation + 1}.npy"
    if why:
        say(f"{vectors}: {why}; its {len(kept):,} documents are embedded again")
        blocks = _embedded(name, len(kept), embed)
    else:
        stored = np.load(vectors, mmap_mode="r", allow_pickle=False)
        blocks = (stored[kept[start : start + BLOCK]] for start in range(0, len(kept), BLOCK))
    write_vectors(path, blocks, len(kept), int(manifest.embedder["dimensions"]), manifest.settings["dtype"])
    return replace(segment, vectors=store.stored(folder, path)), kept


def _unlike(path: Path, shape: tuple[int, int]) -> str | None:
    """What is wrong with the shape of a file of vectors; None if nothing is."""
    found = np.load(path, mmap_mode="r", allow_pickle=False).shape
    return None if found == shape else f"it has the shape {found}, expected {shape}"


def _embedded(path: Path, rows: int, embed: Callable[[list[str]], Floats] | None) -> Iterator[Floats]:
    assert embed is not None
    texts = (document.text for document in documents.Documents(path))
    batches = iter(lambda: list(islice(texts, documents.BLOCK)), [])
    yield from (embed(batch) for batch in track(batches, "embedding", -(-rows // documents.BLOCK)))


def _write_aside(path: Path, found: Iterable[Document]) -> None:
    """Documents as rows that can be indexed again, after those that are there."""
    before = path.read_text("utf-8") if path.exists() else ""
    with atomic_write(path) as file:
        file.write(before)
        file.writelines(json.dumps({"id": each.id, "text": each.text}, ensure_ascii=False) + "\n" for each in found)


def _superseded(contents: Contents) -> Rows:
    """Rows whose id comes again in a later one."""
    last: dict[str, int] = {}
    rows = []
    for segment, part in zip(contents.manifest.segments, contents.documents, strict=True):
        for row, identifier in enumerate(part.ids(), segment.first):
            if identifier in last:
                rows.append(last[identifier])
            last[identifier] = row
    return np.array(rows, np.int64)


def _live_documents(contents: Contents) -> Iterator[Document]:
    for segment, part in zip(contents.manifest.segments, contents.documents, strict=True):
        for row, document in enumerate(part, segment.first):
            if not contents.dead[row]:
                yield document


def _segment(folder: Path, number: int, first: int, rows: int) -> Segment:
    part = folder / f"segment-{number}"
    return Segment(first, rows, store.stored(folder, part / VECTORS), store.stored(folder, part / DOCUMENTS))


def _with_deleted(folder: Path, manifest: Manifest, rows: Iterable[int]) -> Manifest:
    deleted: Rows = np.unique(np.fromiter(rows, np.int64))
    if not len(deleted):
        return replace(manifest, deleted=None)
    path = folder / f"deleted-{manifest.generation + 1}.npy"
    with path.open("wb") as file:
        np.save(file, deleted, allow_pickle=False)
    return replace(manifest, deleted=store.stored(folder, path))


def _committed(folder: Path, manifest: Manifest) -> Contents:
    """Bring graph and keywords up to the rows of `manifest`, commit it, and tidy up if much is dead."""
    manifest = replace(manifest, generation=manifest.generation + 1)
    contents = Contents(folder, manifest)
    graph, keywords = _graph(contents), _keywords(contents)
    manifest = replace(manifest, graph=graph, keywords=keywords, keyword_rows=manifest.rows if keywords else 0)
    store.commit(folder, manifest)
    contents = Contents(folder, manifest)
    dead = len(contents.deleted) / max(manifest.rows, 1)
    if dead > MOST_DEAD or len(manifest.segments) > MOST_SEGMENTS:
        return renew(contents)
    return contents


def _graph(contents: Contents) -> Graph | None:
    """The graph over all rows: the one there is where nothing was added, else it grown, or a new one."""
    manifest, folder = contents.manifest, contents.folder
    if manifest.rows < manifest.settings["graph_from"]:
        return None
    before = manifest.graph
    if before is not None and before.rows == manifest.rows:
        return before
    if before is None or manifest.rows > GROWN * before.fitted:
        graph, fitted = Neighbours(recall.sample(contents, FITTED, seed=0)[0]), manifest.rows
    else:
        assert contents.graph is not None
        graph, fitted = contents.graph, before.fitted
    new = np.arange(len(graph), manifest.rows)
    queries = recall.held_back(contents, new)
    total = -(-len(new) // BLOCK)
    graph.add(track(_numbered(contents.blocks(len(graph)), queries), "linking neighbours", total))
    if before is None or len(queries) >= FEWEST:
        width, reached = recall.width(contents, graph, queries)
        if reached < recall.WANTED:
            say(f"{folder}: the approximate search finds {reached:.1%} of the nearest 10; --exact finds all")
    else:  # too few to judge by, and too few to change much
        width, reached = before.width, before.recall
    graph.add([(queries, contents.gather(queries))])
    path = folder / f"graph-{manifest.generation}.faiss"
    graph.save(path)
    return Graph(store.stored(folder, path), manifest.rows, fitted, width, reached)


def _numbered(blocks: Iterable[tuple[int, Floats]], without: Rows) -> Iterator[tuple[Rows, Floats]]:
    """Blocks with the number of each row, but for some rows."""
    for first, block in blocks:
        rows = np.arange(first, first + len(block))
        kept = ~np.isin(rows, without)
        yield rows[kept], block[kept]


def _keywords(contents: Contents) -> tuple[StoredFile, ...]:
    """The BM25 index over all rows: the one there is where nothing was added, else a new one."""
    manifest, folder = contents.manifest, contents.folder
    if not manifest.settings["keywords"] or not manifest.rows:
        return ()
    if manifest.keywords and manifest.keyword_rows == manifest.rows:
        return manifest.keywords
    texts = [
        "" if contents.dead[segment.first + row] else document.text
        for segment, part in zip(manifest.segments, contents.documents, strict=True)
        for row, document in enumerate(part)
    ]
    part = folder / f"keywords-{manifest.generation}"
    if part.exists():
        shutil.rmtree(part)
    return tuple(store.stored(folder, path) for path in Keywords(texts).save(part))
