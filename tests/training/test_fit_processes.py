"""Two processes train as one does on all rows, stop and resume together, and refuse together."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from toys import Line, Squares, points, weights
from two_processes import both, leave

from broadsheet.console import InputError
from broadsheet.training.fit import fit

OPTIONS: dict[str, Any] = {"steps": 6, "learning_rate": 1e-2, "autocast": "none", "checkpoint_minutes": 1e-9}


def trained(out: Path | None, batch_size: int, stop: int = 0) -> tuple[Line, Any]:
    class Stopping(Squares):
        left = stop

        def loss(self, *args: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("stopped")
            return {"loss": super().loss(*args)["error"]}

    Stopping.__name__ = "Squares"
    model = Line(dropout=0)
    return model, fit(model, points(), Stopping(), out, batch_size=batch_size, **OPTIONS)


def refused(work: Callable[[], Any]) -> str:
    try:
        work()
    except (InputError, RuntimeError) as error:
        return str(error)
    return ""


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    port = int((folder / "port").read_text())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    model, done = trained(folder / "out", 2)
    stopped = refused(lambda: trained(folder / "cut", 2, stop=4))
    other = refused(lambda: fit(Line(), points(9), Squares(), folder / "cut", **OPTIONS))
    resumed, rest = trained(folder / "cut", 2)
    again = refused(lambda: trained(folder / "out", 2))
    found = {
        "whole": weights(model), "resumed": weights(resumed), "examples": done.examples, "tokens": done.tokens,
        "from": rest.resumed_from, "errors": [stopped, other, again], "history": rest.history == done.history,
    }  # fmt: skip
    torch.save(found, folder / f"process-{rank}.pt")
    leave()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(held.getsockname()[1]))
    both(work, tmp_path)
    one, done = trained(None, 4)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"process-{rank}.pt")
        torch.testing.assert_close(found["whole"], weights(one), atol=1e-6, rtol=1e-5)
        assert all(torch.equal(found["whole"][name], found["resumed"][name]) for name in found["whole"])
        assert (found["examples"], found["tokens"]) == (done.examples, done.tokens) == (24, 72)
        assert found["from"] == 3
        assert found["history"]
        stopped, other, again = found["errors"]
        assert stopped == "stopped"
        assert "was begun with other" in other
        assert "is finished" in again
    assert json.loads((tmp_path / "out" / "training.json").read_text())["examples"] == 24
    assert not list(tmp_path.glob("*.partial"))
