"""LM-Infinite's oracle cases: one head, read by the state that the installed method gives a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary
from oracle_adapters.attending import heads_of, rotary


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, key, value = (heads_of(case[name]) for name in "qkv")
    width = query.shape[-1]
    method = LMInfinite(
        n_global=case["n_start"],
        n_local=case["window"],
        max_distance=case.get("limit_distance"),
        top_k=case.get("top_k", 0),
        top_k_from_layer=0,
        middle_distance=case.get("insert_distance"),
    )
    if "alibi_slope" in case:
        encoding: Rotary = Alibi(case["alibi_slope"] * width**0.5)
        query, key, value = Alibi.query(query), Alibi.key(key), pad(value, (0, 4))
    else:
        encoding = rotary(1, width, case["rope_base"])
    layer = Layer(0, 1, 1, query.shape[-1], width**-0.5, None, None, encoding)
    state, last = method.state(layer), case.get("rows") == "last"
    cuts = [len(case["q"]) - 1, 1] if last else [len(case["q"])]  # a last row alone is that of a decoded token
    pieces = zip(*(x.split(cuts, 2) for x in (query, key, value)), strict=True)
    output = torch.cat([state.attend(*piece) for piece in pieces], 2)[0, 0, :, :width]
    middle = getattr(state, "middle_", torch.empty(1, 1, 0))
    return {
        "out": output[-1:].tolist() if last else output.tolist(),
        "selected_middle": sorted(middle[0, 0].tolist()),
    }


class Alibi(Rotary):
    """ALiBi as a linear encoding of positions, as a rotation is one: q·k - slope (i - j).

    Four further entries of a head, two pairs, are sheared by the position p: (a, b) becomes (a, b + slope p a). With
    (1, 0), (0, 1) in the query at i and (0, -1), (1, 0) in the key at j the product gains -slope i + slope j.
    """

    def __init__(self, slope: float) -> None:
        super().__init__(None, None)
        self.slope = slope

    @staticmethod
    def query(x: Tensor) -> Tensor:
        return torch.cat((x, x.new_tensor([1, 0, 0, 1]).expand(*x.shape[:-1], 4)), -1)

    @staticmethod
    def key(x: Tensor) -> Tensor:
        return torch.cat((x, x.new_tensor([0, -1, 1, 0]).expand(*x.shape[:-1], 4)), -1)

    def rotate(self, x: Tensor, positions: int | range | Tensor) -> Tensor:
        at = torch.as_tensor(list(positions) if isinstance(positions, range) else positions).to(x)
        sheared = x.clone()
        sheared[..., -3] += self.slope * at * x[..., -4]
        sheared[..., -1] += self.slope * at * x[..., -2]
        return sheared
