"""What an embedder is known by in files that outlive it.

Knows: modules, their settings and weights. Does not know: texts.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from broadsheet import cache, models

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

_NAMES = ("spec", "model_name_or_path")  # where the weights lay, which changes no vector


def identity(embedder: SentenceTransformer) -> dict[str, Any]:
    """What an embedder is recorded by, as JSON values.

    Returns:
        `fingerprint`: 16 hex digits over modules, settings and (a sample of) weights, the same in every process and on
        every device; `dimensions` of a vector; `model`: the name it was loaded by, if known; `similarity`; `modules`:
        a list of `{"module": class, "settings": {…}}`.

    Example:
        identity(embedder("default"))["fingerprint"]
    """
    parts = [{"module": type(part).__name__, "settings": _settings(part)} for part in embedder]
    dimensions = embedder.get_embedding_dimension()
    if dimensions is None:
        dimensions = len(embedder.encode("a"))
    weights = [_weights(part) for part in embedder]
    return {
        "fingerprint": cache.fingerprint([parts, weights, dimensions]),
        "dimensions": int(dimensions),
        "model": next((name for part in embedder if (name := getattr(part, "spec", ""))), None),
        "similarity": str(embedder.similarity_fn_name),
        "modules": parts,
    }


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's settings, names of places left out."""
    settings: Any = getattr(module, "get_config_dict", dict)
    return {key: _plain(value) for key, value in settings().items() if key not in _NAMES}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _weights(module: nn.Module) -> str:
    """Names a module by its weights: a transformer by the usual sample of them, another module by all."""
    from transformers import PreTrainedModel

    model = getattr(module, "model", None)
    if isinstance(model, PreTrainedModel):
        return models.fingerprint(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
