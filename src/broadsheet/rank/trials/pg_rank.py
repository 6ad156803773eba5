"""Try PG-RANK: scorers over a model's embeddings, trained for the metric itself or by losses that stand in for it.

Knows: lists, frozen vectors of texts, the stage's and sentence-transformers' losses, rerankers. Does not know: how
lists are made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from broadsheet import models
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say, track
from broadsheet.data.retrieval.metrics import evaluate_lists
from broadsheet.options import option
from broadsheet.rank.trials.base import FIRST_STAGE, RerankerTrial
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Outputs
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.arms import TrainedTrial

if TYPE_CHECKING:
    from torch import Tensor

    from broadsheet.data.retrieval.lists import RankList
    from broadsheet.rank.base import ListwiseReranker

UNTRAINED, CONTRASTIVE = "untrained", "contrastive"
LISTNET, RANKNET, LAMBDA = "ListNet", "RankNet", "LambdaLoss"
FOR_NDCG, FOR_MRR, NO_BASELINE = "PG-RANK for nDCG@10", "PG-RANK for MRR@10", "PG-RANK without a baseline"
ABOUT = {
    CONTRASTIVE: "cross-entropy of the right passage among the candidates",
    LISTNET: "sentence-transformers' loss",
    RANKNET: "sentence-transformers' loss",
    LAMBDA: "sentence-transformers' loss, with NDCG-Loss 2++",
    FOR_NDCG: "policy gradient, leave-one-out baseline",
    FOR_MRR: "policy gradient, leave-one-out baseline",
    NO_BASELINE: "the same policy gradient for nDCG@10, every ranking credited with its whole utility",
}
BEFORE, AFTER = "before PG-RANK", "after PG-RANK"
RATES = (3e-4, 1e-3, 3e-3)  # learning rates that each loss's is chosen from
_DEV = 0.2  # of the training lists, to choose them on
_SCALE = 20.0  # of cosines, at first


@dataclass
class PGRankTrial(RerankerTrial, TrainedTrial):
    """A scorer trained for nDCG or MRR by policy gradient: does it beat one trained by a loss that stands in for them?

    The scorers are dual encoders on a frozen trunk: texts are embedded once by the model (mean of its last states), and
    a linear map for queries and one for passages, both the identity at first, are trained on the candidates of a first
    stage; a score is a scaled cosine. All losses start from the same scorer, see the same lists in the same order for
    as many steps, and have their learning rate chosen alike on lists that no test asks: contrast, ListNet, RankNet and
    LambdaLoss, and PG-RANK for nDCG@10, for MRR@10, and without the baseline that lowers its variance.

    With --reranker and --after, two rerankers instead: one that FIRST trained, and the same after PG-RANK on its
    identifiers' logits (`broadsheet apply pg_rank`).
    """

    paper: ClassVar[str] = "pg_rank"
    title: ClassVar[str] = "Rank: train for the metric itself"

    reranker: str | None = option(None, "A reranker before PG-RANK.", metavar="FOLDER")
    after: str | None = option(
        None, "The same after it, or after as many further steps of another loss.", metavar="FOLDER"
    )
    lists: int = option(1500, "To train on, a fifth of them to choose learning rates on.", quick=60, least=10)
    queries: int | Literal["all"] | None = option(300, "Lists of the test; `all` of a BEIR folder.", quick=24)
    steps: int = option(200, "Of training.", quick=10, least=1)
    batch: int = option(32, "Lists of a step.", quick=8, least=1)
    samples: int = option(32, "Rankings drawn a query and step.", least=2)

    def check(self) -> None:
        if bool(self.reranker) != bool(self.after):
            raise InputError("got one of --reranker and --after; expected both, before and after PG-RANK, or neither")

    def question(self) -> str:
        if self.after:
            return "Does PG-RANK on the identifiers' logits improve a reranker that FIRST has trained?"
        return f"Is a scorer over {self.model_name}'s embeddings better if it is trained for the metric itself?"

    def tasks(self) -> list[EvalTask]:
        asked = self.ordering()
        if not self.after:
            found = self.training_lists(self.lists, self.candidates)
            if len(found) < 2 * self.batch:
                raise InputError(f"{self.data} gives {len(found)} training lists; expected {2 * self.batch} at least")
            held = max(1, int(_DEV * len(found)))
            self._train_lists, self._dev = found[held:], found[:held]
        return [asked]

    def facts(self) -> dict[str, Any]:
        if not self.after:
            ids = [each.id for each in (*self._train_lists, *self._dev)]
            return {**super().facts(), "training data": fingerprint(ids)}
        folders = {"model": self.after, "before": self.reranker}
        return {
            key: {"name": name, "fingerprint": models.fingerprint(self._rerankers[str(name)].model)}
            for key, name in folders.items()
        }

    @cached_property
    def _rerankers(self) -> dict[str, ListwiseReranker]:
        return {str(name): self.load(str(name), decode="first_token") for name in (self.reranker, self.after)}

    def setting(self) -> Mapping[str, Any]:
        if self.after:
            return {
                **self.ranking_setting(self._rerankers[self.after]),
                "model": f"{self.reranker}, and {self.after}",
            }
        return {
            "scorer": "scaled cosine of two linear maps over frozen embeddings",
            "training": f"{self.steps} steps of {self.batch} of {len(self._train_lists):,} lists, AdamW, "
            + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items())
            + f"; {self.samples} rankings drawn a query",
        }

    def arms(self) -> list[ModelArm]:
        from broadsheet.rank.pg_rank import PlackettLucePolicyGradient

        paper = PlackettLucePolicyGradient.paper
        if self.after:
            folders = self._rerankers
            return [
                ModelArm(BEFORE, lambda: folders[str(self.reranker)], "baseline", "first token"),
                ModelArm(AFTER, lambda: folders[str(self.after)], None, "first token", paper),
                *(
                    ModelArm(Path(name).name, partial(self.load, name, decode="first_token"), description="first token")
                    for name in self.also
                ),
                self.unranked(),
            ]
        self._vectors = self._embedded()
        self._rates = {name: self._rate(name) for name in ABOUT}
        found = [
            self.trained(
                name,
                partial(self._train, name),
                self._read,
                "baseline" if name == CONTRASTIVE else "sibling" if name == NO_BASELINE else None,
                about,
                paper if name.startswith("PG-RANK") else "",
            )
            for name, about in ABOUT.items()
        ]
        return [*found, ModelArm(UNTRAINED, lambda: DualScorer(self._vectors), description="cosine"), self.unranked()]

    def arm(self, arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        if self.after or arm.name == FIRST_STAGE:
            return super().arm(arm, model, kept)

        def run(block: Sequence[RankList]) -> Outputs:
            orders = model().orders(block)
            values = evaluate_lists(block, [[each.ids[i] for i in o] for each, o in zip(block, orders, strict=True)])
            padded = [[*order, *[-1] * (self.candidates - len(order))] for order in orders]
            return {**values, "order": padded}

        return Arm(arm.name, run, description=arm.description, prepare=model.prepare)

    def claims(self) -> list[Claim]:
        if self.after:
            return [Claim("nDCG@10", BEFORE, AFTER, "tuning for the metric improves the metric (abstract)")]
        says = "training for the metric improves it in domain, over contrastive training (abstract)"
        lower = "the leave-one-out baseline is what lets policy gradient learn"
        return [
            Claim("nDCG@10", CONTRASTIVE, FOR_NDCG, says),
            Claim("RR@10", CONTRASTIVE, FOR_MRR, says),
            Claim("nDCG@10", NO_BASELINE, FOR_NDCG, lower),
        ]

    def also_compare(self) -> list[tuple[str, str]]:
        if self.after:
            return [(name, AFTER) for name in (FIRST_STAGE, *(Path(name).name for name in self.also))]
        return [(name, FOR_NDCG) for name in (LISTNET, RANKNET, LAMBDA, UNTRAINED)] + [(FOR_NDCG, FOR_MRR)]

    def notes(self, outcome: Outcome) -> list[str]:
        if self.after:
            return super().notes(outcome)
        notes = super().notes(outcome)[:1]
        for name in ABOUT:
            record = self.folder(name) / "training.json"
            if record.exists():
                seconds = json.loads(record.read_text(encoding="utf-8"))["step_seconds"]
                notes.append(f"{name}: {1000 * float(np.median(seconds)):.1f} ms a step of {self.batch} lists.")
        return notes

    def absence(self, claim: Claim, comparison: Any, outcome: Outcome) -> str:
        if self.after:
            return ""
        return (
            "It tunes whole encoders on MS MARCO's queries; here the trunk is frozen, and linear maps learn from "
            f"{len(self._train_lists):,} lists."
        )

    # The scorers

    def _embedded(self) -> dict[str, Tensor]:
        """Every query and passage, as text, to the mean of the model's last states; kept, so that it is not redone."""
        import torch
        from safetensors.torch import load_file, save_file

        every = [*self.lists_.lists, *self._train_lists, *self._dev]
        texts = list(dict.fromkeys(text for each in every for text in (each.query, *map(_text, each.documents))))
        path = self.folder("vectors").with_suffix(".safetensors")
        if not path.exists():
            say(f"embedding {len(texts):,} texts with {self.model_name}")
            made = _embed(self.loaded.model, self.loaded.tokenizer, texts)
            self.release()
            with atomic_write(path, "wb") as file:
                save_file({"vectors": made}, file.name)
        rows = load_file(path)["vectors"]
        return dict(zip(texts, torch.nn.functional.normalize(rows, dim=-1), strict=True))

    def _rate(self, name: str) -> float:
        """The learning rate whose scorer orders the lists that are held from training best."""

        def score(rate: float) -> float:
            made = self._fitted(name, rate, self.seed)[0]
            orders = made.orders(self._dev)
            ids = [[each.ids[i] for i in order] for each, order in zip(self._dev, orders, strict=True)]
            return float(np.mean(evaluate_lists(self._dev, ids)["RR@10" if name == FOR_MRR else "nDCG@10"]))

        return self.tuned(name, RATES, score, on=f"{len(self._dev)} lists that are not trained on")

    def _train(self, name: str, seed: int, out: Path) -> None:
        from safetensors.torch import save_file

        made, seconds = self._fitted(name, self._rates[name], seed)
        out.mkdir(parents=True, exist_ok=True)
        save_file(made.head.state_dict(), out / "head.safetensors")
        with atomic_write(out / "training.json") as file:
            json.dump({"steps": self.steps, "seconds": sum(seconds), "step_seconds": seconds}, file)

    def _read(self, folder: Path) -> DualScorer:
        from safetensors.torch import load_file

        made = DualScorer(self._vectors)
        made.head.load_state_dict(load_file(folder / "head.safetensors"))
        return made

    def _fitted(self, name: str, rate: float, seed: int) -> tuple[DualScorer, list[float]]:
        """A trained scorer, and the seconds of each step. The lists of a step hang on the seed alone."""
        import torch

        # Not `training.fit`: its own work takes longer than such a step, and the notes say how long the losses take.
        made = DualScorer(self._vectors)
        loss = losses(made, self.samples, seed)[name]
        optimizer = torch.optim.AdamW(made.head.parameters(), lr=rate, weight_decay=0.01)
        generator = torch.Generator().manual_seed(seed)
        seconds = []
        for _ in range(self.steps):
            begin = time.perf_counter()
            chosen = torch.randint(len(self._train_lists), (self.batch,), generator=generator).tolist()
            lists = [self._train_lists[i] for i in chosen]
            optimizer.zero_grad()
            texts = [each.query for each in lists], [list(map(_text, each.documents)) for each in lists]
            loss(texts, [torch.tensor(each.labels, dtype=torch.float32) for each in lists]).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begin)
        return made, seconds


class DualScorer:
    """Scores of pairs from frozen vectors and two trained maps; called as sentence-transformers' losses call a
    `CrossEncoder`.

    Args:
        vectors: (d,) of length 1, by text.
    """

    num_labels = 1

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        import torch

        self.vectors = vectors
        width = len(next(iter(vectors.values())))
        scale = torch.tensor(_SCALE).log()
        self.head = torch.nn.ParameterDict({"query": torch.eye(width), "text": torch.eye(width), "scale": scale})
        self.device = torch.device("cpu")

    def preprocess(self, pairs: Sequence[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        """(pairs, d) vectors of each side."""
        import torch

        return {
            side: torch.stack([self.vectors[pair[i]] for pair in pairs]) for i, side in enumerate(("query", "text"))
        }

    def __call__(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """scores: (pairs,)."""
        from torch.nn.functional import cosine_similarity

        query, text = (tokens[side] @ self.head[side].T for side in ("query", "text"))
        return {"scores": self.head["scale"].exp() * cosine_similarity(query, text)}

    def orders(self, lists: Sequence[RankList]) -> list[list[int]]:
        """Indices of each list's candidates, best first; equal scores stay in first-stage order."""
        import torch

        with torch.no_grad():
            scores = [
                self(self.preprocess([(each.query, _text(text)) for text in each.documents]))["scores"].numpy()
                for each in lists
            ]
        return [np.argsort(-each, kind="stable").tolist() for each in scores]


Loss = Callable[[tuple[list[str], list[list[str]]], "list[Tensor]"], "Tensor"]


def losses(scorer: DualScorer, samples: int, seed: int) -> dict[str, Loss]:
    """The losses compared, called with ([query], [[passage]]) and a list of relevances (n,)."""
    import torch
    from sentence_transformers.cross_encoder import losses as theirs

    from broadsheet.rank.pg_rank import PlackettLucePolicyGradient

    def contrastive(inputs: tuple[list[str], list[list[str]]], labels: list[Tensor]) -> Tensor:
        queries, texts = inputs
        pairs = [(query, text) for query, several in zip(queries, texts, strict=True) for text in several]
        scores = scorer(scorer.preprocess(pairs))["scores"].split([len(several) for several in texts])
        right = [relevance > 0 for relevance in labels]
        each = [-one.log_softmax(-1)[held].mean() for one, held in zip(scores, right, strict=True)]
        return torch.stack(each).mean()

    def ours(utility: str, **settings: Any) -> Any:
        return PlackettLucePolicyGradient(scorer, utility, n_samples=samples, seed=seed, **settings)

    whole: dict[str, Any] = {"mini_batch_size": -1}  # all pairs of a step at once
    model: Any = scorer
    return {
        CONTRASTIVE: contrastive,
        LISTNET: theirs.ListNetLoss(model, **whole),
        RANKNET: theirs.RankNetLoss(model, **whole),
        LAMBDA: theirs.LambdaLoss(model, **whole),
        FOR_NDCG: ours("ndcg@10"),
        FOR_MRR: ours("mrr@10"),
        NO_BASELINE: ours("ndcg@10", baseline="none", reward_to_go=False),
    }


def _text(document: Any) -> str:
    """A passage as it is embedded."""
    return document if isinstance(document, str) else f"{document['title']} {document['text']}"


def _embed(model: Any, tokenizer: Any, texts: Sequence[str], batch_tokens: int = 4096) -> Tensor:
    """(texts, d) float32: the mean of the last states of each text's tokens."""
    import torch

    ids = [tokenizer(text, verbose=False)["input_ids"] or [tokenizer.eos_token_id] for text in texts]
    found = torch.empty(len(ids), model.config.get_text_config().hidden_size)
    for batch in track(models.token_budget_batches([len(row) for row in ids], batch_tokens), "embedding"):
        padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(model.device)
        with torch.no_grad():
            states = model.base_model(**padded, use_cache=False).last_hidden_state.float()
        mask = padded["attention_mask"][..., None]
        found[batch] = ((states * mask).sum(1) / mask.sum(1)).cpu()
    return found
