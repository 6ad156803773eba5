"""A corpus to vectors on disk: memory flat, interrupted and resumed at any moment, shared among processes.

Knows: documents, how far the files have come, and what an embedder is made of. Does not know: how a text becomes a
vector, nor how vectors are searched.

A finished folder holds three files, and stands under its name only when all three are whole:

- `vectors.npy`: (documents, dimensions), little-endian float32 or float16, C order, an ordinary NumPy file that
  `numpy.load(…, mmap_mode="r")` maps;
- `ids.jsonl`: a line per row of it, in the same order (the corpus's), `{"id": …}`, or `{"id": …, "text": …}` where
  texts were asked for;
- `manifest.json`: an object with
    - `format`: "broadsheet vectors 1",
    - `documents`, `dimensions`, `dtype` ("float32" or "float16"),
    - `normalized`: whether every vector has length 1,
    - `prompt`: the string put before each text, or null,
    - `texts`: whether `ids.jsonl` holds the texts,
    - `embedder`: `{"fingerprint": 16 hex digits, "dimensions": …, "model": its name, "similarity": "cosine" …,
      "modules": [{"module": class, "settings": …}, …]}`: see `identity`; equal fingerprints mean equal vectors,
    - `corpus`: what `Corpus.identity` says.

While it is being written, `OUT.partial/` stands beside it, one folder a shard. Documents are taken in chunks of a fixed
size, chunk k by shard k modulo n, and a chunk is encoded by itself: so neither where a run was cut off nor how many
processes shared the work changes a bit of the result.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from broadsheet.console import InputError, interruptible, progress, say
from broadsheet.search.encoding.folder import (
    HEADER,
    IDS,
    MANIFEST,
    VECTORS,
    header,
    read_manifest,
    read_vectors,
    write_manifest,
)
from broadsheet.search.encoding.identity import identity
from broadsheet.search.encoding.partial import Partial

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from broadsheet.data.corpora import Corpus, Document

__all__ = ["Encoded", "encode_corpus", "identity", "read_manifest", "read_vectors"]


@dataclass(frozen=True)
class Encoded:
    """What a call of `encode_corpus` did.

    Args:
        out: the folder it writes.
        documents: of this shard there are now, those of earlier calls included.
        resumed: that earlier calls had left.
        seconds: what this call took.
        shard_finished: False after Ctrl-C; the same call then resumes.
        finished: `out` stands; False while other shards are not done.
    """

    out: Path
    documents: int
    resumed: int
    seconds: float
    shard_finished: bool
    finished: bool


@dataclass(frozen=True)
class _Settings:
    """All that the files depend on besides embedder and corpus."""

    prompt: str | None
    normalize: bool
    dtype: str
    texts: bool
    chunk: int
    batch_tokens: int | None
    shards: int


def encode_corpus(
    embedder: SentenceTransformer,
    corpus: Corpus,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    dtype: Literal["float32", "float16"] = "float32",
    prompt: str | None = None,
    normalize: bool = False,
    texts: bool = False,
    chunk: int = 1024,
    batch_tokens: int | None = None,
    force: bool = False,
) -> Encoded:
    """Write the vectors of a corpus to a folder, or resume a call that was cut off.

    Whole chunks are kept and the rest is encoded again, so the folder is that of an uninterrupted run bit for bit (on
    the same machine with as many threads). The first Ctrl-C stops after the chunk under way, the second at once.

    To share the work, start n processes with `shard=(0, n)` … `shard=(n - 1, n)` and else the same arguments; the one
    that ends last puts the parts together, in the corpus's order.

    Args:
        embedder: any `SentenceTransformer`; a broadsheet `Embedder` wastes nothing on padding.
        corpus: see `broadsheet.data.corpora.load`; only one chunk of it is in memory.
        out: where the finished folder will stand.
        shard: which part this process takes, from 0, and of how many.
        dtype: of the numbers on disk. float16 halves them and holds up to 65,504.
        prompt: put before each text; by default what `encode_document` would put; `""` for none.
        normalize: to unit length.
        texts: keep the texts beside the ids.
        chunk: documents encoded, and lost by a kill, at once.
        batch_tokens: see `encode_texts`.
        force: replace a finished `out`, and start this shard over rather than resume. To resume a forced call that
            was cut off, leave `force` out.

    Raises:
        InputError: `out` is finished already, or is no folder of vectors; it was begun with another embedder, corpus or
            setting; another process writes this shard; a vector is not finite in `dtype`; or the disk is full (what is
            done is kept).

    Example:
        encode_corpus(load("runs/gem"), corpora.load("articles.parquet"), "vectors", dtype="float16", normalize=True)
    """
    part, parts = shard
    if not 0 <= part < parts:
        raise InputError(f"got shard {part} of {parts}; expected 0 to {parts - 1} of {parts}")
    if dtype not in ("float32", "float16"):
        raise InputError(f"got dtype {dtype!r}; expected float32 or float16")
    if chunk < 1:
        raise InputError(f"got chunks of {chunk} documents; expected 1 or more")
    settings = _Settings(
        _document_prompt(embedder) if prompt is None else prompt or None,
        normalize,
        dtype,
        texts,
        chunk,
        batch_tokens,
        parts,
    )
    config = {"settings": asdict(settings), "embedder": identity(embedder), "corpus": corpus.identity()}
    work = Partial(Path(out), shard, MANIFEST, config)
    started = time.perf_counter()
    with work.claimed(force) as folder:
        resumed, done, whole = _encode(embedder, corpus, folder, part, settings, config)
    finished = whole and work.finish(lambda shards, into: _merge(shards, into, settings, config))
    result = Encoded(work.out, done, resumed, time.perf_counter() - started, whole, finished)
    say(_told(result, shard, force))
    return result


def _told(result: Encoded, shard: tuple[int, int], force: bool) -> str:
    """One line on what was done."""
    new = result.documents - result.resumed
    speed = f"{new / result.seconds:,.1f} docs/s" if new else "all of them there before"
    if not result.shard_finished:
        remedy = "the same call without force" if force else "the same call"
        return f"stopped after {result.documents:,} documents; {remedy} resumes there"
    if shard[1] == 1:
        return f"{result.out}: {result.documents:,} vectors, {speed}"
    rest = f"{result.out} is finished" if result.finished else "other shards are not done yet"
    return f"shard {shard[0]} of {shard[1]}: {result.documents:,} vectors, {speed}; {rest}"


def _document_prompt(embedder: SentenceTransformer) -> str | None:
    """What `encode_document` puts before a text."""
    name = next((name for name in ("document", "passage", "corpus") if name in embedder.prompts), None)
    return embedder._resolve_prompt(None, name) or None


# A shard


def _encode(
    embedder: SentenceTransformer,
    corpus: Corpus,
    folder: Path,
    part: int,
    settings: _Settings,
    config: dict[str, Any],
) -> tuple[int, int, bool]:
    """Encode this shard's chunks that `folder` does not hold yet: documents it held, holds now, and whether all."""
    if (folder / MANIFEST).exists():
        resumed = int(read_manifest(folder)["documents"])
        return resumed, resumed, True
    dimensions = int(config["embedder"]["dimensions"])
    chunks = _chunks(corpus, settings.chunk, part, settings.shards)
    resumed = done = _resume(folder, chunks, settings, dimensions)
    share = corpus.count // settings.shards if corpus.count else None
    begun = time.perf_counter()
    with (
        interruptible() as interrupted,
        (folder / VECTORS).open("ab") as vectors,
        (folder / IDS).open("ab") as ids,
        progress("docs/s", share, done=done) as bar,
    ):
        for documents in chunks:
            made = _vectors(embedder, documents, settings, dimensions)
            _append(vectors, made.tobytes())  # first: a line in ids.jsonl says that its vector is there
            _append(ids, b"".join(_line(document, settings.texts) for document in documents))
            done += len(documents)
            speed = (done - resumed) / (time.perf_counter() - begun)
            bar.update(bar.task_ids[0], completed=done, description=f"{speed:,.1f} docs/s")
            if interrupted.is_set():
                return resumed, done, False
    with (folder / VECTORS).open("r+b") as file:
        file.write(header((done, dimensions), settings.dtype))
        file.flush()
        os.fsync(file.fileno())
    write_manifest(folder, done, config)
    return resumed, done, True


def _chunks(corpus: Corpus, size: int, part: int, parts: int) -> Iterator[list[Document]]:
    """This shard's chunks of the corpus."""
    documents = iter(corpus)
    number = 0
    while chunk := list(islice(documents, size)):
        if number % parts == part:
            yield chunk
        number += 1


def _resume(folder: Path, chunks: Iterator[list[Document]], settings: _Settings, dimensions: int) -> int:
    """Cut the files to the whole chunks that both hold, draw those from `chunks`, and return how many documents.

    Raises:
        InputError: they are not those documents'.
    """
    vectors, ids = folder / VECTORS, folder / IDS
    row = dimensions * np.dtype(settings.dtype).itemsize
    vectors.touch()
    ids.touch()
    rows = max(0, vectors.stat().st_size - HEADER) // row
    kept = end = offset = lines = 0
    with ids.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or lines == rows:
                break
            lines += 1
            offset += len(line)
            if lines % settings.chunk == 0:
                kept, end = lines, offset
        file.seek(0)
        for chunk in islice(chunks, kept // settings.chunk):
            if [_line(document, settings.texts) for document in chunk] != list(islice(file, settings.chunk)):
                raise InputError(
                    f"{ids} holds other documents than the corpus, near {chunk[0].id!r}; --force starts over"
                )
        if file.tell() != end:
            raise InputError(f"{ids} holds more documents than the corpus; --force starts over")
    os.truncate(ids, end)
    os.truncate(vectors, HEADER + kept * row)  # lengthens a new file by zeros
    with vectors.open("r+b") as file:
        file.write(bytes(HEADER))
    if kept:
        say(f"{folder}: resuming after {kept:,} documents")
    return kept


def _vectors(
    embedder: SentenceTransformer, documents: list[Document], settings: _Settings, dimensions: int
) -> NDArray[Any]:
    """(documents, dimensions) in the dtype on disk.

    Raises:
        InputError: a vector is not finite, or has another width than the embedder says.
    """
    from broadsheet.embed.base import Embedder
    from broadsheet.embed.modules.encode import encode_texts
    from broadsheet.embed.modules.encoder import CausalEncoder

    texts = [document.text for document in documents]
    if isinstance(embedder, Embedder) and isinstance(embedder[0], CausalEncoder):
        tensor = encode_texts(
            embedder,
            texts,
            prompt=settings.prompt,
            batch_tokens=settings.batch_tokens,
            normalize=settings.normalize,
            dimensions=embedder.truncate_dim,
        )
    else:
        tensor = embedder.encode(
            texts, prompt=settings.prompt or "", normalize_embeddings=settings.normalize, convert_to_tensor=True
        )
    made: NDArray[Any] = tensor.float().cpu().numpy()
    if made.shape != (len(documents), dimensions):
        raise InputError(f"got vectors of shape {made.shape}; expected {(len(documents), dimensions)}, as it said")
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = made.astype(np.dtype(settings.dtype).newbyteorder("<"))
    if not (fine := np.isfinite(stored).all(axis=1)).all():
        where = int(fine.argmin())
        remedy = (
            "float16 holds up to 65,504: take float32, or normalize"
            if np.isfinite(made[where]).all()
            else "take a model in float32, or mend its weights"
        )
        raise InputError(f"the vector of document {documents[where].id!r} is not finite; {remedy}")
    return stored


def _append(file: Any, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _line(document: Document, texts: bool) -> bytes:
    record = {"id": document.id, "text": document.text} if texts else {"id": document.id}
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _merge(shards: list[Path], into: Path, settings: _Settings, config: dict[str, Any]) -> None:
    """Fill a folder with the shards' chunks, in turn, which is the corpus's order."""
    manifests = [read_manifest(shard) for shard in shards]
    documents = sum(int(manifest["documents"]) for manifest in manifests)
    dimensions = int(config["embedder"]["dimensions"])
    size = settings.chunk * dimensions * np.dtype(settings.dtype).itemsize
    with ExitStack() as stack:
        vectors, ids = (stack.enter_context((into / name).open("wb")) for name in (VECTORS, IDS))
        parts = [[stack.enter_context((shard / name).open("rb")) for name in (VECTORS, IDS)] for shard in shards]
        vectors.write(header((documents, dimensions), settings.dtype))
        for part, _ in parts:
            part.seek(HEADER)
        left = documents
        while left > 0:
            for part, lines in parts:
                vectors.write(part.read(size))
                ids.writelines(islice(lines, settings.chunk))
                left -= settings.chunk
        for file in (vectors, ids):
            file.flush()
            os.fsync(file.fileno())
    write_manifest(into, documents, config)
