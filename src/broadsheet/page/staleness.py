"""Whether evidence is older than the code that it rests on: the files that its paper imports, directly or not.

Knows: evidence files, imports as text, git. Does not know: what the code does; a change of a comment counts too.

A paper rests on the files of its methods and of its trial, and on all that they import within broadsheet: the stage,
and the bases below it. `cli`, `console`, `page` and `report` are left out, which say and show, and change no number;
and so is the table of resources, which grows: what evidence was measured on, it knows by content. The evidence of a
benchmark rests on its script, that of the oracles on their adapters.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from broadsheet.console import InputError
from broadsheet.page import checkout, discovery, evidence
from broadsheet.page.papers import get_trial, page

_LEFT_OUT = ("cli", "console", "page", "report", "data/catalogue")
_ENTRY = re.compile(r"(broadsheet(?:\.\w+)+)(?::\w+)?")


def stale(name: str, folder: Path | None = None) -> str:
    """Why the evidence of a name may not be that of the code as it is.

    Args:
        name: of the evidence file, without `.json`.
        folder: of the checkout; by default broadsheet's own.

    Returns:
        What to read after "evidence of NAME: "; empty where nothing is recorded, where it is up to date, and where
        there is no checkout to compare with.
    """
    recorded = evidence.read(name)
    folder = folder or checkout.root()
    if recorded is None or folder is None:
        return ""
    commit = recorded.get("provenance", {}).get("commit")
    if not commit:
        return "recorded before commits were kept"
    short = commit[:9]
    if commit.endswith("+"):
        return f"recorded at {short} with changes that were not committed"
    found = checkout.changed(commit, rests_on(name, folder), folder)
    if found is None:
        return f"recorded at {short}, which this checkout does not hold"
    if not found:
        return ""
    others = f" and {len(found) - 1} other file{'s' * (len(found) > 2)}" if found[1:] else ""
    return f"recorded at {short}; {_nearest(name, found)}{others} changed since"


def all_stale(folder: Path | None = None) -> dict[str, str]:
    """By name, why; those that are up to date left out."""
    names = sorted(path.stem for path in evidence.folder().glob("*.json"))
    return {name: why for name in names if (why := stale(name, folder))}


def _nearest(name: str, files: list[str]) -> str:
    """The file to name first: the paper's own where that changed."""
    stem = name.partition(".")[0]
    return next((file for file in files if Path(file).stem == stem), files[0])


def rests_on(name: str, folder: Path) -> set[Path]:
    """The files in a checkout that the evidence of that name rests on."""
    scripts: list[Path] = []
    modules: list[str] = []
    recorded = evidence.read(name) or {}
    match shlex.split(recorded.get("command") or ""):
        case ["python", script, *_]:
            scripts = [folder / script]
        case _ if name == "oracles":
            scripts = sorted((folder / "tests" / "oracle_adapters").glob("*.py"))
        case _:
            modules = [entry.partition(":")[0] for entry in _entries(name)]
    return closure(modules, folder / "src", [script for script in scripts if script.is_file()])


def _entries(name: str) -> Iterator[str]:
    """`"module:Class"` of a paper's methods, and of the trial of a paper or a stage."""
    yield from next((paper.entry for paper in page() if paper.id == name), ())
    try:
        yield get_trial(name)[1]
    except InputError:  # nothing of that name can be tried any more
        return


def closure(modules: Iterable[str], source: Path, scripts: Iterable[Path] = ()) -> set[Path]:
    """The files of modules of broadsheet, and of all modules of broadsheet that those import, anywhere in their text.

    Imports for type checking alone do not count. A name that a stage exports counts as the module that defines it.

    Args:
        modules: names, `"broadsheet.embed.gem"`; those that there are not are passed over.
        source: the folder that holds `broadsheet/`.
        scripts: further files, no modules, whose imports count.

    Example:
        closure(["broadsheet.embed.gem"], Path("src"))
    """
    found: set[Path] = set(scripts)
    waiting = list(found)
    for module in modules:
        if (path := _file(module, source)) and path not in found:
            found.add(path)
            waiting.append(path)
    while waiting:
        path = waiting.pop()
        for module in _imports(path, source):
            below = _file(module, source)
            if below and below not in found and not _left_out(below.relative_to(source / "broadsheet")):
                found.add(below)
                waiting.append(below)
    return found


def _left_out(path: Path) -> bool:
    """Whether a file, below `broadsheet/`, changes no number."""
    return path.parts[0].removesuffix(".py") in _LEFT_OUT or path.with_suffix("").as_posix() in _LEFT_OUT


def _file(module: str, source: Path) -> Path | None:
    """The file of a module or package; None where there is none."""
    path = source.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def _imports(path: Path, source: Path) -> Iterator[str]:
    """Modules of broadsheet that a file imports, or names as text."""
    own = path.relative_to(source).with_suffix("").parts if path.is_relative_to(source) else ()
    for module, name, level in _named(path, path.stat().st_mtime_ns):
        # `.` is the folder of the file, also where the file is `__init__.py`
        home = ".".join((*own[: len(own) - level], *([module] if module else []))) if level else module
        if home.partition(".")[0] == "broadsheet":
            yield _home(home, name, source) if name else home


@cache
def _named(path: Path, changed: int) -> tuple[tuple[str, str, int], ...]:
    """What a file imports: module, the name from it, and the number of dots; bodies of `if TYPE_CHECKING` left out.

    Args:
        changed: when the file last changed, so that what was read before is not used after it.
    """
    found: dict[tuple[str, str, int], None] = {}
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.Import(names):
                found |= dict.fromkeys((each.name, "", 0) for each in names)
            case ast.ImportFrom(module, names, level):
                found |= dict.fromkeys((module or "", each.name, level) for each in names)
            case ast.Constant(str(text)) if entry := _ENTRY.fullmatch(text):
                found[entry[1], "", 0] = None
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple(found)


def _home(package: str, name: str, source: Path) -> str:
    """The module that `from package import name` reads."""
    if _file(f"{package}.{name}", source):
        return f"{package}.{name}"
    return _exported(package, source).get(name, package)


@cache
def _exported(package: str, source: Path) -> dict[str, str]:
    """By name, the module that defines what a stage exports: as its `Exports` says, and its papers' classes."""
    path = source.joinpath(*package.split("."), "__init__.py")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "Exports(" not in text:
        return {}
    found: dict[str, str] = {}
    for each in discovery.classes():
        module, name = each.entry.split(":")
        if each.kind == "method" and module.startswith(f"{package}."):
            found[name] = module
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(ast.Name("Exports"), [_, parts]):
                for home, names in ast.literal_eval(parts).items():
                    module = home if home.startswith("broadsheet.") else f"{package}.{home}"
                    found |= dict.fromkeys(names, module)
    return found
