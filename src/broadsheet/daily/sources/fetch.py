"""Asking the sources, politely: one connection at a time, seconds apart, and only hosts that are configured.

A host's addresses are looked up once, must all be public, and the connection goes to one of them: what a name stands
for cannot change between the check and the connection. Redirects are checked as the first address was. Size, packed and
unpacked, and time have limits. Proxies of the environment are not used: behind one none of this could be checked.

httpcore2, which httpx2 stands on, is used itself: there the connection is made by a function of ours, so that addresses
can be pinned (names and certificates are still checked) and every read ends within the time that is left.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlencode, urljoin, urlsplit

import httpcore2

from broadsheet import __version__
from broadsheet.console import InputError
from broadsheet.daily.records import line
from broadsheet.daily.sources.base import LARGEST, SourceError, unpacked
from broadsheet.daily.store import Store

APART = {"arxiv": 3.0, "hf": 1.0}  # seconds between two requests
PATIENCE = 330.0  # seconds that are waited when a source says how long: Hugging Face counts five minutes
LONGEST = 120.0  # seconds of one answer
DAY = 86_400.0
_REDIRECTS = (301, 302, 303, 307, 308)
_HOPS = 3
_TIMEOUTS = {"connect": 15.0, "read": 60.0, "write": 15.0, "pool": 15.0}
_HEADERS = [(b"User-Agent", f"broadsheet/{__version__}".encode()), (b"Accept-Encoding", b"gzip")]
_LEFT = re.compile(r";\s*r=(\d{1,9})\s*;\s*t=(\d{1,7})\b", re.ASCII)


class NoAnswerError(Exception):
    """A source gave no answer. The message is one line.

    Attributes:
        again: from when it may be asked again, in seconds since 1970; 0.0 where it does not say.
    """

    def __init__(self, message: str, again: float = 0.0) -> None:
        super().__init__(message)
        self.again = again


class StoppedError(Exception):
    """Whoever asks is to ask nothing more."""


class Answer(NamedTuple):
    """What came back: the status, and the body without gzip."""

    status: int
    data: bytes


@dataclass(frozen=True)
class Places:
    """Where sources are asked: base addresses, of which the hosts alone may be asked.

    Each is taken from the environment: HF_ENDPOINT, BROADSHEET_ARXIV_QUERY, BROADSHEET_ARXIV_RSS, BROADSHEET_ARXIV_OAI.

    Raises:
        InputError: one is no https address; http will do on loopback.
    """

    hf: str = "https://huggingface.co"
    query: str = "https://export.arxiv.org/api/query"
    rss: str = "https://rss.arxiv.org/rss"
    oai: str = "https://oaipmh.arxiv.org/oai"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Places:
        names = {"hf": "HF_ENDPOINT", "query": "BROADSHEET_ARXIV_QUERY"}
        names |= {"rss": "BROADSHEET_ARXIV_RSS", "oai": "BROADSHEET_ARXIV_OAI"}
        given = {field: environ[name].rstrip("/") for field, name in names.items() if environ.get(name)}
        for field, value in given.items():
            try:
                parts = urlsplit(value)
                usable = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or ""))
                usable = usable and bool(parts.hostname) and "@" not in parts.netloc and _port(parts) > 0
            except ValueError:
                usable = False
            if not usable:
                raise InputError(
                    f"got {names[field]}={line(value)}; expected an https address (http: on loopback alone)"
                )
        return cls(**given)

    def group(self, parts: SplitResult) -> str | None:
        """Whose limits hold for an address, `"hf"` or `"arxiv"`; None where it is none of these hosts."""
        asked = (parts.scheme, parts.hostname, _port(parts))
        for field in fields(self):
            known = urlsplit(getattr(self, field.name))
            if asked == (known.scheme, known.hostname, _port(known)) and "@" not in parts.netloc:
                return "hf" if field.name == "hf" else "arxiv"
        return None


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as this machine looks them up."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Asks sources.

    Args:
        store: keeps when which host was asked, so that the next run, too, keeps its distance.
        clock: seconds since 1970.
        sleep: waits for seconds; by default until then or until it is stopped.
        lookup: gives a host's addresses.
        longest: seconds of one answer.
        largest: bytes of one, packed and unpacked.

    Example:
        fetcher = Fetcher(store, Places.of(os.environ))
        status, data = fetcher.get(fetcher.places.query, {"search_query": "cat:cs.CL"})
    """

    def __init__(
        self,
        store: Store,
        places: Places | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] | None = None,
        lookup: Callable[[str, int], list[str]] = resolve,
        longest: float = LONGEST,
        largest: int = LARGEST,
    ) -> None:
        self.store, self.places = store, places or Places.of(os.environ)
        self._stopped, self._connected = threading.Event(), _Connected()
        self.clock, self.sleep, self.lookup = clock, sleep or self._stopped.wait, lookup
        self.longest, self.largest = longest, largest

    def stop(self) -> None:
        """Ask nothing more; a request on its way ends now. Another thread may say so."""
        self._stopped.set()
        self._connected.cut()

    def get(self, base: str, given: Mapping[str, str | int] | None = None) -> Answer:
        """Ask for an address with these parameters.

        Where a source asks for patience (429, 503) and says how long, it is asked once more after that.

        Returns:
            Any other answer, whatever its status.

        Raises:
            NoAnswerError: no connection, no whole answer in time, patience asked for again, or too many redirects.
            SourceError: an answer too large, or an address (or a redirect's) that must not be asked.
            StoppedError: it was stopped.
        """
        url = f"{base}?{urlencode(given, quote_via=quote)}" if given else base
        waited = hops = 0
        with self.store.db.alone("fetch"):
            while True:
                group, parts = self._allowed(url)
                self._wait(group)
                status, headers, data = self._paced(group, parts)
                if status in _REDIRECTS and headers.get("location"):
                    hops += 1
                    if hops > _HOPS:
                        raise NoAnswerError(f"{parts.hostname} redirects more than {_HOPS} times")
                    url = _joined(url, headers["location"])
                elif status in (429, 503):
                    self._hold(group, status, headers, waited)
                    waited += 1
                elif status == 403 and group == "arxiv":
                    self._note(group, until=self.clock() + DAY)
                    raise NoAnswerError(f"403: arXiv refuses this machine; {self._again(group)}", self._until(group))
                else:
                    return Answer(status, data)

    def _allowed(self, url: str) -> tuple[str, SplitResult]:
        try:
            parts = urlsplit(url)
            group = self.places.group(parts)
        except ValueError:
            parts, group = urlsplit(""), None
        if group is None:
            where = f"{parts.scheme}://{parts.hostname}" if parts.hostname else url
            raise SourceError(f"the address {line(where)[:100]} is none of the configured hosts; it is not asked")
        return group, parts

    # Distance

    def _wait(self, group: str) -> None:
        """Wait until a host may be asked."""
        last, until = self._noted(group)
        now = self.clock()
        if until - now > PATIENCE:
            raise NoAnswerError(f"it asked for patience before; {self._again(group)}", until)
        # A time that lies ahead is another clock's: no more than the distance is waited.
        wait = max(min(last + APART[group] - now, APART[group]), until - now)
        if wait > 0:
            self.sleep(wait)
        self._go_on()

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise StoppedError

    def _paced(self, group: str, parts: SplitResult) -> tuple[int, Mapping[str, str], bytes]:
        self._note(group)  # first: a run that is killed has asked, too
        try:
            return self._ask(parts)
        except NoAnswerError:
            self._go_on()
            raise
        finally:
            self._note(group)

    def _hold(self, group: str, status: int, headers: Mapping[str, str], waited: int) -> None:
        """Keep in mind how long a source wants to be left alone; raise where that cannot be waited for."""
        wait = _asked_patience(headers, self.clock())
        if wait is None:
            raise NoAnswerError(f"{status} without a time; ask again in some minutes")
        self._note(group, until=self.clock() + wait)
        if waited or wait > PATIENCE:
            raise NoAnswerError(f"{status}, {self._again(group)}", self._until(group))

    def _noted(self, group: str) -> tuple[float, float]:
        known = self.store.asked(f"host:{group}")
        try:
            given = json.loads(known[2]) if known else {}
            last, until = float(given.get("last", 0)), float(given.get("until", 0))
        except (ValueError, TypeError, AttributeError):
            return 0.0, 0.0
        return (last, until) if math.isfinite(last + until) else (0.0, 0.0)

    def _note(self, group: str, until: float | None = None) -> None:
        held = self._noted(group)[1] if until is None else until
        self.store.note_asked(f"host:{group}", "", json.dumps({"last": self.clock(), "until": held}))

    def _until(self, group: str) -> float:
        return self._noted(group)[1]

    def _again(self, group: str) -> str:
        when = datetime.fromtimestamp(math.ceil(self._until(group)), UTC)
        return f"ask again after {when:%Y-%m-%d %H:%M:%S} UTC"

    # The connection

    def _ask(self, parts: SplitResult) -> tuple[int, Mapping[str, str], bytes]:
        host, port = str(parts.hostname), _port(parts)
        end = self.clock() + self.longest

        def left() -> float:
            remaining = end - self.clock()
            if remaining <= 0 or self._stopped.is_set():
                raise httpcore2.ReadTimeout(f"not whole within {self.longest:g} s")
            return remaining

        backend = _Pinned(self._addresses(host, port), left, self._connected)
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        target += f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}" if parts.query else ""
        url = httpcore2.URL(scheme=parts.scheme.encode(), host=host.encode(), port=port, target=target.encode())
        try:
            with (
                httpcore2.ConnectionPool(max_connections=1, network_backend=backend) as pool,
                pool.stream("GET", url, headers=_HEADERS, extensions={"timeout": dict(_TIMEOUTS)}) as response,
            ):
                headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in response.headers}
                if response.status in _REDIRECTS:
                    return response.status, headers, b""
                data = bytearray()
                for chunk in response.iter_stream():
                    left()
                    data += chunk
                    if len(data) > self.largest:
                        raise SourceError(f"{host} sends more than {self.largest:,} bytes; nothing of it is kept")
        except httpcore2.TimeoutException:
            raise NoAnswerError(f"{host} gave no whole answer in time") from None
        except httpcore2.ProtocolError:
            raise NoAnswerError(f"the answer of {host} is cut or broken; nothing of it is kept") from None
        except (httpcore2.NetworkError, OSError) as error:
            raise NoAnswerError(f"{host} cannot be reached ({line(str(error)) or type(error).__name__})") from None
        packing = headers.get("content-encoding", "identity").strip().lower()
        if packing in ("gzip", "x-gzip"):
            return response.status, headers, unpacked(bytes(data), host, self.largest)
        if packing != "identity":
            raise SourceError(f"{host} sends {line(packing)[:30]}, which was not asked for; expected gzip or none")
        return response.status, headers, bytes(data)

    def _addresses(self, host: str, port: int) -> list[str]:
        """A host's addresses; all must be public, or all on loopback where that is what is configured."""
        try:
            found = self.lookup(host, port)
        except OSError as error:
            raise NoAnswerError(f"{host} cannot be looked up ({line(str(error))}): no network?") from None
        fits = _on_loopback if _is_loopback(host) else _public
        for address in found:
            if not fits(address):
                raise SourceError(f"{host} stands for {line(address)[:60]}, which is not public; it is not asked")
        if not found:
            raise NoAnswerError(f"{host} has no address")
        return found


class _Connected:
    """The one connection, so that another thread can end it."""

    def __init__(self) -> None:
        self.stream: httpcore2.NetworkStream | None = None

    def cut(self) -> None:
        """Let whoever reads from it read its end."""
        found = self.stream.get_extra_info("socket") if self.stream else None
        if found is not None:
            with suppress(OSError):  # closed by now
                socket.socket.shutdown(found, socket.SHUT_RDWR)  # an encrypted one's own takes the key from its reader


class _Pinned(httpcore2.NetworkBackend):
    """Connects to given addresses, whatever the name; no read or write takes longer than what is left."""

    def __init__(self, addresses: Sequence[str], left: Callable[[], float], connected: _Connected) -> None:
        self.addresses, self.left, self.connected = addresses, left, connected
        self.plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        for address in self.addresses[:-1]:
            with suppress(httpcore2.NetworkError, httpcore2.TimeoutException):
                return self._connect(address, port, timeout, socket_options)
        return self._connect(self.addresses[-1], port, timeout, socket_options)

    def _connect(
        self, address: str, port: int, timeout: float | None, socket_options: Iterable[Any] | None
    ) -> httpcore2.NetworkStream:
        within = _least(timeout, self.left())
        stream = self.plain.connect_tcp(address, port, timeout=within, socket_options=socket_options)
        return _Timed(stream, self.left, self.connected)


class _Timed(httpcore2.NetworkStream):
    def __init__(
        self, stream: httpcore2.NetworkStream, left: Callable[[], float], connected: _Connected | None = None
    ) -> None:
        self.stream, self.left, self.connected = stream, left, connected or _Connected()
        self.connected.stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _least(timeout, self.left()))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _least(timeout, self.left()))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        made = self.stream.start_tls(ssl_context, server_hostname, _least(timeout, self.left()))
        return _Timed(made, self.left, self.connected)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location  # which is refused as it is


def _least(timeout: float | None, left: float) -> float:
    return left if timeout is None else min(timeout, left)


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or _on_loopback(host)


def _on_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _public(address: str) -> bool:
    """Whether an address is one of the open internet; an IPv6 one that carries an IPv4 one counts as that."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        carried = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if carried is None and found in ipaddress.ip_network("64:ff9b::/96"):
            carried = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if carried is not None:
            return _public(str(carried))
        if found.is_site_local:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _asked_patience(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a source wants to be left alone, by Retry-After or RateLimit; None where it does not say."""
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,7}", given):
        return float(given)
    with suppress(ValueError):
        when = parsedate_to_datetime(given)
        return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now)
    limits = [(int(left), float(wait)) for left, wait in _LEFT.findall(headers.get("ratelimit", ""))]
    return max((wait for left, wait in limits if left == min(limits)[0]), default=None)
