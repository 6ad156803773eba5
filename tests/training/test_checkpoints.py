"""A checkpoint counts once it is complete, and brings the trainer's record back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from broadsheet.training.checkpoints import COMPLETE, AtomicCheckpointTrainer, checkpoint_record, newest_checkpoint


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, y):
        return {"loss": ((x * self.weight).sum(-1) - y).pow(2).mean()}


class Counting(AtomicCheckpointTrainer):
    def compute_loss(self, *args, **options):
        self.record["calls"] = self.record.get("calls", 0) + 1
        return super().compute_loss(*args, **options)


def counting(folder: Path, steps: int, **options) -> Counting:
    items = [{"x": torch.tensor([1.0, i]), "y": torch.tensor(float(i))} for i in range(4)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=2, save_total_limit=2, use_cpu=True, report_to=[], disable_tqdm=True,
        **options,
    )  # fmt: skip
    return Counting(model=Line(), args=arguments, train_dataset=items)


def make(folder: Path, records: dict[int, str | None]) -> None:
    for step, record in records.items():
        (folder / f"checkpoint-{step}").mkdir()
        if record is not None:
            (folder / f"checkpoint-{step}" / COMPLETE).write_text(record)


def test_a_checkpoint_without_its_last_file_does_not_count(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    make(tmp_path, {3: '{"step": 3}', 10: '{"step": 10}', 20: '{"st', 30: None})
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_going_on_takes_the_record_and_removes_what_a_kill_left(tmp_path):
    make(tmp_path, {4: '{"step": 4, "calls": 9}', 6: None})
    trainer = counting(tmp_path, 4)
    trainer.record = {"calls": 0, "other": 1}
    assert trainer.resume_checkpoint() == str(tmp_path / "checkpoint-4")
    assert trainer.record == {"calls": 9, "other": 1}
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    (tmp_path / "checkpoint-4" / COMPLETE).unlink()
    assert counting(tmp_path, 4).resume_checkpoint() is None
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_trainer_keeps_its_record_in_each_checkpoint_and_counts_on(tmp_path):
    first = counting(tmp_path, 4)
    first.train(resume_from_checkpoint=first.resume_checkpoint())
    assert [checkpoint_record(tmp_path / f"checkpoint-{n}") for n in (2, 4)] == [
        {"step": 2, "calls": 2}, {"step": 4, "calls": 4}
    ]  # fmt: skip
    rest = counting(tmp_path, 7)
    rest.train(resume_from_checkpoint=rest.resume_checkpoint())
    assert (rest.state.global_step, rest.record["calls"]) == (7, 7)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]


def test_a_checkpoint_written_again_is_not_complete_meanwhile(tmp_path, monkeypatch):
    make(tmp_path, {2: '{"step": 2}'})
    seen = []

    def save(self, model, trial):
        seen.append((tmp_path / "checkpoint-2" / COMPLETE).exists())
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", save)
    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path, 2).train()
    assert seen == [False]
    assert newest_checkpoint(tmp_path) is None
