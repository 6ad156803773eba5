"""Ranks of a pipeline on this machine: several processes, resumed after kills, marked finished only when they are.

Knows: steps, ranks, processes, counts. Does not know: what steps do.

datatrove's own executors run the same steps on a cluster; `Ranks` is one of them for one machine. Unlike its local one
it survives a worker that is killed (that pool waits for ever), writes marks and counts whole or not at all, and keeps
the terminal to itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, progress, silence
from broadsheet.curate.files import CUT, Examples, parts, told

_TOLD = ("documents", "total", "forwarded", "dropped")


class Ranks(PipelineExecutor):
    """Run steps for each rank, several at once.

    Args:
        pipeline: steps; they have to be picklable where there are several workers.
        folder: for marks, counts and examples; a run that was cut off resumes in it.
        tasks: ranks.
        workers: processes at once; 1: this one.
        name: of what is done, for the progress.
    """

    def __init__(
        self, pipeline: list[Any], folder: str | Path, tasks: int = 1, workers: int = 1, name: str = ""
    ) -> None:
        super().__init__(pipeline, str(folder))
        self.folder, self.tasks, self.workers, self.name = Path(folder), tasks, min(workers, tasks), name
        for number, step in enumerate(pipeline):
            if hasattr(step, "exclusion_writer") and step.exclusion_writer is None:
                reason = getattr(step, "reason", "dropped")
                step.exclusion_writer = Examples(self.folder / "examples" / f"{number:02d}", reason=reason)

    @property
    def world_size(self) -> int:
        return self.tasks

    def run(self) -> None:
        """Run the ranks that are not done.

        Raises:
            InputError: as the steps raise it; a worker was killed; the disk is full. What is done is kept.
            KeyboardInterrupt: Ctrl-C was pressed, which ends the workers too; what is done is kept.
        """
        missing = self.get_incomplete_ranks()
        try:
            with without_logs(), progress(self.name or "parts", self.tasks, done=self.tasks - len(missing)) as bar:
                if self.workers == 1:
                    for rank in missing:
                        self._run_for_rank(rank)
                        bar.advance(bar.task_ids[0])
                elif missing:
                    context = multiprocessing.get_context("spawn")
                    with ProcessPoolExecutor(self.workers, context, initializer=_silent) as pool:
                        for _ in pool.map(self._run_for_rank, missing):
                            bar.advance(bar.task_ids[0])
        except BrokenProcessPool:
            raise InputError(
                f"a worker was killed, perhaps for want of memory ({self.name or 'pipeline'}): the same command "
                "resumes; fewer --workers need less memory"
            ) from None
        except OSError as error:
            raise InputError(
                f"{self.name or 'pipeline'} stopped at {error.filename or self.folder}: {error.strerror or error}; "
                "make room and repeat: what is done is kept"
            ) from None

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        if self.is_rank_completed(rank):
            return PipelineStats()
        steps, data = deepcopy(self.pipeline), None
        for step in steps:
            data = step(data, rank, self.world_size)
        deque(data or (), maxlen=0)
        stats = PipelineStats(steps)
        with atomic_write(self.folder / "stats" / f"{rank:05d}.json") as file:
            stats.save_to_disk(file)
        self.mark_rank_as_completed(rank)
        return stats

    def mark_rank_as_completed(self, rank: int) -> None:
        with atomic_write(self.folder / "completions" / f"{rank:05d}"):
            pass

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task=str(os.cpu_count()),
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )

    def counts(self) -> list[StepCounts]:
        """What each step did, over all ranks.

        Raises:
            InputError: a rank is not done.
        """
        ranks = parts(self.folder / "stats", self.tasks)
        found = []
        for number, name in enumerate(step["name"] for step in ranks[0]):
            totals: dict[str, float] = {}
            for rank in ranks:
                for label, value in rank[number]["stats"].items():
                    totals[label] = totals.get(label, 0) + _total(value)
            seconds = sum(_total(rank[number]["time_stats"]) for rank in ranks)
            shown = self.folder / "examples" / f"{number:02d}"
            found.append(StepCounts(self.name, _plain(name), totals, seconds, _excerpts(shown)))
        return found


@contextmanager
def without_logs() -> Iterator[None]:
    """Keep datatrove's log off the terminal."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


def _silent() -> None:
    """A worker tells nothing, not even that it was interrupted: what it did is in its counts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    silence()
    logger.disable("datatrove")


@dataclass
class StepCounts:
    """What a step did to how many documents.

    Args:
        stage: of the pipeline it is in.
        name: of the step.
        totals: `documents` read, `cut` ones, `total`, `forwarded`, `changed`, `dropped`, and the last two by reason,
            as `dropped_REASON`.
        seconds: that its own work took, over all ranks.
        excerpts: by reason, a few documents: id and beginning.
    """

    stage: str
    name: str
    totals: Mapping[str, float]
    seconds: float
    excerpts: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    def by_reason(self, what: str) -> dict[str, int]:
        """How many documents were `dropped` or `changed` for each reason, the most frequent first."""
        start = f"{what}_"
        found = {label[len(start) :]: int(count) for label, count in self.totals.items() if label.startswith(start)}
        return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "stage": self.stage,
            "step": self.name,
            **{
                label: int(self.totals[label])
                for label in ("documents", CUT, "total", "forwarded", "dropped")
                if label in self.totals
            },
            "dropped by": self.by_reason("dropped"),
            "changed by": self.by_reason("changed"),
            "seconds": round(self.seconds, 3),
        }


def _total(told: Any) -> float:
    """The sum of a count, which datatrove writes as a number where it was counted once."""
    return float(told["total"] if isinstance(told, Mapping) else told)


def _plain(name: str) -> str:
    """A step's name without signs: `🔻 - FILTER: 🥇 Gopher Quality` is `Gopher Quality`."""
    return "".join(each for each in name.partition(": ")[2] if each.isascii()).strip() or name


def _excerpts(folder: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for row in told(folder):
        if "excerpt" in row and len(found.setdefault(row["reason"], [])) < 3:
            found[row["reason"]].append((row["id"], row["excerpt"]))
    return found
