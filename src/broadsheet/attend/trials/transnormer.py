"""Try TransNormer: train it and a Transformer of its size from scratch on the same bytes, then read held-out texts.

Knows: the two models, bytes. Does not know: checkpoints of others (a softmax checkpoint cannot become a
TransNormer), tokenizers: a text is its UTF-8 bytes, so that small models spend their weights on mixing tokens, any
language can be read, and losses do not depend on a vocabulary.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet.attend.memory import cache_bytes
from broadsheet.attend.transnormer import TransNormerForCausalLM
from broadsheet.attend.transnormer_config import TransNormerCache, TransNormerConfig
from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.models.safefiles import read_json
from broadsheet.options import option
from broadsheet.seeds import seeded
from broadsheet.training.fit import fit
from broadsheet.training.objective import Objective
from broadsheet.training.schedules import SCHEDULES, Progress
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.trained.arms import TRAINING, TrainedTrial

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

BEGIN = 256  # the token before each text; all others are bytes
VOCABULARY = 257
STRETCH = 8  # held-out texts are this many times as long as those of training
DECODE_CONTEXTS = (256, 2048, 8192)
_DECODE_STEPS = 24
RATES = (1e-3, 2e-3, 4e-3)  # learning rates that each model's is chosen from
_CLAIM, _NO_DECAY = ("Llama", "TransNormer"), "TransNormer, no decay"
_TUNING_TEXTS = 16


@dataclass(frozen=True)
class Shape:
    """Of a TransNormer; the Llama beside it is given as many weights.

    Args:
        width: D. Heads, layers, the width of the MLP and the block size follow.
    """

    width: int
    layers: int
    heads: int
    block_size: int

    def transnormer(self, decay: str) -> PreTrainedModel:
        """A new one with the first weights the global generator gives."""
        return TransNormerForCausalLM(
            TransNormerConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.width,
                intermediate_size=2 * self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                block_size=self.block_size,
                decay=decay,
                bos_token_id=BEGIN,
            )
        )

    def llama(self, positions: int) -> PreTrainedModel:
        """RMSNorm, SwiGLU, rotary positions, softmax. Its attention has 4D² weights to the other's 5D²; its MLP, of
        three matrices like the other's, is wider by what that leaves, less the weights of its norms."""
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.width,
                intermediate_size=2 * self.width + (self.width - 2) // 3,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                max_position_embeddings=positions,
                attn_implementation="sdpa",
                bos_token_id=BEGIN,
                eos_token_id=None,
            )
        )


@dataclass(frozen=True)
class ByteTexts:
    """Bytes to train on and to read.

    Args:
        stream: (n,) training texts, one after another, each after a BEGIN.
        held_out: (texts, 1 + STRETCH · length), a BEGIN and the first bytes of texts that are not in the stream.
        tuning: (16, 1 + length) of still other texts, for the loss along the way and the choice of learning rates.
        decode: (longest context + steps,) held-out bytes, to be read before timed decoding.
    """

    stream: Tensor
    held_out: Tensor
    tuning: Tensor
    decode: Tensor


@dataclass
class TransNormerTrial(TrainedTrial):
    """TransNormer against a Llama of the same size, both trained from scratch on the same bytes in the same order.

    Every arm gets equal tokens, steps and optimizer, and is trained from several seeds; the learning rate is chosen for
    the Llama and for TransNormer, alike, on texts of their own. Beside the two models of the paper's claim stand
    TransNormer without decay and TransNormer with the decay the paper prints. Held-out texts are eight times as long as
    those of training: their first part gives the loss, what follows shows each model beyond its training length. Time
    and memory of decoding are measured at contexts of 256, 2,048 and 8,192 tokens. All models are small; what holds at
    this scale need not hold at the paper's 385M and more.
    """

    paper: ClassVar[str] = "transnormer"
    lacks: ClassVar[tuple[str, ...]] = ("model", "dtype", "method")
    title: ClassVar[str] = "TransNormer: linear attention with decay in place of softmax"

    texts: int = option(64, "Held-out texts.", quick=24, least=2)
    steps: int = option(300, "Of training, for each run of each arm; with --quick for two arms.", quick=60, least=1)
    length: int = option(256, "Bytes of a training text.", least=8)
    batch: int = option(16, "Training texts in a step.", least=1)
    lr: float | None = option(
        None,
        "The highest learning rate of AdamW, reached after a tenth of the steps, then falling as a cosine; by default "
        "the best of 0.001, 0.002 and 0.004 after a third of the steps, for each of the two models.",
        quick=2e-3,
    )
    width: int = option(128, "Of TransNormer; the Llama's MLP is widened to the same size.", least=1)
    layers: int = option(4, "Of both.", least=1)
    heads: int = option(4, "Of both.", least=1)
    text_field: str = option("text", "The field of the data that holds the text.")

    def check(self) -> None:
        if self.width % (2 * self.heads):
            raise InputError(f"got --width {self.width}; expected a multiple of twice the {self.heads} heads")
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"got --lr {self.lr:g}; expected more than 0")

    def question(self) -> str:
        return (
            f"Trained on the same bytes ({self.data}), does TransNormer predict held-out text better than a "
            "Transformer of its size, and at what cost does it decode?"
        )

    def tasks(self) -> list[EvalTask]:
        self._device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {self._device} cannot be used here: {str(error).splitlines()[0]}") from None
        self._corpus = corpora.load(self.data, text_field=self.text_field)
        texts = self._texts = self._split(self._corpus)
        return [
            EvalTask(
                "held out",
                list(texts.held_out),
                [
                    Metric("loss", higher_is_better=False, unit="nats/byte"),
                    Metric(f"loss at {STRETCH}× the length", "furthest", higher_is_better=False, unit="nats/byte"),
                ],
                self._arm,
                item="text",
                about=f"{len(texts.held_out)} documents, each cut to {STRETCH * self.length} bytes",
                fingerprint=fingerprint([int(texts.stream.sum()), len(texts.stream), texts.held_out.tolist()]),
                block_size=4,
                examples=self._examples,
            )
        ]

    def facts(self) -> dict[str, Any]:
        return {}  # no model is loaded: all are trained here

    def setting(self) -> Mapping[str, Any]:
        read_bytes = self.steps * self.batch * self.length
        weights = {name: sum(p.numel() for p in model.parameters()) for name, model in self._rivals.items()}
        return {
            "model": f"{self.layers} layers, width {self.width}, {self.heads} heads, from scratch",
            "weights": ", ".join(f"{name} {size:,}" for name, size in weights.items()),
            "tokens": "UTF-8 bytes, and one token that begins a text",
            "training": f"{self.steps} steps of {self.batch} × {self.length} bytes: {read_bytes:,} bytes, "
            f"{read_bytes / len(self._texts.stream):.2f} times what there is; AdamW, "
            f"learning rate {', '.join(f'{rate:g} ({name})' for name, rate in self._rates.items())}",
            "data": self._corpus.describe(),
            "device": f"{self._device}, float32",
        }

    def arms(self) -> list[ModelArm]:
        shape = Shape(self.width, self.layers, self.heads, block_size=64)
        llama = partial(shape.llama, max(STRETCH * self.length, DECODE_CONTEXTS[-1]) + _DECODE_STEPS)
        self._load: dict[str, Callable[[Path], PreTrainedModel]] = {}

        def arm(name: str, about: str, make: Callable[[], PreTrainedModel], role: Any = "sibling") -> ModelArm:
            kind = _CLAIM[name.startswith(_CLAIM[1])]

            def load(folder: Path) -> PreTrainedModel:
                model = make()
                model.load_state_dict(load_file(folder / "model.safetensors"))
                return model.to(self._device).eval()

            self._load[name] = load
            train = partial(self._train, make, self._rates[kind], self.steps)
            return self.trained(name, train, load, role, about, self.paper if kind == _CLAIM[1] else "")

        self._rates = {
            name: self._rate(name, make)
            for name, make in zip(_CLAIM, (llama, partial(shape.transnormer, "code")), strict=True)
        }

        arms = [
            arm(_CLAIM[0], "softmax attention with rotary positions (sdpa)", llama, "baseline"),
            arm(_CLAIM[1], "the released code's decay", partial(shape.transnormer, "code"), None),
        ]
        if not self.quick:
            arms += [
                arm("TransNormer, Eq. 2", "the decay the paper prints", partial(shape.transnormer, "paper")),
                arm(_NO_DECAY, "λ = 1", partial(shape.transnormer, "none")),
            ]
        return arms

    def claims(self) -> list[Claim]:
        # The paper's loss is 2.248 against 2.362 at 385M and 1.896 against 2.061 at 1B, in nats a token. How many bytes
        # its tokens have is not told, so there is no effect in this metric's unit.
        claims = [
            Claim("loss", *_CLAIM, "linear attention with decay predicts text better than softmax (abstract)"),
            # Tokens a second of a graphics card at 7B: 4,081 and 3,362.
            Claim(TRAINING, *_CLAIM, "it trains faster than a Transformer of its size (speed table, 7B)", 4081 / 3362),
        ]
        if not self.quick:
            says = "its decay is part of why (ablation of LRPE-d: with it, and without decay)"
            claims.append(Claim("loss", _NO_DECAY, _CLAIM[1], says))
        return claims

    def also_compare(self) -> list[tuple[str, str]]:
        """TransNormer and its ablations."""
        return [(_CLAIM[1], name) for name in self._load if name.startswith("TransNormer,")]

    def figures(self, outcome: Outcome) -> list[Curve]:
        learned = {name: self._history(name) for name in self._trained}
        lines = {name: np.asarray(arm.samples["parts"]).mean(0).tolist() for name, arm in outcome.usable.items()}
        ends = [float(self.length * (i + 1)) for i in range(STRETCH)]
        contexts = [float(context) for context in DECODE_CONTEXTS]
        steps = [float(step) for step in next(iter(learned.values()), {})]
        milliseconds, held = self._cost
        return [
            _curve(
                "Held-out loss while training", "step", "nats/byte", steps, {k: v.values() for k, v in learned.items()}
            ),
            _curve(f"Loss along the text (trained on {self.length} bytes)", "up to byte", "nats/byte", ends, lines),
            _curve("Decoding", "context, tokens", "ms a token", contexts, milliseconds, log_x=True),
            _curve("What is kept of a text", "context, tokens", "bytes", contexts, held, log_x=True),
        ]

    def notes(self, outcome: Outcome) -> list[str]:
        notes = []
        milliseconds, held = self._cost
        for name in milliseconds:
            spent = ", ".join(
                f"{time:.2f} ms and {size / 1e6:.2f} MB at {context:,}"
                for context, time, size in zip(DECODE_CONTEXTS, milliseconds[name], held[name], strict=True)
            )
            notes.append(f"Decoding with {name}: {spent} tokens of context.")
        notes.append(
            "Loss says nothing of finding a fact in a long text: a state of fixed size keeps no token apart, and such "
            "models are known to retrieve poorly. Small models say little of large ones."
        )
        return notes

    def _examples(self, texts: Sequence[Tensor], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Beginnings of held-out texts, and among how many bytes each arm is as good as choosing there."""
        losses = [{name: float(arm.samples["loss"][i]) for name, arm in arms.items()} for i in range(len(texts))]
        return [
            Example(
                excerpt(bytes(texts[i][1 : self.length + 1].tolist()).decode("utf-8", "replace")),
                {
                    name: f"each byte as one of {math.exp(loss):.1f} equally likely ones"
                    for name, loss in losses[i].items()
                },
            )
            for i in most_apart(losses, 3)
        ]

    def _rate(self, name: str, make: Callable[[], PreTrainedModel]) -> float:
        """The learning rate given, or the one that leaves the lowest loss on the tuning texts."""
        if self.lr is not None:
            return self.lr

        def train(rate: float, out: Path) -> TrainOutput:
            return self._train(make, rate, max(10, self.steps // 3), self.seed, out)

        def score(out: Path) -> float:
            model = make()
            model.load_state_dict(load_file(out / "model.safetensors"))
            return -float(read(model.to(self._device).eval(), self._texts.tuning, 1).mean())

        about = f"{_TUNING_TEXTS} other texts, after a third of the steps"
        return self.best_run(name, RATES, train, score, on=about)

    def _history(self, name: str) -> dict[str, float]:
        """Held-out loss by step."""
        history = read_json(self.folder(name) / "training.json")["history"]
        return {str(int(each["step"])): each["eval_held_out"] for each in history if "eval_held_out" in each}

    @property
    def _trained(self) -> list[str]:
        """The models whose training did not fail."""
        return [name for name in self._load if (self.folder(name) / "training.json").exists()]

    @cached_property
    def _rivals(self) -> dict[str, PreTrainedModel]:
        """The two models of the claim."""
        return {name: self._load[name](self.folder(name)) for name in self._trained if name in _CLAIM}

    @cached_property
    def _cost(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        return decode_cost(self._rivals, self._texts.decode.to(self._device))

    def _split(self, corpus: corpora.Corpus) -> ByteTexts:
        """Whole documents are held out: a sample of those long enough. A document equal to one of them is dropped."""
        wanted = self.steps * self.batch * self.length
        documents = corpus.take(max(4000, wanted // 200), self.seed)
        random.Random(self.seed).shuffle(documents)
        long = STRETCH * self.length
        known = {document.text: document for document in documents if len(document.text.encode()) >= long}
        fit_to_ask = list(known.values())  # a text that is there twice is asked once
        # Up to a third is left to choose learning rates on: never the texts that are asked.
        spared = min(_TUNING_TEXTS, len(fit_to_ask) // 3)
        asked = min(self.texts, len(fit_to_ask) - spared)
        chosen, tuning = fit_to_ask[:asked], fit_to_ask[asked:][:_TUNING_TEXTS]
        if len(chosen) < 2 or not tuning:
            raise InputError(
                f"{self.data} gives {len(fit_to_ask)} documents of at least {long} bytes; expected 3 at least, 2 to "
                "hold out and 1 to choose learning rates on: make --length smaller"
            )
        if len(chosen) < self.texts:
            say(f"{len(chosen)} documents are held out, of {self.texts} wanted: {len(fit_to_ask)} are long enough")
        out = {document.text for document in [*chosen, *tuning]}
        stream = torch.cat(
            [_bytes(document.text) for document in documents if document.text not in out] or [_bytes("")]
        )
        if len(stream) <= self.length:
            raise InputError(
                f"{self.data} leaves {len(stream)} bytes to train on; expected more than {self.length}, and a few "
                "hundred thousand to learn from"
            )
        decode = torch.cat([_bytes(document.text) for document in chosen])
        longest = DECODE_CONTEXTS[-1] + _DECODE_STEPS
        decode = decode.repeat(-(-longest // len(decode)))[:longest]
        held_out = torch.stack([_bytes(document.text)[: long + 1] for document in chosen])
        return ByteTexts(
            stream, held_out, torch.stack([_bytes(document.text)[: self.length + 1] for document in tuning]), decode
        )

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """Training happens once, before the arm first reads."""

        def run(block: Sequence[Tensor]) -> dict[str, Any]:
            parts = read(lazy(), torch.stack(list(block)), STRETCH)
            return {"loss": parts[:, 0], "furthest": parts[:, -1], "parts": parts}

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _train(self, make: Callable[[], PreTrainedModel], rate: float, steps: int, seed: int, out: Path) -> TrainOutput:
        """Train one model into the folder `out`, with the loss it had on held-out texts along the way.

        Raises:
            InputError: the loss is not finite.
        """
        with seeded(seed):
            model = make().to(self._device)
        return fit(
            model,
            range(steps),
            NextByte(self, steps, seed),
            out,
            save=lambda folder: save_file(model.state_dict(), folder / "model.safetensors"),
            steps=steps,
            batch_size=1,  # a row is the number of a step; `NextByte` draws its texts
            learning_rate=rate,
            schedule="cosine to a tenth",
            warmup=0.1,
            weight_decay=0.1,
            autocast="none",
            optim="adamw_torch",
            adam_beta2=0.95,
            seed=seed,
        )

    def _batch(self, step: int, seed: int) -> Tensor:
        """The texts of a step, (batch, length + 1): the same for every arm of that seed, whatever ran before."""
        stream = self._texts.stream
        generator = torch.Generator().manual_seed(int(fingerprint([seed, step])[:15], 16))
        starts = torch.randint(len(stream) - self.length, (self.batch,), generator=generator)
        return stream[starts[:, None] + torch.arange(self.length + 1)]


class NextByte(Objective):
    """Next-byte prediction on texts drawn by the number of the step; held-out loss ten times along the way."""

    def __init__(self, trial: TransNormerTrial, steps: int, seed: int) -> None:
        self.trial = trial
        self.steps, self.seed = steps, seed
        self.held_out = trial._texts.tuning

    def collate(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        ids = self.trial._batch(items[0][0], self.seed)
        return {"input_ids": ids, "tokens": torch.tensor(ids[:, 1:].numel())}

    def loss(self, model: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        ids = batch["input_ids"]
        logits = model(ids[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def parameter_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]  # vectors decay too

    def after_step(self, model: Any, step: int) -> dict[str, float]:
        if step % max(1, self.steps // 10):
            return {}
        found = float(read(model.eval(), self.held_out, 1).mean())
        model.train()
        return {"held_out": found}


def _cosine_to_a_tenth(progress: Progress, warmup: float) -> float:
    """Rises over the steps of the warm-up, then falls as a cosine to a tenth."""
    step, rise = progress.step, max(1, int(warmup * progress.steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, progress.steps - rise)))


SCHEDULES["cosine to a tenth"] = _cosine_to_a_tenth


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor, parts: int) -> np.ndarray:
    """Mean loss, in nats, of equal stretches of each text: ids (texts, 1 + parts · m) -> (texts, parts)."""
    ids = ids.to(model.device)
    logits = model(ids[:, :-1], use_cache=False).logits.float()
    losses = cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    return losses.unflatten(1, (parts, -1)).mean(-1).cpu().numpy().astype(np.float64)


@torch.no_grad()
def decode_cost(
    models: dict[str, PreTrainedModel], ids: Tensor
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """What one more token costs each model at each of DECODE_CONTEXTS: milliseconds, and bytes of cache."""
    caches: dict[tuple[str, int], Cache] = {}
    held: dict[str, list[float]] = {name: [] for name in models}
    for context in DECODE_CONTEXTS:
        for name, model in models.items():
            cache = model(ids[None, :context], use_cache=True, logits_to_keep=1).cache
            size = cache.bytes() if isinstance(cache, TransNormerCache) else cache_bytes(cache)
            held[name].append(float(size.on_device))
            caches[name, context] = cache
    seconds = decode_seconds(models, caches, ids[-_DECODE_STEPS:])
    milliseconds = {
        name: [1000 * float(np.median(seconds[name, context])) for context in DECODE_CONTEXTS] for name in models
    }
    return milliseconds, held


@torch.no_grad()
def decode_seconds(
    models: dict[str, PreTrainedModel], caches: dict[tuple[str, int], Cache], ids: Tensor
) -> dict[tuple[str, int], list[float]]:
    """Seconds for each token of `ids` (n,), by model and context, read one at a time after what a cache holds.

    All take turns token by token, so that a drift of the machine falls on all alike.
    """
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in caches}
    for token in ids.split(1):
        for (name, context), cache in caches.items():
            start = time.perf_counter()
            models[name](token[None], cache=cache, use_cache=True)
            if ids.is_cuda:
                torch.cuda.synchronize()
            seconds[name, context].append(time.perf_counter() - start)
    return seconds


def _bytes(text: str) -> Tensor:
    """A BEGIN, and the text as UTF-8."""
    return torch.tensor([BEGIN, *text.encode("utf-8")])


def _curve(
    title: str, x_label: str, y_label: str, x: list[float], lines: Mapping[str, Any], log_x: bool = False
) -> Curve:
    return Curve(title, x_label, y_label, x, {name: [*values] for name, values in lines.items()}, log_x=log_x)
