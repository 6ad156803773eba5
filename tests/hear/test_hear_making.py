"""A made set: whole, repeatable, balanced, nothing of the test in training, and clips that sound as their rows say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.hear.data import Made, dataset, grammar, make_data, tasks
from broadsheet.hear.data.mixing import FLOOR
from broadsheet.hear.data.sounds import BANDS, CAPTIONS, HELD_OUT, MUSIC, NAMES, STRUCK
from broadsheet.hear.data.tasks import (
    NOISY,
    NUMBERS,
    TASKS,
    UNSEEN_ORDERS,
    WHAT_SAID,
    WHICH_SOUND,
    Maker,
    choices,
    deck,
)
from broadsheet.hear.data.voices import HARD_SPEEDS, RATES, SLOW

SIZES = {"asr": 2, "sound": 2, "caption": 2, "count": 4, "voice": 2, "order": 2, "speech_sound": 4}
SIZES |= {"stories": 2, "test": 2, "hard": 1, "noisy": 2}
SETTINGS = {**SIZES, "seed": 7}
TINY = {**dict.fromkeys(SIZES, 0), "sound": 1, "seed": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make_data(tmp_path_factory.mktemp("making") / "set", **SETTINGS)


def rows_of(made, name):
    return [json.loads(line) for line in (made.folder / f"{name}.jsonl").read_text().splitlines()]


def all_rows(made):
    return [row for name in ("stage2", "stories", "test", "hard") for row in rows_of(made, name)]


def samples_of(path):
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def bursts(samples, noise):
    """How often a sound comes up out of noise of this RMS in dB, after at least 0.12 s without it."""
    power = (samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2).mean(1)
    loud = np.flatnonzero(power > max(0.004 * power.max(), 8 * 10 ** (noise / 10)))
    return 1 + int((np.diff(loud) > 12).sum())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_none_of_its_clips(made, tmp_path):
    make_data(tmp_path / "again", **SETTINGS)
    assert content(tmp_path / "again") == content(made.folder)
    other = make_data(tmp_path / "other", **{**TINY, "seed": 4})
    third = make_data(tmp_path / "third", **TINY)
    assert not {path.name for path in other.folder.rglob("*.wav")} & {path.name for path in third.folder.rglob("*.wav")}


def test_more_rows_of_one_task_leave_those_of_another_as_they_are(tmp_path):
    few = make_data(tmp_path / "few", **TINY)
    more = make_data(tmp_path / "more", **{**TINY, "count": 1})
    assert rows_of(few, "stage2")[0] in rows_of(more, "stage2")


def test_everything_announced_is_there_and_nothing_else(made):
    account = json.loads((made.folder / "made.json").read_text())
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(["audio", "made.json", *dataset.FILES])
    for name, digest in account["sha256"].items():
        raw = (made.folder / name).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == digest
        assert raw.count(b"\n") == made.counts[name.removesuffix(".jsonl")] == sum(account["rows"][name].values())
    assert account["counts"] == made.counts
    assert account["settings"]["seed"] == 7
    assert account["settings"]["sizes"] == SIZES
    assert all(
        re.fullmatch(r"[\d.a-z-]*\d[\w.-]*", account["programs"][name]) for name in ("flite", "sox", "espeak-ng")
    )
    clips = {row["audio"] for row in all_rows(made)}
    assert clips == {f"audio/{path.name}" for path in (made.folder / "audio").iterdir()}
    assert len(clips) == len(all_rows(made)) == made.counts["clips"], "a clip stands in one row"


def test_each_file_holds_its_tasks_in_the_number_asked_for(made):
    told = {task for task in TASKS if task != "story"}
    stage2 = rows_of(made, "stage2")
    assert Counter(row["task"] for row in stage2) == {task: SIZES[task] for task in told}
    assert rows_of(made, "stage1") == [row for row in stage2 if row["task"] in ("asr", "sound", "caption")]
    assert Counter(row["task"] for row in rows_of(made, "test")) == {
        task: 2 if task in ("asr", "sound") else 1 for task in told
    }
    assert Counter((row["split"], row["task"]) for row in rows_of(made, "hard")) == {
        ("slow", "asr"): 1,
        ("espeak", "asr"): 1,
        ("noise", "asr"): 1,
        ("noise", "sound"): 2,
    }
    assert [(row["task"], row["answer"]) for row in rows_of(made, "stories")] == [("story", "")] * 2
    assert {row["split"] for row in [*stage2, *rows_of(made, "stories")]} == {"train"}
    assert {row["split"] for row in rows_of(made, "test")} == {"test"}
    assert all(("instruction" in row) == (row["task"] == "speech_sound") for row in all_rows(made))


def test_names_and_lengths_tell_nothing_and_nothing_clips(made):
    for path in (made.folder / "audio").iterdir():
        samples = samples_of(path)
        assert re.fullmatch(r"[0-9a-f]{16}\.wav", path.name)
        assert len(samples) == made.seconds * 16_000
        assert np.abs(samples).max() < 0.91
        frames = samples.reshape(-1, 1600).std(1)
        assert frames.min() > 10 ** (-72 / 20), "there is noise under every tenth of a second"


def test_answers_say_what_the_clip_was_made_of(made):
    for row in [*rows_of(made, "stage2"), *rows_of(made, "test"), *rows_of(made, "hard")]:
        about, answer = row["about"], row["answer"]
        names = [sound["name"] for sound in about["sounds"]]
        speech = about["speech"] or {"sentence": None, "speaker": None}
        if row["task"] == "speech_sound":
            assert row["instruction"] in (*WHICH_SOUND, *WHAT_SAID)
            expected = names[0] if row["instruction"] in WHICH_SOUND else speech["sentence"]
            assert row["split"] == "train" or row["instruction"] in (WHICH_SOUND[0], WHAT_SAID[0])
        elif row["task"] == "caption":
            expected = CAPTIONS[names[0]] if names else answer
            assert names or answer in (CAPTIONS["noise"], CAPTIONS["silence"])
        else:
            expected = {
                "asr": speech["sentence"],
                "voice": speech["speaker"],
                "sound": names[0] if names else None,
                "count": NUMBERS[max(0, len(names) - 1)],
                "order": " then ".join(names),
            }[row["task"]]
        assert answer == expected
        offsets = [sound["offset"] for sound in about["sounds"]]
        assert offsets == sorted(offsets)
        for part in [*about["sounds"], *([about["speech"]] if about["speech"] else [])]:
            assert 0.049 <= part["offset"] <= part["offset"] + part["duration"] <= 3.151


def test_nothing_of_the_test_is_in_training(made):
    train = [*rows_of(made, "stage2"), *rows_of(made, "stories")]
    held = [*rows_of(made, "test"), *rows_of(made, "hard")]
    said = {row["about"]["speech"]["sentence"] for row in train if row["about"]["speech"]}
    assert {grammar.held_out(sentence) for sentence in said} == {None}
    for row in held:
        if speech := row["about"]["speech"]:
            assert grammar.held_out(speech["sentence"]) == speech["unseen"] != None  # noqa: E711
    ways = Counter(row["about"]["speech"]["unseen"] for row in held if (row["task"], row["split"]) == ("asr", "test"))
    assert ways == {"pair": 1, "sentence": 1}
    for rows, bands in ((train, {"train"}), (held, set(HELD_OUT))):
        sounds = [sound for row in rows for sound in row["about"]["sounds"]]
        assert {sound["band"] for sound in sounds} <= bands
        assert all(BANDS[s["band"]][0] - 0.005 <= abs(s["pitch"]) <= BANDS[s["band"]][1] + 0.005 for s in sounds)


def test_rates_are_those_of_the_split(made):
    spoken = [(row["split"], row["about"]["speech"]["rate"]) for row in all_rows(made) if row["about"]["speech"]]
    low, high = RATES
    assert all(low <= rate <= high < SLOW for split, rate in spoken if split in ("train", "test", "noise"))
    assert [rate for split, rate in spoken if split == "slow"] == [SLOW]
    assert all(HARD_SPEEDS[0] <= rate <= HARD_SPEEDS[1] for split, rate in spoken if split == "espeak")


def test_noise_is_as_loud_as_the_row_says_and_nearly_as_loud_as_what_is_heard_in_it(made):
    noisy = [row for row in rows_of(made, "hard") if row["split"] == "noise"]
    assert [row["task"] for row in noisy] == ["asr", "sound", "sound"]
    for row in noisy:
        about = row["about"]
        heard = about["speech"] or about["sounds"][0]
        samples = samples_of(made.folder / row["audio"])
        first, last = (round(16_000 * place) for place in (heard["offset"], heard["offset"] + heard["duration"]))
        level = 20 * np.log10(np.concatenate([samples[:first], samples[last:]]).std())
        # as a whole it may have been turned down, so as not to clip
        assert about["noise"]["decibels"] - 6 < level < about["noise"]["decibels"] + 1
        assert NOISY[0] - 0.1 <= heard["decibels"] - about["noise"]["decibels"] <= NOISY[1] + 0.1
    quiet = [row for row in all_rows(made) if row["split"] != "noise" and row["task"] == "asr"]
    assert all(row["about"]["noise"]["decibels"] < FLOOR[1] + 0.01 for row in quiet)


def test_a_set_of_many_words_says_others(tmp_path):
    sizes = {**TINY, "sound": 0, "asr": 12, "seed": 1}
    made = make_data(tmp_path / "many", **sizes, many_words=True)
    said = {word for row in rows_of(made, "stage2") for word in row["answer"].split()}
    assert said <= set(grammar.vocabulary(many=True))
    assert len(said - set(grammar.vocabulary())) > 10
    with pytest.raises(InputError, match="many_words=True"):
        make_data(tmp_path / "many", **sizes)


def test_counted_sounds_are_heard_so_often(made):
    counted = [row for row in all_rows(made) if row["task"] == "count"]
    assert {row["answer"] for row in counted} == set(NUMBERS)
    heard = [bursts(samples_of(made.folder / row["audio"]), row["about"]["noise"]["decibels"]) for row in counted]
    assert heard == [NUMBERS.index(row["answer"]) + 1 for row in counted]


def test_a_sound_is_where_the_row_says_and_nothing_before_it(made):
    for row in all_rows(made):
        if row["task"] != "sound" or row["split"] == "noise":
            continue
        samples, told = samples_of(made.folder / row["audio"]), row["about"]["sounds"][0]
        first, last = (round(16_000 * place) for place in (told["offset"], told["offset"] + told["duration"]))
        outside = np.concatenate([samples[: first - 16], samples[last + 16 :]])
        assert outside.std() == pytest.approx(10 ** (row["about"]["noise"]["decibels"] / 20), rel=0.1)
        assert samples[first:last].std() > 3 * outside.std()


@given(
    task=st.sampled_from(TASKS),
    split=st.sampled_from(["train", "test"]),
    seed=st.integers(0, 1000),
    turns=st.integers(1, 4),
)
def test_every_answer_is_as_frequent_as_the_others(task, split, seed, turns):
    drawn = choices(task, split, 60 * turns, np.random.default_rng(seed))
    if task == "order":
        first, second = Counter(pair[0] for pair in drawn), Counter(pair[1] for pair in drawn)
        assert all(name != other for name, other in drawn)
        unseen = [pair for pair in drawn if pair in UNSEEN_ORDERS]
        assert len(unseen) == (0 if split == "train" else 30 * turns)
        assert set(first) == set(second) == set(NAMES)
        return
    kinds = {"asr": 2, "voice": 2, "sound": len(NAMES), "caption": len(CAPTIONS)}
    if task in kinds:
        answers = [Counter(drawn)]
        assert len(answers[0]) == kinds[task]
    elif task == "count":
        answers = [Counter(number for number, _ in drawn), Counter(name for _, name in drawn)]
        assert set(answers[1]) == set(STRUCK)
    elif task == "speech_sound":
        named = Counter(name for asked, name, _, _ in drawn if asked == "sound")
        answers = [
            Counter(row[0] for row in drawn),
            Counter(row[2] for row in drawn),
            Counter(row[3] for row in drawn),
            named,
        ]
    else:
        answers = [Counter(row[0] for row in drawn), Counter(row[1] for row in drawn), Counter(row[3] for row in drawn)]
        assert all(name != other for _, name, other, _ in drawn)
    assert all(max(counted.values()) - min(counted.values()) <= 1 for counted in answers)


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 99))
def test_a_deck_deals_evenly(count, kinds, seed):
    dealt = Counter(deck(range(kinds), count, np.random.default_rng(seed)))
    assert dealt.total() == count
    assert all(count // kinds <= dealt[kind] <= -(-count // kinds) for kind in range(kinds))


def test_every_order_of_training_can_be_drawn_and_each_sound_is_kept_back_evenly():
    drawn = Counter(choices("order", "train", 140, np.random.default_rng(0)))
    assert set(drawn.values()) == {2}
    assert Counter(first for first, _ in UNSEEN_ORDERS) == Counter(second for _, second in UNSEEN_ORDERS)
    assert len(UNSEEN_ORDERS) == 2 * len(NAMES)


def test_a_finished_set_is_left_as_it_is_and_other_settings_need_force(tmp_path, capsys):
    out = tmp_path / "set"
    first = make_data(out, **TINY)
    before = content(out)
    assert make_data(out, **TINY) == first
    assert make_data(out, **TINY, force=True) == first
    assert "already made" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"holds a set made with seed=3; .*force"):
        make_data(out, **{**TINY, "seed": 4})
    assert content(out) == before
    make_data(out, **{**TINY, "seed": 4}, force=True)
    assert not set(before) & {name for name in content(out) if name.endswith(".wav")}


def test_a_folder_with_other_things_is_never_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="no made set"):
            make_data(tmp_path, **TINY, force=force)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert make_data(tmp_path / "empty", **TINY).counts["clips"] == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seconds": 1.0}, "seconds=1"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"asr": -2}, "asr=-2"),
        ({"sound": 0}, "every size 0"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(bad, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make_data(tmp_path / "set", **{**TINY, **bad})
    assert not list(tmp_path.iterdir())


def test_missing_programs_are_one_line_and_espeak_matters_for_hard_rows_alone(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("flite", "sox"):
        found = next(Path(folder, name) for folder in os.environ["PATH"].split(":") if Path(folder, name).exists())
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(InputError, match=r"no espeak-ng; .*apt-get install flite sox espeak-ng") as caught:
        make_data(tmp_path / "set", **{**TINY, "hard": 1})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()
    assert make_data(tmp_path / "set", **TINY).counts["clips"] == 1
    (programs / "sox").unlink()
    with pytest.raises(InputError, match="no sox, no espeak-ng"):
        make_data(tmp_path / "other", **{**TINY, "hard": 1})


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_a_run_that_ends_early_leaves_nothing_that_looks_whole_and_the_next_is_as_if_it_had_not_been(
    end, tmp_path, monkeypatch
):
    settings = {**TINY, "sound": 3}
    whole = make_data(tmp_path / "whole", **settings)
    make, calls = Maker.make, []

    def stopped(self, task, wanted, rng):
        calls.append(task)
        if len(calls) == 3:
            raise end
        return make(self, task, wanted, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Maker, "make", stopped)
        with pytest.raises(end):
            make_data(tmp_path / "set", **settings)
    assert not (tmp_path / "set").exists()
    killed = tmp_path / ".set.4194999.tmp"  # as a kill -9 would have left it
    (killed / "audio").mkdir(parents=True)
    make_data(tmp_path / "set", **settings)
    assert content(tmp_path / "set") == content(whole.folder)
    assert not killed.exists()


def test_sentences_that_do_not_fit_are_drawn_anew_and_counted(monkeypatch):
    monkeypatch.setattr(tasks, "speak", lambda text, voice, rate: np.ones(6400 * len(text.split()), np.float32))
    maker = Maker(3.2, "train")
    samples, about = maker.speech("rms", 1.3, np.random.default_rng(0))
    assert maker.redrawn > 0
    assert len(samples) == 3 * 6400
    assert len(about["sentence"].split()) == 3
    assert grammar.held_out(about["sentence"]) is None
    with pytest.raises(InputError, match=r"of 40 sentences none fits into 0\.1 s"):
        maker.speech("rms", 0.1, np.random.default_rng(0))


def test_a_clip_of_another_length_is_filled_the_same_way(tmp_path):
    made = make_data(tmp_path / "long", **{**TINY, "sound": 0, "caption": 1, "order": 1, "stories": 1}, seconds=4)
    assert made.seconds == 4
    assert {len(samples_of(path)) for path in (made.folder / "audio").iterdir()} == {64_000}
    assert make_data(made.folder, **{**TINY, "sound": 0, "caption": 1, "order": 1, "stories": 1}, seconds=4.0) == made


@given(seed=st.integers(0, 300))
def test_stories_have_two_different_things_to_tell_of(seed):
    kind, name, other, voice = choices("story", "train", 1, np.random.default_rng(seed))[0]
    assert kind == "two sounds"
    assert {name, other} < set(NAMES) - set(MUSIC)
    assert name != other
    assert voice in ("slt", "rms")
