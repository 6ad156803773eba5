"""Documents in an order of their own, over ranks: one task that orders by vectors, a filter, a reader along the path.

Knows: files of ranks, orders. Does not know: how documents are ordered, tokens.

    method, first = InContextPretraining(), "work/first"
    steps = [CorpusReader("corpus.jsonl"), DocumentVectors(f"{first}/vectors"), ShardWriter(f"{first}/documents")]
    Ranks(steps, "work/1", tasks=4).run()
    Ranks([OrderDocuments(f"{first}/vectors", "work/order", 4, method)], "work/2").run()
    Ranks([PathReader(first, "work/order", 4), ShardWriter("ordered")], "work/3", tasks=4).run()

The shards of `ordered`, one after another, are the path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.curate.base import Decision, Step
from broadsheet.curate.files import PLACE, document, parsed
from broadsheet.curate.orders.neighbours import Matrix, cosine
from broadsheet.curate.orders.vectors import StoredVectors, encoder

VECTORS, DOCUMENTS = "vectors", "documents"
_PATH, _DROPPED, _FACTS = "path.npy", "dropped.npz", "order.json"


class FoundOrder(Protocol):
    """An order of documents, as `in_context_pretraining.DocumentOrder`."""

    @property
    def path(self) -> NDArray[np.int64]: ...

    @property
    def dropped(self) -> dict[str, NDArray[np.int64]]: ...

    @property
    def jumps(self) -> int: ...

    @property
    def cosine(self) -> float: ...


class Orders(Protocol):
    """What orders documents of which no text is at hand, as `InContextPretraining`."""

    def arrange(self, vectors: Matrix, digests: NDArray[np.uint64], heads: Sequence[str]) -> FoundOrder: ...


class OrderDocuments(PipelineStep):
    """A step of one task, which needs all vectors: it orders the documents.

    Writes `path.npy`, places in the corpus as `datasets.Dataset.select` takes them; `dropped.npz`, places by reason;
    and `order.json`: documents, how many are kept, the mean cosine along the path and in random order, the jumps.

    Args:
        vectors: the folder that `DocumentVectors` wrote to.
        folder: where the order will stand.
        ranks: that wrote vectors.
        method: what orders them.
        of: as given to `DocumentVectors`.

    Raises:
        InputError: a rank's vectors are missing.
    """

    type = "🧭 - ORDER"
    name = "order"

    def __init__(self, vectors: str | Path, folder: str | Path, ranks: int, method: Orders, of: Any = "tfidf") -> None:
        super().__init__()
        self.vectors, self.folder, self.ranks = Path(vectors), Path(folder), ranks
        self.method, self.of = method, of

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from ()
        if rank:
            return
        with self.track_time():
            stored = StoredVectors.of(self.vectors, self.ranks)
            path, dropped, facts = self._ordered(stored) if len(stored.places) else (stored.places, {}, {"jumps": 0})
        with atomic_write(self.folder / _DROPPED, "wb") as file:
            np.savez(file, **dropped)
        with atomic_write(self.folder / _FACTS) as file:
            json.dump({"documents": len(stored.places), "kept": len(path), **facts}, file)
        with atomic_write(self.folder / _PATH, "wb") as file:  # the last: where it stands, all do
            np.save(file, path)

    def _ordered(self, stored: StoredVectors) -> tuple[NDArray[np.int64], dict[str, Any], dict[str, Any]]:
        """Places along the path, places by the reason for which they are left out, and what is told of the path."""
        rows = encoder(self.of).together(stored.rows)
        found = self.method.arrange(rows, stored.digests, list(stored.heads))
        drawn = np.random.default_rng(0).permutation(found.path)
        told: dict[str, Any] = {"jumps": found.jumps}
        if len(drawn) > 1:
            random = float(cosine(rows, drawn[:-1], drawn[1:]).mean())
            told |= {"cosine": found.cosine, "cosine in random order": random}
        dropped = {reason: stored.places[places] for reason, places in found.dropped.items()}
        return stored.places[found.path], dropped, told


def facts(folder: str | Path) -> dict[str, Any]:
    """What `OrderDocuments` found.

    Raises:
        InputError: it has not run there.
    """
    path = _file(folder, _FACTS)
    found: dict[str, Any] = parsed(path, path.read_bytes())
    return found


class OnPath(Step):
    """A filter that keeps what is on the path, and says of the others why they are not.

    Args:
        folder: of the order.
        more: as `Step` takes them.
    """

    name = "order"

    def __init__(self, folder: str | Path, **more: Any) -> None:
        super().__init__(**more)
        self.folder = Path(folder)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with np.load(_file(self.folder, _DROPPED)) as kept:
            self._why = {int(place): reason for reason in kept.files for place in kept[reason]}
        yield from super().run(data, rank, world_size)

    def decide(self, documents: list[Document]) -> Sequence[Decision]:
        reasons = (self._why.get(each.metadata[PLACE]) for each in documents)
        return [True if reason is None else (False, reason) for reason in reasons]


class PathReader(PipelineStep):
    """Documents in the order of a path: of `n` ranks, each reads the next n-th of it, so that neighbours stay together.

    Only the path and where each line of the shards begins are held in memory.

    Args:
        folder: holds `vectors` and `documents`, as `DocumentVectors` and a `ShardWriter` right after it wrote them.
        order: the folder of the order.
        ranks: that wrote them.

    Raises:
        InputError: a file is missing, or the shards hold other documents than the vectors.
    """

    type = "📖 - READER"
    name = "path"

    def __init__(self, folder: str | Path, order: str | Path, ranks: int) -> None:
        super().__init__()
        self.folder, self.order, self.ranks = Path(folder), Path(order), ranks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = np.array_split(np.load(_file(self.order, _PATH)), world_size)[rank]
        files: list[IO[bytes]] = []
        try:
            where = self._where(files)
            for place in path:
                number, begin = where[0][place], where[1][place]
                files[number].seek(int(begin))
                self.stat_update("documents")
                name = Path(files[number].name)
                yield document(name, parsed(name, files[number].readline()))
        finally:
            for file in files:
                file.close()

    def _where(self, files: list[IO[bytes]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """For each place of the corpus its shard, and where its line begins; opens the shards."""
        places, begins = [], []
        for rank in range(self.ranks):
            with np.load(_file(self.folder / VECTORS, f"{rank:05d}.documents.npz")) as kept:
                places.append(kept["places"])
            shard = _file(self.folder / DOCUMENTS, f"{rank:05d}.jsonl")
            files.append(shard.open("rb"))
            starts = np.fromiter(accumulate(map(len, files[-1]), initial=0), np.int64)[:-1]
            if len(starts) != len(places[-1]):
                raise InputError(
                    f"{shard} holds {len(starts):,} documents, and its vectors are of {len(places[-1]):,}; expected a "
                    "ShardWriter right after DocumentVectors"
                )
            begins.append(starts)
        size = 1 + max((int(each.max()) for each in places if len(each)), default=-1)
        shards, offsets = np.zeros(size, np.int32), np.zeros(size, np.int64)
        for rank, (own, starts) in enumerate(zip(places, begins, strict=True)):
            shards[own], offsets[own] = rank, starts
        return shards, offsets


def _file(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.exists():
        raise InputError(f"{path} is missing: run the step that writes it")
    return path
