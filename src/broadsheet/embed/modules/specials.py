"""Special tokens that carry a text: adding them to a model, reading them, pooling them.

Knows tokens, embedding rows and generation settings. Does not know how such tokens are trained (`gem`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn

from broadsheet.console import InputError
from broadsheet.embed.modules.bottleneck import PADDING, PREFIX, SPECIAL, bottleneck_mask, positions, read_states
from broadsheet.embed.modules.encoder import Attention, CausalEncoder
from broadsheet.models.adapters import merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Init = Literal["mean", "end"]
_NOISE = 0.1  # of the spread of embeddings: new tokens must differ from one another


class SpecialEncoder(CausalEncoder):
    """A causal encoder whose appended tokens do not see each other: each reads the text for itself.

    With several such tokens, rows that hold any of them get a mask of four dimensions, which flash attention cannot
    take; with one, a row is read as ever.

    Args:
        as of `CausalEncoder`; `append` names the special tokens.

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

    def _add_learned(self, table: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        special = args[0][..., None] == torch.tensor(self._append_ids, device=output.device)
        return output + special.to(self.learned.dtype) @ self.learned

    def settle(self) -> None:
        """Move what was learned into the model's own table; nothing computes differently afterwards.

        The output layer's rows of the special tokens move along where it shares the table.
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
        batch = {"input_ids": input_ids, "attention_mask": bottleneck_mask(segments)}
        return read_states(self, batch | {"position_ids": positions(segments)})

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


def check_init(init: str) -> None:
    """Raises InputError unless new rows can begin so."""
    if init not in get_args(Init):
        raise InputError(f"got init {init!r}; expected one of {', '.join(get_args(Init))}")


def add_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[str],
    *,
    init: Init = "mean",
    multiple: int = 64,
    seed: int = 0,
) -> list[int]:
    """Add special tokens to a tokenizer and rows for them to a model, both in place; generation never gives them.

    Their embeddings begin as the mean of all others (or as the end-of-text token's, with `init="end"`) plus a tenth of
    the others' spread as noise; an output layer of its own gets the mean row. All other rows stay as they are.

    Args:
        multiple: the vocabulary is filled up to a multiple of it, which GPUs like; what fills it is suppressed too.
        seed: of the noise.

    Returns:
        The tokens' ids.

    Raises:
        InputError: the tokenizer has one of them already, or another `init`.
    """
    from transformers import AddedToken

    check_init(init)
    if known := [token for token in tokens if token in tokenizer.get_vocab()]:
        raise InputError(f"the tokenizer has {', '.join(known)} already; load that folder as it is, or name others")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids: list[int] = [int(i) for i in tokenizer.convert_tokens_to_ids(list(tokens))]
    before = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= before:
        with torch.random.fork_rng():
            model.resize_token_embeddings(max(ids) + 1, pad_to_multiple_of=multiple, mean_resizing=False)
    after = model.get_input_embeddings().weight.shape[0]
    new = sorted({*ids, *range(before, after)})
    old = torch.ones(after, dtype=torch.bool)
    old[new] = False
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        spread, mean = torch.std_mean(weight[old].float(), 0)
        noise = torch.randn(len(new), weight.shape[1], generator=torch.Generator().manual_seed(seed))
        start = weight[tokenizer.eos_token_id].float() if init == "end" else mean
        weight[new] = (start + _NOISE * spread * noise.to(spread)).to(weight)
        head = model.get_output_embeddings()
        if head.weight is not weight:
            head.weight[new] = head.weight[old].float().mean(0).to(head.weight)
        if getattr(head, "bias", None) is not None:
            head.bias[new] = head.bias[old].mean()
    suppressed = model.generation_config.suppress_tokens or []
    model.generation_config.suppress_tokens = sorted({*suppressed, *new})
    return ids
