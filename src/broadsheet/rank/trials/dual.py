"""Dual encoders as scorers of lists, and the losses that they are tuned by.

Knows: encoders of sentence-transformers, lists of candidates, the stage's and sentence-transformers' losses. Does not
know: which losses are compared, on what data, or how long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from broadsheet.rank.pg_rank import PlackettLucePolicyGradient
from broadsheet.rank.prompts.prompt import document_text
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.data.retrieval.lists import RankList

CONTRASTIVE = "contrastive"
LISTNET, RANKNET, LAMBDA = "ListNet", "RankNet", "LambdaLoss"
FOR_NDCG, FOR_MRR, NO_BASELINE = "PG-RANK for nDCG@10", "PG-RANK for MRR@10", "PG-RANK without a baseline"
_SCALE = 20.0  # of cosines: in [−1, 1] they would make a nearly uniform policy
_TOGETHER = 32  # texts of about the same length that are encoded at once
# The sides of a pair: names of an encoder's prompts, the first that it has, as sentence-transformers looks for them.
_SIDES = {"query": ("query",), "document": ("document", "passage", "corpus")}

Lists = tuple[list[str], list[list[str]]]  # queries, and the passages of each
Loss = Callable[[Lists, "list[Tensor]", torch.Generator], Tensor]


class DualScorer(nn.Module):
    """Scores of pairs, 20 times the cosine of an encoder's vectors; called as sentence-transformers' losses call a
    `CrossEncoder`.

    Args:
        encoder: of queries and passages both, each with its own prompt where it has them. All its weights are tuned.

    Attributes:
        read: tokens that the last call read.
    """

    num_labels = 1

    def __init__(self, encoder: SentenceTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = 0
        self._prompts: dict[str, str | None] = {}
        for side, names in _SIDES.items():
            name = next((name for name in names if name in encoder.prompts), encoder.default_prompt_name)
            self._prompts[side] = encoder.prompts.get(name) if name else None

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def preprocess(self, pairs: Sequence[tuple[str, str]], **_: Any) -> dict[str, Any]:
        """Each text of a side once, in batches of about the same length, and where each side of a pair is."""
        features: dict[str, Any] = {"batches": []}
        before = 0
        for side, texts in zip(_SIDES, zip(*pairs, strict=True), strict=True):
            ordered = sorted(set(texts), key=lambda text: (len(text), text))
            place = {text: before + i for i, text in enumerate(ordered)}
            features[side] = torch.tensor([place[text] for text in texts])
            features["batches"] += self._batches(ordered, side)
            before += len(ordered)
        return features

    def _batches(self, texts: Sequence[str], side: str) -> list[dict[str, Any]]:
        return [
            self.encoder.preprocess(texts[first : first + _TOGETHER], prompt=self._prompts[side], task=side)
            for first in range(0, len(texts), _TOGETHER)
        ]

    def forward(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        """scores: (pairs,), float32."""
        self.read, found = 0, []
        for batch in features["batches"]:
            self.read += int(batch["attention_mask"].sum())
            moved = {key: each.to(self.device) if isinstance(each, Tensor) else each for key, each in batch.items()}
            found.append(self.encoder(moved)["sentence_embedding"])
        vectors = normalize(torch.cat(found).float(), dim=-1)  # (texts, d)
        query, document = (vectors[features[side].to(self.device)] for side in _SIDES)
        return {"scores": _SCALE * (query * document).sum(-1)}

    def cut(self, lists: Sequence[RankList]) -> tuple[int, int]:
        """How many of the lists' texts are longer than what the encoder reads of them, and how many there are."""
        queries, passages = texts_of(lists)
        sides = {"query": sorted(set(queries)), "document": sorted({text for several in passages for text in several})}
        reader: Any = self.encoder[0]
        most = self.encoder.max_seq_length
        if hasattr(reader, "truncated_"):  # one of ours, which counts them
            before = reader.truncated_
            for side, texts in sides.items():
                self._batches(texts, side)
            longer = int(reader.truncated_) - before
        else:
            whole = [(self._prompts[side] or "") + text for side, texts in sides.items() for text in texts]
            ids = self.encoder.tokenizer(whole, verbose=False)["input_ids"]
            longer = 0 if most is None else sum(len(row) > most for row in ids)
        return longer, sum(map(len, sides.values()))

    def orders(self, lists: Sequence[RankList]) -> list[list[int]]:
        """Indices of each list's candidates, best first; equal scores stay in first-stage order."""
        queries, passages = texts_of(lists)
        pairs = [(query, passage) for query, several in zip(queries, passages, strict=True) for passage in several]
        with torch.no_grad():
            scores = self(self.preprocess(pairs))["scores"].cpu().split([len(several) for several in passages])
        return [np.argsort(-each.numpy(), kind="stable").tolist() for each in scores]


class OnLists(Objective):
    """One of the losses, on lists of candidates and their relevance.

    Args:
        name: of the loss, in `losses`.
        scorer: what is trained.
        samples: rankings drawn a query.
    """

    def __init__(self, name: str, scorer: DualScorer, samples: int) -> None:
        self.name, self.samples, self.scorer = name, samples, scorer
        self._loss = losses(scorer, samples)[name]

    def get_config_dict(self) -> dict[str, Any]:
        return {"loss": self.name, "samples": self.samples}

    def collate(self, items: Sequence[tuple[int, RankList]]) -> dict[str, Any]:
        return {"lists": [each for _, each in items]}

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        place = self.scorer.device
        relevance = [torch.tensor(each.labels, dtype=torch.float32, device=place) for each in batch["lists"]]
        return self._loss(texts_of(batch["lists"]), relevance, generator)

    def tokens(self, batch: Mapping[str, Any]) -> int:
        return self.scorer.read


def losses(scorer: DualScorer, samples: int) -> dict[str, Loss]:
    """The losses, called with ([query], [[passage]]), a list of relevances (n,), and what rankings are drawn from."""
    from sentence_transformers.cross_encoder import losses as theirs

    def contrastive(inputs: Lists, labels: list[Tensor], generator: torch.Generator) -> Tensor:
        queries, passages = inputs
        pairs = [(query, passage) for query, several in zip(queries, passages, strict=True) for passage in several]
        scores = scorer(scorer.preprocess(pairs))["scores"].split([len(several) for several in passages])
        right = [relevance > 0 for relevance in labels]
        return torch.stack([-one.log_softmax(-1)[held].mean() for one, held in zip(scores, right, strict=True)]).mean()

    def given(loss: Any) -> Loss:
        return lambda inputs, labels, generator: loss(inputs, labels)

    def ours(utility: str, **settings: Any) -> Loss:
        loss = PlackettLucePolicyGradient(scorer, utility, n_samples=samples, **settings)
        return lambda inputs, labels, generator: loss(inputs, labels, generator=generator)

    model: Any = scorer
    whole: dict[str, Any] = {"mini_batch_size": -1}  # all pairs of a step at once
    return {
        CONTRASTIVE: contrastive,
        LISTNET: given(theirs.ListNetLoss(model, **whole)),
        RANKNET: given(theirs.RankNetLoss(model, **whole)),
        LAMBDA: given(theirs.LambdaLoss(model, **whole)),
        FOR_NDCG: ours("ndcg@10"),
        FOR_MRR: ours("mrr@10"),
        NO_BASELINE: ours("ndcg@10", baseline="none"),
    }


def texts_of(lists: Sequence[RankList]) -> Lists:
    """The queries, and the candidates of each as they are encoded."""
    return [each.query for each in lists], [list(map(document_text, each.documents)) for each in lists]
