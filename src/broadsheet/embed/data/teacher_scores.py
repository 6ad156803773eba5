"""What `broadsheet apply llm_embedder` trains on: rows with a teacher's scores, made first where there are none.

Knows: rows of candidates, the scorer, a file that scores are kept in. Does not know: how scores become a loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus
from broadsheet.data.rows import Listed
from broadsheet.data.schemas import QUERY
from broadsheet.embed.data.chunks import continuations
from broadsheet.embed.data.feedback import Candidates, LikelihoodScorer, score_corpus
from broadsheet.embed.data.rows import query_column

_TEXTS = 200  # queries made of texts: some minutes of scoring


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
        n: rows at random; 0 for all, of texts 200.
        candidates: of each query made of a text.
        task: of rows that name none.
        force: make the scores anew.

    Raises:
        InputError: a row lacks candidates, or scores and answers; or the file of scores is of other rows.
    """
    place: dict[str, Any] = {"device": device} if device else {}
    scorer: LikelihoodScorer | None = None
    given: Sequence[Candidates]
    if {*QUERY, *query_column(corpus).values()} & set(corpus.fields()):
        given = corpus.read(_Scorable, query_column(corpus)).some("rows to train on", n, seed)
    else:
        scorer = LikelihoodScorer.load(teacher, **place)
        given = _continued(corpus, scorer, n or _TEXTS, candidates, seed)
    given = [replace(row, task=row.task or task) for row in given]
    examples = [{"id": row.id, **row.example()} for row in given]
    if all("teacher_scores" in row for row in examples):
        return examples
    path = out.with_name(f"{out.name}.scores.jsonl")
    if force or not path.exists():
        say(f"{path}: {teacher} scores the candidates of {len(examples):,} queries")
        scorer = scorer or LikelihoodScorer.load(teacher, **place)
        # A file that was begun is resumed; its own record refuses other rows or another teacher.
        made = score_corpus(Listed(corpus.spec, given), path, scorer, seed=seed, force=force and path.exists())
        if not made.finished:
            raise KeyboardInterrupt
    else:
        say(f"{path}: scores that were made before are used")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if [(row["id"], row["query"]) for row in rows] != [(row["id"], row["query"]) for row in examples]:
        raise InputError(f"{path} holds the scores of other rows; remove it, or choose another --out")
    return rows


@dataclass(frozen=True)
class _Scorable(Candidates):
    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.teacher_scores or self.answers):
            raise ValueError("neither 'teacher_scores' nor 'answers' to make them from")


def _continued(corpus: Corpus, scorer: LikelihoodScorer, n: int, candidates: int, seed: int) -> Sequence[Candidates]:
    """Chunks of long texts, with what follows them as the answer; of those the trial does not ask about."""
    found = continuations(corpus, scorer.tokenizer, n, test=False, candidates=candidates, seed=seed)
    return [Candidates(each.query, "lrlm", history=each.keys, answers=(each.output,), id=each.id) for each in found]
