"""The decoder layers of a model: found, read while a forward pass runs, left early, or cut off.

Knows transformers' decoder models. Does not know tokens, pooling, or why a layer is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from broadsheet.console import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of any causal LM: the first list of modules with as many entries as its config has layers.

    Raises:
        InputError: none is found.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not found:
        raise InputError(f"found no list of {count} layers in a {type(model).__name__}; it is no decoder we can read")
    return found[0]


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Remove all layers after the first `count`, in place."""
    del decoder_layers(model)[count:]
    config: Any = model.config.get_text_config()
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


class LeftEarly(BaseException):
    """Raised in front of a layer that need not run. Not an `Exception`, so that no model catches it."""


@contextmanager
def leave_after(layers: nn.ModuleList, count: int | None) -> Iterator[list[Tensor]]:
    """Inside, a forward pass ends with `LeftEarly` after `count` layers; the list then holds their output.

    With `count` None, or all layers, the pass runs to its end and the list stays empty.
    """
    left: list[Tensor] = []
    if count is None or count >= len(layers):
        yield left
        return

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        left.append(_hidden_states(args, kwargs))
        raise LeftEarly

    handle = layers[count].register_forward_pre_hook(leave, with_kwargs=True)
    try:
        yield left
    finally:
        handle.remove()


@contextmanager
def layer_inputs(
    layers: nn.ModuleList, wanted: Iterable[int], reduce: Callable[[Tensor], Tensor] = lambda states: states
) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass records the input of each wanted layer: the output of that many layers (0: embeddings).

    Args:
        wanted: 0 to one less than the number of layers.
        reduce: of (batch, length, hidden), so that only what is needed is kept.
    """
    found: dict[int, Tensor] = {}

    def recorder(number: int) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[number] = reduce(_hidden_states(args, kwargs))

        return record

    handles = [layers[number].register_forward_pre_hook(recorder(number), with_kwargs=True) for number in set(wanted)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A decoder layer's first argument, however it was passed."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
