"""Windows of frames: how long one is, how many fit, which frames each holds.

Knows: frame counts and seconds. Does not know: what a frame is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from broadsheet.console import InputError

_CONTEXT_SECONDS = 30.0  # the authors round within a context of 30 s: 1500 · seconds / 30 at 50 frames a second


@dataclass(frozen=True)
class Windows:
    """Windows of `seconds` every `stride` seconds, in whole frames.

    Both are rounded half to even, as Python's `round` does: at 50 frames per second 0.333333 s are 17 frames, 0.25 s
    are 12 and 0.35 s are 18. A tail shorter than a window is dropped; fewer frames than one window are padded to it.

    Args:
        seconds: of a window (the paper: 0.333333).
        stride: seconds from one window's beginning to the next one's; the same by default.
        frame_rate: frames per second.

    Raises:
        InputError: a window or stride that is shorter than half a frame.

    Source: arXiv:2310.13289, Sec. 3.1; the rounding and the dropped tail are the authors' code's, where the paper's
    formula rounds up.
    """

    seconds: float = 0.333333
    stride: float | None = None
    frame_rate: float = 50.0

    def __post_init__(self) -> None:
        if min(self.window, self.step) < 1:
            raise InputError(
                f"got windows of {self.seconds} s every {self.stride or self.seconds} s; expected at least one frame, "
                f"{1 / self.frame_rate:g} s"
            )

    @property
    def window(self) -> int:
        """Frames in a window."""
        return self._frames(self.seconds)

    @property
    def step(self) -> int:
        """Frames from the beginning of one window to the next."""
        return self._frames(self.seconds if self.stride is None else self.stride)

    def count(self, frames: int) -> int:
        """Windows in `frames`: at least one."""
        # ⌊(T − K)/stride⌋ + 1; the paper's formula is ⌈T/L⌉
        return max(0, frames - self.window) // self.step + 1

    def cut(self, frames: Tensor) -> Tensor:
        """Cut a batch of frames.

        Args:
            frames: (batch, frames, width).

        Returns:
            (batch, windows, window, width), a view where nothing had to be padded.
        """
        if (short := self.window - frames.shape[1]) > 0:
            frames = pad(frames, (0, 0, 0, short))
        return frames.unfold(1, self.window, self.step).transpose(2, 3)

    def _frames(self, seconds: float) -> int:
        # K = round(1500 · seconds / 30) at 50 frames per second
        return round(_CONTEXT_SECONDS * self.frame_rate * seconds / _CONTEXT_SECONDS)
