"""rank_llm's files, and the interface of `rerankers`: read back as written, damage named by its line."""

from __future__ import annotations

import json
import sys
import types

import pytest

from broadsheet.console import InputError
from broadsheet.rank.prompts import formats
from broadsheet.rank.prompts.prompt import Prompt


class Backwards:
    """A reranker that turns every list round, and keeps what it was given."""

    def __init__(self):
        self.seen = []

    def rank(self, query, documents):
        self.seen.append((query, documents))
        n = len(documents)
        return [{"corpus_id": n - 1 - place, "score": float(n - place)} for place in range(n)]

    def rank_batch(self, queries, documents):
        return [self.rank(query, listed) for query, listed in zip(queries, documents, strict=True)]


@pytest.mark.parametrize("read", [formats.read_requests, formats.read_template])
def test_files_that_are_not_there_are_refused(tmp_path, read):
    with pytest.raises(InputError, match=r"nothing\.txt"):
        read(tmp_path / "nothing.txt")


REQUEST = {
    "query": {"text": "what is it?", "qid": 7},
    "candidates": [
        {"docid": 1, "score": 9.5, "doc": {"contents": "first", "title": "T"}},
        {"docid": "b", "score": 3, "doc": {"segment": "second", "url": "kept"}},
    ],
}


@pytest.mark.parametrize("name", ["requests.json", "requests.jsonl"])
def test_rank_llm_requests_are_reranked_and_read_back(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps([REQUEST]) if name.endswith("json") else json.dumps(REQUEST) + "\n\n")
    requests = formats.read_requests(path)
    reranker = Backwards()
    (result,) = formats.rerank_requests(reranker, requests)
    assert reranker.seen == [("what is it?", [{"title": "T", "text": "first"}, {"title": None, "text": "second"}])]
    formats.write_requests([result], tmp_path / f"out-{name}")
    assert formats.read_requests(tmp_path / f"out-{name}") == [result]
    assert (result.qid, result.docids, result.scores) == ("7", ["b", "1"], [2.0, 1.0])
    assert result.docs[0] == {"segment": "second", "url": "kept"}


def test_a_request_without_candidates_stays_as_it_is(tmp_path):
    path = tmp_path / "requests.jsonl"
    empty = {"query": {"text": "q", "qid": "e"}, "candidates": []}
    path.write_text("\n".join(json.dumps(one) for one in (empty, REQUEST)))
    first, second = formats.rerank_requests(Backwards(), formats.read_requests(path))
    assert (first.docids, second.docids) == ([], ["b", "1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a JSON list .got dict.; expected a list of objects"),
        ("[", "not JSON"),
        ('[{"query": {"text": "q"}, "candidates": []}]', "requests.json:1: no request of rank_llm"),
        (
            '[{"query": {"text": "q", "qid": 1}, "candidates": [{"docid": 1, "score": 1, "doc": {}}]}]',
            "'1' has no text",
        ),
    ],
)
def test_damaged_requests_are_refused(tmp_path, content, message):
    path = tmp_path / "requests.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        formats.read_requests(path)


def test_the_wording_of_a_rank_llm_template_is_taken_over(tmp_path):
    path = tmp_path / "template.yaml"
    path.write_text(
        'method: "singleturn_listwise"\nsystem_message: "Be a ranker"\nprefix: |\n  Now {num} texts for {query}.\n'
        "body: |\n  [{rank}] {candidate}\nsuffix: |-\n  Again {query}.\n  Like {example_ordering}, or [B] > [A].\n"
        'output_extraction_regex: r"x"\n'
    )
    prompt = formats.read_template(path)
    assert prompt == Prompt(
        system="Be a ranker",
        intro="Now {num} texts for {query}.\n",
        outro="Again {query}.\nLike {example}, or [B] > [A].",
    )
    path.write_text(path.read_text().replace("[{rank}] {candidate}", "{candidate}"))
    with pytest.raises(InputError, match="body is"):
        formats.read_template(path)
    path.write_text("method: pointwise\n")
    with pytest.raises(InputError, match="singleturn_listwise"):
        formats.read_template(path)


@pytest.fixture
def rerankers_library(monkeypatch):
    """The names of the library `rerankers` that the adapter uses, as that library has them."""

    class Document:
        def __init__(self, text, doc_id=None, metadata=None):
            self.text, self.doc_id, self.metadata = text, doc_id, metadata

    class Result:
        def __init__(self, document, score=None, rank=None):
            self.document, self.score, self.rank = document, score, rank

    class RankedResults:
        def __init__(self, results, query, has_scores=False):
            self.results, self.query, self.has_scores = results, query, has_scores

    def prep_docs(docs, doc_ids=None, metadata=None):
        return [Document(text, doc_ids[i] if doc_ids else i) for i, text in enumerate(docs)]

    names = {
        "rerankers": {},
        "rerankers.models": {},
        "rerankers.models.ranker": {"BaseRanker": object},
        "rerankers.results": {"RankedResults": RankedResults, "Result": Result},
        "rerankers.utils": {"prep_docs": prep_docs},
    }
    for name, members in names.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)


def test_a_ranker_of_rerankers_sends_the_passages_and_gives_scores(rerankers_library):
    reranker = Backwards()
    found = formats.as_rerankers(reranker).rank("q", ["one", "two"], doc_ids=["x", "y"])
    assert reranker.seen == [("q", ["one", "two"])]
    assert [(one.document.doc_id, one.score, one.rank) for one in found.results] == [("y", 2.0, 1), ("x", 1.0, 2)]
    assert found.has_scores
    with pytest.raises(InputError, match="use rank"):
        formats.as_rerankers(reranker).score("q", "one")


def test_without_the_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerankers", None)
    with pytest.raises(InputError, match="pip install rerankers"):
        formats.as_rerankers(Backwards())
