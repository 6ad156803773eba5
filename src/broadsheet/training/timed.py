"""Training for so many minutes: a run that ends in time, keeps checkpoints by the clock, and stops at Ctrl-C.

Knows: HF `Trainer`, clocks, learning rates. Does not know: what is trained, or what a checkpoint holds (`checkpoints`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from broadsheet.apply.corpus import interruptible
from broadsheet.console import InputError, progress, say
from broadsheet.training.checkpoints import AtomicCheckpointTrainer

Schedule = Literal["cosine", "linear", "constant"]
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
_FIRST_STEPS = 0.1  # share of the learning rate that warm-up begins with: few steps, none of them to be wasted

# What a `TimedRun` wants of `TrainingArguments`.
ARGUMENTS: dict[str, Any] = {
    "save_strategy": "no",  # by the clock instead
    "save_total_limit": 2,  # the one before stays until the new one is complete
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
}


def warmed_up(schedule: str, warmup: float) -> Callable[[float], float]:
    """The factor of the learning rate as a function of how much of the training is done, 0 to 1.

    Args:
        schedule: how it falls to 0 at the end: one of `SCHEDULES`.
        warmup: share of the training in which it rises, from a tenth to 1.

    Raises:
        InputError: there is no such schedule, or the share is none.
    """
    if not 0 <= warmup < 1:
        raise InputError(f"got warmup {warmup}; expected a share of the training from 0 to below 1")
    if schedule not in SCHEDULES:
        raise InputError(f"got schedule {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    shape = SCHEDULES[schedule]

    def factor(done: float) -> float:
        if done < warmup:
            return max(_FIRST_STEPS, done / warmup)
        return max(0.0, shape((done - warmup) / max(1e-9, 1 - warmup)))

    return factor


class ScheduledByProgress(Trainer):
    """A `Trainer` whose learning rate may follow how much of the training is done, in time or in steps.

    Put it before another subclass of `Trainer` to give that the same.

    Args:
        progress: how much of the training is done, 0 to 1; the learning rate then follows `schedule` of it, or of the
            share of the steps where that is more, instead of the arguments' scheduler. Asked once per step.
        schedule: progress → factor of the learning rate.
    """

    def __init__(
        self,
        *args: Any,
        progress: Callable[[], float] | None = None,
        schedule: Callable[[float], float] = lambda progress: 1 - progress,
        **parts: Any,
    ) -> None:
        super().__init__(*args, **parts)
        self.progress = progress
        self.schedule = schedule

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        progress = self.progress
        if progress is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if getattr(self, "lr_scheduler", None) is None:

            def factor(step: int) -> float:
                return self.schedule(min(1.0, max(progress(), step / max(1, num_training_steps))))

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class TimedRun(TrainerCallback):
    """Runs a trainer until its time is over, its steps are done, or Ctrl-C; and goes on from its newest checkpoint.

    Args:
        minutes: of training, checkpoints and earlier calls included; None for all steps.
        checkpoint_minutes: between checkpoints.
        keep: whether checkpoints are written at all.
        clock: seconds.

    Attributes:
        resumed_from: the step that `train` began at.

    Raises:
        InputError: a number of minutes is not above 0.

    Example:
        run = TimedRun(30)
        trainer = RerankTrainer(
            args=TrainingArguments("out.partial", num_train_epochs=3, **ARGUMENTS),
            progress=run.progress, schedule=warmed_up("cosine", 0.05), …
        )
        finished = run.train(trainer)
    """

    def __init__(
        self,
        minutes: float | None,
        checkpoint_minutes: float = 5.0,
        *,
        keep: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if minutes is not None and not minutes > 0:
            raise InputError(f"got minutes {minutes}; expected a number above 0, or None for all epochs")
        if not checkpoint_minutes > 0:
            raise InputError(f"got checkpoint_minutes {checkpoint_minutes}; expected a number above 0")
        self.budget = None if minutes is None else 60.0 * minutes
        self.checkpoint_seconds = 60 * checkpoint_minutes if keep else math.inf
        self.keep = keep
        self.clock = clock
        self.resumed_from = 0
        self._record: dict[str, Any] = {}
        self._begun: float | None = None
        self._spent = self._last = self._saved = 0.0

    def elapsed(self) -> float:
        """Seconds of training so far, those of earlier calls included."""
        return self._spent + (0.0 if self._begun is None else self.clock() - self._begun)

    def progress(self) -> float:
        """How much of the time is over, 0 to 1 and on; 0 without a limit, where steps count alone."""
        return 0.0 if self.budget is None else self.elapsed() / self.budget

    def train(self, trainer: AtomicCheckpointTrainer) -> bool:
        """Train; False where Ctrl-C ended it (said, and kept as a checkpoint). The second Ctrl-C acts as ever.

        The trainer's `record` holds `seconds`, so that the time goes on where a run was cut off.
        """
        checkpoint = trainer.resume_checkpoint()
        self._record = trainer.record
        self._spent, self._begun = float(self._record.get("seconds", 0.0)), self.clock()
        if checkpoint is not None:
            self.resumed_from = int(checkpoint.rpartition("-")[2])
            minutes = self._spent / 60
            say(f"{trainer.args.output_dir}: going on after step {self.resumed_from:,} ({minutes:.1f} minutes)")
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        with interruptible() as self._interrupted, progress("training", self.budget) as self._bar:
            self._last = self._saved = self.elapsed()
            trainer.train(resume_from_checkpoint=checkpoint)
            finished = not self._interrupted.is_set()
        trainer.remove_callback(self)
        if not finished:
            remedy = "; the same call goes on from there" if self.keep else ""
            say(f"stopped after {trainer.state.global_step:,} steps{remedy}")
        return finished

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.budget is None:
            self._bar.update(self._bar.task_ids[0], total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        now = self.elapsed()
        step, self._last = now - self._last, now
        interrupted = self._interrupted.is_set()
        if interrupted or (self.budget is not None and now + step > self.budget):
            control.should_training_stop = True
        if self.keep and (interrupted or now - self._saved >= self.checkpoint_seconds):
            control.should_save = True
            self._saved = now
        self._record["seconds"] = now

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        done = state.global_step if self.budget is None else self.elapsed()
        loss = f", loss {logs['loss']:.3f}" if logs and "loss" in logs else ""
        self._bar.update(self._bar.task_ids[0], completed=int(done), description=f"step {state.global_step:,}{loss}")


def loss_history(trainer: Trainer) -> list[dict[str, float]]:
    """What a trainer has logged: per step the loss, its terms (`loss_…`) and the learning rate."""
    return [
        {key: float(value) for key, value in entry.items() if key in ("step", "learning_rate") or "loss" in key}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
