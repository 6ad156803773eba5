"""Try ADED: greedy decoding, prompt lookup, and drafts from several tables, on the same prompts.

Knows: the stage's method, prompts. Does not know: how drafts are made and verified.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.cache import fingerprint
from broadsheet.console import track
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus
from broadsheet.decode.aded import ADED
from broadsheet.decode.base import DecodeStats
from broadsheet.decode.table import TrigramTable
from broadsheet.decode.trials import peers as peering
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.prompts import KINDS, DecodePrompt
from broadsheet.options import option
from broadsheet.trial import peers
from broadsheet.trial.base import Claim, EvalTask, LazyModel, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Measured, Metric
from broadsheet.trial.external import ExternalProcess
from broadsheet.trial.results import ArmResult, Distribution
from broadsheet.trial.sampling import PILOT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GREEDY, LOOKUP, MAIN = "greedy", "prompt lookup, 10 tokens", "ADED"
_MOST_PROMPTS = 300  # where the claims decide how many
_TABLE_DOCUMENTS = 30_000  # that the table's text is drawn from


@dataclass(frozen=True)
class Written:
    """What one call of `generate` gave: new tokens, seconds, passes of the model, and ADED's own account."""

    tokens: list[int]
    seconds: float
    forwards: int
    account: DecodeStats | None = None


class TimedWriter:
    """Calls `generate` for a fixed number of tokens, times it, and counts the model's passes.

    An end of text does not end it: all arms write equally many tokens, so that tokens per second are comparable.
    """

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        self.model = model
        self.tokens = tokens
        self.never = int(model.get_input_embeddings().num_embeddings)  # an id that no token has

    def __call__(self, prompt: DecodePrompt, **options: Any) -> Written:
        """Greedy decoding after `prompt`, or with `custom_generate=` or another option of `generate`."""
        import torch

        ids = torch.tensor([prompt.tokens], device=self.model.device)
        with _counted(self.model) as passes:
            start = time.perf_counter()
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.tokens,
                eos_token_id=self.never,
                pad_token_id=0,
                **options,
            )
            new = out[0, ids.shape[1] :].tolist()
            seconds = time.perf_counter() - start
        drafter = options.get("custom_generate")
        return Written(new, seconds, passes[0], drafter.stats_ if drafter else None)


@contextmanager
def _counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list whose element counts the model's forward passes in the body."""
    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    handle = model.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


class Reference:
    """Greedy decoding as an arm, and as what all arms have to write.

    An arm whose turn comes first has the reference written off its own clock; the greedy arm then takes that run for
    its own instead of writing the same text once more.
    """

    def __init__(self, writer: TimedWriter) -> None:
        self.writer = writer
        self._tokens: dict[str, list[int]] = {}
        self._fresh: dict[str, Written] = {}

    def tokens(self, prompt: DecodePrompt) -> list[int]:
        """What greedy decoding writes."""
        if prompt.id not in self._tokens:
            self._fresh[prompt.id] = written = self.writer(prompt)
            self._tokens[prompt.id] = written.tokens
        return self._tokens[prompt.id]

    def write(self, prompt: DecodePrompt) -> Written:
        """A run that no one has been given yet."""
        written = self._fresh.pop(prompt.id, None) or self.writer(prompt)
        self._tokens.setdefault(prompt.id, written.tokens)
        return written


Write = Callable[[DecodePrompt], Written]


@dataclass
class AdedTrial(Trial):
    """The same greedy text from plain decoding, prompt lookup and ADED: is it identical, and how much faster?

    Prompts are made from documents: a passage given twice and begun again (copying), the beginning of a document
    (documentation), and a question about one (free text). ADED starts anew for each prompt, with an empty table, with a
    table built from other documents of the data, and with that table after it wrote other answers.
    """

    paper: ClassVar[str] = "aded"
    title: ClassVar[str] = "Decode: the same output, generated faster"

    prompts: int | None = option(
        None,
        "Prompts, a third of each kind; by default as many as the claims need, after a pilot.",
        quick=6,
        least=len(KINDS),
    )
    tokens: int = option(64, "Written for each; an end of text does not end them.", quick=32, least=2)
    megabytes: float = option(8.0, "Of other documents that the table is built from.", quick=2.0, least=0)
    warm: int = option(
        12, "Other prompts that are answered before, for the arm after adaptation.", quick=3, least=len(KINDS)
    )
    published: bool = option(
        False, "Also the method as the authors' code has it: their search, 64 draft tokens in every step."
    )
    peer: str | None = option(
        None,
        "A peer, measured beside ours: `xllamacpp` writes, `draftretriever` drafts (`broadsheet peer` builds them); "
        "or a program that writes (docs/external.md).",
        metavar="NAME|COMMAND",
    )
    text_field: str = option("text", "The field of the data that holds the text.")
    dtype: str = option("float32", "Of the model; identical output is claimed for float32.", metavar="NAME")

    def check(self) -> None:
        self._peer = peers.parse(self.peer, "decode") if self.peer else None
        if self._peer and self._peer.peer and not peering.drafts(self._peer):
            peering.gguf(self._peer.peer.name, self.model)

    def question(self) -> str:
        return f"How much faster does {self.model_name} write the same text with drafts from tri-grams?"

    def tasks(self) -> list[EvalTask]:
        self.configured(ADED)  # a field that it does not have is refused before anything is loaded
        self.check_calls()
        model, tokenizer = self.loaded
        self._corpus = corpora.load(self.data, text_field=self.text_field)
        asked = self.prompts or _MOST_PROMPTS
        documents = tasks.choose(self._corpus, asked + self.warm, self.seed, at_most=self.prompts is None)
        self._warm = tasks.make(documents[: self.warm], tokenizer)
        self._items = tasks.make(documents[self.warm :], tokenizer)
        self._excluded = {tasks.beginning(document) for document in documents}
        self._table = self._built(self._corpus, self._excluded, tokenizer)
        self._writer = TimedWriter(model, self.tokens)
        self._reference = Reference(self._writer)
        self._seconds = step_seconds(self._writer, self._items[0])
        return [
            EvalTask(
                "prompts",
                self._items,
                [Metric("identical output", binary=True, bounds=(0, 1)), Metric("tokens per forward")],
                self._arm,
                item="token",
                per_item=self.tokens,
                about=f"{'at most ' * (self.prompts is None)}{len(self._items)}: {', '.join(KINDS)} in turn, "
                f"{self.tokens} tokens written after each",
                fingerprint=fingerprint([asdict(prompt) for prompt in self._items]),
                block_size=len(KINDS),
                pilot=0 if self.prompts else PILOT,
            )
        ]

    def setting(self) -> Mapping[str, Any]:
        return {
            "data": self._corpus.describe(),
            "table": f"{len(self._table):,} tri-grams from {self.megabytes:g} MB of other documents, "
            f"{self._table.nbytes / 1e6:,.1f} MB",
            "dtype": self.dtype,
            "device": str(self._writer.model.device),
        }

    def arms(self) -> list[ModelArm]:
        writer, table = self._writer, self._table
        aded = partial(self.configured, ADED, step_seconds=self._seconds, seed=self.seed)

        def drafting(drafter: ADED) -> Write:
            return lambda prompt: writer(prompt, custom_generate=drafter.fork())

        def adapted() -> Write:
            drafter = aded(table=table.fork())
            for prompt in track(self._warm, "answering other prompts"):
                writer(prompt, custom_generate=drafter)
            return drafting(drafter)

        drafters: dict[str, tuple[Callable[[], Write], str]] = {
            MAIN: (lambda: drafting(aded(table=table)), "table from other documents of the data"),
            "ADED, empty table": (lambda: drafting(aded()), "drafts from the prompt and its own output alone"),
            "ADED, chain": (lambda: drafting(aded(table=table, chain=True)), "the best path alone: no tree mask"),
            "ADED, adapted": (adapted, "the same table after it wrote other answers"),
        }
        if self.published:
            drafters["ADED, as published"] = (
                lambda: drafting(ADED.as_published(table, seed=self.seed)),
                "Monte-Carlo tree search, up to 64 draft tokens in every step",
            )
        copying = "transformers: copies what followed the last two tokens before"
        return [
            ModelArm(GREEDY, lambda: self._reference.write, "baseline", "model.generate, one token a step"),
            ModelArm(LOOKUP, lambda: partial(writer, prompt_lookup_num_tokens=10), None, copying),
            *(
                ModelArm(name, make, None if name == MAIN else "sibling", description, ADED.paper)
                for name, (make, description) in drafters.items()
            ),
            *self._peers(),
        ]

    def _peers(self) -> list[ModelArm]:
        """The peer as an arm: a program that writes, or one that drafts for this model."""
        call = self._peer
        if call is None:
            return []
        more: dict[str, Any] = {}
        if peering.drafts(call):
            file = self.workdir / "texts.jsonl"
            if not file.exists():
                peering.write_texts(file, self._texts(self._corpus, self._excluded), self.loaded.tokenizer)
            more = {"texts": str(file), "vocabulary": self._writer.never}
        command = peering.command(call, self.model, self._items, self.tokens, **more)
        about = call.peer.about if call.peer else " ".join(call.words)
        return [ModelArm(call.label, lambda: ExternalProcess(command), "peer", about)]

    def claims(self) -> list[Claim]:
        return [
            # Authors' README, a table of 253 MB: 1.9 times. The abstract's 2.5 is "up to".
            Claim(
                "tokens/s", GREEDY, MAIN, "the same text in less time, up to 2.5 times as fast (abstract)", effect=1.9
            ),
            Claim("tokens per forward", GREEDY, MAIN, "drafts are accepted, so that a pass writes several tokens"),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        beside = [(LOOKUP, arm.name) for arm in self.arms() if arm.paper]
        return [*beside, *([(self._peer.label, MAIN)] if self._peer else [])]

    def figures(self, outcome: Outcome) -> list[Distribution]:
        usable = outcome.usable
        return [
            Distribution(
                f"{name}: speed at each prompt",
                "times greedy decoding",
                speedups(usable[name], usable[GREEDY], outcome.tasks[0].items),
            )
            for name in (MAIN, LOOKUP)
            if {name, GREEDY} <= usable.keys()
        ]

    def notes(self, outcome: Outcome) -> list[str]:
        items = outcome.tasks[0].items
        notes = _notes(outcome.usable, items, self._seconds, self.dtype)
        peer = outcome.usable.get(self._peer.label) if self._peer and not peering.drafts(self._peer) else None
        if peer and (different := int(len(items) - sum(peer.samples["identical output"]))):
            notes.append(
                f"{different} of the {len(items)} texts of {peer.name} differ from greedy decoding's here: it "
                "runs the model itself, in a precision of its own; its speed is that of its own texts."
            )
        return notes

    def _built(self, corpus: Corpus, excluded: set[str], tokenizer: Any) -> TrigramTable:
        """A table of documents that no prompt is made from, nor begins like."""
        return TrigramTable.from_texts(self._texts(corpus, excluded), tokenizer)

    def _texts(self, corpus: Corpus, excluded: set[str]) -> Iterator[str]:
        """The texts that tables are made of."""
        size = 0
        for document in corpus.take(_TABLE_DOCUMENTS, self.seed):
            if size >= 1e6 * self.megabytes:
                return
            if tasks.beginning(document) not in excluded:
                size += len(document.text.encode("utf-8", "replace"))
                yield document.text

    def _external(self, arm: ModelArm, process: ExternalProcess) -> Arm:
        """A peer: what it writes is compared with greedy decoding; what it drafts is verified by this model."""
        drafter = peering.ExternalDrafter(process)
        drafting = self._peer is not None and peering.drafts(self._peer)

        def run(block: Sequence[DecodePrompt]) -> Measured:
            expected = [self._reference.tokens(prompt) for prompt in block]
            if drafting:
                written = [self._writer(prompt, custom_generate=drafter) for prompt in block]
                return measured(list(zip(written, expected, strict=True)))
            asked = [{"tokens": list(prompt.tokens), "new_tokens": self.tokens} for prompt in block]
            answer = process.run(asked)
            tokens, seconds = (answer.outputs.get(name, []) for name in ("tokens", "seconds"))
            if {len(tokens), len(seconds)} != {len(block)} or any(len(each) != self.tokens for each in tokens):
                raise ValueError(f"expected `seconds` and {self.tokens} `tokens` for each of {len(block)} prompts")
            runs = [Written(list(ids), spent, self.tokens) for ids, spent in zip(tokens, seconds, strict=True)]
            return replace(measured(list(zip(runs, expected, strict=True))), peak_bytes=answer.peak_bytes)

        return Arm(arm.name, run, description=arm.description, prepare=process.start, close=process.close)

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        if arm.role == "peer":
            return self._external(arm, lazy())

        def run(block: Sequence[DecodePrompt]) -> Measured:
            write: Write = lazy()
            return measured([(write(prompt), self._reference.tokens(prompt)) for prompt in block])

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)


def step_seconds(writer: TimedWriter, prompt: DecodePrompt) -> dict[int, float]:
    """Seconds of a step by its size, measured by ADED itself on this model: one measurement that all arms share."""
    aded = ADED()
    TimedWriter(writer.model, 4)(prompt, custom_generate=aded)
    [step_cost] = aded.step_costs_[writer.model].values()
    return step_cost.seconds


def measured(runs: Sequence[tuple[Written, list[int]]]) -> Measured:
    """An arm's outputs for a block; what was spent on the reference is not its own."""
    outputs: dict[str, list[Any]] = {
        "identical output": [float(written.tokens == expected) for written, expected in runs],
        "tokens per forward": [len(written.tokens) / written.forwards for written, _ in runs],
        "seconds": [written.seconds for written, _ in runs],
    }
    accounts = [written.account for written, _ in runs if written.account]
    if accounts:
        outputs["steps"] = [account.steps for account in accounts]
        outputs["drafted"] = [account.drafted for account in accounts]
        outputs["accepted"] = [account.accepted for account in accounts]
        outputs["from corpus"] = [account.accepted_from.get("corpus", 0) for account in accounts]
        outputs["unknown"] = [account.unknown for account in accounts]
        outputs["drafting seconds"] = [account.draft_seconds for account in accounts]
    return Measured(outputs, seconds=sum(outputs["seconds"]))


def speedups(arm: ArmResult, baseline: ArmResult, items: Sequence[DecodePrompt]) -> dict[str, list[float]]:
    """How many times faster than the baseline an arm was at each prompt, by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for prompt, mine, plain in zip(items, arm.samples["seconds"], baseline.samples["seconds"], strict=True):
        found[prompt.kind].append(plain / mine)
    return found


def _notes(
    usable: Mapping[str, ArmResult], items: Sequence[DecodePrompt], seconds: dict[int, float], dtype: str
) -> list[str]:
    """What explains the numbers; each note is made from this run."""
    costs = ", ".join(f"{size}: {value / seconds[1]:.2f}" for size, value in seconds.items())
    notes = [
        f"A step over several tokens takes as long as this number of single steps here: {costs}. ADED drafts as many "
        "tokens as pay."
    ]
    for name, arm in usable.items():
        if name == GREEDY or GREEDY not in usable:
            continue
        parts = []
        for kind, values in speedups(arm, usable[GREEDY], items).items():
            mine, plain = (
                sum(s for prompt, s in zip(items, result.samples["seconds"], strict=True) if prompt.kind == kind)
                for result in (arm, usable[GREEDY])
            )
            parts.append(f"{kind} {plain / mine:.2f} (single prompts {min(values):.2f} to {max(values):.2f})")
        notes.append(f"{name}, times greedy decoding's speed: {', '.join(parts)}.")
    if MAIN in usable:
        notes.append(_account(usable[MAIN]))
    for name, arm in usable.items():
        different = int(len(items) - sum(arm.samples["identical output"]))
        if different and dtype != "float32":
            notes.append(
                f"{name}: {different} of {len(items)} texts differ from greedy decoding's. In {dtype} the logits of a "
                "token read among others are rounded differently, and two tokens that nearly tie change places."
            )
    return notes


def _account(arm: ArmResult) -> str:
    names = ("steps", "drafted", "accepted", "from corpus", "unknown", "drafting seconds")
    sums = {name: sum(arm.samples[name]) for name in names}
    steps, accepted = max(1, sums["steps"]), max(1, sums["accepted"])
    milliseconds = 1000 * sums["drafting seconds"] / steps
    return (
        f"{arm.name}: {sums['accepted'] / max(1, sums['drafted']):.0%} of the draft tokens were accepted; "
        f"{sums['from corpus'] / accepted:.0%} of those continue a tri-gram of the corpus, the others one that was "
        f"adapted from the prompt or the output. In {sums['unknown'] / steps:.0%} of the steps the table knew no "
        f"successor: a larger table helps there. Drafting takes {milliseconds:.2f} ms a step."
    )
