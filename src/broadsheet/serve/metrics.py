"""What is counted: requests by route and status, tokens, and what waits. No key, no text, no name a client has chosen.

Knows: numbers. Does not know: what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from broadsheet.serve.served import Queue


class Metrics:
    """Counters of one server, with a registry of their own."""

    def __init__(self, queues: Iterable[Queue]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "broadsheet_requests", "Answered requests.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "broadsheet_request_seconds", "Until the answer ended.", ["route"], registry=self.registry
        )
        self.tokens = Counter("broadsheet_tokens", "Read and written.", ["model", "kind"], registry=self.registry)
        queued = Gauge("broadsheet_queued_tokens", "That wait.", ["model"], registry=self.registry)
        for queue in queues:
            queued.labels(queue.name).set_function(lambda queue=queue: queue.queued)  # type: ignore[misc]

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self.requests.labels(route or "none", str(status)).inc()
        if route:
            self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
