"""In-Context Pretraining (Shi et al., 2024, arXiv:2310.10638): each document beside its nearest, and none twice.

Knows: vectors of documents, their nearest neighbours, their beginnings. Does not know: where vectors come from
(`orders.vectors`), how neighbours are searched (`orders.neighbours`), tokens (`orders.contexts`), models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from broadsheet.apply.base import Source
from broadsheet.apply.corpus import Summary
from broadsheet.console import InputError, say, within
from broadsheet.curate.orders.neighbours import EXACT, NONE, Edges, Matrix, NeighbourGraph, Places, cosine, nearest
from broadsheet.curate.recipe import CurateRecipe, Passes
from broadsheet.options import option

if TYPE_CHECKING:
    from datatrove.data import Document

GRAM = 3  # characters
EXACT_COPY, NEAR_COPY, LIKE_LAST = "copy of another", "as another by its vector", "begins as the one before"


@dataclass(frozen=True)
class DocumentOrder:
    """Documents in the order that they are to be read in.

    Args:
        path: (kept,) places of the documents, as `datasets.Dataset.select` takes them.
        dropped: by reason, the places of the documents that are left out, in their own order.
        cosines: (kept − 1,) between each document of the path and the next.
        jumps: steps of the path between documents that are no neighbours: edges of weight 0.
    """

    path: Places
    dropped: dict[str, Places]
    cosines: NDArray[np.float32]
    jumps: int

    @property
    def cosine(self) -> float:
        """The mean of `cosines`; NaN where there are none."""
        return float(self.cosines.mean()) if len(self.cosines) else float("nan")


@dataclass
class InContextPretraining:
    """Order documents so that each stands beside its nearest: the model then reads related text in one context.

    Documents are points, similar ones are joined by an edge, and a path visits each once: at each step to the most
    similar one that is left; where none is, on to another with few neighbours. Copies go first: a model that may copy
    from its context learns nothing else.

    Use when a model is trained from nothing, or long, on documents much shorter than its context, and is to use what it
        is given there: examples, passages, an instruction. Prefer `DatasetDecomposition` where documents are to be read
        alone. Gains are reported after some 150 billion tokens.

    Inputs: texts, and vectors of them where TF-IDF is not to make these.
    Relation: deduplication by MinHash finds copies of long texts, this what is alike at all; run it before. Contexts
        are then cut by `Contexts`, or by TRL with `packing_strategy="wrapped"`; its default, `bfd`, undoes the order.

    Args:
        k: neighbours of a document (not stated; the authors' code walks 9 of 50).
        duplicate: cosine from which a document is a copy of an earlier one and dropped (not stated); None: copies stay.
        like_last: share of the 3-grams of its first 100 characters above which a document is not written after the one
            before (0.85 in the authors' code); None: no such rule.
        walk: `"paper"`: Algorithm 1; `"released"`: the authors' code, clusters of at most 21 documents.
        exact_up_to: documents up to which all are compared with all; beyond, faiss searches.
        nprobe: of faiss's lists (64).
        seed: of ties, and of faiss's training.

    Example:
        >>> from broadsheet.curate import InContextPretraining
        >>> texts = ["the cat sat", "shares fell today", "the cat ran", "shares rose today"]
        >>> InContextPretraining().order(texts).path.tolist()
        [1, 3, 2, 0]

    Source: arXiv:2310.10638, Sec. 2 and Algorithm 1, whose arg min is read as arg max, as its text says; the rule of
        3-grams and the other walk: swj0419/in-context-pretraining, sort/sort.py.
    """

    paper: ClassVar[str] = "in_context_pretraining"

    k: int = 9
    duplicate: float | None = 0.95
    like_last: float | None = 0.85
    walk: Literal["paper", "released"] = "paper"
    exact_up_to: int = EXACT
    nprobe: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, k=(1, None), nprobe=(1, None), exact_up_to=(0, None), seed=(0, None))
        if self.walk not in ("paper", "released"):
            raise InputError(f"got walk {self.walk!r}; expected 'paper' or 'released'")
        for name in ("duplicate", "like_last"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"got {name} {value}; expected more than 0 and 1 at most, or None")

    def order(self, texts: Sequence[str], vectors: Matrix | None = None) -> DocumentOrder:
        """The order of some documents.

        Args:
            texts: (documents,).
            vectors: (documents, dimensions), of any length, or a CSR array of unit rows; TF-IDF where None.

        Raises:
            InputError: there are no texts, or not as many vectors.
        """
        from broadsheet.curate.orders.vectors import HEAD, Function, TfIdf, digest

        texts = list(texts)
        if vectors is None:
            vectors = TfIdf()(texts) if texts else np.zeros((0, 1), np.float32)
        elif not sparse.issparse(vectors):
            vectors = Function(lambda given: vectors)(texts)
        digests = np.array([digest(text) for text in texts], np.uint64)
        return self.arrange(vectors, digests, [text[:HEAD] for text in texts])

    def arrange(self, vectors: Matrix, digests: NDArray[np.uint64], heads: Sequence[str]) -> DocumentOrder:
        """The order of documents of which no text is at hand, as ranks leave them.

        Args:
            vectors: (documents, dimensions) of unit length, or 0.
            digests: (documents,) equal where texts are.
            heads: (documents,) their first 100 characters.

        Raises:
            InputError: there are no documents, or not as many of each.
        """
        if not len(heads) or not vectors.shape[0] == len(digests) == len(heads):
            raise InputError(
                f"got {vectors.shape[0]} vectors of {len(heads)} documents; expected as many, one at least"
            )
        dropped: dict[str, Places] = {}
        kept = np.arange(len(heads))
        if self.duplicate is not None:
            kept = np.sort(np.unique(digests, return_index=True)[1])
            dropped[EXACT_COPY] = np.setdiff1d(np.arange(len(heads)), kept)
        kept, graph = self._distinct(vectors, kept)
        dropped[NEAR_COPY] = np.setdiff1d(np.arange(len(heads)), np.concatenate([kept, *dropped.values()]))
        edges = graph.undirected()
        if self.walk == "paper":
            path = greedy_path(edges, self.seed)
        else:
            path = np.array([i for cluster in merged(released_walk(graph.ids), graph.ids) for i in cluster], np.int64)
        if self.like_last is not None:
            new = np.array(unlike_last([heads[i] for i in kept[path]], self.like_last), np.int64)
            dropped[LIKE_LAST] = np.sort(kept[np.delete(path, new)])
            path = path[new]
        found = kept[path]
        cosines = cosine(vectors, found[:-1], found[1:])
        return DocumentOrder(found, dropped, cosines, zero_weight_jumps(path, edges))

    def _distinct(self, vectors: Matrix, kept: Places) -> tuple[Places, NeighbourGraph]:
        """Documents of which no two neighbours are copies by their vectors, and the graph of these alone.

        Copies take the places of neighbours, so those that stay are searched again, until there are no copies.
        """
        while True:
            some = vectors if len(kept) == vectors.shape[0] else vectors[kept]
            graph = nearest(some, self.k, exact_up_to=self.exact_up_to, nprobe=self.nprobe, seed=self.seed)
            if self.duplicate is None:
                return kept, graph
            first = first_of_copies(graph.undirected(), self.duplicate)
            if first.all():
                return kept, graph
            kept = kept[first]


def first_of_copies(edges: Edges, threshold: float) -> NDArray[np.bool_]:
    """Which documents stay where, of two that are joined by as high a weight, one has to go: the earlier one stays.

    Returns:
        (documents,) whether each stays: it has no such edge to an earlier one that does.
    """
    stays = np.ones(len(edges), bool)
    heavy = edges.weights >= threshold
    for row in np.unique(np.repeat(np.arange(len(edges)), edges.degrees)[heavy]):
        part = slice(edges.starts[row], edges.starts[row + 1])
        copies = edges.others[part][heavy[part]]
        stays[row] = not stays[copies[copies < row]].any()
    return stays


def greedy_path(edges: Edges, seed: int = 0) -> Places:
    """(documents,) a path through all documents, each once, of high weight: Algorithm 1.

    Starts, and goes on after a dead end, at the document with the fewest neighbours that is left; else it would come
    last and stand among strangers. Time and memory are those of the edges.

    Args:
        seed: of which comes first of those with as few neighbours.
    """
    degrees = edges.degrees
    fewest = np.lexsort((np.random.default_rng(seed).permutation(len(edges)), degrees))
    left = np.ones(len(edges), bool)
    path: list[int] = []
    for start in fewest:  # min_deg(D): degrees of the whole graph
        here = int(start) if left[start] else NONE
        while here != NONE:
            path.append(here)
            left[here] = False  # D ← D \ {d}
            near = edges.of(here)
            near = near[left[near]]  # N(d) ∩ D
            here = int(near[0]) if len(near) else NONE  # arg max of s(d, ·): edges stand in that order
    return np.array(path, np.int64)


def zero_weight_jumps(path: Places, edges: Edges) -> int:
    """Steps of a path between two documents that no edge joins."""
    return int((~edges.joins(path[:-1], path[1:])).sum())


def released_walk(neighbours: NDArray[Any], cluster_size: int = 21) -> list[list[int]]:
    """Clusters of documents as the authors' code walks them; one after another they are a path.

    Each document is followed by its nearest neighbour that is left. Where none is, or the cluster is full, the lowest
    document that is left begins another. The first cluster may hold one more: its first document is not counted.

    Args:
        neighbours: (documents, k) the nearest first, without the document itself, `NONE` where there are fewer.
        cluster_size: documents.
    """
    left = np.ones(len(neighbours), bool)
    clusters: list[list[int]] = []
    for start in range(len(neighbours)):
        if not left[start]:
            continue
        here, room = start, cluster_size + (not clusters)
        clusters.append([])
        while here != NONE:
            clusters[-1].append(here)
            left[here] = False
            near = neighbours[here]
            near = near[near != NONE]
            near = near[left[near]]
            here = int(near[0]) if len(near) and len(clusters[-1]) < room else NONE
    return clusters


def merged(clusters: Sequence[Sequence[int]], neighbours: NDArray[Any], cluster_size: int = 21) -> list[list[int]]:
    """Clusters without the small ones: their documents go before their nearest neighbour in another cluster.

    A document that has none stays where it is; the authors' code fails there.

    Args:
        clusters, neighbours, cluster_size: as in `released_walk`.
    """
    made = [list(cluster) for cluster in clusters]
    where = {document: number for number, cluster in enumerate(made) for document in cluster}
    for number, cluster in enumerate(made):
        if len(cluster) >= cluster_size:
            continue
        for document in list(cluster):
            others = (int(i) for i in neighbours[document] if i != NONE and where[int(i)] != number)
            nearest_other = next(others, None)
            if nearest_other is None:
                continue
            cluster.remove(document)
            target = made[where[nearest_other]]
            target.insert(target.index(nearest_other), document)
            where[document] = where[nearest_other]
    return [cluster for cluster in made if cluster]


def gram_overlap(one: str, other: str, n: int = GRAM) -> float:
    """|A ∩ B| / |A ∪ B| of the sets of character n-grams of two texts; of texts too short for one, whether they are
    equal."""
    a, b = ({text[i : i + n] for i in range(len(text) - n + 1)} for text in (one, other))
    return len(a & b) / len(a | b) if a | b else float(one == other)


def unlike_last(texts: Sequence[str], threshold: float = 0.85, characters: int = 100) -> list[int]:
    """Places of the texts that stay where one that begins as the last that stayed is left out.

    Args:
        texts: in the order in which they are written.
        threshold: of `gram_overlap`; what is above it is left out.
        characters: of each that are compared. A header that documents share is enough.
    """
    stays: list[int] = []
    for i, text in enumerate(texts):
        if not stays or gram_overlap(text[:characters], texts[stays[-1]][:characters]) <= threshold:
            stays.append(i)
    return stays


def knn_order(neighbours: NDArray[Any], seed: int = 0) -> list[list[int]]:
    """The paper's other baseline: each document with its nearest ones behind it, in a random order.

    No permutation: what is near to many is read many times.

    Args:
        neighbours: as in `released_walk`.
        seed: of the order.

    Returns:
        (documents,) lists, each of a document and its neighbours.
    """
    return [
        [int(i), *(int(j) for j in neighbours[i] if j != NONE)]
        for i in np.random.default_rng(seed).permutation(len(neighbours))
    ]


@dataclass
class InContextPretrainingRecipe(CurateRecipe):
    """A corpus to its documents in the order of the path: read them as they stand, and shuffle contexts, not documents.

    With TF-IDF the result is the same for any number of ranks; a model's vectors differ in their last digits with the
    documents that are read beside.
    """

    paper: ClassVar[str] = "in_context_pretraining"
    lacks: ClassVar[tuple[str, ...]] = ("model", "dtype")

    embed: str = option(
        "tfidf",
        "What documents are compared by: tfidf; default, a folder or a .gguf file, the mean of a language model's "
        "hidden states; resource:minilm, or a folder of sentence-transformers. A model may read the beginning alone.",
        metavar="MODEL",
    )

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "device"}

    def title(self) -> str:
        return "In-context pretraining: each document beside its nearest"

    def curate(self, source: Source, passes: Passes) -> Iterator[Document]:
        from broadsheet.curate.files import CUT, CorpusReader, ShardReader, ShardWriter
        from broadsheet.curate.orders.steps import DOCUMENTS, VECTORS, OnPath, OrderDocuments, PathReader, facts
        from broadsheet.curate.orders.vectors import DocumentVectors

        made, order = passes.folder / "made", passes.folder / "order"
        read = CorpusReader(source.spec, source.on_error, source.text_field, source.id_field)
        vectors = DocumentVectors(made / VECTORS, self.embed, self.device)
        passes.run("vectors", [read, vectors, ShardWriter(made / DOCUMENTS)])
        merge = Passes(passes.folder, tasks=1, workers=1)
        merge.run("path", [OrderDocuments(made / VECTORS, order, passes.tasks, self._method(), self.embed)])
        passes.counts += merge.counts
        passes.run("what is left out", [ShardReader(made / DOCUMENTS), OnPath(order)])
        found = facts(order)
        if cut := sum(int(each.totals.get(CUT, 0)) for each in passes.counts):
            say(f"{cut:,} documents are longer than {self.embed} reads: they were compared by their beginning")
        if found["kept"] > 1:
            say(
                f"cosine of a document and the next: {found['cosine']:.3f}, in random order "
                f"{found['cosine in random order']:.3f}; {found['jumps']:,} of {found['kept'] - 1:,} steps are between "
                "documents that are no neighbours"
            )
        return PathReader(made, order, passes.tasks).run()

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        from broadsheet.curate.orders.vectors import encoder

        self._method()  # what cannot be is refused before any data is read
        self.check_calls()
        encoder(self.embed)
        return super().apply(source, out, force)

    def _method(self) -> InContextPretraining:
        return self.configured(InContextPretraining, seed=self.seed)
