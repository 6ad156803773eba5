"""Texts to vectors in batches with little padding: the work of `Embedder.encode`.

Knows: rows of tokens, their lengths, the cost of a batch, and running out of memory. Does not know: which modules turn
a row into a vector.

On texts of mixed length plain encoding loses time to padding (a quarter of all positions on `pydocs`, since characters
predict tokens poorly) and to the mask that padding needs. Here rows are tokenized first and grouped by their length in
tokens, so that hardly any padding is left; the rest is on the right, where a causal model needs no mask for it. The
vectors are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers.util import truncate_embeddings

from broadsheet.console import progress as progress_bar
from broadsheet.models import halve_on_oom

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from broadsheet.embed.base import Embedder
    from broadsheet.embed.modules.encoder import CausalEncoder

_TOKENIZED_AT_ONCE = 1024  # texts; a tokenizer's own records take far more room than its ids
_BUDGET = {"cpu": 1024, "mps": 4096, "cuda": 16384}  # tokens; on CPUs more of them leave the cache
_OVERHEAD = {"cpu": 48, "mps": 256, "cuda": 1024}  # the cost of a batch besides its tokens, in tokens


def encode_texts(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    batch_tokens: int | None = None,
    max_texts: int | None = None,
    normalize: bool = False,
    dimensions: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Embed texts in batches of like length; a batch that does not fit into memory is halved and run again.

    Args:
        embedder: its first module makes rows of tokens, the others vectors of them. It is set to eval mode.
        texts: in any order; all their ids are held in memory (see `streaming` for more texts than that).
        prompt: put before each text, inside the encoder's template.
        batch_tokens: padded tokens in a batch; by default 1,024 on CPU, the fastest there, and 16,384 on CUDA. A longer
            text makes a batch of its own.
        max_texts: the largest number of texts in a batch.
        normalize: to unit length.
        dimensions: number of first dimensions of a vector that are kept, before normalizing.
        progress: show a bar on stderr.

    Returns:
        (texts, dimensions), in the order of `texts`, on the embedder's device and in its dtype. In float32 the same
        whatever the batches, to 2e-6 of a vector's largest entry.

    Raises:
        InputError: a text is too long and the encoder's `truncate` is `"error"`.
        ValueError: a budget below 1.

    Example:
        encode_texts(embedder("default"), ["How are you?", "Fine, thanks."], normalize=True)
    """
    rows = _rows(embedder.encoder, texts, prompt)
    width = embedder.get_embedding_dimension() or 0
    if not rows:
        return torch.empty(0, min(width, dimensions or width), device=embedder.device)
    kind = embedder.device.type
    batches = plan_batches(
        [len(row) for row in rows],
        _BUDGET.get(kind, _BUDGET["cuda"]) if batch_tokens is None else batch_tokens,
        max_texts=max_texts,
        overhead=_OVERHEAD.get(kind, _OVERHEAD["cuda"]),
    )
    embedder.eval()

    def run(batch: Sequence[int]) -> list[Tensor]:
        features = features_of(embedder.encoder, [rows[i] for i in batch], prompt)
        with torch.inference_mode():
            vectors: Tensor = embedder(features)["sentence_embedding"]
            if dimensions is not None:
                vectors = truncate_embeddings(vectors, dimensions)
            return list(torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors)

    found: Tensor | None = None
    with progress_bar("texts", total=len(texts), shown=progress) as bar:
        for batch in batches:
            vectors = torch.stack(halve_on_oom(run, batch))
            if found is None:
                found = torch.empty(len(texts), vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
            found[torch.tensor(batch, device=found.device)] = vectors
            bar.advance(bar.task_ids[0], len(batch))
    assert found is not None
    return found


def plan_batches(
    lengths: Sequence[int], budget: int, *, max_texts: int | None = None, overhead: int = 48
) -> list[list[int]]:
    """Group rows so that the sum of padded tokens and the batches' own cost is least.

    Lengths are cut into ranges, each padded to its longest row and split into batches of like size. A batch costs its
    padded tokens and `overhead` more; the ranges that cost least are found by dynamic programming over the distinct
    lengths. So rows of equal length share a batch, and a range includes shorter ones only where a batch of their own
    would cost more than their padding.

    Args:
        lengths: tokens of each row, at least 1.
        budget: padded tokens in a batch; a longer row makes a batch of its own.
        max_texts: rows in a batch.
        overhead: of a batch, in tokens.

    Returns:
        Batches of indices into `lengths`, every index once, longest rows first, so that running out of memory shows at
        the start.

    Raises:
        ValueError: a budget or a number of rows below 1.

    Example:
        >>> plan_batches([50, 9, 50, 10, 51], budget=120, overhead=5)
        [[4], [0, 2], [3, 1]]
    """
    if budget < 1 or (max_texts is not None and max_texts < 1):
        raise ValueError(f"got a budget of {budget} tokens and {max_texts} texts; expected 1 or more")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    distinct, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    rows_up_to = np.concatenate([[0], np.cumsum(counts)])  # how many rows have one of the first k lengths
    fit = np.maximum(1, np.minimum(budget // distinct, max_texts or budget)) if len(distinct) else distinct

    cost = np.zeros(len(distinct) + 1)
    begins = np.zeros(len(distinct) + 1, dtype=np.int64)  # of the range that ends with the first k lengths
    for end in range(1, len(distinct) + 1):
        rows = rows_up_to[end] - rows_up_to[:end]
        costs = cost[:end] + rows * distinct[end - 1] + overhead * -(-rows // fit[end - 1])
        begins[end] = int(costs.argmin())
        cost[end] = costs[begins[end]]

    batches: list[list[int]] = []
    end, start = len(distinct), 0
    while end:
        rows = int(rows_up_to[end] - rows_up_to[begins[end]])
        parts = -(-rows // int(fit[end - 1]))
        batches.extend(part.tolist() for part in np.array_split(order[start : start + rows], parts))
        start, end = start + rows, int(begins[end])
    return batches


def features_of(
    encoder: CausalEncoder, rows: Sequence[Sequence[int] | NDArray[np.int32]], prompt: str | None = None
) -> dict[str, object]:
    """The features of `CausalEncoder.preprocess`, from rows: on the encoder's device, and padded on the right.

    A causal model then runs without a mask, whichever side its tokenizer pads on.
    """
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids = torch.full(mask.shape, int(encoder.tokenizer.pad_token_id))
    ids[mask] = torch.from_numpy(np.concatenate(rows)).long()
    features: dict[str, object] = {
        "input_ids": ids.to(encoder.device),
        "attention_mask": mask.long().to(encoder.device),
        "modality": "text",
    }
    if prompt:
        features["prompt_length"] = encoder.prompt_length(prompt)
    return features


def _rows(encoder: CausalEncoder, texts: Sequence[str], prompt: str | None) -> list[NDArray[np.int32]]:
    """Ids of each text, four bytes a token."""
    # With truncate="error" the encoder reports the index of a text that is too long: it has to see them all.
    step = max(1, len(texts)) if encoder.truncate == "error" else _TOKENIZED_AT_ONCE
    return [
        np.asarray(row, dtype=np.int32)
        for start in range(0, len(texts), step)
        for row in encoder.rows(texts[start : start + step], prompt)
    ]
