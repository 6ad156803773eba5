"""The models of a trial's arms: made when they are first asked for, and as many of them in memory as it holds.

Knows: what is free. Does not know: what an arm makes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

from broadsheet.console import say

_SPARE = 0.1  # of all memory, that stays free for what the arms compute
_LEAST_BYTES = 16 << 20  # a model that takes less is none whose absence makes room


class Memory(NamedTuple):
    """Bytes that are free, that there are in all, and that this process holds."""

    free: int
    whole: int
    own: int


class LazyModel:
    """What a `ModelArm` makes, made when it is first asked for, once for all tasks.

    Args:
        make: what it raises is raised again for each task.
        pool: of models that share memory: this one may have to go while others work, and is made again.
    """

    def __init__(self, make: Callable[[], Any], pool: ModelPool | None = None) -> None:
        self.make = make
        self._pool = pool
        self._made: Any = None
        self._error: Exception | None = None
        self._away = False  # was let go of for others

    def __call__(self) -> Any:
        if self._error:
            raise self._error
        if self._made is None:
            try:
                self._made = self._pool.make(self) if self._pool else self.make()
                self._away = False
            except Exception as error:
                self._error = error
                raise
        if self._pool:
            self._pool.used(self)
        return self._made

    def prepare(self) -> None:
        """Make it now."""
        self()

    def again(self) -> None:
        """Make it now, if it was made before and had to go."""
        if self._away:
            self()

    def drop(self) -> None:
        """Let go of what was made."""
        self._away, self._made = self._made is not None, None


class ModelPool:
    """Room for the models of a trial. Where the next one does not fit, others go, and are made again at their turn.

    Arms take turns, always in the same order: the one that has just had its turn is the one that is needed last, so
    that is the one to go.

    Args:
        memory: what says how much there is; by default that of the machine, not of a card.
    """

    def __init__(self, memory: Callable[[], Memory] | None = None) -> None:
        self._memory = memory or _of_machine
        self._order: list[LazyModel] = []  # those that are made, the one that was used last at the end
        self._largest = 0  # bytes, of the models made so far
        self._told = False

    def make(self, model: LazyModel) -> Any:
        """What `model` makes, after room was made for it."""
        self._clear()
        before = self._memory().own
        made = model.make()
        self._largest = max(self._largest, self._memory().own - before)
        return made

    def used(self, model: LazyModel) -> None:
        """Note that it has its turn."""
        if model in self._order:
            self._order.remove(model)
        self._order.append(model)

    def _clear(self) -> None:
        while self._order:
            now = self._memory()
            if self._largest < _LEAST_BYTES or now.free >= self._largest + _SPARE * now.whole:
                return
            self._order.pop().drop()
            gc.collect()
            if not self._told:
                self._told = True
                say("memory is short: models that do not fit are made again at their turns")


def _of_machine() -> Memory:
    import psutil
    import torch

    from broadsheet.training import memory

    own = psutil.Process().memory_info().rss
    return Memory(memory.free(torch.device("cpu")), psutil.virtual_memory().total, own)
