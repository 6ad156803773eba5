"""Use the stage: train a reranker, rerank a run or requests, label whole lists. What `broadsheet apply first` runs.

Knows: data by name, the stage's parts, files that can be gone on with. Does not know: how any of the parts works.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.cache import fingerprint, locked
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus, Document, RowLocation
from broadsheet.data.retrieval.beir import Beir
from broadsheet.data.retrieval.trec import read_run, write_run
from broadsheet.rank.formats import read_requests, rerank_requests, write_requests
from broadsheet.rank.prompt import BRIEF
from broadsheet.rank.rows import training_rows, write_rows
from broadsheet.rank.trials.items import ListSource

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.rank.objective import Objective

_QUERIES = 16  # reranked side by side, and kept when the command is stopped


@dataclass
class ApplyRank:
    """Train a reranker (--train), label whole lists (--labels), or rerank what a search found.

    DATA is `pydocs`, a BEIR folder (`corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`), or a file: rows of `query`,
    `documents` and `ranking` or `labels` (JSONL, Parquet, CSV, `hf:…`) to train on, rank_llm's requests to rerank.

    - With --train, OUT is a folder that `ListwiseReranker.load` and `broadsheet try first --reranker OUT` read. `first`
      trains FIRST's joint loss, `fullrank` the importance-aware loss, `pg_rank` the policy gradient, best from a
      --reranker that `first` has made. A command that was stopped or killed goes on when it is repeated.
    - With --labels, OUT is a JSONL file of rows whose `ranking` orders all documents, by several passes of windows
      that a teacher or a reranker compares.
    - Otherwise OUT is a TREC run: DATA is a BEIR folder, whose queries are searched by BM25 or taken from a TREC run;
      or requests, and OUT is what rank_llm reads back.

    Options:
        --train: train, on other packages than those of the trial's test, or the BEIR folder's `train` split.
        --labels: label whole lists.
        --reranker FOLDER: the reranker to use or to train on from; the model itself by default.
        --teacher NAME: for --labels, what compares windows, as in Teacher.load; by default the reranker.
        --first-stage FILE: a TREC run over the BEIR folder; BM25's by default.
        --candidates N: of a list that is trained on, labelled or reranked (20; with --labels 100).
        --window N, --step N: as in ListwiseReranker (20, 10).
        --lists N: to train on or to label, at most (2000).
        --depth N: how deep the first stage's list goes that wrong passages are drawn from (the candidates alone).
        --words N: of a passage that is searched and shown (40; 0: all).
        --titles: passages of pydocs show the name of their function or class.
        --split NAME: of the BEIR folder's qrels (test; for --train and --labels train).
        --minutes N: of training (30; 0: until all epochs are done).
        --epochs N: how often a list may come (3).
        --brief: prompts with few words around the passages, kept in the reranker: for small models, short passages.
        --lora: train adapters instead of all weights.
        --learning-rate N: by default 5e-5, or 5e-4 with --lora.
        --loss NAME: of `first`: weighted_ranknet, ranknet, lambdarank, listnet, softmax (weighted_ranknet).
        --ranking-only: of `first`: leave the loss of the written ranking out, which reads less and writes nothing.
        --utility NAME: of `pg_rank`: ndcg@K or mrr@K (ndcg@10).
        --sizes N-M: passages of a training list, drawn anew each time (all).
        --shuffle SHARE: of the training lists whose passages are shuffled (1; 0 keeps the first stage's order).
        --neftune N: noise on embeddings (0; the papers 5).
        --seed N: of the choice of lists, their order and the noise (0).
        --device NAME, --dtype NAME: as in models.load.
    """

    method: str = "first"
    model: str = "default"
    train: bool = False
    labels: bool = False
    reranker: str = ""
    teacher: str = ""
    first_stage: str = ""
    candidates: int = 0
    window: int = 0
    step: int = 0
    lists: int = 2000
    depth: int = 0
    words: int = 40
    titles: bool = False
    split: str = "test"
    minutes: float = 30.0
    epochs: int = 3
    brief: bool = False
    lora: bool = False
    learning_rate: float = 0.0
    loss: str = "weighted_ranknet"
    ranking_only: bool = False
    utility: str = "ndcg@10"
    sizes: str = ""
    shuffle: float = 1.0
    neftune: float = 0.0
    seed: int = 0
    device: str = ""
    dtype: str = ""

    def run(self, corpus: Corpus, out: Path, *, force: bool = False) -> Summary:
        """Do it; `corpus.spec` names the data, and its documents are not read through the corpus.

        Raises:
            InputError: an option, the data, the model or `out` cannot be used.
        """
        if self.train and self.labels:
            raise InputError("got --train and --labels; expected one: label first, then train on the file of labels")
        if self.lists < 1 or self.candidates < 0 or self.minutes < 0:
            raise InputError(
                f"got --lists {self.lists} --candidates {self.candidates} --minutes {self.minutes:g}; "
                "expected from 1, 0 and 0"
            )
        if self.train:
            return self._train(corpus, out, force)
        if self.labels:
            return self._label(corpus, out, force)
        return self._rerank(corpus, out, force)

    # Training

    def _train(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        from broadsheet.rank.fitting import fit

        objective, sizes = self._objective(), self._sizes()
        rows = self._rows(corpus, self.candidates or 20)
        for row in rows:
            if "labels" in row and corpus.spec == "pydocs":
                row.pop("ranking", None)  # passages that are wrong alike need no order
        reranker = self._load(decode="first_token" if self.method != "fullrank" else "permutation")
        if self.method == "pg_rank" and not self.reranker:
            say("pg_rank draws rankings from the model: near random ones, without a --reranker that FIRST has trained")
        say(f"training on {len(rows):,} lists for at most {self.minutes:g} minutes")
        fitted = fit(
            reranker,
            rows,
            objective,
            out=out,
            minutes=self.minutes or None,
            epochs=self.epochs,
            method="lora" if self.lora else "full",
            learning_rate=self.learning_rate or None,
            sizes=sizes,
            shuffle=self.shuffle,
            neftune=self.neftune or None,
            seed=self.seed,
            force=force,
        )
        if fitted.finished:
            say(f"{out}: {fitted.lists:,} lists in {fitted.steps:,} steps, {fitted.seconds / 60:.1f} minutes")
            say(f"try it: broadsheet try {self.method} --reranker {out}")
        return Summary(out, fitted.lists, 0, fitted.seconds, fitted.finished)

    def _objective(self) -> Objective:
        from broadsheet.rank.first import FIRST
        from broadsheet.rank.fullrank import FullRank
        from broadsheet.rank.pg_rank import PGRank

        if self.method == "fullrank":
            return FullRank()
        if self.method == "pg_rank":
            return PGRank(self.utility)
        kind: Any = self.loss
        return FIRST(kind=kind, lm=not self.ranking_only)

    def _sizes(self) -> tuple[int, int] | None:
        if not self.sizes:
            return None
        least, dash, most = self.sizes.partition("-")
        try:
            return int(least), int(most if dash else least)
        except ValueError:
            raise InputError(f"got --sizes {self.sizes!r}; expected two numbers, as in 5-20") from None

    def _rows(self, corpus: Corpus, candidates: int) -> list[dict[str, Any]]:
        """Rows to train on or to label, in first-stage order."""
        from broadsheet.rank.rows import read_rows

        if _is_rows(corpus.spec):
            return read_rows(corpus.spec, corpus.on_error)[: self.lists]
        found = self._source(corpus.spec).train(self.lists, candidates, self.depth)
        return training_rows(found.lists, order="first_stage")

    def _source(self, data: str) -> ListSource:
        return ListSource(data, self.words, self.titles, self.first_stage, self.split, self.seed)

    # Labels

    def _label(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        from broadsheet.rank.fullrank import complete_labels, reranker_comparator, teacher_comparator

        _check_free(out, force)
        window, step = self.window or 20, self.step or 10
        rows = self._rows(corpus, self.candidates or 100)
        if self.teacher:
            from broadsheet.teacher import Teacher

            compare, name = teacher_comparator(Teacher.load(self.teacher)), self.teacher
        else:
            reranker = self._load(strategy="full")
            compare = reranker_comparator(reranker)
            name = f"{self.reranker or self.model} {fingerprint(reranker.settings())}"
        journal = out.with_name(f"{out.name}.journal")
        started = time.perf_counter()
        with locked(out):
            orders = complete_labels(rows, compare, window=window, step=step, journal=journal, name=name)
            labelled = [
                {"query": row["query"], "documents": row["documents"], "ranking": list(order)}
                for row, order in zip(rows, orders, strict=True)
            ]
            write_rows(labelled, out)
            journal.unlink(missing_ok=True)
        seconds = time.perf_counter() - started
        say(f"{out}: {len(labelled):,} labelled lists, {seconds:.1f} s")
        return Summary(out, len(labelled), 0, seconds, True)

    # Reranking

    def _rerank(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        path = Path(corpus.spec).expanduser()
        if path.is_dir():
            return self._rerank_folder(path, out, force)
        if not _is_rows(corpus.spec):
            raise InputError(
                f"{corpus.spec} is nothing to rerank; give a BEIR folder or rank_llm's requests, or --train"
            )
        _check_free(out, force)
        requests = read_requests(corpus.spec, corpus.on_error)
        started = time.perf_counter()
        done = rerank_requests(self._load(), requests)
        write_requests(done, out)
        seconds = time.perf_counter() - started
        say(f"{out}: {len(done):,} requests, {seconds:.1f} s")
        return Summary(out, len(done), 0, seconds, True)

    def _rerank_folder(self, folder: Path, out: Path, force: bool) -> Summary:
        _check_free(out, force)
        beir = Beir(folder, self.words)
        depth = self.candidates or 20
        if self.first_stage:
            run = read_run(Path(self.first_stage))
            if unknown := sorted(set(run) - set(beir.queries)):
                raise InputError(
                    f"{self.first_stage} names {len(unknown):,} queries that {folder} lacks, such as {unknown[0]!r}"
                )
        else:
            run = beir.search(depth)
        reranker = self._load()
        settings = {
            "method": self.method,
            "model": self.reranker or self.model,
            "reranker": reranker.settings(),
            "depth": depth,
            "run": fingerprint(run),
            "words": self.words,
        }

        def rerank(batch: list[Document]) -> list[dict[str, Any]]:
            part = {query.id: run[query.id] for query in batch}
            ranked = reranker.rank_run(part, beir.queries, beir.documents, depth)
            return [{"run": ranked[query.id]} for query in batch]

        # The run is written last, from lines that a stopped command goes on after.
        lines = out.with_name(f"{out.name}.jsonl")
        queries = _Queries(str(folder), {query: beir.queries[query] for query in run})
        summary = map_corpus(queries, lines, rerank, batch_size=_QUERIES, settings=settings, force=lines.exists())
        if summary.finished:
            write_run(dict(_reranked(lines)), out)
            lines.unlink()
            say(f"{out}: the reranked run")
        return Summary(out, summary.documents, summary.resumed, summary.seconds, summary.finished)

    def _load(self, **changes: Any) -> ListwiseReranker:
        from broadsheet.rank.base import ListwiseReranker

        changes |= {key: value for key, value in (("window", self.window), ("step", self.step)) if value}
        if self.brief:
            changes["prompt"] = BRIEF
        return ListwiseReranker.load(
            self.reranker or self.model, device=self.device or None, dtype=self.dtype or None, **changes
        )


class _Queries(Corpus):
    """The queries of a collection as documents, so that reranking them can be stopped and gone on with."""

    def __init__(self, spec: str, queries: Mapping[str, str]) -> None:
        super().__init__(spec, "stop", "text", "id")
        self.queries = queries
        self.count = len(queries)

    def identity(self) -> dict[str, Any]:
        return {"queries": self.fingerprint()}

    def fingerprint(self) -> str:
        return fingerprint(dict(self.queries))

    def describe(self) -> str:
        return f"{self.spec}: {len(self.queries):,} queries"

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for name, text in self.queries.items():
            yield RowLocation(name, name), {"id": name, "text": text}


def _reranked(lines: Path) -> Iterator[tuple[str, dict[str, float]]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record["id"], record["run"]


def _is_rows(data: str) -> bool:
    """A file or a hub data set; folders hold collections here."""
    return data.startswith("hf:") or Path(data).expanduser().is_file()


def _check_free(out: Path, force: bool) -> None:
    if out.is_dir() or (out.exists() and not force):
        raise InputError(f"{out} exists; choose another --out, or --force to replace a file")
