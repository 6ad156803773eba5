"""FlexPrefill (Lai et al., 2025, arXiv:2502.20766): which blocks of attention are worth computing, by text and head.

Knows: rotated queries, keys and values. Does not know: caches, decoding, padding, how the chosen blocks are computed.

- Step 1, probe: A = softmax(Q̂ Kᵀ / √d) of the last block of queries Q̂.
- Step 2, pattern (Algorithm 2): D = √JS(ā ‖ â) between A's share of each block, ā, and what block means make of it, â;
  D < τ is a query-aware head, else vertical-slash.
- Step 3a, vertical-slash (Algorithm 3): the fewest columns, and distances, that hold the share γ of A.
- Step 3b, query-aware (Algorithm 4): the fewest blocks of softmax(Q̄ K̄ᵀ / √d) that hold the share γ of the whole map,
  and the vertical-slash blocks of the least budget.
- Step 4: exact attention over the chosen blocks, the first column and the diagonal (Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from broadsheet.attend.base import ModelLayout, PostRopeAttention
from broadsheet.attend.kernels.blocksparse import blocks_attention, flex_attention
from broadsheet.attend.kernels.padding import MaskReader, by_equal_lengths, stock_attention
from broadsheet.attend.kernels.softmax import attention_logits, attention_part
from broadsheet.console import InputError

Rounding = Literal["paper", "code"]
Backend = Literal["auto", "blocks", "flex"]

_Count = tuple[int, int, float, int]  # blocks computed, causal blocks, query-aware heads, heads

_PROBED = 1 << 20  # weights of a probe held at once: 4 MiB, so that a CPU sums them up before they leave its cache


def js_distance(p: Tensor, q: Tensor) -> Tensor:
    """D = √JS(p‖q), natural logarithm: (…, n), (…, n) -> (…), symmetric, 0 where equal, at most √ln 2 ≈ 0.8326."""
    middle = (p + q) / 2
    # Algorithm 2: JS(p‖q) = ½ Σ p log(p/m) + ½ Σ q log(q/m), m = (p + q)/2; xlogy, since 0 log 0 is 0
    divergence = (torch.special.xlogy(p, p) + torch.special.xlogy(q, q)) / 2 - torch.special.xlogy(middle, middle)
    return divergence.sum(-1).clamp_min(0).sqrt()


def cover_count(scores: Tensor, gamma: float) -> Tensor:
    """How many of the largest scores it takes to pass the share `gamma`: (…, n) that sum to 1 -> (…), at most n + 1."""
    # Algorithm 3: K = min {k: the k largest sum to more than γ}
    return (scores.sort(dim=-1, descending=True).values.cumsum(-1) <= gamma).sum(-1) + 1


def diagonal_sums(matrix: Tensor) -> Tensor:
    """Sums along the diagonals of the last rows of a square map.

    Args:
        matrix: (…, rows, n), row i being row n - rows + i of the map.

    Returns:
        (…, n) by distance: by how many columns the column precedes the row's own.
    """
    *lead, rows, n = matrix.shape
    # Each row is read from one place further on than the row above it, so that a diagonal becomes a column.
    padded = pad(matrix, (rows, 0)).reshape(-1, rows, n + rows)
    skewed = padded.as_strided((len(padded), rows, n), (padded.stride(0), n + rows + 1, 1), 1)
    return skewed.sum(1).flip(-1).reshape(*lead, n)


def probe_sums(probe: Tensor, key: Tensor, *, scaling: float, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """The true attention of the last queries, averaged over them by column and by distance (Algorithm 3: a_v, a_s).

    Args:
        probe: (rows, heads, queries, head_dim), the last queries.
        key: (rows, kv_heads, keys, head_dim).

    Returns:
        By column and by distance, each (rows, heads, keys) of sum 1, float32 or wider.
    """
    rows, heads, queries, _ = probe.shape
    kv_heads, n = key.shape[1:3]
    groups = heads // kv_heads
    dtype = torch.promote_types(probe.dtype, torch.float32)
    vertical, slash = (torch.zeros(rows, heads, n, dtype=dtype, device=probe.device) for _ in range(2))
    step = max(1, _PROBED // (rows * groups * n)) if probe.device.type == "cpu" else queries
    for j in range(kv_heads):
        mine = slice(j * groups, (j + 1) * groups)
        for i in range(0, queries, step):
            some = probe[:, mine, i : i + step]
            end = n - queries + i + some.shape[2]
            logits = attention_logits(some, key[:, j : j + 1, :end], scaling=scaling, softcap=softcap)
            own = logits[..., end - some.shape[2] :]
            own.masked_fill_(torch.ones_like(own[0, 0], dtype=torch.bool).triu(1), -torch.inf)
            weights = logits.softmax(-1)  # Step 1: A, (rows, group, queries, keys)
            # Algorithm 3: a_v sums A by column, a_s by distance
            vertical[:, mine, :end] += weights.sum(-2)
            slash[:, mine, :end] += diagonal_sums(weights)
    return vertical / queries, slash / queries


def block_means(tokens: Tensor, size: int, cut: int = 0) -> Tensor:
    """(rows, heads, length, head_dim) -> (rows, heads, N, head_dim), the first block lacking its first `cut` tokens."""
    after = -(cut + tokens.shape[2]) % size
    if cut or after:
        tokens = pad(tokens, (0, 0, cut, after))
    blocks = tokens.unflatten(2, (-1, size))
    sums = blocks.sum(3, dtype=torch.promote_types(tokens.dtype, torch.float32))
    held = sums.new_full((sums.shape[2], 1), size)
    held[0] -= cut
    held[-1] -= after
    return sums / held


def vertical_slash(columns: Tensor, distances: Tensor, rows: int) -> Tensor:
    """The causal blocks in chosen columns or at chosen distances: 2 × (…, N) bool -> the last rows, (…, rows, N)."""
    n = columns.shape[-1]
    # Algorithm 3: block (r, c) is active if c is a chosen column or r - c a chosen distance, and c <= r
    distance = torch.arange(n - rows, n, device=columns.device)[:, None] - torch.arange(n, device=columns.device)
    return (columns[..., None, :] | distances[..., distance.clamp_min(0)]) & (distance >= 0)


def top_share(weights: Tensor, gamma: float, rounding: Rounding = "paper") -> Tensor:
    """The largest weights that together hold the share `gamma` of a map: (…, rows, N), rows of sum 1 -> bool alike.

    One budget for the whole map (Algorithm 4). The authors' code drops the weight that crosses `gamma`.
    """
    ordered, order = weights.flatten(-2).sort(dim=-1, descending=True)
    total = ordered.cumsum(-1)
    share = gamma * weights.shape[-2]
    # Algorithm 4: the smallest set of blocks, of the whole map, whose weights reach γ of its mass N
    kept = total <= share if rounding == "code" else total - ordered < share
    return torch.zeros_like(kept).scatter(-1, order, kept).view(weights.shape)


def block_map(query: Tensor, key: Tensor, size: int, scaling: float, softcap: float | None) -> Tensor:
    """Attention between the means of blocks, causal, each row of sum 1 (Algorithm 4).

    Returns:
        (rows, heads, query blocks, key blocks).
    """
    before = key.shape[2] - query.shape[2]
    queries, keys = block_means(query, size, before % size), block_means(key, size)  # Q̄, K̄
    logits = attention_logits(queries, keys, scaling=scaling, softcap=softcap)
    acausal = torch.ones_like(logits[0, 0], dtype=torch.bool).triu(before // size + 1)
    return logits.masked_fill(acausal, -torch.inf).softmax(-1)


@dataclass(frozen=True, eq=False)
class Pattern:
    """What one probe finds for each head, over N blocks of keys.

    Attributes:
        columns, distances: (rows, heads, N) bool, the vertical-slash index; at the least budget where `query_aware`.
        query_aware: (rows, heads) bool.
        true, estimated: (rows, heads, N), the probe's attention to each block, and its estimate from block means.
    """

    columns: Tensor
    distances: Tensor
    query_aware: Tensor
    true: Tensor
    estimated: Tensor


@dataclass
class FlexPrefill(PostRopeAttention):
    """Read a long prompt by computing, in each head, only the blocks of its attention map that hold most of the weight.

    A probe, the last `block_size` queries, attends in full. Where the means of blocks tell its attention to each block
    well (√JS below `tau`), the head is *query-aware*: the blocks of its map are ranked by products of means. Else it is
    *vertical-slash*: every query attends the columns, and the distances, that hold the share `gamma` of the probe's
    weight. The first column and the diagonal are always attended. Chosen blocks are attended exactly. Decoding, prompts
    of at most `max(2 * block_size, min_budget)` tokens and layers with a sliding window of their own stay as they are.

    Use when prompts are long and the time to read them matters most. Prefer `LMInfinite` or `InfLLM` where the cache
    does not fit or the text outgrows the model's context: nothing is forgotten here, and the context is not extended.

    Inputs: prompts of thousands of tokens. Padding on either side never changes a row: each is selected on its own
    tokens. Chunked prefill is ours: a chunk is probed by its own last queries, and one of at most `block_size` tokens
    attends in full.
    Relation: the Λ of `LMInfinite` is a vertical-slash index of the first column and the nearest distances, the same in
    all heads. MInference fixes the pattern and budget of a head offline; here both follow from the text.

    **Causality.** No query ever attends a later key. But the paper's probe is the end of the prompt, so the last
    tokens influence *which* earlier blocks all queries attend: within one call, another last token can change earlier
    outputs. That is harmless when generation starts behind the prompt, not when loss is measured by position.
    `segment` (ours) makes the choice causal too: each segment of `segment` tokens is probed by its first block, which
    attends in full; queries attend all of their own segment; a query-aware row is ranked by itself, by the mean of the
    block before it. Then chunks that are multiples of `segment` equal one piece.

    Args:
        gamma: share of the attention weight to keep; at 1 attention is full (the authors' scripts: 0.95 for Llama-3.1
            and GLM-4, 0.9 for Qwen2 and Yi).
        tau: a head is query-aware below this √JS; 0 for none, more than √ln 2 ≈ 0.83 for all (the scripts: 0.1).
        block_size: tokens (the scripts: 128).
        min_budget: tokens; every head keeps at least that many of columns, and of distances (the scripts: 1024; the
            README's examples: 512).
        max_budget: tokens; a vertical-slash head keeps at most that many of each (the scripts: None).
        rounding: `"paper"` keeps the fewest blocks that hold `gamma`. `"code"` is the authors' implementation, which
            keeps less: it counts the single columns, and distances, that hold `gamma`, takes a 128th of that number
            (whatever the block size) plus one as the number of blocks, and drops the block that crosses `gamma` in a
            query-aware head. It also cuts distances into blocks from the longest one on, so that where a text is no
            multiple of the block the nearest distances are the block that is not full.
        segment: tokens, a multiple of `block_size`; None for the paper's one probe.
        backend: `"blocks"` gathers blocks for the ordinary kernel; `"flex"` compiles FlexAttention, on a CPU about ten
            seconds for every new shape; `"auto"` is `"flex"` on CUDA, else `"blocks"`.

    Attributes:
        computed_ratio_: by layer, the share of causal blocks that the last prefill call computed.
        query_aware_: by layer, the share of heads that were query-aware in it.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.attend import FlexPrefill
        >>> model, tokenizer = models.load("default")
        >>> inputs = tokenizer("One fact of a long text. " * 500, return_tensors="pt")
        >>> with FlexPrefill(gamma=0.95)(model):
        ...     output = model.generate(**inputs, max_new_tokens=20)
        >>> tokenizer.decode(output[0, inputs.input_ids.shape[1] :])  # doctest: +SKIP

    Source: arXiv:2502.20766, Algorithms 1–4; authors' code bytedance/FlexPrefill.
    """

    paper: ClassVar[str] = "flexprefill"
    gamma: float = 0.95
    tau: float = 0.1
    block_size: int = 128
    min_budget: int = 1024
    max_budget: int | None = None
    rounding: Rounding = "paper"
    segment: int | None = None
    backend: Backend = "auto"
    computed_ratio_: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    query_aware_: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _masks: MaskReader = field(default_factory=MaskReader, init=False, repr=False, compare=False)

    def check(self, layout: ModelLayout) -> None:
        """Refuse hyperparameters out of range, and a backend that the model's device does not have."""
        wrong = [
            f"{name}={getattr(self, name)!r} (expected {expected})"
            for name, expected, right in (
                ("gamma", "more than 0, to 1", 0 < self.gamma <= 1),
                ("tau", "at least 0", self.tau >= 0),
                ("block_size", "at least 1 token", self.block_size >= 1),
                ("min_budget", "at least 0 tokens", self.min_budget >= 0),
                ("max_budget", "at least min_budget", self.max_budget is None or self.max_budget >= self.min_budget),
                ("rounding", " or ".join(get_args(Rounding)), self.rounding in get_args(Rounding)),
                ("backend", ", ".join(get_args(Backend)), self.backend in get_args(Backend)),
            )
            if not right
        ]
        if not wrong and self.segment is not None and (self.segment < 1 or self.segment % self.block_size):
            wrong = [f"segment={self.segment} (expected a multiple of block_size={self.block_size})"]
        if wrong:
            raise InputError(f"FlexPrefill got {', '.join(wrong)}")
        device = next(layout.decoder.parameters()).device.type
        if self.backend == "flex" and device not in ("cpu", "cuda"):
            raise InputError(f"got backend='flex' on {device}; expected a CPU or CUDA device, or backend='blocks'")

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        if kwargs.get("dropout"):
            raise InputError("got a model in training mode with attention dropout; expected model.eval()")
        queries = query.shape[2]
        if attention_mask is None and queries > 1:  # a static cache has room for more keys than were read
            key, value = key[:, :, :queries], value[:, :, :queries]
        if queries <= self.block_size or kwargs.get("sliding_window"):
            return stock_attention(module, query, key, value, attention_mask, **kwargs)
        layer: Any = module.layer_idx
        if self._in_full(queries, key.shape[2]):
            self.computed_ratio_[layer], self.query_aware_[layer] = 1.0, 0.0
            return stock_attention(module, query, key, value, attention_mask, **kwargs)

        settings: Any = {"scaling": kwargs.get("scaling") or query.shape[-1] ** -0.5, "softcap": kwargs.get("softcap")}
        counts: list[_Count] = []
        real = self._masks.real_keys(attention_mask, layer)
        output = by_equal_lengths(query, key, value, real, lambda q, k, v: self._attend(q, k, v, counts, **settings))
        computed, causal, aware, heads = (sum(each) for each in zip(*counts, strict=True))
        self.computed_ratio_[layer], self.query_aware_[layer] = computed / causal, aware / heads
        return output

    @torch.no_grad()
    def select(
        self, query: Tensor, key: Tensor, *, scaling: float, softcap: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Which blocks to compute (Algorithm 1).

        Args:
            query: (rows, heads, queries, head_dim), the last `queries` tokens, without padding.
            key: (rows, kv_heads, keys, head_dim).
            scaling: what the logits are multiplied by.
            softcap: caps the logits at ±softcap by tanh.

        Returns:
            The active blocks, (rows, heads, query blocks, key blocks) bool, counted from the first key; and how often a
            probe found a head query-aware, (rows, heads) in [0, 1]: 0 or 1 with the paper's single probe.
        """
        size, before = self.block_size, key.shape[2] - query.shape[2]
        first, n = before // size, _blocks(key.shape[2], size)
        if self.segment is None:
            pattern = self.probe(query[:, :, -size:], key, scaling=scaling, softcap=softcap)  # Steps 1 and 2
            # Step 3a; a query-aware head's columns and distances are those of the least budget
            active = vertical_slash(pattern.columns, pattern.distances, n - first)
            if bool(pattern.query_aware.any()):
                # Step 3b, S = top-γ ∪ VS(min)
                ranked = top_share(block_map(query, key, size, scaling, softcap), self.gamma, self.rounding)
                active |= ranked & pattern.query_aware[..., None, None]
            return active, pattern.query_aware.float()

        length = self.segment // size
        active = torch.zeros(*query.shape[:2], n - first, n, dtype=torch.bool, device=query.device)
        aware = []
        starts = [first, *range((first // length + 1) * length, n, length)]
        for start, stop in zip(starts, [*starts[1:], n], strict=True):
            part, found = self._select_segment(query, key, start, stop, scaling, softcap)
            active[:, :, start - first : stop - first, :stop] = part
            aware.append(found)
        return active, torch.stack(aware).mean(0)

    @torch.no_grad()
    def probe(self, probe: Tensor, key: Tensor, *, scaling: float, softcap: float | None = None) -> Pattern:
        """The pattern of each head, from its last queries (Algorithms 2 and 3).

        Args:
            probe: (rows, heads, queries, head_dim), the last queries.
            key: (rows, kv_heads, keys, head_dim).
        """
        size = self.block_size
        # Steps 1 and 3a: a_v, a_s, each (rows, heads, keys); ā and the block sums of a_s, each (rows, heads, N)
        by_column, by_distance = probe_sums(probe, key, scaling=scaling, softcap=softcap)
        true = _block_sums(by_column, size)
        if self.rounding == "code":  # the authors' code cuts distances into blocks from the longest one on
            nearness = _block_sums(by_distance.flip(-1), size).flip(-1)
        else:
            nearness = _block_sums(by_distance, size)
        # Step 2: â = softmax(mean(Q̂) · pool(K) / √d), (rows, heads, N)
        means = probe.to(by_column.dtype).mean(2, keepdim=True)
        logits = attention_logits(means, block_means(key, size), scaling=scaling, softcap=softcap)
        estimated = logits[:, :, 0].softmax(-1)
        aware = js_distance(true.double(), estimated.double()) < self.tau  # D < τ: query-aware
        columns, distances = self._largest(true, by_column, aware), self._largest(nearness, by_distance, aware)
        return Pattern(columns, distances, aware, true, estimated)

    def _largest(self, blocks: Tensor, entries: Tensor, least: Tensor) -> Tensor:
        """The first block and the heaviest others, until they hold `gamma`; the least budget where `least`."""
        n, size = blocks.shape[-1], self.block_size
        # The first column, and the distance 0, are always kept.
        order = blocks.index_fill(-1, torch.zeros(1, dtype=torch.long, device=blocks.device), torch.inf)
        order = order.sort(dim=-1, descending=True, stable=True).indices
        if self.rounding == "code":
            count = cover_count(entries, self.gamma) // 128 + 1  # as the authors' code turns tokens into blocks
        else:  # Algorithm 3, on blocks: the fewest that reach γ
            count = (blocks.gather(-1, order).cumsum(-1) < self.gamma).sum(-1) + 1
        fewest = min(n, max(1, _blocks(self.min_budget, size)))
        most = n if self.max_budget is None else min(n, max(1, _blocks(self.max_budget, size)))
        count = count.clamp(fewest, most).masked_fill(least, fewest)
        kept = torch.arange(n, device=blocks.device) < count[..., None]
        return torch.zeros_like(kept).scatter(-1, order, kept)

    def _select_segment(
        self, query: Tensor, key: Tensor, start: int, stop: int, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """The blocks of the rows start … stop-1, (rows, heads, stop - start, stop), chosen by row `start`."""
        size, rows, before = self.block_size, stop - start, key.shape[2] - query.shape[2]
        begin, end = max(0, start * size - before), (start + 1) * size - before
        pattern = self.probe(query[:, :, begin:end], key[:, :, : end + before], scaling=scaling, softcap=softcap)
        columns, distances = (pad(each, (0, rows - 1)) for each in (pattern.columns, pattern.distances))
        columns[..., start:] = True
        active = vertical_slash(columns, distances, rows)
        active[:, :, 0, : start + 1] = True
        if rows > 1 and bool(pattern.query_aware.any()):
            end = (stop - 1) * size - before
            weights = block_map(query[:, :, begin:end], key[:, :, : end + before], size, scaling, softcap)
            ranked = top_share(weights[..., None, :], self.gamma, self.rounding)[..., 0, :]
            active[:, :, 1:, :-1] |= ranked & pattern.query_aware[..., None, None]
        return active, pattern.query_aware.float()

    def _in_full(self, queries: int, keys: int) -> bool:
        """Whether every block is attended, so that none has to be chosen."""
        size = self.block_size
        return self.gamma >= 1 or queries <= size or keys <= size * max(2, _blocks(self.min_budget, size))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        counts: list[_Count],
        *,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Rows of equal length without padding: (rows, queries, heads, head_dim)."""
        rows, heads, queries, _ = query.shape
        first, n = (key.shape[2] - queries) // self.block_size, _blocks(key.shape[2], self.block_size)
        causal = rows * heads * (n * (n + 1) - first * (first + 1)) // 2
        if self._in_full(queries, key.shape[2]):
            counts.append((causal, causal, 0, rows * heads))
            return attention_part(query, key, value, scaling=scaling, softcap=softcap, causal=True)[0].transpose(1, 2)
        active, aware = self.select(query, key, scaling=scaling, softcap=softcap)
        counts.append((int(active.sum()), causal, float(aware.sum()), rows * heads))
        flex = self.backend == "flex" or (self.backend == "auto" and query.device.type == "cuda")
        compute = flex_attention if flex else blocks_attention  # Step 4
        return compute(query, key, value, active, block_size=self.block_size, scaling=scaling, softcap=softcap)


def _blocks(tokens: int, size: int) -> int:
    """How many blocks of `size` hold `tokens`."""
    return -(-tokens // size)


def _block_sums(entries: Tensor, size: int) -> Tensor:
    """(…, n) -> (…, N)."""
    return pad(entries, (0, -entries.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)
