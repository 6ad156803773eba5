"""An `Embedder` is what MTEB takes: a tiny task of our own is evaluated, nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from broadsheet.embed.base import Embedder, baseline
from broadsheet.embed.token_prepending import TokenPrepending

mteb = pytest.importorskip("mteb")
ROWS = [
    ("a red hat", "the red cap", 4.0),
    ("a tree", "the sea", 0.0),
    ("rats", "the rat", 3.0),
    ("no stone", "an inn", 1.0),
    ("the inn", "an inn here", 5.0),
    ("reeds", "a hat", 0.5),
]


@pytest.fixture
def task() -> Any:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class TinySTS(AbsTaskSTS):
        metadata = TaskMetadata(
            name="TinySTS",
            dataset={"path": "local/tiny", "revision": "1"},
            description="Six pairs of phrases.",
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 5

        def load_data(self, *_: Any, **__: Any) -> None:
            first, second, score = zip(*ROWS, strict=True)
            rows = {"sentence1": list(first), "sentence2": list(second), "score": list(score)}
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
            self.data_loaded = True

    return TinySTS()


@pytest.mark.parametrize("kind", ["mean", "token prepending"])
def test_mteb_evaluates_an_embedder(
    kind: str,
    task: Any,
    tiny_model: Callable,
    tiny_tokenizer: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    loaded = tiny_model(num_hidden_layers=4), tiny_tokenizer()
    made = baseline("mean", loaded)
    if kind != "mean":
        from broadsheet.embed.base import embedder

        made = embedder(loaded, "last-token", encoder=TokenPrepending)
    result = mteb.evaluate(made, task, cache=None, co2_tracker=False)
    (scores,) = result.task_results[0].scores["test"]
    one, other = (made.encode([row[i] for row in ROWS]) for i in (0, 1))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    expected = spearmanr(cosines, [row[2] for row in ROWS]).statistic
    assert scores["cosine_spearman"] == pytest.approx(expected, abs=1e-6)
    assert scores["main_score"] == scores["cosine_spearman"]


def test_prompts_reach_mteb(tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    """MTEB's wrapper reads the embedder's prompts by name, and leaves them as they are."""
    made: Embedder = baseline("mean", (tiny_model(), tiny_tokenizer()), prompts={"query": "q: ", "document": "d: "})
    from mteb.models import SentenceTransformerEncoderWrapper

    wrapped = SentenceTransformerEncoderWrapper(made)
    assert wrapped.model is made
    assert made.prompts["query"] == "q: "
