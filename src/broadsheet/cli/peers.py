"""The command `peer`: libraries to measure beside a paper, each in an environment of its own."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer

from broadsheet.cli.root import Json, app
from broadsheet.console import say


@app.command(epilog="Example: broadsheet peer xllamacpp")
def peer(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="What to build; by default all are listed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a peer library's own environment, for `try … --peer NAME`; without a name, list the known ones.

    It says first what it costs. A second call finds what stands in the cache. What is printed on stdout is the command
    that an external arm runs (docs/external.md).
    """
    from broadsheet.trial.outside import peers

    if name is None:
        _list(list(peers.known().values()), as_json)
        return
    found = peers.get(name)
    peers.build(found)
    command = found.command()
    print(json.dumps({**_row(found), "command": command}, indent=1) if as_json else shlex.join(command))
    say(f"measure it beside a paper of {found.stage}: broadsheet try ID --peer {found.name}")


def _row(found: Any) -> dict[str, Any]:
    return {
        "peer": found.name,
        "stage": found.stage,
        "about": found.about,
        "licence": found.licence,
        "packages": found.pins,
        "options": dict(found.options),
        "download_mb": found.download_mb,
        "disk_mb": round(found.size / 1e6) if found.built else found.disk_mb,
        "built": str(found.environment) if found.built else None,
    }


def _list(known: list[Any], as_json: bool) -> None:
    rows = [_row(each) for each in known]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("peer", "stage", "licence", "download", "disk", "built", "what it is a peer for"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row["peer"],
            row["stage"],
            row["licence"],
            f"{row['download_mb']:,} MB",
            f"{row['disk_mb']:,} MB",
            "yes" if row["built"] else "no",
            row["about"],
        )
    Console(highlight=False).print(table)
