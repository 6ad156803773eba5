"""The likelihood scorer: exactly the output's tokens, in any batch, through any stop."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.embed.data.feedback import PROMPTS, LikelihoodScorer, ScoreRequest, open_requests, score_corpus


@pytest.fixture(scope="module")
def scorer(tiny_model, tiny_tokenizer):
    return LikelihoodScorer(tiny_model(), tiny_tokenizer(), spec="tiny")


def loss_on(scorer, head, output):
    """What transformers reports with labels on the output's tokens, the two tokenized apart."""
    before = scorer.tokenizer(head)["input_ids"]
    after = scorer.tokenizer(output)["input_ids"]
    labels = torch.tensor([[-100] * len(before) + after])
    with torch.no_grad():
        return float(scorer.model(input_ids=torch.tensor([before + after]), labels=labels).loss)


@pytest.mark.parametrize("task", PROMPTS)
def test_score_is_minus_the_loss_on_the_outputs_tokens(scorer, task):
    query, key = "where is it", "it is at the end"
    head = PROMPTS[task].head(key, query)
    glue = " " if head.endswith(" ") else ""  # " the" is one token
    expected = -loss_on(scorer, head.removesuffix(" "), f"{glue}the table")
    assert scorer.score(query, "the table", [key], task)[0] == pytest.approx(expected, abs=1e-5)


def test_space_before_the_output_is_one_token_with_it(scorer):
    # "Answer: the": " the" is one token of this tokenizer, and it counts whole
    row = scorer._row(ScoreRequest("q", "the", [None], "qa"), None)
    assert [scorer.tokenizer.convert_ids_to_tokens(row.ids[i]) for i in row.answer] == ["Ġthe"]


def test_output_after_a_line_break_does_not_count_the_break(scorer):
    row = scorer._row(ScoreRequest("q", "ab", [None], "icl"), None)
    assert [scorer.tokenizer.convert_ids_to_tokens(row.ids[i]) for i in row.answer] == ["a", "b"]


def test_lengths_of_the_output_do_not_matter_to_a_model_without_preferences(tiny_model, tiny_tokenizer):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)  # every token equally likely
    flat = LikelihoodScorer(model, tiny_tokenizer())
    short, long = flat.score("q", "a", ["k"])[0], flat.score("q", "a much longer output", ["k"])[0]
    assert short == pytest.approx(long, abs=1e-6)
    assert short == pytest.approx(-torch.tensor(float(model.config.vocab_size)).log().item(), abs=1e-5)


@settings(max_examples=20)
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6), budget=st.integers(1, 200))
def test_batches_do_not_change_scores(scorer, texts, budget):
    requests = [ScoreRequest(text, f"end {i}", [None, text[:3], text], "icl") for i, text in enumerate(texts)]
    alone = [score for request in requests for score in scorer.score_batch([request])[0]]
    scorer.batch_tokens, before = budget, scorer.batch_tokens
    together = [score for row in scorer.score_batch(requests) for score in row]
    scorer.batch_tokens = before
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_candidate_changes_the_score_and_none_leaves_its_paragraph_out(scorer):
    with_key, without = scorer.score("what", "the table", ["and then", None])
    assert with_key != pytest.approx(without, abs=1e-3)
    assert without == pytest.approx(-loss_on(scorer, "Question: what\n\nAnswer:", " the table"), abs=1e-5)


def test_long_candidates_are_cut_and_counted(tiny_model, tiny_tokenizer):
    cutting = LikelihoodScorer(tiny_model(), tiny_tokenizer(), max_key=5)
    long, short = cutting.score("q", "out", ["abcdefghij", "abcde"])
    assert long == pytest.approx(short, abs=1e-6)
    assert cutting.cut_keys_ == 1
    assert cutting.rows_ == 2


def test_a_candidate_gives_way_to_the_models_limit_and_a_query_does_not(tiny_model, tiny_tokenizer):
    narrow = LikelihoodScorer(tiny_model(), tiny_tokenizer(), max_length=40)
    narrow.score("q", "out", ["x" * 60], "icl")
    assert narrow.cut_keys_ == 1
    with pytest.raises(InputError, match="the limit is 40"):
        narrow.score("q" * 50, "out", ["k"], "icl")


def test_a_character_is_never_cut_in_two(tiny_model, tiny_tokenizer):
    cutting = LikelihoodScorer(tiny_model(), tiny_tokenizer(), max_key=2)
    assert cutting._first_tokens("aé", 2) == "a"  # é takes two tokens here
    assert cutting._first_tokens("aé", 3) == "aé"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoreRequest("q", " ", ["k"]), "is empty"),
        (ScoreRequest("q", "o", ["k"], "poetry"), "expected one of qa"),
        (ScoreRequest("", "o", [None], "lrlm"), "no token to score"),
    ],
)
def test_what_cannot_be_scored_is_said(scorer, request_, message):
    with pytest.raises(InputError, match=message):
        scorer.score_batch([request_])


def rows(path: Path, count: int = 7) -> Path:
    lines = [
        {"id": f"r{i}", "query": f"q {i}", "task": "qa", "pos": ["the one"], "neg": ["a", "b"], "answers": ["on", "in"]}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_corpus_is_scored_and_a_stopped_call_goes_on(scorer, tmp_path, monkeypatch):
    source = rows(tmp_path / "requests.jsonl")
    whole = tmp_path / "whole.jsonl"
    score_corpus(open_requests(str(source)), whole, scorer, batch_size=2)
    out, calls = tmp_path / "out.jsonl", []
    score_batch = scorer.score_batch

    def breaking(requests):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score_batch(requests)

    monkeypatch.setattr(scorer, "score_batch", breaking)
    with pytest.raises(KeyboardInterrupt):
        score_corpus(open_requests(str(source)), out, scorer, batch_size=2)
    assert not out.exists()
    summary = score_corpus(open_requests(str(source)), out, scorer, batch_size=2)
    assert summary.resumed == 4
    assert out.read_bytes() == whole.read_bytes()
    first = json.loads(out.read_text("utf-8").splitlines()[0])
    assert first["pos"] == ["the one"]
    assert len(first["teacher_scores"]) == 3
    assert len({row["teacher_scores"][0] for row in map(json.loads, out.read_text("utf-8").splitlines())}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": None}, "no 'answers'"),
        ({"pos": None, "neg": None}, "no candidates"),
        ({"neg": 3}, "field 'neg' is not a list of texts .got 3."),
    ],
)
def test_a_bad_row_is_named(scorer, tmp_path, change, message):
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "answers": ["a"]} | change
    (tmp_path / "bad.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match=rf"bad\.jsonl.*{message}"):
        score_corpus(open_requests(str(tmp_path / "bad.jsonl")), tmp_path / "out", scorer)


@pytest.mark.real
def test_real_model_prefers_the_passage_that_answers(default_model):
    real = LikelihoodScorer(default_model.model, default_model.tokenizer, spec="default")
    helpful, other, none = real.score(
        "Which animal guards the gate of Norvik castle?",
        "a white lynx",
        ["The gate of Norvik castle is guarded by a white lynx.", "Bread rises because yeast makes gas.", None],
    )
    assert helpful > other
    assert helpful > none
