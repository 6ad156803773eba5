"""Try FlexPrefill on prompts read in one piece; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet.attend.base import Attention
from broadsheet.attend.trials.attend import AttendTrial


@dataclass
class FlexPrefillTrial(AttendTrial):
    """Long documents read in one piece under FlexPrefill, beside full attention and truncation (arXiv:2502.20766).

    A text is a run of documents in which passwords are hidden. It is read up to each length anew, in one piece. With
    --quick a head reads at least 256 tokens, else the class's default. The claim: prefill takes fewer seconds than full
    attention's; by how many per cent the loss changes is in the notes.
    """

    paper: ClassVar[str] = "flexprefill"
    arm: ClassVar[str] = "FlexPrefill"
    gain: ClassVar[str] = "prefill seconds"
    says: ClassVar[str] = "it reads a long prompt faster, at about the same quality (abstract)"
    one_piece: ClassVar[bool] = True

    @classmethod
    def defaults(cls, kind: type[Attention], trial: AttendTrial) -> dict[str, Any]:
        return {"min_budget": 256} if trial.quick else {}
