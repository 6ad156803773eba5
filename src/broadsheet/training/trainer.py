"""The trainer behind `fit`: HF `Trainer` on an `Objective`, with checkpoints of what is trained alone.

Knows: HF `Trainer`, parameters that are trained, the order of rows. Does not know: files of a finished model, settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler

from broadsheet.console import DivergenceError, InputError
from broadsheet.training.checkpoints import AtomicCheckpointTrainer
from broadsheet.training.distributed import total
from broadsheet.training.objective import Objective
from broadsheet.training.timed import ScheduledByProgress, TimedRun, loss_history

_WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class TrainOutput:
    """What a training did.

    Args:
        steps: of the optimizer.
        examples: rows seen, repeats included; tokens: attended tokens read. Both of all processes.
        seconds: of training, those of earlier calls included.
        finished: False after Ctrl-C; the same call then resumes.
        resumed_from: the step this call began at.
        history: per step, loss, its terms and the learning rate.
        folder: where the model stands; None if it was not saved.
        step_seconds: what each step took.
    """

    steps: int
    examples: int
    tokens: int
    seconds: float
    finished: bool
    resumed_from: int = 0
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    folder: Path | None = None
    step_seconds: list[float] = field(default_factory=list, repr=False)

    @property
    def last_loss(self) -> float:
        """The mean loss of the last tenth of the steps."""
        losses = [each["loss"] for each in self.history[-max(1, len(self.history) // 10) :]]
        return sum(losses) / max(1, len(losses))

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
            step_seconds=list(trainer.record.get("step_seconds", ())),
        )


class TrainedWeights(AtomicCheckpointTrainer, ScheduledByProgress):
    """Checkpoints hold the trained weights and buffers alone; every loss is checked to be finite; rows and tokens are
    counted."""

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

    def _kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds: `trained`, and the buffers that change beside, as running means do."""
        model = cast(nn.Module, self.model)
        whole = model.state_dict(keep_vars=True)
        buffers = {f"model.{name}": each for name, each in model.named_buffers() if name in whole}
        return {**self.trained(), **buffers}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().clone().contiguous() for name, weight in self._kept().items()}
        save_file(weights, str(folder / _WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        kept, wanted = load_file(str(Path(resume_from_checkpoint) / _WEIGHTS)), self._kept()
        if kept.keys() != wanted.keys():
            raise InputError(f"{resume_from_checkpoint} holds other weights than are trained; force=True starts over")
        with torch.no_grad():
            for name, weight in wanted.items():
                weight.copy_(kept[name])

    def seen(self, loss: Tensor, examples: int, tokens: int) -> None:
        """Count what a pass of all processes has read, and refuse a loss that is not finite.

        Raises:
            DivergenceError: the loss is not finite.
        """
        bad = not torch.isfinite(loss)
        examples, tokens, lost = (int(each) for each in total([examples, tokens, bad], loss.device))
        if lost:
            raise DivergenceError(
                f"the loss is {loss.item()} at step {self.state.global_step}: the model has diverged or its weights are"
                " damaged; start again with a lower learning rate, or with autocast='none'"
            )
        self.record["examples"] = self.record.get("examples", 0) + examples
        self.record["tokens"] = self.record.get("tokens", 0) + tokens


class ObjectiveTrainer(TrainedWeights):
    """HF `Trainer` on an `Objective` and rows in a given order; a loss is a mean over its pass, whatever the step.

    Args:
        model: what the objective's `loss` gets.
        train_dataset: items with their places, in the order of training.
        autocast: the type that losses are computed in; None: that of the weights.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train_dataset: SeededOrderDataset,
        *,
        autocast: torch.dtype | None = None,
        **parts: Any,
    ) -> None:
        self.objective = objective
        self.autocast = autocast
        step = _Step(model, objective)
        super().__init__(model=step, train_dataset=train_dataset, data_collator=self._collate, **parts)
        self.model_accepts_loss_kwargs = False
        self.step_rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._terms: dict[str, list[float]] = {}

    def create_optimizer(self, model: Any = None) -> Any:
        groups = self.objective.parameter_groups(self._trained_model, self.args.learning_rate, self.args.weight_decay)
        if groups is None:
            return super().create_optimizer(model)
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(groups, **settings)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **others: Any) -> Any:
        place, rows = (int(each) for each in inputs.pop("_place_and_rows"))
        self._enter(place)
        if self.objective.phase:
            self.record["phase"] = self.objective.phase
        generator = torch.Generator().manual_seed((self.args.seed * 1_000_003 + place) % 2**63)
        with torch.autocast(self.args.device.type, self.autocast, enabled=self.autocast is not None):
            terms: dict[str, Tensor] = model(inputs, generator)
        self.seen(terms["loss"], rows, self.objective.tokens(inputs))
        for name, value in terms.items():
            if name != "loss":
                self._terms.setdefault(name, []).append(float(value.detach()))
        return (terms["loss"], terms) if return_outputs else terms["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            terms = {f"loss_{name}": sum(each) / len(each) for name, each in self._terms.items()}
            found = self.objective.after_step(self._trained_model, self.state.global_step)
            logs = {**logs, **terms, **{f"eval_{name}": float(value) for name, value in found.items()}}
            self._terms.clear()
        super().log(logs, start_time)

    @property
    def _trained_model(self) -> Any:
        return cast(_Step, self.model).model

    def _collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        place = items[0][0]
        self._enter(place)
        extra = self.objective.extra_batches(place)
        both = [*items, *((-1 - place * len(extra) - i, row) for i, row in enumerate(extra))]
        return {**self.objective.collate(both), "_place_and_rows": torch.tensor([place, len(both)])}

    def _enter(self, place: int) -> None:
        """Tell the objective the step, and the phase, that the row at this place belongs to."""
        self.objective.step = step = place // self.step_rows
        for phase in self.objective.phases:
            self.objective.phase = phase.name
            if step < phase.steps:
                break
            step -= phase.steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


class _Step(nn.Module):
    """What a step computes, as a module: so that its forward pass is what several devices share."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective  # registered, where it is a module

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        model = cast(Any, self.model)
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(**settings)
        else:  # as sentence-transformers' models
            model.gradient_checkpointing_enable(settings.get("activation_checkpointing_kwargs"))

    def get_input_embeddings(self) -> Any:
        """For NEFTune."""
        return cast(Any, self.model).get_input_embeddings()

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        loss = self.objective.loss(self.model, batch, generator)
        return loss if isinstance(loss, dict) else {"loss": loss}


class SeededOrderDataset(Dataset[tuple[int, Any]]):
    """Rows in the order of training, each with its place: each epoch shuffled by (seed, epoch), one after the other.

    Args:
        items: of one epoch.
        length: of the whole training, in items.
        seed: of the order; None: the rows' own in every epoch.
    """

    def __init__(self, items: Sequence[Any], length: int, seed: int | None) -> None:
        self.items, self.length, self.seed = items, length, seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> tuple[int, Any]:
        epoch, within = divmod(place, len(self.items))
        if self.seed is None:
            return place, self.items[within]
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._epoch = (epoch, torch.randperm(len(self.items), generator=generator).tolist())
        return place, self.items[self._epoch[1][within]]
