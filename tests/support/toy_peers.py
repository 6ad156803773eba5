"""Peers that need no package index: a wheel made by hand, and a runner that uses what is in it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from broadsheet.trial.outside import peers
from broadsheet.trial.outside.peers import Peer

COUNTER = '''
"""Counts words."""

import counter_of_words


def load(**given):
    print("a library that prints", given)
    return lambda items: {"score": [counter_of_words.count(item) * given.get("times", 1) for item in items]}
'''


def wheel(folder: Path, module: str, source: str, version: str = "1.0") -> Path:
    """A wheel of one module, which pip installs without building anything."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def toy(folder: Path, runner: str = COUNTER, **changed: Any) -> Peer:
    """A peer `counter` of the stage `detect` whose one package lies in `folder`."""
    wheel(folder / "wheels", "counter_of_words", "def count(text):\n    return len(text.split())\n")
    options: dict[str, Any] = {"stage": "detect", "options": {"times": 1}, **changed}
    peer = Peer(
        "counter",
        about="counts words",
        licence="none",
        module="counter_of_words",
        download_mb=1,
        disk_mb=1,
        folder=folder,
        **options,
    )
    peer.requirements.write_text("# pinned\ncounter-of-words==1.0\n")
    peer.runner.write_text(runner)
    return peer


def register(monkeypatch: pytest.MonkeyPatch, *found: Peer) -> None:
    """These are the known peers, and pip takes their packages from their folders alone."""
    monkeypatch.setattr(peers, "known", lambda: {peer.name: peer for peer in found})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", " ".join(str(peer.folder / "wheels") for peer in found))


def ready(monkeypatch: pytest.MonkeyPatch, folder: Path, runner: str, **changed: Any) -> Peer:
    """A known peer `counter` that needs no environment: this Python runs it."""
    peer = toy(folder, runner, **changed)
    register(monkeypatch, peer)
    monkeypatch.setattr(Peer, "built", True)
    monkeypatch.setattr(Peer, "python", Path(sys.executable))
    return peer
