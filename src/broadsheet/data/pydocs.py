"""The embedded corpus: docstrings and docs of the standard library and of the packages installed beside us.

Real technical English that is there on any machine, near-duplicates and boilerplate included. Knows: where Python keeps
sources, and how to read docstrings out of them without importing anything. Does not know: what a `Document` is (that is
`corpora`), models, or what the text is for.

One row is one of:
- `module`, `class`, `function`: a docstring of at least `MIN_CHARACTERS` characters after `inspect.cleandoc`;
- `readme`: a distribution's long description;
- `doc`: an `.rst` or `.md` file inside a package, or a topic of the language reference that `help()` shows.

Tests, `idlelib` and broadsheet itself are left out; so is a file without any triple-quoted string. The order is that of
the file paths, then of the lines. The corpus is a function of the environment alone: the Python version, the installed
distributions and their versions, and `EXTRACTION`. It is extracted once and kept under `home()/corpora/pydocs-<key>/`.

`pydocs:stdlib` is the standard library alone, for results that others can repeat: whatever is installed beside it, the
same release of Python gives the same rows. Its fingerprint is that of the rows themselves.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import pickle
import platform
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from broadsheet.cache import atomic_folder, atomic_write, fingerprint, home, locked, sha256_file
from broadsheet.console import InputError, progress, say

EXTRACTION = 1  # raise it whenever the same sources would give other rows
MIN_CHARACTERS = 20
EXCLUDED_FOLDERS = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "__pycache__"}
TOPICS = "pydoc_data/topics.py"
FILES_PER_CHUNK = 400

WHOLE, STANDARD = "pydocs", "pydocs:stdlib"

ROWS_FILE = "pydocs.jsonl"
STATS_FILE = "stats.json"


@dataclass(frozen=True)
class Stats:
    """What was found, stored beside the rows. `tokens` is None until a tokenizer has been there to count them."""

    key: str
    python: str
    distributions: int
    files: int
    unreadable: int
    documents: int
    characters: int
    tokens: int | None = None
    tokenizer: str | None = None
    name: str = WHOLE
    content: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits: of the rows where they were counted in, else of the environment that they were read from."""
        return self.content or self.key

    def __str__(self) -> str:
        tokens = (
            "tokens not counted: the default model is not prepared yet"
            if self.tokens is None
            else f"{self.tokens:,} tokens"
        )
        unreadable = f"; {self.unreadable:,} files could not be parsed" if self.unreadable else ""
        beside = f" and {self.distributions:,} packages" if self.name == WHOLE else "'s standard library"
        pinned = f"; fingerprint {self.content}" if self.content else ""
        return (
            f"{self.name}: {self.documents:,} documents, {tokens}, from Python {self.python}{beside}"
            f"{unreadable}{pinned}"
        )


class DocSource(NamedTuple):
    """A file to read. `name` is its POSIX path below the standard library or site-packages."""

    name: str
    path: str


class DocEntry(NamedTuple):
    """One document as it leaves its source; `name` is its title, and its id unless an earlier one has taken that."""

    name: str
    line: int
    kind: str
    module: str
    package: str
    text: str


def is_pydocs(spec: str | os.PathLike[str]) -> bool:
    """Whether a name of data is the embedded corpus, whole (`pydocs`) or the standard library's (`pydocs:stdlib`).

    Raises:
        InputError: it is another part, which there is not.
    """
    name = os.fspath(spec)
    if name.startswith(f"{WHOLE}:") and name != STANDARD:
        raise InputError(f"got {name}; expected {WHOLE}, or {STANDARD} for the standard library alone")
    return name in (WHOLE, STANDARD)


def prepare(name: str = WHOLE, *, tokenizer_file: Path | None = None, workers: int | None = None) -> tuple[Path, Stats]:
    """Extract the corpus of this environment unless that is done already, and count its tokens once that is possible.

    Args:
        name: `pydocs`, or `pydocs:stdlib`.
        tokenizer_file: the `tokenizer.json` to count tokens with; None leaves an earlier count, or none.
        workers: processes that parse; one for each core by default. The rows do not depend on it.

    Returns:
        The folder that holds `pydocs.jsonl` and `stats.json`, and the stats.

    Raises:
        InputError: the cache folder is full or cannot be written; nothing is left half made.
    """
    installed = _installed() if name == WHOLE else {}
    versions: list[Any] = [(package, distribution.version) for package, distribution in installed.items()]
    if name == STANDARD:  # distributors patch it: two of one version may differ
        versions = [
            STANDARD,
            *([source.name, Path(source.path).stat().st_size] for source in _sources(name, installed)),
        ]
    key = fingerprint([platform.python_version(), EXTRACTION, versions])
    folder = home() / "corpora" / f"pydocs-{key}"
    with locked(folder):
        if not folder.exists():
            try:
                with atomic_folder(folder) as temporary:
                    stats = _build(temporary, name, key, installed, workers or os.cpu_count() or 1)
                    _write_stats(temporary, stats)
            except OSError as error:
                raise InputError(
                    f"cannot make the corpus {folder}: {error.strerror}; make room, or set BROADSHEET_HOME elsewhere"
                ) from None
        stats = Stats(**json.loads((folder / STATS_FILE).read_text("utf-8")))
        if tokenizer_file is not None and stats.tokens is None:
            stats = _with_tokens(folder, stats, tokenizer_file)
            _write_stats(folder, stats)
    return folder, stats


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """Stream the rows of a prepared folder: id, text, title, summary, body, package, module and kind, all strings."""
    with (folder / ROWS_FILE).open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            row["summary"], row["body"] = split_summary(row["text"])
            yield row


def split_summary(text: str) -> tuple[str, str]:
    """The first paragraph on one line, and the rest.

    Example:
        >>> split_summary("Join two\\npaths.\\n\\nEmpty parts are ignored.")
        ('Join two paths.', 'Empty parts are ignored.')
    """
    summary, _, body = text.strip().partition("\n\n")
    return " ".join(summary.split()), body.strip()


def _installed() -> dict[str, Distribution]:
    """Distributions in site-packages by normalised name, sorted; of two with one name, the one Python would import."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        # A source checkout in the current folder is no part of the environment.
        if Path(str(distribution.locate_file(""))).name in {"site-packages", "dist-packages"}:
            found.setdefault(re.sub(r"[-_.]+", "-", distribution.name).lower(), distribution)
    found.pop("broadsheet", None)
    return dict(sorted(found.items()))


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _sources(name: str, installed: dict[str, Distribution]) -> list[DocSource]:
    """Every `.py`, `.rst` and `.md` file worth reading, sorted; the standard library shadows the rest, as on import.

    Of the standard library's folder `pydocs:stdlib` takes what Python itself counts to it: no leftover of a build, and
    nothing that a distributor put there.
    """
    root = _standard_library()
    found: dict[str, str] = {}
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in EXCLUDED_FOLDERS]
        for file in files:
            if file.endswith(".py"):
                path = Path(folder, file)
                place = path.relative_to(root)
                if name == WHOLE or place.parts[0].removesuffix(".py") in sys.stdlib_module_names:
                    found[place.as_posix()] = str(path)
    for distribution in installed.values():
        for listed in distribution.files or []:
            if _is_package_doc(listed):
                found.setdefault(listed.as_posix(), str(distribution.locate_file(listed)))
    return [DocSource(name, found[name]) for name in sorted(found)]


def _is_package_doc(file: PurePosixPath) -> bool:
    return (
        file.suffix in {".py", ".rst", ".md"}
        and ".." not in file.parts  # scripts and data outside site-packages
        and not file.parts[0].endswith((".dist-info", ".egg-info"))
        and EXCLUDED_FOLDERS.isdisjoint(file.parts)
    )


def _readmes(installed: dict[str, Distribution]) -> Iterator[DocEntry]:
    for name, distribution in installed.items():
        text = (distribution.metadata["Description"] or "").strip()
        if len(text) >= MIN_CHARACTERS:
            sources = (
                file.parts[0] for file in distribution.files or [] if file.suffix == ".py" and _is_package_doc(file)
            )
            package = next(sources, name.replace("-", "_")).removesuffix(".py")
            yield DocEntry(f"{name} README", 1, "readme", package, package, _valid_unicode(text))


def _build(
    folder: Path,
    name: str,
    key: str,
    installed: dict[str, Distribution],
    workers: int,
) -> Stats:
    sources = _sources(name, installed)
    beside = f"Python and {len(installed):,} packages" if name == WHOLE else "Python's standard library"
    say(f"{name}: reading {len(sources):,} files of {beside}, once for this environment …")
    chunks = [sources[i : i + FILES_PER_CHUNK] for i in range(0, len(sources), FILES_PER_CHUNK)]
    taken: set[str] = set()
    unreadable = characters = 0
    with (folder / ROWS_FILE).open("w", encoding="utf-8") as file:

        def write(entries: list[DocEntry], place: str) -> None:
            nonlocal characters
            for entry in entries:
                # An overload, a second definition under an `if`, or an attribute that hides a submodule.
                unique = entry.name if entry.name not in taken else f"{entry.name}@{place}:{entry.line}"
                taken.add(unique)
                characters += len(entry.text)
                row = {
                    "id": unique,
                    "title": entry.name,
                    "kind": entry.kind,
                    "package": entry.package,
                    "module": entry.module,
                    "text": entry.text,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

        write(list(_readmes(installed)), "METADATA")
        # Each thread waits for an interpreter of its own. Not multiprocessing: its workers import the caller's main
        # module again, which a plain script without a `__main__` guard does not survive.
        with ThreadPoolExecutor(workers) as pool, progress("reading docstrings", total=len(sources)) as bar:
            for chunk, found in zip(chunks, pool.map(_read_aside, chunks), strict=True):
                for source, entries in zip(chunk, found, strict=True):
                    if entries is None:
                        unreadable += 1
                    else:
                        write(entries, source.name)
                bar.advance(bar.task_ids[0], len(chunk))
    return Stats(
        key=key,
        python=platform.python_version(),
        distributions=len(installed),
        files=len(sources),
        unreadable=unreadable,
        documents=len(taken),
        characters=characters,
        name=name,
        content=sha256_file(folder / ROWS_FILE)[:16] if name == STANDARD else None,
    )


def _read_aside(chunk: list[DocSource]) -> list[list[DocEntry] | None]:
    """`_read` over a chunk in another interpreter with our `sys.path`; pickles through pipes between the two."""
    program = f"import sys; sys.path[:] = {sys.path!r}; from broadsheet.data.pydocs import _serve_chunk; _serve_chunk()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(chunk),
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,  # Ctrl-C is for the parent to answer, which waits for the chunks under way
    )
    found: list[list[DocEntry] | None] = pickle.loads(done.stdout)
    return found


def _serve_chunk() -> None:
    import gc

    gc.disable()  # a syntax tree is a million young objects and no garbage: collecting costs a third of the time
    warnings.simplefilter("ignore")  # invalid escapes in other people's strings
    chunk: list[DocSource] = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([_read(source) for source in chunk]))


def _read(source: DocSource) -> list[DocEntry] | None:
    """The entries of one file, in the order of its lines; None if it cannot be read or parsed."""
    parts = PurePosixPath(source.name).with_suffix("").parts
    package = parts[0]
    try:
        data = Path(source.path).read_bytes()
        if not source.name.endswith(".py"):
            text = data.decode("utf-8-sig").strip()
            long_enough = len(text) >= MIN_CHARACTERS
            return [DocEntry(source.name, 1, "doc", ".".join(parts[:-1]), package, text)] if long_enough else []
        if b'"""' not in data and b"'''" not in data and source.name != TOPICS:
            return []
        tree = ast.parse(data)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if source.name == TOPICS:
        return [
            DocEntry(f"{module}.{topic}", 1, "doc", module, package, text.strip())
            for topic, text in _topics(tree).items()
        ]
    return [
        DocEntry(name, line, kind, module, package, text)
        for name, line, kind, text in _docstrings(tree, module)
        if len(text) >= MIN_CHARACTERS
    ]


def _topics(tree: ast.Module) -> dict[str, str]:
    """The dictionary literal that `pydoc_data.topics` consists of."""
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, int, str, str]]:
    """Qualified name, line, kind and cleaned text of each docstring; only statements are visited, never expressions."""
    kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}

    def visit(node: Any, name: str) -> Iterator[tuple[str, int, str, str]]:
        kind = kinds.get(type(node))
        if kind:
            match node.body:
                case [ast.Expr(ast.Constant(str(text))), *_]:
                    yield name, getattr(node, "lineno", 1), kind, _valid_unicode(inspect.cleandoc(text))
        inner = f"{name}.<locals>" if kind == "function" else name
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            for child in getattr(node, block, ()):
                if type(child) in kinds:
                    yield from visit(child, f"{inner}.{child.name}")
                elif hasattr(child, "body"):
                    yield from visit(child, inner)

    return visit(tree, module)


def _valid_unicode(text: str) -> str:
    """`text` with lone surrogates (a docstring may spell them as escapes) replaced: no tokenizer or file takes them."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _with_tokens(folder: Path, stats: Stats, tokenizer_file: Path) -> Stats:
    """Count every row's tokens, special tokens not included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokens = 0
    texts = (row["text"] for row in rows(folder))
    with progress("counting tokens", total=stats.documents) as bar:
        while batch := list(islice(texts, 1024)):
            tokens += sum(len(encoding) for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False))
            bar.advance(bar.task_ids[0], len(batch))
    return Stats(**(asdict(stats) | {"tokens": tokens, "tokenizer": sha256_file(tokenizer_file)[:16]}))


def _write_stats(folder: Path, stats: Stats) -> None:
    with atomic_write(folder / STATS_FILE) as file:
        file.write(json.dumps(asdict(stats), indent=1) + "\n")
