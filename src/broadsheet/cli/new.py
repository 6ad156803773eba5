"""The command `new`: the five places of a paper as a scaffold that runs.

Knows: templates, where a paper's five places are. Does not know: any stage; a stage's own templates stand in its folder
`scaffold/` and replace those of the same name in `cli/scaffold/`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from broadsheet.cli.root import app
from broadsheet.console import InputError

_HERE = Path(__file__).parent / "scaffold"
_ID = re.compile(r"[a-z][a-z0-9_]*")


@app.command(epilog="Example: broadsheet new repeated_bigrams --stage detect --title 'Repeated bigrams'")
def new(
    paper_id: Annotated[str, typer.Argument(metavar="ID", help="The paper's id: small letters, digits, underscores.")],
    stage: Annotated[str, typer.Option(help="Its stage, e.g. detect; not needed where the paper is listed.")] = "",
    title: Annotated[str, typer.Option(help="Its title; not needed where the paper is listed.")] = "",
    arxiv: Annotated[str, typer.Option(help="Its arXiv id; not needed where the paper is listed.")] = "",
    name: Annotated[str, typer.Option(help="The name of its class; by default from the id.")] = "",
    package: Annotated[
        Path | None, typer.Option(help="A package of your own to write into, made where it does not exist.")
    ] = None,
) -> None:
    """Write the five places of a paper: its file, its trial, its row, its test and its paragraph in the docs.

    What is written runs at once, and stays on rung 0 until its claims and its oracle are there. No file is overwritten.
    """
    place = TargetPackage(package) if package else Checkout(checkout())
    for line in write(place, _facts(paper_id, stage, title, arxiv, name)):
        print(line)


@dataclass
class Facts:
    """What templates are filled with."""

    id: str
    stage: str
    title: str
    arxiv: str
    cls: str
    about: str
    listed: bool

    @property
    def stage_cls(self) -> str:
        """`"classify"` as `"Classify"`."""
        return _camel(self.stage)


def _facts(paper_id: str, stage: str, title: str, arxiv: str, name: str) -> Facts:
    """What is known of the paper: from its row where it is listed, else from the options.

    Raises:
        InputError: a bad id, an unknown stage, a paper that is built already, or a title that is missing.
    """
    from broadsheet.page.papers import page, stages

    if not _ID.fullmatch(paper_id):
        raise InputError(f"got the id {paper_id!r}; expected small letters, digits and underscores, a letter first")
    if name and not name.isidentifier():
        raise InputError(f"got --name {name!r}; expected a name of a Python class")
    row = next((paper for paper in page() if paper.id == paper_id), None)
    if row is not None and row.entry:
        raise InputError(f"{paper_id} is built already: {', '.join(row.entry)}")
    if row is not None and stage not in ("", row.stage):
        raise InputError(f"got --stage {stage}; {paper_id} is listed in the stage {row.stage}")
    stage = row.stage if row else stage
    about = {each.id: each.about for each in stages()}
    if stage not in about:
        raise InputError(f"got --stage {stage!r}; expected one of {', '.join(about)}")
    if row is None and not title:
        raise InputError(f"{paper_id} is not listed yet; give its --title (and --arxiv)")
    return Facts(
        id=paper_id,
        stage=stage,
        title=(row.title if row else title)
        .replace("\\", "")
        .replace('"', "'"),  # it stands in strings of two languages
        arxiv=row.arxiv if row else arxiv or "0000.00000",
        cls=name or _camel(paper_id),
        about=about[stage],
        listed=row is not None,
    )


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def checkout(start: Path | None = None) -> Path:
    """The checkout of broadsheet around `start`, else the one that runs.

    Raises:
        InputError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if (folder / "src" / "broadsheet" / "page" / "papers.toml").is_file():
            return folder
    raise InputError("no checkout of broadsheet here: run this inside one, or give --package DIR for your own package")


@dataclass
class Checkout:
    """The places in a checkout of broadsheet."""

    root: Path
    package: str = "broadsheet"
    files: dict[Path, str] = field(default_factory=dict)
    changed: dict[Path, str] = field(default_factory=dict)

    def plan(self, facts: Facts) -> None:
        """Collect what is to be written: `files` are new, `changed` are there and get more."""
        source, tests = self.root / "src" / "broadsheet", self.root / "tests"
        stage, context = source / facts.stage, {"paper": facts, "package": f"broadsheet.{facts.stage}", "ours": True}
        if not (stage / "base.py").is_file():
            if stage.is_dir():
                raise InputError(f"the stage {facts.stage} has no base.py to write against: copy a neighbour's paper")
            self._plan_stage(facts, stage, context)
        elif not (stage / "scaffold").is_dir() and f"class {facts.stage_cls}Method" not in _read(stage / "base.py"):
            raise InputError(f"the stage {facts.stage} has no scaffold: copy a neighbour's paper (CONTRIBUTING.md)")
        if _own_trial(stage):
            self.files[stage / "trials" / f"{facts.id}.py"] = _filled("trial.py", facts.stage, context)
        self.files[stage / f"{facts.id}.py"] = _filled("paper.py", facts.stage, context)
        self.files[tests / facts.stage / f"test_{facts.id}.py"] = _filled("test.py", facts.stage, context)
        self.files[tests / "oracle_adapters" / f"{facts.id}.py"] = _filled("adapter.py", facts.stage, context)
        self.files[tests / "oracles" / f"{facts.id}.json"] = _filled("oracle.json", facts.stage, context)
        if not facts.listed:
            self._more(source / "page" / "papers.toml", _filled("row.toml", facts.stage, context))
        self._plan_docs(facts, context)

    def _plan_docs(self, facts: Facts, context: dict[str, Any]) -> None:
        path = self.root / "docs" / f"{facts.stage}.md"
        text = self.files.get(path) or _read(path)
        row, paragraph = _filled("docs.md", facts.stage, context).split("\n\n", 1)
        if (mark := "\n<!-- new rows stand above -->") in text:
            text = text.replace(mark, f"{row}\n{mark}", 1)
        target = self.files if path in self.files else self.changed
        target[path] = f"{text.rstrip()}\n\n{paragraph}"

    def _plan_stage(self, facts: Facts, stage: Path, context: dict[str, Any]) -> None:
        """A stage that is not built yet: its folder, its socket, its trial, its page."""
        for name, path in {
            "init.py": stage / "__init__.py",
            "base.py": stage / "base.py",
            "trials.py": stage / "trials" / "__init__.py",
            "trial.py": stage / "trials" / f"{facts.stage}.py",
            "page.md": self.root / "docs" / f"{facts.stage}.md",
        }.items():
            self.files[path] = _filled(f"stage/{name}", facts.stage, context)
        for name, folder in {"reference.md": "", "internals.md": "internals", "trials.md": "trials"}.items():
            path = self.root / "docs" / "reference" / folder / f"{facts.stage}.md"
            self.files[path] = _filled(f"stage/{name}", facts.stage, context)
        navigation, layers = self.root / "mkdocs.yml", self.root / "pyproject.toml"
        text = _read(navigation)
        search, retrieval, internals = "      - Search:", "      - retrieval:", "      - Internals:\n"
        text = text.replace(search, f"      - {facts.stage.capitalize()}: {facts.stage}.md\n{search}", 1)
        text = text.replace(retrieval, f"      - {facts.stage}: reference/{facts.stage}.md\n{retrieval}", 1)
        inside = f"          - {facts.stage}: reference/internals/{facts.stage}.md\n"
        tried = f"          - trials of {facts.stage}: reference/trials/{facts.stage}.md\n"
        self.changed[navigation] = text.replace(internals, f"{internals}{inside}{tried}", 1)
        siblings = re.compile(r'^(  "broadsheet\.\w+(?: \| broadsheet\.\w+)+)(",)$', re.MULTILINE)
        self.changed[layers] = siblings.sub(rf"\1 | broadsheet.{facts.stage}\2", _read(layers), count=1)

    def _more(self, path: Path, text: str) -> None:
        self.changed[path] = f"{_read(path).rstrip()}\n\n{text}"


@dataclass
class TargetPackage(Checkout):
    """The places in a package of the reader's own, under `root`: `pyproject.toml`, `src/<name>/`, `tests/`."""

    def plan(self, facts: Facts) -> None:
        from broadsheet.page import discovery

        source = self._source()
        self.package = source.name
        stage = discovery.own().folder / facts.stage
        context = {"paper": facts, "package": self.package, "ours": False}
        if facts.listed:
            raise InputError(f"{facts.id} is on broadsheet's page; a package of your own needs an id of its own")
        if not (stage / "scaffold").is_dir():
            raise InputError(f"the stage {facts.stage} has no scaffold: write against broadsheet.{facts.stage}.base")
        if not (self.root / "pyproject.toml").is_file():
            self.files[self.root / "pyproject.toml"] = _filled("package/pyproject.toml", facts.stage, context)
            self.files[source / "__init__.py"] = _filled("package/init.py", facts.stage, context)
            self.files[source / "papers.toml"] = _filled("package/papers.toml", facts.stage, context)
            self.files[self.root / "README.md"] = _filled("package/readme.md", facts.stage, context)
        if _own_trial(stage):
            self.files[source / "trials" / f"{facts.id}.py"] = _filled("trial.py", facts.stage, context)
        self.files[source / f"{facts.id}.py"] = _filled("paper.py", facts.stage, context)
        self.files[self.root / "tests" / f"test_{facts.id}.py"] = _filled("test.py", facts.stage, context)
        row, paragraph = _filled("row.toml", facts.stage, context), _filled("docs.md", facts.stage, context)
        self._append(source / "papers.toml", row)
        self._append(self.root / "README.md", paragraph.split("\n\n", 1)[1])

    def _source(self) -> Path:
        """The folder of the package: of a new project, or as its entry point says.

        Raises:
            InputError: a project that registers no package of papers.
        """
        project = self.root / "pyproject.toml"
        if not project.is_file():
            name = re.sub(r"\W+", "_", self.root.resolve().name).strip("_").lower()
            if not _ID.fullmatch(name):
                raise InputError(f"got --package {self.root}; expected a folder that is named like a Python package")
            return self.root / "src" / name
        points = tomllib.loads(_read(project)).get("project", {}).get("entry-points", {}).get("broadsheet.papers", {})
        for point in points.values():
            for folder in (self.root / "src", self.root):
                if (folder / Path(*point.split("."))).is_dir():
                    return folder / Path(*point.split("."))
        raise InputError(
            f"{project} registers no package of papers; expected [project.entry-points.'broadsheet.papers'] with the "
            "name of a package that is there"
        )

    def _append(self, path: Path, text: str) -> None:
        if path in self.files:
            self.files[path] = f"{self.files[path].rstrip()}\n\n{text}".lstrip()
        else:
            self._more(path, text)


def write(place: Checkout, facts: Facts) -> Iterator[str]:
    """Write a paper's places; a line for each, and what comes next.

    Raises:
        InputError: a file is there already, or a file that gets more is missing; nothing is written then.
    """
    place.plan(facts)
    if there := [path for path in place.files if path.exists()]:
        raise InputError(f"{there[0]} is there already; nothing is overwritten, and nothing was written")
    for path, text in place.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        yield f"wrote    {path.relative_to(place.root)}"
    for path, text in place.changed.items():
        path.write_text(text, encoding="utf-8")
        yield f"changed  {path.relative_to(place.root)}"
    ours = type(place) is Checkout
    first = "python docs/generate.py" if ours else f"pip install --no-deps -e {place.root}"
    tests = f"tests/{facts.stage}/test_{facts.id}.py" if ours else f"{place.root}/tests"
    for command in (first, f"pytest {tests}", f"broadsheet try {facts.id} --quick"):
        yield f"next     {command}"


def _own_trial(stage: Path) -> bool:
    """Whether a paper of the stage gets a trial of its own, since the stage's does not serve it as it is."""
    return (stage / "scaffold" / "trial.py.jinja").is_file()


def _read(path: Path) -> str:
    """The text of a file that gets more.

    Raises:
        InputError: it is not there.
    """
    if not path.is_file():
        raise InputError(f"expected {path}, which gets a part; nothing was written")
    return path.read_text(encoding="utf-8")


def _filled(name: str, stage: str, context: dict[str, Any]) -> str:
    """A template, the stage's own where it has one, filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [Path(__file__).parents[1] / stage / "scaffold", _HERE]
    environment = Environment(
        loader=FileSystemLoader(folders), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(f"{name}.jinja").render(**context)
