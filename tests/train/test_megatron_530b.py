"""Megatron-Turing NLG's planner: what divides, what fits, what it costs; 1F1B; schedules by tokens; the files."""

from __future__ import annotations

import itertools
import tomllib
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from broadsheet.console import InputError
from broadsheet.train import BatchRamp, Cluster, LossMethod, MethodObjective, ParallelPlanner, TokenRate
from broadsheet.train.megatron_530b import Plan
from broadsheet.train.plans.exports import accelerate_yaml, explain, to_accelerate, to_torchtitan
from broadsheet.training.fit import fit
from broadsheet.training.layouts.pipeline import bubble, in_flight, order, simulate
from broadsheet.training.layouts.ranks import AXES, RankGrid
from broadsheet.training.layouts.shapes import SHAPES, Shape
from broadsheet.training.schedules import Progress

MT_NLG = SHAPES["mt-nlg-530b"]
SMOLLM2 = {
    "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


def published(nodes: int) -> Plan:
    return ParallelPlanner(MT_NLG, Cluster(8 * nodes), 1920).plan(RankGrid(35, nodes // 35, 8))


# The grid


@given(pp=st.integers(1, 5), dp=st.integers(1, 5), tp=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_ranks_and_coordinates_are_one_to_one_and_groups_part_all_ranks(pp, dp, tp):
    grid = RankGrid(pp, dp, tp)
    places = [grid.coordinates(rank) for rank in range(grid.world)]
    assert len(set(places)) == grid.world == prod(grid.shape)
    assert [grid.rank(*place) for place in places] == list(range(grid.world))
    for number, axis in enumerate(AXES):
        groups = grid.groups(axis)
        assert sorted(itertools.chain(*groups)) == list(range(grid.world))
        for group in groups:
            assert len({place[:number] + place[number + 1 :] for place in map(grid.coordinates, group)}) == 1
            for per_node in (4, 8):
                if len({rank // per_node for rank in group}) > 1:
                    assert grid.leaves_node(axis, per_node)
    for axis, per_node in itertools.product(AXES, (4, 8)):
        crossing = any(len({rank // per_node for rank in group}) > 1 for group in grid.groups(axis))
        assert grid.leaves_node(axis, per_node) == crossing, (axis, per_node)


def test_the_grid_is_that_of_a_device_mesh():
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from broadsheet.training.layouts.models import device_mesh

    grid = RankGrid(pp=3, dp=2, tp=2)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=grid.world)
    try:
        mesh = device_mesh(grid)
        assert mesh.mesh.shape == grid.shape
        for rank in range(grid.world):
            assert (mesh.mesh == rank).nonzero().tolist() == [list(grid.coordinates(rank))]
        for axis in AXES:
            assert mesh[axis].mesh.tolist() in grid.groups(axis)
        with pytest.raises(InputError, match="got 12 processes; expected 4"):
            device_mesh(RankGrid(dp=4))
    finally:
        dist.destroy_process_group()


# 1F1B


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 4, 9])
def test_every_pass_is_done_once_and_no_more_is_held_than_a_stage_may(stages, micro_batches):
    for stage in range(stages):
        works = order(stage, stages, micro_batches)
        assert sorted(map(str, works)) == sorted(f"{kind}{i}" for kind in "FB" for i in range(micro_batches))
        held = most = 0
        for kind, number in works:
            held += 1 if kind == "F" else -1
            most = max(most, held)
            assert kind == "F" or works.index(("F", number)) < works.index(("B", number))
        assert most == in_flight(stage, stages, micro_batches) == min(micro_batches, stages - stage)


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (1, 2), (0.3, 0.9)])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 1), (2, 8), (4, 4), (4, 2), (6, 30)])
def test_stages_of_equal_length_wait_as_the_formula_says(stages, micro_batches, forward, backward):
    found = simulate(stages, micro_batches, forward, backward)
    assert found.share == pytest.approx(bubble(stages, micro_batches), abs=1e-12)
    assert found.seconds == pytest.approx((micro_batches + stages - 1) * (forward + backward))
    works = [order(stage, stages, micro_batches) for stage in range(stages)]
    for stage in range(1, stages):  # nothing is read before it was written
        for number in range(micro_batches):
            here, before = (works[each].index(("F", number)) for each in (stage, stage - 1))
            assert found.begin[stage][here] >= found.end[stage - 1][before]
            here, before = (works[each].index(("B", number)) for each in (stage - 1, stage))
            assert found.begin[stage - 1][here] >= found.end[stage][before]


def test_waiting_falls_with_micro_batches_and_grows_with_stages_with_transfers_and_with_an_uneven_stage():
    shares = [simulate(4, m).share for m in (1, 2, 4, 8, 16)]
    assert shares == sorted(shares, reverse=True)
    assert [bubble(p, 8) for p in (1, 2, 4, 8)] == sorted(bubble(p, 8) for p in (1, 2, 4, 8))
    assert simulate(4, 8, transfer=0.5).share > simulate(4, 8).share
    assert simulate(2, 8, [1, 1.5], [2, 3]).share > simulate(2, 8).share
    jitter = np.random.default_rng(0).uniform(0.8, 1.2, (4, 8))
    assert simulate(4, 8, jitter, 2 * jitter).share > bubble(4, 8)


# Counts


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("mistral", {"num_key_value_heads": 2, "head_dim": 16}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
        ("gpt2", {}),
        ("gpt2", {"n_inner": 40}),
    ],
)
def test_weights_are_as_many_as_the_model_has(kind, more):
    common = {
        "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50,
    }  # fmt: skip
    if kind == "gpt2":
        common = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 50, "n_positions": 20}
    config = AutoConfig.for_model(kind, **common, **more)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert Shape.of(config).parameters == Shape.of(config.to_dict()).parameters == model.num_parameters()


def test_parts_and_stages_hold_all_weights_between_them():
    shape = Shape.of(SMOLLM2)
    for pp, tp in ((1, 1), (5, 1), (1, 3), (10, 3)):
        planner = ParallelPlanner(shape, Cluster(pp * tp, pp * tp), 60, shard="none")
        plan = planner.plan(RankGrid(pp, 1, tp))
        weights = tp * sum(parts["weights"] for parts in plan.memory) / 2
        norms = (tp - 1) * (61 * 576)  # each part has all of them
        tied = (pp > 1) * 49152 * 576  # on the first stage and on the last
        assert weights == pytest.approx(shape.parameters + norms + tied)
        assert sum(plan.layers) == shape.layers


def test_operations_are_the_papers_formula_with_and_without_recomputation():
    l, h, s, V, B = 105, 20480, 2048, 51200, 1920  # noqa: E741
    full = 96 * B * s * l * h**2 * (1 + s / (6 * h) + V / (16 * l * h))
    none = 72 * B * s * l * h**2 * (1 + s / (6 * h) + V / (12 * l * h))
    assert MT_NLG.flops(B, s) == pytest.approx(full, rel=1e-12)
    assert MT_NLG.flops(B, s, "none") == pytest.approx(none, rel=1e-12)
    assert Shape.gpt(1, h, 128, V, s).stored_bytes(2, s, 4, "none") == pytest.approx(s * 2 * h * (10 + 24 / 4))


# The planner


@pytest.mark.parametrize(("nodes", "micro_batches", "share"), [(280, 240, 0.124), (350, 192, 0.150), (420, 160, 0.175)])
def test_the_papers_layouts_are_among_the_plans(nodes, micro_batches, share):
    plan = published(nodes)
    assert plan.micro_batches == micro_batches
    assert plan.bubble == pytest.approx(share, abs=5e-4)
    assert set(plan.layers) == {3}
    assert any(each.grid == plan.grid for each in plan.planner.plans())
    assert not plan.traffic["tp"].network
    assert plan.traffic["pp"].network


def test_plans_fill_the_cluster_divide_and_fit_the_fastest_first():
    for gpus, shard in itertools.product((8, 64, 512), ("none", "optimizer", "all")):
        planner = ParallelPlanner(SHAPES["llama-8b"], Cluster(gpus), 512, shard=shard)
        plans = planner.plans()
        assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
        for plan in plans:
            grid, shape = plan.grid, planner.shape
            assert grid.world == gpus
            assert shape.layers % grid.pp == shape.heads % grid.tp == shape.kv_heads % grid.tp == 0
            assert grid.tp <= 8
            assert plan.bytes <= 72e9
            assert plan.micro_batches * grid.dp == 512
            assert plan == planner.plan(grid)


def test_memory_is_twenty_bytes_a_weight_less_what_is_shared_out():
    def parts(shard: str) -> dict[str, float]:
        planner = ParallelPlanner(SHAPES["llama-8b"], Cluster(8, memory=400), 64, shard=shard)  # type: ignore[arg-type]
        return dict(planner.plan(RankGrid(dp=8)).memory[0])

    weights = SHAPES["llama-8b"].parameters
    none, optimizer, everything = parts("none"), parts("optimizer"), parts("all")
    assert [none[name] / weights for name in ("weights", "gradients", "optimizer")] == [2, 6, 12]
    assert [optimizer[name] / weights for name in ("weights", "gradients", "optimizer")] == [2, 6, 1.5]
    assert [everything[name] / weights for name in ("weights", "gradients", "optimizer")] == [0.25, 0.75, 1.5]
    assert 0 < everything["gathered"] < 0.2 * none["weights"]
    deep = ParallelPlanner(SHAPES["llama-8b"], Cluster(8), 64, shard="none").plan(RankGrid(pp=8)).memory
    assert [each["activations"] for each in deep] == sorted((each["activations"] for each in deep), reverse=True)


def test_what_is_sent_is_what_each_axis_has_to_exchange():
    shape, passed = SHAPES["llama-8b"], 2 * 2048 * 4096  # bytes of a micro-batch between layers
    split = ParallelPlanner(shape, Cluster(8, memory=400), 64).plan(RankGrid(tp=8)).traffic
    assert split["tp"].bytes == pytest.approx(32 * 64 * 6 * 2 * 7 / 8 * passed)
    assert split["dp"].bytes == split["pp"].bytes == 0
    copied = ParallelPlanner(shape, Cluster(8, memory=400), 64).plan(RankGrid(dp=8)).traffic
    assert copied["dp"].bytes == pytest.approx(2 * 7 / 8 * 2 * shape.parameters)
    staged = ParallelPlanner(shape, Cluster(8, memory=400), 64).plan(RankGrid(pp=8)).traffic
    assert staged["pp"].bytes == pytest.approx(64 * 2 * passed)


@pytest.mark.parametrize(
    ("grid", "batch", "told"),
    [
        (RankGrid(1, 4, 2), 512, "tp 2 does not divide 9 heads, 3 KV heads and an MLP of 1536; use 1 or 3"),
        (RankGrid(4, 2, 1), 512, "pp 4 does not divide 30 layers; use 1, 2, 3, 5, 6, 10, 15 or 30"),
        (RankGrid(1, 8, 1), 100, "a batch of 100 cannot be dealt to dp 8 by 1; use a multiple of 8: 104"),
        (RankGrid(2, 4, 1), 4, "1 micro-batches do not fill 2 stages; use a batch of 8 or more, or fewer stages"),
        (RankGrid(1, 4, 1), 512, "pp 1 · dp 4 · tp 1 makes 4 processes; expected 8, one a GPU"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(grid, batch, told):
    planner = ParallelPlanner(SMOLLM2, Cluster(8), batch)
    assert told in planner.refusals(grid)
    with pytest.raises(InputError) as refused:
        planner.plan(grid)
    assert told in str(refused.value)


@pytest.mark.parametrize("sizes", [(6, 64, 6), (8, 64, 2), (8, 66, 8)], ids=["heads", "KV heads", "MLP"])
def test_heads_kv_heads_and_the_mlp_each_limit_how_layers_are_split(sizes):
    heads, ffn, kv_heads = sizes
    planner = ParallelPlanner(Shape(4, 48, heads, ffn, 100, kv_heads=kv_heads), Cluster(4, 4), 16)
    assert planner.refusals(RankGrid(1, 1, 4)) == [
        f"tp 4 does not divide {heads} heads, {kv_heads} KV heads and an MLP of {ffn}; use 1 or 2"
    ]
    assert {plan.grid.tp for plan in planner.plans()} == {1, 2}


def test_layers_are_not_split_beyond_a_machine():
    planner = ParallelPlanner(MT_NLG, Cluster(2240, 8), 1920)
    assert "leaves machines of 8 GPUs" in planner.refusals(RankGrid(35, 4, 16))[0]
    assert not ParallelPlanner(MT_NLG, Cluster(2240, 16), 1920).refusals(RankGrid(35, 4, 16))


def test_where_nothing_fits_what_would_is_told_and_does():
    small = ParallelPlanner(SHAPES["llama-70b"], Cluster(8), 1024)
    with pytest.raises(InputError, match=r"no layout of 8 GPUs holds the model: .* use 32 GPUs$") as refused:
        small.plans()
    assert "shard='all'" not in str(refused.value), "which would not help"
    assert ParallelPlanner(SHAPES["llama-70b"], Cluster(32), 1024).plans()
    assert ParallelPlanner(MT_NLG, Cluster(8), 1920).least_gpus() == 280, "one replica of the paper's"
    with pytest.raises(InputError, match="use shard='all'"):
        ParallelPlanner(SMOLLM2, Cluster(8, memory=1.8), 64, shard="none").plans()
    assert ParallelPlanner(SMOLLM2, Cluster(8, memory=1.8), 64, shard="all").plans()
    with pytest.raises(
        InputError,
        match="no layout of 7 GPUs divides this model and batch; of pp 1 · dp 7 · tp 1, a batch of 64 cannot",
    ):
        ParallelPlanner(SMOLLM2, Cluster(7, 7), 64).plans()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            lambda: ParallelPlanner({"model_type": "mixtral"}, Cluster(8), 8),
            "got a config of 'mixtral'; expected llama",
        ),
        (lambda: ParallelPlanner({"model_type": "llama"}, Cluster(8), 8), "the config has no 'num_hidden_layers'"),
        (lambda: ParallelPlanner(SMOLLM2, Cluster(8), 0), "got batch 0"),
        (lambda: ParallelPlanner(SMOLLM2, Cluster(8), 8, shard="some"), "shard 'some'"),
        (lambda: Cluster(12), "got 12 GPUs in machines of 8; expected a multiple of 8"),
        (lambda: Cluster(8, efficiency=0), "expected shares above 0"),
        (lambda: RankGrid(0), "got pp 0"),
        (lambda: simulate(2, 4, [1, 2, 3]), r"expected one, \(2,\), or \(2, 4\)"),
        (lambda: simulate(2, 4, -1), "expected 0 or more"),
        (lambda: order(2, 2, 4), "got stage 2 of 2"),
    ],
)
def test_what_makes_no_sense_is_one_line(wrong, told):
    with pytest.raises(InputError, match=told) as refused:
        wrong()
    assert "\n" not in str(refused.value)


# Text and files


def test_the_table_is_eighty_columns_wide_and_names_the_first_plans_parts():
    planner = ParallelPlanner(SHAPES["llama-8b"], Cluster(64), 512)
    text = explain(planner.plans(), most=3)
    assert max(map(len, text.splitlines())) <= 80
    assert "… and" in text
    assert "optimizer" in text
    assert "over the network" in text


@pytest.mark.parametrize("shard", ["none", "optimizer", "all"])
def test_torchtitan_gets_axes_whose_product_is_the_world_and_a_batch_that_divides(shard):
    for plan in ParallelPlanner(SHAPES["llama-8b"], Cluster(64), 512, shard=shard).plans():
        job = tomllib.loads(to_torchtitan(plan))
        axes = job["parallelism"]
        names = ("pipeline_parallel", "tensor_parallel", "data_parallel_replicate", "data_parallel_shard")
        assert prod(axes[f"{name}_degree"] for name in names) == 64
        dealt = job["training"]["local_batch_size"] * plan.grid.dp
        assert job["training"]["global_batch_size"] == 512
        assert 512 % dealt == 0
        if plan.grid.pp > 1:
            assert dealt == 512
            assert axes["pipeline_parallel_layers_per_stage"] * plan.grid.pp == 32


@pytest.mark.parametrize("shard", ["none", "optimizer", "all"])
def test_accelerate_reads_its_file_and_is_not_given_what_it_cannot_do(shard, tmp_path):
    planner = ParallelPlanner(SHAPES["llama-8b"], Cluster(64, memory=200), 512, shard=shard)
    seen = set()
    for plan in planner.plans():
        grid = plan.grid
        cannot = grid.pp > 1 or (shard == "none" and min(grid.tp, grid.dp) > 1)
        seen.add(cannot)
        if cannot:
            with pytest.raises(InputError, match="accelerate"):
                to_accelerate(plan)
            continue
        assert to_accelerate(plan).total_size == 64
        path = tmp_path / "accelerate.yaml"
        path.write_text(accelerate_yaml(plan))
        read: Any = load_config_from_file(str(path))
        assert read.num_processes == 64
        assert read.num_machines == 8
        if read.parallelism_config:
            sizes = {name.removeprefix("parallelism_config_"): size for name, size in read.parallelism_config.items()}
            assert sizes == {"dp_replicate_size": 1 if shard != "none" else grid.dp,
                             "dp_shard_size": grid.dp if shard != "none" else 1, "tp_size": grid.tp}  # fmt: skip
            assert read.fsdp_config["fsdp_version"] == 2
    assert True in seen


# Schedules by tokens


def test_the_rate_counts_tokens_and_not_steps():
    rate = TokenRate(1e-3, 1e-4, warmup=1000, decay=10_000)
    even, twice = rate.by_step(100), rate.by_step(200)
    assert [even.lr(2 * step) for step in range(60)] == [twice.lr(step) for step in range(60)]
    uneven = rate.by_step([50, 150, 300])
    assert [uneven.read(step) for step in range(6)] == [0, 50, 200, 500, 800, 1100]
    assert uneven.lr(4) == rate.lr(800) == pytest.approx(8e-4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate.max_lr)
    scheduler = even.scheduler(optimizer)
    seen = []
    for step in range(120):
        seen.append(scheduler.get_last_lr()[0])
        assert even(Progress(0.0, step, 120, 120)) * rate.max_lr == pytest.approx(seen[-1])
        optimizer.step()
        scheduler.step()
    assert seen[0] == 0
    assert max(seen) == seen[10] == rate.max_lr
    assert seen[-1] == pytest.approx(rate.min_lr)


def test_the_batch_grows_in_equal_steps_of_as_many_tokens_each():
    ramp = BatchRamp()
    sizes = ramp.sizes(15_000)
    assert sizes[0] == 32
    assert sizes[-1] == 1920
    assert set(np.diff(sizes)) == {0, 32}
    tokens = ramp.tokens(15_000)
    at = sizes.index(1920)
    assert sum(tokens[:at]) == pytest.approx(12e9, rel=1e-3)
    by_size = [
        sum(count for size, count in zip(sizes, tokens, strict=True) if size == each) for each in (320, 960, 1888)
    ]
    assert by_size == pytest.approx([12e9 / 59] * 3, rel=0.03)
    assert BatchRamp(8, 8, 8).sizes(3) == [8, 8, 8]


def test_rows_of_a_ramp_are_read_once_a_pass_and_parts_make_the_batch(rows):
    ramp = BatchRamp(2, 2, 6, tokens_to_last=200, length=12)
    whole, halves = ramp.rows(rows, 12), ramp.rows(rows, 12, parts=2)
    sizes = ramp.sizes(12)
    assert sorted(set(sizes)) == [2, 4, 6]
    read = [row.tolist() for step in range(12) for row in whole[step]["input_ids"]]
    assert [len(whole[step]["input_ids"]) for step in range(12)] == sizes
    assert sorted(read[:24]) == sorted(rows.ids.tolist())
    for step in range(12):
        parts = [halves[2 * step + part]["input_ids"] for part in (0, 1)]
        assert torch.equal(torch.cat(parts), whole[step]["input_ids"])
    assert ramp.rows(rows, 12, seed=1).identity() != whole.identity()


def test_fit_takes_the_ramp_and_the_rate(rows, tiny):
    ramp = BatchRamp(2, 2, 6, tokens_to_last=200, length=12)
    rate = TokenRate(1e-2, 1e-3, warmup=100, decay=400).by_step(ramp.tokens(8))
    seen: list[tuple[int, float]] = []

    class Noting(MethodObjective):
        def loss(self, model: Any, batch: Any, generator: Any) -> Any:
            seen.append((len(batch["input_ids"]), self.step))
            return super().loss(model, batch, generator)

    done = fit(
        tiny(), ramp.rows(rows, 8), Noting(LossMethod()), steps=8, batch_size=1, learning_rate=rate.max_lr,
        schedule=rate, autocast="none",
    )  # fmt: skip
    assert seen == list(zip(ramp.sizes(8), range(8), strict=True))
    assert done.tokens == sum(ramp.tokens(8))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: TokenRate(1e-3, 1e-2), "expected the lower rate first"),
        (lambda: TokenRate(warmup=2, decay=1), "a part of the tokens"),
        (lambda: TokenRate().by_step(0), "a step without tokens"),
        (lambda: BatchRamp(32, 30, 100), "an increment that divides 68"),
        (lambda: BatchRamp(32, 32, 16), "rising"),
        (lambda: BatchRamp(2, 2, 6, 1e3, 12).rows([], 3), "got no rows"),
        (lambda: BatchRamp(2, 2, 6, 1e3, 12).rows([{}], 3, parts=4), "sizes that 4 divides"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        wrong()
