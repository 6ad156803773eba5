"""Plans as text, and as configurations of the libraries that run them: torchtitan, accelerate.

Knows: plans, names of other libraries' settings. Does not know: how a plan is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.training.layouts.ranks import AXES

if TYPE_CHECKING:
    from accelerate import ParallelismConfig

    from broadsheet.train.megatron_530b import Plan


def explain(plans: Sequence[Plan], most: int = 10) -> str:
    """The first plans as a table of 80 columns, and of the first one what its memory and its time are made of."""
    widths = {"pp": 4, "dp": 5, "tp": 4, "m": 6, "GB a GPU": 10, "bubble": 9, "s a step": 10, "TFLOP/s": 9}
    widths["tokens/s"] = 13
    lines = ["".join(f"{name:>{width}}" for name, width in widths.items())]
    for plan in plans[:most]:
        grid = plan.grid
        lines.append(
            f"{grid.pp:>4}{grid.dp:>5}{grid.tp:>4}{plan.micro_batches:>6}{plan.bytes / 1e9:>10,.1f}"
            f"{100 * plan.bubble:>7.1f} %{plan.seconds:>10,.3g}{plan.tflops:>9,.1f}{plan.tokens:>13,.0f}"
        )
    if len(plans) > most:
        lines.append(f"… and {len(plans) - most} more")
    best = plans[0]
    parts = ", ".join(f"{name} {size / 1e9:,.2f}" for name, size in best.memory[best.fullest].items())
    sent = [
        f"{axis} {each.bytes / 1e9:,.2f} GB {'over the network' if each.network else 'within machines'}"
        for axis, each in best.traffic.items()
        if each.bytes
    ]
    told = (
        f"{best.grid}: {best.layers[0]} layers a stage, {best.micro_batches} micro-batches (m) a step.",
        f"Memory of the fullest GPU, stage {best.fullest}, in GB: {parts}.",
        f"A GPU sends in a step: {'; '.join(sent) or 'nothing'}.",
    )
    return "\n".join([*lines, "", *(fill(line, 80) for line in told)])


def record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        **{axis: getattr(plan.grid, axis) for axis in AXES},
        "micro_batches": plan.micro_batches,
        "layers": list(plan.layers),
        "gigabytes": [{name: size / 1e9 for name, size in parts.items()} for parts in plan.memory],
        "sent_gigabytes": {axis: each.bytes / 1e9 for axis, each in plan.traffic.items()},
        "bubble": plan.bubble,
        "step_seconds": plan.seconds,
        "tflops": plan.tflops,
        "tokens_per_second": plan.tokens,
    }


def to_torchtitan(plan: Plan) -> str:
    """A plan as the part of a torchtitan job's TOML that lays the training out (`--job.config_file`).

    Later versions, configured in Python, take the same names as options: `--parallelism.tensor_parallel_degree 8`. A
    sharded optimizer alone is there none: gradients are sharded with it, and weights stay together through a step.
    """
    grid, planner = plan.grid, plan.planner
    replicated = planner.shard == "none"
    local = planner.micro_batch * (plan.micro_batches if grid.pp > 1 else 1)  # a pipeline cuts it by itself
    tables: dict[str, dict[str, Any]] = {
        "training": {
            "local_batch_size": local,
            "global_batch_size": planner.batch,
            "seq_len": planner.length,
        },
        "parallelism": {
            "data_parallel_replicate_degree": grid.dp if replicated else 1,
            "data_parallel_shard_degree": 1 if replicated else grid.dp,
            "fsdp_reshard_after_forward": "default" if planner.shard == "all" else "never",
            "tensor_parallel_degree": grid.tp,
            "pipeline_parallel_degree": grid.pp,
        },
        "activation_checkpoint": {"mode": planner.recompute},
    }
    if grid.pp > 1:
        tables["parallelism"] |= {
            "pipeline_parallel_schedule": "1F1B",
            "pipeline_parallel_microbatch_size": planner.micro_batch,
            "pipeline_parallel_layers_per_stage": plan.layers[0],
            # By default embedding and head count as a layer each, and such stages get one less.
            "pipeline_parallel_first_stage_less_layers": 0,
            "pipeline_parallel_last_stage_less_layers": 0,
        }
    lines = [f"# {grid}, {plan.micro_batches} micro-batches a step"]
    for name, values in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def to_accelerate(plan: Plan) -> ParallelismConfig:
    """A plan for `Accelerator(parallelism_config=…)`, or a `Trainer`'s arguments of that name.

    Raises:
        InputError: the plan has stages, or copies of split layers that are not sharded: accelerate has neither.
    """
    from accelerate import ParallelismConfig

    return ParallelismConfig(**_sizes(plan))


def accelerate_yaml(plan: Plan) -> str:
    """The same as a file of `accelerate launch --config_file`.

    Raises:
        InputError: as of `to_accelerate`.
    """
    import yaml

    grid, planner, sizes = plan.grid, plan.planner, _sizes(plan)
    sharded = sizes["dp_shard_size"] > 1 or grid.tp > 1
    settings: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if sharded else "MULTI_GPU",
        "mixed_precision": "bf16",
        "num_machines": max(1, grid.world // planner.cluster.per_node),
        "num_processes": grid.world,
    }
    if sharded:
        settings["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": planner.shard == "all",
            "fsdp_activation_checkpointing": planner.recompute == "full",
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }
        settings["parallelism_config"] = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    told = (
        f"# {grid}; of the Trainer: --per_device_train_batch_size {planner.micro_batch} "
        f"--gradient_accumulation_steps {plan.micro_batches}\n"
    )
    return told + str(yaml.safe_dump(settings, sort_keys=False))


def _sizes(plan: Plan) -> dict[str, int]:
    """Fields of a `ParallelismConfig`."""
    grid, sharded = plan.grid, plan.planner.shard != "none"
    if grid.pp > 1:
        raise InputError(f"accelerate has no axis for stages, and the plan is {grid}; use one of pp 1, or torchtitan")
    if grid.tp > 1 and grid.dp > 1 and not sharded:
        raise InputError(f"accelerate does not copy layers that are split, and the plan is {grid}; use shard='all'")
    return {
        "dp_replicate_size": 1 if sharded else grid.dp,
        "dp_shard_size": grid.dp if sharded else 1,
        "tp_size": grid.tp,
    }


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
