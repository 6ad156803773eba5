"""How likely a model writes a passage, which of two it should rather write, and how far that agrees with an embedding.

Knows: logits, labels, log-probabilities, scores of candidates. Does not know: models, texts, how a prompt is worded.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

__all__ = ["Direction", "Preference", "consistency_kl", "preference_loss", "sequence_log_probs"]

Preference = Literal["sigmoid", "hinge", "ipo", "kto_pair"]
Direction = Literal["gen-rt", "rt-gen"]


def sequence_log_probs(logits: Tensor, labels: Tensor, *, mean: bool = False, shifted: bool = False) -> Tensor:
    """log p of each row's labelled tokens, in float32 at least.

    Args:
        logits: (batch, length, vocabulary); those at t predict the token at t + 1.
        labels: (batch, length) token ids; −100 where a token does not count (the prompt, padding).
        mean: over the labelled tokens, instead of their sum. A row without any gives 0.
        shifted: the labels stand beside the logits that predict them already.

    Returns:
        (batch,).

    Raises:
        ValueError: the shapes do not match.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"got logits {tuple(logits.shape)} for labels {tuple(labels.shape)}")
    if not shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    # Only labelled positions go through the softmax: over a large vocabulary the others cost most of the memory.
    chosen = logits[counted]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    picked = -cross_entropy(chosen, labels[counted], reduction="none")
    row = counted.nonzero()[:, 0]
    total = torch.zeros(len(labels), dtype=picked.dtype, device=picked.device).index_add(0, row, picked)
    return total / counted.sum(1).clamp_min(1) if mean else total


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    kind: Preference = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> Tensor:
    """Losses that raise the chosen text's likelihood over the rejected one's, each against a reference model's.

    With h = (π_chosen − π_rejected) − (ref_chosen − ref_rejected):
    "sigmoid" (DPO) −log σ(βh), smoothed −(1−ε) log σ(βh) − ε log σ(−βh); "hinge" max(0, 1 − βh);
    "ipo" (h − 1/(2β))², which expects log-probabilities that are means over tokens; "kto_pair" 1 − σ of β times the
    chosen ratio above the mean rejected one, and of the mean chosen one above the rejected ratio.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (batch,) log-probabilities. Without
            references, or with `reference_free`, h has no reference part; "kto_pair" always needs them.
        beta: how strongly the policy is held to the reference; larger is looser in h, tighter in IPO.
        label_smoothing: ε, the share of labels taken to be wrong; "sigmoid" alone.

    Returns:
        (batch,); (2·batch,) for "kto_pair".

    Raises:
        ValueError: an unknown kind, β ≤ 0, or "kto_pair" without references.

    Source: arXiv:2305.18290 (DPO), 2310.12036 (IPO), 2305.10425 (hinge), 2402.01306 (KTO), as ULLME uses them.
    """
    if kind not in get_args(Preference):
        raise ValueError(f"got kind {kind!r}; expected one of {', '.join(get_args(Preference))}")
    if not beta > 0:
        raise ValueError(f"got beta {beta}; expected a number above 0")
    if kind == "kto_pair":
        if reference_chosen is None or reference_rejected is None:
            raise ValueError("kto_pair compares with a reference model; give its log-probabilities")
        chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
        # Each half is compared with the other half's mean, which stands for the divergence from the reference.
        against_rejected = chosen - rejected.mean().clamp_min(0)
        against_chosen = chosen.mean().clamp_min(0) - rejected
        return 1 - torch.cat([against_rejected, against_chosen]).mul(beta).sigmoid()
    margin = policy_chosen - policy_rejected
    if not reference_free and reference_chosen is not None and reference_rejected is not None:
        margin = margin - (reference_chosen - reference_rejected)
    if kind == "hinge":
        return (1 - beta * margin).relu()
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    scaled = beta * margin
    return -(1 - label_smoothing) * logsigmoid(scaled) - label_smoothing * logsigmoid(-scaled)


def consistency_kl(
    similarities: Tensor,
    generation: Tensor,
    *,
    temperature: float = 0.05,
    generation_temperature: float = 1.0,
    direction: Direction = "gen-rt",
    detach: bool = True,
    mask: Tensor | None = None,
    reduce: bool = True,
) -> Tensor:
    """How far the embedding and the generator disagree about which of a query's candidates fit it.

    P_rt = softmax(similarity / τ), P_gen = softmax(mean token log-probability / τ_gen), both over the candidates of a
    query; "gen-rt" is KL(P_gen ‖ P_rt), as the authors' code has it, "rt-gen" is KL(P_rt ‖ P_gen), as the paper prints.

    Args:
        similarities, generation: (batch, candidates).
        temperature, generation_temperature: τ and τ_gen. Token means differ by a few tenths: with τ_gen = 1, the
            authors' value, P_gen is nearly flat.
        direction: see above.
        detach: the generator is a teacher and learns nothing from this term.
        mask: (batch, candidates), True where there is one. A query with a single candidate costs 0.
        reduce: the mean over queries, instead of one value each.

    Returns:
        A scalar, or (batch,).

    Raises:
        ValueError: a temperature that is not positive, or an unknown direction.
    """
    if not (temperature > 0 and generation_temperature > 0):
        raise ValueError(f"got temperatures {temperature} and {generation_temperature}; expected numbers above 0")
    if direction not in get_args(Direction):
        raise ValueError(f"got direction {direction!r}; expected one of {', '.join(get_args(Direction))}")
    if detach:
        generation = generation.detach()
    embedded, generated = similarities / temperature, generation.to(similarities.dtype) / generation_temperature
    if mask is not None:
        # A finite number: −inf − (−inf) would be NaN.
        lowest = torch.finfo(embedded.dtype).min / 4
        embedded, generated = embedded.masked_fill(~mask, lowest), generated.masked_fill(~mask, lowest)
    log_rt, log_gen = embedded.log_softmax(-1), generated.log_softmax(-1)
    left, right = (log_gen, log_rt) if direction == "gen-rt" else (log_rt, log_gen)
    terms = left.exp() * (left - right)
    if mask is not None:
        terms = terms.masked_fill(~mask, 0.0)
    values = terms.sum(-1)
    return values.mean() if reduce else values
