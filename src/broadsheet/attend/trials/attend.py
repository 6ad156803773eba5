"""Try methods that read past the window: all on the same long texts, beside full attention and truncation.

Knows: the stage's methods, long texts with hidden passwords. Serves each paper of the stage whose method is an
`Attention`. How a method is tried, and what its paper claims, is given by class attributes of the paper's own trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from broadsheet.attend.base import Attention
from broadsheet.attend.trials import peers as peering
from broadsheet.attend.trials.longtexts import LongText, long_texts
from broadsheet.attend.trials.metrics import (
    FULL,
    ONE_PIECE,
    TRUNCATION,
    Plan,
    examples,
    figures,
    looked_up,
    metrics,
    notes,
    outputs,
)
from broadsheet.attend.trials.reader import DECODED, LongTextReader, Reading
from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.methods import call_of, hyperparameters
from broadsheet.options import option
from broadsheet.page import discovery, papers
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Measured, Outputs
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.outside import peers
from broadsheet.trial.outside.external import ExternalProcess
from broadsheet.trial.results import Curve
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison


@dataclass(frozen=True)
class Win:
    """What a paper says that its method wins.

    Attributes:
        gain: the metric, or how its name begins: the last such one is meant; all of them where it wins `everywhere`.
        says: in our words, and where it says so.
        effect: by how much, in the metric's unit, as the paper reports it; None where it gives no figure.
        over: the arm it wins over: full attention, or one of those that the trial puts `beside` the method.
        arm: the arm that wins; empty for the method's own.
        margin: where it is claimed to be no worse, instead: by how much it may be.
        least: the smallest gain that would matter, where the paper gives no figure.
    """

    gain: str
    says: str = ""
    effect: float | None = None
    over: str = FULL
    arm: str = ""
    everywhere: bool = False
    margin: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class TriedMethod:
    """A method that takes part, its arm's name, its paper, and the trial that says how it is tried.

    Attributes:
        beside: it stands beside the method of the paper, which is measured against it.
    """

    name: str
    method: Attention
    paper: str
    trial: type[AttendTrial]
    beside: bool = False


@dataclass(frozen=True)
class WayToRead:
    """What an arm does with a text, and under which method of which paper."""

    reading: Reading
    method: Attention | None = None
    paper: str = ""


def lengths_option(*lengths: int) -> Any:
    """The option `lengths` of a trial."""
    return option(lengths, "Where it is measured, in tokens.", quick=(1024, 2048))


def window_option(tokens: int) -> Any:
    """The option `window` of a trial."""
    return option(
        tokens,
        "Tokens that truncation keeps, and that methods with a window see if --method does not say otherwise.",
        quick=512,
        least=1,
    )


@dataclass
class AttendTrial(Trial):
    """Long documents under the methods of the stage, beside full attention and truncation.

    A text is a run of documents in which passwords are hidden. It is read once, in chunks. At each length the trial
    measures the loss of the tokens just read, the time and the bytes of the cache, asks for every password told so far,
    and times the next tokens one by one. Since attention looks back only, the loss at a length is that of a text of
    this length. A method that changes a prefill in one piece reads up to each length anew, and so does full attention
    beside it: all but the scored tokens as a prompt, in one piece, then these as decoding does.

    A paper's own trial is a subclass that sets these attributes; their defaults hold for a paper without one. What it
    measures its method against takes part in it by `beside`, and nothing else does.

    Attributes:
        arm: how its method is printed; by default its class's name.
        wins: what the paper says that it wins.
        one_piece: it changes a prefill in one piece, and is tried on that.
        scale: of the paper's own measurements, beside which a gain may be absent here.
        pilot: texts that are read before it is decided how many the claims need. With five, not even the same outcome
            on each is a result (`verdicts`).
        most: texts that are read at most.
    """

    stage: ClassVar[str] = "attend"
    title: ClassVar[str] = "Attend: reading past the window"
    arm: ClassVar[str] = ""
    wins: ClassVar[tuple[Win, ...]] = (Win("loss"),)
    one_piece: ClassVar[bool] = False
    scale: ClassVar[str] = ""
    pilot: ClassVar[int] = 6
    most: ClassVar[int] = 40

    methods: tuple[str, ...] | None = option(
        None, "Whose methods take part; by default all of the stage, or the paper's own.", metavar="ID,…"
    )
    lengths: tuple[int, ...] = lengths_option(1024, 2048, 4096, 8192, 12288, 16384)
    window: int = window_option(2048)
    texts: int | None = option(
        None, "Long texts that are read; by default as many as the claims need, after a pilot.", quick=3, least=2
    )
    questions: int = option(10, "Passwords in each text.", least=0)
    scored: int = option(512, "Tokens before each length whose loss is measured.", quick=256, least=DECODED + 1)
    peer: str | None = option(
        None,
        "A peer, measured beside ours: `kvpress` (`broadsheet peer` builds it), or a program that reads the texts "
        "(docs/external.md).",
        metavar="NAME|COMMAND",
    )
    text_field: str = option("text", "The field of the data that holds the text.")
    dtype: str = option("float32", "Of the model.", metavar="NAME")

    @classmethod
    def defaults(cls, kind: type[Attention], trial: AttendTrial) -> dict[str, Any]:
        """The fields of the method that follow from a trial's options, unless `--method` gives them."""
        return {"n_local": trial.window} if "n_local" in hyperparameters(kind) else {}

    def beside(self, method: Any) -> dict[str, Attention]:
        """What a method of the paper is measured against, beside full attention, by the name of its arm."""
        return {}

    def check(self) -> None:
        self._peer = peers.parse(self.peer, self.stage) if self.peer else None
        if not self.lengths or any(b <= a for a, b in pairwise((0, *self.lengths))):
            raise InputError(
                f"got --lengths {_listed(self.lengths)}; expected ascending whole numbers, such as 1024,2048,4096"
            )
        if any(b - a < self.scored for a, b in pairwise((0, *self.lengths))):
            raise InputError(
                f"got --scored {self.scored} and --lengths {_listed(self.lengths)}; expected the lengths to lie at "
                "least --scored apart, the first one from 0"
            )

    def question(self) -> str:
        names = " or ".join(each.name for each in self._methods if not each.beside)
        return (
            f"What does a text of {self.lengths[-1]:,} tokens cost, and what is still known of it, "
            f"if it is read under {names}?"
        )

    def tasks(self) -> list[EvalTask]:
        self._methods = self._chosen()
        self.check_calls()
        plan = self._plan(self.loaded.model)
        for each in self._methods:
            with each.method(self.loaded.model):  # refuses here, before anything is read, a model that does not suit it
                pass
        self._corpus = corpora.load(self.data, text_field=self.text_field)
        texts = long_texts(
            self._corpus,
            self.loaded.tokenizer,
            self.most if self.texts is None else self.texts,
            plan.lengths[-1] + DECODED,
            questions=self.questions,
            clear=[range(length - self.scored, length + DECODED) for length in plan.lengths],
            seed=self.seed,
        )
        self._held = len(texts)
        self._metrics = metrics(plan, texts)
        self._reader = LongTextReader(self.loaded.model, plan)
        return [
            EvalTask(
                "texts",
                texts,
                self._metrics,
                self._arm,
                item="text",
                about=f"{'at most ' * (self.texts is None)}{len(texts)}, joined of "
                f"{sum(len(text.documents) for text in texts):,} documents, {self.questions} passwords in each",
                fingerprint=fingerprint([asdict(text) for text in texts]),
                block_size=1,
                pilot=self.pilot if self.texts is None else 0,
                examples=lambda texts, arms: examples(texts, arms, plan, self.loaded.tokenizer.decode),
            )
        ]

    def setting(self) -> Mapping[str, Any]:
        plan = self._reader.plan
        return {
            "trained positions": f"{plan.context:,}" if plan.context else "not given by the model",
            "data": self._corpus.describe(),
            "lengths": ", ".join(f"{length:,}" for length in plan.lengths),
            "window": f"{plan.window:,}",
            "scored": f"{plan.scored:,} tokens before each length",
            "methods": [call_of(each.method) for each in self._methods],
            "dtype": self.dtype,
            "device": str(self._reader.model.device),
        }

    def arms(self) -> list[ModelArm]:
        """Full attention, read as the methods read; truncation; the methods."""
        reader = self._reader
        anew, chunks = "each length anew, in one piece", "in chunks of 512 tokens"
        parts = f"{self.window:,} tokens and the {self.scored:,} scored ones behind them, anew at each length"
        if all(each.trial.one_piece for each in self._methods):
            arms = [ModelArm.of(FULL, WayToRead(reader.one_piece), "baseline", anew)]
        else:
            arms = [ModelArm.of(FULL, WayToRead(reader.chunks), "baseline", chunks)]
        arms.append(ModelArm.of(TRUNCATION, WayToRead(reader.truncated), None, parts))
        if self._mixed:
            arms.append(ModelArm.of(ONE_PIECE, WayToRead(reader.one_piece), None, anew))
        for each in self._methods:
            reading: Reading = reader.chunks
            if each.trial.one_piece:  # what follows a prompt is to be left as it is
                reading = partial(reader.one_piece, following=min(128, getattr(each.method, "block_size", 128)))
            way = WayToRead(reading, each.method, each.paper)
            wins = any(win.arm == each.name for win in each.trial.wins)
            role: Literal["sibling"] | None = "sibling" if each.beside and not wins else None
            arms.append(ModelArm.of(each.name, way, role, call_of(each.method)))
        if self._peer:
            command = peering.command(self._peer, self.model, self.dtype)
            about = self._peer.peer.about if self._peer.peer else " ".join(command)
            arms.append(ModelArm(self._peer.label, lambda: ExternalProcess(command), "peer", about))
        return arms

    def claims(self) -> list[Claim]:
        """What the papers say, as far as this run can show it."""
        taking_part = {FULL, *(each.name for each in self._methods)}
        found = []
        for each in self._methods:
            if each.beside or not self.of_tried_paper(each):
                continue
            full = ONE_PIECE if each.trial.one_piece and self._mixed else FULL
            for win in each.trial.wins:
                meant = [metric.name for metric in self._metrics if metric.name.startswith(win.gain)]
                arm = win.arm or each.name
                if not {win.over, arm} <= taking_part:
                    continue
                rival = full if win.over == FULL else win.over
                meant = meant if win.everywhere else meant[-1:]
                sought: dict[str, Any] = {"effect": win.effect, "margin": win.margin, "least": win.least}
                found += [Claim(name, rival, arm, win.says, **sought) for name in meant]
        return found

    def also_compare(self) -> list[tuple[str, str]]:
        own = [each for each in self._methods if not each.beside]
        found = [(TRUNCATION, each.name) for each in own if not each.trial.one_piece]
        return found + [(self._peer.label, each.name) for each in own if self._peer]

    def figures(self, outcome: Outcome) -> list[Curve]:
        return figures(outcome.results, outcome.tasks[0].items, self._reader.plan)

    def notes(self, outcome: Outcome) -> list[str]:
        in_one_piece = [each.name for each in self._methods if each.trial.one_piece]
        wanted = self.most if self.texts is None else self.texts
        told = notes(outcome.results, outcome.tasks[0].items, self._reader.plan, self._held, wanted, in_one_piece)
        kept = [c for c in outcome.comparisons if c.arm in in_one_piece and c.no_worse is not None]
        return told + [f"Quality: {sentence(comparison)}." for comparison in kept]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        """The paper's scale, and what the method looked up, where a claim is about what it finds."""
        asked = claim.metric.startswith("retrieval")
        found = looked_up(outcome.usable[claim.arm], self._reader.plan, claim.metric) if asked else {}
        missed = found.get("where it was missed")
        if missed is None:
            return self.scale
        return f"{self.scale} Where {claim.arm} missed a password, {missed:.0%} of its lookups gave it.".lstrip()

    @property
    def _mixed(self) -> bool:
        """Whether some methods read in chunks, and some in one piece."""
        return len({each.trial.one_piece for each in self._methods}) == 2

    def _chosen(self) -> list[TriedMethod]:
        """The methods that take part, with the fields that the options give them, and what stands beside the paper's.

        Raises:
            InputError: `--methods` or `--method` names none of the stage.
        """
        known = {key: kind for key, kind in papers.stage_methods(self.stage).items() if issubclass(kind, Attention)}
        own = [key for key, kind in known.items() if self.of_tried_paper(kind)]
        wanted = own if self.methods is None else list(self.methods)
        if not wanted or set(wanted) - set(known):
            raise InputError(f"got --methods {_listed(wanted)}; expected some of {_listed(known)}")
        found = []
        for key in wanted:
            kind, paper = known[key], known[key].paper
            trial = _trial_of(paper)
            name = trial.arm if trial.arm and "." not in key else kind.__name__
            found.append(TriedMethod(name, self.configured(kind, **trial.defaults(kind, self)), paper, trial))
        own_trials = [each for each in found if isinstance(self, each.trial) and self.of_tried_paper(each)]
        return found + [
            TriedMethod(name, method, getattr(method, "paper", ""), each.trial, beside=True)
            for each in own_trials
            for name, method in self.beside(each.method).items()
        ]

    def _plan(self, model: PreTrainedModel) -> Plan:
        """What is read and where it is measured, checked against the model."""
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if context and self.window > context:
            raise InputError(f"got --window {self.window}; expected at most the model's {context} trained positions")
        plan = Plan(self.lengths, self.window, self.scored, context)
        if not plan.groups:
            raise InputError(
                f"got --window {self.window} and lengths up to {self.lengths[-1]}; expected one of at least "
                f"{self.window + self.scored}, so that the {self.scored} scored tokens lie beyond the window"
            )
        return plan

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """A way of reading, under a method or none, as an arm."""
        if arm.role == "peer":
            return peering.external(arm.name, arm.description, lazy(), self._reader.plan)
        reader, warm = self._reader, False

        def run(texts: Sequence[LongText]) -> Outputs | Measured:
            nonlocal warm
            way: WayToRead = lazy()
            with way.method(reader.model) if way.method else nullcontext():
                if not warm:  # the engine's untimed first run, whose outputs nobody reads: a short length will do
                    warm = True
                    way.reading(texts[0], [min(self.lengths[0], 2 * self.scored)])
                    return {}
                read = [way.reading(text, self.lengths) for text in texts]
            rows = [outputs(reader.plan, by_length, by_position) for by_length, by_position in read]
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            return Measured(columns, seconds=sum(columns["prefill seconds"]))

        return Arm(arm.name, run, description=arm.description)


def _trial_of(paper: str) -> type[AttendTrial]:
    """The trial that says how a paper's method is tried: its own, or the stage's."""
    entry = discovery.trial(paper)
    kind = discovery.load(entry) if entry else AttendTrial
    return kind if issubclass(kind, AttendTrial) else AttendTrial


def _listed(values: Any) -> str:
    return ",".join(map(str, values))
