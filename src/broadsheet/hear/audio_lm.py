"""`AudioLanguageModel`: a causal LM whose prompts hold audio tokens in place of `<|audio|>`.

Knows: prompts with places, embeddings, answers, the loss on them. Does not know: how clips become audio tokens: a
subclass does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

from broadsheet.console import InputError
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.processing import IGNORED, SalmonnProcessor, as_wave

Streams = Sequence[Tensor]


class AudioLanguageModel(PreTrainedModel):
    """Prompts with audio in, text out; forward and `generate` of the language model inside.

    Attributes:
        llm: the language model.
        processor: makes batches for it.
        audio_features: the encoders, with their cache of frames.
    """

    main_input_name = "input_ids"
    llm: Any
    processor: SalmonnProcessor
    audio_features: AudioFeatures

    @property
    def device(self) -> torch.device:
        """The language model's."""
        found: torch.device = self.llm.device
        return found

    def get_input_embeddings(self) -> Any:
        """The language model's."""
        return self.llm.get_input_embeddings()

    def audio_tokens(self, features: Streams, lengths: Tensor) -> Tensor:
        """Tokens of a batch of clips (pieces of at most 30 s), concatenated in order.

        Args:
            features: per encoder (clips, frames, width), padded.
            lengths: (clips, encoders), valid frames.

        Returns:
            (tokens of all clips together, width of the language model).
        """
        raise NotImplementedError

    def tokens_of(self, piece: Sequence[Tensor]) -> int:
        """How many audio tokens one piece of a clip becomes, from its frames per encoder."""
        raise NotImplementedError

    def embed(
        self,
        input_ids: Tensor,
        features: Streams | None = None,
        lengths: Tensor | None = None,
        waves: Sequence[Tensor] | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Embeddings of a batch of prompts, (batch, length, width), with audio tokens at their places.

        Raises:
            InputError: the number of places in the prompts and of the clips' audio tokens differ.
        """
        places = input_ids == self.processor.audio_token_id
        embeddings = self.llm.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if waves and tokens is None and features is None:
            features, lengths = stack(self._heard(waves))
        if tokens is None and features is not None and lengths is not None:
            tokens = self.audio_tokens(features, lengths)
        found, wanted = (0 if tokens is None else len(tokens)), int(places.sum())
        if found != wanted:
            raise InputError(f"got {found} audio tokens for prompts with {wanted} places; make both with one processor")
        if tokens is None:
            return embeddings
        return embeddings.masked_scatter(places[..., None], tokens.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: Streams | None = None,
        lengths: Tensor | None = None,
        waves: Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a batch of prompts, and the loss on its answers.

        Positions follow the mask, so padding changes nothing, on either side.

        Args:
            input_ids, attention_mask: (batch, length), from the processor.
            features, lengths: of the clips, as in `audio_tokens`; or `waves`, at 16 kHz, to be encoded here.
            labels: (batch, length), -100 where nothing is supervised. Logits are then computed only from the first
                supervised column on.

        Returns:
            `logits` (batch, columns, vocabulary), `loss`: the mean cross-entropy of supervised tokens.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeddings = self.embed(input_ids, features, lengths, waves)
        keep = 0
        if labels is not None:
            supervised = (labels != IGNORED).any(0).nonzero()
            keep = input_ids.shape[1] - max(int(supervised[0]) - 1, 0) if len(supervised) else 1
        output = self.llm(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=keep,
            use_cache=False,
        )
        loss = None
        if labels is not None:
            # Next-token cross-entropy on the answer and its end of text only; logits (batch, columns, vocabulary).
            targets = labels[:, labels.shape[1] - keep + 1 :]
            loss = nn.functional.cross_entropy(
                output.logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
            )
        return CausalLMOutputWithPast(loss=loss, logits=output.logits)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: Streams | None = None,
        lengths: Tensor | None = None,
        waves: Sequence[Tensor] | None = None,
        **generation: Any,
    ) -> Tensor:
        """Answers, as the language model's own `generate` writes them: greedy, beams, sampling, streamers.

        Args:
            input_ids, attention_mask, features, lengths, waves: as in `forward`.
            generation: of `GenerationMixin.generate`. The authors answer with `num_beams=4, max_new_tokens=200`.

        Returns:
            (batch · num_return_sequences, new tokens): the answers alone.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeddings = self.embed(input_ids, features, lengths, waves)
        # Padded on the left, whatever side it came with: a stable sort of the mask moves the padding to the front.
        order = mask.argsort(dim=1, stable=True)
        embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
        settings = {"max_new_tokens": 200, "do_sample": False, **penalised(generation)}
        settings.setdefault("pad_token_id", self.processor.tokenizer.pad_token_id)
        settings.setdefault("eos_token_id", self.processor.tokenizer.eos_token_id)
        answers: Tensor = self.llm.generate(inputs_embeds=embeddings, attention_mask=mask.gather(1, order), **settings)
        return answers

    def answer(self, audio: Any, instruction: str, **generation: Any) -> str:
        """The answer to an instruction about one clip, or a list of clips, by path or as waves at 16 kHz."""
        return self.answers([(audio, instruction)], **generation)[0]

    def answers(self, requests: Sequence[tuple[Any, str]], batch_size: int = 32, **generation: Any) -> list[str]:
        """The answers to several (audio, instruction) requests; cached frames are used where there are any."""
        written: list[str] = []
        for start in range(0, len(requests), batch_size):
            batch = self.prepared(requests[start : start + batch_size])
            written += self.processor.decode_answers(self.generate(**batch, **generation))
        return written

    def prepared(
        self, requests: Sequence[tuple[Any, str]], answers: Sequence[str] | None = None, padding_side: str = "left"
    ) -> dict[str, Any]:
        """A batch for `forward` or `generate`, with frames from the cache in place of waves.

        Args:
            requests: (clip or list of clips, instruction) each; inside a list, a tuple of clips is joined to one.
            answers: the wanted answers, for labels.
        """
        clips = [list(audio) if isinstance(audio, list | tuple) else [audio] for audio, _ in requests]
        clips = [[as_wave(clip) if isinstance(clip, tuple) else clip for clip in several] for several in clips]
        heard = self.audio_features.features_all([clip for several in clips for clip in several])
        rest = iter(heard)
        examples = []
        for place, (several, (_, instruction)) in enumerate(zip(clips, requests, strict=True)):
            tokens = [[self.tokens_of(piece) for piece in next(rest)] for _ in several]
            examples.append(self.processor.example(instruction, tokens, answers[place] if answers else None))
        features, lengths = stack(list(chain.from_iterable(heard)))
        batch = self.processor.batch(examples, padding_side)
        moved: dict[str, Any] = {name: value.to(self.device) for name, value in batch.items()}
        return {**moved, "features": features, "lengths": lengths}

    def _heard(self, waves: Sequence[Tensor]) -> list[list[Tensor]]:
        return list(chain.from_iterable(self.audio_features.features_all(list(waves))))


def penalised(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a `generate` that begins from embeddings, their repetition penalty in a processor of its own.

    Transformers' own (5.x) leaves out as many of the first new tokens as the prompt has padding, as if ids of the
    prompt came before them: what is penalised would depend on the rows beside it.
    """
    settings = dict(generation)
    if (penalty := settings.pop("repetition_penalty", None)) is not None:
        own = RepetitionPenaltyLogitsProcessor(float(penalty))
        settings["logits_processor"] = [own, *settings.get("logits_processor", ())]
    return settings


def stack(clips: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Frames of clips as a batch: per encoder (clips, frames, width), zero-padded; lengths (clips, encoders)."""
    lengths = torch.tensor([[len(stream) for stream in clip] for clip in clips])
    streams = [nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in zip(*clips, strict=True)]
    return streams, lengths
