"""Special tokens at the end of a row: rows of the embedding table that are trained apart, and pooling over them.

Knows tokens, embedding tables and masks. Does not know how such tokens are trained, or which mask a paper gives them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn

from broadsheet.console import InputError
from broadsheet.embed.modules.bottleneck import (
    PADDING,
    PREFIX,
    SPECIAL,
    allowed_positions,
    forward_states,
    position_ids,
)
from broadsheet.embed.modules.encoder import Attention, CausalEncoder
from broadsheet.models.adapters import merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SpecialEncoder(CausalEncoder):
    """A causal encoder with k special tokens at the end of each row, and a paper's mask (`hidden`) over such rows.

    With k > 1 such rows get a mask of four dimensions, which flash attention cannot take; a single token at the end of
    a row is read with plain causal attention.

    Args:
        model, tokenizer, settings: as of `CausalEncoder`; `append` names the special tokens.

    Attributes:
        learned: (k, hidden), what training has added to the special tokens' embeddings. A parameter of its own, so that
            they are trained while an adapter leaves the model's own weights alone; `save` adds it to the model's table.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> None:
        super().__init__(model, tokenizer, **settings)
        if not self.append:
            raise InputError("got no special tokens to append; expected one at least")
        table = model.get_input_embeddings()
        self.learned = nn.Parameter(torch.zeros_like(table.weight[: len(self.append)]))
        table.register_forward_hook(self._add_learned)

    def hidden(self, segments: Tensor) -> Tensor:
        """The paper's mask, see `bottleneck.Hidden`."""
        raise NotImplementedError

    def _add_learned(self, table: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        special = args[0][..., None] == torch.tensor(self._append_ids, device=output.device)
        return output + special.to(self.learned.dtype) @ self.learned

    def settle(self) -> None:
        """Add `learned` to the model's own table and set it to zero; no result changes.

        The output layer's rows of the special tokens change too where it shares the table.
        """
        with torch.no_grad():
            self.model.get_input_embeddings().weight[self._append_ids] += self.learned
            self.learned.zero_()

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, attention: Attention | None = None
    ) -> Tensor:
        """As `CausalEncoder.states`."""
        special = torch.isin(input_ids, torch.tensor(self._append_ids, device=input_ids.device))
        given = attention_mask is not None and attention_mask.ndim == 4
        causal = (attention or self.attention) == "causal"
        if given or not causal or len(self._append_ids) < 2 or not bool(special.any()):
            return super().states(input_ids, attention_mask, attention=attention)
        segments = torch.where(special, SPECIAL, PREFIX)
        if attention_mask is not None:
            segments = torch.where(attention_mask.bool(), segments, PADDING)
        batch = {"input_ids": input_ids, "attention_mask": allowed_positions(segments, self.hidden)}
        return forward_states(self, batch | {"position_ids": position_ids(segments)})

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """As `CausalEncoder.save`, the whole model: an adapter, which would lack the new rows, is merged first."""
        merge(self.model)
        self.settle()
        super().save(output_path, *args, safe_serialization=safe_serialization, **kwargs)


class LastTokens(Module):
    """The last k tokens' vectors as one: their mean, or one after the other.

    Args:
        width: of a token's vector.
        k: tokens, counted from the end of each text.
        mode: `"mean"`, or `"concat"`, which makes vectors k times as long.

    Raises:
        InputError: k below 1, or another mode.
    """

    config_keys: ClassVar[list[str]] = ["width", "k", "mode"]  # type: ignore[misc]

    def __init__(self, width: int, k: int, mode: Literal["mean", "concat"] = "mean") -> None:
        super().__init__()
        if k < 1 or mode not in ("mean", "concat"):
            raise InputError(f"got {k} tokens and mode {mode!r}; expected 1 or more, and mean or concat")
        self.width, self.k, self.mode = width, k, mode

    def get_embedding_dimension(self) -> int:
        """Width of a text's vector."""
        return self.width * self.k if self.mode == "concat" else self.width

    def pool(self, special: Tensor) -> Tensor:
        """(batch, k, width) to (batch, dimensions)."""
        return special.mean(1) if self.mode == "mean" else special.flatten(1)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`."""
        real = features["attention_mask"].bool()
        from_end = real.flip(1).cumsum(1).flip(1)
        vectors = features["token_embeddings"]
        last = vectors[real & (from_end <= self.k)].view(len(vectors), self.k, -1)
        features["sentence_embedding"] = self.pool(last)
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the settings."""
        self.save_config(output_path)
