"""LongHeads: each head's list of chunks, against a loop over heads and tokens that does what the paper says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import attending
import pytest
import torch
from torch import Tensor

from broadsheet.attend import longheads
from broadsheet.attend.longheads import ChunkState, LongHeads, coverage
from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary
from broadsheet.console import InputError

ROWS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 8
W, A = 4, 20  # five chunks: the first, two chosen ones, the last, the tail
LENGTH = 63


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def layer(softcap: float | None = None) -> Layer:
    return replace(attending.layer(HEADS, KV_HEADS, WIDTH), softcap=softcap)


def state(method: LongHeads | None = None, **kwargs: Any) -> ChunkState:
    made = (method or LongHeads(W, A)).state(layer(**kwargs))
    assert isinstance(made, ChunkState)
    return made


def text(length: int = LENGTH, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(ROWS, heads, length, WIDTH, generator=generator).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def in_pieces(memory: ChunkState, given: list[Tensor], cuts: list[int]) -> Tensor:
    """Outputs of a text read piece by piece; `cuts` are where pieces end."""
    starts = [memory.seen, *cuts[:-1]]
    return torch.cat([memory.attend(*(x[:, :, a:b] for x in given)) for a, b in zip(starts, cuts, strict=True)], 2)


def softmax_of(logits: Tensor, softcap: float | None) -> Tensor:
    logits = logits * WIDTH**-0.5
    return torch.softmax(torch.tanh(logits / softcap) * softcap if softcap else logits, -1)


def put(x: Tensor, positions: Tensor) -> Tensor:
    """(tokens, head_dim) at positions, by the textbook: pairs half a head apart, base 10,000."""
    angles = positions[:, None].double() * 10000.0 ** -(torch.arange(0, WIDTH, 2).double() / WIDTH)
    a, b = x[:, : WIDTH // 2], x[:, WIDTH // 2 :]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


def summary(query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Tensor:
    """Of one chunk for one head; (w, head_dim) each."""
    query, key = put(query, torch.arange(len(query))), put(key, torch.arange(len(key)))
    pooled = (softmax_of(query @ key.T, softcap) @ value).mean(0)
    return softmax_of(pooled @ key.T, softcap) @ key


def reference(
    given: list[Tensor], w: int = W, length: int = A, begin: int | None = None, softcap: float | None = None
) -> tuple[Tensor, list[list[list[list[int]]]]]:
    """Outputs and chosen chunks (by row, head, token), a token at a time; float64."""
    query, key, value = (x.double() for x in given)
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    output = torch.zeros_like(query)
    lists: list[list[list[list[int]]]] = [[[] for _ in range(HEADS)] for _ in range(ROWS)]
    for row in range(ROWS):
        for head in range(HEADS):
            q, k, v = (x[row, head] for x in (query, key, value))
            summaries = [summary(*(x[c : c + w] for x in (q, k, v)), softcap) for c in range(0, len(q) - w + 1, w)]
            for i in range(len(q)):
                complete = (i + 1) // w
                chunks = list(range(complete))
                if i + 1 > (begin or length):
                    between = sorted(range(1, complete - 1), key=lambda c: -float(q[i] @ summaries[c]))
                    chunks = [0, *sorted(between[: length // w - 3]), complete - 1]
                tokens = [t for c in chunks for t in range(c * w, c * w + w)] + list(range(complete * w, i + 1))
                places = torch.arange(len(tokens))
                logits = put(q[i : i + 1], places[-1:]) @ put(k[tokens], places).T
                output[row, head, i] = (softmax_of(logits, softcap) @ v[tokens])[0]
                lists[row][head].append(chunks)
    return output, lists


def close(a: Tensor, b: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-9, atol=atol)


@pytest.mark.parametrize(
    ("w", "length", "begin", "softcap"),
    [
        (4, 20, None, None),
        (4, 12, None, None),
        (5, 20, 27, None),
        (1, 6, None, None),
        (8, 32, None, 2.0),
    ],
)
def test_every_token_reads_what_the_paper_says(w: int, length: int, begin: int | None, softcap: float | None) -> None:
    given = text()
    expected, lists = reference(given, w, length, begin, softcap)
    method = LongHeads(w, length, begin)
    whole = state(method, softcap=softcap)
    close(whole.attend(*given), expected)
    assert whole.chosen_.tolist() == [[head[-1] for head in row] for row in lists]
    alone = state(method, softcap=softcap)
    for i in range(LENGTH):
        close(alone.attend(*(x[:, :, i : i + 1] for x in given)), expected[:, :, i : i + 1])
        assert alone.chosen_.tolist() == [[head[i] for head in row] for row in lists], i


def test_summaries_of_complete_chunks() -> None:
    given = text()
    memory = state()
    in_pieces(memory, given, [3, 4, 11, LENGTH])
    query, key, value = (x.double() for x in given)
    for row in range(ROWS):
        for head in range(HEADS):
            for chunk in range(LENGTH // W):
                part = slice(chunk * W, chunk * W + W)
                mine, shared = (row, head, part), (row, head * KV_HEADS // HEADS, part)
                close(memory.summaries[row, head, chunk], summary(query[mine], key[shared], value[shared], None))
    assert memory.summaries.shape[2] == LENGTH // W


@pytest.mark.parametrize("cuts", [[1, 2, 25, 63], [20, 21, 40, 63], [19, 24, 28, 63], [30, 31, 32, 33, 63], [59, 63]])
def test_pieces_are_as_one_piece(cuts: list[int]) -> None:
    given = text()
    whole, pieces = state(), state()
    close(in_pieces(pieces, given, cuts), whole.attend(*given))
    assert torch.equal(pieces.chosen_, whole.chosen_)
    close(pieces.summaries, whole.summaries)


def test_blocks_of_queries_are_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    given = text()
    whole = state().attend(*given)
    monkeypatch.setattr(longheads, "_BLOCK_BYTES", 1)
    small = state()
    assert small._block(given[0]) == W
    close(small.attend(*given), whole)


@pytest.mark.parametrize("length", [1, W, A - 1, A])
def test_full_attention_while_nothing_is_dropped(length: int) -> None:
    query, key, value = text(length)
    rotary = layer().rotary
    expected = torch.nn.functional.scaled_dot_product_attention(
        rotary.rotate(query, range(length)),
        rotary.rotate(key, range(length)),
        value,
        is_causal=True,
        enable_gqa=True,
    )
    close(state().attend(query, key, value), expected)


def test_nothing_dropped_is_full_attention_also_in_the_lists() -> None:
    """Numbering anew keeps all distances: with a place for every chunk, lists give what full attention gives."""
    given = text(47)
    full = state(LongHeads(W, 12 * W))
    listed = ChunkState(layer(), W, 12, begin=44)
    expected = full.attend(*given)
    got = in_pieces(listed, given, [44, 45, 47])
    assert listed._early.shape[2] == 0, "the last tokens were read in full"
    close(got, expected)


def test_what_is_dropped_shows() -> None:
    given = text()
    full = state(LongHeads(W, 64)).attend(*given)
    sparse = state().attend(*given)
    close(sparse[:, :, :A], full[:, :, :A])
    differences = (sparse - full).abs().amax((0, 1, 3))
    assert bool((differences[A:] > 1e-3).all())


def test_no_position_reaches_the_attention_length(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = []
    rotate = Rotary.rotate

    def spy(self: Rotary, x: Tensor, positions: Any) -> Tensor:
        highest.append(int(positions.max()) if isinstance(positions, Tensor) else max(positions))
        return rotate(self, x, positions)

    monkeypatch.setattr(Rotary, "rotate", spy)
    memory = state()
    in_pieces(memory, text(), [50, 51, 59, *range(60, LENGTH + 1)])
    assert max(highest) == A - 1


def test_first_and_last_chunk_and_as_many_as_fit() -> None:
    memory, given = state(), text()
    for i in range(LENGTH):
        memory.attend(*(x[:, :, i : i + 1] for x in given))
        complete = (i + 1) // W
        chosen = memory.chosen_
        assert chosen.shape == (ROWS, HEADS, min(A // W - 1, complete) if i >= A else complete)
        if complete:
            assert bool((chosen[..., 0] == 0).all())
            assert bool((chosen[..., -1] == complete - 1).all())
        assert bool((chosen.diff() > 0).all())


def test_heads_choose_apart() -> None:
    memory = state()
    memory.attend(*text())
    lists = {tuple(chosen) for chosen in memory.chosen_[0].tolist()}
    assert len(lists) > 1


@pytest.mark.parametrize("alone", [False, True])
def test_a_token_reads_itself(alone: bool) -> None:
    given = text()
    expected = state().attend(*given)
    for i in range(A, LENGTH):
        value = given[2].clone()
        value[:, :, i] += 100
        changed = [*given[:2], value]
        cuts = [i, i + 1] if alone else [i + 1]
        got = in_pieces(state(), changed, cuts)
        close(got[:, :, :i], expected[:, :, :i])
        assert bool(((got - expected[:, :, : i + 1])[:, :, i] > 1e-4).all()), i


def test_later_tokens_change_nothing() -> None:
    given = text()
    expected = state().attend(*given)
    for t in (5, A, 30, 31, 32, 50):
        other = [x.clone() for x in given]
        for x in other:
            x[:, :, t + 1 :] *= -3
        close(state().attend(*other)[:, :, : t + 1], expected[:, :, : t + 1])


def test_chunks_that_nobody_chose_can_change_places() -> None:
    given = text()
    memory = state()
    expected = memory.attend(*given)[0, :, -1]
    chunks = LENGTH // W
    unread = sorted(set(range(chunks)) - set(memory.chosen_[0].flatten().tolist()))
    _, first, second, _ = memory.chosen_[0, 0].tolist()
    assert len(unread) > 1, "the seed leaves no chunks unread"

    def swapped(a: int, b: int) -> Tensor:
        order = list(range(chunks))
        order[a], order[b] = b, a
        tokens = [c * W + j for c in order for j in range(W)] + list(range(chunks * W, LENGTH))
        return state().attend(*(x[:, :, tokens] for x in given))[0, :, -1]

    close(swapped(unread[0], unread[1]), expected)
    assert (swapped(first, second) - expected).abs().max() > 1e-3


def test_a_summary_knows_its_chunk_only() -> None:
    given = text()
    twice = [torch.cat((x[:, :, : 5 * W], x[:, :, 2 * W :]), 2) for x in given]  # chunks 2, 3, 4 again as 5, 6, 7
    memory = state()
    memory.attend(*twice)
    close(memory.summaries[:, :, 5:8], memory.summaries[:, :, 2:5])


def test_work_per_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    part = longheads.attention_part

    def spy(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:
        pairs.append(query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2])
        return part(query, key, value, **kwargs)

    monkeypatch.setattr(longheads, "attention_part", spy)

    def counted(read: Callable[[], Any]) -> int:
        pairs.clear()
        read()
        return sum(pairs)

    short, long = text(40 * W + 1), text(80 * W + 1)
    prompts = []
    steps = []
    for given in (short, long):
        memory, n = state(), given[0].shape[2] - 1
        prompts.append(counted(lambda: memory.attend(*(x[:, :, :n] for x in given))))  # noqa: B023
        steps.append(counted(lambda: memory.attend(*(x[:, :, n:] for x in given))))  # noqa: B023
    assert steps[0] == steps[1] == ROWS * HEADS * (A - W + 1)
    assert prompts[1] - prompts[0] <= ROWS * HEADS * 40 * W * (A + W + 1)  # lists, then the summaries


def test_bytes_grow_by_a_quarter_at_most_and_the_early_keys_go() -> None:
    given = text()
    memory = state()
    memory.attend(*(x[:, :, : A - 1] for x in given))
    assert memory._early.shape[2] == A - 1
    for i in range(A - 1, LENGTH):
        memory.attend(*(x[:, :, i : i + 1] for x in given))
        a_token = 8 * ROWS * WIDTH  # bytes
        needed = a_token * (2 * KV_HEADS * memory.seen + HEADS * (memory.seen // W + W))
        assert needed <= memory.bytes().on_device <= 1.25 * needed + a_token * 2 * KV_HEADS * W + 8 * 100
    assert memory._early.numel() == 0


def test_selected_rows_go_on_alone() -> None:
    given = text()
    for cut in (A - 3, 30, 32):
        first = state()
        first.attend(*(x[:, :, :cut] for x in given))
        rows = torch.tensor([1, 1, 0])
        chosen = first.select(rows)
        got = chosen.attend(*(x[rows, :, cut:] for x in given))
        expected = first.attend(*(x[:, :, cut:] for x in given))
        close(got, expected[rows])
        assert torch.equal(chosen.chosen_, first.chosen_[rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    given = text(dtype=dtype)
    memory = state()
    got = memory.attend(*given)
    assert got.dtype == dtype
    assert memory.summaries.dtype == torch.float32
    # Rounding may turn a close choice over: compared in the mean where there are choices.
    expected, _ = reference(given)
    close(got[:, :, :A], expected[:, :, :A], 0.03)
    assert (got.double() - expected).abs().mean() < 0.03


def test_beams_padding_and_pieces_through_a_model(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 250, (1, 45), generator=torch.Generator().manual_seed(0))
    stock = model(ids).logits
    with LongHeads(W, 64)(model):
        close(model(ids).logits, stock, 1e-4)
    with LongHeads(W, A)(model):
        alone = model(ids).logits
        assert (alone - stock)[:, A:].abs().max() > 1e-3
        left = torch.cat([torch.full((1, 6), 0), ids], 1)
        batch = torch.cat([left, torch.cat([ids[:, -6:], ids], 1)])
        mask = torch.ones_like(batch)
        mask[0, :6] = 0
        close(model(batch, attention_mask=mask).logits[:1, 6:], alone, 1e-4)
        settings = {"max_new_tokens": 9, "do_sample": False}
        greedy = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, prefill_chunk_size=7, **settings), greedy)
        assert torch.equal(model.generate(batch, attention_mask=mask, **settings)[:1, 6:], greedy)
        slow = ids
        for _ in range(9):
            slow = torch.cat([slow, model(slow).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(greedy, slow)
        beams = model.generate(ids, num_beams=3, **settings)
        uncached = model.generate(ids, num_beams=3, use_cache=False, **settings)
        assert torch.equal(beams, uncached)
    assert torch.equal(model(ids).logits, stock)


def test_what_the_latest_token_attended_to_is_told() -> None:
    given = text()
    _, lists = reference(given)
    for end in (1, W, A, A + 1, LENGTH - 1, LENGTH):
        memory = state()
        in_pieces(memory, [each[:, :, :end] for each in given], [end])
        for token in range(end):
            shares = memory.attended(torch.full((ROWS,), token))
            for row in range(ROWS):
                read = [token // W in lists[row][head][end - 1] or token >= end // W * W for head in range(HEADS)]
                assert shares[row] == pytest.approx(sum(read) / HEADS)


def test_coverage_counts_what_the_heads_read_together(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 250, (2, 45), generator=torch.Generator().manual_seed(0))
    method = LongHeads(W, A)
    with method(model):
        assert coverage(model(ids[:, :18]).cache) == [1.0, 1.0]
        assert coverage(model(ids[:, : W - 1]).cache) == [], "no chunk is complete"
        cache = model(ids).cache
        shares = coverage(cache)
    states = [layer._parts[0][1] for layer in cache.layers]
    expected = [sum(len(set(row.flatten().tolist())) for row in state.chosen_) / 2 / 11 for state in states]
    assert shares == pytest.approx(expected)
    assert all(4 / 11 < share <= 10 / 11 for share in shares)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LongHeads(64, 250), "attention_length=250, chunk_size=64"),
        (LongHeads(64, 128), "at least three"),
        (LongHeads(0, 128), "chunk_size=0"),
        (LongHeads(4, 64, begin=63), "begin=63"),
        (LongHeads(4, 64, begin=300), "300 tokens away"),
        (LongHeads(4, 260), "260 tokens away"),
    ],
)
def test_lengths_that_do_not_fit(method: LongHeads, message: str, tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=message), method(tiny_model(pad_token_id=0)):
        pass
