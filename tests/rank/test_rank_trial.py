"""The trials of the stage on a tiny model and a small collection: what is compared, said, resumed and refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shown import reasons
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.data.retrieval.lists import RankList
from broadsheet.rank.base import ListwiseReranker
from broadsheet.rank.list_source import ListSource
from broadsheet.rank.trials import base as parts
from broadsheet.rank.trials import dual
from broadsheet.rank.trials import pg_rank as pg_rank_trial
from broadsheet.rank.trials.base import FIRST_STAGE
from broadsheet.rank.trials.dual import (
    CONTRASTIVE,
    FOR_MRR,
    FOR_NDCG,
    LAMBDA,
    LISTNET,
    NO_BASELINE,
    RANKNET,
    DualScorer,
    OnLists,
    losses,
)
from broadsheet.rank.trials.first import MAIN, PERMUTATION, SHUFFLED, UNTRAINED, FirstTrial
from broadsheet.rank.trials.fullrank import FULL, SLIDING, FullRankTrial, noisy_labels
from broadsheet.rank.trials.pg_rank import AFTER, BEFORE, LOSSES, RATES, PGRankTrial
from broadsheet.trial.base import ModelArm
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult


@pytest.fixture
def options(collection: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    return {"model": str(model), "data": str(collection), "queries": 6, "candidates": 5}


@pytest.fixture
def given(options: dict[str, Any]) -> dict[str, Any]:
    """A reranker is given: nothing is trained."""
    return {**options, "reranker": options["model"]}


def test_a_trial_compares_the_arms_on_the_same_lists_and_explains(given):
    options, trial = given, FirstTrial(**given)
    result = trial.run()
    assert [(arm.name, arm.status) for arm in result.arms] == [
        (name, "ok") for name in (FIRST_STAGE, PERMUTATION, MAIN, SHUFFLED, UNTRAINED)
    ]
    arms = {arm.name: arm for arm in result.arms}
    lists = ListSource(options["data"]).test(6, 5, found=True).lists
    assert arms[FIRST_STAGE].samples["RR@10"] == [1 / (each.labels.index(1) + 1) for each in lists]
    for arm in result.arms:
        assert all(sorted(order) == list(range(5)) for order in arm.samples["order"])
    assert arms[MAIN].samples["output_tokens"] == [0] * 6
    assert min(arms[PERMUTATION].samples["output_tokens"]) > 0
    assert arms[MAIN].samples["prompt_tokens"] == arms[PERMUTATION].samples["prompt_tokens"]
    assert arms[SHUFFLED].samples["order"] != arms[MAIN].samples["order"]
    compared = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert set(result.claims) <= compared
    assert ("nDCG@10", MAIN, SHUFFLED) in compared
    notes = "\n".join(result.notes)
    for words in ("found a right passage for", "prompt tokens", "Position bias", "same passage first"):
        assert words in notes
    trial.finish()


def test_the_reranker_ranks_what_the_arm_says(given, model):
    """The arm's orders are those of `rank`, list by list: nothing is mixed up between lists, shuffles and blocks."""
    lists = ListSource(given["data"]).test(6, 5, found=True).lists
    result = {arm.name: arm for arm in FirstTrial(**given).run().arms}
    reranker = ListwiseReranker.load(model)
    for index, each in enumerate(lists):
        expected = [hit["corpus_id"] for hit in reranker.rank(each.query, each.documents)]
        assert result[MAIN].samples["order"][index] == expected
        shuffled, order = each.shuffled(0)
        again = [order[hit["corpus_id"]] for hit in reranker.rank(shuffled.query, shuffled.documents)]
        assert result[SHUFFLED].samples["order"][index] == again


def test_a_trained_reranker_is_tried_beside_the_model_it_was_and_others(
    options, model, tiny_model, tiny_tokenizer, tmp_path
):
    trained = ListwiseReranker(tiny_model(seed=3, max_position_embeddings=4096), tiny_tokenizer(), window=4, step=2)
    trained.save(tmp_path / "trained")
    trained.save(tmp_path / "other")
    result = FirstTrial(**options, reranker=str(tmp_path / "trained"), also=(str(tmp_path / "other"),)).run()
    arms = {arm.name: arm for arm in result.arms}
    assert {UNTRAINED, "other"} <= arms.keys()
    assert arms["other"].samples["order"] == arms[MAIN].samples["order"]
    assert arms[UNTRAINED].samples["order"] != arms[MAIN].samples["order"]
    assert arms[UNTRAINED].samples["calls"] == arms[MAIN].samples["calls"] == [2.0] * 6


def test_a_trial_says_how_the_reranker_was_trained(tmp_path, model):
    from broadsheet.rank.first import FIRST
    from broadsheet.rank.training.fitting import fit

    assert parts.training("") == parts.training(str(model)) == {}
    row = {"query": "q", "documents": ["hat", "mat", "sea"], "labels": [0, 1, 0]}
    fit(ListwiseReranker.load(model), [row], FIRST(), out=tmp_path / "out", minutes=None, epochs=2, lists_per_step=1)
    assert parts.training(str(tmp_path / "out")) == {
        "training": "FIRST (kind weighted_ranknet, lm True), 2 lists in 2 steps and 0 minutes, full, "
        "learning rate 5e-05"
    }


def test_lists_of_different_lengths_and_a_run_as_first_stage(given, tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("".join(f"q{i} Q0 d{j} 1 {9 - j} x\n" for i in range(6) for j in range(1 + i % 3)))
    result = FirstTrial(**given, first_stage=str(run), unanswerable=True).run()
    assert [arm.status for arm in result.arms] == ["ok"] * 5
    lengths = sorted(len(order) for order in parts.orders_of(result.arms[2]))
    assert lengths == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 1}, "got --candidates 1; expected 2 or more"),
        ({"queries": 0}, "got --queries 0; expected 1 or more"),
        ({"split": "dev"}, "has qrels for test, train"),
        ({"data": "pydocs", "first_stage": "x"}, "BEIR folder"),
        ({"first_stage": "missing.trec"}, "missing.trec"),
        ({"data": "nowhere"}, "no BEIR folder"),
        ({"window": 1}, "got --window 1; expected 2 or more"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_ranked(options, changes, message):
    with pytest.raises(InputError, match=message):
        FirstTrial(**options | changes).run()


# What is said


def lists_of(*labels: int | None) -> list[RankList]:
    """A list a label: the right passage at that place of three, or nowhere."""
    return [
        RankList(
            str(n), "q", ("a", "b", "c"), ("", "", ""), judged={"abc"[place]: 1} if place is not None else {"z": 1}
        )
        for n, place in enumerate(labels)
    ]


def test_the_ceiling_is_what_the_best_order_would_reach():
    said = parts.ceiling(lists_of(0, 2, None, None), 4)
    assert "for 2 of 4 queries. The others count 0 whatever is done. The best" in said
    assert "0.500" in said
    said = parts.ceiling(lists_of(0, 2), 4)
    assert "for 2 of 4 queries. The others are not asked" in said
    assert "1.000" in said


def test_where_no_number_of_lists_is_given_the_claims_decide_it(options, monkeypatch):
    monkeypatch.setattr(parts, "PILOT", 2)
    del options["queries"]
    trial = FirstTrial(**options)
    [task] = trial.tasks()
    assert task.pilot == 2
    assert 6 < len(task.items) <= parts.MOST_LISTS, "all that there are"
    assert "at most" in task.about
    [task] = FirstTrial(**options, queries=6).tasks()
    assert (task.pilot, len(task.items)) == (0, 6)


def test_examples_are_queries_with_what_each_arm_puts_first():
    lists = lists_of(0, 2, 1)
    one = ArmResult("one", "baseline", samples={"order": [[0, 1, 2]] * 3})
    other = ArmResult("other", "method", samples={"order": [[0, 1, 2], [2, 1, 0], [0, 1, 2]]})
    shown = parts.examples(lists, {"one": one, "other": other})
    assert len(shown) == 3
    assert shown[0].answers["one"].startswith("✗ ")
    assert shown[0].answers["other"].startswith("✓ ")
    assert {mark[:1] for each in shown[1:] for mark in each.answers.values()} == {"✓", "✗"}, "the others in their order"
    assert shown[0].expected.startswith("Right:")


def test_lists_that_no_order_can_improve_are_asked_where_one_says_so(options):
    trial, whole = FirstTrial(**options), FirstTrial(**options | {"queries": "all"}, unanswerable=True)
    trial.tasks(), whole.tasks()
    assert all(each.order_matters for each in trial.lists_.lists)
    assert len(trial.lists_.lists) == 6
    assert len(whole.lists_.lists) == whole.lists_.asked == 12
    assert 6 <= sum(each.found for each in whole.lists_.lists) < 12


def test_success_counts_right_passages_among_the_first_k():
    lists = lists_of(0, 2, None)
    result = run_alone(parts.first_stage(ModelArm(FIRST_STAGE, lambda: None), 3), lists)
    assert parts.success([result], lists, "t").lines[FIRST_STAGE] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def run_alone(arm: Any, lists: list[RankList]) -> Any:
    from broadsheet.trial.engine import run_arms

    return run_arms([replace(arm, role="baseline")], lists, parts.METRICS, item="list", resamples=100)[0][0]


def test_position_bias_tells_a_copying_reranker_from_one_that_looks(monkeypatch):
    lists = [RankList(str(n), "q", tuple("abcdef"), tuple("abcdef"), judged={"a": 1}) for n in range(8)]

    class Fake:
        def __init__(self, key: Any) -> None:
            from broadsheet.rank.base import RerankStats

            self.key, self.stats_ = key, RerankStats()

        def rank_batch(self, queries: Any, documents: Any) -> Any:
            return [
                [{"corpus_id": i} for i in sorted(range(len(d)), key=lambda i: self.key(i, d[i]))] for d in documents
            ]

    for key, agreement, follows in ((lambda i, text: i, None, 1.0), (lambda i, text: text, 1.0, None)):
        given, shuffled = (
            run_alone(
                parts.reranking(ModelArm("x", lambda: None), LazyModel(partial(Fake, key)), width=6, shuffle=shuffle),
                lists,
            )
            for shuffle in (None, 0)
        )
        said = parts.bias(given, shuffled, lists, 0)
        assert ("inputs: 1.00" in said) == (agreement == 1.0)
        assert ("of it: 1.00" in said) == (follows == 1.0)


# Full ranking


def test_full_ranking_reads_each_passage_once_and_windows_read_some_again(given):
    result = FullRankTrial(**given | {"candidates": 10}).run()
    arms = {arm.name: arm for arm in result.arms}
    assert [arm.status for arm in result.arms] == ["ok"] * 3
    assert arms[FULL].samples["passages"] == [10.0] * 6
    assert arms[FULL].samples["calls"] == [1.0] * 6
    assert arms[SLIDING].samples["passages"] == [16.0] * 6  # windows of 4, step 2: four calls
    assert arms[SLIDING].samples["calls"] == [4.0] * 6
    assert set(result.claims) <= {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert "Label builder" in "\n".join(result.notes)
    with pytest.raises(InputError, match="is full ranking"):
        FullRankTrial(**given | {"window": 5}).run()


def test_full_ranking_is_claimed_to_be_better_of_a_reranker_that_learnt_whole_lists(model, tmp_path):
    from broadsheet.rank.fullrank import FullRank
    from broadsheet.rank.training.fitting import fit

    row = {"query": "q", "documents": ["hat", "mat", "sea"], "ranking": [1, 0, 2]}
    for name, sizes in (("whole", None), ("parts", (2, 2))):
        reranker, settings = ListwiseReranker.load(model), {"minutes": None, "epochs": 1, "lists_per_step": 1}
        fit(reranker, [row], FullRank(), out=tmp_path / name, sizes=sizes, **settings)
    claimed = {
        folder.name: [claim.metric for claim in FullRankTrial(reranker=str(folder)).claims()]
        for folder in (tmp_path / "whole", tmp_path / "parts", model)
    }
    assert claimed == {"whole": ["nDCG@10", "lists/s"], "parts": ["lists/s"], "model": ["lists/s"]}


def test_several_passes_beat_one_sweep_and_are_exact_without_noise():
    curve, said = noisy_labels(0)
    sweep, passes = curve.lines.values()
    assert passes[0] == 1.0
    assert all(one < other for one, other in zip(sweep, passes, strict=True))
    assert passes == sorted(passes, reverse=True)
    assert "(9 calls)" in said
    assert "(45 calls)" in said
    assert noisy_labels(0) == (curve, said)


# PG-RANK


@pytest.fixture
def pg_rank(options: dict[str, Any], taught_collection: Path, model: Path, tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("sentence_transformers")
    from broadsheet.embed import baseline

    baseline("mean", str(model)).save_pretrained(str(tmp_path / "encoder"))
    given = {key: options[key] for key in ("queries", "candidates")} | {"model": str(tmp_path / "encoder")}
    return {**given, "data": str(taught_collection), "lists": 10, "batch": 4, "steps": 3, "runs": 2}


def test_every_loss_tunes_the_same_encoder_on_the_same_lists(pg_rank, monkeypatch):
    seen: dict[str, list[Any]] = {}

    class Watched(OnLists):
        def loss(self, model, batch, generator):
            seen.setdefault(self.name, []).append([each.query for each in batch["lists"]])
            return super().loss(model, batch, generator)

    monkeypatch.setattr(pg_rank_trial, "OnLists", Watched)
    trial = PGRankTrial(**pg_rank)
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert list(arms) == [*LOSSES, pg_rank_trial.UNTRAINED, FIRST_STAGE]
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert [arm.runs for arm in result.arms] == [2] * len(LOSSES) + [1, 1]
    assert {arm.name for arm in result.arms if arm.role == "peer"} == {LISTNET, RANKNET, LAMBDA}
    tests = {each.query for each in trial.lists_.lists}
    for name in LOSSES:
        rates = len(trial.settings_tried(name))  # the best of which is the first run; and the second
        assert seen[name] == seen[CONTRASTIVE][:3] * rates + seen[CONTRASTIVE][-3:], "all in one order"
        assert rates >= len(RATES)
        assert seen[name][:3] != seen[name][-3:], "another seed, another order"
        assert f"tuning of {name}" in result.setting
    dev = {each.query for each in trial._dev}
    learnt = {query for batch in seen[FOR_NDCG] for query in batch}
    assert not any(one & other for one, other in combinations((dev, learnt, tests), 2))
    assert all((dev, learnt, tests))
    assert differ(trial, *LOSSES)
    assert set(result.claims) == {
        ("nDCG@10", CONTRASTIVE, FOR_NDCG),
        ("RR@10", CONTRASTIVE, FOR_MRR),
        ("nDCG@10", NO_BASELINE, FOR_NDCG),
    }
    assert [claim.kind for claim in result.judged] == ["claim", "claim", "control"]
    assert all("here an encoder learns from" in why for why in reasons(result).values())
    assert all(f"the nDCG@10 of {len(trial._dev)} lists" in result.setting[f"tuning of {name}"] for name in LOSSES)
    again = PGRankTrial(**pg_rank).run()
    assert {a.name: a.samples["order"] for a in again.arms} == {a.name: a.samples["order"] for a in result.arms}
    trial.finish()


def test_a_model_that_is_no_encoder_is_refused_with_what_makes_one_of_it(pg_rank, model):
    for name in ("default", str(model)):
        with pytest.raises(InputError, match="baseline\\('mean'"):
            PGRankTrial(**pg_rank | {"model": name}).run()


class Table(torch.nn.Module):
    """An encoder that knows one vector for each letter, with the prompt in front of it."""

    def __init__(self, vectors: dict[str, torch.Tensor], prompts: dict[str, str] | None = None) -> None:
        super().__init__()
        self.letters = list(vectors)
        self.prompts, self.default_prompt_name = prompts or {}, None
        self.table = torch.nn.Parameter(torch.stack(list(vectors.values())))

    def preprocess(self, texts: list[str], prompt: str | None, task: str) -> dict[str, torch.Tensor]:
        assert task in ("query", "document")
        ids = torch.tensor([[self.letters.index((prompt or "") + text)] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": self.table[features["input_ids"][:, 0]]}


def test_a_dual_scorer_is_the_cosine_reads_each_text_once_and_learns_with_each_loss(monkeypatch):
    pytest.importorskip("sentence_transformers")
    generator = torch.Generator().manual_seed(0)
    vectors = {name: 3 * torch.randn(8, generator=generator) for name in ["q", *"abcdef"]}
    one = RankList("1", "q", tuple("abcdef"), tuple("abcdef"), judged={"f": 1})
    cosines = [float(torch.cosine_similarity(vectors["q"], vectors[name], dim=0)) for name in "abcdef"]
    for together in (2, 32):
        monkeypatch.setattr(dual, "_TOGETHER", together)
        scorer = DualScorer(Table(vectors))
        assert scorer.orders([one, one]) == [sorted(range(6), key=lambda i: -cosines[i])] * 2
        assert scorer.read == 7
        scores = scorer(scorer.preprocess([("q", name) for name in "fbad"]))["scores"]
        np.testing.assert_allclose(scores.detach(), [20 * cosines["abcdef".index(name)] for name in "fbad"], rtol=1e-5)
    relevance = [torch.tensor([0, 0, 0, 0, 0, 1.0])]
    for name in LOSSES.keys() - {NO_BASELINE}:  # which is there because it learns badly
        scorer = DualScorer(Table(vectors))
        loss = losses(scorer, samples=16)[name]
        optimizer = torch.optim.Adam(scorer.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            loss((["q"], [list("abcdef")]), relevance, generator).backward()
            optimizer.step()
        assert scorer.orders([one])[0][0] == 5, name


def test_each_side_has_its_own_prompt():
    vectors = {name: torch.eye(4)[i] for i, name in enumerate(["query: a", "passage: a", "passage: b", "a"])}
    vectors["passage: b"] = vectors["query: a"]
    for prompts in ({"query": "query: ", "passage": "passage: "}, {"query": "query: ", "document": "passage: "}):
        scorer = DualScorer(Table(vectors, prompts))
        assert scorer(scorer.preprocess([("a", "a"), ("a", "b")]))["scores"].tolist() == [0.0, 20.0]
    plain = DualScorer(Table(vectors))
    assert plain(plain.preprocess([("a", "a")]))["scores"].tolist() == [20.0]


def test_contrast_is_the_cross_entropy_of_the_right_passage():
    pytest.importorskip("sentence_transformers")
    vectors = {name: torch.eye(4)[i] for i, name in enumerate("qabc")}
    vectors["b"] = torch.tensor([0.1, 0.99**0.5, 0.0, 0.0])
    loss = losses(DualScorer(Table(vectors)), 4)[CONTRASTIVE]
    found = loss((["q"], [["a", "b", "c"]]), [torch.tensor([0.0, 1.0, 0.0])], torch.Generator())
    scores = np.exp(20 * np.array([0, 0.1, 0]))
    assert found.item() == pytest.approx(-np.log(scores[1] / scores.sum()), rel=1e-4)


def test_rankings_are_drawn_from_the_generator_of_the_step():
    pytest.importorskip("sentence_transformers")
    noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    vectors = {name: 1 + 0.2 * noise[i] for i, name in enumerate("qabcd")}  # near, so that the policy explores
    loss = losses(DualScorer(Table(vectors)), 4)[FOR_NDCG]
    given = (["q"], [list("abcd")]), [torch.tensor([0.0, 1.0, 0.0, 0.0])]
    first, again, other = (loss(*given, torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2))
    assert first == again != other


def test_texts_that_are_cut_are_counted(pg_rank, tiny_tokenizer):
    scorer = DualScorer(PGRankTrial(**pg_rank)._encoder())
    lists = [replace(lists_of(0)[0], query="a hat on a mat", documents=("red sea", "b", "c"))]
    assert scorer.cut(lists) == (0, 4)
    scorer.encoder[0].max_seq_length = 1
    assert scorer.cut(lists) == (2, 4), "by what an encoder of ours counts"
    other = Table({"a": torch.ones(2)}, {"query": "a "})
    other.tokenizer, other.max_seq_length = tiny_tokenizer(), 1
    other.__class__.__getitem__ = lambda self, place: torch.nn.Identity()
    short = [replace(lists[0], query="b")]
    assert DualScorer(other).cut(short) == (2, 4), "a query is longer by its prompt"


def test_tuned_rerankers_are_compared_on_real_lists(options, tiny_model, tiny_tokenizer, tmp_path):
    for name, seed in (("before", 3), ("after", 4)):
        model = tiny_model(seed=seed, max_position_embeddings=4096)
        ListwiseReranker(model, tiny_tokenizer()).save(tmp_path / name)
    given = {key: options[key] for key in ("data", "queries", "candidates")}
    result = PGRankTrial(**given, reranker=str(tmp_path / "before"), after=str(tmp_path / "after")).run()
    assert [arm.name for arm in result.arms] == [BEFORE, AFTER, FIRST_STAGE]
    assert result.arms[0].samples["order"] != result.arms[1].samples["order"]
    with pytest.raises(InputError, match="expected both"):
        PGRankTrial(**given, reranker="x").run()
