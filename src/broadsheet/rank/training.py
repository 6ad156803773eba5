"""Parts for HF `Trainer` that teach a causal LM to rank lists: a collator, and a trainer with the papers' losses.

Knows: lists (`rows`), prompts through a `Prompter`, `Trainer`. Does not know: the losses themselves (an `Objective`),
time budgets and folders (`broadsheet.training`).

Rows are padded on the right, where causal attention does not look: so attention needs no mask and takes its fastest
path, and a list's loss does not depend on its neighbours. Logits are computed where they are needed alone: at one
position of each prompt, and over the written ranking where the objective wants one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler
from transformers import TrainingArguments

from broadsheet.console import InputError
from broadsheet.rank.decoding import keeps_logits
from broadsheet.rank.objective import ListReading, Objective
from broadsheet.rank.prompt import Prompter
from broadsheet.rank.rows import ListDataset, ListItem, Row, list_item
from broadsheet.training.checkpoints import AtomicCheckpointTrainer
from broadsheet.training.timed import ScheduledByProgress


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
        position: (batch,) place of each list in the order of training.

    Raises:
        InputError: what `Prompter.build` and `Prompter.identifier_ids` refuse.
    """

    prompter: Prompter
    objective: Objective
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
            "position": torch.tensor([one.position for one in lists]),
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
    inner = model.module if hasattr(model, "module") else model  # as it is wrapped for several devices
    if keeps_logits(inner):
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


class RerankTrainer(AtomicCheckpointTrainer, ScheduledByProgress):
    """HF `Trainer` on lists. Each step's loss is the objective's; its terms are logged as `loss_<name>`.

    Takes all that `Trainer` takes (`train_dataset` a `ListDataset`, `data_collator` a `ListwiseCollator`), `progress`
    and `schedule` as `ScheduledByProgress` does, and:

    Args:
        objective: a `FIRST`, `FullRank` or `PGRank`, or another `Objective`.
        autocast: run forward passes in this type where the device has it; weights and optimizer stay as they are.

    Its checkpoints are `AtomicCheckpointTrainer`; their `record` counts `lists` and `tokens` read.

    Raises:
        InputError: during training, a loss that is not finite.

    Example:
        objective = FIRST()
        trainer = RerankTrainer(
            objective=objective, model=model, args=TrainingArguments("run", learning_rate=5e-5),
            train_dataset=ListDataset(rows), data_collator=ListwiseCollator(prompter, objective),
        )
        trainer.train(resume_from_checkpoint=trainer.go_on())
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        objective: Objective,
        args: TrainingArguments,
        autocast: torch.dtype | None = None,
        **parts: Any,
    ) -> None:
        args = copy.copy(args)
        args.remove_unused_columns = False  # the model's forward knows none of the lists' columns
        super().__init__(args=args, **parts)
        self.model_accepts_loss_kwargs = False  # our losses are means over lists, not over tokens of a step
        self.objective = objective
        self.autocast = autocast
        self.record = {"lists": 0, "tokens": 0}
        self._terms: dict[str, list[float]] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self._autocast():
            reading = read_lists(model, inputs, self._generator(inputs))
        terms = self.objective.terms(reading)
        loss = terms["loss"]
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} at step {self.state.global_step}: the model has diverged or its weights are"
                " damaged; start again with a lower learning rate, or in float32"
            )
        if model.training:
            self.record["lists"] += len(reading.mask)
            self.record["tokens"] += int(inputs["attention_mask"].sum())
            for name, value in terms.items():
                self._terms.setdefault(name, []).append(value.item())
        return (loss, {"loss": loss, "scores": reading.scores}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._terms:
            means = {f"loss_{k}": sum(v) / len(v) for k, v in self._terms.items() if k != "loss"}
            logs = {**logs, **means}
            self._terms.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, ListDataset):  # its order is the shuffled one already
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.args.device.type, dtype=self.autocast)

    def _generator(self, inputs: Mapping[str, Any]) -> torch.Generator:
        """Follows from the seed and the place in the order of training, so that a resumed run draws alike."""
        place = int(inputs["position"][0]) if "position" in inputs else self.state.global_step
        return torch.Generator().manual_seed((self.args.seed * 1_000_003 + place) % 2**63)
