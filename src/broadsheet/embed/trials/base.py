"""Embedders as arms of a trial: what each task asks of them, and several tasks asked of the same embedders.

Knows: tasks, `encode`, the A/B engine. Does not know: which embedders a paper wants.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet.cache import atomic_write, fingerprint, home
from broadsheet.console import say
from broadsheet.data.retrieval.metrics import evaluate
from broadsheet.embed.data.tasks import (
    CLUSTERING,
    DUPLICATES,
    RETRIEVAL,
    SPEARMAN,
    Labelled,
    Query,
    RetrievalTask,
    SentencePair,
    Triple,
)
from broadsheet.trial.engine import Arm, Metric, Outputs, run_arms
from broadsheet.trial.results import ArmResult, Role, joined
from broadsheet.trial.stats import Comparison, Floats

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    Source = SentenceTransformer | Callable[[], SentenceTransformer]

_DEPTH = 100  # of a ranking that is judged


class LazyModel:
    """An embedder that is made when it is first asked for, once for the arms of all tasks.

    Args:
        source: the embedder, or what makes it (loads, trains). What it raises is raised again for each arm.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._made: SentenceTransformer | None = None
        self._error: Exception | None = None

    def __call__(self) -> SentenceTransformer:
        """The embedder, in eval mode."""
        from sentence_transformers import SentenceTransformer

        if self._error:
            raise self._error
        if self._made is None:
            try:
                made = self.source if isinstance(self.source, SentenceTransformer) else self.source()
                self._made = made.eval()
            except Exception as error:
                self._error = error
                raise
        return self._made

    def prepare(self) -> None:
        """Make it now."""
        self()

    def drop(self) -> None:
        """Let go of what was made, and of its memory."""
        self._made = None
        gc.collect()


def sts_arm(name: str, embedder: Source | LazyModel, role: Role = "method", description: str = "") -> Arm:
    """Sentence pairs (`tasks.SentencePair`) to rows of cosine and gold score, the output of `SPEARMAN`."""
    held = _held(embedder)

    def run(block: Sequence[SentencePair]) -> Outputs:
        cosines = _cosines(held(), [pair.a for pair in block], [pair.b for pair in block])
        return {"similarity": [[cosine, pair.score] for cosine, pair in zip(cosines, block, strict=True)]}

    return Arm(name, run, role, description, prepare=held.prepare)


def duplicates_arm(name: str, embedder: Source | LazyModel, role: Role = "method", description: str = "") -> Arm:
    """Near-duplicates (`tasks.Triple`) to rows of the unlike and the like text's cosine, the output of `DUPLICATES`."""
    held = _held(embedder)

    def run(block: Sequence[Triple]) -> Outputs:
        anchors, near, far = np.split(
            _unit(
                held().encode(
                    [triple.anchor for triple in block]
                    + [triple.near for triple in block]
                    + [triple.far for triple in block],
                    show_progress_bar=False,
                )
            ),
            3,
        )
        return {"pair": np.stack([(anchors * far).sum(1), (anchors * near).sum(1)], axis=1)}  # type: ignore[dict-item]

    return Arm(name, run, role, description, prepare=held.prepare)


def retrieval_arm(
    name: str,
    embedder: Source | LazyModel,
    task: RetrievalTask,
    role: Role = "method",
    description: str = "",
    *,
    kept: Path | None = None,
) -> Arm:
    """Queries (`task.queries`) to nDCG@10, RR@10 and R@100 over the task's corpus.

    The corpus is encoded once, while the arm is prepared: its seconds are among those of preparing.

    Args:
        kept: a file for the corpus's vectors, so that a trial that was stopped need not encode it again.
    """
    held = _held(embedder)
    names = list(task.corpus)
    vectors: list[Floats] = []

    def prepare() -> None:
        model = held()
        texts = list(task.corpus.values())
        vectors[:] = [_kept(kept, lambda: _unit(model.encode_document(texts, show_progress_bar=False)))]

    def run(block: Sequence[Query]) -> Outputs:
        queries = _unit(held().encode_query([query.text for query in block], show_progress_bar=False))
        order = np.argsort(-(queries @ vectors[0].T), axis=1, kind="stable")[:, :_DEPTH]
        rankings = {query.id: [names[i] for i in row] for query, row in zip(block, order, strict=True)}
        measures = [metric.of or metric.name for metric in RETRIEVAL]
        values = evaluate(rankings, {query.id: task.qrels[query.id] for query in block}, measures)
        return {measure: [values[measure][query.id] for query in block] for measure in measures}

    return Arm(name, run, role, description, prepare=prepare)


def clustering_arm(
    name: str,
    embedder: Source | LazyModel,
    documents: Sequence[Labelled],
    role: Role = "method",
    description: str = "",
    *,
    runs: int = 5,
    neighbours: int = 5,
    seed: int = 0,
    kept: Path | None = None,
) -> Arm:
    """Places in `documents` to whether the nearest others name the label, and to clusters, the outputs of `CLUSTERING`.

    All documents are encoded while the arm is prepared, and clustered by k-means with as many clusters as labels.

    Args:
        runs: seeded k-means runs that V-measure averages.
        neighbours: whose most frequent label is the guess; among equals that of the nearest.
        kept: a file for the documents' vectors.
    """
    held = _held(embedder)
    numbers = {label: i for i, label in enumerate(dict.fromkeys(document.label for document in documents))}
    labels = [numbers[document.label] for document in documents]
    made: dict[str, Any] = {}

    def prepare() -> None:
        from sklearn.cluster import KMeans

        model = held()
        texts = [document.text for document in documents]
        vectors = _kept(kept, lambda: _unit(model.encode(texts, show_progress_bar=False)))
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

    return Arm(name, run, role, description, prepare=prepare)


@dataclass
class ModelArm:
    """An embedder that takes part in a trial: one arm in each of its tasks.

    Args:
        source: the embedder, or what makes it. See `trained` for one that is trained first.
    """

    name: str
    source: Source
    role: Role = "method"
    description: str = ""


@dataclass(frozen=True)
class EvalTask:
    """A task as a trial runs it.

    Args:
        name: as errors and files name it.
        items: what the arms answer.
        metrics: that are computed from the answers.
        arm: `(name, lazy embedder, role, description, file for vectors)` to the arm.
        texts: read with each item, for texts/s.
        about: one line for the trial's setting.
    """

    name: str
    items: Sequence[Any]
    metrics: Sequence[Metric]
    arm: Callable[[str, LazyModel, Role, str, Path], Arm] = field(repr=False)
    texts: int = 1
    about: str = ""
    fingerprint: str = ""

    @classmethod
    def sts(cls, pairs: Sequence[SentencePair], about: str = "") -> EvalTask:
        """Similarity of sentence pairs."""
        return cls(
            "STS", pairs, [SPEARMAN], lambda name, held, role, said, _: sts_arm(name, held, role, said), 2,
            f"{len(pairs)} sentence pairs" + f" of {about}" * bool(about),
            fingerprint([[p.a, p.b, p.score] for p in pairs]),
        )  # fmt: skip

    @classmethod
    def retrieval(cls, task: RetrievalTask) -> EvalTask:
        """Queries and their passages."""

        def arm(name: str, held: LazyModel, role: Role, said: str, kept: Path) -> Arm:
            return retrieval_arm(name, held, task, role, said, kept=kept)

        return cls("retrieval", task.queries, RETRIEVAL, arm, 1, task.about, task.fingerprint())

    @classmethod
    def duplicates(cls, triples: Sequence[Triple]) -> EvalTask:
        """Near-duplicates against unlike texts."""
        return cls(
            "duplicates", triples, [DUPLICATES],
            lambda name, held, role, said, _: duplicates_arm(name, held, role, said), 3,
            f"{len(triples)} near-duplicate docstrings, each beside an unlike one of its package and length",
            fingerprint([[t.anchor, t.near, t.far] for t in triples]),
        )  # fmt: skip

    @classmethod
    def clustering(cls, documents: Sequence[Labelled], seed: int = 0) -> EvalTask:
        """Documents and their labels."""

        def arm(name: str, held: LazyModel, role: Role, said: str, kept: Path) -> Arm:
            return clustering_arm(name, held, documents, role, said, seed=seed, kept=kept)

        return cls(
            "clustering", range(len(documents)), CLUSTERING, arm, 1,
            f"{len(documents)} passages of {len({d.label for d in documents})} packages",
            fingerprint([[d.text, d.label] for d in documents]),
        )  # fmt: skip


def compare(
    candidates: Sequence[ModelArm],
    jobs: Sequence[EvalTask],
    folder: Path,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    blocks: int = 10,
) -> tuple[list[ArmResult], list[Comparison]]:
    """Every task with every candidate: one result an arm, with the metrics of all tasks.

    texts/s are those of the first task, where the candidates' blocks take turns; the corpus of a retrieval task is
    encoded before the clock starts, so another task tells more about speed.

    Args:
        candidates: one of them with role `"baseline"`.
        jobs: tasks whose metrics differ in name.
        folder: where journals and vectors are kept; a repeated call with the same folder goes on where the last one
            stopped. See `workdir`.
        pairs: further comparisons, `(baseline name, arm name)`.
        blocks: timed turns of each arm, in each task.

    Raises:
        ValueError: two tasks have a metric of one name.
    """
    metrics = [metric.name for job in jobs for metric in job.metrics]
    if len(set(metrics)) < len(metrics):
        raise ValueError(f"got metrics {metrics}; expected each name once")
    held = {candidate.name: LazyModel(candidate.source) for candidate in candidates}
    whole: list[ArmResult] = []
    comparisons: list[Comparison] = []
    try:
        for turn, job in enumerate(jobs):
            say(f"{job.name}: {job.about}")
            arms = [
                job.arm(c.name, held[c.name], c.role, c.description, folder / f"{job.name}-{fingerprint(c.name)}.npy")
                for c in candidates
            ]
            results, found = run_arms(
                arms,
                list(job.items),
                job.metrics,
                block_size=max(1, -(-len(job.items) // blocks)),
                pairs=pairs,
                item="text",
                per_item=job.texts,
                seed=seed,
                journal=folder / f"{job.name}.jsonl",
            )
            results = [replace(r, error=f"{job.name}: {r.error}") if r.error else r for r in results]
            whole = [joined(a, b) for a, b in zip(whole, results, strict=True)] if turn else results
            comparisons += [c for c in found if not turn or c.metric != "texts/s"]
    finally:
        for each in held.values():
            each.drop()
    usable = {arm.name for arm in whole if arm.status == "ok"}
    return whole, [c for c in comparisons if {c.baseline, c.arm} <= usable]


def trained(
    folder: Path, train: Callable[[Path], object], *, dtype: str | None = None
) -> Callable[[], SentenceTransformer]:
    """A candidate's source that is trained on first use, and read back from its folder: a killed trial trains on.

    Args:
        folder: where the trained embedder will stand; below `workdir(…)`.
        train: makes it there, such as `lambda out: fit(embedder(…), rows, loss, out=out, steps=100)`. It is called
            unless the folder holds an embedder. What it returns is let go of, so that training's memory is free again
            before anything is timed.
        dtype: that it is read back in.

    Example:
        ModelArm("contrastive", trained(folder / "contrastive", lambda out: fit(start(), rows, loss, out, steps=50)))
    """

    def make() -> SentenceTransformer:
        from broadsheet.embed.base import load

        if not (folder / "modules.json").exists():
            made = train(folder)
            if getattr(made, "finished", True) is False:
                raise KeyboardInterrupt  # its checkpoint is kept, and the trial goes on from there
            del made
            gc.collect()
        return load(folder, dtype=dtype)

    return make


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


def workdir(*key: Any) -> Path:
    """The folder below the cache that a trial keeps its journals, vectors and trained embedders in.

    Args:
        key: everything that decides the outcome, as JSON values.
    """
    folder = home() / "trials" / f"embed-{fingerprint(key)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear(folder: Path) -> None:
    """Remove a work directory; called when the trial's result is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _held(source: Source | LazyModel) -> LazyModel:
    return source if isinstance(source, LazyModel) else LazyModel(source)


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
