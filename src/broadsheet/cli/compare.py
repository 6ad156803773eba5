"""The command `compare`: a verdict on per-item results of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from broadsheet.cli.root import Json, app
from broadsheet.console import InputError, say


def _named(names: str) -> tuple[str, str] | None:
    """Two names with a comma between them.

    Raises:
        InputError: they are not two, or alike.
    """
    if not names:
        return None
    parts = [part.strip() for part in names.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise InputError(f"got --names {names}; expected two different names, such as base,tuned")
    return parts[0], parts[1]


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
    margin: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=δ", help="How much worse still counts as no worse; may be repeated."),
    ] = None,
    names: Annotated[str, typer.Option(metavar="A,B", help="What the two are called.")] = "",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with status 1 where something is worse, or may be worse by more than its margin."
        ),
    ] = False,
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
    from broadsheet.trial.sentences import multiplicity_warning
    from broadsheet.trial.verdicts import margins

    comparisons = compare_files(
        a,
        b,
        qrels=qrels,
        measures=tuple(measure or ("nDCG@10",)),
        lower_is_better=tuple(lower_is_better or ()),
        higher_is_better=tuple(higher_is_better or ()),
        id_field=id_field,
        score_field=score_field,
        margins=margins(margin or ()),
        names=_named(names),
    )
    if as_json:
        if warning := multiplicity_warning(comparisons):
            say(warning)
        print(json.dumps(finite([asdict(comparison) for comparison in comparisons]), indent=1, ensure_ascii=False))
    else:
        report.comparison_table(comparisons)
    if strict and (worse := [c.metric for c in comparisons if c.verdict == "hurts" or c.no_worse is False]):
        say(f"worse, or not shown to be no worse: {', '.join(worse)}")
        raise typer.Exit(1)
