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
from functools import cache
from itertools import accumulate, chain
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
_BATCH, _CHARACTERS = 512, 1 << 18  # documents at once, and of their texts: the shingles fit the processor's cache
_PLAIN = TextNormConfig()
_NUMBERS = re.compile(rb"[0-9]+(?:[.,][0-9]+)?")  # the ASCII of `NUMBERS_PATTERN`
_END = b"\xff"  # of a text among others: no byte of UTF-8
_BETWEEN = b" " + _END + b" "
_PUNCTUATION = frozenset(map(chr, PUNCTUATION_TRANS))
_SPACED = bytes(PUNCTUATION_TRANS.get(each, each) if each < 128 else each for each in range(256))


def simplified(text: str) -> str:
    """A text as datatrove's `simplify_text` makes it by default; the same, but quick where it is ASCII."""
    if text.isascii():
        return _simplified(text.encode()).decode()
    text = NUMBERS_PATTERN.sub("0", text.lower())
    # Of many signs few are in a text, and each is found at once; `str.translate` looks at every letter.
    for mark in _PUNCTUATION.intersection(text):
        text = text.replace(mark, " ")
    text = unicodedata.normalize("NFD", " ".join(text.split()))
    for mark in filter(_combining, set(text)):
        text = text.replace(mark, "")
    return text.strip()


@cache
def _combining(letter: str) -> bool:
    return unicodedata.category(letter) == "Mn"


def _simplified(text: bytes) -> bytes:
    """The same of ASCII: what is left are letters, digits and single spaces. Other bytes stay as they are."""
    return b" ".join(_NUMBERS.sub(b"0", text.lower()).translate(_SPACED).split())


def plain_words(text: str) -> list[bytes]:
    """The words of a text without case, punctuation and numbers: those that `Signatures` reads by default."""
    if text.isascii():
        return _simplified(text.encode()).split()
    return [word.encode() for word in WORDS.word_tokenize(simplified(text))]


def _joined(texts: Sequence[str]) -> bytes:
    """The words of texts as `plain_words` gives them, with single spaces between, and `_END` after each text.

    Those of ASCII are simplified all at once.
    """
    simple = iter(_simplified(_BETWEEN.join(text.encode() for text in texts if text.isascii())).split(_END))
    plain = (next(simple).strip() if text.isascii() else b" ".join(plain_words(text)) for text in texts)
    return b" ".join(part for each in plain for part in (each, _END) if part)


def _plain_grams(texts: Sequence[str], n: int) -> tuple[list[bytes], NDArray[np.int64]]:
    """Each n words in a row of each text, as `grams` of its `plain_words` gives them, and the number of its text."""
    if not texts:
        return [], np.zeros(0, np.int64)
    joined = _joined(texts)
    letters = np.frombuffer(joined, np.uint8)
    spaces = np.flatnonzero(letters == ord(" "))
    begins, ends = np.r_[0, spaces + 1], np.r_[spaces, len(joined)]
    text = np.cumsum(letters[begins] == _END[0])  # the number of the text that a word is of; of its end, the next
    whole = np.flatnonzero(text[: max(0, len(text) - n + 1)] == text[n - 1 :])
    whole = whole[letters[begins[whole]] != _END[0]]
    spans = zip(begins[whole].tolist(), ends[whole + n - 1].tolist(), strict=True)
    return [joined[a:b] for a, b in spans], text[whole]


def grams(words: Sequence[bytes], n: int) -> list[bytes]:
    """Each n words in a row, joined by spaces; none where there are fewer."""
    joined = b" ".join(words)  # of which an n-gram is a slice
    begins = list(accumulate([len(word) + 1 for word in words], initial=0))
    return [joined[a : b - 1] for a, b in zip(begins, begins[n:], strict=False)]


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
        return self._shingles([text])[0].reshape(-1, 1)

    def _shingles(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        """(shingles,) hashes of the n-grams of all texts, and the number of the text that each is of."""
        n = self.config.n_grams
        if self._plain_words:
            found, text = _plain_grams(texts, n)
        else:
            words = self.word_tokenizer.word_tokenize
            of_text = [grams([word.encode() for word in words(self._simplify(text))], n) for text in texts]
            found = [*chain.from_iterable(of_text)]
            text = np.repeat(np.arange(len(texts)), np.array([*map(len, of_text)], np.int64))
        return np.fromiter(map(self._digest, found), np.uint64, len(found)), text

    def signatures(self, texts: Sequence[str], within: Sequence[str] = ()) -> tuple[Hashes, NDArray[np.int64]]:
        """Signatures of the texts that have shingles, (texts, hashes), and which texts these are.

        Args:
            within: a name for each text; those under different names are not alike.
        """
        shingles, text = self._shingles(texts)
        numbers, starts = np.unique(text, return_index=True)
        if not len(numbers):
            return np.zeros((0, self.num_hashes), np.uint64), numbers
        if within:
            shingles ^= np.array([xxhash.xxh64_intdigest(name) for name in within], np.uint64)[text]
        signature = np.empty((self.num_hashes, len(numbers)), np.uint64)
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
        return np.ascontiguousarray(signature.T), numbers

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
            for batch in batches(data, _BATCH, _CHARACTERS):
                with self.track_time("batch"):
                    names = [str(document.metadata[self.within]) for document in batch] if self.within else []
                    found, numbers = self.signatures([document.text for document in batch], names)
                    for number, file in enumerate(files):
                        some = np.empty(len(found), record)
                        some["hashes"] = found[:, number * per : (number + 1) * per]
                        some["document"] = numbers + begin
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
