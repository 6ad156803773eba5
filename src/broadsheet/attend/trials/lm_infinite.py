"""Try LM-Infinite, and without each of its parts; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from broadsheet.attend.base import Attention
from broadsheet.attend.layout import ModelLayout
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.trials.attend import AttendTrial, Win, lengths_option

NO_FIRST_TOKENS = "LM-Infinite without first tokens"
NO_CEILING = "LM-Infinite without the ceiling"


@dataclass
class LMInfiniteTrial(AttendTrial):
    """Long documents under LM-Infinite, beside full attention, truncation, and LM-Infinite without each of its two
    parts (arXiv:2308.16137, Sec. 4).

    A text is a run of documents in which passwords are hidden. It is read once, in chunks, up to the positions that the
    model was trained on and to twice as many. The claims, all beyond those positions: the loss is lower than full
    attention's; lower than without the first tokens; lower than without the ceiling, that is with the first tokens at
    their true distance. Whether it does better than truncation is told beside. Six texts take about half an hour on two
    idle cores; at most eight are read.
    """

    paper: ClassVar[str] = "lm_infinite"
    arm: ClassVar[str] = "LM-Infinite"
    wins: ClassVar[tuple[Win, ...]] = (
        # Sec. 4, perplexity on ArXiv at 8K, twice what Llama-2 was trained on: 8.5e3 and 3.3: ln 8.5e3 − ln 3.3 nats.
        Win(
            "loss beyond", "beyond the trained length the loss stays low where full attention's explodes (Sec. 4)", 7.85
        ),
        # Ablation of n_start at 16k tokens of ArXiv: 6.43 nats with none, 1.02 with ten.
        Win("loss beyond", "a window alone, without first tokens, breaks (ablation of n_start)", 5.41, NO_FIRST_TOKENS),
        # The ablation of the parts is a figure; no number is given.
        Win("loss beyond", "the mask alone, without the ceiling, breaks too (ablation of the parts)", None, NO_CEILING),
    )
    scale: ClassVar[str] = "Its models have 6 and 7 billion weights, and read up to 32,000 tokens."
    most: ClassVar[int] = 8

    lengths: tuple[int, ...] = lengths_option(8192, 16384)

    def beside(self, method: Any) -> dict[str, Attention]:
        """The same window alone; the Λ mask with all distances as they are."""
        given = {each.name: getattr(method, each.name) for each in fields(method)}
        far = 2 * self.lengths[-1]  # farther than anything is read
        return {
            NO_FIRST_TOKENS: replace(method, n_global=0),
            NO_CEILING: WithoutCeiling(**given | {"max_distance": far}),
        }


@dataclass
class WithoutCeiling(LMInfinite):
    """The Λ mask alone: first tokens at their true distances, also beyond those that the model was trained on."""

    def check(self, layout: ModelLayout) -> None:
        """That distances grow beyond what the model was trained on is what is tried here."""
