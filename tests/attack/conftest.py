"""What attacks share: the workshop, and how much of an attack is made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attacks import Attack
from workshop import Workshop, build


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable) -> Workshop:
    """What the commands read. Do not change it."""
    return build(tmp_path_factory.mktemp("workshop"), tiny_model, tiny_tokenizer)


@pytest.fixture
def attack(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Attack:
    """How much is to be done, and a note of what was."""
    return Attack(request.config.getoption("--attack"), record_property)
