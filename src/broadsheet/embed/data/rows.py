"""What `broadsheet apply` trains on: rows of texts that belong together, from files, hub data sets or `pydocs`.

Knows: corpora and the names that fields go by. Does not know: embedders, losses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus, RowLocation
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.schemas import Pair
from broadsheet.embed.data.doc_tasks import examples
from broadsheet.embed.data.lexicon import WordPair, WordRow, abbreviations, pairs_of
from broadsheet.embed.data.lexicon import load as load_lexicon
from broadsheet.embed.data.tasks import documentation, training_pairs

TEXT = ("text", "body", "document", "passage", "positive")
_LEXICONS = ("wordnet", "freedict", "abbreviations")


class Named(Corpus):
    """A lexicon by name, which is no corpus of documents."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec, "stop", "text", "id")

    def identity(self) -> dict[str, Any]:
        return {"name": self.spec}

    def fingerprint(self) -> str:
        return self.spec

    def describe(self) -> str:
        return self.spec

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        raise InputError(f"{self.spec} holds no documents; expected a file, a folder, pydocs, or hf:org/name:split")


def open_data(data: str, **options: Any) -> Corpus:
    """A corpus as `corpora.load` gives it, or a lexicon by name.

    Raises:
        InputError: see `corpora.load`.
    """
    return Named(data) if data.partition(":")[0] in _LEXICONS else corpora.load(data, **options)


def texts(corpus: Corpus, n: int, seed: int = 0) -> list[str]:
    """The texts of a corpus: of `n` documents at random (0: all), those without a word left out.

    Of `pydocs` only those of packages that the trials do not ask about.

    Raises:
        InputError: see `corpora.load`; or no text is left.
    """
    fields = corpus.fields()
    if corpus.text_field not in fields:
        corpus.text_field = next((name for name in TEXT if name in fields), corpus.text_field)
    if is_pydocs(corpus.spec):
        held_out = documentation(seed=seed, data=corpus.spec).held_out
        documents = [document for document in corpus if not held_out(str(document.metadata["package"]))]
        documents = random.Random(seed).sample(documents, min(n or len(documents), len(documents)))
    else:
        documents = corpus.take(n, seed) if n else list(corpus)
    found = [document.text for document in documents if document.text.strip()]
    if not found:
        raise InputError(f"{corpus.spec} holds no texts")
    return found


def pairs(corpus: Corpus, n: int, *, words: int = 40, negatives: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Rows `query`, `positive`, `negatives` (a list, perhaps empty).

    Args:
        corpus: rows of `Pair`. Of `pydocs`: summaries and bodies of the packages that the trials do not ask about.
        n: rows at random (0: all; of `pydocs` 2,000).
        words: of a body of `pydocs`.
        negatives: of `pydocs`, wrong bodies that BM25 takes for right ones, beside each query.
        seed: of the choice.

    Raises:
        InputError: a row lacks a text, named; with on_error "skip" it is counted and reported.
    """
    if is_pydocs(corpus.spec):
        return documented(n or 2000, words=words, negatives=negatives, seed=seed, data=corpus.spec)
    found = corpus.read(Pair, query_column(corpus)).some("pairs of query and positive", n, seed)
    return [{"query": pair.query, "positive": pair.positive, "negatives": list(pair.negatives)} for pair in found]


def query_column(corpus: Corpus, field: str = "query") -> dict[str, str]:
    """The column of the queries, where --text-field names one."""
    return {} if corpus.text_field == "text" else {field: corpus.text_field}


def documented(n: int, *, words: int, negatives: int, seed: int, data: str) -> list[dict[str, Any]]:
    """Pairs of `pydocs`, fewer where there are fewer."""
    if negatives:
        return examples("summary", n, negatives, words=words, seed=seed, data=data)
    return [{**row, "negatives": []} for row in training_pairs(n, words=words, seed=seed, data=data)]


def flat(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """`negatives` as columns `negative_1`, …, as many as every row has; what is left out is reported."""
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
    """Word pairs: of a lexicon by name, or of rows of `WordRow`.

    Raises:
        InputError: see `lexicon.load` and `lexicon.pairs_of`.
    """
    if isinstance(corpus, Named):
        return load_lexicon(corpus.spec)
    if is_pydocs(corpus.spec):
        return abbreviations(document.text for document in corpus)
    return pairs_of(corpus.read(WordRow, query_column(corpus, "word1")))


def held_out(name: str) -> list[str]:
    """Words of a test: of a lexicon, or of a file with one or more on a line, parted by tabs."""
    path = Path(name).expanduser()
    if not path.is_file():
        return [word for pair in load_lexicon(name) for word in (pair.first, pair.second)]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    return [word.strip() for line in lines for word in line.split("\t") if word.strip()]
