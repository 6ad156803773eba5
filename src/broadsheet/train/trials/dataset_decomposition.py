"""Try dataset decomposition: pieces of documents in batches of one length, beside documents joined and cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.options import option
from broadsheet.train.dataset_decomposition import (
    BatchRows,
    DatasetDecomposition,
    Decomposition,
    average_lengths,
    power_of_two,
)
from broadsheet.train.trials.lab import LabTrial
from broadsheet.training.losses import IGNORED
from broadsheet.training.scratch import tokens_of
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.trained.laboratory import LEAST, LOSS, PACE, LabArm
from broadsheet.trial.verdicts import Comparison

JOINED, OURS, UNIFORM, SHORT = "joined and cut", "decomposed, Grow-P2", "decomposed, uniform", "joined, short"
GROUPED, PACKED, TIMED = "grouped by length", "best-fit packed, masked", "joined, in our time"


class WholeBatches(list[dict[str, Tensor]]):
    """Batches of a whole training, in their order; see `LabTrial.rows`."""

    in_order = True
    whole = True

    def identity(self) -> Any:
        """What tells these rows from others."""
        return fingerprint([{name: values.tolist() for name, values in batch.items()} for batch in self])


@dataclass
class DatasetDecompositionTrial(LabTrial):
    """Does it help to train on pieces of single documents, each step on one length, short ones first?

    The plain way joins documents and cuts them to the longest length. Decomposition reads as many tokens a step.
    Uniform odds in place of Grow-P2 tell what the curriculum does. Beside them: documents joined and cut to a fourth of
    the length; whole documents grouped by length and padded (`group_by_length` of `Trainer`); documents packed by best
    fit, each masked from the others (TRL's, where it is installed); and the plain way stopped when ours ends.
    """

    paper: ClassVar[str] = "dataset_decomposition"
    title: ClassVar[str] = "Dataset decomposition: pieces of documents, a length a step"

    batch: int = option(4, "Rows of --length tokens, whose tokens a step reads.", quick=4, least=1)
    length: int = option(1024, "Tokens of a row, and of the longest piece; a power of two.", quick=256, least=8)
    shortest: int = option(16, "Tokens of the shortest piece, a power of two.", least=1)

    def check(self) -> None:
        super().check()
        power_of_two(self.length, "--length"), power_of_two(self.shortest, "--shortest")

    def question(self) -> str:
        return (
            f"Trained from nothing on {self.data}, does a model learn more, and faster, from pieces of documents "
            f"of {self.shortest} to {self.length} tokens than from all of them joined and cut to {self.length}?"
        )

    def lab(self) -> Sequence[LabArm]:
        ours = DatasetDecomposition.paper
        arms = [
            LabArm(JOINED, about=f"to {self.length} tokens"),
            LabArm(OURS, about="pieces, the short ones first in each cycle", paper=ours, rows=OURS),
        ]
        if not self.quick:
            arms += [
                LabArm(UNIFORM, about="pieces, all lengths as likely", paper=ours, rows=UNIFORM, rate_of=OURS),
                LabArm(SHORT, about=f"to {self.length // 4} tokens", role="peer", rows=SHORT),
                LabArm(GROUPED, about="whole documents, padded", role="peer", rows=GROUPED),
                LabArm(TIMED, about="fewer steps", role="sibling", in_time_of=OURS, rate_of=JOINED),
            ]
            if find_spec("trl"):
                arms.insert(-1, LabArm(PACKED, about="TRL's bfd_split", role="peer", rows=PACKED))
        return arms

    def rows(self, name: str, seed: int) -> Any:
        ways: dict[str, Callable[[int], Any]] = {
            OURS: self._decomposed,
            UNIFORM: partial(self._decomposed, curriculum="uniform"),
            SHORT: self._short,
            GROUPED: self._grouped,
            PACKED: self._packed,
        }
        return ways[name](seed) if name in ways else super().rows(name, seed)

    def claims(self) -> list[Claim]:
        claims = [
            Claim(
                LOSS,
                JOINED,
                OURS,
                "more is learnt of as many tokens (54.4 against 51.5 with 8,192 tokens)",
                least=LEAST,
            ),
            # At 1B and 8,192 tokens; at 160M it is 14 % of the time.
            Claim(
                PACE, JOINED, OURS, "steps cost less: attention looks at documents alone (−20 % of the time)", 1 / 0.8
            ),
        ]
        if not self.quick:
            claims += [
                Claim(
                    LOSS, UNIFORM, OURS, "because short pieces come first, in cycles (54.4 against 53.8)", least=LEAST
                ),
                Claim(LOSS, TIMED, OURS, "in equal time more is learnt", least=LEAST),
            ]
        return claims

    def setting(self) -> Mapping[str, Any]:
        pieces, total = self._pieces, sum(map(len, self._documents))
        sequence, context = average_lengths(pieces.tokens())
        counts = ", ".join(f"{len(rows):,} of {2**bucket}" for bucket, rows in pieces.buckets.items())
        return {
            **super().setting(),
            "pieces": f"{counts}; {pieces.dropped / total:.1%} of the tokens dropped".replace("%", " %"),
            "lengths": f"a piece has {sequence:.0f} tokens on average, and a token sees {context:.0f} of its document "
            "before it",
        }

    def notes(self, outcome: Outcome) -> list[str]:
        return [] if find_spec("trl") or self.quick else ["Best-fit packing is left out: TRL is not installed."]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have 160M to 7B weights and read up to 8,192 tokens at once, of which attention takes a larger "
            "share; its gain is greatest on questions over long contexts, which is not asked here."
        )

    # Rows

    @cached_property
    def _documents(self) -> list[list[int]]:
        """Tokens of each training text, `END` before and after it, as where they are joined."""
        end = self.tokenizer.eos_token_id
        return [[end, *row] for row in tokens_of(self.held.train, self.tokenizer)]

    @property
    def _tokens(self) -> int:
        return self.batch * self.length

    def _decomposed(self, seed: int, **more: Any) -> BatchRows:
        low, high = power_of_two(self.shortest, "--shortest"), power_of_two(self.length, "--length")
        given = {"low": min(low, high), "high": high, "cycles": 4, **more}
        method = DatasetDecomposition(**{**self.fields(DatasetDecomposition, **given), "seed": seed})
        epochs = 1 + self.steps * self._tokens // max(1, sum(self._pieces.tokens().values()) - self._tokens)
        return method.rows(self._documents, self._tokens, epochs=epochs)

    @cached_property
    def _pieces(self) -> Decomposition:
        low, high = power_of_two(self.shortest, "--shortest"), power_of_two(self.length, "--length")
        return Decomposition(self._documents, min(low, high), high)

    def _short(self, seed: int) -> WholeBatches:
        """Batches of as many tokens, in rows of a fourth of the length."""
        stream, length = self.plain_rows.ids.flatten(), self.length // 4
        rows = stream[: len(stream) // length * length].view(-1, length)
        return self._batched(seed, rows, self._tokens // length)

    def _batched(self, seed: int, rows: Tensor, size: int, **more: Tensor) -> WholeBatches:
        """So many of the rows at a time, in a new order each epoch; `labels` may be among `more`."""
        found = WholeBatches()
        generator = torch.Generator().manual_seed(seed)
        while len(found) < self.steps:
            for places in torch.randperm(len(rows), generator=generator).split(size):
                if len(places) == size:
                    batch = {name: values[places] for name, values in more.items()}
                    found.append({"input_ids": rows[places], "labels": rows[places], **batch})
        return found

    def _grouped(self, seed: int) -> WholeBatches:
        """Whole documents, cut where they are longer; as many a batch as have its tokens on average."""
        from transformers.trainer_pt_utils import LengthGroupedSampler

        documents = [row[: self.length] for row in self._documents]
        lengths = [len(row) for row in documents]
        size = max(1, round(self._tokens / float(np.mean(lengths))))
        generator, found = torch.Generator().manual_seed(seed), WholeBatches()
        while len(found) < self.steps:
            order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
            found += [self._padded([documents[i] for i in order[k : k + size]]) for k in range(0, len(order), size)]
        return found

    def _padded(self, documents: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        widest, end = max(map(len, documents)), self.tokenizer.eos_token_id
        ids = torch.tensor([[*row, *[end] * (widest - len(row))] for row in documents])
        mask = torch.tensor([[1] * len(row) + [0] * (widest - len(row)) for row in documents])
        return {"input_ids": ids, "labels": ids.where(mask.bool(), IGNORED), "attention_mask": mask}

    def _packed(self, seed: int) -> WholeBatches:
        """Rows of documents side by side, each read from position 0 and by itself; what is left of a row is padded."""
        ids, labels, positions = self._packs
        return self._batched(seed, ids, self.batch, labels=labels, position_ids=positions)

    @cached_property
    def _packs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, labels and positions of rows that TRL packs, (rows, length) each."""
        import datasets
        from trl import pack_dataset

        hidden = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            rows = pack_dataset(datasets.Dataset.from_dict({"input_ids": self._documents}), self.length, "bfd_split")
        finally:
            if not hidden:
                datasets.enable_progress_bars()
        ids = torch.full((len(rows), self.length), self.tokenizer.eos_token_id)
        labels = torch.full((len(rows), self.length), IGNORED)
        positions = torch.zeros((len(rows), self.length), dtype=torch.long)
        for i, row in enumerate(rows):
            count = len(row["input_ids"])
            ids[i, :count] = labels[i, :count] = torch.tensor(row["input_ids"])
            lengths = [*row["seq_lengths"], *[self.length - count] * (count < self.length)]
            positions[i] = torch.cat([torch.arange(length) for length in lengths])
        labels[positions == 0] = IGNORED  # what begins is not told by what ended before it
        return ids, labels, positions
