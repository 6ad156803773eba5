"""Does an answer follow a request for a story? Fixed rules, no judge.

Knows: texts, what is heard in a clip. Does not know: audio, models.

The paper has a large language model judge this; nothing here reads for sense. What the rules tell apart is an answer of
the kinds that training has fixed (a label, a number, a transcript, a caption) from a longer text that goes its own
way. A long text that makes no sense, or is no story, passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from broadsheet.hear.prompts import instruction
from broadsheet.hear.trials.metrics import OF_CLIPS, AudioQuestion, HearTask, contains, distinct_words, words
from broadsheet.trial.engine import Metric

STORIES, FOLLOWED, NAMING = "stories", "stories followed", "stories name what is heard"
NAMED_STORIES = "stories of what is heard"
RULES = (
    "A story follows the request if it has 15 words or more, is not made of answers to other tasks, and does not "
    "mostly repeat itself: fixed rules; nobody has read it for sense. Stories of what is heard are those that follow "
    "and name something in their clip, less the share that would name something in another clip of the test. The "
    "request itself was not trained: stage 3 asks for its stories in other words."
)

LEAST_WORDS = 15
LEAST_DISTINCT = 0.5  # of the runs of so many words
RUN = 4
MOST_CLOSED = 0.5  # of a story's words
_FUNCTION = (
    "a an and are as at be been before behind but by did do does for from had has have he her his i if in into is it "
    "its me my near no not of on or our over she so some that the their them then there they this to under up was we "
    "were what when where which who will with you your above below again later often sometimes soon today twice "
    "yesterday"
)
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


def stories(asked: Sequence[AudioQuestion], closed: Collection[str], max_new_tokens: int = 80) -> HearTask:
    """A story about the clips of each question, instead of what it asks.

    Of what is heard are stories that follow and name it, less the share of the other clips of which they would name
    something too: the rate at which shuffled audio would do as well. Written greedily, with a light penalty on words
    that have come: without it, small models fall into loops.

    Args:
        closed: the answers that training has given.
        max_new_tokens: of a story.
    """

    def judge(question: AudioQuestion, answer: str) -> dict[str, float]:
        right = {question.answer, str((question.about.get("speech") or {}).get("sentence", ""))}
        follows, names = follows_story(answer, {*closed, *right}), mentions(answer, question.about)
        others = [mentions(answer, each.about) for each in asked if each.audio != question.audio]
        chance = sum(others) / max(1, len(others))
        return {FOLLOWED: int(follows), NAMING: int(names), NAMED_STORIES: follows * (names - chance)}

    return HearTask(
        STORIES,
        [replace(each, instruction=instruction("story"), labels=()) for each in asked],
        [
            Metric(FOLLOWED, binary=True, **OF_CLIPS),
            Metric(NAMING, binary=True, **OF_CLIPS),
            Metric(NAMED_STORIES, bounds=(-1.0, 1.0), **OF_CLIPS),
        ],
        judge,
        {"max_new_tokens": max_new_tokens, "repetition_penalty": 1.1},
    )


def account(job: HearTask, answers: Sequence[str]) -> str:
    """How the stories of a job came out, as part of a sentence."""
    judged = [job.judge(*each) for each in zip(job.questions, answers, strict=True)]
    metrics = (FOLLOWED, NAMING, NAMED_STORIES)
    follow, naming, both = (sum(each[metric] for each in judged) for metric in metrics)
    return (
        f"{follow} follow, {naming} name what is heard, {both:.1f} do both beyond chance, "
        f"{distinct_words(answers):.1f} different words each"
    )


def follows_story(answer: str, closed: Collection[str] = ()) -> bool:
    """Whether an answer follows a request for a story, by three rules, all of which have to hold.

    - It has at least 15 words.
    - It is none of the closed answers: at most half of its words can be read as such answers, one after another.
    - It is not mostly repetition: of its runs of four words, at least half differ from one another.

    Args:
        closed: answers the model was trained to give, and the right answers about this clip.

    Source: arXiv:2310.13289 reports such a rate for stories, judged by a language model.
    """
    said = words(answer).split()
    return (
        len(said) >= LEAST_WORDS
        and distinct_runs(answer) >= LEAST_DISTINCT
        and closed_share(answer, closed) <= MOST_CLOSED
    )


def distinct_runs(answer: str, length: int = RUN) -> float:
    """The share of an answer's runs of `length` words that are different; 1 where there is at most one."""
    said = words(answer).split()
    runs = [tuple(said[start : start + length]) for start in range(len(said) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def closed_share(answer: str, closed: Iterable[str]) -> float:
    """The largest share of an answer's words that closed answers, one after another, account for; 0 without words."""
    said = tuple(words(answer).split())
    phrases = {tuple(words(each).split()) for each in closed} - {()}
    lengths = {len(phrase) for phrase in phrases}
    covered = [0]  # of the first n words, how many can be accounted for
    for end in range(1, len(said) + 1):
        ways = [covered[end - 1]]
        ways += [covered[end - n] + n for n in lengths if n <= end and said[end - n : end] in phrases]
        covered.append(max(ways))
    return covered[-1] / len(said) if said else 0.0


def mentions(answer: str, about: Mapping[str, Any]) -> bool:
    """Whether an answer names something that is heard: a sound, or a content word of what is said; also with an -s.

    It may do so by chance: compare with the rate for clips that it has not heard.

    Args:
        about: as in the rows of made data: `{"sounds": [{"name": "bell"}], "speech": {"sentence": "the old queen
            slept"}}`; either may be missing.
    """
    said = words(answer).split()
    return any(
        contains(said, phrase) or contains(said, [*phrase[:-1], f"{phrase[-1]}s"]) for phrase in phrases_heard(about)
    )


def phrases_heard(about: Mapping[str, Any]) -> list[list[str]]:
    """What is heard, as phrases: sounds by name, and the content words of what is said."""
    sounds = [words(str(each["name"])).split() for each in about.get("sounds") or ()]
    sentence = words(str((about.get("speech") or {}).get("sentence", ""))).split()
    return [*(name for name in sounds if name), *([word] for word in sentence if word not in _FUNCTION_WORDS)]
