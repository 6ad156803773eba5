"""A causal LM cut down to its first layers: a smaller backbone of the same family, without another download.

Knows: decoder layers, and how a folder records the whole base. Does not know: why a smaller model is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.layers import decoder_layers, keep_layers
from broadsheet.models import adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class FirstLayers(CausalEncoder):
    """A `CausalEncoder` whose model keeps the first `keep` layers, and its final norm; the others are removed.

    The model given is changed: its memory and time are those of the smaller model. An adapter trained on it is saved
    beside the name of the whole base, and the layers are removed again when it is loaded.

    Args:
        keep: how many layers; 0 or all of them changes nothing. Others: see `CausalEncoder`.

    Raises:
        InputError: the model has fewer layers.

    Example:
        embedder("default", "last-token", encoder=FirstLayers, keep=12)
    """

    config_keys: ClassVar[list[str]] = [*CausalEncoder.config_keys, "keep"]  # type: ignore[misc]

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, keep: int = 0, **settings: Any
    ) -> None:
        depth = len(decoder_layers(model))
        if not 0 <= keep <= depth:
            raise InputError(f"got {keep} layers to keep; the model has {depth}")
        self._whole: str | None = None
        if 0 < keep < depth:
            # An adapter's folder is checked against the base as it is loaded, before layers are removed.
            self._whole = models.fingerprint(model) if not adapters.has_adapter(model) else _recorded(model)
            keep_layers(model, keep)
        super().__init__(model, tokenizer, **settings)
        self.keep = keep

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """As `CausalEncoder.save`; an adapter's record names the whole base, and its layers."""
        if self._whole is not None and adapters.has_adapter(self.model):
            base: Any = self.model
            base.base_ = {**base.base_, "fingerprint": self._whole, "layers": self.keep}
        super().save(output_path, *args, **kwargs)


def _recorded(model: Any) -> str:
    return str(model.base_["fingerprint"])


def parameters(model: PreTrainedModel) -> tuple[int, int]:
    """How many parameters the model has, and how many besides its embeddings and head; adapters are left out."""
    tables = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    sizes = {
        id(weight): weight.numel() for name, weight in model.named_parameters() if "lora_" not in name
    }  # tied weights are named once
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key not in tables)
