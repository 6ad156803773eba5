"""What the screens show, as dataclasses, and the addresses and lengths of texts on them.

Knows: papers as the store and the page have them. Does not know: where they come from (`views`), HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from urllib.parse import quote, urlencode

from broadsheet.daily.screens.dates import Span
from broadsheet.daily.screens.standing import Measured, Standing, Use
from broadsheet.daily.store import Article, Mark, Topic

ROWS = 30  # of a list, on one screen


@dataclass(frozen=True)
class Row:
    """A paper in a list.

    Attributes:
        gist: our own summary, else the beginning of the abstract.
        standing: of a paper of the page; None for any other.
        snippet: pieces of text of which the marked ones were looked for: (text, marked).
        why: why it is in the list, in a word or two.
        like: title and address of the liked paper that is nearest to it, where that is why.
        shared: words that both have.
    """

    article: Article
    title: str
    by: str
    gist: str
    standing: Standing | None = None
    snippet: tuple[tuple[str, bool], ...] = ()
    why: str = ""
    like: tuple[str, str] = ("", "")
    shared: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return address(self.article, self.standing)

    @property
    def mark(self) -> Mark:
        return self.article.mark


@dataclass(frozen=True)
class Pages:
    """Which part of a long list is shown.

    Attributes:
        number: from 1.
        query: of the address, without the page.
    """

    total: int
    number: int = 1
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(1, -(-self.total // ROWS))

    @property
    def first_row(self) -> int:
        return (self.number - 1) * ROWS

    def url(self, number: int) -> str:
        told = {name: value for name, value in self.query.items() if value} | ({"p": str(number)} if number > 1 else {})
        return f"?{urlencode(told)}"


@dataclass(frozen=True)
class Day:
    """A day of listings, and as many of its papers as are shown."""

    span: Span
    count: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Lead:
    """A paper with recorded evidence, as the front page leads with it.

    Attributes:
        picture: (what is measured, SVG, legend) of the first one alone.
    """

    row: Row
    standing: Standing
    measured: Measured | None = None


@dataclass(frozen=True)
class Asked:
    """When a source online was last asked, and what came of it in a line."""

    when: str
    line: str


@dataclass(frozen=True)
class Front:
    """The front page.

    Attributes:
        recent: papers that no source has listed, the latest first, where none is listed at all.
        verdicts: how many of the page's papers came out how.
        run: papers that were run here, by rung.
        open: papers whose verdict is open.
        asked: the sources online that were asked last.
        more: papers like those that the reader wants more of; none where there are none of these.
        unbuilt: papers that are not built, and `unbuilt_count` how many there are.
    """

    today: date
    count: int
    lead: Lead | None
    leads: tuple[Lead, ...]
    days: tuple[Day, ...]
    recent: tuple[Row, ...]
    verdicts: Mapping[str, int]
    run: tuple[Row, ...]
    run_count: int
    open: tuple[Row, ...]
    unbuilt: tuple[Row, ...]
    unbuilt_count: int
    left_out: int
    asked: tuple[Asked, ...] = ()
    more: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Edition:
    """A day, week or month.

    Attributes:
        empty: why there is nothing; empty where there is something.
        left_out: how many papers of no interest to the reader are not shown.
    """

    span: Span
    days: tuple[Day, ...]
    count: int
    previous: Span
    next: Span
    wider: tuple[Span, ...]
    pages: Pages
    empty: str = ""
    left_out: int = 0
    hidden: bool = False


@dataclass(frozen=True)
class PaperScreen:
    """A paper.

    Attributes:
        authors: those that are shown; `more_authors` how many are not.
        listings: (day, who listed it, at which place), the latest first.
        facts: (what, value, when it was so, who said it); an address is one by itself.
        topics: the reader's, with whether the paper is liked (1), disliked (-1) or neither in them.
        like: papers like it, the likest first.
    """

    article: Article
    standing: Standing | None
    title: str
    authors: tuple[str, ...]
    more_authors: int
    abstract: str
    summary: str
    submitted: str
    dates: tuple[tuple[str, str], ...]
    listings: tuple[tuple[str, str, int], ...]
    facts: tuple[tuple[str, str, str, str], ...]
    measured: Measured | None
    use: Use | None
    topics: tuple[tuple[Topic, int], ...]
    like: tuple[Row, ...] = ()

    @property
    def mark(self) -> Mark:
        return self.article.mark

    @property
    def url(self) -> str:
        return address(self.article, self.standing)


@dataclass(frozen=True)
class Shelf:
    """All papers, or those of a choice.

    Attributes:
        chosen: by filter, what is chosen.
        stages: (id, what it is about).
    """

    rows: tuple[Row, ...]
    pages: Pages
    chosen: Mapping[str, str]
    stages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        ready: whether there is a search at all.
        more: whether there may be more than were looked for.
    """

    query: str
    rows: tuple[Row, ...]
    pages: Pages
    ready: bool = True
    more: bool = False
    followed: str = ""


@dataclass(frozen=True)
class TopicScreen:
    """What the reader follows: its papers, those that are liked and those that are not.

    Attributes:
        how: how its papers are ranked, in a sentence; empty where the search decides alone.
    """

    topic: Topic
    rows: tuple[Row, ...]
    likes: tuple[Row, ...]
    dislikes: tuple[Row, ...]
    ready: bool = True
    how: str = ""


def address(article: Article, standing: Standing | None = None) -> str:
    """Where a paper's screen is."""
    return "/papers/" + (standing.paper.id if standing else quote(article.id, safe="/"))


def topic_address(name: str) -> str:
    """Where a topic's screen is."""
    return "/topics/" + quote(name, safe="")


def search_address(value: str, what: str) -> str:
    """Where papers of an author or a class are: the search for it."""
    told = cut(value, 48).replace('"', " ")
    return "/search?" + urlencode({"q": f'{what}:"{told}"' if " " in told else f"{what}:{told}"})


def by(authors: Sequence[str], shown: int = 3) -> str:
    """`"Ada Lovelace, Alan Turing and 4 others"`."""
    if len(authors) <= shown + 1:
        return ", ".join(authors)
    return f"{', '.join(authors[:shown])} and {len(authors) - shown} others"


def cut(text: str, size: int, *, words: bool = True) -> str:
    """A text of at most so many characters, cut after a word; of those that take more room, fewer.

    No more than twice as many bytes of HTML come of it.
    """
    if len(text) > size:
        kept = text[: max(size - 2, 0)]
        space = kept.rfind(" ") if words else -1
        text = (kept[:space] if space > size // 2 else kept) + " …"
    while text and _bytes(text) > 2 * size:
        text = text[: len(text) * 3 // 4].rstrip() + "…"
    return text


def _bytes(text: str) -> int:
    """The bytes of HTML that a text takes."""
    return len(text.encode("utf-8", "replace")) + sum(more * text.count(char) for char, more in _WIDER.items())


_WIDER = {"&": 4, "<": 3, ">": 3, '"': 4, "'": 4}  # bytes of HTML beyond the first


def web(text: str) -> str:
    """An address that may be a link: of the web, without spaces or control characters; else empty."""
    fits = text.lower().startswith(("http://", "https://")) and text.isprintable() and " " not in text
    return text if fits and len(text) <= 500 else ""
