"""The recipe of this stage: a corpus to a folder of the documents that stay, with what became of each, and why.

Knows: passes over ranks, the folder's files. Does not know: any rule.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.apply.base import Build, Source
from broadsheet.apply.corpus import Summary, writing
from broadsheet.cache import atomic_write, fingerprint, remove_folder, replace_folder
from broadsheet.console import InputError, say
from broadsheet.options import option
from broadsheet.training.workdir import workdir

if TYPE_CHECKING:
    from datatrove.data import Document

    from broadsheet.curate.running import StepCounts

COUNTS, DOCUMENTS, REASONS, REPORT = "counts.json", "documents.jsonl", "reasons.jsonl", "report.html"


@dataclass
class Passes:
    """The passes of a recipe over its ranks, one after another; what each step did is kept.

    Args:
        folder: to work in.
        tasks, workers: ranks, and processes at once.
    """

    folder: Path
    tasks: int
    workers: int
    counts: list[StepCounts] = field(default_factory=list)

    def run(self, name: str, steps: Sequence[Any]) -> None:
        """Run steps over all ranks, or what is missing of them."""
        from broadsheet.curate.running import Ranks

        ranks = Ranks(list(steps), self.folder / "passes" / name, self.tasks, self.workers, name)
        ranks.run()
        self.counts += ranks.counts()

    def reasons(self) -> Iterator[str]:
        """A line for each document that a step dropped or changed: its id, the pass, and why."""
        from broadsheet.curate.files import told

        for folder in sorted((self.folder / "passes").glob("*/examples/*")):
            for row in told(folder):
                yield json.dumps({"id": row["id"], "pass": folder.parts[-3], "reason": row["reason"]}) + "\n"


class UnsuitedError(InputError):
    """The options cannot be had of this corpus: other ones are due, so nothing that was done is worth resuming."""


@contextmanager
def remedied() -> Iterator[None]:
    """Within it, a working file that is damaged is told with what a user can do."""
    from broadsheet.curate.files import DamagedError

    try:
        yield
    except DamagedError as error:
        raise InputError(f"{error}: start over with --force, or in another folder") from None


@dataclass
class CurateRecipe(Build):
    """A corpus to a folder: `documents.jsonl`, `reasons.jsonl`, `counts.json` and `report.html`. Give `curate`.

    What it writes is the same, byte for byte, whatever the number of ranks and processes, and after any kill.
    """

    lacks: ClassVar[tuple[str, ...]] = ("model", "seed", "device", "dtype", "method")

    workers: int = option(1, "Processes at once.", least=1)
    tasks: int | None = option(None, "Parts that the corpus is read in; by default as many as --workers.", least=1)

    @abstractmethod
    def curate(self, source: Source, passes: Passes) -> Path | Iterator[Document]:
        """Run the passes.

        Returns:
            The folder of the shards that hold what stays; or the documents, where they have an order of their own.
        """

    def settings(self) -> dict[str, Any]:
        """All that the result depends on besides the corpus, as JSON values: the options."""
        shared = ("workers", "tasks", *self.lacks)
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in shared}

    def write(self, documents: Iterator[Document], folder: Path, passes: Passes) -> tuple[int, int]:
        """Write what stays into a new folder: how many documents that are, and how many with their copies."""
        from broadsheet.curate.files import PLACE

        kept, written, last = 0, 0, None
        with atomic_write(folder / DOCUMENTS) as file:
            for document in documents:
                place = document.metadata.get(PLACE, document.id)
                file.write(row(document))
                kept, written, last = kept + (place != last), written + 1, place
        return kept, written

    def title(self) -> str:
        """Of the report."""
        return type(self).__name__.removesuffix("Recipe")

    def build(self, corpus: Any, out: Path, force: bool) -> Summary:
        raise NotImplementedError  # a rank opens the corpus itself

    @remedied()
    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        from broadsheet.curate.files import in_order

        corpus, started = source.corpus(), time.perf_counter()
        tasks = self.tasks or self.workers
        config = {
            "recipe": self.paper or type(self).__name__,
            "settings": self.settings(),
            "rows": fingerprint(corpus.identity()),
            "tasks": tasks,
        }
        with writing(out), workdir(out, config, finished=COUNTS, force=force, kind="corpus") as work:
            passes = Passes(work, tasks, self.workers)
            try:
                found = self.curate(source, passes)
            except InputError as error:
                if isinstance(error, UnsuitedError) or not any(work.glob("passes/*/completions/*")):
                    remove_folder(work)  # there is nothing to resume
                raise
            made = work / "result"
            made.mkdir(exist_ok=True)
            kept, written = self.write(in_order(found) if isinstance(found, Path) else found, made, passes)
            if not written:
                remove_folder(work)
                raise InputError(f"nothing is left of {source.spec}: {_why(passes.counts)}")
            with atomic_write(made / REASONS) as file:
                file.writelines(passes.reasons())
            with atomic_write(made / REPORT) as file:
                file.write(page(self.title(), source.spec, kept, written, passes.counts))
            with atomic_write(made / COUNTS) as file:
                told = [{k: v for k, v in each.as_json().items() if k != "seconds"} for each in passes.counts]
                json.dump(
                    {"documents": kept, "written": written, "settings": self.settings(), "steps": told}, file, indent=1
                )
            replace_folder(made, out)
            remove_folder(work)
        seconds = time.perf_counter() - started
        copies = f", {written:,} with copies" if written != kept else ""
        say(f"{out}: {kept:,} documents stay{copies}, {seconds:,.1f} s; why the others went: {out / REPORT}")
        return Summary(out, written, 0, seconds, True)


def row(document: Document) -> str:
    """A document as a line of the result: its metadata without its place."""
    from broadsheet.curate.files import PLACE

    metadata = {name: value for name, value in document.metadata.items() if name != PLACE}
    return json.dumps({"id": document.id, "text": document.text, **metadata}, ensure_ascii=False) + "\n"


def _why(counts: Sequence[StepCounts]) -> str:
    """The reasons for which most documents were dropped."""
    found = [(n, reason, each.name) for each in counts for reason, n in each.by_reason("dropped").items()]
    if not found:
        return "it holds no documents"
    most = ", ".join(f"{n:,} dropped as {reason} ({name})" for n, reason, name in sorted(found, reverse=True)[:3])
    return f"{most}; loosen what drops most"


def page(title: str, source: str, kept: int, written: int, counts: Sequence[StepCounts]) -> str:
    """What became of a corpus as one HTML page: what each step dropped or changed, why, and which; it loads nothing.

    Args:
        title: what curated the corpus.
        source: the corpus, as it was named.
        kept: documents that stay.
        written: these with their copies.
        counts: of all steps, in their order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    read = next((int(each.totals["documents"]) for each in counts if "documents" in each.totals), 0)
    steps = [
        each for each in counts if each.by_reason("dropped") or each.by_reason("changed") or each.totals.get("total")
    ]
    pages = Environment(
        loader=PackageLoader("broadsheet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return pages.get_template("curation.html.jinja").render(
        title=title, source=source, kept=kept, written=written, read=read, steps=steps
    )
