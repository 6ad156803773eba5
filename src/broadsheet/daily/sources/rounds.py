"""Rounds: the same sources asked again and again, in a thread of a server, as long as it runs.

Knows: when which source was asked last (the store keeps it), how one is asked (`sync`). Does not know: servers. Of
several processes with one store one makes the rounds; where it ends, another goes on. A source that fails is a line.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from broadsheet.console import InputError, duration, say
from broadsheet.daily.records import line
from broadsheet.daily.sources.fetch import Fetcher, Places, StoppedError
from broadsheet.daily.sources.sync import BEGUN, Outcome, Spec, sync
from broadsheet.daily.store import Store

LEAST, MOST = 900.0, 31 * 86_400.0  # seconds between two rounds
LOOK = 30.0  # seconds between two looks at the clock: one that slept with its machine is late by no more
PATIENCE = 5.0  # seconds in which a round that is stopped may end
_EVERY = re.compile(r"([0-9]{1,6})\s*(m|min|h|d)", re.ASCII)
_SECONDS = {"m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def interval(text: str) -> float:
    """The seconds of `"6h"`, `"90m"`, `"1d"`.

    Raises:
        InputError: it is none, or shorter than a source should be asked again.
    """
    found = _EVERY.fullmatch(text.strip())
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not LEAST <= seconds <= MOST:
        raise InputError(f"got {line(text)[:40] or 'nothing'}; expected from 15m to 31d, as in 6h")
    return seconds


def told(specs: Sequence[Spec], every: float, places: Places) -> str:
    """Which sources are asked how often, and where, in words."""
    where = dict.fromkeys(spec.where(places) for spec in specs)
    return f"{', '.join(map(str, specs))} every {duration(every)} ({'; '.join(where)})"


class Rounds:
    """Sources that are asked every so often.

    Args:
        every: seconds between two times that a source is asked. One that gave no answer is asked again sooner: after a
            quarter of an hour, then after twice as long each time.
        fetcher: by which they are asked.
        tell: takes each line that is to be read in the log.
        news: called where papers are new or changed.

    Example:
        rounds = Rounds(store, [Spec("hf")], interval("6h"), Fetcher(store))
        rounds.start()
        rounds.end()
    """

    def __init__(
        self,
        store: Store,
        specs: Sequence[Spec],
        every: float,
        fetcher: Fetcher,
        *,
        tell: Callable[[str], None] = say,
        news: Callable[[], object] | None = None,
    ) -> None:
        self.store, self.specs, self.every, self.fetcher = store, tuple(dict.fromkeys(specs)), every, fetcher
        self.tell, self.news = tell, news
        self._failed: dict[Spec, tuple[int, float]] = {}  # how often in a row, and the time of the next try
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rounds", daemon=True)

    def __str__(self) -> str:
        return told(self.specs, self.every, self.fetcher.places)

    def start(self) -> None:
        """Make them in a thread of their own."""
        self._thread.start()

    def end(self) -> None:
        """Make no more; a request on its way is cut off, and what was read before it is kept."""
        self._ended.set()
        self.fetcher.stop()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def wait(self) -> float:
        """Seconds until a source is due; 0.0 where one is."""
        return max(0.0, min(map(self._due, self.specs)) - self.fetcher.clock())

    def make(self) -> list[Outcome]:
        """Ask the sources that are due, telling a line of each; what came of those that gave one.

        Raises:
            StoppedError: it was ended meanwhile.
        """
        outcomes = []
        for spec in self.specs:
            if self._due(spec) > self.fetcher.clock():
                continue
            try:
                [outcome] = sync(self.store, [spec], self.fetcher)
            except StoppedError:
                raise
            except Exception as error:  # whatever it is, it is of this source and this time
                self.tell(f"{spec}: {_told(error)}")
                self._again(spec)
                continue
            self.tell(outcome.line)
            if outcome.status == 1:
                self._again(spec)
            else:
                self._failed.pop(spec, None)
            outcomes.append(outcome)
        if self.news and any(each.added.new or each.added.changed for each in outcomes):
            try:
                self.news()
            except Exception as error:
                self.tell(f"what is new is here, but is not found by meaning yet: {_told(error)}")
        return outcomes

    def _due(self, spec: Spec) -> float:
        """From when on a source is to be asked, in seconds since 1970."""
        if spec in self._failed:
            return self._failed[spec][1]
        known = self.store.asked(str(spec))
        if known is None or known[1] == BEGUN:  # never, or by a run that was ended in its middle
            return 0.0
        last = datetime.fromisoformat(known[0]).timestamp()
        return last + self.every if last < self.fetcher.clock() + LOOK else 0.0  # a time ahead is another clock's

    def _again(self, spec: Spec) -> None:
        times = self._failed.get(spec, (0, 0.0))[0]
        self._failed[spec] = times + 1, self.fetcher.clock() + min(self.every, LEAST * 2 ** min(times, 10))

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._next()
            except StoppedError:
                break
            except Exception as error:  # the database is away, or full
                self.tell(f"no source is asked: {_told(error)}")
                self._ended.wait(LEAST)
        self.store.close()

    def _next(self) -> None:
        """Make a round, once a source is due and as far as no other process makes one."""
        while left := self.wait():
            if self._ended.wait(min(left, LOOK)):
                return
        with self.store.db.turn("rounds") as mine:
            if mine:
                self.make()
        if not mine:
            self._ended.wait(LOOK)


def _told(error: Exception) -> str:
    """An error that nobody foresaw, on one line."""
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{line(str(error))[:200]}"
