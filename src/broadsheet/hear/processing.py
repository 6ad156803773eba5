"""From clips and an instruction to token ids with places for audio, and to labels.

Knows: tokenizers, the prompt, how many tokens a clip becomes. Does not know: encoders' weights, the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from broadsheet.console import InputError, say
from broadsheet.hear import base
from broadsheet.hear.data import audio as waves_
from broadsheet.hear.encoders.audio_features import piece_seconds
from broadsheet.hear.prompts import AudioPrompt
from broadsheet.hear.windows import Windows

AUDIO = "<|audio|>"
IGNORED = -100
MAX_ANSWER = 300  # tokens of a training answer; longer ones are cut


class SalmonnProcessor(ProcessorMixin):
    """Prompts with places for audio tokens, from clips and an instruction, with labels where there is an answer.

    `[BOS][before][audio][after][answer, EOS]` (Sec. 3.1): each part of the prompt is tokenized on its own, without
    special tokens, and every clip is written as its number of `<|audio|>` tokens. That token's id lies beyond the
    language model's vocabulary, which is unchanged.

    Args:
        tokenizer: of the language model.
        encoders: settings of the audio encoders, in order: the number of frames of a wave follows from them.
        window_seconds, stride_seconds, num_queries: as in `SalmonnConfig`.
        template: of `AudioPrompt`.

    Example:
        batch = processor("What is said?", ["clip.wav"], return_tensors="pt")
        model.generate(**batch)
    """

    def __init__(
        self,
        tokenizer: Any,
        encoders: Sequence[Mapping[str, Any]] = (),
        window_seconds: float = 0.333333,
        stride_seconds: float | None = None,
        num_queries: int = 1,
        template: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        tokenizer = copy.deepcopy(tokenizer)  # the caller's gets no token of ours
        if AUDIO not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO]}, replace_extra_special_tokens=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no end-of-text token, so answers could not end; set tokenizer.eos_token"
            )
        super().__init__(tokenizer)
        self.encoders = [dict(each) for each in encoders]
        self.window_seconds, self.stride_seconds, self.num_queries = window_seconds, stride_seconds, num_queries
        self.template = dict(template or asdict(AudioPrompt()))
        self.prompt = AudioPrompt(**self.template)
        self.windows = Windows(window_seconds, stride_seconds)
        self.audio_token_id = int(tokenizer.convert_tokens_to_ids(AUDIO))
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._lead = "" if plain == tokenizer(" a", add_special_tokens=False)["input_ids"] else " "

    def __call__(
        self,
        instruction: str | Sequence[str],
        audio: Any = (),
        answer: str | Sequence[str] | None = None,
        *,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **others: Any,
    ) -> BatchFeature:
        """One prompt, or a batch of them.

        Args:
            instruction: what is asked, one text or a list.
            audio: of one prompt a path, a wave (samples,) at 16 kHz, or a list of those; of a batch a list of lists.
                Inside a list, a tuple of clips is joined to one, see `as_wave`.
            answer: the wanted answer, for `labels`.
            padding_side: where shorter prompts are padded.

        Returns:
            `input_ids`, `attention_mask` (batch, length); `waves`, a flat list of pieces of at most 30 s (or the
            shortest context of an encoder) in the order of their places; with an answer `labels`, -100 where nothing is
            supervised.

        Raises:
            InputError: no audio, unreadable audio, or marks in the instruction that do not match the clips.
        """
        single = isinstance(instruction, str)
        prompts: list[str] = [instruction] if isinstance(instruction, str) else list(instruction)
        clips = [_several(audio)] if single else [_several(each) for each in audio]
        answers = [None] * len(prompts) if answer is None else [answer] if isinstance(answer, str) else list(answer)
        if not len(prompts) == len(clips) == len(answers):
            raise InputError(f"got {len(prompts)} instructions, {len(clips)} lists of clips and {len(answers)} answers")
        pieces = [[waves_.pieces(as_wave(each), piece_seconds(self.encoders)) for each in several] for several in clips]
        examples = [
            self.example(text, [[self.tokens(len(piece)) for piece in clip] for clip in several], wanted)
            for text, several, wanted in zip(prompts, pieces, answers, strict=True)
        ]
        batch: dict[str, Any] = self.batch(examples, padding_side)
        batch["waves"] = [piece for several in pieces for clip in several for piece in clip]
        return BatchFeature(batch)

    def tokens(self, samples: int) -> int:
        """Audio tokens of a wave of at most 30 s."""
        frames = []
        for settings in self.encoders:
            kind = base.kind_of(settings)
            frames.append(kind.frames_of(settings, samples) * round(50 / kind.describe(settings)[1]))
        return self.windows.count(max(frames)) * self.num_queries

    def example(
        self, instruction: str, tokens: Sequence[Sequence[int]], answer: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Token ids of one prompt, and of its answer with the end of text (empty without one).

        Args:
            instruction: what is asked.
            tokens: per clip, per piece of it, how many audio tokens it becomes.
            answer: the wanted answer; it is cut after 300 tokens, which is reported.
        """
        parts = self.prompt.parts(instruction, len(tokens))
        ids = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        for place, part in enumerate(parts):
            if place:
                ids += [self.audio_token_id] * sum(tokens[place - 1])
            ids += self._ids(part)
        if answer is None:
            return ids, []
        wanted = self._ids(self._lead + answer.strip())
        if len(wanted) > MAX_ANSWER:
            say(f"an answer of {len(wanted)} tokens is cut at {MAX_ANSWER}: {answer[:60]!r} …")
        return ids, [*wanted[:MAX_ANSWER], int(self.tokenizer.eos_token_id)]

    def batch(self, examples: Sequence[tuple[list[int], list[int]]], padding_side: str = "left") -> dict[str, Tensor]:
        """Examples as tensors: prompts padded on one side, followed by their answers.

        With `padding_side="left"` all answers begin in the same column.
        """
        return assemble(examples, int(self.tokenizer.pad_token_id), padding_side)

    def decode_answers(self, ids: Tensor) -> list[str]:
        """Generated token ids, (batch, tokens), as text."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @classmethod
    def from_pretrained(cls, folder: Any, **others: Any) -> SalmonnProcessor:
        """The processor that `save_pretrained` wrote into a folder.

        Raises:
            InputError: the folder holds none.
        """
        from broadsheet.models.safefiles import read_json
        from broadsheet.models.tokens import read_tokenizer

        path = Path(folder) / "processor_config.json"
        if not path.is_file():
            raise InputError(f"{folder} holds no processor_config.json; expected a folder of a trained model")
        settings = read_json(path)
        names = ("encoders", "window_seconds", "stride_seconds", "num_queries", "template")
        tokenizer = read_tokenizer(folder)
        return cls(tokenizer, **{name: settings[name] for name in names})

    def save_pretrained(self, folder: Any, **others: Any) -> None:
        """Write the tokenizer and `processor_config.json`."""
        import json

        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        names = ("encoders", "window_seconds", "stride_seconds", "num_queries", "template")
        settings = {"processor_class": type(self).__name__, **{name: getattr(self, name) for name in names}}
        (Path(folder) / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    def _ids(self, text: str) -> list[int]:
        return [int(each) for each in self.tokenizer(text, add_special_tokens=False)["input_ids"]]


def assemble(
    examples: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, padding_side: str = "left"
) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and, where there are answers, `labels` from (prompt ids, answer ids) pairs.

    Args:
        padding_side: `"left"`: [pad][prompt][answer][pad], so that answers begin in one column; `"right"`:
            [prompt][answer][pad].

    Raises:
        ValueError: another padding side.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"got padding_side {padding_side!r}; expected 'left' or 'right'")
    longest = max(len(prompt) for prompt, _ in examples) if padding_side == "left" else 0
    ids, masks, labels = [], [], []
    for prompt, answer in examples:
        blank = max(0, longest - len(prompt))
        ids.append(torch.tensor([pad_id] * blank + [*prompt, *answer]))
        masks.append(torch.tensor([0] * blank + [1] * (len(prompt) + len(answer))))
        labels.append(torch.tensor([IGNORED] * (blank + len(prompt)) + list(answer)))  # answer and end of text only
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }
    if any(answer for _, answer in examples):
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return batch


def as_wave(clip: Any) -> Tensor:
    """A clip as a wave, (samples,) at 16 kHz.

    Args:
        clip: a path; a 1-D tensor or array of samples at 16 kHz; or a tuple of those, which are joined with 0.1 s of
            silence to one clip of at most 30 s, as the paper prepares pairs for speaker verification.
    """
    if isinstance(clip, tuple):
        return waves_.prepare([as_wave(each) for each in clip])
    if isinstance(clip, str | Path):
        return waves_.read(clip)
    return waves_.from_array(clip, base.SAMPLE_RATE)


def _several(audio: Any) -> list[Any]:
    several = list(audio) if isinstance(audio, list | tuple) else [audio]
    if not several:
        raise InputError("got no audio; give at least one clip")
    return several
