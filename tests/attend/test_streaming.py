"""Reading in chunks with stops on the way: the numbers are those of reading in one piece."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count

import pytest
import torch
from torch.nn.functional import cross_entropy

from broadsheet.attend.infllm import InfLLM
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.longheads import LongHeads
from broadsheet.attend.memory import cache_bytes
from broadsheet.attend.trials import streaming
from broadsheet.attend.trials.streaming import ask, branch, read

METHODS = {"full attention": None, "LM-Infinite": LMInfinite(n_global=3, n_local=16)}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(pad_token_id=0)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 260, (90,), generator=torch.Generator().manual_seed(0)).tolist()


def plain_losses(model, ids):
    """-log p of every token but the first, from one forward pass."""
    text = torch.tensor([ids])
    with torch.no_grad():
        return cross_entropy(model(text).logits[0, :-1], text[0, 1:], reduction="none")


@pytest.fixture(params=METHODS)
def attending(request, model):
    """The model as it is, and under a method."""
    if METHODS[request.param] is None:
        yield model
    else:
        with METHODS[request.param](model):
            yield model


@pytest.mark.parametrize("stops", [[90 - 4], [16, 32, 64], [7, 86]])
@pytest.mark.parametrize("chunk", [7, 16, None])
def test_losses_are_those_of_reading_in_one_piece_whatever_the_chunks_and_stops(attending, ids, stops, chunk):
    end = stops[-1] + 4
    record = read(attending, ids[:end], stops, chunk=chunk, decode=4, visitor=lambda cache, stop: None)
    assert record.losses[0].isnan()
    torch.testing.assert_close(record.losses[1:], plain_losses(attending, ids[:end]), rtol=0, atol=2e-5)
    assert [stop.length for stop in record.stops] == stops


def test_text_behind_the_last_stop_is_not_read(model, ids):
    record = read(model, ids, [40], decode=4)
    assert record.losses[1:45].isfinite().all()  # the last token read predicts one more
    assert record.losses[45:].isnan().all()


def test_what_a_visitor_asks_does_not_change_what_is_read(attending, ids):
    quiet = read(attending, ids, [20, 60], chunk=8)
    asked = read(attending, ids, [20, 60], chunk=8, visitor=lambda cache, _: ask(attending, cache, [[5, 6], [7]]))
    assert torch.equal(quiet.losses.nan_to_num(), asked.losses.nan_to_num())
    assert [stop.held for stop in quiet.stops] == [stop.held for stop in asked.stops]


@pytest.mark.parametrize("copies", [1, 2**30])
def test_an_answer_is_that_of_the_text_read_with_the_question_behind_it(attending, ids, copies, monkeypatch):
    monkeypatch.setattr(streaming, "_COPIES", copies)
    questions = [[5, 6, 7], [8], [9, 10, 11]]
    record = read(attending, ids, [30], chunk=8, decode=2, visitor=lambda cache, _: ask(attending, cache, questions))
    answers, attended = record.stops[0].visit
    assert attended.isnan().all(), "nothing was said of what tells the answers"
    for answer, question in zip(answers, questions, strict=True):
        with torch.no_grad():
            expected = attending(torch.tensor([ids[:32] + question])).logits[0, -1]
        torch.testing.assert_close(answer, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["full attention", "LM-Infinite", "InfLLM", "LongHeads"])
@pytest.mark.parametrize("copies", [1, 2**30])
def test_how_much_of_the_model_attended_to_what_was_told_is_known(model, ids, name, copies, monkeypatch):
    monkeypatch.setattr(streaming, "_COPIES", copies)
    methods = {
        "LM-Infinite": LMInfinite(n_global=2, n_local=12),
        "InfLLM": InfLLM(n_local=12, n_init=2, block_size=4, top_k=2),
        "LongHeads": LongHeads(chunk_size=4, attention_length=16),
    }
    questions, told = [[5, 6, 7], [8], [9, 10, 11], [12, 13]], [1, 20, 9, 81]
    with methods[name](model) if name in methods else nullcontext():
        record = read(model, ids, [80], chunk=8, decode=2, visitor=lambda cache, _: ask(model, cache, questions, told))
        shares = record.stops[0].visit[1]
        if name in ("full attention", "LM-Infinite"):
            assert shares.isnan().all()
            return
        for share, question, token in zip(shares, questions, told, strict=True):
            with torch.no_grad():
                cache = model(torch.tensor([ids[:82] + question]), use_cache=True).cache
            expected = [layer.attended(torch.tensor([token])) for layer in cache.layers]
            assert share == pytest.approx(float(torch.stack(expected).mean()))
    assert shares[0] == shares[3] == 1, "the first tokens and the latest are always attended to"


def test_a_branch_reads_on_without_the_cache_it_came_from(attending, ids):
    def visitor(cache, stop):
        before = cache_bytes(cache), cache.get_seq_length()
        copied = branch(cache, 3)
        attending(torch.tensor([[5, 6]] * 3), cache=copied)
        assert copied.get_seq_length() == stop + 8 + 2
        assert (cache_bytes(cache), cache.get_seq_length()) == before

    read(attending, ids, [30], visitor=visitor)


def test_a_tail_is_scored_as_it_is_within_the_whole(attending, ids):
    stops = [30, 60]
    whole = read(attending, ids, stops, chunk=8, decode=4).losses
    tails = read(attending, ids, stops, chunk=8, decode=4, tail=5).losses
    scored = sorted(place for stop in stops for place in range(stop - 5, stop + 5))
    assert tails.isfinite().nonzero()[:, 0].tolist() == scored
    torch.testing.assert_close(tails[scored], whole[scored], rtol=0, atol=2e-5)


@pytest.mark.parametrize("following", [2, 3, 50])
def test_what_follows_a_prompt_is_read_in_small_pieces_and_not_timed(model, ids, following, monkeypatch):
    pieces = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: pieces.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ticks = count()
    monkeypatch.setattr(streaming, "_now", lambda: float(next(ticks)))
    record = read(model, ids, [30, 60], chunk=None, tail=7, following=following, decode=4)
    hook.remove()
    whole = [following] * (8 // following) + [8 % following] * (8 % following > 0)
    # The token that predicts the first of the tail is read behind the prompt.
    assert pieces == [22, *whole, 1, 1, 1, 1, 18, *whole, 1, 1, 1, 1]
    assert [stop.seconds for stop in record.stops] == [1, 2]  # one run of the decoder for each prompt
    scored = sorted(place for stop in (30, 60) for place in range(stop - 7, stop + 5))
    assert record.losses.isfinite().nonzero()[:, 0].tolist() == scored
    torch.testing.assert_close(
        record.losses[scored], plain_losses(model, ids)[[i - 1 for i in scored]], rtol=0, atol=2e-5
    )
    with pytest.raises(ValueError, match="following without tail"):
        read(model, ids, [30], following=following)


def test_bytes_and_seconds_are_counted_up_to_the_stop(model, ids, monkeypatch):
    ticks = count()
    monkeypatch.setattr(streaming, "_now", lambda: next(ticks))  # every look at the clock takes one second
    record = read(model, ids, [20, 60], chunk=10, decode=3)
    # Two looks enclose a chunk; 20 … 23 are read one by one, and then 23 … 60 in four chunks.
    assert [stop.seconds for stop in record.stops] == [2, 2 + 4]
    # Around a token read on its own the decoder looks at the clock as well.
    assert [stop.decode_seconds for stop in record.stops] == [3, 3]
    config = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert [stop.held for stop in record.stops] == [(20 * token, 0), (60 * token, 0)]
    assert not model.model._forward_hooks
    assert not model.model._forward_pre_hooks


def short_of_memory(model, most, monkeypatch):
    """A model that cannot read more than so many tokens at once."""
    forward = model.forward

    def limited(input_ids, **options):
        if input_ids.shape[1] > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate a lot")
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", limited)


def test_out_of_memory_reads_again_in_halved_chunks(model, ids, monkeypatch, capsys):
    expected = read(model, ids, [60]).losses
    short_of_memory(model, 12, monkeypatch)
    record = read(model, ids, [60], chunk=32)
    assert record.chunk == 8
    torch.testing.assert_close(record.losses.nan_to_num(), expected.nan_to_num(), rtol=0, atol=2e-5)
    assert capsys.readouterr().err.splitlines() == [
        f"out of memory: reading the text again in chunks of {size} tokens" for size in (16, 8)
    ]


def test_one_piece_is_not_cut_and_other_errors_are_not_taken_for_memory(model, ids, monkeypatch):
    short_of_memory(model, 12, monkeypatch)
    with pytest.raises(RuntimeError, match="allocate"):
        read(model, ids, [60], chunk=None)
    short_of_memory(model, 0, monkeypatch)
    with pytest.raises(RuntimeError, match="allocate"):  # not even one token
        read(model, ids, [60])

    def broken(**_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        read(model, ids, [60])


@pytest.mark.parametrize("stops", [[], [0], [40, 30], [30, 34], [88]])
def test_stops_that_do_not_suit_the_text_are_refused(model, ids, stops):
    with pytest.raises(ValueError, match="expected them ascending"):
        read(model, ids, stops, decode=4)
