"""Try LM-Infinite; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from broadsheet.attend.trials.attend import AttendTrial


@dataclass
class LMInfiniteTrial(AttendTrial):
    """Long documents under LM-Infinite, beside full attention and truncation (arXiv:2308.16137, Sec. 4).

    A text is a run of documents in which passwords are hidden. It is read once, in chunks. The claim: beyond the
    positions that the model was trained on, the loss is lower than full attention's.
    """

    paper: ClassVar[str] = "lm_infinite"
    arm: ClassVar[str] = "LM-Infinite"
    gain: ClassVar[str] = "loss beyond"
    says: ClassVar[str] = "beyond the trained length the loss stays low where full attention's explodes (Sec. 4)"
    # Sec. 4, perplexity on ArXiv at 8K, twice what Llama-2 was trained on: 8.5e3 and 3.3, hence ln 8.5e3 − ln 3.3 nats.
    effect: ClassVar[float | None] = 7.85
