"""ULLME's GRL (2024, arXiv:2408.03402): train one model to embed and to generate, and to rank alike in both.

Knows: candidates of a query, their similarities and their likelihoods, a reference model, the three losses and their
weights. Does not know: how queries and passages are embedded in chunks and contrasted (`losses.contrastive`), how a
passage is written (`data.writing`), optimizers or steps (`fit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.embed.data.writing import PROMPT, PassageWriter, mean_log_probs, read_written, token_counts
from broadsheet.embed.losses.contrastive import ContrastiveObjective, ContrastKind, Item, checked
from broadsheet.embed.losses.settings import constructor_settings
from broadsheet.models import adapters
from broadsheet.seeds import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from broadsheet.embed.base import Embedder

Preference = Literal["sigmoid", "hinge", "ipo", "kto_pair"]
Generation = Preference | Literal["sft"]
Direction = Literal["gen-rt", "rt-gen"]


class GRL(ContrastiveObjective):
    """Contrastive learning, generation, and their agreement about the same passages: an objective for `fit`.

        L = λ_CL L_CL + λ_DPO L_DPO + λ_KL L_KL
        L_DPO = −log σ( β [ (π_c − π_r) − (ref_c − ref_r) ] ),   log-probabilities of chosen and rejected passage
        L_KL = KL between P_rt = softmax(cos(q, p) / τ) and P_gen = softmax(mean token log-probability of p)

    The embedder reads with its own attention (ULLME: bidirectional, mean over tokens), the same weights generate with
    causal attention. A projector Linear–ReLU–Linear stands between the embedding and the contrastive loss while
    training, and is discarded: the unprojected vector is evaluated and saved, and the KL uses it too.

    Use when: a model has to embed and still generate, or rankings by the generator are good enough to teach the
        embedding. Training reads each candidate once as an embedder and once as a generator, and the two that are
        compared without gradient as the reference: about three times the work of the contrastive part alone. With
        `generator="kept"` and `generation=None` it is no more than that part.
    Prefer a plain contrastive loss when: only the embedding is wanted, and time is short.
    Inputs: items `{"query": str, "positive": str, "negatives": [str, …]}`; negatives may be missing where the
        generation loss is "sft" or None. With `generator="kept"` also `"teacher_scores"`, as `keep_scores` adds them.
    Relation: contrastive part = NT-Xent over the pooled set of queries, positives and negatives, by Euclidean distance
        of unit vectors (the authors' code) or cosine; or InfoNCE. Generation = supervised, or DPO and its relatives
        with the first negative as the rejected text.

    Args:
        embedder: the model to train; its prompts `"query"` and `"document"` are put before the texts that are embedded.
            With `include_prompt=False` in its pooling the instruction is seen and not pooled, as in the paper.
        contrastive, hard, chunk_size, gather_across_devices: see `ContrastiveObjective`. The authors: "ntxent-l2", and
            "own" for classification; their miner has 0.5.
        generation: "sft" (−mean log-probability of the positive), "sigmoid" (DPO), "hinge", "ipo", "kto_pair", or None.
        consistency: "gen-rt" for KL(P_gen ‖ P_rt), the authors' code; "rt-gen" for KL(P_rt ‖ P_gen), the paper's
            formula; None.
        weights: λ of the three. The authors: 1, 1, 1.
        temperature: τ of the contrastive loss and of P_rt. The authors: 0.05.
        generation_temperature: of P_gen, over mean log-probabilities per token. The authors: 1.
        detach_generator: whether the KL trains the embedding alone, as in the code; False trains both.
        generator: "live": the model that is trained gives P_gen, as in the paper; "kept": the items' `teacher_scores`
            do, so that nothing is read for it.
        beta, label_smoothing: of the preference loss. The authors: 0.1, 0.
        reference: "adapter": the model with its LoRA adapter switched off; "free": none; or a frozen model.
        prompt: stands before a passage that is generated; `{query}` is replaced.
        score_prompt: count the prompt's tokens as well, as the authors do: a constant in the sum over tokens, but not
            in their mean.
        projector: False compares the embeddings themselves.
        seed: of the projector.

    Raises:
        InputError: a setting that is out of range.

    Example:
        from broadsheet.embed import GRL, embedder, fit

        query = {"query": "sort a list", "positive": "Return a sorted list.", "negatives": ["Open a file."]}
        other = {"query": "open a file", "positive": "Open a file.", "negatives": ["Return a sorted list."]}
        model = embedder("default", "mean", attention="bidirectional")
        fit(model, [query, other], GRL(model), "grl", steps=4, batch_size=2)

    Source: arXiv:2408.03402; authors' code nlp-uoregon/ullme, whose paper-era trainer sums the three losses but follows
    the contrastive gradient alone, and whose later one weighs generation and KL by the number of chunks: neither here.
    """

    paper: ClassVar[str] = "ullme"

    def __init__(
        self,
        embedder: Embedder,
        *,
        contrastive: ContrastKind = "ntxent-l2",
        generation: Generation | None = "sigmoid",
        consistency: Direction | None = "gen-rt",
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        temperature: float = 0.05,
        generation_temperature: float = 1.0,
        detach_generator: bool = True,
        generator: Literal["live", "kept"] = "live",
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
        super().__init__(
            embedder,
            contrastive=contrastive,
            temperature=temperature,
            hard=hard,
            chunk_size=chunk_size,
            gather_across_devices=gather_across_devices,
        )
        self.generation = _one_of("generation", generation, ("sft", *get_args(Preference), None))
        self.consistency = _one_of("consistency", consistency, (*get_args(Direction), None))
        if isinstance(reference, str):
            _one_of("reference", reference, ("adapter", "free"))
        self.generator = _one_of("generator", generator, ("live", "kept"))
        if generator == "kept" and not detach_generator:
            raise InputError(
                "what is kept of a generator trains none; expected detach_generator=True, or generator='live'"
            )
        if generation == "kto_pair" and isinstance(reference, str) and reference == "free":
            raise InputError("kto_pair compares with a reference model; expected reference 'adapter' or a model")
        if len(weights) != 3 or min(weights) < 0 or not any(weights):
            raise InputError(f"got weights {weights}; expected three numbers from 0, one of them above 0")
        if min(generation_temperature, beta) <= 0:
            raise InputError(
                f"got generation_temperature {generation_temperature} and beta {beta}; expected numbers above 0"
            )
        self.weights = tuple(weights)
        self.generation_temperature = generation_temperature
        self.detach_generator = detach_generator
        self.beta = beta
        self.label_smoothing = label_smoothing
        self._reference = [reference]  # in a list, so that it is no submodule: not trained, moved or saved
        self.seed = seed
        self.projector = _projector(embedder, seed) if projector else nn.Identity()
        self.writer = PassageWriter(embedder.encoder, prompt, score_prompt=score_prompt)

    @property
    def reference(self) -> Literal["adapter", "free"] | PreTrainedModel:
        """The model that the preference loss compares with."""
        return self._reference[0]

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, as a run records them."""
        given = self.reference
        return constructor_settings(
            self,
            prompt=self.writer.prompt,
            score_prompt=self.writer.score_prompt,
            projector=isinstance(self.projector, nn.Sequential),
            reference=given if isinstance(given, str) else models.fingerprint(given),
        )

    # Items to tensors

    def collate(self, items: Sequence[Item | tuple[int, Item]]) -> dict[str, Tensor]:
        """As `ContrastiveObjective`; with kept scores also `teacher_scores`, (P,), of all passages.

        Raises:
            InputError: as there; or an item lacks negatives or scores that the losses need.
        """
        batch = super().collate(items)
        if self._agrees and self.generator == "kept":
            given = [_scores_of(item[1] if isinstance(item, tuple) else item) for item in items]
            batch["teacher_scores"] = torch.tensor([score for scores in given for score in scores])
        return batch

    def collate_rows(self, rows: Sequence[tuple[str, list[str]]]) -> dict[str, Tensor]:
        """As `ContrastiveObjective`, and with W the generated passages of all queries together:

            written_input_ids, written_labels: (W, length), right-padded; written: (batch,) passages of each query.

        Raises:
            InputError: an item without the negatives that the losses need.
        """
        if self._pairs and not all(len(passages) > 1 for _, passages in rows):
            raise InputError(f"generation {self.generation!r} compares with a negative; an item has none: add one")
        batch = super().collate_rows(rows)
        if not self._writes:
            return batch
        # U, all candidates, for L_KL; else the chosen passage and, for a preference loss, the rejected one.
        kept = [passages if self._all else passages[: 1 + self._pairs] for _, passages in rows]
        pairs = [(query, text) for (query, _), passages in zip(rows, kept, strict=True) for text in passages]
        ids, labels = self.writer.batch(pairs)
        written = torch.tensor([len(passages) for passages in kept])
        return batch | {"written_input_ids": ids, "written_labels": labels, "written": written}

    @property
    def _pairs(self) -> bool:
        """Whether the first negative is compared with the positive."""
        return self.generation not in (None, "sft") and self.weights[1] > 0

    @property
    def _agrees(self) -> bool:
        """Whether L_KL counts."""
        return self.consistency is not None and self.weights[2] > 0

    @property
    def _all(self) -> bool:
        """Whether all candidates are generated."""
        return self._agrees and self.generator == "live"

    @property
    def _writes(self) -> bool:
        return self._all or (self.generation is not None and self.weights[1] > 0)

    # Tensors to a loss

    def loss(
        self, embedder: Embedder, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """`loss`, and its terms `contrastive`, `generation`, `consistency` before their weights, as far as they count.

        Raises:
            InputError: the reference is the model without its adapter, and it has none.
        """
        read = self.read(embedder, batch)
        with torch.autocast(read["query"].device.type, enabled=False):
            terms: dict[str, Tensor] = {}
            if self.weights[0]:
                projected = self.projector(read["query"]), self.projector(read["passage"])
                terms["contrastive"] = self.contrast(*projected, batch)  # L_CL
            if self.generation is not None and self.weights[1]:
                terms["generation"] = self._generation(read, batch["written"])  # L_DPO
            if self._agrees:
                kept = batch.get("teacher_scores")
                means = read["sums"] / read["tokens"] if kept is None else kept
                terms["consistency"] = self._consistency(read, means, batch["counts"])  # L_KL
            weights = dict(zip(("contrastive", "generation", "consistency"), self.weights, strict=True))
            loss = cast(Tensor, sum(weights[name] * term for name, term in terms.items()))  # Σ λ L
            return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def read_chunk(self, embedder: Embedder, chunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also `sums` and `tokens`, (W,): Σ log p of each generated passage, and its tokens; and where passages are
        compared `reference`, (2 · queries,): Σ log p_ref of each query's chosen and rejected one.
        """
        parts = super().read_chunk(embedder, chunk)
        if self._writes:
            ids, labels, counts = (chunk[f"written{part}"] for part in ("_input_ids", "_labels", ""))
            place = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            compared = place < 1 + self._pairs  # the chosen passage, and the rejected one
            parts["sums"] = self._written(embedder, ids, labels, self._learnt(compared))
            parts["tokens"] = token_counts(labels)
            if self._pairs and self.reference != "free":
                parts["reference"] = self._referred(embedder, ids[compared], labels[compared])
        return parts

    def _learnt(self, compared: Tensor) -> Tensor:
        """(W,), which generated passages a loss trains the generator on; the others are read without a gradient."""
        if self._all and not self.detach_generator:
            return torch.ones_like(compared)
        return compared if self.generation is not None and self.weights[1] else torch.zeros_like(compared)

    def _written(self, embedder: Embedder, ids: Tensor, labels: Tensor, learnt: Tensor) -> Tensor:
        """(W,) Σ log p of each generated passage."""
        read = partial(read_written, embedder.encoder.model, autocast=embedder.encoder.autocast)
        if learnt.all():
            return self._through(read, ids, labels)
        with torch.no_grad():
            others = read(ids[~learnt], labels[~learnt])
        sums = others.new_zeros(len(ids)).index_put((~learnt,), others)
        return sums.index_put((learnt,), self._through(read, ids[learnt], labels[learnt])) if learnt.any() else sums

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

    def _generation(self, read: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """L_DPO, a relative of it, or the supervised loss; `counts` (batch,) generated passages of each query."""
        chosen = counts.cumsum(0) - counts  # (batch,) index of each query's positive; its first negative follows
        means = read["sums"] / read["tokens"]
        if self.generation == "sft":
            return -means[chosen].mean()
        rejected = chosen + 1
        by_token = self.generation == "ipo"
        policy = means if by_token else read["sums"]
        known: Sequence[Tensor | None] = (None, None)
        if "reference" in read:
            known = read["reference"].view(-1, 2).unbind(1)
            if by_token:
                known = [each / read["tokens"][place] for each, place in zip(known, (chosen, rejected), strict=True)]
        return preference_loss(
            policy[chosen],
            policy[rejected],
            *known,
            kind=cast(Preference, self.generation),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        ).mean()

    def _consistency(self, read: Mapping[str, Tensor], means: Tensor, counts: Tensor) -> Tensor:
        """L_KL over each query's candidates U; `means` (P,) log-probabilities a token, `counts` (batch,) candidates."""
        passages = read["passage"].split(counts.tolist())
        cosines = [normalize(p, dim=-1) @ normalize(q, dim=-1) for q, p in zip(read["query"], passages, strict=True)]
        pad = nn.utils.rnn.pad_sequence
        return consistency_kl(
            pad(cosines, batch_first=True),  # (batch, candidates)
            pad(list(means.split(counts.tolist())), batch_first=True),
            temperature=self.temperature,
            generation_temperature=self.generation_temperature,
            direction=cast(Direction, self.consistency),
            detach=self.detach_generator,
            mask=torch.arange(int(counts.max()), device=counts.device)[None, :] < counts[:, None],
        ).mean()


def keep_scores(
    embedder: Embedder, items: Sequence[Item], prompt: str = PROMPT, *, batch_tokens: int = 2048
) -> list[dict[str, Any]]:
    """The items with `teacher_scores`: how likely the model, as it is now, finds each passage, the positive first.

    A mean log-probability a token, in nats: P_gen before its softmax.

    Args:
        prompt: as in `GRL`.
        batch_tokens: of a forward pass, padding included.

    Raises:
        InputError: an item without query or positive.

    Example:
        items = keep_scores(model, items)
        fit(model, items, GRL(model, generation=None, generator="kept"), "runs/kept", steps=80, batch_size=8)
    """
    rows = [checked(item) for item in items]
    pairs = [(query, text) for query, passages in rows for text in passages]
    likely = mean_log_probs(embedder.encoder, pairs, prompt, batch_tokens=batch_tokens).tolist()
    ends = np.cumsum([len(passages) for _, passages in rows]).tolist()
    return [
        {**item, "teacher_scores": likely[end - len(passages) : end]}
        for item, (_, passages), end in zip(items, rows, ends, strict=True)
    ]


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    kind: Preference = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """L_DPO and its relatives raise the chosen text's likelihood over the rejected one's, each against a reference's.

    With h = (π_chosen − π_rejected) − (ref_chosen − ref_rejected):
    "sigmoid" (DPO) −log σ(βh), smoothed −(1−ε) log σ(βh) − ε log σ(−βh); "hinge" max(0, 1 − βh);
    "ipo" (h − 1/(2β))², which expects log-probabilities that are means over tokens; "kto_pair" 1 − σ of β times the
    chosen ratio above the mean rejected one, and of the mean chosen one above the rejected ratio.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (batch,) log-probabilities. Without
            references h has no reference part; "kto_pair" always needs them.
        beta: how closely the policy stays to the reference; larger is looser in h, closer in IPO.
        label_smoothing: ε, the share of labels taken to be wrong; "sigmoid" alone.

    Returns:
        (batch,); (2·batch,) for "kto_pair".

    Raises:
        ValueError: an unknown kind, β ≤ 0, or "kto_pair" without references.

    Source: arXiv:2305.18290 (DPO), 2310.12036 (IPO), 2305.10425 (hinge), 2402.01306 (KTO), as ULLME uses them.
    """
    if kind not in get_args(Preference):
        raise ValueError(f"got kind {kind!r}; expected one of {', '.join(get_args(Preference))}")
    if not beta > 0:
        raise ValueError(f"got beta {beta}; expected a number above 0")
    if kind == "kto_pair":
        if reference_chosen is None or reference_rejected is None:
            raise ValueError("kto_pair compares with a reference model; give its log-probabilities")
        chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
        # Each half is compared with the other half's mean, which stands for the divergence from the reference.
        against_rejected = chosen - rejected.mean().clamp_min(0)
        against_chosen = chosen.mean().clamp_min(0) - rejected
        return 1 - torch.cat([against_rejected, against_chosen]).mul(beta).sigmoid()
    margin = policy_chosen - policy_rejected  # h = (π_c − π_r) − (ref_c − ref_r)
    if reference_chosen is not None and reference_rejected is not None:
        margin = margin - (reference_chosen - reference_rejected)
    if kind == "hinge":
        return (1 - beta * margin).relu()
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    scaled = beta * margin  # L_DPO = −log σ(β h)
    return -(1 - label_smoothing) * logsigmoid(scaled) - label_smoothing * logsigmoid(-scaled)


def consistency_kl(
    similarities: Tensor,
    generation: Tensor,
    *,
    temperature: float = 0.05,
    generation_temperature: float = 1.0,
    direction: Direction = "gen-rt",
    detach: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """L_KL: how far the embedding and the generator disagree about which of a query's candidates fit it.

    P_rt = softmax(similarity / τ), P_gen = softmax(mean token log-probability / τ_gen), both over the candidates of a
    query; "gen-rt" is KL(P_gen ‖ P_rt), as the authors' code has it, "rt-gen" is KL(P_rt ‖ P_gen), as the paper prints.

    Args:
        similarities, generation: (batch, candidates).
        temperature, generation_temperature: τ and τ_gen. Token means differ by a few tenths: with τ_gen = 1, the
            authors' value, P_gen is nearly flat.
        direction: see above.
        detach: the generator is a teacher and learns nothing from this term.
        mask: (batch, candidates), True where there is one. A query with a single candidate costs 0.

    Returns:
        (batch,).

    Raises:
        ValueError: a temperature that is not positive, or an unknown direction.
    """
    if not (temperature > 0 and generation_temperature > 0):
        raise ValueError(f"got temperatures {temperature} and {generation_temperature}; expected numbers above 0")
    if direction not in get_args(Direction):
        raise ValueError(f"got direction {direction!r}; expected one of {', '.join(get_args(Direction))}")
    if detach:
        generation = generation.detach()
    embedded, generated = similarities / temperature, generation.to(similarities.dtype) / generation_temperature
    if mask is not None:
        # A finite number: −inf − (−inf) would be NaN.
        lowest = torch.finfo(embedded.dtype).min / 4
        embedded, generated = embedded.masked_fill(~mask, lowest), generated.masked_fill(~mask, lowest)
    log_rt, log_gen = embedded.log_softmax(-1), generated.log_softmax(-1)  # log P_rt, log P_gen
    left, right = (log_gen, log_rt) if direction == "gen-rt" else (log_rt, log_gen)
    terms = left.exp() * (left - right)  # Σ_p P_left log(P_left / P_right)
    return (terms if mask is None else terms.masked_fill(~mask, 0.0)).sum(-1)


def _scores_of(item: Item) -> list[float]:
    scores, passages = item.get("teacher_scores"), checked(item)[1]
    if not isinstance(scores, Sequence) or len(scores) != len(passages):
        raise InputError(
            f"got an item with {len(passages)} passages and teacher_scores {scores!r}; expected a score for each, as "
            "keep_scores adds them"
        )
    return [float(score) for score in scores]


def _one_of(name: str, value: Any, known: Sequence[Any]) -> Any:
    if value not in known:
        raise InputError(f"got {name} {value!r}; expected one of {', '.join(map(str, known))}")
    return value


def _projector(embedder: Embedder, seed: int) -> nn.Sequential:
    width = embedder.get_embedding_dimension()
    if not width:
        raise InputError("the embedder does not tell the width of its vectors; train with projector=False")
    with seeded(seed):
        made = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return made.to(embedder.encoder.device)
