"""Megatron-Turing NLG's oracle cases: the grid of ranks, 1F1B's order, counts of weights and operations, the rate."""

from typing import Any

from broadsheet.train.plans.ramps import TokenRate
from broadsheet.training.layouts.pipeline import bubble, buffers, order
from broadsheet.training.layouts.ranks import RankGrid
from broadsheet.training.layouts.shapes import Shape


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "micro_batches" in case:
        given = case["stage"], case["stages"], case["micro_batches"]
        return {
            "order": [str(work) for work in order(*given)],
            "pipe_buffers": buffers(*given),
            "bubble_fraction": bubble(case["stages"], case["micro_batches"]),
        }
    if "layers" in case:
        heads = next(heads for heads in (128, 1) if case["hidden"] % heads == 0)  # they change no count
        shape = Shape.gpt(case["layers"], case["hidden"], heads, case["vocab"], case["seq"])
        flops = shape.flops(case["batch"], case["seq"])
        return {
            "params": shape.parameters,
            "flops_per_iteration_with_full_recompute": flops,
            "tflops_per_gpu_2240gpus_60.1s": flops / 60.1 / 2240 / 1e12,
        }
    if "max_lr" in case:
        rate = TokenRate(case["max_lr"], case["min_lr"], case["warmup_tokens"], case["decay_tokens"])
        return {"lr": [rate.lr(tokens) for tokens in case["tokens"]]}
    grid = RankGrid(case["pp"], case["dp"], case["tp"])
    return {
        "coords": [list(grid.coordinates(rank)) for rank in range(grid.world)],
        "tensor_groups": grid.groups("tp"),
        "data_groups": grid.groups("dp"),
        "pipe_groups": grid.groups("pp"),
    }
