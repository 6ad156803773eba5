"""FullRank (Liu et al., 2024, arXiv:2412.14574): all passages in one call, labels of whole lists, a loss for the top.

Knows: windows of a comparison (`order`), written rankings and their tokens. Does not know: models; who compares windows
is in `labelling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, progress
from broadsheet.rank.labelling import Comparator, Journal
from broadsheet.rank.order import Sweep, check_window, complete, reorder, run_lockstep, sweep, windows
from broadsheet.rank.prompts.prompt import document_text

if TYPE_CHECKING:
    from torch import Tensor

    from broadsheet.rank.prompts.prompt import TargetOrder
    from broadsheet.rank.training.objective import ListReading


def full(n: int, window: int, step: int) -> Sweep:
    """Full ranking: all n items in one call; `window` and `step` are not used."""
    order = list(range(n))
    if n > 1:
        order = reorder(order, (yield list(order)))
    return order


def multipass(n: int, window: int, step: int) -> Sweep:
    """Multi-pass sliding windows: sweep, freeze the first `step` places, sweep the rest, and so on to the last window.

    With an exact comparison every place is right. With steps of more than half a window, `window − step` places are
    frozen: one sweep settles no more.

    Raises:
        InputError: `step` equals `window`: windows that do not overlap carry no item forward.

    Source: arXiv:2412.14574, construction of the full ranking labels (N = 100, w = 20, s = 10: 9 passes).
    """
    order = list(range(n))
    for start in _passes(n, window, step):  # places before `start` are frozen
        yield from sweep(order, start, window, step)
    return order


def multipass_calls(n: int, window: int, step: int) -> list[int]:
    """Calls of each pass of `multipass`: 9, 8, …, 1 (45 in all) for 100 items, windows of 20 and steps of 10."""
    return [len(windows(n, window, step, start)) for start in _passes(n, window, step)]


def _passes(n: int, window: int, step: int) -> list[int]:
    """The first item of each pass: (N − w)/s + 1 passes."""
    check_window(window, step)
    if step == window:
        raise InputError(f"step equals the window ({window}); several passes need windows that overlap: lower the step")
    frozen = min(step, window - step)  # one sweep orders the first w − s places
    starts = [0] if n > 1 else []
    while starts and n - starts[-1] > window:  # the last pass is one window, which orders all of its items
        starts.append(starts[-1] + frozen)
    return starts


@dataclass(frozen=True)
class FullRank:
    """Train on written rankings of whole lists, each identifier weighted by its place: 1 + 1/log2(place + 1).

    Use when: all candidates fit the context and labels order all of them (`complete_labels` makes such labels).
    Prefer FIRST when: candidates come in windows of 20, or output tokens cost more than reading.
    Inputs: `query`, `documents`, `ranking` (or `labels`), as FIRST's; up to 100 documents with numeric identifiers.
    Relation: with α = 1 and all weights 1, plain fine-tuning. The weights can serve FIRST's LM term
        (`FIRST(importance=FullRank())`).

    Parameters:
        weights: `"paper"` weights the tokens of the letter or number alone; `"authors"`, as their code does, the
            brackets around it too. Separators weigh `alpha` in both.
        alpha: α, weight of all other tokens (the paper: at most 1, and 1 in its experiments).

    Shapes: the loss is Σ_t w_t·nll_t / tokens for each list, not divided by Σ w: it is larger than the plain one.

    Raises:
        InputError: a parameter is out of range.

    Example:
        >>> from broadsheet.rank import FullRank
        >>> FullRank().weight(1), FullRank().weight(3)
        (2.0, 1.5)

    Source: arXiv:2412.14574, importance-aware loss; authors' code 8421BCD/fullrank (MIT), which finds separators by a
    token id of Mistral's: on other tokenizers its weights never fall.
    """

    paper: ClassVar[str] = "fullrank"

    weights: Literal["paper", "authors"] = "paper"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.weights not in ("paper", "authors"):
            raise InputError(f"got weights {self.weights!r}; expected 'paper' or 'authors'")
        if not self.alpha >= 0:
            raise InputError(f"got alpha {self.alpha}; expected a number from 0")

    @property
    def wants_target(self) -> bool:
        return True

    @property
    def wants_scores(self) -> bool:
        return False

    def weight(self, place: int) -> float:
        """Weight of the identifier at a place, from 1: 2, 1.63, 1.5, … towards 1."""
        return 1 + 1 / math.log2(place + 1)  # w = 1 + 1/log2(p + 1)

    def token_weights(self, target: TargetOrder) -> list[float]:
        """w_t for each token of a written ranking; it does not depend on how many tokens an identifier has."""
        counts = target.identifier if self.weights == "paper" else [rank > 0 for rank in target.ranks]
        return [
            self.weight(rank) if counted else self.alpha for rank, counted in zip(target.ranks, counts, strict=True)
        ]

    def terms(self, reading: ListReading) -> dict[str, Tensor]:
        """`loss`, and `lm`: the same tokens unweighted."""
        loss = reading.lm_loss()  # L = −(1/T) Σ_t w_t·log P(y_t | x, y_<t); T, not Σ w, as in the authors' code
        unweighted = replace(reading, weights=reading.written)
        return {"loss": loss, "lm": unweighted.lm_loss().detach()}


def complete_labels(
    lists: Sequence[Mapping[str, Any]],
    compare: Comparator,
    *,
    window: int = 20,
    step: int = 10,
    journal: str | Path | None = None,
    name: str = "",
    batch_size: int = 16,
) -> list[list[int]]:
    """Order whole lists with a comparison of one window at a time, by `multipass`.

    One sweep from the back settles the first `step` places; those are frozen and the rest is swept again, until one
    window orders the rest. 100 documents in windows of 20 take 9 + 8 + … + 1 = 45 comparisons.

    Args:
        lists: mappings with `query` and `documents`, in first-stage order.
        compare: a teacher (`labelling.teacher_comparator`), a reranker (`labelling.reranker_comparator`), or any
            function; given up to `batch_size` windows of different lists at once.
        window, step: w and s, passages per comparison and how far windows move (the paper: 20 and 10).
        journal: a JSONL file to which every answer is appended as it comes. The next call resumes from it, also after a
            kill: answers are looked up by query, documents, window and step, and `name`.
        name: of the comparator, so that one journal does not mix two of them.

    Returns:
        For each list the indices of its documents, best first: the `ranking` of a training row.

    Raises:
        InputError: a list lacks a field, or the journal holds something else or cannot be written.
        ValueError: `compare` did not return one order per window.

    Source: arXiv:2412.14574, construction of the full ranking labels.
    """
    texts = [_texts(each, number) for number, each in enumerate(lists, start=1)]
    keys = [fingerprint([name, window, step, query, documents]) for query, documents in texts]
    record = Journal(journal)
    asked_before = [0] * len(lists)
    total = sum(sum(multipass_calls(len(documents), window, step)) for _, documents in texts)
    with progress("comparing windows", total) as bar:

        def answer(asked: list[tuple[int, list[int]]]) -> list[list[int]]:
            """Orders of one window of every unfinished list: recorded ones, then the comparator's in batches."""
            orders: list[list[int]] = [[] for _ in asked]
            missing: list[tuple[int, str]] = []
            for position, (index, items) in enumerate(asked):
                key = f"{keys[index]}/{asked_before[index]}"
                asked_before[index] += 1
                if (recorded := record.order(key, len(items))) is None:
                    missing.append((position, key))
                else:
                    orders[position] = recorded
            bar.advance(bar.task_ids[0], len(asked) - len(missing))
            for first in range(0, len(missing), batch_size):
                part = missing[first : first + batch_size]
                batch = [asked[position] for position, _ in part]
                found = compare([(texts[i][0], [lists[i]["documents"][item] for item in items]) for i, items in batch])
                if len(found) != len(part):
                    raise ValueError(f"got {len(found)} orders for {len(part)} windows; expected one each")
                for (position, _), (_, items), order in zip(part, batch, found, strict=True):
                    orders[position] = complete(order, len(items))
                record.add([(key, orders[position]) for position, key in part])
                bar.advance(bar.task_ids[0], len(part))
            return orders

        return run_lockstep([multipass(len(documents), window, step) for _, documents in texts], answer)


def _texts(each: Mapping[str, Any], number: int) -> tuple[str, list[str]]:
    query, documents = each.get("query"), each.get("documents")
    if not isinstance(query, str) or isinstance(documents, str) or not isinstance(documents, Sequence):
        raise InputError(f"list {number} has {sorted(each)}; expected 'query', a text, and 'documents', a list of them")
    return query, [document_text(document) for document in documents]
