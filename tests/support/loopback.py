"""A small OpenAI-compatible server on 127.0.0.1 that can be told to misbehave, for tests of whatever speaks to one.

It answers the last message's text, a space, and the request's seed plus the answer's index: so equal requests get equal
answers, and different seeds different ones. A word is a token.

    with Loopback(faults=[status(500), drop()]) as server:
        Teacher.load("endpoint:tiny", url=server.url)
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Callable[["_Handler"], None]


def status(code: int, message: str = "out of order", **headers: str) -> Fault:
    """Answer with an error status; `retry_after="1"` sends `Retry-After: 1`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send(code, json.dumps({"error": {"message": message}}), named)


def body(text: str) -> Fault:
    """Answer 200 with this body."""
    return lambda handler: handler.send(200, text)


def drop() -> Fault:
    """Close the connection without an answer."""
    return lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)


def slow(seconds: float) -> Fault:
    """Keep silent for so long, then close the connection."""

    def wait(handler: _Handler) -> None:
        time.sleep(seconds)
        drop()(handler)

    return wait


def drip(seconds: float, pieces: int = 1000) -> Fault:
    """Begin an answer and send a byte of it now and then, so often that no read times out."""

    def send(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(pieces))
        handler.end_headers()
        with suppress(OSError):
            for _ in range(pieces):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(seconds)

    return send


def encoded(coding: str, payload: bytes) -> Fault:
    """Answer 200 with a body in that encoding."""

    def send(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", coding)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(payload)

    return send


def call(action: Callable[[], None]) -> Fault:
    """Run `action`, then close the connection."""

    def run(handler: _Handler) -> None:
        action()
        drop()(handler)

    return run


@dataclass
class Loopback:
    """The server; start it with `with`.

    Attributes:
        faults: what the first requests meet, in order of arrival; None stands for a proper answer.
        several: whether it honours `n`, ignores it (one answer), or refuses it (400).
        top: alternatives (token, log-probability) to every first token.
        echoes: whether /completions honours `echo`, with log-probability −1, −2, … for the words of the text.
        counts: whether answers carry `usage`.
        together: each request waits for the others at this barrier, and breaks it after five seconds.
        requests: paths and bodies received.
        keys: the Authorization headers received.
        peak: the most requests that were in the server at once.
    """

    faults: Iterable[Fault | None] = ()
    several: Literal["honoured", "ignored", "refused"] = "honoured"
    top: list[tuple[str, float]] = field(default_factory=list)
    echoes: bool = True
    counts: bool = True
    together: threading.Barrier | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    peak: int = 0

    def __enter__(self) -> Loopback:
        self._script = deque(self.faults)
        self._lock = threading.Lock()
        self._inside = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"loopback": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies received, in order of arrival."""
        return [received for _, received in self.requests]

    def enter(self, path: str, received: dict[str, Any], key: str) -> Fault | None:
        """Note a request; returns the fault it meets, if any."""
        with self._lock:
            self.requests.append((path, received))
            self.keys.append(key)
            self._inside += 1
            self.peak = max(self.peak, self._inside)
            return self._script.popleft() if self._script else None

    def leave(self) -> None:
        """Note that a request is over."""
        with self._lock:
            self._inside -= 1

    def answer(self, path: str, received: dict[str, Any]) -> dict[str, Any]:
        """The proper answer's body."""
        count = received.get("n", 1) if self.several == "honoured" else 1
        if received.get("echo"):
            choices = [self._echo(text, i, received) for i, text in enumerate(received["prompt"])]
        else:
            choices = [self._choice(path, received, i) for i in range(count)]
        answer: dict[str, Any] = {"object": "completion", "model": received["model"], "choices": choices}
        if self.counts:
            answer["usage"] = {"prompt_tokens": 10, "completion_tokens": 2 * count, "total_tokens": 10 + 2 * count}
        return answer

    def _choice(self, path: str, received: dict[str, Any], index: int) -> dict[str, Any]:
        chat = path.endswith("/chat/completions")
        asked = received["messages"][-1]["content"] if chat else received["prompt"]
        text = f"{asked} {received.get('seed', 0) + index}"
        for stop in received.get("stop", []):
            text = text.split(stop)[0]
        words = re.findall(r"\s*\S+", text)
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
        if chat:
            alternatives = [{"token": token, "logprob": logprob} for token, logprob in self.top]
            content = [{"token": word, "logprob": -0.5, "top_logprobs": alternatives} for word in words]
            logprobs: dict[str, Any] = {"content": content}
            choice["message"] = {"role": "assistant", "content": text}
        else:
            logprobs = {"tokens": words, "token_logprobs": [-0.5] * len(words)}
            choice["text"] = text
        return choice | {"logprobs": logprobs if received.get("logprobs") else None}

    def _echo(self, text: str, index: int, received: dict[str, Any]) -> dict[str, Any]:
        if not self.echoes:
            return {"index": index, "text": " more", "logprobs": {"content": [{"token": " more", "logprob": -0.5}]}}
        spans = list(re.finditer(r"\s*\S+", text + " more"))
        logprobs = {
            "tokens": [span.group() for span in spans],
            "token_logprobs": [None, *(-float(i) for i in range(1, len(spans)))],
            "text_offset": [span.start() for span in spans],
        }
        return {"index": index, "text": text + " more", "logprobs": logprobs}


class _Handler(BaseHTTPRequestHandler):
    loopback: Loopback
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        received = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.loopback.enter(self.path, received, self.headers.get("Authorization", ""))
        try:
            if self.loopback.together:
                self.loopback.together.wait(5)
            if fault:
                self.close_connection = True
                fault(self)
            elif self.loopback.several == "refused" and received.get("n", 1) > 1:
                status(400, "n must be 1")(self)
            else:
                self.send(200, json.dumps(self.loopback.answer(self.path, received)))
        finally:
            self.loopback.leave()

    def send(self, code: int, text: str, headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""
        payload = text.encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        if self.close_connection:  # told, or the client's next try meets a connection that is closing
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output quiet."""
