"""Trials that train rerankers: what each arm is taught, in which order, at which rate, and how it is then read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.data.retrieval.lists import RankList
from broadsheet.rank.first import FIRST
from broadsheet.rank.fullrank import FullRank
from broadsheet.rank.list_source import ListSource
from broadsheet.rank.training import fitting
from broadsheet.rank.trials import teaching
from broadsheet.rank.trials.base import FIRST_STAGE, changed
from broadsheet.rank.trials.first import (
    BEGUN,
    MAIN,
    NO_RANKING,
    RANKING_ALONE,
    SHUFFLED,
    UNTRAINED,
    WRITTEN,
    FirstTrial,
)
from broadsheet.rank.trials.fullrank import FULL, PLAIN, SLIDING, FullRankTrial
from broadsheet.rank.trials.pg_rank import PGRankTrial

TAUGHT = {"easy": 12, "lists": 12, "batch": 2, "steps": 2, "runs": 2, "queries": 4}
RATES = (1e-4, 1e-3)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is fitted, in turn; the teacher orders candidates backwards; of two rates the higher one is better."""
    found: list[dict[str, Any]] = []
    whole = fitting.fit

    def watched(reranker: Any, rows: Any, loss: Any, out: Path, **settings: Any) -> Any:
        found.append({"loss": loss, "rows": rows, "model": reranker.spec, "out": out, **settings})
        return whole(reranker, rows, loss, out, **settings)

    def backwards(lists: list[RankList], *_: Any) -> list[list[int]]:
        return [sorted(range(len(each.ids)), key=lambda i: (-each.labels[i], -i)) for each in lists]

    monkeypatch.setattr(fitting, "fit", watched)
    monkeypatch.setattr(teaching, "rankings", backwards)
    monkeypatch.setattr(teaching, "RATES", {"full": RATES, "lora": RATES})
    return found


@pytest.fixture
def options(taught_collection: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    return {"model": str(model), "data": str(taught_collection), "candidates": 5, **TAUGHT}


def trainings(seen: list[dict[str, Any]], trial: Any) -> dict[tuple[str, float, int], dict[str, Any]]:
    """By loss, rate and seed, what was trained after the easy lists."""
    found = {(repr(each["loss"]), each["learning_rate"], each["seed"]): each for each in seen[1:]}
    assert len(found) == len(seen) - 1, "nothing is trained twice"
    for (loss, rate, seed), each in found.items():
        size = each["sizes"][0] if each["sizes"] else "all"
        assert each["out"] == trial.folder(f"{loss}, {size} passages, rate {rate:g}, seed {seed}")
    return found


def test_all_arms_of_first_go_on_from_one_model_and_are_trained_and_read_as_they_say(options, seen):
    trial = FirstTrial(**options)
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert list(arms) == [WRITTEN, NO_RANKING, RANKING_ALONE, MAIN, SHUFFLED, BEGUN, UNTRAINED, FIRST_STAGE]
    assert [arm.runs for arm in result.arms] == [2] * 5 + [1] * 3
    easy = seen[0]
    assert (easy["loss"], easy["sizes"], easy["model"]) == (FIRST(kind="softmax"), (2, 4), options["model"])
    assert all("ranking" not in row for row in easy["rows"])
    found = trainings(seen, trial)
    taught = {WRITTEN: FIRST(weight=0), NO_RANKING: FIRST(weight=0), RANKING_ALONE: FIRST(lm=False), MAIN: FIRST()}
    for name, loss in taught.items():
        for seed in (0, 1):
            made = found[repr(loss), trial._rates[name], seed]
            assert trial.run_folder(name, seed).resolve() == made["out"].resolve()
            assert made["model"] == str(trial.folder("easy lists"))
            assert made["rows"] == seen[1]["rows"]
            assert (made["sizes"], made["lists_per_step"], made["steps"]) == (None, 2, 2)
            reads = changed(trial._model(trial.run_folder(name, seed)), decode="first_token")
            lists = trial.lists_.lists
            orders = [[hit["corpus_id"] for hit in reads.rank(each.query, each.documents)] for each in lists]
            if seed == 0 and name != WRITTEN:
                assert arms[name].samples["order"] == orders, "each arm is read by its own weights"
    assert arms[WRITTEN].samples["output_tokens"][0] > 0
    for name in (NO_RANKING, RANKING_ALONE, MAIN, SHUFFLED, BEGUN):
        assert arms[name].samples["output_tokens"] == [0] * 4
    assert differ(trial, WRITTEN, RANKING_ALONE, MAIN)
    assert set(result.claims) == {
        ("nDCG@10", WRITTEN, MAIN),
        ("nDCG@10", NO_RANKING, MAIN),
        ("nDCG@10", RANKING_ALONE, MAIN),
        ("lists/s", WRITTEN, MAIN),
    }
    assert "softmax" in result.setting["easy lists"]
    assert "as resource:minilm orders them" in result.setting["training"]
    fitted = len(seen)
    again = FirstTrial(**options).run()
    assert len(seen) == fitted, "nothing is trained again"
    assert again.setting == result.setting
    assert {a.name: a.samples["order"] for a in again.arms} == {a.name: a.samples["order"] for a in result.arms}
    trial.finish()


def test_what_is_asked_or_chosen_by_is_not_learnt(options, seen, tmp_path):
    from broadsheet.embed import baseline

    trial = FirstTrial(**options | {"queries": "all"}, seed=1)
    trial.run()
    learnt, held = trial._learnt
    asked = {each.query for each in trial.lists_.lists}
    assert len(asked) == 8
    assert asked.isdisjoint(each.query for each in held)
    for each in seen:
        queries = {row["query"] for row in each["rows"]}
        assert queries.isdisjoint(asked)
        assert queries.isdisjoint(one.query for one in held)
    for row, each in zip(seen[1]["rows"], learnt, strict=True):
        ranked = [each.labels[i] for i in row["ranking"]]
        assert ranked == sorted(ranked, reverse=True), "right passages first"
        wrong = [i for i in row["ranking"] if not each.labels[i]]
        assert wrong == sorted(wrong, reverse=True), "the others as the teacher orders them"
    trial.finish()
    encoder = tmp_path / "encoder"
    baseline("mean", str(options["model"])).save_pretrained(str(encoder))
    for kind, model in ((FirstTrial, options["model"]), (PGRankTrial, str(encoder))):
        given = {"model": model} | {name: options[name] for name in ("data", "queries")}
        with pytest.raises(InputError, match="got --split train, on which the arms are trained"):
            kind(**given, split="train").run()


def test_easy_lists_are_drawn_from_deep_in_the_first_stage(taught_collection):
    source = ListSource(str(taught_collection))
    best, deep, whole = source.train(18, 4).lists, source.train(18, 4, 20).lists, source.train(18, 20).lists
    places = {each.id: {name: i for i, name in enumerate(each.ids)} for each in whole}
    assert {each.id for each in best} <= {each.id for each in deep}
    drawn = []
    for each in deep:
        assert len(each.ids) == 4
        assert each.found
        found = [places[each.id][name] for name in each.ids]
        assert found == sorted(found), "in the first stage's order"
        drawn += found
    assert max(drawn) > 10
    assert len({tuple(places[each.id][name] for name in each.ids) for each in deep}) > 5


def test_the_rate_that_orders_the_held_lists_best_is_taken(options, seen, monkeypatch):
    def evaluated(lists: Any, ids: Any) -> dict[str, list[float]]:
        held.append([each.query for each in lists])
        return {"nDCG@10": [0.1 if len(held) % 2 else 0.9]}  # of each arm, the second rate is better

    held: list[list[str]] = []
    monkeypatch.setattr(teaching, "evaluate_lists", evaluated)
    trial = FirstTrial(**options)
    trial.run()
    assert held == [[each.query for each in trial._learnt[1]]] * 8
    assert trial._rates == dict.fromkeys((WRITTEN, NO_RANKING, RANKING_ALONE, MAIN), RATES[1])
    assert {each["learning_rate"] for each in seen[1:] if each["seed"] == 1} == {RATES[1]}
    trial.finish()


def test_a_trial_that_ends_while_rates_are_chosen_goes_on_there(options, seen, monkeypatch):
    whole, calls = teaching.evaluate_lists, []

    def ends(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(teaching, "evaluate_lists", ends)
    with pytest.raises(KeyboardInterrupt):
        FirstTrial(**options).run()
    trial = FirstTrial(**options)
    assert {arm.status for arm in trial.run().arms} == {"ok"}
    trainings(seen, trial)
    trial.finish()


def test_full_ranking_is_taught_whole_lists_and_its_twin_windows_of_them(options, seen):
    trial = FullRankTrial(**options | {"candidates": 8, "easy": 0, "learning_rate": 1e-3, "steps": 3})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert list(arms) == [SLIDING, PLAIN, FULL, FIRST_STAGE]
    assert arms[FULL].samples["passages"] == arms[PLAIN].samples["passages"] == [8.0] * 4
    assert arms[SLIDING].samples["passages"] == [12.0] * 4  # windows of 4, step 2: three calls
    made = {each["out"].name: each for each in seen}
    for name, loss, sizes, lists in (
        (SLIDING, FIRST(weight=0), (4, 4), 4),  # as many passages a step
        (PLAIN, FIRST(weight=0), None, 2),
        (FULL, FullRank(), None, 2),
    ):
        for seed in (0, 1):
            each = made[trial.run_folder(name, seed).resolve().name]
            assert (each["loss"], each["sizes"], each["lists_per_step"]) == (loss, sizes, lists)
            assert (each["model"], each["seed"]) == (options["model"], seed)
    assert differ(trial, SLIDING, PLAIN, FULL)
    assert "easy lists" not in result.setting
    trial.finish()


def test_lists_that_are_longer_than_a_call_are_learnt_in_parts(options, seen):
    trial = FirstTrial(**options | {"window": 3, "step": 2, "learning_rate": 1e-3, "runs": 1})
    assert {arm.status for arm in trial.run().arms} == {"ok"}
    assert {each["sizes"] for each in seen[1:]} == {(3, 3)}
    trial.finish()


def test_options_that_would_be_dropped_are_refused(options):
    with pytest.raises(InputError, match=r"got --method first\(lm=…\)"):
        FirstTrial(**options, method="first(lm=False)").run()
    with pytest.raises(InputError, match="got --window 30; expected 26 at most"):
        FirstTrial(**options, window=30)


def test_without_a_teacher_what_is_wrong_is_alike(options, seen):
    trial = FullRankTrial(**options | {"easy": 0, "learning_rate": 1e-3, "runs": 1, "teacher": "none"})
    result = trial.run()
    assert all("ranking" not in row and set(row["labels"]) == {0, 1} for row in seen[0]["rows"])
    assert result.setting["training"].endswith("the others alike")
    trial.finish()


def test_too_few_lists_to_train_on_are_refused(options, seen):
    with pytest.raises(InputError, match="gives 11 training lists; expected 33 at least"):
        FirstTrial(**options | {"batch": 32}).run()
    assert not seen


def test_a_teacher_orders_passages_of_equal_labels_by_cosine(tiny_model, tiny_tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    made = SentenceTransformer(modules=[Transformer(str(tmp_path / "model")), Pooling(32, "mean")], device="cpu")
    made.save(str(tmp_path / "teacher"))
    texts = ["a red hat", "the sea", "an inn near the sea", "stones", {"title": "mat", "text": "a mat"}]
    lists = [RankList("q", "a hat", tuple("abcde"), tuple(texts), judged={"d": 2, "b": 1})]
    [order] = teaching.rankings(lists, str(tmp_path / "teacher"), "cpu")
    assert order[:2] == [3, 1], "by label"
    shown = [teaching.document_text(text) for text in texts]
    vectors = made.encode(["a hat", *shown], normalize_embeddings=True)
    cosines = vectors[1:] @ vectors[0]
    assert order[2:] == sorted([0, 2, 4], key=lambda i: -cosines[i])
    assert json.dumps(order), "plain integers"
    assert np.isfinite(cosines).all()
