"""Try ADED: greedy decoding, prompt lookup, ADED and the stage's own drafter, on the same prompts.

Knows: the stage's drafters, prompts. Does not know: how drafts are made and verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from broadsheet.cache import fingerprint
from broadsheet.console import track
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus
from broadsheet.decode.aded import ADED
from broadsheet.decode.ngram import NgramDrafter
from broadsheet.decode.table import TrigramTable
from broadsheet.decode.table_drafter import TableDrafter
from broadsheet.decode.trials import peers as peering
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.prompts import KINDS, DecodePrompt
from broadsheet.decode.trials.timing import SOURCES, Reference, TimedWriter, Written, measured, step_seconds
from broadsheet.options import option
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome, Trial
from broadsheet.trial.engine import Arm, Measured, Metric
from broadsheet.trial.examples import ending, excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.outside import peers
from broadsheet.trial.outside.external import ExternalProcess
from broadsheet.trial.results import ArmResult, Distribution, Example
from broadsheet.trial.sampling import PILOT
from broadsheet.trial.verdicts import Comparison

GREEDY, LOOKUP, MAIN = "greedy", "prompt lookup", "ADED"
SIZED, MEASURED = "ADED, tree size tuned", "ADED, tree size measured"
NO_CORPUS, NO_ADAPTATION = "ADED, empty table", "ADED, no adaptation"
OURS, OURS_EMPTY, OURS_ADAPTED = "n-gram drafter", "n-gram drafter, empty table", "n-gram drafter, adapted"
LOOKUP_TOKENS = (2, 3, 5, 10, 20)  # to choose from
TREE_SIZES = (8, 16, 24, 32, 64)  # as many
_DEAR = 1.5  # single steps, for a step that drafts
_MOST_PROMPTS = 300  # where the claims decide how many
_TABLE_DOCUMENTS = 30_000  # that the table's text is drawn from

Write = Callable[[DecodePrompt], Written]


@dataclass
class AdedTrial(Trial):
    """The same greedy text from plain decoding, prompt lookup and ADED: is it identical, and how much faster?

    Prompts are made from documents: a passage given twice and begun again (copying), the beginning of a document
    (documentation), and a question about one (free text). A drafter starts anew for each prompt, with a table built
    from other documents of the data. The method is ADED as published. Beside it stand ADED with a tree size that is
    tuned, as prompt lookup's number of tokens is, on other prompts, or measured; two controls, an empty table and no
    adaptation; and the stage's own drafter with the table, with an empty one, and after it wrote other answers.
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
        12,
        "Other prompts: arms that are tuned are tuned on them, and the one that has adapted has answered them before.",
        quick=3,
        least=len(KINDS),
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
        for kind in (ADED, NgramDrafter):
            self.configured(kind)  # a field that it does not have is refused before anything is loaded
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
                [
                    Metric("identical output", binary=True, bounds=(0, 1)),
                    Metric("tokens per forward", bounds=(1, float("inf"))),
                ],
                self._arm,
                item="token",
                per_item=self.tokens,
                about=f"{'at most ' * (self.prompts is None)}{len(self._items)}: {', '.join(KINDS)} in turn, "
                f"{self.tokens} tokens written after each",
                fingerprint=fingerprint([asdict(prompt) for prompt in self._items]),
                block_size=len(KINDS),
                pilot=0 if self.prompts else PILOT,
                examples=self._examples,
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
        aded = partial(self.configured, ADED, seed=self.seed, step_seconds=self._seconds)
        ours = partial(self.configured, NgramDrafter, step_seconds=self._seconds)

        def lookup(tokens: int) -> Write:
            return partial(writer, prompt_lookup_num_tokens=tokens)

        def sized(size: int) -> Write:
            return self._drafting(replace(aded(table=table), tree_size=size))

        def adapted() -> Write:
            drafter = ours(table=table.fork())
            for prompt in track(self._warm, "answering other prompts"):
                writer(prompt, custom_generate=drafter)
            return self._drafting(drafter)

        drafters: dict[str, tuple[Callable[[], TableDrafter], str]] = {
            MAIN: (lambda: aded(table=table), "as published, with a table from other documents of the data"),
            MEASURED: (
                lambda: replace(aded(table=table), tree_size="auto"),
                "ours: as many draft tokens as pay at the measured cost of a step",
            ),
            NO_CORPUS: (aded, "a control: adaptation alone fills the table"),
            NO_ADAPTATION: (
                lambda: replace(aded(table=table), increment=0.0),
                "a control: the table stays as it was counted",
            ),
            OURS: (lambda: ours(table=table), "ours: copies from the context and the same table, as far as they pay"),
            OURS_EMPTY: (ours, "ours: drafts from the prompt and its own output alone"),
        }
        return [
            ModelArm(GREEDY, lambda: self._reference.write, "baseline", "model.generate, one token a step"),
            ModelArm(
                LOOKUP,
                self._tuned(LOOKUP, LOOKUP_TOKENS, lookup),
                "peer",
                "transformers: copies what followed the last two tokens before; the number of tokens is tuned",
            ),
            ModelArm(
                SIZED,
                self._tuned(SIZED, TREE_SIZES, sized),
                "sibling",
                "the published search for fewer draft tokens, if fewer are faster on other prompts",
                ADED.paper,
            ),
            *(
                ModelArm(
                    name,
                    self._made(make),
                    None if name == MAIN else "sibling",
                    about,
                    "" if name.startswith(OURS) else ADED.paper,
                )
                for name, (make, about) in drafters.items()
            ),
            ModelArm(OURS_ADAPTED, adapted, "sibling", "ours: the same table after it wrote other answers"),
            *self._peers(),
        ]

    def _made(self, make: Callable[[], TableDrafter]) -> Callable[[], Write]:
        return lambda: self._drafting(make())

    def _drafting(self, drafter: TableDrafter) -> Write:
        """Writes each prompt with the drafter as it is now."""
        return lambda prompt: self._writer(prompt, custom_generate=drafter.fork())

    def _tuned(self, name: str, settings: Sequence[int], write: Callable[[int], Write]) -> Callable[[], Write]:
        """Makes an arm of the setting that writes the other prompts fastest."""

        def speed(setting: int) -> float:
            write_one = write(setting)
            runs = [write_one(prompt) for prompt in self._warm]
            return sum(len(written.tokens) for written in runs) / sum(written.seconds for written in runs)

        return lambda: write(self.tuned(name, settings, speed, on=f"{len(self._warm)} other prompts, in tokens/s"))

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
        tokens = "tokens per forward"
        return [
            # Authors' README, a table of 253 MB: 1.9 times. The abstract's 2.5 is "up to".
            Claim(
                "tokens/s", GREEDY, MAIN, "the same text in less time, up to 2.5 times as fast (abstract)", effect=1.9
            ),
            Claim(tokens, GREEDY, MAIN, "drafts are accepted, so that a pass writes several tokens"),
            Claim(tokens, NO_CORPUS, MAIN, "the corpus drafts: adaptation alone does not serve", kind="control"),
            Claim(tokens, NO_ADAPTATION, MAIN, "the table adapts: as counted it does not serve", kind="control"),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        return [
            *((LOOKUP, name) for name in (MAIN, SIZED, MEASURED, OURS)),
            *((MAIN, name) for name in (SIZED, MEASURED, OURS)),
            (OURS_EMPTY, OURS),
            (OURS, OURS_ADAPTED),
            *([(self._peer.label, MAIN)] if self._peer else []),
        ]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if claim.metric != "tokens/s":
            return ""
        arm = outcome.usable[claim.arm]
        read = 1 + sum(arm.samples["drafted"]) / max(1, sum(arm.samples["steps"]))
        sizes, seconds = zip(*self._seconds.items(), strict=True)
        cost = float(np.interp(read, sizes, seconds)) / self._seconds[1]
        written = arm.values["tokens per forward"].estimate
        if cost > _DEAR:
            remedy = (
                "Such a step takes hardly longer than a single one on a GPU: repeat the trial there (--device cuda)."
            )
        else:
            remedy = "More is accepted with a table of more texts like these (--megabytes), or of texts that repeat."
        return (
            f"A step of {arm.name} reads {read:.0f} tokens on average, takes as long as {cost:.2f} single steps here "
            f"and writes {written:.2f} tokens: {written / cost:.2f} times greedy decoding's speed, drafting aside. "
            f"{remedy}"
        )

    def figures(self, outcome: Outcome) -> list[Distribution]:
        usable = outcome.usable
        return [
            Distribution(
                f"{name}: speed at each prompt",
                "times greedy decoding",
                speedups(usable[name], usable[GREEDY], outcome.tasks[0].items),
            )
            for name in (MAIN, OURS, LOOKUP)
            if {name, GREEDY} <= usable.keys()
        ]

    def notes(self, outcome: Outcome) -> list[str]:
        items, usable = outcome.tasks[0].items, outcome.usable
        apart = {self._peer.label} if self._peer and not peering.drafts(self._peer) else set()
        notes = [_step_note(self._seconds), *_speed_notes(usable, items)]
        notes += [account(usable[name]) for name in (MAIN, OURS) if name in usable]
        notes += differences({name: arm for name, arm in usable.items() if name not in apart}, self.dtype)
        notes += [
            f"{different} of the {len(items)} texts of {name} differ from greedy decoding's here: it runs the model "
            "itself, in a precision of its own; its speed is that of its own texts."
            for name in apart & usable.keys()
            if (different := _different(usable[name]))
        ]
        return notes

    def _examples(self, prompts: Sequence[DecodePrompt], arms: Mapping[str, ArmResult]) -> list[Example]:
        """A prompt of each kind with what is written after it, and in how many passes and how much time."""
        if GREEDY not in arms:
            return []
        plain, written = arms[GREEDY].samples, "tokens per forward"
        others = {name: arm.samples for name, arm in arms.items() if name != GREEDY}
        order = most_apart(
            [{n: made[written][i] for n, made in others.items()} for i in range(len(prompts))], len(prompts)
        )
        found = []
        for place in [next(i for i in order if prompts[i].kind == kind) for kind in KINDS]:
            told = {}
            for name, made in others.items():
                text = (
                    "the same text"
                    if made["identical output"][place]
                    else f"another text: {excerpt(made['text'][place])}"
                )
                passes, speed = self.tokens / made[written][place], plain["seconds"][place] / made["seconds"][place]
                told[name] = f"{text}, in {passes:.0f} passes of the model, {speed:.2g} times as fast"
            prompt = self.loaded.tokenizer.decode(prompts[place].tokens)
            expected = f"Greedy decoding writes, in {self.tokens} passes: {excerpt(plain['text'][place])}"
            found.append(Example(f"{prompts[place].kind}: {ending(prompt)}", told, expected))
        return found

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
                return measured(list(zip(written, expected, strict=True)), self.loaded.tokenizer.decode)
            asked = [{"tokens": list(prompt.tokens), "new_tokens": self.tokens} for prompt in block]
            answer = process.run(asked)
            tokens, seconds = (answer.outputs.get(name, []) for name in ("tokens", "seconds"))
            if {len(tokens), len(seconds)} != {len(block)} or any(len(each) != self.tokens for each in tokens):
                raise ValueError(f"expected `seconds` and {self.tokens} `tokens` for each of {len(block)} prompts")
            runs = [Written(list(ids), spent, self.tokens) for ids, spent in zip(tokens, seconds, strict=True)]
            made = measured(list(zip(runs, expected, strict=True)), self.loaded.tokenizer.decode)
            return replace(made, peak_bytes=answer.peak_bytes)

        return Arm(arm.name, run, description=arm.description, prepare=process.start, close=process.close)

    def _arm(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        if self._peer and arm.name == self._peer.label:
            return self._external(arm, lazy())

        def run(block: Sequence[DecodePrompt]) -> Measured:
            write: Write = lazy()
            runs = [(write(prompt), self._reference.tokens(prompt)) for prompt in block]
            return measured(runs, self.loaded.tokenizer.decode, plain=arm.name == GREEDY)

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)


def speedups(arm: ArmResult, baseline: ArmResult, items: Sequence[DecodePrompt]) -> dict[str, list[float]]:
    """How many times faster than the baseline an arm was at each prompt, by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for prompt, mine, plain in zip(items, arm.samples["seconds"], baseline.samples["seconds"], strict=True):
        found[prompt.kind].append(plain / mine)
    return found


def _step_note(seconds: Mapping[int, float]) -> str:
    costs = ", ".join(f"{size}: {value / seconds[1]:.2f}" for size, value in seconds.items())
    return (
        f"A step over several tokens takes as long as this number of single steps here: {costs}. ADED as published "
        f"verifies up to 64 draft tokens in every step; {MEASURED} and the n-gram drafter as many as pay."
    )


def _speed_notes(usable: Mapping[str, ArmResult], items: Sequence[DecodePrompt]) -> list[str]:
    """How many times faster than greedy decoding each arm is, by kind."""
    notes = []
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
    return notes


def account(arm: ArmResult) -> str:
    """What became of a drafter's drafts, and where those came from that were accepted."""
    names = ("steps", "drafted", "accepted", "unknown", "drafting seconds")
    sums = {name: sum(arm.samples[name]) for name in names}
    steps, accepted = max(1, sums["steps"]), max(1, sums["accepted"])
    milliseconds = 1000 * sums["drafting seconds"] / steps
    shares = {words: sum(arm.samples[f"from {source}"]) / accepted for source, words in SOURCES.items()}
    proposed = ", ".join(f"{share:.0%} {words}" for words, share in shares.items() if share)
    return (
        f"{arm.name}: {sums['accepted'] / max(1, sums['drafted']):.0%} of the draft tokens were accepted"
        f"{'; they were proposed ' * bool(proposed)}{proposed}. In {sums['unknown'] / steps:.0%} of the steps the "
        f"table knew no successor: a larger table helps there. Drafting takes {milliseconds:.2f} ms a step."
    )


def _different(arm: ArmResult) -> int:
    """How many of an arm's texts are not greedy decoding's."""
    same = arm.samples["identical output"]
    return int(len(same) - sum(same))


def differences(usable: Mapping[str, ArmResult], dtype: str) -> list[str]:
    """How many texts of each arm are not greedy decoding's; in float32 only where there are any."""
    found = {name: (_different(arm), len(arm.samples["identical output"])) for name, arm in usable.items()}
    if dtype == "float32" and not any(different for different, _ in found.values()):
        return []
    counts = ", ".join(f"{name} {different} of {n}" for name, (different, n) in found.items())
    return [
        f"Texts that differ from greedy decoding's: {counts}. In {dtype} the logits of a token read among others are "
        "rounded differently from those of a token read alone, and two tokens that nearly tie change places. The "
        "other metrics of an arm are those of its own texts."
    ]
