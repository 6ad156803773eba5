"""Try ADED: greedy decoding, prompt lookup, and drafts from several tables, on the same prompts.

Knows: the stage's method, prompts, the A/B engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from broadsheet import models
from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError, say, track
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus
from broadsheet.decode.aded import ADED
from broadsheet.decode.base import DecodeStats
from broadsheet.decode.table import TrigramTable
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.prompts import KINDS, DecodePrompt
from broadsheet.page.evidence import provenance, versions
from broadsheet.trial.engine import Arm, Measured, Metric, run_arms
from broadsheet.trial.results import ArmResult, Distribution, Role, TrialResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GREEDY, LOOKUP, MAIN = "greedy", "prompt lookup, 10 tokens", "ADED"
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


@dataclass
class DecodeTrial:
    """The same greedy text from plain decoding, prompt lookup and ADED: is it identical, and how much faster?

    Prompts are made from documents: a passage given twice and begun again (copying), the beginning of a document
    (documentation), and a question about one (free text). ADED starts anew for each prompt, with an empty table, with a
    table built from other documents of the data, and with that table after it wrote other answers.

    Options:
        --prompts N: prompts, a third of each kind (51; with --quick 6).
        --tokens N: written for each (64; with --quick 32); an end of text does not end them.
        --megabytes N: of other documents that the table is built from (8; with --quick 2).
        --warm N: other prompts that are answered before, for the arm after adaptation (12; with --quick 3).
        --published: also the method as the authors' code has it: their search, 64 draft tokens in every step.
        --text-field NAME: the field of the data that holds the text (text).
        --device NAME, --dtype NAME: as in models.load; float32 by default, where identical output is claimed.
    """

    model: str = "default"
    data: str = "pydocs"
    quick: bool = False
    seed: int = 0
    prompts: int = 0
    tokens: int = 0
    megabytes: float = 0.0
    warm: int = 0
    published: bool = False
    text_field: str = "text"
    device: str = ""
    dtype: str = "float32"

    def run(self) -> TrialResult:
        """Build the table, run the arms, explain.

        Raises:
            InputError: an option, the model or the data cannot be used.
        """
        self._complete()
        model, tokenizer = models.load(self.model, device=self.device or None, dtype=self.dtype)
        corpus = corpora.load(self.data, text_field=self.text_field)
        documents = tasks.choose(corpus, self.prompts + self.warm, self.seed)
        items = tasks.make(documents[: self.prompts], tokenizer)
        warm = tasks.make(documents[self.prompts :], tokenizer)
        table = self._table(corpus, {tasks.beginning(document) for document in documents}, tokenizer)
        writer = TimedWriter(model, self.tokens)
        seconds = step_seconds(writer, items[0])
        facts = {
            "seed": self.seed,
            "model": {"name": self.model, "fingerprint": models.fingerprint(model)},
            "data": {"name": self.data, "fingerprint": corpus.fingerprint()},
            "prompts": fingerprint([asdict(prompt) for prompt in items]),
        }
        self.journal_ = home() / "trials" / f"decode-{fingerprint([versions(), facts, asdict(self)])}.jsonl"
        self.journal_.parent.mkdir(exist_ok=True)
        say(f"writing {self.tokens} tokens after each of {len(items)} prompts")
        arms, comparisons = run_arms(
            self._arms(writer, table, warm, seconds),
            items,
            [Metric("identical output", binary=True, bounds=(0, 1)), Metric("tokens per forward")],
            block_size=len(KINDS),
            pairs=[(LOOKUP, name) for name in self._drafters(table, seconds)],
            item="token",
            per_item=self.tokens,
            seed=self.seed,
            journal=self.journal_,
        )
        name = "the default model (SmolLM2-135M-Instruct)" if self.model == "default" else self.model
        return TrialResult(
            paper="decode",
            title="Decode: the same output, generated faster",
            question=f"How much faster does {name} write the same text with drafts from tri-grams?",
            setting={
                "model": name,
                "data": corpus.describe(),
                "prompts": f"{len(items)}: {', '.join(KINDS)} in turn, {self.tokens} tokens written after each",
                "table": f"{len(table):,} tri-grams from {self.megabytes:g} MB of other documents, "
                f"{table.nbytes / 1e6:,.1f} MB",
                "dtype": self.dtype,
                "device": str(model.device),
            },
            arms=arms,
            comparisons=comparisons,
            item="token",
            claims=[("tokens/s", GREEDY, MAIN), ("tokens per forward", GREEDY, MAIN)],
            figures=_figures(arms, items),
            notes=_notes(arms, items, seconds, self.dtype),
            provenance=provenance(**facts),
        )

    def finish(self) -> None:
        """Forget what `run` kept to go on from; called when its result is written."""
        self.journal_.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Fill in what was not given."""
        self.prompts = self.prompts or (6 if self.quick else 51)
        self.tokens = self.tokens or (32 if self.quick else 64)
        self.megabytes = self.megabytes or (2 if self.quick else 8)
        self.warm = self.warm or (3 if self.quick else 12)
        if min(self.prompts, self.warm) < len(KINDS) or self.tokens < 2 or self.megabytes < 0:
            raise InputError(
                f"got --prompts {self.prompts} --warm {self.warm} --tokens {self.tokens} --megabytes "
                f"{self.megabytes:g}; expected from {len(KINDS)}, {len(KINDS)}, 2 and 0"
            )

    def _table(self, corpus: Corpus, excluded: set[str], tokenizer: Any) -> TrigramTable:
        """A table of documents that no prompt is made from, nor begins like."""

        def texts() -> Iterator[str]:
            size = 0
            for document in corpus.take(_TABLE_DOCUMENTS, self.seed):
                if size >= 1e6 * self.megabytes:
                    return
                if tasks.beginning(document) not in excluded:
                    size += len(document.text.encode("utf-8", "replace"))
                    yield document.text

        return TrigramTable.from_texts(texts(), tokenizer)

    def _drafters(self, table: TrigramTable, seconds: dict[int, float]) -> dict[str, tuple[ADED, str]]:
        """ADED's arms by name, each with what it is."""
        given: dict[str, Any] = {"step_seconds": seconds, "seed": self.seed}
        drafters = {
            MAIN: (ADED(table, **given), "table from other documents of the data"),
            "ADED, empty table": (ADED(**given), "drafts from the prompt and its own output alone"),
            "ADED, chain": (ADED(table, chain=True, **given), "the best path alone: no tree mask"),
            "ADED, adapted": (ADED(table, **given), "the same table after it wrote other answers"),
        }
        if self.published:
            published = ADED.as_published(table, seed=self.seed)
            drafters["ADED, as published"] = (published, "Monte-Carlo tree search, up to 64 draft tokens in every step")
        return drafters

    def _arms(
        self, writer: TimedWriter, table: TrigramTable, warm: Sequence[DecodePrompt], seconds: dict[int, float]
    ) -> list[Arm]:
        reference = Reference(writer)

        def arm(
            name: str, write: Callable[[DecodePrompt], Written], role: Role, description: str, **options: Any
        ) -> Arm:
            def run(block: Sequence[DecodePrompt]) -> Measured:
                return measured([(write(prompt), reference.tokens(prompt)) for prompt in block])

            return Arm(name, run, role, description, **options)

        def lookup(prompt: DecodePrompt) -> Written:
            return writer(prompt, prompt_lookup_num_tokens=10)

        arms = [
            arm(GREEDY, reference.write, "baseline", "model.generate, one token a step"),
            arm(LOOKUP, lookup, "sibling", "transformers: copies what followed the last two tokens before"),
        ]
        for name, (aded, description) in self._drafters(table, seconds).items():

            def write(prompt: DecodePrompt, aded: ADED = aded) -> Written:
                return writer(prompt, custom_generate=aded.fork())

            def prepare(aded: ADED = aded) -> None:
                aded.table = aded.table.fork()
                for prompt in track(warm, "answering other prompts"):
                    writer(prompt, custom_generate=aded)

            options = {"prepare": prepare} if name == "ADED, adapted" else {}
            arms.append(arm(name, write, "method" if name == MAIN else "sibling", description, **options))
        return arms


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


def _figures(arms: Sequence[ArmResult], items: Sequence[DecodePrompt]) -> list[Any]:
    usable = {arm.name: arm for arm in arms if arm.status == "ok"}
    return [
        Distribution(
            f"{name}: speed at each prompt", "times greedy decoding", speedups(usable[name], usable[GREEDY], items)
        )
        for name in (MAIN, LOOKUP)
        if {name, GREEDY} <= usable.keys()
    ]


def _notes(
    arms: Sequence[ArmResult], items: Sequence[DecodePrompt], seconds: dict[int, float], dtype: str
) -> list[str]:
    """What explains the numbers; each note is made from this run."""
    usable = {arm.name: arm for arm in arms if arm.status == "ok"}
    costs = ", ".join(f"{size}: {value / seconds[1]:.2f}" for size, value in seconds.items())
    notes = [f"A step over so many tokens takes so many single steps here: {costs}. ADED drafts as many as pay."]
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
