"""The base of the stage: a method is installed around a model and removed again, and the model is unchanged afterwards.

There are two kinds of method, one before and one after the rotary encoding (RoPE):
- `PreRopeAttention` reads queries and keys *before* RoPE and decides what a layer remembers: a `State` for each layer,
  which places keys at new positions, drops them or looks them up. The base moves RoPE out of the model and makes
  caches of states.
- `PostRopeAttention` reads them *after* RoPE, leaves the model's cache as it is, and only computes attention in another
  way.

Knows: how transformers finds attention functions, mask functions and caches. Does not know: any one method.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask

from broadsheet.attend.layout import ModelLayout, consecutive, find_decoder, padding_mask, read_layout, swap
from broadsheet.attend.memory import Layer, MemoryLayer, State
from broadsheet.attend.rotary import IdentityRotary, Rotary
from broadsheet.console import InputError

_PRE_ROPE, _POST_ROPE = "broadsheet_pre_rope", "broadsheet_post_rope"
_INSTALLED: WeakKeyDictionary[nn.Module, _Installation] = WeakKeyDictionary()  # by decoder
_LAYERS: WeakKeyDictionary[nn.Module, _Installation] = WeakKeyDictionary()  # by attention module


class Attention(ABC):
    """Changes how a model attends. A method is a dataclass whose fields are the paper's hyperparameters.

    Attributes:
        needs_rotary: whether it moves the model's rotary encoding, so that the model has to have one.

    Example:
        >>> with LMInfinite(n_local=2048)(model):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """

    needs_rotary: ClassVar[bool] = True

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """Install it for the length of a `with`; the model is unchanged afterwards, whatever happened inside."""
        self.install(model)
        try:
            yield model
        finally:
            self.remove(model)

    def install(self, model: PreTrainedModel) -> Self:
        """Install it until `remove`.

        Raises:
            InputError: the model is not supported, each of its layers has a sliding window of its own (a method leaves
                those as they are), a hyperparameter does not suit it, or a method is installed already (methods replace
                the same function, so they do not nest).
        """
        decoder = find_decoder(model)
        if decoder in _INSTALLED:
            raise InputError(
                f"got a model with {_INSTALLED[decoder].method} installed; expected that to be removed first"
            )
        layout = read_layout(model, rotary=self.needs_rotary)
        if all(layer.fields["sliding_window"] for layer in layout.layers):
            raise InputError(
                f"each layer of {type(model).__name__} has a sliding window of its own, which {type(self).__name__} "
                "leaves as it is; expected a model with layers that attend to the whole text"
            )
        self.check(layout)
        with ExitStack() as undo:
            undo.callback(_INSTALLED.pop, decoder, None)
            _INSTALLED[decoder] = self._install(layout, undo)
            _INSTALLED[decoder].undo = undo.pop_all()
        return self

    def remove(self, model: PreTrainedModel | None = None) -> None:
        """Remove it from `model`, or from the one model it is installed on.

        Raises:
            InputError: it is not installed, or on several models and none is named.
        """
        where = [decoder for decoder, installed in _INSTALLED.items() if installed.method is self]
        if model is not None:
            where = [decoder for decoder in where if decoder is find_decoder(model)]
        if len(where) != 1:
            raise InputError(f"{self} is installed on {len(where)} such models; expected one to remove it from")
        _INSTALLED[where[0]].undo.close()

    def check(self, layout: ModelLayout) -> None:  # noqa: B027 - most methods suit every model
        """Refuse, by an InputError, a model that the hyperparameters do not suit."""

    @abstractmethod
    def _install(self, layout: ModelLayout, undo: ExitStack) -> _Installation: ...


class PreRopeAttention(Attention):
    """A method that works before rotary encoding: it decides what a layer remembers, and at which positions.

    Its layers read un-rotated queries and keys through `State`s, one for each layer and each padding of rows; the cache
    layer that holds them is a `MemoryLayer`. Layers of the model that have a sliding window of their own keep it, in
    constant space, and the method works on the others. Any cache handed to the model while the method is installed
    (`generate`'s own, or an empty `DynamicCache`) becomes the method's, and can be read further later under an equal
    method.
    """

    @abstractmethod
    def state(self, layer: Layer) -> State:
        """A new, empty state of a layer without a sliding window."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """The longest distance, in tokens, at which a key is placed."""

    @property
    @abstractmethod
    def most_keys(self) -> int:
        """The most keys that a query attends to, itself included, however long the text."""

    def check(self, layout: ModelLayout) -> None:
        """Refuse a reach beyond the positions that the model was trained on."""
        if layout.context and self.reach > layout.context:
            raise InputError(
                f"{type(self).__name__} places keys up to {self.reach} tokens away, but the model was trained on "
                f"{layout.context} positions; expected a window of at most that"
            )

    def cache(self, model: PreTrainedModel) -> Cache:
        """An empty cache to hand to a model on which this method is installed.

        Raises:
            InputError: it is not installed on `model`.
        """
        installed = _INSTALLED.get(find_decoder(model))
        if not isinstance(installed, _PreRopeInstallation) or installed.method is not self:
            raise InputError(f"expected {self} to be installed on the model")
        return Cache(layers=installed.layers())

    def _install(self, layout: ModelLayout, undo: ExitStack) -> _PreRopeInstallation:
        assert layout.rotary is not None  # asked for by `needs_rotary`
        rotaries = {
            kind: Rotary(layout.rotary, layout.apply, kind, min(self.reach, layout.context or self.reach))
            for kind in {layer.layer_type for layer in layout.layers}
        }
        installed = _PreRopeInstallation(self, layout, rotaries)
        _enter(installed, layout, _PRE_ROPE, undo)
        swap(undo, layout.rotary_owner, "rotary_emb", IdentityRotary(layout.rotary))
        hook = layout.decoder.register_forward_pre_hook(installed.before, with_kwargs=True)
        undo.callback(hook.remove)
        undo.callback(installed.forget)
        return installed


class PostRopeAttention(Attention):
    """A method that works after rotary encoding: it reads rotated keys, does not change the model's cache, and only
    computes attention in another way. The model may encode positions as it likes."""

    needs_rotary: ClassVar[bool] = False

    @abstractmethod
    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        """Attention of a layer.

        Args:
            module: the model's attention module.
            query: (batch, heads, queries, head_dim), rotated.
            key, value: (batch, kv_heads, keys, head_dim), rotated, the queries' own among them.
            attention_mask: (batch, 1, queries, keys) bool, True where visible; None when that is plain causality.
            kwargs: `scaling`, `softcap`, `sliding_window`, as the model gives them.

        Returns:
            (batch, queries, heads, head_dim), as transformers' attention functions do.
        """

    def _install(self, layout: ModelLayout, undo: ExitStack) -> _Installation:
        installed = _PostRopeInstallation(self)
        _enter(installed, layout, _POST_ROPE, undo)
        return installed


class _Installation:
    """A method on a model, and how to remove it."""

    undo: ExitStack

    def __init__(self, method: Attention) -> None:
        self.method = method

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        raise NotImplementedError


class _PostRopeInstallation(_Installation):
    method: PostRopeAttention

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.method.attend(*args, **kwargs)


class _PreRopeInstallation(_Installation):
    """A `PreRopeAttention` on a model: turns the model's caches into the method's and hands new keys to them."""

    method: PreRopeAttention

    def __init__(self, method: PreRopeAttention, layout: ModelLayout, rotaries: dict[str | None, Rotary]) -> None:
        super().__init__(method)
        self._layers = [
            Layer(**layer.fields, rotary=rotaries[layer.layer_type] if layer.has_positions else Rotary(None, None))
            for layer in layout.layers
        ]
        self._pending: MemoryLayer | None = None
        self._announcing: WeakSet[MemoryLayer] = WeakSet()

    def layers(self) -> list[Any]:
        """Empty cache layers."""
        return [self._layer(layer) for layer in self._layers]

    def before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Check what the decoder is about to read: its cache becomes the method's."""
        self._pending = None
        if args:
            kwargs |= zip(inspect.signature(decoder.forward).parameters, args, strict=False)
        read = kwargs.get("inputs_embeds") if kwargs.get("input_ids") is None else kwargs["input_ids"]
        if read is not None and 0 in read.shape[:2]:
            raise InputError("got no tokens to read; expected a prompt of at least one")
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() > 2:
            raise InputError(
                f"got an attention mask of {mask.dim()} dimensions; expected a padding mask (batch, length)"
            )
        if not consecutive(kwargs.get("position_ids"), mask):
            raise InputError("got position_ids that jump; expected one text in each row, not several packed into one")
        if kwargs.get("output_attentions"):
            raise InputError("got output_attentions=True; expected False: no matrix of attention weights is made here")
        cache = kwargs.get("cache")
        if cache is None:
            wanted = kwargs.get("use_cache")
            if decoder.config.get_text_config(decoder=True).use_cache if wanted is None else wanted:
                kwargs["cache"] = Cache(layers=self.layers())
        else:
            self._take_over(cache)
        return (), kwargs

    def _take_over(self, cache: Any) -> None:
        """Make a cache the method's, or check that it is."""
        ours = isinstance(cache, Cache) and cache.layers and all(isinstance(each, MemoryLayer) for each in cache.layers)
        if ours:
            if any(layer.method != self.method for layer in cache.layers) or len(cache.layers) != len(self._layers):
                raise InputError(
                    f"got a cache that was filled with {cache.layers[0].method} installed; expected {self.method}'s"
                )
            for layer in cache.layers:
                layer.announce = self._announce
                self._announcing.add(layer)
            return
        stock = isinstance(cache, Cache) and all(
            type(each) in (DynamicLayer, DynamicSlidingWindowLayer) for each in cache.layers
        )
        if not stock or cache.offloading:
            raise InputError(f"got a {type(cache).__name__}; expected an empty DynamicCache, or none")
        if cache.get_seq_length():
            raise InputError("got a cache that was filled without the method; expected an empty one, or none")
        cache.layers = self.layers()
        cache.layer_class_to_replicate = None

    def _layer(self, layer: Layer) -> MemoryLayer:
        from broadsheet.attend.kernels.window import WindowState

        made = MemoryLayer(
            self.method,
            layer,
            (lambda: WindowState(layer, layer.sliding_window))  # type: ignore[arg-type]
            if layer.sliding_window
            else (lambda: self.method.state(layer)),
        )
        made.announce = self._announce
        self._announcing.add(made)
        return made

    def _announce(self, layer: MemoryLayer) -> None:
        self._pending = layer

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        if kwargs.get("dropout"):
            raise InputError("got a model in training mode with attention dropout; expected model.eval()")
        memory, self._pending = self._pending, None
        if memory is None:  # read without a cache
            memory = self._layer(next(layer for layer in self._layers if layer.index == module.layer_idx))
            memory.update(key, value)
            self._pending = None
        real = None
        if attention_mask is not None:
            if attention_mask.shape[-1] != memory.seen:
                raise InputError(
                    f"got an attention mask over {attention_mask.shape[-1]} tokens; expected one over all "
                    f"{memory.seen} that were read, the cached ones included"
                )
            real = attention_mask[:, -query.shape[2] :]
            real = None if bool(real.all()) else real
        return memory.attend(query, key, value, real).transpose(1, 2).contiguous()

    def forget(self) -> None:
        """Tell caches that outlive the installation that they cannot be read further."""
        for layer in self._announcing:
            layer.announce = None
        self._announcing.clear()


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """The attention function of every installed method: ask the one that is installed on this module."""
    return _LAYERS[module].attend(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(_PRE_ROPE, _dispatch)
AttentionInterface.register(_POST_ROPE, _dispatch)
AttentionMaskInterface.register(_PRE_ROPE, padding_mask)
AttentionMaskInterface.register(_POST_ROPE, sdpa_mask)


def _enter(installed: _Installation, layout: ModelLayout, name: str, undo: ExitStack) -> None:
    """Send the attention of every layer to `installed`."""
    configs = {id(layer.module.config): layer.module.config for layer in layout.layers}
    for config in (layout.decoder.config, layout.decoder.config.get_text_config(decoder=True)):
        configs[id(config)] = config
    for config in configs.values():
        swap(undo, config, "_attn_implementation", name)
    for layer in layout.layers:
        _LAYERS[layer.module] = installed
        undo.callback(_LAYERS.pop, layer.module, None)
