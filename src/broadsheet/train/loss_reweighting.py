"""Loss-based reweighting (Sow et al., 2025, arXiv:2502.06733): sequences weigh in a batch by their own losses.

Knows: the losses of a batch's sequences. Does not know: models, data, optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from broadsheet.console import InputError, say, within
from broadsheet.train.base import LossMethod
from broadsheet.training.distributed import world
from broadsheet.training.losses import sequence_losses, shifted

# h, a loss's place between the least (−δ) and the greatest (δ) of its batch, and δ → how much is made of it.
STRATEGIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linupper": lambda h, delta: (h + delta).clamp(max=delta),
    "quadratic": lambda h, delta: 1 - h**2 / delta**2,
    "extremes": lambda h, delta: h.abs(),
    "upper": lambda h, delta: 0.5 * h + 0.5 * delta,
    "uniform": lambda h, delta: torch.ones_like(h),
}
FEW = 8  # sequences in a batch; with fewer a weight says little but who is first


def places(losses: Tensor, delta: float = 1.0) -> Tensor:
    """Where each loss stands between the least and the greatest: (M,) → (M,), from −δ to δ; 0 where all are equal."""
    low, high = losses.min(), losses.max()
    # The authors' code divides by at least 1e-6, and so puts equal losses at 0.
    return (2 * delta * losses - delta * (high + low)) / (high - low).clamp(min=1e-6)


def sample_weights(
    losses: Tensor, strategy: str = "linupper", r: float = 0.4, delta: float = 1.0, clip: float | None = None
) -> Tensor:
    """The weight of each sequence in a batch: what maximises ⟨w, f(h)⟩ − r KL(w ‖ uniform).

    Args:
        losses: (M,) of all sequences that a step reads, on all devices; no gradient goes there.
        strategy: f, one of `STRATEGIES`. `"linupper"`: less for what is learnt already, the same for all above the
            middle. `"quadratic"` favours the middle, `"extremes"` both ends, `"upper"` is linear.
        r: the temperature; large: all alike, 0: the largest f alone.
        delta: half the range of h.
        clip: the quantile above which a loss counts as that quantile, so that one odd sequence does not push all others
            together; None as in the paper.

    Returns:
        (M,) weights that add up to 1.

    Raises:
        InputError: an unknown strategy, or r that is not above 0.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"got strategy {strategy!r}; expected one of {', '.join(STRATEGIES)}")
    if not r > 0:
        raise InputError(f"got r {r}; expected more than 0")
    losses = losses.detach()
    if clip is not None:
        losses = losses.clamp(max=losses.quantile(clip, interpolation="lower"))
    f = STRATEGIES[strategy](places(losses, delta), delta)
    return torch.softmax(f / r, 0)  # the closed form of the maximum


@dataclass
class LossReweighting(LossMethod):
    """Spend a step on the sequences from which there is still something to learn.

    Each sequence of a batch, on all devices together, is weighed by its own mean loss. What has a low loss is learnt
    already, or says the same again and again: boilerplate, templates, copies.

    Use when text is mixed: some of it easy and repeated. On even text nothing changes. Prefer deduplication where what
    repeats can be found beforehand.

    Inputs: batches of at least 8 sequences of equal length (blocks). With gradient accumulation the sequences of each
        batch are weighed among themselves: a second pass would be needed for more.
    Relation: it changes how much a sequence counts, `SALT`'s selection which ones are read at all.

    Args:
        strategy: see `sample_weights`; `"linupper"` was best.
        r: temperature (0.4 for models of 24 and 36 layers, 1.0 for 12).
        delta: half the range that losses are put into (1).
        burn_in: steps before which all weigh the same: at first losses say nothing (1,000 of 20,000).
        length_normalise: weigh by tokens too, as the GPT-2 code does; the same where all are equally long.
        clip: see `sample_weights`.

    Example:
        from transformers import Trainer, TrainingArguments

        from broadsheet import models
        from broadsheet.train import LossReweighting
        from broadsheet.training.scratch import TokenBlocks, joined

        model, tokenizer = models.load("default", dtype="float32")
        rows = TokenBlocks(joined(["Some text of yours. " * 500], tokenizer), 128)
        args = TrainingArguments("runs/reweighted", max_steps=2, per_device_train_batch_size=8, report_to=[])
        method = LossReweighting(r=0.4, burn_in=1)
        Trainer(model, args, train_dataset=rows, compute_loss_func=method, callbacks=[method]).train()

    Source: arXiv:2502.06733; the weights' closed form, and LinUpper, Quadratic and Extremes as in the authors' code.
    """

    paper: ClassVar[str] = "loss_reweighting"

    strategy: str = "linupper"
    r: float = 0.4
    delta: float = 1.0
    burn_in: int = 1000
    length_normalise: bool = False
    clip: float | None = None

    _told: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        within(self, delta=(0, None), burn_in=(0, None))
        sample_weights(torch.zeros(1), self.strategy, self.r, self.delta, self.clip)

    def loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        losses, asked = sequence_losses(logits, labels)
        weights = self.weights(losses, asked)
        if self.length_normalise:
            counts = (shifted(logits, labels)[1] != -100).sum(1)
            weights = weights * len(losses) * (counts / counts.sum().clamp(min=1))
        # Gradients are averaged over the devices, and Σ w l is meant.
        return world() * (weights * losses).sum()

    def weights(self, losses: Tensor, asked: Tensor) -> Tensor:
        """The weights of this device's sequences among those of all: (batch,) losses, and which have any token."""
        every, known = _gathered(losses.detach()), _gathered(asked)
        strategy = "uniform" if self.step < self.burn_in else self.strategy
        if int(known.sum()) < FEW and not self._told:
            self._told = True
            say(f"{int(known.sum())} sequences are weighed among themselves; expected {FEW} or more in a step")
        weights = torch.zeros_like(every)
        if bool(known.any()):
            weights[known] = sample_weights(every[known], strategy, self.r, self.delta, self.clip)
        # By the rank among all, not on one machine: the authors' second code takes that one and mixes samples up.
        first = dist.get_rank() * len(losses) if world() > 1 else 0
        return weights[first : first + len(losses)]


def _gathered(values: Tensor) -> Tensor:
    """(batch,) of each process, one after another; all have as many."""
    if world() == 1:
        return values
    found = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(found, values)
    return torch.cat(found)
