"""kvpress reads long texts: up to each length anew, the cache compressed behind the tokens whose loss is measured.

Items: `ids` of a text, `lengths` to measure at, `scored` tokens before each, `decoded` tokens after it that are read
one by one, `questions` as `{"position", "ids"}`, and `answers`, the first token of each answer. Outputs, one row an
item: `loss`, `seconds`, `decode_seconds` and `held` by length, and `right` and `said` by length and question, null
where it is asked about what is told further on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any


def load(model: str, dtype: str, threads: int, press: str = "SnapKVPress", ratio: float = 0.5) -> Callable[[Any], Any]:
    """A model under one of kvpress's methods.

    Args:
        model: a Hugging Face folder.
        dtype: of the model, such as `float32`.
        threads: of the CPU.
        press: the class of the method.
        ratio: the share of the keys and values that it drops.
    """
    import kvpress
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    kind = getattr(kvpress, press, None)
    if kind is None:
        raise SystemExit(f"kvpress has no {press!r}; expected one of {', '.join(sorted(_presses(kvpress)))}")
    read = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True, use_safetensors=True
    ).eval()
    method = kind(compression_ratio=ratio)

    def run(items: list[Any]) -> dict[str, Any]:
        with torch.inference_mode():
            rows = [[at(read, method, item, length) for length in item["lengths"]] for item in items]
        return {name: [[row[name] for row in lengths] for lengths in rows] for name in rows[0][0]}

    return run


def _presses(package: Any) -> list[str]:
    return [name for name in vars(package) if name.endswith("Press") and name not in ("BasePress", "ScorerPress")]


def at(model: Any, method: Any, item: dict[str, Any], length: int) -> dict[str, Any]:
    """What is known and what it costs after `length` tokens of a text."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import DynamicCache

    ids = torch.tensor([item["ids"][: length + item["decoded"]]])
    before = length - item["scored"]
    cache = DynamicCache()

    def forward(start: int, end: int) -> Any:
        # the cache is shorter than the text, so positions are given
        return model.model(
            input_ids=ids[:, start:end],
            past_key_values=cache,
            position_ids=torch.arange(start, end)[None],
            use_cache=True,
        ).last_hidden_state[0]

    begun = time.perf_counter()
    with method(model):
        prefilled = forward(0, before)[-1:]
    states = torch.cat([prefilled, forward(before, length)[:-1]])
    seconds = time.perf_counter() - begun
    loss = float(cross_entropy(model.lm_head(states).float(), ids[0, before:length]))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    singles = []
    for place in range(length, length + item["decoded"]):
        begun = time.perf_counter()
        model.lm_head(forward(place, place + 1))
        singles.append(time.perf_counter() - begun)
    right: list[float | None] = [None] * len(item["questions"])
    said = list(right)
    for i, question in enumerate(item["questions"]):
        if question["position"] >= length:
            continue
        asked = torch.tensor([question["ids"]])
        start = length + item["decoded"]
        logits = model(
            input_ids=asked,
            past_key_values=copy.deepcopy(cache),
            position_ids=torch.arange(start, start + asked.shape[1])[None],
            logits_to_keep=1,
        ).logits[0, -1]
        right[i] = float(logits[item["answers"]].argmax() == i)
        said[i] = float(logits.argmax() == item["answers"][i])
    return {
        "loss": loss,
        "seconds": seconds,
        "decode_seconds": median(singles),
        "held": held,
        "right": right,
        "said": said,
    }
