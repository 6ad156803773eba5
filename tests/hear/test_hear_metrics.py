"""Answers to numbers: word errors, names that are right and lists that are not, who hears whom, stories by rules."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.hear.audio_lm import AudioLanguageModel
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.trials.following import (
    FOLLOWED,
    NAMED_STORIES,
    NAMING,
    account,
    closed_share,
    distinct_runs,
    follows_story,
    mentions,
    stories,
)
from broadsheet.hear.trials.metrics import (
    BATCH,
    HARD_SOUNDS,
    HARD_SPEECH,
    HARD_WER,
    OTHERS,
    SOUNDS,
    SPEECH,
    WER,
    distinct_words,
    error_rate,
    jobs,
    named,
    questions,
    share,
    word_errors,
    words,
)
from broadsheet.trial.results import ArmResult, joined
from broadsheet.trial.stats import Interval
from broadsheet.trial.verdicts import compare_samples

NAMES = ("bell", "horn", "drum", "rising notes")
STORY = (
    "Once upon a time a lonely bell hung over an empty village, and every morning somebody who had lost her way "
    "followed its voice home through fog and snow."
)


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("  The old Queen—she doesn't SLEEP.\n") == "the old queen she doesnt sleep"
    assert words("Don’t!") == words("dont") == "dont"
    assert words("…?!") == ""
    assert words("Ｆｏｘ ２") == "fox 2"


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert words(words(text)) == words(text)
    assert word_errors(text, text)[0] == 0


def test_word_errors_are_counted_against_the_references_words() -> None:
    assert word_errors("The old queen laughed.", "the gold queen laughed today") == (2, 4)
    assert word_errors("one two three", "three") == (2, 3)
    assert word_errors("one two", "") == (2, 2)
    assert word_errors("", "two words") == (2, 0)
    assert word_errors("a", "b c d") == (3, 1)


def test_an_error_rate_sums_over_rows_and_leaves_out_those_of_other_tasks() -> None:
    values = np.array([[1, 4], [0, 0], [2, 2], [0, 0]], dtype=float)
    weights = np.array([[1, 1, 1, 1], [2, 0, 0, 0], [0, 5, 0, 1]], dtype=float)
    rates = error_rate(values, weights)
    assert rates[:2].tolist() == [0.5, 0.25]
    assert np.isnan(rates[2])  # this resample holds no row that counts
    assert share(np.array([[1.0, 1], [0, 1], [0, 0]]), np.ones((1, 3))).tolist() == [0.5]
    few = compare_samples([[1, 1], [0, 0]], [[0, 1], [0, 0]], metric="x", baseline="a", arm="b", statistic=error_rate)
    assert few.verdict == "not measured"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("bell", True),
        ("A bell.", True),
        ("bell, ringing twice", True),
        ("bell, horn, drum", False),
        ("bell and the rising notes", False),
        ("bells", False),
        ("it is a bell", False),
        ("bell or bell", False),
        ("horn", False),
        ("", False),
    ],
)
def test_a_name_is_right_alone_or_first_among_no_others(answer: str, right: bool) -> None:
    assert named(answer, "bell", NAMES) is right


def test_without_the_other_names_nothing_may_follow() -> None:
    assert named("The bell", "bell")
    assert not named("bell ringing", "bell")
    assert named("the old queen slept", "the old queen slept")  # an article of the label's own
    assert named("bell then horn", "bell then horn", ("bell then horn", "bell then drum", "horn then bell"))
    assert not named("one two three four", "one", ("one", "two", "three", "four"))
    assert not named("anything", "")


def test_different_words_are_a_mean_over_texts() -> None:
    assert distinct_words(["A bell, a BELL", "one two three"]) == 2.5
    assert distinct_words([]) == 0


def rows(task: str, count: int, **fields: str) -> list[AudioRow]:
    return [AudioRow(task, (f"{task}{i}.wav",), f"answer {i % 2}", **fields) for i in range(count)]


def test_everyone_hears_another_clip_of_the_same_task() -> None:
    several = [*rows("sound", 7), *rows("asr", 2), *rows("count", 1), *rows("voice", 3, instruction="Who?")]
    asked = questions(several, seed=3)
    assert [each.audio for each in asked] == [row.audio for row in several]
    for row, each in zip(several, asked, strict=True):
        assert each.other != each.audio
        if row.task != "count":
            assert each.other[0].startswith(row.task)
    assert {each.other for each in asked[:7]} == {row.audio for row in several[:7]}
    assert asked[0].labels == ("answer 0", "answer 1")
    assert asked[0].instruction == "What sound is heard?"
    assert asked[-1].instruction == "Who?"
    assert questions(several, seed=3) == asked
    assert [each.other for each in questions(several, seed=4)] != [each.other for each in asked]


def test_a_clip_that_two_rows_share_is_never_the_other_one() -> None:
    twice = [
        AudioRow("qa", ("a.wav",), "x", "Who?"),
        AudioRow("qa", ("a.wav",), "y", "Where?"),
        AudioRow("qa", ("b.wav",), "z", "Who?"),
    ]
    assert [each.other for each in questions(twice)] == [("b.wav",), ("b.wav",), ("a.wav",)]
    with pytest.raises(InputError, match="no other clip"):
        questions(twice[:2])


def test_every_task_is_judged_by_its_own_measure() -> None:
    several = [*rows("asr", 2), *rows("sound", 2), *rows("count", 2), *rows("caption", 2)]
    asked = questions(several)
    speech, sounds, others = jobs(several, asked, 9)
    assert speech.name == SPEECH
    assert [job.metrics[0].name for job in (speech, sounds, others)] == [WER, SOUNDS, OTHERS]
    assert [len(job.questions) for job in (speech, sounds, others)] == [2, 2, 2]  # captions are not judged
    assert speech.outputs(speech.questions, ["answer", "answer 1"]) == {
        "words": [(1, 2), (0, 2)],
        "speech: answers": ["answer", "answer 1"],
    }
    assert sounds.outputs(sounds.questions, ["answer 0", "answer 0"])[SOUNDS] == [1, 0]
    assert [job.metrics[0].chance for job in (speech, sounds, others)] == [None, 1 / 2, None]  # of two names
    assert [job.name for job in jobs(several[2:4], questions(several[2:4]), 9)] == ["sounds"]


def test_results_of_two_jobs_are_one_arms() -> None:
    one = ArmResult("a", "method", values={"x": Interval(1, 1, 1)}, n_items=3, peak_bytes=5, samples={"x": [1]})
    other = ArmResult("a", "method", status="failed", error="in block 1", values={"y": Interval(2, 2, 2)}, n_items=4)
    both = joined(one, other)
    assert (both.status, both.error, both.n_items, both.peak_bytes) == ("failed", "in block 1", 7, 5)
    assert set(both.values) == {"x", "y"}


def test_a_story_is_long_goes_its_own_way_and_does_not_repeat_itself() -> None:
    closed = ["bell", "a bell rings", "the old queen slept near the river", "two"]
    assert follows_story(STORY, closed)
    assert not follows_story(" ".join(STORY.split()[:14]), closed)
    assert follows_story(" ".join(STORY.split()[:15]), closed)
    assert not follows_story("the bell rang and " * 10, closed)
    assert not follows_story(
        "the old queen slept near the river, bell, two, a bell rings, two, bell, a bell rings", closed
    )
    assert not follows_story("bell", closed)


def test_repetition_is_the_share_of_runs_that_are_new() -> None:
    assert distinct_runs("a b c d a b c d") == 4 / 5
    assert distinct_runs("a a a a a a a") == 1 / 4
    assert distinct_runs("a b") == 1


def test_closed_answers_are_read_one_after_another_at_their_best() -> None:
    assert closed_share("bell horn then", ["bell", "bell horn"]) == pytest.approx(2 / 3)
    assert closed_share("a b c", ["a b", "b c", "a"]) == 1  # "a", then "b c"
    assert closed_share("", ["a"]) == 0
    assert closed_share("Bell!", ["bell", ""]) == 1
    assert closed_share("bell", []) == 0


def test_what_is_heard_is_named_by_sound_or_content_word() -> None:
    about = {"sounds": [{"name": "rising notes"}], "speech": {"sentence": "The queen slept near the river"}}
    assert mentions("She heard rising notes.", about)
    assert mentions("Two QUEENS met.", about)
    assert not mentions("The notes were near.", about)  # half of a name, and a function word
    assert not mentions("bellow", {"sounds": [{"name": "bell"}], "speech": None})
    assert mentions("many bells", {"sounds": [{"name": "bell"}]})
    assert not mentions("anything", {})


def test_stories_are_asked_for_in_place_of_what_was_asked() -> None:
    about = {"sounds": [{"name": "bell"}], "speech": {"sentence": "two old kings"}}
    asked = questions([AudioRow("sound", (f"{i}.wav",), "bell", more={"about": about}) for i in range(2)])
    job = stories(asked, {"horn"}, 40)
    assert {each.instruction for each in job.questions} == {"Write a story about the audio."}
    judged = job.outputs(job.questions, [STORY, "two old kings " * 5])
    assert judged[FOLLOWED] == [1, 0]  # the clip's own sentence is no story, though it is not among the training's
    assert judged[NAMING] == [1, 1]
    assert account(job, [STORY, "horn"]).startswith("1 follow, 1 name what is heard, 0.0 do both beyond chance, ")


def test_a_story_counts_by_how_much_better_it_fits_its_clip_than_the_others() -> None:
    heard = ["bell", "horn", "drum", "bell"]
    several = [
        AudioRow("sound", (f"{i}.wav",), name, more={"about": {"sounds": [{"name": name}]}})
        for i, name in enumerate(heard)
    ]
    job = stories(questions(several), (), 40)
    told = [STORY, STORY, STORY.replace("bell", "drum"), "bell"]  # the story is about a bell
    judged = job.outputs(job.questions, told)
    assert judged[NAMED_STORIES] == pytest.approx([1 - 1 / 3, 0 - 2 / 3, 1, 0])  # the last does not follow
    assert float(np.mean(job.outputs(job.questions, [STORY] * 4)[NAMED_STORIES])) == pytest.approx(0), "all clips alike"


def test_the_harder_test_has_metrics_of_its_own() -> None:
    several = [*rows("asr", 2), *rows("sound", 2)]
    speech, sounds = jobs(several, questions(several), 9, hard=True)
    assert sounds.metrics[0].chance == 1 / 2
    assert [metric.name for job in (speech, sounds) for metric in job.metrics] == [HARD_WER, HARD_SOUNDS]
    assert speech.name == HARD_SPEECH
    assert speech.outputs(speech.questions, ["answer", "answer 1"])["hard words"] == [(1, 2), (0, 2)]
    assert sounds.outputs(sounds.questions, ["answer 0", "answer 0"])[HARD_SOUNDS] == [1, 0]


def test_turns_fill_batches_and_the_timed_task_has_ten() -> None:
    several = [*rows("asr", 60), *rows("sound", 60)]
    assert [job.turn for job in jobs(several, questions(several), 9)] == [6, BATCH]
    assert [job.turn for job in jobs(several, questions(several), 9, hard=True)] == [BATCH, BATCH]
    assert jobs(rows("asr", 3), questions(rows("asr", 3)), 9)[0].turn == 1
    most = rows("asr", 500)
    assert jobs(most, questions(most), 9)[0].turn == BATCH == default_batch()


def default_batch() -> int:
    return inspect.signature(AudioLanguageModel.answers).parameters["batch_size"].default
