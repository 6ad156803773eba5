"""The command as a user types it."""

from __future__ import annotations

import sys

import pytest

from broadsheet import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `broadsheet …` in this process; (exit status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["broadsheet", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
