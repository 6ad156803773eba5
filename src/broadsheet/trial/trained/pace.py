"""The pace of training: single steps, as `training.fit` makes them, to be timed in turns.

Knows: models, losses, AdamW. Does not know: clocks, trials, data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from broadsheet.models.attention import short_attention
from broadsheet.training.weights import autocast_dtype


def stepper(model: Any, loss: Callable[[Any, Mapping[str, Tensor]], Tensor]) -> Callable[[Mapping[str, Tensor]], None]:
    """A function that makes one step of the model's training on a batch, and returns when it is done.

    Args:
        model: is changed by it.
        loss: of a model on a batch; computed in bfloat16 where the device computes in it.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as a Trainer's is
    dtype = autocast_dtype("auto", model.device)

    def step(batch: Mapping[str, Tensor]) -> None:
        with short_attention(model):
            with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
                found = loss(model, {name: each.to(model.device) for name, each in batch.items()})
            found.backward()
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return step
