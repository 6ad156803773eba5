"""Timed runs around any `Trainer`: the rate follows the clock, the run ends in time, or resumes as if never cut off."""

from __future__ import annotations

import signal

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from toys import Clock

from broadsheet.console import InputError
from broadsheet.training.checkpoints import AtomicCheckpointTrainer, checkpoint_record
from broadsheet.training.schedules import SCHEDULES, Progress, schedule
from broadsheet.training.timed import ARGUMENTS, ScheduledByProgress, TimedRun, loss_history

WORDS = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st", "uv", "wx"]


class EmbedTrainer(AtomicCheckpointTrainer, ScheduledByProgress, SentenceTransformerTrainer):
    """sentence-transformers' trainer with the shared parts before it; `at` is called before each step."""

    at = staticmethod(lambda step: None)

    def training_step(self, *args, **options):
        self.at(self.state.global_step)
        return super().training_step(*args, **options)


@pytest.fixture
def trainer(tiny_tokenizer):
    def make(folder, run, epochs=4):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        embedding = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
        model = SentenceTransformer(modules=[embedding], device="cpu")
        pairs = [(f"{a} {b}", f"{b} {a}") for a in WORDS[:6] for b in WORDS[6:10]]
        arguments = SentenceTransformerTrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            use_cpu=True,
            **ARGUMENTS,
        )
        return EmbedTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]}),
            loss=MultipleNegativesRankingLoss(model),
            progress=run.progress,
            schedule=schedule("linear", 0.2),
        )

    return make


def test_the_rate_rises_from_a_tenth_and_falls_to_nothing():
    def rates(name, warmup):
        factor = schedule(name, warmup)
        return [factor(Progress(i / 100, i, 100, 100)) for i in range(101)]

    for name, end in {"cosine": 0, "linear": 0, "constant": 1}.items():
        values = rates(name, 0.2)
        assert values[0] == 0.1
        assert values[:21] == sorted(values[:21])
        assert values[20] == 1
        assert values[20:] == sorted(values[20:], reverse=True)
        assert values[-1] == end
    assert rates("linear", 0.0)[0] == 1
    assert rates("cosine", 0.0)[50] == pytest.approx(0.5)
    assert {"cosine", "linear", "constant"} <= SCHEDULES.keys()


def test_minutes_are_above_none():
    with pytest.raises(InputError, match="minutes 0"):
        TimedRun(0)
    with pytest.raises(InputError, match="checkpoint_minutes -1"):
        TimedRun(None, -1)


def test_the_time_ends_a_run_and_steers_its_rate(trainer, tmp_path):
    clock = Clock()
    run = TimedRun(1, keep=False, clock=clock)
    embedder = trainer(tmp_path, run, epochs=100)
    assert run.train(embedder)
    assert 5 < embedder.state.global_step < 60
    assert 55 < run.elapsed() <= 62
    rates = [entry["learning_rate"] for entry in loss_history(embedder)]
    assert max(rates) > 0.009
    assert rates[-1] < 0.002
    assert not list(tmp_path.glob("checkpoint-*"))


def test_without_a_limit_the_rate_follows_the_steps(trainer, tmp_path):
    run = TimedRun(None, keep=False, clock=Clock())
    embedder = trainer(tmp_path, run)
    assert run.train(embedder)
    assert embedder.state.global_step == 24
    history = loss_history(embedder)
    assert [entry["step"] for entry in history] == list(range(1, 25))
    assert history[-1]["learning_rate"] == pytest.approx(0.01 * (1 - (23 / 24 - 0.2) / 0.8))


def test_checkpoints_come_by_the_clock(trainer, tmp_path):
    run = TimedRun(None, 0.2, clock=Clock())
    embedder = trainer(tmp_path, run)
    run.train(embedder)
    seconds = sorted(checkpoint_record(path)["seconds"] for path in tmp_path.glob("checkpoint-*"))
    assert len(seconds) == 2
    assert 12 <= seconds[1] - seconds[0] <= 15


def test_a_run_cut_off_ends_as_an_uninterrupted_one(trainer, tmp_path, capsys):
    whole = trainer(tmp_path / "whole", TimedRun(None, 1e-9))
    TimedRun(None, 1e-9).train(whole)

    def fail(step):
        if step == 9:
            raise RuntimeError("cut off")

    cut = trainer(tmp_path / "cut", TimedRun(None))
    cut.at = fail
    with pytest.raises(RuntimeError, match="cut off"):
        TimedRun(None, 1e-9).train(cut)
    run = TimedRun(None, 1e-9)
    rest = trainer(tmp_path / "cut", run)
    assert run.train(rest)
    assert run.resumed_from == 9
    assert "resuming after step 9 (" in capsys.readouterr().err
    assert loss_history(rest) == loss_history(whole)
    one, other = (each.model.state_dict() for each in (whole, rest))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ctrl_c_ends_a_run_after_its_step_with_a_checkpoint_and_time_counts_on(trainer, tmp_path, capsys):
    run = TimedRun(None, clock=Clock())
    embedder = trainer(tmp_path, run)
    embedder.at = lambda step: signal.raise_signal(signal.SIGINT) if step == 2 else None
    assert not run.train(embedder)
    assert embedder.state.global_step == 3
    assert "stopped after 3 steps; the same call resumes there" in capsys.readouterr().err
    spent = embedder.record["seconds"]
    run = TimedRun(None, clock=Clock())
    rest = trainer(tmp_path, run)
    assert run.train(rest)
    assert (run.resumed_from, rest.state.global_step) == (3, 24)
    assert run.elapsed() > spent + 20
