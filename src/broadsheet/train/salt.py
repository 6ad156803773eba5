"""SALT (Rawat et al., 2024, arXiv:2410.18779): a smaller, weaker model teaches in the first part of a training.

Knows: logits of the student and of the teacher for the same tokens, the step. Does not know: data, optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from broadsheet.console import InputError
from broadsheet.train.base import LossMethod
from broadsheet.training.losses import TopK, taught_losses, token_losses

OFFLINE = ("teacher_ids", "teacher_log_probs")


@dataclass
class SALT(LossMethod):
    """Let a small model's distributions teach for the first steps, then train on the text alone.

    At first the teacher's soft labels vary less than single tokens do, and a weak teacher is right about what is easy;
    later it would hold the student back. The optimizer and the learning rate run through both parts.

    Use when a smaller model of the same tokenizer is there, or is cheap to train. A teacher much smaller than the
    student does harm. Prefer ordinary distillation (TRL's `DistillationTrainer`) where the teacher is the better model.

    Inputs: any batch; the teacher reads what the student reads. Rows that hold `teacher_ids` and `teacher_log_probs`
        (length, k), as `teacher_rows` makes them, need no teacher in memory: for `fit`, or a `Trainer` with
        `remove_unused_columns=False`.
    Relation: `LossReweighting` weighs sequences; this changes what their tokens are compared with.

    Args:
        teacher: a causal LM with the student's vocabulary; read without gradients. A `Trainer`'s is let go of after
            the last step that it teaches. None where rows hold what it says.
        steps: optimizer steps that it teaches (36,000 of 208,000; 20,000 to 60,000 did as well).
        omega: weight of what the teacher says (0.667).
        temperature: that the teacher's logits are divided by (0.25, which sharpens; the paper's convention is not
            certain).
        decay: up to which step ω falls to 0 in a line, from `steps` on; None: at once.

    Example:
        from transformers import Trainer, TrainingArguments

        from broadsheet.train import SALT
        from broadsheet.training.scratch import TokenBlocks, joined, size, tokenizer

        texts = ["Some text of yours. " * 500]
        by = tokenizer(texts, 300)
        rows = TokenBlocks(joined(texts, by), 64)
        student = size("1M").model(len(by), 64, seed=0)
        teacher = size("0.4M").model(len(by), 64, seed=1)  # one that has been trained teaches better
        args = TrainingArguments("runs/taught", max_steps=4, per_device_train_batch_size=8, report_to=[])
        method = SALT(teacher, steps=2)
        Trainer(student, args, train_dataset=rows, compute_loss_func=method, callbacks=[method]).train()

    Source: arXiv:2410.18779, Algorithm 1; (1 − ω) of the token's loss and ω of the teacher's, in cross-entropy.
    """

    paper: ClassVar[str] = "salt"
    reads_inputs: ClassVar[bool] = True

    teacher: Any = field(default=None, repr=False, compare=False)
    steps: int = 36_000
    omega: float = 0.667
    temperature: float = 0.25
    decay: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.omega <= 1 or self.steps < 0 or not self.temperature > 0:
            raise InputError(
                f"got omega {self.omega}, steps {self.steps}, temperature {self.temperature}; expected a share, a "
                "number from 0, and more than 0"
            )
        if self.decay is not None and self.decay < self.steps:
            raise InputError(f"got decay {self.decay}; expected a step from {self.steps} on, the last that is taught")

    def weight(self, step: int) -> float:
        """ω at an optimizer step, counted from 0."""
        if step < self.steps:
            return self.omega
        if self.decay is None or step >= self.decay:
            return 0.0
        return self.omega * (self.decay - step) / (self.decay - self.steps)

    def loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, int]:
        omega = self.weight(self.step)
        if omega:
            losses, asked = taught_losses(logits, labels, self._says(inputs), omega, self.temperature)
        else:
            losses, asked = token_losses(logits, labels)
        return losses.sum(), int(asked.sum())

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        super().on_step_begin(args, state, control, **others)
        if self.step >= (self.decay or self.steps):
            self.teacher = None

    def _says(self, inputs: Mapping[str, Any]) -> Tensor | TopK:
        """What the teacher expects at each position.

        Raises:
            InputError: there is no teacher, and rows do not hold what it says.
        """
        if all(name in inputs for name in OFFLINE):
            return TopK(*(inputs[name] for name in OFFLINE))
        if self.teacher is None:
            raise InputError(
                f"SALT has no teacher at step {self.step}, and the rows hold no {' and '.join(OFFLINE)}; give one, or "
                "make the rows by teacher_rows"
            )
        given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
        was = self.teacher.training
        self.teacher.eval()
        with torch.no_grad():
            found: Tensor = self.teacher(**given, use_cache=False).logits
        self.teacher.train(was)
        return found

    def _read(self, model: Any, given: Any, inputs: dict[str, Any]) -> Any:
        super()._read(model, given, inputs)
        return given, {name: value for name, value in inputs.items() if name not in OFFLINE}


@torch.no_grad()
def teacher_rows(teacher: Any, rows: Sequence[Mapping[str, Any]], k: int = 32, batch: int = 16) -> list[dict[str, Any]]:
    """Rows with what a teacher says of them, its k most probable tokens at each position: it is needed no more.

    Args:
        rows: of equal length, with `input_ids` (length,).
        k: with the whole vocabulary nothing is lost; else what is left is shared out anew.

    Returns:
        the rows with `teacher_ids` (length, k) and `teacher_log_probs` (length, k) beside.
    """
    teacher.eval()
    made = []
    for begin in range(0, len(rows), batch):
        some = [rows[i] for i in range(begin, min(begin + batch, len(rows)))]
        ids = torch.stack([torch.as_tensor(row["input_ids"]) for row in some]).to(teacher.device)
        found = TopK.of(teacher(ids, use_cache=False).logits, k)
        made += [
            {**row, OFFLINE[0]: found.ids[i].cpu(), OFFLINE[1]: found.log_probs[i].cpu()} for i, row in enumerate(some)
        ]
    return made


def learnable(logits: Tensor, labels: Tensor, k: int = 10) -> Tensor:
    """How much there is to learn from each sequence, by a small model: the median of its tokens' losses, of which
    those that the model would not have among its k most probable tokens count 0 (SALT_DS).

    Noise scores 0, what is easy little, what is hard but within reach most.

    Args:
        logits: (batch, length, vocabulary) of an early small model.
        labels: (batch, length), unshifted; -100 counts nowhere.

    Returns:
        (batch,) scores from 0; NaN for a sequence of which nothing is asked.
    """
    losses, asked = token_losses(logits, labels)
    k = min(k, logits.shape[-1])
    targets = labels[:, 1:].clamp(min=0)
    within = (logits[:, :-1].topk(k, dim=-1).indices == targets[..., None]).any(-1)
    filtered = torch.where(asked, losses * within, torch.nan)
    # torch's median takes the lower one of two middles; the mean of both is meant.
    return filtered.nanquantile(0.5, dim=1)


@torch.no_grad()
def learnable_scores(model: Any, rows: Sequence[Mapping[str, Any]], k: int = 10, batch: int = 16) -> Tensor:
    """`learnable` for rows of equal length with `input_ids` and `labels`: (rows,), by an early small model."""
    was = model.training
    model.eval()
    found = []
    for begin in range(0, len(rows), batch):
        some = [rows[i] for i in range(begin, min(begin + batch, len(rows)))]
        ids, labels = (
            torch.stack([torch.as_tensor(row[name]) for row in some]).to(model.device)
            for name in ("input_ids", "labels")
        )
        found.append(learnable(model(ids, use_cache=False).logits, labels, k).cpu())
    model.train(was)
    return torch.cat(found)


def select(scores: Iterable[float], m: int) -> list[int]:
    """The places of the m highest scores, the highest first; of equals the earlier one first."""
    values = [float(score) for score in scores]
    return sorted(range(len(values)), key=lambda i: -values[i])[:m]
