"""`VectorIndex`: the folder of documents and vectors, made, grown, thinned out and mended.

Knows: which documents are new, the embedder, and a segment in progress. Does not know: how files are kept (`store`,
`updating`), how they are searched (`searching`), commands.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from broadsheet.cache import locked
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Document
from broadsheet.search import documents as documents_file
from broadsheet.search import graph, store, updating
from broadsheet.search import keywords as keywords_file
from broadsheet.search.contents import Contents
from broadsheet.search.exact import Floats
from broadsheet.search.searching import Searchable, identity, opened
from broadsheet.search.store import Manifest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SIMILARITIES = ("cosine", "dot")
CHUNK = 256  # documents that are embedded, and lost by a kill, at once
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
GRAPH_FROM = 20_000  # vectors; below, exact search answers as fast as a command starts


@dataclass(frozen=True)
class Change:
    """What a call did, in documents.

    Args:
        added, changed, unchanged: new ones, those whose text is another now, and those that were there as they are.
        removed: those that vanished from the source.
        empty: those without text, which are left out.
        finished: those that a stopped call had set down; they were embedded before the source was read.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    empty: int = 0
    finished: int = 0


class VectorIndex(Searchable):
    """Documents with their vectors in a folder, searched by vector, by BM25, or by both fused.

    What stands in the folder changes in one step: a call that is killed leaves what was there, and the vectors it had
    computed are resumed by the next. Readers need no lock and see the index as it was when they opened it.

    Inputs: documents (id and text), and a `SentenceTransformer` (any; its `encode_query` and `encode_document` are
        used), or vectors of yours. Up to some million documents; all vectors on one disk.
    When: to search what an embedder makes of a corpus, without a server. For filters by field, or many writers at once,
        take a database.

    Example:
        index = VectorIndex.create("runs/docs", broadsheet.embed.load("default"))
        index.add(broadsheet.data.corpora.load("pydocs"))
        for hit in index.search(["join two paths"], 5, mode="hybrid")[0]:
            print(hit.id, hit.score, hit.snippet())

    Source: graph by faiss (Douze et al., 2024, arXiv:2401.08281; HNSW: Malkov and Yashunin, 2018, arXiv:1603.09320),
        BM25 by bm25s (Lù, 2024, arXiv:2407.03618).
    """

    @classmethod
    def create(
        cls,
        folder: str | Path,
        embedder: SentenceTransformer | None = None,
        *,
        source: str | None = None,
        dimensions: int | None = None,
        similarity: str | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        keywords: bool = True,
        graph_from: int = GRAPH_FROM,
    ) -> VectorIndex:
        """Make an empty index.

        Args:
            folder: new, or empty.
            embedder: what will embed documents and queries; None where vectors are brought along.
            source: what `broadsheet.embed.load` loads the embedder by, so that `open` can.
            dimensions: of a vector; needed without an embedder.
            similarity: `"cosine"` or `"dot"`; by default the embedder's, else cosine.
            dtype: vectors are stored in; float16 takes half the room.
            keywords: keep a BM25 index too.
            graph_from: from this number of documents on, search goes by a graph instead of through all vectors.

        Raises:
            InputError: the folder is not empty, a needed library is missing, or a setting cannot be.
        """
        folder = Path(folder).expanduser()
        if reason := store.occupied(folder):
            raise InputError(f"{folder} {reason}")
        made_by: dict[str, Any] = {"source": None, "fingerprint": None, "dimensions": dimensions}
        if embedder is not None:
            made_by = identity(embedder) | {"source": source}
            if dimensions not in (None, made_by["dimensions"]):
                raise InputError(f"got {dimensions} dimensions; the embedder has {made_by['dimensions']}")
        elif not dimensions or dimensions < 1:
            raise InputError(f"got dimensions {dimensions}; an index without an embedder needs their number")
        made_by["similarity"] = similarity or made_by.get("similarity") or "cosine"
        if made_by["similarity"] not in SIMILARITIES:
            raise InputError(f"got similarity {made_by['similarity']!r}; expected one of {', '.join(SIMILARITIES)}")
        if dtype not in ("float32", "float16"):
            raise InputError(f"got dtype {dtype!r}; expected float32 or float16")
        if keywords and not keywords_file.available():
            raise InputError("keyword search needs bm25s: pip install -e '.[search]', or keywords=False")
        settings = {"dtype": dtype, "keywords": keywords, "graph_from": graph_from}
        manifest = Manifest(made_by, settings)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / store.NAME):
                store.commit(folder, manifest)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None
        return cls(folder, Contents(folder, manifest), embedder)

    def add(self, documents: Iterable[Document], vectors: NDArray[Any] | None = None, *, prune: bool = False) -> Change:
        """Add documents, or replace those whose text is another than before; unchanged ones are not embedded again.

        Killed while it embeds, it resumes with the same documents on the next call, whatever those hold.

        Args:
            documents: ids and texts; a `Corpus`. An id stands for one document.
            vectors: (documents, dimensions), in the same order, instead of the embedder's.
            prune: remove the documents that `documents` does not hold.

        Raises:
            InputError: no documents, an id twice, vectors that do not fit, or the disk is full (what is embedded is
                kept).
        """
        with self._writing():
            finished = self._finish_pending()
            before = self._contents.live()
            part = updating.pending(self.folder, self.manifest)
            counted = _Fresh(documents, before)
            if vectors is None:
                written = documents_file.write(part / updating.DOCUMENTS, counted)
            else:
                vectors = self._prepared(vectors, "vectors")
                written = documents_file.write(part / updating.DOCUMENTS, counted)
                if counted.read != len(vectors):
                    shutil.rmtree(part)
                    raise InputError(f"got {len(vectors)} vectors for {counted.read} documents; expected one each")
                self._write_vectors(part, vectors[counted.places])
            if not counted.seen:
                shutil.rmtree(part)
                left = f"the {counted.empty:,} documents have no text" if counted.empty else "got no documents"
                raise InputError(f"{left}; nothing was changed")
            if written:
                self._finish_pending()
            else:
                shutil.rmtree(part)
            vanished = [row for name, (row, _) in before.items() if name not in counted.seen] if prune else []
            if vanished:
                self._contents = updating.delete(self._contents, vanished)
            return Change(
                added=written - counted.changed,
                changed=counted.changed,
                unchanged=len(counted.seen) - written,
                removed=len(vanished),
                empty=counted.empty,
                finished=finished,
            )

    def delete(self, ids: Iterable[str]) -> int:
        """Remove documents; how many there were of them.

        Raises:
            InputError: an id that the index does not hold; nothing is removed then.
        """
        with self._writing():
            live = self._contents.live()
            wanted = list(dict.fromkeys(ids))
            if missing := [each for each in wanted if each not in live]:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise InputError(f"{self.folder} holds no document {missing[0]!r}{more}; nothing was deleted")
            if wanted:
                self._contents = updating.delete(self._contents, [live[each][0] for each in wanted])
            return len(wanted)

    @classmethod
    def rebuild(cls, folder: str | Path, embedder: SentenceTransformer | None = None) -> VectorIndex:
        """Make a sound index of what is left of a damaged one, and the graph and keywords of any anew.

        Graph and keywords come from the stored vectors and texts; damaged vectors are embedded again from the texts.
        What cannot be recovered is reported.

        Raises:
            InputError: there is no index, or nothing says what belongs to it.
        """
        folder = Path(folder).expanduser()
        if not (folder / store.NAME).exists() and not (folder / store.COPY).exists():
            store.read(folder)
        with locked(folder / store.NAME):
            manifest = store.read_copy(folder)
            index = cls(folder, Contents(folder, _without_files(manifest)), embedder)
            known = embedder is not None or manifest.embedder.get("source")
            index._contents = updating.repair(folder, manifest, index._embedded if known else None)
        return index

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the index's lock, with the contents as they are now; what the disk refuses is one line."""
        try:
            with locked(self.folder / store.NAME):
                self._contents = opened(self.folder)
                store.settle(self.folder, self.manifest)  # a call before may have been killed just after its commit
                yield
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            raise InputError(
                f"cannot write {self.folder}: {error.strerror}; make room and repeat (what is embedded is kept)"
            ) from None

    def _finish_pending(self) -> int:
        """Embed what is left of the segment in progress, if there is one, and commit it; how many documents it held."""
        part = updating.pending(self.folder, self.manifest)
        if not (part / updating.DOCUMENTS).exists():
            if part.exists():
                shutil.rmtree(part)
            return 0
        try:
            added = len(documents_file.Documents(part / updating.DOCUMENTS))
        except ValueError as error:
            say(f"{part}: what a stopped call left is damaged ({error}); it is begun anew")
            shutil.rmtree(part)
            return 0
        if self.manifest.rows + added >= self.manifest.settings["graph_from"]:
            graph.require()
        if not (part / updating.VECTORS).exists():
            if self._embedder is None and not self.manifest.embedder.get("source"):
                shutil.rmtree(part)  # vectors were to be brought along, and will be again
                return 0
            self._embed_pending(part)
        self._contents = updating.commit_pending(self._contents)
        return added

    def _embed_pending(self, part: Path) -> None:
        """Stream the vectors of the segment in progress to disk, going on where a killed call stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; what is done is kept.
        """
        from broadsheet.search.encoding.streaming import encode_corpus

        done = encode_corpus(
            self.embedder,
            documents_file.IndexedCorpus(part / updating.DOCUMENTS),
            part / Path(updating.VECTORS).parent,
            dtype=self.manifest.settings["dtype"],
            normalize=self.manifest.embedder["similarity"] == "cosine",
            chunk=CHUNK,
        )
        if not done.finished:
            raise KeyboardInterrupt

    def _write_vectors(self, part: Path, vectors: Floats) -> None:
        updating.write_vectors(
            part / updating.VECTORS, [vectors], len(vectors), self.dimensions, self.manifest.settings["dtype"]
        )

    def _embedded(self, texts: list[str]) -> Floats:
        """The vectors of documents."""
        return self._prepared(self.embedder.encode_document(texts, show_progress_bar=False), "vectors")


class _Fresh:
    """The documents that an index does not hold yet as they are, and counts of all.

    Attributes:
        read, empty, changed: documents that were read, that have no text, and that replace one.
        seen: the ids of those with text.
        places: for each that is yielded, its place among those that were read.

    Raises:
        InputError: while iterated: an id comes twice.
    """

    def __init__(self, documents: Iterable[Document], before: dict[str, tuple[int, bytes]]) -> None:
        self._documents = documents
        self._before = before
        self.read = self.empty = self.changed = 0
        self.seen: set[str] = set()
        self.places: list[int] = []

    def __iter__(self) -> Iterator[Document]:
        for place, document in enumerate(self._documents):
            self.read += 1
            if not document.text.strip():
                self.empty += 1
                continue
            try:
                content = documents_file.content_hash(document)
            except UnicodeEncodeError:
                raise InputError(f"document {document.id!r} holds half a surrogate pair; mend it") from None
            if document.id in self.seen:
                raise InputError(f"the id {document.id!r} comes twice; an index needs one id for each document")
            self.seen.add(document.id)
            known = self._before.get(document.id)
            if known is not None and known[1] == content:
                continue
            self.changed += known is not None
            self.places.append(place)
            yield document


def _without_files(manifest: Manifest) -> Manifest:
    return replace(manifest, segments=(), deleted=None, graph=None, keywords=(), keyword_rows=0)
