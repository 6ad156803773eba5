"""The socket of training methods: a loss that knows its step, in HF's `Trainer` or in `fit`.

Knows: logits, labels, steps, several processes. Does not know: models, data, optimizers.

    method = LossReweighting(r=0.4)
    trainer = Trainer(model, args, train_dataset=rows, compute_loss_func=method, callbacks=[method])
    trainer.train()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from broadsheet.training.distributed import world
from broadsheet.training.losses import token_losses
from broadsheet.training.objective import NextTokens


@dataclass
class LossMethod(TrainerCallback):
    """A causal LM's loss. This one is the plain one, the mean over tokens: the baseline.

    A subclass gives `loss`, and its hyperparameters as fields. One object goes to a `Trainer` twice, as its
    `compute_loss_func` and among its `callbacks`; to `fit` it goes as `MethodObjective(method)`.

    Shapes: logits (batch, length, vocabulary); labels (batch, length), unshifted, -100 where nothing is asked.

    Attributes:
        step: optimizer steps done, whatever the gradient accumulation.
        reads_inputs: whether `loss` needs what the model was given; of a `Trainer` it is then taken where the model is
            called.
    """

    reads_inputs: ClassVar[bool] = False

    step: int = field(default=0, init=False, repr=False, compare=False)
    _accumulate: int = field(default=1, init=False, repr=False, compare=False)
    _scaled: bool = field(default=False, init=False, repr=False, compare=False)  # by the processes, in a Trainer
    _inputs: Mapping[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    _hook: Any = field(default=None, init=False, repr=False, compare=False)

    def loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Any]) -> Tensor | tuple[Tensor, int]:
        """What is minimised: a mean over the batch; or a sum over tokens, and how many they are.

        A sum is divided by the tokens of all batches of a step, as `Trainer` does it; a mean counts as much as that of
        every other batch. With several processes a mean is of this one's batch, and gradients are averaged over them.

        Args:
            inputs: what the model was given, where `reads_inputs`; else empty.
        """
        losses, counts = token_losses(logits, labels)
        return losses.sum(), int(counts.sum())

    def attach(self, model: Any) -> None:
        """Called with the model before the first step: for hooks."""

    def detach(self) -> None:
        """Called after the last step, however it ended; what `attach` did is undone."""

    def after_step(self) -> None:
        """Called after each step of the optimizer, before a checkpoint is written."""

    # In a Trainer

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """As `compute_loss_func`. Without gradients, as in an evaluation, the loss is the plain one of every method."""
        if not torch.is_grad_enabled():
            losses, counts = token_losses(outputs.logits, labels)
            return losses.sum() / counts.sum().clamp(min=1)
        inputs, self._inputs = self._inputs or {}, None
        found = self.loss(outputs.logits, labels, inputs)
        if isinstance(found, tuple):
            total, count = found
            return total / (max(1, count) if num_items_in_batch is None else num_items_in_batch)
        # The trainer takes it for a part of a sum: it divides by no accumulation, and may multiply by its processes.
        scaled = self._scaled and num_items_in_batch is not None
        return found / self._accumulate / (world() if scaled else 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.step = state.global_step
        self._accumulate, self._scaled = args.gradient_accumulation_steps, args.average_tokens_across_devices
        if self.reads_inputs and self._hook is None and model is not None:
            self._hook = model.register_forward_pre_hook(self._read, with_kwargs=True)
        if model is not None:
            self.attach(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.detach()

    def _read(self, model: Any, given: Any, inputs: dict[str, Any]) -> Any:
        if model.training:
            self._inputs = dict(inputs)
        return None


class MethodObjective(NextTokens):
    """A `LossMethod` for `fit`, on the rows of `NextTokens`.

    Args:
        watched: gives what is logged after a step, `(model, step)` to values by name.
        paper: whose method makes the model, for its card, where that is not in the loss.

    Example:
        fit(model, TokenBlocks(stream, 256), MethodObjective(SALT(teacher, steps=50)), "runs/salt", steps=300)
    """

    def __init__(self, method: LossMethod, watched: Any = None, paper: str = "") -> None:
        super().__init__(watched)
        self.method, self.paper = method, paper or getattr(method, "paper", "")

    def prepare(self, model: Any) -> None:
        self.method.attach(model)

    def release(self, model: Any) -> None:
        self.method.detach()

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        self.method.step = self.step
        given = batch if self.method.reads_inputs else {}
        found = self.method.loss(self.logits(model, batch), batch["labels"], given)
        return found if isinstance(found, Tensor) else found[0] / max(1, found[1])

    def after_step(self, model: Any, step: int) -> Mapping[str, float]:
        self.method.after_step()
        return super().after_step(model, step)

    def get_config_dict(self) -> dict[str, Any]:
        """What tells it from others."""
        from broadsheet.methods import call_of

        return {"method": call_of(self.method)}
