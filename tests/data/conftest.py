"""What tests of data share."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with one data set, whose rows a test sets."""
    held = SimpleNamespace(rows=[], features=None, decoded=True, asked=[])

    class Stream:
        info = SimpleNamespace(splits={})

        @property
        def features(self) -> Any:
            return held.features

        def decode(self, enable: bool) -> Stream:
            held.decoded = enable
            return self

        def __iter__(self) -> Any:
            return iter(held.rows)

    def load_dataset(name: str, *_: Any, **__: Any) -> Stream:
        held.asked.append(name)
        return Stream()

    library = SimpleNamespace(load_dataset=load_dataset)
    api = SimpleNamespace(endpoint="https://hub.example", dataset_info=lambda name: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: api))
    return held
