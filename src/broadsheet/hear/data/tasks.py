"""One clip for one row: what is heard in it, what is asked of it, and the right answer.

Knows: the tasks, and what training may hold of each. Does not know: files, how many rows a set has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

from broadsheet.console import InputError
from broadsheet.hear.base import SAMPLE_RATE
from broadsheet.hear.data import grammar
from broadsheet.hear.data.mixing import EDGE, FLOOR, HISS, levelled, loudness, mixed, noise, seconds_of, spread
from broadsheet.hear.data.sounds import CAPTIONS, HELD_OUT, MUSIC, NAMES, STRUCK, Sound
from broadsheet.hear.data.voices import HARD_SPEEDS, HARD_VOICES, RATES, SLOW, VOICES, Wave, speak, speak_otherwise

NUMBERS = ("one", "two", "three", "four")
WHICH_SOUND = (
    "Which sound is heard besides the voice?",
    "What sound is there besides the voice?",
    "Name the sound beside the speech.",
)
WHAT_SAID = ("What does the voice say?", "Which words are spoken?", "Write what the voice says.")
# Pairs of sounds that no training row has in this order: each sound is first in two of them, and second in two.
UNSEEN_ORDERS = frozenset((NAMES[i], NAMES[(i + step) % len(NAMES)]) for i in range(len(NAMES)) for step in (3, 7))
ORDERS = tuple(permutations(NAMES, 2))
STORIES = ("two sounds", "speech over a sound", "speech before a sound", "music and a sound")
LEVELS = (-27.0, -15.0)  # dB below full scale of a sound or a voice
BENEATH = (5.0, 13.0)  # dB by which a sound is quieter than the voice over it
NOISY = (0.0, 10.0)  # dB by which a voice or a sound is louder than the noise of the split "noise"
GAP = 0.2  # seconds between two sounds, at least
TRIES = 40  # draws of a sentence before the clip is called too short


@dataclass
class MadeClip:
    """A clip, its row's fields, and what it was made of."""

    samples: Wave
    answer: str
    about: dict[str, Any]
    instruction: str | None = None


@dataclass
class Maker:
    """Makes the clips of one split, each from a generator of its own.

    Parameters:
        seconds: length of every clip.
        split: "train", "test", "slow" (the held-out rate), "noise" (loud) or "espeak" (another program's voices).
        many: whether sentences have some 400 different words instead of some 60.
        redrawn: how many sentences were drawn anew because they were too long for the clip.
    """

    seconds: float
    split: str
    many: bool = False
    redrawn: int = 0
    _said: set[str] = field(default_factory=set)

    def make(self, task: str, wanted: Any, rng: np.random.Generator) -> MadeClip:
        """The clip of a task for one of its `choices`.

        Raises:
            InputError: no sentence fits into the clip, or a program is missing.
        """
        return _MAKERS[task](self, wanted, rng)

    # what is heard

    def speech(self, voice: str, room: float, rng: np.random.Generator, most: int = 6) -> tuple[Wave, dict[str, Any]]:
        """A sentence of this split in a voice, that takes at most `room` seconds, and what it is."""
        for _ in range(TRIES):
            way = None if self.split == "train" else grammar.WAYS[len(self._said) % len(grammar.WAYS)]
            sentence = self._sentence(rng, way, most)
            if self.split == "espeak":
                rate = float(rng.integers(*HARD_SPEEDS, endpoint=True))
                samples = speak_otherwise(sentence, voice, int(rate))
            else:
                rate = SLOW if self.split == "slow" else round(float(rng.uniform(*RATES)), 3)
                samples = speak(sentence, voice, rate)
            if seconds_of(samples) <= room:
                self._said.add(sentence)
                about = {"sentence": sentence, "voice": voice, "speaker": _SPEAKERS[voice], "rate": rate, "unseen": way}
                return levelled(samples, rng.uniform(*LEVELS)), about
            self.redrawn += 1
        raise InputError(f"got seconds={self.seconds:g}; of {TRIES} sentences none fits into {room:.1f} s; give more")

    def sound(
        self, name: str, shortest: float, longest: float, rng: np.random.Generator
    ) -> tuple[Wave, dict[str, Any]]:
        """A sound of this split, between two lengths in seconds, and what it is."""
        band = "train" if self.split == "train" else HELD_OUT[int(rng.integers(len(HELD_OUT)))]
        drawn = Sound.drawn(rng, name, band, shortest, longest)
        return levelled(drawn.render(), rng.uniform(*LEVELS)), asdict(drawn)

    def clip(
        self,
        answer: str,
        rng: np.random.Generator,
        *,
        speech: tuple[Wave, dict[str, Any]] | None = None,
        sounds: Sequence[tuple[Wave, dict[str, Any]]] = (),
        offsets: Sequence[float] = (),
        instruction: str | None = None,
        level: float | None = None,
    ) -> MadeClip:
        """Sounds and speech at their offsets in seconds (by default in a row, evenly drawn) over a floor of noise."""
        heard = [*sounds, *([speech] if speech else [])]
        places = (
            offsets or spread([seconds_of(samples) for samples, _ in heard], self.seconds, GAP, rng) if heard else []
        )
        tilt = round(float(rng.uniform(0, 1)), 3)
        if self.split == "noise":
            level = loudness(heard[0][0]) - rng.uniform(*NOISY)
        level = round(float(rng.uniform(*FLOOR)) if level is None else level, 2)
        floor = noise(round(self.seconds * SAMPLE_RATE), level, tilt, rng)
        told = [
            {
                **about,
                "offset": place,
                "duration": round(seconds_of(samples), 4),
                "decibels": round(loudness(samples), 1),
            }
            for (samples, about), place in zip(heard, places, strict=True)
        ]
        about = {
            "speech": told[-1] if speech else None,
            "sounds": told[: len(sounds)],
            "noise": {"decibels": level, "tilt": tilt},
        }
        samples = mixed([(samples, place) for (samples, _), place in zip(heard, places, strict=True)], floor)
        return MadeClip(samples, answer, about, instruction)

    def _sentence(self, rng: np.random.Generator, way: str | None, most: int) -> str:
        """A sentence that is new in this split, as long as there are any."""
        for _ in range(TRIES):
            sentence = grammar.draw(rng, way, most=most, many=self.many)
            if sentence not in self._said:
                break
        return sentence

    # tasks

    def _asr(self, voice: str, rng: np.random.Generator) -> MadeClip:
        samples, about = self.speech(voice, self.seconds - 2 * EDGE, rng)
        return self.clip(about["sentence"], rng, speech=(samples, about))

    def _voice(self, voice: str, rng: np.random.Generator) -> MadeClip:
        samples, about = self.speech(voice, self.seconds - 2 * EDGE, rng)
        return self.clip(about["speaker"], rng, speech=(samples, about))

    def _sound(self, name: str, rng: np.random.Generator) -> MadeClip:
        return self.clip(name, rng, sounds=[self.sound(name, 0.5, 1.8, rng)])

    def _caption(self, name: str, rng: np.random.Generator) -> MadeClip:
        if name in ("noise", "silence"):
            return self.clip(CAPTIONS[name], rng, level=rng.uniform(*HISS) if name == "noise" else None)
        lengths = (1.2, 2.0) if name in MUSIC else (0.5, 1.8)
        return self.clip(CAPTIONS[name], rng, sounds=[self.sound(name, *lengths, rng)])

    def _count(self, wanted: tuple[str, str], rng: np.random.Generator) -> MadeClip:
        number, name = wanted
        one = self.sound(name, 0.22, 0.38, rng)
        return self.clip(number, rng, sounds=[one] * (NUMBERS.index(number) + 1))

    def _order(self, wanted: tuple[str, str], rng: np.random.Generator) -> MadeClip:
        first, second = (self.sound(name, 0.5, 1.1, rng) for name in wanted)
        return self.clip(f"{wanted[0]} then {wanted[1]}", rng, sounds=[first, second])

    def _speech_sound(self, wanted: tuple[str, str, str, str], rng: np.random.Generator) -> MadeClip:
        asked, name, voice, place = wanted
        questions = WHICH_SOUND if asked == "sound" else WHAT_SAID
        question = questions[int(rng.integers(len(questions)))] if self.split == "train" else questions[0]
        made = self._over(name, voice, rng) if place == "over" else self._beside(name, voice, rng)
        made.about["place"] = place
        made.instruction = question
        made.answer = name if asked == "sound" else made.about["speech"]["sentence"]
        return made

    def _over(self, name: str, voice: str, rng: np.random.Generator) -> MadeClip:
        """A voice over a quieter sound; each somewhere in the clip."""
        speech = self.speech(voice, self.seconds - 2 * EDGE, rng)
        samples, about = self.sound(name, 0.8, 2.2, rng)
        samples = levelled(samples, loudness(speech[0]) - rng.uniform(*BENEATH))
        lengths = [seconds_of(samples), seconds_of(speech[0])]
        offsets = [spread([length], self.seconds, 0, rng)[0] for length in lengths]
        return self.clip("", rng, speech=speech, sounds=[(samples, about)], offsets=offsets)

    def _beside(self, name: str, voice: str, rng: np.random.Generator) -> MadeClip:
        """A sound and a voice one after the other, in either order."""
        sound = self.sound(name, 0.5, 0.9, rng)
        speech = self.speech(voice, self.seconds - 2 * EDGE - GAP - seconds_of(sound[0]), rng, most=4)
        lengths = [seconds_of(sound[0]), seconds_of(speech[0])]
        if rng.random() < 0.5:
            offsets = spread(lengths, self.seconds, GAP, rng)
        else:
            offsets = spread(lengths[::-1], self.seconds, GAP, rng)[::-1]
        return self.clip("", rng, speech=speech, sounds=[sound], offsets=offsets)

    def _story(self, wanted: tuple[str, str, str, str], rng: np.random.Generator) -> MadeClip:
        kind, name, other, voice = wanted
        if kind == "two sounds":
            made = self.clip("", rng, sounds=[self.sound(each, 0.5, 1.1, rng) for each in (name, other)])
        elif kind == "music and a sound":
            music = MUSIC[int(rng.integers(len(MUSIC)))]
            made = self.clip("", rng, sounds=[self.sound(music, 1.2, 1.6, rng), self.sound(name, 0.5, 0.9, rng)])
        elif kind == "speech over a sound":
            made = self._over(name, voice, rng)
        else:
            made = self._beside(name, voice, rng)
        made.about["kind"] = kind
        return made


def choices(task: str, split: str, count: int, rng: np.random.Generator) -> list[Any]:
    """What each row of a task is to be about: every possibility as often as the others, give or take one, shuffled.

    Args:
        count: rows.

    Returns:
        for asr and voice a voice; sound a name; caption a caption's name; count (number, name); order (first, second);
        speech_sound (asked, name, voice, place); story (kind, name, other name, voice).
    """
    voices = tuple(HARD_VOICES if split == "espeak" else VOICES)
    if task in ("asr", "voice"):
        return deck(voices, count, rng)
    if task == "sound":
        return deck(NAMES, count, rng)
    if task == "caption":
        return deck(tuple(CAPTIONS), count, rng)
    if task == "count":
        return list(zip(deck(NUMBERS, count, rng), deck(STRUCK, count, rng), strict=True))
    if task == "order":
        seen = [pair for pair in ORDERS if pair not in UNSEEN_ORDERS]
        if split == "train":
            return deck(seen, count, rng)
        unseen = deck(sorted(UNSEEN_ORDERS), count - count // 2, rng)
        return _shuffled([*unseen, *deck(seen, count // 2, rng)], rng)
    if task == "speech_sound":
        asked = deck(("sound", "words"), count, rng)
        named = iter(deck(NAMES, asked.count("sound"), rng))
        beside = iter(deck(NAMES, asked.count("words"), rng))
        names = [next(named if question == "sound" else beside) for question in asked]
        places = deck(("over", "beside"), count, rng)
        return list(zip(asked, names, deck(voices, count, rng), places, strict=True))
    names = deck(NAMES, count, rng)
    others = [NAMES[(NAMES.index(name) + int(rng.integers(1, len(NAMES)))) % len(NAMES)] for name in names]
    kinds = [STORIES[i % len(STORIES)] for i in range(count)]
    return list(zip(kinds, names, others, deck(voices, count, rng), strict=True))


def deck(values: Sequence[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """`count` values, each as often as the others give or take one, in random order."""
    whole, rest = divmod(count, len(values))
    extra = rng.permutation(len(values))[:rest]
    return _shuffled([*list(values) * whole, *(values[i] for i in extra)], rng)


def _shuffled(values: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    return [values[i] for i in rng.permutation(len(values))]


_SPEAKERS = {**VOICES, **HARD_VOICES}
_MAKERS: dict[str, Callable[[Maker, Any, np.random.Generator], MadeClip]] = {
    "asr": Maker._asr,
    "sound": Maker._sound,
    "caption": Maker._caption,
    "count": Maker._count,
    "voice": Maker._voice,
    "order": Maker._order,
    "speech_sound": Maker._speech_sound,
    "story": Maker._story,
}
TASKS = tuple(_MAKERS)
