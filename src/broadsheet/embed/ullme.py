"""ULLME's GRL (2024, arXiv:2408.03402): train one model to embed and to write, and to be of one mind in both.

Knows: queries with their passages, an `Embedder` and its causal LM, the three losses and their weights, chunks. Does
not know: optimizers, steps (`fitting`), the losses' formulas (`ntxent`, `infonce`, `preference`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from broadsheet import models
from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.embed.data.writing import PROMPT, PassageWriter, read_written
from broadsheet.embed.losses.infonce import cosine_cross_entropy
from broadsheet.embed.losses.ntxent import Similarity, label_ntxent
from broadsheet.embed.losses.preference import Direction, Preference, consistency_kl, preference_loss
from broadsheet.models import adapters
from broadsheet.training.distributed import gather_rows
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from broadsheet.embed.base import Embedder

Contrastive = Literal["ntxent-l2", "ntxent-cos", "infonce", "own"]
Generation = Preference | Literal["sft"]
Item = Mapping[str, Any]
_SETTINGS = (
    "contrastive",
    "generation",
    "consistency",
    "weights",
    "temperature",
    "generation_temperature",
    "detach_generator",
    "beta",
    "label_smoothing",
    "hard",
    "chunk_size",
    "gather_across_devices",
    "seed",
)


class GRL(Objective, nn.Module):
    """Contrastive learning, generation, and their agreement about the same passages: an objective for `fit`.

        loss = λ_contrastive · contrastive + λ_generation · generation + λ_consistency · KL

    The embedder reads with its own attention (ULLME: bidirectional, mean over tokens), the same weights write with
    causal attention. A projector Linear–ReLU–Linear stands between the embedding and the contrastive loss while
    training, and is left behind: what is evaluated and saved is the unprojected vector, which the KL is taken of too.

    Use when: a model has to embed and to go on generating, or rankings by the generator are good enough to teach the
        embedding. Training reads each candidate once as an embedder and once as a writer (and without gradient as the
        reference): about three times the work of the contrastive part alone.
    Prefer a plain contrastive loss when: only the embedding is wanted, and time is what limits.
    Inputs: items `{"query": str, "positive": str, "negatives": [str, …]}`; negatives may be missing where the
        generation loss is "sft" or None.
    Relation: contrastive part = NT-Xent over the pooled set of queries, positives and negatives, by Euclidean distance
        of unit vectors (the authors' code) or cosine; or InfoNCE. Generation = supervised, or DPO and its relatives
        with the first negative as the rejected text.

    Args:
        embedder: what is trained; its prompts `"query"` and `"document"` are put before the texts that are embedded.
            With `include_prompt=False` in its pooling the instruction is seen and not pooled, as in the paper.
        contrastive: "ntxent-l2", "ntxent-cos"; "infonce", queries against all passages by cosine; "own", each query
            against its own candidates alone, for tasks whose labels repeat over the batch (classification).
        generation: "sft" (−mean log-probability of the positive), "sigmoid" (DPO), "hinge", "ipo", "kto_pair", or None.
        consistency: "gen-rt" for KL(P_gen ‖ P_rt), the authors' code; "rt-gen" for KL(P_rt ‖ P_gen), the paper's
            formula; None.
        weights: λ of the three. The authors: 1, 1, 1.
        temperature: τ of the contrastive loss and of P_rt. The authors: 0.05.
        generation_temperature: of P_gen, over mean log-probabilities per token. The authors: 1.
        detach_generator: whether the KL trains the embedding alone, as in the code; False trains both.
        beta, label_smoothing: of the preference loss. The authors: 0.1, 0.
        reference: "adapter": the model with its LoRA adapter switched off; "free": none; or a frozen model.
        prompt: what stands before a passage that is written; `{query}` is replaced.
        score_prompt: count the prompt's tokens as well, as the authors do: a constant in the sum over tokens, which
            their mean is not.
        hard: see `label_ntxent`; the authors' miner has 0.5.
        projector: False compares the embeddings themselves.
        chunk_size: queries whose texts are read at once; None: all. Chunks are read again during the backward pass,
            with the same random numbers (a gradient cache, Gao et al. 2021), so that memory is that of one chunk, and
            the gradients of every term are those of the whole batch.
        gather_across_devices: compare with the passages of all processes: the loss of one process with all rows.
        seed: of the projector.

    Raises:
        InputError: a setting that cannot be.

    Example:
        model = broadsheet.embed.embedder("default", "mean", attention="bidirectional")
        fit(model, items, GRL(model, generation="sigmoid", consistency="gen-rt"), out="runs/grl", steps=100)

    Source: arXiv:2408.03402; authors' code nlp-uoregon/ullme, whose paper-era trainer sums the three losses but follows
    the contrastive gradient alone, and whose later one weighs generation and KL by the number of chunks: neither here.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        contrastive: Contrastive = "ntxent-l2",
        generation: Generation | None = "sigmoid",
        consistency: Direction | None = "gen-rt",
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        temperature: float = 0.05,
        generation_temperature: float = 1.0,
        detach_generator: bool = True,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        reference: Literal["adapter", "free"] | PreTrainedModel = "adapter",
        prompt: str = PROMPT,
        score_prompt: bool = False,
        hard: float | None = None,
        projector: bool = True,
        chunk_size: int | None = None,
        gather_across_devices: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.contrastive = _one_of("contrastive", contrastive, get_args(Contrastive))
        self.generation = _one_of("generation", generation, ("sft", *get_args(Preference), None))
        self.consistency = _one_of("consistency", consistency, (*get_args(Direction), None))
        if isinstance(reference, str):
            _one_of("reference", reference, ("adapter", "free"))
        if generation == "kto_pair" and isinstance(reference, str) and reference == "free":
            raise InputError("kto_pair compares with a reference model; expected reference 'adapter' or a model")
        if len(weights) != 3 or min(weights) < 0 or not any(weights):
            raise InputError(f"got weights {weights}; expected three numbers from 0, one of them above 0")
        if min(temperature, generation_temperature, beta) <= 0:
            raise InputError(
                f"got temperatures {temperature} and {generation_temperature}, beta {beta}; expected numbers above 0"
            )
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"got chunk_size {chunk_size}; expected 1 or more, or None for whole batches")
        self.weights = tuple(weights)
        self.temperature = temperature
        self.generation_temperature = generation_temperature
        self.detach_generator = detach_generator
        self.beta = beta
        self.label_smoothing = label_smoothing
        # A reference model is no part of what is trained, moved or saved: not a submodule.
        self._reference = [reference]
        self.hard = hard
        self.chunk_size = chunk_size
        self.gather_across_devices = gather_across_devices
        self.seed = seed
        self.projector = _projector(embedder, seed) if projector else nn.Identity()
        self.writer = PassageWriter(embedder.encoder, prompt, score_prompt=score_prompt)
        self._embedder = [embedder]

    @property
    def reference(self) -> Literal["adapter", "free"] | PreTrainedModel:
        """What the preference loss compares with."""
        return self._reference[0]

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that a run is told apart by."""
        given = self.reference
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            "prompt": self.writer.prompt,
            "score_prompt": self.writer.score_prompt,
            "projector": isinstance(self.projector, nn.Sequential),
            "reference": given if isinstance(given, str) else models.fingerprint(given),
        }

    # Items to tensors

    def collate(self, items: Sequence[Item | tuple[int, Item]]) -> dict[str, Tensor]:
        """Items to one batch; passages stand by query, the positive first.

        Returns, with P the passages and W the written texts of all queries together:
            query_input_ids, query_attention_mask: (batch, length); passage_…: (P, length).
            counts: (batch,) passages of each query. labels: (batch,), passage_labels: (P,): equal for a query and the
                positives that have the same text.
            written_input_ids, written_labels: (W, length), right-padded; written: (batch,) texts of each query.

        Raises:
            InputError: an item without query or positive, or without the negatives that the losses need.
        """
        rows = [_checked(item[1] if isinstance(item, tuple) else item) for item in items]
        if self._pairs and not all(negatives for *_, negatives in rows):
            raise InputError(f"generation {self.generation!r} compares with a negative; an item has none: add one")
        passages = [[positive, *negatives] for _, positive, negatives in rows]
        # Queries with one positive text share a label, so that they are no negatives of each other.
        labels = {positive: _label(positive) for _, positive, _ in rows}
        of_passages = [
            labels[text] if text in labels else _label(row[0], str(i), text)
            for row, group in zip(rows, passages, strict=True)
            for i, text in enumerate(group)
        ]
        batch = {
            **self._encoded("query", [query for query, *_ in rows]),
            **self._encoded("passage", [text for group in passages for text in group]),
            "counts": torch.tensor([len(group) for group in passages]),
            "labels": torch.tensor([labels[positive] for _, positive, _ in rows]),
            "passage_labels": torch.tensor(of_passages),
        }
        if self._writes:
            kept = [group if self._all else group[: 1 + self._pairs] for group in passages]
            pairs = [(row[0], text) for row, group in zip(rows, kept, strict=True) for text in group]
            ids, targets = self.writer.batch(pairs)
            batch |= {
                "written_input_ids": ids,
                "written_labels": targets,
                "written": torch.tensor([len(group) for group in kept]),
            }
        return batch

    @property
    def _pairs(self) -> bool:
        """Whether the first negative is compared with the positive."""
        return self.generation not in (None, "sft") and self.weights[1] > 0

    @property
    def _all(self) -> bool:
        """Whether all candidates are written."""
        return self.consistency is not None and self.weights[2] > 0

    @property
    def _writes(self) -> bool:
        return self._all or (self.generation is not None and self.weights[1] > 0)

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
        """ "loss", and its terms "contrastive", "generation", "consistency" before their weights, as far as they count.

        Raises:
            InputError: the reference is the model without its adapter, and it has none.
        """
        read = self._read(embedder, batch)
        with torch.autocast(read["query"].device.type, enabled=False):
            terms: dict[str, Tensor] = {}
            if self.weights[0]:
                terms["contrastive"] = self._contrastive(read["query"], read["passage"], batch)
            if self.generation is not None and self.weights[1]:
                terms["generation"] = self._generation(read, batch)
            if self._all:
                terms["consistency"] = self._consistency(read, batch["counts"])
            weights = dict(zip(("contrastive", "generation", "consistency"), self.weights, strict=True))
            loss = cast(Tensor, sum(weights[name] * term for name, term in terms.items()))
            return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def forward(self, embedder: Embedder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `loss`, for wrappers that call modules."""
        return self.loss(embedder, batch)

    def _read(self, embedder: Embedder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Vectors of queries and passages, and log-probabilities of what is written, chunk by chunk, in float32."""
        parts: dict[str, list[Tensor]] = {}
        for chunk in _chunks(batch, self.chunk_size):
            for kind in ("query", "passage"):
                embed = partial(_embed, embedder, self._prompt(kind))
                vectors = self._through(embed, chunk[f"{kind}_input_ids"], chunk[f"{kind}_attention_mask"])
                parts.setdefault(kind, []).append(vectors)
            if self._writes:
                ids, labels = chunk["written_input_ids"], chunk["written_labels"]
                read = partial(read_written, embedder.encoder.model, autocast=embedder.encoder.autocast)
                parts.setdefault("sums", []).append(self._through(read, ids, labels))
                parts.setdefault("tokens", []).append((labels[:, 1:] != -100).sum(1).clamp_min(1))
                if self._pairs and self.reference != "free":
                    parts.setdefault("reference", []).append(self._referred(embedder, ids, labels))
        return {name: torch.cat([_wide(each) for each in values]) for name, values in parts.items()}

    def _through(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The function's value; with chunks it is computed again, with the same random numbers, when gradients come."""
        if self.chunk_size is None or not torch.is_grad_enabled():
            return function(*tensors)
        return cast(Tensor, checkpoint(function, *tensors, use_reentrant=False))

    @torch.no_grad()
    def _referred(self, embedder: Embedder, ids: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities by the reference model."""
        if not isinstance(self.reference, str):
            return read_written(self.reference.eval(), ids, labels)
        model = embedder.encoder.model
        if not adapters.has_adapter(model):
            raise InputError(
                "the reference is the model without its adapter, and it has none; train with method 'lora', or give "
                "reference='free' or a frozen model"
            )
        training = model.training
        with adapters.disabled(model):
            model.eval()
            try:
                return read_written(model, ids, labels, autocast=embedder.encoder.autocast)
            finally:
                model.train(training)

    def _contrastive(self, query: Tensor, passages: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        query, passages = self.projector(query), self.projector(passages)
        counts, labels, passage_labels = batch["counts"], batch["labels"], batch["passage_labels"]
        first = counts.cumsum(0) - counts
        owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        if self.contrastive == "own":
            others = owner[None, :] != torch.arange(len(counts), device=counts.device)[:, None]
            return cosine_cross_entropy(query, passages, first, self.temperature, others)
        if self.contrastive == "infonce":
            if self.gather_across_devices:
                passages, offset = gather_rows(passages)
                passage_labels, _ = gather_rows(passage_labels)
                first = first + offset
            same = labels[:, None] == passage_labels[None, :]
            same[torch.arange(len(first), device=same.device), first] = False
            return cosine_cross_entropy(query, passages, first, self.temperature, same)
        rows, row_labels = torch.cat([query, passages]), torch.cat([labels, passage_labels])
        if self.gather_across_devices:
            # Every process computes the whole loss; averaging the gradients over processes then gives its gradient.
            rows, row_labels = gather_rows(rows)[0], gather_rows(row_labels)[0]
        similarity: Similarity = "l2" if self.contrastive == "ntxent-l2" else "cos"
        return label_ntxent(rows, row_labels, self.temperature, similarity, self.hard)

    def _generation(self, read: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        counts = batch["written"]
        chosen = counts.cumsum(0) - counts
        means = read["sums"] / read["tokens"]
        if self.generation == "sft":
            return -means[chosen].mean()
        rejected = chosen + 1
        by_token = self.generation == "ipo"
        policy = means if by_token else read["sums"]
        known = read.get("reference")
        if known is not None and by_token:
            known = known / read["tokens"]
        return preference_loss(
            policy[chosen],
            policy[rejected],
            None if known is None else known[chosen],
            None if known is None else known[rejected],
            kind=cast(Preference, self.generation),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        ).mean()

    def _consistency(self, read: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        passages = read["passage"].split(counts.tolist())
        similar = [normalize(p, dim=-1) @ normalize(q, dim=-1) for q, p in zip(read["query"], passages, strict=True)]
        written = (read["sums"] / read["tokens"]).split(counts.tolist())
        pad = nn.utils.rnn.pad_sequence
        return consistency_kl(
            pad(similar, batch_first=True),
            pad(list(written), batch_first=True),
            temperature=self.temperature,
            generation_temperature=self.generation_temperature,
            direction=cast(Direction, self.consistency),
            detach=self.detach_generator,
            mask=torch.arange(int(counts.max()), device=counts.device)[None, :] < counts[:, None],
        )


def _one_of(name: str, value: Any, known: Sequence[Any]) -> Any:
    if value not in known:
        raise InputError(f"got {name} {value!r}; expected one of {', '.join(map(str, known))}")
    return value


def _projector(embedder: Embedder, seed: int) -> nn.Sequential:
    width = embedder.get_embedding_dimension()
    if not width:
        raise InputError("the embedder does not say how wide its vectors are; train with projector=False")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return made.to(embedder.encoder.device)


def _checked(item: Item) -> tuple[str, str, list[str]]:
    query, positive, negatives = item.get("query"), item.get("positive"), item.get("negatives") or []
    if not (isinstance(query, str) and isinstance(positive, str)):
        raise InputError(f"got an item with {', '.join(item)}; expected 'query', 'positive' and perhaps 'negatives'")
    return query, positive, [negatives] if isinstance(negatives, str) else list(negatives)


def _label(*parts: str) -> int:
    """A whole number that is the same in every process."""
    return int(fingerprint(list(parts)), 16) >> 1


def _chunks(batch: Mapping[str, Tensor], size: int | None) -> Iterator[dict[str, Tensor]]:
    """The batch in parts of so many queries, each with its passages and texts, without columns of mere padding."""
    queries = len(batch["counts"])
    rows = {"query": torch.ones_like(batch["counts"]), "passage": batch["counts"]}
    marks = {"query": "query_attention_mask", "passage": "passage_attention_mask"}
    if "written" in batch:
        rows["written"], marks["written"] = batch["written"], "written_labels"
    ends = {kind: [0, *counts.cumsum(0).tolist()] for kind, counts in rows.items()}
    for start in range(0, queries, size or queries):
        chunk: dict[str, Tensor] = {}
        for kind, places in ends.items():
            where = slice(places[start], places[min(queries, start + (size or queries))])
            ids, marked = batch[f"{kind}_input_ids"][where], batch[marks[kind]][where]
            used = (marked != (-100 if kind == "written" else 0)).any(0).nonzero()[:, 0]
            # The prompt of a written text has no labels and stands first.
            columns = slice(0 if kind == "written" else int(used[0]), int(used[-1]) + 1)
            chunk[f"{kind}_input_ids"], chunk[marks[kind]] = ids[:, columns], marked[:, columns]
        yield chunk


def _embed(embedder: Embedder, prompt: str | None, ids: Tensor, mask: Tensor) -> Tensor:
    """Sentence vectors; the mask is copied, since pooling without the prompt changes it."""
    features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.clone()}
    if prompt:
        features["prompt_length"] = embedder.encoder.prompt_length(prompt)
    return cast(Tensor, embedder(features)["sentence_embedding"])


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
