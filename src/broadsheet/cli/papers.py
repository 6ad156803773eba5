"""The command `papers`: the page, listed and searched."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from broadsheet.cli.root import Json, app
from broadsheet.console import say


@app.command(epilog="Example: broadsheet papers detection --stage detect")
def papers(
    query: Annotated[str, typer.Argument(help="Words to find in title, summary, topics, id or class names.")] = "",
    stage: Annotated[str, typer.Option(help="Only this stage, e.g. detect.")] = "",
    kind: Annotated[str, typer.Option(help="Only method, study, benchmark or survey.")] = "",
    rung: Annotated[int, typer.Option(min=0, max=4, help="Only papers that have reached at least this rung.")] = 0,
    as_json: Json = False,
) -> None:
    """List and search the page.

    The rung is how far a paper's evidence reaches: 0 listed, 1 runs, 2 exact, 3 helps, 4 leads. Beside it stands what
    the recorded trial says of the paper's claims: shown, refuted here, or open (it could not have seen them).
    """
    from broadsheet.page.papers import RUNGS, ours, search

    found = search(query, stage=stage, kind=kind, rung=rung)
    if as_json:
        print(json.dumps([paper.to_dict() for paper in found], indent=1, ensure_ascii=False))
        return
    from shutil import get_terminal_size

    width = get_terminal_size().columns if sys.stdout.isatty() else 10_000
    first = max((len(paper.id) for paper in found), default=2)
    for row in [("id", "stage", "rung", "claims", "title")] * bool(found) + [
        (paper.id, paper.stage, f"{paper.rung} {RUNGS[paper.rung]}", paper.verdict or "—", _titled(paper))
        for paper in found
    ]:
        line = f"{row[0]:{first}}  {row[1]:10}  {row[2]:8}  {row[3]:12}  {row[4]}"
        print(line if len(line) <= width else line[: width - 1] + "…")
    theirs = sum(not paper.ours for paper in found)
    also = f", and {theirs} of other packages" if theirs else ""
    say(f"{len(found) - theirs} of {len(ours())} papers{also}")
    if not found:
        filters = [f"--stage {stage}"] * bool(stage) + [f"--kind {kind}"] * bool(kind) + [f"--rung {rung}"] * bool(rung)
        asked = " and ".join([*([f"the words “{query}”"] if query else []), *filters])
        say(f"no paper has {asked}: leave out a word or a filter, or describe your task: broadsheet advise --goal “…”")


def _titled(paper: Any) -> str:
    """A paper's title; after it the package that brings it, where that is not broadsheet."""
    return paper.title if paper.ours else f"{paper.title} [{paper.package}]"
