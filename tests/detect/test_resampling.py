"""DetectGPT, NPR and DNA-GPT: masking, filling, and what is read."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.detect import NPR, DetectGPT, Reader, TokenScores
from broadsheet.detect.fill import T5Fill, fill_spans, mask, unmask
from broadsheet.detect.resampling import _keep_words, mask_spans

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))


@given(st.integers(0, 1000), st.integers(0, 300))
@settings(max_examples=80, deadline=None)
def test_gaps_are_as_many_as_published_and_apart(seed, n_words):
    words = [f"w{i}" for i in range(n_words)]
    text = " ".join(words)
    spans = mask_spans(text, random.Random(seed))
    assert len(spans) == int(0.3 * n_words / 4)
    covered = [text[:low].count(" ") for low, _ in spans]
    assert all(text[low:high].count(" ") == 1 for low, high in spans)
    assert all(b - a >= 3 for a, b in pairwise(covered))


def test_every_word_can_be_masked():
    seen = set()
    for seed in range(200):
        for low, high in mask_spans(TEXT, random.Random(seed)):
            seen |= set(TEXT[low:high].split())
    assert seen == set(TEXT.split())


def test_mask_and_unmask_are_inverse():
    masked = mask("alpha beta gamma delta", [(0, 5), (11, 16)])
    assert masked == "<extra_id_0> beta <extra_id_1> delta"
    assert unmask(masked, "<extra_id_0> A B <extra_id_1> C <extra_id_2>") == "A B beta C delta"
    assert unmask(masked, "<extra_id_0> A B") is None


def test_missing_fills_are_asked_for_again_and_given_up_on():
    calls = []

    def fill(masked, seed):
        calls.append((len(masked), seed))
        return [None if seed == 7 and i else text.replace("<extra_id_0>", "X") for i, text in enumerate(masked)]

    assert fill_spans("a b c", [[(0, 1)], [(2, 3)]], fill, seed=7) == ["X b c", "a X c"]
    assert calls == [(2, 7), (1, 8)]
    with pytest.raises(InputError, match="unfilled"):
        fill_spans("a b c", [[(0, 1)]], lambda masked, seed: [None], seed=0)


def test_own_resampling_touches_the_gaps_alone(tiny_model, tiny_tokenizer):
    reader = Reader((tiny_model(), tiny_tokenizer()))
    [reading] = reader.read([TEXT], {"samples"}, n_samples=4)
    ids = reader.encode(TEXT)
    spans = [mask_spans(TEXT, random.Random(k)) for k in range(4)]
    variants = DetectGPT(n_perturbations=4)._resample(TEXT, spans, reading, reader)
    offsets = reader.tokenizer(TEXT, return_offsets_mapping=True).offset_mapping
    for gaps, variant in zip(spans, variants, strict=True):
        assert len(variant) == len(ids)
        changed = [i for i, (a, b) in enumerate(zip(ids, variant, strict=True)) if a != b]
        assert changed
        assert all(any(offsets[i][0] < high and offsets[i][1] > low for low, high in gaps) for i in changed)


def test_a_fill_function_is_used_and_the_score_is_the_z_score(tiny_model, tiny_tokenizer):
    model = (tiny_model(), tiny_tokenizer())
    seeds = []

    def fill(masked, seed):
        seeds.append(seed)
        return [unmask(text, "".join(f"<extra_id_{k}> {w}" for k, w in enumerate("pqrstuv"))) for text in masked]

    detector = DetectGPT(n_perturbations=5, fill_model=fill, model=model)
    score = detector.score([TEXT])[0]
    assert seeds
    generator = random.Random(__import__("broadsheet.detect.reading", fromlist=["seed_of"]).seed_of(0, TEXT))
    copies = [fill([mask(TEXT, mask_spans(TEXT, generator))], 0)[0] for _ in range(5)]
    means = [float(r.log_likelihood.mean()) for r in Reader(model).read([TEXT, *copies])]
    assert score == pytest.approx((means[0] - np.mean(means[1:])) / np.std(means[1:]), abs=1e-5)


def test_contrasts_by_hand():
    def one(log_likelihood: float, rank: float) -> TokenScores:
        return TokenScores(torch.tensor([log_likelihood]).double(), rank=torch.tensor([rank]).double())

    assert DetectGPT().contrast(one(-1, 2), [one(-2, 4), one(-4, 8)]) == pytest.approx(2.0)
    assert NPR().contrast(one(-1, 2), [one(-2, 4), one(-4, 8)]) == pytest.approx(2.5)
    assert DetectGPT().contrast(one(-1, 2), [one(-2, 4)] * 3) == pytest.approx(1.0)


def test_own_resampling_is_said_once(tiny_model, tiny_tokenizer, capsys):
    detector = DetectGPT(n_perturbations=2, model=(tiny_model(), tiny_tokenizer()))
    detector.score([TEXT])
    detector.score([TEXT])
    assert capsys.readouterr().err.count("no fill model given") == 1


def test_words_are_kept_with_their_white_space():
    assert _keep_words("a  b\nc d", 3) == "a  b\nc"
    assert _keep_words("a b", 5) == "a b"
    assert _keep_words("a b", 0) == ""


def test_an_absent_fill_model_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="unknown model from sequence to sequence '/nowhere'"):
        T5Fill("/nowhere")
