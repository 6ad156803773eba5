"""InfLLM against a token loop written from the paper, and the properties of its memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend.infllm import InfLLM, InfLLMState
from broadsheet.attend.kernels.blocks import Blocks
from broadsheet.attend.kernels.joint import Keys, attend_jointly
from broadsheet.attend.memory import Layer, cache_bytes
from broadsheet.attend.rotary import Rotary
from broadsheet.console import InputError

N = 40
SMALL = InfLLM(n_local=7, n_init=2, block_size=3, top_k=2, representatives=2)
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def layer(heads: int = 4, kv_heads: int = 2, width: int = 8, softcap: float | None = None, **rope: Any) -> Layer:
    config = LlamaConfig(head_dim=width, **({"rope_parameters": rope} if rope else {}))
    rotary = Rotary(LlamaRotaryEmbedding(config), apply_rotary_pos_emb)
    return Layer(0, heads, kv_heads, width, width**-0.5, softcap, None, rotary)


def draw(of: Layer, n: int = N, rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in float64; wide enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, of.head_dim)
    query = 2 * torch.randn(rows, of.heads, *shape, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, rows, of.kv_heads, *shape, generator=generator, dtype=torch.float64)
    return query, key, value


def read(state: Any, tensors: tuple[Tensor, ...], cuts: list[int] | None = None) -> Tensor:
    """The output of a text that is read in pieces, which end at `cuts`."""
    stops = sorted({*(cuts or []), tensors[0].shape[2]})
    pieces = zip([0, *stops], stops, strict=False)
    return torch.cat([state.attend(*(each[:, :, start:stop] for each in tensors)) for start, stop in pieces], 2)


def close(got: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=tolerance)


@dataclass
class Told:
    """What the token loop found, of one row."""

    output: Tensor
    weights: Tensor  # (heads, queries, tokens)
    blocks: list[list[int]] = field(default_factory=list)
    representatives: list[Tensor] = field(default_factory=list)  # of each block, (heads, head_dim)
    members: list[Tensor] = field(default_factory=list)  # of each block, tokens (heads, representatives)
    selected: list[Any] = field(default_factory=list)  # of each query, blocks, or blocks of each head


def token_loop(method: InfLLM, of: Layer, query: Tensor, key: Tensor, value: Tensor, cuts: list[int]) -> Told:
    """InfLLM of one row, from the paper: query by query and head by head, without windows, buffers or merges.

    `cuts` are where execution blocks end; the last is the length.
    """
    n, far = query.shape[1], method.n_local - 1 if method.far_distance is None else method.far_distance
    key, value = (each.repeat_interleave(of.group, 0) for each in (key, value))
    at = lambda x, position: of.rotary.rotate(x[None], position)[0]  # noqa: E731
    near_query, near_key = at(query, range(n)), at(key, range(n))
    far_query, far_key = at(query, far), at(key, 0)
    score = torch.zeros(of.heads, n, dtype=query.dtype)
    told = Told(torch.zeros_like(query), torch.zeros(of.heads, n, n, dtype=query.dtype))
    oldest = initial = start = 0  # the remainder's first token; how many first tokens there are
    for stop in cuts:
        relevance = (
            torch.stack(
                [
                    far_query[:, start:stop].mean(1)[h] @ torch.stack([r[h] for r in told.representatives]).T
                    for h in range(of.heads)
                ]
            )
            if told.blocks
            else torch.zeros(of.heads, 0)
        )
        if not method.per_head:
            relevance = relevance.sum(0, keepdim=True).expand(of.heads, -1)
        top = relevance.topk(min(method.top_k, len(told.blocks)), -1).indices.sort(-1).values.tolist()
        for i in range(start, stop):
            told.selected.append(top if method.per_head else top[0])
            for h in range(of.heads):
                near = list(range(max(0, i - method.n_local + 1), i + 1))
                distant = list(range(min(initial, i + 1)))
                for block in top[h]:
                    distant += told.blocks[block]
                waiting = range(oldest, i - method.n_local + 1)
                distant += [m for m in waiting if method.top_k or m < method.n_init]
                logits = (
                    torch.cat((near_key[h, near] @ near_query[h, i], far_key[h, distant] @ far_query[h, i]))
                    * of.scaling
                )
                if of.softcap:
                    logits = of.softcap * torch.tanh(logits / of.softcap)
                share = logits.softmax(0)
                assert len({*near, *distant}) == len(near) + len(distant), "a token counts twice"
                told.weights[h, i, near + distant] = share
                told.output[h, i] = share @ value[h, near + distant]
                if method.score == "probability":
                    score[h, near] += share[: len(near)]
                else:
                    ahead = range(max(0, i - method.n_local), i)
                    score[h, ahead] += near_key[h, ahead] @ near_query[h, i]
        start = stop
        while initial < method.n_init and stop - oldest > method.n_local:
            initial, oldest = initial + 1, oldest + 1
        while not method.top_k and stop - oldest > method.n_local:
            oldest += 1
        while stop - oldest - method.block_size >= method.n_local:
            block = list(range(oldest, oldest + method.block_size))
            members = torch.stack(
                [score[h, block].topk(method.representatives).indices + oldest for h in range(of.heads)]
            )
            told.blocks.append(block)
            told.members.append(members)
            told.representatives.append(torch.stack([key[h, members[h]].mean(0) for h in range(of.heads)]))
            oldest += method.block_size
    return told


@cache
def told_one_by_one(fields: tuple[Any, ...], row: int) -> Told:
    of = layer()
    return token_loop(InfLLM(*fields), of, *(each[row] for each in draw(of)), cuts=list(range(1, N + 1)))


def closed_formula(
    of: Layer, query: Tensor, key: Tensor, value: Tensor, n_local: int, seen: Callable[..., Tensor]
) -> Tensor:
    """Dense attention where a key `n_local` or more back stands at distance `n_local` - 1, and counts if `seen`."""
    n = query.shape[2]
    key, value = (each.repeat_interleave(of.group, 1) for each in (key, value))
    rotate = of.rotary.rotate
    near = rotate(query, range(n)) @ rotate(key, range(n)).transpose(-1, -2)
    far = rotate(query, n_local - 1) @ rotate(key, 0).transpose(-1, -2)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    logits = torch.where(i - j < n_local, near, far) * of.scaling
    visible = (j <= i) & ((i - j < n_local) | seen(i, j))
    return logits.masked_fill(~visible, -torch.inf).softmax(-1) @ value


CUTS = [[], [1, 2, 19, 20], [6, 13, 39], list(range(1, N))]


@pytest.mark.parametrize("cuts", CUTS, ids=["whole", "some", "others", "one by one"])
@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        replace(SMALL, top_k=1, representatives=1, n_init=0),
        replace(SMALL, top_k=99),
        replace(SMALL, top_k=0),
        replace(SMALL, per_head=True),
        replace(SMALL, score="logit"),
        replace(SMALL, representatives=3),
        replace(SMALL, far_distance=7, n_init=9),
        replace(SMALL, block_size=11, n_local=5),
        replace(SMALL, offload=True, max_cached_blocks=2, top_k=2),
        replace(SMALL, offload=True, max_cached_blocks=3, top_k=3, block_size=2, per_head=True),
    ],
    ids=lambda method: repr(method)[7:-1] if isinstance(method, InfLLM) else None,
)
def test_each_query_looks_up_its_own_however_the_text_is_cut(method: InfLLM, cuts: list[int]) -> None:
    of = layer()
    state = InfLLMState(of, method)
    got = read(state, draw(of), cuts)
    for row in range(2):
        told = told_one_by_one(astuple(method), row)
        close(got[row], told.output)
        close(state.representatives[row], torch.stack(told.representatives) if told.blocks else torch.empty(0, 4, 8))
        last = state.selected[row, :, -1].sort(-1).values.tolist()
        assert last == (told.selected[-1] if method.per_head else [told.selected[-1]])


@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize("per_head", [False, True])
def test_shared_lookups_are_the_papers(score: Any, per_head: bool) -> None:
    of = layer()
    tensors = draw(of, seed=1)
    method = replace(SMALL, execution_block=8, score=score, per_head=per_head)
    for cuts, blocks in (([], [8, 16, 24, 32, N]), ([5, 24, 25], [5, 8, 16, 24, 25, 32, N])):
        state = InfLLMState(of, method)
        got = read(state, tensors, cuts)
        for row in range(2):
            told = token_loop(method, of, *(each[row] for each in tensors), cuts=blocks)
            close(got[row], told.output)
            close(state.representatives[row], torch.stack(told.representatives))


def test_pieces_that_end_with_execution_blocks_change_no_bit() -> None:
    of = layer()
    tensors = draw(of)
    method = replace(SMALL, execution_block=8)
    whole = read(InfLLMState(of, method), tensors)
    assert torch.equal(read(InfLLMState(of, method), tensors, [8, 24]), whole)
    assert not torch.allclose(read(InfLLMState(of, method), tensors, [20]), whole)


def test_within_the_window_it_is_full_attention() -> None:
    of = layer()
    query, key, value = draw(of)
    rotated = (of.rotary.rotate(x, range(N)) for x in (query, key))
    full = torch.nn.functional.scaled_dot_product_attention(*rotated, value, is_causal=True, enable_gqa=True)
    for cuts in CUTS:
        close(read(InfLLMState(of, replace(SMALL, n_local=N)), (query, key, value), cuts), full)


@pytest.mark.parametrize("execution_block", [1, 5])
def test_without_blocks_it_is_a_lambda_shaped_window(execution_block: int) -> None:
    of = layer()
    tensors = draw(of)
    method = replace(SMALL, top_k=0, n_init=4, execution_block=execution_block)
    expected = closed_formula(of, *tensors, method.n_local, lambda i, j: j < 4)
    for cuts in CUTS:
        close(read(InfLLMState(of, method), tensors, cuts), expected)


@pytest.mark.parametrize("execution_block", [1, 5, 64])
def test_with_all_blocks_it_is_the_closed_formula_however_the_text_is_cut(execution_block: int) -> None:
    of = layer()
    tensors = draw(of)
    expected = closed_formula(of, *tensors, SMALL.n_local, lambda i, j: j >= 0)
    for cuts in CUTS:
        close(read(InfLLMState(of, replace(SMALL, top_k=99, execution_block=execution_block)), tensors, cuts), expected)


@pytest.mark.parametrize("method", [SMALL, replace(SMALL, top_k=99), replace(SMALL, execution_block=5)])
def test_weights_sum_to_one_and_no_token_counts_twice(method: InfLLM) -> None:
    of = layer(width=64)
    query, key, _ = draw(of, rows=1)
    probe = torch.eye(N, 64, dtype=torch.float64).expand(1, of.kv_heads, N, 64)  # the output is the weights
    weights = read(InfLLMState(of, method), (query, key, probe))[0, :, :, :N]
    told = token_loop(
        method, of, query[0], key[0], probe[0], cuts=[*range(method.execution_block, N, method.execution_block), N]
    )
    close(weights.sum(-1), torch.ones(4, N))
    close(weights, told.weights)
    assert torch.equal(weights > 0, told.weights > 0)
    seen = (weights > 0).sum(-1)
    assert (seen == torch.arange(1, N + 1)).all() == (method.top_k == 99)


@pytest.mark.parametrize(
    "method",
    [SMALL, replace(SMALL, top_k=99), replace(SMALL, top_k=0), replace(SMALL, per_head=True), replace(SMALL, n_init=0)],
)
def test_what_the_latest_token_attended_to_is_told(method: InfLLM) -> None:
    of, tokens = layer(), torch.arange(N)
    given = draw(of, rows=1)
    told = token_loop(method, of, *(each[0] for each in given), cuts=[*range(1, N + 1)])
    for cuts in ([], [N - 1], [8, 13, 30]):
        for end in (1, 5, 8, 20, 21, 22, N):
            state = InfLLMState(of, method)
            read(state, tuple(each[:, :, :end] for each in given), [cut for cut in cuts if cut < end])
            alike = state.select(torch.zeros(end, dtype=torch.long))  # a row for each token that is asked about
            shares = alike.attended(tokens[:end])
            close(shares, (told.weights[:, end - 1, :end] > 0).double().mean(0))


def test_blocks_are_what_left_the_remainder_in_order() -> None:
    of = layer(width=8)
    query, key, value = draw(of)
    value = torch.arange(N, dtype=torch.float64)[:, None].expand_as(value)  # every value is its token's number
    state = InfLLMState(of, SMALL)
    for start, stop in zip([0, *CUTS[1]], [*CUTS[1], N], strict=True):
        state.attend(query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop])
        count = len(state.blocks)
        everything = state.blocks.load(torch.arange(count).expand(2, 1, count), state._first, state._first[..., :0, :])
        assert everything[1, 1, 1, :, 0].tolist() == list(range(state.oldest))
        assert state._first.shape[3] == min(SMALL.n_init, max(0, stop - SMALL.n_local))
        remainder = stop - state.oldest
        assert (
            remainder == stop
            if stop <= SMALL.n_local
            else SMALL.n_local <= remainder < SMALL.n_local + SMALL.block_size
        )


def test_representatives_are_of_their_block() -> None:
    of = layer()
    query, key, value = draw(of)
    state = InfLLMState(of, replace(SMALL, representatives=1))
    read(state, (query, key, value))
    for block in range(len(state.blocks)):
        first = SMALL.n_init + block * SMALL.block_size
        for head in range(4):
            own = key[:, head // 2, first : first + SMALL.block_size]
            assert (own == state.representatives[:, block, head, None]).all(-1).any(-1).all()


def test_more_blocks_add_to_fewer() -> None:
    of = layer()
    tensors = draw(of)
    # Mean keys do not depend on what was looked up, so that the lookups are about the same blocks.
    selected = []
    for top_k in (1, 2, 4):
        state = InfLLMState(of, replace(SMALL, top_k=top_k, representatives=3))
        read(state, tensors)
        selected.append([set(row.flatten().tolist()) for row in state.selected[:, 0]])
    assert all(one < two < four for one, two, four in zip(*selected, strict=True))


def test_what_is_on_the_device_does_not_grow() -> None:
    of = layer()
    tensors = draw(of, n=400)
    for off_device in (True, False):
        state = InfLLMState(of, replace(SMALL, offload=off_device))
        held = []
        for start in range(0, 400, 60):
            read(state, tuple(each[:, :, start : start + 60] for each in tensors))
            kept = state.representatives.numel() * 8
            assert kept == len(state.blocks) * 2 * 4 * 8 * 8
            held.append((state.bytes().on_device - kept, state.bytes().off_device, len(state.blocks)))
        bytes_a_block = 2 * 2 * SMALL.block_size * of.kv_heads * of.head_dim * 8
        for (device, host, blocks), (later_device, later_host, later_blocks) in pairwise(held[1:]):
            grown = (later_blocks - blocks) * bytes_a_block
            assert grown > 0
            assert (later_device - device, later_host - host) == ((0, grown) if off_device else (grown, 0))
        assert held[-1][1] == (held[-1][2] * bytes_a_block if off_device else 0)


def test_one_head_looks_up_for_itself_as_for_the_layer() -> None:
    of = layer(heads=1, kv_heads=1)
    tensors = draw(of)
    outputs = [read(InfLLMState(of, replace(SMALL, per_head=each)), tensors) for each in (False, True)]
    close(*outputs, tolerance=1e-12)


def test_heads_with_lookups_of_their_own_read_other_blocks() -> None:
    of = layer()
    state = InfLLMState(of, replace(SMALL, per_head=True))
    read(state, draw(of))
    assert len({tuple(sorted(blocks.tolist())) for blocks in state.selected[0, :, -1]}) > 1


@pytest.mark.parametrize("tables", [{}, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("score", ["probability", "logit"])
def test_capped_logits_and_scaled_tables(tables: dict[str, Any], softcap: float | None, score: Any) -> None:
    of = layer(softcap=softcap, **tables)
    tensors = draw(of, rows=1)
    for method in (replace(SMALL, score=score), replace(SMALL, score=score, execution_block=8)):
        size = method.execution_block
        told = token_loop(method, of, *(each[0] for each in tensors), cuts=[*range(size, N, size), N])
        close(read(InfLLMState(of, method), tensors)[0], told.output)
    assert (of.rotary.rotate(tensors[0], 0) != tensors[0]).any() == bool(tables)


@pytest.mark.parametrize("cached", [1, 1 << 30])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_joint_attention_is_one_softmax_in_as_many_steps_as_memory_needs(
    softcap: float | None, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broadsheet.attend.kernels.joint._CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    query, other = torch.randn(2, 2, 6, 5, 8, generator=generator, dtype=torch.float64)
    sets, logits, values = [], [], []
    for heads, keys, given in ((3, 7, query), (6, 4, other)):  # the second set has a key head for each head
        key, value = torch.randn(2, 2, heads, keys, 8, generator=generator, dtype=torch.float64)
        mask = torch.where(
            torch.rand(2, heads if keys == 4 else 1, 5, keys, generator=generator) < 0.3, -torch.inf, 0.0
        )
        mask[..., 0] = 0
        sets.append(Keys(given, key, value, mask))
        each = given @ key.repeat_interleave(6 // heads, 1).transpose(-1, -2) * 0.5
        logits.append((softcap * torch.tanh(each / softcap) if softcap else each) + mask)
        values.append(value.repeat_interleave(6 // heads, 1))
    weights = torch.cat(logits, -1).softmax(-1)
    output, received = attend_jointly(sets, scaling=0.5, softcap=softcap)
    close(output, weights @ torch.cat(values, 2), 1e-12)
    close(received, weights[..., :7].sum(2), 1e-12)


def test_rows_are_selected_repeated_and_read_on_apart() -> None:
    of = layer()
    tensors = draw(of)
    start, rest = ([each[:, :, span] for each in tensors] for span in (slice(0, 25), slice(25, N)))
    for method in (SMALL, replace(SMALL, offload=True, execution_block=4)):
        state = InfLLMState(of, method)
        read(state, tuple(start))
        rows = torch.tensor([1, 0, 1])
        chosen = state.select(rows)
        shared = state.bytes().off_device
        assert chosen.bytes().off_device == shared, "beams share their blocks"
        then = read(chosen, tuple(each[rows] for each in rest))
        alone = read(state, tuple(rest))  # the old one was not touched
        close(then, alone[rows], 1e-12)
        fresh = InfLLMState(of, method)
        close(torch.cat((read(fresh, tuple(start)), read(fresh, tuple(rest))), 2)[:, :, 25:], alone)


def test_half_precision_is_close() -> None:
    of = layer()
    tensors = draw(of)
    for method in (replace(SMALL, top_k=99), replace(SMALL, top_k=99, execution_block=8, offload=True)):
        exact = read(InfLLMState(of, method), tensors)
        for dtype in (torch.bfloat16, torch.float16):
            state = InfLLMState(of, method)
            rounded = read(state, tuple(each.to(dtype) for each in tensors), [20, 21])
            assert rounded.dtype == dtype
            assert state.representatives.dtype == torch.float32
            assert (rounded.double() - exact).abs().mean() < 0.02


def test_a_model_reads_pieces_padding_and_beams_alike(tiny_model: Any) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 200, (1, 60), generator=torch.Generator().manual_seed(0))
    with replace(SMALL, offload=True)(model):
        whole = model(ids).logits
        step = torch.cat([(out := model(ids[:, :31])).logits, model(ids[:, 31:], cache=out.cache).logits], 1)
        close(step, whole, 1e-4)
        both = torch.cat([torch.nn.functional.pad(ids, (9, 0)), ids.new_full((1, 69), 5)])
        mask = torch.ones_like(both)
        mask[0, :9] = 0
        close(model(both, attention_mask=mask).logits[:1, 9:], whole, 1e-4)
        changed = ids.clone()
        changed[0, 41:] = 7
        close(model(changed).logits[:, :41], whole[:, :41], 1e-4)
        settings = {"max_new_tokens": 12, "do_sample": False, "num_beams": 3}
        beams = model.generate(ids, **settings)
        assert torch.equal(beams, model.generate(ids, use_cache=False, **settings))
        assert cache_bytes(out.cache).off_device > 0


def test_a_text_may_be_read_on_in_another_mode_of_autograd() -> None:
    of = layer()
    tensors = draw(of)
    state = InfLLMState(of, SMALL)
    whole = read(InfLLMState(of, SMALL), tensors)
    with torch.inference_mode():
        first = read(state, tuple(each[:, :, :30] for each in tensors))
    close(torch.cat((first, read(state, tuple(each[:, :, 30:] for each in tensors), [3])), 2), whole)
    with torch.enable_grad():
        tracked = read(InfLLMState(of, SMALL), tuple(each.clone().requires_grad_() for each in tensors), [31])
    close(tracked.detach(), whole)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n_local": 0}, "got n_local=0; expected at least 1"),
        ({"top_k": -1}, "got top_k=-1"),
        ({"representatives": 4}, "got representatives=4; expected 1 to 3"),
        ({"max_cached_blocks": 1}, "got max_cached_blocks=1; expected at least top_k=2"),
        ({"score": "paper"}, "got score='paper'"),
        ({"offload": "disk"}, "got offload='disk'"),
        ({"far_distance": 999}, "999 tokens away, but the model was trained on 256"),
    ],
)
def test_bad_hyperparameters_are_refused(tiny_model: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(SMALL, **fields).install(tiny_model(pad_token_id=0))


def test_the_block_wanted_longest_ago_gives_way() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 2, 2, 1 + 12 * 3 + 1, 4, generator=generator)
    for choosers, most in ((1, 3), (1, 5), (4, 4)):
        blocks = Blocks(2, 3, choosers, max_loaded=most)
        blocks.add(text[..., 1:-1, :])
        expected: dict[tuple[int, int], OrderedDict[int, None]] = {}
        loads = 0
        for step in range(60):
            # More than may stay are wanted now and then: they are all there, and the last of them stay.
            wanted = torch.rand(2, choosers, 12, generator=generator).topk((1, 3, 3, 3, 7)[step % 5], -1).indices
            got = blocks.load(wanted, text[..., :1, :], text[..., -1:, :])
            for row, chooser in product(range(2), range(choosers)):
                numbers = wanted[row, chooser].tolist()
                recent = expected.setdefault((row, chooser), OrderedDict())
                for number in numbers:
                    loads += number not in recent
                    recent[number] = None
                    recent.move_to_end(number)
                while len(recent) > most:
                    recent.popitem(last=False)
                assert list(blocks._loaded[row][chooser]) == list(recent)
                tokens = [0, *(1 + 3 * number + i for number in numbers for i in range(3)), 37]
                mine, its = ((slice(None),) * 2) if choosers == 1 else (slice(chooser, chooser + 1), [chooser // 2])
                assert torch.equal(got[row][:, mine], text[row][:, its][:, :, tokens])
            assert blocks.loads == loads
        assert blocks.bytes().on_device == 2 * choosers * most * 3 * 4 * 2 * 4 * (2 if choosers == 1 else 1)
