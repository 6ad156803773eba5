"""What the routes of one server share: its models, what is counted, whether it is closing.

Knows: names, counts. Does not know: how models run; nothing heavy is imported where there is none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

from broadsheet.serve.metrics import Metrics

if TYPE_CHECKING:
    from broadsheet.serve.models.named import Models
    from broadsheet.serve.models.served import Queue, Served
    from broadsheet.serve.processes.workers import Shared

Kind = TypeVar("Kind", bound="Served")


class NoModels:
    """What stands for the models of a server that has none."""

    queues: tuple[Queue, ...] = ()

    def __iter__(self) -> Iterator[Served]:
        return iter(())

    def get(self, name: str | None, kind: type[Any]) -> Any:
        raise LookupError(name)

    def close(self, seconds: float | None = None) -> None:
        """Nothing is open."""


class ServerState:
    """What the routes share."""

    def __init__(self, models: Models | None, shared: Shared | None) -> None:
        self.models: Models | NoModels = NoModels() if models is None else models
        self.metrics = Metrics(self.models.queues, shared.folder if shared else None)
        self.draining = False
        self.started = shared.started if shared else int(time.time())

    def get(self, name: str | None, kind: type[Kind]) -> Kind:
        """The model that is asked.

        Raises:
            HTTPException: there is none of that name and kind, or the server is draining.
        """
        if self.draining:
            raise HTTPException(503, "the server is closing", {"retry-after": "5"})
        try:
            found: Kind = self.models.get(name, kind)
        except LookupError:
            names = ", ".join(each.name for each in self.models if isinstance(each, kind))
            raise HTTPException(404, f"no such model here; for this there is: {names or 'none'}") from None
        return found

    def count(self, request: Request, model: Served, read: int, written: int = 0) -> None:
        """Book the tokens of an answer, with the key that asked too."""
        self.metrics.tokens.labels(model.name, "read").inc(read)
        self.metrics.tokens.labels(model.name, "written").inc(written)
        key = getattr(request.state, "key", None)
        if key is not None and key.tokens:
            key.tokens.spend(read + written)
