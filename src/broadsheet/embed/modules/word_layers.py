"""Word vectors of every layer of a model from one pass, and a model cut after its best layer.

Knows: causal encoders and other transformers, subword means. Does not know: word lists, training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.layers import decoder_layers, keep_layers, layer_inputs
from broadsheet.models import halve_on_oom

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

    Floats = NDArray[np.float32]


def depth(model: SentenceTransformer) -> int:
    """How many layers the model has."""
    return len(decoder_layers(_transformer(model)))


def layer_vectors(model: SentenceTransformer, words: Sequence[str], *, batch_size: int = 64) -> list[Floats]:
    """The pooled vectors of the embedding layer and of each layer's output, from one forward pass of each batch.

    The last one is the model's output, after a final norm if it has one.

    Args:
        model: a transformer followed by one pooling module.
        words: short texts.

    Returns:
        (words, width) arrays, one more than the model has layers: the index of each is its layer.
    """
    order = sorted(range(len(words)), key=lambda i: -len(words[i]))
    parts = decoder_layers(_transformer(model))
    pooling = cast(Any, model[1])
    found: list[list[Any]] = [[None] * len(words) for _ in range(len(parts) + 1)]

    def read(batch: Sequence[int]) -> list[list[Floats]]:
        features = model.preprocess([words[i] for i in batch])
        given = {name: part.to(model.device) if isinstance(part, Tensor) else part for name, part in features.items()}
        with torch.inference_mode(), layer_inputs(parts, range(len(parts))) as states:
            states[len(parts)] = cast(Any, model[0])(dict(given))["token_embeddings"]
            pooled = [
                pooling({"token_embeddings": states[layer], "attention_mask": given["attention_mask"]})
                for layer in range(len(parts) + 1)
            ]
        layers = [each["sentence_embedding"].float().cpu().numpy() for each in pooled]
        return [[layer[i] for layer in layers] for i in range(len(batch))]

    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for i, vectors in zip(batch, halve_on_oom(read, batch), strict=True):
            for layer, vector in zip(found, vectors, strict=True):
                layer[i] = vector
    return [np.stack(layer) for layer in found]


def cut_behind(model: SentenceTransformer, layer: int) -> SentenceTransformer:
    """Make `model` return the output of its layer `layer`, in place; later layers are not run.

    Layer 0 is the embedding layer. A causal encoder keeps the others, for generation; of other transformers
    they are removed.

    Raises:
        InputError: the model has no such layer.
    """
    total = depth(model)
    if not 0 <= layer <= total:
        raise InputError(f"got layer {layer}; expected one of 0 to {total}")
    first = model[0]
    if isinstance(first, CausalEncoder):
        first.layer = layer
    elif layer < total:
        keep_layers(_transformer(model), layer)
    return model


def _transformer(model: SentenceTransformer) -> PreTrainedModel:
    first = model[0]
    found = first.model if isinstance(first, CausalEncoder) else model.transformers_model
    if found is None:
        raise InputError(f"the first module is a {type(first).__name__}; layers are read off a transformer")
    return cast("PreTrainedModel", found)
