"""HTTP answers that are bounded: in bytes, and in the time their bodies take; and never compressed.

Knows: httpx2's responses. Does not know: the protocol of what is asked. A read time-out alone does not bound an answer:
a server that sends a byte now and then holds a call for ever, and a compressed body may be a thousand times its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import cast

import httpx2 as httpx  # that the openai client is made of

MOST_BYTES = 1 << 26  # of an answer: a thousand times what a long one has
HEADERS = {"Accept-Encoding": "identity"}  # so that the bytes of a body are what it is


def bounded(seconds: float, most: int = MOST_BYTES) -> Callable[[httpx.Request | httpx.Response], None]:
    """A hook for a client's `event_hooks["response"]`, after which a body that goes too far raises as it is read.

    Args:
        seconds: from a body's beginning to its end; then `httpx.ReadTimeout`.
        most: bytes; then `httpx.ReadError`, as for a body in any encoding.
    """

    def bound(response: httpx.Request | httpx.Response) -> None:
        assert isinstance(response, httpx.Response)
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise httpx.ReadError(f"a body in {coding[:20]!r}, which was not asked for", request=response.request)
        response.stream = _Body(response, seconds, most)

    return bound


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response, seconds: float, most: int) -> None:
        self._inner, self._request = cast(httpx.SyncByteStream, response.stream), response.request
        self._seconds, self._most = seconds, most

    def __iter__(self) -> Iterator[bytes]:
        ends, left = monotonic() + self._seconds, self._most
        for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise httpx.ReadError(f"an answer of more than {self._most:,} bytes", request=self._request)
            if monotonic() > ends:
                raise httpx.ReadTimeout(f"an answer that took {self._seconds:g} s to come", request=self._request)
            yield chunk

    def close(self) -> None:
        self._inner.close()
