"""Listening: what is streamed is the answer; a file of requests is answered whole, through bad lines and kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from hearing import noise, tiny

from broadsheet.console import InputError
from broadsheet.hear import listening
from broadsheet.hear.listening import Requests, Streamed, listen, listen_all
from broadsheet.hear.prompts import INSTRUCTIONS
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

pytestmark = pytest.mark.usefixtures("home")

Clips = Callable[..., str]


@pytest.fixture
def model(tiny_model: Callable, tiny_tokenizer: Callable) -> SalmonnForConditionalGeneration:
    return tiny(tiny_model(max_position_embeddings=512), tiny_tokenizer())


@pytest.fixture
def clip(tmp_path: Path) -> Clips:
    """`clip("a", seconds=1.0)`: a file of noise."""

    def write(name: str, seconds: float = 1.0) -> str:
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, noise(round(16_000 * seconds), seed=len(name) + ord(name[0])).numpy(), 16_000)
        return str(path)

    return write


def requests(tmp_path: Path, lines: list[Any], **options: Any) -> Requests:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Requests(path, **options)


def answers(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# One question


@pytest.mark.parametrize("text", ["one two three", "  one\n two  ", "a", "", " ", "Zwölf Boxkämpfer, 日本 語"])
def test_streamed_words_come_early_and_together_are_the_stripped_text(tiny_tokenizer: Callable, text: str) -> None:
    tokenizer = tiny_tokenizer()
    written: list[str] = []
    streamer = Streamed(tokenizer, written.append)
    import torch

    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    streamer.put(torch.zeros(1, 0, dtype=torch.long))  # the prompt, which is given as embeddings
    for place, token in enumerate(ids):
        if token == tokenizer.eos_token_id and text == "one two three":
            assert "".join(written).startswith("one two"), f"nothing by token {place}"
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(written) == text.strip()


def test_what_is_written_is_the_models_own_answer(model: SalmonnForConditionalGeneration, clip: Clips) -> None:
    written: list[str] = []
    heard = listen(model, [clip("a")], "What is said?", max_tokens=40, write=written.append)
    assert heard.answer == model.answer(clip("a"), "What is said?", max_new_tokens=40)
    assert "".join(written) == heard.answer
    assert heard.tokens <= 40
    assert [(each.seconds, each.pieces) for each in heard.clips] == [(1.0, 1)]


def test_beams_answer_at_once(model: SalmonnForConditionalGeneration, clip: Clips) -> None:
    written: list[str] = []
    heard = listen(model, [clip("a")], "What is said?", beams=3, max_tokens=12, write=written.append)
    assert written == [heard.answer]
    assert heard.answer == model.answer(clip("a"), "What is said?", max_new_tokens=12, num_beams=3)


def test_several_files_are_several_clips_of_one_prompt(model: SalmonnForConditionalGeneration, clip: Clips) -> None:
    files = [clip("a"), clip("b", 2.0)]
    together = listen(model, files, "Compare.", max_tokens=12)
    assert together.answer == model.answer(files, "Compare.", max_new_tokens=12)
    single = [listen(model, [file], "Compare.", max_tokens=1).audio_tokens for file in files]
    assert together.audio_tokens == sum(single) == 30  # windows of 0.1 s


def test_long_files_are_heard_in_pieces_and_that_is_said(
    model: SalmonnForConditionalGeneration, clip: Clips, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = listen(model, [clip("a"), clip("long", 30.5)], "What?", max_tokens=2)
    assert [each.pieces for each in heard.clips] == [1, 2]
    assert heard.audio_tokens == 10 + 300 + 10  # the last piece is filled up to a second
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("long.wav: 30.5 s, heard in 2 pieces of at most 30 s")


def test_pieces_are_as_long_as_the_encoders_hear(
    model: SalmonnForConditionalGeneration, clip: Clips, capsys: pytest.CaptureFixture[str]
) -> None:
    model.audio_features.piece_seconds = 2.0
    assert listen(model, [clip("a", 5.0)], "What?", max_tokens=2).clips[0].pieces == 3
    assert "3 pieces of at most 2 s" in capsys.readouterr().err


def test_a_prompt_beyond_the_context_is_refused(model: SalmonnForConditionalGeneration, clip: Clips) -> None:
    with pytest.raises(InputError, match="context holds 512; give less audio"):
        listen(model, [clip("long", 45.0)], "What?", max_tokens=100)


def test_scale_holds_for_the_answer_alone(model: SalmonnForConditionalGeneration, clip: Clips) -> None:
    plain = listen(model, [clip("a")], "What?", max_tokens=20)
    off = listen(model, [clip("a")], "What?", max_tokens=20, scale=0.0)
    with model.scale_lora(0.0):
        assert off.answer == model.answer(clip("a"), "What?", max_new_tokens=20)
    assert off.answer != plain.answer
    assert listen(model, [clip("a")], "What?", max_tokens=20).answer == plain.answer


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"max_tokens": 0}, {"scale": -0.5}, {"scale": float("nan")}])
def test_arguments_out_of_range_are_refused(
    model: SalmonnForConditionalGeneration, clip: Clips, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="expected 1 or more, and a scale from 0"):
        listen(model, [clip("a")], "What?", **wrong)


def test_no_file_and_no_audio_are_one_line(model: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got no audio"):
        listen(model, [], "What?")
    with pytest.raises(InputError, match=r"gone\.wav"):
        listen(model, [tmp_path / "gone.wav"], "What?")
    (tmp_path / "text.wav").write_text("no audio at all")
    with pytest.raises(InputError, match="not audio that can be read"):
        listen(model, [tmp_path / "text.wav"], "What?")


# Many requests


def test_every_request_has_its_answer_in_order(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path
) -> None:
    lines = [
        {"id": "first", "audio": Path(clip("a")).name, "instruction": "What?"},
        {"audio": [clip("b", 2.0), clip("a")], "instruction": "Which?"},
        {"id": 7, "audio": clip("b", 2.0), "task": "asr"},
    ]
    done = listen_all(model, requests(tmp_path, lines), tmp_path / "out.jsonl", max_tokens=12, batch_size=2)
    assert (done.documents, done.finished) == (3, True)
    written = answers(tmp_path / "out.jsonl")
    assert [line["id"] for line in written] == ["first", "requests.jsonl:2", "7"]
    alone = [
        model.answer(clip("a"), "What?", max_new_tokens=12),
        model.answer([clip("b", 2.0), clip("a")], "Which?", max_new_tokens=12),
        model.answer(clip("b", 2.0), INSTRUCTIONS["asr"][0], max_new_tokens=12),
    ]
    assert [line["answer"] for line in written] == alone


def test_what_cannot_be_answered_says_why_and_the_others_go_on(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("no audio at all")
    good = {"audio": clip("a"), "instruction": "What?"}
    lines = [
        good,
        {"id": "gone", "audio": "gone.wav", "instruction": "What?"},
        {"id": "text", "audio": "text.wav", "instruction": "What?"},
        "{not json",
        {"audio": clip("a"), "task": "no such task"},
        {"audio": clip("a")},
        {"instruction": "What?"},
        {"id": "marks", "audio": clip("a"), "instruction": "<audio> and <audio>?"},
        {"id": "long", "audio": clip("long", 60.0), "instruction": "What?"},
        good,
    ]
    listen_all(model, requests(tmp_path, lines), tmp_path / "out.jsonl", max_tokens=4, batch_size=4)
    written = answers(tmp_path / "out.jsonl")
    assert [line["id"] for line in written if line["id"] in ("gone", "text", "marks", "long")] == [
        "gone",
        "text",
        "marks",
        "long",
    ]
    assert ["answer" in line for line in written] == [True, *[False] * 8, True]
    assert written[0]["answer"] == written[-1]["answer"]
    reasons = [
        "gone.wav",
        "not audio",
        ":4: not JSON",
        "no such task",
        "neither task",
        "no audio",
        "<audio>",
        "context",
    ]
    for line, reason in zip(written[1:-1], reasons, strict=True):
        assert reason in line["error"]
        assert "answer" not in line
    assert "8 of 10 requests have an error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "gone", "audio": "gone.wav", "instruction": "What?"}, "request gone: .*gone.wav.*--on-error skip"),
        ("{not json", "requests.jsonl:3: not JSON; correct it"),
        ("\xff", "requests.jsonl:3: not UTF-8"),
    ],
)
def test_stop_ends_at_the_first_bad_request_and_keeps_what_is_done(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path, line: Any, message: str
) -> None:
    good = {"audio": clip("a"), "instruction": "What?"}
    if line == "\xff":
        made = requests(tmp_path, [good, good], on_error="stop")
        with (tmp_path / "requests.jsonl").open("ab") as file:
            file.write(b"\xff\n")
    else:
        made = requests(tmp_path, [good, good, line], on_error="stop")
    with pytest.raises(InputError, match=message):
        listen_all(model, made, tmp_path / "out.jsonl", max_tokens=4, batch_size=1)
    assert not (tmp_path / "out.jsonl").exists()
    assert len(answers(tmp_path / "out.jsonl.partial")) == 2


def test_a_killed_run_goes_on_and_writes_the_same(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"audio": clip(name), "instruction": "What?"} for name in "abcdef"]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    listen_all(model, requests(tmp_path, lines), whole, max_tokens=8, batch_size=2)
    asked: list[int] = []
    real = model.answers

    def until_killed(some: Any, **options: Any) -> list[str]:
        if len(asked) == 2:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(some))
        return real(some, **options)

    monkeypatch.setattr(model, "answers", until_killed)
    with pytest.raises(KeyboardInterrupt):
        listen_all(model, requests(tmp_path, lines), cut, max_tokens=8, batch_size=2)
    assert not cut.exists()
    with pytest.raises(InputError, match="begun with beams 1, now 2"):
        listen_all(model, requests(tmp_path, lines), cut, beams=2, max_tokens=8, batch_size=2)
    done = listen_all(model, requests(tmp_path, lines), cut, max_tokens=8, batch_size=2)
    assert (done.documents, done.resumed) == (6, 4)
    assert asked == [2, 2, 0, 2]
    assert cut.read_bytes() == whole.read_bytes()


def test_another_model_does_not_go_on_with_the_answers(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path
) -> None:
    bad = {"id": "gone", "audio": "gone.wav", "instruction": "What?"}
    lines = [{"audio": clip("a"), "instruction": "What?"}, bad]
    with pytest.raises(InputError):
        made = requests(tmp_path, lines, on_error="stop")
        listen_all(model, made, tmp_path / "out.jsonl", max_tokens=4, batch_size=1)
    next(iter(model.connector.parameters())).data += 0.1
    with pytest.raises(InputError, match="begun with model"):
        listen_all(model, requests(tmp_path, lines), tmp_path / "out.jsonl", max_tokens=4, batch_size=1)


def test_frames_of_many_requests_are_not_kept(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path, home: Path
) -> None:
    lines = [{"audio": clip("a"), "instruction": "What?"}]
    listen_all(model, requests(tmp_path, lines), tmp_path / "out.jsonl", max_tokens=2)
    assert not list(home.rglob("*.npy"))
    assert model.audio_features.keep


def test_a_batch_that_does_not_fit_is_halved(
    model: SalmonnForConditionalGeneration, clip: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"audio": clip(name), "instruction": "What?"} for name in "abc"]
    sizes: list[int] = []

    def crowded(some: Any, **options: Any) -> list[str]:
        sizes.append(len(some))
        if len(some) > 1:
            raise MemoryError
        return ["heard"]

    monkeypatch.setattr(model, "answers", crowded)
    listen_all(model, requests(tmp_path, lines), tmp_path / "out.jsonl", batch_size=3)
    assert sizes == [3, 1, 2, 1, 1]
    assert [line["answer"] for line in answers(tmp_path / "out.jsonl")] == ["heard"] * 3


def test_there_has_to_be_a_file_of_requests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file or folder at .*none\.jsonl"):
        Requests(tmp_path / "none.jsonl")


def test_the_number_of_requests_is_known_before_any_is_answered(tmp_path: Path) -> None:
    assert requests(tmp_path, ["{}", "", "  ", "{}"]).count == 2
    assert listening.MAX_TOKENS == 200
