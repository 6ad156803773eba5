"""Training: it learns to hear on a tiny model, goes on after a kill bit for bit, activation tunes on its own words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hearing import Blocks, noise, tiny

from broadsheet.console import InputError
from broadsheet.hear.data.rows import AudioRow, read_rows, write_rows
from broadsheet.hear.prompts import INSTRUCTIONS
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training import activating
from broadsheet.hear.training.activating import activate, write_stories
from broadsheet.hear.training.fitting import AudioObjective, fit
from broadsheet.hear.training.warm_start import TokenCTC, warm_start

pytestmark = pytest.mark.usefixtures("home")

Make = Callable[..., SalmonnForConditionalGeneration]


@pytest.fixture
def make(tiny_model: Callable, tiny_tokenizer: Callable) -> Make:
    def made(**settings: Any) -> SalmonnForConditionalGeneration:
        return tiny(tiny_model(max_position_embeddings=512), tiny_tokenizer(), **settings)

    return made


@pytest.fixture
def rows(tmp_path: Path) -> list[AudioRow]:
    """Eight clips, each a steady tone or its opposite, and what it is."""
    import soundfile

    made = []
    for place in range(8):
        high = place % 2
        wave = torch.sin(torch.arange(16_000) * (0.8 if high else 0.05)) * 0.5 + noise(16_000, place) * 0.05
        soundfile.write(tmp_path / f"{place}.wav", wave.numpy(), 16_000)
        made.append(AudioRow("sound", (str(tmp_path / f"{place}.wav"),), "high" if high else "low"))
    return made


def test_rows_are_read_with_paths_beside_their_file(tmp_path: Path) -> None:
    lines = [
        {"task": "asr", "audio": "a.wav", "answer": "one", "voice": "slt"},
        {"task": "qa", "audio": ["a.wav", "b/c.wav"], "instruction": "Same?", "answer": "no"},
    ]
    (tmp_path / "train.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    first, second = read_rows(tmp_path)
    assert (first.task, first.audio, first.answer) == ("asr", (str(tmp_path / "a.wav"),), "one")
    assert first.more == {"voice": "slt"}
    assert second.audio[1] == str(tmp_path / "b/c.wav")
    write_rows(tmp_path / "elsewhere.jsonl", [first, second])
    again = read_rows(tmp_path / "elsewhere.jsonl")
    assert again == [first, second]
    assert [row.more for row in again] == [first.more, {}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("{", "rows.jsonl:1: not JSON"),
        ("[1]", "rows.jsonl:1: not a JSON object .got list."),
        ('{"task": "asr", "answer": "a"}', "rows.jsonl:1: no audio; expected a path"),
        ('{"task": "asr", "audio": "a.wav"}', "rows.jsonl:1: no field 'answer'; the row has task, audio"),
        ('{"audio": "a.wav", "answer": "a"}', "neither task nor instruction"),
        ('{"task": 3, "audio": "a.wav", "answer": "a"}', "field 'task' is not a string .got 3."),
    ],
)
def test_what_is_no_row_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_it_learns_to_tell_what_is_heard(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    fitted = fit(model, rows[:6], steps=120, batch_size=6, learning_rate=2e-2, lora_learning_rate=1e-2, autocast="none")
    assert fitted.history[-1]["loss"] < 0.3 * fitted.history[0]["loss"]
    asked = [(row.audio[0], INSTRUCTIONS["sound"][0]) for row in rows[6:]]
    assert model.answers(asked, max_new_tokens=8) == ["low", "high"]
    swapped = [(rows[7].audio[0], asked[0][1]), (rows[6].audio[0], asked[1][1])]
    assert model.answers(swapped, max_new_tokens=8) == ["high", "low"]


def test_a_killed_training_goes_on_bit_for_bit(make: Make, rows: list[AudioRow], tmp_path: Path) -> None:
    def run(out: Path, stop: int = 0) -> SalmonnForConditionalGeneration:
        model = make(lora_dropout=0.3)
        seconds = iter(range(10_000))
        settings = {"steps": 6, "batch_size": 2, "checkpoint_minutes": 1 / 60, "clock": lambda: next(seconds)}
        if stop:
            seen = model.forward

            def forward(*args: Any, **named: Any) -> Any:
                nonlocal stop
                stop -= 1
                if stop < 0:
                    raise RuntimeError("killed")
                return seen(*args, **named)

            model.forward = forward
        fit(model, rows, out, autocast="none", **settings)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "cut", stop=4)
    assert (tmp_path / "cut.partial").is_dir()
    assert not (tmp_path / "cut").exists()
    resumed = run(tmp_path / "cut")
    for name, weight in whole.trained_parameters().items():
        assert torch.equal(weight, resumed.trained_parameters()[name]), name
    assert json.loads((tmp_path / "cut/training.json").read_text())["resumed_from"] > 0
    assert not (tmp_path / "cut.partial").exists()


def test_the_adapter_has_its_own_rate_and_vectors_no_decay(make: Make) -> None:
    model = make()
    objective = AudioObjective([AudioRow("sound", ("a.wav",), "high")], lora_learning_rate=0.5)
    groups = objective.parameter_groups(model, 1.0, 0.1)
    found = {
        (group["lr"], group["weight_decay"], parameter.ndim > 1) for group in groups for parameter in group["params"]
    }
    assert found == {(1.0, 0.1, True), (1.0, 0.0, False), (0.5, 0.1, True)}
    assert sum(len(group["params"]) for group in groups) == len(model.trained_parameters())


def test_instructions_are_drawn_by_place_and_a_rows_own_is_kept(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    asked: list[str] = []
    model.prepared = lambda requests, answers: asked.extend(text for _, text in requests)  # type: ignore[assignment]
    objective, again = (AudioObjective(rows, seed=3) for _ in range(2))
    objective.model = again.model = model
    objective.collate([(place, rows[0]) for place in range(40)])
    first = list(asked)
    asked.clear()
    again.collate([(place, rows[0]) for place in range(40)])
    assert asked == first
    assert set(asked) == set(INSTRUCTIONS["sound"])
    asked.clear()
    objective.collate([(0, replace(rows[0], instruction="And now?"))])
    assert asked == ["And now?"]


def test_rehearsed_rows_join_each_pass_and_are_drawn_anew(make: Make, rows: list[AudioRow], tmp_path: Path) -> None:
    model = make()
    asked: list[list[str]] = []
    prepared = model.prepared

    def noted(requests: Any, answers: Any) -> Any:
        asked.append([clip for clips, _ in requests for clip in clips])
        return prepared(requests, answers)

    model.prepared = noted  # type: ignore[method-assign]
    own, others = rows[:2], rows[2:]
    fitted = fit(model, own, tmp_path / "out", steps=6, batch_size=1, rehearse=others, rehearsed=3, autocast="none")
    assert (fitted.steps, fitted.examples) == (6, 6 * 4)
    firsts, rests = [each[0] for each in asked], [each[1:] for each in asked]
    assert {*firsts} == {clip for row in own for clip in row.audio}
    assert all(len({*rest}) == 3 and {*rest} <= {clip for row in others for clip in row.audio} for rest in rests)
    assert len({tuple(rest) for rest in rests}) > 1
    seen = list(asked)
    asked.clear()
    fit(model, own, steps=6, batch_size=1, rehearse=others, rehearsed=3, autocast="none")
    assert asked == seen
    assert len(AudioObjective(own, rehearse=others, rehearsed=99).extra_batches(0)) == len(others)
    assert json.loads((tmp_path / "out/training.json").read_text())["settings"]["objective"]["rehearsed"] == 3


def test_what_is_rehearsed_is_part_of_what_a_training_is_made_from(
    make: Make, rows: list[AudioRow], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 1, "rehearsed": 2, "autocast": "none"}
    fit(make(), rows[:2], tmp_path / "out", rehearse=rows[2:], **settings)
    with pytest.raises(InputError, match="rehearse"):
        fit(make(), rows[:2], tmp_path / "out", rehearse=rows[3:], **settings)
    with pytest.raises(InputError, match="rehearsed 0"):
        fit(make(), rows[:2], rehearse=rows[2:], **settings | {"rehearsed": 0})
    with pytest.raises(InputError, match="1 of 1 rows have no answer"):
        fit(make(), rows[:2], rehearse=[replace(rows[2], answer="")], **settings)


def test_encoders_run_once_per_clip(make: Make, rows: list[AudioRow]) -> None:
    encoders = [Blocks()]
    fit(make(encoders=encoders), rows, steps=10, batch_size=4, autocast="none")
    assert encoders[0].calls == len(rows)


def test_what_cannot_be_trained_is_refused_before_anything_is_done(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    with pytest.raises(InputError, match="no rows"):
        fit(model, [])
    with pytest.raises(InputError, match="1 of 8 rows have no answer"):
        fit(model, [*rows[:7], replace(rows[7], answer=" ")])
    with pytest.raises(InputError, match="steps 0"):
        fit(model, rows, steps=0)
    with pytest.raises(InputError, match="no batch of 16"):
        fit(model, rows)


def test_ctc_reads_the_path_and_sums_over_alignments() -> None:
    torch.manual_seed(0)
    table = torch.randn(5, 12)
    reader = TokenCTC(table)
    blank = torch.nn.functional.normalize(reader.blank, dim=0)
    tokens = torch.stack([blank, table[2], table[2] * 3, blank, table[2], table[4]])
    assert reader.read(tokens) == [2, 2, 4]
    logits = reader.logits(tokens).log_softmax(-1)
    # all ways in which three tokens become "4": blanks, the word once or twice, blanks
    paths = [(0, 0, 5), (0, 5, 0), (5, 0, 0), (0, 5, 5), (5, 5, 0), (5, 5, 5)]
    total = torch.logsumexp(torch.stack([sum(logits[t, p] for t, p in enumerate(path)) for path in paths]), 0)
    loss = reader(tokens[None, :3], torch.tensor([3]), [torch.tensor([4])])
    drift = (tokens[:3].norm(dim=-1) / reader.norm - 1).square().mean()
    torch.testing.assert_close(loss, -total + 0.1 * drift)


def test_a_warm_start_brings_tokens_to_words_without_the_language_model(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    before = {name: weight.clone() for name, weight in model.named_parameters() if name.startswith("llm")}
    warmed = warm_start(model, rows, steps=60, batch_size=8, learning_rate=1e-2, autocast="none")
    assert warmed.last_loss < 1.0
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)
    with pytest.raises(InputError, match="0 rows"):
        warm_start(model, [])


def test_activation_writes_at_half_scale_and_tunes_at_full(make: Make, rows: list[AudioRow], tmp_path: Path) -> None:
    model = make()
    layer = model.llm.model.layers[0].self_attn.q_proj
    seen: list[float] = []
    answers, prepared = model.answers, model.prepared

    def telling(requests: Any, **named: Any) -> list[str]:
        seen.append(layer.scaling["default"])
        answers(requests, **{**named, "max_new_tokens": 2})
        return ["once upon a time there was a sound that went on and on for a very long time"] * len(requests)

    def tuned(*args: Any, **named: Any) -> Any:
        if len(args) > 1:
            seen.append(layer.scaling["default"])
        return prepared(*args, **named)

    model.answers, model.prepared = telling, tuned  # type: ignore[method-assign]
    names = set(model.trained_parameters())
    fitted, told = activate(model, [replace(row, task="story", answer="") for row in rows[:3]], tmp_path / "active")
    assert (fitted.steps, fitted.examples) == (12, 12)
    assert seen == [2.0] + [4.0] * 12, "three stories at once, then a step each"
    assert set(model.trained_parameters()) == names
    assert {row.instruction for row in told} <= {*INSTRUCTIONS["story"][1:]}, "what is asked later is not trained"
    kept = read_rows(tmp_path / "active/stories.jsonl")
    assert [row.answer for row in kept] == [row.answer for row in told]


def test_stories_that_stay_short_are_said(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    asked: list[int] = []

    def short(requests: Any, **named: Any) -> list[str]:
        asked.append(len(requests))
        return ["low"] * len(requests) if len(asked) < 3 else ["low " * 20, *["low"] * (len(requests) - 1)]

    model.answers = short  # type: ignore[method-assign]
    with pytest.raises(InputError, match="no story of 15 words"):
        write_stories(model, [replace(rows[0], task="story")], tries=2)
    asked[:] = [0, 0]
    told = write_stories(model, [replace(row, task="story") for row in rows[:3]])
    assert [(row.audio, row.answer) for row in told] == [(rows[i].audio, " ".join(["low"] * 20)) for i in range(3)]
    assert asked[2:] == [3, 2, 1], "only those that are too short are written anew"


def test_a_story_is_drawn_by_its_seed_and_clip_and_not_by_those_beside_it(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    clips = [replace(row, task="story", answer="") for row in rows]

    def told(some: list[AudioRow], **settings: Any) -> dict[tuple[str, ...], str]:
        given = {"max_new_tokens": 12, "min_new_tokens": 12, "least_words": 1, **settings}
        return {row.audio: row.answer for row in write_stories(model, some, **given)}

    together = told(clips)
    alone = {audio: story for clip in clips for audio, story in told([clip]).items()}
    assert together == alone == told(clips[::-1])
    assert len(set(together.values())) == len(clips)
    other = told(clips, seed=1)
    assert all(other[audio] != story for audio, story in together.items())
    one = [replace(clips[0], instruction="Tell a story.")]
    assert told(one, temperature=1e-4) == told(one, temperature=1e-4, seed=1), "hardly a draw"


def test_a_draw_has_the_odds_of_the_softmax() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    draws = activating._Draws([torch.Generator().manual_seed(0)], temperature=0.5, top_p=0.9)
    chosen = torch.stack([draws(torch.zeros(1, 0, dtype=torch.long), scores).argmax() for _ in range(4000)])
    shares = torch.bincount(chosen, minlength=4) / len(chosen)
    odds = torch.tensor([4.0, 2.0]).softmax(0)  # what top_p leaves, at temperature ½
    torch.testing.assert_close(shares, torch.tensor([*odds, 0, 0]), atol=0.02, rtol=0)
    many = torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    draws = activating._Draws([torch.Generator().manual_seed(0)], temperature=9.0, top_p=1.0)
    drawn = {int(draws(torch.zeros(1, 0, dtype=torch.long), many).argmax()) for _ in range(2000)}
    assert drawn == {*many[0].topk(50).indices.tolist()}, "as many as generate draws from by itself"


def test_activation_is_an_ordinary_stage(make: Make, rows: list[AudioRow]) -> None:
    told = [AudioRow("story", row.audio, " ".join(["tale"] * 20), "Tell a tale.") for row in rows[:2]]
    one, two = make(), make()
    activate(one, [], steps=3, stories=told)
    fit(two, told, steps=3, batch_size=1, learning_rate=1e-4, lora_learning_rate=1e-4, warmup=0.0, schedule="constant")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_stories_are_trained_in_any_words_but_those_that_evaluation_asks(make: Make, rows: list[AudioRow]) -> None:
    model = make()
    asked: list[str] = []
    prepared = model.prepared

    def noted(requests: Any, *more: Any) -> Any:
        asked.extend(text for _, text in requests)
        return prepared(requests, *more)

    model.prepared = noted  # type: ignore[method-assign]
    own = [replace(rows[0], task="story", answer=" ".join(["tale"] * 20))]
    activate(model, [], steps=12, stories=own)
    assert set(asked) == {*INSTRUCTIONS["story"][1:]}
    asked.clear()
    write_stories(model, [replace(row, task="story", answer="") for row in rows], least_words=0, max_new_tokens=1)
    assert set(asked) == {*INSTRUCTIONS["story"][1:]}


def test_a_warm_start_sums_over_alignments_in_float32(
    make: Make, rows: list[AudioRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    logits = TokenCTC.logits

    def noted(self: TokenCTC, tokens: torch.Tensor) -> torch.Tensor:
        found = logits(self, tokens)
        seen.add((tokens.dtype, found.dtype))
        return found

    monkeypatch.setattr(TokenCTC, "logits", noted)
    warm_start(make(), rows, steps=1, batch_size=8, autocast="bfloat16")
    assert seen == {(torch.bfloat16, torch.float32)}


def test_draws_are_those_of_python_seeded_by_text() -> None:
    assert activating.FACTOR * 4 == 2  # the paper's 4 becomes 2
    assert random.Random("3 7").random() == random.Random("3 7").random()
