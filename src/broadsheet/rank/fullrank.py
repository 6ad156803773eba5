"""FullRank (Liu et al., 2024, arXiv:2412.14574): complete labels for long lists, a loss that minds first places.

Knows: written rankings and their tokens, windows of a comparison (`order`). Does not know: models. Reading all
passages at once is `ListwiseReranker(strategy="full")`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, progress, say
from broadsheet.rank.order import BRACKETED, Identifiers, complete, multipass, multipass_calls, parse, run_lockstep
from broadsheet.rank.prompt import Document, Prompt, document_text

if TYPE_CHECKING:
    from torch import Tensor

    from broadsheet.rank.objective import ListReading
    from broadsheet.rank.prompt import TargetOrder
    from broadsheet.teacher import Teacher

_ANY_IDENTIFIER = re.compile(r"\[\s*([A-Z]|[0-9]+)\s*\]")

Comparison = tuple[str, list[Document]]
Comparator = Callable[[list[Comparison]], Sequence[Sequence[int]]]
"""Queries with a window of documents each → as many orders (positions, best first; what is missing goes last)."""


@dataclass(frozen=True)
class FullRank:
    """Train on written rankings of whole lists, each identifier weighted by its place: 1 + 1/log2(place + 1).

    Use when: the context holds all candidates and labels order all of them (`complete_labels` makes such labels).
    Prefer FIRST when: candidates come in windows of 20, or output tokens cost more than reading.
    Inputs: `query`, `documents`, `ranking` (or `labels`), as FIRST's; up to 100 documents with numeric identifiers.
    Relation: with α = 1 and all weights 1, plain fine-tuning. The weights can serve FIRST's LM term
        (`FIRST(importance=FullRank())`).

    Parameters:
        weights: `"paper"` weighs the tokens of the letter or number alone; `"authors"`, as their code does, the
            brackets around it too. What separates identifiers weighs `alpha` in both.
        alpha: weight of all other tokens, at most 1 in the paper, which uses 1.

    Shapes: the loss is Σ_t w_t·nll_t / tokens for each list, not divided by Σ w: it is larger than the plain one.

    Raises:
        InputError: a parameter is out of range.

    Example:
        >>> FullRank().weight(1), FullRank().weight(3)
        (2.0, 1.5)

    Source: arXiv:2412.14574, importance-aware loss; authors' code 8421BCD/fullrank (MIT), which finds separators by a
    token id of Mistral's: on other tokenizers its weights never fall.
    """

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
        return 1 + 1 / math.log2(place + 1)

    def token_weights(self, target: TargetOrder) -> list[float]:
        """A weight for each token of a written ranking; it does not hang on how many tokens an identifier has."""
        counts = target.identifier if self.weights == "paper" else [rank > 0 for rank in target.ranks]
        return [
            self.weight(rank) if counted else self.alpha for rank, counted in zip(target.ranks, counts, strict=True)
        ]

    def text_weights(self, text: str, offsets: Sequence[tuple[int, int]]) -> list[float]:
        """The same for any tokenizer and any text that holds a ranking, from the tokens' character offsets.

        Args:
            text: such as `"[3] > [1] > [2]"`.
            offsets: (start, end) of each token in `text`, as fast tokenizers return them. A token that spans several
                parts (`"] >"`) counts as the identifier's if it touches one, the first.
        """
        spans = [match.span(0 if self.weights == "authors" else 1) for match in _ANY_IDENTIFIER.finditer(text)]
        weights = []
        for start, end in offsets:
            place = next((i for i, span in enumerate(spans, 1) if start < span[1] and end > span[0]), 0)
            weights.append(self.weight(place) if place else self.alpha)
        return weights

    def terms(self, reading: ListReading) -> dict[str, Tensor]:
        """`loss`, and `lm`: the same tokens unweighted."""
        loss = reading.lm_loss()
        unweighted = replace(reading, weights=reading.written)
        return {"loss": loss, "lm": unweighted.lm_loss().detach()}


def importance_aware_loss(nll: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Σ_t w_t·nll_t / number of tokens, for each list; the mean over lists.

    Args:
        nll: (batch, length), −log P(token | what stands before), in float32 at least.
        weights: (batch, length).
        mask: (batch, length), True where there is a token of the ranking.
    """
    import torch

    nll = nll if nll.dtype == torch.float64 else nll.float()
    total = torch.where(mask, nll * weights.to(nll), 0).sum(-1)
    return (total / mask.sum(-1).clamp(min=1)).mean()


def separator_weights(labels: Tensor, separator_id: int, ignore_index: int = -100) -> Tensor:
    """The authors' weights from label ids alone, where one token id is known to be the separator; like `labels`.

    A separator weighs 1 and every other label token 1 + 1/log2(1 + its place), the place being one more than the
    separators before it; ignored tokens weigh 0. For comparison with their code: `FullRank` needs no such id.
    """
    import torch

    counted = labels != ignore_index
    separator = (labels == separator_id) & counted
    place = 1 + separator.cumsum(-1)  # of a token that is no separator itself
    weights = torch.where(separator, 1.0, 1 + 1 / torch.log2(place.double() + 1))
    return torch.where(counted, weights, 0.0)


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
    """Order whole lists by a comparison that sees a window at a time, in several passes.

    One sweep from the back settles the first `step` places; those are frozen and the rest is swept again, until one
    window orders what is left. 100 documents in windows of 20 take 9 + 8 + … + 1 = 45 comparisons.

    Args:
        lists: mappings with `query` and `documents`, in first-stage order.
        compare: a teacher (`teacher_comparator`), a reranker (`reranker_comparator`), or any function; given up to
            `batch_size` windows of different lists at once.
        window, step: passages per comparison, and by how many windows are moved (the paper: 20 and 10).
        journal: a JSONL file that every answer is added to as it comes. A call that finds it goes on from there, also
            after a kill: answers are looked up by query, documents, window and step, and `name`.
        name: what compares, where one journal should not serve two comparators.

    Returns:
        For each list the indices of its documents, best first: the `ranking` of a training row.

    Raises:
        InputError: a list lacks a field, or the journal holds something else or cannot be written.

    Source: arXiv:2412.14574, construction of full ranking labels.
    """
    texts = [_texts(each, number) for number, each in enumerate(lists, start=1)]
    keys = [fingerprint([name, window, step, query, documents]) for query, documents in texts]
    path = None if journal is None else Path(journal)
    known = {} if path is None else _read_journal(path)
    made = [0] * len(lists)
    total = sum(sum(multipass_calls(len(documents), window, step)) for _, documents in texts)
    with progress("comparing windows", total) as bar:

        def answer(asked: list[tuple[int, list[int]]]) -> list[list[int]]:
            orders: list[list[int] | None] = []
            missing: list[tuple[int, str, list[int], int]] = []
            for position, (index, items) in enumerate(asked):
                key = f"{keys[index]}/{made[index]}"
                made[index] += 1
                recorded = known.get(key)
                orders.append(recorded)
                if recorded is None or sorted(recorded) != list(range(len(items))):
                    missing.append((index, key, items, position))
            bar.advance(bar.task_ids[0], len(asked) - len(missing))
            for first in range(0, len(missing), batch_size):
                part = missing[first : first + batch_size]
                found = compare(
                    [(texts[i][0], [lists[i]["documents"][item] for item in items]) for i, _, items, _ in part]
                )
                if len(found) != len(part):
                    raise ValueError(f"got {len(found)} orders for {len(part)} windows; expected one each")
                lines = []
                for (_, key, items, position), order in zip(part, found, strict=True):
                    orders[position] = whole = complete(order, len(items))
                    lines.append(json.dumps({"window": key, "order": whole}))
                if path is not None:
                    _append(path, lines)
                bar.advance(bar.task_ids[0], len(part))
            return [order for order in orders if order is not None]

        return run_lockstep([multipass(len(documents), window, step) for _, documents in texts], answer)


def teacher_comparator(
    teacher: Teacher, *, identifiers: Identifiers = "numeric", max_words: int = 100, prompt: Prompt | None = None
) -> Comparator:
    """A comparator that asks a teacher (a local model or any OpenAI-compatible endpoint) to write the order.

    Args:
        teacher: see `broadsheet.teacher.Teacher.load`; its cache and budget apply.
        identifiers: numbers, as the paper's teacher, or letters.
        max_words: of each passage; the paper's inference takes 100.
        prompt: the wording.
    """
    wording = prompt or Prompt()

    def compare(asked: list[Comparison]) -> list[list[int]]:
        conversations = []
        for query, documents in asked:

            def fill(template: str, query: str = query, n: int = len(documents)) -> str:
                return wording.fill(template, _clean(query, identifiers), n, identifiers)

            names = [chr(ord("A") + i) if identifiers == "alpha" else str(i + 1) for i in range(len(documents))]
            lines = [
                f"[{name}] {' '.join(_clean(document_text(document), identifiers).split()[:max_words])}"
                for name, document in zip(names, documents, strict=True)
            ]
            user = fill(wording.intro) + "\n".join(lines) + "\n" + fill(wording.outro)
            conversations.append([{"role": "system", "content": wording.system}, {"role": "user", "content": user}])
        longest = max(len(documents) for _, documents in asked)
        answers = teacher.chat(conversations, temperature=0, max_tokens=8 * longest + 16)
        return [
            complete(parse(answer.text, len(documents), identifiers), len(documents))
            for (_, documents), [answer] in zip(asked, answers, strict=True)
        ]

    return compare


def reranker_comparator(reranker: Any) -> Comparator:
    """A comparator from anything with `rank_batch(queries, lists of documents)`, such as a `ListwiseReranker`."""

    def compare(asked: list[Comparison]) -> list[list[int]]:
        results = reranker.rank_batch([query for query, _ in asked], [documents for _, documents in asked])
        return [[hit["corpus_id"] for hit in hits] for hits in results]

    return compare


def _clean(text: str, identifiers: Identifiers) -> str:
    return BRACKETED[identifiers].sub(r"(\1)", " ".join(text.split()))


def _texts(each: Mapping[str, Any], number: int) -> tuple[str, list[str]]:
    query, documents = each.get("query"), each.get("documents")
    if not isinstance(query, str) or isinstance(documents, str) or not isinstance(documents, Sequence):
        raise InputError(f"list {number} has {sorted(each)}; expected 'query', a text, and 'documents', a list of them")
    return query, [document_text(document) for document in documents]


def _read_journal(path: Path) -> dict[str, list[int]]:
    """The recorded orders. A last line cut off by a kill is dropped, from the file too.

    Raises:
        InputError: another line is no answer.
    """
    if not path.exists():
        return {}
    known: dict[str, list[int]] = {}
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                record = json.loads(line)
                known[record["window"]] = [int(position) for position in record["order"]]
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{path}, line {number}: not an answer of this kind ({line[:40]!r}); give another journal"
                ) from None
    if end < path.stat().st_size:
        os.truncate(path, end)
    if known:
        say(f"{path}: going on with {len(known):,} comparisons made before")
    return known


def _append(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("ab", buffering=0) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; make room and repeat") from None
