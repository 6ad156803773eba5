"""Every training method in a Trainer of the reader's own and in `fit`: the same steps, by one process or by two."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer
from two_processes import both, leave

from broadsheet.train import SALT, DatasetDecomposition, DropStage, LossMethod, LossReweighting, MethodObjective
from broadsheet.train.salt import teacher_rows
from broadsheet.training.fit import fit
from broadsheet.training.scratch import Size, TokenBlocks, tokenizer

METHODS = {
    "plain": lambda: LossMethod(),
    "loss_reweighting": lambda: LossReweighting(burn_in=1),
    "salt": lambda: SALT(Size(1, 16, 2).model(20, 32, seed=9), steps=2),
}

# Which draw while they train: a Trainer and `fit`, or two processes and one, draw otherwise.
DRAWING = {"token_crisis": lambda: DropStage(0.3, start=1)}


def weights(model: Any) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def trained(
    model: Any, rows: Any, folder: Path, method: LossMethod | None, data_collator: Any = None, **arguments: Any
) -> torch.Tensor:
    """A model's weights after four steps of a Trainer, with a method or with the model's own loss."""
    settings = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "seed": 1,
        "remove_unused_columns": False, "optim": "sgd", "max_grad_norm": 0.0,
    } | arguments  # fmt: skip
    parts = {"compute_loss_func": method, "callbacks": [method]} if method else {}
    parts |= {"data_collator": data_collator} if data_collator else {}
    trainer = Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=rows, **parts)
    trainer.train()
    return weights(model)


def test_the_plain_method_is_the_models_own_loss(tiny, rows, tmp_path):
    own = trained(tiny(), rows, tmp_path, None, gradient_accumulation_steps=2)
    torch.testing.assert_close(trained(tiny(), rows, tmp_path, LossMethod(), gradient_accumulation_steps=2), own)
    uniform = LossReweighting("uniform", burn_in=0)
    torch.testing.assert_close(trained(tiny(), rows, tmp_path, uniform, gradient_accumulation_steps=2), own)


@pytest.mark.parametrize("name", METHODS)
def test_fit_takes_the_steps_that_a_trainer_takes(name, tiny, rows, tmp_path):
    model, other = tiny(), tiny()
    theirs = trained(model, rows, tmp_path / "t", METHODS[name](), train_sampling_strategy="sequential")
    ordered = TokenBlocks(rows.ids.flatten()[: 16 * 12], 12)
    ordered.in_order = True
    fit(
        other, ordered, MethodObjective(METHODS[name]()), steps=4, batch_size=4, learning_rate=1e-2, autocast="none",
        schedule="constant", warmup=0.0, optim="sgd", max_grad_norm=0.0,
    )  # fmt: skip
    torch.testing.assert_close(weights(other), theirs)
    assert not torch.allclose(weights(other), weights(tiny()))


@pytest.mark.parametrize("name", METHODS)
def test_trls_trainer_takes_the_steps_that_a_trainer_takes(name, tiny, rows, tmp_path):
    model = tiny()
    theirs = trained(model, rows, tmp_path / "t", METHODS[name](), train_sampling_strategy="sequential")
    other, method = tiny(), METHODS[name]()
    settings = SFTConfig(
        str(tmp_path / "s"), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True,
        lr_scheduler_type="constant", train_sampling_strategy="sequential", save_strategy="no", disable_tqdm=True,
        optim="sgd", max_grad_norm=0.0, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    given = Dataset.from_dict({"input_ids": rows.ids.tolist()})
    by = tokenizer(["which is not asked"], 257)
    trainer = SFTTrainer(
        other, settings, train_dataset=given, processing_class=by, compute_loss_func=method, callbacks=[method]
    )
    trainer.train()
    torch.testing.assert_close(weights(other), theirs)


HOW = {"full": {"autocast": "none"}, "lora": {"autocast": "none", "method": "lora"}, "bf16": {"autocast": "bfloat16"}}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", [*METHODS, *DRAWING])
def test_a_training_that_is_stopped_goes_on_as_one_that_is_not(name, how, tiny, rows, tmp_path):
    def run(out: Path, stop_at: int = 0) -> Any:
        class Stopping(MethodObjective):
            def loss(self, model, batch, generator):
                if self.step == stop_at and stop_at:
                    raise RuntimeError("stopped")
                return super().loss(model, batch, generator)

        Stopping.__name__ = "MethodObjective"
        model = tiny()
        settings = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "merge": True, **HOW[how]}
        fit(
            model, rows, Stopping((METHODS | DRAWING)[name]()), out, save=lambda to: model.save_pretrained(to),
            checkpoint_minutes=1e-9, **settings,
        )  # fmt: skip
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "cut", stop_at=3)
    assert torch.equal(weights(run(tmp_path / "cut")), weights(whole))
    assert not torch.allclose(weights(whole), weights(tiny()))
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(weights(read), weights(whole)), "what is saved is an ordinary model"


def test_steps_are_the_optimizers_whatever_the_accumulation(tiny, rows, tmp_path):
    class Noting(LossMethod):
        def loss(self, logits, labels, inputs):
            seen.append(self.step)
            return super().loss(logits, labels, inputs)

    for accumulate in (1, 3):
        seen: list[int] = []
        trained(tiny(), rows, tmp_path, Noting(), gradient_accumulation_steps=accumulate, max_steps=2)
        assert seen == [step for step in range(2) for _ in range(accumulate)]


@pytest.mark.parametrize("name", [*METHODS, *DRAWING])
def test_what_is_evaluated_meanwhile_is_the_plain_loss(name, tiny, rows, tmp_path):
    asked = [rows[i] for i in range(6)]
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 6}
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, learning_rate=0.0, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", **settings,
    )  # fmt: skip
    model, method = tiny(), (METHODS | DRAWING)[name]()
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=asked, compute_loss_func=method, callbacks=[method]
    )
    trainer.train()
    ids = rows.ids[:6]
    with torch.no_grad():
        plain = float(tiny().eval()(input_ids=ids, labels=ids).loss)
    told = [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]
    assert told == pytest.approx([plain] * 3, rel=1e-5)


def test_what_a_teacher_said_before_is_as_good_as_the_teacher(tiny, rows, tmp_path):
    teacher = tiny(9)
    live = trained(tiny(), rows, tmp_path, SALT(tiny(9), steps=2))
    kept = teacher_rows(teacher, rows, k=20)
    offline = trained(tiny(), kept, tmp_path, SALT(steps=2))
    torch.testing.assert_close(offline, live)
    fewer = trained(tiny(), teacher_rows(teacher, rows, k=3), tmp_path, SALT(steps=2))
    assert not torch.allclose(fewer, live)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    port = int((folder / "port").read_text())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {name: by_two(name, 2, folder) for name in METHODS} | {"lengths": lengths(2, folder)}
    torch.save(found, folder / f"process-{rank}.pt")
    leave()


def by_two(name: str, batch_size: int, folder: Path) -> list[torch.Tensor]:
    """Weights after a Trainer and after `fit`, whose steps read `batch_size` rows a process, in order."""
    ids = torch.randint(0, 20, (24 * 12,), generator=torch.Generator().manual_seed(3))
    rows, model, other = TokenBlocks(ids, 12), Size(1, 16, 2).model(20, 32, 0), Size(1, 16, 2).model(20, 32, 0)
    arguments = {"per_device_train_batch_size": batch_size, "train_sampling_strategy": "sequential"}
    theirs = trained(model, rows, folder / "t", METHODS[name](), **arguments)
    rows.in_order = True
    fit(
        other, rows, MethodObjective(METHODS[name]()), steps=4, batch_size=batch_size, learning_rate=1e-2,
        autocast="none", optim="sgd", schedule="constant", warmup=0.0, max_grad_norm=0.0,
    )  # fmt: skip
    return [theirs, weights(other)]


def lengths(parts: int, folder: Path) -> list[torch.Tensor]:
    """Weights after batches of one length each, every one shared out among the processes."""
    drawn = torch.Generator().manual_seed(5)
    documents = [torch.randint(0, 20, (3 + 2 * i % 31,), generator=drawn).tolist() for i in range(60)]
    model, other = Size(1, 16, 2).model(20, 32, 0), Size(1, 16, 2).model(20, 32, 0)
    rows = DatasetDecomposition(low=1, high=4, cycles=2).rows(documents, 32, parts=parts)
    arguments = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    theirs = trained(model, rows, folder / "t", None, data_collator=rows.collate, **arguments)
    fit(
        other, rows, MethodObjective(LossMethod()), steps=4, batch_size=1, learning_rate=1e-2, autocast="none",
        optim="sgd", schedule="constant", warmup=0.0, max_grad_norm=0.0,
    )  # fmt: skip
    return [theirs, weights(other)]


def test_two_processes_take_the_steps_that_one_takes(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(held.getsockname()[1]))
    both(work, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"process-{rank}.pt")
        for name in METHODS:
            for theirs, one in zip(found[name], by_two(name, 4, tmp_path), strict=True):
                assert torch.allclose(theirs, one, atol=1e-6, rtol=1e-4), name
        for theirs, one in zip(found["lengths"], lengths(1, tmp_path), strict=True):
            assert torch.allclose(theirs, one, atol=1e-6, rtol=1e-4)
