"""The index on the default model and real texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broadsheet import embed
from broadsheet.data.corpora import Document
from broadsheet.models import Loaded
from broadsheet.search import Change, VectorIndex

TEXTS = {
    "shutil.rmtree": "Recursively delete a directory tree.",
    "shutil.copyfile": "Copy data from src to dst in the most efficient way possible.",
    "heapq.nlargest": "Find the n largest elements in a dataset.",
    "bisect.insort": "Insert item x in list a, and keep it sorted assuming a is sorted.",
    "json.loads": "Deserialize s to a Python object.",
    "time.sleep": "Delay execution for a given number of seconds.",
    "math.gcd": "Greatest common divisor.",
    "socket.listen": "Enable a server to accept connections.",
}


@pytest.mark.real
def test_real_texts_are_found_again_and_the_index_knows_its_embedder(tmp_path: Path, default_model: Loaded) -> None:
    embedder = embed.embedder(default_model, "mean")
    index = VectorIndex.create(tmp_path / "index", embedder, source="default")
    documents = [Document(name, text) for name, text in TEXTS.items()]
    assert index.add(documents) == Change(added=len(TEXTS))
    for mode in ("dense", "hybrid"):
        for name, hits in zip(TEXTS, index.search(list(TEXTS.values()), 3, mode=mode), strict=True):
            assert hits[0].id == name
    np.testing.assert_allclose(
        index._contents.gather(np.arange(len(TEXTS))),
        embedder.encode_document(list(TEXTS.values()), normalize_embeddings=True),
        atol=1e-5,
    )
    assert index.search(["delete a directory"], 1, mode="bm25")[0][0].id == "shutil.rmtree"
    again = VectorIndex.open(tmp_path / "index")
    assert again.add(documents) == Change(unchanged=len(TEXTS))
    found = again.search(["Greatest common divisor."], 1, mode="dense")[0][0]  # the default model, loaded by its name
    assert (found.id, round(found.score, 3)) == ("math.gcd", 1.0)
