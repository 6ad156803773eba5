"""The commands `broadsheet rerank` and `broadsheet label`. Parse, call `reranking`; import nothing heavy before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(rich_markup_mode=None)
NAME = None  # its commands stand beside broadsheet's own

Out = Annotated[Path, typer.Option(help="The result; resumes where a stopped run ended.")]
Reranker = Annotated[str, typer.Option(metavar="FOLDER", help="A trained reranker, or a model.")]
FirstStage = Annotated[
    str | None, typer.Option(metavar="FILE", help="A TREC run over the BEIR folder; by default BM25's.")
]
Words = Annotated[int, typer.Option(min=0, help="Of a passage that is searched and shown; 0: all.")]
Window = Annotated[int | None, typer.Option(min=2, help="Passages in a call; by default the reranker's own.")]
Step = Annotated[int | None, typer.Option(min=1, help="How far the window moves on; by default its own.")]
OnError = Annotated[Literal["stop", "skip"], typer.Option(help="At a bad row: stop, or skip and count.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT and start over.")]
Device = Annotated[str | None, typer.Option(help="Of the reranker; chosen by default.")]
Dtype = Annotated[str | None, typer.Option(help="Of the reranker; chosen by default.")]


def _load(name: str, device: str | None, dtype: str | None, **changes: Any) -> Any:
    from broadsheet.rank.base import ListwiseReranker

    given = {key: value for key, value in changes.items() if value is not None}
    return ListwiseReranker.load(name, device=device, dtype=dtype, **given)


@app.command(epilog="Example: broadsheet rerank cranfield --reranker runs/first --out runs/cranfield.run")
def rerank(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A BEIR folder, or rank_llm's requests.")],
    out: Out,
    reranker: Reranker = "default",
    candidates: Annotated[int, typer.Option(min=1, help="Of a query, the best of the first stage.")] = 20,
    first_stage: FirstStage = None,
    words: Words = 40,
    window: Window = None,
    step: Step = None,
    on_error: OnError = "stop",
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Rerank what a search found: a BEIR folder into a TREC run, requests into what rank_llm reads back."""
    from broadsheet.data.sources import keep_inputs
    from broadsheet.rank import reranking

    keep_inputs(out, data, first_stage, reranker)
    made = _load(reranker, device, dtype, window=window, step=step)
    options: dict[str, Any] = {"first_stage": first_stage, "words": words, "on_error": on_error, "force": force}
    done = reranking.rerank(data, out, made, candidates=candidates, **options)
    if not done.finished:
        raise KeyboardInterrupt


@app.command(epilog="Example: broadsheet label pydocs --reranker runs/first --lists 200 --out labels.jsonl")
def label(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="`pydocs`, a BEIR folder, or rows of `query` and `documents`.")
    ],
    out: Out,
    reranker: Reranker = "default",
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="What compares windows instead, as in Teacher.load.")
    ] = None,
    lists: Annotated[int, typer.Option(min=1, help="Labelled, at most.")] = 2000,
    candidates: Annotated[int, typer.Option(min=2, help="Of a list.")] = 100,
    first_stage: FirstStage = None,
    words: Words = 40,
    titles: Annotated[bool, typer.Option("--titles", help="Passages of pydocs show their function's name.")] = False,
    split: Annotated[str, typer.Option(help="Of the BEIR folder's qrels.")] = "train",
    window: Window = None,
    step: Step = None,
    on_error: OnError = "stop",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of lists.")] = 0,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Label whole lists for `apply fullrank`: all documents ordered by several passes of windows that are compared."""
    from broadsheet.data.sources import is_rows, keep_inputs
    from broadsheet.rank import reranking
    from broadsheet.rank.list_source import ListSource
    from broadsheet.rank.training.rows import read_rows, training_rows

    keep_inputs(out, data, first_stage, reranker)
    if is_rows(data):
        rows = read_rows(data, on_error)[:lists]
    else:
        found = ListSource(data, words, titles, first_stage or "", split, seed).train(lists, candidates)
        rows = training_rows(found.lists, order="first_stage")
    made = None if teacher else _load(reranker, device, dtype, strategy="full")
    reranking.label(rows, out, reranker=made, teacher=teacher, window=window or 20, step=step or 10, force=force)
