"""Freed memory stays with the process inside `kept`, and goes back to the system afterwards."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from broadsheet.training import memory

SIZE = 64 << 20

pytestmark = pytest.mark.skipif(memory._glibc() is None, reason="of glibc's allocator alone")


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def at_first() -> int:
    """Resident memory, without what earlier tests have freed and the allocator still holds."""
    with memory.kept():
        pass
    return resident()


def used_and_freed() -> None:
    torch.ones(SIZE // 4).sum()


def test_what_is_freed_is_kept_inside_and_given_back_after_the_outermost() -> None:
    used_and_freed()
    before = at_first()
    with memory.kept():
        with memory.kept():
            used_and_freed()
        assert resident() > before + SIZE // 2  # the inner one has ended, and the outer one keeps it
    assert resident() < before + SIZE // 2


def test_memory_goes_back_where_the_body_fails() -> None:
    before = at_first()
    with pytest.raises(RuntimeError, match="a step failed"), memory.kept():
        used_and_freed()
        raise RuntimeError("a step failed")
    assert resident() < before + SIZE // 2


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with memory.kept():
        assert memory._inside == 0
