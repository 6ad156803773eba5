"""The commands `broadsheet profile` and `broadsheet datasets`. They parse, call one function, print.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broadsheet.console import InputError, say

if TYPE_CHECKING:
    from broadsheet.curate.cards.records import CatalogueRecord
    from broadsheet.curate.datasets_survey import Filled, Profile

app = typer.Typer(rich_markup_mode=None)
NAME = None  # its commands stand beside broadsheet's own
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(epilog="Example: broadsheet profile corpus.jsonl --declare license=mit --card README.md")
def profile(
    data: Annotated[str, typer.Argument(metavar="DATA", help="`pydocs`, a file, a folder, or hf:org/name:split.")],
    card: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the dataset card here.")] = None,
    declare: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What rows do not tell, as license=mit; may be repeated."),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Of the dataset; by default what its columns tell.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(metavar="DATA", help="Look for its items in the data, by 13 words in a row.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Count tokens by this model's tokenizer.")
    ] = None,
    near: Annotated[bool, typer.Option(help="Look for near duplicates.")] = True,
    text_field: Annotated[
        str, typer.Option(help="The field that holds the text; by default all texts count.")
    ] = "text",
    workers: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a card that stands there.")] = False,
    as_json: Json = False,
) -> None:
    """Describe a dataset by the survey's 20 dimensions: what rows tell is measured, the rest declared, or unknown.

    A README.md in a folder of data declares its name and license. A run that was killed resumes.
    """
    import time

    from broadsheet.cache import atomic_write, home, remove_folder
    from broadsheet.curate.cards.card import card as made
    from broadsheet.curate.cards.card import declared_in
    from broadsheet.curate.datasets_survey import Profiler
    from broadsheet.curate.files import DamagedError
    from broadsheet.data.sources import keep_inputs

    if card is not None:
        keep_inputs(card, data, benchmark)
    if card is not None and card.exists() and not force:
        raise InputError(f"{card} exists; choose another --card, or --force to replace it")
    declared = declared_in(Path(data).expanduser()) if Path(data).expanduser().is_dir() else {}
    declared |= dict(map(_declared, declare or []))
    profiler, started = Profiler(near=near), time.perf_counter()
    profiler.check(declared, family or "")
    settings = {"near": near, "benchmark": benchmark, "tokenizer": tokenizer, "text_field": text_field}
    work = home() / "profiles" / _key(data, settings, workers)
    try:
        found = profiler.measure(
            data, work, benchmark=benchmark, tokenizer=tokenizer, text_field=text_field, tasks=workers, workers=workers
        )
    except DamagedError as error:
        remove_folder(work)
        raise InputError(f"{error}; it is removed: run the same command again") from None
    except InputError:
        if not any(work.glob("passes/completions/*")):
            remove_folder(work)  # there is nothing to resume
        raise
    remove_folder(work)
    filled = profiler.fill(found, declared, family or "")
    seconds = time.perf_counter() - started
    if card is not None:
        with atomic_write(card) as file:
            file.write(made(found, filled))
        say(f"wrote {card}")
    if as_json:
        dimensions = [{"dimension": each.dimension.name, **_told(each)} for each in filled]
        print(json.dumps({"dimensions": dimensions, **found.as_json()}, indent=1, ensure_ascii=False))
        return
    _show(found, filled, family or found.family)
    size = found.total("bytes")
    if size >= 1e6:
        say(f"{seconds:,.1f} s; {1e8 * seconds / size:,.0f} s per 100 MB")


def _declared(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise InputError(f"got --declare {text!r}; expected NAME=VALUE, as license=mit")
    return name.strip(), value.strip()


def _key(data: str, settings: dict[str, Any], workers: int) -> str:
    """The name of the folder that a run works in: the same for the same rows and settings."""
    from broadsheet.cache import fingerprint
    from broadsheet.console import quiet
    from broadsheet.data import corpora

    with quiet():
        return fingerprint([data, corpora.load(data).identity(), settings, workers])


def _told(each: Filled) -> dict[str, str]:
    return {"value": each.value, "how": each.how, "note": each.note}


def _show(found: Profile, filled: list[Filled], family: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from broadsheet.curate.cards.card import figures, standing
    from broadsheet.curate.cards.records import catalogue

    console = Console(highlight=False)
    console.print(f"[bold]{found.spec}[/]: {family}, {found.instances:,} rows", soft_wrap=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("dimension", "value", "known"):
        table.add_column(name, overflow="fold")
    for each in filled:
        if each.how != "unknown":
            table.add_row(each.dimension.name, Text(each.value), Text(": ".join(filter(None, [each.how, each.note]))))
    console.print(table)
    if missing := [each.dimension.name for each in filled if each.how == "unknown"]:
        console.print(f"unknown: {', '.join(missing)}; tell them by --declare NAME=VALUE", style="dim")
    console.print()
    measured = Table(box=None, pad_edge=False, show_header=False)
    for what, value in figures(found):
        measured.add_row(Text(what), Text(value))
    console.print(measured)
    if where := standing(found, family, catalogue()):
        console.print(f"\n{where} (broadsheet datasets)", style="dim")


@app.command(epilog="Example: broadsheet datasets medical instruction --license apache")
def datasets(
    query: Annotated[list[str] | None, typer.Argument(metavar="QUERY", help="Words that a record holds.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the dataset, as EN; PL is code.")] = None,
    license: Annotated[str | None, typer.Option(help="Part of the license's name.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Only what is all public.")] = False,
    page: Annotated[
        Path | None, typer.Option("--catalogue", metavar="FILE", help="Another page of the catalogue's form.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Records to show.")] = 10,
    as_json: Json = False,
) -> None:
    """Search the survey's catalogue of datasets: names, dates, sizes, languages, licenses, links.

    It is that of github.com/lmmlzn/Awesome-LLMs-Datasets (Apache-2.0), facts only, and may be wrong or old: a license
    it names is not legal advice.
    """
    from broadsheet.curate.cards.records import as_row, catalogue, search

    found = [
        each
        for each in search(catalogue(page), " ".join(query or []))
        if (language is None or language.upper() in str(each.languages).split(" & "))
        and (license is None or license.casefold() in each.license.casefold())
        and (not public or each.public == "All")
    ]
    if as_json:
        print(json.dumps([as_row(each) for each in found[:most]], indent=1, ensure_ascii=False))
        return
    if not found:
        raise InputError("no record holds all of that; try fewer words")
    _list(found, most)


def _list(found: list[CatalogueRecord], most: int) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for each in found[:most]:
        size = str(each.size) if each.size else "size not told"
        told = [each.released, each.language, size, each.license if each.license != "-" else "license not known"]
        console.print(each.name, style="bold", end="  ", soft_wrap=True)
        console.print(" · ".join(told), soft_wrap=True)
        console.print(f"  {' › '.join(each.section)}", style="dim", soft_wrap=True)
        link = each.links.get("Dataset") or next(iter(each.links.values()), "")
        if link:
            console.print(f"  {link}", soft_wrap=True)
    if len(found) > most:
        console.print(f"{len(found) - most} more: --most {len(found)}", style="dim")
