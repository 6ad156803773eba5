"""The tri-gram table: counting, adapting, keeping on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from broadsheet.console import InputError
from broadsheet.decode import TrigramTable
from broadsheet.decode import table as module
from broadsheet.decode.table import pack, vocabulary_hash

SEQUENCES = st.lists(st.lists(st.integers(0, 6), max_size=30), max_size=12)


def counted(sequences: list[list[int]]) -> dict[tuple[int, int], Counter[int]]:
    """Tri-grams counted one by one."""
    counts: dict[tuple[int, int], Counter[int]] = {}
    for sequence in sequences:
        for a, b, c in zip(sequence, sequence[1:], sequence[2:], strict=False):
            counts.setdefault((a, b), Counter())[c] += 1
    return counts


def content(table: TrigramTable) -> dict[tuple[int, int], dict[int, float]]:
    """Every pair of small tokens that has successors."""
    pairs = [(a, b) for a in range(8) for b in range(8)]
    return {pair: dict(table.successors(*pair)) for pair in pairs if table.successors(*pair)}


@given(SEQUENCES)
@settings(max_examples=60, deadline=None)
def test_unpruned_values_are_relative_frequencies(sequences):
    table = TrigramTable.from_sequences(sequences, keep=None)
    expected = counted(sequences)
    assert content(table).keys() == expected.keys()
    for pair, row in content(table).items():
        total = expected[pair].total()
        assert table.total(*pair) == total
        assert row == pytest.approx({c: n / total for c, n in expected[pair].items()})
        assert sum(row.values()) == pytest.approx(1)
    assert len(table) == sum(map(len, expected.values()))


@given(SEQUENCES, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_pruned_values_are_the_most_probable_ones_unchanged(sequences, keep):
    table, whole = (TrigramTable.from_sequences(sequences, keep=k) for k in (keep, None))
    for pair, row in content(whole).items():
        kept = table.successors(*pair)
        assert len(kept) == min(keep, len(row))
        assert sum(kept.values()) <= 1 + 1e-6
        assert all(row[c] == value for c, value in kept.items())
        assert min(kept.values()) >= max((v for c, v in row.items() if c not in kept), default=0)
        assert list(kept.values()) == sorted(kept.values(), reverse=True)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    sequences = np.random.default_rng(0).integers(0, 7, (40, 23)).tolist()
    whole = TrigramTable.from_sequences(sequences)
    monkeypatch.setattr(module, "_CHUNK", 50)
    assert content(TrigramTable.from_sequences(sequences)) == content(whole)


def test_nothing_is_counted_across_sequences_or_from_short_ones():
    table = TrigramTable.from_sequences([[1, 2], [3, 4, 5], [], [6], [5, 5]])
    assert content(table) == {(3, 4): {5: 1.0}}


@pytest.mark.parametrize("token", [-1, 1 << 21])
def test_ids_that_are_no_tokens_are_refused(token):
    with pytest.raises(InputError, match="token ids"):
        TrigramTable.from_sequences([[1, 2, token]])


@given(st.lists(st.integers(0, 3), min_size=3, max_size=80), st.sampled_from([0.04, 0.5, 2.0]))
@settings(max_examples=60, deadline=None)
def test_adapted_values_never_exceed_the_cap_and_entries_are_only_new_trigrams(tokens, increment):
    table = TrigramTable.from_sequences([[0, 1, 2, 3, 0, 1, 3]])
    before, entries = content(table), len(table)
    for start in range(0, len(tokens), 4):
        table.adapt(tokens[start : start + 16], increment=increment)
    assert all(value <= 3.0 for row in content(table).values() for value in row.values())
    windows = [tokens[start : start + 16] for start in range(0, len(tokens), 4)]
    new = {(*pair, c) for pair, row in counted(windows).items() for c in row if c not in before.get(pair, {})}
    assert len(table) == entries + len(new)


def test_adaptation_adds_once_for_each_occurrence_and_may_exceed_what_pruning_keeps():
    table = TrigramTable.from_sequences([[1, 2, 3], [1, 2, 4]], keep=1)
    assert dict(table.successors(1, 2)) == {3: 0.5}
    table.adapt([1, 2, 3, 1, 2, 3, 1, 2, 9])
    assert dict(table.successors(1, 2)) == pytest.approx({3: 0.58, 9: 0.04})
    assert [table.source(1, 2, c) for c in (3, 9)] == ["raised", "adapted"]
    assert table.fork().source(1, 2, 3) == "raised"
    assert TrigramTable.from_sequences([[1, 2, 3]]).source(1, 2, 3) == "corpus"


def test_adding_nothing_adds_no_trigrams():
    table = TrigramTable.from_sequences([[1, 2, 3]])
    table.adapt([1, 2, 3, 4, 5], increment=0.0)
    assert table.adapted == {}
    assert (len(table), table.source(1, 2, 3)) == (1, "corpus")


def test_memory_is_accounted_for_and_grows_with_adaptation():
    table = TrigramTable.from_sequences([list(range(100))])
    assert table.nbytes >= 98 * (4 + 4 + 8 + 8 + 8)
    before = table.nbytes
    table.adapt([500, 501, 502])
    assert before < table.nbytes < before + 1000


def test_a_fork_learns_on_its_own():
    table = TrigramTable.from_sequences([[1, 2, 3]])
    table.adapt([1, 2, 4])
    fork = table.fork()
    fork.adapt([1, 2, 5])
    assert set(fork.successors(1, 2)) == {3, 4, 5}
    assert set(table.successors(1, 2)) == {3, 4}
    assert fork.tokens is table.tokens


@given(SEQUENCES, st.lists(st.integers(0, 6), max_size=20))
@settings(max_examples=30, deadline=None)
def test_saved_and_loaded_tables_are_alike(tmp_path_factory, sequences, adapted):
    table = TrigramTable.from_sequences(sequences, vocabulary="abc")
    table.adapt(adapted)
    path = table.save(tmp_path_factory.mktemp("table") / "t")
    loaded = TrigramTable.load(path)
    assert content(loaded) == {p: pytest.approx(row) for p, row in content(table).items()}
    assert (len(loaded), loaded.vocabulary, loaded.largest) == (len(table), "abc", table.largest)
    assert [path.name for path in path.parent.iterdir()] == ["t"]


def test_texts_are_tokenized_each_on_its_own(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    texts = ["the hat on the mat", "", "é", "a the the the"]
    table = TrigramTable.from_texts(texts, tokenizer)
    sequences = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    expected = TrigramTable.from_sequences(sequences)
    np.testing.assert_array_equal(table.pairs, expected.pairs)
    np.testing.assert_array_equal(table.tokens, expected.tokens)
    assert table.vocabulary == vocabulary_hash(tokenizer)
    with pytest.raises(InputError, match="one string"):
        TrigramTable.from_texts("the hat", tokenizer)


def test_a_table_of_another_tokenizer_is_refused(tmp_path, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    path = TrigramTable.from_texts(["the hat"], tokenizer).save(tmp_path / "t")
    assert TrigramTable.load(path, tokenizer).vocabulary == vocabulary_hash(tokenizer)
    tokenizer.add_tokens(["brandnew"])
    with pytest.raises(InputError, match=r"t was built with another tokenizer .* build one"):
        TrigramTable.load(path, tokenizer)


def damaged(path: Path) -> list[bytes]:
    """Files that look more or less like the table at `path`."""
    whole = path.read_bytes()
    damaged = [b"", b"no table at all", whole[: len(whole) // 2], whole[:-8]]
    arrays = load_file(path)
    other = path.with_name("other")
    for name, change in {
        "offsets": arrays["offsets"][::-1].copy(),
        "tokens": arrays["tokens"] - 100,
        "pairs": arrays["pairs"][::-1].copy(),
        "values": np.full_like(arrays["values"], np.nan),
        "totals": arrays["totals"][:-1],
        "adapted_tokens": np.zeros(5, np.int32),
    }.items():
        save_file({**arrays, name: change}, other, {"format": "broadsheet tri-gram table 1"})
        damaged.append(other.read_bytes())
    save_file(arrays, other, {"format": "something else"})
    save_file({"pairs": arrays["pairs"]}, path.with_name("third"), {"format": "broadsheet tri-gram table 1"})
    return [*damaged, other.read_bytes(), path.with_name("third").read_bytes()]


def test_damaged_files_get_one_clear_line(tmp_path):
    path = TrigramTable.from_sequences([[1, 2, 3, 4, 5], [2, 3, 5]]).save(tmp_path / "t")
    for content in damaged(path):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(InputError, match=r"bad is .*build it again"):
            TrigramTable.load(tmp_path / "bad")
    with pytest.raises(InputError, match="no table"):
        TrigramTable.load(tmp_path / "missing")
    with pytest.raises(InputError, match="no table"):
        TrigramTable.load(tmp_path)


def test_a_save_that_is_cut_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = TrigramTable.from_sequences([[1, 2, 3]]).save(tmp_path / "t")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("broadsheet.cache.os.fsync", cut_off)
    with pytest.raises(KeyboardInterrupt):
        TrigramTable.from_sequences([[4, 5, 6]]).save(path)
    assert content(TrigramTable.load(path)) == {(1, 2): {3: 1.0}}
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def test_looking_up_many_pairs_keeps_memory_bounded(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 4)
    table = TrigramTable.from_sequences([list(range(30))])
    assert all(dict(table.successors(i, i + 1)) == {i + 2: 1.0} for i in range(28))
    assert len(table._rows) <= 4
    assert pack(1, 2) == (1 << 32) + 2
