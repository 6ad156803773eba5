"""Sessions: who has shown a key once is known by a cookie, until they sign out, the server ends, or a week is over.

Knows: keys' digests, cookies. Does not know: requests. The cookie holds neither the key nor its digest; what it says is
sealed by a secret of the server's, so nothing is kept of a session until it is ended.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broadsheet.serve.guard import Key, KeyRing

SESSION = "broadsheet_session"  # the cookie
SECONDS = 7 * 24 * 3600
_clock = time.time


class Sessions:
    """The sessions of one server.

    Args:
        secret: by which cookies are sealed, the same in all its processes; a new one by default.
        folder: where other processes see which sessions are ended; None: there are none.
    """

    def __init__(self, keys: KeyRing, secret: str = "", folder: Path | None = None) -> None:
        self._keys, self._folder = keys, folder
        self._secret = (secret or secrets.token_urlsafe(32)).encode()
        self._ended: set[str] = set()

    def begin(self, key: Key) -> str:
        """The cookie of a new session with a key's rights."""
        name, until = secrets.token_hex(16), str(int(_clock()) + SECONDS)
        return f"{name}.{until}.{self._seal(key, name, until).decode()}"

    def find(self, cookie: str) -> Key | None:
        """The key of a session that goes on; every key is tried, whichever fits."""
        name, _, rest = cookie.partition(".")
        until, _, seal = rest.partition(".")
        fits = [key for key in self._keys if hmac.compare_digest(self._seal(key, name, until), seal.encode())]
        if not fits or int(until) < _clock() or self._is_ended(name):
            return None
        return fits[0]

    def end(self, cookie: str) -> None:
        """End a session: who has its cookie still is not known by it any more."""
        if self.find(cookie) is None:
            return
        name = cookie.partition(".")[0]
        self._ended.add(name)
        if self._folder:
            (self._folder / f"ended {name}").touch()

    def _is_ended(self, name: str) -> bool:
        return name in self._ended or (self._folder is not None and (self._folder / f"ended {name}").exists())

    def _seal(self, key: Key, name: str, until: str) -> bytes:
        told = key.digest + f".{name}.{until}".encode()
        return hmac.new(self._secret, told, hashlib.sha256).hexdigest().encode()
