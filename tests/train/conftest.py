"""A tiny language model, and rows of equal length that it can learn."""

from __future__ import annotations

import pytest
import torch

from broadsheet.training.scratch import Size, TokenBlocks


@pytest.fixture
def rows() -> TokenBlocks:
    """24 blocks of 12 tokens of a vocabulary of 20."""
    generator = torch.Generator().manual_seed(3)
    return TokenBlocks(torch.randint(0, 20, (24 * 12,), generator=generator), 12)


@pytest.fixture
def tiny():
    """`tiny(seed)`: a Llama of 20 tokens, its weights by the seed."""
    return lambda seed=0: Size(1, 16, 2).model(20, 32, seed)
