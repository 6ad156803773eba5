"""The commands `try` and `study`: a paper against the plain baseline."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broadsheet.cli.root import EXTRA, OwnOptions, app, own_options, writable
from broadsheet.console import InputError, say
from broadsheet.redaction import from_environment, redacted, redacted_values

if TYPE_CHECKING:
    from broadsheet.trial.results import TrialResult

Out = Annotated[Path, typer.Option(help="Folder for the report (JSON and HTML).")]
Full = Annotated[bool, typer.Option("--full", help="Print every arm, verdict and note, not the answer alone.")]
ResultJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Events = Annotated[Path | None, typer.Option(help="Tell what happens to the end of this file, one JSON object a line.")]
Record = Annotated[bool, typer.Option("--record", help="Keep the result as evidence/<id>.json.")]


class _Trials(OwnOptions):
    def own(self, name: str) -> type | None:
        from broadsheet.page.papers import get_trial, load

        kind: type = load(get_trial(name)[1])
        return kind

    def example(self, name: str, kind: type) -> str:
        return f"broadsheet try {name} --quick"


@app.command("try", cls=_Trials, context_settings=EXTRA, epilog="Example: broadsheet try lastde --quick")
def try_(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID|STAGE", help="A paper, or a stage for all its methods at once.")],
    out: Out = Path("runs"),
    record: Record = False,
    full: Full = False,
    as_json: ResultJson = False,
    events: Events = None,
) -> None:
    """Try a paper against the plain baseline, on your model and your data.

    Prints the answer with the rows that bear it out, and writes all that was measured as JSON and as one HTML page.
    Every trial takes --model, --data, --quick and --seed; `broadsheet try ID --help` lists all that a trial takes.
    """
    from broadsheet.page.papers import get_trial

    _run(*get_trial(name), context, out, record, full, as_json, events)


class _Studies(_Trials):
    def own(self, name: str) -> type | None:
        return super().own(_study(name))

    def example(self, name: str, kind: type) -> str:
        return ""


@app.command(cls=_Studies, context_settings=EXTRA, epilog="Example: broadsheet study dense_retrieval --preset A")
def study(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID", help="A study; `_study` at the end may be left out.")],
    out: Out = Path("runs"),
    record: Record = False,
    full: Full = False,
    as_json: ResultJson = False,
    events: Events = None,
) -> None:
    """Rerun a study's table on your models and data: `try`, for papers that compare what others propose.

    Cells of a table are kept, so that another table, or the same one again, does not train them anew.
    """
    from broadsheet.page.papers import get_trial, page

    paper, entry = get_trial(_study(name))
    if {each.id: each.kind for each in page()}.get(paper) != "study":
        raise InputError(f"{paper} is no study: `broadsheet try {paper}` tries it, `papers --kind study` lists studies")
    _run(paper, entry, context, out, record, full, as_json, events)


def _study(name: str) -> str:
    from broadsheet.page.papers import page

    return f"{name}_study" if f"{name}_study" in {paper.id for paper in page()} else name


def _run(
    paper: str,
    entry: str,
    context: typer.Context,
    out: Path,
    record: bool = False,
    full: bool = False,
    as_json: bool = False,
    follow: Path | None = None,
) -> None:
    from broadsheet import events

    if follow is not None:
        writable(follow.parent)
    with events.to(follow):
        _measured(paper, entry, context, out, record, full, as_json)


def _measured(
    paper: str, entry: str, context: typer.Context, out: Path, record: bool, full: bool, as_json: bool
) -> None:
    from broadsheet import events, report
    from broadsheet.data.resources import fingerprints
    from broadsheet.options import construct
    from broadsheet.page import checkout, evidence, replay
    from broadsheet.page.papers import load, page

    writable(out)
    checkout.commit()  # before anything is measured: it may be hours, and another commit, until it is recorded
    row = next((row for row in page() if row.id == paper), None)
    if record and row is not None:
        _check_oracles(row)
    kind = load(entry)
    given, spelled = own_options(context, kind)
    trial = construct(kind, given).for_paper(paper)
    named = fingerprints(trial.given())  # refuses what is not there before anything runs
    if record:
        _check_strength(trial)
    result = _tried(trial)
    words, secrets = ["broadsheet", *without_files(sys.argv[1:]), *spelled], from_environment()
    result.command = redacted(shlex.join(words), secrets)
    result.options = redacted_values(trial.given(), secrets)
    result.title = row.title if row else result.title
    if made := replay.trained(trial.given()):
        result.provenance["trained"] = made
    if named:
        result.provenance["named data"] = named
    written = report.write(result, out)
    events.tell("result", files=[str(path) for path in written])
    if as_json:
        print(json.dumps(evidence.finite(result.to_dict()), ensure_ascii=False))
    else:
        report.terminal(result, written=written, full=full)
    if record:
        check_arms(result)
        if row is not None and row.kind == "method" and not any(claim.kind == "claim" for claim in result.judged):
            raise InputError(f"nothing is recorded: the trial of {paper} names no claim of the paper ({entry})")
        where = row.evidence_folder if row else evidence.folder()
        where.mkdir(exist_ok=True)
        say(f"evidence {evidence.record(paper, result.to_dict(), where)}")
    trial.finish()


def without_files(arguments: list[str]) -> list[str]:
    """A command line as it is kept: without `--config FILE`, whose options are spelled out, and `--events FILE`."""
    kept, rest = [], iter(arguments)
    for each in rest:
        if each in ("--config", "--events"):
            next(rest, None)
        elif not each.startswith(("--config=", "--events=")):
            kept.append(each)
    return kept


def _tried(trial: Any) -> TrialResult:
    """The result of a trial. Ctrl-C says how to go on."""
    try:
        result: TrialResult = trial.run()
    except KeyboardInterrupt:
        say("broadsheet: stopped; what is finished is kept, and the same command goes on from there")
        raise typer.Exit(130) from None
    return result


def _check_strength(trial: Any) -> None:
    """See that a trial is strong enough to be recorded.

    Raises:
        InputError: arms are trained from fewer than three seeds.
    """
    from broadsheet.trial.claims import MIN_RUNS
    from broadsheet.trial.trained.arms import TrainedTrial

    if isinstance(trial, TrainedTrial) and trial.runs is not None and trial.runs < MIN_RUNS:
        raise InputError(
            f"got --runs {trial.runs} with --record; recorded evidence trains each arm from at least {MIN_RUNS} seeds"
        )


def check_arms(result: TrialResult) -> None:
    """See that what claims compare ran.

    Raises:
        InputError: an arm failed; what is finished is kept.
    """
    named = {name for claim in result.judged for name in (claim.baseline, claim.arm)}
    if failed := [f"{arm.name}: {arm.error}" for arm in result.arms if arm.name in named and arm.status == "failed"]:
        raise InputError(f"nothing is recorded, as arms of claims failed: {'; '.join(failed)}")


def _check_oracles(paper: Any) -> None:
    """See, in a checkout, that a method has numeric oracles before a trial of it is recorded.

    Raises:
        InputError: it has none.
    """
    oracles = paper.evidence_folder.parent / "tests" / "oracles"
    file = oracles / f"{paper.id}.json"
    if paper.kind != "method" or not oracles.is_dir():
        return
    if not file.is_file() or not json.loads(file.read_text(encoding="utf-8")).get("cases"):
        raise InputError(f"nothing can be recorded yet: {file} holds no case of {paper.id}'s equations")
