"""Try FlexPrefill on prompts read in one piece; the stage's trial does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from broadsheet.attend.base import Attention
from broadsheet.attend.trials.attend import AttendTrial, Win, lengths_option

AUTHORS_ROUNDING = "FlexPrefill, the authors' rounding"
_SAYS = "it reads a long prompt faster, at about the same quality (abstract)"
_ALIKE = "its quality is about that of full attention (abstract)"


@dataclass
class FlexPrefillTrial(AttendTrial):
    """Long documents read in one piece under FlexPrefill, beside full attention and truncation (arXiv:2502.20766).

    A text is a run of documents in which passwords are hidden. It is read up to the positions that the model was
    trained on, beyond which full attention is no measure: all but the scored tokens in one piece, and these behind it,
    as decoding does. So loss is that of text which follows a prompt, and the choice of blocks, which looks at the
    prompt's end, does not meet the tokens that are scored. FlexPrefill takes part twice: with the paper's rounding of
    budgets, and with that of the authors' code, which computes fewer blocks. With --quick a head reads at least 256
    tokens, else the class's default. The claims, of both: prefill is at least a tenth faster than full attention's, and
    the loss is no worse by more than 0.02 nats. At most twenty texts are read.
    """

    paper: ClassVar[str] = "flexprefill"
    arm: ClassVar[str] = "FlexPrefill"
    wins: ClassVar[tuple[Win, ...]] = (
        # Its tables were not at hand: no figure.
        Win("prefill seconds", _SAYS, least=1.1),
        Win("prefill seconds", _SAYS, arm=AUTHORS_ROUNDING, least=1.1),
        Win("loss", _ALIKE, everywhere=True, margin=0.02),
        Win("loss", _ALIKE, arm=AUTHORS_ROUNDING, everywhere=True, margin=0.02),
    )
    scale: ClassVar[str] = (
        "Its models have 7 to 9 billion weights, and its prompts up to 128,000 tokens; it is timed on graphics cards."
    )
    one_piece: ClassVar[bool] = True
    pilot: ClassVar[int] = 8
    most: ClassVar[int] = 20

    lengths: tuple[int, ...] = lengths_option(8192)

    @classmethod
    def defaults(cls, kind: type[Attention], trial: AttendTrial) -> dict[str, Any]:
        return {"min_budget": 256} if trial.quick else {}

    def beside(self, method: Any) -> dict[str, Attention]:
        return {} if method.rounding == "code" else {AUTHORS_ROUNDING: replace(method, rounding="code")}
