"""CLEAR for `broadsheet apply`: rows to fine-tune on in, the same rows with what a model thinks of their targets out.

Knows: the two passes, files. Does not know: what confidence is.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Recipe, Source
from broadsheet.apply.corpus import Summary
from broadsheet.cache import atomic_write, fingerprint, remove_folder
from broadsheet.console import InputError, say
from broadsheet.curate.recipe import remedied
from broadsheet.data import pydocs
from broadsheet.options import option
from broadsheet.training.workdir import workdir

if TYPE_CHECKING:
    from broadsheet.curate.clear import Clear


@dataclass
class ClearRecipe(Recipe):
    """Rows with `messages`, or `prompt` and `completion`, to a file of the same rows with `confidence`, `consistency`,
    `reflection` and `action`."""

    paper: ClassVar[str] = "clear"
    writes: ClassVar[Literal["file", "folder"]] = "file"

    model: str = option(
        "default", "The one that will be tuned: `default`, a hub id, a folder, a .gguf file, or `endpoint:NAME`.",
        metavar="MODEL",
    )  # fmt: skip
    nli: str = option(
        "token-F1",
        "A model of natural language inference, a hub id or a folder; token-F1 is a stand-in that needs none.",
        metavar="MODEL",
    )
    by: Literal["confidence", "PMI", "log-probability"] = option(
        "confidence", "The paper's confidence; the other two are ours, and cost one or two forward passes."
    )
    asks: Literal["text", "letters"] = option(
        "text", "How the model is asked what it thinks: for an explanation and a letter, or, ours, letters alone."
    )
    drop: bool = option(False, "Leave out what is dropped; else all rows are written, with their action.")
    tuned: str | None = option(
        None,
        "The model fine-tuned on what was kept; a folder may hold an adapter alone. It proposes answers for what was "
        "dropped.",
        metavar="MODEL",
    )
    tasks: int = option(
        8, "Parts that the rows are scored in; what a killed run had finished is not done again.", least=1
    )

    def clear(self) -> Clear:
        """The method, with its models by name."""
        from broadsheet.curate.clear import Clear

        made = self.configured(
            Clear, teacher=self.model, nli=self.nli, by=self.by, asks=self.asks, seed=self.seed, device=self.device,
            dtype=self.dtype,
        )  # fmt: skip
        self.check_calls()
        return made

    @remedied()
    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        try:
            return self._written(source, out, force)
        except KeyboardInterrupt:
            say("stopped; the same command without --force goes on from there")
            raise

    def _written(self, source: Source, out: Path, force: bool) -> Summary:
        from broadsheet.curate.files import ShardReader, ShardWriter, in_order
        from broadsheet.curate.running import Ranks
        from broadsheet.curate.targets.exchanges import ExchangeReader
        from broadsheet.curate.targets.steps import ClearFilter, ClearScores

        aside = out.with_name(f"{out.name}.parts")  # beside which `workdir` puts its folder
        replacing = aside.with_name(f"{aside.name}.partial") / "replacing"
        if out.is_dir():
            raise InputError(f"{out} is a folder; --out takes the name of a file")
        if out.exists() and not (force or replacing.exists()):
            raise InputError(f"{out} exists; choose another --out, or --force to replace it")
        if pydocs.is_pydocs(source.spec):
            raise InputError(
                f"{source.spec} holds documents; expected rows with messages, or with prompt and completion: a file, a "
                "folder, or hf:org/name:split"
            )
        clear, corpus, started = self.clear(), source.corpus(), time.perf_counter()
        settings = {each.name: getattr(clear, each.name) for each in fields(clear)}
        config = {
            "settings": {**settings, "tuned": self.tuned, "drop": self.drop, "tasks": self.tasks},
            "rows": fingerprint(corpus.identity()),
        }
        with workdir(aside, config, finished=out.name, force=force, kind="file") as work:
            scores, scored, done = work / "scores", work / "scored", work / "done"
            first = [ExchangeReader(source.spec, source.on_error), ClearScores(clear, scores), ShardWriter(scored)]
            Ranks(first, work / "passes" / "1", self.tasks, name="scoring").run()
            filtered = ClearFilter(clear, scores, self.tasks, self.tuned, drop=self.drop)
            second = [ShardReader(scored), filtered, ShardWriter(done)]
            Ranks(second, work / "passes" / "2", self.tasks, name="filtering").run()
            read = [document.metadata for document in in_order(scored)]
            if not read:
                raise InputError(f"{source.spec} holds no rows that can be used")
            counts: Counter[str] = Counter()
            with atomic_write(out) as file:
                for document in in_order(done):
                    file.write(_row(document.metadata))
                    counts[document.metadata["action"]] += 1
            remove_folder(work)
        counts["dropped"] = len(read) - counts["kept"] - counts["corrected"]
        say(f"{clear.title}: {_told(read)}")
        seconds = time.perf_counter() - started
        actions = ", ".join(f"{counts[name]:,} {name}" for name in ("kept", "corrected", "dropped") if counts[name])
        say(f"{out}: {len(read):,} rows: {actions}; {seconds:,.1f} s")
        return Summary(out, len(read), 0, seconds, True)


def _told(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far each part of the score spreads."""
    import numpy as np

    from broadsheet.curate.clear import Scores

    parts = {name: [row[name] for row in rows] for name in ("confidence", "consistency", "reflection")}
    arrays: dict[str, Any] = {name: None if None in values else np.array(values) for name, values in parts.items()}
    return Scores(**arrays).told()


def _row(metadata: dict[str, Any]) -> str:
    columns = {name: metadata[name] for name in ("confidence", "consistency", "reflection", "action")}
    return json.dumps({**metadata["row"], **columns}, ensure_ascii=False) + "\n"
