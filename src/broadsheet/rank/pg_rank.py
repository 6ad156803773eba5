"""Neural PG-RANK (Gao et al., 2023, arXiv:2310.04407): raise the expected nDCG, MRR or any other utility of rankings.

Knows: scores, rankings sampled from them (Plackett–Luce), utilities, policy gradients; the calling conventions of
sentence-transformers' losses. Does not know: prompts, tokenizers, how scores are computed.

Scores are (batch, n); rankings are (batch, samples, n), each row the items' indices, best first, padding last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from broadsheet.console import InputError

if TYPE_CHECKING:
    from broadsheet.rank.objective import ListReading
    from broadsheet.rank.prompt import TargetOrder

Baseline = Literal["loo", "none"]
_PADDING = -1e30  # as a score: no probability, yet finite, since -inf makes NaN in the gradient of a logcumsumexp


class Utility(Protocol):
    """What a ranking is worth. Called without gradient; need not be differentiable.

    `rankings` (batch, samples, n), `labels` (batch, n), `mask` (batch, n) → (batch, samples), in the labels' dtype.
    A utility that is a sum over places may also have `per_place`, of the same arguments → (batch, samples, n), which
    the reward-to-go form needs.
    """

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NDCG:
    """nDCG@k as trec_eval has it: linear gain, discount log2(rank + 1); the ideal is that of the given candidates.

    Args:
        k: places that count; None = all.
        gain: `"linear"`, or `"exponential"` for 2^label − 1 (the same for labels 0 and 1).
    """

    k: int | None = 10
    gain: Literal["linear", "exponential"] = "linear"

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return self.per_place(rankings, labels, mask).sum(-1)

    def per_place(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """What each place adds; zeros where no candidate is relevant."""
        gains = torch.where(mask, labels, 0).clamp(min=0)
        if self.gain == "exponential":
            gains = 2**gains - 1
        n = labels.shape[-1]
        discount = 1 / torch.log2(torch.arange(n, device=labels.device, dtype=labels.dtype) + 2)
        if self.k is not None:
            discount[self.k :] = 0
        ideal = (gains.sort(-1, descending=True).values * discount).sum(-1)
        scaled = torch.where(ideal[:, None] > 0, gains / ideal.clamp(min=1e-12)[:, None], 0)
        return _by_place(scaled, rankings) * discount


@dataclass(frozen=True)
class MRR:
    """1 / rank of the first relevant item (label > 0) if it is among the first k, else 0. k None = all."""

    k: int | None = 10

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return self.per_place(rankings, labels, mask).sum(-1)

    def per_place(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """1 / rank at the first relevant place. What a place adds hangs on it and the places before it alone."""
        relevant = _by_place(((labels > 0) & mask).to(labels.dtype), rankings)
        first = relevant * (relevant.cumsum(-1) == 1)
        place = torch.arange(1, labels.shape[-1] + 1, device=labels.device, dtype=labels.dtype)
        return first / place * (1.0 if self.k is None else (place <= self.k).to(labels.dtype))


@dataclass(frozen=True)
class PerRanking:
    """A utility from a plain function: `function(ranking, labels) -> float`, called once per sampled ranking.

    `ranking` lists the indices of a query's real items, best first; `labels` their labels by index.

    Example:
        >>> first_is_short = PerRanking(lambda ranking, labels: float(labels[ranking[0]] > 2))
    """

    function: Callable[[list[int], list[float]], float]

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        values = [
            [self.function(one[: int(size)], row[: int(size)]) for one in sampled]
            for sampled, row, size in zip(rankings.tolist(), labels.tolist(), mask.sum(1), strict=True)
        ]
        return torch.tensor(values, dtype=labels.dtype, device=labels.device)


def utility_named(name: str | Utility) -> Utility:
    """`"ndcg@10"`, `"mrr@5"`, `"ndcg"` (all places) as a utility; anything callable as it is.

    Raises:
        InputError: neither.
    """
    if not isinstance(name, str):
        if not callable(name):
            raise InputError(f"got utility {name!r}; expected 'ndcg@K', 'mrr@K' or a callable on rankings")
        return name
    kind, _, cut = name.partition("@")
    if kind not in ("ndcg", "mrr") or (cut and (not cut.isdecimal() or int(cut) < 1)) or name.endswith("@"):
        raise InputError(f"got utility {name!r}; expected 'ndcg@K' or 'mrr@K' with K from 1, or a callable on rankings")
    k = int(cut) if cut else None
    return NDCG(k) if kind == "ndcg" else MRR(k)


def log_factors(scores: Tensor, rankings: Tensor, mask: Tensor | None = None) -> Tensor:
    """log of the probability of each choice, place by place: s(r_i) − logsumexp_{j ≥ i} s(r_j).

    The sums over what is left come from one reversed logcumsumexp, O(n) per ranking.

    Args:
        scores: (batch, n), or (n,) with rankings (samples, n).
        rankings: (batch, samples, n); a masked item must stand behind all real ones.
        mask: (batch, n), True where there is an item.

    Returns:
        Like `rankings`, 0 at the places of padding.
    """
    if mask is not None:
        scores = torch.where(mask, scores, _PADDING)
    chosen = _by_place(scores, rankings)
    left = chosen.flip(-1).logcumsumexp(-1).flip(-1)
    factors = chosen - left
    return factors if mask is None else torch.where(_by_place(mask, rankings), factors, 0)


def log_prob(scores: Tensor, rankings: Tensor, mask: Tensor | None = None) -> Tensor:
    """log π(r | s) of Plackett–Luce: the sum of `log_factors` over places; shape of `rankings` without the last axis.

    Example:
        >>> scores = torch.tensor([0.8, -0.3, 1.2, 0.1], dtype=torch.float64)
        >>> float(log_prob(scores, torch.tensor([[2, 0, 3, 1]])))
        -1.917384...
    """
    return log_factors(scores, rankings, mask).sum(-1)


def gumbel_ranking(scores: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """argsort(s + g), best first: with standard Gumbel noise g an exact Plackett–Luce sample.

    Args:
        scores: (batch, n) or (n,).
        noise: (batch, samples, n), or (samples, n), or (n,).
    """
    if noise.dim() > scores.dim():
        scores, mask = scores.unsqueeze(-2), None if mask is None else mask.unsqueeze(-2)
    disturbed = scores + noise
    if mask is not None:
        disturbed = torch.where(mask, disturbed, -torch.inf)
    return disturbed.argsort(dim=-1, descending=True, stable=True)


def sample_rankings(
    scores: Tensor, n_samples: int, mask: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Rankings (batch, n_samples, n) drawn from Plackett–Luce, in float32 at least; padding stands last.

    `generator` lives on the CPU wherever the scores are, so a seed gives the same rankings on every device.
    """
    with torch.no_grad():
        values = scores.detach() if scores.dtype == torch.float64 else scores.detach().float()
        shape = (*values.shape[:-1], n_samples, values.shape[-1])
        # −log of an exponential variate is Gumbel, and unlike −log(−log U) it never sees log(0) twice.
        exponential = torch.empty(shape, dtype=values.dtype).exponential_(generator=generator)
        noise = -exponential.clamp(min=torch.finfo(values.dtype).tiny).log()
        return gumbel_ranking(values, noise.to(values.device), mask)


def leave_one_out(values: Tensor, dim: int = 1) -> Tensor:
    """Each sample's value minus the mean of the *other* samples' along `dim`; unbiased, since samples are independent.

    Raises:
        InputError: a single sample has no others.
    """
    n = values.shape[dim]
    if n < 2:
        raise InputError("got one sampled ranking; a leave-one-out baseline needs n_samples of 2 or more")
    return (values - values.mean(dim, keepdim=True)) * (n / (n - 1))


def surrogate(
    scores: Tensor,
    rankings: Tensor,
    utilities: Tensor,
    mask: Tensor | None = None,
    *,
    baseline: Baseline = "loo",
) -> Tensor:
    """The loss (batch,) whose gradient is minus the policy gradient's estimate: −mean_i [ advantage_i · log π(r_i) ].

    Args:
        scores: (batch, n), already divided by the temperature.
        rankings: (batch, samples, n), drawn from these scores.
        utilities: (batch, samples), one per ranking; or (batch, samples, n), what each place adds: then the choice at
            place k is credited with the sum from k on alone (reward-to-go), which has the same mean, as places before
            k do not depend on it, and less variance: with the baseline between half and a fiftieth on lists of 10 to
            100, though none less on four items all of whose places count.
        baseline: `"loo"` subtracts the mean of the other samples (at the same place, with reward-to-go); or `"none"`.
    """
    detached = utilities.detach().to(scores.dtype)
    if detached.dim() == 3:
        detached = detached.flip(-1).cumsum(-1).flip(-1)
        factors = log_factors(scores, rankings, mask)
    else:
        factors = log_prob(scores, rankings, mask)
    advantages = leave_one_out(detached) if baseline == "loo" else detached
    losses = -(advantages * factors).mean(1)
    return losses.sum(-1) if losses.dim() == 2 else losses


def expected_utility(scores: Tensor, labels: Tensor, utility: str | Utility, mask: Tensor | None = None) -> Tensor:
    """J(s) = Σ_r π(r|s)·utility(r), exactly, by going through all n! rankings; differentiable, (batch,).

    Raises:
        InputError: more than 8 items (8! = 40,320 rankings).
    """
    batch, n = scores.shape
    if n > 8:
        raise InputError(f"got {n} items; all rankings of more than 8 are too many: sample them instead")
    inside = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    every = torch.tensor(list(itertools.permutations(range(n))), device=scores.device).expand(batch, -1, -1)
    values = utility_named(utility)(every, labels.to(scores.dtype), inside)
    # Rankings with padding before an item have probability 0; the others repeat for each order of the padding.
    ordered = _by_place(inside, every)
    proper = (ordered[..., :-1] | ~ordered[..., 1:]).all(-1)
    repeats = torch.tensor([math.factorial(n - int(size)) for size in inside.sum(1)], device=scores.device)
    weight = torch.where(proper, log_prob(scores, every, inside).exp(), 0) / repeats[:, None]
    return (weight * values).sum(1)


class PlackettLucePolicyGradient(nn.Module):
    """Train a scorer for the metric itself: treat its scores as a policy over rankings and raise the expected utility.

    Use when: the utility that matters is known (nDCG@10, MRR@10, whether a downstream reader answers right) and the
        model ranks reasonably already: rankings are drawn from it, so a warm start is needed.
    Prefer ListNet or FIRST's losses when: training starts from scratch, or labels are full orders.
    Inputs: by what it is called with,
        | called with                               | labels                         | scores are                     |
        |-------------------------------------------|--------------------------------|--------------------------------|
        | (queries, [[doc, …], …]), a CrossEncoder  | a list of tensors (n_i,)       | the cross-encoder's            |
        | feature dicts of query, doc 1 … doc n     | (batch, n)                     | similarities of two embeddings |
        | a tensor (batch, n), `mask` at will       | (batch, n)                     | as given: identifier logits, … |
    Relation: REINFORCE with a leave-one-out baseline (RLOO) for rankings; the pairwise form Σ(Δ_i−Δ_j)(log π_i−log π_j)
        is the same estimator. Its exact counterpart is `expected_utility`.

    Parameters:
        model: a sentence-transformers `CrossEncoder` (one label) or `SentenceTransformer`; None for scores alone.
        utility: `"ndcg@K"`, `"mrr@K"`, or a `Utility`; labels are its relevances.
        n_samples: rankings drawn per query.
        baseline: `"loo"`, or `"none"` (much more variance).
        reward_to_go: credit a place with what follows it alone; None = where the utility is a sum over places.
        temperature: scores are divided by it. Cosines in [−1, 1] make a nearly uniform policy over 100 documents: use
            0.05 or so for dual encoders. Large dot products make one that never explores: raise it.
        similarity: of dual encoders, `"cosine"` or `"dot"`.
        standardize: divide advantages by their standard deviation within the query (ours; off as in the paper).
        mini_batch_size: pairs scored at once by a cross-encoder; None = all. It bounds activations only without
            gradients; with them all pairs of a batch are kept.
        seed: rankings are drawn from (seed, number of the call), or from `generator` where one is given.

    Shapes: returns a scalar, the mean over the queries that have something to learn from: at least two items and
        rankings of differing utility; without such a query, 0 (with a gradient of 0).

    Raises:
        InputError: a parameter is out of range; labels and documents do not match; reward-to-go for a utility that is
            no sum over places.

    Example:
        >>> scores = torch.zeros(1, 3, requires_grad=True)
        >>> loss = PlackettLucePolicyGradient(utility="mrr@10")(scores, torch.tensor([[0.0, 1.0, 0.0]]))
        >>> loss.backward()
        >>> bool(scores.grad[0, 1] < 0)
        True

    Source: arXiv:2310.04407, policy gradient with Plackett–Luce rankings. No authors' code is public.
    """

    def __init__(
        self,
        model: Any = None,
        utility: str | Utility = "ndcg@10",
        n_samples: int = 32,
        baseline: Baseline = "loo",
        reward_to_go: bool | None = None,
        temperature: float = 1.0,
        similarity: Literal["cosine", "dot"] = "cosine",
        standardize: bool = False,
        mini_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if baseline not in ("loo", "none"):
            raise InputError(f"got baseline {baseline!r}; expected 'loo' or 'none'")
        least = 2 if baseline == "loo" else 1
        if n_samples < least:
            raise InputError(f"got n_samples {n_samples}; expected {least} or more with baseline {baseline!r}")
        if not temperature > 0:
            raise InputError(f"got temperature {temperature}; expected a number above 0")
        if similarity not in ("cosine", "dot"):
            raise InputError(f"got similarity {similarity!r}; expected 'cosine' or 'dot'")
        self.model = model
        self.utility = utility_named(utility)
        additive = hasattr(self.utility, "per_place")
        if reward_to_go and not additive:
            raise InputError("reward_to_go needs a utility that is a sum over places (with a method per_place)")
        self.reward_to_go = additive if reward_to_go is None else reward_to_go
        self.utility_name = utility if isinstance(utility, str) else repr(utility)
        self.n_samples = n_samples
        self.baseline: Baseline = baseline
        self.temperature = temperature
        self.similarity = similarity
        self.standardize = standardize
        self.mini_batch_size = mini_batch_size
        self.seed = seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        inputs: Any,
        labels: Any,
        mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """See the class for the three ways to call it; `prompt` and `task` go to a cross-encoder's preprocessing."""
        if isinstance(inputs, Tensor):
            return self.loss(inputs, labels, mask, generator=generator)
        inputs = list(inputs)
        if inputs and isinstance(inputs[0], Mapping):
            return self.loss(self._dual_scores(inputs), labels, mask, generator=generator)
        scores, padded, inside = self._pair_scores(inputs, labels, prompt, task)
        return self.loss(scores, padded, inside, generator=generator)

    def loss(
        self, scores: Tensor, labels: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss from scores (batch, n), labels (batch, n) and mask (batch, n); computed in float32 at least."""
        if labels.shape != scores.shape or scores.dim() != 2 or (mask is not None and mask.shape != scores.shape):
            raise InputError(
                f"got scores {tuple(scores.shape)} and labels {tuple(labels.shape)}; expected both (batch, n)"
            )
        inside = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
        wide = scores if scores.dtype == torch.float64 else scores.float()
        wide = torch.where(inside, wide, 0) / self.temperature
        relevance = labels.to(wide)
        rankings = sample_rankings(wide, self.n_samples, inside, generator=generator or self._next_generator())
        with torch.no_grad():
            values = self.utility(rankings, relevance, inside)
            spread = values.amax(1) > values.amin(1)
            credit = values
            if self.reward_to_go:
                credit = cast(Any, self.utility).per_place(rankings, relevance, inside)
            if self.standardize:
                scale = values.std(1).clamp(min=1e-8)
                credit = credit / scale.view(-1, *(1,) * (credit.dim() - 1))
            useful = (spread if self.baseline == "loo" else (values != 0).any(1)) & (inside.sum(1) > 1)
        each = surrogate(wide, rankings, credit, inside, baseline=self.baseline)
        return torch.where(useful, each, 0).sum() / useful.sum().clamp(min=1)

    def _next_generator(self) -> torch.Generator:
        calls = cast(Tensor, self.calls)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(calls))
        calls += 1
        return generator

    def _dual_scores(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        if self.model is None or len(features) < 2:
            raise InputError("expected a SentenceTransformer as model, and the features of a query and its documents")
        query, *documents = [self.model(dict(each))["sentence_embedding"].float() for each in features]
        stacked = torch.stack(documents, 1)
        if self.similarity == "cosine":
            query, stacked = nn.functional.normalize(query, dim=-1), nn.functional.normalize(stacked, dim=-1)
        return torch.einsum("bd,bnd->bn", query, stacked)

    def _pair_scores(
        self, inputs: Sequence[Any], labels: Any, prompt: str | None, task: str | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and mask, padded to (batch, longest list)."""
        if self.model is None or len(inputs) != 2:
            raise InputError("expected a CrossEncoder as model, and (queries, lists of documents) as inputs")
        queries, lists = inputs
        sizes = [len(documents) for documents in lists]
        found = [len(each) for each in labels]
        if sizes != found:
            raise InputError(f"got {found} labels for {sizes} documents; expected as many in every list")
        pairs = [(query, document) for query, documents in zip(queries, lists, strict=True) for document in documents]
        step = self.mini_batch_size or max(len(pairs), 1)
        parts = []
        for first in range(0, len(pairs), step):
            tokens = self.model.preprocess(pairs[first : first + step], prompt=prompt, task=task)
            tokens = {
                key: value.to(self.model.device) if isinstance(value, Tensor) else value
                for key, value in tokens.items()
            }
            parts.append(self.model(tokens)["scores"].reshape(-1))
        by_list = torch.cat(parts).float().split(sizes)
        scores = nn.utils.rnn.pad_sequence(list(by_list), batch_first=True)
        padded = nn.utils.rnn.pad_sequence([torch.as_tensor(each).float() for each in labels], batch_first=True)
        inside = torch.arange(scores.shape[1]) < torch.tensor(sizes)[:, None]
        return scores, padded.to(scores.device), inside.to(scores.device)

    def get_config_dict(self) -> dict[str, Any]:
        """The parameters, as sentence-transformers writes them into a model card."""
        return {
            "utility": self.utility_name,
            "n_samples": self.n_samples,
            "baseline": self.baseline,
            "reward_to_go": self.reward_to_go,
            "temperature": self.temperature,
        }


@dataclass(frozen=True)
class PGRank:
    """PG-RANK as a training objective of a listwise reranker: the identifier logits are the policy's scores.

    Use after FIRST, which makes those logits a ranking, to tune them for the metric; labels tell what is relevant.
    Parameters: see `PlackettLucePolicyGradient`. `fit(reranker, rows, PGRank("mrr@10"))` trains with it.
    """

    utility: str | Utility = "ndcg@10"
    n_samples: int = 32
    baseline: Baseline = "loo"
    reward_to_go: bool | None = None
    temperature: float = 1.0
    standardize: bool = False

    def __post_init__(self) -> None:
        self._loss()

    def _loss(self) -> PlackettLucePolicyGradient:
        return PlackettLucePolicyGradient(
            utility=self.utility,
            n_samples=self.n_samples,
            baseline=self.baseline,
            reward_to_go=self.reward_to_go,
            temperature=self.temperature,
            standardize=self.standardize,
        )

    @property
    def wants_target(self) -> bool:
        return False

    @property
    def wants_scores(self) -> bool:
        return True

    def token_weights(self, target: TargetOrder) -> list[float]:
        return [1.0] * len(target.ids)

    def terms(self, reading: ListReading) -> dict[str, Tensor]:
        """`loss`, and `utility`: what the order by score is worth now, the mean over lists."""
        loss = self._loss()
        with torch.no_grad():
            scores = torch.where(reading.mask, reading.scores.float(), -torch.inf)
            present = scores.argsort(dim=1, descending=True, stable=True)[:, None]
            value = loss.utility(present, reading.relevance.float(), reading.mask).mean()
        return {
            "loss": loss.loss(reading.scores, reading.relevance, reading.mask, generator=reading.generator),
            "utility": value,
        }


def _by_place(values: Tensor, rankings: Tensor) -> Tensor:
    """`values` (batch, n) or (n,) at the items of `rankings` (batch, samples, n) or (samples, n)."""
    return values.unsqueeze(-2).expand(*rankings.shape[:-1], values.shape[-1]).gather(-1, rankings)
