"""Single steps of training: what they change is what AdamW changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from broadsheet.trial.trained import pace
from broadsheet.trial.trained.pace import stepper


class Line(nn.Linear):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__(2, 1, bias=False)
        self.weight.data.fill_(0.5)

    @property
    def device(self) -> torch.device:
        return self.weight.device


def test_a_step_is_adamws_and_forgets_the_gradient_of_the_one_before():
    model, twin = Line().eval(), Line()
    step = stepper(model, lambda model, batch: model(batch["x"]).square().mean())
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(4, 2, generator=generator)
        step({"x": x})
        optimizer.zero_grad()
        twin(x).square().mean().backward()
        optimizer.step()
    assert model.training
    torch.testing.assert_close(model.weight, twin.weight, atol=1e-6, rtol=0)
    assert not torch.equal(model.weight, Line().weight)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_loss_is_computed_in_what_the_device_computes_in(dtype, monkeypatch):
    monkeypatch.setattr(pace, "autocast_dtype", lambda name, device: dtype if name == "auto" else None)
    seen = []

    def loss(model, batch):
        made = model(batch["x"])
        seen.append(made.dtype)
        return made.float().mean()

    stepper(Line(), loss)({"x": torch.ones(4, 2)})
    assert seen == [dtype or torch.float32]
