"""Connections that cost nothing to hold are not held: who sends no request, or does not read the answer, is let go of.

Knows: sockets. Does not know: requests. What is written is sent at once.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 30.0  # in which a request's head has to be there, from its first byte or the connection's beginning
READ_SECONDS = 60.0  # in which the other side has to take something of what was sent


def keep_moving(listening: socket.socket, seconds: float = READ_SECONDS) -> None:
    """Have the system end connections of a listening socket whose other side takes nothing for so long."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections get it from the socket that accepts them
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))


class PatientProtocol(H11Protocol):
    """uvicorn's connection, which waits for the head of a request for so long and no longer.

    Attributes:
        patience: seconds.
    """

    patience = HEADER_SECONDS

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        # asyncio does so where a socket's protocol is named, and ours, which accepts them, names none. Else the end of
        # an answer waits until its head is acknowledged: 40 ms on a connection that is kept.
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._cancel()

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel()
        super().connection_lost(error)

    def _wait(self) -> None:
        self._late = self._late or self.loop.call_later(self.patience, self.transport.abort)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
