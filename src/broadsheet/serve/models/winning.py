"""What won: from the report of a trial, or the folder of a saved model, to what is served, with its evidence.

Knows: reports, folders, recorded evidence. Does not know: how anything is loaded or served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broadsheet.console import InputError
from broadsheet.models.safefiles import read_json
from broadsheet.page import evidence
from broadsheet.page.papers import Paper, ours
from broadsheet.report.answer import TrialAnswer
from broadsheet.trial.results import TrialResult


@dataclass
class Wanted:
    """What is to be served, as the command names it, and what is known of each by that name."""

    models: list[str] = field(default_factory=list)
    embedders: list[str] = field(default_factory=list)
    rerankers: list[str] = field(default_factory=list)
    detectors: list[str] = field(default_factory=list)
    attend: str | None = None
    about: dict[str, dict[str, Any]] = field(default_factory=dict)


def of(path: Path) -> Wanted:
    """What a report (`runs/lastde.json`) says has won, or what a folder holds.

    Raises:
        InputError: neither; or the trial's winner is nothing that can be served: an arm that was trained for the trial,
            a program.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.suffix != ".json" or not path.is_file():
        raise InputError(f"{path} is neither the report of a trial (runs/ID.json) nor the folder of a saved model")
    try:
        result = TrialResult.from_dict(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no report of a trial: {type(error).__name__}") from None
    return _of_report(result, path)


def _of_folder(path: Path) -> Wanted:
    """A saved model, by the files that it has."""
    spec, kinds = str(path), {"modules.json": "embedders", "reranker.json": "rerankers", "config.json": "models"}
    kind = next((kind for file, kind in kinds.items() if (path / file).is_file()), "")
    if not kind:
        raise InputError(f"{path} holds no {', '.join(kinds)}; expected the folder of a saved model")
    paper = _paper_of_card(path)
    wanted = Wanted(about={path.name: known(paper)} if paper else {})
    getattr(wanted, kind).append(spec)
    return wanted


def _of_report(result: TrialResult, path: Path) -> Wanted:
    """The best arm of a trial."""
    answer = TrialAnswer(result)
    if answer.best is None:
        raise InputError(f"{path} compares nothing, so nothing has won")
    arm = answer.best
    stage = next((paper.stage for paper in ours() if paper.id == result.paper), result.paper)
    told = {"paper": result.paper, "arm": arm.name, "verdict": result.verdict, "answer": str(answer)}
    told["command"] = result.command
    model = str(result.options.get("model") or "default")
    if stage == "detect":
        from broadsheet.detect.baselines import BASELINES
        from broadsheet.page.papers import stage_methods

        for kind in (*stage_methods(stage).values(), *BASELINES.values()):
            if arm.name in (getattr(kind, "title", ""), kind.__name__):
                return Wanted(detectors=[kind.__name__], models=[model], about={kind.__name__.lower(): told})
    elif stage == "attend" and (arm.description.partition("(")[0].isidentifier()):
        return Wanted(models=[model], attend=arm.description, about={Path(model).name: told})
    raise InputError(
        f"the winner of {path}, {arm.name}, is not kept: what a trial trains is removed with it, and programs are not "
        f"served. `broadsheet apply {result.paper} --help` makes one that can be"
    )


def known(paper: str) -> dict[str, Any]:
    """What is recorded of a paper, for those who ask for the list of models."""
    found: Paper | None = next((each for each in ours() if each.id == paper), None)
    recorded = evidence.read(paper) if found else None
    if found is None or recorded is None:
        return {"paper": paper} if found else {}
    answer = str(TrialAnswer(TrialResult.from_dict(recorded)))
    return {
        "paper": paper,
        "rung": found.rung,
        "verdict": found.verdict,
        "answer": answer,
        "command": recorded.get("command", ""),
    }


def _paper_of_card(path: Path) -> str:
    """The paper that a saved model's card names."""
    try:
        text = (path / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return next((paper.id for paper in ours() if f"- {paper.id}\n" in text and "- broadsheet\n" in text), "")
