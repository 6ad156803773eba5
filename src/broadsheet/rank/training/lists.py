"""What teaches a causal LM to rank lists: a collator of prompts, their reading, and the objective that joins them.

Knows: lists (`rows`), prompts through a `Prompter`. Does not know: the losses themselves (a `ListLoss`), optimizers,
folders (`broadsheet.training`).

Rows are padded on the right, where causal attention does not look: so attention needs no mask and takes its fastest
path, and a list's loss does not depend on its neighbours. Logits are computed where they are needed alone: at one
position of each prompt, and over the written ranking where the objective wants one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet.rank.prompts.decoding import keeps_logits
from broadsheet.rank.prompts.prompt import Prompter
from broadsheet.rank.training.objective import ListLoss, ListReading
from broadsheet.rank.training.rows import ListItem, Row, list_item
from broadsheet.training.objective import Objective, described


@dataclass
class ListwiseCollator:
    """Lists → one padded batch of prompts.

    Args:
        prompter: builds prompts and written rankings; the reranker's own, so that training and use agree.
        objective: whether rankings are written behind the prompts, and what their tokens weigh.
        eos: end written rankings with the end of text.

    Returns, by key (all tensors; n = passages of the longest list):
        input_ids, attention_mask: (batch, length), padded on the right.
        labels: (batch, length), the written ranking's tokens, -100 elsewhere; all -100 without targets.
        loss_weights: (batch, length), weights of those tokens, 0 elsewhere.
        score_position: (batch,) index of the bracket that opens the answer: its logits are the scores.
        identifier_ids: (batch, n) token of each passage's identifier; 0 in the padding.
        label_ranks, relevance, list_mask: (batch, n) rank each passage should have (0 = best), graded label, and
            whether there is one.

    Raises:
        InputError: what `Prompter.build` and `Prompter.identifier_ids` refuse.
    """

    prompter: Prompter
    objective: ListLoss
    eos: bool = True

    def __call__(self, items: Sequence[ListItem | Row]) -> dict[str, Tensor]:
        lists = [item if isinstance(item, ListItem) else list_item(item) for item in items]
        opening = self.prompter.opening
        rows = []
        for one in lists:
            reserve = None if self.objective.wants_target else len(opening)
            prompt = self.prompter.build(one.query, one.documents, reserve).ids
            weights: list[float] = []
            written = opening
            if self.objective.wants_target:
                target = self.prompter.target(one.order, eos=self.eos)
                written, weights = target.ids, self.objective.token_weights(target)
            rows.append((prompt, written, weights))
        width = max(len(prompt) + len(written) for prompt, written, _ in rows)
        ids = torch.full((len(rows), width), self._padding())
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        loss_weights = torch.zeros(len(rows), width)
        for i, (prompt, written, weights) in enumerate(rows):
            begin, end = len(prompt), len(prompt) + len(written)
            ids[i, :end] = torch.tensor(prompt + written)
            attention[i, :end] = 1
            if weights:
                labels[i, begin:end] = torch.tensor(written)
                loss_weights[i, begin:end] = torch.tensor(weights)
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "labels": labels,
            "loss_weights": loss_weights,
            "score_position": torch.tensor([len(prompt) + len(opening) - 1 for prompt, _, _ in rows]),
            **self._lists(lists),
        }

    def _lists(self, lists: Sequence[ListItem]) -> dict[str, Tensor]:
        n = max(len(one.documents) for one in lists)
        identifiers = torch.zeros(len(lists), n, dtype=torch.long)
        ranks = torch.zeros(len(lists), n, dtype=torch.long)
        relevance = torch.zeros(len(lists), n)
        mask = torch.zeros(len(lists), n, dtype=torch.bool)
        for i, one in enumerate(lists):
            size = len(one.documents)
            identifiers[i, :size] = torch.tensor(self._identifiers(size))
            ranks[i, :size] = torch.tensor(one.ranks)
            relevance[i, :size] = torch.tensor(one.relevance)
            mask[i, :size] = True
        return {
            "identifier_ids": identifiers,
            "label_ranks": ranks,
            "relevance": relevance,
            "list_mask": mask,
        }

    def _identifiers(self, size: int) -> list[int]:
        return self.prompter.identifier_ids(size) if self.objective.wants_scores else [0] * size

    def _padding(self) -> int:
        padding = self.prompter.tokenizer.pad_token_id
        return 0 if padding is None else int(padding)


def read_lists(model: Any, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> ListReading:
    """One forward pass over a collated batch: identifier logits, and the likelihood of each written token.

    Logits leave the model in its own precision and are upcast to float32 here.
    """
    ids, labels, position = batch["input_ids"], batch["labels"], batch["score_position"]
    target = labels[:, 1:] != -100  # at column t: the logits at t predict a token of the ranking
    spoken = target.any(0)
    needed = torch.zeros_like(ids[0], dtype=torch.bool)
    needed[:-1] = spoken
    needed[position] = True
    columns = needed.nonzero()[:, 0]
    if keeps_logits(model):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(input_ids=ids, use_cache=False).logits[:, columns]
    place = needed.cumsum(0) - 1  # of a column among those computed
    rows = torch.arange(len(ids), device=ids.device)
    scores = logits[rows, place[position]].float().gather(1, batch["identifier_ids"])
    reading = ListReading(scores, batch["label_ranks"], batch["relevance"], batch["list_mask"], generator=generator)
    if not spoken.any():
        return reading
    written = target[:, spoken]
    words = torch.where(written, labels[:, 1:][:, spoken], 0)
    nll = cross_entropy(logits[:, place[:-1][spoken]].float().transpose(1, 2), words, reduction="none")
    return replace(reading, nll=nll, weights=batch["loss_weights"][:, 1:][:, spoken], written=written)


class ListObjective(Objective):
    """A paper's loss on lists as an objective for `broadsheet.training.fit`, on the reranker's own prompts.

    Args:
        loss: `FIRST`, `FullRank`, `PGRank`, or another `ListLoss`.
        prompter: the reranker's.
        shape: how lists were cut and shuffled, for the record.

    Example:
        from broadsheet.training.fit import fit
        fit(reranker.model, ListDataset(rows), ListObjective(FIRST(), reranker.prompter), steps=100)
    """

    def __init__(self, loss: ListLoss, prompter: Prompter, shape: Mapping[str, Any] | None = None) -> None:
        self.list_loss = loss
        self.paper = getattr(loss, "paper", "")
        self.shape = dict(shape or {})
        self.collator = ListwiseCollator(prompter, loss)

    def get_config_dict(self) -> dict[str, Any]:
        """The loss by name and settings, and the lists' shape."""
        return {**described(self.list_loss), **({"lists": self.shape} if self.shape else {})}

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        return self.collator([item for _, item in items])

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """The paper's terms on what the model says about the batch."""
        reading = read_lists(model, batch, generator)
        with torch.autocast(reading.scores.device.type, enabled=False):
            return self.list_loss.terms(reading)
