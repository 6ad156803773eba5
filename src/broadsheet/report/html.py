"""A finished trial as a terminal table, a JSON file, and one self-contained HTML page.

Knows: tables, templates, files. Does not know: how anything was measured; every sentence about a difference is
`sentences.sentence`. The reading order is in `view`, pictures in `plots`, the page in `templates/report.html.jinja`.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from broadsheet.cache import atomic_write
from broadsheet.console import duration
from broadsheet.page.evidence import finite
from broadsheet.report import plots, words
from broadsheet.report.answer import TrialAnswer
from broadsheet.report.view import CLAIM_MARKS, MARKS, View
from broadsheet.trial.results import TrialResult, listed
from broadsheet.trial.sentences import amount, margin_words, multiplicity_warning, sentence, values
from broadsheet.trial.stats import CONFIDENCE

if TYPE_CHECKING:
    from broadsheet.trial.stats import Interval
    from broadsheet.trial.verdicts import Comparison

CLAIM_STYLES = {"shown": "green", "refuted here": "red", "open": "yellow"}
WIDEST = 100  # columns of terminal output that still read well
BRIEF = 15  # lines of 80 columns that an answer takes at most
OF_MODELS = {
    "helps": "better",
    "hurts": "worse",
    "no measurable difference": "no measurable difference",
    "not measured": "not measured",
}
STYLES = {"helps": "green", "hurts": "red", "no measurable difference": "dim", "not measured": "dim"}
_MARK_STYLES = {mark: STYLES[verdict] for verdict, mark in MARKS.items()}


def terminal(
    result: TrialResult, console: Console | None = None, written: Sequence[Path] = (), *, full: bool = False
) -> None:
    """Print a trial's answer: a sentence or two, the rows that bear it out, what to know first, what to do next.

    It takes at most `BRIEF` lines of 80 columns. With `full` everything follows that a reader may ask for: the
    question, a row per arm, the methods' verdicts, the others' in short, the notes.

    Args:
        result: a finished trial.
        console: where to print; by default stdout, without colour when piped. At most 100 columns are used.
        written: the files to point to, as `write` returned them.

    Example:
        report.terminal(result, written=report.write(result, Path("runs")))
    """
    console = console or Console()
    width = min(console.width, WIDEST)
    for line in brief(result, width):
        console.print(line, width=width)
    if full:
        console.print()
        _everything(result, console, width)
    page = next((path for path in written if path.suffix == ".html"), None)
    if page:
        console.print(
            Text(f"report  {_short(page)}" + " · --full prints all of it" * (not full), "dim"), soft_wrap=True
        )
    if use := TrialAnswer(result).use:
        console.print(Text.assemble(("use     ", "dim"), use), soft_wrap=True)


def brief(result: TrialResult, width: int) -> list[RenderableType]:
    """The answer, its rows, and why: what the first screen of a report says."""
    answer = TrialAnswer(result)
    mark, style = CLAIM_MARKS[result.verdict], CLAIM_STYLES[result.verdict]
    said = Text(str(answer), "bold", overflow="fold")
    lines: list[RenderableType] = [_hanging([(mark, said, style)]) if answer.claims else said, Text()]
    names = [
        Text(arm.name + " *" * (arm.role == "baseline"), "bold" * (arm.role == "method")) for arm, _ in answer.rows
    ]
    view = View(result)
    columns = []
    for place, metric in enumerate(answer.metrics):
        cells = [
            Text.assemble((f"{cells[place].mark:1} ", _MARK_STYLES.get(cells[place].mark, "")))
            + _cell(cells[place].value, "", view.grain(metric), arm.status, view.units(arm, metric))
            for arm, cells in answer.rows
        ]
        columns.append((metric, cells))
    screen = Console(width=width)
    taken = len(said.wrap(screen, width - 2)) + 4  # blank, legend, report, use
    # Columns whose names or arms are broken over lines cost rows; without the last of them the others have room.
    for kept in range(len(columns), 0, -1):
        table = _tables(("", names), columns[:kept], width)[:1]
        rows = sum(len(screen.render_lines(each, pad=False)) for each in table)
        if taken + rows <= BRIEF:
            break
    taken += rows
    lines += table
    lines.append(Text("* baseline; ▲ better, ▼ worse, = no measurable difference; 95 % intervals", "dim"))
    if answer.why and taken < BRIEF:
        told = _first_lines(answer.why, width - 8, min(2, BRIEF - taken))
        taken += len(textwrap.wrap(told, width - 8))
        lines.append(_hanging([("why    ", told, "")]))
    beside = " ".join(answer.beside)
    if beside and taken < BRIEF:
        lines.append(_hanging([("peers  ", _first_lines(beside, width - 8, BRIEF - taken), "")]))
    return lines


def _first_lines(text: str, width: int, lines: int) -> str:
    """As much of a text as so many lines hold, cut after a word."""
    wrapped = textwrap.wrap(text, width)
    if len(wrapped) <= lines:
        return text
    return " ".join([*wrapped[: lines - 1], textwrap.shorten(" ".join(wrapped[lines - 1 :]), width, placeholder=" …")])


def _everything(result: TrialResult, console: Console, width: int) -> None:
    """The question, all arms, all verdicts, all notes, the command."""
    view = View(result)
    setting = " · ".join(f"{key} {value}" for key, value in words.flat(result.setting))
    head = [Text(result.title, "bold"), Text(result.question, "italic"), Text(setting, "dim")]
    names = [Text(arm.name + " *" * (arm.role == "baseline"), "bold" * (arm.role == "method")) for arm in view.arms]
    columns = [
        (
            metric,
            [_cell(view.value(a, metric), "", view.grain(metric), a.status, view.units(a, metric)) for a in view.arms],
        )
        for metric in view.metrics
    ]
    columns.append(("memory", [Text(words.memory(arm.peak_bytes)) for arm in view.arms]))
    failed = [arm for arm in view.arms if arm.status == "failed"]
    _print(console, (line for line in head if line), [Text()], _tables(("", names), columns, width))
    _print(console, [Text("* baseline; ranges are 95 % intervals", "dim")])
    _print(console, (Text(f"{arm.name} failed: {arm.error}", "red") for arm in failed))
    _print(console, _claims(view))
    methods, others = view.groups("method"), view.groups("baseline", "sibling", "peer")
    for _, comparisons in methods or others:
        _print(console, [Text(), _sentences(comparisons)])
    if methods and others:
        _print(console, [Text(), _hanging([("·", line, "dim") for line in view.summary(others)])])
    _print(console, _notes(view.warning, *result.notes))
    if result.command:
        console.print(Text(f"repeat  {_folded(result.command, width - 10)}", "dim"), soft_wrap=True)


def comparison_table(
    comparisons: Sequence[Comparison], notes: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print comparisons that stand on their own, as `broadsheet compare` makes them, in words for two models.

    A row for each, a sentence for each that is better or worse, and one line for all others.

    Args:
        comparisons: one entry per metric (and pair of arms).
        notes: lines to end with, e.g. how many items were left out.
        console: where to print; by default stdout, without colour when piped.
    """
    console = console or Console()
    columns = [
        ("verdict", [Text(f"{MARKS[c.verdict]} {OF_MODELS[c.verdict]}", STYLES[c.verdict]) for c in comparisons]),
        (
            "difference",
            [_cell(c.difference, "×" if c.scale == "ratio" else f" {c.unit}".rstrip()) for c in comparisons],
        ),
        ("pairs", [Text(f"{c.n:,}") for c in comparisons]),
        ("p", [Text(words.p_value(c.p_value)) for c in comparisons]),
        ("could have seen", [Text(words.detectable(c)) for c in comparisons]),
    ]
    metrics = [Text(c.metric) for c in comparisons]
    told = [
        (MARKS[c.verdict], _of_models(c), STYLES[c.verdict]) for c in comparisons if c.verdict in ("helps", "hurts")
    ]
    same = [c for c in comparisons if c.verdict == "no measurable difference"]
    if same:
        noisy = [c.metric for c in same if c.p_value is not None and c.p_value < 1 - CONFIDENCE]
        line = f"No measurable difference in {listed([c.metric for c in same])}; the last column says what could have "
        line += "been seen."
        line += f" In {listed(noisy)} the difference lies within the baseline's own noise." * bool(noisy)
        told.append((MARKS[same[0].verdict], line, "dim"))
    if few := [c for c in comparisons if c.verdict == "not measured"]:
        told.append(
            (MARKS[few[0].verdict], f"Too few to say: {listed([f'{c.metric} (n = {c.n})' for c in few])}.", "dim")
        )
    told += [("·", f"{c.metric}{margin_words(c).replace(';', ':', 1)}", "") for c in same if c.margin is not None]
    _print(console, _tables(("metric", metrics), columns, min(console.width, WIDEST)), [Text(), _hanging(told)])
    _print(console, _notes(multiplicity_warning(comparisons).replace("helps or hurts", "better or worse"), *notes))


def _of_models(c: Comparison) -> str:
    """A difference between two models in words: "F1: tuned is better than base: +0.12 [+0.05, +0.19] (0.79 → 0.91)"."""
    shown = f" ({values(c)})" * bool(values(c))
    return f"{c.metric}: {c.arm} is {OF_MODELS[c.verdict]} than {c.baseline}: {amount(c)}{shown}{margin_words(c)}"


def write(result: TrialResult, folder: Path) -> tuple[Path, Path]:
    """Write `<paper>.json` (everything measured; null where not finite) and `<paper>.html`, each whole or not at all.

    `index.html` beside them lists all reports of the folder, the newest first.

    Returns:
        The paths of the two, JSON first.
    """
    data, page = folder / f"{result.paper}.json", folder / f"{result.paper}.html"
    texts = {data: json.dumps(finite(result.to_dict()), ensure_ascii=False, allow_nan=False), page: html(result)}
    for path, text in texts.items():
        with atomic_write(path, "wb") as file:
            # A path in the command may hold bytes that are not text; Python reads them as lone surrogates.
            file.write(text.encode("utf-8", "backslashreplace"))
    with atomic_write(folder / "index.html", "wb") as file:
        file.write(index(folder).encode("utf-8", "backslashreplace"))
    return data, page


def index(folder: Path) -> str:
    """A page with the answer of each report in a folder, the newest first; files that are no report are left out."""
    found = []
    for path in folder.glob("*.json"):
        try:
            result = TrialResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if path.with_suffix(".html").is_file():
            found.append((result, TrialAnswer(result), path.with_suffix(".html").name))
    found.sort(key=lambda each: str(each[0].provenance.get("date", "")), reverse=True)
    return _template("index.html.jinja").render(trials=found, marks=CLAIM_MARKS)


def html(result: TrialResult) -> str:
    """The trial as one HTML page that loads nothing: no script, no font, no picture from elsewhere.

    The title links to arXiv if `result.paper` is on the page of papers (a stage's trial is not).
    """
    return _template("report.html.jinja").render(
        result=result,
        view=View(result),
        answer=TrialAnswer(result),
        duration=duration,
        words=words,
        sentence=sentence,
        shape=plots.shape,
        marks=MARKS,
        claim_marks=CLAIM_MARKS,
    )


def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = PackageLoader("broadsheet.report")
    pages = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(name)


def _print(console: Console, *parts: Iterable[RenderableType]) -> None:
    for line in (line for part in parts for line in part):
        console.print(line, width=min(console.width, WIDEST))


def _cell(interval: Interval | None, unit: str = "", step: float = 0.0, status: str = "ok", n: int = 0) -> Text:
    """Estimate and interval as one table cell; of too few items, and of a constant, the estimate alone."""
    if interval is None:
        return Text("—", "dim") if status == "ok" else Text(status, "red")
    estimate, ends = words.bracket(interval, step)
    if words.constant(interval):
        return Text(estimate + unit)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return Text.assemble(estimate + unit, (f" too few to say (n = {n})" * bool(n), "dim"))
    return Text.assemble(estimate + unit, " ", (ends, "dim"))


def _tables(names: tuple[str, list[Text]], columns: list[tuple[str, list[Text]]], width: int) -> list[Table]:
    """The column of names and as many others as fit beside it, in as many tables as that takes."""
    edge = min(max(name.cell_len for name in names[1]), width // 3)
    groups: list[list[tuple[str, list[Text]]]] = []
    room = 0
    for title, cells in columns:
        needed = 2 + _least_width(title, cells)
        if not groups or needed > room:
            groups.append([])
            room = width - edge
        groups[-1].append((title, cells))
        room -= needed
    tables = []
    for group in groups:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column(names[0], overflow="fold")
        tight = edge + sum(2 + max(len(title), _least_width(title, cells)) for title, cells in group) > width
        for title, cells in group:
            # Where titles have to be folded, they are, and no cell is.
            table.add_column(title, overflow="fold", width=_least_width(title, cells) if tight and group[1:] else None)
        for row in zip(names[1], *(cells for _, cells in group), strict=True):
            table.add_row(*row)
        tables.append(table)
    return tables


def _least_width(title: str, cells: Sequence[Text]) -> int:
    """Of a column whose title may be folded between words."""
    return max(*map(len, title.split()), *(cell.cell_len for cell in cells))


def _claims(view: View) -> list[RenderableType]:
    """The paper's claims and the controls, each with what came of it."""
    parts: list[RenderableType] = []
    for kind, title in (("claim", "The paper's claims"), ("control", "Controls")):
        lines = [
            (CLAIM_MARKS[verdict], f"{verdict}: {line}", CLAIM_STYLES[verdict])
            for each, verdict, line in view.judged
            if each == kind
        ]
        if lines:
            told = f" · {view.tested}" if kind == "claim" and view.tested else ""
            parts += [Text(), Text.assemble((title, "bold"), (told, "dim")), _hanging(lines)]
    return parts


def _sentences(comparisons: Sequence[Comparison]) -> Table:
    return _hanging([(MARKS[c.verdict], sentence(c), STYLES[c.verdict]) for c in comparisons])


def _notes(*notes: str) -> list[RenderableType]:
    return [Text(), _hanging([("–", note, "") for note in notes if note]), Text()]


def _hanging(lines: Sequence[tuple[str, str | Text, str]]) -> Table:
    """Lines of (mark, sentence, style), each wrapped beside its mark."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for mark, said, style in lines:
        grid.add_row(Text(mark, style), said if isinstance(said, Text) else Text(said, style, overflow="fold"))
    return grid


def _short(path: Path) -> str:
    """The path as one would type it here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _folded(command: str, width: int) -> str:
    """A command over several lines that can still be pasted: broken between arguments, each break with a backslash."""
    lines = [""]
    for argument in words.arguments(command):
        if lines[-1] and len(lines[-1]) + len(argument) + 3 > width:
            lines.append("")
        lines[-1] += f" {argument}" if lines[-1] else argument
    return " \\\n          ".join(lines)
