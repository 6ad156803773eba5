"""The folder that a training works in until its result stands: held by one process, resumed from the same config alone.

Knows: folders, locks, what a training was begun from. Does not know: checkpoints, models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from broadsheet.cache import atomic_write, restore_folder
from broadsheet.console import InputError, say

_starting_over: ContextVar[bool] = ContextVar("starting_over", default=False)


@contextmanager
def starting_over() -> Iterator[None]:
    """Within it, what was begun otherwise is begun anew, and not refused: for folders whose owner has no `force`."""
    token = _starting_over.set(True)
    try:
        yield
    finally:
        _starting_over.reset(token)


@contextmanager
def workdir(
    out: str | Path | None,
    config: Mapping[str, Any],
    *,
    finished: str,
    force: bool = False,
    mutable_keys: Collection[str] = (),
    fingerprints: Collection[str] = ("model", "rows"),
    kind: str = "model",
) -> Iterator[Path]:
    """The folder that checkpoints go to: `<out>.partial`, held by one process, resumed from the same config alone.

    It stays when the block ends; whoever has written `out` removes it.

    Args:
        out: the folder where the result will stand; None for a temporary folder, removed at the end.
        config: all that the result depends on, as JSON values; a run that was cut off resumes from the same alone.
        finished: the file that a finished `out` holds.
        force: replace a finished `out`, and start over rather than resume. Without it, a forced run that was cut off
            resumes.
        mutable_keys: keys of `config` that may differ when a run resumes.
        fingerprints: keys of `config` whose values tell a reader nothing: a difference is named without them.
        kind: what `out` is, in messages.

    Raises:
        InputError: `out` is finished, is something else, or cannot be written; it was begun from other settings;
            another process works on it.

    Example:
        with workdir(out, config, finished="modules.json", mutable_keys=["minutes"], kind="embedder") as folder:
            if run.train(trainer(folder)):
                model.save(out)
                shutil.rmtree(folder)
    """
    if out is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    from filelock import FileLock, Timeout

    target = Path(out)
    folder = target.with_name(f"{target.name}.partial")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / finished).exists()):
        raise InputError(f"{target} exists and is no saved {kind}; choose another out")
    _check_unfinished(target, folder, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another broadsheet is writing {target}; wait for it, or choose another out") from None
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; choose another out") from None
    try:
        restore_folder(target)
        _check_unfinished(target, folder, force)
        _claim(folder, json.loads(json.dumps(config)), force, mutable_keys, fingerprints)
        yield folder
    finally:
        lock.release()
        if not folder.exists():
            Path(lock.lock_file).unlink(missing_ok=True)


def _check_unfinished(target: Path, folder: Path, force: bool) -> None:
    """Raise InputError where a finished result stands that is not to be replaced."""
    replacing = (folder / "replacing").exists()  # the run that was cut off had force=True
    if target.exists() and any(target.iterdir()) and not (force or replacing):
        raise InputError(f"{target} is finished; choose another out, or force=True to replace it")


def _claim(
    folder: Path, config: dict[str, Any], force: bool, mutable_keys: Collection[str], fingerprints: Collection[str]
) -> None:
    """See that `folder` can be resumed, or begin it.

    Raises:
        InputError: it was begun from other settings or data, or what it was begun from is unreadable.
    """
    path = folder / "settings.json"
    why = None if force or not path.exists() else _unfit(path, config, mutable_keys, fingerprints)
    if why and not _starting_over.get():
        raise InputError(f"{why}, or start over with force=True")
    if why:
        say(f"{why.rpartition(': ')[0]}: it is begun anew")
    if why or force or not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_write(path) as file:
            json.dump(config, file)
        if force:
            (folder / "replacing").touch()


def _unfit(
    path: Path, config: dict[str, Any], mutable_keys: Collection[str], fingerprints: Collection[str]
) -> str | None:
    """Why what was begun cannot be resumed, and after a colon what can be; None where it is resumed."""
    try:
        before = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return f"{path} is damaged: choose another out"
    changes = "; ".join(differences(before, config, mutable_keys, fingerprints))
    return f"{path.parent} was begun with other {changes}: resume with the same" if changes else None


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    ignored: Collection[str],
    unprinted: Collection[str] = ("model", "rows"),
) -> list[str]:
    """Each value that differs, by its key, unless that is ignored; in mappings, those within."""
    found = []
    for key in sorted((before.keys() | now.keys()) - set(ignored)):
        one, other = before.get(key), now.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{key}.{each}" for each in differences(one, other, (), unprinted)]
        else:
            found.append(key if key in unprinted else f"{key} {one!r}, now {other!r}")
    return found
