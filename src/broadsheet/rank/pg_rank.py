"""Neural PG-RANK (Gao et al., 2023, arXiv:2310.04407): raise the expected nDCG, MRR or any other utility of rankings.

J(θ) = E_q E_{r~π}[Δ(r|q)], with π a Plackett–Luce policy over the candidates' scores, is raised by the policy gradient
∇J ≈ (1/N) Σ_i ∇log π(r_i|q) · (Δ(r_i) − (1/(N−1)) Σ_{j≠i} Δ(r_j)).

Knows: scores, rankings sampled from them, policy gradients; the calling conventions of sentence-transformers' losses.
Does not know: prompts, tokenizers, how scores are computed. The utilities Δ are in `pg_rank_utilities`.

Scores are (batch, n); rankings are (batch, samples, n), each row the items' indices, best first, padding last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from broadsheet.console import InputError
from broadsheet.rank.pg_rank_utilities import Utility, by_place, utility_named

if TYPE_CHECKING:
    from broadsheet.rank.prompts.prompt import TargetOrder
    from broadsheet.rank.training.objective import ListReading

Baseline = Literal["loo", "none"]
_PADDING = -1e30  # as a score: no probability, yet finite, since -inf makes NaN in the gradient of a logcumsumexp


def log_factors(scores: Tensor, rankings: Tensor, mask: Tensor | None = None) -> Tensor:
    """log of the probability of each choice, place by place: s(r_i) − logsumexp_{j ≥ i} s(r_j).

    The sums over the remaining items come from one reversed logcumsumexp, O(n) per ranking.

    Args:
        scores: (batch, n), or (n,) with rankings (samples, n).
        rankings: (batch, samples, n); masked items must come after all real ones.
        mask: (batch, n), True where there is an item.

    Returns:
        Like `rankings`, 0 at the places of padding.
    """
    if mask is not None:
        scores = torch.where(mask, scores, _PADDING)
    chosen = by_place(scores, rankings)  # s(r_i): (batch, samples, n)
    left = chosen.flip(-1).logcumsumexp(-1).flip(-1)  # logsumexp_{j ≥ i} s(r_j)
    factors = chosen - left
    return factors if mask is None else torch.where(by_place(mask, rankings), factors, 0)


def log_prob(scores: Tensor, rankings: Tensor, mask: Tensor | None = None) -> Tensor:
    """log π(r | s) of Plackett–Luce: the sum of `log_factors` over places; shape of `rankings` without the last axis.

    Example:
        >>> scores = torch.tensor([0.8, -0.3, 1.2, 0.1], dtype=torch.float64)
        >>> float(log_prob(scores, torch.tensor([[2, 0, 3, 1]])))
        -1.917384...
    """
    return log_factors(scores, rankings, mask).sum(-1)  # log π = Σ_i [s(r_i) − logsumexp_{j ≥ i} s(r_j)]


def gumbel_ranking(scores: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """r = argsort(s + g), best first: with standard Gumbel noise g an exact Plackett–Luce sample.

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
    """Rankings (batch, n_samples, n) drawn from Plackett–Luce, in float32 at least; padding comes last.

    `generator` is a CPU generator wherever the scores are, so a seed gives the same rankings on every device.
    """
    with torch.no_grad():
        values = scores.detach() if scores.dtype == torch.float64 else scores.detach().float()
        shape = (*values.shape[:-1], n_samples, values.shape[-1])
        # g = −log of an exponential variate; unlike −log(−log U) it meets log(0) at one end only, which is clamped.
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
    # Δ_i − (1/(N−1)) Σ_{j≠i} Δ_j = (Δ_i − Δ̄)·N/(N−1)
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
            place k is credited with the sum from k on (reward-to-go). The mean is the same, as earlier places do not
            depend on the choice at k, and the variance lower: with the baseline by a factor of 2 to 50 on lists of 10
            to 100, though not on four items whose places all count.
        baseline: `"loo"` subtracts the mean of the other samples (at the same place, with reward-to-go); or `"none"`.
    """
    detached = utilities.detach().to(scores.dtype)
    if detached.dim() == 3:
        detached = detached.flip(-1).cumsum(-1).flip(-1)  # Σ_{j ≥ k} u(r_j)/log2(j + 1)/IDCG: (batch, samples, n)
        factors = log_factors(scores, rankings, mask)
    else:
        factors = log_prob(scores, rankings, mask)
    advantages = leave_one_out(detached) if baseline == "loo" else detached
    losses = -(advantages * factors).mean(1)  # −(1/N) Σ_i advantage_i · log π(r_i); ∇ passes through log π alone
    return losses.sum(-1) if losses.dim() == 2 else losses


class PlackettLucePolicyGradient(nn.Module):
    """Train a scorer for the metric itself: treat its scores as a policy over rankings and raise the expected utility.

    Use when: the utility that matters is known (nDCG@10, MRR@10, whether a downstream reader answers correctly) and
        the model already ranks reasonably: rankings are drawn from it, so a warm start is needed.
    Prefer ListNet or FIRST's losses when: training starts from scratch, or labels are full orders.
    Inputs: by what it is called with,
        | called with                               | labels                         | scores are                     |
        |-------------------------------------------|--------------------------------|--------------------------------|
        | (queries, [[doc, …], …]), a CrossEncoder  | a list of tensors (n_i,)       | the cross-encoder's            |
        | feature dicts of query, doc 1 … doc n     | (batch, n)                     | similarities of two embeddings |
        | a tensor (batch, n), `mask` optional      | (batch, n)                     | as given: identifier logits, … |
    Relation: REINFORCE with a leave-one-out baseline (RLOO) for rankings; the pairwise form Σ(Δ_i−Δ_j)(log π_i−log π_j)
        is the same estimator.

    Parameters:
        model: a sentence-transformers `CrossEncoder` (one label) or `SentenceTransformer`; None for scores alone.
        utility: `"ndcg@K"`, `"mrr@K"`, or a `Utility`; labels are its relevances.
        n_samples: rankings drawn per query.
        baseline: `"loo"`, or `"none"` (much more variance).
        reward_to_go: credit a place only with what follows it; None = if the utility is a sum over places.
        temperature: τ; scores are divided by it. Cosines in [−1, 1] make a nearly uniform policy over 100 documents:
            use about 0.05 for dual encoders. With large dot products the policy never explores: raise it.
        similarity: of dual encoders, `"cosine"` or `"dot"`.
        standardize: divide advantages by their standard deviation within the query (ours; off as in the paper).
        mini_batch_size: pairs scored at once by a cross-encoder; None = all. It bounds activations only without
            gradients; with them all pairs of a batch are kept.
        seed: rankings are drawn from (seed, number of the call), or from `generator` where one is given.

    Shapes: returns a scalar, the mean over the queries with a learning signal: at least two items, and rankings of
        different utility; without such a query, 0 (with a gradient of 0).

    Raises:
        InputError: a parameter is out of range; labels and documents do not match; reward-to-go for a utility that is
            no sum over places.

    Example:
        >>> import torch
        >>> from broadsheet.rank import PlackettLucePolicyGradient
        >>> scores = torch.zeros(1, 3, requires_grad=True)
        >>> loss = PlackettLucePolicyGradient(utility="mrr@10")(scores, torch.tensor([[0.0, 1.0, 0.0]]))
        >>> loss.backward()
        >>> bool(scores.grad[0, 1] < 0)
        True

    Source: arXiv:2310.04407, policy gradient with Plackett–Luce rankings. The authors' code is not public.
    """

    paper: ClassVar[str] = "pg_rank"

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
        wide = torch.where(inside, wide, 0) / self.temperature  # s: (batch, n)
        relevance = labels.to(wide)
        # r_1 … r_N ~ π(·|q): (batch, samples, n)
        rankings = sample_rankings(wide, self.n_samples, inside, generator=generator or self._next_generator())
        with torch.no_grad():
            values = self.utility(rankings, relevance, inside)  # Δ(r_i|q): (batch, samples)
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

    Use after FIRST, which makes those logits a ranking, to tune them for the metric; labels give the relevance.
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
        """`loss`, and `utility`, that of the present order by score, the mean over lists."""
        loss = self._loss()
        with torch.no_grad():
            scores = torch.where(reading.mask, reading.scores.float(), -torch.inf)
            present = scores.argsort(dim=1, descending=True, stable=True)[:, None]
            value = loss.utility(present, reading.relevance.float(), reading.mask).mean()
        return {
            "loss": loss.loss(reading.scores, reading.relevance, reading.mask, generator=reading.generator),
            "utility": value,
        }
