"""Try LongHeads beside LM-Infinite, whose window sees as many tokens; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet.attend.base import Attention
from broadsheet.attend.trials.attend import AttendTrial


@dataclass
class LongHeadsTrial(AttendTrial):
    """Long documents under LongHeads, beside full attention, truncation and LM-Infinite (arXiv:2402.10685).

    A text is a run of documents in which passwords are hidden. It is read once, in chunks. A head reads as many tokens
    as the window has, in eight chunks. The claim: its loss is lower than that of a window of as many tokens, which is
    LM-Infinite.
    """

    paper: ClassVar[str] = "longheads"
    arm: ClassVar[str] = "LongHeads"
    rival: ClassVar[str] = "lm_infinite"
    says: ClassVar[str] = "chunks that each head chooses serve better than a window of as many tokens (abstract)"

    @classmethod
    def defaults(cls, kind: type[Attention], trial: AttendTrial) -> dict[str, Any]:
        return {"chunk_size": trial.window // 8, "attention_length": trial.window}
