"""The command `apply`: a paper used on a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from broadsheet.cli.root import EXTRA, OwnOptions, app, own_options


class _Recipes(OwnOptions):
    def own(self, name: str) -> type | None:
        from broadsheet.page.papers import get_recipe, load

        kind: type = load(get_recipe(name)[1])
        return kind

    def example(self, name: str, kind: type) -> str:
        file = getattr(kind, "writes", "folder") == "file"
        needs = getattr(kind, "needs", "")
        return f"broadsheet apply {name} corpus.jsonl --out {'out.jsonl' if file else f'runs/{name}'} {needs}".rstrip()


@app.command(cls=_Recipes, context_settings=EXTRA, epilog="Example: broadsheet apply lastde corpus.jsonl --out s.jsonl")
def apply(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID|STAGE", help="A paper, or a stage for any of its methods.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or folder of rows, `pydocs`, or `hf:…`.")],
    out: Annotated[Path, typer.Option(help="The result; resumes where a killed run stopped.")],
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad row: stop, or skip it (counted and reported).")
    ] = "stop",
    text_field: Annotated[str, typer.Option(help="The field that holds a document's text.")] = "text",
    id_field: Annotated[str, typer.Option(help="The field that holds a document's id.")] = "id",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and start over.")] = False,
) -> None:
    """Use a paper on a corpus: score it, train on it, build from it. `broadsheet apply ID --help` lists its options."""
    from broadsheet.apply.base import Source
    from broadsheet.options import construct
    from broadsheet.page.papers import get_recipe, load

    paper, entry = get_recipe(name)
    kind = load(entry)
    recipe = construct(kind, own_options(context, kind)[0]).for_paper(paper)
    if not recipe.run(Source(data, on_error, text_field, id_field), out, force=force).finished:
        raise KeyboardInterrupt
