"""Documentation of a few hundred made-up docstrings, read in no time, for trials."""

from __future__ import annotations

import random
from functools import lru_cache

from broadsheet.data.corpora import Document
from broadsheet.data.retrieval.documentation import Documentation

NOUNS = ["path", "list", "file", "graph", "matrix", "token", "socket", "queue", "image", "model", "tree", "lock"]


def documents(n: int = 240, words: int = 14) -> list[Document]:
    """Docstrings whose body repeats a word that the summary alone has; every sixth body is long."""
    generator = random.Random(0)
    made = []
    for i in range(n):
        noun, package = generator.choice(NOUNS), f"package{i % 12}"
        summary = f"Open the {noun} number{i} of it twice."
        length = 220 if i % 5 == 0 else words
        filler = [f"{generator.choice(NOUNS)}{generator.randrange(99)}" for _ in range(length)]
        body = " ".join([f"number{i}", noun, *filler])
        metadata = {
            "kind": "function", "package": package, "module": package, "title": f"{package}.Thing{i}.open_{noun}",
            "summary": summary, "body": body,
        }  # fmt: skip
        made.append(Document(f"{package}.f{i}", f"{summary}\n\n{body}", metadata))
    return made


@lru_cache
def documentation(words: int = 40, seed: int = 0, data: str = "pydocs") -> Documentation:
    """In place of `tasks.documentation`."""
    return Documentation(documents(), words=words, seed=seed)
