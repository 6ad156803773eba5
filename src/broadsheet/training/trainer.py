"""Training of a few weights of a large model: checkpoints of those alone, losses that are seen to be finite.

Knows: HF `Trainer`, parameters that are trained. Does not know: losses, data, what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from broadsheet.console import InputError
from broadsheet.training.checkpoints import AtomicCheckpointTrainer
from broadsheet.training.timed import ScheduledByProgress, TimedRun, loss_history

_WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class TrainOutput:
    """What a training did.

    Args:
        steps: of the optimizer.
        examples: rows seen, repeats included; tokens: attended tokens read.
        seconds: of training, those of earlier calls included.
        finished: False after Ctrl-C; the same call then goes on.
        resumed_from: the step this call began at.
        history: per step, loss, its terms and the learning rate.
        folder: where the model stands; None if it was not saved.
    """

    steps: int
    examples: int
    tokens: int
    seconds: float
    finished: bool
    resumed_from: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    folder: Path | None = None

    @classmethod
    def of(cls, trainer: TrainedWeights, run: TimedRun, finished: bool) -> TrainOutput:
        """What `run` did with `trainer`."""
        return cls(
            steps=trainer.state.global_step,
            examples=int(trainer.record.get("examples", 0)),
            tokens=int(trainer.record.get("tokens", 0)),
            seconds=run.elapsed(),
            finished=finished,
            resumed_from=run.resumed_from,
            history=loss_history(trainer),
        )


class TrainedWeights(AtomicCheckpointTrainer, ScheduledByProgress):
    """Checkpoints hold the trained weights alone; every loss is seen to be finite; examples and tokens are counted."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        parts: dict[str, nn.Module] = {"model": cast(nn.Module, self.model)}
        if isinstance(own := getattr(self, "loss", None), nn.Module):
            parts["loss"] = own
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for prefix, part in parts.items():
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    found.setdefault(id(parameter), (f"{prefix}.{name}", parameter))
        return dict(found.values())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().clone().contiguous() for name, weight in self.trained().items()}
        save_file(weights, str(folder / _WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        kept, wanted = load_file(str(Path(resume_from_checkpoint) / _WEIGHTS)), self.trained()
        if kept.keys() != wanted.keys():
            raise InputError(f"{resume_from_checkpoint} holds other weights than are trained; force=True starts over")
        with torch.no_grad():
            for name, weight in wanted.items():
                weight.copy_(kept[name])

    def seen(self, loss: Tensor, examples: int, tokens: int) -> None:
        """Count what a pass has read, and refuse a loss that is none.

        Raises:
            InputError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} at step {self.state.global_step}: the model has diverged or its weights are"
                " damaged; start again with a lower learning rate, or with autocast='none'"
            )
        self.record["examples"] = self.record.get("examples", 0) + examples
        self.record["tokens"] = self.record.get("tokens", 0) + tokens


class TrainedItems(TrainedWeights):
    """`TrainedWeights` on a `SeededOrderDataset`, in its order; a loss is a mean over its pass, whatever the step."""

    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


class SeededOrderDataset(Dataset[tuple[int, Any]]):
    """Items in the order of training, each with its place: each epoch shuffled by (seed, epoch), one after the other.

    Args:
        items: of one epoch.
        length: of the whole training, in items.
        seed: of the order.
    """

    def __init__(self, items: Sequence[Any], length: int, seed: int) -> None:
        self.items, self.length, self.seed = items, length, seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> tuple[int, Any]:
        epoch, within = divmod(place, len(self.items))
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._epoch = (epoch, torch.randperm(len(self.items), generator=generator).tolist())
        return place, self.items[self._epoch[1][within]]


def check_lengths(steps: int | None, epochs: int, batch_size: int, accumulate: int) -> None:
    """See that a training has a length.

    Raises:
        InputError: it has none.
    """
    if (steps is not None and steps < 1) or min(epochs, batch_size, accumulate) < 1:
        raise InputError(
            f"got steps {steps}, epochs {epochs}, batch_size {batch_size}, accumulate {accumulate}; expected 1 or more"
        )


def items_in_order(
    items: Sequence[Any], *, steps: int | None, epochs: int, batch_size: int, accumulate: int, seed: int
) -> SeededOrderDataset:
    """The items of a whole training: of `steps`, which repeat them as often as it takes, or else of `epochs`.

    Raises:
        InputError: they make no batch for all processes.
    """
    a_step = batch_size * accumulate * world()
    length = len(items) * epochs if steps is None else steps * a_step
    if length < a_step:
        raise InputError(f"{len(items):,} examples make no batch of {a_step}; give more, or a smaller batch_size")
    return SeededOrderDataset(items, length, seed)


def world() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
