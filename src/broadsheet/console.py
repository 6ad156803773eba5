"""What broadsheet says while it works: messages and progress bars on stderr, the error a user can mend; and Ctrl-C.

stdout is kept for results, so that every command can be piped.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from broadsheet import events

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what was got, what was expected, the remedy.

    The command prints it without a traceback and ends with exit status 2; any other exception is a bug and shows whole.
    """


class DivergenceError(InputError):
    """A training whose loss is no longer finite: at a lower learning rate it may go well."""


def within(options: object, **ranges: tuple[float | None, float | None]) -> None:
    """See that attributes of `options` are numbers within their bounds; a bound of None is none, and NaN is no number.

    Raises:
        InputError: one is not; it is named.

    Example:
        within(self, gamma=(0, 1), seed=(0, None))
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is None or ((least is None or value >= least) and (most is None or value <= most) and value == value):
            continue
        wanted = f"{least:g} to {most:g}" if least is not None and most is not None else None
        wanted = wanted or (f"{least:g} or more" if least is not None else "a number")
        raise InputError(f"got {name.strip('_')} {value}; expected {wanted}")


def stderr() -> Console:
    """The console for messages; made on each call so that a redirected `sys.stderr` is honoured."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


_silent = threading.local()


def silence() -> None:
    """Have `say` and `progress` tell nothing in this thread from now on: nobody sits before a server's terminal."""
    _silent.on = True


@contextmanager
def quiet() -> Iterator[None]:
    """Have `say` and `progress` tell nothing in this thread while the block runs: what is said again is noise."""
    was, _silent.on = getattr(_silent, "on", False), True
    try:
        yield
    finally:
        _silent.on = was


def say(message: str) -> None:
    """Print one plain line on stderr."""
    if not getattr(_silent, "on", False):
        print(plain(message), file=sys.stderr, flush=True)
        events.tell("said", text=message)


_UNSEEN = ("Cc", "Cf", "Cs")  # Unicode's classes of controls, of formats, and of halves of a pair


def plain(text: str) -> str:
    """A text as a terminal may show it: what would move its cursor, ring, or turn letters around is spelt out."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNSEEN and c not in "\n\t" else c for c in text)


def where(failure: BaseException) -> str:
    """A failure's kind and place, as in `KeyError in app.py, line 3`; its message may hold what somebody asked."""
    place = traceback.extract_tb(failure.__traceback__)[-1]
    return f"{type(failure).__name__} in {Path(place.filename).name}, line {place.lineno}"


def duration(seconds: float) -> str:
    """Seconds in human units, with at most three figures: `"4.6 ms"`, `"2.3 s"`, `"12 min"`, `"3.4 h"`."""
    units = (("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 100.0), ("min", 60.0, 6000.0), ("h", 3600.0, math.inf))
    seconds = float(f"{seconds:.3g}")  # first, or 999.9 ms would be 1e+03 ms
    unit, size = next((unit, size) for unit, size, most in units if seconds < most)
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


@contextmanager
def progress(
    description: str, total: float | None = None, *, done: int = 0, shown: bool = True, lines: bool = True
) -> Iterator[Progress]:
    """A Rich progress display on stderr with one task; where stderr is no terminal, a plain line every half minute.

    Of displays within displays the outermost alone is told in lines.

    Args:
        done: by an earlier run: it counts as done, and not for how fast it goes. See `resumed` where it is found later.
        shown: whether anything is told.
        lines: whether lines are; False where the caller tells its own.

    Example:
        with progress("scoring", total=len(texts)) as bar:
            for text in texts:
                ...
                bar.advance(bar.task_ids[0])
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = shown and not getattr(_silent, "on", False)
    live = shown and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not live) as bar:
        bar.add_task(description, total=total)
        resumed(bar, done)
        lines = lines and not live
        with _told(bar, lines=lines) if shown and (lines or events.followed()) else nullcontext():
            yield bar


def resumed(bar: Progress, done: int) -> None:
    """So much was done by an earlier run; what is told of the time left rests on what is done from now on."""
    [task] = bar.tasks
    bar.reset(task.id, total=task.total, completed=done, kept=done, begun=time.monotonic())


_EVERY = 30.0  # seconds between two lines about a progress that no terminal shows
_STEP = 1.0  # and between two events about any
_telling = threading.Lock()


@contextmanager
def _told(bar: Progress, *, lines: bool) -> Iterator[None]:
    """Tell a progress meanwhile, in lines and to those who follow (`events`), unless another one is told."""
    if not _telling.acquire(blocking=False):
        yield
        return
    ended = threading.Event()
    followed: list[object] = [None]

    def follow() -> None:
        [task] = bar.tasks
        if (state := (task.completed, task.total)) != followed[0]:
            followed[0] = state
            events.tell("progress", what=task.description, done=task.completed, of=task.total)

    def tell() -> None:
        told = time.monotonic()
        while not ended.wait(_STEP if events.followed() else _EVERY):
            follow()
            if not lines or time.monotonic() - told < _EVERY:
                continue
            told = time.monotonic()
            [task] = bar.tasks
            done = f"{task.completed:,.0f}" + (f" of {task.total:,.0f}" if task.total is not None else "")
            left = _left(task.completed, task.fields["kept"], task.total, told - task.fields["begun"])
            say(f"{task.description}: {done}" + f", about {duration(left)} left" * bool(left))

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
        follow()
        _telling.release()


def _left(completed: float, kept: float, total: float | None, seconds: float) -> float:
    """Seconds that are left, at the pace of what was done since `kept`; 0 where that is not known."""
    made = completed - kept
    return seconds / made * (total - completed) if total is not None and made > 0 else 0.0


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` while a progress bar counts them; silent when stderr is not a terminal."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total) as bar:
        for item in items:
            yield item
            bar.advance(bar.task_ids[0])


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second acts as usual. Outside the main thread it is never set."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
