"""FlexPrefill's oracle cases, by what they give. They follow the authors' code.

A pattern is asked for twice: with the authors' rounding, and as the method is by default, which keeps more only where
`_less_the_crossing_block` says so.
"""

from typing import Any

import torch
from torch import Tensor

from broadsheet.attend.flexprefill import (
    FlexPrefill,
    Pattern,
    block_map,
    cover_count,
    diagonal_sums,
    js_distance,
    vertical_slash,
)


def run(case: dict[str, Any]) -> dict[str, Any]:
    return next(answer for given, answer in _CASES.items() if set(given) <= set(case))(case)


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _flat(active: Tensor) -> list[int]:
    return active.flatten().nonzero()[:, 0].tolist()


def _js(case: dict[str, Any]) -> dict[str, Any]:
    return {"sqrt_js": float(js_distance(_tensor(case["p"]), _tensor(case["q"])))}


def _cover(case: dict[str, Any]) -> dict[str, Any]:
    return {"count_including_crossing_item": int(cover_count(_tensor(case["scores"]), case["gamma"]))}


def _diagonals(case: dict[str, Any]) -> dict[str, Any]:
    sums = diagonal_sums(_tensor(case["matrix"])).flip(-1).tolist()
    return {"sum_per_diagonal_index_c_where_distance_is_m_minus_1_minus_c": sums}


def _union(case: dict[str, Any]) -> dict[str, Any]:
    columns, distances = torch.zeros(2, case["n_blocks"], dtype=torch.bool)
    columns[case["vertical_block_columns"]] = True
    distances[case["slash_block_offsets"]] = True
    active = vertical_slash(columns, distances, case["n_blocks"])
    active[0, 0] = True  # the authors' list puts block 0 in the place of every acausal block
    return {"active_blocks_flat_row_times_n_plus_col": _flat(active)}


def _pattern(case: dict[str, Any]) -> dict[str, Any]:
    size = case["block_size"]
    least = max(1, case["min_blocks"]) * size
    most = case["max_blocks"] * size if case.get("max_blocks") else None
    given = {"gamma": case["gamma"], "tau": case["tau"], "block_size": size, "min_budget": least}
    query, key = (_tensor(case[name])[None, None] for name in "qk")
    scaling = query.shape[-1] ** -0.5
    active, _ = FlexPrefill(**given, max_budget=most, rounding="code").select(query, key, scaling=scaling)
    # Of so few tokens a 128th is nothing, so that the authors' code takes the least budget: here that is the most, too.
    method = FlexPrefill(**given, max_budget=least)
    pattern = method.probe(query[:, :, -size:], key, scaling=scaling)
    if not torch.equal(_less_the_crossing_block(method, pattern, query, key, scaling), active):
        raise AssertionError("the default rounding and the authors' differ by more than the block that crosses gamma")
    return {
        "sqrt_js": float(js_distance(pattern.true, pattern.estimated)),
        "query_aware": bool(pattern.query_aware),
        "estimated_block_dist": pattern.estimated[0, 0].tolist(),
        "true_block_dist": pattern.true[0, 0].tolist(),
        "active_blocks_flat": _flat(active),
    }


def _less_the_crossing_block(
    method: FlexPrefill, pattern: Pattern, query: Tensor, key: Tensor, scaling: float
) -> Tensor:
    """What it selects, but for the block that crosses gamma in a query-aware head, which the authors' code drops."""
    active, _ = method.select(query, key, scaling=scaling)
    if bool(pattern.query_aware):
        weights = block_map(query, key, method.block_size, scaling, None)[0, 0].flatten()
        order = weights.argsort(descending=True)
        crossing = order[(weights[order].cumsum(0) <= method.gamma * active.shape[2]).sum()]
        least = vertical_slash(pattern.columns, pattern.distances, active.shape[2])
        active.view(-1)[crossing] = least.view(-1)[crossing]
    return active


_CASES = {
    ("gamma", "tau", "block_size"): _pattern,
    ("p", "q"): _js,
    ("scores", "gamma"): _cover,
    ("matrix",): _diagonals,
    ("vertical_block_columns", "slash_block_offsets"): _union,
}
