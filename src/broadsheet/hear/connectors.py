"""From frames to tokens of a language model: the window-level Q-Former, and the plain connector beside it.

Knows: frames, windows, Blip-2's Q-Former. Does not know: encoders, language models but for their width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from broadsheet.console import InputError
from broadsheet.hear.windows import Windows

CONNECTORS = ("qformer", "stack")


class WindowQFormer(nn.Module):
    """A Q-Former that reads every window of frames on its own, with the same few trainable queries.

    All windows of a batch are one batch of Blip-2's Q-Former, cross-attention in every layer, no text branch, weights
    random at first. Its queries come out as tokens in time order, mapped to the language model's width.

    Args:
        width: of a frame.
        out_width: of a token.
        windows: how frames are cut.
        queries: N, tokens a window (the paper: 1).
        hidden, heads, layers, ffn: of the Q-Former (the paper, BERT-base: 768, 12, 2, 3072).
        dropout: of the Q-Former (0.1).
        init: standard deviation of its weights at first (BERT's 0.02). A narrow Q-Former hears little at that: what a
            window adds to the query shrinks with the width, so that its tokens hardly differ between clips; about
            1 / √hidden keeps them apart.

    Shapes:
        (clips, frames, width) → (clips, windows · N, out_width).

    Source: arXiv:2310.13289, Sec. 3.1, Eq. 2–3.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        windows: Windows,
        *,
        queries: int = 1,
        hidden: int = 768,
        heads: int = 12,
        layers: int = 2,
        ffn: int = 3072,
        dropout: float = 0.1,
        init: float = 0.02,
    ) -> None:
        super().__init__()
        if min(queries, hidden, heads, layers, ffn) < 1 or hidden % heads:
            raise InputError(f"got {queries} queries, hidden {hidden}, heads {heads}, layers {layers}, ffn {ffn}")
        self.windows = windows
        settings: dict[str, Any] = {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "intermediate_size": ffn,
            "encoder_hidden_size": width,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "initializer_range": init,
            "attn_implementation": "sdpa",
        }
        self.query = nn.Parameter(torch.randn(1, queries, hidden) * 0.02)
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**settings))
        self.projection = nn.Linear(hidden, out_width)

    @property
    def per_window(self) -> int:
        """Tokens a window."""
        return int(self.query.shape[1])

    def forward(self, frames: Tensor) -> Tensor:
        """Tokens of a batch of clips, see the class."""
        cut = self.windows.cut(frames)
        clips, count, window, width = cut.shape
        read = self.qformer(
            query_embeds=self.query.expand(clips * count, -1, -1),
            encoder_hidden_states=cut.reshape(clips * count, window, width),
        ).last_hidden_state
        return self.projection(read).reshape(clips, count * self.per_window, -1)

    def match_norm(self, norm: float) -> None:
        """Begin with tokens of about this Euclidean norm; the Q-Former's last LayerNorm gives √hidden."""
        _begin(self.projection, norm, math.sqrt(self.projection.in_features))


class StackLinear(nn.Module):
    """The plain connector: the frames of a window behind one another, and one linear layer. Same tokens, same windows.

    Args: as of `WindowQFormer`.
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
        """Begin with tokens of about this Euclidean norm; normalised frames give √(window · width)."""
        _begin(self.projection, norm * math.sqrt(self.per_window), math.sqrt(self.projection.in_features))


def _begin(linear: nn.Linear, norm: float, norm_in: float) -> None:
    nn.init.normal_(linear.weight, std=norm / (norm_in * math.sqrt(linear.out_features)))
    nn.init.zeros_(linear.bias)
