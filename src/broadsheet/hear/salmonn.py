"""SALMONN (Tang et al., 2024, arXiv:2310.13289): frozen audio encoders, a window-level Q-Former, a causal LM with LoRA.

Knows: how encoders, connector and language model fit together, and the folder that keeps what was trained. Does not
know: data, training (`fitting`), how a trained model is tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from broadsheet import models
from broadsheet.cache import atomic_folder
from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.configuration import FIELDS, SalmonnConfig
from broadsheet.hear.connectors import StackLinear, WindowQFormer
from broadsheet.hear.encoders.ears import AudioFeatures
from broadsheet.hear.processing import IGNORED, SalmonnProcessor
from broadsheet.hear.sync import Synchronised
from broadsheet.hear.windows import Windows
from broadsheet.models import adapters

_WEIGHTS = "connector.safetensors"
RATE = 50.0  # frames per second that encoders are synchronised to
Streams = Sequence[Tensor]


class SalmonnForConditionalGeneration(PreTrainedModel):
    """A causal language model with ears: it answers in text about what is heard.

    Use when: a text LLM should answer about speech, sounds and music in one model, its own weights unchanged.
    Prefer a cascade (speech recognition, then the LLM) when only words matter: it reads better and needs no training.

    Inputs: clips at 16 kHz (paths or waves) and an instruction; for training rows of task, audio, instruction, answer.
    Every clip goes through each encoder; their frames are brought to 50 Hz, normalised, put side by side, cut into
    windows of a third of a second, and read by one Q-Former, N tokens a window. The tokens take the place of
    `<|audio|>` in the prompt's embeddings, and the LLM with LoRA goes on from there.
    Trained are the norms, the Q-Former with its queries and projection, and LoRA; nothing else.

    Relation: Blip-2's Q-Former, per window so that time order is kept; `connector="stack"` is the plain rival.

    Args:
        config: of what it is made.
        llm: the language model and its tokenizer; by default loaded by the name in `config`.
        encoders: in the order of `config.encoders`; by default built from those.
        features: folder of the cache of encoders' frames.

    Attributes:
        processor: makes batches for it.
        ears: its encoders, with their cache.

    Example:
        model = SalmonnForConditionalGeneration.build("default", ["whisper:tiny.en", "speech-embedding"])
        fit(model, read_rows("data/stage1.jsonl"), "runs/ears", minutes=10)
        model.answer("clip.wav", "What is said?")

    Source: arXiv:2310.13289, Eq. 1–3; authors' code bytedance/SALMONN.
    """

    config_class = SalmonnConfig
    main_input_name = "input_ids"
    config: SalmonnConfig

    def __init__(
        self,
        config: SalmonnConfig,
        llm: tuple[Any, Any] | None = None,
        encoders: Sequence[base.AudioEncoder] | None = None,
        *,
        features: Path | None = None,
    ) -> None:
        super().__init__(config)
        if not config.encoders and not encoders:
            raise InputError("got no audio encoders; expected one or more, such as whisper:tiny.en")
        model, tokenizer = models.load(config.llm) if llm is None else llm
        parts = [base.encoder(each) for each in config.encoders] if encoders is None else list(encoders)
        config.encoders = [each.settings() for each in parts]
        self.llm = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.encoders = nn.ModuleList(parts)
        self.ears = AudioFeatures(parts, features)
        self.windows = Windows(config.window_seconds, config.stride_seconds)
        self.synchronised = Synchronised([each.width for each in parts], [each.frame_rate for each in parts], RATE)
        self.connector = self._connector()
        self.processor = SalmonnProcessor(
            tokenizer, config.encoders, config.window_seconds, config.stride_seconds, config.num_queries
        )
        if config.lora_rank and not adapters.has_adapter(model):
            adapters.add(
                model,
                config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                modules=config.lora_modules,
            )
        self.encoders.to(model.device)
        self.synchronised.to(model.device)
        self.connector.to(model.device)
        self.eval()

    @classmethod
    def build(
        cls,
        llm: str = "default",
        encoders: Sequence[str | Mapping[str, Any]] = ("whisper:tiny.en", "speech-embedding"),
        *,
        seed: int = 0,
        device: str | None = None,
        dtype: str | None = None,
        features: Path | None = None,
        **settings: Any,
    ) -> Self:
        """A new model, its connector and adapter untrained.

        Args:
            llm, encoders, settings: of `SalmonnConfig`.
            seed: of the new weights.
            device, dtype: of the language model, as in `models.load`.

        Raises:
            InputError: a part cannot be had, or settings do not fit.
        """
        loaded = models.load(llm, device=device, dtype=dtype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = SalmonnConfig(llm, encoders, **settings)
            return cls(config, (loaded.model, loaded.tokenizer), features=features)

    def _connector(self) -> WindowQFormer | StackLinear:
        config = self.config
        embeddings = self.llm.get_input_embeddings().weight
        width, out = sum(self.synchronised.widths), embeddings.shape[1]
        made: WindowQFormer | StackLinear
        if config.connector == "stack":
            made = StackLinear(width, out, self.windows, queries=config.num_queries)
        else:
            made = WindowQFormer(
                width,
                out,
                self.windows,
                queries=config.num_queries,
                hidden=config.qformer_hidden,
                heads=config.qformer_heads,
                layers=config.qformer_layers,
                ffn=config.qformer_ffn,
                dropout=config.qformer_dropout,
                init=config.qformer_init,
            )
        if config.match_norm:
            made.match_norm(float(embeddings.detach().float().norm(dim=-1).mean()))
        return made

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        found: torch.device = self.llm.device
        return found

    def get_input_embeddings(self) -> Any:
        """The language model's."""
        return self.llm.get_input_embeddings()

    def audio_tokens(self, features: Streams, lengths: Tensor) -> Tensor:
        """Tokens of a batch of clips (pieces of at most 30 s), those of each behind those of the one before.

        Args:
            features: per encoder (clips, frames, width), filled up.
            lengths: (clips, encoders), frames that count.

        Returns:
            (tokens of all clips together, width of the language model).
        """
        tokens, counts = self.connected(features, lengths)
        return tokens[torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]]

    def connected(self, features: Streams, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a batch of clips, (clips, tokens, width), filled up, and how many each clip has, (clips,)."""
        joined, frames = self.synchronised([each.to(self.device) for each in features], lengths.to(self.device))
        counts = [self.windows.count(int(each)) * self.connector.per_window for each in frames]
        return self.connector(joined), torch.tensor(counts, device=self.device)

    def embed(
        self,
        input_ids: Tensor,
        features: Streams | None = None,
        lengths: Tensor | None = None,
        waves: Sequence[Tensor] | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Embeddings of a batch of prompts, with audio in its places.

        Raises:
            InputError: the prompts have places for another number of audio tokens than the clips make.
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

        Positions follow the mask, so that filling changes nothing, on whichever side it is.

        Args:
            input_ids, attention_mask: (batch, length), from the processor.
            features, lengths: of the clips, as in `audio_tokens`; or `waves`, at 16 kHz, to be encoded here.
            labels: (batch, length), -100 where nothing is supervised. Logits are then made only from the first
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
        # filled up on the left, whichever way it came: a stable sort of the mask moves the filling to the front
        order = mask.argsort(dim=1, stable=True)
        embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
        settings = {"max_new_tokens": 200, "do_sample": False, **generation}
        settings.setdefault("pad_token_id", self.processor.tokenizer.pad_token_id)
        settings.setdefault("eos_token_id", self.processor.tokenizer.eos_token_id)
        answers: Tensor = self.llm.generate(inputs_embeds=embeddings, attention_mask=mask.gather(1, order), **settings)
        return answers

    def answer(self, audio: Any, instruction: str, **generation: Any) -> str:
        """What it says to an instruction about one clip, or a list of clips, by path or as waves at 16 kHz."""
        return self.answers([(audio, instruction)], **generation)[0]

    def answers(self, requests: Sequence[tuple[Any, str]], batch_size: int = 16, **generation: Any) -> list[str]:
        """What it says to several (audio, instruction) requests; frames come from the cache where they are there."""
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
            requests: (clip or list of clips, instruction) each.
            answers: what is to be answered, for labels.
        """
        clips = [list(audio) if isinstance(audio, list | tuple) else [audio] for audio, _ in requests]
        heard = self.ears.features_all([clip for several in clips for clip in several])
        rest = iter(heard)
        examples = []
        for place, (several, (_, instruction)) in enumerate(zip(clips, requests, strict=True)):
            tokens = [[self._tokens(piece) for piece in next(rest)] for _ in several]
            examples.append(self.processor.example(instruction, tokens, answers[place] if answers else None))
        features, lengths = stack(list(chain.from_iterable(heard)))
        batch = self.processor.batch(examples, padding_side)
        moved: dict[str, Any] = {name: value.to(self.device) for name, value in batch.items()}
        return {**moved, "features": features, "lengths": lengths}

    def _heard(self, waves: Sequence[Tensor]) -> list[list[Tensor]]:
        return list(chain.from_iterable(self.ears.features_all(list(waves))))

    def _tokens(self, piece: Sequence[Tensor]) -> int:
        frames = self.synchronised.frames([len(stream) for stream in piece])
        return self.windows.count(frames) * self.connector.per_window

    @contextmanager
    def scale_lora(self, factor: float) -> Iterator[None]:
        """Inside, the adapter's scaling is `factor` times its own: 0.5 turns the paper's 4 into 2, 0 turns it off.

        Afterwards it is what it was, to the bit.
        """
        from peft.helpers import rescale_adapter_scale

        if not adapters.has_adapter(self.llm):
            raise InputError("the model has no adapter to scale; build it with lora_rank above 0")
        with rescale_adapter_scale(self.llm, factor):
            yield

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: norms, connector, adapter."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def save_pretrained(self, folder: Any, **others: Any) -> None:
        """Write what was trained, beside the names of the language model and the encoders: whole, or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        from safetensors.torch import save_file

        self.config.encoder_identities = [each.identity for each in self.ears.encoders]
        try:
            with atomic_folder(Path(folder)) as aside:
                weights = {**_named("synchronised", self.synchronised), **_named("connector", self.connector)}
                save_file(weights, str(aside / _WEIGHTS))
                if adapters.has_adapter(self.llm):
                    adapters.save(self.llm, aside, self.config.llm)
                settings = {"model_type": "salmonn", "architectures": [type(self).__name__], **self.config.settings()}
                (aside / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
                self.processor.save_pretrained(aside)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        features: Path | None = None,
        **others: Any,
    ) -> Self:
        """The model that `save_pretrained` wrote, with its language model and encoders loaded by their names.

        Raises:
            InputError: the folder is damaged, or a part of the model is missing or another than it was trained on.
        """
        from safetensors.torch import load_file

        from broadsheet.models.safefiles import check_safetensors, read_json

        place = Path(folder).expanduser()
        for name in ("config.json", _WEIGHTS, "processor_config.json"):
            if not (place / name).is_file():
                raise InputError(f"{place} holds no {name}; expected a folder that `broadsheet apply salmonn` wrote")
        settings = read_json(place / "config.json")
        if settings.get("model_type") != "salmonn":
            raise InputError(f"{place} holds a {settings.get('model_type')} model; expected a salmonn")
        config = SalmonnConfig(**{name: settings[name] for name in FIELDS if name in settings})
        check_safetensors(place / _WEIGHTS)
        options = {"device": device, "dtype": dtype}
        if config.lora_rank:
            llm = adapters.load(place, options)
        else:
            loaded = models.load(config.llm, device=device, dtype=dtype)
            llm = (loaded.model, loaded.tokenizer)
        made = cls(config, llm, features=features)
        made.processor = SalmonnProcessor.from_pretrained(place)
        found = [each.identity for each in made.ears.encoders]
        if config.encoder_identities and found != config.encoder_identities:
            raise InputError(
                f"{place} was trained on other weights of {config.kinds()}; give the encoders it was trained on"
            )
        try:
            kept = load_file(str(place / _WEIGHTS))
            made.synchronised.load_state_dict(_under("synchronised", kept))
            made.connector.load_state_dict(_under("connector", kept))
        except RuntimeError as error:
            raise InputError(
                f"{place / _WEIGHTS} does not fit its config: {' '.join(str(error).split())[:200]}"
            ) from None
        return made.eval()


AutoConfig.register("salmonn", SalmonnConfig, exist_ok=True)
AutoModelForCausalLM.register(SalmonnConfig, SalmonnForConditionalGeneration, exist_ok=True)


def stack(clips: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Frames of clips as a batch: per encoder (clips, frames, width), filled up; lengths (clips, encoders)."""
    lengths = torch.tensor([[len(stream) for stream in clip] for clip in clips])
    streams = [nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in zip(*clips, strict=True)]
    return streams, lengths


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": weight.detach().cpu().contiguous() for name, weight in module.state_dict().items()}


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): weight for name, weight in weights.items() if name.startswith(f"{prefix}.")
    }
