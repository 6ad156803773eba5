"""The command `show`: one paper of the page on one screen, or a stage of it."""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broadsheet.cli.root import Json, app, told

if TYPE_CHECKING:
    from rich.console import Console

    from broadsheet.page.papers import Paper, Stage


@app.command(epilog="Example: broadsheet show lastde")
def show(
    name: Annotated[
        str, typer.Argument(metavar="ID|STAGE", help="A paper (id, arXiv id or address, class name), or a stage.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Every class, field and option, and all that was measured.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a paper is, when to take it, how to call it, and what was measured of it; or what a stage offers."""
    from broadsheet.page.papers import get, stages, which

    stage = next((stage for stage in stages() if stage.id == name.lower()), None)
    if as_json and stage is None:
        _print_json(get(name))
        return
    if as_json and stage is not None:
        print(json.dumps([paper.to_dict() for paper in stage.papers], indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if stage is not None or which(name.lower()):
        _show_stage(console, name.lower(), stage)
        return
    paper = get(name)
    with console.pager(styles=True) if full and sys.stdout.isatty() else nullcontext():
        _head(console, paper)
        if full:
            _show_all(console, paper)
        else:
            _show_brief(console, paper)


def _print_json(paper: Paper) -> None:
    from broadsheet.page import evidence
    from broadsheet.page.staleness import stale

    recorded = evidence.read(paper.id, paper.evidence_folder)
    more = {"evidence": recorded, "stale": stale(paper.id) if paper.ours else ""}
    print(json.dumps({**paper.to_dict(), **more}, indent=1, ensure_ascii=False))


def _head(console: Console, paper: Paper) -> None:
    from broadsheet.page.papers import RUNGS

    console.print(f"[bold]{paper.title}[/bold]", soft_wrap=False)
    console.print(
        f"{paper.id} · {paper.url} · {paper.kind} · stage {paper.stage} · rung {paper.rung} {RUNGS[paper.rung]}"
        + (f" · {paper.verdict}" if paper.verdict else "")
        + ("" if paper.ours else f" · added by the package {paper.package}")
    )
    if paper.summary:
        console.print(f"\n{paper.summary}", markup=False)
    if not paper.entry:
        console.print("\nListed; not built yet. `broadsheet papers --rung 1` lists what runs.", markup=False)


# One screen


def _show_brief(console: Console, paper: Paper) -> None:
    """When to take it, an example, what was measured, what to type next."""
    from rich.padding import Padding

    from broadsheet.page import evidence
    from broadsheet.page.docparts import example, first_sentences, use
    from broadsheet.page.guides.data import surveys
    from broadsheet.page.papers import docstring
    from broadsheet.page.staleness import stale

    for entry in paper.entry[: paper.in_stage]:
        text = docstring(entry)
        console.print(f"\n{paper.import_line(entry)}", style="bold", markup=False)
        console.print(Padding(first_sentences(text, 1) or "", (0, 0, 0, 2)), markup=False)
        if when := use(text):
            console.print(Padding(when, (0, 0, 0, 2)), markup=False)
        if code := example(text):
            console.print()
        for line in code.splitlines():  # unbroken, so that it can be pasted
            console.print(f"    {line}", markup=False, soft_wrap=True)
    if paper.id in surveys():
        _map(console, paper)
    if recorded := evidence.read(paper.id, paper.evidence_folder):
        from broadsheet.report.answer import TrialAnswer
        from broadsheet.trial.results import TrialResult

        answer = TrialAnswer(TrialResult.from_dict(recorded))
        console.print(f"\nMeasured {recorded['provenance']['date'][:10]}", style="bold", markup=False)
        for told in (str(answer), *answer.beside):
            console.print(Padding(told, (0, 0, 0, 2)), markup=False)
        if old := stale(paper.id) if paper.ours else "":
            console.print(Padding(f"Perhaps out of date: {old}.", (0, 0, 0, 2)), markup=False)
    commands = [f"broadsheet try {paper.id} --quick"] * bool(paper.trial)
    commands += [f"broadsheet apply {paper.id} --help"] * bool(paper.apply)
    commands += [f"broadsheet map {paper.id}"] * (paper.id in surveys())
    commands += [f"broadsheet show {paper.id} --full"] * bool(paper.entry)
    console.print()
    for command in commands:
        console.print(f"  {command}", style="bold", markup=False)


def _map(console: Console, paper: Paper) -> None:
    """A survey's part of the map."""
    from rich.padding import Padding

    from broadsheet.page.guides.maps import tree

    root = tree(paper.id)
    nodes = list(root.walk())[1:]
    console.print(f"\n[bold]Its map[/bold] {len(nodes)} nodes, {sum(node.gap for node in nodes)} of them gaps")
    for child in root.children:
        covered = list(dict.fromkeys(name for node in child.walk() for name in node.papers))
        line = f"{child.title}: {', '.join(covered) or 'no paper of the page'}"
        console.print(Padding(line, (0, 0, 0, 2)), markup=False)


# All of it


def _show_all(console: Console, paper: Paper) -> None:
    """Every class with its fields, what of the paper is here, all that was measured, all options."""
    from rich.padding import Padding

    from broadsheet.page import evidence
    from broadsheet.page.guides.data import surveys
    from broadsheet.page.papers import docstring, load
    from broadsheet.page.staleness import stale

    if paper.scope:
        console.print()
        console.print(_scope(paper))
    for entry in paper.entry:
        console.print(f"\n{paper.import_line(entry)}", style="bold", markup=False)
        console.print(Padding(_reflowed(docstring(entry)), (0, 0, 0, 2)), markup=False)
    for command, entry in ((f"try {paper.id}", paper.trial), (f"apply {paper.id} DATA --out OUT", paper.apply)):
        if entry:
            console.print(f"\n[bold]broadsheet {command}[/bold]")
            console.print(Padding(_reflowed(docstring(entry)), (0, 0, 0, 2)), markup=False)
    if paper.id in surveys():
        _map(console, paper)
        console.print(Padding(f"broadsheet map {paper.id}", (0, 0, 0, 2)), markup=False)
    if recorded := evidence.read(paper.id, paper.evidence_folder):
        from broadsheet.report.html import terminal
        from broadsheet.trial.results import TrialResult

        console.print(f"\n[bold]Evidence[/bold] recorded {recorded['provenance']['date']}")
        if old := stale(paper.id) if paper.ours else "":
            console.print(f"Perhaps out of date: {old}.", markup=False)
        console.print()
        terminal(TrialResult.from_dict(recorded), console, full=True)
    # Last, since reading options imports what they are of: everything above is on the screen by then.
    for command, entry in (("try", paper.trial), ("apply", paper.apply)):
        if entry:
            console.print(f"\n[bold]Options of broadsheet {command} {paper.id}[/bold]")
            console.print(Padding(_options(load(entry)), (0, 0, 0, 2)))


def _show_stage(console: Console, name: str, stage: Stage | None) -> None:
    """What a folder of the library is for: which of its methods to take when, its papers, what its trial does."""
    from rich.padding import Padding
    from rich.text import Text

    from broadsheet.page.docparts import first_sentences
    from broadsheet.page.papers import RUNGS, docstring, which

    console.print(f"[bold]{name}[/bold]" + (f": {stage.about}" if stage else ""))
    if table := which(name):
        console.print()
        console.print(_markdown_table(table))
    papers = sorted(stage.papers, key=lambda paper: not paper.entry) if stage else []
    width = max((len(paper.id) for paper in papers), default=0)
    console.print()
    for paper in papers:
        state = RUNGS[paper.rung] + f", {paper.verdict}" * bool(paper.verdict) if paper.entry else "not built yet"
        line = Text(f"{paper.id:{width}}  {state:20}  {paper.title}", "" if paper.entry else "dim")
        console.print(line, no_wrap=True, overflow="ellipsis")
    if stage and stage.trial:
        console.print(f"\n[bold]broadsheet try {name}[/bold]")
        console.print(Padding(first_sentences(docstring(stage.trial), 3), (0, 0, 0, 2)), markup=False)


def _markdown_table(text: str) -> Any:
    """A table of a page as one for the terminal: nothing is cut, what was code is bold."""
    from rich.table import Table
    from rich.text import Text

    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), header_style="bold")
    for title in head:
        table.add_column(title, overflow="fold")
    for row in rows:
        cells = [re.sub(r"\[(.+?)\]\(.+?\)", r"\1", cell).split("`") for cell in row]
        table.add_row(*(Text.assemble(*((part, "bold" * (i % 2)) for i, part in enumerate(parts))) for parts in cells))
    return table


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
