"""Training for `minutes`: a run that ends in time, keeps checkpoints by the clock, and stops at Ctrl-C.

Knows: HF `Trainer`, clocks, learning rates. Does not know: what is trained, or what a checkpoint holds (`checkpoints`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from broadsheet.console import InputError, duration, interruptible, progress, resumed, say, stderr
from broadsheet.training.checkpoints import AtomicCheckpointTrainer
from broadsheet.training.distributed import from_first, is_first, total, world
from broadsheet.training.schedules import Progress

_LINE_SECONDS = 30.0  # between plain lines, where stderr is no terminal

# What a `TimedRun` wants of `TrainingArguments`.
ARGUMENTS: dict[str, Any] = {
    "save_strategy": "no",  # by the clock instead
    "save_total_limit": 2,  # the one before stays until the new one is complete
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
}


class ScheduledByProgress(Trainer):
    """A `Trainer` whose learning rate may follow how much of the training is done, in time or in steps.

    Put it before another subclass of `Trainer` to give that the same.

    Args:
        progress: how much of the training is done, 0 to 1; the learning rate then follows `schedule` of it, or of the
            share of the steps where that is more, instead of the arguments' scheduler. Asked once per step.
        schedule: progress → factor of the learning rate, see `schedules`.
        epoch_steps: optimizer steps of an epoch; all of them by default.
    """

    def __init__(
        self,
        *args: Any,
        progress: Callable[[], float] | None = None,
        schedule: Callable[[Progress], float] = lambda progress: 1 - progress.done,
        epoch_steps: int | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(*args, **parts)
        self.progress = progress
        self.schedule = schedule
        self.epoch_steps = epoch_steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        progress, steps = self.progress, max(1, num_training_steps)
        if progress is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if getattr(self, "lr_scheduler", None) is None:
            known: dict[int, float] = {}  # the last step's factor: every parameter group asks for it

            def factor(step: int) -> float:
                if step not in known:
                    done = min(1.0, max(progress(), step / steps))
                    known.clear()
                    known[step] = self.schedule(Progress(done, step, steps, self.epoch_steps or steps))
                return known[step]

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class TimedRun(TrainerCallback):
    """Runs a trainer until its time is over, its steps are done, or Ctrl-C; resumes from its newest checkpoint.

    Of several processes the first one's clock counts for all.

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
        trainer = EmbedTrainer(
            args=TrainingArguments("out.partial", num_train_epochs=3, **ARGUMENTS),
            progress=run.progress, schedule=schedule("cosine", 0.05), …
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
        self._spent = self._last = self._saved = self._told = 0.0
        self._tokens = 0
        self._stopped = False  # by Ctrl-C

    def elapsed(self) -> float:
        """Seconds of training so far, those of earlier calls included."""
        return self._spent + (0.0 if self._begun is None else self.clock() - self._begun)

    def progress(self) -> float:
        """How much of the time is over, 0 to 1 and beyond; 0 without a limit, where steps count alone."""
        return 0.0 if self.budget is None else from_first(self.elapsed()) / self.budget

    def train(self, trainer: AtomicCheckpointTrainer) -> bool:
        """Train; False where Ctrl-C ended it (reported, and kept as a checkpoint). The second Ctrl-C acts as usual.

        The trainer's `record` holds `seconds` and `step_seconds`, so that the time counts on where a run was cut off.
        """
        checkpoint = trainer.resume_checkpoint()
        self._record = trainer.record
        self._spent, self._begun = float(self._record.get("seconds", 0.0)), self.clock()
        self._tokens = int(self._record.get("tokens", 0))
        if checkpoint is not None:
            self.resumed_from = int(checkpoint.rpartition("-")[2])
            minutes = self._spent / 60
            self._say(f"{trainer.args.output_dir}: resuming after step {self.resumed_from:,} ({minutes:.1f} minutes)")
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        bar = progress("training", self.budget, shown=is_first(), lines=False)
        with interruptible() as self._interrupted, bar as self._bar:
            self._last = self._saved = self._told = self.elapsed()
            trainer.train(resume_from_checkpoint=checkpoint)
            finished = not self._stopped
        trainer.remove_callback(self)
        if not finished:
            remedy = "; the same call resumes there" if self.keep else ""
            self._say(f"stopped after {trainer.state.global_step:,} steps{remedy}")
        return finished

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.budget is None:
            self._bar.update(self._bar.task_ids[0], total=state.max_steps)
        resumed(self._bar, int(state.global_step if self.budget is None else self._last))

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        now = self.elapsed()
        interrupted = self._interrupted.is_set()
        if world() > 1:  # all stop and save at the same step
            now = from_first(now)
            interrupted = total([float(interrupted)], args.device)[0] > 0
        step, self._last = now - self._last, now
        self._record.setdefault("step_seconds", []).append(round(step, 6))
        self._stopped = interrupted
        if interrupted or (self.budget is not None and now + step > self.budget):
            control.should_training_stop = True
        if self.keep and (interrupted or now - self._saved >= self.checkpoint_seconds):
            control.should_save = True
            self._saved = now
        self._record["seconds"] = now

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if not logs or "loss" not in logs:
            return
        done = state.global_step if self.budget is None else self._last
        read, seconds = int(self._record.get("tokens", 0)) - self._tokens, self._last - self._spent
        told = [f"step {state.global_step:,}", f"loss {logs['loss']:.3f}"]
        if read and seconds > 0:
            told.append(f"{read / seconds:,.0f} tokens/s")
        if phase := self._record.get("phase"):
            told.append(str(phase))
        self._bar.update(self._bar.task_ids[0], completed=int(done), description=", ".join(told))
        if self._last - self._told >= _LINE_SECONDS:
            self._told = self._last
            if not stderr().is_terminal:
                told[0] += f" of {state.max_steps:,}" if self.budget is None else ""
                self._say(f"training: {', '.join([*told, *self._time(state)])}")

    def _time(self, state: Any) -> list[str]:
        """What has passed of the budget; without one, what is left at the pace of this call, while there is some."""
        if self.budget is not None:
            return [f"{self._last / 60:.1f} of {self.budget / 60:.1f} minutes"]
        pace = (self._last - self._spent) / max(1, state.global_step - self.resumed_from)
        left = pace * (state.max_steps - state.global_step)
        return [f"about {duration(left)} left"] * (left > 0)

    def _say(self, message: str) -> None:
        if is_first():
            say(message)


def loss_history(trainer: Trainer) -> list[dict[str, float]]:
    """What a trainer has logged: per step the loss, its terms (`loss_…`), the learning rate, and `eval_…` values."""
    return [
        {
            key: float(value)
            for key, value in entry.items()
            if key in ("step", "learning_rate") or key.startswith(("loss", "eval_"))
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
