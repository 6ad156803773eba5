"""The commands `models` and `push`: what is cached, and a saved model to the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from broadsheet.cli.root import Json, app


@app.command(epilog="Example: broadsheet models")
def models(as_json: Json = False) -> None:
    """Show which models are cached, how large they are and where they lie."""
    from broadsheet.models import cached

    found = cached()
    if as_json:
        print(json.dumps([model._asdict() for model in found], indent=1, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "size", "state", "path"):
        table.add_column(column, overflow="fold")
    for model in found:
        table.add_row(model.name, f"{model.size / 1e6:,.0f} MB", "whole" if model.whole else "damaged", str(model.path))
    Console(highlight=False).print(table if found else "no model is cached yet: `broadsheet demo` fetches the default")


@app.command(epilog="Example: broadsheet push runs/gem someone/gem")
def push(
    folder: Annotated[Path, typer.Argument(help="A model that `apply` or `save` wrote.")],
    repository: Annotated[str, typer.Argument(help="On the hub: someone/name.")],
    public: Annotated[bool, typer.Option("--public", help="Where it is made anew: for everybody to see.")] = False,
) -> None:
    """Upload a saved model to the Hugging Face hub, with its card: what it is, how it was trained, what was measured.

    HF_TOKEN has to hold a token that may write. A new repository is private.
    """
    from broadsheet.models.pushing import push as upload

    print(upload(folder, repository, private=not public))
