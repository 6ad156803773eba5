"""A crew of processes that answer calls together: what a layout over several processes is run in.

Knows: processes, pipes, gloo. Does not know: models, or what is called. All of a crew are on this machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, Self

_PATIENCE = timedelta(minutes=5)  # for one another


class Crew:
    """So many processes of one gloo group, a thread each, that wait for calls. They begin with the first one.

    Args:
        size: processes.

    Example:
        with Crew(2) as crew:
            found = crew.ask(train_by_layout, "tp", seed)  # a function of a module; a value from each process
    """

    start_method: ClassVar[str] = "spawn"

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def ask(self, call: Callable[..., Any], *given: Any) -> list[Any]:
        """What `call(*given)` returns in each process, by rank.

        Raises:
            RuntimeError: it raised in one of them, or one ended; the whole crew is gone then, and the next call begins
                with a new one.
        """
        if not self._processes:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send((call, given))
            found: dict[int, Any] = {}
            while len(found) < self.size:
                # Whoever fails is heard at once, although the others wait for it.
                waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in found}
                ready: Any
                for ready in wait(list(waiting)):
                    rank = waiting[ready]
                    done, value = ready.recv()
                    if not done:
                        raise RuntimeError(f"process {rank}: {value}")
                    found[rank] = value
        except (EOFError, OSError) as error:
            self.close()
            raise RuntimeError("a process of the crew ended") from error
        except BaseException:
            self.close()
            raise
        return [found[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End all of them; nothing of them is kept."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        if self._folder:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _start(self) -> None:
        context: Any = multiprocessing.get_context(self.start_method)
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.size, self._folder.name), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(pipe: Connection, rank: int, size: int, folder: str) -> None:
    """A process of a crew: calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it, who then ends it
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size, timeout=_PATIENCE
    )
    while True:
        try:
            call, given = pipe.recv()
        except EOFError:
            os._exit(0)  # torn down in the ordinary way, a group waits for who is gone already
        try:
            pipe.send((True, call(*given)))
        except Exception as error:
            pipe.send((False, " ".join("".join(traceback.format_exception_only(error)).split())))
