"""MinHash signatures as datatrove writes them, byte for byte, many times faster; and the first of each cluster kept.

Knows: shingles, hashes, buckets, datatrove's `.sig`, `.dups` and `.remove` files. Does not know: what a word is.

datatrove's four passes are signatures, buckets, clusters and filter. The first, where nearly all time goes, is
replaced; and so is the third, so that of a cluster the same document stays however many ranks there are.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, count
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.binaryio import read_tuples_from_file
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import NUMBERS_PATTERN, PUNCTUATION_TRANS, TextNormConfig, simplify_text
from numpy.typing import NDArray

from broadsheet.cache import atomic_write
from broadsheet.curate.base import batches
from broadsheet.curate.files import PLACE
from broadsheet.curate.words import WORDS

Hashes = NDArray[np.uint64]
PRIME = np.uint64(2**61 - 1)
_BATCH = 512  # documents at once: their shingles fit the processor's cache
_PLAIN = TextNormConfig()
_NUMBERS = re.compile(rb"[0-9]+(?:[.,][0-9]+)?")  # the ASCII of `NUMBERS_PATTERN`
_SPACED = bytes(PUNCTUATION_TRANS.get(each, each) if each < 128 else each for each in range(256))


class _Marks(dict[int, Any]):
    """For `str.translate`: combining marks away, all else as it is."""

    def __missing__(self, point: int) -> Any:
        found = self[point] = None if unicodedata.category(chr(point)) == "Mn" else point
        return found


_MARKS = _Marks()


def simplified(text: str) -> str:
    """A text as datatrove's `simplify_text` makes it by default; the same, but quick where it is ASCII."""
    if text.isascii():
        return _simplified(text).decode()
    text = NUMBERS_PATTERN.sub("0", text.lower()).translate(PUNCTUATION_TRANS)
    return unicodedata.normalize("NFD", " ".join(text.split())).translate(_MARKS).strip()


def _simplified(text: str) -> bytes:
    """The same of ASCII: what is left are letters, digits and single spaces."""
    return b" ".join(_NUMBERS.sub(b"0", text.lower().encode()).translate(_SPACED).split())


def plain_words(text: str) -> list[bytes]:
    """The words of a text without case, punctuation and numbers: those that `Signatures` reads by default."""
    if text.isascii():
        return _simplified(text).split()
    return [word.encode() for word in WORDS.word_tokenize(simplified(text))]


def grams(words: Sequence[bytes], n: int) -> list[bytes]:
    """Each n words in a row, joined by spaces; none where there are fewer."""
    joined = b" ".join(words)  # of which an n-gram is a slice
    ends = list(accumulate(map(len, words)))
    begins = [0, *ends]
    return [joined[a + i : b + i + n - 1] for i, a, b in zip(count(), begins, ends[n - 1 :], strict=False)]


class Signatures(MinhashDedupSignature):
    """datatrove's first pass: a signature of each document, for `MinhashDedupBuckets` and those after it.

    The files are those that `MinhashDedupSignature` writes with the same words. Documents pass through, so that further
    steps may follow.

    Args:
        output_folder: where `bucket_xxx/<rank>.minhash.sig` will stand, and `places/<rank>.npy`: the documents' numbers
            in their corpus, where they have them.
        config: datatrove's; 14 buckets of 8 hashes of 5 words each by default.
        language: a tokenizer, or a language whose own one datatrove takes.
        within: a field of the metadata; documents that differ in it are never alike. The bytes are then ours alone.
    """

    name = "MinHash signatures"

    def __init__(
        self,
        output_folder: str | Path,
        config: MinhashConfig | None = None,
        language: Any = WORDS,
        within: str | None = None,
    ) -> None:
        super().__init__(str(output_folder), config, language)
        self.within = within
        self.folder = Path(output_folder)
        usual = self.config.hash_config == HashConfig()
        self._digest = xxhash.xxh64_intdigest if usual else create_hash_func(self.config.hash_config, bytes)
        self._plain_words = self.word_tokenizer == WORDS and self.config.norm_config == _PLAIN

    def _simplify(self, text: str) -> str:
        return simplified(text) if self.config.norm_config == _PLAIN else simplify_text(text, self.config.norm_config)

    def get_shingles(self, text: str) -> Hashes:
        """(shingles, 1) hashes of a text's n-grams."""
        return np.array(self._shingles(text), np.uint64).reshape(-1, 1)

    def _shingles(self, text: str) -> list[int]:
        if self._plain_words:
            words = plain_words(text)
        else:
            words = [word.encode() for word in self.word_tokenizer.word_tokenize(self._simplify(text))]
        return [*map(self._digest, grams(words, self.config.n_grams))]

    def signatures(self, texts: Iterable[str], within: Sequence[str] = ()) -> tuple[Hashes, list[int]]:
        """Signatures of the texts that have shingles, (texts, hashes), and which texts these are.

        Args:
            within: a name for each text; those under different names are not alike.
        """
        rows = [(number, found) for number, found in enumerate(map(self._shingles, texts)) if found]
        if not rows:
            return np.zeros((0, self.num_hashes), np.uint64), []
        starts = np.cumsum([0, *(len(found) for _, found in rows)])[:-1]
        shingles = np.fromiter(chain.from_iterable(found for _, found in rows), np.uint64)
        if within:
            salts = np.array([xxhash.xxh64_intdigest(within[number]) for number, _ in rows], np.uint64)
            shingles ^= np.repeat(salts, [len(found) for _, found in rows])
        signature = np.empty((self.num_hashes, len(rows)), np.uint64)
        product, high = np.empty_like(shingles), np.empty_like(shingles)
        factors, terms = (each[0] for each in self.parameters)
        for i in range(self.num_hashes):  # h = ((a x + b) mod 2^64) mod (2^61 - 1)
            np.multiply(shingles, factors[i], out=product)
            np.add(product, terms[i], out=product)
            np.right_shift(product, np.uint64(61), out=high)
            np.bitwise_and(product, PRIME, out=product)
            np.add(product, high, out=product)
            np.subtract(product, PRIME, out=high)  # wraps round where it is less than the prime
            np.minimum(product, high, out=product)
            if self.config.hash_config.precision == 32:
                np.bitwise_and(product, np.uint64(0xFFFFFFFF), out=product)
            np.minimum.reduceat(product, starts, out=signature[i])
        return np.ascontiguousarray(signature.T), [number for number, _ in rows]

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        buckets, per = self.config.num_buckets, self.config.hashes_per_bucket
        kind = np.dtype(self.config.hash_config.np_dtype).newbyteorder("<")
        record = np.dtype([("hashes", kind, (per,)), ("document", "<u4")])
        raw = [self.folder / f".{number:03d}.{rank:05d}.unsorted" for number in range(buckets)]
        self.folder.mkdir(parents=True, exist_ok=True)
        places = array("q")
        files = [path.open("wb") for path in raw]
        try:
            begin = 0
            for batch in batches(data, _BATCH):
                with self.track_time("batch"):
                    names = [str(document.metadata[self.within]) for document in batch] if self.within else []
                    found, numbers = self.signatures((document.text for document in batch), names)
                    for number, file in enumerate(files):
                        some = np.empty(len(found), record)
                        some["hashes"] = found[:, number * per : (number + 1) * per]
                        some["document"] = np.array(numbers, np.uint32) + np.uint32(begin)
                        file.write(some.tobytes())
                self.stat_update("total", value=len(batch))
                self.stat_update("signed", value=len(numbers))
                begin += len(batch)
                places.extend(document.metadata.get(PLACE, -1) for document in batch)
                yield from batch
            for file in files:
                file.close()
            with atomic_write(self.folder / "places" / f"{rank:05d}.npy", "wb") as whole:
                np.save(whole, np.array(places, np.int64))
            for number, path in enumerate(raw):
                rows = np.fromfile(path, record)
                target = self.folder / f"bucket_{number:03d}" / f"{rank:05d}.minhash.sig"
                with atomic_write(target, "wb") as whole:
                    whole.write(rows[_order(rows["hashes"], rows["document"])].tobytes())
        finally:
            for file, path in zip(files, raw, strict=True):
                file.close()
                path.unlink(missing_ok=True)


def _order(hashes: Hashes, documents: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The order of rows by their hashes, then by document. The few that share a first hash alone are compared on."""
    order = np.argsort(hashes[:, 0], kind="stable")
    first = hashes[order, 0]
    same = np.zeros(len(first), bool)
    same[1:] |= first[1:] == first[:-1]
    tied = same.copy()
    tied[:-1] |= same[1:]
    among = order[tied]
    columns = [documents[among], *(hashes[among, i] for i in reversed(range(hashes.shape[1])))]
    order[tied] = among[np.lexsort(columns)]
    return order


class FirstOfCluster(MinhashDedupCluster):
    """datatrove's third pass, but of each cluster the document stays that is the first in the corpus.

    datatrove keeps the one at which its union ends, which changes with the number of ranks. The files are its own:
    `<rank>.remove`, and on request `<rank>.clusters` and `<rank>.sizes`; clusters are numbered by their first document.

    Args:
        input_folder: of `MinhashDedupBuckets`.
        output_folder: for `MinhashDedupFilter`.
        signatures: the folder of `Signatures`, which holds the documents' places; without it, a document's place is
            that of its rank, then of itself in it.
        others: as datatrove's.
    """

    name = "MinHash clusters, the first kept"

    def __init__(
        self, input_folder: str | Path, output_folder: str | Path, signatures: str | Path = "", **others: Any
    ) -> None:
        super().__init__(str(input_folder), str(output_folder), **others)
        self.target, self.signatures = Path(output_folder), signatures

    def run(self, data: Any = None, _: int = 0, world_size: int = 1) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = [row for name in self.input_folder.list_files(glob_pattern="*.dups") for row in self._pairs(name)]
        self.target.mkdir(parents=True, exist_ok=True)
        if not pairs:
            return
        edges = np.array(pairs, np.int64).reshape(-1, 2, 2)
        nodes, ends = np.unique(edges.reshape(-1, 2), axis=0, return_inverse=True)
        ends = ends.reshape(-1, 2)
        graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(nodes), len(nodes)))
        clusters, cluster = connected_components(graph, directed=False)
        place = self._places(nodes)
        order = np.lexsort((place, cluster))
        first = np.zeros(len(nodes), bool)
        first[order[np.r_[True, np.diff(cluster[order]) > 0]]] = True
        sizes = np.bincount(cluster)[cluster]
        number = np.empty(clusters, np.int64)
        number[cluster[first][np.argsort(place[first])]] = np.arange(clusters)
        self.stat_update("duplicates", value=len(nodes))
        self.stat_update("to_remove", value=int((~first).sum()))
        self.stat_update("clusters", value=clusters)
        for rank in np.unique(nodes[:, 0]).tolist():
            own = nodes[:, 0] == rank
            documents = nodes[own, 1]
            self._write(rank, "remove", documents[~first[own]])
            if self.save_cluster_id:
                self._write(rank, "clusters", np.stack([documents, number[cluster[own]]], 1))
            if self.save_cluster_size:
                self._write(rank, "sizes", np.stack([documents, sizes[own]], 1))

    def _pairs(self, name: str) -> Iterator[tuple[int, int, int, int]]:
        with self.input_folder.open(name, "rb") as file:
            yield from read_tuples_from_file(file, "4I", lines_to_buffer=self.lines_to_buffer)

    def _places(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each (rank, document) in the corpus."""
        if not self.signatures:
            return nodes[:, 0] * (1 << 32) + nodes[:, 1]
        found = np.empty(len(nodes), np.int64)
        for rank in np.unique(nodes[:, 0]).tolist():
            known = np.load(Path(self.signatures) / "places" / f"{rank:05d}.npy")
            own = nodes[:, 0] == rank
            found[own] = known[nodes[own, 1]]
        return found

    def _write(self, rank: int, kind: str, rows: NDArray[np.int64]) -> None:
        with atomic_write(self.target / f"{rank:06d}.{kind}", "wb") as file:
            file.write(rows.astype("<u4").tobytes())


class NearDuplicates(MinhashDedupFilter):
    """datatrove's fourth pass, which says why it drops: a `near_duplicate` of a document that stays."""

    name = "near duplicates"
    reason = "near_duplicate"

    def stat_update(self, *labels: str, value: int = 1, unit: str | None = None) -> None:
        why = [f"dropped_{self.reason}"] if "dropped" in labels else []
        super().stat_update(*labels, *why, value=value, unit=unit)


def cluster(signatures: Signatures, work: Path, **others: Any) -> FirstOfCluster:
    """datatrove's second pass and ours for its third, over the signatures of all ranks.

    Args:
        signatures: whose files stand.
        work: for `buckets`, and for `clusters`, which `NearDuplicates` reads.
        others: as of `FirstOfCluster`.

    Returns:
        The last step, whose `stats` tell what it found.
    """
    number = signatures.config.num_buckets
    for bucket in range(number):
        buckets = MinhashDedupBuckets(str(signatures.folder), str(work / "buckets"), config=signatures.config)
        buckets.run(None, bucket, number)
    last = FirstOfCluster(work / "buckets", work / "clusters", signatures.folder, config=signatures.config, **others)
    last.run()
    return last


def match_probability(similarity: float, buckets: int = 14, hashes: int = 8) -> float:
    """The probability that two documents of that Jaccard similarity share a bucket: 1 − (1 − s^hashes)^buckets."""
    return float(1 - (1 - similarity**hashes) ** buckets)
