"""The settings of a loss, as a run records them."""

from __future__ import annotations

import inspect
from typing import Any


def constructor_settings(loss: Any, **given: Any) -> dict[str, Any]:
    """What a loss was constructed with, by the names of its constructor's arguments; the model itself is left out.

    Args:
        given: values of arguments that are no attributes of the same name.
    """
    names = [name for name in inspect.signature(type(loss)).parameters if name not in ("model", "embedder")]
    return {name: given[name] if name in given else getattr(loss, name) for name in names}
