"""Vectors in a folder: the format that `streaming` writes and describes, read back.

Knows: three files and how they belong together. Does not know: embedders.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet import cache
from broadsheet.console import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "broadsheet vectors 1"
VECTORS, IDS, MANIFEST = "vectors.npy", "ids.jsonl", "manifest.json"
HEADER = 128  # bytes of vectors.npy before the numbers


def read_vectors(folder: str | Path) -> tuple[list[str], NDArray[Any]]:
    """Ids and vectors of a finished folder; the vectors are mapped, not read: (documents, dimensions).

    Raises:
        InputError: there is no such folder, it is not finished, or its files do not belong together.

    Example:
        ids, vectors = read_vectors("vectors")
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        with (folder / IDS).open("rb") as file:
            ids = [json.loads(line)["id"] for line in file]
        shape = (manifest["documents"], manifest["dimensions"])
        if not shape[0]:  # no file of no bytes can be mapped
            return ids, np.empty(shape, manifest["dtype"])
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is damaged ({error}); encode the corpus anew with force") from None
    if vectors.shape != shape or len(ids) != len(vectors):
        raise InputError(
            f"{folder} is damaged: {len(ids):,} ids and vectors of shape {vectors.shape} where its manifest says "
            f"{shape}; encode the corpus anew with force"
        )
    return ids, vectors


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
        InputError: there is none, or of another format.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        begun = Path(folder).with_name(f"{Path(folder).name}.partial").exists()
        remedy = "it is not finished: run the same command again" if begun else "give a folder of encoded vectors"
        raise InputError(f"{folder} has no {MANIFEST}; {remedy}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; encode the corpus anew with force") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not of the format {FORMAT!r}; encode the corpus anew with force")
    return manifest


def header(shape: tuple[int, int], dtype: str) -> bytes:
    """The beginning of a .npy file, of `HEADER` bytes."""
    buffer = BytesIO()
    descr = np.dtype(dtype).newbyteorder("<").str
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    header = buffer.getvalue()
    assert len(header) == HEADER
    return header


def write_manifest(folder: Path, documents: int, config: dict[str, Any]) -> None:
    """Say what the folder holds and what made it; written last, so that a folder without it is not finished."""
    settings, embedder = config["settings"], config["embedder"]
    manifest = {
        "format": FORMAT,
        "documents": documents,
        "dimensions": embedder["dimensions"],
        "dtype": settings["dtype"],
        "normalized": settings["normalize"] or any("Normalize" in part["module"] for part in embedder["modules"][-1:]),
        "prompt": settings["prompt"],
        "texts": settings["texts"],
        "embedder": embedder,
        "corpus": config["corpus"],
    }
    with cache.atomic_write(folder / MANIFEST) as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.write("\n")
