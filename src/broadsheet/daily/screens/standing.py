"""What is recorded of the page's own papers, as a screen shows it: rung, verdict, the trial's answer and pictures.

Knows: papers of the page, evidence files. Does not know: the store, HTML. To read all evidence takes longer than a
screen may: what follows from it is kept as long as no evidence file changes.
"""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from broadsheet.console import InputError
from broadsheet.page import evidence, papers
from broadsheet.page.docparts import example, first_sentences, use
from broadsheet.page.papers import RUNGS, Paper
from broadsheet.report.answer import TrialAnswer
from broadsheet.report.plots import Drawing
from broadsheet.report.view import View
from broadsheet.trial.results import TrialResult

PICTURES = 24_000  # bytes of inline pictures that a screen may hold


@dataclass(frozen=True)
class Standing:
    """How far a paper of the page has come.

    Attributes:
        missing: what the next rung wants; empty on the last one.
        recorded: when its trial was, `"2026-11-25T22:23:23+00:00"`; empty where none is.
        answer: what the trial says; empty where none is recorded.
        problem: why its evidence cannot be read; empty where it can.
    """

    paper: Paper
    rung: int
    verdict: str
    missing: str
    recorded: str = ""
    answer: str = ""
    problem: str = ""

    @property
    def reached(self) -> str:
        return RUNGS[self.rung]

    @property
    def built(self) -> bool:
        return bool(self.paper.entry)


@dataclass(frozen=True)
class Measured:
    """What a recorded trial showed.

    Attributes:
        judged: (kind, verdict, sentence) of each claim of the paper, then of each control.
        why: what to know first; may be empty.
        beside: how the method fares beside each peer.
        drawings: the leading picture and as many others as fit a screen, each with its SVG.
        more: how many pictures are left out.
        setting: a few words each: on which model, on which data.
    """

    question: str
    judged: tuple[tuple[str, str, str], ...]
    why: str
    beside: tuple[str, ...]
    drawings: tuple[tuple[Drawing, str], ...]
    more: int
    setting: tuple[tuple[str, str], ...]
    commit: str


class Standings:
    """The standings of all papers of the page, read again once an evidence file has changed. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: Any = None
        self._found: Mapping[str, Standing] = {}
        self._measured: dict[str, Measured | None] = {}

    def all(self) -> Mapping[str, Standing]:
        """By arXiv identifier, in page order, as they were when they were last looked at."""
        if self._state is None:
            self.refresh()
        return self._found

    def refresh(self) -> None:
        """See whether an evidence file has changed."""
        state = _state()
        with self._lock:
            if state != self._state:
                self._found = _standings(state)
                self._measured = {}
                self._state = state

    def measured(self, standing: Standing) -> Measured | None:
        """What its trial showed; None where none is recorded, or it cannot be read."""
        known, name = self._measured, standing.paper.id
        if name not in known:
            known[name] = _measured(standing.paper) if standing.answer else None
        return known[name]


def _state() -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of all evidence files."""
    found = []
    theirs = (paper.evidence_folder for paper in papers.page() if not paper.ours)
    for folder in dict.fromkeys((evidence.folder(), *theirs)):
        try:
            with os.scandir(folder) as files:
                for file in files:
                    if file.name.endswith(".json"):
                        told = file.stat()
                        found.append((file.path, told.st_mtime_ns, told.st_size))
        except FileNotFoundError:
            continue
    return tuple(sorted(found))


@lru_cache(maxsize=1)  # for all who ask in this process
def _standings(state: object) -> Mapping[str, Standing]:
    return {paper.arxiv: _standing(paper) for paper in papers.page()}


def _standing(paper: Paper) -> Standing:
    try:
        rung, verdict, missing = paper.rung, paper.verdict, paper.missing
        recorded = evidence.read(paper.id, paper.evidence_folder)
        if recorded is None:
            return Standing(paper, rung, verdict, missing)
        answer = str(TrialAnswer(TrialResult.from_dict(recorded)))
        return Standing(paper, rung, verdict, missing, recorded.get("provenance", {}).get("date", ""), answer)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"its evidence cannot be read: {error.__class__.__name__}"
        return Standing(paper, 0, "", "evidence that can be read", problem=told)


def result(paper: Paper) -> TrialResult | None:
    """A paper's recorded trial; None where none is recorded, or it cannot be read."""
    try:
        recorded = evidence.read(paper.id, paper.evidence_folder)
        return TrialResult.from_dict(recorded) if recorded else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _measured(paper: Paper) -> Measured | None:
    found = result(paper)
    if found is None:
        return None
    view, answer = View(found), TrialAnswer(found)
    lead = answer.lead.metric if answer.lead else ""
    chosen: list[tuple[Drawing, str]] = []
    size = 0
    # Metrics first, then the stage's own figures; drawing one takes milliseconds, so it ends where the room does.
    metrics = [lead] * bool(lead) + [metric for metric in view.metrics if metric != lead]
    for metric in metrics:
        drawing = view.picture(metric)
        made = str(drawing.svg())
        if size + len(made) > PICTURES:
            break
        chosen.append((drawing, made))
        size += len(made)
    if len(chosen) == len(metrics):
        for drawing in (each for _, drawings in view.figures() for each in drawings):
            made = str(drawing.svg())
            if size + len(made) > PICTURES:
                break
            chosen.append((drawing, made))
            size += len(made)
    setting = tuple((name, str(found.setting[name])) for name in ("model", "data", "device") if found.setting.get(name))
    commit = str(found.provenance.get("commit") or "")
    more = len(metrics) + len(found.figures) - len(chosen)
    told = (tuple(view.judged), answer.why, tuple(answer.beside))
    return Measured(found.question, *told, tuple(chosen), max(more, 0), setting, commit[:9])


@dataclass(frozen=True)
class Use:
    """How a paper's code is used: a sentence, when, the lines of Python, the command that tries it."""

    does: str = ""
    when: str = ""
    code: str = ""
    commands: tuple[str, ...] = ()


@cache
def usage(paper: Paper) -> Use:
    """How a paper is used; source files are read as text, nothing is imported."""
    commands = [f"broadsheet try {paper.id} --quick"] * bool(paper.trial)
    commands += [f"broadsheet apply {paper.id} --help"] * bool(paper.apply)
    if not paper.entry:
        return Use(commands=tuple(commands))
    if not paper.in_stage:
        return Use(commands=(*commands, f"broadsheet map {paper.id}"))
    entry = paper.entry[0]
    try:
        text = papers.docstring(entry)
    except (InputError, LookupError, OSError):
        text = ""
    lines = [paper.import_line(entry)]
    if code := example(text):
        name = entry.partition(":")[2]
        lines = [*([] if _imports(code, name) else [*lines, ""]), code]
    return Use(first_sentences(text, 1), use(text), "\n".join(lines), tuple(commands))


def _imports(code: str, name: str) -> bool:
    """Whether an example brings a name in by itself."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return any(isinstance(each, ast.ImportFrom) and any(alias.name == name for alias in each.names) for each in body)
