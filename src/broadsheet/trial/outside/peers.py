"""Peer libraries: what a trial can measure beside a paper, each in a virtual environment of its own.

Knows: lists of requirements, virtual environments, pip and uv, the cache. Does not know: what a peer does, any stage.

A folder registers peers by a package `peers` that holds `PEERS`, a tuple of `Peer`. Beside it lie, for each, the pinned
requirements `<name>.txt` and the runner `<name>_runner.py`, which `peer_process` drives inside the peer's environment.
An environment is built aside and renamed, so one that stands under its final name is whole.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from broadsheet.cache import atomic_folder, fingerprint, home, locked
from broadsheet.console import InputError, say
from broadsheet.methods import parse_calls
from broadsheet.page import discovery

_MARK = "peer.json"
_PROCESS = Path(__file__).with_name("peer_process.py")
_CALL = re.compile(r"([A-Za-z][\w-]*)\s*(\(.*\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Peer:
    """A library that a trial can take as an arm, and what its environment costs.

    Attributes:
        name: as `broadsheet peer` and `--peer` take it; letters, digits and `_`.
        stage: the id of the stage whose trials take it.
        about: what it is and what it serves as a peer for, in one line.
        licence: of the library.
        module: what is imported to see that the environment works.
        download_mb, disk_mb: what building it takes on Linux and a CPU, in megabytes.
        folder: where its requirements and its runner lie.
        options: that its runner takes, with their defaults: `--peer 'name(option=value)'`.
        kind: what the stage's trials do with it, where they can do several things.
    """

    name: str
    stage: str
    about: str
    licence: str
    module: str
    download_mb: int
    disk_mb: int
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""

    @property
    def requirements(self) -> Path:
        """The file of pinned requirements, one a line."""
        return self.folder / f"{self.name}.txt"

    @property
    def runner(self) -> Path:
        """The file whose `load` makes the peer ready; see `peer_process`."""
        return self.folder / f"{self.name}_runner.py"

    @property
    def pins(self) -> list[str]:
        """The requirements."""
        lines = (line.partition("#")[0].strip() for line in self.requirements.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]

    @property
    def environment(self) -> Path:
        """Where its environment lies once built; named after the requirements, and the Python that they are for."""
        made_of = [self.pins, sys.implementation.name, list(sys.version_info[:2]), platform.machine()]
        return home() / "peers" / f"{self.name}-{fingerprint(made_of)[:8]}"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return _python(self.environment)

    @property
    def built(self) -> bool:
        """Whether its environment is whole; one whose base interpreter is gone is not."""
        return (self.environment / _MARK).is_file() and self.python.exists()

    @property
    def size(self) -> int:
        """Bytes of its environment on disk, as counted when it was built."""
        return int(json.loads((self.environment / _MARK).read_text(encoding="utf-8"))["bytes"])

    def check_built(self) -> None:
        """See that its environment is there.

        Raises:
            InputError: it is not built.
        """
        if not self.built:
            raise InputError(f"the peer {self.name} is not built; build it once: broadsheet peer {self.name}")

    def command(self, **given: Any) -> list[str]:
        """What an external arm runs: the environment's Python on the peer's runner.

        Args:
            given: what the runner's `load` gets, as JSON can hold it.

        Raises:
            InputError: it is not built.
        """
        self.check_built()
        # isolated (-I): neither PYTHONPATH nor the folder of the script may bring in what the environment does not hold
        command = [str(self.python), "-I", str(_PROCESS), str(self.runner)]
        return [*command, json.dumps(given, sort_keys=True)] if given else command


@dataclass(frozen=True)
class PeerCall:
    """What `--peer` named.

    Attributes:
        label: as its arm is called.
        peer: the known one; None for a command.
        options: of a known one, its defaults filled in.
        words: of a command.
    """

    label: str
    peer: Peer | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def command(self, **given: Any) -> list[str]:
        """What an external arm runs; `given` and its options go to the runner of a known peer, a command gets nothing.

        Raises:
            InputError: the peer is not built.
        """
        return self.peer.command(**{**given, **self.options}) if self.peer else list(self.words)


@cache
def known() -> dict[str, Peer]:
    """Every registered peer by name, in the order of names."""
    found: dict[str, Peer] = {}
    for package in discovery.packages():
        for path in sorted(package.folder.glob("*/peers/__init__.py" if package.ours else "peers/__init__.py")):
            module = ".".join((package.name, *path.parent.relative_to(package.folder).parts))
            try:
                found = {peer.name: peer for peer in import_module(module).PEERS} | found
            except Exception as error:
                if package.ours:
                    raise
                discovery.left_out(package.name, f"{module}: {type(error).__name__}: {error}")
    return dict(sorted(found.items()))


def get(name: str) -> Peer:
    """The peer of that name; `-` and `_` are one.

    Raises:
        InputError: there is none; names that are near it are given.
    """
    peer = known().get(name.replace("-", "_"))
    if peer is None:
        raise InputError(f"got peer {name!r}; expected {_near(name, known())}: `broadsheet peer` lists all")
    return peer


def parse(given: str, stage: str) -> PeerCall:
    """What `--peer` says: a known peer of the stage, perhaps with options, or a command of one's own.

    A word that names a known peer is that peer, even where a program is called so.

    Args:
        given: `"kvpress"`, `"kvpress(ratio=0.25)"`, or `"/opt/peer/bin/python arm.py"`.
        stage: the id of the trial's stage.

    Raises:
        InputError: it is neither; a peer of another stage, or not built; an option that the peer does not take.

    Example:
        >>> parse("/opt/peer/bin/python arm.py", "detect").label
        'peer: arm.py'
    """
    written = _CALL.fullmatch(given)
    if written and (written[2] or shutil.which(given) is None) and not Path(given).exists():
        return _call(get(written[1]), f"{written[1].replace('-', '_')}{written[2] or ''}", stage)
    if written and given.replace("-", "_") in known():
        return _call(get(given), given.replace("-", "_"), stage)
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise InputError(f"got --peer {given!r} ({error}); expected a command, quoted as in a shell") from None
    if not words:
        raise InputError("got an empty --peer; expected a known peer (`broadsheet peer` lists them) or a command")
    return PeerCall(f"peer: {Path(words[-1]).name}", words=tuple(words))


def _call(peer: Peer, written: str, stage: str) -> PeerCall:
    if peer.stage != stage:
        others = ", ".join(each.name for each in known().values() if each.stage == stage)
        raise InputError(
            f"got --peer {peer.name}, a peer for trials of {peer.stage}; expected {f'{others}, or ' * bool(others)}a "
            "command"
        )
    [call] = parse_calls(written, "--peer")
    if unknown := [name for name in call.options if name not in peer.options]:
        takes = ", ".join(f"{name}={value!r}" for name, value in peer.options.items()) or "none"
        raise InputError(f"the peer {peer.name} has no option {unknown[0]!r}; its options: {takes}")
    peer.check_built()
    return PeerCall(f"peer: {written}", peer, {**peer.options, **call.options})


def _near(name: str, names: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_").lower(), names, n=3, cutoff=0.5)
    return " or ".join(near) if near else f"one of {', '.join(names) or 'none'}"


def build(peer: Peer) -> Path:
    """Build a peer's environment, unless it stands in the cache; says first what it costs.

    Returns:
        Its folder.

    Raises:
        InputError: the disk is too full, a package cannot be had, or the peer cannot be imported.
    """
    folder = peer.environment
    if peer.built:
        return folder
    with locked(folder):
        if peer.built:  # another process was faster
            return folder
        if (free := shutil.disk_usage(folder.parent).free) < 1.1e6 * peer.disk_mb:
            raise InputError(
                f"the peer {peer.name} needs {peer.disk_mb:,} MB in {folder.parent}, which has {free / 1e6:,.0f} MB; "
                "free some space, or set BROADSHEET_HOME to a folder on another disk"
            )
        say(
            f"building the peer {peer.name}: {len(peer.pins)} package{'s' * (len(peer.pins) != 1)}, about "
            f"{peer.download_mb:,} MB to download, {peer.disk_mb:,} MB on disk, into {folder}"
        )
        start = time.perf_counter()
        with atomic_folder(folder) as aside:
            _fill(peer, aside)
            size = sum(file.lstat().st_size for file in aside.rglob("*") if not file.is_dir())
            mark = {"peer": peer.name, "requirements": peer.pins, "bytes": size}
            (aside / _MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")
        say(f"built {peer.name} in {time.perf_counter() - start:.0f} s: {size / 1e6:,.0f} MB")
        for other in sorted(folder.parent.glob(f"{peer.name}-*/")):
            if other != folder:
                say(f"{other} is of other requirements or another Python; remove it if nothing needs it")
    return folder


def _fill(peer: Peer, folder: Path) -> None:
    """Make an environment in an empty folder: with pip, or with uv where this Python has no pip."""
    uv = shutil.which("uv")
    # not importlib.util.find_spec: see models/wheels.py
    if importlib.machinery.PathFinder.find_spec("pip") is not None:
        _run(peer, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "--disable-pip-version-check"]
        install = [*pip, "install", "--no-input", "--requirement", str(peer.requirements)]
        _run(peer, install, own_bar=True)
    elif uv:
        _run(peer, [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)])
        install = ["pip", "install", "--python", str(_python(folder)), "--requirement", str(peer.requirements)]
        _run(peer, [uv, *install])
    else:
        raise InputError(
            "this Python has no pip, and there is no uv, one of which builds peers; run `python -m ensurepip`"
        )
    _run(peer, [str(_python(folder)), "-I", "-c", f"import {peer.module}"])


def _run(peer: Peer, command: Sequence[str], *, own_bar: bool = False) -> None:
    """Run one step of a build; its progress goes to stderr, as a bar on a terminal, else as a line a package."""
    bar = own_bar and sys.stderr.isatty()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if bar else subprocess.PIPE,
        stderr=subprocess.PIPE if bar else subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said = process.stderr if bar else process.stdout
    assert said is not None
    try:
        lines = list(_told(said, len(peer.pins)))
        status = process.wait()
    except BaseException:  # Ctrl-C reaches a child in a terminal alone
        process.kill()
        process.wait()
        raise
    if status != 0:
        raise InputError(
            f"cannot build the peer {peer.name}: {_reason(lines)}; the packages are those of {peer.requirements}"
        )


def _told(lines: IO[str], total: int) -> Iterator[str]:
    """The lines of a program, each package that pip begins with said on the way."""
    count = 0
    for line in lines:
        if line.startswith(("Collecting ", "Processing ")):  # the second one a file on this disk
            count += 1
            say(f"  {count} of {max(count, total)}: {Path(line.split()[1]).name}")
        yield line


def _reason(lines: Sequence[str]) -> str:
    """The error that a program ended with, on one line and without addresses (one can hold a password)."""
    told = [line.strip() for line in lines if line.strip()] or ["no message"]
    errors = [line for line in told if re.match(r"(ERROR|error|Error):", line)] or told
    return re.sub(r"\w+://\S+", "the index", re.sub(r"^\w+:", "", errors[-1]).strip())


def _python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
