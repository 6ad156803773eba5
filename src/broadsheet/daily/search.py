"""Papers that a search finds, by their words and by their meaning, and papers like another one.

Knows: the store's words, vectors as far as there are any. Does not know: how a search is typed (`query`), screens.
Both orders are fused by reciprocal rank: a paper at place r of one gets 1 / (60 + r) from it. Without vectors the words
decide alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

from broadsheet.daily.query import Query, parse
from broadsheet.daily.store import Article, Store, ours
from broadsheet.page import papers

_FUSED = 60  # the constant of reciprocal-rank fusion
_DEEP = 200  # places of each order that count
_MARKED = re.compile("\x02(.*?)\x03")


class Meaning(Protocol):
    """Vectors of papers, and of what is looked for."""

    def nearest(self, text: str, limit: int) -> list[str]:
        """Papers whose meaning is nearest to a text, the nearest first."""

    def like(self, likes: Sequence[str], dislikes: Sequence[str], limit: int) -> list[str]:
        """Papers like some, and unlike others, the likest first; those themselves left out."""


@dataclass(frozen=True)
class Hit:
    """A paper that was found.

    Attributes:
        why: which half found it: "words", "meaning", or both.
        place: looks for the place that was found.
    """

    article: Article
    why: tuple[str, ...] = ()
    place: Callable[[], str] | None = field(default=None, repr=False, compare=False)

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
