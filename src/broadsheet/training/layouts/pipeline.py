"""One forward, one backward (1F1B): in which order stages of a pipeline work, what they hold, how long they wait.

Knows: numbers of stages and micro-batches, seconds. Does not know: torch, models. `parallel` runs the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from broadsheet.console import InputError

LEAST_BUFFERS = 2  # that DeepSpeed keeps on a stage: one is filled while the other is worked on


class Work(NamedTuple):
    """What a stage does: the forward or the backward pass of one micro-batch."""

    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}"


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage holds at most: forward passes of which the backward is to come.

    Raises:
        InputError: no such stage, or no micro-batches.
    """
    if not 0 <= stage < stages or micro_batches < 1:
        raise InputError(f"got stage {stage} of {stages}, {micro_batches} micro-batches; expected 1 or more of each")
    return min(micro_batches, stages - stage)


def buffers(stage: int, stages: int, micro_batches: int) -> int:
    """Buffers that DeepSpeed allocates for them."""
    return max(LEAST_BUFFERS, in_flight(stage, stages, micro_batches))


def order(stage: int, stages: int, micro_batches: int) -> list[Work]:
    """What a stage does, one after another: forward until the pipe is full, then in turns, then backward alone.

    Example:
        >>> " ".join(map(str, order(0, stages=2, micro_batches=4)))
        'F0 F1 B0 F2 B1 F3 B2 B3'
    """
    warm = in_flight(stage, stages, micro_batches)
    done = [Work("F", i) for i in range(warm)]
    for i in range(micro_batches):
        done.append(Work("B", i))
        if warm + i < micro_batches:
            done.append(Work("F", warm + i))
    return done


def bubble(stages: int, micro_batches: int) -> float:
    """The share of a step in which stages wait, where all passes take equally long: (p − 1) / (m + p − 1)."""
    in_flight(0, stages, micro_batches)
    return (stages - 1) / (micro_batches + stages - 1)


@dataclass(frozen=True)
class Simulation:
    """When each stage did what.

    Attributes:
        begin, end: by stage, seconds of each of its works in `order`; (2 · micro-batches,).
        seconds: of the whole step.
        idle: by stage, the share of the step in which it waits.
    """

    begin: list[NDArray[np.float64]]
    end: list[NDArray[np.float64]]

    @property
    def seconds(self) -> float:
        return float(max(each[-1] for each in self.end))

    @property
    def idle(self) -> NDArray[np.float64]:
        busy = [float((end - begin).sum()) for begin, end in zip(self.begin, self.end, strict=True)]
        return 1 - np.array(busy) / self.seconds

    @property
    def share(self) -> float:
        """The mean over stages."""
        return float(self.idle.mean())


def simulate(
    stages: int, micro_batches: int, forward: ArrayLike = 1.0, backward: ArrayLike = 2.0, transfer: float = 0.0
) -> Simulation:
    """A step of 1F1B: a stage begins when it is free, and what it needs has come from its neighbour.

    Args:
        forward, backward: seconds of a micro-batch: of all, (stages,), or (stages, micro-batches).
        transfer: seconds from one stage to the next, of activations as of gradients.

    Raises:
        InputError: no stages or micro-batches; times of another shape, or below 0.
    """
    in_flight(0, stages, micro_batches)
    taken = {"F": _times(forward, stages, micro_batches), "B": _times(backward, stages, micro_batches)}
    if transfer < 0:
        raise InputError(f"got transfer {transfer:g} s; expected 0 or more")
    orders = [order(stage, stages, micro_batches) for stage in range(stages)]
    begin: list[list[float]] = [[] for _ in range(stages)]
    end: list[list[float]] = [[] for _ in range(stages)]
    finished: dict[tuple[str, int, int], float] = {}
    while len(finished) < 2 * stages * micro_batches:
        for stage, planned in enumerate(orders):
            while len(end[stage]) < len(planned):
                work = planned[len(end[stage])]
                ready = _ready(work, stage, stages, finished, transfer)
                if ready is None:
                    break
                begin[stage].append(max(ready, end[stage][-1] if end[stage] else 0.0))
                end[stage].append(begin[stage][-1] + float(taken[work.kind][stage, work.micro_batch]))
                finished[work.kind, stage, work.micro_batch] = end[stage][-1]
    return Simulation([np.array(each) for each in begin], [np.array(each) for each in end])


def _ready(work: Work, stage: int, stages: int, finished: dict[tuple[str, int, int], float], by: float) -> float | None:
    """When what a work needs from the neighbour is there; None: nothing is known yet."""
    neighbour = stage - 1 if work.kind == "F" else stage + 1
    if not 0 <= neighbour < stages:
        return 0.0
    came = finished.get((work.kind, neighbour, work.micro_batch))
    return None if came is None else came + by


def _times(given: ArrayLike, stages: int, micro_batches: int) -> NDArray[np.float64]:
    """(stages, micro-batches)."""
    times = np.asarray(given, dtype=np.float64)
    times = times[:, None] if times.ndim == 1 else times
    try:
        times = np.broadcast_to(times, (stages, micro_batches))
    except ValueError:
        raise InputError(
            f"got times {times.shape}; expected one, ({stages},), or ({stages}, {micro_batches})"
        ) from None
    if not (times >= 0).all():
        raise InputError(f"got a time of {times.min():g} s; expected 0 or more")
    return times
