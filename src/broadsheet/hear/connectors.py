"""The plain connector beside SALMONN's: the frames of a window stacked, and one linear layer.

Knows: frames, windows. Does not know: encoders, language models but for their width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from broadsheet.hear.windows import Windows

CONNECTORS = ("qformer", "stack")


class StackLinear(nn.Module):
    """The plain connector: the frames of a window concatenated, and one linear layer. Same windows, as many tokens.

    Args: as for `salmonn.WindowQFormer`.
    """

    def __init__(self, width: int, out_width: int, windows: Windows, *, queries: int = 1) -> None:
        super().__init__()
        self.windows = windows
        self.per_window = queries
        self.projection = nn.Linear(windows.window * width, queries * out_width)

    def forward(self, frames: Tensor) -> Tensor:
        """(clips, frames, width) → (clips, windows · N, out_width)."""
        cut = self.windows.cut(frames)
        clips, count = cut.shape[:2]
        return self.projection(cut.reshape(clips, count, -1)).reshape(clips, count * self.per_window, -1)

    def match_norm(self, norm: float) -> None:
        """Start with tokens of about this Euclidean norm; normalised frames have √(window · width)."""
        start_at_norm(self.projection, norm * math.sqrt(self.per_window), math.sqrt(self.projection.in_features))


def start_at_norm(linear: nn.Linear, norm: float, norm_in: float) -> None:
    """Initialise `linear` so that inputs of norm `norm_in` give outputs of about `norm`."""
    nn.init.normal_(linear.weight, std=norm / (norm_in * math.sqrt(linear.out_features)))
    nn.init.zeros_(linear.bias)
