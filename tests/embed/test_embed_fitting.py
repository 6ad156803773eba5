"""Training an embedder: what is trained, what is kept, and that a kill changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import BertConfig, BertModel

from broadsheet.console import InputError
from broadsheet.embed.base import Embedder, embedder, load
from broadsheet.embed.fitting import fit
from broadsheet.models import adapters
from broadsheet.training.objective import Objective

PAIRS = [{"anchor": f"number {i}", "positive": f"{i} and {i * i % 17}"} for i in range(24)]
TEXTS = ["number 3", "something else"]


class NextToken(Objective, nn.Module):
    """An objective with a parameter and a draw of its own."""

    def __init__(self, made: Embedder) -> None:
        super().__init__()
        self.encoders = [made.encoder]
        self.scale = nn.Parameter(torch.ones(()))
        self.places: list[int] = []

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        self.places += [place for place, _ in items]
        return self.encoders[0].pad(self.encoders[0].rows([row["positive"] for _, row in items]))

    def loss(self, made: Any, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        logits = made.encoder.logits(batch["input_ids"], batch["attention_mask"])[:, :-1].flatten(0, 1).float()
        loss = nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten())
        noise = torch.rand((), generator=generator)
        return {"loss": loss * self.scale.exp() * (0.9 + 0.2 * noise), "noise": noise}


@pytest.fixture
def made(tiny_folder: Path) -> Any:
    """`made()`: a new embedder of the tiny folder's model."""
    return lambda: embedder(str(tiny_folder), device="cpu")


def weights(made: Embedder) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in made.encoder.model.state_dict().items()}


@pytest.mark.parametrize(("kind", "method"), [("columns", "lora"), ("columns", "full"), ("items", "lora")])
def test_a_training_that_was_cut_off_ends_at_the_same_weights(
    kind: str, method: Any, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(one: Embedder) -> Any:
        return MultipleNegativesRankingLoss(one, scale=20.0) if kind == "columns" else NextToken(one)

    options: dict[str, Any] = {"steps": 8, "batch_size": 6, "method": method, "learning_rate": 1e-2, "seed": 3}
    whole = made()
    fit(whole, PAIRS, loss(whole), tmp_path / "whole", **options)

    cut = made()
    broken = loss(cut)
    calls = []
    original = broken.forward if kind == "columns" else broken.loss

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(broken, "forward" if kind == "columns" else "loss", fails)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, PAIRS, broken, tmp_path / "cut", checkpoint_minutes=1e-9, **options)
    assert not (tmp_path / "cut").exists()
    again = made()
    fitted = fit(again, PAIRS, loss(again), tmp_path / "cut", checkpoint_minutes=1e-9, **options)
    assert fitted.resumed_from == 5
    assert fitted.steps == 8
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    assert not (tmp_path / "cut.partial").exists()
    record = json.loads((tmp_path / "cut" / "training.json").read_text())
    assert record["examples"] == 48
    np.testing.assert_allclose(load(tmp_path / "cut").encode(TEXTS), whole.encode(TEXTS), atol=1e-6)


def test_lora_trains_its_matrices_alone_and_full_everything(made: Any) -> None:
    one = made()
    before = weights(one)
    fit(one, PAIRS, MultipleNegativesRankingLoss(one), steps=3, batch_size=4, method="lora", learning_rate=1e-2)
    after = weights(one)
    assert all(
        torch.equal(value, after[name.replace("_proj.weight", "_proj.base_layer.weight")])
        for name, value in before.items()
    )
    two = made()
    fit(two, PAIRS, MultipleNegativesRankingLoss(two), steps=3, batch_size=4, method="full", learning_rate=1e-2)
    changed = [name for name, value in before.items() if not torch.equal(value, weights(two)[name])]
    assert any("embed_tokens" in name for name in changed)
    assert any("down_proj" in name for name in changed)


@pytest.mark.parametrize(("autocast", "read"), [("bfloat16", torch.bfloat16), ("none", torch.float32)])
def test_a_foreign_embedder_reads_in_the_type_asked_for_and_its_loss_does_not(
    tmp_path: Path, tiny_tokenizer: Any, autocast: Any, read: torch.dtype
) -> None:
    config = BertConfig(vocab_size=272, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    plain = SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16, "mean")], device="cpu")
    seen: list[Any] = []

    class Seeing(MultipleNegativesRankingLoss):
        def compute_loss_from_embeddings(self, embeddings: Any, labels: Any) -> torch.Tensor:
            seen.append((torch.is_autocast_enabled("cpu"), *(each.dtype for each in embeddings)))
            loss: torch.Tensor = super().compute_loss_from_embeddings(embeddings, labels)
            return loss

    products: list[torch.dtype] = []
    inner: Any = plain[0]
    product = inner.auto_model.encoder.layer[0].attention.self.query
    product.register_forward_hook(lambda *given: products.append(given[-1].dtype))
    fit(plain, Dataset.from_list(PAIRS), Seeing(plain), steps=2, batch_size=4, method="full", autocast=autocast)
    assert set(seen) == {(False, torch.float32, torch.float32)}
    assert set(products) == {read}
    assert {weight.dtype for weight in plain.parameters()} == {torch.float32}
    products.clear()
    plain.encode(TEXTS)
    assert set(products) == {torch.float32}, "after training all is as before"


def test_merging_leaves_the_vectors_and_a_whole_model(made: Any, tmp_path: Path) -> None:
    one = made()
    options: dict[str, Any] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2}
    fit(one, PAIRS, MultipleNegativesRankingLoss(one), tmp_path / "merged", merge=True, **options)
    two = made()
    fit(two, PAIRS, MultipleNegativesRankingLoss(two), tmp_path / "adapter", **options)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    np.testing.assert_allclose(load(tmp_path / "merged").encode(TEXTS), two.encode(TEXTS), atol=1e-5)
    with adapters.disabled(two.encoder.model):
        base = two.encode(TEXTS)
    np.testing.assert_allclose(base, made().encode(TEXTS), atol=1e-6)
    assert not np.allclose(base, two.encode(TEXTS), atol=1e-4)


def test_an_adapter_of_another_base_is_refused(made: Any, tmp_path: Path, tiny_model: Any, tiny_folder: Path) -> None:
    one = made()
    fit(one, PAIRS, MultipleNegativesRankingLoss(one), tmp_path / "adapter", steps=1, batch_size=4)
    tiny_model(seed=9).save_pretrained(tiny_folder)
    with pytest.raises(InputError, match="was trained on another base"):
        load(tmp_path / "adapter")


def test_a_loss_that_is_not_finite_ends_the_training(made: Any) -> None:
    one = made()
    with torch.no_grad():
        one.encoder.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="the loss is nan at step 0"):
        fit(one, PAIRS, MultipleNegativesRankingLoss(one), steps=2, batch_size=4)
