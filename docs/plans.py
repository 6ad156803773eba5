"""The tables of layouts that docs/generate.py fills in: what the planner says of clusters, beside what was published.

Knows: the planner, figures of the paper. Does not know: pages.
"""

from __future__ import annotations

from speeds import table

from broadsheet.console import InputError
from broadsheet.train.megatron_530b import Cluster, ParallelPlanner, Plan
from broadsheet.training.layouts.ranks import RankGrid
from broadsheet.training.layouts.shapes import SHAPES

# Machines of eight A100: seconds of a step and TFLOP/s of a GPU, as published (section 2 of the paper).
PUBLISHED = {280: (60.1, 126), 350: (50.2, 121), 420: (44.4, 113)}


def clusters() -> str:
    """The fastest layout of each model by name on 8, 64 and 512 GPUs, and of the default one."""
    default = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9}
    default |= {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}
    rows = []
    for name, config in {"the default model": default, **SHAPES}.items():
        for gpus in (8, 64, 512):
            planner = ParallelPlanner(config, Cluster(gpus), 1920 if "530b" in name else 1024)
            try:
                rows.append((name, f"{gpus}", *_cells(planner.plans()[0])))
            except InputError:
                enough = planner.least_gpus() or 0
                told = f"too small: {enough:,} are enough" if enough > gpus else "none divides and fits"
                rows.append((name, f"{gpus}", told, "", "", "", ""))
    header = ("model", "GPUs", "fastest layout", "GB a GPU", "bubble", "seconds a step", "TFLOP/s a GPU")
    return table(header, rows)


def published() -> str:
    """The paper's three layouts by the planner, beside what its authors measured."""
    rows = []
    for nodes, (seconds, tflops) in PUBLISHED.items():
        planner = ParallelPlanner(SHAPES["mt-nlg-530b"], Cluster(8 * nodes), 1920)
        plan, fastest = planner.plan(RankGrid(35, nodes // 35, 8)), planner.plans()[0]
        by_formula = planner.flops / seconds / plan.grid.world / 1e12
        own = "this one" if fastest.grid == plan.grid else f"{fastest.grid}, {fastest.seconds:.1f} s"
        rows.append(
            (
                f"{nodes}", f"{plan.grid.world:,}", f"{plan.grid}", f"{100 * plan.bubble:.1f} %", f"{plan.seconds:.1f}",
                f"{seconds}", f"{plan.tflops:.0f}", f"{tflops}, by the formula {by_formula:.1f}", own,
            )
        )  # fmt: skip
    header = ("machines", "GPUs", "layout of the paper", "bubble", "seconds a step", "published", "TFLOP/s a GPU")
    return table((*header, "published", "fastest by the planner"), rows)


def _cells(plan: Plan) -> tuple[str, ...]:
    return (
        str(plan.grid), f"{plan.bytes / 1e9:,.1f}", f"{100 * plan.bubble:.1f} %", f"{plan.seconds:,.3g}",
        f"{plan.tflops:.0f}",
    )  # fmt: skip
