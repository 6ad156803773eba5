"""Try InfLLM beside LM-Infinite, which spends as many keys on a longer window; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet.attend.base import Attention
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.trials.attend import AttendTrial, Win, lengths_option, window_option

AS_MANY_KEYS = "LM-Infinite with as many keys"


@dataclass
class InfLLMTrial(AttendTrial):
    """Long documents under InfLLM, beside full attention, truncation and LM-Infinite (arXiv:2402.04617, Sec. 4).

    A text is a run of documents in which passwords are hidden. It is read once, in chunks. InfLLM has a window of 512
    tokens, 32 first tokens, and looks up 8 blocks of 32. LM-Infinite has as many first tokens, and a window so long
    that a query attends to as many keys as InfLLM's ever does. The claims: InfLLM finds more of the passwords, most of
    which lie outside both windows; and beyond the positions that the model was trained on it does so too. Ten texts
    take about half an hour on two idle cores; at most 14 are read.
    """

    paper: ClassVar[str] = "infllm"
    arm: ClassVar[str] = "InfLLM"
    wins: ClassVar[tuple[Win, ...]] = (
        Win(
            "retrieval",
            "it finds what lies outside the window, which LM-Infinite cannot (Sec. 4)",
            # Sec. 4, ∞-Bench with Mistral-7B, passkeys: LM-Infinite finds 28.8 %, InfLLM 100 % (numbers: 28.8, 96.1).
            0.712,
            AS_MANY_KEYS,
            everywhere=True,
        ),
    )
    scale: ClassVar[str] = "Its models are Mistral-7B and Llama-3-8B, with windows of 4,096 tokens in texts of 145,000."
    pilot: ClassVar[int] = 10
    most: ClassVar[int] = 14

    lengths: tuple[int, ...] = lengths_option(4096, 12288)
    window: int = window_option(512)

    @classmethod
    def defaults(cls, kind: type[Attention], trial: AttendTrial) -> dict[str, Any]:
        part = max(1, trial.window // 16)
        return {"n_local": trial.window, "n_init": part, "block_size": part, "top_k": 8}

    def beside(self, method: Any) -> dict[str, Attention]:
        window = method.most_keys - method.n_init
        return {AS_MANY_KEYS: self.configured(LMInfinite, n_global=method.n_init, n_local=window)}
