"""The command `broadsheet`. Parses, calls one function of the library, prints.

Knows: every command's arguments. Imports nothing heavy until a command needs it.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from broadsheet import __version__
from broadsheet.console import InputError, say
from broadsheet.hear.commands import app as hear

app = typer.Typer(
    name="broadsheet",
    help="Every paper on one page of 79 papers about LLMs for text: run it on your model and your data, "
    "and see in one run, against the plain baseline, whether it helps.",
    epilog="Start with: broadsheet demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    add_completion=False,
)

_EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[str, typer.Option(help="`default`, a hub id, a folder, or a .gguf file.")]
Data = Annotated[str, typer.Option(help="`pydocs`, a file or folder of documents, or `hf:[org/]name:split`.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"broadsheet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: broadsheet papers detection --stage detect")
def papers(
    query: Annotated[str, typer.Argument(help="Words to find in id, title, arXiv id or class names.")] = "",
    stage: Annotated[str, typer.Option(help="Only this stage, e.g. detect.")] = "",
    kind: Annotated[str, typer.Option(help="Only method, study, benchmark or survey.")] = "",
    rung: Annotated[int, typer.Option(min=0, max=4, help="Only papers that have reached at least this rung.")] = 0,
    as_json: Json = False,
) -> None:
    """List and search the page.

    The rung is how far a paper's evidence reaches: 0 listed, 1 runs, 2 exact, 3 helps, 4 leads.
    """
    from broadsheet.page.papers import RUNGS, page, search

    found = search(query, stage=stage, kind=kind, rung=rung)
    if as_json:
        print(json.dumps([paper.to_dict() for paper in found], indent=1, ensure_ascii=False))
        return
    from shutil import get_terminal_size

    width = get_terminal_size().columns if sys.stdout.isatty() else 10_000
    first = max((len(paper.id) for paper in found), default=2)
    for row in [("id", "stage", "rung", "title")] * bool(found) + [
        (paper.id, paper.stage, f"{paper.rung} {RUNGS[paper.rung]}", paper.title) for paper in found
    ]:
        line = f"{row[0]:{first}}  {row[1]:10}  {row[2]:8}  {row[3]}"
        print(line if len(line) <= width else line[: width - 1] + "…")
    say(f"{len(found)} of {len(page())} papers")


@app.command(epilog="Example: broadsheet show lastde")
def show(
    paper_id: Annotated[str, typer.Argument(metavar="ID", help="A paper's id or arXiv id.")],
    as_json: Json = False,
) -> None:
    """Say what a paper is, where it plugs in, how to call it, and where its evidence stands."""
    from broadsheet.page import evidence
    from broadsheet.page.papers import RUNGS, docstring, get

    paper = get(paper_id)
    recorded = evidence.read(paper.id)
    if as_json:
        print(json.dumps({**paper.to_dict(), "evidence": recorded}, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f"[bold]{paper.title}[/bold]", soft_wrap=False)
    console.print(
        f"{paper.id} · {paper.url} · {paper.kind} · stage {paper.stage} · rung {paper.rung} {RUNGS[paper.rung]}"
    )
    if not paper.entry:
        console.print("\nListed; not built yet. `broadsheet papers --rung 1` lists what runs.")
    for entry in paper.entry:
        module, name = entry.split(":")
        console.print(f"\n[bold]from {'.'.join(module.split('.')[:2])} import {name}[/bold]")
        console.print(Padding(_reflowed(docstring(entry)), (0, 0, 0, 2)), markup=False)
    if paper.trial:
        console.print(f"\n[bold]broadsheet try {paper.id}[/bold]")
        console.print(Padding(_reflowed(docstring(paper.trial)), (0, 0, 0, 2)), markup=False)
    if paper.apply:
        console.print(f"\n[bold]broadsheet apply {paper.id} FILE --out OUT[/bold]")
        console.print(Padding(_reflowed(docstring(paper.apply)), (0, 0, 0, 2)), markup=False)
    if recorded:
        from broadsheet.report.html import terminal
        from broadsheet.trial.results import TrialResult

        console.print(f"\n[bold]Evidence[/bold] recorded {recorded['provenance']['date']}\n")
        terminal(TrialResult.from_dict(recorded), console)


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


@app.command("try", context_settings=_EXTRA, epilog="Example: broadsheet try lastde --quick")
def try_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID|STAGE", help="A paper, or a stage for all its methods at once.")],
    model: Model = "default",
    data: Data = "pydocs",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer items: minutes instead of tens of minutes.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, shuffling and the bootstrap.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report (JSON and HTML).")] = Path("runs"),
    record: Annotated[bool, typer.Option("--record", help="Keep the result as evidence/<id>.json.")] = False,
) -> None:
    """Try a paper against the plain baseline, on your model and your data.

    Prints a table with intervals and one verdict a metric, and writes JSON and one HTML page. A trial's own options are
    given as --name value; `broadsheet show ID` lists them.
    """
    from broadsheet.page.papers import get_trial

    paper, entry = get_trial(name)
    _run_trial(paper, entry, {"model": model, "data": data, "quick": quick, "seed": seed}, context.args, out, record)


@app.command(context_settings=_EXTRA, epilog="Example: broadsheet study dense_retrieval --preset A")
def study(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID", help="A study; `_study` at the end may be left out.")],
    model: Model = "default",
    data: Data = "pydocs",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer items: minutes instead of tens of minutes.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of data, order and the bootstrap.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report (JSON and HTML).")] = Path("runs"),
    record: Annotated[bool, typer.Option("--record", help="Keep the result as evidence/<id>.json.")] = False,
) -> None:
    """Rerun a study's table on your models and data: `try`, for papers that compare what others propose.

    Cells of a table are kept, so that another table, or the same one again, does not train them anew.
    """
    from broadsheet.page.papers import get_trial, page

    kinds = {paper.id: paper.kind for paper in page()}
    paper, entry = get_trial(f"{name}_study" if f"{name}_study" in kinds else name)
    if kinds.get(paper) != "study":
        raise InputError(f"{paper} is no study: `broadsheet try {paper}` tries it, `papers --kind study` lists studies")
    _run_trial(paper, entry, {"model": model, "data": data, "quick": quick, "seed": seed}, context.args, out, record)


@app.command(epilog="Example: broadsheet demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report (JSON and HTML).")] = Path("runs"),
) -> None:
    """Try the first paper (lastde) quickly on the built-in model and corpus: the whole idea in a few minutes."""
    from broadsheet.page.papers import get, get_trial

    paper, entry = get_trial("lastde")
    say(f"broadsheet: does a paper help on this machine? Trying “{get(paper).title}” ({get(paper).url}).")
    say("The built-in model writes half of the texts; nine detectors say which half. This takes a few minutes.")
    _run_trial(paper, entry, {"quick": True}, [], out, record=False)


def _run_trial(paper: str, entry: str, options: dict[str, Any], extra: list[str], out: Path, record: bool) -> None:
    from broadsheet import report
    from broadsheet.page import evidence
    from broadsheet.page.papers import load, page

    _writable(out)
    trial = _construct(load(entry), {**options, **_pairs(extra)})
    result = trial.run()
    result.paper, result.command = paper, shlex.join(["broadsheet", *sys.argv[1:]])
    result.title = next((row.title for row in page() if row.id == paper), result.title)
    report.terminal(result, written=report.write(result, out))
    if record:
        path = evidence.record(paper, result.to_dict(), evidence.folder())
        print(f"evidence {path}")
    trial.finish()


@app.command(epilog="Example: broadsheet compare samples_a.jsonl samples_b.jsonl")
def compare(
    a: Annotated[Path, typer.Argument(help="Per-item results of the baseline.")],
    b: Annotated[Path, typer.Argument(help="Per-item results to compare with it.")],
    qrels: Annotated[Path | None, typer.Option(help="Relevance judgements, when A and B are TREC runs.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help="TREC measure; may be repeated. Default: nDCG@10.")] = None,
    lower_is_better: Annotated[
        list[str] | None, typer.Option(help="A metric that should be low; may be repeated.")
    ] = None,
    higher_is_better: Annotated[
        list[str] | None, typer.Option(help="A metric that should be high, whatever its name says; may be repeated.")
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="The field or column that names an item.")] = None,
    score_field: Annotated[
        str | None, typer.Option(help="The field or column to compare; by default every number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a paired verdict on two files of per-item results that other tools wrote.

    Reads lm-evaluation-harness samples (--log_samples JSONL), TREC runs with --qrels, and plain JSONL, CSV or TSV with
    an id column and numeric columns.
    """
    from dataclasses import asdict

    from broadsheet import report
    from broadsheet.page.evidence import finite
    from broadsheet.trial.compare import compare_files
    from broadsheet.trial.stats import multiplicity_warning

    comparisons = compare_files(
        a,
        b,
        qrels=qrels,
        measures=tuple(measure or ("nDCG@10",)),
        lower_is_better=tuple(lower_is_better or ()),
        higher_is_better=tuple(higher_is_better or ()),
        id_field=id_field,
        score_field=score_field,
    )
    if as_json:
        if warning := multiplicity_warning(comparisons):
            say(warning)
        print(json.dumps(finite([asdict(comparison) for comparison in comparisons]), indent=1, ensure_ascii=False))
        return
    report.comparison_table(comparisons)


@app.command(context_settings=_EXTRA, epilog="Example: broadsheet apply lastde corpus.jsonl --out scores.jsonl")
def apply(
    context: typer.Context,
    paper_id: Annotated[str, typer.Argument(metavar="ID", help="A paper's id or arXiv id.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or folder of documents, `pydocs`, or `hf:…`.")],
    out: Annotated[Path, typer.Option(help="The result; resumes where a killed run stopped.")],
    model: Model = "default",
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad line: stop, or skip it (counted and said).")
    ] = "stop",
    text_field: Annotated[str, typer.Option(help="The field that holds a document's text.")] = "text",
    id_field: Annotated[str, typer.Option(help="The field that holds a document's id.")] = "id",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and start over.")] = False,
) -> None:
    """Use a paper on a corpus. A method's own options are given as --name value; `broadsheet show ID` lists them."""
    from broadsheet.data import corpora
    from broadsheet.page.papers import get, load

    paper = get(paper_id)
    if not paper.apply:
        raise InputError(f"{paper.id} has nothing to apply yet: `broadsheet show {paper.id}` says what it offers")
    kind = load(paper.apply)
    method = _construct(kind, {"method": paper.id, "model": model, **_pairs(context.args)})
    # Some methods also take data that is no corpus of documents, such as a lexicon.
    read = getattr(kind, "data", corpora.load)
    corpus = read(data, on_error=on_error, text_field=text_field, id_field=id_field)
    if not method.run(corpus, out, force=force).finished:
        raise KeyboardInterrupt


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

    Only new and changed documents are embedded; a killed run goes on where it stopped, and leaves the index that was
    there. Without --out, DIR is an index, for --check, --delete and --rebuild.
    """
    from broadsheet.data import corpora
    from broadsheet.search import commands

    folder = Path(data if out is None else out).expanduser()
    if out is None and not (delete or check or rebuild):
        raise InputError(f"got nothing to do with {data}: give --out DIR to index it, or --check, --delete, --rebuild")
    if out is None and prune:
        raise InputError("--prune needs documents to compare with: broadsheet index DATA --out DIR --prune")
    found = commands.rebuild(folder, embedder) if rebuild else None
    change = None
    if out is not None:
        corpus = corpora.load(data, on_error=on_error, text_field=text_field, id_field=id_field)
        found, change = commands.update(corpus, folder, embedder, prune=prune, device=device, dtype=dtype)
    found = found or commands.opened(folder, embedder, device, dtype)
    deleted = found.delete(delete) if delete else 0
    checked = found.check() if check else None
    if as_json:
        from dataclasses import asdict

        facts = {"change": change and asdict(change), "deleted": deleted, "check": checked and asdict(checked)}
        print(json.dumps({"index": str(folder), **commands.state(found), **facts}, indent=1, ensure_ascii=False))
        return
    for line in commands.lines(found, change, deleted, checked):
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
    from broadsheet.search import commands

    if mode == "bm25":
        embedder = device = None
    hits = commands.search(commands.opened(folder.expanduser(), embedder, device), query, top_k, mode, exact)
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


app.add_typer(hear, name="hear")


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


def _pairs(extra: list[str]) -> dict[str, str | bool]:
    """`--name value`, `--name=value` and `--flag` to a dictionary.

    Raises:
        InputError: something that is not an option.
    """
    options: dict[str, str | bool] = {}
    rest = list(extra)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":
            raise InputError(f"got {token!r} where an option was expected; a trial's options are --name value")
        name, equals, value = token[2:].partition("=")
        follows = rest and not rest[0].startswith("--")
        options[name.replace("-", "_")] = value if equals else rest.pop(0) if follows else True
    return options


_KINDS = {int: "a whole number", float: "a number", str: "text"}


_KINDS = {int: "a whole number", float: "a number", str: "text"}


def _construct(kind: type, options: dict[str, Any]) -> Any:
    """An instance of dataclass `kind`, its options converted from text by the type of each field's default.

    Raises:
        InputError: an unknown option, or a value of the wrong type.
    """
    from dataclasses import fields

    known = {field.name: field for field in fields(kind) if field.init}
    values = {}
    for name, value in options.items():
        if name not in known:
            raise InputError(f"no option {_flag(name)}; expected one of {', '.join(map(_flag, known))}")
        wanted: Any = type(known[name].default)
        if value is True and wanted is not bool:
            raise InputError(f"got {_flag(name)} without a value; expected {_KINDS[wanted]}")
        try:
            values[name] = value if isinstance(value, wanted) else wanted(value)
        except ValueError:
            raise InputError(f"got {_flag(name)} {value!r}; expected {_KINDS[wanted]}") from None
    return kind(**values)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _writable(folder: Path) -> None:
    """Say before hours of work, not after, that the report cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}; give another folder with --out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {folder}; give another folder with --out")


# Packages that whole stages are built on, and the extra that brings each; what one option needs says so itself.
_EXTRAS = {"sentence_transformers": "embed", "peft": "embed", "datasets": "embed", "faiss": "search", "bm25s": "search"}
_EXTRAS |= {"soundfile": "hear", "soxr": "hear", "onnxruntime": "hear", "jiwer": "hear"}


def main() -> None:
    """Run the command; what a user can mend is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show “−” shows “?” instead of a traceback
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="broadsheet")
    except (InputError, FileNotFoundError, PermissionError) as error:
        if os.environ.get("BROADSHEET_DEBUG"):
            raise
        print(f"broadsheet: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None or os.environ.get("BROADSHEET_DEBUG"):
            raise
        print(f"broadsheet: this needs {error.name}: pip install 'broadsheet[{extra}]'", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("broadsheet: stopped", file=sys.stderr)
        sys.exit(130)
