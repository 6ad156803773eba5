"""TransNormerLLM (Qin et al., 2023, arXiv:2307.14995): a language model without softmax, as a transformers model.

Knows: the equations, configs, weights, what `Trainer` asks of a model. Does not know: what `generate` asks of a cache
(`kernels.linear`), tokenizers, training.

- Block: X ← X + GLA(SRMSNorm(X)); X ← X + SGLU(SRMSNorm(X)).
- GLA: o_t = Σ_{s≤t} (q_t·k_s) λ^{t−s} v_s, O = SRMSNorm(concat_h o) ⊙ U; LRPE-d on q and k in the first layer.
- Decay: Eq. 2, λ(h, l) = exp(−(8h/H)(1 − l/L)); the released code has another.
- Robust inference: S_t = λ S_{t−1} + k_t v_tᵀ, o_t = q_t S_t. The factored form (q λ^t)(k λ^{−t}) overflows after some
  hundred tokens, so no form here takes a negative power of λ.
- Lightning Attention: blocks of M tokens, in the form that is linear in the length (version 2, arXiv:2401.04658).

Sums are formed and returned in float32 (float64 for float64 inputs) whatever the inputs and autocast are: they are not
normalised, and a bfloat16 state drifts. A token that is not real (padding) is as if it were not there: it writes
nothing, nothing decays over it, and it takes no position. The authors' code zeroes its value only, so that there a pad
after the text still ages the state.

Importing this module makes `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the model type `transnormer`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, initialization
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from broadsheet.attend.kernels.linear import Kernel, fla_form, token_positions, use_fla
from broadsheet.attend.transnormer_config import Decay, TransNormerCache, TransNormerConfig
from broadsheet.console import InputError
from broadsheet.models import card
from broadsheet.models.pushing import push_saved


def head_slopes(n_heads: int) -> list[float]:
    """ALiBi's slopes: 2^(−8(h+1)/H); for H not a power of two, those of the power below it, then every other one of the
    power above it."""
    power = 2 ** math.floor(math.log2(n_heads))
    # Released code: slope_h = 2^(−8(h+1)/H)
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes + ([] if power == n_heads else head_slopes(2 * power)[::2][: n_heads - power])


def log_decay(n_heads: int, layer: int, n_layers: int, how: Decay = "code") -> list[float]:
    """ln λ of each head of one layer, each at most 0.

    Args:
        layer: counted from 0.
        how: `"code"` is what the released weights were trained with, −slope_h (1 − l/(L−1) + 1e-5): the first head
            forgets fastest, the last layer hardly at all. `"paper"` is the printed Eq. 2, −(8h/H)(1 − l/L) with l from
            1: the first head and the last layer never forget. `"none"` is plain linear attention. They are different
            functions: weights trained with one are wrong with another.

    Raises:
        InputError: an unknown `how`, or no such layer.
    """
    if not 0 <= layer < n_layers:
        raise InputError(f"got layer {layer} of {n_layers}; expected 0 to {n_layers - 1}")
    match how:
        case "code":
            # Released code: ln λ = −slope_h (1 − l/(L−1) + 1e-5), l = 0 … L−1. A single layer has no l/(L−1) (the
            # authors' code divides by zero); it is taken as a first layer.
            return [-slope * (1 - layer / max(n_layers - 1, 1) + 1e-5) for slope in head_slopes(n_heads)]
        case "paper":  # Eq. 2: ln λ = −(8h/H)(1 − l/L), h = 0 … H−1, l = 1 … L
            return [-(8 * h / n_heads) * (1 - (layer + 1) / n_layers) for h in range(n_heads)]
        case "none":
            return [0.0] * n_heads
    raise InputError(f"got decay {how!r}; expected one of {', '.join(get_args(Decay))}")


def lrpe_theta(n_heads: int, head_dim: int) -> Tensor:
    """The angle between neighbours at the start of training: 10000^(−2r/(Hd)), r over heads, then dims; (H, d)."""
    ranks = torch.arange(n_heads * head_dim, dtype=torch.float64).reshape(n_heads, head_dim)
    # LRPE-d: θ = 10000^(−2r/(Hd)), r = 0 … Hd−1
    return 10000 ** (-2 * ranks / (n_heads * head_dim))


def lrpe(x: Tensor, theta: Tensor, positions: Tensor) -> Tensor:
    """LRPE-d: x at position p becomes [x cos θp ; x sin θp], so that q·k turns into Σ_i q_i k_i cos θ_i(t−s).

    Args:
        x: (batch, heads, length, head_dim).
        theta: (heads, head_dim).
        positions: (length,) or (batch, length).

    Returns:
        (batch, heads, length, 2 · head_dim).
    """
    # In float32 the angle at position 10^6 is off by 0.03 rad; MPS has no float64.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    angle = positions.to(exact).reshape(-1, 1, x.shape[-2], 1) * theta.to(exact)[:, None]  # (batch, heads, length, d)
    # LRPE-d: x ↦ [x cos θp ; x sin θp]
    return torch.cat([x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)], dim=-1)


def srmsnorm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """SRMSNorm: x over the root of its mean square, with no learned scale; computed in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # SRMSNorm: x / (‖x‖₂ / √D)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def decayed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    real: Tensor | None = None,
    block_size: int = 128,
    kernel: Kernel = "auto",
) -> tuple[Tensor, Tensor]:
    """o_t = Σ_{s≤t} (q_t·k_s) λ^{t−s} v_s, for the whole of a text, a chunk of it, or one more token.

    Args:
        q, k: (batch, heads, length, d), already activated and encoded; they are not scaled.
        v: (batch, heads, length, e).
        log_decay: (heads,), ln λ, at most 0.
        state: what earlier chunks returned, (batch, heads, d, e); None at the start of a text.
        real: (batch, length), 1 for tokens and 0 for padding, at any place; None without padding.
        block_size: tokens in a block of the block form. Any size gives the same result.
        kernel: `"torch"` runs everywhere; `"fla"` is flash-linear-attention's kernel, on CUDA; `"auto"` is fla where
            both are there.

    Returns:
        (batch, heads, length, e), and the state after the last token.

    Raises:
        InputError: fla was asked for and cannot be used, an unknown kernel, or a block size below 1.
    """
    if block_size < 1:
        raise InputError(f"got block_size {block_size}; expected at least 1")
    if use_fla(kernel, q.device):
        return fla_form(q, k, v, log_decay, state=state, real=real)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, rate = q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide)
        if state is None:
            state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
        if q.shape[-2] == 1 and real is None:
            return recurrent_step(q, k, v, rate, state)
        return block_form(q, k, v, rate, state, real, block_size)


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S ← λS + k vᵀ, o = qS. Time and memory do not depend on how many went before."""
    state = state * log_decay.exp()[:, None, None] + k.mT * v  # S_t = λ S_{t−1} + k_t v_tᵀ  (batch, heads, d, e)
    return q @ state, state  # o_t = q_t S_t  (batch, heads, 1, e)


def block_form(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, real: Tensor | None, block_size: int
) -> tuple[Tensor, Tensor]:
    """Lightning Attention-2 (arXiv:2401.04658): quadratic within a block of M tokens, a state between blocks.

    With a block's tokens numbered r = 1 … m: intra = (Q Kᵀ ⊙ D) V, inter_r = λ^r q_r S, O = intra + inter, and then
    S ← λ^m S + Σ_r λ^{m−r} k_r v_rᵀ. Work grows linearly in the length. One loop over the blocks, so that the scores of
    one block are all that is held at a time and stay in the processor's cache: twice as fast as all blocks at once, and
    about as fast with the backward pass (`benchmarks/transnormer.py`).
    """
    steps = torch.arange(1, min(block_size, q.shape[-2]) + 1, device=q.device)[None]
    full = _powers(log_decay, steps)
    # Split, not slices: the gradient of a slice is as long as the whole, which made training quadratic.
    blocks = zip(*(x.split(block_size, dim=-2) for x in (q, k, v)), strict=True)
    marks = real.split(block_size, dim=-1) if real is not None else None
    outputs = []
    for i, (queries, keys, values) in enumerate(blocks):
        powers = full
        if marks is not None:
            values = values * marks[i][:, None, :, None]
            powers = _powers(log_decay, marks[i].long().cumsum(-1))
        elif queries.shape[-2] < steps.shape[-1]:
            powers = _powers(log_decay, steps[:, : queries.shape[-2]])
        within = ((queries @ keys.mT) * powers.within) @ values  # (Q Kᵀ ⊙ D) V  (batch, heads, m, e)
        before = (queries * powers.since_start) @ state  # λ^r q_r S
        outputs.append(within + before)
        state = state * powers.whole + (keys * powers.to_end).mT @ values  # S ← λ^m S + Σ_r λ^{m−r} k_r v_rᵀ
    return torch.cat(outputs, dim=-2), state


class _Powers(NamedTuple):
    """Powers of λ in a block, by (batch or 1, heads, …)."""

    within: Tensor  # (…, m, m): D_rs = λ^(r−s) where s ≤ r, else 0
    since_start: Tensor  # (…, m, 1): λ^r
    to_end: Tensor  # (…, m, 1): λ^(m−r)
    whole: Tensor  # (…, 1, 1): λ^m


def _powers(log_decay: Tensor, count: Tensor) -> _Powers:
    """The powers of a block whose r-th token is the `count[:, r]`-th real one, (batch or 1, m)."""
    rate, count = log_decay[:, None, None], count.to(log_decay.dtype)[:, None, :, None]
    last = count[:, :, -1:]
    apart = (count - count.mT).clamp(min=0)
    return _Powers(
        (rate * apart).exp().tril(), (rate * count).exp(), (rate * (last - count)).exp(), (rate * last).exp()
    )


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
        # GLA: [Q, K, V, U] = X W, each (batch, length, attention_size)
        q, k, v, gate = self.in_proj(hidden_states).chunk(4, dim=-1)
        heads = (self.config.num_attention_heads, -1)
        # Q = swish(Q), K = swish(K); (batch, heads, length, head_dim)
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
        # O = SRMSNorm(concat_h o) ⊙ U. The sums can be beyond float16's range: they are narrowed after the norm.
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
        return self.o_proj(self.v_proj(hidden_states) * self.u_proj(hidden_states))  # ((x W_v) ⊙ (x W_u)) W_o


class TransNormerBlock(GradientCheckpointingLayer):
    """A layer: X ← X + GLA(SRMSNorm(X)); X ← X + SGLU(SRMSNorm(X))."""

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

    def save_pretrained(self, save_directory: Any, *args: Any, **settings: Any) -> None:
        """As any `PreTrainedModel`, with a model card; one that somebody wrote is kept."""
        super().save_pretrained(save_directory, *args, **settings)
        if settings.get("is_main_process", True):
            card.write(Path(save_directory), paper=TransNormerForCausalLM.paper)

    def push_to_hub(self, repository: str, *, private: bool = True) -> str:
        """Save it to a repository of the hub, with its card; see `models.pushing.push`."""
        return push_saved(self.save_pretrained, repository, private=private)

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
                padding, at any place. A padding token is as if it were not there.
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
            hidden_states = hidden_states * math.sqrt(self.config.hidden_size)

        if use_cache and cache is None and not self.training:
            cache = TransNormerCache(self.config)
        positions, real = token_positions(
            batch, length, attention_mask, kwargs.get("position_ids"), cache, len(self.layers)
        )
        positions = positions.to(hidden_states.device)
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
    generation, prompt lookup, `crop`) is refused. Padding may be anywhere: a padded row equals the row alone.

    Inputs: token ids (batch, length), with `labels` for the loss; texts packed into one row are refused.
    Relation: RetNet has the same recurrence with a norm per head and softmax-free rotary queries; Lightning Attention-2
        (arXiv:2401.04658) is the block form used here, version 1 of the paper's kernel is quadratic. TNL
        (arXiv:2405.17381), the module in the authors' kernel repository, differs: it is not this paper's attention.

    Args:
        config: the shape; see `TransNormerConfig` for the paper's values.

    Example:
        >>> import torch
        >>> from broadsheet.attend import TransNormerConfig, TransNormerForCausalLM
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

    paper: ClassVar[str] = "transnormer"
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


AutoConfig.register("transnormer", TransNormerConfig)
AutoModel.register(TransNormerConfig, TransNormerModel)
AutoModelForCausalLM.register(TransNormerConfig, TransNormerForCausalLM)
