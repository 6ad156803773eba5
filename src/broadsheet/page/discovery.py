"""What papers offer, found in source files as text: nothing is imported, so the page opens at once.

Knows: folders of Python files, one line of code. A class is of a paper where its body holds, on a line of its own,

    paper: ClassVar[str] = "gem"

It is the paper's trial where its name ends in `Trial`, what `broadsheet apply` runs where it ends in `Recipe`, and else
a method. A stage's trial or recipe holds `stage: ClassVar[str] = "embed"` and serves the papers that have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module, util
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

GROUP = "broadsheet.papers"  # the entry-point group by which a package adds its own papers
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_OF = re.compile(r"^    (paper|stage): ClassVar\[str\] = \"(\w+)\"$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """A package that brings papers: broadsheet itself, or a reader's own.

    Attributes:
        name: as it is imported.
        folder: where its files lie; `papers.toml` among them, for broadsheet in `page/`.
        ours: whether it is broadsheet.
    """

    name: str
    folder: Path
    ours: bool = False

    @property
    def table(self) -> Path:
        """Its `papers.toml`."""
        return self.folder / "page" / "papers.toml" if self.ours else self.folder / "papers.toml"


@dataclass(frozen=True)
class Found:
    """A class that belongs to a paper or a stage.

    Attributes:
        entry: `"module:Class"`.
        key: `"paper"` or `"stage"`, and `id`: of which.
        kind: `"method"`, `"trial"` or `"recipe"`.
    """

    entry: str
    key: str
    id: str
    kind: str


@cache
def packages() -> tuple[Package, ...]:
    """broadsheet, then installed packages of the entry-point group `broadsheet.papers`, by name.

    An entry point's value is a package that holds `papers.toml`, methods in `<id>.py` and trials in `trials/<id>.py`.
    """
    found = [Package("broadsheet", Path(__file__).parents[1], ours=True)]
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.value):
        spec = util.find_spec(point.value)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if folders and (Path(folders[0]) / "papers.toml").is_file():
            found.append(Package(point.value, Path(folders[0])))
    return tuple(found)


@cache
def classes() -> tuple[Found, ...]:
    """Every class that belongs to a paper or a stage, in the order of packages, files and lines."""
    return tuple(each for package in packages() for each in _scan(package))


def _scan(package: Package) -> Iterator[Found]:
    for path in sorted(package.folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "ClassVar[str] = " not in text:
            continue
        module = ".".join((package.name, *path.relative_to(package.folder).with_suffix("").parts))
        starts = list(_CLASS.finditer(text))
        for start, end in zip(starts, [*(m.start() for m in starts[1:]), len(text)], strict=True):
            name = start[1]
            kind = "trial" if name.endswith("Trial") else "recipe" if name.endswith("Recipe") else "method"
            for of in _OF.finditer(text, start.end(), end):
                yield Found(f"{module}:{name}", of[1], of[2], kind)


def methods(paper: str) -> tuple[str, ...]:
    """`"module:Class"` of a paper's methods."""
    return tuple(each.entry for each in classes() if (each.key, each.id, each.kind) == ("paper", paper, "method"))


def trial(paper: str) -> str:
    """`"module:Class"` of a paper's own trial; empty where it has none."""
    return _one("paper", paper, "trial")


def stage_trial(stage: str) -> str:
    """`"module:Class"` of a stage's trial; empty where it has none."""
    return _one("stage", stage, "trial")


def recipe(paper: str) -> str:
    """`"module:Class"` of what `broadsheet apply` runs for a paper; empty where there is nothing."""
    return _one("paper", paper, "recipe")


def stage_recipe(stage: str) -> str:
    """`"module:Class"` of a stage's recipe; empty where it has none."""
    return _one("stage", stage, "recipe")


def _one(key: str, name: str, kind: str) -> str:
    return next((each.entry for each in classes() if (each.key, each.id, each.kind) == (key, name, kind)), "")


def load(entry: str) -> Any:
    """Import `"module:Class"`."""
    module, name = entry.split(":")
    return getattr(import_module(module), name)


def stage_methods(stage: str) -> dict[str, Any]:
    """The classes of a stage's papers by paper id, those of other packages included; imports their modules.

    A paper with several classes has the last word in `"<id>.<Class>"` beside its first class under `"<id>"`.
    """
    from broadsheet.page.papers import page

    found: dict[str, Any] = {}
    for paper in page():
        if paper.stage == stage:
            for i, entry in enumerate(methods(paper.id)):
                found[paper.id if i == 0 else f"{paper.id}.{entry.split(':')[1]}"] = load(entry)
    return found


class Exports:
    """A stage's names, imported when they are asked for: its papers' classes, and the parts it lists by hand.

    Args:
        package: the stage's `__name__`.
        parts: module (below the stage) to the names it gives.

    Example:
        _exports = Exports(__name__, {"base": ("Detector",)})
        __all__ = _exports.names
        __getattr__ = _exports.get
    """

    def __init__(self, package: str, parts: dict[str, tuple[str, ...]]) -> None:
        self.package = package
        self._homes = {name: f"{package}.{home}" for home, names in parts.items() for name in names}
        for each in classes():
            module, name = each.entry.split(":")
            if each.key == "paper" and each.kind == "method" and module.startswith(f"{package}."):
                self._homes.setdefault(name, module)

    @property
    def names(self) -> list[str]:
        """What the stage exports, sorted."""
        return sorted(self._homes)

    def get(self, name: str) -> Any:
        """The module's `__getattr__`."""
        if name not in self._homes:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        return getattr(import_module(self._homes[name]), name)
