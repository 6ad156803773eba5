"""What papers offer, found in source files as text: nothing is imported, so the page opens at once.

Knows: folders of Python files, one line of code. A class is of a paper where its body holds, on a line of its own,

    paper: ClassVar[str] = "gem"

It is the paper's trial where its name ends in `Trial`, what `broadsheet apply` runs where it ends in `Recipe`, and else
a method. A stage's trial or recipe holds `stage: ClassVar[str] = "embed"` and serves the papers that have none.

A reader's own package adds its papers by the entry-point group `broadsheet.papers`. What is wrong with such a package
is reported in one line and costs nothing but its own papers. Such packages are looked for only where they count: to
ask every installed package takes longer than to read our own page.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from broadsheet.console import InputError, say

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

    def holds(self, module: str) -> bool:
        """Whether a module is in it."""
        return f"{module}.".startswith(f"{self.name}.")


@dataclass(frozen=True)
class Found:
    """A class that belongs to a paper or a stage.

    Attributes:
        entry: `"module:Class"`.
        key: `"paper"` or `"stage"`, and `id`: of which.
        kind: `"method"`, `"trial"` or `"recipe"`.
        package: the name of the package that it is in.
    """

    entry: str
    key: str
    id: str
    kind: str
    package: str


@cache
def own() -> Package:
    """broadsheet itself."""
    return Package("broadsheet", Path(__file__).parents[1], ours=True)


@cache
def packages() -> tuple[Package, ...]:
    """broadsheet, then installed packages of the entry-point group `broadsheet.papers`, by name.

    An entry point's value is a package that holds `papers.toml`, methods in `<id>.py` and trials in `trials/<id>.py`.
    """
    from importlib import util
    from importlib.metadata import entry_points

    found = {"broadsheet": own()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.value):
        try:
            spec = util.find_spec(point.value)
        except (ImportError, ValueError, SyntaxError) as error:
            left_out(point.value, f"it cannot be imported: {error}")
            continue
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            left_out(point.value, "it is no package that is installed")
        elif not (Path(folders[0]) / "papers.toml").is_file():
            left_out(point.value, f"expected {folders[0]}/papers.toml")
        else:
            found.setdefault(point.value, Package(point.value, Path(folders[0])))
    return tuple(found.values())


def left_out(package: str, why: str) -> None:
    """Report, in one line, that a reader's own package cannot be used."""
    say(f"the package {package!r} (entry-point group {GROUP}) is left out: {' '.join(why.split())}")


@cache
def classes() -> tuple[Found, ...]:
    """Every class that belongs to a paper or a stage, in the order of packages, files and lines."""
    return tuple(each for package in packages() for each in classes_of(package))


@cache
def classes_of(package: Package) -> tuple[Found, ...]:
    """Those of one package, in the order of files and lines."""
    return tuple(_scan(package))


def _scan(package: Package) -> Iterator[Found]:
    for path in sorted(package.folder.rglob("*.py")):
        read = path.read_bytes()
        if b"ClassVar[str] = " not in read:
            continue
        text = read.decode(errors="replace").replace("\r\n", "\n")
        module = ".".join((package.name, *path.relative_to(package.folder).with_suffix("").parts))
        starts = list(_CLASS.finditer(text))
        ends = [*(start.start() for start in starts[1:]), len(text)]
        for start, end in zip(starts, ends, strict=False):
            name = start[1]
            kind = "trial" if name.endswith("Trial") else "recipe" if name.endswith("Recipe") else "method"
            for of in _OF.finditer(text, start.end(), end):
                yield Found(f"{module}:{name}", of[1], of[2], kind, package.name)


def methods(paper: str, package: str = "broadsheet") -> tuple[str, ...]:
    """`"module:Class"` of a paper's methods, in the package that lists the paper."""
    return tuple(_entries("paper", paper, "method", package))


def trial(paper: str, package: str = "broadsheet") -> str:
    """`"module:Class"` of a paper's own trial; empty where it has none."""
    return next(_entries("paper", paper, "trial", package), "")


def stage_trial(stage: str) -> str:
    """`"module:Class"` of a stage's trial; empty where it has none."""
    return next(_entries("stage", stage, "trial"), "")


def recipe(paper: str, package: str = "broadsheet") -> str:
    """`"module:Class"` of what `broadsheet apply` runs for a paper; empty where there is nothing."""
    return next(_entries("paper", paper, "recipe", package), "")


def stage_recipe(stage: str) -> str:
    """`"module:Class"` of a stage's recipe; empty where it has none."""
    return next(_entries("stage", stage, "recipe"), "")


def _entries(key: str, name: str, kind: str, package: str = "broadsheet") -> Iterator[str]:
    found = classes_of(own()) if package == own().name else classes()
    wanted = (key, name, kind, package)
    return (each.entry for each in found if (each.key, each.id, each.kind, each.package) == wanted)


def load(entry: str) -> Any:
    """Import `"module:Class"`.

    Raises:
        InputError: it is in a reader's own package, and cannot be imported.
    """
    module, name = entry.split(":")
    try:
        return getattr(import_module(module), name)
    except Exception as error:
        if own().holds(module) or os.environ.get("BROADSHEET_DEBUG"):
            raise
        raise InputError(f"{entry} cannot be imported: {type(error).__name__}: {error}") from error


class Exports:
    """A stage's names, imported when they are asked for: its papers' classes, and the parts it lists by hand.

    Args:
        package: the stage's `__name__`.
        parts: module (below the stage, or whole: `broadsheet.…`) to the names it gives.

    Attributes:
        homes: the module of each name.

    Example:
        _exports = Exports(__name__, {"base": ("Detector",)})
        __all__ = _exports.names
        __getattr__ = _exports.get
    """

    def __init__(self, package: str, parts: dict[str, tuple[str, ...]]) -> None:
        self.package = package
        self.homes = {
            name: home if home.startswith("broadsheet.") else f"{package}.{home}"
            for home, names in parts.items()
            for name in names
        }
        for each in classes_of(own()) if own().holds(package) else classes():
            module, name = each.entry.split(":")
            if each.key == "paper" and each.kind == "method" and module.startswith(f"{package}."):
                self.homes.setdefault(name, module)

    @property
    def names(self) -> list[str]:
        """What the stage exports, sorted."""
        return sorted(self.homes)

    def get(self, name: str) -> Any:
        """The module's `__getattr__`."""
        if name not in self.homes:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        return getattr(import_module(self.homes[name]), name)
