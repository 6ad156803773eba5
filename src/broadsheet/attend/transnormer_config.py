"""The shape of a TransNormer (arXiv:2307.14995), and the cache that holds what it remembers.

Knows: sizes and choices, what transformers asks of a config. Does not know: the equations (`transnormer`).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from broadsheet.attend.kernels.linear import DecayedState, Kernel
from broadsheet.attend.memory import Bytes
from broadsheet.console import InputError

Decay = Literal["code", "paper", "none"]


class TransNormerConfig(PreTrainedConfig):
    """The shape of a TransNormer.

    The paper gives 30 layers and 32 heads for its 7B model; widths, the GLU's width, the vocabulary and the scale of
    the initial weights of its 385M, 1B and 7B models were not found, so those defaults are ours.

    Args:
        vocab_size: V.
        hidden_size: D, the width of the residual stream.
        attention_size: the width of queries, keys, values and gate, all heads together; by default `hidden_size`.
        intermediate_size: the width of the gated MLP.
        num_hidden_layers, num_attention_heads: L and H.
        lrpe_layers: layers that encode positions by LRPE (the first one only: "mix", the paper's choice; all layers
            gave a perplexity 1 % lower at 15–20 % more time). The state of such a layer is twice as large.
        decay: `"code"` or `"paper"`, see `transnormer.log_decay`; the released weights were trained with the code's,
            which is the default. `"none"` takes the decay away.
        block_size: M, tokens computed at once in training and prefill. It changes speed only (the released code: 256;
            128 was the fastest of 32–256 on CPU).
        kernel: `"auto"`, `"torch"` or `"fla"`, see `transnormer.decayed_attention`.
        scale_embedding: multiply embeddings by √D (released code: on).
        bias: in the linear layers (released code: off).
        initializer_range: standard deviation of the initial weights.
        use_cache: whether a forward pass outside training returns its state.
        tie_word_embeddings: use the embeddings as the head (off in the paper).
    """

    model_type = "transnormer"
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012

    vocab_size: int = 32000
    hidden_size: int = 1024
    attention_size: int | None = None
    intermediate_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    lrpe_layers: tuple[int, ...] | list[int] = (0,)
    decay: Decay = "code"
    block_size: int = 128
    kernel: Kernel = "auto"
    scale_embedding: bool = True
    bias: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_size = self.attention_size or self.hidden_size
        self.lrpe_layers = sorted(self.lrpe_layers)
        if self.attention_size % self.num_attention_heads:
            raise InputError(
                f"got an attention size of {self.attention_size} for {self.num_attention_heads} heads; "
                "expected a multiple"
            )
        if not set(self.lrpe_layers) <= set(range(self.num_hidden_layers)):
            raise InputError(
                f"got lrpe_layers {self.lrpe_layers}; expected numbers from 0 to {self.num_hidden_layers - 1}"
            )
        for name, known in (("decay", get_args(Decay)), ("kernel", get_args(Kernel))):
            if getattr(self, name) not in known:
                raise InputError(f"got {name} {getattr(self, name)!r}; expected one of {', '.join(known)}")
        super().__post_init__(**kwargs)


class TransNormerCache(Cache):
    """The states of all layers.

    Example:
        >>> cache = TransNormerCache(TransNormerConfig(num_hidden_layers=2))
        >>> cache.get_seq_length(), cache.bytes().on_device
        (0, 0)
    """

    def __init__(self, config: TransNormerConfig) -> None:
        super().__init__(layers=[DecayedState() for _ in range(config.num_hidden_layers)])

    def bytes(self) -> Bytes:
        """Bytes held."""
        return Bytes(sum(layer.bytes().on_device for layer in self.layers), 0)
