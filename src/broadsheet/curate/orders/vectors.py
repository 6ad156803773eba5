"""Documents as vectors, by which they are compared: TF-IDF, a sentence encoder, a language model, or any function.

Knows: texts, rows of vectors, the files of ranks. Does not know: what the vectors are compared for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray
from scipy import sparse

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.curate.base import batches
from broadsheet.curate.files import CUT, PLACE, DamagedError
from broadsheet.curate.orders.neighbours import Matrix

HEAD = 100  # characters of a document that are kept beside its vector
TOKENS = 510  # of a document that a language model reads, as the paper on in-context pretraining cuts them
_TERMS = 2**20  # columns that words are hashed to
_BUDGET = 8192  # padded tokens of a batch


class DocumentEncoder(ABC):
    """A way to make vectors of documents, in two parts: each document alone, then all of a corpus.

    Attributes:
        cut: documents so far of which only the first tokens were read.
    """

    cut = 0

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Matrix:
        """(texts, dimensions) float32, or a CSR array: each row of its own text alone."""

    def together(self, rows: Matrix) -> Matrix:
        """All rows of a corpus, as they are compared: of unit length, or 0."""
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)

    def __call__(self, texts: Sequence[str]) -> Matrix:
        """The vectors of a corpus."""
        return self.together(self.encode(texts))


class TfIdf(DocumentEncoder):
    """Words, weighed by how few documents hold them: 1 + ln of their count, times the inverse document frequency.

    Needs no model. Words are hashed, so that ranks need not agree on a vocabulary first.

    Example:
        >>> from broadsheet.curate import TfIdf
        >>> vectors = TfIdf()(["a red apple", "a green apple", "the sea"])
        >>> (vectors @ vectors.T).toarray().round(2).tolist()[0]
        [1.0, 0.53, 0.0]
    """

    def encode(self, texts: Sequence[str]) -> Matrix:
        from sklearn.feature_extraction.text import HashingVectorizer

        by = HashingVectorizer(
            token_pattern=r"(?u)\b\w+\b", n_features=_TERMS, norm=None, alternate_sign=False, dtype=np.float32
        )
        return sparse.csr_array(by.transform(texts))

    def together(self, rows: Matrix) -> Matrix:
        from sklearn.feature_extraction.text import TfidfTransformer

        return sparse.csr_array(TfidfTransformer(sublinear_tf=True).fit_transform(rows), dtype=np.float32)


@dataclass
class HiddenStates(DocumentEncoder):
    """The mean of a causal language model's last hidden states over the first tokens of a document.

    Args:
        spec: a name for `models.load`.
        tokens: that are read, at most.
        device: chosen by default.
    """

    spec: str = "default"
    tokens: int = TOKENS
    device: str | None = None

    @cached_property
    def _loaded(self) -> Any:
        from broadsheet import models

        return models.load(self.spec, device=self.device, dtype="float32")

    def encode(self, texts: Sequence[str]) -> Matrix:
        from broadsheet.models import halve_on_oom, token_budget_batches
        from broadsheet.models.tokens import head

        model, tokenizer = self._loaded
        beginnings = [head(tokenizer, text, self.tokens) for text in texts]
        rows = tokenizer(beginnings, verbose=False)["input_ids"]
        self.cut += sum(len(row) > self.tokens for row in rows)
        rows = tokenizer(beginnings, truncation=True, max_length=self.tokens)["input_ids"]
        found = np.zeros((len(rows), model.config.hidden_size), np.float32)
        read = [i for i, row in enumerate(rows) if row]
        for batch in token_budget_batches([len(rows[i]) for i in read], _BUDGET):
            places = [read[i] for i in batch]
            found[places] = halve_on_oom(self._means, [rows[i] for i in places])
        return found

    def _means(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        import torch

        model, tokenizer = self._loaded
        widest = max(map(len, rows))
        padded = [[*row, *[tokenizer.pad_token_id] * (widest - len(row))] for row in rows]
        ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        mask = torch.arange(widest, device=model.device) < lengths[:, None]
        with torch.inference_mode():
            hidden = model.base_model(ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        means = (hidden * mask[..., None]).sum(1) / lengths[:, None]
        return list(means.float().cpu().numpy())


@dataclass
class Sentences(DocumentEncoder):
    """A model of sentence-transformers, by its folder: contriever, MiniLM, what `broadsheet.embed` saves, …

    No code of the model's own is run, and weights are read from safetensors alone. A document is read as far as the
    model's own limit, which may be short: 256 tokens for `resource:minilm`.

    Args:
        spec: `resource:minilm`, a folder, or a hub id.
        device: chosen by default.
    """

    spec: str
    device: str | None = None

    @cached_property
    def _model(self) -> Any:
        from broadsheet.data import resources
        from broadsheet.models.sentences import load_sentences

        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise InputError(
                f"{self.spec} needs sentence-transformers: pip install -e '.[search]', or --embed tfidf"
            ) from None
        return load_sentences(resources.local(self.spec), SentenceTransformer, device=self.device)

    def encode(self, texts: Sequence[str]) -> Matrix:
        from broadsheet.models.tokens import head

        tokenizer, limit = self._model.tokenizer, self._model.max_seq_length
        if limit is not None:
            texts = [head(tokenizer, text, limit) for text in texts]
            self.cut += sum(len(row) > limit for row in tokenizer(texts, verbose=False)["input_ids"])
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), np.float32)


@dataclass
class Function(DocumentEncoder):
    """Any function of texts, as the `encode` of an embedder.

    Args:
        function: texts to (texts, dimensions).

    Raises:
        InputError: it gives something else.
    """

    function: Callable[[list[str]], Any]

    def encode(self, texts: Sequence[str]) -> Matrix:
        found = np.asarray(self.function(list(texts)), np.float32)
        if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
            raise InputError(
                f"got vectors of shape {found.shape} for {len(texts)} texts; expected ({len(texts)}, dimensions) "
                "finite numbers"
            )
        return found


def encoder(of: str | Callable[[list[str]], Any] = "tfidf", device: str | None = None) -> DocumentEncoder:
    """A way to make vectors: `"tfidf"`, a model by name, or a function.

    Args:
        of: a folder of sentence-transformers, or `resource:minilm`; a causal language model, as
            `default`, a folder or a `.gguf` file, whose hidden states are averaged; or texts to an array.
        device: where a model runs.

    Raises:
        InputError: there is no such folder or file; later, as the model is read.
    """
    from broadsheet.data import resources

    if isinstance(of, DocumentEncoder):
        return of
    if callable(of):
        return Function(of)
    if of == "tfidf":
        return TfIdf()
    folder = resources.local(of)
    if of == "default" or folder.suffix == ".gguf" or (folder.is_dir() and not (folder / "modules.json").is_file()):
        return HiddenStates(of, device=device)
    if not folder.is_dir():
        raise InputError(
            f"got the embedder {of}; expected tfidf, default, a model's folder, a .gguf file, or resource:minilm: save "
            "a model of the hub to a folder first"
        )
    return Sentences(of, device)


# Files of ranks


class DocumentVectors(PipelineStep):
    """A step that writes each rank's vectors, and passes the documents on.

    Writes `<rank>.npy`, or `<rank>.npz` where the vectors are sparse, and `<rank>.documents.npz`: for each document
    its place in the corpus, a digest of its text, and its first 100 characters.

    Args:
        folder: where the files will stand.
        of, device: as in `encoder`; a function has to be picklable where there are several workers.
    """

    type = "🔢 - VECTORS"
    name = "vectors"

    def __init__(self, folder: str | Path, of: Any = "tfidf", device: str | None = None) -> None:
        super().__init__()
        self.folder, self.of, self.device = Path(folder), of, device

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        by = encoder(self.of, self.device)
        found: list[Matrix] = []
        about: list[tuple[int, int, str]] = []
        for documents in batches(data, 256):
            with self.track_time("batch"):
                found.append(by.encode([each.text for each in documents]))
            about += [(each.metadata[PLACE], digest(each.text), each.text[:HEAD]) for each in documents]
            self.stat_update("documents", value=len(documents))
            yield from documents
        self.stat_update(CUT, value=by.cut)
        if not found:  # the others tell the dimensions
            found = [np.zeros((0, 0), np.float32)]
        thin = sparse.issparse(found[0])
        with atomic_write(self.folder / f"{rank:05d}.{'npz' if thin else 'npy'}", "wb") as file:
            if thin:
                sparse.save_npz(file, sparse.vstack(found, format="csr"))
            else:
                np.save(file, np.concatenate(found))
        with atomic_write(self.folder / f"{rank:05d}.documents.npz", "wb") as file:
            np.savez(
                file,
                places=np.array([place for place, _, _ in about], np.int64),
                digests=np.array([each for _, each, _ in about], np.uint64),
                heads=np.array([head for _, _, head in about], f"<U{HEAD}"),
            )


@dataclass(frozen=True)
class StoredVectors:
    """What all ranks of `DocumentVectors` wrote, in the order of the corpus.

    Args:
        rows: (documents, dimensions), as `DocumentEncoder.encode` gave them.
        places, digests, heads: (documents,) each.
    """

    rows: Matrix
    places: NDArray[np.int64]
    digests: NDArray[np.uint64]
    heads: NDArray[np.str_]

    @classmethod
    def of(cls, folder: str | Path, ranks: int) -> StoredVectors:
        """Read them.

        Raises:
            DamagedError: a rank's are missing or damaged.
        """
        rows, parts = [], []
        for rank in range(ranks):
            path = Path(folder) / f"{rank:05d}"
            try:
                with np.load(f"{path}.documents.npz") as kept:
                    about = {name: kept[name] for name in ("places", "digests", "heads")}
                thin = Path(f"{path}.npz").exists()
                found = sparse.csr_array(sparse.load_npz(f"{path}.npz")) if thin else np.load(f"{path}.npy")
            except (OSError, ValueError, KeyError, EOFError):
                raise DamagedError(f"{path}.* are missing or damaged: run rank {rank} of {ranks} again") from None
            if len(about["places"]):
                rows.append(found)
                parts.append(about)
        if not parts:
            return cls(
                np.zeros((0, 1), np.float32), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, f"<U{HEAD}")
            )
        places, digests, heads = (np.concatenate([part[name] for part in parts]) for name in parts[0])
        order = np.argsort(places)
        whole = sparse.vstack(rows, format="csr") if sparse.issparse(rows[0]) else np.concatenate(rows)
        return cls(whole[order], places[order], digests[order], heads[order])


def digest(text: str) -> int:
    """64 bits of a text: two documents with the same are the same."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
