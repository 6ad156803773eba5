"""What `broadsheet apply llm_embedder` trains on: rows with a teacher's scores, made first where there are none.

Knows: rows of candidates, the scorer, a file that scores are kept in. Does not know: how scores become a loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus, Document, RowLocation
from broadsheet.embed.data.chunks import continuations
from broadsheet.embed.data.feedback import LikelihoodScorer, read_example, score_corpus
from broadsheet.embed.data.rows import QUERY, as_pair, kept, read_by, sample

_TEXTS = 200  # queries made of texts: some minutes of scoring


class Listed(Corpus):
    """Rows in memory as a corpus, so that mapping over them can be stopped and gone on with."""

    def __init__(self, spec: str, rows: Sequence[dict[str, Any]]) -> None:
        super().__init__(spec, "stop", "query", "id")
        self.rows = rows
        self.count = len(rows)

    def identity(self) -> dict[str, Any]:
        return {"rows": self.fingerprint()}

    def fingerprint(self) -> str:
        return fingerprint(list(self.rows))

    def describe(self) -> str:
        return f"{self.spec}: {len(self.rows):,} rows"

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for row in self.rows:
            yield RowLocation(row["id"], row["id"]), row


def scored(
    corpus: Corpus,
    out: Path,
    teacher: str,
    *,
    n: int = 0,
    candidates: int = 8,
    task: str = "qa",
    seed: int = 0,
    force: bool = False,
    device: str = "",
) -> list[dict[str, Any]]:
    """Rows with `teacher_scores`, as `LLMEmbedder.fit` takes them.

    Args:
        corpus: rows of `query` with `pos` and `neg` or `history`, or pairs (see `rows.pairs`); and with
            `teacher_scores`, or with `answers`, what a language model shall say. Or long texts: a chunk is the query,
            the text after it the answer.
        out: of the training; `<out>.scores.jsonl` beside it holds the scores that were made.
        teacher: the language model that makes them.
        n: so many rows at random; 0 for all, of texts 200.
        candidates: of each query made of a text.
        task: of rows that name none.
        force: make the scores anew.

    Raises:
        InputError: a row lacks candidates, or scores and answers; or the file of scores is of other rows.
    """
    place: dict[str, Any] = {"device": device} if device else {}
    scorer: LikelihoodScorer | None = None
    if set(QUERY) & set(corpus.fields()):
        read_by(corpus, QUERY)
        examples = kept(corpus, sample(corpus, n, seed), lambda document: _example(document, task))
    else:
        scorer = LikelihoodScorer.load(teacher, **place)
        examples = _continued(corpus, scorer, n or _TEXTS, candidates, seed)
    if not examples:
        raise InputError(f"{corpus.spec} holds no rows to train on")
    if all("teacher_scores" in row for row in examples):
        return examples
    path = out.with_name(f"{out.name}.scores.jsonl")
    if force or not path.exists():
        say(f"{path}: {teacher} scores the candidates of {len(examples):,} queries")
        scorer = scorer or LikelihoodScorer.load(teacher, **place)
        # A file that was begun is gone on with; its own record refuses other rows or another teacher.
        made = score_corpus(Listed(corpus.spec, examples), path, scorer, seed=seed, force=force and path.exists())
        if not made.finished:
            raise KeyboardInterrupt
    else:
        say(f"{path}: scores that were made before are used")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if [(row["id"], row["query"]) for row in rows] != [(row["id"], row["query"]) for row in examples]:
        raise InputError(f"{path} holds the scores of other rows; remove it, or choose another --out")
    return rows


def _example(document: Document, task: str) -> dict[str, Any] | str:
    """A row with its candidates, and scores or answers; or why it is none."""
    row = document.metadata
    given: dict[str, Any] = {"id": document.id, "task": row.get("task") or task}
    if {"pos", "neg", "history"} & row.keys():
        given |= read_example(Document(document.id, document.text, {**row, **given}), document.id)
    else:
        pair = as_pair(document)
        if isinstance(pair, str):
            return pair
        given |= {"query": pair["query"], "pos": [pair["positive"]], "neg": pair["negatives"]}
        given |= {name: row[name] for name in ("answers", "teacher_scores") if name in row}
    if "teacher_scores" not in given and not given.get("answers"):
        return "neither 'teacher_scores' nor 'answers' to make them from"
    return given


def _continued(corpus: Corpus, scorer: LikelihoodScorer, n: int, candidates: int, seed: int) -> list[dict[str, Any]]:
    """Chunks of long texts, with what follows them as the answer; of those the trial does not ask about."""
    found = continuations(corpus, scorer.tokenizer, n, test=False, candidates=candidates, seed=seed)
    return [
        {"id": each.id, "task": "lrlm", "query": each.query, "history": list(each.keys), "answers": [each.output]}
        for each in found
    ]
