"""The cache layer that holds a method's states: rows, padding, beams, bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from broadsheet.attend.memory import Bytes, Layer, MemoryLayer, State, cache_bytes
from broadsheet.attend.rotary import Rotary

LAYER = Layer(
    index=0, heads=2, kv_heads=1, head_dim=4, scaling=1.0, softcap=None, sliding_window=None, rotary=Rotary(None, None)
)


class Running(State):
    """Gives each token the sum of all values so far: what a row has read decides, and nothing else."""

    def __init__(self) -> None:
        super().__init__(LAYER)
        self.total: Tensor | None = None
        self.parts: list[Tensor] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sums = value.cumsum(2) + (0 if self.total is None else self.total[:, :, None])
        self.total = sums[:, :, -1]
        self.parts.append(value)
        self.seen += value.shape[2]
        return sums.repeat_interleave(2, 1)


def layer() -> MemoryLayer:
    made = MemoryLayer("method", LAYER, Running)
    made.announce = lambda _: None
    return made


def read(memory: MemoryLayer, value: Tensor, real: Tensor | None = None) -> Tensor:
    key, value = memory.update(value, value)
    return memory.attend(key.repeat_interleave(2, 1), key, value, real)


def values(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, length, 4, generator=torch.Generator().manual_seed(seed))


def test_rows_with_other_padding_do_not_meet() -> None:
    value = values(4, 6)
    real = torch.ones(4, 6, dtype=torch.bool)
    real[0, :2] = False
    real[1, 4:] = False
    real[2] = False
    memory = layer()
    got = read(memory, value, real)
    more = values(4, 2, seed=1)
    then = read(memory, more)
    for row in range(4):
        tokens = value[row : row + 1, :, real[row]]
        alone = layer()
        if tokens.shape[2]:
            torch.testing.assert_close(got[row : row + 1, :, real[row]], read(alone, tokens))
        assert not got[row, :, ~real[row]].any()
        torch.testing.assert_close(then[row : row + 1], read(alone, more[row : row + 1]))
    assert memory.get_seq_length() == 8
    assert memory.get_mask_sizes(3) == (11, 0)
    assert {len(rows) for rows, _ in memory._parts} == {1}


def test_rows_alike_share_a_state() -> None:
    memory = layer()
    real = torch.ones(4, 3, dtype=torch.bool)
    real[1:3, 0] = False
    read(memory, values(4, 3), real)
    assert sorted(rows.tolist() for rows, _ in memory._parts) == [[0, 3], [1, 2]]
    read(memory, values(4, 2), torch.tensor([[1, 1], [1, 1], [0, 1], [1, 1]], dtype=torch.bool))
    assert sorted(rows.tolist() for rows, _ in memory._parts) == [[0, 3], [1], [2]]


def test_beams_go_on_from_the_rows_they_are_told() -> None:
    value, more = values(3, 4), values(4, 2, seed=1)
    real = torch.ones(3, 4, dtype=torch.bool)
    real[1, 0] = False
    memory = layer()
    read(memory, value, real)
    order = torch.tensor([2, 1, 1, 0])
    memory.reorder_cache(order)
    got = read(memory, more)
    for row, source in enumerate(order.tolist()):
        alone = layer()
        read(alone, value[source : source + 1, :, real[source]])
        torch.testing.assert_close(got[row : row + 1], read(alone, more[row : row + 1]))


def test_rows_can_be_repeated_and_forgotten() -> None:
    memory = layer()
    first = read(memory, values(2, 3))
    memory.batch_repeat_interleave(2)
    again = read(memory, torch.zeros(4, 1, 1, 4))
    torch.testing.assert_close(again[:, :, 0], first[[0, 0, 1, 1], :, -1])
    memory.reset()
    assert memory.get_seq_length() == 0
    torch.testing.assert_close(read(memory, values(2, 3)), first)


def test_a_selected_state_is_independent() -> None:
    state = Running()
    state.attend(values(2, 3), values(2, 3), values(2, 3))
    before = state.total.clone()  # type: ignore[union-attr]
    chosen = state.select(torch.tensor([1, 1, 0]))
    chosen.attend(*[values(3, 1)] * 3)
    assert torch.equal(state.total, before)  # type: ignore[arg-type]
    assert len(state.parts) == 1
    assert chosen.parts[0].shape[0] == 3


def test_what_was_read_cannot_be_taken_back() -> None:
    memory = layer()
    read(memory, values(1, 3))
    memory.crop(0)
    with pytest.raises(ValueError, match="take back 1 of the tokens"):
        memory.crop(-1)


def test_bytes_are_those_of_the_tensors() -> None:
    memory = layer()
    assert memory.bytes() == Bytes(0, 0)
    read(memory, values(2, 3))
    assert memory.bytes() == Bytes(on_device=(2 * 4 + 2 * 3 * 4) * 4, off_device=0)


def test_bytes_of_a_stock_cache(tiny_model: Any) -> None:
    cache = DynamicCache()
    assert cache_bytes(cache) == Bytes(0, 0)
    tiny_model()(torch.ones(1, 5, dtype=torch.long), cache=cache)
    assert cache_bytes(cache) == Bytes(on_device=2 * 2 * 2 * 5 * 8 * 4, off_device=0)
