"""`broadsheet apply` for the papers of the stage: each trains a reranker with its loss.

OUT is a folder that `ListwiseReranker.load` and `broadsheet try first --reranker OUT` read. Knows: lists by name, the
stage's losses. Does not know: how any of them works. Reranking and labelling are commands (`commands`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Source, Train
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.sources import is_rows
from broadsheet.options import option
from broadsheet.rank.list_source import ListSource
from broadsheet.rank.prompts.prompt import BRIEF
from broadsheet.rank.training.rows import read_rows, training_rows

if TYPE_CHECKING:
    from broadsheet.rank.training.objective import ListLoss
    from broadsheet.training.trainer import TrainOutput


@dataclass
class RerankerRecipe(Train):
    """What trainings of rerankers share.

    DATA is `pydocs` (other packages than those of the trial's test), a BEIR folder (`corpus.jsonl`, `queries.jsonl`,
    `qrels/*.tsv`; its `train` split), or rows of `query`, `documents` and `ranking` or `labels` as `rows.read` takes
    them.
    """

    usage: ClassVar[str] = "try it: broadsheet try first --reranker {out}"
    decode: ClassVar[str] = "first_token"

    reranker: str | None = option(None, "To train on from, instead of the model.", metavar="FOLDER")
    lists: int = option(2000, "To train on, at most.", least=1)
    candidates: int = option(20, "Of a list.", least=2)
    depth: int | None = option(
        None,
        "How deep the first stage's list goes that wrong passages are drawn from; by default the candidates.",
        least=1,
    )
    first_stage: str | None = option(None, "A TREC run over the BEIR folder; by default BM25's.", metavar="FILE")
    words: int = option(40, "Of a passage that is searched and shown; 0: all.", least=0)
    titles: bool = option(False, "Passages of pydocs show the name of their function or class.")
    split: str = option("train", "Of the BEIR folder's qrels.", metavar="NAME")
    window: int | None = option(None, "Passages in a call, kept in the reranker (20).", least=2)
    step: int | None = option(None, "How far the window moves on, kept in the reranker (10).", least=1)
    brief: bool = option(
        False, "Prompts with few words around the passages, kept in the reranker: for small models, short passages."
    )
    epochs: int = option(3, "How often a list is read, at most.", least=1)
    batch_size: int = option(8, "Lists of a step.", least=1)
    tune: Literal["lora", "full"] = option("full", "Train adapters, or all weights.")
    learning_rate: float | None = option(None, "By default 5e-5 for all weights, 5e-4 for adapters.", least=0)
    sizes: tuple[int, ...] = option(
        (), "Passages of a training list, drawn anew each time: least,most; by default all.", least=2
    )
    shuffle: float = option(1.0, "Share of the training lists whose passages are shuffled.", least=0)
    neftune: float | None = option(None, "Noise on embeddings (the papers: 5).", least=0)

    @abstractmethod
    def objective(self) -> ListLoss:
        """The paper's loss."""

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.rank.base import ListwiseReranker
        from broadsheet.rank.training.fitting import fit

        if len(self.sizes) not in (0, 2):
            raise InputError(f"got --sizes {','.join(map(str, self.sizes))}; expected two numbers, as in 5,20")
        objective = self.objective()
        self.check_calls()
        rows = self.rows(source)
        changes: dict[str, Any] = {"decode": self.decode, "window": self.window, "step": self.step}
        changes = {key: value for key, value in changes.items() if value}
        if self.brief:
            changes["prompt"] = BRIEF
        reranker = ListwiseReranker.load(self.reranker or self.model, device=self.device, dtype=self.dtype, **changes)
        say(f"training on {len(rows):,} lists")
        settings = self.settings()
        settings["lists_per_step"] = settings.pop("batch_size")
        done: TrainOutput = fit(
            reranker,
            rows,
            objective,
            out=out,
            sizes=(self.sizes[0], self.sizes[1]) if self.sizes else None,
            shuffle=self.shuffle,
            neftune=self.neftune,
            force=force,
            **settings,
        )
        return done

    def rows(self, source: Source) -> list[dict[str, Any]]:
        """Lists to train on, in first-stage order."""
        if is_rows(source.spec):
            return read_rows(source.spec, source.on_error)[: self.lists]
        found = ListSource(source.spec, self.words, self.titles, self.first_stage or "", self.split, self.seed)
        rows = training_rows(found.train(self.lists, self.candidates, self.depth or 0).lists, order="first_stage")
        for row in rows:
            if "labels" in row and is_pydocs(source.spec):
                row.pop("ranking", None)  # passages that are wrong alike need no order
        return rows


@dataclass
class FirstRecipe(RerankerRecipe):
    """Train a reranker with FIRST's joint loss: the written ranking, and the order of the first identifiers' logits."""

    paper: ClassVar[str] = "first"

    def objective(self) -> ListLoss:
        from broadsheet.rank.first import FIRST

        return self.configured(FIRST)


@dataclass
class FullRankRecipe(RerankerRecipe):
    """Train a reranker to write the whole ranking, first places weighing more; `broadsheet label` makes its labels."""

    paper: ClassVar[str] = "fullrank"
    decode: ClassVar[str] = "permutation"

    def objective(self) -> ListLoss:
        from broadsheet.rank.fullrank import FullRank

        return self.configured(FullRank)


@dataclass
class PGRankRecipe(RerankerRecipe):
    """Train a reranker for a metric by policy gradient, best from a --reranker that FIRST has trained."""

    paper: ClassVar[str] = "pg_rank"

    def objective(self) -> ListLoss:
        from broadsheet.rank.pg_rank import PGRank

        if not self.reranker:
            say("pg_rank draws rankings from the model: near random ones, without a --reranker that FIRST has trained")
        return self.configured(PGRank)
