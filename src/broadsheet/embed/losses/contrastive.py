"""Contrast between queries and passages as an objective for `fit`: batches, chunks, InfoNCE and NT-Xent.

Knows: items of texts, an `Embedder`, its vectors. Does not know: generation, optimizers, steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.embed.losses.ntxent import cosines, minus_distances, nt_xent, unit_rows
from broadsheet.embed.losses.settings import constructor_settings
from broadsheet.seeds import seeded
from broadsheet.training import memory
from broadsheet.training.distributed import gather_rows
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from broadsheet.embed.base import Embedder

ContrastKind = Literal["ntxent-l2", "ntxent-cos", "infonce", "own"]
Item = Mapping[str, Any]


class ContrastiveObjective(Objective, nn.Module):
    """Each query's positive against the other passages of the batch, by cosine or distance over a temperature.

    Inputs: items `{"query": str, "positive": str, "negatives": [str, …]}`; negatives may be missing.
    Relation: with "infonce" equal to sentence-transformers' `MultipleNegativesRankingLoss(scale=1 / temperature)`, and
        computed in chunks like its cached variant. ULLME's GRL adds two terms.

    Args:
        embedder: the model to train; its prompts `"query"` and `"document"` are put before the texts that are embedded.
        contrastive: "infonce", queries against all passages by cosine; "own", each query against its own candidates
            alone, for tasks whose labels repeat over the batch (classification); "ntxent-cos", "ntxent-l2": NT-Xent
            over the pooled set of queries and passages, by cosine or by minus the distance of unit vectors.
        temperature: τ.
        hard: of "ntxent-…", count only negatives that are at least this similar (cos) or at most this far (l2). None
            counts all.
        chunk_size: queries whose texts are read at once; None: all. The gradients are those of the whole batch. As many
            chunks as fit in half of the memory that is free at first are kept for the backward pass; the others are
            read again then, with the same random numbers (a gradient cache, Gao et al. 2021), which changes no bit.
        gather_across_devices: compare with the passages of all processes: the loss of one process with all rows.

    Raises:
        InputError: a setting that is out of range.

    Example:
        fit(model, items, ContrastiveObjective(model, temperature=0.02), "runs/infonce", steps=100)
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        contrastive: ContrastKind = "infonce",
        temperature: float = 0.05,
        hard: float | None = None,
        chunk_size: int | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        if contrastive not in get_args(ContrastKind):
            raise InputError(f"got contrastive {contrastive!r}; expected one of {', '.join(get_args(ContrastKind))}")
        if not temperature > 0:
            raise InputError(f"got temperature {temperature}; expected a number above 0")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"got chunk_size {chunk_size}; expected 1 or more queries, or None for whole batches")
        self.contrastive = contrastive
        self.temperature = temperature
        self.hard = hard
        self.chunk_size = chunk_size
        self.gather_across_devices = gather_across_devices
        self._embedder = [embedder]  # in a list, so that it is no submodule
        self._fitting: float | None = None  # tokens whose activations may be kept, known from the first step on
        self._kept = True  # those of the chunk that is being read

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as a run records them."""
        return constructor_settings(self)

    # Items to tensors

    def collate(self, items: Sequence[Item | tuple[int, Item]]) -> dict[str, Tensor]:
        """Items to one batch; passages stand by query, the positive first.

        Returns, with P the passages of all queries together:
            query_input_ids, query_attention_mask: (batch, length); passage_…: (P, length).
            counts: (batch,) passages of each query. labels: (batch,), passage_labels: (P,): equal for a query and the
                positives that have the same text.

        Raises:
            InputError: an item without query or positive.
        """
        return self.collate_rows([checked(item[1] if isinstance(item, tuple) else item) for item in items])

    def collate_rows(self, rows: Sequence[tuple[str, list[str]]]) -> dict[str, Tensor]:
        """As `collate`, of queries with their passages."""
        # Queries with one positive text share a label, so that they are no negatives of each other.
        labels = {positive: _label(positive) for _, (positive, *_) in rows}
        of_passages = [
            labels[text] if text in labels else _label(query, str(i), text)
            for query, passages in rows
            for i, text in enumerate(passages)
        ]
        return {
            **self._encoded("query", [query for query, _ in rows]),
            **self._encoded("passage", [text for _, passages in rows for text in passages]),
            "counts": torch.tensor([len(passages) for _, passages in rows]),
            "labels": torch.tensor([labels[positive] for _, (positive, *_) in rows]),
            "passage_labels": torch.tensor(of_passages),
        }

    def _prompt(self, kind: str) -> str | None:
        return self._embedder[0].prompts.get("query" if kind == "query" else "document") or None

    def _encoded(self, kind: str, texts: Sequence[str]) -> dict[str, Tensor]:
        encoder = self._embedder[0].encoder
        padded = encoder.pad(encoder.rows(texts, self._prompt(kind)))
        return {f"{kind}_{name}": value for name, value in padded.items()}

    # Tensors to a loss

    def loss(
        self, embedder: Embedder, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """`loss`, a scalar."""
        read = self.read(embedder, batch)
        with torch.autocast(read["query"].device.type, enabled=False):
            return {"loss": self.contrast(read["query"], read["passage"], batch)}

    def forward(self, embedder: Embedder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `loss`, for wrappers that call modules."""
        return self.loss(embedder, batch)

    def read(self, embedder: Embedder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Vectors of `query` (batch, width) and `passage` (P, width), chunk by chunk, in float32 at least."""
        parts: dict[str, list[Tensor]] = {}
        tokens = 0
        for chunk in _chunks(batch, self.chunk_size):
            tokens += _tokens(chunk)
            self._kept = self.chunk_size is None or tokens <= self._most_tokens(embedder, chunk)
            for name, values in self.read_chunk(embedder, chunk).items():
                parts.setdefault(name, []).append(values if values.dtype == torch.float64 else values.float())
        return {name: torch.cat(values) for name, values in parts.items()}

    def read_chunk(self, embedder: Embedder, chunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of `read` that one chunk gives."""
        return {
            kind: self._through(
                partial(_embed, embedder, self._prompt(kind)),
                chunk[f"{kind}_input_ids"],
                chunk[f"{kind}_attention_mask"],
            )
            for kind in ("query", "passage")
        }

    def _most_tokens(self, embedder: Embedder, chunk: Mapping[str, Tensor]) -> float:
        """Tokens of a batch whose activations fit in half of the free memory, by what those of the first chunk take."""
        if self._fitting is None and torch.is_grad_enabled():
            room, self._kept = memory.free(chunk["query_input_ids"].device) / 2, True
            with seeded(0):  # what is drawn meanwhile is drawn again
                size = memory.for_backward(partial(self.read_chunk, embedder, chunk), embedder.parameters())
            self._fitting = room / max(1, size) * _tokens(chunk)
        return self._fitting or 0.0

    def _through(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The function's value; of a chunk that is not kept the backward pass computes it again."""
        if self._kept or not torch.is_grad_enabled():
            return function(*tensors)
        return cast(Tensor, checkpoint(function, *tensors, use_reentrant=False))

    def contrast(self, query: Tensor, passages: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss from vectors, (batch, width) and (P, width), and the batch's counts and labels."""
        counts, labels, passage_labels = batch["counts"], batch["labels"], batch["passage_labels"]
        first = counts.cumsum(0) - counts  # (batch,) index of each query's positive among the passages
        rows = torch.arange(len(counts), device=counts.device)
        if self.contrastive == "own":
            others = rows.repeat_interleave(counts)[None, :] != rows[:, None]
            return info_nce(query, passages, first, self.temperature, others)
        if self.contrastive == "infonce":
            if self.gather_across_devices:
                passages, offset = gather_rows(passages)
                passage_labels, _ = gather_rows(passage_labels)
                first = first + offset
            same = labels[:, None] == passage_labels[None, :]
            same[rows, first] = False
            return info_nce(query, passages, first, self.temperature, same)
        pooled, pooled_labels = torch.cat([query, passages]), torch.cat([labels, passage_labels])
        if self.gather_across_devices:
            # Every process computes the whole loss; averaging the gradients over processes then gives its gradient.
            pooled, pooled_labels = gather_rows(pooled)[0], gather_rows(pooled_labels)[0]
        far = self.contrastive == "ntxent-l2"
        similarity = minus_distances(pooled) if far else cosines(pooled)
        easy = None if self.hard is None else similarity < (-self.hard if far else self.hard)
        return nt_xent(similarity / self.temperature, pooled_labels, easy)


def info_nce(
    query: Tensor, passages: Tensor, positives: Tensor, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """−log softmax of each query's positive among the passages by cosine / τ; mean over queries, in float32 at least.

    Args:
        query, passages: (batch, width), (passages, width).
        positives: (batch,) index of each query's positive among the passages.
        excluded: (batch, passages), True for passages that a query is not compared with.
    """
    with torch.autocast(query.device.type, enabled=False):  # it would round cosines to two digits
        scores = unit_rows(query) @ unit_rows(passages).T / temperature  # (batch, passages)
    if excluded is not None:
        scores = scores.masked_fill(excluded, -torch.inf)
    return cross_entropy(scores, positives)


def checked(item: Item) -> tuple[str, list[str]]:
    """The query of an item, and its passages, the positive first.

    Raises:
        InputError: it has no query or no positive.
    """
    query, positive, negatives = item.get("query"), item.get("positive"), item.get("negatives") or []
    if not (isinstance(query, str) and isinstance(positive, str)):
        raise InputError(f"got an item with {', '.join(item)}; expected 'query', 'positive' and perhaps 'negatives'")
    return query, [positive, *([negatives] if isinstance(negatives, str) else negatives)]


def _label(*parts: str) -> int:
    """A whole number that is the same in every process."""
    return int(fingerprint(list(parts)), 16) >> 1


def _chunks(batch: Mapping[str, Tensor], size: int | None) -> Iterator[dict[str, Tensor]]:
    """The batch in parts of `size` queries, each with its passages and written texts, without columns of padding."""
    queries = len(batch["counts"])
    rows = {"query": torch.ones_like(batch["counts"]), "passage": batch["counts"]}
    marks = {"query": "query_attention_mask", "passage": "passage_attention_mask"}
    if "written" in batch:
        rows["written"], marks["written"] = batch["written"], "written_labels"
    ends = {kind: [0, *counts.cumsum(0).tolist()] for kind, counts in rows.items()}
    for start in range(0, queries, size or queries):
        chunk: dict[str, Tensor] = {}
        for kind, bounds in ends.items():
            where = slice(bounds[start], bounds[min(queries, start + (size or queries))])
            ids, marked = batch[f"{kind}_input_ids"][where], batch[marks[kind]][where]
            used = (marked != (-100 if kind == "written" else 0)).any(0).nonzero()[:, 0]
            # The prompt of a written text has no labels and stands first.
            columns = slice(0 if kind == "written" else int(used[0]), int(used[-1]) + 1)
            chunk[f"{kind}_input_ids"], chunk[marks[kind]] = ids[:, columns], marked[:, columns]
        if "written" in batch:
            chunk["written"] = batch["written"][start : start + (size or queries)]
        yield chunk


def _tokens(chunk: Mapping[str, Tensor]) -> int:
    """Tokens of a chunk, its padding among them."""
    return sum(ids.numel() for name, ids in chunk.items() if name.endswith("input_ids"))


def _embed(embedder: Embedder, prompt: str | None, ids: Tensor, mask: Tensor) -> Tensor:
    """Sentence vectors; the mask is copied, since pooling without the prompt changes it."""
    features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.clone()}
    if prompt:
        features["prompt_length"] = embedder.encoder.prompt_length(prompt)
    return cast(Tensor, embedder(features)["sentence_embedding"])
