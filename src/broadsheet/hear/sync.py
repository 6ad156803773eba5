"""Streams of several encoders as one: to the same rate, each normalised, the shorter filled up, side by side.

Knows: frames, rates, lengths. Does not know: encoders, windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from broadsheet.console import InputError


class Synchronised(nn.Module):
    """Joins the frames of several encoders: Z = [LN₁(S); LN₂(A); …] on the feature axis.

    Every stream goes to the common rate by repeating its frames, has a LayerNorm of its own, and is zero from its end
    on: the filling comes after the norm, so it is exactly zero whatever the norm has learnt. One stream or many are the
    same path.

    Args:
        widths: of each encoder's frames.
        rates: frames per second of each; the common one has to be a multiple of it.
        rate: frames per second of the result.
        eps: of the norms.

    Raises:
        InputError: a rate that does not divide the common one.

    Source: arXiv:2310.13289, Sec. 3.1, Eq. 1.
    """

    def __init__(self, widths: Sequence[int], rates: Sequence[float], rate: float = 50.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.repeats = [round(rate / each) for each in rates]
        if any(repeat < 1 or repeat * each != rate for repeat, each in zip(self.repeats, rates, strict=True)):
            raise InputError(f"got encoders of {list(rates)} frames per second; expected divisors of {rate:g}")
        self.widths = list(widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for width in widths)

    def frames(self, lengths: Sequence[int]) -> int:
        """Frames of one clip after joining, from the frames that each encoder gave."""
        return max(repeat * length for repeat, length in zip(self.repeats, lengths, strict=True))

    def forward(self, streams: Sequence[Tensor], lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Join a batch of clips.

        Args:
            streams: per encoder (clips, its frames, its width); what lies beyond a clip's length is ignored.
            lengths: (clips, encoders) frames of each stream that count.

        Returns:
            Z, (clips, frames, sum of widths), and how many of its frames each clip has, (clips,).
        """
        repeats = torch.tensor(self.repeats, device=lengths.device)
        ends = lengths * repeats
        total = ends.amax(1)
        frames = int(total.max())
        joined = []
        for norm, stream, repeat, end in zip(self.norms, streams, self.repeats, ends.T, strict=True):
            normed = norm(stream.to(next(norm.parameters()).dtype)).repeat_interleave(repeat, dim=1)[:, :frames]
            normed = nn.functional.pad(normed, (0, 0, 0, frames - normed.shape[1]))
            beyond = torch.arange(frames, device=lengths.device) >= end[:, None]
            joined.append(normed.masked_fill(beyond[..., None], 0.0))
        return torch.cat(joined, dim=-1), total
