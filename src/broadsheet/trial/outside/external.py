"""An arm that is a program of its own: another interpreter, another environment, another language.

Knows: a process that reads and writes JSON lines. Does not know: what it runs.

The contract. The program is started once. It prints `{"ready": true}` when it has loaded what it needs. Then, for every
line `{"items": […]}` on its stdin, it prints one line on stdout:

    {"outputs": {"score": [one value or row per item]}, "seconds": 1.25, "peak_bytes": 734003200}

`seconds` and `peak_bytes` may be left out: then the round trip is timed here, and the process's resident memory is
read here. `{"error": "…"}` in place of outputs fails the arm. What it prints on stderr is shown when it fails. It ends
when its stdin is closed. A skeleton in Python is in `docs/external.md`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from broadsheet.trial.engine import Arm, Measured
from broadsheet.trial.results import Role


class ExternalProcess:
    """A running program behind the JSON-lines contract.

    Args:
        command: the program and its arguments, e.g. `["/opt/peer/bin/python", "peer.py"]`.
        timeout: seconds to wait for one line.
        cwd: the folder it runs in.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = 3600.0, cwd: Path | None = None):
        self.command = list(command)
        self.timeout = timeout
        self.cwd = cwd
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stderr: IO[str] | None = None

    def start(self) -> None:
        """Start the program and wait until it is ready.

        Raises:
            RuntimeError: it cannot be started, ends, or says something else.
        """
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (lives with the process)
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                cwd=self.cwd,
            )
        except OSError as error:
            raise RuntimeError(f"cannot start {self.command[0]}: {error.strerror}") from None
        # A thread reads stdout, so that a silent program can be given up on.
        threading.Thread(target=self._read, args=(self._process.stdout, self._lines), daemon=True).start()
        if self._receive().get("ready") is not True:
            raise RuntimeError(f"{self.command[0]}: expected {{'ready': true}} as the first line")

    @staticmethod
    def _read(stdout: IO[str], lines: queue.Queue[str | None]) -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    def run(self, items: Sequence[Any]) -> Measured:
        """Send one block of JSON-able items; what the program measured, with its memory read here if it did not say.

        Raises:
            RuntimeError: the program ended, took too long, reported an error or broke the contract.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"items": list(items)}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise RuntimeError(self._ended()) from None
        answer = self._receive()
        if "error" in answer:
            raise RuntimeError(f"{self.command[0]} reported: {answer['error']}")
        if not isinstance(answer.get("outputs"), dict):
            raise RuntimeError(f"{self.command[0]}: expected a line with 'outputs', got keys {sorted(answer)}")
        return Measured(answer["outputs"], answer.get("seconds"), answer.get("peak_bytes") or self._resident())

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty:
            assert self._process is not None
            self._process.kill()
            raise RuntimeError(f"{self.command[0]}: no answer within {self.timeout:g} s") from None
        if line is None:
            raise RuntimeError(self._ended())
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RuntimeError(f"{self.command[0]}: expected one JSON object a line, got {line.strip()[:80]!r}")
        return answer

    def _ended(self) -> str:
        assert self._process is not None
        assert self._stderr is not None
        status = self._process.wait(timeout=10)
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines()
        return f"{self.command[0]} ended with status {status}" + (f": {said[-1][:300]}" if said else "")

    def _resident(self) -> int | None:
        import psutil

        assert self._process is not None
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return None

    def close(self) -> None:
        """Close its stdin, wait a moment, and end it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._stderr:
            self._stderr.close()
        self._process = None


def external_arm(
    name: str,
    command: Sequence[str],
    *,
    role: Role = "peer",
    description: str = "",
    timeout: float = 3600.0,
    cwd: Path | None = None,
) -> Arm:
    """An arm that is a program of its own (see the contract above); its start counts as preparation.

    Example:
        >>> external_arm("peer library 2.0", ["/opt/peer/bin/python", "peer_arm.py"])  # doctest: +SKIP
    """
    process = ExternalProcess(command, timeout=timeout, cwd=cwd)
    return Arm(name, process.run, role, description or " ".join(command), prepare=process.start, close=process.close)
