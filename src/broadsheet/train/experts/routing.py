"""Routers by name, how even their load is, and the losses that keep it even: what works on router logits.

Knows: (tokens, experts) logits; of the soft mixture, tokens and slots. Does not know: models, layers, optimizers.
Softmax is computed in float32 at least.

Shapes: T tokens, E experts, k of them for a token; `asked` is a (T,) mask, False for padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from broadsheet.console import InputError

SPEED = 0.001  # u, by which a selection bias moves in a step (DeepSeek-V3)


@dataclass(frozen=True)
class Routed:
    """Where tokens go.

    Attributes:
        gates: (T, k) weights of the experts' outputs; with renormalisation they sum to 1.
        indices: (T, k) experts, the best first. Where a token has fewer than k, the gates of the others are 0.
        probs: (T, E) shares of each token over all experts, for the balance losses.
        logits: (T, E).
    """

    gates: Tensor
    indices: Tensor
    probs: Tensor
    logits: Tensor


def mixtral(logits: Tensor, k: int, **_: Any) -> Routed:
    """p = softmax(z), the k largest, renormalised: softmax over the k selected logits. For k = 1 a gate is always 1,
    and the router learns nothing from the loss of tokens."""
    probs = _wide(logits).softmax(-1)
    top, indices = probs.topk(k, -1)
    return Routed(top / top.sum(-1, keepdim=True), indices, probs, logits)


def switch(logits: Tensor, k: int, **_: Any) -> Routed:
    """p = softmax(z), the k largest as they are, as Switch (k = 1), GShard and DeepSeek-V2 do."""
    probs = _wide(logits).softmax(-1)
    top, indices = probs.topk(k, -1)
    return Routed(top, indices, probs, logits)


def noisy(logits: Tensor, k: int, *, noise: Tensor | None = None, eps: Tensor | None = None, **_: Any) -> Routed:
    """Noisy top-k (Shazeer et al., 2017): H = z + ε softplus(z_noise), and softmax over the k largest of H.

    Args:
        noise: (T, E) z_noise = x W_noise; None, as in an evaluation: no noise.
        eps: (T, E) of a standard normal; drawn from the global generator, as dropout is, where there is none.
    """
    noised = _wide(logits)
    if noise is not None:
        eps = torch.randn_like(noised) if eps is None else eps
        noised = noised + eps * softplus(_wide(noise))
    top, indices = noised.topk(k, -1)
    return Routed(top.softmax(-1), indices, noised.softmax(-1), logits)


def sigmoid(logits: Tensor, k: int, *, bias: Tensor | None = None, **_: Any) -> Routed:
    """Sigmoid with a bias (DeepSeek-V3): s = sigmoid(z), the k largest of s + b, gates s renormalised among them.

    Args:
        bias: (E,) b, which selects and does not weigh; `moved` says how it follows the load.
    """
    scores = _wide(logits).sigmoid()
    chosen = scores.detach() if bias is None else scores.detach() + bias
    indices = chosen.topk(k, -1).indices
    top = scores.gather(-1, indices)
    return Routed(top / top.sum(-1, keepdim=True), indices, scores / scores.sum(-1, keepdim=True), logits)


def expert_choice(
    logits: Tensor, k: int, *, asked: Tensor | None = None, factor: float | None = None, **_: Any
) -> Routed:
    """Each expert takes its T · factor / E best tokens: a perfect balance, and none of the losses is needed.

    It leaks the future into causal models: whether a token is served depends on all tokens of the batch, those after it
    too. Train encoders with it, not what is to generate text.

    Args:
        factor: experts of a token on average; by default k.

    Returns:
        gates and indices (T, E): every expert for every token, with a gate of 0 where it did not take the token.
    """
    probs = _wide(logits).softmax(-1)
    open_to = probs if asked is None else probs * asked[:, None]
    tokens = None if asked is None else int(asked.sum())
    chosen = chosen_tokens(open_to, k if factor is None else factor, tokens)
    taken = torch.zeros_like(probs).scatter(0, chosen.T, 1.0)
    indices = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
    return Routed(probs * taken, indices, probs, logits)


ROUTERS = {each.__name__: each for each in (mixtral, switch, noisy, sigmoid, expert_choice)}


def router(name: str) -> Any:
    """The router of that name, `(logits, k, …)` to `Routed`.

    Raises:
        InputError: there is none.
    """
    if name not in ROUTERS:
        raise InputError(f"got the router {name!r}; expected one of {', '.join(ROUTERS)}")
    return ROUTERS[name]


def chosen_tokens(probs: Tensor, factor: float, tokens: int | None = None) -> Tensor:
    """(E, T · factor / E) tokens that each expert takes, its best first.

    Args:
        tokens: how many of them are none of padding, whose shares are 0; by default all.

    Raises:
        InputError: there are too few tokens for one each, or more are asked for than there are.
    """
    experts = probs.shape[1]
    tokens = len(probs) if tokens is None else tokens
    count = int(tokens * factor / experts)
    if not 1 <= count <= tokens:
        raise InputError(f"{experts} experts would take {count} of {tokens} tokens each; expected 1 to {tokens}")
    return probs.topk(count, 0).indices.T


def soft_mixture(
    hidden: Tensor, slots: Tensor, experts: Callable[[Tensor], Tensor], asked: Tensor | None = None
) -> Tensor:
    """Soft mixture (Puigcerver et al., 2023): slots are means of tokens, tokens means of what experts make of slots.

    It is no router: no token is sent anywhere, nothing is dropped, and all of it is differentiable. As expert choice it
    leaks the future into causal models: each slot is a mean over all tokens, those to come too.

    Args:
        hidden: (T, d) x, the tokens of one sequence.
        slots: (d, E, P) Φ, for P slots of each expert.
        experts: (E, P, d) slots, those of each expert together, to what it makes of them, in that shape.
        asked: tokens that take part; the others' outputs are of no use.

    Returns:
        (T, d).
    """
    logits = torch.einsum("td,dep->tep", _wide(hidden), _wide(slots))
    closed = logits if asked is None else logits.masked_fill(~asked[:, None, None], -math.inf)
    dispatch = closed.softmax(0)  # D: over tokens
    combine = logits.flatten(1).softmax(-1).view_as(logits)  # C: over slots
    filled = torch.einsum("tep,td->epd", dispatch, _wide(hidden))  # slots = Dᵀ x
    made = experts(filled.to(hidden.dtype))
    return torch.einsum("tep,epd->td", combine, _wide(made)).to(hidden.dtype)  # y = C f(slots)


# Capacity


def capacity(tokens: int, experts: int, k: int, factor: float) -> int:
    """C = ⌈k T / E · factor⌉, the most tokens that an expert takes: 1 to 1.25 in training, 2 in evaluation."""
    return math.ceil(k * tokens / experts * factor)


def within_capacity(indices: Tensor, experts: int, most: int, asked: Tensor | None = None) -> Tensor:
    """(T, k) which choices find room: all first choices in token order, then all second ones, as in GShard.

    What finds none is dropped: the token goes on by the residual stream alone. Padding takes no room.

    Args:
        indices: (T, k) experts.
        most: C, of each.
    """
    hits = one_hot(indices.T, experts)  # (k, T, E)
    if asked is not None:
        hits = hits * asked[:, None]
    queue = hits.flatten(0, 1).cumsum(0).view_as(hits)  # each one's place at its expert, from 1 on
    return ((queue * hits).sum(-1) <= most).T


# Load


def counts(indices: Tensor, experts: int, asked: Tensor | None = None) -> Tensor:
    """(E,) how many tokens have each expert among their choices."""
    weights = torch.ones(len(indices), device=indices.device) if asked is None else asked.float()
    return torch.zeros(experts, device=indices.device).index_add(
        0, indices.flatten(), weights.repeat_interleave(indices.shape[1])
    )


def entropy(load: Tensor) -> Tensor:
    """Of the load over experts, in nats: log E where all have as much, 0 where one has all.

    Args:
        load: (…, E) counts or shares.
    """
    share = load / load.sum(-1, keepdim=True).clamp(min=1e-12)
    return -torch.special.xlogy(share, share).sum(-1)


def moved(bias: Tensor, load: Tensor, speed: float = SPEED) -> Tensor:
    """b + u sign(mean load − load): experts with less than their share are chosen more readily (DeepSeek-V3)."""
    return bias + speed * torch.sign(load.mean() - load)


# Losses


def balance_loss(fractions: Tensor, probs: Tensor) -> Tensor:
    """E Σ f_e P_e (Switch, Eq. 4 to 6): k where experts are chosen alike, E where one is for k = 1.

    Gradients go through P alone; f counts.

    Args:
        fractions: (E,) f, the share of tokens with e among their choices; those of all devices and of the whole step
            leave experts free to specialise within a batch.
        probs: (E,) P, the mean of tokens' shares.
    """
    return probs.shape[-1] * (fractions.detach() * probs).sum()


def mean_probs(probs: Tensor, asked: Tensor | None = None) -> Tensor:
    """(E,) P: the mean over tokens."""
    if asked is None:
        return probs.mean(0)
    return (probs * asked[:, None]).sum(0) / asked.sum().clamp(min=1)


def importance_loss(gates: Tensor) -> Tensor:
    """CV² of Σ_t g_e over experts, with the population's variance (Shazeer et al., 2017).

    Args:
        gates: (T, E), 0 where a token has not chosen.
    """
    total = gates.sum(0)
    return total.var(correction=0) / total.mean().square()


def spread(routed: Routed, asked: Tensor | None = None) -> Tensor:
    """(T, E) gates in the places of their experts."""
    gates = routed.gates if asked is None else routed.gates * asked[:, None]
    return torch.zeros_like(routed.probs).scatter_add(1, routed.indices, gates.to(routed.probs.dtype))


def z_loss(logits: Tensor, asked: Tensor | None = None) -> Tensor:
    """The mean of logsumexp(z)² over tokens, which keeps logits small (ST-MoE)."""
    squares = _wide(logits).logsumexp(-1).square()
    return squares.mean() if asked is None else (squares * asked).sum() / asked.sum().clamp(min=1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
