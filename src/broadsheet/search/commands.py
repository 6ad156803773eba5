"""The commands `broadsheet index` and `broadsheet search`. They parse, call `actions` and print.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from broadsheet.console import InputError

app = typer.Typer(rich_markup_mode=None)
NAME = None  # its commands stand beside broadsheet's own
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(epilog="Example: broadsheet index corpus.jsonl --out runs/corpus")
def index(
    data: Annotated[str, typer.Argument(metavar="DATA|DIR", help="Documents to index into OUT; or an index.")],
    out: Annotated[Path | None, typer.Option(help="The index; one that stands there is brought up to DATA.")] = None,
    embedder: Annotated[
        str | None,
        typer.Option(help="A saved embedder or a model. Default: the index's own, for a new one the default model."),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that DATA no longer holds.")] = False,
    delete: Annotated[list[str] | None, typer.Option(metavar="ID", help="Remove a document; may be repeated.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Verify every file, and report recall@10 against exact search.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make a damaged index sound from what is left.")] = False,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad line: stop, or skip it (counted and said).")
    ] = "stop",
    text_field: Annotated[str, typer.Option(help="The field that holds a document's text.")] = "text",
    id_field: Annotated[str, typer.Option(help="The field that holds a document's id.")] = "id",
    device: Annotated[str | None, typer.Option(help="Of the embedder; chosen by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the embedder; chosen by default.")] = None,
    as_json: Json = False,
) -> None:
    """Embed documents into an index on disk, bring it up to date, check it or mend it.

    Only new and changed documents are embedded; a killed run resumes where it stopped, and leaves the index that was
    there. Without --out, DIR is an index, for --check, --delete and --rebuild.
    """
    from broadsheet.data import corpora
    from broadsheet.search import actions

    folder = Path(data if out is None else out).expanduser()
    if out is None and not (delete or check or rebuild):
        raise InputError(f"got nothing to do with {data}: give --out DIR to index it, or --check, --delete, --rebuild")
    if out is None and prune:
        raise InputError("--prune needs documents to compare with: broadsheet index DATA --out DIR --prune")
    found = actions.rebuild(folder, embedder) if rebuild else None
    change = None
    if out is not None:
        corpus = corpora.load(data, on_error=on_error, text_field=text_field, id_field=id_field)
        found, change = actions.update(corpus, folder, embedder, prune=prune, device=device, dtype=dtype)
    found = found or actions.opened(folder, embedder, device, dtype)
    deleted = found.delete(delete) if delete else 0
    checked = found.check() if check else None
    if as_json:
        from dataclasses import asdict

        facts = {"change": change and asdict(change), "deleted": deleted, "check": checked and asdict(checked)}
        print(json.dumps({"index": str(folder), **actions.state(found), **facts}, indent=1, ensure_ascii=False))
        return
    for line in actions.lines(found, change, deleted, checked):
        print(line)


@app.command(epilog="Example: broadsheet search runs/corpus 'how do I sort a list?'")
def search(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An index made by `broadsheet index`.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    top_k: Annotated[int, typer.Option(min=1, help="How many documents to show.")] = 10,
    mode: Annotated[
        Literal["dense", "bm25", "hybrid"] | None,
        typer.Option(help="By vectors, by words, or both (the default; dense where there are no keywords)."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every vector instead of a graph.")] = False,
    embedder: Annotated[str | None, typer.Option(help="The index's embedder, where it lies elsewhere now.")] = None,
    device: Annotated[str | None, typer.Option(help="Of the embedder; chosen by default.")] = None,
    as_json: Json = False,
) -> None:
    """Search an index: id, score and the beginning of each document that is found, best first."""
    from broadsheet.search import actions

    if mode == "bm25":
        embedder = device = None
    hits = actions.search(actions.opened(folder.expanduser(), embedder, device), query, top_k, mode, exact)
    if as_json:
        from dataclasses import asdict

        print(json.dumps([asdict(hit) for hit in hits], indent=1, ensure_ascii=False))
        return
    from shutil import get_terminal_size

    width = get_terminal_size().columns if sys.stdout.isatty() else 200
    first = max((len(hit.id) for hit in hits), default=0)
    for place, hit in enumerate(hits, start=1):
        line = f"{place:2}  {hit.score:6.3f}  {hit.id:{min(first, width // 3)}}  "
        print(line + hit.snippet(max(width - len(line), 20)))


@app.command(epilog="Example: broadsheet encode corpus.jsonl --embedder runs/gem --out runs/vectors")
def encode(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or folder of documents, `pydocs`, or `hf:…`.")],
    out: Annotated[Path, typer.Option(help="Folder of vectors.npy, ids.jsonl and manifest.json; resumes.")],
    embedder: Annotated[str, typer.Option(help="A saved embedder or a model.")] = "default",
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Encode share I, from 0, of N; the last process joins the shares.")
    ] = "0/1",
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a text; by default the embedder's.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Write vectors of length 1.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write vectors in float16.")] = False,
    keep_texts: Annotated[bool, typer.Option("--keep-texts", help="Write the texts beside the ids.")] = False,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad row: stop, or skip it (counted and reported).")
    ] = "stop",
    text_field: Annotated[str, typer.Option(help="The field that holds a document's text.")] = "text",
    id_field: Annotated[str, typer.Option(help="The field that holds a document's id.")] = "id",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and start over.")] = False,
    device: Annotated[str | None, typer.Option(help="Of the embedder; chosen by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the embedder; chosen by default.")] = None,
) -> None:
    """Encode a corpus into vectors on disk: memory stays flat, a killed run resumes, processes share the work."""
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise InputError(f"got --shard {shard!r}; expected a share, from 0, and their number, such as 0/4")
    from broadsheet.data import corpora
    from broadsheet.data.sources import keep_inputs
    from broadsheet.embed.base import load
    from broadsheet.search.encoding.streaming import encode_corpus

    keep_inputs(out, data, embedder)
    made = load(embedder, device=device, dtype=dtype)
    if length:
        made.max_seq_length = length
    done = encode_corpus(
        made,
        corpora.load(data, on_error=on_error, text_field=text_field, id_field=id_field),
        out,
        shard=(int(part), int(parts)),
        dtype="float16" if half else "float32",
        normalize=normalize,
        texts=keep_texts,
        force=force,
    )
    if not done.shard_finished:
        raise KeyboardInterrupt
