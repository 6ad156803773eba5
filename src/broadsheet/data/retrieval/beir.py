"""Retrieval test sets that others made: a BEIR folder, with BM25 or a TREC run as the first stage.

    corpus.jsonl    {"_id": "d1", "title": "…", "text": "…"} a line
    queries.jsonl   {"_id": "q1", "text": "…"} a line
    qrels/test.tsv  query, document and relevance, parted by tabs (also train, dev)

Any of them may be in another format of `sources` instead: `corpus.parquet`, `queries.jsonl.gz`, ….

Knows: these files, run files. Does not know: models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broadsheet.cache import fingerprint, sha256_file
from broadsheet.console import InputError, say
from broadsheet.data import corpora, rows
from broadsheet.data.retrieval.lists import Passage, RankList
from broadsheet.data.retrieval.search import BM25
from broadsheet.data.schemas import Judgement
from broadsheet.data.sources import SUFFIXES, named

Run = Mapping[str, Mapping[str, float]]


@dataclass
class Beir:
    """A test collection in BEIR's layout.

    Args:
        folder: where it lies.
        words: of a document that a reranker reads, and that BM25 searches; 0 for all of it.

    Attributes:
        documents: texts by id, with a title where there is one.
        queries: texts by id.

    Raises:
        InputError: a file is missing or damaged, named with its line.

    Example:
        scifact = Beir(Path("scifact"))
        lists = scifact.lists("test", candidates=20)
    """

    folder: Path
    words: int = 0
    documents: dict[str, Passage] = field(init=False, repr=False)
    queries: dict[str, str] = field(init=False, repr=False)
    _index: BM25 | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.words < 0:
            raise InputError(f"got {self.words} words for a passage; expected 0 (all) or more")
        self.documents = {}
        for document in corpora.load(self._file("corpus"), id_field="_id"):
            if document.id in self.documents:
                raise InputError(f"{self._file('corpus')} names document {document.id!r} twice; give each an id")
            text = " ".join(document.text.split()[: self.words]) if self.words else document.text
            title = str(document.metadata.get("title") or "")
            self.documents[document.id] = {"title": title, "text": text} if title else text
        self.queries = {query.id: query.text for query in corpora.load(self._file("queries"), id_field="_id")}
        if not self.documents:
            raise InputError(f"{self._file('corpus')} holds no documents")

    def splits(self) -> list[str]:
        """Names of the judged splits, such as `["test", "train"]`."""
        return sorted({path.name.partition(".")[0] for path in self._qrels()})

    def _qrels(self) -> list[Path]:
        return sorted(path for path in (self.folder / "qrels").glob("*") if path.name.endswith(SUFFIXES))

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Relevance by query and document.

        A line about a query that there is no text for is left out; a document that the corpus lacks stays, as nothing
        can find it: both are counted and said.

        Raises:
            InputError: there is no such split, a line is none, or none of it is about this collection.
        """
        path = named(self.folder / "qrels", split)
        if path is None:
            wanted = self.folder / "qrels" / f"{split}.tsv"
            raise InputError(
                f"no {wanted}; {self.folder} has qrels for {', '.join(self.splits()) or 'no split at all'}"
            )
        judged: dict[str, dict[str, int]] = {}
        queries: set[str] = set()
        documents: set[str] = set()
        for row in rows.read(path, Judgement):
            if row.query not in self.queries:
                queries.add(row.query)
                continue
            if row.document not in self.documents:
                documents.add(row.document)
            judged.setdefault(row.query, {})[row.document] = row.relevance
        if not any(document in self.documents for row in judged.values() for document in row):
            raise InputError(
                f"{path} judges no document of {self.folder} for any of its queries: do they belong together?"
            )
        for kind, unknown in (("queries", queries), ("documents", documents)):
            if unknown:
                say(f"{path} names {len(unknown):,} {kind} that the collection lacks, such as {min(unknown)!r}")
        return judged

    def lists(self, split: str = "test", *, candidates: int = 20, run: Run | None = None) -> list[RankList]:
        """Every judged query with its candidates, in the first stage's order.

        Args:
            split: whose qrels are read.
            candidates: the best of the first stage, at most.
            run: scores by query and document, of the first stage; BM25 over the collection by default. A judged query
                that it lacks is left out and said.

        Raises:
            InputError: see `qrels`; or the run names documents that the collection lacks.
        """
        judged = self.qrels(split)
        if run is None:
            hits = {query: list(found.items()) for query, found in self.search(candidates, judged).items()}
        else:
            hits = self._from_run(run, judged, candidates)
        return [
            RankList(
                id=query,
                query=self.queries[query],
                ids=tuple(name for name, _ in ranked),
                documents=tuple(self.documents[name] for name, _ in ranked),
                scores=tuple(score for _, score in ranked),
                judged=judged[query],
            )
            for query, ranked in hits.items()
        ]

    def search(self, k: int, queries: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
        """BM25's best `k` documents with their scores, best first, for the queries of these names (all)."""
        asked = list(self.queries if queries is None else queries)
        names = list(self.documents)
        if self._index is None:
            self._index = BM25([searched(self.documents[name]) for name in names])
        found = self._index.search([self.queries[query] for query in asked], k)
        return {
            query: {names[place]: score for place, score in zip(places, scores, strict=True)}
            for query, (places, scores) in zip(asked, found, strict=True)
        }

    def fingerprint(self) -> str:
        """16 hex digits that change when a file of the collection does."""
        files = [self._file("corpus"), self._file("queries"), *self._qrels()]
        return fingerprint([[path.name, sha256_file(path)] for path in files])

    def describe(self) -> str:
        """One line for people."""
        return f"{self.folder}: {len(self.documents):,} documents, {len(self.queries):,} queries"

    def _from_run(
        self, run: Run, judged: Mapping[str, Mapping[str, int]], candidates: int
    ) -> dict[str, list[tuple[str, float]]]:
        unknown = {name for query in judged for name in run.get(query, {}) if name not in self.documents}
        if unknown:
            raise InputError(
                f"the run names {len(unknown):,} documents that {self.folder} lacks, such as {min(unknown)!r}"
            )
        if missing := sorted(set(judged) - set(run)):
            say(f"the run lacks {len(missing):,} judged queries, such as {missing[0]!r}: they are left out")
        if len(missing) == len(judged):
            raise InputError(f"the run has none of the {len(judged):,} judged queries of {self.folder}")
        return {
            query: sorted(run[query].items(), key=lambda hit: (-hit[1], hit[0]))[:candidates]
            for query in judged
            if query in run
        }

    def _file(self, name: str) -> Path:
        if path := named(self.folder, name):
            return path
        raise InputError(
            f"{self.folder} is no BEIR folder: it lacks {name}.jsonl; expected corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv"
        )


def searched(passage: Passage) -> str:
    """What BM25 reads of a passage: title and text."""
    return passage if isinstance(passage, str) else f"{passage.get('title', '')} {passage['text']}".strip()
