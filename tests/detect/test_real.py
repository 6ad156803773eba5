"""The detectors on the default model and real text."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest

from broadsheet.data import corpora
from broadsheet.detect import FastDetectGPT, Lastde, LastdePP, Likelihood, LogRank, Reader, score_all
from broadsheet.detect.trials.pairs import ContinuationWriter, PairConfig, first_words, passages, write_pairs
from broadsheet.teacher import Teacher
from broadsheet.teacher.local import Local

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real documentation of mixed lengths, from the standard library."""
    modules = (json, inspect)
    found = [inspect.cleandoc(m.__doc__ or "") for m in modules]
    found += [inspect.getdoc(f) or "" for f in (json.dumps, inspect.signature)]
    return [first_words(text, n) for text, n in zip(found, (80, 40, 120, 25), strict=True)]


def test_batched_scores_are_the_single_ones_to_the_bit(default_model, texts):
    # Lastde counts cosines in bins: a log-probability that moves by 1e-6 can move the score by 1e-2.
    reader = Reader(default_model)
    detectors = {"lastde": Lastde(), "lastde++": LastdePP(), "likelihood": Likelihood()}
    together = score_all(detectors, texts, reader)
    for i, text in enumerate(texts):
        alone = score_all(detectors, [text], reader)
        for name, scores in together.items():
            np.testing.assert_array_equal(scores[i], alone[name][0], err_msg=f"{name} of text {i}")


def test_readable_text_is_likelier_than_shuffled(default_model, texts):
    generator = np.random.default_rng(0)
    shuffled = [" ".join(generator.permutation(text.split())) for text in texts]
    reader = Reader(default_model)
    detectors = {"likelihood": Likelihood(), "logrank": LogRank(), "fast": FastDetectGPT()}
    original, broken = (score_all(detectors, group, reader) for group in (texts, shuffled))
    for name in detectors:
        assert (original[name] > broken[name]).all(), name


def test_pairs_are_real_and_of_equal_length(default_model, texts, monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    protocol = PairConfig(min_words=40, max_new_tokens=24, min_new_tokens=16)
    documents = [corpora.Document(str(i), text) for i, text in enumerate(texts)]
    human = passages(documents, 3, protocol, seed=0)
    model, tokenizer = default_model
    writers = {"own": ContinuationWriter(Teacher(Local(model, tokenizer)), tokenizer, protocol)}
    pairs, dropped = write_pairs(human, 2, writers, seed=0)
    assert len(pairs["own"]) + dropped >= 2
    for pair in pairs["own"]:
        assert len(pair.human.split()) == len(pair.machine.split())
        assert pair.human[:60] == pair.machine[:60]
        assert pair.human != pair.machine
    assert write_pairs(human, 2, writers, seed=0) == (pairs, dropped)
