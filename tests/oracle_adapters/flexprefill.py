"""FlexPrefill's oracle cases, by what they give; they follow the authors' code, so its rounding is asked for."""

from typing import Any

import torch

from broadsheet.attend.flexprefill import FlexPrefill, cover_count, diagonal_sums, js_distance, vertical_slash


def run(case: dict[str, Any]) -> dict[str, Any]:
    return next(answer for given, answer in _CASES.items() if set(given) <= set(case))(case)


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _flat(active: torch.Tensor) -> list[int]:
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
    method = FlexPrefill(
        gamma=case["gamma"],
        tau=case["tau"],
        block_size=size,
        min_budget=case["min_blocks"] * size,
        max_budget=case["max_blocks"] * size if case.get("max_blocks") else None,
        rounding="code",
    )
    query, key = (_tensor(case[name])[None, None] for name in "qk")
    scaling = query.shape[-1] ** -0.5
    pattern = method.probe(query[:, :, -size:], key, scaling=scaling)
    active, _ = method.select(query, key, scaling=scaling)
    return {
        "sqrt_js": float(js_distance(pattern.true, pattern.estimated)),
        "query_aware": bool(pattern.query_aware),
        "estimated_block_dist": pattern.estimated[0, 0].tolist(),
        "true_block_dist": pattern.true[0, 0].tolist(),
        "active_blocks_flat": _flat(active),
    }


_CASES = {
    ("gamma", "tau", "block_size"): _pattern,
    ("p", "q"): _js,
    ("scores", "gamma"): _cover,
    ("matrix",): _diagonals,
    ("vertical_block_columns", "slash_block_offsets"): _union,
}
