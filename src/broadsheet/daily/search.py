"""Papers that a search finds, by their words and by their meaning, and papers like another one.

Knows: the store's words, vectors as far as there are any. Does not know: how a search is typed (`query`), screens.
Both orders are fused by reciprocal rank: a paper at place r of one gets 1 / (60 + r) from it. Without vectors the words
decide alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

from broadsheet.daily.query import Query, parse
from broadsheet.daily.store import Article, Store, Topic, ours
from broadsheet.page import papers

_FUSED = 60  # the constant of reciprocal-rank fusion
_DEEP = 200  # places of each order that count
_SHARED = 3  # words that two papers have in common, that are told
_MARKED = re.compile("\x02(.*?)\x03")


class Meaning(Protocol):
    """Vectors of papers, and of what is looked for."""

    def nearest(self, text: str, limit: int) -> list[str]:
        """Papers whose meaning is nearest to a text, the nearest first."""

    def like(self, likes: Sequence[str], dislikes: Sequence[str], limit: int) -> list[str]:
        """Papers like some, and unlike others, the likest first; those themselves left out."""

    def closest(self, identifiers: Sequence[str], among: Sequence[str]) -> dict[str, str]:
        """For each of some papers the one of others that is nearest to it."""


@dataclass(frozen=True)
class Hit:
    """A paper that was found.

    Attributes:
        why: which half found it: "words", "meaning", or both; "likeness" where papers that the user likes did.
        place: looks for the place that was found.
        like: the liked paper that is nearest to it, where likeness found it.
        shared: words that both have, where words tell which is nearest, the rarest first.
    """

    article: Article
    why: tuple[str, ...] = ()
    place: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    like: str = ""
    shared: tuple[str, ...] = ()

    @cached_property
    def snippet(self) -> tuple[tuple[str, bool], ...]:
        """The place that was found, as pieces of text of which the marked ones fit: (text, fits).

        It is looked for when it is asked for: of what is found, a screen shows a part.
        """
        return _pieces(self.place()) if self.place else ()


def find(store: Store, text: str, limit: int = 50, *, meaning: Meaning | None = None, offset: int = 0) -> list[Hit]:
    """Papers for what was typed, the best first; where only conditions are typed, the latest first.

    Hidden papers are left out unless they are asked for.
    """
    query = parse(text)
    conditions, given = _conditions(query)
    if not (query.plain or query.authors or query.without):
        rows = _rows(store, conditions, given, limit, offset)
        return [Hit(article) for article in store.articles([row[0] for row in rows])]
    worded = store.db.find_words(query, conditions, given, _DEEP)
    orders = {"words": worded}
    if meaning and query.plain:
        near = meaning.nearest(query.plain, _DEEP)
        needed = query.phrases or query.authors or query.without
        allowed = set(worded) if needed else _fitting(store, near, conditions, given)
        orders["meaning"] = [each for each in near if each in allowed]
    found = fused(list(orders.values()))[offset : offset + limit]
    by = {name: set(order) for name, order in orders.items()}
    return [
        Hit(
            each,
            tuple(name for name, those in by.items() if each.id in those),
            partial(store.db.place, query, each.id) if each.id in by["words"] else None,
        )
        for each in store.articles(found)
    ]


def similar(store: Store, identifier: str, limit: int = 10, *, meaning: Meaning | None = None) -> list[Hit]:
    """Papers like one: by meaning where there are vectors, else by the words of its title and of what we say of it."""
    return like(store, [identifier], [], limit, meaning=meaning)


def like(
    store: Store, likes: Sequence[str], dislikes: Sequence[str], limit: int = 10, *, meaning: Meaning | None = None
) -> list[Hit]:
    """Papers like some and unlike others, those that are hidden left out."""
    known = {*likes, *dislikes}
    hidden = {each.id for each in store.marked("hidden")}
    if meaning and (found := meaning.like(likes, dislikes, _DEEP)):
        chosen = [each for each in found if each not in hidden][:limit]
        return [Hit(each, ("meaning",)) for each in store.articles(chosen)]
    texts = [f"{each.title} {ours(each.id)}" for each in store.articles(list(likes))]
    words = tuple(dict.fromkeys(word for text in texts for word in re.findall(r"\w{4,}", text)))
    if not words:
        return []
    orders = store.db.find_words(Query(words=words), "TRUE", [], _DEEP)
    chosen = [each for each in orders if each not in known | hidden][:limit]
    return [Hit(each, ("words",)) for each in store.articles(chosen)]


def followed(store: Store, topic: Topic, limit: int = 50, *, meaning: Meaning | None = None) -> list[Hit]:
    """Papers of a topic that the user has not judged in it, the best first.

    Where some are liked, the order in which the search finds papers and that in which they are like the liked ones are
    fused; what a paper has to be for the search it has to be here. Where only conditions are typed, they choose and
    likeness orders. Without liked papers the search decides alone.
    """
    judged = {*topic.likes, *topic.dislikes}
    enough = limit + len(judged)
    if not topic.likes:
        hits = find(store, topic.query, enough, meaning=meaning) if topic.query else []
        return [hit for hit in hits if hit.article.id not in judged][:limit]
    liked = {
        hit.article.id: hit for hit in like(store, topic.likes, topic.dislikes, max(_DEEP, enough), meaning=meaning)
    }
    if not topic.query:
        hits = [replace(hit, why=("likeness",)) for hit in liked.values()]
    else:
        nearer = _Nearer(meaning, list(liked))
        hits = find(store, topic.query, max(_DEEP, enough), meaning=nearer)
        if not nearer.asked:
            places = {each: i for i, each in enumerate(liked)}
            hits.sort(key=lambda hit: places.get(hit.article.id, len(places)))
        hits = [replace(hit, why=nearer.why(hit)) for hit in hits]
    return explained(store, [hit for hit in hits if hit.article.id not in judged][:limit], topic.likes, meaning=meaning)


def more(store: Store, limit: int = 10, *, meaning: Meaning | None = None) -> list[Hit]:
    """Papers that are not read yet, like those that the user wants more of; none where there are none of these."""
    seeds = [each.id for each in store.marked("seed")]
    if not seeds:
        return []
    hits = like(store, seeds, [], 10 * limit, meaning=meaning)
    fresh = [replace(hit, why=("likeness",)) for hit in hits if not hit.article.mark.read]
    return explained(store, fresh[:limit], seeds, meaning=meaning)


def explained(store: Store, hits: Sequence[Hit], likes: Sequence[str], *, meaning: Meaning | None = None) -> list[Hit]:
    """Hits, each that likeness found with the liked paper that is nearest to it."""
    found = [hit for hit in hits if "likeness" in hit.why]
    near = meaning.closest([hit.article.id for hit in found], likes) if meaning else {}
    left = [hit.article for hit in found if hit.article.id not in near]
    shared = _shared(left, store.articles(likes)) if left else {}
    explained = []
    for hit in hits:
        identifier = hit.article.id
        one, words = shared.get(identifier, (near.get(identifier, ""), ()))
        explained.append(replace(hit, like=one, shared=words) if one else hit)
    return explained


@dataclass(frozen=True)
class Likes:
    """What a store's user likes, and how near papers are to it.

    Args:
        meaning: None: words tell it.
    """

    store: Store
    meaning: Meaning | None = None

    def followed(self, topic: Topic, limit: int) -> list[Hit]:
        """See `followed`."""
        return followed(self.store, topic, limit, meaning=self.meaning)

    def more(self, limit: int) -> list[Hit]:
        """See `more`."""
        return more(self.store, limit, meaning=self.meaning)


class _Nearer:
    """What is nearest to a search and to liked papers, as a meaning that `find` may ask."""

    def __init__(self, meaning: Meaning | None, liked: list[str]) -> None:
        self.meaning, self.liked = meaning, liked
        self.near: list[str] = []
        self.asked = False

    def nearest(self, text: str, limit: int) -> list[str]:
        self.asked = True
        self.near = self.meaning.nearest(text, limit) if self.meaning else []
        return fused([self.near, self.liked])

    def like(self, likes: Sequence[str], dislikes: Sequence[str], limit: int) -> list[str]:
        return self.liked[:limit]

    def closest(self, identifiers: Sequence[str], among: Sequence[str]) -> dict[str, str]:
        return {}

    def why(self, hit: Hit) -> tuple[str, ...]:
        """What found a hit."""
        identifier = hit.article.id
        words = ("words",) if "words" in hit.why or not self.asked else ()
        return words + ("meaning",) * (identifier in self.near) + ("likeness",) * (identifier in self.liked)


def _shared(articles: Sequence[Article], liked: Sequence[Article]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each paper the liked one with which it has the most words in common, the rarest counting most, and these."""
    words = {each.id: _telling(each) for each in (*articles, *liked)}
    often = Counter(word for some in words.values() for word in some)
    found = {}
    for article in articles:
        common = {each.id: words[article.id] & words[each.id] for each in liked if each.id != article.id}
        one = max(common, key=lambda each: sum(1 / often[word] for word in common[each]), default="")
        if one and common[one]:
            rarest = sorted(common[one], key=lambda word: (often[word], word))
            found[article.id] = one, tuple(rarest[:_SHARED])
    return found


def _telling(article: Article) -> set[str]:
    words = re.findall(r"\w{4,}", f"{article.title} {ours(article.id)}".lower())
    return set(Query(words=tuple(words)).telling)


def fused(orders: Sequence[Sequence[str]]) -> list[str]:
    """One order out of several, by the sum of 1 / (60 + place); of equals the one that the first order has first."""
    scores: dict[str, float] = {}
    for order in orders:
        for place, each in enumerate(order[:_DEEP], 1):
            scores[each] = scores.get(each, 0.0) + 1 / (_FUSED + place)
    return sorted(scores, key=lambda each: -scores[each])


def _rows(store: Store, conditions: str, given: list[Any], limit: int, offset: int) -> list[Any]:
    return store.db.rows(
        f"SELECT paper.id FROM paper LEFT JOIN mark ON mark.id = paper.id WHERE {conditions} "
        "ORDER BY paper.published DESC, paper.id DESC LIMIT ? OFFSET ?",
        [*given, limit, offset],
    )


def _fitting(store: Store, among: Sequence[str], conditions: str, given: list[Any]) -> set[str]:
    """Those of some papers that are as they have to be."""
    marks = ", ".join("?" * len(among)) or "''"
    found = _rows(store, f"{conditions} AND paper.id IN ({marks})", [*given, *among], len(among), 0)
    return {row[0] for row in found}


def _conditions(query: Query) -> tuple[str, list[Any]]:
    """What a paper has to be, as SQL, and its values."""
    states = {
        "read": "mark.read = 1", "unread": "coalesce(mark.read, 0) = 0", "later": "mark.later = 1",
        "hidden": "mark.hidden = 1", "seed": "mark.seed = 1", "noted": "coalesce(mark.note, '') != ''",
    }  # fmt: skip
    parts = [states[each] for each in query.states]
    given: list[Any] = []
    if "hidden" not in query.states:
        parts.append("coalesce(mark.hidden, 0) = 0")
    for category in query.categories:
        parts.append("lower(paper.categories) LIKE ? ESCAPE '!'")
        given.append(f"%{_literally(json.dumps(category.lower(), ensure_ascii=False))}%")
    if query.after:
        parts.append("paper.published >= ?")
        given.append(query.after)
    if query.before:
        parts.append("paper.published < ?")
        given.append(query.before)
    if query.runs is not None:
        here = [paper.arxiv for paper in papers.page() if paper.trial]
        parts.append(f"paper.id {'' if query.runs else 'NOT '}IN ({', '.join('?' * len(here))})")
        given += here
    return " AND ".join(parts), given


def _literally(text: str) -> str:
    """A text in a pattern of LIKE that stands for itself."""
    return re.sub("[!%_]", r"!\g<0>", text)


def _pieces(snippet: str) -> tuple[tuple[str, bool], ...]:
    """A snippet's pieces, and whether each fits what is looked for."""
    pieces = _MARKED.split(snippet)
    return tuple((piece, bool(i % 2)) for i, piece in enumerate(pieces) if piece)
