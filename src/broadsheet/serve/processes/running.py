"""The process: where it listens, how it ends.

Knows: addresses, signals. Does not know: routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from broadsheet.console import InputError, say
from broadsheet.serve.guard import LOOPBACK, Guard, KeyRing
from broadsheet.serve.processes.connections import PatientProtocol, keep_moving

WHAT = "serving on {url}/v1"
_BACKLOG = 2048  # connections that wait to be accepted
PATIENCE = 60.0  # seconds in which answers may end after a signal; then as long again until what still runs is cut off


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


def names(host: str, others: Sequence[str]) -> tuple[str, ...]:
    """What a server is called that listens on `host`: as loopback is, as `others` say, and by an address of its own."""
    return (*LOOPBACK, *others, *([host] if host not in ("0.0.0.0", "::") else []))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(app: Guard, host: str, port: int, what: str = WHAT) -> None:
    """Serve until a signal comes; then finish what was begun.

    Args:
        what: is said once it listens, see `told`.

    Raises:
        InputError: the address cannot be used.
    """
    with bound(host, port) as address:
        address.listen(_BACKLOG)
        say(told(host, address, what))
        answer(app, address)


def bound(host: str, port: int) -> socket.socket:
    """A socket of that address, on which nobody listens yet: who connects is refused.

    Raises:
        InputError: the address cannot be used.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_moving(made)
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        raise InputError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    return made


def told(host: str, address: socket.socket, what: str, by: str = "") -> str:
    """The line that says what is where; `what` has `{url}` where the address goes."""
    shown = f"[{host}]" if ":" in host else host
    where = what.format(url=f"http://{shown}:{address.getsockname()[1]}")
    return f"{where}{by}; Ctrl-C ends it when the answers are written"


def answer(app: Guard, address: socket.socket, ready: Callable[[], object] | None = None) -> None:
    """Answer on a bound socket until a signal comes; `ready`: of a worker, called once it does."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(PATIENCE),
        limit_concurrency=1024,
        h11_max_incomplete_event_size=64 * 1024,
    )
    DrainingServer(config, app, ready).run(sockets=[address])


class DrainingServer(uvicorn.Server):
    """Ends in two steps: at the first signal it takes nothing new and says so, and it closes when all is written.

    Args:
        ready: of a worker, called once it answers. A worker lets further signals be: its parent ends it at once.
    """

    def __init__(self, config: uvicorn.Config, guard: Guard, ready: Callable[[], object] | None = None) -> None:
        super().__init__(config)
        self._guard, self._state = guard, guard.app.state.serving  # type: ignore[attr-defined]
        self._ready = ready
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.draining and self._ready:
            return
        if self._state.draining or not self.started:
            self.force_exit = self._state.draining
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._ready:
            self._ready()

    def _drain(self) -> None:
        async def drained() -> None:
            deadline = self._loop.time() + PATIENCE
            while self._guard.active and self._loop.time() < deadline:
                await asyncio.sleep(0.05)
            self.should_exit = True

        self._draining = asyncio.ensure_future(drained())
