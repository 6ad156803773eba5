"""What a layer remembers of a text in place of all its keys (`State`), and the `Cache` layer that holds it.

Knows: rows of a batch, padding, tokens seen, bytes, what `generate` asks of a cache. Does not know: any one method.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from broadsheet.attend.rotary import Rotary
from broadsheet.console import InputError


class Bytes(NamedTuple):
    """Bytes of keys and values in a cache, and of what was computed from them."""

    on_device: int
    off_device: int


@dataclass(frozen=True, eq=False)
class Layer:
    """What a method may know of one attention layer of a model."""

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    softcap: float | None
    sliding_window: int | None
    rotary: Rotary

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads


class State(ABC):
    """What one layer remembers of rows that are read together and hold no padding.

    Subclasses keep their tensors in attributes (or lists of tensors), the first axis of each being the rows.

    Attributes:
        layer: the layer it belongs to.
        seen: tokens read so far.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.seen = 0

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens: remember them, count them in `seen`, and give each its attention output.

        Args:
            query: (rows, heads, new, head_dim), before rotary encoding.
            key, value: (rows, kv_heads, new, head_dim), before rotary encoding.

        Returns:
            (rows, heads, new, head_dim).
        """

    def select(self, rows: Tensor) -> Self:
        """A state of these rows, in this order; rows may repeat. Later reading does not touch the old one."""
        chosen = copy.copy(self)
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(chosen, name, held.index_select(0, rows.to(held.device)))
            elif isinstance(held, list):
                setattr(chosen, name, [each.index_select(0, rows.to(each.device)) for each in held])
        return chosen

    def attended(self, tokens: Tensor) -> Tensor | None:
        """With what share of the layer's heads each row's latest token attended to an older one, in [0, 1].

        Args:
            tokens: (rows,), which one: its number, from the first token read.

        Returns:
            (rows,); None where that follows from the distance alone, since nothing is looked up.
        """
        return None

    def bytes(self) -> Bytes:
        """Bytes held, on the model's device unless a subclass keeps some elsewhere."""
        return Bytes(sum(tensor.numel() * tensor.element_size() for tensor in self._tensors()), 0)

    def _tensors(self) -> Iterator[Tensor]:
        for held in vars(self).values():
            if isinstance(held, Tensor):
                yield held
            elif isinstance(held, list):
                yield from held


class KeylessLayer(CacheLayerMixin):
    """A cache layer that holds something else than all keys and values, from which no token can be removed.

    A subclass sets `reader`, what the errors call it, and has `batch_select_indices`.

    Attributes:
        seen: tokens read, padding included: the position of the next one.
        batch_size: rows read.
    """

    is_sliding = False
    is_croppable = False
    reader: str

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seen = 0
        self.batch_size = 0
        self.is_initialized = False

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: the position of the next token."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The padding mask covers all tokens seen and the new ones."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Unbounded."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was read has left its mark on the memory.

        Raises:
            InputError: always, unless there is nothing to remove.
        """
        if tokens_to_remove:
            raise InputError(
                f"got a request to take back {abs(tokens_to_remove)} of the tokens read; expected none with "
                f"{self.reader}: generate without an assistant or prompt lookup, or continue from a copy of the cache"
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue row beam_idx[i]."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.batch_size, device=self.device).repeat_interleave(repeats))

    def offload(self) -> None:
        """Nothing: what is kept off the device is moved by the subclass itself."""

    def prefetch(self) -> None:
        """Nothing, as in `offload`."""


class MemoryLayer(KeylessLayer):
    """A cache layer whose keys and values are kept by a method's `State`s.

    Rows that have had the same padding so far share a state, so that a state never meets padding: a method that is
    right for one text is right for any batch. `update` takes the new keys and values, and `attend`, called by the
    attention function right after it, reads them.

    Args:
        method: what fills it, to compare with what is installed when more is read.
        layer: the layer it belongs to.
        make: a new, empty state.
    """

    def __init__(self, method: Any, layer: Layer, make: Callable[[], State]) -> None:
        super().__init__()
        self.method = method
        self.reader = type(method).__name__
        self.layer = layer
        self._make = make
        # Called with self by `update`; set while the method is installed.
        self.announce: Callable[[MemoryLayer], None] | None = None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._parts: list[tuple[Tensor, State]] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note the batch and its device."""
        self.device, self.dtype = key_states.device, key_states.dtype
        self.batch_size = key_states.shape[0]
        self._parts = [(torch.arange(self.batch_size, device=self.device), self._make())]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take the new keys and values, before rotary encoding; give them back for the attention function.

        Raises:
            InputError: the method is not installed any more.
        """
        if self.announce is None:
            raise InputError(
                f"got a cache that was filled with {self.method} installed; expected it to be installed still"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        self.announce(self)
        return key_states, value_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        """Attention of the new tokens.

        Args:
            query, key, value: as in `State.attend`, of the whole batch.
            real: (batch, new) bool, False at padding; None without any.

        Returns:
            (batch, heads, new, head_dim); zeros at padding.
        """
        if real is None and len(self._parts) == 1:
            return self._parts[0][1].attend(query, key, value)
        if real is None:
            real = torch.ones(query.shape[0], query.shape[2], dtype=torch.bool, device=query.device)
        output = query.new_zeros(*query.shape[:3], value.shape[-1])
        parts: list[tuple[Tensor, State]] = []
        for rows, state in self._parts:
            patterns, which = torch.unique(real[rows], dim=0, return_inverse=True)
            for number, pattern in enumerate(patterns):
                chosen = (which == number).nonzero()[:, 0]
                part = (rows, state) if len(patterns) == 1 else (rows[chosen], state.select(chosen))
                parts.append(part)
                columns = pattern.nonzero()[:, 0]
                if columns.numel():
                    block = (part[0][:, None], slice(None), columns[None])
                    # Advanced indices around a slice put their axes first: (rows, columns, heads, head_dim).
                    given = [tensor[block].transpose(1, 2) for tensor in (query, key, value)]
                    output[block] = part[1].attend(*given).transpose(1, 2)
        self._parts = parts
        return output

    def attended(self, tokens: Tensor) -> Tensor | None:
        """As `State.attended`, of the whole batch: (batch,)."""
        found = torch.full((self.batch_size,), torch.nan)
        for rows, state in self._parts:
            known = state.attended(tokens.to(self.device)[rows])
            if known is None:
                return None
            found[rows.cpu()] = known.float().cpu()
        return found

    @property
    def states(self) -> list[State]:
        """The states of the batch's rows, one for each padding that occurs."""
        return [state for _, state in self._parts]

    def bytes(self) -> Bytes:
        """Bytes held, on the model's device and off it."""
        held = [state.bytes() for state in self.states]
        return Bytes(sum(each.on_device for each in held), sum(each.off_device for each in held))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if not self.is_initialized:
            return
        indices = indices.to(self.device)
        parts = []
        for rows, state in self._parts:
            new, old = (indices[:, None] == rows[None]).nonzero(as_tuple=True)
            if new.numel():
                parts.append((new, state.select(old)))
        self._parts = parts
        self.batch_size = len(indices)


def cache_bytes(cache: Cache) -> Bytes:
    """Bytes a cache holds, ours or a stock one.

    Example:
        >>> from transformers import DynamicCache
        >>> cache_bytes(DynamicCache())
        Bytes(on_device=0, off_device=0)
    """
    on_device = off_device = 0
    for layer in cache.layers:
        if hasattr(layer, "bytes"):
            held = layer.bytes()
            on_device, off_device = on_device + held.on_device, off_device + held.off_device
        elif layer.is_initialized:
            on_device += sum(tensor.numel() * tensor.element_size() for tensor in (layer.keys, layer.values))
    return Bytes(on_device, off_device)
