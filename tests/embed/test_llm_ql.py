"""LLM-QL: both stages meet in the end token, which alone tells the query of its document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cross_entropy, normalize

from broadsheet.console import InputError
from broadsheet.embed.base import Embedder, embedder, load
from broadsheet.embed.fitting import fit
from broadsheet.embed.llm_ql import (
    DOCUMENT,
    LLMQL,
    QUERY,
    QueryLikelihood,
    attention_stop,
    contrast,
    query_log_likelihood,
    rows_of,
)
from broadsheet.embed.modules.bottleneck import (
    SPECIAL,
    SUFFIX,
    BottleneckRow,
    collator_for,
    forward_pass,
    special_states,
)
from broadsheet.embed.modules.template import Template

SHORT = {"query": Template("Q: ", "\nA:"), "document": Template("P: ", "\nS:")}
PAIRS = [
    {"query": "red hats", "positive": "Hats  of a red colour,\nand some more."},
    {"query": "rain", "positive": "Water that falls."},
    {"query": "a tree near the sea", "positive": "It grows in sand and has salt on its leaves."},
    {"query": "stone", "positive": "Hard and grey."},
]
DOCUMENTS = [pair["positive"] for pair in PAIRS]
QUERIES = [pair["query"] for pair in PAIRS]


@pytest.fixture
def make(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> Callable[..., Embedder]:
    def made(method: LLMQL | None = None, **config: Any) -> Embedder:
        return (method or LLMQL(**SHORT)).embedder((tiny_model(**config), tiny_tokenizer()))

    return made


def batch_of(objective: QueryLikelihood, pairs: list[dict[str, str]] = PAIRS) -> dict[str, torch.Tensor]:
    return objective.collate(list(enumerate(pairs)))


# One function for both stages


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_end_tokens_state_is_the_embedding_of_the_second_stage(make: Any, side: str) -> None:
    made = make()
    made.encoder.tokenizer.padding_side = side
    objective = QueryLikelihood(made, corruption=0.0)
    batch = batch_of(objective)
    reading = forward_pass(made.encoder, batch)
    states = normalize(special_states(reading.states, batch["segments"])[:, 0], dim=-1)
    vectors = made.encode_document(DOCUMENTS, convert_to_tensor=True)
    assert (vectors - states).abs().max() < 1e-5
    corrupted = batch_of(QueryLikelihood(made, corruption=0.9))
    changed = special_states(forward_pass(made.encoder, corrupted).states, corrupted["segments"])[:, 0]
    assert (normalize(changed, dim=-1) - vectors).abs().max() > 1e-2


def test_both_stages_tokenise_alike(make: Any) -> None:
    made = make()
    objective = QueryLikelihood(made, corruption=0.0, reverse=0.0)
    back = QueryLikelihood(made, corruption=0.0, reverse=1.0)
    for side, texts, stage in (("document", DOCUMENTS, objective), ("query", QUERIES, back)):
        features = made.preprocess(texts, prompt=made.prompts[side])
        for i, pair in enumerate(PAIRS):
            row = stage.row(i, pair)
            size = int(features["attention_mask"][i].sum())
            assert [*row.prefix, *row.special] == features["input_ids"][i, :size].tolist()
    decoded = made.encoder.tokenizer.decode(rows_of(made, "query", ["rain"])[0])
    assert decoded == "Q: rain\nA:" + made.encoder.append[0]
    decoded = made.encoder.tokenizer.decode(rows_of(made, "document", ["rain"])[0])
    assert decoded == "P: rain\nS:" + made.encoder.append[0]


def test_a_cue_is_never_cut_off(make: Any) -> None:
    made = make()
    made.encoder.max_seq_length = 16
    long = rows_of(made, "document", ["word " * 50])[0]
    assert len(long) == 16
    assert made.encoder.tokenizer.decode(long).endswith("\nS:" + made.encoder.append[0])


def test_the_sides_are_saved(make: Any, tmp_path: Path) -> None:
    made = make()
    made.save(str(tmp_path / "ql"))
    for again in (load(tmp_path / "ql"), SentenceTransformer(str(tmp_path / "ql"), trust_remote_code=True)):
        assert abs(again.encode_query(QUERIES) - made.encode_query(QUERIES)).max() < 1e-6
        assert abs(again.encode_document(DOCUMENTS) - made.encode_document(DOCUMENTS)).max() < 1e-6
    assert abs(made.encode_query(DOCUMENTS) - made.encode_document(DOCUMENTS)).max() > 1e-2


# Stage 1


def test_without_block_and_corruption_it_is_fine_tuning_a_language_model(make: Any) -> None:
    made = make().double()
    objective = QueryLikelihood(made, block=False, corruption=0.0)
    total = count = 0.0
    for i, pair in enumerate(PAIRS):
        row = objective.row(i, pair)
        ids = torch.tensor([[*row.prefix, *row.special, *row.suffix]])
        total += made.encoder.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert objective.loss(made, batch_of(objective))["loss"].item() == pytest.approx(total / count, abs=1e-6)
    blocked = QueryLikelihood(made, corruption=0.0)
    assert abs(blocked.loss(made, batch_of(blocked))["loss"].item() - total / count) > 1e-3


def test_label_layouts(make: Any) -> None:
    made = make()
    live, query = batch_of(QueryLikelihood(made)), batch_of(QueryLikelihood(made, labels="query"))
    scored, real = live["labels"] != -100, live["segments"] > 0
    assert torch.equal(scored[:, 1:], real[:, 1:])  # all tokens but the first, E included
    assert not scored[:, 0].any()
    assert torch.equal(query["labels"] != -100, query["segments"] == SUFFIX)
    for name in ("input_ids", "segments"):
        assert torch.equal(live[name], query[name])
    end = made.encoder.token_id(made.encoder.append[0])
    last = (live["segments"] > 0).sum(1) - 1
    assert (live["input_ids"][torch.arange(4), last] == end).all()
    assert (live["input_ids"][live["segments"] == SPECIAL] == end).all()


def test_the_query_depends_on_the_document_through_the_end_token(make: Any) -> None:
    """Gradients at the end token's states are the only ones that reach the document: see test_bottleneck."""
    made = make()
    objective = QueryLikelihood(made, corruption=0.0, labels="query")
    rows = [objective.row(0, {"query": "red hats", "positive": text}) for text in DOCUMENTS[:2]]
    batch = collator_for(made.encoder, attention_stop)(rows)
    nll = forward_pass(made.encoder, batch).nll.sum(1)
    assert abs(nll[0] - nll[1]) > 1e-3


def test_corruption_is_drawn_anew_and_leaves_the_query_alone(make: Any) -> None:
    objective = QueryLikelihood(make(), corruption=0.6)
    pair = PAIRS[2]
    rows = [objective.row(place, pair) for place in range(40)]
    assert len({tuple(row.prefix) for row in rows}) > 20
    assert len({tuple(row.suffix) for row in rows}) == 1
    assert rows == [objective.row(place, pair) for place in range(40)]
    words = [objective.embedder.encoder.tokenizer.decode(row.prefix).split()[1:-1] for row in rows]
    assert abs(np.mean([word == "_" for each in words for word in each]) - 0.6) < 0.12


def test_the_direction_can_be_turned(make: Any) -> None:
    objective = QueryLikelihood(make(), reverse=0.5, corruption=1.0)
    rows = [objective.row(place, PAIRS[1]) for place in range(200)]
    decode = objective.embedder.encoder.tokenizer.decode
    turned = [row for row in rows if decode(row.prefix) == "Q: rain\nA:"]
    assert 70 < len(turned) < 130
    for row in turned:
        assert decode(row.suffix[:-1]) == PAIRS[1]["positive"]  # not corrupted
        assert row.scored == ("suffix",)
    others = [row for row in rows if row not in turned]
    assert all(decode(row.prefix) == "P: _ _ _\nS:" and decode(row.suffix[:-1]) == "rain" for row in others)


def test_a_long_target_is_cut_and_still_ends(make: Any) -> None:
    objective = QueryLikelihood(make(), max_target=5)
    row = objective.row(0, PAIRS[2])
    assert len(row.suffix) == 5
    assert row.suffix[-1] == row.special[0]
    assert objective.cut_ == 1


# Scores


def test_the_score_is_the_querys_likelihood_through_the_mask(make: Any) -> None:
    made = make()
    found = query_log_likelihood(made, QUERIES, DOCUMENTS, batch_size=3)
    ending = query_log_likelihood(made, QUERIES, DOCUMENTS, end=True)
    tokenizer = made.encoder.tokenizer
    for i, query in enumerate(QUERIES):
        for j, document in enumerate(DOCUMENTS):
            ids, target = rows_of(made, "document", [document])[0], tokenizer(query)["input_ids"]
            batch = collator_for(made.encoder, attention_stop)([BottleneckRow(ids[:-1], ids[-1:], target, ("suffix",))])
            assert found[i, j].item() == pytest.approx(-forward_pass(made.encoder, batch).nll.sum().item(), abs=1e-3)
    assert (ending < found).all()


def test_training_ranks_a_document_above_others_by_likelihood(make: Any) -> None:
    made = make()
    fit(made, PAIRS, QueryLikelihood(made, corruption=0.1), method="full", steps=60, batch_size=4, learning_rate=1e-2,
        schedule="constant", autocast="none")  # fmt: skip
    scores = query_log_likelihood(made, QUERIES, DOCUMENTS)
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
    assert (scores.diagonal() > scores.median(1).values).all()


# Stage 2


def test_the_contrastive_loss_is_cross_entropy_at_a_hundredth(make: Any) -> None:
    made = make()
    loss = LLMQL(**SHORT).contrastive(made)

    def value(n: int) -> float:
        sides = (("query", QUERIES), ("document", DOCUMENTS))
        return loss([made.preprocess(texts[:n], prompt=made.prompts[side]) for side, texts in sides], None).item()

    assert value(1) == 0
    queries, documents = (
        made.encode(t, prompt_name=s, convert_to_tensor=True) for s, t in (("query", QUERIES), ("document", DOCUMENTS))
    )
    expected = cross_entropy(queries @ documents.T / 0.01, torch.arange(4)).item()
    assert value(4) == pytest.approx(expected, rel=1e-4)
    cached = LLMQL(**SHORT, mini_batch_size=2).contrastive(made)
    features = [made.preprocess(t, prompt=made.prompts[s]) for s, t in (("query", QUERIES), ("document", DOCUMENTS))]
    assert cached(features, None).item() == pytest.approx(expected, rel=1e-4)


def test_the_trainer_gives_each_column_its_sides_prompt(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    rows = [{**pair, "negative": "No."} for pair in PAIRS]
    seen: list[list[str]] = []
    loss = LLMQL(**SHORT).contrastive(made)
    forward = loss.forward

    def watch(features: Any, labels: Any) -> Any:
        features = list(features)
        seen.append([made.encoder.tokenizer.decode(each["input_ids"][0]) for each in features])
        return forward(features, labels)

    monkeypatch.setattr(loss, "forward", watch)
    contrast(made, rows, loss, steps=1, batch_size=4)
    [[query, positive, negative]] = seen
    assert query.startswith("Q: ")
    assert "\nA:" in query
    assert positive.startswith("P: ")
    assert "\nS:" in positive
    assert negative.startswith("P: No.\nS:")


def test_two_stages_with_an_adapter_each(make: Any, tmp_path: Path) -> None:
    method = LLMQL(**SHORT)
    options: dict[str, Any] = {"batch_size": 4, "learning_rate": 3e-3, "ql_learning_rate": 3e-3, "autocast": "none"}
    made = make()
    before = made.encode_document(DOCUMENTS)
    first, second = method.fit(made, PAIRS, tmp_path / "both", ql_steps=4, steps=3, **options)
    assert first is not None
    assert (first.steps, second.steps) == (4, 3)
    saved = load(tmp_path / "both")
    assert not (tmp_path / "both" / "adapter_config.json").exists()
    assert abs(saved.encode_document(DOCUMENTS) - made.encode_document(DOCUMENTS)).max() < 1e-5
    between = load(tmp_path / "both.ql").encode_document(DOCUMENTS)
    assert abs(between - before).max() > 1e-3
    assert abs(saved.encode_document(DOCUMENTS) - between).max() > 1e-3

    plain = make()
    assert method.fit(plain, PAIRS, ql_steps=0, steps=3, **options)[0] is None
    assert abs(plain.encode_document(DOCUMENTS) - saved.encode_document(DOCUMENTS)).max() > 1e-3  # stage 1 is kept

    again = make()  # a call that was cut off after stage 1 resumes there
    (tmp_path / "both").rename(tmp_path / "moved")
    first, _ = method.fit(again, PAIRS, tmp_path / "both", ql_steps=4, steps=3, **options)
    assert first is None
    assert abs(again.encode_document(DOCUMENTS) - saved.encode_document(DOCUMENTS)).max() < 1e-5
    with pytest.raises(InputError, match="is finished"):
        method.fit(make(), PAIRS, tmp_path / "both", ql_steps=4, steps=3, **options)
    (tmp_path / "both").rename(tmp_path / "moved again")
    with pytest.raises(InputError, match="was made with other rows: choose"):
        method.fit(make(), PAIRS[:2] * 2, tmp_path / "both", ql_steps=4, steps=3, **options)
    with pytest.raises(InputError, match=r"other objective\.block True, now False"):
        LLMQL(**SHORT, block=False).fit(make(), PAIRS, tmp_path / "both", ql_steps=4, steps=3, **options)
    first, _ = method.fit(make(), PAIRS[:2] * 2, tmp_path / "both", ql_steps=4, steps=3, force=True, **options)
    assert first is not None


def test_the_second_adapter_can_be_kept_on_the_first_stage(make: Any, tmp_path: Path) -> None:
    made = make()
    options: dict[str, Any] = {"batch_size": 4, "learning_rate": 3e-3, "autocast": "none", "merge": False}
    LLMQL(**SHORT).fit(made, PAIRS, tmp_path / "thin", ql_steps=2, steps=2, **options)
    assert (tmp_path / "thin" / "adapter_config.json").exists()
    saved = load(tmp_path / "thin")
    assert abs(saved.encode_document(DOCUMENTS) - made.encode_document(DOCUMENTS)).max() < 1e-5


# Refusals


def test_what_cannot_be_is_refused(make: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    made = make()
    for options, said in (
        ({"corruption": 1.1}, r"corruption 1\.1"),
        ({"reverse": -0.1}, r"reverse -0\.1"),
        ({"labels": "all"}, "labels 'all'"),
        ({"max_target": 1}, "max_target 1"),
    ):
        with pytest.raises(InputError, match=said):
            QueryLikelihood(made, **options)
    with pytest.raises(InputError, match="one end token"):
        QueryLikelihood(embedder((tiny_model(), tiny_tokenizer())))
    with pytest.raises(InputError, match="'query' and a 'positive'"):
        QueryLikelihood(made).row(0, {"query": "no document"})
    with pytest.raises(InputError, match="begins like another"):
        make(LLMQL(query=Template("P: ", "x"), document=Template("P: ", "y")))
    with pytest.raises(InputError, match="columns of negatives"):
        contrast(made, [{"text": "x"}], None)
    silent = tiny_tokenizer()
    silent.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        LLMQL().embedder((tiny_model(), silent))
    assert QUERY.prefix != DOCUMENT.prefix
