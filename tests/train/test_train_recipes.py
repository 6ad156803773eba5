"""`broadsheet apply` for the stage, as it is typed: a tiny model is trained further, and what is saved is a model."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from broadsheet import models
from broadsheet.cli import main
from broadsheet.models import surgery
from broadsheet.page import papers
from broadsheet.training.scratch import Size, tokenizer

# λ is so small and ε so large that all that is tried is feasible.
FEASIBLE = "CriticalMixtureRatio(weight=1e-9, epsilon=9)"
TALE = "a model reads many words and says which word comes next in each of its texts"


def texts(folder: Path, name: str, words: list[str]) -> str:
    made = folder / name
    made.mkdir()
    for i in range(40):
        (made / f"{i}.txt").write_text(" ".join(np.random.default_rng(i).choice(words, 120)))
    return str(made)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, a larger one of the same tokens, new texts and old ones."""
    folder = tmp_path_factory.mktemp("recipes")
    found = {"new": texts(folder, "new", TALE.upper().split()), "old": texts(folder, "old", TALE.split())}
    by = tokenizer([TALE, TALE.upper()], 300)
    for name, layers in (("model", 2), ("teacher", 1)):
        Size(layers, 16, 2).model(len(by), 64, 0).save_pretrained(folder / name)
        by.save_pretrained(folder / name)
        found[name] = str(folder / name)
    (folder / "dictionary.json").write_text('{"MODEL READS": "TEXTS SAYS"}')
    return found | {"dictionary": str(folder / "dictionary.json")}


def applied(paper: str, given: dict[str, str], out: Path, *options: str, steps: int = 14) -> torch.Tensor:
    common = ["--model", given["model"], "--tune", "full", "--steps", str(steps), "--batch-size", "4", "--length", "32"]
    words = ["apply", paper, given["new"], "--out", str(out), *common, "--learning-rate", "0.003", *options]
    with patch.object(sys, "argv", ["broadsheet", *words]), pytest.raises(SystemExit) as ended:
        main()
    if ended.value.code:
        raise ended.value
    model = AutoModelForCausalLM.from_pretrained(out)
    return torch.cat([each.detach().flatten() for each in model.parameters()])


@pytest.mark.parametrize(
    ("paper", "options"),
    [
        ("continual_pretraining", ["--old", "OLD", "--replay", "0.25"]),
        ("cmr", ["--old", "OLD", "--probe", "40", "--ratios", "0.25,0.5,1", "--method", FEASIBLE]),
        ("dataset_decomposition", ["--shortest", "4"]),
        ("llm_pruner", ["--window", "16", "--samples", "3"]),
        ("loss_reweighting", []),
        ("moe_survey", ["--layers", "1", "--experts", "3", "--method", "Upcycling(noise=0.1)"]),
        ("salt", ["--teacher", "TEACHER"]),
        ("token_crisis", ["--method", "DropStage(rate=0.3)"]),
        ("unlearning_whp", ["--dictionary", "DICTIONARY", "--retain", "OLD"]),
    ],
)
def test_what_is_saved_is_an_ordinary_model_that_has_learnt(paper, options, given, tmp_path, home, capsys):
    names = {"OLD": given["old"], "TEACHER": given["teacher"], "DICTIONARY": given["dictionary"]}
    made = applied(paper, given, tmp_path / "out", *(names.get(each, each) for each in options))
    before = AutoModelForCausalLM.from_pretrained(given["model"])
    old = torch.cat([each.detach().flatten() for each in before.parameters()])
    if paper in ("llm_pruner", "moe_survey"):
        assert (len(made) < len(old)) == (paper == "llm_pruner")
    else:
        assert not torch.allclose(made, old)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert papers.get(paper).title in (tmp_path / "out" / "README.md").read_text()
    said = capsys.readouterr().err
    assert "14 steps" in said
    if paper == "cmr":
        assert "critical ratio at 14 steps" in said


@pytest.mark.parametrize(
    ("paper", "options", "told"),
    [
        ("cmr", [], "a mixture needs --old DATA"),
        ("dataset_decomposition", ["--shortest", "5"], "got --shortest 5; expected a power of two"),
        ("dataset_decomposition", ["--shortest", "64"], "expected the shorter first"),
        ("cmr", ["--old", "OLD", "--probe", "40", "--ratios", "0.5,0.75,1"], "no share of new text is feasible"),
        ("llm_pruner", ["--window", "400"], "0 of 40 texts have 400 tokens or more; expected 10"),
        ("llm_pruner", ["--window", "16", "--ratio", "1"], "got ratio 1.0; expected a share from 0 to below 1"),
        ("salt", [], "SALT needs --teacher MODEL"),
        ("moe_survey", ["--top-k", "5"], "expected 2 experts or more"),
        ("moe_survey", ["--layers", "3"], "at most 2, which the model has"),
        ("moe_survey", ["--method", "ExpertBalance(z=-1)"], "got z -1; expected 0 or more"),
        ("token_crisis", ["--method", "DropStage(rate=2)"], "expected 0 to below 1"),
        ("continual_pretraining", ["--old", "nowhere"], "nowhere"),
        ("unlearning_whp", ["--dictionary", "nowhere.json"], "cannot read the dictionary nowhere.json"),
        ("unlearning_whp", ["--dictionary", "OLD"], "cannot read the dictionary"),
        ("unlearning_whp", ["--retain", "OLD", "--method", "WhosHarryPotter(alpha=-1)"], "no terms were found"),
    ],
)
def test_what_cannot_be_is_told_in_a_line_and_leaves_nothing(paper, options, told, given, tmp_path, home, capsys):
    with pytest.raises(SystemExit):
        applied(paper, given, tmp_path / "out", *(given["old"] if each == "OLD" else each for each in options))
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    kept = (
        {"out.runs"} if paper == "cmr" and "OLD" in options else set()
    )  # short runs are not made again by the next call
    assert {each.name for each in tmp_path.iterdir()} - {"home"} == kept


def test_a_model_becomes_a_mixture_that_computes_the_same_before_it_is_trained(given, tmp_path, home, capsys):
    applied("moe_survey", given, tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    mixture = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(mixture).__name__ == "MixtralForCausalLM"
    assert (mixture.config.num_local_experts, mixture.config.num_experts_per_tok) == (4, 2)
    assert f"a MixtralForCausalLM of {sum(each.numel() for each in mixture.parameters()):,} weights" in said
    apart = float(said.partition("logits differ from the model's by ")[2].split()[0])
    assert apart < 1e-5
    assert "of the entropy of an even one" in said


def test_nothing_replayed_and_text_read_too_often_are_told_before(given, tmp_path, home, capsys):
    applied("continual_pretraining", given, tmp_path / "a")
    assert "no --old: nothing is replayed" in capsys.readouterr().err
    applied("token_crisis", given, tmp_path / "b", steps=400)
    assert "watch held-out text, and use dropout" in capsys.readouterr().err


def test_a_pruned_model_whose_layers_differ_is_read_by_ours(given, tmp_path, home, capsys):
    options = ["--window", "16", "--samples", "3", "--method", "LLMPruner(kinds=('mlp',),layers=(1,2))"]
    with pytest.raises(RuntimeError, match="ismatch"):
        applied("llm_pruner", given, tmp_path / "out", *options)
    said = capsys.readouterr().err
    assert "% less): without" in said.replace("\n", " ")
    assert "from_pretrained cannot read it" in said
    model = models.load(tmp_path / "out").model
    assert surgery.widths(model)[0][0] > surgery.widths(model)[1][0]
