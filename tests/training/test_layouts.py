"""Layouts over processes compute what one process does: logits, gradients, and weights after three steps of AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from two_processes import leave, several

from broadsheet.console import InputError
from broadsheet.training.layouts.models import (
    Pipeline,
    Stage,
    device_mesh,
    fully_sharded,
    resident_bytes,
    tensor_parallel,
    whole,
)
from broadsheet.training.layouts.pipeline import in_flight
from broadsheet.training.layouts.ranks import RankGrid
from broadsheet.training.layouts.shapes import Shape
from broadsheet.training.losses import token_losses

LAYERS, STEPS = 4, 3
WAYS = ("forward talk", "backward talk")
QWEN: dict[str, Any] = {
    "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 8,
}  # fmt: skip
ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def tiny(tied: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=38, hidden_size=24, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, attn_implementation="sdpa",
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight rows of which parts are not asked, so that micro-batches differ in tokens."""
    ids = torch.randint(0, 38, (8, 10), generator=torch.Generator().manual_seed(step))
    labels = ids.clone()
    labels[step % 8, 3:] = -100
    labels[7, 5:] = -100
    return ids, labels


def mean_loss(logits: torch.Tensor, labels: torch.Tensor, asked: int) -> torch.Tensor:
    return token_losses(logits, labels)[0].sum() / asked


def asked(labels: torch.Tensor) -> int:
    return int((labels[:, 1:] != -100).sum())


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **ADAMW)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: whole(each.detach()).clone() for name, each in model.named_parameters()}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: whole(each.grad).clone() for name, each in model.named_parameters()}


def trained(model: Any, made: Any, rows: Any = slice(None), copies: int = 1, steps: int = STEPS) -> dict[str, Any]:
    """Losses, the first step's gradients, and weights at the end of a model whose forward pass is its own.

    With copies, a copy's loss is over all tokens and times the copies, since gradients are averaged.
    """
    losses, first = [], {}
    for step in range(steps):
        ids, labels = batch(step)
        logits = model(ids[rows], use_cache=False).logits
        loss = copies * mean_loss(whole(logits), labels[rows], asked(labels))
        loss.backward()
        losses.append(float(loss.detach()))
        first = first or gradients(model)
        made.step()
        made.zero_grad()
    return {"losses": losses, "gradients": first, "weights": weights(model)}


def piped(model: Any, mesh: Any, micro_batches: int, dp: Any = None, tp: Any = None) -> dict[str, Any]:
    """The same of a stage."""
    stage = Stage(model, mesh.get_local_rank(), mesh.size())
    if tp is not None:
        tensor_parallel(stage, tp)
    pipeline = Pipeline(stage, mesh, micro_batches)
    made, losses, first = optimizer(stage.parameters()), [], {}
    for step in range(STEPS):
        ids, labels = batch(step)
        rows = slice(None) if dp is None else slice(dp.get_local_rank(), None, dp.size())
        loss = pipeline.step(ids[rows], labels[rows], asked(labels))
        if dp is not None:
            for each in stage.parameters():
                dist.all_reduce(each.grad, group=dp.get_group())
        losses.append(None if loss is None else float(loss))
        first = first or gradients(stage)
        made.step()
        made.zero_grad()
    return {"losses": losses, "gradients": first, "weights": weights(stage), "held": pipeline.held}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    found: dict[str, Any] = {}

    mesh = device_mesh(RankGrid(pp=1, dp=2, tp=2))  # two axes: layers split, and weights sharded
    model = tensor_parallel(tiny(), mesh["tp"])
    ids, labels = batch(0)
    with CommDebugMode() as talk:
        logits = whole(model(ids, use_cache=False).logits)
    found["logits"] = logits.detach()
    found["forward talk"] = {str(each): count for each, count in talk.get_comm_counts().items()}
    with CommDebugMode() as talk:
        mean_loss(logits, labels, asked(labels)).backward()
    found["backward talk"] = {str(each): count for each, count in talk.get_comm_counts().items()}
    model.zero_grad()
    split = resident_bytes(model)
    fully_sharded(model, mesh["dp"])
    rows = slice(mesh["dp"].get_local_rank(), None, 2)
    found["tp, fsdp"] = trained(model, optimizer(model.parameters()), rows, 2, steps=1)
    model.zero_grad()
    found["bytes"] = {"tp": split, "tp, fsdp": resident_bytes(model)}

    flat = device_mesh(RankGrid(dp=4))["dp"]  # weights sharded, and an optimizer's state alone
    model = fully_sharded(tiny(tied=False), flat)
    made = torch.optim.AdamW(model.parameters(), foreach=True, **ADAMW)
    found["fsdp"] = trained(model, made, slice(rank, None, 4), 4)
    found["bytes"]["fsdp"] = resident_bytes(model, made)
    copied = DistributedDataParallel(tiny(tied=False))
    made = ZeroRedundancyOptimizer(copied.parameters(), torch.optim.AdamW, **ADAMW)
    result = trained(copied, made, slice(rank, None, 4), 4)
    for key in ("gradients", "weights"):
        result[key] = {name.removeprefix("module."): each for name, each in result[key].items()}
    found["zero"] = result
    found["bytes"]["zero"] = resident_bytes(copied.module, made.optim)

    mesh = device_mesh(RankGrid(pp=2, tp=2))  # stages, of which layers are split; an embedding that is the head too
    found["pp, tp"] = piped(tiny(), mesh["pp"], 4, tp=mesh["tp"])
    mesh = device_mesh(RankGrid(pp=2, dp=2))  # fewer micro-batches than stages
    found["pp, dp"] = piped(tiny(), mesh["pp"], 1, dp=mesh["dp"])
    mesh = device_mesh(RankGrid(pp=4))
    found["pp"] = piped(tiny(tied=False), mesh["pp"], 8)
    torch.save(found, folder / f"process-{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes found: one start serves all tests."""
    folder = tmp_path_factory.mktemp("layouts")
    several(4, work, folder)
    return [torch.load(folder / f"process-{rank}.pt") for rank in range(4)]


@pytest.fixture(scope="module")
def alone() -> dict[bool, dict[str, Any]]:
    """What one process finds, of a model whose embedding is tied, and of one whose is not."""
    models = {tied: tiny(tied) for tied in (True, False)}
    return {tied: trained(model, optimizer(model.parameters())) for tied, model in models.items()}


# Each layout, and whether its embedding is tied.
LAYOUTS = {"tp, fsdp": True, "fsdp": False, "zero": False, "pp, tp": True, "pp, dp": True, "pp": False}


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_and_weights_are_those_of_one_process(name, found, alone):
    want, seen = alone[LAYOUTS[name]], set()
    for process in found:
        for what in ("gradients", "weights"):
            if name == "tp, fsdp" and what == "weights":
                continue  # after one step; each of the two takes three by itself
            assert process[name][what]
            for weight, got in process[name][what].items():
                # A tied head has a copy of its own on the last stage.
                expected = want[what]["model.embed_tokens.weight" if weight not in want[what] else weight]
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4, msg=f"{name}: {what} of {weight}")
        seen |= process[name]["weights"].keys()
    assert want["weights"].keys() <= seen, "all stages together have all weights"


def test_the_loss_is_that_of_one_process_on_the_last_stage_alone(found, alone):
    for name in ("pp, tp", "pp"):
        told = [process[name]["losses"] for process in found]
        want = pytest.approx(alone[LAYOUTS[name]]["losses"], abs=1e-5)
        last = 2 if name == "pp, tp" else 3
        assert all(losses == want for losses in told[last:])
        assert all(losses == [None] * STEPS for losses in told[:last])
    halves = [process["pp, dp"]["losses"] for process in found[2:]]
    assert [sum(each) for each in zip(*halves, strict=True)] == pytest.approx(alone[True]["losses"], abs=1e-5)


def test_split_layers_give_the_logits_by_two_reductions_each_way(found):
    with torch.no_grad():
        want = tiny()(batch(0)[0], use_cache=False).logits
    for process in found:
        torch.testing.assert_close(process["logits"], want, atol=1e-5, rtol=1e-4)
        reduced = [sum(n for kind, n in process[way].items() if "all_reduce" in kind) for way in WAYS]
        # And one of the embedding forward, one of what the head reads backward.
        assert reduced == [2 * LAYERS + 1, 2 * LAYERS + 1]


def test_a_stage_holds_no_more_than_its_place_asks_for(found):
    for rank, process in enumerate(found):
        assert process["pp"]["held"] == in_flight(rank, 4, 8) == 4 - rank
        assert process["pp, tp"]["held"] == in_flight(rank // 2, 2, 4)
        assert process["pp, dp"]["held"] == 1


def test_a_process_holds_its_share(found):
    shape = Shape.of(tiny().config)
    whole_model = 4 * shape.parameters
    four = 4 * tiny(tied=False).num_parameters()
    for process in found:
        split = 4 * (LAYERS * shape.layer_parameters(tp=2) + shape.end_parameters(True, True, tp=2))
        assert process["bytes"]["tp"] == split < 0.6 * whole_model, "as the planner counts them"
        assert process["bytes"]["tp, fsdp"] == pytest.approx(split / 2, rel=0.05)
        assert process["bytes"]["fsdp"] == pytest.approx(3 * four / 4, rel=0.05), "weights and two moments"
        assert process["bytes"]["zero"] < 2.7 * four, "weights, gradients, and a share of two moments"


def test_stages_cover_all_layers_once_and_the_order_is_that_of_the_schedule():
    for stages in (1, 3, 4):
        parts = [Stage(tiny(), stage, stages) for stage in range(stages)]
        layers = [name for part in parts for name in part.model.layers]
        assert layers == [str(i) for i in range(LAYERS)]
        ids, hidden = batch(0)[0], batch(0)[0]
        with torch.no_grad():
            for part in parts:
                hidden = part(hidden)
            torch.testing.assert_close(hidden, tiny()(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (lambda: Stage(tiny(), 0, 5), "a layer for each stage"),
        (lambda: Stage(Qwen3ForCausalLM(Qwen3Config(**QWEN)), 0, 1), "got a qwen3 model with"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(refused, told):
    with pytest.raises(InputError, match=told):
        refused()
