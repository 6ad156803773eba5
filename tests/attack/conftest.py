"""What attacks share: the workshop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from workshop import Workshop, build


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable) -> Workshop:
    """What the commands read. Do not change it."""
    return build(tmp_path_factory.mktemp("workshop"), tiny_model, tiny_tokenizer)
