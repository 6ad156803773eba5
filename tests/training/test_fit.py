"""`fit` on toys: what it trains, keeps, refuses and reports, and that nothing that stops it changes the result."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import python
from torch import nn
from toys import Clock, Line, Squares, points, same, weights
from transformers import TrainerCallback

from broadsheet.console import InputError
from broadsheet.models import attention
from broadsheet.training.fit import FitConfig, fit
from broadsheet.training.objective import NextTokens, Phase
from broadsheet.training.schedules import SCHEDULES
from broadsheet.training.trainer import ObjectiveTrainer

QUICK: dict[str, Any] = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "autocast": "none"}
ALWAYS = QUICK | {"checkpoint_minutes": 1e-9}  # a checkpoint after each step


class StopError(Exception):
    pass


class Failing(Squares):
    """Raises at its n-th loss, and once alone."""

    def __init__(self, at: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.left = at

    def loss(self, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.stop()
        return super().loss(*args)

    def stop(self) -> None:
        raise StopError


Failing.__name__ = "Squares"  # as it is recorded


KILLED = """
import os, signal, sys
from pathlib import Path
from toys import Line, Squares, points
from broadsheet.training.fit import fit
from broadsheet.training.trainer import ObjectiveTrainer

save = ObjectiveTrainer._save_checkpoint

def save_or_die(self, *arguments):
    if self.state.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, *arguments)

ObjectiveTrainer._save_checkpoint = save_or_die
fit(Line(), points(), Squares(), Path(sys.argv[1]), steps=8, batch_size=4, learning_rate=1e-2, autocast="none",
    checkpoint_minutes=1e-9, accumulate=2)
"""


def test_a_killed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = Line(), Line()
    one = fit(whole, points(), Squares(), tmp_path / "whole", accumulate=2, **ALWAYS)
    killed = python(KILLED, tmp_path / "cut")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "cut").exists()
    (tmp_path / "cut.partial" / "checkpoint-99").mkdir()  # what a kill leaves of one
    other = fit(resumed, points(), Squares(), tmp_path / "cut", accumulate=2, **ALWAYS)
    assert other.resumed_from == 5
    assert (other.steps, other.examples, other.tokens) == (one.steps, one.examples, one.tokens) == (8, 64, 192)
    assert other.history == one.history
    assert same(resumed, whole)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("at", [1, 3, 4, 8])
def test_a_training_of_phases_resumes_in_the_one_it_was_cut_off_in(tmp_path: Path, at: int) -> None:
    phases = [Phase("first", 3), Phase("second", 5)]
    options = {name: value for name, value in ALWAYS.items() if name != "steps"}
    whole, resumed = Line(), Line()
    one = fit(whole, points(), Squares(phases=phases), **options)
    assert one.steps == 8
    with pytest.raises(StopError):
        fit(Line(), points(), Failing(at, phases=phases), tmp_path / "out", **options)
    objective = Squares(phases=phases)
    other = fit(resumed, points(), objective, tmp_path / "out", **options)
    assert other.resumed_from == at - 1
    assert [collated for collated, _ in objective.seen] == (["first"] * 3 + ["second"] * 5)[at - 1 :]
    assert all(collated == known for collated, known in objective.seen)
    assert same(whole, resumed)
    with pytest.raises(InputError, match="steps 9 for phases of 8"):
        fit(Line(), points(), Squares(phases=phases), **options | {"steps": 9})


def test_a_run_resumes_with_the_same_settings_rows_and_model_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StopError):
        fit(Line(), points(), Failing(4), out, **ALWAYS)
    with pytest.raises(InputError, match=r"learning_rate 0\.01, now 0\.1: resume with the same"):
        fit(Line(), points(), Squares(), out, **ALWAYS | {"learning_rate": 0.1})
    with pytest.raises(InputError, match=r"objective\.noise 0\.1, now 0\.3"):
        fit(Line(), points(), Squares(noise=0.3), out, **ALWAYS)
    with pytest.raises(InputError, match="other rows:"):
        fit(Line(), points(25), Squares(), out, **ALWAYS)
    with pytest.raises(InputError, match="other model:"):
        fit(Line(), points(), Squares(), out, identity="another", **ALWAYS)
    done = fit(Line(), points(), Squares(), out, **ALWAYS | {"minutes": 60, "checkpoint_minutes": 10})
    assert (done.resumed_from, done.steps) == (3, 8)


def test_a_finished_out_is_refused_or_replaced_and_what_is_something_else_left_alone(tmp_path: Path) -> None:
    assert fit(Line(), points(), Squares(), tmp_path / "out", **QUICK).folder == tmp_path / "out"
    with pytest.raises(InputError, match="is finished"):
        fit(Line(), points(), Squares(), tmp_path / "out", **QUICK)
    fit(Line(), points(), Squares(), tmp_path / "out", force=True, **QUICK | {"steps": 2})
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(InputError, match="no saved poem"):
        fit(Line(), points(), Squares(), tmp_path / "notes", force=True, kind="poem", **QUICK)


def test_a_finished_out_of_the_same_call_can_be_used_again(tmp_path: Path) -> None:
    done = fit(Line(), points(), Squares(), tmp_path / "out", **QUICK)
    again = fit(Line(), points(), Failing(1), tmp_path / "out", reuse=True, **QUICK | {"minutes": 9})
    assert again == replace(done, resumed_from=8)
    with pytest.raises(InputError, match=r"was made with other rows; steps 8, now 9: choose"):
        fit(Line(), points(9), Squares(), tmp_path / "out", reuse=True, **QUICK | {"steps": 9})
    assert fit(Line(), points(), Squares(), tmp_path / "new", reuse=True, **QUICK).resumed_from == 0


def test_the_record_says_what_was_done_and_from_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/broadsheet", "apply", "two words"])
    done = fit(Line(), points(), Squares(), tmp_path / "out", save=lambda folder: (folder / "own").touch(), **QUICK)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["settings"]["objective"] == {"name": "Squares", "noise": 0.1}
    assert record["settings"]["learning_rate"] == 1e-2
    assert (record["steps"], record["examples"], record["history"]) == (8, 32, done.history)
    assert record["command"] == "broadsheet apply 'two words'"
    assert record["versions"]["torch"] == version("torch")
    assert len(record["rows"]) == len(record["model"]) == 16
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "own", "training.json"]
    assert done.last_loss == done.history[-1]["loss"]


def test_what_cannot_be_written_leaves_the_checkpoints(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(InputError, match=r"cannot write .*disk full"):
        fit(Line(), points(), Squares(), tmp_path / "out", save=full, **ALWAYS)
    assert not (tmp_path / "out").exists()
    assert fit(Line(), points(), Squares(), tmp_path / "out", **ALWAYS).resumed_from == 8


def test_ctrl_c_stops_after_the_step_and_the_call_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupting(Failing):
        def stop(self) -> None:
            signal.raise_signal(signal.SIGINT)

    Interrupting.__name__ = "Squares"
    whole, resumed = Line(), Line()
    fit(whole, points(), Squares(), **QUICK)
    done = fit(Line(), points(), Interrupting(3), tmp_path / "out", **QUICK)
    assert (done.finished, done.steps, done.folder) == (False, 3, None)
    assert not (tmp_path / "out").exists()
    assert "stopped after 3 steps; the same call resumes there" in capsys.readouterr().err
    rest = fit(resumed, points(), Squares(), tmp_path / "out", **QUICK)
    assert (rest.finished, rest.resumed_from, rest.steps) == (True, 3, 8)
    assert same(whole, resumed)
    with pytest.raises(KeyboardInterrupt):  # without a folder there is nothing to resume
        fit(Line(), points(), Interrupting(3), **QUICK)


def test_a_loss_that_is_not_finite_ends_with_one_line() -> None:
    model = Line()
    model.bias.data.fill_(math.inf)
    with pytest.raises(InputError, match="the loss is inf at step 0"):
        fit(model, points(), Squares(), **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0"),
        ({"epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"minutes": 0}, "minutes 0"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes 0"),
        ({"method": "half"}, "method 'half'"),
        ({"method": "lora"}, "Line holds no transformers model"),
        ({"warmup": 1}, "warmup 1"),
        ({"schedule": "step"}, "schedule 'step'; expected one of cosine, linear, constant"),
        ({"autocast": "float8"}, "autocast 'float8'"),
        ({"report_to": "a_diary"}, "report_to a_diary, which is not installed"),
        ({"stepz": 3}, "stepz.*expected fields of FitConfig"),
        ({"steps": None, "batch_size": 25}, "24 rows make no batch of 25"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(Line(), points(), Squares(), tmp_path / "out", **QUICK | options)
    assert not (tmp_path / "out").exists()


def test_rows_and_objectives_that_cannot_be() -> None:
    with pytest.raises(InputError, match="got no rows"):
        fit(Line(), [], Squares())
    with pytest.raises(InputError, match="got a list; expected an Objective"):
        fit(Line(), points(), [])


def test_rows_come_in_an_order_of_seed_and_epoch_or_their_own() -> None:
    class Kept(Squares):
        rows: list[float]

        def collate(self, items: Any) -> Any:
            self.rows = [*getattr(self, "rows", []), *(x for _, (x, _) in items)]
            return super().collate(items)

    def order(rows: Any, **options: Any) -> list[float]:
        objective = Kept()
        fit(Line(), rows, objective, **QUICK | {"steps": None, "batch_size": 5} | options)
        assert [place for each in objective.places for place in each] == list(range(len(objective.rows)))
        return objective.rows

    plain = [x for x, _ in points(10)]
    one = order(points(10), epochs=2)
    assert one[:10] != one[10:]
    assert sorted(one[:10]) == sorted(one[10:]) == plain
    assert order(points(10), epochs=2) == one
    assert order(points(10), epochs=2, seed=1) != one
    assert len(order(points(11))) == 10
    assert len(order(points(11), drop_last=False)) == 11

    class Ordered:
        in_order = True

        def __len__(self) -> int:
            return 10

        def __getitem__(self, place: int) -> Any:
            return points(10)[place]

    assert order(Ordered()) == plain


def test_rows_of_an_extra_batch_join_each_pass_and_count_for_no_epoch() -> None:
    objective = Squares(extra=points(6))
    done = fit(Line(), points(8), objective, **QUICK | {"steps": None, "epochs": 2})
    assert (done.steps, done.examples) == (4, 4 * (4 + 2))
    extra = [place for places in objective.places for place in places[4:]]
    assert len(set(extra)) == len(extra) == 8
    assert max(extra) < 0


def test_one_pass_or_several_take_the_same_step() -> None:
    one, other = Line(dropout=0), Line(dropout=0)
    fit(one, points(), Squares(noise=0), **QUICK)
    fit(other, points(), Squares(noise=0), **QUICK | {"batch_size": 1, "accumulate": 4})
    torch.testing.assert_close(weights(one), weights(other), atol=1e-6, rtol=1e-5)


def test_terms_and_what_is_measured_after_a_step_are_in_the_history() -> None:
    class Measured(Squares):
        def after_step(self, model: Any, step: int) -> dict[str, float]:
            return {"bias": float(model.bias)} if step % 2 == 0 else {}

    model = Line()
    done = fit(model, points(), Measured(noise=0), **QUICK)
    assert [entry["step"] for entry in done.history] == list(range(1, 9))
    assert all(entry["loss"] == pytest.approx(entry["loss_error"]) for entry in done.history)
    assert ["eval_bias" in entry for entry in done.history] == [False, True] * 4
    assert done.history[-1]["eval_bias"] == pytest.approx(float(model.bias))


def test_the_rate_follows_a_schedule_by_name_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setitem(SCHEDULES, "halves", lambda progress, warmup: seen.append(progress) or 0.5**progress.step)
    options = QUICK | {"learning_rate": 0.25}
    done = fit(Line(), points(16), Squares(), schedule="halves", **options)
    assert [entry["learning_rate"] for entry in done.history] == [0.25 * 0.5**step for step in range(8)]
    assert {(each.steps, each.epoch_steps) for each in seen} == {(8, 4)}
    linear = fit(Line(), points(), Squares(), schedule="linear", warmup=0.25, **options)
    rates = [entry["learning_rate"] for entry in linear.history]
    assert rates == pytest.approx([0.025, 0.125, 0.25, *(0.25 * (1 - i / 6) for i in range(1, 6))])


def test_groups_of_parameters_have_their_own_rates() -> None:
    class Grouped(Squares):
        def parameter_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
            assert (learning_rate, weight_decay) == (1e-2, 0.1)
            return [
                {"params": [model.weight], "lr": learning_rate, "weight_decay": weight_decay},
                {"params": [model.bias], "lr": 0.0, "weight_decay": 0.0},
            ]

    model = Line()
    fit(model, points(), Grouped(), weight_decay=0.1, **QUICK)
    assert model.weight.abs().min() > 0
    assert model.bias == 0


def test_an_objective_that_is_a_module_is_trained_and_resumed_too(tmp_path: Path) -> None:
    class Scaled(Failing, nn.Module):
        def __init__(self, at: int = 0) -> None:
            nn.Module.__init__(self)
            Failing.__init__(self, at)
            self.scale = nn.Parameter(torch.ones(()))

        def loss(self, *args: Any) -> Any:
            return {"loss": super().loss(*args)["loss"] * self.scale.exp()}

    Scaled.__name__ = "Scaled"
    whole, resumed = Scaled(), Scaled()
    fit(Line(), points(), whole, **QUICK)
    with pytest.raises(StopError):
        fit(Line(), points(), Scaled(5), tmp_path / "out", **ALWAYS)
    fit(Line(), points(), resumed, tmp_path / "out", **ALWAYS)
    assert float(whole.scale) < 1
    assert torch.equal(whole.scale, resumed.scale)


def test_given_parameters_alone_are_trained() -> None:
    model = Line()
    model.bias.requires_grad_(False)
    fit(model, points(), Squares(), method="given", **QUICK)
    assert model.bias == 0
    assert model.weight.abs().min() > 0
    assert not model.training


def test_losses_are_computed_in_the_type_asked_for_but_weights_stay() -> None:
    class Typed(Squares):
        types: set[Any] = set()  # noqa: RUF012

        def loss(self, *args: Any) -> Any:
            found = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            self.types = {*self.types, found}
            return super().loss(*args)

    class Own(Line):
        autocast = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.autocast == torch.bfloat16
            return super().forward(x)

    narrow = Typed()
    model = Line()
    fit(model, points(), narrow, **QUICK | {"autocast": "bfloat16"})
    assert narrow.types == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
    own, apart = Own(), Typed()
    fit(own, points(), apart, **QUICK | {"autocast": "bfloat16"})
    assert (apart.types, own.autocast) == ({None}, None)


def test_short_texts_are_attended_to_by_products_in_a_training_alone(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    apply = attention.AttentionByProducts.apply
    monkeypatch.setattr(
        attention.AttentionByProducts,
        "apply",
        lambda query, *given: lengths.append(query.shape[2]) or apply(query, *given),
    )
    model, ids = tiny_model(), torch.arange(3, 23)
    rows = [{"input_ids": ids, "labels": ids} for _ in range(4)]
    fit(model, rows, NextTokens(), **QUICK | {"autocast": "bfloat16", "steps": 1})
    assert lengths == [20] * model.config.num_hidden_layers
    assert model.config._attn_implementation == "sdpa"


def test_activations_are_computed_again_where_that_is_asked_for() -> None:
    class Saving(Line):
        saving = False

        def activation_checkpointing_enable(self, **settings: Any) -> None:
            self.saving = True

    for wanted in (False, True):
        model = Saving()
        fit(model, points(), Squares(), gradient_checkpointing=wanted, **QUICK | {"steps": 1})
        assert model.saving is wanted


def test_minutes_end_a_training_and_its_progress_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    done = fit(Line(), points(), Squares(), clock=clock, **QUICK | {"minutes": 2.0, "steps": 1000})
    assert done.finished
    assert 20 < done.steps < 120
    assert clock.now <= 123
    assert done.history[-1]["learning_rate"] < 0.15 * 1e-2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: step ")]
    assert len(lines) == 3
    assert " tokens/s, 0.5 of 2.0 minutes" in lines[0]
    assert "loss " in lines[0]
    fit(Line(), points(), Squares(), clock=Clock(), **QUICK | {"steps": 120})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: step ")]
    assert [re.search(r"step (\d+) of 120", line)[1] for line in lines] == ["30", "60", "90", "120"]  # type: ignore[index]
    found = [re.search(r", about ([\d.]+) (s|min) left$", line) for line in lines]
    seconds = [float(each[1]) * {"s": 1, "min": 60}[each[2]] for each in found if each]
    assert seconds == pytest.approx([90, 60, 30], rel=0.1), "a second a step, and nothing is told at the end"


class Diary(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        folder = Path(args.output_dir) / "runs"
        folder.mkdir(exist_ok=True)
        with (folder / "diary").open("a") as file:
            file.write(f"{state.global_step} {'loss' in logs and 'loss_error' in logs}\n")


def test_reports_go_where_trainer_sends_them_and_stay_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules["transformers.integrations.integration_utils"].INTEGRATION_TO_CALLBACK, "d", Diary)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["d"])
    fit(Line(), points(), Squares(), tmp_path / "out", report_to="d", **QUICK | {"steps": 2})
    assert (tmp_path / "out" / "runs" / "diary").read_text().startswith("1 True\n2 True\n")


def test_the_global_generators_and_settings_are_as_they_were() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    config = FitConfig(**QUICK)
    fit(Line(), points(), Squares(), config=config, steps=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert config.steps == 8
    assert FitConfig(method="lora").rate == 10 * FitConfig().rate
    assert ObjectiveTrainer.loss_is_scaled_for_ga is False
