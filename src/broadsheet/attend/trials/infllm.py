"""Try InfLLM beside LM-Infinite, which is its window without the memory; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from broadsheet.attend.trials.attend import AttendTrial


@dataclass
class InfLLMTrial(AttendTrial):
    """Long documents under InfLLM, beside full attention, truncation and LM-Infinite (arXiv:2402.04617, Sec. 4).

    A text is a run of documents in which passwords are hidden. It is read once, in chunks. The claim: it finds
    passwords that the same window alone, which is LM-Infinite, does not.
    """

    paper: ClassVar[str] = "infllm"
    arm: ClassVar[str] = "InfLLM"
    gain: ClassVar[str] = "retrieval"
    rival: ClassVar[str] = "lm_infinite"
    says: ClassVar[str] = "it finds what lies outside the window, which LM-Infinite cannot (Sec. 4)"
    # Sec. 4, ∞-Bench with Mistral-7B, passkeys: LM-Infinite finds 28.8 %, InfLLM 100 % (numbers: 28.8 and 96.1).
    effect: ClassVar[float | None] = 0.712
