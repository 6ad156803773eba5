"""LLM-Embedder (Zhang et al., 2023, arXiv:2310.07554): an embedder that fetches what makes an LLM's output likelier.

Knows: groups of keys with a teacher's scores, the graded distillation of these scores, each task's settings,
sentence-transformers' losses and data sets. Does not know how scores are made (`data.feedback`), how groups are built
(`data.groups`), or the trainer (`fit`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

from broadsheet.console import InputError, say, within
from broadsheet.embed.base import Embedder, embedder
from broadsheet.embed.data.groups import GroupConfig, Groups, build_groups
from broadsheet.embed.data.task_sampler import OneTaskBatchSampler
from broadsheet.embed.fitting import TrainOutput, fit
from broadsheet.embed.losses.settings import constructor_settings
from broadsheet.training.distributed import gather_rows, global_mean

Distill = Literal["graded", "kl", "none"]

# Each task's prompts, for queries and for keys. Any wording serves, if training and use agree.
TASK_PROMPTS = {
    "qa": ("Find passages that answer the question: ", "Passage that may answer a question: "),
    "convsearch": ("Find passages for the last turn of this conversation: ", "Passage that may continue it: "),
    "chat": ("Find earlier turns that this message refers to: ", "Earlier turn of a conversation: "),
    "lrlm": ("Find earlier text that foretells what follows here: ", "Earlier text: "),
    "icl": ("Find examples that show how to solve this: ", "Solved example: "),
    "tool": ("Find the tool that does this: ", "Tool and what it does: "),
}


def task_prompts() -> dict[str, str]:
    """The prompts of all tasks by name, `"qa-query"` and `"qa-key"` and so on, for `SentenceTransformer.prompts`."""
    queries = {f"{task}-query": query for task, (query, _) in TASK_PROMPTS.items()}
    return queries | {f"{task}-key": key for task, (_, key) in TASK_PROMPTS.items()}


class GradedDistillLoss(nn.Module):
    """A teacher's grades for the keys of each query, learned as an order, as a distribution, or as a hard label.

    With S = cos(query, key) / τ over the keys of all queries, and own keys numbered from the positive on:

        graded  Σ_g w_g · ( −log softmax_{j ∉ {own keys before g}} S )[own key g],   w = softmax(teacher / τ_teacher)
        kl      KL( softmax(teacher / τ_teacher) ‖ softmax(S / τ_student) ) over the query's own keys
        none    ( −log softmax S )[positive], which is InfoNCE

    Inputs:

    | texts | labels |
    |---|---|
    | (query, key_1, …, key_G): the positive, then negatives, best first for `"graded"` | (batch, G) teacher scores |
    | (query, key_1, …, key_G) with `distill="none"` | none, or scores that are not read |

    Use when … a language model's likelihoods, or a reranker's scores, tell how useful each key is. Prefer
    `MultipleNegativesRankingLoss` where only one key is right and the others are clearly wrong.

    Relation: with a teacher that is sure of the first key, or with G = 1, `"graded"` is InfoNCE;
    `"kl"` is sentence-transformers' `DistillKLDivLoss` without its factor student_temperature²; `"none"` is
    `MultipleNegativesRankingLoss(scale=1 / temperature)`.

    Args:
        model: the embedder.
        distill: `"graded"`, `"kl"` or `"none"`.
        contrastive_weight: of the InfoNCE term beside a distillation (0.2 in the paper; 0 leaves it out). Alone, a term
            is not weighted.
        distill_weight: of the distillation beside InfoNCE.
        temperature: τ of cosines (0.01).
        teacher_temperature: of the teacher's scores; the paper's is 1 for `"graded"`, 0.1 for `"kl"`.
        student_temperature: of `"kl"`.
        gather_across_devices: the keys of all processes are negatives, and gradients reach all of them: the result is
            that of one process with the whole batch. (The authors' code divides gradients by the number of processes.)

    Example:
        from datasets import Dataset
        from broadsheet.embed import GradedDistillLoss, embedder, fit

        rows = {"query": ["sort a list", "open a file"], "key_1": ["Return a sorted list.", "Open a file."],
                "key_2": ["Sleep.", "Sleep."], "label": [[-1.2, -2.5], [-0.8, -2.1]]}
        model = embedder("default", "mean", layer=10)
        fit(model, Dataset.from_dict(rows), GradedDistillLoss(model), "graded", steps=4, batch_size=2)

    Source: arXiv:2310.07554; authors' code FlagOpen/FlagEmbedding, research/llm_embedder. In float32 at least.
    """

    paper: ClassVar[str] = "llm_embedder"

    def __init__(
        self,
        model: SentenceTransformer,
        distill: Distill = "graded",
        *,
        contrastive_weight: float = 0.2,
        distill_weight: float = 1.0,
        temperature: float = 0.01,
        teacher_temperature: float = 1.0,
        student_temperature: float = 1.0,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        if distill not in get_args(Distill):
            raise InputError(f"got distill {distill!r}; expected one of {', '.join(get_args(Distill))}")
        if min(temperature, teacher_temperature, student_temperature) <= 0:
            raise InputError("got a temperature that is not positive; expected positive numbers")
        if min(contrastive_weight, distill_weight) < 0 or (distill == "none" and not contrastive_weight):
            raise InputError(
                f"got contrastive_weight {contrastive_weight}, distill_weight {distill_weight} and distill "
                f"{distill!r}; expected weights from 0, one of them positive"
            )
        if distill_weight == 0 == contrastive_weight:
            raise InputError("got both weights 0: there is no loss")
        self.model = model
        self.distill = distill
        self.contrastive_weight = contrastive_weight
        self.distill_weight = distill_weight
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The batch's loss, a scalar."""
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """The loss from (batch, width) vectors: the queries', then those of each key column."""
        if len(embeddings) < 2:
            raise InputError(f"got {len(embeddings)} columns of texts; expected a query and at least one key")
        wide = [vectors if vectors.dtype == torch.float64 else vectors.float() for vectors in embeddings]
        with torch.autocast(wide[0].device.type, enabled=False):
            query = normalize(wide[0], dim=-1)
            keys = normalize(torch.stack(wide[1:], 1), dim=-1)
            return self.from_unit_vectors(query, keys, labels)

    def from_unit_vectors(self, query: Tensor, keys: Tensor, labels: Tensor | None) -> Tensor:
        """The loss from unit vectors: (batch, width), (batch, G, width), and teacher scores (batch, G)."""
        count, size, width = keys.shape
        flat, first = keys.reshape(count * size, width), 0
        if self.gather_across_devices:
            flat, first = gather_rows(flat)
        scores = query @ flat.T / self.temperature  # S, (batch, keys of all queries); query i's key g at i·G + g
        own = (
            first + size * torch.arange(count, device=scores.device)[:, None] + torch.arange(size, device=scores.device)
        )
        terms: list[tuple[float, Tensor]] = []
        if self.distill != "none" and self.distill_weight:
            if labels is None or labels.shape != own.shape:
                got = None if labels is None else tuple(labels.shape)
                raise InputError(f"got teacher scores {got}; expected ({count}, {size}), one for each key")
            distilled = (
                graded_distillation(scores, own, labels / self.teacher_temperature)
                if self.distill == "graded"
                else kl_distillation(scores.gather(1, own), labels, self.student_temperature, self.teacher_temperature)
            )
            terms.append((self.distill_weight, distilled))
        if self.contrastive_weight:
            terms.append((self.contrastive_weight, cross_entropy(scores, own[:, 0], reduction="none")))  # InfoNCE
        weighted = [term if len(terms) == 1 else weight * term for weight, term in terms]
        each = torch.stack(weighted).sum(0)
        return global_mean(each.sum(), count) if self.gather_across_devices else each.mean()

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for model cards and for `fit`."""
        return constructor_settings(self)


def graded_distillation(scores: Tensor, own: Tensor, teacher: Tensor) -> Tensor:
    """Stabilised distillation: every key in turn is the positive, against lower own keys and all other queries' keys.

    A ListMLE with weights and in-batch negatives. A language model's mean log-likelihoods differ little: without a
    temperature, as in the paper, their weights are nearly equal.

    Args:
        scores: S, (batch, keys).
        own: (batch, G), the columns of each query's own keys: the positive, then negatives by falling teacher score.
        teacher: (batch, G), for these keys.

    Returns:
        (batch,), each query's loss; the last key's term is 0 if there are no other queries.
    """
    weights = teacher.to(scores.dtype).softmax(1)  # w_ig
    remaining, total = scores, scores.new_zeros(len(scores))
    for g in range(own.shape[1]):
        total = total + weights[:, g] * cross_entropy(remaining, own[:, g], reduction="none")
        remaining = remaining.scatter(1, own[:, g : g + 1], -torch.inf)  # own keys before the next one are removed
    return total


def kl_distillation(
    own_scores: Tensor, teacher: Tensor, student_temperature: float = 1.0, teacher_temperature: float = 1.0
) -> Tensor:
    """KL(teacher ‖ student) over each query's own keys, no others.

    Args:
        own_scores, teacher: (batch, G).
        student_temperature: beside the τ in the scores.

    Returns:
        (batch,); 0 where the scores equal the teacher's up to the temperatures and a constant.
    """
    student = log_softmax(own_scores / student_temperature, 1)
    target = log_softmax(teacher.to(own_scores.dtype) / teacher_temperature, 1)
    return (target.exp() * (target - student)).sum(1)


@dataclass(frozen=True)
class Task:
    """How one task's rows become groups, and what loss they are trained with.

    Args:
        group: see `GroupConfig`; its size is `LLMEmbedder`'s.
        distill, contrastive_weight, teacher_temperature: see `GradedDistillLoss`.
        max_samples: groups at most.
    """

    group: GroupConfig = field(default_factory=GroupConfig)
    distill: Distill = "none"
    contrastive_weight: float = 0.0
    teacher_temperature: float = 1.0
    max_samples: int | None = None


_SORTED = GroupConfig(stable_distill=True)
TASKS = {
    "qa": Task(_SORTED, "graded"),
    "icl": Task(replace(_SORTED, select_positive="random"), "graded"),
    "chat": Task(GroupConfig(select_positive="teacher"), "kl", teacher_temperature=0.1),
    "lrlm": Task(
        GroupConfig(select_positive="teacher", teacher_scores_margin=0.1),
        "kl",
        teacher_temperature=0.1,
        max_samples=10_000,
    ),
    "convsearch": Task(contrastive_weight=0.2),
    "tool": Task(contrastive_weight=0.2),
}
"""The paper's settings per task (its authors' training configuration)."""


@dataclass
class LLMEmbedder:
    """An embedder for the texts that a language model should see: passages, earlier turns or text, examples, tools.

    A language model is the teacher: for each query it scores candidates by how likely they make the wanted output
    (`feedback.LikelihoodScorer`), and the scores are distilled, each task with its own loss, prompts and batches.

    Inputs: rows of `query` with the lists `pos` and `neg`, or `history`, and `teacher_scores` for them; see
        `groups.build_group`.
    Use when … retrieved text goes into a language model, and you have wanted answers but no relevance labels.
    Prefer a contrastive loss when … relevance is labelled and one passage answers.
    Relation: `GradedDistillLoss` is the loss of all tasks; without scores it is contrastive training by task.

    Args:
        tasks: settings by task; the paper's by default.
        group_size: keys of a query, G (8).
        temperature: τ of cosines (0.01).
        gather_across_devices: see `GradedDistillLoss`.

    Example:
        method = LLMEmbedder()
        score_corpus(open_requests("requests.jsonl"), Path("scored.jsonl"), LikelihoodScorer.load("default"))
        retriever = method.embedder("default")
        method.fit(retriever, read_examples(open_requests("scored.jsonl")), "runs/llm-embedder", steps=200)
        retriever.encode(["how are paths joined?"], prompt_name="qa-query")

    Source: arXiv:2310.07554; authors' code FlagOpen/FlagEmbedding, research/llm_embedder (version 1 of the paper: the
    reward is the likelihood itself, not the rank of the output among samples).
    """

    paper: ClassVar[str] = "llm_embedder"
    tasks: Mapping[str, Task] = field(default_factory=lambda: dict(TASKS))
    group_size: int = 8
    temperature: float = 0.01
    gather_across_devices: bool = False

    def __post_init__(self) -> None:
        within(self, group_size=(1, None), temperature=(1e-6, None))

    def embedder(self, model: Any = "default", pooling: Any = "mean", **settings: Any) -> Embedder:
        """A causal LM with the task prompts and unit vectors, to be trained; `settings` as in `embed.embedder`."""
        given: dict[str, Any] = {"prompts": task_prompts(), "normalize": True} | settings
        return embedder(model, pooling, **given)

    def adopt(self, model: SentenceTransformer) -> SentenceTransformer:
        """Give any sentence-transformers model the task prompts. Its own prompts of other names stay."""
        model.prompts = {**model.prompts, **task_prompts()}
        return model

    def groups(self, examples: Iterable[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Groups]:
        """Rows to groups, task by task.

        Raises:
            InputError: a row's task is none of `tasks`, or see `build_group`.
        """
        by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for example in examples:
            by_task[str(example.get("task", "qa"))].append(example)
        if unknown := sorted(set(by_task) - set(self.tasks)):
            raise InputError(f"got task {unknown[0]!r}; expected one of {', '.join(self.tasks)}")
        found = {}
        for name, rows in by_task.items():
            task = self.tasks[name]
            config = replace(task.group, train_group_size=self.group_size)
            found[name] = build_groups(rows, config, seed=seed, max_samples=task.max_samples)
        return found

    def datasets(self, groups: Mapping[str, Groups]) -> dict[str, Any]:
        """A `datasets.Dataset` a task: columns `query`, `key_1` … `key_G`, and `label` where there are scores.

        Raises:
            InputError: no group is left.
        """
        from datasets import Dataset

        made = {}
        for name, each in groups.items():
            if not each.rows:
                continue
            columns: dict[str, Any] = {"query": [row["query"] for row in each.rows]}
            for g in range(self.group_size):
                columns[f"key_{g + 1}"] = [row["key"][g] for row in each.rows]
            if all("teacher_scores" in row for row in each.rows):
                columns["label"] = [row["teacher_scores"] for row in each.rows]
            made[name] = Dataset.from_dict(columns)
        if not made:
            reasons = sum((each.dropped for each in groups.values()), Counter[str]())
            why = ", ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common())
            raise InputError(f"no query is left to train on ({why or 'no rows'}); loosen the margin, or give more rows")
        return made

    def losses(self, model: SentenceTransformer, tasks: Iterable[str]) -> dict[str, GradedDistillLoss]:
        """Each task's loss."""
        return {
            name: GradedDistillLoss(
                model,
                self.tasks[name].distill,
                contrastive_weight=self.tasks[name].contrastive_weight,
                temperature=self.temperature,
                teacher_temperature=self.tasks[name].teacher_temperature,
                gather_across_devices=self.gather_across_devices,
            )
            for name in tasks
        }

    def prompts(self, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        """The prompt of each column, by task, as the trainer takes them."""
        keys = [f"key_{g + 1}" for g in range(self.group_size)]
        return {
            name: {"query": TASK_PROMPTS[name][0], **dict.fromkeys(keys, TASK_PROMPTS[name][1])}
            for name in tasks
            if name in TASK_PROMPTS
        }

    def fit(
        self,
        model: SentenceTransformer,
        examples: Iterable[Mapping[str, Any]],
        out: str | Path | None = None,
        *,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> TrainOutput:
        """Train on rows with `teacher_scores`, as `feedback.score_corpus` writes them.

        Args:
            model: from `embedder` or `adopt`.
            examples: see `build_group`.
            batch_size: queries of a batch, G keys each. A task with fewer queries than that would never be trained on.
            settings: of `fitting.fit`: `steps`, `minutes`, `learning_rate`, `method`, …

        Raises:
            InputError: see `groups`; a task has no whole batch.
        """
        groups = self.groups(examples, seed=seed)
        for name, each in groups.items():
            for reason, count in each.dropped.items():
                say(f"{name}: {count:,} queries left out: {reason}")
        sets = self.datasets(groups)
        if small := [f"{name} ({len(rows):,})" for name, rows in sets.items() if len(rows) < batch_size]:
            raise InputError(
                f"{', '.join(small)}: fewer queries than a batch of {batch_size}; give more, or smaller ones"
            )
        self.adopt(model)
        return fit(
            model,
            sets,
            self.losses(model, sets),
            out,
            batch_size=batch_size,
            seed=seed,
            prompts=self.prompts(sets),
            multi_dataset_batch_sampler=OneTaskBatchSampler,
            **settings,
        )
