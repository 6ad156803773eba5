"""What `broadsheet apply` trains on: rows of texts that belong together, from files, hub data sets or `pydocs`.

Knows: corpora and the names that fields go by. Does not know: embedders, losses.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus, Document, RowLocation
from broadsheet.embed.data.doc_tasks import examples
from broadsheet.embed.data.lexicon import WordPair
from broadsheet.embed.data.lexicon import load as load_lexicon
from broadsheet.embed.data.tasks import documentation, training_pairs

T = TypeVar("T")
QUERY = ("query", "anchor", "question", "sentence1", "word1")
POSITIVE = ("positive", "document", "passage", "answer", "sentence2")
TEXT = ("text", "body", "document", "passage", "positive")
_LEXICONS = ("wordnet", "freedict", "abbreviations")
_TABLES = (".tsv", ".csv", ".tsv.gz", ".csv.gz")


class Named(Corpus):
    """Data that is no corpus of documents and only has a name: a lexicon, a table of sentence pairs."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec, "stop", "text", "id")

    def identity(self) -> dict[str, Any]:
        return {"name": self.spec}

    def fingerprint(self) -> str:
        return self.spec

    def describe(self) -> str:
        return self.spec

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        raise InputError(f"{self.spec} holds no documents; expected JSONL or Parquet, a folder, pydocs, or hf:…")


def open_data(data: str, **options: Any) -> Corpus:
    """A corpus as `corpora.load` gives it, or the name of a lexicon or of a table.

    Raises:
        InputError: see `corpora.load`.
    """
    if data.partition(":")[0] in _LEXICONS or data.endswith(_TABLES):
        return Named(data)
    return corpora.load(data, **options)


def texts(corpus: Corpus, n: int, seed: int = 0) -> list[str]:
    """The texts of a corpus: of `n` documents at random (0: all), those without a word left out.

    Of `pydocs` only those of packages that the trials do not ask about.

    Raises:
        InputError: see `corpora.load`; or no text is left.
    """
    read_by(corpus, TEXT)
    if corpus.spec == "pydocs":
        held_out = documentation(seed=seed).held_out
        documents = [document for document in corpus if not held_out(str(document.metadata["package"]))]
        documents = random.Random(seed).sample(documents, min(n or len(documents), len(documents)))
    else:
        documents = sample(corpus, n, seed)
    found = [document.text for document in documents if document.text.strip()]
    if not found:
        raise InputError(f"{corpus.spec} holds no texts")
    return found


def pairs(corpus: Corpus, n: int, *, words: int = 40, negatives: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Rows `query`, `positive`, `negatives` (a list, perhaps empty).

    Args:
        corpus: rows whose query is called `query`, `anchor`, `question` or `sentence1`, and its right passage
            `positive`, `document`, `passage`, `answer` or `sentence2`; wrong ones are the list or text `negatives` or
            `negative`, or `negative_1`, `negative_2`, …. Of `pydocs`: summaries and bodies of the packages that the
            trials do not ask about.
        n: so many rows at random (0: all; of `pydocs` 2,000).
        words: of a body of `pydocs`.
        negatives: of `pydocs`, wrong bodies that BM25 takes for right ones, beside each query.
        seed: of the choice.

    Raises:
        InputError: a row lacks a text, named; with on_error "skip" it is counted and said.
    """
    if corpus.spec == "pydocs":
        return documented(n or 2000, words=words, negatives=negatives, seed=seed)
    read_by(corpus, QUERY)
    found = kept(corpus, sample(corpus, n, seed), as_pair)
    if not found:
        raise InputError(f"{corpus.spec} holds no pairs of query and positive")
    return found


def documented(n: int, *, words: int, negatives: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of `pydocs`, fewer where there are not so many."""
    if negatives:
        return examples("summary", n, negatives, words=words, seed=seed)
    return [{**row, "negatives": []} for row in training_pairs(n, words=words, seed=seed)]


def flat(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """`negatives` as columns `negative_1`, …, as many as every row has; what is left out is said."""
    counts = [len(row["negatives"]) for row in rows]
    width = min(counts)
    if max(counts) > width:
        say(f"rows have {width} to {max(counts)} negatives: the first {width} of each are used")
    return [
        {"query": row["query"], "positive": row["positive"]}
        | {f"negative_{i + 1}": text for i, text in enumerate(row["negatives"][:width])}
        for row in rows
    ]


def word_pairs(corpus: Corpus) -> list[WordPair]:
    """Word pairs: of a lexicon by name, of a TSV file, or of rows `word1`, `word2` with `label`, `lang1`, `lang2`.

    Raises:
        InputError: see `lexicon.load`; or a row lacks a word, named.
    """
    if isinstance(corpus, Named):
        return load_lexicon(corpus.spec)
    if corpus.spec == "pydocs":
        return load_lexicon("abbreviations")
    read_by(corpus, ("word1", *QUERY))
    found = kept(corpus, corpus, _word_pair)
    if not found:
        raise InputError(f"{corpus.spec} holds no word pairs")
    return found


def held_out(name: str) -> list[str]:
    """Words of a test: of a lexicon, or of a file with one or more on a line, parted by tabs."""
    from pathlib import Path

    path = Path(name).expanduser()
    if not path.is_file():
        return [word for pair in load_lexicon(name) for word in (pair.first, pair.second)]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    return [word.strip() for line in lines for word in line.split("\t") if word.strip()]


def read_by(corpus: Corpus, names: Sequence[str]) -> None:
    """Take the first of these fields that the rows have for the text, unless the one asked for is there."""
    fields = corpus.fields()
    if corpus.text_field not in fields:
        corpus.text_field = next((name for name in names if name in fields), corpus.text_field)


def sample(corpus: Corpus, n: int, seed: int) -> list[Document]:
    """`n` documents at random, in their order; all for 0."""
    return corpus.take(n, seed) if n else list(corpus)


def kept(
    corpus: Corpus, documents: Iterator[Document] | Sequence[Document] | Corpus, make: Callable[[Document], T | str]
) -> list[T]:
    """What `make` makes of each document; where it gives a reason instead, that stops or is counted."""
    found: list[T] = []
    skipped: Counter[str] = Counter()
    for document in documents:
        made = make(document)
        if not isinstance(made, str):
            found.append(made)
        elif corpus.on_error == "skip":
            skipped[made] += 1
        else:
            raise InputError(f"{corpus.spec}, row {document.id}: {made}; or go on without it: --on-error skip")
    for reason, count in skipped.most_common():
        say(f"{corpus.spec}: {count:,} rows skipped ({reason})")
    return found


def as_pair(document: Document) -> dict[str, Any] | str:
    """A row of `pairs`; or why it is none."""
    row = document.metadata
    name = next((name for name in POSITIVE if name in row), "")
    if not name:
        return f"no field {POSITIVE[0]!r}"
    positive, negatives = row[name], _negatives(row)
    if isinstance(negatives, str):
        return negatives
    if not isinstance(positive, str):
        return f"field {name!r} is not a string"
    if not document.text.strip() or not positive.strip():
        return f"an empty {'query' if not document.text.strip() else name}"
    return {"query": document.text, "positive": positive, "negatives": negatives}


def _negatives(row: dict[str, Any]) -> list[str] | str:
    found: list[str] = []
    for name in (
        "negatives",
        "negative",
        *sorted((key for key in row if key.startswith("negative_")), key=lambda key: (len(key), key)),
    ):
        value = row.get(name) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            return f"field {name!r} is neither a text nor a list of texts"
        found += value
    return found


def _word_pair(document: Document) -> WordPair | str:
    row = document.metadata
    second = row.get("word2", row.get("positive"))
    if not isinstance(second, str):
        return "no field 'word2'"
    if not document.text.strip() or not second.strip():
        return "an empty word"
    languages = str(row.get("lang1") or ""), str(row.get("lang2") or "")
    label = row.get("label")
    return WordPair(document.text, second, document.text if label is None else str(label), languages)
