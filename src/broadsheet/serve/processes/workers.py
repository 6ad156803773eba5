"""Several processes that answer on one address: started, watched, replaced, and ended together.

Knows: processes, signals. Does not know: routes, models. Each worker is a new interpreter that makes an app of its own
and accepts from the one socket. They share a folder in memory (counts, what keys have left) and a token.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, duration, say
from broadsheet.serve.guard import Guard, KeyRing
from broadsheet.serve.processes.running import WHAT, answer, bound, told

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_PAUSE, _LONGEST = 1.0, 60.0  # seconds before a worker is replaced: the first, twice as many each time, at most
_MENDABLE = (InputError, FileNotFoundError, PermissionError, ModuleNotFoundError)  # what the command tells in a line
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Shared:
    """What the processes of one server have in common.

    Attributes:
        folder: where each counts, and where it stands what keys have left.
        token: of the cookie that a page of this server's own is given.
        secret: by which sessions are sealed.
        started: seconds since 1970.
        workers: how many they are.
    """

    folder: Path
    token: str
    secret: str
    started: int
    workers: int


def run(
    make: Callable[[KeyRing, Shared], Guard], keys: KeyRing, workers: int, host: str, port: int, what: str = WHAT
) -> None:
    """Answer by several processes until a signal comes; then have each finish what was begun.

    Args:
        make: the app of one worker; a function of a module, perhaps a `partial`: another process calls it.
        keys: whose limits hold for all workers together.
        what: is said once all answer, see `running.told`.

    Raises:
        InputError: the address cannot be used, or there can be no workers here.
        Exception: what the command tells in a line and a worker has met before all answered.
        SystemExit: a worker has ended before all answered, or in the middle of its answers; with status 1.
        KeyboardInterrupt: a signal came before all answered, or a second one.
    """
    if os.name != "posix":
        raise InputError(f"got --workers {workers}; expected 1 on this system, which has no signals and file locks")
    with bound(host, port) as address, _folder() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # read where the client is imported, in each worker
        keys.share(folder)
        shared = Shared(folder, secrets.token_urlsafe(32), secrets.token_urlsafe(32), int(time.time()), workers)
        _Workers(lambda number: (make, keys, shared, workers, number, address), workers).run(
            lambda: say(told(host, address, what, f" by {workers} workers"))
        )


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this run: in memory where there is such, out of the reach of what tidies temporary files up."""
    memory = Path("/dev/shm")
    within = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="broadsheet-serve-", dir=within))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@dataclass
class _Worker:
    """One place among the workers, and who holds it.

    Attributes:
        ready: since when it answers; None: not yet.
        again: when it is started again; None: it runs, or is not to be.
        trouble: why it could not start, as it says itself.
        failures: ends one soon after the other.
    """

    number: int
    process: SpawnProcess | None = None
    news: Connection | None = None
    ready: float | None = None
    again: float | None = None
    trouble: str = ""
    failures: int = 0


class _Workers:
    """The parent's side.

    Args:
        given: what `_work` is given for a worker's number.
    """

    def __init__(self, given: Callable[[int], tuple[object, ...]], workers: int) -> None:
        self._given = given
        self._workers = [_Worker(number) for number in range(1, workers + 1)]
        self._signals: list[int] = []
        self._woken, self._wake = os.pipe()
        self._up = False  # all have answered once
        self._cut = False  # one has ended in the middle of its answers

    def run(self, up: Callable[[], None]) -> None:
        """Until all have ended; `up` is called once all answer."""
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            resource_tracker.ensure_running()  # which would let Ctrl-C through while the first worker starts
            self._start(self._workers[0])  # the others follow: what is wrong is told once, what is fetched is there
            while not self._signals:
                self._look()
                if not self._up and all(each.ready for each in self._workers):
                    self._up = True
                    up()
            self._drain()
        finally:
            for each in self._workers:
                if each.process:
                    each.process.kill()
                    each.process.join()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._woken)
            os.close(self._wake)
        if self._cut:
            sys.exit(1)
        if not self._up:
            raise KeyboardInterrupt

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        os.write(self._wake, b".")

    def _start(self, worker: _Worker) -> None:
        worker.news, theirs = _spawn.Pipe(duplex=False)
        worker.process = _spawn.Process(target=_work, args=(theirs, *self._given(worker.number)))
        worker.ready, worker.again, worker.trouble = None, None, ""
        # Ctrl-C reaches all processes of a terminal: a worker leaves it to its parent, from before its first line on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()

    def _look(self) -> None:
        """Wait until something happens, and see to it."""
        now = time.monotonic()
        running = {each.process.sentinel: each for each in self._workers if each.process}
        heard = {each.news: each for each in running.values() if each.news and not each.ready}
        times = [each.again - now for each in self._workers if each.again is not None]
        found = wait([*running, *heard, self._woken], max(0.0, min(times)) if times else None)
        if self._woken in found:
            os.read(self._woken, 64)
        for news in found:
            if isinstance(news, Connection):
                self._hear(heard[news])
        for sentinel in found:
            if sentinel in running:
                self._ended(running[sentinel])
        for each in self._workers:
            if each.again is not None and each.again <= time.monotonic():
                self._start(each)

    def _hear(self, worker: _Worker) -> None:
        """What a worker says: None once it answers, else the error for which it cannot."""
        assert worker.news
        try:
            error = worker.news.recv()
        except (EOFError, OSError):  # it has ended
            return
        if error is None:
            worker.ready = time.monotonic()
            if not self._up and not self._signals and worker is self._workers[0]:
                for each in self._workers[1:]:
                    self._start(each)
        elif not self._up:
            raise error
        else:
            worker.trouble = " ".join(str(error).split())

    def _ended(self, worker: _Worker) -> None:
        """A worker has ended: for good at the beginning or the end, else to be replaced."""
        assert worker.process
        assert worker.news
        worker.process.join()
        pid, status = worker.process.pid or 0, worker.process.exitcode or 0
        lasted = time.monotonic() - worker.ready if worker.ready else 0.0
        how = f"worker {worker.number} (process {pid}) ended" + (f" by signal {-status}" if status < 0 else "")
        how += f": {worker.trouble}" * bool(worker.trouble)
        worker.news.close()
        worker.process = worker.news = None
        if self._signals:
            if worker.ready and status:
                self._cut = True
                say(f"{how}, before its answers were written")
            return
        if not self._up:
            say(f"{how} before all answered" + "; is there memory for all of them?" * (status == -signal.SIGKILL))
            sys.exit(1)
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid, os.environ["PROMETHEUS_MULTIPROC_DIR"])
        worker.failures = 0 if lasted > _LONGEST else worker.failures
        pause = min(_LONGEST, _PAUSE * 2**worker.failures)
        worker.failures += 1
        worker.ready, worker.again = None, time.monotonic() + pause
        say(f"{how}; another is started in {duration(pause)}")

    def _drain(self) -> None:
        """Have all finish; a second signal ends them at once."""
        for each in self._workers:
            each.again = None
            if each.process:
                each.process.terminate()
        while any(each.process for each in self._workers):
            self._look()
            if len(self._signals) > 1:
                raise KeyboardInterrupt


def _work(
    news: Connection,
    make: Callable[[KeyRing, Shared], Guard],
    keys: KeyRing,
    shared: Shared,
    workers: int,
    number: int,
    address: socket.socket,
) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.setpgrp()
    threading.Thread(target=_follow, name="follows its parent", daemon=True).start()
    try:
        with _tidied(shared.folder):
            share_threads(workers)
            answer(make(keys, shared), address, lambda: news.send(None))
    except _MENDABLE as error:
        _tell(news, error)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _tell(news, InputError("cannot listen: another process does, on the same address"))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _tell(news, InputError(f"there is no memory for worker {number} of {workers}; give fewer --workers"))


def _tell(news: Connection, error: Exception) -> None:
    """Send an error to the parent, as a plain one that it can read whatever it was, and end as the command does."""
    if isinstance(error, ModuleNotFoundError):
        news.send(ModuleNotFoundError(str(error), name=error.name))
    else:
        news.send(InputError(str(error)))
    sys.exit(2)


def _follow() -> None:
    """End as at a signal where the parent has gone."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _tidied(folder: Path) -> Iterator[None]:
    """A worker's use of the folder: where the parent was killed, the last to use it removes it."""
    import fcntl

    with (folder / "used").open("w") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        try:
            yield
        finally:
            if not _parent().is_alive():
                with suppress(BlockingIOError):  # another one still answers
                    fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Any:
    return multiprocessing.parent_process()


def share_threads(workers: int) -> None:
    """Give a worker its share of torch's threads, unless OMP_NUM_THREADS says how many each process has."""
    if not os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
