"""LM-Infinite's window and first tokens as one compiled FlexAttention kernel, and whether it is faster on a machine.

Knows: rotated queries, keys in order, logits of the first tokens. Does not know: rotation, layers, what is remembered.

The kernel has one shape, a tile of `TILE` queries and the window behind them, so that prompts of any length share one
compilation. The first tokens are columns in front whose logits are handed in: a query meets them at another angle than
it meets its window, and a kernel has one query.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from broadsheet import cache
from broadsheet.attend.kernels.blocksparse import listed
from broadsheet.console import InputError, say

TILE = 1024  # queries of a kernel call
BLOCK = 128  # queries, and keys, that the kernel skips or reads together

_CHOSEN: dict[str, bool] = {}  # what `faster` has answered in this process


def lambda_tiles(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    first_logits: Tensor | None,
    first_values: Tensor,
    *,
    n_local: int,
    seen: int,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Attention of new tokens to the first ones of their text and to the last `n_local`, each token itself among them.

    Args:
        query: (rows, heads, new, head_dim), rotated.
        keys, values: (rows, kv_heads, kept + new, head_dim), rotated, in order; the last are the queries' own.
        first_logits: (rows, heads, new, n_global), capped and scaled, the last of the first tokens in front; None if
            all of them are still in the window.
        first_values: (rows, kv_heads, n_global, head_dim), in the same order.
        n_local: tokens of the window.
        seen: tokens read before the new ones; at most `n_local` - 1 of them are among the keys.
        scaling, softcap: as in `attention_part`.

    Returns:
        (rows, heads, new, head_dim).

    Raises:
        InputError: the kernel cannot be compiled for this device or dtype.
    """
    new, n_global, behind = query.shape[2], first_values.shape[2], n_local - 1
    absent, spare = behind - (keys.shape[2] - new), -new % TILE
    query = functional.pad(query, (0, 0, 0, spare))
    keys, values = (functional.pad(each, (0, 0, absent, spare)) for each in (keys, values))
    if first_logits is None:
        first_logits = torch.full((*query.shape[:3], n_global), -torch.inf, device=query.device)
    else:
        first_logits = functional.pad(first_logits, (0, 0, 0, spare), value=-torch.inf)
    blank = keys.new_zeros(first_values.shape)
    outputs = []
    for start in range(0, new, TILE):
        tile, columns = slice(start, start + TILE), slice(start, start + TILE + behind)
        output = _run(
            query[:, :, tile],
            torch.cat((blank, keys[:, :, columns]), dim=2),
            torch.cat((first_values, values[:, :, columns]), dim=2),
            score_mod=_score_mod(first_logits[:, :, tile].contiguous(), n_global, softcap),
            block_mask=block_mask(
                n_global, n_local, max(0, absent - start), min(seen + start, n_local + n_global), query.device
            ),
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2)[:, :, :new]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def block_mask(n_global: int, n_local: int, absent: int, seen: int, device: torch.device) -> BlockMask:
    """The Λ mask of a tile, its blocks found by arithmetic instead of by trying all pairs.

    Column j < `n_global` is first token `n_global` - 1 - j; column `n_global` + c is the token
    c - (`n_local` - 1) places after the first query.

    Args:
        n_global, n_local: first tokens and tokens of the window.
        absent: columns of the window before the start of the text.
        seen: tokens before the tile; any number from `n_local` + `n_global` on means the same.
    """
    # Compiled code compares with tensors: an int would be built into it, and compiled again for the next one.
    absent_, seen_ = (torch.tensor(number, device=device) for number in (absent, seen))

    def visible(batch: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        window = column - n_global
        distance = query + (n_local - 1) - window
        near = (distance >= 0) & (distance < n_local) & (window >= absent_)
        far = seen_ + query - (n_global - 1 - column) >= n_local
        return torch.where(column < n_global, far, near)

    columns = n_global + n_local - 1 + TILE
    # The first and the last query and column of every block; columns counted from the window's first.
    low = torch.arange(0, TILE, BLOCK, device=device)[:, None]
    high = low + BLOCK - 1
    left = torch.arange(0, columns, BLOCK, device=device)[None] - n_global
    right = (left + BLOCK - 1).clamp_max(columns - n_global - 1)
    near = (right >= low.clamp_min(absent)) & (left < high + n_local)
    far = (left < 0) & (seen + high + right.clamp_max(-1) + 1 >= n_local)
    full = (left >= high) & (right < low + n_local) & (left >= max(0, absent)) & (right - left == BLOCK - 1)
    part = (near | far) & ~full
    return BlockMask.from_kv_blocks(
        *listed(part[None, None]),
        *listed(full[None, None]),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(TILE, columns),
    )


def _score_mod(first_logits: Tensor, n_global: int, softcap: float | None) -> Callable[..., Tensor] | None:
    """Put the logits of the first tokens in place, and cap the others."""
    if not n_global and not softcap:
        return None

    def score(logit: Tensor, batch: Tensor, head: Tensor, query: Tensor, column: Tensor) -> Tensor:
        if softcap:
            logit = torch.tanh(logit / softcap) * softcap
        if n_global:
            first = first_logits[batch, head, query, column.clamp(max=n_global - 1)]
            logit = torch.where(column < n_global, first, logit)
        return logit

    return score


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    # With fullgraph, a shape too many is an error and not a silent fall back to the uncompiled function.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _run(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    try:
        with torch._dynamo.config.patch(recompile_limit=64):  # one for every batch size and dtype of a process
            return _compiled()(query, *args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"the FlexAttention kernel cannot be compiled for {query.dtype} on {query.device.type} ({reason}); "
            "expected a device and compiler that can, or backend='chunked'"
        ) from error


def faster(device: torch.device, shape: dict[str, Any], chunked: Callable[[], Any], flex: Callable[[], Any]) -> bool:
    """Whether the kernel takes less time than chunks on this machine: measured once, reported, kept in a file.

    Args:
        device: where both run; the name of a GPU, or the processor's, is part of what is kept.
        shape: what else the answer depends on, as JSON can express it.
        chunked, flex: run the same attention either way. Where `flex` raises an InputError it is not faster.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    asked = {"device": name, "torch": torch.__version__, **shape}
    key = cache.fingerprint(asked)
    if key in _CHOSEN:
        return _CHOSEN[key]
    path = cache.home() / "attend_flex.json"
    with cache.locked(path):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if key not in known:
            chunks = _seconds(chunked, device)
            try:
                kernel, reason = _seconds(flex, device), None
            except InputError as error:
                kernel, reason = None, str(error)
            known[key] = {**asked, "seconds": {"chunks": chunks, "kernel": kernel}, "reason": reason}
            with cache.atomic_write(path) as file:
                json.dump(known, file, indent=1)
    seconds, reason = known[key]["seconds"], known[key]["reason"]
    wins = reason is None and seconds["kernel"] < seconds["chunks"]
    why = reason or f"the kernel took {1000 * seconds['kernel']:.1f} ms, chunks {1000 * seconds['chunks']:.1f} ms"
    say(f"prompts attend by {'the compiled kernel' if wins else 'chunks'} on {name}: {why} (kept in {path})")
    _CHOSEN[key] = wins
    return wins


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The fastest of three runs, after one that compiles and warms up."""
    taken = []
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
