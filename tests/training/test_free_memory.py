"""What is free on a device, and what a forward pass keeps for the backward one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from broadsheet.training import memory

CPU = torch.device("cpu")
FREE = 8 << 30


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a container finds its limits; the machine has 8 GB to give."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": FREE}))
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "5", FREE), (str(3 << 30), str(1 << 30), 2 << 30), (str(1 << 40), "0", FREE), ("100", "200", 0)],
)
def test_a_container_has_no_more_than_its_limit(container: Path, limit: str, used: str, expected: int) -> None:
    assert memory.free(CPU) == FREE, "there is no container"
    (container / "memory.max").write_text(f"{limit}\n")
    (container / "memory.current").write_text(f"{used}\n")
    assert memory.free(CPU) == expected


def test_each_activation_counts_once_and_weights_do_not() -> None:
    first, second = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
    given = torch.randn(5, 8)
    weights = [first.weight, second.weight]
    # The input, for the first weight; the tanh, which its own gradient and the second weight's both need.
    assert memory.for_backward(lambda: second(torch.tanh(first(given))), weights) == 4 * 5 * (8 + 16)
    assert memory.for_backward(lambda: second(torch.tanh(first(given[:1].clone()))), weights) == 4 * (8 + 16)
    with torch.no_grad():
        assert memory.for_backward(lambda: second(first(given)), weights) == 0
