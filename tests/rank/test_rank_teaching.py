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
from broadsheet.rank.training import fitting
from broadsheet.rank.trials import teaching
from broadsheet.rank.trials.base import FIRST_STAGE
from broadsheet.rank.trials.first import (
    MAIN,
    RANKING_ALONE,
    SHUFFLED,
    UNTRAINED,
    WRITING_ALONE,
    WRITTEN,
    FirstTrial,
)
from broadsheet.rank.trials.fullrank import FULL, PLAIN, SLIDING, FullRankTrial

TAUGHT = {"easy": 8, "lists": 10, "batch": 2, "steps": 2, "runs": 2, "queries": 4}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is fitted, in turn; the teacher orders candidates backwards."""
    found: list[dict[str, Any]] = []
    whole = fitting.fit

    def watched(reranker: Any, rows: Any, loss: Any, out: Path, **settings: Any) -> Any:
        found.append({"loss": loss, "rows": rows, "model": reranker.spec, "out": out, **settings})
        return whole(reranker, rows, loss, out, **settings)

    def backwards(lists: list[RankList], *_: Any) -> list[list[int]]:
        return [sorted(range(len(each.ids)), key=lambda i: (-each.labels[i], -i)) for each in lists]

    monkeypatch.setattr(fitting, "fit", watched)
    monkeypatch.setattr(teaching, "rankings", backwards)
    return found


@pytest.fixture
def options(collection: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    return {"model": str(model), "data": str(collection), "candidates": 5, **TAUGHT}


def test_all_arms_of_first_go_on_from_one_model_over_the_same_lists(options, seen):
    trial = FirstTrial(**options)
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert list(arms) == [WRITTEN, WRITING_ALONE, RANKING_ALONE, MAIN, SHUFFLED, UNTRAINED, FIRST_STAGE]
    assert [arm.runs for arm in result.arms] == [2] * 5 + [1, 1]
    easy, *others = seen
    assert (easy["loss"], easy["sizes"], easy["model"]) == (FIRST(kind="softmax", lm=False), (2, 4), options["model"])
    assert all("ranking" not in row for row in easy["rows"])
    assert len(others) == 3 * (len(teaching.RATES) + 1), "the run of the rate that was chosen is one of the runs"
    for each in others:
        assert each["model"] == str(trial.folder("easy lists"))
        assert each["rows"] == others[0]["rows"]
    losses = [FIRST(weight=0), FIRST(), FIRST(lm=False)]
    assert {repr(each["loss"]) for each in others} == {repr(loss) for loss in losses}
    assert arms[WRITTEN].samples["output_tokens"][0] > 0
    assert arms[WRITING_ALONE].samples["output_tokens"] == [0] * 4
    assert arms[WRITING_ALONE].samples["prompt_tokens"] == arms[WRITTEN].samples["prompt_tokens"]
    assert differ(trial, WRITTEN, RANKING_ALONE, MAIN)
    assert set(result.claims) == {
        ("nDCG@10", WRITTEN, MAIN),
        ("nDCG@10", WRITING_ALONE, MAIN),
        ("nDCG@10", RANKING_ALONE, MAIN),
        ("lists/s", WRITTEN, MAIN),
    }
    assert "softmax" in result.setting["first stage of training"]
    assert "as resource:minilm orders them" in result.setting["training"]
    fitted = len(seen)
    again = FirstTrial(**options).run()
    assert len(seen) == fitted, "nothing is trained twice"
    assert {a.name: a.samples["order"] for a in again.arms} == {a.name: a.samples["order"] for a in result.arms}
    trial.finish()


def test_a_rate_is_chosen_on_lists_that_are_not_trained_on_and_the_others_weights_go(options, seen):
    trial = FirstTrial(**options, seed=1)
    trial.run()
    learnt, held = trial._learnt
    assert {each.query for each in held}.isdisjoint(row["query"] for row in seen[1]["rows"])
    assert [row["query"] for row in seen[1]["rows"]] == [each.query for each in learnt]
    for row, each in zip(seen[1]["rows"], learnt, strict=True):
        ranked = [each.labels[i] for i in row["ranking"]]
        assert ranked == sorted(ranked, reverse=True), "right passages first"
        wrong = [i for i in row["ranking"] if not each.labels[i]]
        assert wrong == sorted(wrong, reverse=True), "the others as the teacher orders them"
    for name in (WRITTEN, MAIN, RANKING_ALONE):
        left = [rate for rate in teaching.RATES if trial._tuning_folder(name, rate).exists()]
        assert not left, "the best became the first run, and the others are removed"
    trial.finish()


def test_full_ranking_is_taught_whole_lists_and_its_twin_windows_of_them(options, seen):
    trial = FullRankTrial(**options | {"candidates": 8, "easy": 0, "learning_rate": 1e-3, "steps": 3})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert list(arms) == [SLIDING, PLAIN, FULL, FIRST_STAGE]
    assert arms[FULL].samples["passages"] == arms[PLAIN].samples["passages"] == [8.0] * 4
    assert arms[SLIDING].samples["passages"] == [12.0] * 4  # windows of 4, step 2: three calls
    shapes = {(type(each["loss"]), each["sizes"], each["model"]) for each in seen}
    model = options["model"]
    assert shapes == {(FIRST, (4, 4), model), (FIRST, None, model), (FullRank, None, model)}
    assert all(each["loss"].weight == 0 for each in seen if isinstance(each["loss"], FIRST))
    assert differ(trial, SLIDING, PLAIN, FULL)
    assert "first stage of training" not in result.setting
    trial.finish()


def test_without_a_teacher_what_is_wrong_is_alike(options, seen):
    trial = FullRankTrial(**options | {"easy": 0, "learning_rate": 1e-3, "runs": 1, "teacher": "none"})
    result = trial.run()
    assert all("ranking" not in row and set(row["labels"]) == {0, 1} for row in seen[0]["rows"])
    assert result.setting["training"].endswith("the others alike")
    trial.finish()


def test_too_few_lists_to_train_on_are_refused(options, seen):
    with pytest.raises(InputError, match="gives 10 training lists; expected 33 at least"):
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
