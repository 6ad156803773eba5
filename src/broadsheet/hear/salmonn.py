"""SALMONN (Tang et al., 2024, arXiv:2310.13289): frozen audio encoders, a window-level Q-Former, a causal LM with LoRA.

    Z = [LN(S); LN(A)]                       Eq. 1   `Synchronised`: frames of the encoders, joined at 50 Hz
    H = Q-Former(Q, Z in windows of L)       Eq. 2–3 `WindowQFormer`: N tokens per window, in time order
    P(answer | H, instruction)               Sec. 3  `SalmonnForConditionalGeneration`: the LLM with LoRA

Knows: how encoders, connector and language model fit together. Does not know: data, optimizers (`training`), prompts
(`audio_lm`, `processing`), folders (`saving`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Blip2QFormerConfig, Blip2QFormerModel

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.hear import base, saving
from broadsheet.hear.audio_lm import AudioLanguageModel, Streams
from broadsheet.hear.configuration import SalmonnConfig
from broadsheet.hear.connectors import StackLinear, start_at_norm
from broadsheet.hear.encoders.audio_features import AudioFeatures
from broadsheet.hear.processing import SalmonnProcessor
from broadsheet.hear.windows import Windows
from broadsheet.models import adapters
from broadsheet.models.pushing import push_saved
from broadsheet.seeds import seeded

RATE = 50.0  # frames per second that encoders are synchronised to


class Synchronised(nn.Module):
    """Joins the frames of several encoders: Z = [LN₁(S); LN₂(A); …] on the feature axis.

    Every stream is brought to the common rate by repeating its frames, has a LayerNorm of its own, and is padded with
    zeros. Padding follows the norm, so it is exactly zero whatever the norm has learnt. One stream takes the same path
    as several.

    Args:
        widths: of each encoder's frames.
        rates: frames per second of each; `rate` has to be a multiple of every one.
        rate: frames per second of the result.
        eps: of the norms.

    Raises:
        InputError: a rate that does not divide the common one.

    Source: arXiv:2310.13289, Sec. 3.1, Eq. 1.
    """

    def __init__(self, widths: Sequence[int], rates: Sequence[float], rate: float = 50.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.repeats = [round(rate / each) for each in rates]
        if any(repeat < 1 or repeat * each != rate for repeat, each in zip(self.repeats, rates, strict=True)):
            raise InputError(f"got encoders of {list(rates)} frames per second; expected divisors of {rate:g}")
        self.widths = list(widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for width in widths)

    def frames(self, lengths: Sequence[int]) -> int:
        """Frames of one clip after joining, from the frames that each encoder gave."""
        return max(repeat * length for repeat, length in zip(self.repeats, lengths, strict=True))

    def forward(self, streams: Sequence[Tensor], lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Join a batch of clips.

        Args:
            streams: per encoder (clips, its frames, its width); frames beyond a clip's length are ignored.
            lengths: (clips, encoders) valid frames of each stream.

        Returns:
            Z, (clips, frames, sum of widths), and how many of its frames each clip has, (clips,).
        """
        repeats = torch.tensor(self.repeats, device=lengths.device)
        ends = lengths * repeats
        total = ends.amax(1)
        frames = int(total.max())
        joined = []
        for norm, stream, repeat, end in zip(self.norms, streams, self.repeats, ends.T, strict=True):
            # LN(S): (clips, frames, width of the stream), zero after the stream's end
            normed = norm(stream.to(next(norm.parameters()).dtype)).repeat_interleave(repeat, dim=1)[:, :frames]
            normed = nn.functional.pad(normed, (0, 0, 0, frames - normed.shape[1]))
            beyond = torch.arange(frames, device=lengths.device) >= end[:, None]
            joined.append(normed.masked_fill(beyond[..., None], 0.0))
        return torch.cat(joined, dim=-1), total  # Eq. 1: Z = [LN(S); LN(A)], (clips, frames, sum of widths)


class WindowQFormer(nn.Module):
    """A Q-Former that reads every window of frames on its own, with the same few trainable queries.

    All windows of a batch are one batch for Blip-2's Q-Former: cross-attention in every layer, no text branch, random
    initial weights. Its outputs are tokens in time order, projected to the language model's width.

    Args:
        width: of a frame.
        out_width: of a token.
        windows: how frames are cut.
        queries: N, tokens a window (the paper: 1).
        hidden, heads, layers, ffn: of the Q-Former (the paper, BERT-base: 768, 12, 2, 3072).
        dropout: of the Q-Former (0.1).
        init: initial standard deviation of its weights (BERT's 0.02). A narrow Q-Former hears little at that: the
            window's contribution to the query shrinks with the width, so tokens hardly differ between clips; about
            1 / √hidden keeps them apart.

    Shapes:
        (clips, frames, width) → (clips, windows · N, out_width).

    Source: arXiv:2310.13289, Sec. 3.1, Eq. 2–3.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        windows: Windows,
        *,
        queries: int = 1,
        hidden: int = 768,
        heads: int = 12,
        layers: int = 2,
        ffn: int = 3072,
        dropout: float = 0.1,
        init: float = 0.02,
    ) -> None:
        super().__init__()
        if min(queries, hidden, heads, layers, ffn) < 1 or hidden % heads:
            raise InputError(f"got {queries} queries, hidden {hidden}, heads {heads}, layers {layers}, ffn {ffn}")
        self.windows = windows
        settings: dict[str, Any] = {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "intermediate_size": ffn,
            "encoder_hidden_size": width,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "initializer_range": init,
            "attn_implementation": "sdpa",
        }
        self.query = nn.Parameter(torch.randn(1, queries, hidden) * 0.02)
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**settings))
        self.projection = nn.Linear(hidden, out_width)

    @property
    def per_window(self) -> int:
        """Tokens a window."""
        return int(self.query.shape[1])

    def forward(self, frames: Tensor) -> Tensor:
        """Tokens of a batch of clips, see the class."""
        cut = self.windows.cut(frames)  # (clips, count, window, width)
        clips, count, window, width = cut.shape
        # Eq. 2: every window is a batch row, read with the same N queries: (clips · count, N, hidden)
        read = self.qformer(
            query_embeds=self.query.expand(clips * count, -1, -1),
            encoder_hidden_states=cut.reshape(clips * count, window, width),
        ).last_hidden_state
        # Eq. 3: all windows' outputs in time order, projected: (clips, count · N, width of the language model)
        return self.projection(read).reshape(clips, count * self.per_window, -1)

    def match_norm(self, norm: float) -> None:
        """Start with tokens of about this Euclidean norm; the Q-Former's last LayerNorm gives √hidden."""
        start_at_norm(self.projection, norm, sqrt(self.projection.in_features))


class SalmonnForConditionalGeneration(AudioLanguageModel):
    """A causal language model that hears: it answers in text about audio.

    Use when: a text LLM should answer about speech, sounds and music in one model, its own weights unchanged.
    Prefer a cascade (speech recognition, then the LLM) when only words matter and speech is unlike your rows: it needs
    no training.

    Inputs: clips at 16 kHz (paths or waves) and an instruction; for training rows of task, audio, instruction, answer.
    Every clip goes through each encoder; the frames are brought to 50 Hz, normalised, concatenated on the feature axis,
    cut into windows of a third of a second, and read by one Q-Former, N tokens per window. The tokens replace
    `<|audio|>` in the prompt's embeddings, and the LLM with LoRA continues from there.
    Trained are the norms, the Q-Former with its queries and projection, and LoRA; nothing else.

    Training has three stages with one loss (the next-token cross-entropy of the answer), one set of trained parameters
    and other rows each (Sec. 3.2):
        1. pre-training on speech recognition and audio captioning: `training.fitting.fit`;
        2. instruction tuning on all tasks: the same `fit`;
        3. activation tuning, `training.activating.activate`: with LoRA scaled from 4 to 2 (`scale_lora(0.5)`) the model
           writes a story about each of 12 clips; back at 4 it is trained on them for 12 steps.

    Relation: Blip-2's Q-Former, per window so that time order is kept; `connector="stack"` is the plain rival.

    Args:
        config: names and sizes of the parts.
        llm: the language model and its tokenizer; by default loaded by the name in `config`.
        encoders: in the order of `config.encoders`; by default built from those.
        features: folder of the cache of encoders' frames.

    Example:
        from broadsheet.hear import SalmonnForConditionalGeneration, fit, make_data, read_rows

        clips = make_data("clips", asr=24, sound=12, caption=0)  # by flite and sox
        rows = read_rows(clips.folder / "stage1.jsonl")
        encoders = ["whisper:tiny.en", "speech-embedding"]
        model = SalmonnForConditionalGeneration.build("default", encoders, context_seconds=8)  # the clips are short
        fit(model, rows, "ears", minutes=2)
        model.answer(rows[0].audio[0], "What is said?")

    Source: arXiv:2310.13289, Eq. 1–3; authors' code bytedance/SALMONN.
    """

    paper: ClassVar[str] = "salmonn"
    config_class = SalmonnConfig
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
            parameter.requires_grad_("lora_" in name)  # the LLM is frozen, LoRA is not
        self.encoders = nn.ModuleList(parts)
        self.audio_features = AudioFeatures(parts, features)
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
        with seeded(seed):
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

    def audio_tokens(self, features: Streams, lengths: Tensor) -> Tensor:
        """See `AudioLanguageModel.audio_tokens`."""
        tokens, counts = self.connected(features, lengths)
        return tokens[torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]]

    def connected(self, features: Streams, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a batch of clips, (clips, tokens, width), padded, and how many each clip has, (clips,)."""
        # Eq. 1: Z (clips, frames, sum of widths); then Eq. 2–3
        joined, frames = self.synchronised([each.to(self.device) for each in features], lengths.to(self.device))
        counts = [self.windows.count(int(each)) * self.connector.per_window for each in frames]
        return self.connector(joined), torch.tensor(counts, device=self.device)

    def tokens_of(self, piece: Sequence[Tensor]) -> int:
        """Audio tokens that one piece of a clip becomes, from its frames per encoder."""
        frames = self.synchronised.frames([len(stream) for stream in piece])
        return self.windows.count(frames) * self.connector.per_window

    @contextmanager
    def scale_lora(self, factor: float) -> Iterator[None]:
        """Inside, the adapter's scaling is `factor` times its own: 0.5 turns the paper's 4 into 2, 0 turns it off.

        Afterwards the scaling is unchanged, bit for bit.

        Raises:
            InputError: the model has no adapter.

        Source: arXiv:2310.13289, Sec. 3.2: a lower scaling weakens P(Y|X), which short training answers have narrowed.
        """
        from peft.helpers import rescale_adapter_scale

        if not adapters.has_adapter(self.llm):
            raise InputError("the model has no adapter to scale; build it with lora_rank above 0")
        with rescale_adapter_scale(self.llm, factor):  # y = Wx + factor · (alpha / rank) · BAx
            yield

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: norms, connector, adapter."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def save_pretrained(self, folder: Any, **others: Any) -> None:
        """Write what was trained, beside the names of the language model and the encoders: whole, or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        self.config.encoder_identities = [each.identity for each in self.audio_features.encoders]
        saving.save(Path(folder), self.config, self.llm, self.processor, self._trained_modules())

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Save it to a repository of the hub, with its card; see `models.pushing.push`."""
        return push_saved(self.save_pretrained, repository, private=private)

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
            InputError: the folder is damaged, or a part of the model is missing or differs from the one in training.
        """
        place = Path(folder).expanduser()
        config = saving.read_config(place)
        if config.lora_rank:
            llm = adapters.load(place, {"device": device, "dtype": dtype})
        else:
            loaded = models.load(config.llm, device=device, dtype=dtype)
            llm = (loaded.model, loaded.tokenizer)
        made = cls(config, llm, features=features)
        made.processor = SalmonnProcessor.from_pretrained(place)
        found = [each.identity for each in made.audio_features.encoders]
        if config.encoder_identities and found != config.encoder_identities:
            raise InputError(
                f"{place} was trained on other weights of {config.kinds()}; give the encoders it was trained on"
            )
        saving.load_weights(place, made._trained_modules())
        return made.eval()

    def _trained_modules(self) -> dict[str, nn.Module]:
        return {"synchronised": self.synchronised, "connector": self.connector}


AutoConfig.register("salmonn", SalmonnConfig, exist_ok=True)
AutoModelForCausalLM.register(SalmonnConfig, SalmonnForConditionalGeneration, exist_ok=True)
