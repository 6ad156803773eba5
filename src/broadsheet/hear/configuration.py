"""The config of a SALMONN: names and sizes of its parts.

Knows: the paper's values, encoders by name. Does not know: weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.connectors import CONNECTORS

FIELDS = (
    "llm",
    "encoders",
    "window_seconds",
    "stride_seconds",
    "num_queries",
    "connector",
    "qformer_hidden",
    "qformer_heads",
    "qformer_layers",
    "qformer_ffn",
    "qformer_dropout",
    "qformer_init",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_modules",
    "match_norm",
    "encoder_identities",
)


class SalmonnConfig(PreTrainedConfig):
    """Names and sizes of a SALMONN's parts; the sizes default to the paper's.

    Args:
        llm: the language model, as in `broadsheet.models.load`.
        encoders: names or settings of audio encoders, as in `broadsheet.hear.base.encoder`. One, two or more.
        window_seconds, stride_seconds: of the Q-Former's windows (0.333333 s, Table 1; no overlap).
        num_queries: N, audio tokens a window (1).
        connector: `qformer`, or `stack` for the plain stack-and-linear connector.
        qformer_hidden, qformer_heads, qformer_layers, qformer_ffn, qformer_dropout, qformer_init: of the Q-Former
            (768, 12, 2, 3072, 0.1, 0.02), see `WindowQFormer`.
        lora_rank, lora_alpha, lora_dropout, lora_modules: of the adapter (8, 32, 0.1, q and v). Its scaling is
            alpha / rank = 4. Rank 0: no adapter.
        match_norm: start with audio tokens of the mean norm of the language model's embeddings. Ours; without it a
            model of 576 dimensions gets audio tokens four times as long as its text tokens.
        encoder_identities: fingerprints of the encoders in training; empty before.

    Source: arXiv:2310.13289, Sec. 3.1, 4.1 and the authors' configuration.
    """

    model_type = "salmonn"

    def __init__(
        self,
        llm: str = "default",
        encoders: Sequence[str | Mapping[str, Any]] = (),
        window_seconds: float = 0.333333,
        stride_seconds: float | None = None,
        num_queries: int = 1,
        connector: str = "qformer",
        qformer_hidden: int = 768,
        qformer_heads: int = 12,
        qformer_layers: int = 2,
        qformer_ffn: int = 3072,
        qformer_dropout: float = 0.1,
        qformer_init: float = 0.02,
        lora_rank: int = 8,
        lora_alpha: int = 32,
        lora_dropout: float = 0.1,
        lora_modules: Sequence[str] = ("q_proj", "v_proj"),
        match_norm: bool = True,
        encoder_identities: Sequence[str] = (),
        **others: Any,
    ) -> None:
        if connector not in CONNECTORS:
            raise InputError(f"got connector {connector!r}; expected one of {', '.join(CONNECTORS)}")
        self.llm = llm
        self.encoders = [base.named(each) for each in encoders]
        self.window_seconds, self.stride_seconds, self.num_queries = window_seconds, stride_seconds, num_queries
        self.connector = connector
        self.qformer_hidden, self.qformer_heads = qformer_hidden, qformer_heads
        self.qformer_layers, self.qformer_ffn, self.qformer_dropout = qformer_layers, qformer_ffn, qformer_dropout
        self.qformer_init = qformer_init
        self.lora_rank, self.lora_alpha, self.lora_dropout = lora_rank, lora_alpha, lora_dropout
        self.lora_modules = list(lora_modules)
        self.match_norm = match_norm
        self.encoder_identities = list(encoder_identities)
        super().__init__(**others)

    def settings(self) -> dict[str, Any]:
        """All of its own fields, as JSON values."""
        return {name: getattr(self, name) for name in FIELDS}

    def kinds(self) -> str:
        """Kinds of its encoders, as text."""
        return ", ".join(str(each["kind"]) for each in self.encoders)
