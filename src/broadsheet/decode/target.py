"""The target model as a loop needs it: read a root and its draft in one forward pass, keep what was accepted.

Knows: causal LMs of transformers, their caches, masks and positions. Does not know: where drafts come from, generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from broadsheet.console import InputError
from broadsheet.decode.draft import Draft
from broadsheet.models.attention import is_sdpa

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

_TREE_ATTENTION = ("sdpa", "eager")  # those that take a 4-D mask as it is
# Models, with their attention functions, that were seen to honour a tree mask.
_honest: WeakKeyDictionary[PreTrainedModel, set[str]] = WeakKeyDictionary()


def check_model(model: PreTrainedModel, *, tree: bool) -> None:
    """Check that the model can verify drafts, before anything is computed.

    Args:
        tree: whether drafts branch; a chain needs neither a tree mask nor positions of its own.

    Raises:
        InputError: it is no decoder, its cache cannot drop rejected tokens, or its attention cannot take a tree mask.
    """
    import inspect

    from transformers import DynamicCache

    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise InputError(f"{name} is an encoder-decoder; drafts are verified by decoder-only models")
    if not model._supports_default_dynamic_cache():
        raise InputError(f"{name} keeps a state that cannot drop rejected tokens; use a model of full attention")
    check_cache(DynamicCache(config=config), name)
    if not tree:
        return
    attention = _attention(model)
    if attention not in _TREE_ATTENTION:
        raise InputError(
            f"{name} runs with attention {attention!r}, which cannot take a tree mask; "
            f"load it with attn_implementation={' or '.join(map(repr, _TREE_ATTENTION))}, or draft a chain (chain=True)"
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(f"{name} takes no position_ids, which the nodes of a tree need; draft a chain (chain=True)")


def _attention(model: PreTrainedModel) -> str:
    """The name of the model's attention; its quick form for short texts takes the masks of "sdpa"."""
    name = str(model.config.get_text_config(decoder=True)._attn_implementation)
    return "sdpa" if is_sdpa(name) else name


def check_cache(cache: Any, owner: str = "generate") -> None:
    """Check that rejected tokens can be dropped from a cache.

    Raises:
        InputError: there is none, or one of its layers is of another kind than full attention that grows.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if cache is None:
        raise InputError(f"{owner} came without a cache; leave use_cache on")
    kinds = {type(layer) for layer in cache.layers} - {DynamicLayer}
    if not isinstance(cache, DynamicCache) or kinds or cache.offloading:
        found = sorted(kind.__name__ for kind in kinds) or [
            "offloaded layers" if cache.offloading else type(cache).__name__
        ]
        raise InputError(
            f"{owner} keeps a cache of {', '.join(found)}, which cannot drop rejected tokens; "
            "expected a DynamicCache of full-attention layers"
        )


class TargetModel:
    """A model and its cache in the middle of generating one sequence.

    Args:
        cache: what the model has read, all but the root.
        padding: (1, P) attention mask of the prompt, None without padding.
        position: the root's position; None for models that count for themselves.
        tree: whether drafts branch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        padding: Tensor | None,
        position: int | None,
        *,
        tree: bool,
    ) -> None:
        self.model = model
        self.cache = cache
        self.position = position
        self.tree = tree
        self.attention = _attention(model)
        self.length = int(cache.get_seq_length())
        self._padding = None if padding is None else padding.bool()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device

    def read(self, root: int, draft: Draft) -> Tensor:
        """Logits (n + 1, vocabulary) of the token after the root and after each of the draft's n nodes.

        The cache then holds all n + 1 tokens, until `keep`.
        """
        inputs: dict[str, Any] = {"input_ids": torch.tensor([[root, *draft.tokens]], device=self.device)}
        if self.position is not None:
            positions = [self.position, *(self.position + depth for depth in draft.depths())]
            inputs["position_ids"] = torch.tensor([positions], device=self.device)
        mask = self._tree_mask(draft) if self.tree and len(draft) else self._row_mask(1 + len(draft))
        if mask is not None:
            inputs["attention_mask"] = mask
        return self.model(**inputs, cache=self.cache, use_cache=True, return_dict=True).logits[0]

    def keep(self, nodes: Sequence[int], size: int) -> None:
        """Drop from the cache what the last `read` of `size` draft tokens added, but for the root and `nodes`.

        Args:
            nodes: a path down from the root.
        """
        kept = len(nodes)
        if list(nodes) != list(range(kept)):  # else they are in place already
            start = self.length + 1
            rows = torch.tensor(nodes) + start
            for layer in self.cache.layers:
                for states in (layer.keys, layer.values):
                    states[..., start : start + kept, :] = states[..., rows.to(states.device), :]
        self.cache.crop(kept - size)
        self.length += 1 + kept
        if self.position is not None:
            self.position += 1 + kept

    def forget(self, tokens: int) -> None:
        """Drop the last `tokens` of the cache: a reading that was only a trial."""
        self.cache.crop(-tokens)

    def check_tree(self) -> None:
        """Check, once for each model, that it honours a tree mask: a branch reads as it would alone.

        Raises:
            InputError: it does not; biases that depend on a key's place in the cache, such as ALiBi's, do not.
        """
        known = _honest.setdefault(self.model, set())
        if self.attention in known:
            return
        branches = Draft.from_paths([[1, 2], [3, 4]])
        together = self.read(0, branches)[[3, 4]].float()
        self.forget(5)
        alone = self.read(0, Draft.from_paths([[3, 4]]))[2].float()
        self.forget(3)
        # Another order of additions moves logits by far less than another context does.
        allowed = 1e-3 if self.model.dtype == torch.float32 else 5e-2
        if (together[1] - alone).norm() > allowed * (together[0] - alone).norm():
            raise InputError(
                f"{type(self.model).__name__} does not honour a tree mask (its attention depends on a token's place in "
                "the cache); draft a chain (chain=True)"
            )
        known.add(self.attention)

    def _tree_mask(self, draft: Draft) -> Tensor:
        """(1, 1, n + 1, cache + n + 1): the whole prefix, and above it each node's ancestors and itself."""
        rows = 1 + len(draft)
        mask = torch.ones(1, 1, rows, self.length + rows, dtype=torch.bool)
        mask[0, 0, :, self.length :] = torch.from_numpy(draft.mask())
        mask = mask.to(self.device)
        if self._padding is not None:
            mask[..., : self._padding.shape[1]] &= self._padding
        if self.attention == "sdpa":
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    def _row_mask(self, rows: int) -> Tensor | None:
        """(1, cache + rows) as `generate` gives it, for steps that the model masks itself."""
        if self._padding is None:
            return None
        new = self.length + rows - self._padding.shape[1]
        return torch.cat([self._padding, self._padding.new_ones(1, new)], 1).long()
