"""The page: 79 papers, where each plugs in, and how far its evidence reaches.

Knows: `papers.toml`, the evidence folder, source files as text. Does not know: any method; nothing heavy is imported.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from broadsheet.console import InputError
from broadsheet.page import discovery, evidence
from broadsheet.page.beside import Found, leads, of_methods
from broadsheet.page.discovery import load

__all__ = [
    "RUNGS",
    "Paper",
    "Stage",
    "docstring",
    "get",
    "get_recipe",
    "get_trial",
    "load",
    "ours",
    "page",
    "search",
    "stage_methods",
    "stages",
    "which",
]

RUNGS = ("listed", "runs", "exact", "helps", "leads")
_LISTS = ("topics", "offers", "implements", "leaves_out")
_KEYS = f"expected id, arxiv, kind, stage, title, and perhaps summary, {', '.join(_LISTS)}, stands_in"
_WHOLE = 4  # letters: shorter words of a query have to be whole words of a row


@dataclass(frozen=True)
class Paper:
    """One row of the page.

    Attributes:
        id, arxiv, title: names; `arxiv` is the identifier alone, e.g. `"2410.06072"`.
        kind: method, study, benchmark or survey.
        stage: the folder it lives in.
        summary: what it proposes or finds, in two sentences of ours.
        topics: what it is about, in the words that one would look for it by.
        offers: `"module:name"` of what it offers, where that is no class with `paper` (a survey's table).
        implements: what of the paper the code has, in short phrases, with the place in the paper where it is known.
        leaves_out: what of the paper it does not have, or what was never run at the paper's scale.
        stands_in: what the paper used, and what is used here in its place.
        package: the package that brings it: `"broadsheet"`, or a reader's own.
    """

    id: str
    arxiv: str
    kind: str
    stage: str
    title: str
    summary: str = ""
    topics: tuple[str, ...] = ()
    offers: tuple[str, ...] = ()
    implements: tuple[str, ...] = ()
    leaves_out: tuple[str, ...] = ()
    stands_in: Mapping[str, str] = field(default_factory=dict, hash=False)
    package: str = "broadsheet"

    @property
    def entry(self) -> tuple[str, ...]:
        """`"module:Class"` of its methods, discovered; empty until it is built."""
        return self.offers or discovery.methods(self.id, self.package)

    @property
    def trial(self) -> str:
        """`"module:Class"` that `try` runs: its own trial, or its stage's once it is built; empty where it has none."""
        return discovery.trial(self.id, self.package) or (discovery.stage_trial(self.stage) if self.in_stage else "")

    @property
    def apply(self) -> str:
        """`"module:Class"` that `apply` runs: its own recipe, or its stage's; empty where there is none."""
        return discovery.recipe(self.id, self.package) or (discovery.stage_recipe(self.stage) if self.in_stage else "")

    @property
    def in_stage(self) -> bool:
        """Whether it offers something that its stage can run; a survey's tree and rules are the page's."""
        return any(not entry.startswith("broadsheet.page.") for entry in self.entry)

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"

    def import_line(self, entry: str) -> str:
        """The line that imports a class, from where a reader would import it."""
        module, name = entry.split(":")
        home = f"broadsheet.{self.stage}" if self.ours and self.in_stage else module
        return f"from {home} import {name}"

    @property
    def ours(self) -> bool:
        """Whether broadsheet brings it, and not a reader's own package."""
        return self.package == "broadsheet"

    @property
    def scope(self) -> dict[str, tuple[str, ...]]:
        """What of the paper is here, as printed: phrases by heading, only the headings that have any."""
        stand_ins = tuple(f"{theirs} → {ours}" for theirs, ours in self.stands_in.items())
        whole = {"implements": self.implements, "leaves out": self.leaves_out, "stands in": stand_ins}
        return {heading: phrases for heading, phrases in whole.items() if phrases}

    @property
    def evidence_folder(self) -> Path:
        """Where its trial is recorded: broadsheet's evidence, or the folder `evidence` of its own package."""
        if self.ours:
            return evidence.folder()
        return next(each.folder for each in discovery.packages() if each.name == self.package) / "evidence"

    @property
    def rung(self) -> int:
        """The highest rung reached, 0 to 4 (see `RUNGS`), each resting on the one below it.

        1 runs: a trial on a real model and real data is recorded (no demonstration), and a method's names its claims.
        2 exact: every numeric oracle case passed when last recorded. 3 helps: the recorded trial shows each claim of
        the paper, controls aside. 4 leads: the trial shows it faster or leaner than a peer's implementation, and no
        worse in a quality by the margin that was given, and found worse in none.
        """
        trial = evidence.read(self.id, self.evidence_folder)
        if trial is None or trial.get("demonstration") or (self.kind == "method" and not _claims(trial)):
            return 0
        oracles = (evidence.read("oracles", self.evidence_folder) or {}).get("slugs", {}).get(self.id)
        if not oracles or oracles["failed"] or not oracles["passed"]:
            return 1
        if self.verdict != "shown":
            return 2
        return 4 if _leads(trial) else 3

    @property
    def missing(self) -> str:
        """What the next rung wants, in a few words; empty on the last one."""
        trial, rung = evidence.read(self.id, self.evidence_folder), self.rung
        if rung == 0 and trial is None:
            return "a recorded trial on a real model and real data" if self.entry else "its code, and a trial of it"
        if rung == 0 and (trial or {}).get("demonstration"):
            return "a trial on a real model and real data: the recorded one is a demonstration"
        if rung == 0:
            return "a trial that names what the paper claims"
        if rung == 1:
            oracles = (evidence.read("oracles", self.evidence_folder) or {}).get("slugs", {}).get(self.id) or {}
            if failed := oracles.get("failed"):
                return f"agreement with the paper’s numbers: {failed} cases of {failed + oracles['passed']} differ"
            return "agreement with numbers worked out from the paper’s equations or its authors’ code"
        if rung == 2:
            claims = _claims(trial) if trial else []
            counts = {verdict: claims.count(verdict) for verdict in ("refuted here", "open")}
            told = [f"{n} {'is' if n == 1 else 'are'} {verdict}" for verdict, n in counts.items() if n]
            if not told:
                return "a trial that names what the paper claims"
            return f"every claim shown (of {len(claims)}, {', '.join(told)})"
        if rung == 3:
            return "to be faster or leaner than another implementation, at a quality that is no worse"
        return ""

    @property
    def verdict(self) -> str:
        """What the recorded trial says of the paper's claims: `"shown"` where every one is, `"refuted here"` where one
        is, else `"open"`; empty where no trial with claims is recorded.
        """
        trial = evidence.read(self.id, self.evidence_folder)
        verdicts = set(_claims(trial)) if trial else set()
        if not verdicts:
            return ""
        return "shown" if verdicts == {"shown"} else "refuted here" if "refuted here" in verdicts else "open"

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types, with its rung."""
        return {
            "id": self.id,
            "arxiv": self.arxiv,
            "title": self.title,
            "summary": self.summary,
            "topics": list(self.topics),
            "kind": self.kind,
            "stage": self.stage,
            "entry": list(self.entry),
            "trial": self.trial,
            "apply": self.apply,
            "implements": list(self.implements),
            "leaves_out": list(self.leaves_out),
            "stands_in": dict(self.stands_in),
            "package": self.package,
            "rung": self.rung,
            "reached": RUNGS[self.rung],
            "verdict": self.verdict,
        }


def _claims(trial: Mapping[str, Any]) -> list[str]:
    """The verdict of each claim, controls aside; those of before schema 2, which no effect was sought for, are open."""
    before = ["open"] * len(trial.get("claims", ()))
    return before + [claim["verdict"] for claim in trial.get("judged", ()) if claim["kind"] == "claim"]


def _leads(trial: Mapping[str, Any]) -> bool:
    """Whether the method leads a peer."""
    of = {role: [arm["name"] for arm in trial["arms"] if arm["role"] == role] for role in ("peer", "method")}
    method = of_methods([claim["arm"] for claim in trial.get("judged", ()) if claim["kind"] == "claim"], of["method"])
    beside = {
        peer: [
            Found(c["metric"], c.get("unit", ""), c["verdict"], c.get("no_worse"))
            for c in trial["comparisons"]
            if (c["baseline"], c["arm"]) == (peer, method)
        ]
        for peer in of["peer"]
    }
    return any(map(leads, beside.values()))


@dataclass(frozen=True)
class Stage:
    """A folder of the library: what its papers have in common, and the trial that runs them together.

    Attributes:
        papers: broadsheet's own, in page order; those of other packages are in `page()` alone.
    """

    id: str
    about: str
    papers: tuple[Paper, ...] = field(default=())

    @property
    def trial(self) -> str:
        """`"module:Class"` of the trial of all its papers; empty where it has none."""
        return discovery.stage_trial(self.id)


def which(folder: str) -> str:
    """A folder's own table of what to take when, in Markdown; empty where it has none."""
    path = discovery.packages()[0].folder / folder / "which.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


@cache
def page() -> tuple[Paper, ...]:
    """All papers, in page order; then those that other packages add, by package.

    A package that cannot be read, or whose rows are wrong, is reported in one line and left out.
    """
    found = {paper.id: paper for paper in ours()}
    for package in discovery.packages()[1:]:
        try:
            found |= _rows(package, found)
        except (InputError, OSError) as error:
            discovery.left_out(package.name, str(error))
    return tuple(found.values())


@cache
def ours() -> tuple[Paper, ...]:
    """The papers that broadsheet brings, in page order."""
    return tuple(_rows(discovery.own(), {}).values())


def _rows(package: discovery.Package, taken: Mapping[str, Paper]) -> dict[str, Paper]:
    """A package's papers by id.

    Raises:
        InputError: a row lacks a key, or has one that is unknown or of a wrong type; a paper has the id of another, or
            an unknown stage.
    """
    table = _table(package.table)
    known = {row["id"] for row in (table if package.ours else _table(discovery.own().table))["stage"]}
    kinds = ("method", "study", "benchmark", "survey")
    found: dict[str, Paper] = {}
    for number, row in enumerate(table.get("paper", []), 1):
        where = f"{package.table}, paper {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: got {row!r}; {_KEYS}")
        lists = {key: _phrases(f"{where} ({row.get('id')})", key, row.get(key, [])) for key in _LISTS}
        stands_in = _stand_ins(f"{where} ({row.get('id')})", row.get("stands_in", {}))
        try:
            paper = Paper(**{**row, **lists, "stands_in": stands_in, "package": package.name})
        except TypeError:
            raise InputError(f"{where}: got {', '.join(row)}; {_KEYS}") from None
        if paper.id in taken or paper.id in found:
            holder = taken[paper.id].package if paper.id in taken else package.name
            raise InputError(f"{where}: the id {paper.id!r} is taken by {holder}")
        if paper.stage not in known:
            raise InputError(f"{where}: no stage {paper.stage!r}; expected one of {', '.join(sorted(known))}")
        if paper.kind not in kinds:
            raise InputError(f"{where}: no kind {paper.kind!r}; expected one of {', '.join(kinds)}")
        found[paper.id] = paper
    return found


def _phrases(where: str, key: str, given: Any) -> tuple[str, ...]:
    """A row's list of phrases.

    Raises:
        InputError: it is none, or a phrase is empty or no text.
    """
    if not isinstance(given, list) or not all(isinstance(each, str) and each.strip() for each in given):
        raise InputError(f'{where}: got {key} = {given!r}; expected a list of texts, such as ["one", "another"]')
    return tuple(given)


def _stand_ins(where: str, given: Any) -> dict[str, str]:
    """A row's table of what is used here in place of what the paper used.

    Raises:
        InputError: it is none, or a value is empty or no text.
    """
    if not isinstance(given, dict) or not all(isinstance(each, str) and each.strip() for each in given.values()):
        raise InputError(
            f'{where}: got stands_in = {given!r}; expected a table of texts, such as "its model" = "the one used here"'
        )
    return given


@cache
def stages() -> tuple[Stage, ...]:
    """All stages, with broadsheet's own papers in page order."""
    rows = _table(discovery.own().table)["stage"]
    return tuple(Stage(**row, papers=tuple(p for p in ours() if p.stage == row["id"])) for row in rows)


def _table(path: Path) -> dict[str, Any]:
    """A `papers.toml`.

    Raises:
        InputError: it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def get(paper_id: str) -> Paper:
    """The paper of that id, arXiv id or address, or class name; case, and `-` for `_`, are forgiven.

    Raises:
        InputError: there is none; the nearest ids are named.
    """
    paper = _meant(paper_id)
    if paper is not None:
        return paper
    raise InputError(f"no paper {paper_id!r} on the page{_nearest(paper_id, [p.id for p in page()])}")


def _meant(name: str) -> Paper | None:
    """The paper that a name stands for; None where it stands for none.

    Readers' own packages are looked through last, and classes after all ids: either has to be searched for in files.
    """
    wanted = name.strip().lower()
    arxiv = re.search(r"(?<!\d)\d{4}\.\d{4,5}(?!\d)", wanted)
    for listed in (ours, page):
        for paper in listed():
            if wanted.replace("-", "_") == paper.id or (arxiv and arxiv[0] == paper.arxiv):
                return paper
    classes = ((entry.rpartition(":")[2].lower(), paper) for paper in page() for entry in paper.entry)
    return next((paper for known, paper in classes if known == wanted), None)


def get_trial(name: str) -> tuple[str, str]:
    """(paper id, `"module:Class"`) of the trial of a paper, or of a stage: its own, else that of its only paper.

    Raises:
        InputError: unknown name, or nothing to try yet.
    """
    for stage in stages():
        if stage.id == name:
            papers = [paper for paper in stage.papers if discovery.trial(paper.id)]
            if not stage.trial and len(papers) == 1:
                return papers[0].id, papers[0].trial
            if not stage.trial:
                raise InputError(
                    f"nothing to try in the stage {name!r} yet: `broadsheet papers --rung 1` lists what can be"
                )
            return name, stage.trial
    if _meant(name) is None:
        known = [p.id for p in page()] + [s.id for s in stages()]
        raise InputError(f"no paper or stage {name!r} on the page{_nearest(name, known)}")
    paper = get(name)
    if not paper.trial:
        if paper.entry:
            raise InputError(f"{paper.id} has no trial: `broadsheet show {paper.id}` says what it offers")
        raise InputError(
            f"{paper.id} is listed but not built yet: `broadsheet papers --rung 1` lists what can be tried"
        )
    return paper.id, paper.trial


def get_recipe(name: str) -> tuple[str, str]:
    """(paper id, `"module:Class"`) of what `apply` runs for a paper, or for a stage.

    Raises:
        InputError: unknown name, or nothing to apply yet.
    """
    if entry := next((discovery.stage_recipe(stage.id) for stage in stages() if stage.id == name), ""):
        return name, entry
    paper = get(name)
    if not paper.apply:
        raise InputError(f"{paper.id} has nothing to apply yet: `broadsheet show {paper.id}` says what it offers")
    return paper.id, paper.apply


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5) or [k for k in known if name.lower() in k][:3]
    return f"; did you mean {' or '.join(near)}?" if near else "; `broadsheet papers` lists them"


def search(query: str = "", *, stage: str = "", kind: str = "", rung: int = 0) -> list[Paper]:
    """Papers in whose row every word of `query` stands, in page order.

    Looked through are id, title, summary, topics, arXiv id, stage, kind and class names. A word of the query stands for
    a word of the row that it equals or, from four letters on, begins.

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
    wanted = query.lower().split()
    found = []
    for paper in page():
        names = [entry.rpartition(":")[2] for entry in paper.entry]
        said = (paper.id, paper.arxiv, paper.title, paper.summary, paper.stage, paper.kind, *paper.topics, *names)
        words = _words(" ".join(said))
        held = all(
            any(
                each == w or (len(w) >= _WHOLE and each.startswith(w))
                for each in words
                for w in {one, one.replace("-", "")}
            )
            for one in wanted
        )
        if held and stage in ("", paper.stage) and kind in ("", paper.kind):
            found.append(paper)
    return [paper for paper in found if not rung or paper.rung >= rung]


def _words(text: str) -> set[str]:
    """The words of a text in lower case: "LMInfinite" is "lm" and "infinite" too, "pre-training" also "pretraining"."""
    whole = re.findall(r"[\w.+-]*\w", text)
    parts = [part for word in whole for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", word)]
    joined = [word.replace("-", "") for word in whole]
    return {word.lower() for word in (*whole, *parts, *joined)}


def docstring(entry: str) -> str:
    """The docstring of `"module:Class"`, read from the source file: nothing is imported.

    Raises:
        InputError: the file is no Python.
        LookupError: it holds no such class.
    """
    module, name = entry.split(":")
    package = discovery.own()
    if not package.holds(module):
        package = max((p for p in discovery.packages() if p.holds(module)), key=lambda p: len(p.name))
    parts = module.removeprefix(package.name).strip(".").split(".")
    path = package.folder.joinpath(*parts).with_suffix(".py")
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from None
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
    raise LookupError(f"{entry}: no {name} in {path.name}")


def stage_methods(stage: str) -> dict[str, Any]:
    """The classes of a stage's papers by paper id, those of other packages included; imports their modules.

    A paper with several classes has the last word in `"<id>.<Class>"` beside its first class under `"<id>"`. A class
    of a reader's own package that cannot be imported is reported and left out.
    """
    found: dict[str, Any] = {}
    for paper in page():
        if paper.stage != stage:
            continue
        for i, entry in enumerate(discovery.methods(paper.id, paper.package)):
            try:
                found[paper.id if i == 0 else f"{paper.id}.{entry.split(':')[1]}"] = load(entry)
            except InputError as error:
                discovery.left_out(paper.package, str(error))
    return found
