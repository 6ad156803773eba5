"""Topics ranked by what the reader likes, and more like what the reader wants more of: by meaning, and by words."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from lxml import html
from starlette.testclient import TestClient

from broadsheet.daily import search
from broadsheet.daily.meaning import Vectors
from broadsheet.daily.records import Record
from broadsheet.daily.screens.routes import routes
from broadsheet.daily.store import Store, Topic

Z, Q, ZQ = (tuple(f"24{i:02}.0000{kind}" for i in range(1, 5)) for kind in (1, 2, 3))


class Letters:
    """An embedder whose vectors count letters."""

    def encode_document(self, texts: Sequence[str], **_: object) -> np.ndarray:
        return np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)

    encode_query = encode_document


def record(identifier: str, title: str, abstract: str, category: str = "cs.CL") -> Record:
    return Record(identifier, "arxiv", 1, title, abstract, ("Ann Liu",), (category,), f"20{identifier[:2]}-01-01")


@pytest.fixture
def store(place: str) -> Store:
    made = Store(place, clock=lambda: "2024-08-18T00:00:00Z")
    made.add([record(each, f"Zzzz mnk{i}", "zz zz zz") for i, each in enumerate(Z)])
    made.add([record(each, f"Qqqq mnk{i}", "qq qq qq") for i, each in enumerate(Q)])
    made.add([record(each, "Zzzz qqqq walks", "zq zq", "cs.CV") for each in ZQ])
    return made


@pytest.fixture
def meaning(store: Store, monkeypatch: pytest.MonkeyPatch) -> Vectors:
    made = Vectors(store, "letters")
    monkeypatch.setattr(Vectors, "_embedder", Letters())
    monkeypatch.setattr(Vectors, "name", "letters 0")
    made.update()
    return made


def ids(hits: Sequence[search.Hit]) -> list[str]:
    return [hit.article.id for hit in hits]


def test_without_likes_the_search_decides_and_the_judged_are_left_out(store, meaning):
    assert search.followed(store, Topic("a")) == []
    topic = Topic("a", "qqqq", (), (Q[0],))
    assert ids(search.followed(store, topic)) == [each for each in ids(search.find(store, "qqqq")) if each != Q[0]]
    assert all(not hit.like for hit in search.followed(store, topic, meaning=meaning))


def test_likes_alone_rank_and_each_paper_names_the_liked_one_nearest_to_it(store, meaning):
    hits = search.followed(store, Topic("a", "", (Z[0], Q[0])), 200, meaning=meaning)
    found = {hit.article.id: hit for hit in hits}
    assert {Z[0], Q[0]}.isdisjoint(found)
    assert [found[each].like for each in (*Z[1:], *Q[1:])] == [Z[0]] * 3 + [Q[0]] * 3
    assert {hit.why for hit in hits} == {("likeness",)}
    assert ids(hits)[:4] == list(ZQ), "like both"
    for wrong, others in ((Z, Q), (Q, Z)):
        unlike = ids(search.followed(store, Topic("a", "", (ZQ[0],), (wrong[0],)), 200, meaning=meaning))
        assert max(map(unlike.index, others)) < min(map(unlike.index, wrong[1:])), "unlike the disliked one"


def test_what_is_not_explained_is_found_as_what_is(store, meaning):
    topic = Topic("a", "walks", (Z[0],))
    for means in (None, meaning):
        bare = search.followed(store, topic, 200, meaning=means, explain=False)
        assert not any(hit.like for hit in bare)
        assert ids(bare) == ids(search.followed(store, topic, 200, meaning=means))


def test_a_query_is_read_with_one_core_and_all_else_with_as_many_as_before(store, meaning, monkeypatch):
    import torch

    seen: list[int] = []

    class Counting(Letters):
        def encode_query(self, texts: Sequence[str], **_: object) -> np.ndarray:
            seen.append(torch.get_num_threads())
            return self.encode_document(texts)

    monkeypatch.setattr(Vectors, "_embedder", Counting())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        meaning.nearest("walks", 3)
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_query_that_could_not_be_read_may_be_read_another_time(store, meaning, monkeypatch):
    class Failing(Letters):
        def encode_query(self, texts: Sequence[str], **_: object) -> np.ndarray:
            raise RuntimeError("no memory")

    monkeypatch.setattr(Vectors, "_embedder", Failing())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            search.find(store, "walks", meaning=meaning)
    monkeypatch.setattr(Vectors, "_embedder", Letters())
    assert ids(search.find(store, "walks", meaning=meaning))


def test_what_was_found_is_found_anew_once_anything_is_written(store, place):
    assert len(search.find(store, "zzzz")) == 8
    store.mark(Z[0], hidden=True)
    assert len(search.find(store, "zzzz")) == 7
    other = Store(place, clock=lambda: "2024-08-18T00:00:00Z")  # as another process
    other.mark(Z[1], hidden=True)
    assert len(search.find(store, "zzzz")) == 6
    other.add([record("2409.00001", "Zzzz again", "zz")])
    assert len(search.find(store, "zzzz")) == 7


def test_a_search_and_likes_are_fused_and_what_has_to_hold_holds_for_both(store, meaning):
    topic = Topic("a", "walks", (Z[0],))
    hits = {hit.article.id: hit.why for hit in search.followed(store, topic, 200, meaning=meaning)}
    assert next(iter(hits)) in ZQ, "found by the search, and like the liked one"
    assert set(hits) >= {*ZQ, *Z[1:]}
    assert hits[ZQ[0]] == ("words", "meaning", "likeness")
    for liked in (Z, Q):
        assert search.followed(store, Topic("a", "mnk0", (liked[1],)), 1, meaning=meaning)[0].article.id == liked[0]
    for condition in ("cat:cs.CV", "before:2024-03", '"qqqq walks"'):
        both = ids(search.followed(store, Topic("a", f"zzzz {condition}", (Z[0],)), 200, meaning=meaning))
        assert set(ZQ[:2]) <= set(both) <= set(ids(search.find(store, condition, 200))), condition
    store.mark(ZQ[0], hidden=True)
    assert ZQ[0] not in ids(search.followed(store, topic, 200, meaning=meaning))


def test_conditions_alone_choose_and_likeness_orders(store, meaning):
    hits = search.followed(store, Topic("a", "cat:cs.CL", (Q[3],), (Z[3],)), 200, meaning=meaning)
    assert ids(hits)[:3] == [Q[0], Q[1], Q[2]]
    assert set(ids(hits)) == {*Q[:3], *Z[:3]}


def test_without_an_embedder_words_rank_and_tell_what_is_shared(store):
    store.add([record("2405.00009", "Mnk0 of walking badgers", "x"), record("2405.00008", "Sleeping badgers", "y")])
    hits = {hit.article.id: hit for hit in search.followed(store, Topic("a", "", ("2405.00009", Z[0])), 50)}
    assert (hits["2405.00008"].like, hits["2405.00008"].shared) == ("2405.00009", ("badgers",))
    assert (hits[Z[1]].like, hits[Z[1]].shared) == (Z[0], ("zzzz",))
    assert hits[Z[1]].why == ("likeness",)


def test_more_is_like_the_seeds_unread_and_nothing_without_them(store, meaning):
    assert search.more(store, meaning=meaning) == search.more(store) == []
    store.mark(Z[0], seed=True)
    store.mark(Z[1], read=True)
    store.mark(Z[2], hidden=True)
    [first, *_] = search.more(store, meaning=meaning)
    assert (first.article.id, first.like) == (Z[3], Z[0])
    assert {Z[0], Z[1], Z[2]}.isdisjoint(ids(search.more(store, 100, meaning=meaning)))
    assert search.more(store)[0].like == Z[0]


def asked(store: Store, path: str, meaning: Vectors | None = None) -> Any:
    app = FastAPI()
    app.include_router(routes(store, None, lambda: "t", likes=search.Likes(store, meaning)))
    return html.fromstring(TestClient(app).get(path).text)


def test_the_screens_say_how_they_are_ranked_and_which_liked_paper_decided(store, meaning):
    store.follow(Topic("a", "", (Z[0], Z[1]), (Q[0],)))
    page = asked(store, "/topics/a", meaning)
    [how] = page.xpath("//section[@aria-labelledby='found']/p[@class='aside']/text()")
    assert how == "Papers like the 2 right ones and unlike the wrong one come first, by meaning."
    assert page.xpath("//section[@aria-labelledby='found']//li[1]//a[@class='title']/@href")[0].rpartition("/")[2] in Z
    [like] = page.xpath("//section[@aria-labelledby='found']//li[1]/p[@class='by']/a")
    assert like.get("href") in (f"/papers/{Z[0]}", f"/papers/{Z[1]}")
    assert "by the words of titles" in asked(store, "/topics/a").text_content()
    store.follow(Topic("a", "cat:cs.CL", (Z[0],)))
    assert "The search chooses; of what fits, papers like the right one" in asked(store, "/topics/a").text_content()
    assert not asked(store, "/").xpath("//h2[@id='more']")
    store.mark(Z[0], seed=True)
    more = asked(store, "/", meaning).xpath("//section[@aria-labelledby='more']/article")
    assert len(more) == 6
    assert more[0].xpath(f".//p/a[@href='/papers/{Z[0]}']")


def test_of_many_words_those_that_liked_papers_share_find_others(store):
    many = [" ".join(f"{kind}word{i}" for i in range(16)) for kind in "ab"]
    liked = [record(f"2406.0000{i}", f"{words} badgers", "x") for i, words in enumerate(many)]
    store.add([*liked, record("2406.00007", "Of badgers", "x"), record("2406.00008", "Sleeping badgers", "x")])
    assert ids(search.like(store, [each.id for each in liked], [])) == ["2406.00007", "2406.00008"]


def test_common_words_find_where_there_are_no_others(store):
    store.add(
        [record("2406.00001", "Large language models", "x"), record("2406.00002", "Language models of badgers", "x")]
    )
    assert "2406.00001" not in ids(search.similar(store, "2406.00002"))
    assert "2406.00002" in ids(search.similar(store, "2406.00001", 100))
