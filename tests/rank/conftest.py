"""A small collection to search, and a tiny model to rank it with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

WORDS = ["hat", "mat", "red", "sea", "reed", "inn", "tree", "near", "rat", "stone"]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Twelve queries over thirty documents; the right one shares a word with its query."""
    generator = random.Random(0)
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    documents = {f"d{i}": " ".join(generator.choices(WORDS, k=6)) + f" n{i}" for i in range(30)}
    queries = {f"q{i}": f"{documents[f'd{i}'].split()[0]} n{i if i % 4 else 99}" for i in range(12)}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split in ("test", "train"):
        lines = [f"q{i}\td{i}\t1\n" for i in range(12)]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.fixture
def model(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=4096).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def taught_collection(tmp_path: Path) -> Path:
    """Sixteen queries to train on and eight to test, over thirty documents; two are judged in both splits."""
    draw = random.Random(1)
    folder = tmp_path / "taught"
    (folder / "qrels").mkdir(parents=True)
    documents = {f"d{i}": " ".join(draw.choices(WORDS, k=6)) + f" n{i}" for i in range(30)}
    queries = {f"q{i}": f"{documents[f'd{i}'].split()[0]} n{i}" for i in range(24)}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split, numbers in (("train", range(18)), ("test", range(16, 24))):
        lines = [f"q{i}\td{i}\t1\n" for i in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder
