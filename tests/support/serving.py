"""A server on loopback, over tiny models: in this process, or as the command."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import uvicorn


@dataclass
class Running:
    """A server, and requests to it."""

    url: str
    app: Any

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON) of a request; `body` is sent as JSON, bytes as they are."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        request = urllib.request.Request(self.url + path, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if "json" in answer.headers["content-type"] else text.decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


class Browser:
    """Asks as a browser does: keeps cookies, says where it comes from, follows no redirect."""

    def __init__(self, server: Running) -> None:
        self.place = urlsplit(server.url).netloc
        self.cookies: dict[str, str] = {}

    def ask(self, path: str, form: Any = None, **headers: str | None) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a request, which sends a form where there is one; None: without that header."""
        connection = http.client.HTTPConnection(self.place, timeout=30)
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        given = {"accept": "text/html", "cookie": cookie, "origin": f"http://{self.place}", **headers}
        body = None if form is None else urlencode(form, doseq=True)
        if body is not None:
            given["content-type"] = "application/x-www-form-urlencoded"
        sent = {name: value for name, value in given.items() if value is not None}
        connection.request("GET" if body is None else "POST", path, body, sent)
        answer = connection.getresponse()
        told = answer.getheaders()
        for name, morsel in SimpleCookie("\n".join(v for n, v in told if n.lower() == "set-cookie")).items():
            self.cookies[name] = morsel.value
            if morsel["max-age"] == "0":
                del self.cookies[name]
        data = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in told}, data


@contextmanager
def serving(app: Any) -> Iterator[Running]:
    """The app on a free port of loopback, until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [port] = [sock.getsockname()[1] for each in server.servers for sock in each.sockets]
    try:
        yield Running(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def served(home: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Running]]:
    """`broadsheet serve …` as a process of its own, once it listens."""
    found = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "broadsheet", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "BROADSHEET_HOME": str(home), "OMP_NUM_THREADS": "1", **found, **environment},
    )
    assert process.stderr
    try:
        for line in process.stderr:
            if address := re.search(r"serving on (http://\S+)/v1", line):
                break
        else:
            pytest.fail("it has ended before it listened")
        yield process, Running(address[1], None)
    finally:
        process.kill()
        process.wait()


def stream_until_signal(
    process: subprocess.Popen[str], server: Running, key: str, *then: tuple[int, int], tokens: int = 200
) -> tuple[bytes, set[int]]:
    """All that came of a stream, and what /health/ready said, where a server is told to end in the stream's middle.

    Args:
        then: (process, signal), sent once the server has said that it is closing.
        tokens: of the stream. Serve a model without an end of text: another may draw it before the signals come.
    """
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "the", "max_tokens": tokens, "stream": True, "stop": ["never"]})
    with socket.create_connection((host, int(port))) as connection:
        head = f"Host: {host}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nConnection: close"
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        text = more = connection.recv(4096)
        process.send_signal(signal.SIGTERM)
        statuses: set[int] = set()
        while more and b"[DONE]" not in text:
            with suppress(OSError):  # it may close meanwhile
                statuses.add(server.ask("/health/ready", authorization=f"Bearer {key}")[0])
            for pid, number in then if 503 in statuses else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            then = () if 503 in statuses else then
            more = connection.recv(65536)
            text += more
    return text, statuses


def unloadable(name: str, keys: Any, shared: Any) -> Any:
    """Stands for an app whose model cannot be loaded, in a process of its own."""

    class OddError(FileNotFoundError):  # an error of a library's, that no other process can read
        def __init__(self, *, where: str) -> None:
            super().__init__(f"no such model: {where}")

    raise OddError(where=name)


def lacking(name: str, keys: Any, shared: Any) -> Any:
    """Stands for an app that needs a package which is not installed."""
    importlib.import_module(name)


def dies(number: int, keys: Any, shared: Any) -> Any:
    """Stands for an app that a signal ends while it is made."""
    os.kill(os.getpid(), number)
