"""Trainings of milliseconds: `Trainer` collects garbage before each, which takes longer than all the rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def frozen() -> Iterator[None]:
    """What is there before a module's tests is not looked at by the collector."""
    gc.freeze()
    yield
    gc.unfreeze()
