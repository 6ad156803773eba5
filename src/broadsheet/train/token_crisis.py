"""Repeated pretraining data (Xue et al., 2023, arXiv:2305.13230): how often text is read, what it costs, and dropout.

Knows: counts of tokens, modules of a transformers model, losses of held-out texts. Does not know: data, optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import TrainerCallback

from broadsheet.console import InputError, say
from broadsheet.train.base import LossMethod

PER_PARAMETER = 20  # tokens that a parameter asks for, compute-optimal (Hoffmann et al., 2022)
OFTEN, LARGE = 4, 4  # epochs, and times the compute-optimal size, above which the plan warns; ours, not the paper's
_PARTS = ("self_attn", "self_attention", "attention", "attn", "mlp", "feed_forward", "ffn")  # of a decoder layer


@dataclass(frozen=True)
class RepetitionPlan:
    """How often a training reads its text, and whether that is the regime in which it harms.

    Args:
        unique_tokens: that there are.
        steps, batch, length: of the training: optimizer steps, sequences of each, tokens of one.
        parameters: of the model; None: unknown, and nothing is warned of.

    Example:
        RepetitionPlan(10_000_000, steps=20_000, batch=64, length=1024, parameters=135_000_000).warning
    """

    unique_tokens: int
    steps: int
    batch: int
    length: int
    parameters: int | None = None

    @property
    def tokens_seen(self) -> int:
        """In the whole training, repeats included."""
        return self.steps * self.batch * self.length

    @property
    def epochs(self) -> float:
        """How often each token is read; a part of an epoch is a fraction."""
        return self.tokens_seen / self.unique_tokens

    @property
    def warning(self) -> str:
        """What is to be feared, in one line; empty where nothing is. The paper shows curves; the limits are ours."""
        enough = compute_optimal_parameters(self.unique_tokens)
        if self.parameters is None or self.epochs <= OFTEN or self.parameters <= LARGE * enough:
            return ""
        return (
            f"{self.unique_tokens:,} tokens are read {self.epochs:.1f} times by {self.parameters:,} weights, for which "
            f"they are too few ({enough:,.0f} are as many as they teach): watch held-out text, and use dropout"
        )


def compute_optimal_parameters(unique_tokens: int, per_parameter: float = PER_PARAMETER) -> float:
    """The size of model that so many tokens teach, read once: an order of magnitude."""
    return unique_tokens / per_parameter


@dataclass(frozen=True)
class Degradation:
    """What came of reading again and again.

    Attributes:
        best_epoch: from 0, that of the lowest loss.
        rise: of the last loss over the lowest.
        degrades: whether there is any.
    """

    best_epoch: int
    rise: float

    @property
    def degrades(self) -> bool:
        return self.rise > 0

    @classmethod
    def of(cls, losses: Sequence[float]) -> Degradation:
        """By the held-out loss after each epoch.

        Raises:
            InputError: there is none.
        """
        if not len(losses):
            raise InputError("got no losses; expected one for each epoch")
        best = int(np.argmin(losses))
        return cls(best, float(losses[-1]) - float(losses[best]))


@dataclass
class DropStage(LossMethod):
    """Dropout, from a step on: nothing is dropped while there is still something new, and then it holds overfitting up.

    Text that is read many times is learnt by heart, and what was not read gets worse. Dropout mends a good part of
    that. Switched on late it leaves the first epochs as fast as they are without, and ends as well.

    Use when fresh text has run out, and a model is large for it. Where text is read once or twice, dropout only slows.
        Stopping at the best epoch is the cheap alternative; the monitor tells it.

    Inputs: a model with decoder layers: rates are set where it has dropout (`nn.Dropout`, `attention_dropout`), and
        hooks drop what attention, MLP and embedding give where it has none, as T5 does. No weights are added; after the
        training the model is what it was.
    Relation: `lora_dropout` drops the inputs of adapters alone, and is another regulariser.

    Args:
        rate: that is dropped (0.1 to 0.5 were tried; 0.2 to 0.3 were best at 2.4 to 2.8 billion weights).
        start: the first step with dropout, counted from 0; 0: from the start.
        attention: drop attention's probabilities too, as T5 does; without, scaled dot-product attention stays fast.

    Raises:
        InputError: the rate is not from 0 to below 1, or start is below 0.

    Example:
        from transformers import Trainer, TrainingArguments

        from broadsheet import models
        from broadsheet.train import DropStage
        from broadsheet.training.scratch import TokenBlocks, joined

        model, tokenizer = models.load("default", dtype="float32")
        rows = TokenBlocks(joined(["Some text of yours. " * 500], tokenizer), 128)
        args = TrainingArguments("runs/dropped", max_steps=2, per_device_train_batch_size=8, report_to=[])
        method = DropStage(rate=0.2, start=1)
        Trainer(model, args, train_dataset=rows, compute_loss_func=method, callbacks=[method]).train()

    Source: arXiv:2305.13230, sections on dropout and dropstage; a study without code. Where it starts is not told.
    """

    paper: ClassVar[str] = "token_crisis"

    rate: float = 0.2
    start: int = 0
    attention: bool = True

    _undo: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False, compare=False)
    _set: list[Callable[[float], None]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1 or self.start < 0:
            raise InputError(f"got rate {self.rate}, start {self.start}; expected 0 to below 1, and a step from 0 on")

    def rates(self, steps: int) -> list[float]:
        """The rate at each of the first steps."""
        return [self.rate_at(step) for step in range(steps)]

    def rate_at(self, step: int) -> float:
        """0 before `start`, then `rate`."""
        return self.rate if step >= self.start else 0.0

    def attach(self, model: nn.Module) -> None:
        """Find where a model is to drop. Until `detach`, a pass in training mode drops by the rate of its step.

        Raises:
            InputError: it has no decoder layers that could drop; or attention that cannot (flex attention).
        """
        self.detach()
        config = getattr(model, "config", None)
        flex = getattr(config, "_attn_implementation", "") == "flex_attention"
        if self.attention and flex and self.rate:
            raise InputError(
                "flex attention drops no probabilities; use attn_implementation='sdpa', or attention=False"
            )
        own = [each for each in model.modules() if isinstance(each, nn.Dropout)]
        for each in own:
            self._follow(each, "p")
        for module in model.modules():
            if self.attention and isinstance(getattr(module, "attention_dropout", None), int | float):
                self._follow(module, "attention_dropout")
        if not own:
            parts = [part for layer in _layers(model) for name, part in layer.named_children() if name in _PARTS]
            if not parts:
                raise InputError(
                    f"a {type(model).__name__} has no dropout, and no decoder layers with {', '.join(_PARTS[:1])} or "
                    "mlp in them, where hooks could drop"
                )
            for part in (*parts, model.get_input_embeddings()):  # type: ignore[operator]
                self._undo.append(part.register_forward_hook(self._dropped).remove)
        # Before each pass, so that a rate is that of the step whatever runs the training.
        self._undo.append(model.register_forward_pre_hook(lambda *_: self._enter()).remove)

    def detach(self) -> None:
        """Leave the model as it was."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        self._set.clear()

    def _enter(self) -> None:
        for set_rate in self._set:
            set_rate(self.rate_at(self.step))

    def _follow(self, module: Any, name: str) -> None:
        """Set this attribute of a module to the rate of each step, and in the end to what it was."""
        was = getattr(module, name)
        self._set.append(lambda rate: setattr(module, name, rate))
        self._undo.append(lambda: setattr(module, name, was))

    def _dropped(self, module: nn.Module, given: Any, found: Any) -> Any:
        """What a module gave, with some of it dropped: the rest counts for more, so that the mean stays."""
        rate = self.rate_at(self.step)
        if not module.training or not rate:
            return None
        if isinstance(found, Tensor):
            return dropout(found, rate)
        return (dropout(found[0], rate), *found[1:])


@dataclass
class HeldOutMonitor(TrainerCallback):
    """The loss of held-out texts after each epoch, and whether it has risen: for a `Trainer`, among its callbacks.

    Args:
        measure: a model to the losses of held-out texts, (texts,).
        stop: end the training where the loss has risen beyond noise.

    Attributes:
        epochs: losses (texts,) after each.

    Example:
        monitor = HeldOutMonitor(lambda model: document_losses(model, tokenizer, texts, 512), stop=True)
        Trainer(model, args, train_dataset=rows, callbacks=[monitor]).train()
    """

    measure: Callable[[Any], Any]
    stop: bool = False
    epochs: list[np.ndarray[Any, Any]] = field(default_factory=list, init=False, repr=False)

    @property
    def degradation(self) -> Degradation:
        """By the mean over texts."""
        return Degradation.of([float(losses.mean()) for losses in self.epochs])

    @property
    def risen(self) -> bool:
        """Whether the last epoch's loss is above the best one's beyond noise: by a bootstrap over texts, in pairs."""
        from broadsheet.trial.stats import interval

        best = self.degradation.best_epoch
        rise = self.epochs[-1] - self.epochs[best]
        return len(rise) > 1 and interval(rise, binary=False).low > 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> Any:
        with torch.no_grad():
            self.epochs.append(np.asarray(self.measure(model), dtype=np.float64))
        if self.risen:
            found = self.degradation
            say(
                f"epoch {len(self.epochs)}: held-out loss {self.epochs[-1].mean():.4f}; it was {found.rise:.4f} lower "
                f"after epoch {found.best_epoch + 1}"
            )
            control.should_training_stop = control.should_training_stop or self.stop
        return control


def _layers(model: nn.Module) -> list[nn.Module]:
    """Decoder layers: members of lists of modules."""
    return [layer for each in model.modules() if isinstance(each, nn.ModuleList) for layer in each]
