"""Papers that a search finds, by their words and by their meaning, and papers like another one.

Knows: the store's words, vectors as far as there are any. Does not know: how a search is typed (`query`), screens.
Both orders are fused by reciprocal rank: a paper at place r of one gets 1 / (60 + r) from it. Without vectors the words
decide alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, Protocol, overload

from broadsheet.daily.query import Query, parse
from broadsheet.daily.store import Article, Choice, Store, Topic, ours
from broadsheet.page import papers

_FUSED = 60  # the constant of reciprocal-rank fusion
_DEEP = 200  # places of each order that count
_COMMON = 3  # one of so many of this project's papers has a common word
_KEYWORDS = 20  # of several papers, by which those like them are found
_SHARED = 3  # words that two papers have in common, that are told
_MARKED = re.compile("\x02(.*?)\x03")


class Meaning(Protocol):
    """Vectors of papers, and of what is looked for."""

    def begin(self, text: str) -> None:
        """Begin to read a text that `nearest` will be asked for; it need not be waited for."""

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
        shared: words that both have, where words tell which is nearest.
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


class Hits(Sequence[Hit]):
    """What a search found, the best first; a paper is read where it is looked at, since a screen shows a part.

    Args:
        make: a hit of its paper.
    """

    def __init__(self, store: Store, found: Sequence[str], make: Callable[[Article], Hit]) -> None:
        self._store, self._found, self._make = store, found, make

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, place: int) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> list[Hit]: ...

    def __getitem__(self, place: int | slice) -> Hit | list[Hit]:
        if isinstance(place, slice):
            return [self._make(article) for article in self._store.articles(self._found[place])]
        return self._make(self._store.articles([self._found[place]])[0])

    def __iter__(self) -> Iterator[Hit]:
        return iter(self[:])


def find(store: Store, text: str, limit: int = 50, *, meaning: Meaning | None = None, offset: int = 0) -> Hits:
    """Papers for what was typed, the best first; where only conditions are typed, the latest first.

    Hidden papers are left out unless they are asked for.
    """
    query = parse(text)
    conditions, given = _conditions(query)
    if not (query.plain or query.authors or query.without):
        rows = _rows(store, conditions, given, limit, offset)
        return Hits(store, [row[0] for row in rows], Hit)
    if meaning and query.plain:
        meaning.begin(query.plain)  # meanwhile words are looked for
    worded = store.db.find_words(query, conditions, given, _DEEP)
    orders = {"words": worded}
    if meaning and query.plain:
        near = meaning.nearest(query.plain, _DEEP)
        needed = query.phrases or query.authors or query.without
        allowed = set(worded) if needed else _fitting(store, near, conditions, given)
        orders["meaning"] = [each for each in near if each in allowed]
    found = fused(list(orders.values()))[offset : offset + limit]
    by = {name: set(order) for name, order in orders.items()}

    def made(article: Article) -> Hit:
        why = tuple(name for name, those in by.items() if article.id in those)
        return Hit(article, why, partial(store.db.place, query, article.id) if "words" in why else None)

    return Hits(store, found, made)


def similar(store: Store, identifier: str, limit: int = 10, *, meaning: Meaning | None = None) -> list[Hit]:
    """Papers like one: by meaning where there are vectors, else by the words of its title and of what we say of it."""
    return like(store, [identifier], [], limit, meaning=meaning)


def like(
    store: Store, likes: Sequence[str], dislikes: Sequence[str], limit: int = 10, *, meaning: Meaning | None = None
) -> list[Hit]:
    """Papers like some and unlike others, those that are hidden left out."""
    order, by = _likest(store, likes, dislikes, meaning)
    return [Hit(each, (by,)) for each in store.articles(order[:limit])]


def followed(
    store: Store, topic: Topic, limit: int = 50, *, meaning: Meaning | None = None, explain: bool = True
) -> list[Hit]:
    """Papers of a topic that the user has not judged in it, the best first.

    Where some are liked, the order in which the search finds papers and that in which they are like the liked ones are
    fused; what a paper has to be for the search it has to be here. Where only conditions are typed, they choose and
    likeness orders. Without liked papers the search decides alone. What likeness found is `explained`, if wanted.
    """
    judged = {*topic.likes, *topic.dislikes}
    enough = limit + len(judged)
    if not topic.likes:
        hits = list(find(store, topic.query, enough, meaning=meaning)) if topic.query else []
        return [hit for hit in hits if hit.article.id not in judged][:limit]
    liked, _ = _likest(store, topic.likes, topic.dislikes, meaning)
    if not topic.query:
        hits = [Hit(each, ("likeness",)) for each in store.articles(liked[:limit])]
    else:
        nearer, chosen = _Nearer(meaning, liked), not parse(topic.query).plain
        hits = list(find(store, topic.query, _DEEP if chosen else enough, meaning=nearer))
        if chosen:
            places = {each: i for i, each in enumerate(liked)}
            hits.sort(key=lambda hit: places.get(hit.article.id, len(places)))
        hits = [replace(hit, why=nearer.why(hit)) for hit in hits]
    hits = [hit for hit in hits if hit.article.id not in judged][:limit]
    return explained(store, hits, topic.likes, meaning=meaning) if explain else hits


def more(store: Store, limit: int = 10, *, meaning: Meaning | None = None) -> list[Hit]:
    """Papers that are not read yet, like those that the user wants more of; none where there are none of these."""
    seeds = [each.id for each in store.marked("seed")]
    if not seeds:
        return []
    articles = store.articles(_likest(store, seeds, [], meaning)[0][: 10 * limit])
    fresh = [Hit(each, ("likeness",)) for each in articles if not each.mark.read]
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

    def followed(self, topic: Topic, limit: int, explain: bool = True) -> list[Hit]:
        """See `followed`."""
        return followed(self.store, topic, limit, meaning=self.meaning, explain=explain)

    def more(self, limit: int) -> list[Hit]:
        """See `more`."""
        return more(self.store, limit, meaning=self.meaning)


class _Nearer:
    """What is nearest to a search and to liked papers, as a meaning that `find` may ask."""

    def __init__(self, meaning: Meaning | None, liked: list[str]) -> None:
        self.meaning, self.liked = meaning, liked
        self.near: list[str] = []

    def begin(self, text: str) -> None:
        if self.meaning:
            self.meaning.begin(text)

    def nearest(self, text: str, limit: int) -> list[str]:
        self.near = self.meaning.nearest(text, limit) if self.meaning else []
        return fused([self.near, self.liked])

    def like(self, likes: Sequence[str], dislikes: Sequence[str], limit: int) -> list[str]:
        return self.liked[:limit]

    def closest(self, identifiers: Sequence[str], among: Sequence[str]) -> dict[str, str]:
        return {}

    def why(self, hit: Hit) -> tuple[str, ...]:
        """What found a hit."""
        identifier = hit.article.id
        by_words = tuple(each for each in hit.why if each == "words")
        return by_words + ("meaning",) * (identifier in self.near) + ("likeness",) * (identifier in self.liked)


def _likest(
    store: Store, likes: Sequence[str], dislikes: Sequence[str], meaning: Meaning | None
) -> tuple[list[str], str]:
    """Papers like some and unlike others, the likest first, and what told: "meaning" or "words"."""
    left_out = {*likes, *dislikes, *store.chosen(Choice("hidden"))}
    if meaning and (found := meaning.like(likes, dislikes, _DEEP)):
        return [each for each in found if each not in left_out], "meaning"
    words = _keywords(store.articles(list(likes)))
    found = store.db.find_words(Query(words=words), "TRUE", [], _DEEP) if words else []
    return [each for each in found if each not in left_out], "words"


def _shared(articles: Sequence[Article], liked: Sequence[Article]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each paper the liked one with which it has the most words in common, the rarest counting most.

    Beside it stand these words: those of titles first, then the rarest.
    """
    known = {each.id: each for each in liked}
    words = {each.id: _telling(each) for each in (*articles, *liked)}
    often = Counter(word for some in words.values() for word in some)
    found = {}
    for article in articles:
        common = {each.id: words[article.id] & words[each.id] for each in liked if each.id != article.id}
        one = max(common, key=lambda each: sum(1 / often[word] for word in common[each]), default="")
        if one and common[one]:
            titles = Counter([*_words(article.title), *_words(known[one].title)])
            telling = sorted(common[one], key=lambda word: (-titles[word], often[word], word))
            found[article.id] = one, tuple(telling[:_SHARED])
    return found


def _keywords(articles: Sequence[Article]) -> tuple[str, ...]:
    """Words by which papers like some are found: of one all but common ones, of several those that tell most.

    A word tells the more, the more of the papers have it, in the title above all, and the fewer of this project's own.
    """
    rarity = _rarity()
    unknown = max(rarity.values())
    if len(articles) == 1:
        words = dict.fromkeys(re.findall(r"\w{4,}", f"{articles[0].title} {ours(articles[0].id)}"))
        return tuple(word for word in words if rarity.get(word.lower(), unknown) > math.log(_COMMON)) or tuple(words)
    often = Counter(word for each in articles for word in _telling(each))
    often.update(word for each in articles for word in set(re.findall(r"\w{4,}", each.title.lower())) & often.keys())
    weights = {word: count * rarity.get(word, unknown) for word, count in often.items()}
    return tuple(sorted(weights, key=lambda word: (-weights[word], word))[:_KEYWORDS])


@cache
def _rarity() -> dict[str, float]:
    """How much words of this project's papers tell: the logarithm of how few of them have each."""
    page = papers.page()
    having = Counter(word for each in page for word in _words(f"{each.title} {ours(each.arxiv)}"))
    return {word: math.log(len(page) / max(2, count)) for word, count in having.items()}


def _telling(article: Article) -> set[str]:
    return _words(f"{article.title} {ours(article.id)}")


def _words(text: str) -> set[str]:
    """The words of a text, as far as they say what it is about."""
    return set(Query(words=tuple(re.findall(r"\w{4,}", text.lower()))).telling)


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
