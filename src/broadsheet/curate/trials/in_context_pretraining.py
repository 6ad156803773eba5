"""Try in-context pretraining: contexts along a path of related documents, beside the same documents in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from broadsheet.cache import fingerprint
from broadsheet.curate.in_context_pretraining import (
    DocumentOrder,
    InContextPretraining,
    knn_order,
    zero_weight_jumps,
)
from broadsheet.curate.orders.contexts import Contexts
from broadsheet.curate.orders.neighbours import Edges, Matrix, NeighbourGraph, Places, cosine, nearest
from broadsheet.curate.orders.vectors import encoder
from broadsheet.options import option
from broadsheet.training.losses import IGNORED, token_losses
from broadsheet.training.scratch import tokens_of
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.laboratory import LEAST, LOSS, LOSS_METRIC, LabArm, Laboratory
from broadsheet.trial.verdicts import Comparison

RANDOM, OURS, KNN = "random order", "path", "kNN contexts"
COPIES, BY_LENGTH = "path, copies kept", "sorted by length"
USE, COSINE = "gain of a related document", "cosine of the next document"
LEAST_USE = 0.01  # nats a byte, about the half of a per cent of a small model's loss
LEAST_COSINE = 0.1
_ASKED = 300  # documents whose next one is looked at


@dataclass
class InContextPretrainingTrial(Laboratory):
    """Does a model learn to use related text before what it reads, where it is trained on related documents together?

    All arms read the same documents, from which copies were dropped, and as many tokens; what differs is the order in
    which these are joined, and cut to contexts. Beside random order and the path stand the paper's other baseline,
    contexts of a document and its nearest ones, which repeats what is near to many; the path through all documents,
    copies kept; and documents sorted by length, an order that relates nothing. Contexts are shuffled in all arms.

    Three things are asked: how well held-out documents are predicted, each alone; how much better they are with the
    most related training document before them than with another one's; and, of the orders themselves, the cosine of a
    document and the next.
    """

    paper: ClassVar[str] = "in_context_pretraining"
    title: ClassVar[str] = "In-context pretraining: each document beside its nearest"

    data: str = option("pydocs:stdlib", "Where the documents come from.", metavar="DATA")
    batch: int = option(8, "Rows of a step.", quick=8, least=1)
    length: int = option(512, "Tokens of a context.", quick=256, least=16)
    embed: str = option(
        "tfidf",
        "What documents are compared by: tfidf, a language model, or one of sentence-transformers.",
        metavar="MODEL",
    )

    def question(self) -> str:
        return (
            f"Trained from nothing on {self.data} in contexts of {self.length} tokens, does a model of {self.size} "
            "weights make more of a related document before another where documents stood beside their nearest?"
        )

    def lab(self) -> Sequence[LabArm]:
        ours = InContextPretraining.paper
        arms = [
            LabArm(RANDOM, about="documents joined as they come", rows=RANDOM),
            LabArm(OURS, about="each beside its nearest, none twice", paper=ours, rows=OURS),
        ]
        if not self.quick:
            arms += [
                LabArm(KNN, about="a document and its nearest, some many times", role="sibling", rows=KNN),
                LabArm(COPIES, about="through all documents", role="sibling", rows=COPIES, rate_of=OURS),
                LabArm(BY_LENGTH, about="another order", role="sibling", rows=BY_LENGTH, rate_of=RANDOM),
            ]
        return arms

    def claims(self) -> list[Claim]:
        claims = [
            Claim(COSINE, RANDOM, OURS, "related documents stand side by side (Sec. 2)", least=LEAST_COSINE),
            Claim(USE, RANDOM, OURS, "so a model makes more of related text (NQ 28.5 → 32.2)", least=LEAST_USE),
            Claim(LOSS, RANDOM, OURS, "text in random order is predicted better too (Wikipedia)", least=LEAST),
        ]
        if not self.quick:
            claims += [
                Claim(LOSS, KNN, OURS, "and better than where documents are repeated (66.0, 61.8, 71.3)", least=LEAST),
                Claim(LOSS, COPIES, OURS, "copies must go: with them it is worse (8.3 against 7.3)", least=LEAST),
                Claim(USE, BY_LENGTH, OURS, "an order that relates nothing does not help", kind="control"),
            ]
        return claims

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        read = self.steps * self.batch * self.length
        return (
            f"Its models have 0.3B to 7B weights, and gains show after some 150 billion tokens; here {read:,} are "
            f"read, by a model to which, in random order, a related document is worth {self._worth(outcome)}."
        )

    @staticmethod
    def _worth(outcome: Outcome) -> str:
        found = outcome.usable[RANDOM].values[USE]
        return f"{found.estimate:.3f} nats a byte [{found.low:.3f}, {found.high:.3f}]"

    def setting(self) -> Mapping[str, Any]:
        order = self._order
        left_out = ", ".join(f"{len(places):,} {reason}" for reason, places in order.dropped.items())
        random = np.random.default_rng(self.seed).permutation(order.path)
        jumps = zero_weight_jumps(self._among_kept(random), self._edges)
        read = self._knn(self.seed)[0]
        once = len(np.unique(read)) / len(read)
        return {
            **super().setting(),
            "path": f"{len(order.path):,} documents of {len(self.held.train):,} ({left_out}); {order.jumps:,} steps "
            f"are between documents that are no neighbours, {jumps:,} in random order",
            "kNN contexts": f"of {len(read):,} documents that they hold {100 * once:.0f} % are not yet there",
            "related": f"cosine {float(self._related_cosines.mean()):.2f} on average, by {self.embed}",
        }

    # Orders

    def prepare(self, corpus: Any) -> None:
        super().prepare(corpus)
        by = encoder(self.embed, self.device)
        rows = by([*self.held.train, *self.held.held_out])
        self._vectors: Matrix = rows[: len(self.held.train)]
        self._order = self._ordered(self.seed)
        kept = np.sort(self._order.path)
        some = self._vectors[kept]
        self._graph: NeighbourGraph = nearest(some, self._method(self.seed).k)
        self._edges: Edges = self._graph.undirected()
        self._kept: Places = kept
        # Of each held-out document the most similar one that is learnt from.
        cosines = rows[len(self.held.train) :] @ some.T
        cosines = np.asarray(cosines if isinstance(cosines, np.ndarray) else cosines.toarray())
        self._related: Places = kept[cosines.argmax(1)]
        self._related_cosines = cosines.max(1)

    def _method(self, seed: int, **more: Any) -> InContextPretraining:
        return InContextPretraining(**{**self.fields(InContextPretraining), "seed": seed, **more})

    def _ordered(self, seed: int, **more: Any) -> DocumentOrder:
        return self._method(seed, **more).order(self.held.train, self._vectors)

    def _among_kept(self, path: Places) -> Places:
        """Places among the documents that are kept, of places among all."""
        return np.searchsorted(self._kept, path)

    @cached_property
    def _documents(self) -> list[list[int]]:
        return tokens_of(self.held.train, self.tokenizer)

    def path(self, name: str, seed: int) -> Places:
        """Places of documents, in the order in which the arm of that name reads them."""
        if name == OURS:
            return self._ordered(seed).path
        if name == COPIES:
            return self._ordered(seed, duplicate=None, like_last=None).path
        if name == KNN:
            return self._knn(seed)[0]
        drawn = np.random.default_rng(seed).permutation(self._kept)
        if name == BY_LENGTH:
            lengths = np.array([len(self._documents[i]) for i in drawn])
            return drawn[np.argsort(lengths, kind="stable")]
        return drawn

    def _knn(self, seed: int) -> tuple[Places, list[list[int]]]:
        """Documents with those nearest to them, each time as many as fill its contexts, until there is as much as of
        the others: the places, and the contexts' tokens."""
        needed = sum(len(self._documents[i]) for i in self._kept) // self.length
        path: list[int] = []
        contexts: list[list[int]] = []
        filled: list[int] = []
        groups = (group for again in count() for group in knn_order(self._graph.ids, seed + 1000 * again))
        while len(contexts) < needed:
            group = self._kept[next(groups)]
            for i in group:
                whole = len(filled) // self.length
                path.append(int(i))
                filled += self._documents[i]
                if i != group[0] and len(filled) // self.length > whole:
                    break  # a neighbour fills the last context of the document
            cuts = range(0, len(filled) // self.length * self.length, self.length)
            contexts += [filled[begin : begin + self.length] for begin in cuts]
            filled = [] if cuts else filled
        return np.array(path, np.int64), contexts[:needed]

    def rows(self, name: str, seed: int) -> Any:
        if not name:
            return self.plain_rows
        if name == KNN:
            contexts = self._knn(seed)[1]
            return Contexts(contexts, range(len(contexts)), self.length, seed=seed)
        return Contexts(self._documents, self.path(name, seed), self.length, seed=seed)

    # What is asked

    def measured(self) -> list[Metric]:
        return [LOSS_METRIC, Metric(USE, higher_is_better=True, unit="nats/byte")]

    def asked(self) -> Sequence[Any]:
        return list(range(len(self.held.held_out)))

    def shown(self, item: Any) -> str:
        return super().shown(self.held.held_out[item])

    def losses(self, model: Any, asked: Sequence[Any]) -> dict[str, np.ndarray]:
        texts = [self.held.held_out[i] for i in asked]
        # Another one's related document: over all of them the first documents are the same, but for the relation.
        other = [(i + len(self._related) // 2) % len(self._related) for i in asked]
        own, others = (
            self.after(model, [self.held.train[self._related[i]] for i in some], texts) for some in (asked, other)
        )
        return {LOSS: self.of_documents(model, texts), USE: others - own}

    @torch.no_grad()
    def after(self, model: Any, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """What each second document costs a model that reads it after a first one, in nats a byte: (documents,).

        Of both are read as many tokens as fill half a context.
        """
        half, end = self.length // 2 - 1, self.tokenizer.eos_token_id
        before, behind = (
            [row[:half] for row in self.tokenizer(list(some), add_special_tokens=False)["input_ids"]]
            for some in (first, second)
        )
        found = np.zeros(len(second))
        for begin in range(0, len(second), 16):
            some = range(begin, min(begin + 16, len(second)))
            pairs = [[end, *before[i], end, *behind[i]] for i in some]
            widest = max(map(len, pairs))
            ids = torch.tensor([row + [end] * (widest - len(row)) for row in pairs], device=model.device)
            labels = ids.clone()
            for place, i in enumerate(some):
                labels[place, : len(before[i]) + 2] = IGNORED
                labels[place, len(pairs[place]) :] = IGNORED
            losses, _ = token_losses(model(ids, use_cache=False).logits, labels)
            read = [max(1, len(self.tokenizer.decode(behind[i]).encode())) for i in some]
            found[some.start : some.stop] = losses.double().sum(1).cpu().numpy() / read
        return found

    def tasks(self) -> list[EvalTask]:
        found = super().tasks()
        drawn = np.random.default_rng(self.seed).permutation(self._kept)[:_ASKED].tolist()
        order = EvalTask(
            "order",
            drawn,
            [Metric(COSINE, higher_is_better=True, bounds=(-1.0, 1.0))],
            self._looker,
            item="document",
            about=f"of {len(drawn)} documents the one that is read next",
            fingerprint=fingerprint([drawn, self.held.fingerprint]),
            block_size=max(1, len(drawn) // 10),
        )
        return [*found, order]

    def _looker(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """The cosine of each document and the one that is read after it; in the order of the trial's own seed."""
        state: dict[str, Any] = {}

        def prepare() -> None:
            path = self.path(self._lab[arm.name].rows, self.seed)
            following = np.roll(path, -1)
            places, first = np.unique(path, return_index=True)
            state["next"] = dict(zip(places.tolist(), following[first].tolist(), strict=True))

        def run(block: Sequence[int]) -> dict[str, Any]:
            following = np.array([state["next"].get(place, place) for place in block])
            found = cosine(self._vectors, np.array(block), following)
            return {COSINE: np.where(following == block, 0.0, found)}

        return Arm(arm.name, run, description=arm.description, prepare=prepare, close=state.clear)
