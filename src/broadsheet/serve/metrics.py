"""What is counted: requests by route and status, tokens, and what waits. No key, no text, no name a client has chosen.

Knows: numbers. Does not know: what was asked. Where several processes answer, each counts into files of a folder that
they share (`PROMETHEUS_MULTIPROC_DIR`, set before this is imported), and any of them gives the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from broadsheet.serve.models.served import Queue


class Metrics:
    """Counters of one server, with a registry of their own.

    Args:
        folder: into which the processes of a server count; None: there is one.
    """

    def __init__(self, queues: Iterable[Queue], folder: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        self._folder = folder
        self.requests = Counter(
            "broadsheet_requests", "Answered requests.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "broadsheet_request_seconds", "Until the answer ended.", ["route"], registry=self.registry
        )
        self.tokens = Counter("broadsheet_tokens", "Read and written.", ["model", "kind"], registry=self.registry)
        queued = Gauge(
            "broadsheet_queued_tokens", "That wait.", ["model"], registry=self.registry, multiprocess_mode="livesum"
        )
        for queue in queues:
            queue.watch(queued.labels(queue.name).inc)

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self.requests.labels(route or "none", str(status)).inc()
        if route:
            self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, str(self._folder))
        return generate_latest(together)
