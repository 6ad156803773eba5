"""Backbones from nothing: made once, on equal tokens, each at its own best rate; read back, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_docs import documents

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.embed.modules import from_scratch
from broadsheet.embed.modules.from_scratch import Pretrained, _drawn, _Pretraining, is_scratch, pretrained
from broadsheet.training.objective import NextTokens
from broadsheet.training.scratch import SIZES, Size

TEXTS = [document.text for document in documents()]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and steps that take no time."""
    monkeypatch.setitem(SIZES, "0.4M", Size(1, 16, 2))
    monkeypatch.setitem(SIZES, "1M", Size(2, 32, 2))
    monkeypatch.setattr(from_scratch, "BATCH", 2)
    monkeypatch.setattr(from_scratch, "LENGTH", 32)
    monkeypatch.setattr(from_scratch, "_TUNING", 4)
    monkeypatch.setattr(from_scratch, "_HELD_OUT", 6)


def made(out: Path, name: str = "scratch:0.4M", steps: int = 5, **more: Any) -> tuple[Path, Pretrained]:
    return pretrained(name, TEXTS, out, steps=steps, device="cpu", **more)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in models.load(folder, device="cpu").model.parameters()])


def test_sizes_read_equal_tokens_in_one_tokenizer_s_words(tmp_path: Path) -> None:
    (small, told), (large, other) = (made(tmp_path, name) for name in ("scratch:0.4M", "scratch:1M"))
    assert told.tokens == other.tokens == 5 * 2 * 32
    assert told.unique == other.unique
    first, second = (models.load(folder, device="cpu") for folder in (small, large))
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert [each.model.config.num_hidden_layers for each in (first, second)] == [1, 2]
    assert first.tokenizer.eos_token is not None
    steps = [json.loads((folder / "training.json").read_text())["steps"] for folder in (small, large)]
    assert steps == [5, 5]


def test_a_backbone_is_trained_once_and_another_for_whatever_decides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = made(tmp_path)
    others = [made(tmp_path, steps=6)[0], made(tmp_path, seed=1)[0]]
    others.append(pretrained("scratch:0.4M", TEXTS[:-1], tmp_path, steps=5, device="cpu")[0])
    assert len({folder, *others}) == 4
    assert not torch.equal(weights(folder), weights(others[1]))

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(_Pretraining, "run", never)
    assert made(tmp_path) == (folder, told)
    with pytest.raises(AssertionError, match="again"):
        made(tmp_path, steps=7)


@pytest.mark.parametrize("best", from_scratch.RATES)
def test_the_rate_is_the_one_that_leaves_the_lowest_loss_on_documents_kept_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: float
) -> None:
    asked = {}

    def loss(self: _Pretraining, name: str, texts: Any) -> float:
        asked[name] = tuple(texts)
        held = self.held
        assert not set(texts) & set(held.train)
        assert tuple(texts) == (held.held_out if name == "model" else held.tuning)
        return 1.0 if name == f"rate {best:g}" else 2.0

    monkeypatch.setattr(_Pretraining, "loss", loss)
    folder, told = made(tmp_path, steps=10)
    assert told.rate == best
    assert set(asked) == {"model", *(f"rate {rate:g}" for rate in from_scratch.RATES)}
    kept = {name: json.loads((folder.parent / name / "training.json").read_text()) for name in asked}
    assert kept["model"]["settings"]["learning_rate"] == best
    assert {kept[name]["steps"] for name in asked if name != "model"} == {2}, "a fifth of the steps"


def test_what_was_cut_off_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, told = made(tmp_path / "whole")
    collate, calls = NextTokens.collate, []

    def dying(self: Any, items: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 6):  # while the second rate is tried, and in the last training
            raise RuntimeError("killed")
        return collate(self, items)

    monkeypatch.setattr(NextTokens, "collate", dying)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            made(tmp_path / "cut")
        assert not list((tmp_path / "cut").glob("*/backbone.json"))
    again, found = made(tmp_path / "cut")
    assert len(calls) == 1 + 1 + 2 + 2 + 5, "no rate that was done is tried again"
    assert torch.equal(weights(again), weights(whole))
    assert (found.rate, found.loss) == (told.rate, told.loss)


def test_no_more_is_drawn_than_is_read_and_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_scratch, "_LEAST", 3)
    texts = [f"{i:02}" * 10 for i in range(20)]  # 20 characters each
    assert len(_drawn(texts, 100, 0)) == 5
    assert len(_drawn(texts, 101, 0)) == 6
    assert len(_drawn(texts, 1, 0)) == 3
    assert set(_drawn(texts, 10**6, 0)) == set(texts)
    assert _drawn(texts, 100, 0) == _drawn(texts, 200, 0)[:5]
    assert _drawn(texts, 100, 0) != _drawn(texts, 100, 1)


def test_names(tmp_path: Path) -> None:
    assert is_scratch("scratch:1M")
    assert not is_scratch("runs/scratch")
    with pytest.raises(InputError, match=r"got the size 2B; expected one of 0\.4M, 1M, 3M, 4M, 10M"):
        made(tmp_path, "scratch:2B")
    with pytest.raises(InputError, match="expected 3 or more"):
        pretrained("scratch:1M", TEXTS[:1], tmp_path, steps=1)


def test_sizes_are_about_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, size in SIZES.items():
        count = sum(p.numel() for p in size.model(2048, 256, 0).parameters())
        assert count == pytest.approx(float(name.removesuffix("M")) * 1e6, rel=0.07)
