"""The trial of layouts: two processes train as one does, what they hold is counted, and the recipe writes its files."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from forks import context

from broadsheet import models
from broadsheet.cli import main
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.train.layout_runs import Layout, Measures, ShortRun, run_layout
from broadsheet.train.trials import megatron_530b as trials
from broadsheet.train.trials.megatron_530b import (
    DEVIATION,
    MEMORY,
    OFF,
    SHARDED,
    SPLIT,
    WAITING,
    MegatronTrial,
    stages,
)
from broadsheet.training.layouts.crew import Crew

TALE = "a model reads many words and says which word comes next in each of its texts"
TINY = {"trainings": 1, "steps": 2, "batch": 8, "length": 8, "quick": True}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a few thousand weights; processes that begin at once."""
    widths = {"hidden_size": 24, "intermediate_size": 32}
    monkeypatch.setattr(trials, "MODEL", trials.MODEL | widths)
    monkeypatch.setattr(trials, "VOCABULARY", 300)
    monkeypatch.setattr(Crew, "start_method", context().get_start_method())


@pytest.fixture
def data(tmp_path: Path, home: Path) -> str:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(" ".join(np.random.default_rng(i).choice(TALE.split(), 120)))
    return str(folder)


class Played:
    """A crew whose two processes answer at once: their layouts are as they are said to be."""

    asked: ClassVar[list[tuple[Layout, int]]] = []
    kept: ClassVar[dict[int, list[float]]] = {}

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def ask(self, call: Any, run: Any, layout: Layout, seed: int) -> list[Measures | None]:
        self.asked.append((layout, seed))
        if seed not in self.kept:
            self.kept[seed] = trials.alone(run, seed)
        losses = [loss + 1e-6 for loss in self.kept[seed]]
        share = {"one": 8e6, "stages": 4e6}.get(layout.kind, 5e6)
        idle = 1.1 / (layout.micro_batches + 1) if layout.kind == "stages" else 0.0
        last = Measures(losses, int(share), 1.0, idle, 2)
        return [None if layout.kind == "one" else Measures(None, int(share / 2), 0.9, idle), last]


def test_claims_are_judged_by_what_the_fullest_process_holds_and_stages_wait(data, monkeypatch):
    monkeypatch.setattr(trials, "Crew", Played)
    result = MegatronTrial(data=data, **{**TINY, "trainings": 9, "quick": False}).run()
    assert {arm.status for arm in result.arms} == {"ok"}
    verdicts = {(claim.metric, claim.arm): claim.verdict for claim in result.judged}
    assert verdicts[DEVIATION, SPLIT] == verdicts[DEVIATION, stages(8)] == "shown"
    assert verdicts[MEMORY, SHARDED] == verdicts[MEMORY, stages(8)] == "shown"
    assert verdicts[OFF, stages(8)] == "shown"
    assert verdicts[WAITING, stages(8)] == "shown"
    values = {arm.name: arm.values for arm in result.arms}
    assert values[SPLIT][MEMORY].estimate == pytest.approx(5), "of the fullest process"
    assert values[stages(2)][WAITING].estimate == pytest.approx(1.1 / 3)
    assert values[stages(2)][OFF].estimate == pytest.approx(0.1 / 3)
    [curve] = result.figures
    assert curve.lines["(p − 1) / (m + p − 1)"] == pytest.approx([1 / 2, 1 / 3, 1 / 5, 1 / 9])
    by_layout = {layout: {seed for each, seed in Played.asked if each == layout} for layout, _ in Played.asked}
    assert all(seeds == set(range(9)) for seeds in by_layout.values()), "every arm makes the same trainings"


def failing() -> None:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise ValueError("it went\nwrong")
    dist.barrier()


# Each layout, and the share of one process's memory that it may take at most.
LAYOUTS = {
    Layout("one"): 1.0,
    Layout("copies"): 1.0,
    Layout("zero"): 0.8,
    Layout("sharded"): 0.51,
    Layout("split"): 0.55,
    Layout("stages", 1): 0.7,
    Layout("stages", 4): 0.7,
}


def test_two_processes_train_as_one_does_in_less_memory_and_a_crew_outlives_a_failure():
    ids = torch.randint(0, 300, (3, 8, 10), generator=torch.Generator().manual_seed(0))
    config = {**trials.MODEL, "vocab_size": 300, "max_position_embeddings": 10}
    run = ShortRun(config, ids, 3e-3)
    want = trials.alone(run, 5)
    with Crew(2) as crew:
        with pytest.raises(RuntimeError, match="process 1: ValueError: it went wrong"):
            crew.ask(failing)
        found = {layout: crew.ask(run_layout, run, layout, 5) for layout in LAYOUTS}
    alone = found[Layout("one")][0].bytes
    for layout, share in LAYOUTS.items():
        done = [each for each in found[layout] if each]
        assert len(done) == (1 if layout.kind == "one" else 2)
        told = [each.losses for each in done if each.losses]
        assert told[-1] == pytest.approx(want, abs=1e-5), layout
        assert len(told) == (1 if layout.kind in ("one", "stages") else 2), "the last stage alone has losses"
        assert max(each.bytes for each in done) <= share * alone, layout
        waits = [each.idle for each in done]
        assert all(0 < idle < 1 for idle in waits) if layout.kind == "stages" else waits == [0] * len(done)
    assert [each.held for each in found[Layout("stages", 4)]] == [2, 1]


def test_a_batch_that_no_pipeline_can_cut_is_refused_before_anything_runs(data):
    with pytest.raises(InputError, match="got --batch 12; expected a multiple of 8"):
        MegatronTrial(data=data, **{**TINY, "batch": 12}).run()


def applied(*words: str) -> None:
    with (
        patch.object(sys, "argv", ["broadsheet", "apply", "megatron_530b", *words]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    if ended.value.code:
        raise ended.value


class Words:
    """A tokenizer of words."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * len(text.split()) for text in texts]}


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr("broadsheet.models.embedded.folder", lambda: Path("default"))
    monkeypatch.setattr("broadsheet.models.tokens.read_tokenizer", {Path("default"): Words()}.get)


def test_a_plan_for_a_corpus_is_a_table_and_files(data, words, tmp_path, capsys):
    out = tmp_path / "plan"
    common = ("--model", "llama-8b", "--gpus", "16", "--out", str(out))
    applied(data, *common, "--batch", "16", "--length", "64", "--shard", "all", "--epochs", "40")
    said = capsys.readouterr()
    table = said.out
    assert max(map(len, table.splitlines())) <= 80
    assert (out / "plan.txt").read_text() == table
    kept = json.loads((out / "plan.json").read_text())
    assert kept["tokens"] == 20 * 120 + 20, "and an end of each text"
    steps = round(40 * kept["tokens"] / (16 * 64))
    assert f"{steps} steps of 16 × 64" in " ".join(table.split())
    job = tomllib.loads((out / "torchtitan.toml").read_text())["parallelism"]
    assert job["pipeline_parallel_degree"] == kept["plans"][0]["pp"]
    assert (out / "accelerate.yaml").exists()
    with pytest.raises(SystemExit):
        applied(data, *common)
    assert "exists; choose another --out" in capsys.readouterr().err
    applied(data, *common, "--force", "--mesh", "2,2,4")
    assert "pp 2 · dp 2 · tp 4" in capsys.readouterr().out
    assert not (out / "accelerate.yaml").exists(), "which has no stages"


def test_a_model_that_is_here_counts_by_its_own_tokenizer(data, tiny_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("broadsheet.models.embedded.folder", lambda: pytest.fail("nothing is fetched for this"))
    applied(data, "--model", str(tiny_folder), "--gpus", "1", "--out", str(tmp_path / "plan"))
    assert "as this model cuts texts" in " ".join(capsys.readouterr().out.split())
    tokenizer = models.load(tiny_folder).tokenizer
    texts = [document.text for document in corpora.load(data)]
    counted = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) + len(texts)
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["tokens"] == counted


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpus", "8"], "use 32 GPUs"),
        (["--gpus", "12"], "expected a multiple of 8"),
        (["--gpus", "64", "--mesh", "4,4"], "got --mesh 4,4; expected three numbers"),
        (["--gpus", "64", "--mesh", "3,1,16"], "makes 48 processes; expected 64"),
        (["--gpus", "64", "--shard", "some"], "some"),
    ],
)
def test_a_plan_that_cannot_be_is_told_in_a_line_and_leaves_nothing(options, told, data, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        applied(data, "--model", "llama-70b", "--out", str(tmp_path / "plan"), *options)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()
