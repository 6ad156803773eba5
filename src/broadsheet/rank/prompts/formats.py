"""Files and interfaces of other rerankers: rank_llm's requests and templates, `rerankers`.

Knows: those formats. Does not know: models. Ids are strings everywhere; errors name a damaged line by file and number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.data import rows
from broadsheet.data.rows import OnError, column
from broadsheet.rank.prompts.prompt import Prompt

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker

# Where rank_llm looks for a candidate's text, in this order.
_TEXT_FIELDS = ("text", "segment", "contents", "content", "body", "passage")


@dataclass(frozen=True)
class RerankRequest:
    """A query and its candidates in order, as rank_llm's `RerankRequest` and `Result` hold them.

    Attributes:
        qid, query: the query's id and text.
        docids, scores: of the candidates, best first.
        docs: their fields, a text under one of rank_llm's names among them.
    """

    qid: str
    query: str
    docids: list[str]
    scores: list[float]
    docs: list[dict[str, Any]]

    def documents(self) -> list[dict[str, Any]]:
        """The candidates as `ListwiseReranker` reads them: text and title."""
        return [
            {
                "title": doc.get("title"),
                "text": next(doc[name] for name in _TEXT_FIELDS if isinstance(doc.get(name), str)),
            }
            for doc in self.docs
        ]


@dataclass(frozen=True)
class RequestRow:
    """A request or a result of rank_llm: `query` holds text and qid; `candidates` hold docid, score and doc each."""

    query: dict[str, Any] = column()
    candidates: tuple[dict[str, Any], ...] = column(default=())

    def __post_init__(self) -> None:
        self.request()

    def request(self) -> RerankRequest:
        """Raises ValueError: a part is missing."""
        try:
            docs = [dict(one["doc"]) for one in self.candidates]
            found = RerankRequest(
                qid=str(self.query["qid"]),
                query=self.query["text"],
                docids=[str(one["docid"]) for one in self.candidates],
                scores=[float(one["score"]) for one in self.candidates],
                docs=docs,
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"no request of rank_llm ({error}); expected query (text, qid) and candidates (docid, score, doc)"
            ) from None
        for docid, doc in zip(found.docids, docs, strict=True):
            if not any(isinstance(doc.get(name), str) for name in _TEXT_FIELDS):
                raise ValueError(f"candidate {docid!r} has no text; expected one of {', '.join(_TEXT_FIELDS)}")
        return found


def read_requests(path: str | Path, on_error: OnError = "stop") -> list[RerankRequest]:
    """rank_llm's requests or results: a `.json` array, or other rows of `RequestRow`, as `rows.read` takes them.

    Raises:
        InputError: no such file, not JSON, or an entry without query, ids or text.
    """
    return [row.request() for row in rows.read(path, RequestRow, on_error)]


def write_requests(requests: Iterable[RerankRequest], path: Path) -> None:
    """Write requests or results for rank_llm, as a `.json` array or, by the name, as `.jsonl`."""
    rows = [
        {
            "query": {"text": one.query, "qid": one.qid},
            "candidates": [
                {"docid": docid, "score": score, "doc": doc}
                for docid, score, doc in zip(one.docids, one.scores, one.docs, strict=True)
            ],
        }
        for one in requests
    ]
    with atomic_write(path) as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            json.dump(rows, file, indent=2, ensure_ascii=False)


def rerank_requests(reranker: ListwiseReranker, requests: Sequence[RerankRequest]) -> list[RerankRequest]:
    """Each request with its candidates reordered; scores are the reranker's, strictly decreasing."""
    asked = [one for one in requests if one.docids]
    found = iter(reranker.rank_batch([one.query for one in asked], [one.documents() for one in asked]))
    return [_reordered(one, next(found)) if one.docids else one for one in requests]


def read_template(path: Path) -> Prompt:
    """The wording in one of rank_llm's YAML templates of the method `singleturn_listwise`.

    A published reranker ranks best with the words it was trained with: give it `prompt=read_template(…)`.

    Raises:
        InputError: no such file, another method, or passages that are not written as `[{rank}] {candidate}`.
    """
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        template = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(template, dict) or template.get("method") != "singleturn_listwise":
        raise InputError(f"{path} is no template of the method singleturn_listwise; others cannot be used here")
    if not re.fullmatch(r"\[\{rank\}\] \{candidate\}\s*", str(template.get("body"))):
        raise InputError(f"{path}: body is {template.get('body')!r}; expected '[{{rank}}] {{candidate}}'")
    values = {
        "system": template.get("system_message"),
        "intro": template.get("prefix"),
        "outro": template.get("suffix"),
    }
    outro = str(values["outro"]).replace("{example_ordering}", "{example}")
    return Prompt.from_dict(values | {"outro": outro})


def as_rerankers(reranker: ListwiseReranker) -> Any:
    """`reranker` as a ranker of the library `rerankers`: `rank(query, docs, doc_ids)` gives its `RankedResults`.

    Raises:
        InputError: `rerankers` is not installed.
    """
    try:
        from rerankers.models.ranker import BaseRanker  # type: ignore[import-not-found, unused-ignore]
        from rerankers.results import RankedResults, Result  # type: ignore[import-not-found, unused-ignore]
        from rerankers.utils import prep_docs  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise InputError("the library rerankers is not installed: pip install rerankers") from None

    class Ranker(BaseRanker):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.verbose = 0

        def score(self, query: str, doc: str) -> float:
            raise InputError("a listwise reranker gives no score to a document alone; use rank")

        def rank(self, query: str, docs: Any, doc_ids: Any = None, metadata: Any = None) -> Any:
            documents = prep_docs(docs, doc_ids, metadata)
            hits = reranker.rank(query, [document.text for document in documents])
            results = [
                Result(document=documents[hit["corpus_id"]], score=hit["score"], rank=place)
                for place, hit in enumerate(hits, start=1)
            ]
            return RankedResults(results=results, query=query, has_scores=True)

    return Ranker()


def _reordered(request: RerankRequest, hits: Sequence[Mapping[str, Any]]) -> RerankRequest:
    order = [hit["corpus_id"] for hit in hits]
    return replace(
        request,
        docids=[request.docids[item] for item in order],
        scores=[hit["score"] for hit in hits],
        docs=[request.docs[item] for item in order],
    )
