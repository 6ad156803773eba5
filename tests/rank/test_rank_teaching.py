"""Trials that train rerankers: what each arm is taught, in which order, at which rate, and how it is then read."""

from __future__ import annotations

import json
import math
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
from broadsheet.rank.trials.base import FIRST_STAGE, INVALID, changed
from broadsheet.rank.trials.first import (
    BEGUN,
    MAIN,
    NO_RANKING,
    RANKING_ALONE,
    SHUFFLED,
    UNTRAINED,
    WRITTEN,
    WRITTEN_SHUFFLED,
    FirstTrial,
)
from broadsheet.rank.trials.fullrank import FULL, PLAIN, SLIDING, FullRankTrial
from broadsheet.rank.trials.pg_rank import PGRankTrial
from broadsheet.rank.trials.teaching import GRADED, grades

TAUGHT = {"easy": 12, "lists": 12, "batch": 2, "steps": 2, "runs": 2, "queries": 4}
RATES = (1e-5, 1e-4, 1e-3)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is fitted, in turn; the teacher orders candidates backwards; rates are three."""
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


def trainings(seen: list[dict[str, Any]], trial: Any) -> dict[tuple[str, float, int, int], dict[str, Any]]:
    """By loss, rate, seed and steps, what was trained after the easy lists."""
    found = {(repr(each["loss"]), each["learning_rate"], each["seed"], each["steps"]): each for each in seen[1:]}
    assert len(found) == len(seen) - 1, "nothing is trained twice"
    for (loss, rate, seed, steps), each in found.items():
        size = each["sizes"][0] if each["sizes"] else "all"
        assert each["out"] == trial.folder(f"{loss}, {size} passages, rate {rate:g}, seed {seed}, {steps} steps")
    return found


def test_all_arms_of_first_go_on_from_one_model_and_are_trained_and_read_as_they_say(options, seen):
    trial = FirstTrial(**options)
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    controls = [SHUFFLED, WRITTEN_SHUFFLED, BEGUN, UNTRAINED, FIRST_STAGE]
    assert list(arms) == [WRITTEN, NO_RANKING, RANKING_ALONE, MAIN, *controls]
    assert [arm.runs for arm in result.arms] == [2] * 4 + [1] * 5
    easy = seen[0]
    assert (easy["loss"], easy["sizes"], easy["model"]) == (FIRST(kind="softmax"), (2, 4), options["model"])
    assert all("ranking" not in row for row in easy["rows"])
    assert {len(row["documents"]) for row in easy["rows"]} == {4}, "no more than are read"
    found = trainings(seen, trial)
    taught = {WRITTEN: FIRST(weight=0), NO_RANKING: FIRST(weight=0), RANKING_ALONE: FIRST(lm=False), MAIN: FIRST()}
    for name, loss in taught.items():
        for seed in (0, 1):
            made = found[repr(loss), trial._rates[name], seed, 2]
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
    assert arms[WRITTEN_SHUFFLED].samples["output_tokens"][0] > 0
    for name in (NO_RANKING, RANKING_ALONE, MAIN, SHUFFLED, BEGUN):
        assert arms[name].samples["output_tokens"] == [0] * 4
    for name, decode in ((SHUFFLED, "first_token"), (WRITTEN_SHUFFLED, "permutation")):
        of = {SHUFFLED: MAIN, WRITTEN_SHUFFLED: WRITTEN}[name]
        reads = changed(trial._model(trial.run_folder(of, 0)), decode=decode)
        for each, order in zip(trial.lists_.lists, arms[name].samples["order"], strict=True):
            given, places = each.shuffled(0)
            assert order == [places[hit["corpus_id"]] for hit in reads.rank(given.query, given.documents)]
    assert differ(trial, WRITTEN, RANKING_ALONE, MAIN)
    assert set(result.claims) == {
        (GRADED, WRITTEN, MAIN),
        (GRADED, NO_RANKING, MAIN),
        (GRADED, RANKING_ALONE, MAIN),
        ("lists/s", WRITTEN, MAIN),
    }
    assert {(c.baseline, c.arm) for c in result.comparisons} >= {(WRITTEN_SHUFFLED, SHUFFLED), (MAIN, SHUFFLED)}
    [why] = {note.partition(". ")[2] for note in result.notes if GRADED in note and "absent here in" in note}
    assert why.endswith(f"here one reads 4 lists of 5, after {len(easy['rows'])} easy ones.")
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
    def evaluated(lists: Any, *given: Any) -> dict[str, list[float]]:
        if any(each.query in asked for each in lists):
            return whole(lists, *given)
        held.append([each.query for each in lists])
        assert all(max(each.judged.values()) == 3 for each in lists), "by grades"
        return {"nDCG@10": [(0.5, 0.9, 0.1)[(len(held) - 1) % 3]]}  # of each arm, the second rate is the best

    whole, held = teaching.evaluate_lists, []
    asked = {each.query for each in ListSource(options["data"]).test(0, 5).lists}
    monkeypatch.setattr(teaching, "evaluate_lists", evaluated)
    trial = FirstTrial(**options | {"steps": 3})
    trial.run()
    assert held == [[each.query for each in trial._learnt[1]]] * 12
    assert trial._rates == dict.fromkeys((WRITTEN, NO_RANKING, RANKING_ALONE, MAIN), RATES[1])
    chosen_by = [each for each in seen[1:] if each["steps"] == 1]
    assert [each["learning_rate"] for each in chosen_by] == [*RATES] * 3, "after a third of the steps, for each lesson"
    assert {(each["learning_rate"], each["seed"]) for each in seen[1:] if each["steps"] == 3} == {
        (RATES[1], 0),
        (RATES[1], 1),
    }
    assert not any(each["out"].exists() for each in chosen_by)
    assert len(seen) == 1 + 3 * len(RATES) + 3 * 2
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
    trial = FullRankTrial(**options | {"candidates": 10, "easy": 0, "learning_rate": 1e-3, "steps": 3})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert list(arms) == [SLIDING, PLAIN, FULL, FIRST_STAGE]
    assert arms[FULL].samples["passages"] == arms[PLAIN].samples["passages"] == [10.0] * 4
    assert arms[SLIDING].samples["passages"] == [16.0] * 4  # windows of 4, step 2: four calls
    assert {metric for metric, *_ in result.claims} == {GRADED, "lists/s"}
    made = {each["out"].name: each for each in seen}
    for name, loss, sizes, lists in (
        (SLIDING, FIRST(weight=0), (4, 4), 5),  # as many passages a step
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


def test_a_teacher_judges_held_out_orders_by_grades(options, seen, monkeypatch):
    given = options | {"learning_rate": 1e-3, "easy": 0, "runs": 1}
    trial = FirstTrial(**given)
    result = trial.run()
    for arm in result.arms:
        assert list(arm.values)[:2] == [GRADED, "nDCG@10"]
        for each, order, value, plain in zip(
            trial.lists_.lists, *(arm.samples[name] for name in ("order", GRADED, "nDCG@10")), strict=True
        ):
            right = [i for i, label in enumerate(each.labels) if label]
            ideal = right + [i for i in range(4, -1, -1) if i not in right]  # as the teacher here orders them
            worth = dict(zip(ideal, (3, 2, 2, 1, 1), strict=True))
            gains = [sum(worth[i] / math.log2(place + 2) for place, i in enumerate(row)) for row in (order, ideal)]
            assert value == pytest.approx(gains[0] / gains[1])
            assert plain == pytest.approx(1 / math.log2(order.index(right[0]) + 2)), "labels judge beside it"
    assert "as resource:minilm orders them 2, 2, 1, 1, 1, 0" in result.setting["grades"]
    monkeypatch.delattr(teaching, "rankings")  # the orders are kept with the trial
    assert [arm.values for arm in FirstTrial(**given).run().arms] == [arm.values for arm in result.arms]
    assert FirstTrial(**given, reranker="folder").quality == "nDCG@10"
    trial.finish()


def test_grades_are_three_for_what_is_right_and_fall_with_the_teachers_places():
    names = tuple("abcdefgh")
    found = grades(RankList("q", "?", names, names, judged={"c": 1, "z": 2, "a": 0}), [2, 7, 6, 5, 4, 3, 1, 0])
    assert found == {"c": 3, "z": 3, "h": 2, "g": 2, "f": 1, "e": 1, "d": 1}


def test_broken_orders_are_counted_over_all_training_runs(options, seen):
    trial = FirstTrial(**options | {"learning_rate": 1e-3, "easy": 0})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    lists = trial.lists_.lists
    shares = []
    for seed in (0, 1):
        reads = changed(trial._model(trial.run_folder(WRITTEN, seed)), decode="permutation")
        reads.rank_batch([each.query for each in lists], [each.documents for each in lists])
        shares.append(reads.stats_.invalid_outputs / reads.stats_.calls)
    assert arms[WRITTEN].values[INVALID].estimate == pytest.approx(np.mean(shares))
    assert any(f"{np.mean(shares):.0%} of the orders that {WRITTEN} wrote" in note for note in result.notes)
    assert arms[FIRST_STAGE].values[INVALID].estimate == arms[MAIN].values[INVALID].estimate == 0
    trial.finish()


def test_lists_that_are_longer_than_a_call_are_learnt_in_parts(options, seen):
    trial = FirstTrial(**options | {"window": 3, "step": 2, "learning_rate": 1e-3, "runs": 1})
    assert {arm.status for arm in trial.run().arms} == {"ok"}
    assert {(each["sizes"], each["lists_per_step"]) for each in seen[1:]} == {((3, 3), 3)}
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
    assert {metric for metric, *_ in result.claims} == {"nDCG@10", "lists/s"}
    assert "grades" not in result.setting
    assert not any(GRADED in arm.values for arm in result.arms)
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
