"""The stage's own trial on a tiny model and a small corpus: what is compared, said, resumed and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import documents
from shown import shown

from broadsheet.console import InputError
from broadsheet.data.retrieval.metrics import evaluate
from broadsheet.embed.base import baseline
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.base import training_note
from broadsheet.embed.trials.embed import NAMES, TOKEN_PREPENDING, EmbedTrial
from broadsheet.trial.examples import excerpt
from broadsheet.trial.results import TrialResult

CLOSED = [f"{name}, bidirectional" for name in NAMES.values()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_model(num_hidden_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def options(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trial")
    pairs = folder / "pairs.tsv"
    pairs.write_text("".join(f"{i % 5}\tthe hat {i}\ta {'hat' if i % 2 else 'tree'} {i * i}\n" for i in range(40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROADSHEET_HOME", str(folder / "home"))
        patch.setattr(tasks, "_pydocs", lambda data: documents())
        tasks.documentation.cache_clear()
        yield {"model": model, "sts": str(pairs), "queries": 8, "passages": 20, "duplicates": 6, "packages": 3,
               "documents": 4, "pairs": 10, "words": 30}  # fmt: skip
    tasks.documentation.cache_clear()


@pytest.fixture(scope="module")
def whole(options: dict[str, Any]) -> tuple[TrialResult, Path]:
    """A trial from beginning to end, and its folder."""
    trial = EmbedTrial(**options)
    result = trial.run()
    trial.finish()
    return result, trial.workdir


def test_every_arm_answers_every_task_and_is_compared(whole: tuple[TrialResult, Path]):
    result, _ = whole
    arms = {arm.name: arm for arm in result.arms}
    assert list(arms) == [*NAMES.values(), *CLOSED, TOKEN_PREPENDING]
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    metrics = {"duplicate AUROC", "nDCG@10", "RR@10", "Recall@100", "kNN accuracy", "V-measure", "Spearman"}
    assert all(set(arm.values) == metrics for arm in result.arms)
    assert [arm.role for arm in result.arms] == ["baseline", *["sibling"] * 7, "method"]
    compared = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    for metric in metrics:
        assert (metric, "mean", "last token") in compared
        assert (metric, "PromptEOL", TOKEN_PREPENDING) in compared
        assert (metric, "last token", "last token, bidirectional") in compared
    speeds = [(c.baseline, c.arm) for c in result.comparisons if c.metric == "texts/s"]
    assert len(speeds) == len(set(speeds))  # of one task
    assert any("Highest nDCG@10" in note for note in result.notes)
    assert arms["mean"].samples["similarity"] != arms["mean, bidirectional"].samples["similarity"]
    assert arms["PromptEOL"].samples["similarity"] != arms[TOKEN_PREPENDING].samples["similarity"]
    assert json.dumps(result.to_dict())
    alike, other, query, *_, similar = shown(result)
    assert alike.expected.startswith("Near-duplicate: ")
    assert other.answers["mean"][0] in "✓✗"
    corpus = list(tasks.retrieval("pydocs", 8, 20, words=30).corpus.values())
    first = arms["mean"].samples["first passage"]
    assert query.answers["mean"][2:] in {excerpt(corpus[i]) for i in first}
    right = query.answers["mean"][2:] == query.expected.removeprefix("Right: ")
    assert query.answers["mean"].startswith("✓") == right
    assert re.fullmatch(r"more alike than \d+% of the pairs \(cosine -?\d\.\d\d\)", similar.answers["mean"])


@pytest.mark.usefixtures("options")
def test_the_arms_are_the_baselines_by_name(whole: tuple[TrialResult, Path], model: str):
    """An arm gives what a user gets from `baseline`."""
    arms = {arm.name: arm for arm in whole[0].arms}
    task = tasks.retrieval("pydocs", 8, 20, words=30)
    made = baseline("weighted-mean", model, attention="bidirectional")
    scores = made.similarity(
        made.encode_query([query.text for query in task.queries]), made.encode_document(list(task.corpus.values()))
    )
    names = list(task.corpus)
    rankings = {
        query.id: [names[i] for i in np.argsort(-row.numpy(), kind="stable")]
        for query, row in zip(task.queries, scores, strict=True)
    }
    expected = evaluate(rankings, task.qrels, ["nDCG@10"])["nDCG@10"]
    assert arms["weighted mean, bidirectional"].samples["nDCG@10"] == pytest.approx(list(expected.values()))


def test_trained_embedders_join(options: dict[str, Any], model: str, tmp_path: Path):
    baseline("last-token", model).save(str(tmp_path / "trained"))
    result = EmbedTrial(**options, also=(str(tmp_path / "trained"), model)).run()
    arms = {arm.name: arm for arm in result.arms}
    assert arms["trained"].samples["clusters"] == arms["last token"].samples["clusters"]
    assert arms["model"].samples["clusters"] == arms["mean"].samples["clusters"]  # a causal LM: its mean


def test_a_beir_folder_is_searched_alone(options: dict[str, Any], tmp_path: Path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, prefix in (("corpus", "d"), ("queries", "q")):
        lines = [json.dumps({"_id": f"{prefix}{i}", "text": f"the hat {i}"}) + "\n" for i in range(9)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(9)))
    result = EmbedTrial(**{**options, "data": str(folder), "sts": None, "queries": "all", "passages": "all"}).run()
    assert set(result.arms[0].values) == {"nDCG@10", "RR@10", "Recall@100"}
    assert "9 queries" in result.setting["retrieval"]
    assert result.arms[0].n_items == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": 0}, "got --queries 0; expected 1 or more"),
        ({"words": -3}, "got --words -3; expected 0 or more"),
        ({"sts": "nowhere.tsv"}, "no file or folder at nowhere.tsv"),
        ({"also": (__file__,)}, "is a file"),
        ({"packages": 40}, "ask for fewer"),
    ],
)
def test_what_cannot_be_tried_is_named(options: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        EmbedTrial(**{**options, **changes}).run()


def test_quick_asks_less(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def retrieval(*given: Any, **_: Any) -> Any:
        asked.append(given[1:3])
        raise InputError("asked")

    monkeypatch.setattr(tasks, "retrieval", retrieval)
    for quick in (True, False):
        with pytest.raises(InputError, match="asked"):
            EmbedTrial(model=options["model"], quick=quick).run()
    (fewer, smaller), (more, larger) = asked
    assert fewer < more
    assert smaller < larger


def test_a_note_tells_how_an_arm_was_trained(tmp_path: Path):
    kept = {"steps": 60, "tokens": 41230, "seconds": 103.4,
            "settings": {"batch_size": 8, "accumulate": 2, "method": "lora", "learning_rate": 2e-4}}  # fmt: skip
    (tmp_path / "training.json").write_text(json.dumps(kept))
    assert training_note("GEM", tmp_path) == (
        "GEM: trained in 60 steps of 16, 41,230 tokens, 103 s (lora, learning rate 0.0002)."
    )
