"""Try the methods that read past the window: all on the same long texts, beside full attention and truncation.

Knows: the stage's methods, long texts with hidden passwords, the A/B engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

from transformers import PreTrainedModel

from broadsheet import models
from broadsheet.attend.base import Attention
from broadsheet.attend.flexprefill import FlexPrefill
from broadsheet.attend.infllm import InfLLM
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.longheads import LongHeads
from broadsheet.attend.trials.longtexts import LongText, long_texts
from broadsheet.attend.trials.metrics import FULL, ONE_PIECE, TRUNCATION, Plan, figures, metrics, notes, outputs
from broadsheet.attend.trials.reader import DECODED, LongTextReader, Reading
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Measured, Outputs, run_arms
from broadsheet.trial.results import Role, TrialResult


@dataclass(frozen=True)
class TriedMethod:
    """How the trial makes a method of the stage, and what its paper claims.

    Attributes:
        name: as printed.
        make: from a trial that has the method's options.
        claims: the metric on which the paper says that it wins, or how its name begins: the last such metric is meant.
        against: the arm that it says it beats.
        beside: an arm that it is compared with beside the baseline.
        one_piece: it changes a prefill in one piece, and is tried on that.
    """

    name: str
    make: Callable[[Any], Attention]
    claims: str
    against: str
    beside: str
    one_piece: bool = False


METHODS = {
    "lm_infinite": TriedMethod(
        "LM-Infinite",
        lambda trial: LMInfinite(n_global=trial.n_global, n_local=trial.window),
        claims="loss beyond",
        against=FULL,
        beside=TRUNCATION,
    ),
    "infllm": TriedMethod(
        "InfLLM",
        lambda trial: InfLLM(trial.window, n_init=trial.n_init, block_size=trial.memory_block, top_k=trial.top_k),
        claims="retrieval",
        against="LM-Infinite",
        beside="LM-Infinite",
    ),
    "longheads": TriedMethod(
        "LongHeads",
        lambda trial: LongHeads(trial.chunk_size or trial.window // 8, attention_length=trial.window),
        claims="loss",
        against="LM-Infinite",
        beside="LM-Infinite",
    ),
    "flexprefill": TriedMethod(
        "FlexPrefill",
        lambda trial: FlexPrefill(
            trial.gamma, trial.tau, min_budget=trial.min_budget or (256 if trial.quick else 1024)
        ),
        claims="prefill seconds",
        against=ONE_PIECE,
        beside=ONE_PIECE,
        one_piece=True,
    ),
}


@dataclass
class LongTextTrial:
    """What the stage's trials have in common; each paper's has its own options beside these.

    A text is a run of documents in which ten passwords are hidden. It is read once, and at each length one looks at the
    loss of the tokens just read, asks for the passwords, and reads the next tokens one by one. Since attention looks
    back only, the loss at a length is that of a text of this length.
    """

    paper: ClassVar[str] = ""
    tried: ClassVar[tuple[str, ...]] = ()

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    lengths: str = ""
    window: int = 0
    texts: int = 3
    scored: int = 0
    questions: int = 10
    text_field: str = "text"
    device: str = ""
    dtype: str = "float32"

    def run(self) -> TrialResult:
        """Join the texts, read them in every way, explain.

        Raises:
            InputError: an option, the model or the data cannot be used, or a method refuses the model.
        """
        self.lengths = self.lengths or ("1024,2048" if self.quick else "1024,2048,4096,8192,12288,16384")
        self.window = self.window or (512 if self.quick else 2048)
        self.scored = self.scored or (256 if self.quick else 512)
        loaded = models.load(self.model, device=self.device or None, dtype=self.dtype)
        plan = self._plan(loaded.model)
        methods = {key: METHODS[key].make(self) for key in self._tried()}
        for method in methods.values():
            with method(loaded.model):  # refuses here, before anything is read, a model that it does not suit
                pass
        corpus = corpora.load(self.data, text_field=self.text_field)
        texts = long_texts(
            corpus,
            loaded.tokenizer,
            self.texts,
            plan.lengths[-1] + DECODED,
            questions=self.questions,
            clear=[range(length - self.scored, length + DECODED) for length in plan.lengths],
            seed=self.seed,
        )
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": models.fingerprint(loaded.model)},
            "data": {"name": self.data, "fingerprint": corpus.fingerprint()},
            "texts": fingerprint([asdict(text) for text in texts]),
        }
        key = fingerprint([versions(), facts, asdict(self), [repr(method) for method in methods.values()]])
        self.journal_ = home() / "trials" / f"attend-{key}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)
        arms = self._arms(methods, LongTextReader(loaded.model, plan))
        asked = metrics(plan, texts)
        names = [arm.name for arm in arms]
        pairs = [(rival, METHODS[key].name) for key in methods if (rival := _rival(METHODS[key].beside, names))]
        say(f"reading {len(texts)} texts of {plan.lengths[-1]:,} tokens in {len(arms)} ways")
        results, comparisons = run_arms(
            arms,
            texts,
            asked,
            block_size=1,
            pairs=pairs,
            item="text",
            seed=self.seed,
            journal=self.journal_,
        )
        return TrialResult(
            paper=self.paper or "attend",
            title="Attend: reading past the window",
            question=f"What does a text of {plan.lengths[-1]:,} tokens cost, and what is still known of it, "
            f"if it is read under {' or '.join(METHODS[key].name for key in methods)}?",
            setting={
                "model": _name(self.model),
                "trained positions": f"{plan.context:,}" if plan.context else "not said",
                "data": corpus.describe(),
                "texts": f"{len(texts)}, joined of {sum(len(text.documents) for text in texts):,} documents, "
                f"{self.questions} passwords in each",
                "lengths": ", ".join(f"{length:,}" for length in plan.lengths),
                "window": f"{plan.window:,}",
                "scored": f"{plan.scored:,} tokens before each length",
                "methods": [_call(method) for method in methods.values()],
                "dtype": self.dtype,
                "device": str(loaded.model.device),
            },
            arms=results,
            comparisons=comparisons,
            item="text",
            claims=_claims([METHODS[key] for key in methods], [metric.name for metric in asked], names),
            figures=[*figures(results, texts, plan)],
            notes=notes(results, texts, plan, self.texts),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    def _tried(self) -> Sequence[str]:
        return self.tried

    def _plan(self, model: PreTrainedModel) -> Plan:
        """What the options ask for, checked against each other and the model."""
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        try:
            lengths = tuple(int(length) for length in self.lengths.split(","))
        except ValueError:
            lengths = ()
        if not lengths or any(b <= a for a, b in pairwise((0, *lengths))):
            raise InputError(
                f"got --lengths {self.lengths!r}; expected ascending whole numbers, such as 1024,2048,4096"
            )
        if self.texts < 2 or self.window < 1 or self.questions < 0:
            raise InputError(
                f"got --texts {self.texts}, --window {self.window} and --questions {self.questions}; "
                "expected at least 2, 1 and 0"
            )
        if self.scored <= DECODED or any(b - a < self.scored for a, b in pairwise((0, *lengths))):
            raise InputError(
                f"got --scored {self.scored} and --lengths {self.lengths}; expected --scored to be more than {DECODED} "
                "and the lengths to lie at least so far apart, the first one from 0"
            )
        if context and self.window > context:
            raise InputError(f"got --window {self.window}; expected at most the model's {context} trained positions")
        plan = Plan(lengths, self.window, self.scored, context)
        if not plan.groups:
            raise InputError(
                f"got --window {self.window} and lengths up to {lengths[-1]}; expected one of at least "
                f"{self.window + self.scored}, so that the {self.scored} scored tokens lie beyond the window"
            )
        return plan

    def _arms(self, methods: dict[str, Attention], reader: LongTextReader) -> list[Arm]:
        """Full attention, read as the methods read; truncation; the methods."""
        window, scored = reader.plan.window, reader.plan.scored
        in_pieces = {METHODS[key].one_piece for key in methods}
        anew, chunks = "each length anew, in one piece", "in chunks of 512 tokens"
        parts = f"{window:,} tokens and the {scored:,} scored ones behind them, anew at each length"
        if False in in_pieces:
            arms = [_arm(FULL, "baseline", chunks, reader.chunks, reader)]
        else:
            arms = [_arm(FULL, "baseline", anew, reader.one_piece, reader)]
        arms.append(_arm(TRUNCATION, "sibling", parts, reader.truncated, reader))
        if len(in_pieces) == 2:
            arms.append(_arm(ONE_PIECE, "sibling", anew, reader.one_piece, reader))
        for key, method in methods.items():
            role: Role = "method" if self.paper in ("", key) else "sibling"
            reading = reader.one_piece if METHODS[key].one_piece else reader.chunks
            arms.append(_arm(METHODS[key].name, role, _call(method), reading, reader, method))
        return arms


def _arm(
    name: str, role: Role, description: str, reading: Reading, reader: LongTextReader, method: Attention | None = None
) -> Arm:
    """A way of reading, under a method or none, as an arm."""
    lengths = reader.plan.lengths
    warm = False

    def run(texts: Sequence[LongText]) -> Outputs | Measured:
        nonlocal warm
        with method(reader.model) if method else nullcontext():
            if not warm:  # the engine's untimed first run, whose outputs nobody reads: the first length will do
                warm = True
                reading(texts[0], lengths[:1])
                return {}
            read = [reading(text, lengths) for text in texts]
        rows = [outputs(reader.plan, by_length, by_position) for by_length, by_position in read]
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        return Measured(columns, seconds=sum(columns["prefill seconds"]))

    return Arm(name, run, role, description)


def _claims(
    methods: Sequence[TriedMethod], metric_names: Sequence[str], arms: Sequence[str]
) -> list[tuple[str, str, str]]:
    """What the papers claim, as far as this run can show it: (metric, baseline, arm)."""
    claims = []
    for method in methods:
        rival = _rival(method.against, arms)
        meant = [name for name in metric_names if name.startswith(method.claims)]
        if rival and meant:
            claims.append((meant[-1], rival, method.name))
    return claims


def _rival(name: str, arms: Sequence[str]) -> str | None:
    """The arm of that name, if it takes part; full attention is read in one piece where all methods are."""
    if name in arms:
        return name
    return FULL if name == ONE_PIECE else None


def _call(method: Any) -> str:
    """A method as one would write it: its fields where they differ from their defaults."""
    changed = [
        f"{each.name}={value!r}"
        for each in fields(method)
        if each.init and (value := getattr(method, each.name)) != each.default
    ]
    return f"{type(method).__name__}({', '.join(changed)})"


def _name(model: str) -> str:
    return "the default model (SmolLM2-135M-Instruct)" if model == "default" else model


@dataclass
class LMInfiniteTrial(LongTextTrial):
    """Long documentation under LM-Infinite, beside full attention and truncation (arXiv:2308.16137, Sec. 4).

    A text is a run of documents in which passwords are hidden. It is read once in chunks; at each length one notes the
    loss of the tokens just read, the time, the bytes of the cache, asks for every password told so far, and times the
    next tokens one by one. The claim: beyond the positions that the model was trained on, the loss is lower than full
    attention's.

    Options:
        --lengths LIST: where one looks, in tokens (1024,2048,4096,8192,12288,16384; with --quick 1024,2048).
        --window N: tokens that LM-Infinite sees and that truncation keeps (2048; with --quick 512).
        --n-global N: first tokens that LM-Infinite sees (10).
        --texts N: texts (3), and --questions N: passwords in each (10).
        --scored N: tokens before each length whose loss is measured (512; with --quick 256).
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    paper: ClassVar[str] = "lm_infinite"
    tried: ClassVar[tuple[str, ...]] = ("lm_infinite",)

    n_global: int = 10


@dataclass
class InfLLMTrial(LMInfiniteTrial):
    """Long documentation under InfLLM, beside full attention, truncation and LM-Infinite (arXiv:2402.04617, Sec. 4).

    A text is a run of documents in which passwords are hidden. It is read once in chunks; at each length one notes the
    loss of the tokens just read, the time, the bytes of the cache, asks for every password told so far, and times the
    next tokens one by one. The claim: it finds passwords that the same window alone, which is LM-Infinite, does not.

    Options:
        --lengths LIST: where one looks, in tokens (1024,2048,4096,8192,12288,16384; with --quick 1024,2048).
        --window N: tokens of InfLLM's and LM-Infinite's window, and that truncation keeps (2048; with --quick 512).
        --n-init N: first tokens that InfLLM sees (64), and --n-global N: that LM-Infinite sees (10).
        --memory-block N: tokens of a block (32), and --top-k N: blocks looked up (16).
        --texts N: texts (3), and --questions N: passwords in each (10).
        --scored N: tokens before each length whose loss is measured (512; with --quick 256).
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    paper: ClassVar[str] = "infllm"
    tried: ClassVar[tuple[str, ...]] = ("infllm", "lm_infinite")

    n_init: int = 64
    memory_block: int = 32
    top_k: int = 16


@dataclass
class LongHeadsTrial(LMInfiniteTrial):
    """Long documentation under LongHeads, beside full attention, truncation and LM-Infinite (arXiv:2402.10685).

    A text is a run of documents in which passwords are hidden. It is read once in chunks; at each length one notes the
    loss of the tokens just read, the time, the bytes of the cache, asks for every password told so far, and times the
    next tokens one by one. The claim: its loss is lower than that of a window that sees as many tokens, LM-Infinite.

    Options:
        --lengths LIST: where one looks, in tokens (1024,2048,4096,8192,12288,16384; with --quick 1024,2048).
        --window N: tokens that a head of LongHeads reads, that LM-Infinite sees and that truncation keeps (2048; with
            --quick 512).
        --chunk-size N: tokens of a chunk of LongHeads (an eighth of the window), and --n-global N: first tokens that
            LM-Infinite sees (10).
        --texts N: texts (3), and --questions N: passwords in each (10).
        --scored N: tokens before each length whose loss is measured (512; with --quick 256).
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    paper: ClassVar[str] = "longheads"
    tried: ClassVar[tuple[str, ...]] = ("longheads", "lm_infinite")

    chunk_size: int = 0


@dataclass
class FlexPrefillTrial(LongTextTrial):
    """Long documentation read in one piece under FlexPrefill, beside full attention and truncation (arXiv:2502.20766).

    A text is a run of documents in which passwords are hidden. It is read up to each length anew, in one piece; there
    one notes the loss of the tokens just read, the time, the bytes of the cache, asks for every password told so far,
    and times the next tokens one by one. The claim: prefill takes fewer seconds than full attention's; by how many per
    cent the loss changes is in the notes.

    Options:
        --lengths LIST: where one looks, in tokens (1024,2048,4096,8192,12288,16384; with --quick 1024,2048).
        --gamma X: share of the attention that the chosen blocks hold (0.95), --tau X: below which estimates are trusted
            (0.1), and --min-budget N: tokens that each head reads at least (1024; with --quick 256).
        --window N: tokens that truncation keeps (2048; with --quick 512).
        --texts N: texts (3), and --questions N: passwords in each (10).
        --scored N: tokens before each length whose loss is measured (512; with --quick 256).
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    paper: ClassVar[str] = "flexprefill"
    tried: ClassVar[tuple[str, ...]] = ("flexprefill",)

    gamma: float = 0.95
    tau: float = 0.1
    min_budget: int = 0


@dataclass
class AttendTrial(InfLLMTrial, LongHeadsTrial, FlexPrefillTrial):
    """All methods of the stage on the same long documentation, beside full attention and truncation.

    Each claims what its own trial says. FlexPrefill, and full attention once more to compare it with, read up to each
    length anew, in one piece; the others read once, in chunks.

    Options:
        --methods LIST: which of them (lm_infinite,infllm,longheads,flexprefill).
        --lengths LIST: where one looks, in tokens (1024,2048,4096,8192,12288,16384; with --quick 1024,2048).
        --window N: tokens that the methods see beside what they look up, and that truncation keeps (2048; with --quick
            512).
        --n-global N: first tokens that LM-Infinite sees (10), and --n-init N: that InfLLM sees (64).
        --memory-block N: tokens of a block of InfLLM (32), and --top-k N: blocks that it looks up (16).
        --chunk-size N: tokens of a chunk of LongHeads (an eighth of the window).
        --gamma X: share of the attention that FlexPrefill's blocks hold (0.95), --tau X: below which its estimates are
            trusted (0.1), and --min-budget N: tokens that each head reads at least (1024; with --quick 256).
        --texts N: texts (3), and --questions N: passwords in each (10).
        --scored N: tokens before each length whose loss is measured (512; with --quick 256).
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
    """

    paper: ClassVar[str] = ""

    methods: str = ",".join(METHODS)

    def _tried(self) -> Sequence[str]:
        tried = self.methods.split(",")
        if len(set(tried)) < len(tried) or set(tried) - set(METHODS):
            raise InputError(f"got --methods {self.methods}; expected some of {','.join(METHODS)}, none of them twice")
        return tried
