"""Try LongHeads beside LM-Infinite, which attends to as many keys; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet.attend.base import Attention
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.trials.attend import AttendTrial, Win, lengths_option, window_option

AS_MANY_KEYS = "LM-Infinite with as many keys"


@dataclass
class LongHeadsTrial(AttendTrial):
    """Long documents under LongHeads, beside full attention, truncation and LM-Infinite (arXiv:2402.10685).

    A text is a run of documents in which passwords are hidden. It is read once, in chunks, up to the positions that the
    model was trained on and to half as many more. A head reads 4,096 tokens, in 16 chunks; LM-Infinite attends to as
    many keys. The claims, both beyond the trained positions: the loss is lower than LM-Infinite's, and more passwords
    are found. Six texts take about half an hour on two idle cores; at most eight are read.
    """

    paper: ClassVar[str] = "longheads"
    arm: ClassVar[str] = "LongHeads"
    wins: ClassVar[tuple[Win, ...]] = (
        # Its tables were not at hand: no figure.
        Win(
            "loss beyond",
            "chunks that each head chooses serve better than a window of as many tokens",
            None,
            AS_MANY_KEYS,
            least=0.02,
        ),
        Win("retrieval beyond", "its heads together find what a window does not reach (abstract)", None, AS_MANY_KEYS),
    )
    scale: ClassVar[str] = "Its model is LLaMA-2-7B, in texts of up to 128,000 tokens."
    most: ClassVar[int] = 8

    lengths: tuple[int, ...] = lengths_option(8192, 12288)
    window: int = window_option(4096)

    @classmethod
    def defaults(cls, kind: type[Attention], trial: AttendTrial) -> dict[str, Any]:
        chunk = max(1, trial.window // 16)
        return {"chunk_size": chunk, "attention_length": 16 * chunk}

    def beside(self, method: Any) -> dict[str, Attention]:
        window = method.attention_length - LMInfinite.n_global
        return {AS_MANY_KEYS: self.configured(LMInfinite, n_local=window)}
