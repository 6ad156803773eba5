"""`broadsheet hear …` as a user types it: what it prints, what it refuses."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import soundfile
from hearing import TINY, Blocks, noise, tiny

from broadsheet import cli, models
from broadsheet.console import InputError
from broadsheet.hear import commands
from broadsheet.hear import data as making
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training import activating

COMMANDS = ("listen", "make-data", "activate", "picture")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `broadsheet hear …` in this process; (exit status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["broadsheet", "hear", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def ears(tiny_folder: Path, tmp_path: Path) -> SalmonnForConditionalGeneration:
    """A model with ears, saved as `ears`, and two clips beside it."""
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        soundfile.write(tmp_path / f"{name}.wav", noise(round(seconds * 16_000), ord(name)).numpy(), 16_000)
    loaded = models.load(str(tiny_folder), device="cpu")
    made = tiny(loaded.model, loaded.tokenizer, [Blocks()])
    made.config.llm = str(tiny_folder)
    made.save_pretrained(tmp_path / "ears")
    return made


def test_help_names_every_command_and_each_has_an_example(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert "Example: broadsheet hear" in out
    for command in COMMANDS:
        assert f"\n  {command} " in out
        status, text, _ = run(command, "--help")
        assert status == 0
        assert f"Example: broadsheet hear {command}" in text


def test_looking_around_imports_nothing_heavy() -> None:
    code = (
        "import sys; from broadsheet import cli; sys.argv = ['broadsheet', 'hear', 'listen', '--help']\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'numpy', 'soundfile'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.strip().endswith("[]")


def test_listen_prints_the_answer(run: Run, ears: SalmonnForConditionalGeneration) -> None:
    wanted = ears.answer(["a.wav", "b.wav"], "Which?", max_new_tokens=12)
    assert wanted
    asked = ("a.wav", "b.wav", "Which?", "--model", "ears", "--max-tokens", "12")
    status, out, _ = run("listen", *asked)
    assert (status, out) == (0, f"{wanted}\n")
    status, out, _ = run("listen", *asked, "--json")
    told = json.loads(out)
    assert (told["answer"], told["instruction"], told["audio_tokens"]) == (wanted, "Which?", 30)
    assert [(clip["file"], clip["seconds"], clip["pieces"]) for clip in told["clips"]] == [
        ("a.wav", 1.0, 1),
        ("b.wav", 2.0, 1),
    ]
    assert run("listen", *asked, "--beams", "2")[1].strip() == ears.answer(
        ["a.wav", "b.wav"], "Which?", max_new_tokens=12, num_beams=2
    )


def test_a_batch_of_requests_is_answered_and_what_failed_is_said(
    run: Run, ears: SalmonnForConditionalGeneration
) -> None:
    lines = [{"audio": "a.wav", "instruction": "What?"}, {"audio": "gone.wav", "task": "asr"}]
    Path("requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = ("listen", "--batch", "requests.jsonl", "--out", "answers.jsonl", "--model", "ears", "--max-tokens", "4")
    status, out, err = run(*batch)
    assert (status, out) == (0, "")
    assert "1 of 2 requests have an error" in err
    written = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert written[0]["answer"] == ears.answer("a.wav", "What?", max_new_tokens=4)
    assert "gone.wav" in written[1]["error"]
    assert "answers.jsonl exists" in run(*batch)[2]
    status, _, err = run(*batch, "--force", "--on-error", "stop")
    assert status == 2
    assert "request requests.jsonl:2" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["What?"], "got no audio or no instruction"),
        ([], "got no audio or no instruction"),
        (["a.wav"], "got no instruction: the last argument, a.wav, is a file"),
        (["gone.wav", "What?"], "there is no file gone.wav"),
        (["a.wav", "<audio> <audio>?"], "got 1 clips for an instruction with 2 <audio>"),
        (["a.wav", "What?", "--out", "o.jsonl"], "got --out without --batch"),
        (["a.wav", "What?", "--batch", "r.jsonl", "--out", "o.jsonl"], "got --batch with FILE"),
        (["--batch", "r.jsonl"], "without --out; expected --batch FILE --out FILE"),
        (["--batch", "r.jsonl", "--out", "o.jsonl"], "no file or folder at r.jsonl"),
        (["a.wav", "What?", "--model", "nowhere"], "nowhere holds no config.json"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    run: Run, ears: SalmonnForConditionalGeneration, arguments: list[str], message: str
) -> None:
    status, out, err = run("listen", *(["--model", "ears"] if "--model" not in arguments else []), *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("o.jsonl.partial").exists()


def test_the_last_argument_is_the_instruction() -> None:
    for name in "ab":
        Path(f"{name}.wav").touch()
    assert commands.question(["a.wav", "b.wav", "Same?"]) == (["a.wav", "b.wav"], "Same?")
    with pytest.raises(InputError):
        commands.question(["a.wav"])


def test_make_data_hands_on_its_options_and_says_what_comes_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: each.default for name, each in inspect.signature(making.make_data).parameters.items()}
    given: dict[str, Any] = {}

    def make(out: Path, **options: Any) -> making.Made:
        given.update(options, out=out)
        return making.Made(Path(out), {"stage1": 1050, "clips": 1500}, options["seconds"])

    monkeypatch.setattr(making, "make_data", make)
    status, out, err = run("make-data", "--out", "clips")
    assert status == 0
    assert given == {**wanted, "out": Path("clips")}, "the defaults are make_data's"
    assert "stage1    1,050" in out
    assert "broadsheet apply salmonn clips" in err
    run("make-data", "--out", "clips", "--speech-sound", "5", "--seed", "3", "--seconds", "4", "--force")
    assert [given[name] for name in ("speech_sound", "seed", "seconds", "force")] == [5, 3, 4.0, True]


def test_activate_tunes_a_trained_model_on_its_own_stories(
    run: Run, ears: SalmonnForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def write(model: Any, rows: list[AudioRow], **settings: Any) -> list[AudioRow]:
        asked.update(settings, clips=len(rows))
        return [AudioRow("story", row.audio, "once upon a time", "Tell.") for row in rows]

    monkeypatch.setattr(activating, "write_stories", write)
    Path("clips.jsonl").write_text("".join(json.dumps({"task": "story", "audio": f"{n}.wav"}) + "\n" for n in "ab"))
    arguments = ("activate", "ears", "clips.jsonl", "--out", "free", "--factor", "0.25", "--steps", "2", "--seed", "4")
    status, _, err = run(*arguments)
    assert status == 0
    assert asked == {"factor": 0.25, "seed": 4, "clips": 2}
    assert "activation tuning on 2 stories: 2 steps" in err
    before, after = (SalmonnForConditionalGeneration.from_pretrained(name) for name in ("ears", "free"))
    changed = [
        name
        for name, weight in after.trained_parameters().items()
        if not weight.equal(before.trained_parameters()[name])
    ]
    assert any("lora_" in name for name in changed)
    status, _, err = run("activate", "ears", "clips.jsonl", "--out", "fond", "--rehearse", "2")
    assert (status, "holds no stage2.jsonl or .parquet … to rehearse" in err) == (2, True)
    assert any("connector" in name for name in changed)
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize("arguments", [(), ("--paper",), ("--model", "ears")])
def test_picture_writes_an_svg(run: Run, ears: SalmonnForConditionalGeneration, arguments: tuple[str, ...]) -> None:
    status, out, _ = run("picture", "--out", "ears.svg", *arguments)
    assert (status, out.strip()) == (0, "ears.svg")
    text = Path("ears.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    shown = {(): "SmolLM2-135M-Instruct", ("--paper",): "vicuna-13b-v1.1"}.get(
        arguments, f"{TINY['qformer_hidden']} wide"
    )
    assert shown in text


def test_picture_refuses_two_models_and_an_unwritable_place(run: Run) -> None:
    assert "expected one of them" in run("picture", "--out", "x.svg", "--paper", "--model", "ears")[2]
    Path("file").write_text("")
    status, _, err = run("picture", "--out", "file/x.svg")
    assert status == 2
    assert "cannot write file/x.svg" in err


@pytest.mark.parametrize("package", ["soundfile", "soxr", "onnxruntime", "jiwer"])
def test_a_missing_package_says_which_extra_brings_it(run: Run, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(making, "make_data", missing)
    status, _, err = run("make-data", "--out", "clips")
    assert status == 2
    assert err.strip() == f"broadsheet: this needs {package}: pip install -e '.[hear]'"
