"""Dataset decomposition: what pieces, batches and their order must be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from broadsheet.console import InputError
from broadsheet.train import DatasetDecomposition, LossMethod, MethodObjective
from broadsheet.train.dataset_decomposition import (
    BatchRows,
    Decomposition,
    LengthCurriculum,
    decompose,
    long_document_probabilities,
)
from broadsheet.training.fit import fit
from broadsheet.training.scratch import TokenBlocks

LOW, HIGH, TOKENS = 2, 5, 64


def documents(count: int = 400, seed: int = 0) -> list[list[int]]:
    """Each token of its own, so that a piece tells where it comes from: number * 1000 + place."""
    lengths = torch.randint(1, 90, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[1000 * number + place for place in range(length)] for number, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def pieces() -> Decomposition:
    return Decomposition(documents(), LOW, HIGH)


@given(st.integers(0, 5000), st.integers(0, 6), st.integers(0, 5), st.booleans())
def test_every_token_is_in_one_piece_or_in_the_end_that_is_dropped(tokens, low, more, drawn):
    generator = torch.Generator().manual_seed(tokens) if drawn else None
    found, dropped = decompose(tokens, low, low + more, generator)
    at = 0
    for piece in found:
        assert piece.start == at, "in order, and without a gap"
        assert low <= piece.bucket <= low + more
        at += piece.length
    assert at + dropped == tokens
    assert dropped < 2**low + 1 or (tokens <= 1 and dropped == tokens)


@given(st.integers(2, 5000))
def test_what_is_not_drawn_is_the_binary_expansion(tokens):
    found, _ = decompose(tokens, 0, 6)
    counts = Counter(piece.bucket for piece in found)
    assert all(count <= 1 for bucket, count in counts.items() if bucket < 6)
    assert [piece.bucket for piece in found] == sorted((piece.bucket for piece in found), reverse=True)


def test_long_documents_give_each_bucket_as_many_tokens():
    chances = long_document_probabilities(3, 6)
    shares = [chance * 2**bucket for bucket, chance in chances.items()]
    assert shares == pytest.approx([shares[0]] * 4)
    found, _ = decompose(400_000, 3, 6, torch.Generator().manual_seed(1))
    drawn = Counter(piece.bucket for piece in found)
    assert {each: count / len(found) for each, count in drawn.items()} == pytest.approx(chances, rel=0.1)
    straight, _ = decompose(400_000, 3, 6)
    assert {piece.bucket for piece in straight[:-4]} == {6}


def test_no_piece_spans_two_documents_and_nothing_is_padded(pieces):
    for bucket, rows in pieces.buckets.items():
        assert rows.shape[1] == 2**bucket + 1
        assert bool((rows // 1000 == rows[:, :1] // 1000).all())
        assert bool((rows.diff(dim=1) == 1).all())
    total = sum(map(len, documents()))
    assert sum(rows.numel() for rows in pieces.buckets.values()) + pieces.dropped == total
    assert len(pieces) == sum(map(len, pieces.buckets.values()))
    for bucket in pieces.buckets:
        for place in (pieces.places(bucket)[0], pieces.places(bucket)[-1]):
            assert len(pieces[place]["input_ids"]) == 2**bucket + 1


@pytest.mark.parametrize("curriculum", ["uniform", "grow_linear", "grow_p2", (1, 5, 2, 9)])
def test_each_batch_has_one_length_and_each_row_is_read_once_an_epoch(pieces, curriculum):
    order = LengthCurriculum(pieces, TOKENS, curriculum, cycles=3, epochs=2)
    batches = list(order)
    half = len(batches) // 2
    for batch, bucket in zip(batches, order.lengths, strict=True):
        assert len(batch) * 2**bucket == TOKENS
        assert set(batch) <= set(pieces.places(bucket))
    for epoch in (batches[:half], batches[half:]):
        read = [place for batch in epoch for place in batch]
        assert len(read) == len(set(read))
        assert len(pieces) - len(read) < sum(TOKENS // 2**bucket for bucket in pieces.buckets)
    assert batches[:half] != batches[half:]
    for bucket in pieces.buckets:
        own = [place for batch in batches[:half] for place in batch if place in pieces.places(bucket)]
        assert own != sorted(own), "pieces of one document stand apart"


def drift(order: LengthCurriculum, cycles: int) -> list[tuple[float, float]]:
    """The mean length, in powers of two, of the first and the last third of each cycle."""
    size = len(order.lengths) // cycles
    found = []
    for cycle in range(cycles):
        own = torch.tensor(order.lengths[cycle * size : (cycle + 1) * size]).float()
        found.append((float(own[: size // 3].mean()), float(own[-(size // 3) :].mean())))
    return found


def test_lengths_grow_in_each_cycle_and_begin_again(pieces):
    many = Decomposition(documents(4_000), LOW, HIGH)
    for first, last in drift(LengthCurriculum(many, TOKENS, "grow_p2", cycles=4), 4):
        assert last > first + 0.5
    backwards = LengthCurriculum(many, TOKENS, (1, 10, 100, 1000), cycles=4)
    assert all(last < first for first, last in drift(backwards, 4))
    steepness = [
        sum(last - first for first, last in drift(LengthCurriculum(many, TOKENS, name, cycles=4), 4))
        for name in ("uniform", "grow_linear", "grow_p2")
    ]
    assert steepness == sorted(steepness)


def test_equal_odds_draw_each_length_as_often():
    equal = Decomposition([list(range(2**i + 1)) for i in range(LOW, HIGH + 1) for _ in range(3200 // 2**i)], LOW, HIGH)
    drawn = Counter(LengthCurriculum(equal, TOKENS, "uniform", cycles=1).lengths[:100])
    assert all(12 <= count <= 38 for count in drawn.values())


def test_a_resumed_order_is_the_rest_of_it(pieces):
    whole = list(LengthCurriculum(pieces, TOKENS, seed=4))
    begun = LengthCurriculum(pieces, TOKENS, seed=4)
    stream = iter(begun)
    first = [next(stream) for _ in range(7)]
    rest = LengthCurriculum(pieces, TOKENS, seed=4)
    rest.load_state_dict(begun.state_dict())
    assert first + list(rest) == whole
    assert list(rest) == whole, "and then it begins again"
    assert list(LengthCurriculum(pieces, TOKENS, seed=5)) != whole


def test_a_data_loader_takes_the_order_as_its_batch_sampler(pieces):
    def stack(rows):
        return torch.stack([row["input_ids"] for row in rows])

    order = LengthCurriculum(pieces, TOKENS)
    shapes = [tuple(batch.shape) for batch in DataLoader(pieces, batch_sampler=order, collate_fn=stack)]
    assert shapes == [(TOKENS // 2**bucket, 2**bucket + 1) for bucket in order.lengths]


def test_parts_of_a_batch_follow_each_other_and_are_the_batch(pieces):
    order = LengthCurriculum(pieces, TOKENS)
    whole, parts = BatchRows(pieces, order), BatchRows(pieces, order, parts=2)
    assert len(parts) == 2 * len(whole)
    for number in (0, 5, len(whole) - 1):
        both = torch.cat([parts[2 * number]["input_ids"], parts[2 * number + 1]["input_ids"]])
        assert torch.equal(both, whole[number]["input_ids"])
        assert "attention_mask" not in whole[number]


def weights(model) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def in_trainer(model, rows: BatchRows, folder: Path, **more) -> torch.Tensor:
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", "report_to": [],
        "learning_rate": 1e-2, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "optim": "sgd",
        "remove_unused_columns": False, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **settings | more)
    Trainer(model, arguments, train_dataset=rows, data_collator=rows.collate).train()
    return weights(model)


def short(count: int = 60) -> list[list[int]]:
    return [[token % 20 for token in document] for document in documents(count)]


def test_a_trainer_reads_whole_batches_or_their_parts_and_fit_does_the_same(tiny, tmp_path):
    method = DatasetDecomposition(low=2, high=4, cycles=2)
    whole = in_trainer(tiny(), method.rows(short(), 32), tmp_path)
    parted = in_trainer(tiny(), method.rows(short(), 32, parts=2), tmp_path, gradient_accumulation_steps=2)
    torch.testing.assert_close(parted, whole)
    model = tiny()
    fit(
        model, method.rows(short(), 32), MethodObjective(LossMethod()), steps=6, batch_size=1, learning_rate=1e-2,
        autocast="none", optim="sgd", schedule="constant", warmup=0.0, max_grad_norm=0.0,
    )  # fmt: skip
    torch.testing.assert_close(weights(model), whole)


def test_one_length_is_the_plain_training_on_the_same_sequences(tiny, tmp_path):
    ids = torch.randint(0, 20, (24, 9), generator=torch.Generator().manual_seed(2))
    rows = DatasetDecomposition(low=3, high=3, cycles=1).rows(ids.tolist(), 32)
    plain = TokenBlocks(torch.cat([rows[i]["input_ids"] for i in range(len(rows))]).flatten(), 9)
    ours = in_trainer(tiny(), rows, tmp_path)
    theirs = tiny()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4,
        train_sampling_strategy="sequential", report_to=[], learning_rate=1e-2, use_cpu=True, save_strategy="no",
        disable_tqdm=True, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    Trainer(theirs, arguments, train_dataset=plain).train()
    torch.testing.assert_close(ours, weights(theirs), atol=1e-6, rtol=1e-6)


def test_what_cannot_be_is_refused(pieces):
    with pytest.raises(InputError, match="none of 5 tokens or more"):
        Decomposition([[1, 2, 3]], 2, 4)
    with pytest.raises(InputError, match="expected the shorter first"):
        decompose(10, 4, 2)
    with pytest.raises(InputError, match="expected a multiple of them"):
        LengthCurriculum(pieces, 48)
    with pytest.raises(InputError, match="expected one of uniform, grow_linear, grow_p2"):
        LengthCurriculum(pieces, TOKENS, "grow")
    with pytest.raises(InputError, match="expected one above 0 for each"):
        LengthCurriculum(pieces, TOKENS, (1, 2))
    with pytest.raises(InputError, match="cycles 0"):
        LengthCurriculum(pieces, TOKENS, cycles=0)
    with pytest.raises(InputError, match="which make no batch"):
        LengthCurriculum(Decomposition([list(range(6))], 2, 2), TOKENS)
    with pytest.raises(InputError, match="expected a multiple of 4"):
        BatchRows(pieces, LengthCurriculum(pieces, TOKENS), parts=4)
