"""Where the tests' papers lie: what holds in a file holds on a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server, one for the whole run."""
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def filled(postgres_server: postgres.Server) -> str:
    """The address of a database whose tables are made; nobody is in it."""
    url = postgres_server.database()
    done = subprocess.run([sys.executable, "-c", f"from broadsheet.daily.store import Store; Store({url!r})"])
    assert done.returncode == 0
    return url


@pytest.fixture
def database(postgres_server: postgres.Server, filled: str) -> Iterator[str]:
    """The address of a database on a server, without a mark or a listing."""
    url = postgres_server.database(filled)
    yield url
    postgres_server.drop(url)


@pytest.fixture(params=["file", pytest.param("server", marks=postgres.ON_A_SERVER)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is to be: a file, then a server."""
    if request.param == "file":
        return str(tmp_path / "page.sqlite")
    url: str = request.getfixturevalue("database")
    return url
