"""A small corpus with the metadata of `pydocs`: packages of function docstrings, some nearly repeated, some copied."""

from __future__ import annotations

import random

from broadsheet.data.corpora import Document

VERBS = ["join", "sort", "close", "draw", "invert", "read", "open", "drain", "crop", "fit", "walk", "hold"]


def documents(n: int = 480, packages: int = 12, seed: int = 0) -> list[Document]:
    """Docstrings in the words of their package; one in eight nearly repeats an earlier one, one in eight copies it."""
    generator = random.Random(seed)
    found: list[Document] = []
    for i in range(n):
        package = f"package{i % packages}"
        words = [f"{verb}{i % packages}" for verb in VERBS]
        body = [generator.choice(words) + str(generator.randrange(9)) for _ in range(24)]
        summary = f"Do the thing number{i} of {generator.choice(words)} twice."
        if i // packages % 4 == 3:  # a round of repeats after three of originals
            earlier = found[i - packages]
            body = str(earlier.metadata["body"]).split()
            body[4] = f"changed{i}"
            summary = str(earlier.metadata["summary"]).replace("twice", f"{i} times")
        if i // packages % 8 == 7:  # and every second of them copies instead
            body, summary = str(earlier.metadata["body"]).split(), str(earlier.metadata["summary"])
        metadata = {
            "kind": "function", "package": package, "module": f"{package}.m", "title": f"{package}.m.f{i}",
            "summary": summary, "body": " ".join(body),
        }  # fmt: skip
        found.append(Document(f"{package}.m.f{i}", f"{summary}\n\n{' '.join(body)}", metadata))
    return found
