"""The command `demo`: the same texts twice, plainly and with drafts, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

NAME = None
app = typer.Typer()


@app.command(epilog="Example: broadsheet demo")
def demo(
    tokens: Annotated[int, typer.Option(min=8, help="Of each text.")] = 80,
    model: Annotated[str, typer.Option(help="`default`, a hub id, a folder, or a .gguf file.")] = "default",
) -> None:
    """Write three texts twice, plainly and with drafts, and see what that saves: the idea in a minute."""
    from rich.console import Console

    from broadsheet.decode.demo import show

    show(Console(highlight=False), model=model, tokens=tokens)
