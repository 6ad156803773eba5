"""Every detector through the same checks, and what must be true of the statistics they share."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.detect import (
    DNAGPT,
    LRR,
    NPR,
    Binoculars,
    DetectGPT,
    Detector,
    Entropy,
    FastDetectGPT,
    Lastde,
    LastdePP,
    Likelihood,
    LogRank,
    Rank,
    Reader,
    score_all,
)
from broadsheet.detect.reading import read_logits

TEXTS = [
    "The cache keeps one entry for each request; when it is full, the oldest is dropped and its memory reused.",
    "Return the number of items in the container, or raise TypeError if it has none.\n\nThe result is never negative.",
    "a short one, but with more than fourteen words in it so that every method has something it can really mask out",
    "Numbers: 3.14159, 2.71828 and 1.41421. Ünïcode too: naïve café — 日本語. And some more plain words here.",
    "the the the the the the the the the the the the the the the the the the the the the the the the the the",
]
ALL = [
    Likelihood(),
    Rank(),
    LogRank(),
    Entropy(),
    LRR(),
    FastDetectGPT(),
    Binoculars(),
    Lastde(),
    LastdePP(n_samples=8, scales=5),
    DetectGPT(n_perturbations=3),
    NPR(n_perturbations=3),
    DNAGPT(n_regenerations=2, max_new_tokens=12),
]
names = [type(detector).__name__ for detector in ALL]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def tiny(tiny_model, tiny_tokenizer):
    return tiny_model(), tiny_tokenizer()


def on(detector: Detector, model) -> Detector:
    return dataclasses.replace(detector, model=model)


@pytest.mark.parametrize("detector", ALL, ids=names)
def test_a_batch_scores_as_one_by_one_in_any_order(detector, tiny):
    together = on(detector, tiny).score(TEXTS)
    alone = np.concatenate([on(detector, tiny).score([text]) for text in TEXTS])
    backwards = on(detector, tiny).score(TEXTS[::-1])[::-1]
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)
    assert len(set(together.round(9))) == len(TEXTS)


@pytest.mark.parametrize("detector", ALL, ids=names)
def test_empty_and_one_token_texts_get_nan_and_harm_no_neighbour(detector, tiny, capsys):
    scores = on(detector, tiny).score(["", " ", "a", TEXTS[0]])
    assert np.isnan(scores[:3]).all()
    assert scores[3] == pytest.approx(on(detector, tiny).score([TEXTS[0]])[0], abs=1e-5)
    assert "3 of 4 texts are too short" in capsys.readouterr().err
    assert on(detector, tiny).score([]).shape == (0,)


@pytest.mark.parametrize("detector", ALL, ids=names)
def test_the_same_seed_gives_the_same_scores(detector, tiny):
    torch.manual_seed(1)
    first = on(detector, tiny).score(TEXTS[:2])
    torch.manual_seed(2)
    assert on(detector, tiny).score(TEXTS[:2]).tolist() == first.tolist()


@pytest.mark.parametrize("detector", [d for d in ALL if d.n_samples], ids=lambda d: type(d).__name__)
def test_another_seed_gives_other_samples(detector, tiny):
    first = on(detector, tiny).score(TEXTS[:2])
    assert on(dataclasses.replace(detector, seed=1), tiny).score(TEXTS[:2]).tolist() != first.tolist()


def test_one_forward_pass_serves_all_and_changes_none(tiny):
    model, _ = tiny
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    reader = Reader(tiny)
    assert len(list(reader.passes(TEXTS))) == len(TEXTS)
    once = len(calls)
    one_pass = {name: d for name, d in zip(names, ALL, strict=True) if not isinstance(d, DetectGPT | NPR | DNAGPT)}
    shared = score_all(one_pass, TEXTS, reader)
    handle.remove()
    assert len(calls) == 2 * once
    for name, detector in one_pass.items():
        assert shared[name] == pytest.approx(on(detector, tiny).score(TEXTS), abs=1e-6), name


def test_detectors_that_draw_different_numbers_share_a_pass_too(tiny):
    detectors = {"few": LastdePP(n_samples=3, scales=5), "many": LastdePP(n_samples=9, scales=5)}
    shared = score_all(detectors, TEXTS, Reader(tiny))
    assert shared["few"] == pytest.approx(on(detectors["few"], tiny).score(TEXTS), abs=1e-9)
    with pytest.raises(InputError, match="different seeds"):
        score_all({"a": LastdePP(seed=1), "b": LastdePP(seed=2)}, TEXTS, Reader(tiny))


def test_likelihood_is_minus_the_models_own_loss(tiny):
    model, tokenizer = tiny
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    with torch.inference_mode():
        loss = float(model(ids, labels=ids).loss)
    assert on(Likelihood(), tiny).score(TEXTS[:1])[0] == pytest.approx(-loss, abs=1e-6)


def test_lrr_is_likelihood_over_log_rank(tiny):
    scores = {d: on(d(), tiny).score(TEXTS) for d in (LRR, Likelihood, LogRank)}
    assert scores[LRR] * -scores[LogRank] == pytest.approx(-scores[Likelihood])


def logits(n: int, vocabulary: int, seed: int) -> torch.Tensor:
    return torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def test_analytic_fast_detectgpt_is_the_limit_of_the_sampled_form():
    p, labels = logits(50, 12, 0), torch.arange(50) % 12
    n_samples = 40_000
    reading = read_logits(p, labels, needs={"samples"}, n_samples=n_samples, generator=torch.Generator().manual_seed(0))
    assert reading.samples is not None
    sums = reading.samples.sum(0)
    sampled = float((reading.log_likelihood.sum() - sums.mean()) / sums.std())
    analytic = FastDetectGPT().scores_from_logits(p, labels)
    assert analytic == pytest.approx(sampled, abs=5 * (1 + abs(analytic)) / math.sqrt(n_samples))


def test_fast_detectgpt_of_text_drawn_from_the_model_is_standard():
    scores = []
    generator = torch.Generator().manual_seed(1_000_000)  # not one that made the logits
    for seed in range(400):
        p = logits(40, 12, seed)
        drawn = torch.multinomial(p.softmax(-1), 1, generator=generator)[:, 0]
        scores.append(FastDetectGPT().scores_from_logits(p, drawn))
    assert abs(np.mean(scores)) < 4 / math.sqrt(400)
    assert np.std(scores) == pytest.approx(1.0, abs=4 / math.sqrt(2 * 400))


def test_samples_follow_the_reference_distribution():
    p, q = logits(1, 5, 0), logits(1, 5, 1)
    reading = read_logits(
        p, torch.tensor([0]), q, needs={"samples"}, n_samples=200_000, generator=torch.Generator().manual_seed(0)
    )
    assert reading.sampled is not None
    assert reading.samples is not None
    shares = torch.bincount(reading.sampled[0].long(), minlength=5) / 200_000
    assert shares.tolist() == pytest.approx(q.softmax(-1)[0].tolist(), abs=0.005)
    assert reading.samples[0, 0] == p.log_softmax(-1)[0, reading.sampled[0, 0].long()]


def test_impossible_tokens_do_not_spoil_the_moments():
    p = logits(6, 8, 0)
    p[:, 3] = -math.inf
    labels = torch.tensor([0, 1, 2, 4, 5, 6])
    assert math.isfinite(FastDetectGPT().scores_from_logits(p, labels))
    assert math.isfinite(Entropy().scores_from_logits(p, labels))


def test_vocabularies_of_different_sizes_are_cut_to_the_smaller():
    p, q, labels = logits(6, 8, 0), logits(6, 11, 1), torch.arange(6)
    assert FastDetectGPT().scores_from_logits(p, labels, q) == FastDetectGPT().scores_from_logits(p, labels, q[:, :8])


def test_binoculars_is_minus_perplexity_over_cross_entropy():
    p, q, labels = logits(6, 8, 0), logits(6, 8, 1), torch.arange(6)
    nll = -p.log_softmax(-1).gather(1, labels[:, None]).mean()
    cross = -(q.softmax(-1) * p.log_softmax(-1)).sum(-1).mean()
    assert Binoculars().scores_from_logits(p, labels, q) == pytest.approx(-float(nll / cross))


def test_half_precision_logits_are_upcast_before_the_softmax():
    p, labels = logits(30, 50, 0).bfloat16(), torch.arange(30)
    expected = Likelihood().scores_from_logits(p.float(), labels)
    assert Likelihood().scores_from_logits(p, labels) == expected


def test_mismatched_logits_and_labels_are_refused():
    with pytest.raises(ValueError, match="5 positions and 6 labels"):
        read_logits(logits(5, 8, 0), torch.arange(6))
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        read_logits(logits(5, 8, 0), torch.arange(5), needs={"samples"})


@given(st.lists(st.text(max_size=80), max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_text_is_scored_or_nan(tiny_model_and_tokenizer, texts):
    scores = on(Lastde(), tiny_model_and_tokenizer).score(texts)
    assert scores.shape == (len(texts),)
    assert not np.isposinf(scores).any()


@pytest.fixture(scope="module")
def tiny_model_and_tokenizer(tiny):
    return tiny


def test_a_text_longer_than_the_context_is_read_in_windows(tiny, capsys):
    model, tokenizer = tiny
    text = " ".join(TEXTS * 6)
    length = len(tokenizer(text).input_ids)
    assert length > 256
    [reading] = Reader(tiny).read([text])
    assert len(reading) == length - 1
    assert "longer than the context (256 tokens): read in windows" in capsys.readouterr().err
    # The first window sees all there is before each token; later ones at least half a context.
    head = tokenizer(text).input_ids[:256]
    with torch.inference_mode():
        log_p = model(torch.tensor([head])).logits[0, :-1].log_softmax(-1)
    expected = log_p.gather(1, torch.tensor(head[1:])[:, None])[:, 0]
    assert reading.log_likelihood[:255].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    second = tokenizer(text).input_ids[128:384]
    with torch.inference_mode():
        log_p = model(torch.tensor([second])).logits[0, :-1].log_softmax(-1)
    expected = log_p.gather(1, torch.tensor(second[1:])[:, None])[127:, 0]
    assert reading.log_likelihood[255:383].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_reference_with_another_tokenizer_is_refused(tiny, tiny_model, tiny_tokenizer):
    other = tiny_tokenizer()
    other.add_tokens(["<extra>"])
    with pytest.raises(InputError, match=r"tokenizer .* differ"):
        Reader(tiny, (tiny_model(seed=1), other))


@pytest.mark.parametrize("name", ["Bloom", "GPT2", "Mamba", "GPTNeoX"])
def test_other_architectures_are_read_alike(name, tiny_tokenizer):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 272},
        "Bloom": sizes | {"n_head": 4, "n_layer": 2},
    }
    config = getattr(transformers, f"{name}Config")(**names.get(name, sizes))
    architecture = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    model = (getattr(transformers, architecture)(config).eval(), tiny_tokenizer())
    together = on(FastDetectGPT(), model).score(TEXTS)
    alone = [on(FastDetectGPT(), model).score([text])[0] for text in TEXTS]
    assert np.isfinite(together).all()
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_model_that_predicts_nan_is_said_and_not_taken_for_short_texts(tiny_model, tiny_tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(InputError, match="not numbers"):
        on(Lastde(), (model, tiny_tokenizer())).score(TEXTS)


def test_a_tokenizer_of_another_model_is_refused(tiny_model, tiny_tokenizer):
    small = tiny_model(vocab_size=100)
    with pytest.raises(InputError, match="do not belong together"):
        on(Likelihood(), (small, tiny_tokenizer())).score(TEXTS)


def test_a_reference_changes_what_is_expected_and_not_the_likelihood(tiny, tiny_model, tiny_tokenizer):
    pair = (tiny_model(seed=1), tiny_tokenizer())
    assert on(Likelihood(reference=pair), tiny).score(TEXTS) == pytest.approx(on(Likelihood(), tiny).score(TEXTS))
    with_reference = on(FastDetectGPT(reference=pair), tiny).score(TEXTS)
    assert np.abs(with_reference - on(FastDetectGPT(), tiny).score(TEXTS)).min() > 1e-3


def test_a_string_is_not_a_list_of_texts(tiny):
    with pytest.raises(InputError, match="list of texts"):
        on(Likelihood(), tiny).score("one text")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="list of texts"):
        on(Likelihood(), tiny).score([b"bytes"])  # type: ignore[list-item]


def test_fit_calibrates_to_a_probability(tiny):
    detector = on(Likelihood(), tiny)
    with pytest.raises(InputError, match="fit"):
        detector.predict_proba(TEXTS)
    order = np.argsort(detector.score(TEXTS))
    labels = np.zeros(5, int)
    labels[order[3:]] = 1
    probabilities = detector.fit(TEXTS, labels.tolist()).predict_proba([*TEXTS, ""])
    assert probabilities.shape == (6, 2)
    assert probabilities[:5].sum(1) == pytest.approx(np.ones(5))
    assert (np.diff(probabilities[order, 1]) > 0).all()
    assert np.isnan(probabilities[5]).all()
    with pytest.raises(InputError, match="expected 0 and 1"):
        detector.fit(TEXTS, [1, 1, 1, 1, 1])
    with pytest.raises(InputError, match="expected 0 and 1"):
        detector.fit(TEXTS, [0, 1])
