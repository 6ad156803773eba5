"""TransNormerLLM (Qin et al., 2023, arXiv:2307.14995): a language model without softmax, as a transformers model.

Knows: configs, weights, what `generate` and `Trainer` ask of a model. Does not know: how decayed linear attention is
worked and what is kept of a text (`lightning`), tokenizers, training.

Importing this module makes `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the model type `transnormer`.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from broadsheet.attend.kernels.lightning import (
    Decay,
    DecayedState,
    Kernel,
    decayed_attention,
    log_decay,
    lrpe,
    lrpe_theta,
    srmsnorm,
)
from broadsheet.attend.memory import Bytes
from broadsheet.console import InputError


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
        decay: `"code"` or `"paper"`, see `lightning.log_decay`; the released weights were trained with the code's,
            which is the default. `"none"` takes the decay away.
        block_size: M, tokens worked at once in training and prefill. It changes speed only (the released code: 256;
            128 was the fastest of 32–256 on CPU).
        kernel: `"auto"`, `"torch"` or `"fla"`, see `lightning.decayed_attention`.
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


class GatedLinearAttention(nn.Module):
    """GLA: O = SRMSNorm(concat over heads of decayed linear attention) ⊙ U, then an output projection.

    Queries and keys go through swish, values and the gate U are linear; nothing is scaled by 1/√d. The norm is over all
    heads together: it is what bounds the un-normalised sums, so it must not be left out.
    """

    def __init__(self, config: TransNormerConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        assert config.attention_size is not None
        heads, width = config.num_attention_heads, config.attention_size
        self.in_proj = nn.Linear(config.hidden_size, 4 * width, bias=config.bias)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=config.bias)
        if layer in config.lrpe_layers:
            self.theta = nn.Parameter(torch.empty(heads, width // heads))

    def forward(
        self,
        hidden_states: Tensor,
        log_decay: Tensor,
        positions: Tensor,
        real: Tensor | None,
        cache: TransNormerCache | None = None,
    ) -> Tensor:
        q, k, v, gate = self.in_proj(hidden_states).chunk(4, dim=-1)
        heads = (self.config.num_attention_heads, -1)
        q, k, v = (x.unflatten(-1, heads).transpose(1, 2) for x in (silu(q), silu(k), v))
        if self.layer in self.config.lrpe_layers:
            q, k = lrpe(q, self.theta, positions), lrpe(k, self.theta, positions)
        memory = cache.layers[self.layer] if cache is not None else None
        mixed, state = decayed_attention(
            q,
            k,
            v,
            log_decay[self.layer],
            state=memory.state if memory else None,
            real=real,
            block_size=self.config.block_size,
            kernel=self.config.kernel,
        )
        if memory:
            memory.advance(state, q.shape[2], real)
        # The sums can be beyond float16's range: they are narrowed after the norm.
        normed = srmsnorm(mixed.transpose(1, 2).flatten(2)).to(gate.dtype)
        return self.out_proj(normed * gate)


class SGLU(nn.Module):
    """SGLU(x) = ((x W_v) ⊙ (x W_u)) W_o: a gated MLP without activation."""

    def __init__(self, config: TransNormerConfig) -> None:
        super().__init__()
        self.v_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.u_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.o_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.o_proj(self.v_proj(hidden_states) * self.u_proj(hidden_states))


class TransNormerBlock(GradientCheckpointingLayer):
    """X ← X + GLA(SRMSNorm(X)); X ← X + SGLU(SRMSNorm(X))."""

    def __init__(self, config: TransNormerConfig, layer: int) -> None:
        super().__init__()
        self.attention = GatedLinearAttention(config, layer)
        self.mlp = SGLU(config)

    def forward(
        self,
        hidden_states: Tensor,
        log_decay: Tensor,
        positions: Tensor,
        real: Tensor | None,
        cache: TransNormerCache | None = None,
    ) -> Tensor:
        mixed = self.attention(srmsnorm(hidden_states), log_decay, positions, real, cache)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(srmsnorm(hidden_states))


class TransNormerPreTrainedModel(PreTrainedModel):
    """What the models below share: config, initial weights, what transformers may do with them."""

    config_class = TransNormerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransNormerBlock"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["theta"]  # noqa: RUF012  (an angle is θ times a position in the thousands)
    _can_record_outputs = {"hidden_states": TransNormerBlock}  # noqa: RUF012
    _is_stateful = True  # assisted generation, which has to take tokens back, is refused

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedLinearAttention) and module.layer in self.config.lrpe_layers:
            initialization.copy_(module.theta, lrpe_theta(*module.theta.shape))


class TransNormerModel(TransNormerPreTrainedModel):
    """Embeddings, blocks and the final norm; see `TransNormerForCausalLM`."""

    def __init__(self, config: TransNormerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(TransNormerBlock(config, layer) for layer in range(config.num_hidden_layers))
        # Plain numbers, not a buffer: in bfloat16 a decay of 1 − 10⁻⁵ would be 1.
        layers = range(config.num_hidden_layers)
        self.log_decay = [
            log_decay(config.num_attention_heads, layer, config.num_hidden_layers, config.decay) for layer in layers
        ]
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: TransNormerCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (batch, length, D) of a text, or of the tokens after those in `cache`.

        Args:
            attention_mask: (batch, length), or as long as the text with the tokens already read; 1 for tokens, 0 for
                padding, wherever it lies. A pad is as if it were not there.
            kwargs: `position_ids` are checked, not used: each row's position is kept in its cache.

        Raises:
            InputError: no tokens, a mask or a cache that does not fit, or several texts packed into a row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("got both or neither of input_ids and inputs_embeds; expected one of them")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = hidden_states.shape[:2]
        if not length:
            raise InputError("got a text of no tokens; expected at least one, such as a token that begins a text")
        if self.config.scale_embedding:
            hidden_states = hidden_states * sqrt(self.config.hidden_size)

        if use_cache and cache is None and not self.training:
            cache = TransNormerCache(self.config)
        past = _position(cache, self.config)
        real = _real_tokens(attention_mask, batch, length)
        _refuse_packing(kwargs.get("position_ids"), real)
        if real is None:
            positions = torch.arange(length, device=hidden_states.device)[None]
        else:
            positions = real.long().cumsum(-1) - 1
        if past is not None:
            positions = positions + past[:, None]

        decays = torch.tensor(self.log_decay, device=hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, decays, positions, real, cache=cache)
        return BaseModelOutputWithPast(last_hidden_state=srmsnorm(hidden_states), cache=cache)


class TransNormerForCausalLM(TransNormerPreTrainedModel, GenerationMixin):
    """A language model that decodes in constant time and memory: linear attention with decay, a norm and a gate.

    Use when a model is to be trained from scratch, and long outputs or many parallel streams make the growing key-value
    cache of a Transformer the limit. It cannot be put into a checkpoint trained with softmax: without retraining its
    output is nonsense. Prefer a Transformer, or `InfLLM` over one, when texts have to be searched: a state of fixed
    size keeps no token apart, and such models retrieve poorly however long they may read. Below a few thousand tokens
    fused softmax attention is also at least as fast in prefill.

    A `PreTrainedModel` like any other: `from_pretrained`, `save_pretrained` (safetensors), `Trainer`, `generate` with
    greedy, sampling and beams, `prefill_chunk_size`, gradient checkpointing. What needs to take tokens back (assisted
    generation, prompt lookup, `crop`) is refused. Padding may lie anywhere: a pad writes nothing, decays nothing and
    takes no position, so a padded row equals the row alone, and reading on after right padding is right as well. (The
    authors' code zeroes the values of pads only; there the state ages over right padding.)

    Inputs: token ids (batch, length), with `labels` for the loss; texts packed into one row are refused.
    Relation: RetNet has the same recurrence with a norm per head and softmax-free rotary queries; Lightning Attention-2
        (arXiv:2401.04658) is the block form used here, version 1 of the paper's kernel is quadratic. TNL
        (arXiv:2405.17381), the module in the authors' kernel repository, differs: it is not this paper's attention.

    Args:
        config: the shape; see `TransNormerConfig` for the paper's values.

    Example:
        >>> import torch
        >>> config = TransNormerConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        >>> model = TransNormerForCausalLM(config).eval()
        >>> model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape
        torch.Size([1, 7])
        >>> out = model(torch.randint(300, (1, 50)), use_cache=True)
        >>> out.cache.bytes()  # the same after 5 tokens, and after 50,000
        Bytes(on_device=1536, off_device=0)

    Source: arXiv:2307.14995 (GLA, SGLU, SRMSNorm, LRPE-d, Eq. 2 and the robust inference recurrence); authors' code
    OpenNLPLab/TransnormerLLM and its released modelling files, whose decays (`decay="code"`) are not Eq. 2.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TransNormerConfig) -> None:
        super().__init__(config)
        self.model = TransNormerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: TransNormerCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, length, V), and the loss if there are `labels` (−100 where none is counted).

        Args:
            attention_mask, cache: as in `TransNormerModel.forward`.
            logits_to_keep: compute the logits of this many last tokens only; 0 for all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` a state to start from, in place of a cache for keys and values."""
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            raise InputError(f"got cache_implementation {wanted!r}; expected none: a TransNormer's state does not grow")
        if generation_config.use_cache is not False and model_kwargs.get("cache") is None:
            model_kwargs["cache"] = TransNormerCache(self.config)


def _position(cache: Cache | None, config: TransNormerConfig) -> Tensor | None:
    """Where each row of a cache stands, (batch,); None at the start of the texts."""
    if cache is None:
        return None
    layers = cache.layers
    if len(layers) != config.num_hidden_layers or not all(isinstance(layer, DecayedState) for layer in layers):
        raise InputError(
            f"got a {type(cache).__name__} of {len(layers)} layers; expected TransNormerCache(model.config), "
            f"of {config.num_hidden_layers}"
        )
    return layers[0].position


def _real_tokens(attention_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Which of the new tokens are no padding, (batch, length) bool; None where all are."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or len(attention_mask) != batch or attention_mask.shape[1] < length:
        raise InputError(
            f"got an attention mask of shape {tuple(attention_mask.shape)} for {batch} × {length} tokens; expected "
            "1 for tokens and 0 for padding (batch, length): linear attention is causal and takes no other mask"
        )
    real = attention_mask[:, -length:].bool()
    return None if real.all() else real


def _refuse_packing(position_ids: Tensor | None, real: Tensor | None) -> None:
    """Positions that start anew within a row mean several texts in it, which the state would mix."""
    if position_ids is None:
        return
    goes_on = position_ids.diff(dim=-1) == 1
    if real is not None:
        goes_on |= ~(real[:, 1:] & real[:, :-1])
    if not goes_on.all():
        raise InputError(
            "got position_ids that do not count up by one, as for texts packed into a row; expected one text a row, "
            "padded to equal lengths"
        )


AutoConfig.register("transnormer", TransNormerConfig)
AutoModel.register(TransNormerConfig, TransNormerModel)
AutoModelForCausalLM.register(TransNormerConfig, TransNormerForCausalLM)
