"""What `broadsheet rerank` and `broadsheet label` do: candidates of a search reordered, whole lists labelled.

Knows: BEIR folders, TREC runs, rank_llm's requests, `ListwiseReranker`, the label builder. Does not know: options.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.cache import fingerprint, locked
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Document
from broadsheet.data.retrieval.beir import Beir
from broadsheet.data.retrieval.trec import read_run, write_run
from broadsheet.data.rows import Listed, OnError
from broadsheet.data.sources import is_rows
from broadsheet.rank.prompts.formats import read_requests, rerank_requests, write_requests
from broadsheet.rank.training.rows import write_rows

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

_QUERIES = 16  # reranked side by side, and kept when the command is stopped


def label(
    rows: list[dict[str, Any]],
    out: Path,
    *,
    reranker: ListwiseReranker | None = None,
    teacher: str | None = None,
    window: int = 20,
    step: int = 10,
    force: bool = False,
) -> Summary:
    """Order all documents of each row by several passes of windows, into a JSONL file of rows with `ranking`.

    Args:
        rows: of `query` and `documents`.
        reranker, teacher: one of them compares the windows; a teacher by name as in `Teacher.load`.

    Raises:
        InputError: `out` exists; the teacher cannot be used.
    """
    from broadsheet.rank.fullrank import complete_labels
    from broadsheet.rank.labelling import reranker_comparator, teacher_comparator

    _check_free(out, force)
    if teacher is not None:
        from broadsheet.teacher import Teacher

        compare, name = teacher_comparator(Teacher.load(teacher)), teacher
    elif reranker is not None:
        compare, name = reranker_comparator(reranker), f"{reranker.spec} {fingerprint(reranker.settings())}"
    else:
        raise InputError("got no reranker and no teacher; expected one that compares the windows")
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


def rerank(
    data: str,
    out: Path,
    reranker: ListwiseReranker,
    *,
    candidates: int = 20,
    first_stage: str | None = None,
    words: int = 40,
    on_error: OnError = "stop",
    force: bool = False,
) -> Summary:
    """Rerank a BEIR folder's queries into a TREC run, or rank_llm's requests into what rank_llm reads back.

    Args:
        candidates: of a query, the best of the first stage.
        first_stage: a TREC run over the BEIR folder; BM25's by default.
        words: of a passage that is searched and shown; 0: all.
        on_error: at a request that is none, as of `rows.read`.

    Raises:
        InputError: the data cannot be used, or `out` exists.
    """
    path = Path(data).expanduser()
    _check_free(out, force)
    if path.is_dir():
        return _rerank_folder(path, out, reranker, candidates, first_stage, words)
    if not is_rows(data):
        raise InputError(f"{data} is nothing to rerank; give a BEIR folder or rank_llm's requests")
    requests = read_requests(data, on_error)
    started = time.perf_counter()
    done = rerank_requests(reranker, requests)
    write_requests(done, out)
    seconds = time.perf_counter() - started
    say(f"{out}: {len(done):,} requests, {seconds:.1f} s")
    return Summary(out, len(done), 0, seconds, True)


def _rerank_folder(
    folder: Path, out: Path, reranker: ListwiseReranker, depth: int, first_stage: str | None, words: int
) -> Summary:
    beir = Beir(folder, words)
    if first_stage:
        run = read_run(Path(first_stage))
        if unknown := sorted(set(run) - set(beir.queries)):
            raise InputError(
                f"{first_stage} names {len(unknown):,} queries that {folder} lacks, such as {unknown[0]!r}"
            )
    else:
        run = beir.search(depth)
    settings = {
        "model": reranker.spec,
        "reranker": reranker.settings(),
        "depth": depth,
        "run": fingerprint(run),
        "words": words,
    }

    def reordered(batch: list[Document]) -> list[dict[str, Any]]:
        part = {query.id: run[query.id] for query in batch}
        ranked = reranker.rank_run(part, beir.queries, beir.documents, depth)
        return [{"run": ranked[query.id]} for query in batch]

    # The run is written last, from lines that a stopped command resumes after.
    lines = out.with_name(f"{out.name}.jsonl")
    queries = Listed(str(folder), [Document(query, beir.queries[query]) for query in run])
    summary = map_corpus(queries, lines, reordered, batch_size=_QUERIES, settings=settings, force=lines.exists())
    if summary.finished:
        write_run(dict(_reranked(lines)), out)
        lines.unlink()
        say(f"{out}: the reranked run")
    return Summary(out, summary.documents, summary.resumed, summary.seconds, summary.finished)


def _reranked(lines: Path) -> Iterator[tuple[str, dict[str, float]]]:
    with lines.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record["id"], record["run"]


def _check_free(out: Path, force: bool) -> None:
    if out.is_dir() or (out.exists() and not force):
        raise InputError(f"{out} exists; choose another --out, or --force to replace a file")
