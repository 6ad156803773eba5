"""Connections that send nothing, send slowly, or do not read: they are let go of, and the others are answered."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from broadsheet.serve.connections import PatientProtocol, keep_moving
from broadsheet.serve.running import bound

LINUX = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux ends such connections")


class Impatient(PatientProtocol):
    patience = 0.3


class App:
    """Answers with so many bytes; notes how many are inside."""

    def __init__(self, size: int = 2) -> None:
        self.size, self.inside = size, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.inside += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(max(1, self.size // 65_536)):
                await send({"type": "http.response.body", "body": b"x" * min(self.size, 65_536), "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.inside -= 1


@contextmanager
def serving(app: App, seconds: float = 60.0) -> Iterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0))
    keep_moving(listening, seconds)
    server = uvicorn.Server(uvicorn.Config(app, http=Impatient, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def closed_after(connection: socket.socket) -> float:
    """Seconds until the other side has closed."""
    connection.settimeout(10)
    start = time.monotonic()
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "], ids=["no", "half", "head"]
)
def test_a_request_whose_head_does_not_come_is_not_waited_for(sent):
    with serving(App()) as address, socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert 0.2 < closed_after(connection) < 5


def test_a_head_that_comes_byte_by_byte_is_not_waited_for_either():
    refused = pytest.raises((BrokenPipeError, ConnectionResetError))
    with serving(App()) as address, socket.create_connection(address) as connection, refused:
        for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"y" * 200:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


def test_a_connection_that_is_kept_may_ask_again():
    with serving(App()) as address, socket.create_connection(address) as connection:
        for _ in range(3):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            got = b""
            while not got.endswith(b"0\r\n\r\n"):
                got += connection.recv(65_536)
            assert got.startswith(b"HTTP/1.1 200")
            time.sleep(0.5)  # longer than a head may take: none has begun


@LINUX
def test_who_does_not_read_the_answer_is_let_go_of():
    app = App(size=50_000_000)
    with serving(app, seconds=1.0) as address, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        deadline = time.monotonic() + 20
        while not app.inside:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while app.inside:
            assert time.monotonic() < deadline, "it is held for ever"
            time.sleep(0.05)


@LINUX
def test_who_reads_slowly_gets_all():
    app = App(size=3_000_000)
    with serving(app, seconds=1.0) as address, socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        got = 0
        while part := connection.recv(100_000):
            got += len(part)
            time.sleep(0.05)
        assert got > 2_900_000


def test_the_end_of_an_answer_does_not_wait_for_its_head_to_be_acknowledged() -> None:
    seen = []

    class Noted(PatientProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")
            seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with bound("127.0.0.1", 0) as listening:  # as the command's: its protocol is not named
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(App(), http=Noted, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        with socket.create_connection(listening.getsockname()) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100)
        server.should_exit = True
        thread.join(10)
    assert seen
    assert all(seen)
