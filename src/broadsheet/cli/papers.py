"""The commands `papers` and `show`: the page, and one paper of it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from broadsheet.cli.root import Json, app, told
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


@app.command(epilog="Example: broadsheet show lastde")
def show(
    paper_id: Annotated[str, typer.Argument(metavar="ID", help="A paper's id or arXiv id.")],
    as_json: Json = False,
) -> None:
    """Say what a paper is, where it plugs in, how to call it, and where its evidence stands."""
    from broadsheet.page import evidence
    from broadsheet.page.guides.data import surveys
    from broadsheet.page.papers import RUNGS, docstring, get, load
    from broadsheet.page.staleness import stale

    paper = get(paper_id)
    recorded = evidence.read(paper.id, paper.evidence_folder)
    old = stale(paper.id) if paper.ours else ""
    if as_json:
        print(json.dumps({**paper.to_dict(), "evidence": recorded, "stale": old}, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f"[bold]{paper.title}[/bold]", soft_wrap=False)
    console.print(
        f"{paper.id} · {paper.url} · {paper.kind} · stage {paper.stage} · rung {paper.rung} {RUNGS[paper.rung]}"
        + (f" · {paper.verdict}" if paper.verdict else "")
        + ("" if paper.ours else f" · added by the package {paper.package}")
    )
    if paper.scope:
        console.print(_scope(paper))
    if not paper.entry:
        console.print("\nListed; not built yet. `broadsheet papers --rung 1` lists what runs.")
    for entry in paper.entry:
        module, name = entry.split(":")
        home = f"broadsheet.{paper.stage}" if paper.ours and paper.in_stage else module
        console.print(f"\n[bold]from {home} import {name}[/bold]")
        console.print(Padding(_reflowed(docstring(entry)), (0, 0, 0, 2)), markup=False)
    for command, entry in ((f"try {paper.id}", paper.trial), (f"apply {paper.id} DATA --out OUT", paper.apply)):
        if entry:
            console.print(f"\n[bold]broadsheet {command}[/bold]")
            console.print(Padding(_reflowed(docstring(entry)), (0, 0, 0, 2)), markup=False)
    if paper.id in surveys():
        from broadsheet.page.guides.maps import tree

        root = tree(paper.id)
        nodes = list(root.walk())[1:]
        console.print(f"\n[bold]Its map[/bold] {len(nodes)} nodes, {sum(node.gap for node in nodes)} of them gaps")
        for child in root.children:
            covered = list(dict.fromkeys(name for node in child.walk() for name in node.papers))
            line = f"{child.title}: {', '.join(covered) or 'no paper of the page'}"
            console.print(Padding(line, (0, 0, 0, 2)), markup=False)
        console.print(Padding(f"broadsheet map {paper.id}", (0, 0, 0, 2)), markup=False)
    if recorded:
        from broadsheet.report.html import terminal
        from broadsheet.trial.results import TrialResult

        console.print(f"\n[bold]Evidence[/bold] recorded {recorded['provenance']['date']}")
        if old:
            console.print(f"It may not be that of the code as it is: {old}.", markup=False)
        console.print()
        terminal(TrialResult.from_dict(recorded), console)
    # Last, since reading options imports what they are of: everything above is on the screen by then.
    for command, entry in (("try", paper.trial), ("apply", paper.apply)):
        if entry:
            console.print(f"\n[bold]Options of broadsheet {command} {paper.id}[/bold]")
            console.print(Padding(_options(load(entry)), (0, 0, 0, 2)))


def _scope(paper: Any) -> Any:
    """What of a paper is here, what is not, and what stands in for what, as a table without lines."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for heading, phrases in paper.scope.items():
        table.add_row(heading, Text("; ".join(phrases)))
    return table


def _options(kind: type) -> Any:
    """A class's options as a table."""
    from rich.table import Table

    from broadsheet.options import describe

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in describe(kind):
        table.add_row(row.name, f"{told(row)}")
    return table


def _reflowed(text: str) -> str:
    """A docstring with its wrapped lines joined, for a terminal of any width.

    Sources wrap at 120 columns: a line that goes on in the next one is long, and the next one is not less indented.
    """
    lines: list[str] = []
    wrapped_at = -1
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and 0 <= wrapped_at <= indent:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
        wrapped_at = indent if len(line) > 102 else -1
    return "\n".join(lines)
