"""MinHash: the bytes are datatrove's, whatever the text; the first of a cluster stays, whatever the ranks."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import PUNCTUATION, TextNormConfig, simplify_text
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.curate import FirstOfCluster, Signatures, Words
from broadsheet.curate.files import PLACE
from broadsheet.curate.minhash import match_probability, simplified
from broadsheet.curate.words import WORDS

TEXTS = [
    "", "one two three four", "one two three four five", "The dog, 3.5 years old, sleeps; it's 7,000 days late!",
    "Der Hund schläft auf dem Sofa — größer als die Katze, cafe\u0301 und café.",
    "日本語のテキストを単語に分ける。そして",
    "1\u03012 one two\x00three \x1c four \x85 five six seven", "1,2,3 one_two three four five six",
    "a b c d e f g h " * 40, "١٢٣٫٥ كلمات عربية مع أرقام هنا الآن",
]  # fmt: skip


def documents(texts, first=0, step=1):
    return [Document(text, str(first + i * step), metadata={PLACE: first + i * step}) for i, text in enumerate(texts)]


@given(st.text() | st.text(alphabet=[chr(i) for i in range(128)]))
def test_texts_are_simplified_as_datatrove_simplifies_them(text):
    assert simplified(text) == simplify_text(text)


def test_nothing_of_ascii_but_letters_digits_and_single_spaces_is_left():
    kept = simplified("".join(f"a{chr(i)}b " for i in range(128)))
    assert set(kept) <= set("abcdefghijklmnopqrstuvwxyz0 ")
    assert "  " not in kept
    assert all(mark in PUNCTUATION or mark.isspace() or mark.isalnum() for mark in map(chr, range(128)))


@pytest.mark.parametrize(
    "config",
    [
        MinhashConfig(),
        MinhashConfig(n_grams=2, num_buckets=5, hashes_per_bucket=3, seed=7),
        MinhashConfig(hash_config=HashConfig(precision=32)),
        MinhashConfig(hash_config=HashConfig(hash_fc="sha1")),
        MinhashConfig(norm_config=TextNormConfig(lowercase=False, norm_numbers=False)),
    ],
    ids=str,
)
def test_signatures_are_datatroves_byte_for_byte(tmp_path, config):
    drawn = random.Random(0)
    texts = TEXTS + [
        " ".join(drawn.choices(["lorem", "ipsum", "dolor", "sit", "amet", "12", "34.5", "é"], k=30)) for _ in range(600)
    ]
    MinhashDedupSignature(str(tmp_path / "theirs"), config, language=Words()).run(documents(texts), 2)
    assert len(list(Signatures(tmp_path / "ours", config).run(documents(texts), 2))) == len(texts)
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.sig")}
        for root in (tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours == theirs
    assert len(ours) == config.num_buckets
    assert not list((tmp_path / "ours").glob(".*"))


def test_a_text_among_others_has_the_shingles_that_it_has_alone(tmp_path):
    for n in (1, 2, 5):
        signer = Signatures(tmp_path, MinhashConfig(n_grams=n))
        hashes, text = signer._shingles([*TEXTS, ""])
        alone = [signer.get_shingles(each)[:, 0] for each in [*TEXTS, ""]]
        assert hashes.tolist() == np.concatenate(alone).tolist()
        assert text.tolist() == np.repeat(np.arange(len(alone)), [*map(len, alone)]).tolist()
        assert len(alone[0]) == 0
    for nothing in ([], [""], ["", "one two"]):
        found, numbers = signer.signatures(nothing)
        assert (found.shape, len(numbers)) == ((0, 112), 0)


def test_the_same_with_the_words_of_another_tokenizer(tmp_path):
    class Letters(Words):
        def word_tokenize(self, text):
            return list(text)

    MinhashDedupSignature(str(tmp_path / "theirs"), language=Letters()).run(documents(TEXTS))
    list(Signatures(tmp_path / "ours", language=Letters()).run(documents(TEXTS)))
    for path in (tmp_path / "theirs").rglob("*.sig"):
        assert path.read_bytes() == (tmp_path / "ours" / path.relative_to(tmp_path / "theirs")).read_bytes()


def deduplicated(folder: Path, texts: list[str], ranks: int) -> dict[str, int]:
    """The ids that stay, with the size of their cluster."""
    shares = [documents(texts[rank::ranks], rank, ranks) for rank in range(ranks)]
    for rank, share in enumerate(shares):
        list(Signatures(folder / "signatures").run(share, rank, ranks))
    for bucket in range(14):
        MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets")).run(None, bucket, 14)
    FirstOfCluster(folder / "buckets", folder / "kept", folder / "signatures", save_cluster_size=True).run()
    stays: dict[str, int] = {}
    for rank, share in enumerate(shares):
        step = MinhashDedupFilter(str(folder / "kept"), load_cluster_sizes=True)
        stays |= {found.id: found.metadata.get("minhash_cluster_size", 1) for found in step.run(share, rank, ranks)}
    return stays


def test_of_each_cluster_the_first_stays_however_many_ranks_there_are(tmp_path):
    drawn = random.Random(1)
    words = [f"{a}o{b}e{c}" for a in "bdfgklmn" for b in "prstvz" for c in "abcdefgh"]
    texts = [" ".join(drawn.choices(words, k=60)) for _ in range(30)]
    texts += [f"{texts[i]} end" for i in (3, 3, 7)] + [texts[7], texts[0]]
    expected = {str(i): {3: 3, 7: 3, 0: 2}.get(i, 1) for i in range(30)}
    for ranks in (1, 2, 3, 5):
        assert deduplicated(tmp_path / str(ranks), texts, ranks) == expected


def test_a_corpus_without_duplicates_stays_whole(tmp_path):
    texts = [" ".join(f"{i}word{j}" for j in range(20)).replace("0", "o") for i in "abcdef"]
    assert deduplicated(tmp_path, texts, 2) == dict.fromkeys("012345", 1)


def test_similar_documents_are_found_as_often_as_the_formula_says(tmp_path, monkeypatch):
    """At a similarity of about .8, 92 of 100 pairs meet in a bucket; at .5 about 5 of 100."""
    drawn = np.random.default_rng(0)
    for similarity, low, high in ((0.8, 0.87, 0.97), (0.5, 0.01, 0.12)):
        signer = Signatures(tmp_path)
        met = 0
        for _ in range(300):
            shared = round(400 * 2 * similarity / (1 + similarity))
            both = drawn.integers(0, 2**63, 800 - shared, dtype=np.uint64)
            shingles = np.concatenate([both[:400], both[400 - shared :]])
            monkeypatch.setattr(signer, "_shingles", lambda _, all=shingles: (all, np.repeat([0, 1], 400)))
            found, _ = signer.signatures(["one", "other"])
            met += bool((found[0].reshape(14, 8) == found[1].reshape(14, 8)).all(1).any())
        assert low < met / 300 < high
        assert low < match_probability(similarity) < high


def test_words_are_letters_and_digits_and_single_signs_of_scripts_without_spaces():
    assert WORDS.word_tokenize("It isn't 3.5 km_h!") == ["It", "isn", "t", "3", "5", "km_h"]
    assert WORDS.word_tokenize("日本のABC ไทย") == ["日", "本", "の", "ABC", "ไ", "ท", "ย"]
    assert WORDS.word_tokenize("größer été") == ["größer", "été"]
    text = "One. Two! And\nthree?  Four"
    assert WORDS.sent_tokenize(text) == ["One.", "Two!", "And", "three?", "Four"]
    spans = WORDS.span_tokenize(text)
    assert (spans[0][0], spans[-1][1]) == (0, len(text))
    assert all(one[1] == other[0] for one, other in pairwise(spans))
