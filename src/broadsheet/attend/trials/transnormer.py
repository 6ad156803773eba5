"""Try TransNormer: train it and a Transformer of its size from scratch on the same bytes, then read held-out texts.

Knows: the two models, bytes, the A/B engine. Does not know: checkpoints of others (a softmax checkpoint cannot become a
TransNormer), tokenizers: a text is its UTF-8 bytes, so that small models spend their weights on mixing tokens, any
language can be read, and losses do not depend on a vocabulary.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet.attend.memory import cache_bytes
from broadsheet.attend.transnormer import TransNormerForCausalLM
from broadsheet.attend.transnormer_config import TransNormerCache, TransNormerConfig
from broadsheet.cache import atomic_folder, fingerprint, home, locked
from broadsheet.console import InputError, progress, say
from broadsheet.data import corpora
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.results import Curve, Role, TrialResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

BEGIN = 256  # the token before each text; all others are bytes
VOCABULARY = 257
STRETCH = 8  # held-out texts are this many times as long as those of training
DECODE_CONTEXTS = (256, 2048, 8192)
_DECODE_STEPS = 24
_CLAIM = ("Llama", "TransNormer")
Lines = dict[str, list[float | None]]


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
class Contestant:
    """A model to be trained: which one, and how it is printed."""

    name: str
    role: Role
    description: str
    make: Callable[[], PreTrainedModel]
    seed: int


@dataclass(frozen=True)
class ByteTexts:
    """Bytes to train on and to read.

    Args:
        stream: (n,) training texts, one after another, each after a BEGIN.
        held_out: (texts, 1 + STRETCH · length), a BEGIN and the first bytes of texts that are not in the stream.
        decode: (longest context + steps,) held-out bytes, to be read before timed decoding.
    """

    stream: Tensor
    held_out: Tensor
    decode: Tensor


@dataclass
class TransNormerTrial:
    """TransNormer against a Llama of the same size, both trained from scratch on the same bytes in the same order.

    Every arm gets equal tokens, steps, optimizer and learning rate; beside the two models of the paper's claim stand
    TransNormer without decay, TransNormer with the decay the paper prints, and the Llama begun from another seed, which
    shows how much of a difference is chance of training. Held-out texts are eight times as long as those of training:
    their first part gives the loss, what follows shows each model beyond its training length. Time and memory of
    decoding are measured at contexts of 256, 2,048 and 8,192 tokens. All models are small; what holds at this scale
    need not hold at the paper's 385M and more.

    Options:
        --texts N: held-out texts (64; with --quick 24).
        --steps N: of training, for each arm (300; with --quick 60, and two arms).
        --length N: bytes of a training text (256).
        --batch N: training texts in a step (16).
        --lr X: the highest learning rate of AdamW, reached after a tenth of the steps, then falling as a cosine (0.002:
            of 0.001, 0.002 and 0.004 the best for the Llama after 60 steps; TransNormer did better still with 0.004).
        --width N, --layers N, --heads N: of TransNormer (128, 4, 4); the Llama's MLP is widened to the same size.
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME: where to train and read (by default CUDA, then CPU).
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    texts: int = 0
    steps: int = 0
    length: int = 256
    batch: int = 16
    lr: float = 2e-3
    width: int = 128
    layers: int = 4
    heads: int = 4
    text_field: str = "text"
    device: str = ""

    def run(self) -> TrialResult:
        """Train the arms, let them read, time their decoding, explain.

        Raises:
            InputError: an option or the data cannot be used.
        """
        self._settle()
        corpus = corpora.load(self.data, text_field=self.text_field)
        texts = self._texts(corpus)
        facts = {
            "seed": self.seed,
            "data": {"name": self.data, "fingerprint": corpus.fingerprint()},
            "texts": fingerprint([int(texts.stream.sum()), len(texts.stream), texts.held_out.tolist()]),
        }
        self.folder_ = home() / "trials" / f"transnormer-{fingerprint([versions(), facts, asdict(self)])}"
        self.folder_.mkdir(parents=True, exist_ok=True)
        self.trained_: dict[str, PreTrainedModel] = {}
        self.histories_: dict[str, dict[str, float]] = {}
        contestants = self._contestants()
        say(f"training {len(contestants)} models for {self.steps} steps of {self.batch} × {self.length} bytes each")
        arms, comparisons = run_arms(
            [self._arm(contestant, texts) for contestant in contestants],
            list(texts.held_out),
            [
                Metric("loss", higher_is_better=False, unit="nats/byte"),
                Metric(f"loss at {STRETCH}× the length", "furthest", higher_is_better=False, unit="nats/byte"),
            ],
            block_size=4,
            pairs=[(_CLAIM[1], name) for name in _ablations(contestants)],
            item="text",
            seed=self.seed,
            journal=self.folder_ / "journal.jsonl",
        )
        rivals = {name: model for name, model in self.trained_.items() if name in _CLAIM}
        milliseconds, held = decode_cost(rivals, texts.decode.to(self.device))
        sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in rivals.items()}
        read_bytes = self.steps * self.batch * self.length
        return TrialResult(
            paper="transnormer",
            title="TransNormer: linear attention with decay in place of softmax",
            question=f"Trained on the same bytes ({self.data}), does TransNormer predict held-out text better than a "
            "Transformer of its size, and at what cost does it decode?",
            setting={
                "models": f"{self.layers} layers, width {self.width}, {self.heads} heads, from scratch",
                "weights": ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
                "tokens": "UTF-8 bytes, and one token that begins a text",
                "training": f"{self.steps} steps of {self.batch} × {self.length} bytes: {read_bytes:,} bytes, "
                f"{read_bytes / len(texts.stream):.2f} times what there is; AdamW, learning rate {self.lr:g}",
                "data": corpus.describe(),
                "held out": f"{len(texts.held_out)} documents, each cut to {STRETCH * self.length} bytes",
                "device": f"{self.device}, float32",
            },
            arms=arms,
            comparisons=comparisons,
            item="text",
            claims=[("loss", *_CLAIM)],
            figures=_figures(arms, self.histories_, self.length, milliseconds, held),
            notes=_notes(arms, milliseconds, held),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget the trained models and what was read; called when the result is written."""
        shutil.rmtree(self.folder_)

    def _settle(self) -> None:
        """Fill in what `--quick` decides, and refuse what cannot be."""
        if self.model != "default":
            raise InputError(f"got --model {self.model}; expected none: both models are trained from scratch")
        self.texts = self.texts or (24 if self.quick else 64)
        self.steps = self.steps or (60 if self.quick else 300)
        least = {"texts": 2, "steps": 1, "length": 8, "batch": 1, "width": 1, "layers": 1, "heads": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"got --{name} {getattr(self, name)}; expected at least {value}")
        if self.width % (2 * self.heads):
            raise InputError(f"got --width {self.width}; expected a multiple of twice the {self.heads} heads")
        if not self.lr > 0:
            raise InputError(f"got --lr {self.lr:g}; expected more than 0")
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {self.device} cannot be used here: {str(error).splitlines()[0]}") from None

    def _texts(self, corpus: corpora.Corpus) -> ByteTexts:
        """Whole documents are held out: a sample of those long enough. A document equal to one of them is dropped."""
        wanted = self.steps * self.batch * self.length
        documents = corpus.take(max(4000, wanted // 200), self.seed)
        random.Random(self.seed).shuffle(documents)
        long = STRETCH * self.length
        chosen = [document for document in documents if len(document.text.encode()) >= long][: self.texts]
        if len(chosen) < 2:
            raise InputError(
                f"{self.data} gives {len(chosen)} documents of at least {long} bytes; expected at least 2 to hold out: "
                "make --length smaller"
            )
        if len(chosen) < self.texts:
            say(f"{len(chosen)} documents are long enough to be held out, of {self.texts} wanted")
        out = {document.text for document in chosen}
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
        return ByteTexts(stream, held_out, decode)

    def _contestants(self) -> list[Contestant]:
        shape = Shape(self.width, self.layers, self.heads, block_size=64)
        positions = max(STRETCH * self.length, DECODE_CONTEXTS[-1]) + _DECODE_STEPS

        def llama() -> PreTrainedModel:
            return shape.llama(positions)

        def transnormer(decay: str) -> Callable[[], PreTrainedModel]:
            return lambda: shape.transnormer(decay)

        seed = self.seed
        first = [
            Contestant("Llama", "baseline", "softmax attention with rotary positions (sdpa)", llama, seed),
            Contestant("TransNormer", "method", "the released code's decay", transnormer("code"), seed),
        ]
        others = [
            Contestant("TransNormer, Eq. 2", "sibling", "the decay the paper prints", transnormer("paper"), seed),
            Contestant("TransNormer, no decay", "sibling", "λ = 1", transnormer("none"), seed),
            Contestant("Llama, another seed", "sibling", "the baseline with other first weights", llama, seed + 1),
        ]
        return first if self.quick else first + others

    def _arm(self, contestant: Contestant, texts: ByteTexts) -> Arm:
        """Training happens once, before the arm first reads; a model that an interrupted run had finished is kept."""
        place = self.folder_ / fingerprint(contestant.name)

        def prepare() -> None:
            with locked(place):
                if not place.exists():
                    with atomic_folder(place) as folder:
                        self._train(contestant, texts, folder)
            self.histories_[contestant.name] = json.loads((place / "history.json").read_text(encoding="utf-8"))
            model = contestant.make()
            model.load_state_dict(load_file(place / "model.safetensors"))
            self.trained_[contestant.name] = model.to(self.device).eval()

        def run(block: Sequence[Tensor]) -> dict[str, Any]:
            parts = read(self.trained_[contestant.name], torch.stack(list(block)), STRETCH)
            return {"loss": parts[:, 0], "furthest": parts[:, -1], "parts": parts}

        return Arm(contestant.name, run, contestant.role, contestant.description, prepare)

    def _train(self, contestant: Contestant, texts: ByteTexts, folder: Path) -> None:
        """Train one model, and save it with the loss it had on held-out texts along the way.

        Raises:
            ValueError: the loss is not a number any more.
        """
        with torch.random.fork_rng():
            torch.manual_seed(contestant.seed)
            model = contestant.make().to(self.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        held_out = texts.held_out[:16, : self.length + 1].to(self.device)
        history: dict[int, float] = {}
        with progress(f"training {contestant.name}", total=self.steps) as bar:
            for step in range(self.steps):
                ids = self._batch(texts.stream, step).to(self.device)
                logits = model(ids[:, :-1], use_cache=False).logits
                loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                if not loss.isfinite():
                    raise ValueError(f"the loss is {loss.item()} after {step} steps; try a smaller --lr")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                if (step + 1) % max(1, self.steps // 10) == 0:
                    history[step + 1] = float(read(model.eval(), held_out, 1).mean())
                    model.train()
                bar.advance(bar.task_ids[0])
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")

    def _rate(self, step: int) -> float:
        """Rises over a tenth of the steps, then falls as a cosine to a tenth."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return (step + 1) / rise
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))

    def _batch(self, stream: Tensor, step: int) -> Tensor:
        """The texts of a step, (batch, length + 1): the same for every arm, whatever ran before."""
        generator = torch.Generator().manual_seed(int(fingerprint([self.seed, step])[:15], 16))
        starts = torch.randint(len(stream) - self.length, (self.batch,), generator=generator)
        return stream[starts[:, None] + torch.arange(self.length + 1)]


def _ablations(contestants: Sequence[Contestant]) -> list[str]:
    """The ablations: what is compared with TransNormer as well as with the baseline."""
    return [contestant.name for contestant in contestants if contestant.name.startswith("TransNormer,")]


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


def _figures(
    arms: Sequence[Any],
    histories: dict[str, dict[str, float]],
    length: int,
    milliseconds: dict[str, list[float]],
    held: dict[str, list[float]],
) -> list[Any]:
    done = [arm for arm in arms if arm.status == "ok"]
    lines = {arm.name: np.asarray(arm.samples["parts"]).mean(0).tolist() for arm in done}
    ends = [float(length * (i + 1)) for i in range(STRETCH)]
    contexts = [float(context) for context in DECODE_CONTEXTS]
    steps = [float(step) for step in next(iter(histories.values()), {})]
    learned: Lines = {name: [*history.values()] for name, history in histories.items()}
    waited: Lines = {name: [*values] for name, values in milliseconds.items()}
    kept: Lines = {name: [*values] for name, values in held.items()}
    return [
        Curve("Held-out loss while training", "step", "nats/byte", steps, learned),
        Curve(f"Loss along the text (trained on {length} bytes)", "up to byte", "nats/byte", ends, lines),
        Curve("Decoding", "context, tokens", "ms a token", contexts, waited, log_x=True),
        Curve("What is kept of a text", "context, tokens", "bytes", contexts, kept, log_x=True),
    ]


def _notes(arms: Sequence[Any], milliseconds: dict[str, list[float]], held: dict[str, list[float]]) -> list[str]:
    """What a reader should know before trusting the numbers; each note is made from this run."""
    notes = []
    by_name = {arm.name: arm for arm in arms if arm.status == "ok"}
    if "Llama" in by_name and "Llama, another seed" in by_name:
        first, again = (by_name[name].values["loss"].estimate for name in ("Llama", "Llama, another seed"))
        notes.append(
            f"The Llama begun from another seed has a loss of {again:.3f}, the first one {first:.3f}. The intervals "
            "are over texts, not over training runs: a difference between models near "
            f"{abs(again - first):.3f} may be chance of training."
        )
    for name in milliseconds:
        spent = ", ".join(
            f"{time:.2f} ms and {size / 1e6:.2f} MB at {context:,}"
            for context, time, size in zip(DECODE_CONTEXTS, milliseconds[name], held[name], strict=True)
        )
        notes.append(f"Decoding with {name}: {spent} tokens of context.")
    notes.append(
        "Loss says nothing of finding a fact in a long text: a state of fixed size keeps no token apart, and such "
        "models are known to retrieve poorly. One learning rate serves all arms, and small models say little of large "
        "ones."
    )
    return notes
