"""Runs of the page that have ended, as a server keeps them, made of recorded evidence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from broadsheet.page import evidence


def keep(folder: Path, name: str, paper: str, state: str = "done", date: str = "") -> dict[str, Any]:
    """Keep a run of a paper, whole at once, since a server may look meanwhile; what it found."""
    found: dict[str, Any] = evidence.read(paper) or {}
    if date:
        found["provenance"] = found["provenance"] | {"date": date}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        run = Path(made) / name
        run.mkdir()
        (run / "job.json").write_text(json.dumps({"id": name, "command": ["try", paper, "--quick"], "state": state}))
        (run / "result.json").write_text(json.dumps(found))
        run.rename(folder / name)
    return found
