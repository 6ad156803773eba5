"""What a trial asks of embedders: each task as an `EvalTask`, and the options that trials of the stage share.

Knows: embedders, the stage's tasks, `Trial`. Does not know: any paper.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.data import corpora
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.retrieval.metrics import evaluate
from broadsheet.embed.data import doc_tasks, tasks
from broadsheet.embed.data.tasks import (
    CLUSTERING,
    DUPLICATES,
    RETRIEVAL,
    SPEARMAN,
    LabelledText,
    Query,
    RetrievalTask,
    SentencePair,
    Triple,
)
from broadsheet.options import option
from broadsheet.trial.base import EvalTask, ModelArm, Trial
from broadsheet.trial.engine import Arm, Outputs
from broadsheet.trial.examples import excerpt, first_found, marked, most_apart, standing
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Example
from broadsheet.trial.stats import Floats

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_DEPTH = 100  # of a ranking that is judged
_FIRST = "first passage"  # the output that names it, by its place in the corpus
Count = int | Literal["all"]


@dataclass
class EmbedderTrial(Trial):
    """The options that trials of embedders share: the sizes of their tasks. A subclass changes defaults by redeclaring.

    `retrieval` and `similarity` are the stage's tasks with these sizes.
    """

    sts: str | None = option(
        None,
        "Sentence pairs with gold scores: a file, `resource:stsb/stsb-dev.tsv`, `hf:org/name:split`; similarity too.",
        metavar="FILE",
    )
    pairs: Count = option(300, "Sentence pairs of --sts.", quick=30, least=1)
    queries: Count = option(60, "That search; `all` of a BEIR folder.", quick=10, least=1)
    passages: Count = option(300, "That are searched; `all` of a BEIR folder.", quick=40, least=1)
    words: int = option(30, "Of a passage that is read; 0: all.", quick=15, least=0)
    split: str = option("test", "Of a BEIR folder's qrels that is tried.", metavar="NAME")

    def retrieval(self) -> RetrievalTask:
        """Queries and passages: of documentation that is held out, or of a BEIR folder."""
        return tasks.retrieval(
            self.data, number(self.queries), number(self.passages), words=self.words, split=self.split, seed=self.seed
        )

    def similarity(self) -> list[EvalTask]:
        """The task of `--sts`; empty where it is not given."""
        if self.sts is None:
            return []
        return [sts_task(tasks.sts(self.sts, number(self.pairs), self.seed), Path(self.sts).name)]

    def load(self, folder: Path) -> SentenceTransformer:
        """A trained embedder, read back in the trial's dtype."""
        from broadsheet.embed.base import load

        return load(folder, dtype=self.dtype)

    def tuning(self, trained: Collection[str]) -> RetrievalTask:
        """What learning rates are chosen by: documentation that is neither asked nor among the passages `trained`."""
        data = self.data if is_pydocs(self.data) else "pydocs"
        return doc_tasks.tuning("summary", 100, 300, without=trained, words=self.words, seed=self.seed, data=data)

    def found(self, task: RetrievalTask, model: SentenceTransformer) -> float:
        """The mean nDCG@10 of an embedder on a task."""
        vectors = _unit(model.encode_document(list(task.corpus.values()), show_progress_bar=False))
        judged = _judged(task, task.queries, _order(model, task.queries, vectors), ["nDCG@10"])
        return float(np.mean(judged["nDCG@10"]))


@dataclass
class GeneratingTrial(EmbedderTrial):
    """The base of trials whose embedders still generate, and which ask what that has lost."""

    elsewhere: str | None = option(
        None, "Texts of another kind, whose perplexity shows what generation forgets.", metavar="DATA"
    )

    def written(self, passages: Sequence[str]) -> list[EvalTask]:
        """Perplexity of held-out passages, and of as many texts of `--elsewhere`."""
        asked = [perplexity_task(passages)]
        if self.elsewhere:
            others = [document.text for document in corpora.load(self.elsewhere).take(len(passages), self.seed)]
            asked.append(perplexity_task(others, "elsewhere", f"texts of {self.elsewhere}"))
        return asked


def number(count: Count) -> int:
    """As the stage's tasks take it: 0 is all."""
    return 0 if count == "all" else int(count)


def sts_task(pairs: Sequence[SentencePair], about: str = "") -> EvalTask:
    """Similarity of sentence pairs: rows of cosine and gold score, for Spearman's ρ."""

    def arm(arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        def run(block: Sequence[SentencePair]) -> Outputs:
            cosines = _cosines(model(), [pair.a for pair in block], [pair.b for pair in block])
            return {"similarity": [[cosine, pair.score] for cosine, pair in zip(cosines, block, strict=True)]}

        return Arm(arm.name, run, description=arm.description, prepare=model.prepare)

    return EvalTask(
        "STS",
        pairs,
        [SPEARMAN],
        arm,
        item="text",
        per_item=2,
        about=f"{len(pairs)} sentence pairs" + f" of {about}" * bool(about),
        fingerprint=fingerprint([[p.a, p.b, p.score] for p in pairs]),
        examples=_similar,
    )


def _similar(pairs: Sequence[SentencePair], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Pairs with how alike an arm finds them, in the share of all pairs that it finds less alike."""
    by_arm = {name: standing([cosine for cosine, _ in arm.samples["similarity"]]) for name, arm in arms.items()}
    people = standing([pair.score for pair in pairs])
    found = []
    for i in most_apart([{name: float(shares[i]) for name, shares in by_arm.items()} for i in range(len(pairs))]):
        told = {
            name: f"more alike than {shares[i]:.0%} of the pairs (cosine {arms[name].samples['similarity'][i][0]:.2f})"
            for name, shares in by_arm.items()
        }
        expected = f"Right: more alike than {people[i]:.0%} of the pairs (score {pairs[i].score:g})"
        found.append(Example(f"{excerpt(pairs[i].a)}\n{excerpt(pairs[i].b)}", told, expected))
    return found


def duplicates_task(triples: Sequence[Triple]) -> EvalTask:
    """Near-duplicates against unlike texts: rows of the unlike and the like text's cosine."""

    def arm(arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        def run(block: Sequence[Triple]) -> Outputs:
            texts = [getattr(triple, side) for side in ("anchor", "near", "far") for triple in block]
            anchors, near, far = np.split(_unit(model().encode(texts, show_progress_bar=False)), 3)
            return {"pair": np.stack([(anchors * far).sum(1), (anchors * near).sum(1)], axis=1)}  # type: ignore[dict-item]

        return Arm(arm.name, run, description=arm.description, prepare=model.prepare)

    return EvalTask(
        "duplicates",
        triples,
        [DUPLICATES],
        arm,
        item="text",
        per_item=3,
        about=f"{len(triples)} near-duplicate docstrings, each beside an unlike one of its package and length",
        fingerprint=fingerprint([[t.anchor, t.near, t.far] for t in triples]),
        examples=_duplicates,
    )


def _duplicates(triples: Sequence[Triple], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Texts with the cosines that an arm gives the near-duplicate and the unlike text."""
    apart = [
        {name: near - far for name, arm in arms.items() for far, near in [arm.samples["pair"][i]]}
        for i in range(len(triples))
    ]
    found = []
    for i in most_apart(apart):
        told = {
            name: marked(near > far, f"{near:.2f} for the near-duplicate, {far:.2f} for the unlike text")
            for name, arm in arms.items()
            for far, near in [arm.samples["pair"][i]]
        }
        expected = f"Near-duplicate: {excerpt(triples[i].near)}\nUnlike: {excerpt(triples[i].far)}"
        found.append(Example(excerpt(triples[i].anchor), told, expected))
    return found


def retrieval_task(task: RetrievalTask) -> EvalTask:
    """Queries to nDCG@10, RR@10 and R@100 over the task's corpus.

    The corpus is encoded once, while the arm is prepared (its seconds are among those of preparing), and its vectors
    are kept, so that a trial that was stopped need not encode it again.
    """
    texts = list(task.corpus.values())
    measures = [metric.of or metric.name for metric in RETRIEVAL]

    def arm(arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        vectors: list[Floats] = []

        def prepare() -> None:
            made = model()
            vectors[:] = [_kept(kept, lambda: _unit(made.encode_document(texts, show_progress_bar=False)))]

        def run(block: Sequence[Query]) -> Outputs:
            order = _order(model(), block, vectors[0])
            return {**_judged(task, block, order, measures), _FIRST: [int(row[0]) for row in order]}

        return Arm(arm.name, run, description=arm.description, prepare=prepare)

    return EvalTask(
        "retrieval",
        task.queries,
        RETRIEVAL,
        arm,
        item="text",
        about=task.about,
        fingerprint=task.fingerprint(),
        examples=partial(_found, task),
    )


def _order(model: SentenceTransformer, asked: Sequence[Query], vectors: Floats) -> Any:
    """(queries, depth) places of the passages with these vectors, the nearest first."""
    queries = _unit(model.encode_query([query.text for query in asked], show_progress_bar=False))
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :_DEPTH]


def _judged(task: RetrievalTask, asked: Sequence[Query], order: Any, measures: Sequence[str]) -> dict[str, list[float]]:
    """Each measure of each query's ranking, (queries, depth) places in the corpus."""
    names = list(task.corpus)
    rankings = {query.id: [names[i] for i in row] for query, row in zip(asked, order, strict=True)}
    values = evaluate(rankings, {query.id: task.qrels[query.id] for query in asked}, measures)
    return {measure: [values[measure][query.id] for query in asked] for measure in measures}


def _found(task: RetrievalTask, queries: Sequence[Query], arms: Mapping[str, ArmResult]) -> list[Example]:
    """Queries with the passage that each arm puts first."""
    corpus = list(task.corpus.items())
    firsts = [{name: int(arm.samples[_FIRST][i]) for name, arm in arms.items()} for i in range(len(queries))]
    found = []
    for place in most_apart([{name: str(i) for name, i in row.items()} for row in firsts]):
        relevant = {name for name, grade in task.qrels[queries[place].id].items() if grade > 0}
        made = {arm: (corpus[i][0] in relevant, corpus[i][1]) for arm, i in firsts[place].items()}
        right = next((text for name, text in corpus if name in relevant), None)
        found.append(first_found(queries[place].text, made, right))
    return found


def clustering_task(
    documents: Sequence[LabelledText], *, runs: int = 5, neighbours: int = 5, seed: int = 0
) -> EvalTask:
    """Places in `documents` to whether the nearest others name the label, and to clusters.

    All documents are encoded while the arm is prepared, and clustered by k-means with as many clusters as labels.

    Args:
        runs: seeded k-means runs that V-measure averages.
        neighbours: whose most frequent label is the guess; among equals that of the nearest.
    """
    numbers = {label: i for i, label in enumerate(dict.fromkeys(document.label for document in documents))}
    labels, texts = [numbers[document.label] for document in documents], [document.text for document in documents]

    def arm(arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        made: dict[str, Any] = {}

        def prepare() -> None:
            from sklearn.cluster import KMeans

            embedder = model()
            vectors = _kept(kept, lambda: _unit(embedder.encode(texts, show_progress_bar=False)))
            similarity = vectors @ vectors.T
            np.fill_diagonal(similarity, -np.inf)
            made["near"] = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
            made["clusters"] = [
                KMeans(len(numbers), n_init=1, random_state=seed + run).fit_predict(vectors) for run in range(runs)
            ]

        def run(block: Sequence[int]) -> Outputs:
            right = []
            for i in block:
                votes = [labels[j] for j in made["near"][i]]
                right.append(float(max(votes, key=votes.count) == labels[i]))
            clusters = [[labels[i], *(int(of_run[i]) for of_run in made["clusters"])] for i in block]
            return {"kNN accuracy": right, "clusters": clusters}

        return Arm(arm.name, run, description=arm.description, prepare=prepare)

    return EvalTask(
        "clustering",
        range(len(documents)),
        CLUSTERING,
        arm,
        item="text",
        about=f"{len(documents)} passages of {len(numbers)} packages",
        fingerprint=fingerprint([[d.text, d.label] for d in documents]),
    )


def perplexity_task(texts: Sequence[str], elsewhere: str = "", about: str = "held-out passages") -> EvalTask:
    """Texts to their loss as the model writes them: perplexity per token, which training must not ruin.

    Args:
        elsewhere: put behind the task's and the metric's name, where a trial asks about texts of another kind too.
        about: what they are.
    """
    from broadsheet.embed.trials.perplexity import PERPLEXITY, text_losses

    name = f"perplexity {elsewhere}".strip()

    def arm(arm: ModelArm, model: LazyModel, kept: Path | None = None) -> Arm:
        def run(block: Sequence[str]) -> Outputs:
            return {f"losses {elsewhere}".strip(): text_losses(model().encoder, block)}  # type: ignore[dict-item]

        return Arm(arm.name, run, description=arm.description, prepare=model.prepare)

    return EvalTask(
        name,
        texts,
        [replace(PERPLEXITY, name=name, of=f"losses {elsewhere}".strip())],
        arm,
        item="text",
        about=f"{len(texts)} {about}, read as the model would write them",
        fingerprint=fingerprint(list(texts)),
    )


def training_note(name: str, folder: Path) -> str:
    """How the embedder in `folder` was trained, from the record that `fit` leaves there; for a trial's notes.

    Example:
        "GEM: trained in 60 steps of 16, 41,230 tokens, 103 s (lora, learning rate 0.0002)."
    """
    from broadsheet.models.safefiles import read_json

    kept = read_json(folder / "training.json")
    how = kept["settings"]
    return (
        f"{name}: trained in {kept['steps']:,} steps of {how['batch_size'] * how['accumulate']}, "
        f"{kept['tokens']:,} tokens, {kept['seconds']:,.0f} s ({how['method']}, learning rate "
        f"{how['learning_rate']:g})."
    )


def _unit(vectors: Any) -> Floats:
    """(n, dimensions) in float64, of length 1 (0 where a vector is 0)."""
    array = np.asarray(vectors, dtype=np.float64)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)


def _cosines(model: SentenceTransformer, first: list[str], second: list[str]) -> Floats:
    one, other = np.split(_unit(model.encode(first + second, show_progress_bar=False)), 2)
    return np.asarray((one * other).sum(axis=1))


def _kept(path: Path | None, compute: Callable[[], Floats]) -> Floats:
    """What was computed under this name before, or now."""
    if path is None:
        return compute()
    if not path.exists():
        vectors = compute()
        with atomic_write(path, "wb") as file:
            np.save(file, vectors)
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
