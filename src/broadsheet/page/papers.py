"""The page: 79 papers, where each plugs in, and how far its evidence reaches.

Knows: `papers.toml`, the evidence folder, source files as text. Does not know: any method; nothing heavy is imported.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from broadsheet.console import InputError
from broadsheet.page import evidence

RUNGS = ("listed", "runs", "exact", "helps", "leads")
_COSTS = ("/s", "seconds", "bytes")


@dataclass(frozen=True)
class Paper:
    """One row of the page.

    Attributes:
        id, arxiv, title: names; `arxiv` is the identifier alone, e.g. `"2410.06072"`.
        kind: method, study, benchmark or survey.
        stage: the room it lives in.
        entry: `"module:Class"` of what it offers; empty until it is built.
        trial, apply: `"module:Class"` that `try` and `apply` run; empty where there is none.
    """

    id: str
    arxiv: str
    kind: str
    stage: str
    title: str
    entry: tuple[str, ...] = ()
    trial: str = ""
    apply: str = ""

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def rung(self) -> int:
        """The highest rung reached, 0 to 4 (see `RUNGS`), each resting on the one below it:

        1 runs: a trial on a real model and real data is recorded. 2 exact: every numeric oracle case passed when last
        recorded. 3 helps: the recorded trial shows each claim of the paper, interval clear of zero. 4 leads: the trial
        shows it faster or leaner than a peer's implementation.
        """
        trial = evidence.read(self.id)
        if trial is None:
            return 0
        oracles = (evidence.read("oracles") or {}).get("slugs", {}).get(self.id)
        if not oracles or oracles["failed"] or not oracles["passed"]:
            return 1
        verdicts = {(c["metric"], c["baseline"], c["arm"]): c["verdict"] for c in trial["comparisons"]}
        claims = [tuple(claim) for claim in trial["claims"]]
        if not claims or any(verdicts.get(claim) != "helps" for claim in claims):
            return 2
        peers = {arm["name"] for arm in trial["arms"] if arm["role"] == "peer"}
        methods = {arm["name"] for arm in trial["arms"] if arm["role"] == "method"}
        leads = any(
            verdict == "helps" and metric.endswith(_COSTS) and baseline in peers and arm in methods
            for (metric, baseline, arm), verdict in verdicts.items()
        )
        return 4 if leads else 3

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types, with its rung."""
        return {
            "id": self.id,
            "arxiv": self.arxiv,
            "title": self.title,
            "kind": self.kind,
            "stage": self.stage,
            "entry": list(self.entry),
            "trial": self.trial,
            "apply": self.apply,
            "rung": self.rung,
            "reached": RUNGS[self.rung],
        }


@dataclass(frozen=True)
class Stage:
    """A room of the library: what its papers have in common, and the trial that runs them together."""

    id: str
    about: str
    trial: str = ""
    papers: tuple[Paper, ...] = field(default=())


@cache
def page() -> tuple[Paper, ...]:
    """All papers, in page order."""
    return tuple(Paper(**{**row, "entry": tuple(row.get("entry", ()))}) for row in _table()["paper"])


@cache
def stages() -> tuple[Stage, ...]:
    """All stages, with their papers in page order."""
    return tuple(Stage(**row, papers=tuple(p for p in page() if p.stage == row["id"])) for row in _table()["stage"])


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("papers.toml").read_text(encoding="utf-8"))


def get(paper_id: str) -> Paper:
    """The paper of that id (or arXiv id).

    Raises:
        InputError: there is none; the nearest ids are named.
    """
    for paper in page():
        if paper_id in (paper.id, paper.arxiv):
            return paper
    raise InputError(f"no paper {paper_id!r} on the page{_nearest(paper_id, [p.id for p in page()])}")


def get_trial(name: str) -> tuple[str, str]:
    """(paper id, `"module:Class"`) of the trial of a paper, or of a stage.

    Raises:
        InputError: unknown name, or nothing to try yet.
    """
    for stage in stages():
        if stage.id == name:
            if not stage.trial:
                raise InputError(
                    f"nothing to try in the stage {name!r} yet: `broadsheet papers --rung 1` lists what can be"
                )
            return name, stage.trial
    if name not in [i for p in page() for i in (p.id, p.arxiv)]:
        known = [p.id for p in page()] + [s.id for s in stages()]
        raise InputError(f"no paper or stage {name!r} on the page{_nearest(name, known)}")
    paper = get(name)
    if not paper.trial:
        raise InputError(
            f"{paper.id} is listed but not built yet: `broadsheet papers --rung 1` lists what can be tried"
        )
    return paper.id, paper.trial


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5) or [k for k in known if name.lower() in k][:3]
    return f"; did you mean {' or '.join(near)}?" if near else "; `broadsheet papers` lists them"


def search(query: str = "", *, stage: str = "", kind: str = "", rung: int = 0) -> list[Paper]:
    """Papers whose id, title, arXiv id, stage or class names hold every word of `query`, in page order.

    Args:
        stage, kind: keep only these.
        rung: keep papers that have reached at least this rung.

    Raises:
        InputError: an unknown stage or kind.
    """
    known_stages, known_kinds = [s.id for s in stages()], sorted({p.kind for p in page()})
    if stage and stage not in known_stages:
        raise InputError(f"no stage {stage!r}; expected one of {', '.join(known_stages)}")
    if kind and kind not in known_kinds:
        raise InputError(f"no kind {kind!r}; expected one of {', '.join(known_kinds)}")
    words = query.lower().split()
    found = []
    for paper in page():
        text = " ".join((paper.id, paper.arxiv, paper.title, paper.stage, paper.kind, *paper.entry)).lower()
        if all(word in text for word in words) and stage in ("", paper.stage) and kind in ("", paper.kind):
            found.append(paper)
    return [paper for paper in found if not rung or paper.rung >= rung]


def docstring(entry: str) -> str:
    """The docstring of `"module:Class"`, read from the source file: nothing is imported."""
    module, name = entry.split(":")
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
    raise LookupError(f"{entry}: no {name} in {path.name}")


def load(entry: str) -> Any:
    """Import `"module:Class"`."""
    from importlib import import_module

    module, name = entry.split(":")
    return getattr(import_module(module), name)
