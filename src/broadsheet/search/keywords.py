"""BM25 on disk: the first-stage search of `broadsheet.data.retrieval`, kept in a folder.

Knows: texts by number. Does not know: ids, deletions, vectors.
"""

from __future__ import annotations

from pathlib import Path

from broadsheet.data.retrieval.search import BM25

_EMPTY = "empty"


class Keywords(BM25):
    """A `BM25` that can be saved and loaded; loaded, it is mapped from the disk and not read.

    Example:
        Keywords(["join two paths", "sort a list"]).save(folder)
        places, scores = Keywords.load(folder, 2).search(["paths"], 1)[0]
    """

    def save(self, folder: Path) -> list[Path]:
        """Write the index into a new folder; the files written."""
        folder.mkdir(parents=True)
        if self._index is None:  # not one word in all texts
            (folder / _EMPTY).touch()
        else:
            self._index.save(folder, show_progress=False)
        return sorted(folder.iterdir())

    @classmethod
    def load(cls, folder: Path, size: int) -> Keywords:
        """What `save` wrote for `size` texts.

        Raises:
            InputError: bm25s is not installed.
        """
        made = cls(["placeholder"])
        made._size = size
        made._index = None
        if not (folder / _EMPTY).exists():
            import bm25s

            made._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        return made

    def matches(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` best texts that share a word with `query`, best first, with their scores."""
        places, scores = self.search([query], k)[0]
        return [(place, score) for place, score in zip(places, scores, strict=True) if score > 0]


def available() -> bool:
    """Whether bm25s can be imported."""
    try:
        import bm25s  # noqa: F401
    except ImportError:
        return False
    return True
