"""A PostgreSQL server of this machine's own programs, on loopback, with a new database for each test.

`BROADSHEET_TEST_POSTGRES=postgresql://user@host/database` names a server that runs already.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_NUMBERS = count()
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "listen_addresses": "127.0.0.1"}


def programs() -> Path | None:
    """Where the programs of the latest server with pgvector are, as Debian has them; None where there is none."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: -int(each.parent.name)):
        if Path(f"/usr/share/postgresql/{folder.parent.name}/extension/vector.control").exists():
            return folder
    return None


ON_A_SERVER = [
    pytest.mark.skipif(
        not (os.environ.get("BROADSHEET_TEST_POSTGRES") or programs()),
        reason="needs PostgreSQL with pgvector: apt-get install postgresql-17-pgvector",
    ),
    pytest.mark.xdist_group("postgres"),  # one server for the whole run
]


@dataclass
class Server:
    """A server that runs.

    Attributes:
        url: of a database that is always there.
    """

    url: str
    _bin: Path | None = None
    _data: Path | None = None

    def database(self, like: str = "template1") -> str:
        """The address of a new database, empty or like another in which nobody is."""
        import psycopg

        name = f"broadsheet_test_{os.getpid()}_{next(_NUMBERS)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like.rpartition("/")[2]}"')
        return self.url.rpartition("/")[0] + f"/{name}"

    def drop(self, url: str) -> None:
        """Remove a database, whoever is in it."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def stop(self) -> None:
        """End it, without waiting for anyone."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it again where it was."""
        self._control("start", "-l", f"{self._data}/log")

    def _control(self, *what: str) -> None:
        assert self._bin is not None, "a server that runs already is not this test's to stop"
        _as_owner([str(self._bin / "pg_ctl"), "-w", "-s", "-D", str(self._data), *what])


@contextmanager
def running() -> Iterator[Server]:
    """A server, which ends with the block."""
    if given := os.environ.get("BROADSHEET_TEST_POSTGRES"):
        yield Server(given)
        return
    found = programs()
    assert found, "no server is installed"
    folder = Path(tempfile.mkdtemp(prefix="broadsheet-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        data, port = folder / "data", _free_port()
        # Its own order of texts is a language's, so that what relies on bytes is seen.
        order = ["--locale-provider=icu", "--icu-locale=en", "--locale=C.UTF-8", "--encoding=UTF8"]
        _as_owner([str(found / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync", *order])
        settings = _SETTINGS | {"port": str(port), "unix_socket_directories": str(folder)}
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        server = Server(f"postgresql://postgres@127.0.0.1:{port}/postgres", found, data)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _as_owner(command: list[str]) -> None:
    """Run a program as the user to whom servers belong: none runs as root."""
    own: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", **own)
    assert done.returncode == 0, done.stderr
