"""The process: where it listens, how it ends.

Knows: addresses, signals. Does not know: routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from types import FrameType

import uvicorn

from broadsheet.console import InputError, say
from broadsheet.serve.guard import Guard, KeyRing

_PATIENCE = 60.0  # seconds in which answers may end after a signal


def check_address(host: str, keys: KeyRing) -> None:
    """Refuse to be reached from elsewhere without a key.

    Raises:
        InputError: the host is not loopback, and there is no key.
    """
    if not keys and not _loopback(host):
        raise InputError(
            f"got --host {host} without keys: everybody who reaches it could use it. Give --keys FILE, or set "
            "BROADSHEET_SERVE_KEYS"
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: Guard, host: str, port: int) -> None:
    """Serve until a signal comes; then finish what was begun.

    Raises:
        InputError: the address cannot be used.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    with listening:
        shown = f"[{host}]" if ":" in host else host
        say(f"serving on http://{shown}:{listening.getsockname()[1]}/v1; Ctrl-C ends it when the answers are written")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(_PATIENCE),
            limit_concurrency=1024,
            h11_max_incomplete_event_size=64 * 1024,
        )
        DrainingServer(config, app).run(sockets=[listening])


class DrainingServer(uvicorn.Server):
    """Ends in two steps: at the first signal it takes nothing new and says so, and it closes when all is written."""

    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self._guard, self._state = guard, guard.app.state.serving  # type: ignore[attr-defined]
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def _drain(self) -> None:
        async def drained() -> None:
            deadline = self._loop.time() + _PATIENCE
            while self._guard.active and self._loop.time() < deadline:
                await asyncio.sleep(0.05)
            self.should_exit = True

        self._draining = asyncio.ensure_future(drained())
