"""FlexPrefill: what its selection guarantees, and that what it selects is what is attended."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, pad

from broadsheet.attend.flexprefill import (
    FlexPrefill,
    block_means,
    cover_count,
    diagonal_sums,
    js_distance,
    probe_sums,
    top_share,
)
from broadsheet.attend.kernels.blocksparse import blocks_attention, flex_attention
from broadsheet.console import InputError

SCALING = 0.25
LN2 = math.sqrt(math.log(2))


def small(**options: object) -> FlexPrefill:
    return FlexPrefill(**{"gamma": 0.7, "block_size": 4, "min_budget": 4, **options})


def tensors(
    queries: int = 40, keys: int = 40, rows: int = 2, heads: int = 4, kv_heads: int = 2, seed: int = 0
) -> tuple:
    """Query, key and value with some columns and some distances that draw attention, as in a text."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(rows, n, keys, 16, generator=generator) for n in (heads, kv_heads, kv_heads))
    key[:, :, [0, 9]] *= 3
    query += 2 * key.repeat_interleave(heads // kv_heads, 1).roll(5, 2)
    return query[:, :, keys - queries :].double(), key.double(), value.double()


def dense(query, key, value, mask, softcap=None):
    """Attention by its formula, (rows, queries, heads, head_dim)."""
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
    logits = query.double() @ key.double().transpose(-1, -2) * SCALING
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    return (logits.masked_fill(~mask, -torch.inf).softmax(-1) @ value.double()).transpose(1, 2)


def visible(active: torch.Tensor, queries: int, keys: int, block_size: int) -> torch.Tensor:
    """The attention map that blocks describe: (rows, heads, queries, keys) bool, causal."""
    first = (active.shape[3] - active.shape[2]) * block_size
    spread = active.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)
    return spread[:, :, keys - queries - first : keys - first, :keys].tril(keys - queries)


def causal(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def ids(length: int, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 260, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(tiny_model):
    return tiny_model(pad_token_id=0).double()


@torch.no_grad()
def logits(model, tokens, **kwargs) -> torch.Tensor:
    return model(tokens, **kwargs).logits


# --- the parts ---


def test_js_distance_is_a_bounded_symmetric_distance() -> None:
    p, q = torch.rand(2, 50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1) ** 4
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    distance = js_distance(p, q)
    assert torch.equal(distance, js_distance(q, p))
    assert (distance > 1e-3).all()
    assert (distance <= LN2).all()
    assert torch.equal(js_distance(p, p), torch.zeros(50, dtype=torch.float64))
    apart = js_distance(torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0.5, 0.5, 0]))  # zeros give no NaN
    assert float(apart) == pytest.approx(LN2, abs=1e-6)


def test_cover_count_goes_past_gamma() -> None:
    scores = torch.tensor([0.125, 0.5, 0.125, 0.25])
    assert [int(cover_count(scores, gamma)) for gamma in (0.4, 0.5, 0.7, 0.75, 0.8, 0.9)] == [1, 2, 2, 3, 3, 4]


def test_top_share_is_one_budget_for_the_whole_map() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0.4, 0.3, 0.3]])
    # 1.9 of 3 are held by the first two rows' first block: the third row gets what it still takes to reach 2.25.
    assert top_share(weights, 0.75).tolist() == [[True, False, False], [True, False, False], [True, False, False]]
    assert top_share(weights, 0.75, "code").tolist() == [[True, False, False], [True, False, False], [False] * 3]


@pytest.mark.parametrize("shape", [(3, 6), (6, 6), (2, 3, 1, 5)])
def test_diagonal_sums(shape: tuple[int, ...]) -> None:
    matrix = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    rows, n = shape[-2:]
    expected = [
        sum(matrix[..., i, n - rows + i - d] for i in range(rows) if n - rows + i >= d) + torch.zeros(shape[:-2])
        for d in range(n)
    ]
    assert torch.allclose(diagonal_sums(matrix), torch.stack(expected, -1))


def test_probe_sums_are_those_of_the_last_rows_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from broadsheet.attend import flexprefill

    monkeypatch.setattr(flexprefill, "_PROBED", 400)  # two or three queries at a time
    query, key, _ = tensors()
    weights = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * SCALING
    weights = weights.masked_fill(~causal(40, 40), -torch.inf).softmax(-1)[:, :, -9:]
    by_column, by_distance = probe_sums(query[:, :, -9:], key, scaling=SCALING)
    assert torch.allclose(by_column, weights.mean(2), atol=1e-9)
    for d in range(40):
        there = weights[..., torch.arange(9), (torch.arange(31, 40) - d).clamp_min(0)] * (torch.arange(31, 40) >= d)
        assert torch.allclose(by_distance[..., d], there.sum(-1) / 9, atol=1e-9)


def test_block_means_are_over_the_tokens_that_are_there() -> None:
    tokens = torch.arange(1.0, 7)[None, None, :, None]
    assert block_means(tokens, 4).flatten().tolist() == [2.5, 5.5]
    assert block_means(tokens, 4, cut=3).flatten().tolist() == [1, 3.5, 6]


# --- the selection ---


@pytest.mark.parametrize(
    "options", [{}, {"tau": 1.0}, {"segment": 12}, {"segment": 12, "tau": 1.0}, {"rounding": "code"}]
)
@pytest.mark.parametrize(("queries", "keys"), [(40, 40), (37, 37), (23, 40), (9, 35)])
def test_first_column_and_diagonal_are_active_and_nothing_acausal(options: dict, queries: int, keys: int) -> None:
    query, key, _ = tensors(queries, keys)
    active, _ = small(**options).select(query, key, scaling=SCALING)
    first, n = (keys - queries) // 4, math.ceil(keys / 4)
    assert active.shape == (2, 4, n - first, n)
    assert active[..., 0].all()
    assert active.diagonal(first, 2, 3).all()
    assert not active.triu(first + 1).any()
    assert not active.tril(first).all()


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("segment", [None, 12])
def test_more_gamma_and_more_budget_never_compute_less(tau: float, segment: int | None) -> None:
    query, key, _ = tensors(60, 60)

    def count(**options: object) -> torch.Tensor:
        return small(tau=tau, segment=segment, **options).select(query, key, scaling=SCALING)[0].sum((2, 3))

    for name, values in {"gamma": (0.01, 0.3, 0.6, 0.8, 0.9, 0.99), "min_budget": (4, 12, 24, 40, 60)}.items():
        counts = [count(**{name: value}) for value in values]
        assert all((more >= less).all() for less, more in pairwise(counts))
        assert (counts[-1] > counts[0]).any()
        assert (counts[0] >= 2 * 15 - 1).all()  # the first column and the diagonal
        assert (counts[-1] <= 15 * 16 // 2).all()


def test_a_segment_is_dense_in_itself_and_its_first_block_attends_all() -> None:
    query, key, _ = tensors(60, 60)
    active = small(segment=12, gamma=0.01).select(query, key, scaling=SCALING)[0]
    rows, columns = torch.meshgrid(torch.arange(15), torch.arange(15), indexing="ij")
    assert active[:, :, (rows // 3 == columns // 3) & (columns <= rows)].all()
    assert active[:, :, (rows % 3 == 0) & (columns <= rows)].all()
    assert not active[:, :, 13].all()


def test_tau_decides_which_heads_are_query_aware() -> None:
    query, key, _ = tensors()
    query[:, 0] *= 0.01  # a head that attends evenly, which block means tell well
    shares = {tau: small(tau=tau).select(query, key, scaling=SCALING)[1] for tau in (0.0, 0.1, LN2 + 1e-6)}
    assert not shares[0.0].any()
    assert shares[LN2 + 1e-6].all()
    assert shares[0.1][:, 0].all()
    assert not shares[0.1][:, 1:].any()


def test_chosen_columns_and_distances_each_hold_gamma_and_no_fewer_would() -> None:
    query, key, _ = tensors(60, 60)
    by_column, by_distance = probe_sums(query[:, :, -4:], key, scaling=SCALING)
    for gamma in (0.5, 0.8, 0.95):
        pattern = small(gamma=gamma, tau=0).probe(query[:, :, -4:], key, scaling=SCALING)
        for entries, chosen in ((by_column, pattern.columns), (by_distance, pattern.distances)):
            blocks = entries.unflatten(-1, (15, 4)).sum(-1)
            held = (blocks * chosen).sum(-1)
            smallest = blocks.masked_fill(~chosen, torch.inf)[..., 1:].amin(-1)
            assert (held >= gamma).all()
            assert (held - smallest < gamma)[chosen.sum(-1) > 1].all()


def test_the_authors_budget_is_a_128th_of_the_entries_plus_one() -> None:
    query, key, _ = tensors(600, 600)
    pattern = small(gamma=0.9, tau=0, rounding="code").probe(query[:, :, -4:], key, scaling=SCALING)
    for entries, chosen in zip(
        probe_sums(query[:, :, -4:], key, scaling=SCALING), (pattern.columns, pattern.distances), strict=True
    ):
        assert torch.equal(chosen.sum(-1), cover_count(entries, 0.9) // 128 + 1)


def authors_choice(query, key, method: FlexPrefill) -> tuple[torch.Tensor, float, torch.Tensor]:
    """One head's active blocks, D and block estimate, number by number, by the conventions of the authors' code."""
    n, size = len(key), method.block_size
    count = math.ceil(n / size)
    fewest = math.ceil(method.min_budget / size)
    weights = (query[-size:] @ key.T * SCALING).masked_fill(~causal(size, n), -torch.inf).softmax(-1)
    columns = [float(weights[:, j].sum()) / size for j in range(n)]
    # Diagonal c holds distance n - 1 - c; blocks of diagonals are counted from c = 0, the longest distance.
    diagonals = [sum(float(weights[i, n - size + i - (n - 1 - c)]) for i in range(size) if n - size + i >= n - 1 - c)
                 / size for c in range(n)]  # fmt: skip
    blocks = [range(b * size, min(n, (b + 1) * size)) for b in range(count)]
    true = torch.tensor([sum(columns[j] for j in block) for block in blocks], dtype=torch.float64)
    slash = [sum(diagonals[c] for c in block) for block in blocks]
    means = torch.stack([key[list(block)].mean(0) for block in blocks])
    estimated = (means @ query[-size:].mean(0) * SCALING).softmax(-1)
    middle = (true + estimated) / 2
    terms = [0.5 * float(p) * math.log(p / m) for own in (true, estimated) for p, m in zip(own, middle, strict=True)]
    distance = math.sqrt(sum(terms))
    aware = distance < method.tau

    def budget(entries: list[float]) -> int:
        covered, k = 0.0, 0
        for entry in sorted(entries, reverse=True):
            covered += entry
            k += covered <= method.gamma
        return fewest if aware else min(count, max(fewest, (k + 1) // 128 + 1))

    chosen_columns = sorted(range(count), key=lambda b: -math.inf if b == 0 else -float(true[b]))[: budget(columns)]
    order = sorted(range(count), key=lambda b: -math.inf if b == count - 1 else -slash[b])[: budget(diagonals)]
    distances = {count - 1 - b for b in order}
    active = torch.tensor([[c <= r and (c in chosen_columns or r - c in distances) for c in range(count)]
                           for r in range(count)])  # fmt: skip
    if aware:
        rows = torch.stack([query[list(block)].mean(0) for block in blocks])
        weights = (rows @ means.T * SCALING).masked_fill(~causal(count, count), -torch.inf).softmax(-1)
        covered = 0.0
        places = [(r, c) for r in range(count) for c in range(r + 1)]
        for place in sorted(places, key=lambda place: -float(weights[place])):
            covered += float(weights[place])
            if covered > method.gamma * count:
                break
            active[place] = True
    return active, distance, estimated


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n", [60, 61, 62, 63, 301])
def test_the_authors_rounding_is_theirs_at_every_length(n: int, tau: float) -> None:
    query, key, _ = tensors(n, n, rows=1)
    query[:, 0] *= 0.01  # a head that block means tell well
    method = small(gamma=0.9, tau=tau, min_budget=10, rounding="code")
    active, aware = method.select(query, key, scaling=SCALING)
    pattern = method.probe(query[:, :, -4:], key, scaling=SCALING)
    for h in range(4):
        expected, distance, estimated = authors_choice(query[0, h], key[0, h // 2], method)
        assert torch.equal(active[0, h], expected)
        assert bool(aware[0, h]) == (distance < tau)
        assert float(js_distance(pattern.true, pattern.estimated)[0, h]) == pytest.approx(distance, abs=1e-9)
        assert torch.allclose(pattern.estimated[0, h], estimated, atol=1e-9)


@pytest.mark.parametrize("rounding", ["paper", "code"])
def test_a_query_aware_head_keeps_the_ranked_blocks_and_the_least_budget_alone(rounding: str) -> None:
    query, key, _ = tensors(60, 60)
    method = small(gamma=0.9, tau=1.0, min_budget=8, rounding=rounding)
    active, _ = method.select(query, key, scaling=SCALING)
    pattern = method.probe(query[:, :, -4:], key, scaling=SCALING)
    assert (pattern.columns.sum(-1) == 2).all()
    assert (pattern.distances.sum(-1) == 2).all()
    means = [block_means(each, 4).repeat_interleave(4 // each.shape[1], 1) for each in (query, key)]
    weights = (means[0] @ means[1].transpose(-1, -2) * SCALING).masked_fill(~causal(15, 15), -torch.inf).softmax(-1)
    least = small(gamma=1e-9, tau=0.0, min_budget=8).select(query, key, scaling=SCALING)[0]
    for row in range(2):
        for head in range(4):
            ranked = torch.zeros(15, 15, dtype=torch.bool)
            held = 0.0
            for place in weights[row, head].flatten().argsort(descending=True).tolist():
                weight = float(weights[row, head].flatten()[place])
                if held >= 0.9 * 15 or (rounding == "code" and held + weight > 0.9 * 15):
                    break
                ranked[place // 15, place % 15] = True
                held += weight
            assert torch.equal(active[row, head], ranked | least[row, head])
            assert not least[row, head][ranked].all()
    whole = small(gamma=0.9, tau=0.0, min_budget=8, rounding=rounding).select(query, key, scaling=SCALING)[0]
    assert rounding == "code" or (whole & ~active).any()  # of the vertical-slash budget only the least is left


def test_a_head_is_query_aware_just_above_its_distance() -> None:
    query, key, _ = tensors(61, 61)
    pattern = small().probe(query[:, :, -4:], key, scaling=SCALING)
    distance = float(js_distance(pattern.true, pattern.estimated)[1, 2])
    for tau, aware in ((distance * 0.999, False), (distance * 1.001, True)):
        assert bool(small(tau=tau).select(query, key, scaling=SCALING)[1][1, 2]) == aware


def test_the_estimate_is_attention_of_the_probes_mean_to_block_means() -> None:
    query, key, _ = tensors(62, 62)
    for softcap in (None, 2.0):
        pattern = small().probe(query[:, :, -4:], key, scaling=SCALING, softcap=softcap)
        means = torch.stack([key[:, :, b : b + 4].mean(2) for b in range(0, 62, 4)], 2).repeat_interleave(2, 1)
        logits = (query[:, :, -4:].mean(2)[:, :, None] * means).sum(-1) * SCALING
        logits = torch.tanh(logits / softcap) * softcap if softcap else logits
        assert torch.allclose(pattern.estimated, logits.softmax(-1), atol=1e-9)


def test_uniform_attention_takes_the_share_gamma_of_the_columns() -> None:
    key, query = tensors(80, 80)[1], torch.zeros(2, 4, 80, 16).double()
    pattern = small(gamma=0.6, tau=0).probe(query[:, :, -4:], key, scaling=SCALING)
    assert ((pattern.columns.sum(-1) - 12).abs() <= 1).all()


def test_all_weight_on_the_first_column_takes_one_block() -> None:
    query, key, value = tensors()
    query, key = torch.full_like(query, 4.0), torch.zeros_like(key)
    key[:, :, 0] = 10
    active, _ = small(gamma=0.99, tau=0).select(query, key, scaling=SCALING)
    pattern = small(gamma=0.99, tau=0).probe(query[:, :, -4:], key, scaling=SCALING)
    assert (pattern.columns.sum(-1) == 1).all()
    output = blocks_attention(query, key, value, active, block_size=4, scaling=SCALING, softcap=None)
    assert torch.allclose(output.double(), dense(query, key, value, causal(40, 40)), atol=1e-9)


def test_budgets_bound_columns_and_distances() -> None:
    query, key, _ = tensors(80, 80)
    query[:, 0] *= 0.01
    few = small(gamma=0.99, tau=0, max_budget=12).probe(query[:, :, -4:], key, scaling=SCALING)
    assert (few.columns.sum(-1) <= 3).all()
    assert (few.distances.sum(-1) <= 3).all()
    many = small(gamma=0.01, min_budget=18).probe(query[:, :, -4:], key, scaling=SCALING)
    assert (many.columns.sum(-1) == 5).all()  # 18 tokens fill five blocks
    assert (many.distances.sum(-1) == 5).all()


def test_heads_are_selected_apart() -> None:
    query, key, _ = tensors()
    other = query.clone()
    other[:, 1] = torch.randn(other[:, 1].shape, generator=torch.Generator().manual_seed(5)) * 3
    for segment in (None, 12):
        before, after = (small(segment=segment).select(each, key, scaling=SCALING)[0] for each in (query, other))
        assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
        assert not torch.equal(before[:, 1], after[:, 1])


def test_rows_are_selected_apart_and_always_alike() -> None:
    query, key, _ = tensors(rows=3)
    for options in ({}, {"tau": 1.0}, {"segment": 12}):
        together, _ = small(**options).select(query, key, scaling=SCALING)
        alone = [small(**options).select(query[i, None], key[i, None], scaling=SCALING)[0] for i in range(3)]
        assert torch.equal(together, torch.cat(alone))
        assert torch.equal(together, small(**options).select(query, key, scaling=SCALING)[0])


# --- attention over the selection ---


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("queries", "keys"), [(40, 40), (38, 38), (23, 40), (13, 35)])
def test_attention_is_the_dense_one_under_the_expanded_mask(queries: int, keys: int, softcap: float | None) -> None:
    query, key, value = tensors(queries, keys)
    active, _ = small(tau=0.3).select(query, key, scaling=SCALING)
    mask = visible(active, queries, keys, 4)
    output = blocks_attention(query, key, value, active, block_size=4, scaling=SCALING, softcap=softcap)
    assert torch.allclose(output.double(), dense(query, key, value, mask, softcap), atol=1e-9)
    assert (output.double() - dense(query, key, value, causal(queries, keys), softcap)).abs().max() > 0.01


def test_many_kernel_calls_and_one_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from broadsheet.attend.kernels import blocksparse

    query, key, value = tensors()
    active, _ = small().select(query, key, scaling=SCALING)
    options = {"block_size": 4, "scaling": SCALING, "softcap": None}
    whole = blocks_attention(query, key, value, active, **options)
    monkeypatch.setattr(blocksparse, "_GATHERED", 1)
    assert torch.allclose(blocks_attention(query, key, value, active, **options), whole, atol=1e-9)


def test_gradients_are_those_of_the_dense_attention() -> None:
    active, _ = small().select(*tensors()[:2], scaling=SCALING)
    ours, theirs = ([each.requires_grad_() for each in tensors()] for _ in range(2))
    blocks_attention(*ours, active, block_size=4, scaling=SCALING, softcap=None).square().sum().backward()
    dense(*theirs, visible(active, 40, 40, 4)).square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    query, key, value = (each.to(dtype) for each in tensors())
    active, _ = small().select(query, key, scaling=SCALING)
    output = blocks_attention(query, key, value, active, block_size=4, scaling=SCALING, softcap=None)
    assert output.dtype == dtype
    assert torch.allclose(output.double(), dense(query, key, value, visible(active, 40, 40, 4)), atol=0.05)


def test_with_the_choice_held_fixed_no_later_key_counts() -> None:
    query, key, value = tensors()
    active, _ = small().select(query, key, scaling=SCALING)
    options = {"block_size": 4, "scaling": SCALING, "softcap": None}
    before = blocks_attention(query, key, value, active, **options)
    for t in (8, 21, 39):
        late = [each.clone() for each in (query, key, value)]
        for each in late:
            each[:, :, t:] = torch.randn(each[:, :, t:].shape, generator=torch.Generator().manual_seed(t))
        after = blocks_attention(*late, active, **options)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t:], after[:, t:])


@pytest.mark.real
def test_compiled_flex_attends_the_chosen_blocks_and_no_others() -> None:
    query, key, value = (each.float() for each in tensors(90, 122, rows=1, heads=3, kv_heads=1))
    active, _ = small(block_size=16, min_budget=16, gamma=0.5).select(query, key, scaling=SCALING)
    output = flex_attention(query, key, value, active, block_size=16, scaling=SCALING, softcap=None)
    assert torch.allclose(output.double(), dense(query, key, value, visible(active, 90, 122, 16)), atol=1e-5)
    assert (output.double() - dense(query, key, value, causal(90, 122))).abs().max() > 0.01


def test_flex_that_does_not_compile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    from broadsheet.attend.kernels import blocksparse

    def fail(*args: object, **kwargs: object) -> None:
        raise TorchDynamoException("no compiler\nand much more")

    monkeypatch.setattr(blocksparse, "_compiled", lambda device: fail)
    query, key, value = tensors()
    active, _ = small().select(query, key, scaling=SCALING)
    with pytest.raises(InputError, match=r"does not compile here \(no compiler\); expected backend='blocks'"):
        flex_attention(query, key, value, active, block_size=4, scaling=SCALING, softcap=None)


# --- in a model ---


@pytest.mark.parametrize(
    "options", [{"gamma": 1.0}, {"min_budget": 80}, {"block_size": 40}, {"gamma": 1.0, "segment": 12}]
)
def test_nothing_to_leave_out_is_full_attention(model, options: dict) -> None:
    tokens = ids(80)
    with small(**options)(model):
        found = logits(model, tokens)
    assert torch.allclose(found, logits(model, tokens), atol=1e-9)


def test_a_forward_pass_with_gradients(model) -> None:
    with small(segment=12)(model):
        loss = model(ids(80), labels=ids(80)).loss
        loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_sparse_differs_and_is_gone_afterwards(model) -> None:
    tokens = ids(80)
    full = logits(model, tokens)
    with small()(model):
        assert (logits(model, tokens) - full).abs().max() > 0.01
    assert torch.equal(logits(model, tokens), full)


@pytest.mark.parametrize("segment", [None, 12])
@pytest.mark.parametrize("length", [80, 77])
def test_padding_never_changes_a_row(model, length: int, segment: int | None) -> None:
    tokens = ids(length, rows=3)
    with small(segment=segment)(model):
        alone = [logits(model, tokens[:1]), logits(model, tokens[1:2, :50]), logits(model, tokens[2:, :6])]
        for side in ("left", "right"):
            padded, mask = torch.full((3, length), 2), torch.zeros(3, length, dtype=torch.long)
            places = []
            for i, n in enumerate((length, 50, 6)):
                places.append(slice(length - n, length) if side == "left" else slice(0, n))
                padded[i, places[i]], mask[i, places[i]] = tokens[i, :n], 1
            # The same positions as alone, so that the model rotates by the same angles to the last bit.
            batch = logits(model, padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
            for i, place in enumerate(places):
                assert torch.allclose(batch[i, None, place], alone[i], atol=1e-9)


def test_a_row_of_nothing_but_padding_leaves_the_others_alone(model) -> None:
    tokens = ids(80)
    mask = torch.ones_like(tokens)
    mask[1] = 0
    with small()(model):
        assert torch.allclose(logits(model, tokens, attention_mask=mask)[:1], logits(model, tokens[:1]), atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_a_segment_chooses_causally_and_the_last_probe_does_not(model, rows: int, side: str | None) -> None:
    tokens = ids(80, rows=rows)
    mask = torch.ones_like(tokens)
    if side:
        mask[0, : 5 if side == "left" else None] = 0 if side == "left" else 1
        mask[0, 75:] = 0 if side == "right" else 1
    moved = dict.fromkeys((None, 12), 0.0)
    for segment in moved:
        with small(segment=segment, tau=0.3)(model):
            before = logits(model, tokens, attention_mask=mask)
            for t in (14, 30, 70):
                other = tokens.clone()
                other[:, t:] = ids(80 - t, rows, seed=t)
                after = logits(model, other, attention_mask=mask)
                real = mask[:, :t].bool()
                moved[segment] = max(moved[segment], float((before - after)[:, :t][real].abs().max()))
    assert moved[12] < 1e-5
    assert moved[None] > 0.01


def test_chunks_of_whole_segments_equal_one_piece(model) -> None:
    tokens = ids(77)
    with small(segment=12, tau=0.3)(model), torch.no_grad():
        whole = logits(model, tokens)
        cache, parts = None, []
        for start, stop in ((0, 24), (24, 36), (36, 72), (72, 77)):
            output = model(tokens[:, start:stop], cache=cache)
            cache = output.cache
            parts.append(output.logits)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-9)


def test_a_chunk_is_probed_by_its_own_last_queries(model) -> None:
    tokens = ids(80)
    method = small()
    with method(model), torch.no_grad():
        cache = model(tokens[:, :30]).cache
        found = logits(model, tokens[:, 30:], cache=cache)
    reference, seen = logits(model, tokens), small(gamma=1.0)
    with seen(model), torch.no_grad():
        full = logits(model, tokens[:, 30:], cache=model(tokens[:, :30]).cache)
    assert torch.allclose(full, reference[:, 30:], atol=1e-9)
    assert (found - full).abs().max() > 0.01
    assert all(0 < ratio < 1 for ratio in method.computed_ratio_.values())


def test_decoding_is_left_as_it_is(model) -> None:
    tokens = ids(60)
    with torch.no_grad():
        cache = model(tokens[:, :-3]).cache
        expected = [logits(model, tokens[:, [t]], cache=cache) for t in (-3, -2, -1)]
        cache = model(tokens[:, :-3]).cache
        method = small()
        with method(model):
            found = [logits(model, tokens[:, [t]], cache=cache) for t in (-3, -2, -1)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert method.computed_ratio_ == {}


def test_generate_in_a_padded_batch_and_in_chunks(model) -> None:
    tokens, options = ids(60), {"max_new_tokens": 5, "do_sample": False}
    with small(segment=12)(model):
        alone = model.generate(tokens[:1], **options)[0, 60:]
        chunked = model.generate(tokens[:1], prefill_chunk_size=12, **options)[0, 60:]
        batch = torch.stack([pad(tokens[0], (9, 0), value=2), torch.cat([tokens[1], tokens[1, :9]])])
        mask = torch.ones_like(batch)
        mask[0, :9] = 0
        padded = model.generate(batch, attention_mask=mask, **options)[0, 69:]
    assert torch.equal(alone, chunked)
    assert torch.equal(alone, padded)


def test_read_outs_tell_what_was_computed(model) -> None:
    method = small(tau=0.0, gamma=0.3)
    with method(model):
        logits(model, ids(80))
        assert set(method.computed_ratio_) == {0, 1}
        assert all((2 * 20 - 1) / 210 <= ratio < 1 for ratio in method.computed_ratio_.values())
        assert method.query_aware_ == {0: 0.0, 1: 0.0}
        method.tau = 1.0
        logits(model, ids(80))
        assert method.query_aware_ == {0: 1.0, 1: 1.0}
        logits(model, ids(8))
        assert method.computed_ratio_ == {0: 1.0, 1: 1.0}


def test_a_models_own_windows_and_caps_are_kept() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=270, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=16, attn_logit_softcapping=2.0, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval().double()
    tokens = ids(60)  # whose own attention takes its softmax in float32
    full = logits(model, tokens)
    with small(gamma=1.0)(model):
        assert torch.allclose(logits(model, tokens), full, atol=1e-5)
    method = small()
    with method(model):
        assert (logits(model, tokens) - full).abs().max() > 0.01
        short = logits(model, tokens[:, :7])
    assert torch.allclose(short, full[:, :7], atol=1e-5)
    assert set(method.computed_ratio_) == {1}  # layer 0 has a window of its own


def test_a_model_with_learned_positions() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=270, n_positions=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval().double()
    tokens = ids(80)
    full = logits(model, tokens)
    with small(gamma=1.0)(model):
        assert torch.allclose(logits(model, tokens), full, atol=1e-9)
    method = small()
    with method(model):
        assert (logits(model, tokens) - full).abs().max() > 0.01
        assert torch.allclose(logits(model, tokens[:, :8]), full[:, :8], atol=1e-9)
    assert set(method.computed_ratio_) == {0, 1}
    assert torch.equal(logits(model, tokens), full)


def test_a_mask_of_ones_own_is_refused(model) -> None:
    mask = torch.ones(2, 1, 80, 80, dtype=torch.bool).tril()
    with small()(model):
        expected = logits(model, ids(80))
        assert torch.allclose(logits(model, ids(80), attention_mask=mask), expected, atol=1e-9)
        mask[:, :, 40:, 3:9] = False
        with pytest.raises(InputError, match="not plain causality and padding"):
            logits(model, ids(80), attention_mask=mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma=0.0 .expected more than 0, to 1"),
        ({"gamma": 2.0}, "gamma=2.0 .expected more than 0, to 1"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"tau": math.nan}, "tau=nan"),
        ({"tau": -1.0}, "tau=-1.0"),
        ({"block_size": 0}, "block_size=0"),
        ({"min_budget": 9, "max_budget": 8}, "max_budget=8 .expected at least min_budget"),
        ({"rounding": "up"}, "expected paper or code"),
        ({"backend": "cuda"}, "expected auto, blocks, flex"),
        ({"segment": 10}, "segment=10 .expected a multiple of block_size=4"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(model, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options).install(model)


def test_training_with_dropout_is_refused(tiny_model) -> None:
    model = tiny_model(pad_token_id=0, attention_dropout=0.1).train()
    with small()(model), pytest.raises(InputError, match=r"expected model.eval\(\)"):
        model(ids(80))


@pytest.mark.real
def test_on_real_text_the_share_that_is_kept_decides_the_loss(default_model) -> None:
    from pydoc_data.topics import topics  # Python's own reference

    model, tokenizer = default_model
    tokens = tokenizer("\n\n".join(topics.values())[:9_000], return_tensors="pt").input_ids[:, :1000]
    found, computed = {}, {}
    for gamma in (1.0, 0.95, 0.5):
        method = FlexPrefill(gamma=gamma, min_budget=128)
        with method(model):
            found[gamma] = float(cross_entropy(logits(model, tokens)[0, :-1], tokens[0, 1:]))
        computed[gamma] = sum(method.computed_ratio_.values())
    assert abs(found[0.95] - found[1.0]) < abs(found[0.5] - found[1.0])
    assert computed[0.5] < computed[0.95] < 0.95 * len(method.computed_ratio_)
