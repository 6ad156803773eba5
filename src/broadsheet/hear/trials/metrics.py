"""What test rows ask, and from an answer to a number: word errors, exact names, different words.

Knows: rows, texts, the statistics that sum over rows. Does not know: audio, models, stories (`following`).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from broadsheet.console import InputError
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.prompts import instruction
from broadsheet.trial.engine import Metric, Outputs
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.results import ArmResult, Example
from broadsheet.trial.stats import Floats

WER, SOUNDS, OTHERS = "WER", "sound accuracy", "other accuracy"
HARD_WER, HARD_SOUNDS = "WER, hard", "sound accuracy, in noise"
SPEECH, HARD_SPEECH = "speech", "hard speech"  # the jobs of transcripts
SCORED = ("asr", "sound", "count", "voice", "order", "speech_sound", "qa")  # tasks of one right answer
BATCH = 32  # questions that are answered at once, as `answers` does
_APOSTROPHES = "'’ʼ"
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class AudioQuestion:
    """A test row as it is asked.

    Args:
        audio: its clips.
        other: those of another row, which the shuffle control hears instead.
        labels: the answers of all test rows that are asked the same.
        about: what is heard, as `following.phrases_heard` reads it.
    """

    audio: tuple[str, ...]
    other: tuple[str, ...]
    instruction: str
    answer: str
    labels: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class HearTask:
    """Questions of one kind, and how their answers are written and judged.

    Args:
        name: as files and errors name it.
        metrics: over what `judge` gives.
        judge: a question and an answer to values by output name.
        generation: of `generate`.
        turn: questions of a timed turn: no more than are answered in one batch.
        texts: whether answers are texts, which may be shown.
    """

    name: str
    questions: Sequence[AudioQuestion]
    metrics: Sequence[Metric]
    judge: Callable[[AudioQuestion, Any], Mapping[str, Any]]
    generation: Mapping[str, Any]
    turn: int = BATCH
    texts: bool = True

    def outputs(self, block: Sequence[AudioQuestion], answers: Sequence[Any]) -> Outputs:
        """What the engine is given: the judged values, and the answers themselves."""
        judged = [self.judge(*each) for each in zip(block, answers, strict=True)]
        return {**{name: [each[name] for each in judged] for name in judged[0]}, f"{self.name}: answers": list(answers)}

    def examples(self, asked: Sequence[AudioQuestion], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Questions with what was answered to them; none where answers are no texts."""
        if not self.texts:
            return []
        answers = [
            {name: arm.samples[f"{self.name}: answers"][i] for name, arm in arms.items()} for i in range(len(asked))
        ]
        return [
            Example(
                asked[place].instruction,
                {name: excerpt(answer) or "nothing" for name, answer in answers[place].items()},
                f"Heard: {excerpt(asked[place].answer)}",
            )
            for place in most_apart(answers)
        ]


def questions(rows: Sequence[AudioRow], seed: int = 0) -> list[AudioQuestion]:
    """The rows as they are asked, each beside another row's clips, in the order of the rows.

    The other row is of the same task and the same instruction, where those have other clips; who hears whom is one
    circle through them, drawn by the seed.

    Raises:
        InputError: no row has other clips.
    """
    asked = [row.instruction or instruction(row.task) for row in rows]
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.task, asked[place], len(row.audio)), []).append(place)
    other: dict[int, int] = {}
    labels: dict[int, tuple[str, ...]] = {}
    for group in groups.values():
        circle = random.Random(f"{seed} {group[0]}").sample(group, len(group))
        labels.update(dict.fromkeys(group, tuple(dict.fromkeys(rows[place].answer for place in group))))
        for turn, place in enumerate(circle):
            after = [*circle[turn + 1 :], *circle[:turn], *range(place + 1, len(rows)), *range(place)]
            other[place] = next((each for each in after if rows[each].audio != rows[place].audio), place)
    if alone := [place for place, each in other.items() if each == place]:
        raise InputError(
            f"got {len(rows)} test rows, and {len(alone)} with no other clip to hear; expected two or more"
        )
    return [
        AudioQuestion(
            row.audio,
            rows[other[place]].audio,
            asked[place],
            row.answer,
            labels[place],
            row.more.get("about") or {"speech": {"sentence": row.answer}},
        )
        for place, row in enumerate(rows)
    ]


# What is asked of one clip belongs together.
OF_CLIPS: dict[str, Any] = {"cluster": lambda question: question.audio, "counted": "clips"}


def jobs(
    rows: Sequence[AudioRow], asked: Sequence[AudioQuestion], max_new_tokens: int, hard: bool = False
) -> list[HearTask]:
    """Transcripts, names of sounds, and the other tasks of one right answer: those there are rows for.

    Args:
        rows, asked: the test rows, and each as it is asked.
        max_new_tokens: of an answer.
        hard: whether they are of the harder test, whose metrics have names of their own.
    """

    def of(*tasks: str) -> list[AudioQuestion]:
        return [question for row, question in zip(rows, asked, strict=True) if row.task in tasks]

    def label(metric: str) -> Callable[[AudioQuestion, str], dict[str, int]]:
        return lambda question, answer: {metric: int(named(answer, question.answer, question.labels))}

    def transcript(question: AudioQuestion, answer: str) -> dict[str, tuple[int, int]]:
        return {errors: word_errors(question.answer, answer)}

    generation = {"max_new_tokens": max_new_tokens}
    speech, errors, rate, sounds, accuracy = (
        (HARD_SPEECH, "hard words", HARD_WER, "hard sounds", HARD_SOUNDS)
        if hard
        else (SPEECH, "words", WER, "sounds", SOUNDS)
    )
    wer = Metric(rate, errors, error_rate, higher_is_better=False, bounds=(0.0, float("inf")), **OF_CLIPS)
    names = {question.answer for question in of("sound")}
    right = Metric(accuracy, binary=True, chance=1 / max(1, len(names)), **OF_CLIPS)
    tenth = max(1, min(BATCH, -(-len(of("asr")) // 10)))  # plain speech is what is timed: ten turns at least
    made = [
        HearTask(speech, of("asr"), [wer], transcript, generation, BATCH if hard else tenth),
        HearTask(sounds, of("sound"), [right], label(accuracy), generation),
        HearTask("other tasks", of(*SCORED[2:]), [Metric(OTHERS, binary=True, **OF_CLIPS)], label(OTHERS), generation),
    ]
    return [job for job in made if job.questions]


def words(text: str) -> str:
    """A text as it is compared: lower case, no punctuation, single spaces.

    An apostrophe is dropped ("don't" is "dont"), any other sign parts words. Numbers stay as they are written: "2" is
    not "two".

    Example:
        >>> words("  The old Queen—she doesn't SLEEP. ")
        'the old queen she doesnt sleep'
    """
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = re.sub(f"[{_APOSTROPHES}]", "", plain)
    return " ".join("".join(" " if unicodedata.category(sign)[0] in "PSZC" else sign for sign in plain).split())


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substituted, missing and added words of a hypothesis, and how many words the reference has.

    Both are normalised by `words`. A reference without words counts every word of the hypothesis as an error.

    Raises:
        InputError: jiwer is not installed.

    Example:
        >>> word_errors("The old queen laughed.", "the gold queen laughed today")
        (2, 4)
    """
    try:
        import jiwer
    except ImportError:
        raise InputError("word errors need jiwer: pip install -e '.[hear]'") from None
    said, heard = words(reference), words(hypothesis)
    if not said or not heard:
        return len(said.split()) + len(heard.split()), len(said.split())
    found = jiwer.process_words(said, heard)
    return found.substitutions + found.deletions + found.insertions, len(said.split())


def named(answer: str, label: str, others: Iterable[str] = ()) -> bool:
    """Whether an answer is that label and no other.

    Right is the label itself, with or without an article before it. Right is also an answer that begins with it, where
    what follows names none of `others`: "bell ringing" is a bell among horns and drums, "bell, horn, drum" is none of
    them. Without `others` nothing may follow. Everything is compared in whole words, normalised by `words`.

    Args:
        others: the labels that were possible; the right one may be among them.
    """
    given, wanted = words(answer).split(), words(label).split()
    if given[:1] and given[0] in _ARTICLES and wanted[:1] != given[:1]:
        given = given[1:]
    if not wanted or given[: len(wanted)] != wanted:
        return False
    rest = given[len(wanted) :]
    if not rest:
        return True
    wrong = [phrase for phrase in (words(other).split() for other in others) if phrase and phrase != wanted]
    return bool(wrong) and not any(contains(rest, phrase) for phrase in [*wrong, wanted])


def contains(text: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the words of a phrase stand one after another in a text."""
    size = len(phrase)
    return any(list(text[start : start + size]) == list(phrase) for start in range(len(text) - size + 1))


def distinct_words(texts: Sequence[str]) -> float:
    """How many different words a text has, the mean over the texts; 0 for none.

    Source: arXiv:2310.13289, "diversity" of stories.
    """
    return sum(len(set(words(text).split())) for text in texts) / max(1, len(texts))


def error_rate(values: Floats, weights: Floats) -> Floats:
    """A statistic over (n, 2) values: the sum of the first column by the sum of the second.

    Rows of (word errors, words) give the word error rate, rows of (right, counted) a share; a row of (0, 0) takes no
    part. NaN in a resample that counts nothing, and so "not measured".

    Args:
        values: (n, 2).
        weights: (resamples, n).

    Returns:
        (resamples,).

    Example:
        `Metric("WER", of="words", statistic=error_rate, higher_is_better=False)`
    """
    sums = weights @ values
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


share = error_rate  # of rows that are right, from rows of (right, counted)
