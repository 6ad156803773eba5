"""What each screen shows: functions of the store and of the page to the dataclasses of `shown`.

Knows: the store, the standings of the page's papers, dates. Does not know: HTML, requests. Texts in lists are cut to a
length, so that no screen grows with what sources say; a paper's own screen shows them whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from broadsheet.console import InputError
from broadsheet.daily import ids
from broadsheet.daily.query import parse
from broadsheet.daily.records import Fact, Listing, line
from broadsheet.daily.screens import dates
from broadsheet.daily.screens.dates import Kind, Span
from broadsheet.daily.screens.shown import (
    ROWS,
    Asked,
    Day,
    Edition,
    Front,
    Lead,
    Pages,
    PaperScreen,
    Row,
    Search,
    Shelf,
    TopicScreen,
    address,
    by,
    cut,
)
from broadsheet.daily.screens.standing import Standing, Standings, usage
from broadsheet.daily.search import Likes
from broadsheet.daily.store import Article, Choice, Store, Topic
from broadsheet.page.papers import RUNGS, stages

Find = Callable[..., Any]
FOUND = 200  # that a search looks for at most
NOTE = 10_000  # characters of a note
_TITLE, _BY, _GIST = 180, 110, 260  # characters of a row's texts
_AUTHORS, _ABSTRACT, _LISTINGS, _FACTS = 40, 8_000, 12, 16  # of a paper's own screen
_NEVER = "2199"  # a day after all that can be listed
_TOPICS = 6  # those first in which something is said of the paper, then the latest
_LIKE = 6  # papers like one
_MORE = 6  # papers like those that the reader wants more of
_NEAR = 60  # characters of the title of the one that a paper is like
_ASKED = 3  # sources, on the front page
_WEEK, _MONTH = 10, 3  # papers of a day, in a week and in a month
VERDICTS = ("shown", "refuted here", "open", "not measured")
SORTS = {"newest": "newest first", "listed": "last listed first", "rung": "by rung", "title": "by title"}
KINDS = ("method", "study", "benchmark", "survey")
STATES = {
    "": "all", "later": "saved for later", "read": "read", "seed": "more like these", "note": "with a note",
    "hidden": "not interested",
}  # fmt: skip
SOURCES = {"hf": "HF daily papers", "rss": "arXiv", "arxiv": "arXiv", "oai": "arXiv"}


class MissingError(LookupError):
    """There is no such paper, topic or map here; the message says which."""


class Views:
    """The screens of a store.

    Args:
        find: `find(query, limit)` gives hits with `article`, `why` and `snippet`; None where there is no search.
        similar: `similar(identifier, limit)` gives hits for papers like one; None where they are not told.
        likes: by which papers are ranked that are like some that the reader likes; None: the search decides alone.
    """

    def __init__(
        self, store: Store, find: Find | None, similar: Find | None = None, likes: Likes | None = None
    ) -> None:
        self.store, self.find, self.similar, self.likes, self.standings = store, find, similar, likes, Standings()

    @property
    def today(self) -> date:
        """The day, by the store's clock, in UTC as list days are."""
        found = dates.known(self.store.clock())
        assert found is not None
        return found

    # The front page, and what was listed when

    def front(self) -> Front:
        """The lead, and the columns."""
        known = [each for each in self.standings.all().values() if not each.problem]
        articles = {each.id: each for each in self.store.articles([each.paper.arxiv for each in known])}
        seen = [each for each in known if each.paper.arxiv in articles]
        hidden = {arxiv for arxiv, article in articles.items() if article.mark.hidden}
        shown = [each for each in seen if each.paper.arxiv not in hidden]

        def rows(chosen: Iterable[Standing]) -> tuple[Row, ...]:
            return tuple(self._row(articles[each.paper.arxiv]) for each in chosen)

        recorded = sorted((each for each in shown if each.answer), key=lambda each: each.recorded, reverse=True)
        leads = [
            Lead(self._row(articles[each.paper.arxiv]), each, self.standings.measured(each) if i == 0 else None)
            for i, each in enumerate(recorded[:5])
        ]
        run = sorted((each for each in shown if each.rung), key=lambda each: (-each.rung, each.recorded))
        waiting = [each for each in shown if each.verdict == "open"]
        unbuilt = [each for each in shown if not each.built]
        verdicts = {name: sum(each.verdict == name for each in seen) for name in VERDICTS[:3]}
        last = self.store.days_before(_NEVER, 2)
        days = self._days(self.store.days(last[-1], last[0]), 6) if last else ()
        recent = () if days else tuple(self._row(each) for each in self._unhidden(self.store.latest(40))[:10])
        return Front(
            today=self.today,
            count=len(self.store),
            lead=leads[0] if leads else None,
            leads=tuple(leads[1:]),
            days=days,
            recent=recent,
            verdicts={name: count for name, count in verdicts.items() if count},
            run=rows(run[:10]),
            run_count=len(run),
            open=rows(waiting[:5]),
            unbuilt=rows(unbuilt[:5]),
            unbuilt_count=len(unbuilt),
            left_out=len(hidden),
            asked=self.asked(_ASKED),
            more=self._hits(self.likes.more(_MORE)) if self.likes else (),
        )

    def asked(self, limit: int | None = None) -> tuple[Asked, ...]:
        """What came of asking sources online, the last asked first."""
        return tuple(
            Asked(f"{dates.words(at)}, {at[11:16]} UTC", cut(outcome, 300))
            for _, at, outcome in self.store.asked_online()[:limit]
        )

    def latest(self, kind: Kind) -> Span:
        """The last day, week or month in which anything was listed; that of today where nothing was."""
        last = self.store.days_before(_NEVER)
        return dates.of(kind, (dates.known(last[0]) if last else None) or self.today)

    def edition(self, span: Span, number: int = 1, *, hidden: bool = False) -> Edition:
        """What was listed on a day, in a week or in a month."""
        begin, end = span.begin.isoformat(), span.end.isoformat()
        counts = self.store.days(begin, end)
        wider: dict[Kind, tuple[Kind, ...]] = {"day": ("week", "month"), "week": ("month",), "month": ()}
        others = tuple(dates.of(kind, span.begin) for kind in wider[span.kind])
        left_out, pages = 0, Pages(0)
        if span.kind == "day":
            listed = self.store.places(begin)
            interest = self._interesting(list(listed))
            left_out = len(listed) - len(interest)
            chosen = list(listed) if hidden else interest
            pages = _pages(len(chosen), number, {"hidden": "1"} if hidden else {})
            part = chosen[pages.first_row : pages.first_row + ROWS]
            places = {one: _place(by_whom) for one, by_whom in listed.items()}
            several = len(set(places.values())) > 1
            rows = tuple(
                replace(self._row(each), why=places[each.id] if several else "") for each in self.store.articles(part)
            )
            days: tuple[Day, ...] = (Day(span, len(listed), rows),) if listed else ()
        else:
            days = self._days(counts, _WEEK if span.kind == "week" else _MONTH)
        return Edition(
            span=span,
            days=days,
            count=sum(counts.values()),
            previous=self._neighbour(span, -1),
            next=self._neighbour(span, 1),
            wider=others,
            pages=pages,
            empty="" if days else self._why_empty(span),
            left_out=left_out,
            hidden=hidden,
        )

    def _days(self, counts: Mapping[str, int], each_day: int) -> tuple[Day, ...]:
        """Days with the first papers of each; a day whose name is no date is left out."""
        chosen: dict[str, list[str]] = {}
        for day in counts:
            if dates.known(day):
                chosen[day] = self._interesting(list(self.store.places(day, 4 * each_day)))[:each_day]
        articles = {each.id: each for each in self.store.articles([one for part in chosen.values() for one in part])}
        return tuple(
            Day(dates.span("day", day), counts[day], tuple(self._row(articles[each]) for each in part))
            for day, part in chosen.items()
        )

    def _interesting(self, identifiers: Sequence[str]) -> list[str]:
        """Those of which the reader does not say otherwise."""
        hidden = self.store.hidden()
        return [each for each in identifiers if each not in hidden]

    def _neighbour(self, span: Span, step: int) -> Span:
        """The nearest span before or after in which anything was listed; else the one beside it."""
        if step < 0:
            found = self.store.days_before(span.begin.isoformat())
        else:
            found = self.store.days_after(span.end.isoformat())
        day = dates.known(found[0]) if found else None
        if day is not None:
            return dates.of(span.kind, day)
        return dates.before(span) if step < 0 else dates.after(span)

    def _why_empty(self, span: Span) -> str:
        if span.begin > self.today:
            return f"This {span.kind} has not come yet."
        if span.kind == "day" and span.begin.weekday() > 4:
            return f"A {dates.weekday(span.begin)}: arXiv lists nothing on Saturdays and Sundays."
        return f"No source has listed a paper here for this {span.kind}. “broadsheet page sync” asks them."

    # One paper

    def identifier(self, name: str) -> str:
        """The arXiv identifier that an address names: itself, with a version, or an id of the page.

        Raises:
            MissingError: it names no paper that is here.
        """
        for arxiv, each in self.standings.all().items():
            if name == each.paper.id:
                return arxiv
        if (found := ids.whole(name)) and found.bare in self.store:
            return found.bare
        if any(name == arxiv for arxiv in self.standings.all()):
            return name
        raise MissingError(f"There is no paper {line(name)[:60] or 'of that name'} here.")

    def standing(self, name: str) -> Standing | None:
        """The standing of the paper of an address; None for one that is not of the page."""
        return self.standings.all().get(self.identifier(name))

    def paper(self, name: str) -> PaperScreen:
        """All of one paper.

        Raises:
            MissingError: there is none.
        """
        identifier = self.identifier(name)
        found = self.store.articles([identifier])
        if not found:
            raise MissingError(f"There is no paper {identifier} here.")
        [article] = found
        standing = self.standings.all().get(identifier)
        when = [("submitted", dates.words(article.published)), ("this version", dates.words(article.updated))]
        facts = sorted(self.store.facts(identifier).items())[:_FACTS]
        listings = self.store.listings(identifier)
        topics = [(topic, _liking(topic, identifier)) for topic in self.store.topics()]
        topics.sort(key=lambda each: (bool(each[1]), each[0].changed), reverse=True)
        return PaperScreen(
            article=article,
            standing=standing,
            title=cut(article.title, 1_000) or identifier,
            authors=tuple(cut(name, 120) for name in article.authors[:_AUTHORS]),
            more_authors=max(0, len(article.authors) - _AUTHORS),
            abstract=cut(article.abstract, _ABSTRACT),
            summary=standing.paper.summary if standing else "",
            submitted=submitted(article),
            dates=tuple((what, day) for what, day in when if day),
            listings=tuple(_listing(each) for each in reversed(listings))[:_LISTINGS],
            facts=tuple(_fact(fact, source) for _, (fact, source) in facts),
            measured=self.standings.measured(standing) if standing else None,
            use=usage(standing.paper) if standing else None,
            topics=tuple(topics[:_TOPICS]),
            like=tuple(self._row(hit.article) for hit in self.similar(identifier, _LIKE)) if self.similar else (),
        )

    # Lists

    def shelf(self, given: Mapping[str, str]) -> Shelf:
        """All papers, or those that a choice of stage, kind, rung, verdict and mark leaves, in an order.

        Raises:
            InputError: a choice that there is not.
        """
        known = self.standings.all()
        all_stages = tuple((stage.id, stage.about) for stage in stages())
        offers: dict[str, Sequence[str]] = {
            "stage": [name for name, _ in all_stages], "kind": KINDS, "rung": [str(i) for i in range(len(RUNGS))],
            "verdict": VERDICTS, "mark": [name for name in STATES if name], "sort": list(SORTS),
        }  # fmt: skip
        chosen = {name: given.get(name, "") for name in offers}
        for name, value in chosen.items():
            if value and value not in offers[name]:
                raise InputError(f"got {name} {value[:40]!r}; expected {', '.join(offers[name])}")
        fits = [
            arxiv
            for arxiv, each in known.items()
            if chosen["stage"] in ("", each.paper.stage)
            and chosen["kind"] in ("", each.paper.kind)
            and chosen["rung"] in ("", str(each.rung))
            and chosen["verdict"] in ("", each.verdict or "not measured")
        ]
        filtered = any(chosen[name] for name in ("stage", "kind", "rung", "verdict"))
        choice = Choice(chosen["mark"], chosen["sort"] or "newest", tuple(fits) if filtered else None)
        pages = _pages(self.store.count(choice), number_of(given), chosen)
        part = self._part(choice, pages.first_row)
        return Shelf(tuple(map(self._row, self.store.articles(part))), pages, chosen, all_stages)

    def _part(self, choice: Choice, start: int) -> list[str]:
        """Identifiers of the papers of a choice from a place on, as many as a screen shows."""
        if choice.order != "rung":
            return self.store.chosen(choice, ROWS, start)
        known = self.standings.all()
        choice = replace(choice, order="newest")
        own = self.store.chosen(replace(choice, within=tuple(known if choice.within is None else choice.within)))
        own.sort(key=lambda each: -known[each].rung)
        shown = own[start : start + ROWS]
        rest = replace(choice, without=tuple(known))
        return shown + self.store.chosen(rest, ROWS - len(shown), max(0, start - len(own)))

    def search(self, query: str, number: int = 1) -> Search:
        """What a search finds, the best first; nothing where nothing is looked for."""
        query = line(query)[:400]
        if self.find is None or not query:
            return Search(query, (), Pages(0), ready=self.find is not None)
        hits = self.find(query, FOUND)
        pages = _pages(len(hits), number, {"q": query})
        part = hits[pages.first_row : pages.first_row + ROWS]
        followed = next((each.name for each in self.store.topics() if each.query == query), "")
        return Search(query, tuple(map(self._hit, part)), pages, True, len(hits) >= FOUND, followed)

    def topics(self) -> list[Topic]:
        """What the reader follows."""
        return self.store.topics()

    def topic_of(self, name: str) -> Topic:
        """What the reader follows by a name.

        Raises:
            MissingError: nothing.
        """
        found = next((each for each in self.store.topics() if each.name == name), None)
        if found is None:
            raise MissingError(f"There is no topic {line(name)[:60] or 'of that name'} here.")
        return found

    def topic(self, name: str) -> TopicScreen:
        """A topic with its papers.

        Raises:
            MissingError: there is none.
        """
        found = self.topic_of(name)
        if self.likes:
            hits = self.likes.followed(found, ROWS)
            rows = self._hits(hits) if found.likes else tuple(map(self._hit, hits))
        else:
            hits = list(self.find(found.query, ROWS)) if self.find and found.query else []
            out = {*found.dislikes, *found.likes}
            rows = tuple(self._hit(each) for each in hits if each.article.id not in out)
        return TopicScreen(
            found,
            rows,
            tuple(map(self._row, self.store.articles(found.likes[:ROWS]))),
            tuple(map(self._row, self.store.articles(found.dislikes[:ROWS]))),
            self.find is not None,
            _ranked(found, self.likes.meaning is not None) if self.likes else "",
        )

    def by_id(self) -> dict[str, Standing]:
        """The standings of the page's papers by their own ids."""
        return {each.paper.id: each for each in self.standings.all().values()}

    # Parts

    def _unhidden(self, articles: Iterable[Article]) -> list[Article]:
        return [each for each in articles if not each.mark.hidden]

    def _hits(self, hits: Sequence[Any]) -> tuple[Row, ...]:
        """Hits of what the reader likes: what each is about, and the liked paper that it is like."""
        standings = self.standings.all()
        liked = {each.id: each for each in self.store.articles([hit.like for hit in hits if hit.like])}
        rows = []
        for hit in hits:
            row = replace(self._row(hit.article), why=_found_by(hit.why))
            if near := liked.get(hit.like):
                like = cut(near.title, _NEAR) or near.id, address(near, standings.get(near.id))
                row = replace(row, like=like, shared=hit.shared)
            rows.append(row)
        return tuple(rows)

    def _hit(self, hit: Any) -> Row:
        """A hit of the search, whose `why` and `snippet` may be words or several of them."""
        pieces = ((hit.snippet, False),) if isinstance(hit.snippet, str) else tuple(hit.snippet or ())
        left, shown = _GIST, []
        for text, marked in pieces:
            shown.append((cut(str(text), left, words=False), bool(marked)))
            left -= len(str(text))
            if left <= 0:
                break
        return replace(
            self._row(hit.article),
            why=_found_by(hit.why),
            snippet=tuple(each for each in shown if each[0]),
        )

    def _row(self, article: Article) -> Row:
        standing = self.standings.all().get(article.id)
        gist = standing.paper.summary if standing and standing.paper.summary else article.abstract
        return Row(
            article,
            cut(article.title, _TITLE) or article.id,
            cut(by(article.authors), _BY),
            cut(gist, _GIST),
            standing,
        )


def submitted(article: Article) -> str:
    """When a paper was submitted, as far as is known: a day, or the month that its identifier has."""
    if article.published:
        return dates.words(article.published)
    return dates.span("month", ids.month(article.id)).words if ids.parse(article.id) else ""


def _listing(each: Listing) -> tuple[str, str, int]:
    return each.day, SOURCES.get(each.source, each.source), each.rank


def _fact(fact: Fact, source: str) -> tuple[str, str, str, str]:
    return cut(fact.key.replace("_", " "), 40), cut(fact.value, 300), dates.words(fact.at), SOURCES.get(source, source)


def _found_by(why: str | Sequence[str]) -> str:
    """What found a paper, in words; nothing where likeness alone did."""
    by_what = why if isinstance(why, str) else " and ".join(each for each in why if each != "likeness")
    return f"found by {by_what}" if by_what else ""


def _ranked(topic: Topic, meaning: bool) -> str:
    """How a topic's papers are ranked, in a sentence."""
    if not topic.likes:
        return ""
    by = "by meaning" if meaning else "by the words of titles and of what we say of them: no embedder is loaded"
    right, wrong = (
        f"the {f'{len(some)} ' * (len(some) > 1)}{which} one{'s' * (len(some) > 1)}"
        for some, which in ((topic.likes, "right"), (topic.dislikes, "wrong"))
    )
    right += f" and unlike {wrong}" * bool(topic.dislikes and meaning)
    if not topic.query:
        return f"Papers like {right} come first, {by}."
    if not parse(topic.query).plain:
        return f"The search chooses; of what fits, papers like {right} come first, {by}."
    return f"First come papers that the search finds and that are like {right}, then those of one kind, {by}."


def _place(listed: Sequence[Listing]) -> str:
    """Who listed a paper on a day: `"HF daily papers, arXiv"`."""
    return ", ".join(dict.fromkeys(SOURCES.get(each.source, each.source) for each in listed))


def _liking(topic: Topic, identifier: str) -> int:
    return 1 if identifier in topic.likes else -1 if identifier in topic.dislikes else 0


def number_of(given: Mapping[str, str]) -> int:
    """The page that is asked for.

    Raises:
        InputError: it is no number.
    """
    text = given.get("p") or "1"
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text)):
        raise InputError(f"got page {text[:40]!r}; expected a number from 1")
    return int(text)


def _pages(total: int, number: int, query: Mapping[str, str]) -> Pages:
    """The page of a list; the last one where it has fewer."""
    pages = Pages(total, 1, query)
    return replace(pages, number=min(number, pages.last))
