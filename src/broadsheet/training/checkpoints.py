"""Checkpoints that are complete or do not count, whatever kills the training that writes them.

Knows: the checkpoint folders of HF `Trainer`. Does not know: when one is due (`timed`), whose folder it is
(`workdir`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

from transformers import Trainer

from broadsheet.cache import atomic_write
from broadsheet.training.distributed import from_first, is_first, wait_for_all

COMPLETE = "complete.json"  # written into a checkpoint last: one without it was cut off


class AtomicCheckpointTrainer(Trainer):
    """A `Trainer` whose checkpoints are complete once they hold `complete.json`, with the counters in it.

    Put it before another subclass of `Trainer` to give that the same.

    Attributes:
        record: JSON values that belong to the state of the training, such as counters that `compute_loss` adds to. Each
            checkpoint keeps them, `resume_checkpoint` brings them back.

    Example:
        class EmbedTrainer(AtomicCheckpointTrainer, SentenceTransformerTrainer):
            pass

        trainer = EmbedTrainer(model=model, args=args, train_dataset=pairs, loss=loss)
        trainer.train(resume_from_checkpoint=trainer.resume_checkpoint())
    """

    def __init__(self, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.record: dict[str, Any] = {}

    def resume_checkpoint(self) -> str | None:
        """The newest complete checkpoint in `args.output_dir`, for `train(resume_from_checkpoint=…)`, or None.

        Takes `record` from it, and removes what a kill has left of others.
        """
        folder = Path(self.args.output_dir)
        checkpoint = from_first(newest_checkpoint(folder))
        for leftover in folder.glob("checkpoint-*") if is_first() else ():
            if checkpoint is None or not (leftover / COMPLETE).exists():
                shutil.rmtree(leftover)
        if checkpoint is None:
            return None
        kept = checkpoint_record(checkpoint)
        self.record.update({key: value for key, value in kept.items() if key != "step"})
        return str(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        wait_for_all()  # each process has written its random state
        if self.args.should_save:
            with atomic_write(folder / COMPLETE) as file:
                json.dump({"step": self.state.global_step, **self.record}, file)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step that is complete, or None; those cut off by a kill do not count."""
    found: dict[int, Path] = {}
    for record in folder.glob(f"checkpoint-*/{COMPLETE}"):
        try:
            found[int(json.loads(record.read_text("utf-8"))["step"])] = record.parent
        except (ValueError, KeyError, OSError):
            continue
    return found[max(found)] if found else None


def checkpoint_record(checkpoint: Path) -> dict[str, Any]:
    """What `complete.json` says: `step`, and what the trainer's `record` held."""
    return cast(dict[str, Any], json.loads((checkpoint / COMPLETE).read_text("utf-8")))
