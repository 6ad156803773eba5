"""What an audio model is compared with: the cascade, which reads a transcript, and features that are all zero.

Knows: an encoder that can transcribe, a causal LM, how a choice among labels is scored; frames. Does not know:
training.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from broadsheet.hear.audio_lm import penalised
from broadsheet.hear.data import audio
from broadsheet.hear.processing import as_wave
from broadsheet.hear.prompts import INSTRUCTIONS
from broadsheet.models.reading import quiet
from broadsheet.teacher import Teacher
from broadsheet.teacher.local import Local

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATE = "Transcript: {transcript}\n{instruction}"


class Transcriber(Protocol):
    """What a cascade begins with; `WhisperEncoder` is one."""

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        """What is said in each wave of at most 30 s."""


class Cascade:
    """Speech recognition, then the language model: the plain way to ask an LLM about audio, without training.

    Use when only words matter. What is no speech is lost between the two.

    Inputs: as `SalmonnForConditionalGeneration.answers`: (clip or list of clips, instruction) each.

    Args:
        encoder: transcribes; audio longer than 30 s is cut into pieces.
        llm: the language model and its tokenizer, without an adapter.
        transcribes: instructions that the transcript itself answers; the language model is not asked.

    Example:
        cascade = Cascade(WhisperEncoder("tiny.en"), models.load("default"))
        cascade.answers([("clip.wav", "Write a story about the audio.")])
    """

    def __init__(
        self,
        encoder: Transcriber,
        llm: tuple[PreTrainedModel, PreTrainedTokenizerBase] | Any,
        *,
        transcribes: Collection[str] = INSTRUCTIONS["asr"],
    ) -> None:
        self.encoder = encoder
        self.model, self.tokenizer = llm
        self.transcribes = frozenset(transcribes)
        self._local = Local(self.model, self.tokenizer)

    def transcripts(self, requests: Sequence[tuple[Any, str]]) -> list[str]:
        """What is said in the clips of each request."""
        pieces = [[piece for clip in _several(clips) for piece in audio.pieces(as_wave(clip))] for clips, _ in requests]
        said = iter(self.encoder.transcribe([piece for several in pieces for piece in several]))
        return [" ".join(filter(None, (next(said) for _ in several))) for several in pieces]

    def answers(
        self,
        requests: Sequence[tuple[Any, str]],
        batch_size: int = 32,
        *,
        choices: Sequence[Sequence[str]] = (),
        **generation: Any,
    ) -> list[str]:
        """What it says to several (audio, instruction) requests.

        Args:
            batch_size: prompts that are answered at once.
            choices: of each request; where there are any, the likeliest of them is the answer, which is fairer to a
                model that was not taught how answers look. The transcript's own requests have no choice.
            generation: of the language model's `generate`; greedy and at most 200 tokens by default.
        """
        answers = self.transcripts(requests)
        prompts = self._prompts(requests, answers)
        closed: dict[tuple[str, ...], list[int]] = {}
        for place in prompts:
            closed.setdefault(tuple(choices[place]) if choices else (), []).append(place)
        open_ = closed.pop((), [])
        teacher = Teacher(self._local, cache=False)
        for labels, places in closed.items():
            scores = teacher.score([prompts[place] for place in places], labels)
            answers = _put(answers, places, [labels[int(best)] for best in scores.argmax(axis=1)])
        for start in range(0, len(open_), batch_size):
            some = open_[start : start + batch_size]
            answers = _put(answers, some, self._generate([prompts[place] for place in some], generation))
        return answers

    def nats(self, requests: Sequence[tuple[Any, str]], texts: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
        """Nats a token of two texts as the language model's answers to each (audio, instruction) request."""
        prompts = [
            TEMPLATE.format(transcript=transcript, instruction=instruction)
            for transcript, (_, instruction) in zip(self.transcripts(requests), requests, strict=True)
        ]
        scores = -Teacher(self._local, cache=False).score(prompts, texts, per_token=True)
        return [(float(first), float(second)) for first, second in scores]

    def _prompts(self, requests: Sequence[tuple[Any, str]], said: Sequence[str]) -> dict[int, str]:
        """What the language model is asked, by the request's place; nothing where the transcript answers."""
        return {
            place: TEMPLATE.format(transcript=transcript, instruction=instruction)
            for place, ((_, instruction), transcript) in enumerate(zip(requests, said, strict=True))
            if instruction not in self.transcribes
        }

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str], generation: dict[str, Any]) -> list[str]:
        """Answers to a batch of prompts, padded on the left; given as embeddings, as an audio model gets them."""
        settings = {"max_new_tokens": 200, "do_sample": False, **penalised(generation)}
        conversations: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        rows = [reading["ids"] for reading in self._local.read(conversations, int(settings["max_new_tokens"]))]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        settings.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        with quiet():
            written = self.model.generate(
                inputs_embeds=self.model.get_input_embeddings()(ids), attention_mask=mask, **settings
            )
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]


class PrecomputedFeatures:
    """Frames of a few clips in place of `AudioFeatures`: several models share the work of encoding.

    Args:
        frames: of each clip, as `AudioFeatures.features` gives them.
    """

    keep = False

    def __init__(self, frames: Mapping[Any, list[list[Tensor]]]) -> None:
        self.frames = frames

    def features_all(self, audios: Sequence[Any]) -> list[list[list[Tensor]]]:
        """The frames of several clips."""
        return [self.frames[clip] for clip in audios]


class ZeroFeatures:
    """As many frames as other features give, all of them zero: what a model does with text and lengths alone.

    Args:
        counted: features whose frames are counted.
    """

    def __init__(self, counted: Any) -> None:
        self.counted = counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.counted, name)

    def features(self, clip: Any) -> list[list[Tensor]]:
        """Zeros for one clip."""
        return self.features_all([clip])[0]

    def features_all(self, audios: Sequence[Any]) -> list[list[list[Tensor]]]:
        """Zeros for several clips."""
        counted = self.counted.features_all(audios)
        return [[[torch.zeros_like(stream) for stream in piece] for piece in clip] for clip in counted]


def _put(answers: Sequence[str], places: Sequence[int], written: Sequence[str]) -> list[str]:
    new = dict(zip(places, written, strict=True))
    return [new.get(place, answer) for place, answer in enumerate(answers)]


def _several(clips: Any) -> list[Any]:
    return list(clips) if isinstance(clips, list | tuple) else [clips]
