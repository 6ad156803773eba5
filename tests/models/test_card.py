"""Model cards: what they say of each kind of folder, and that nobody's own card is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from toys import Line, Squares, points

from broadsheet.models import card
from broadsheet.page import evidence
from broadsheet.page.papers import get
from broadsheet.training.fit import fit

OWN = "---\nlicense: mit\n---\n\n# My own words\n"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def read(folder: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and text, as the hub reads them; it is ours."""
    text = (folder / "README.md").read_text("utf-8")
    assert card.is_ours(text)
    made = ModelCard(text)
    return made.data.to_dict(), made.text


def config(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


# What it says


def test_it_names_library_base_paper_and_verdict(tmp_path: Path) -> None:
    folder = config(tmp_path / "gem", model_type="llama")
    (folder / "modules.json").write_text("[]")
    card.write(folder, paper="gem", base="default")
    data, text = read(folder)
    paper = get("gem")
    assert data["library_name"] == "sentence-transformers"
    assert data["base_model"] == BASE
    assert data["pipeline_tag"] == "sentence-similarity"
    assert {"broadsheet", "gem", "embed", f"arxiv:{paper.arxiv}"} <= set(data["tags"])
    assert f"**{paper.verdict}** (rung {paper.rung}" in text
    assert evidence.read("gem")["provenance"]["date"][:10] in text
    assert f"[{paper.title}]({paper.url})" in text
    assert "embed.load('gem')" in text


def test_a_paper_without_a_verdict_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)  # nothing is recorded
    card.write(config(tmp_path / "out", model_type="llama"), paper="gem")
    _, text = read(tmp_path / "out")
    assert "shown" not in text
    assert "was not measured" in text


def test_without_a_paper_it_claims_none(tmp_path: Path) -> None:
    card.write(config(tmp_path / "out", model_type="llama"))
    data, text = read(tmp_path / "out")
    assert data["tags"] == ["broadsheet"]
    assert "trial" not in text
    assert "base_model" not in data


@pytest.mark.parametrize(
    ("base", "named", "told"),
    [
        ("someone/model-7b", "someone/model-7b", "someone/model-7b"),
        ("default", BASE, BASE),
        ("/home/me/private/my-model", None, "my-model"),
        ("my-model.gguf", None, "my-model.gguf"),
    ],
)
def test_a_base_is_named_as_others_know_it(tmp_path: Path, base: str, named: str | None, told: str) -> None:
    card.write(config(tmp_path / "out", model_type="llama"), base=base)
    data, text = read(tmp_path / "out")
    assert data.get("base_model") == named
    assert f"made from `{told}`" in text
    assert "/home/me" not in (tmp_path / "out/README.md").read_text("utf-8")


def test_it_tells_how_it_was_trained_and_on_what(tmp_path: Path) -> None:
    record = {
        "settings": {"objective": {"name": "GEM", "weight": 0.5}, "method": "lora", "lora_rank": 8, "steps": 9},
        "steps": 1234,
        "examples": 5678,
        "seconds": 90.0,
        "command": "broadsheet apply gem hf:someone/texts:train,/home/me/corpus.jsonl --out /home/me/runs/gem",
        "versions": {"broadsheet": "0.1.0", "torch": "2.9"},
    }
    card.write(config(tmp_path / "out", model_type="llama"), paper="gem", record=record)
    data, text = read(tmp_path / "out")
    assert data["datasets"] == ["someone/texts"]
    assert "- data: `hf:someone/texts:train`, `corpus.jsonl`" in text
    assert "`GEM` (weight=0.5)" in text
    assert "1,234 steps, 5,678 examples" in text
    assert "- lora rank: 8" in text
    assert "- steps: 9" not in text
    assert "broadsheet 0.1.0, torch 2.9" in text
    assert "--out gem" in text
    assert "/home/me" not in text


def test_data_that_the_record_names_comes_first(tmp_path: Path) -> None:
    card.write(config(tmp_path / "out"), record={"data": "pairs.jsonl", "command": "broadsheet apply gem other.jsonl"})
    assert "- data: `pairs.jsonl`\n" in read(tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("files", "library"),
    [
        ({"config.json": {"model_type": "llama"}}, "transformers"),
        ({"config.json": {"model_type": "salmonn"}, "adapter_config.json": {}}, "broadsheet"),
        ({"adapter_config.json": {}, "reranker.json": {}}, "peft"),
        ({"config.json": {"model_type": "llama"}, "reranker.json": {}}, "transformers"),
        ({}, "broadsheet"),
    ],
)
def test_the_library_is_the_one_that_reads_the_folder(tmp_path: Path, files: dict[str, Any], library: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    card.write(tmp_path)
    assert read(tmp_path)[0]["library_name"] == library


# Whose it is


def test_a_card_that_somebody_wrote_is_kept(tmp_path: Path) -> None:
    (config(tmp_path) / "README.md").write_text(OWN)
    card.write(tmp_path, paper="gem")
    assert (tmp_path / "README.md").read_text() == OWN


def test_a_card_that_somebody_changed_is_kept_and_ours_is_renewed(tmp_path: Path) -> None:
    path = card.write(config(tmp_path / "out"), paper="gem")
    card.write(path.parent, paper="first")
    assert "arxiv:2406.15657" in path.read_text("utf-8")
    changed = path.read_text("utf-8").replace("Saved by broadsheet.", "Saved by me.")
    path.write_text(changed, "utf-8")
    card.write(path.parent, paper="gem")
    assert path.read_text("utf-8") == changed


def test_a_card_is_carried_into_the_folder_that_replaces_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings: dict[str, Any] = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "autocast": "none"}
    fit(Line(), points(8), Squares(), out, **settings)
    data, text = read(out)
    assert data["library_name"] == "broadsheet"
    assert "`Squares`" in text
    assert "2 steps, 8 examples" in text
    (out / "README.md").write_text(OWN)
    fit(Line(), points(8), Squares(), out, force=True, **settings)
    assert (out / "README.md").read_text() == OWN
    assert yaml.safe_load(OWN.split("---")[1]) == {"license": "mit"}


def test_the_paper_of_a_training_is_its_objectives_or_its_models() -> None:
    class Loss:
        paper = "gem"

    class Model:
        paper = "salmonn"

    assert card.paper_of(Loss(), Model()) == "gem"
    assert card.paper_of(Squares(), Model()) == "salmonn"
    assert card.paper_of({"pairs": Loss()}, Line()) == "gem"
    assert card.paper_of(Squares(), Line()) == ""


# Each stage's own folders


def test_a_saved_embedder_has_one(tmp_path: Path, tiny_folder: Path) -> None:
    from broadsheet.embed import embedder
    from broadsheet.embed.fitting import write

    made = embedder(str(tiny_folder), "mean")
    made.save(str(tmp_path / "one"))
    write(made, tmp_path / "two", {"data": "pairs.jsonl"})
    for name in ("one", "two"):
        data, text = read(tmp_path / name)
        assert data["library_name"] == "sentence-transformers"
        assert f"made from `{tiny_folder.name}`" in text
    assert "pairs.jsonl" in text
    (tmp_path / "one/README.md").write_text(OWN)
    made.save(str(tmp_path / "one"))
    assert (tmp_path / "one/README.md").read_text() == OWN


def test_a_trained_embedder_names_its_paper(tmp_path: Path, tiny_folder: Path) -> None:
    from broadsheet import models
    from broadsheet.embed import fit as train
    from broadsheet.embed.gem import GEM, gem_embedder

    made = gem_embedder(models.load(tiny_folder, device="cpu"), 1, max_seq_length=32, seed=0)
    texts = [f"One text of number {i}, which goes on for some words." for i in range(8)]
    train(made, texts, GEM(made), tmp_path / "out", steps=1, batch_size=4)
    data, text = read(tmp_path / "out")
    assert f"arxiv:{get('gem').arxiv}" in data["tags"]
    assert "`GEM`" in text


def test_a_saved_reranker_has_one(tmp_path: Path, tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    from broadsheet.rank import FIRST, ListwiseReranker
    from broadsheet.rank import fit as train

    reranker = ListwiseReranker(tiny_model(max_position_embeddings=2048), tiny_tokenizer(), decode="first_token")
    reranker.save(tmp_path / "plain")
    assert read(tmp_path / "plain")[0]["pipeline_tag"] == "text-ranking"
    (tmp_path / "plain/README.md").write_text(OWN)
    reranker.save(tmp_path / "plain")
    assert (tmp_path / "plain/README.md").read_text() == OWN
    rows = [{"query": f"q{i}", "documents": ["a", "b", "c"], "ranking": [2, 0, 1]} for i in range(4)]
    train(reranker, rows, FIRST(lm=False), tmp_path / "out", steps=1, lists_per_step=2)
    data, text = read(tmp_path / "out")
    assert f"arxiv:{get('first').arxiv}" in data["tags"]
    assert data["library_name"] == "transformers"
    assert "`FIRST`" in text
    assert "ListwiseReranker.load('out')" in text


def test_a_saved_model_with_linear_attention_has_one(tmp_path: Path) -> None:
    from broadsheet.attend.transnormer import TransNormerForCausalLM
    from broadsheet.attend.transnormer_config import TransNormerConfig

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = TransNormerForCausalLM(TransNormerConfig(**small, num_attention_heads=2))
    model.save_pretrained(tmp_path / "out")
    data, text = read(tmp_path / "out")
    assert data["library_name"] == "broadsheet"
    assert f"arxiv:{get('transnormer').arxiv}" in data["tags"]
    assert "import broadsheet.attend.transnormer\n" in text
    (tmp_path / "out/README.md").write_text(OWN)
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text() == OWN


def test_the_lines_that_load_a_model_are_python(tmp_path: Path) -> None:
    for marker in card._KINDS:
        folder = config(tmp_path / marker, model_type="transnormer")
        (folder / marker).touch()
        if marker == "config.json":
            config(folder, model_type="transnormer")
        card.write(folder)
        for block in read(folder)[1].split("```python\n")[1:]:
            compile(block.split("```")[0], marker, "exec")
