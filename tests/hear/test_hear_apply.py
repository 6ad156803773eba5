"""`broadsheet apply salmonn`: the stages in order, through kills; what is refused leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hearing import noise

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.hear.data.rows import AudioRow, read_rows
from broadsheet.hear.recipes import SalmonnRecipe
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training import activating, fitting
from broadsheet.hear.training.plan import open_data, planned

pytestmark = pytest.mark.usefixtures("home")

SMALL: dict[str, Any] = {
    "encoders": ("blocks",), "hidden": 64, "layers": 1, "batch_size": 2, "minutes": 0.0, "steps": (2,)
}  # fmt: skip
SMALL["story_steps"] = 2


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[AudioRow]]:
    """Stories are written at once, and the rows that they were asked of are noted; a tiny model writes none."""
    asked: list[list[AudioRow]] = []

    def write(model: Any, rows: Any, **settings: Any) -> list[AudioRow]:
        asked.append(list(rows))
        return [AudioRow("story", row.audio, "once upon a time", row.instruction or "Tell.") for row in rows]

    monkeypatch.setattr(activating, "write_stories", write)
    return asked


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder as `make-data` makes it: four clips, six rows in each trained stage, four clips for stories."""
    folder = tmp_path / "made"
    (folder / "audio").mkdir(parents=True)
    for place in range(4):
        soundfile.write(folder / "audio" / f"{place}.wav", noise(16_000, seed=place).numpy(), 16_000)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    clips = [{"audio": f"audio/{place % 4}.wav"} for place in range(6)]
    write("stage1.jsonl", [{"task": "asr", "answer": f"word {place}", **clip} for place, clip in enumerate(clips)])
    write("stage2.jsonl", [{"task": "sound", "answer": f"sound {place}", **clip} for place, clip in enumerate(clips)])
    write("stories.jsonl", [{"task": "story", "answer": "", **clip} for clip in clips[:4]])
    return folder


@pytest.fixture
def train(tiny_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(data: Path, out: str = "ears", *, force: bool = False, on_error: Any = "stop", **options: Any) -> Any:
        start = {} if "start" in options else {"model": str(tiny_folder), **SMALL}
        recipe = SalmonnRecipe(**{**start, **options})
        return recipe.run(Source(str(data), on_error), tmp_path / out, force=force)

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        f"{name} {key}": tensor
        for name in ("connector.safetensors", "adapter_model.safetensors")
        for key, tensor in load_file(folder / name).items()
    }


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stages(out: Path) -> list[str]:
    return [stage["stage"] for stage in json.loads((out / "training.json").read_text())["stages"]]


def test_a_folder_is_trained_stage_after_stage(
    train: Callable, made: Path, told: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(made, story_steps=3, keep_stages=True)
    assert (done.finished, done.documents) == (True, 2 * 2 + 2 * 2 + 3)
    assert stages(tmp_path / "ears") == ["1", "2", "3"]
    account = json.loads((tmp_path / "ears" / "training.json").read_text())["stages"]
    assert [(stage["rows"], stage["steps"], stage["examples"]) for stage in account] == [
        (6, 2, 4),
        (6, 2, 4),
        (3, 3, 3),
    ]
    assert [len(rows) for rows in told] == [3]
    kept = [tmp_path / f"ears.stage{name}" for name in "123"]
    assert same(kept[2], tmp_path / "ears")
    assert not same(kept[0], kept[1])
    assert not same(kept[1], kept[2])
    model = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "ears")
    assert isinstance(model.answer(made / "audio" / "0.wav", "What?", max_new_tokens=2), str)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("ears")} == {
        "ears",
        *(f"ears.stage{name}" for name in "123"),
    }
    said = capsys.readouterr().err
    assert "stage 1: 2 steps, 4 rows" in said
    assert f"broadsheet hear listen CLIP.wav 'What is said?' --model {tmp_path / 'ears'}" in said


def test_the_stories_that_were_learnt_are_beside_the_model(
    train: Callable, made: Path, told: list, tmp_path: Path
) -> None:
    train(made, stages="3", story_steps=2)
    stories = read_rows(tmp_path / "ears" / "stories.jsonl")
    assert [row.answer for row in stories] == ["once upon a time"] * 2
    assert all(Path(clip).is_file() for row in stories for clip in row.audio)


def test_stories_are_learnt_beside_rows_of_the_stage_before(
    train: Callable, made: Path, told: list, tmp_path: Path
) -> None:
    train(made, rehearse=3, story_learning_rate=1e-3, keep_stages=True)
    account = json.loads((tmp_path / "ears" / "training.json").read_text())["stages"]
    assert [(stage["steps"], stage["examples"]) for stage in account] == [(2, 4), (2, 4), (2, 2 * 4)]
    settings = account[2]["settings"]
    assert (settings["objective"]["rehearsed"], settings["learning_rate"]) == (3, 1e-3)
    train(made, "alone", stages="3", start=str(tmp_path / "ears.stage2"), rehearse=2, story_steps=2)
    account = json.loads((tmp_path / "alone" / "training.json").read_text())["stages"]
    assert [(stage["stage"], stage["examples"]) for stage in account] == [("3", 2 * 3)]
    before = planned(open_data(str(made)), "3", rehearse=True)[0].rehearse
    assert [row.task for row in before] == ["sound"] * 6
    (made / "stage2.jsonl").unlink()
    assert planned(open_data(str(made)), "3", rehearse=True)[0].rehearse[0].task == "asr"
    with pytest.raises(InputError, match=r"holds no stage2\.jsonl .*to rehearse"):
        train(made / "stories.jsonl", "none", stages="3", start=str(tmp_path / "ears.stage2"), rehearse=2)


def test_a_stage_can_be_trained_alone(train: Callable, made: Path, tmp_path: Path) -> None:
    train(made, stages="2")
    assert stages(tmp_path / "ears") == ["2"]


def test_a_file_of_rows_is_one_stage_and_clips_may_follow(
    train: Callable, made: Path, told: list, tmp_path: Path
) -> None:
    train(made / "stage2.jsonl")
    assert stages(tmp_path / "ears") == ["1"]
    assert not told
    train(made / "stage2.jsonl", "free", activate=str(made), story_steps=2)
    assert stages(tmp_path / "free") == ["1", "3"]
    train(made, "bound", activate="no")
    assert stages(tmp_path / "bound") == ["1", "2"]


@pytest.mark.parametrize("killed", [1, 2])
def test_a_killed_run_goes_on_with_the_next_stage_and_learns_the_same(
    train: Callable, made: Path, told: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    train(made, "whole", story_steps=2)
    real, begun = fitting.fit, 0

    def until_killed(*arguments: Any, **settings: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == killed + 1:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    for module in (fitting, activating):
        monkeypatch.setattr(module, "fit", until_killed)
    with pytest.raises(KeyboardInterrupt):
        train(made, "cut", story_steps=2)
    assert not (tmp_path / "cut").exists()
    train(made, "cut", story_steps=2)
    assert begun == killed + 1 + (3 - killed)
    assert len(told) == 2, "stories are written once for each model"
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_a_run_goes_on_with_the_same_settings_alone(
    train: Callable, made: Path, told: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(activating, "activate", interrupted)
        train(made)
    with pytest.raises(InputError, match=r"begun with other learning_rate 0\.0003, now 0\.1"):
        train(made, learning_rate=0.1)
    train(made)
    with pytest.raises(InputError, match="finished; choose another out"):
        train(made)
    assert train(made, force=True, stages="1").finished


def test_the_warm_start_is_off_unless_it_is_asked_for(train: Callable, made: Path, tmp_path: Path) -> None:
    assert SalmonnRecipe().warm_start_steps == 0
    train(made, "cold", stages="1", keep_stages=True)
    train(made, "warm", stages="1", warm_start_steps=2, keep_stages=True)
    assert stages(tmp_path / "warm") == ["warm", "1"]
    assert not same(tmp_path / "warm", tmp_path / "cold")
    warm = weights(tmp_path / "warm.stagewarm")
    assert all(not bool(weight.any()) for name, weight in warm.items() if "lora_B" in name), "the adapter is left alone"


def test_start_goes_on_from_a_trained_folder(train: Callable, made: Path, tmp_path: Path) -> None:
    train(made, "first", stages="1")
    still = {"learning_rate": 0.0, "lora_learning_rate": 0.0, "steps": (1,), "batch_size": 2, "minutes": 0.0}
    train(made, "second", stages="2", start=str(tmp_path / "first"), **still)
    assert same(tmp_path / "second", tmp_path / "first")
    train(made, "third", stages="2", start=str(tmp_path / "first"), **{**still, "learning_rate": 0.01})
    assert not same(tmp_path / "third", tmp_path / "first")


def test_a_model_that_tells_no_stories_is_kept_for_a_weaker_adapter(
    made: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[str] = []
    fit = fitting.fit

    def noted(model: Any, rows: Any, out: Any, **settings: Any) -> Any:
        trained.append(Path(out).name)
        return fit(model, rows, out, **settings)

    def write(model: Any, rows: Any, *, factor: float, **settings: Any) -> list[AudioRow]:
        if factor == 0.5:
            raise InputError("no story; give a smaller factor")
        return [AudioRow("story", row.audio, "once upon a time", "Tell.") for row in rows]

    monkeypatch.setattr(fitting, "fit", noted)
    monkeypatch.setattr(activating, "write_stories", write)
    with pytest.raises(InputError, match="smaller factor"):
        train(made)
    before = list(trained)
    assert not (tmp_path / "ears").exists()
    assert train(made, factor=0.1).finished
    assert trained == before  # stages 1 and 2 stand, and are not trained again
    assert (tmp_path / "ears" / "config.json").exists()


def test_rows_about_something_else_are_asked_for_a_story(
    train: Callable, made: Path, told: list, tmp_path: Path
) -> None:
    lines = [
        {"task": "asr", "audio": "audio/0.wav", "instruction": "What is said?", "answer": "word"},
        {"task": "story", "audio": "audio/1.wav", "instruction": "Tell a tale."},
        {"instruction": "Say more.", "audio": "audio/2.wav"},
    ]
    (made / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(made / "clips.jsonl", stages="3", story_steps=3)
    assert {Path(row.audio[0]).stem: (row.task, row.instruction, row.answer) for row in told[0]} == {
        "0": ("story", "", ""),
        "1": ("story", "Tell a tale.", ""),
        "2": ("story", "Say more.", ""),
    }


def test_unreadable_audio_stops_or_is_skipped_and_counted(
    train: Callable, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "audio" / "3.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"3\.wav is not audio"):
        train(made, stages="1")
    assert not (tmp_path / "ears.partial").exists(), "nothing was done yet, so nothing binds the next command"
    train(made, stages="1", on_error="skip")
    said = capsys.readouterr().err
    assert "1 rows skipped, such as:" in said
    assert "3.wav is not audio" in said
    assert json.loads((tmp_path / "ears" / "training.json").read_text())["stages"][0]["rows"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "4"}, "--stages '4'; expected one of 1, 2, 3, all"),
        ({"steps": (2, 3, 4)}, "--steps 2,3,4; expected a number from 1, or one for each of 2 stages"),
        ({"steps": (0,)}, "--steps 0"),
        ({"minutes": -1.0}, "got --minutes -1; expected 0 or more"),
        ({"batch_size": 0}, "got --batch-size 0; expected 1 or more"),
        ({"factor": -1.0}, "got --factor -1"),
        ({"rehearse": -1}, "got --rehearse -1"),
        ({"hidden": 100}, "--hidden 100; expected a multiple of 64"),
        ({"connector": "wire"}, "--connector 'wire'"),
        ({"encoders": ("ear",)}, "audio encoder 'ear'"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"stages": "1", "activate": "clips.jsonl"}, "--activate clips.jsonl with --stages 1"),
        ({"activate": "clips.jsonl"}, "clips.jsonl is no file of rows"),
        ({"start": "gone"}, "gone"),
        ({"start": "gone", "queries": 2, "encoders": ("blocks",)}, "--encoders, --queries with --start"),
        ({"lora_rank": 0}, "--lora-rank 0: activation tuning weakens an adapter"),
        ({"batch_size": 100, "steps": ()}, "make no batch of 100"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(
    train: Callable, made: Path, told: list, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        train(made, **options)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ears") and path.is_dir()]


@pytest.mark.parametrize("name", ["nowhere", "nowhere.jsonl", "empty"])
def test_data_has_to_be_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="`broadsheet hear make-data` makes one"):
        open_data(str(tmp_path / name))


def test_rows_without_an_answer_are_named_by_their_line(train: Callable, made: Path) -> None:
    (made / "stage1.jsonl").write_text('{"task": "asr", "audio": "audio/0.wav"}\n')
    with pytest.raises(InputError, match=r"stage1\.jsonl:1: no field 'answer'"):
        train(made)


# What is planned, without training


def plan(data: Path, stage: str = "all", **options: Any) -> Iterator[tuple[str, int, float | None, int | None]]:
    for stage_ in planned(open_data(str(data)), stage, **options):
        yield stage_.name, len(stage_.rows), stage_.minutes, stage_.steps


def test_minutes_are_for_the_whole_and_steps_for_each(made: Path) -> None:
    assert list(plan(made, minutes=30.0)) == [("1", 6, 20.0, None), ("2", 6, 10.0, None), ("3", 4, None, None)]
    assert list(plan(made, minutes=30.0, stage="2")) == [("2", 6, 30.0, None)]
    assert list(plan(made, minutes=0.0, steps="300,120"))[:2] == [("1", 6, None, 300), ("2", 6, None, 120)]
    assert [each[3] for each in plan(made, steps="50")] == [50, 50, None]
    assert list(plan(made, stage="3", stories=2)) == [("3", 2, None, None)]


def test_files_that_were_made_empty_are_no_stages(made: Path) -> None:
    (made / "stories.jsonl").write_text("")
    assert [each[0] for each in plan(made)] == ["1", "2"]
    with pytest.raises(InputError, match="holds no rows"):
        list(plan(made, stage="3"))


@pytest.mark.parametrize(
    ("seconds", "given", "context"), [(8.0, None, 8.0), (8.01, None, 30.0), (1.0, 30.0, 30.0), (9.0, 12.0, 12.0)]
)
def test_whisper_looks_at_no_more_than_the_clips_need(
    made: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, given: float | None, context: float
) -> None:
    soundfile.write(made / "audio" / "2.wav", noise(round(16_000 * seconds)).numpy(), 16_000)
    built: list[Any] = []
    monkeypatch.setattr(
        SalmonnForConditionalGeneration, "build", lambda model, encoders, **settings: built.extend(encoders)
    )
    method = SalmonnRecipe(context=given)
    method._model(None, planned(open_data(str(made))))
    whisper = {"kind": "whisper", "spec": "tiny.en"}
    short = {"context_seconds": context, "crop": True}
    assert built == [whisper if context == 30.0 else whisper | short, {"kind": "speech-embedding"}]
