"""The commands `broadsheet page …`: papers that come in, a list of them, and all that leaves again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broadsheet.console import InputError, say

if TYPE_CHECKING:
    from broadsheet.daily.meaning import Vectors
    from broadsheet.daily.sources.base import Page
    from broadsheet.daily.sources.fetch import Fetcher
    from broadsheet.daily.sources.sync import Spec
    from broadsheet.daily.store import Article, Store

NAME = "page"
app = typer.Typer(help="The daily page: papers, on this machine.", no_args_is_help=True, rich_markup_mode=None)
Place = Annotated[
    str | None,
    typer.Option("--store", help="A file, or postgresql://USER@HOST/DATABASE; a file in the cache folder by default."),
]
FORMATS = ("json", "bibtex", "atom", "markdown")
_WIDTH = 79
_LARGEST = 256 << 20


@app.command(epilog="Example: broadsheet page add papers.bib hf:2024-08-18")
def add(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…", help="A file, - for stdin, or online: hf, hf:DAY, arxiv:cs.CL, arxiv-query:…"
        ),
    ],
    at: Annotated[
        str | None, typer.Option(help="When it was fetched: its counts were so then. The file's time by default.")
    ] = None,
    store: Place = None,
) -> None:
    """Take in papers from files, or from a source online.

    A file may be JSON of Hugging Face's daily papers, arXiv's Atom, RSS or OAI-PMH, BibTeX, JSONL, a list of
    identifiers or addresses, the saved text of a page, or an export of this command; gzipped or not. Its first bytes
    tell which. Adding a file again changes nothing, and nothing is ever removed.
    """
    from broadsheet.daily.sources.base import moment
    from broadsheet.daily.sources.sync import Spec

    if at is not None and not moment(at):
        raise InputError(f"got --at {at}; expected a time as in 2024-08-18T12:00:00Z")
    given: list[tuple[str, bytes, str] | Spec] = []
    for each in source:
        spec = None if Path(each).exists() else Spec.of(each)
        given.append(spec or _read(each, moment(at) if at else ""))
    found = _open(store)
    pages = [_parsed(found, *each) if isinstance(each, tuple) else each for each in given]  # all, before any is added
    status = 0
    for name, page in zip(source, pages, strict=True):
        if isinstance(page, Spec):
            status = max(status, _sync(found, [page]))
        else:
            _take(found, "stdin" if name == "-" else name, page)
    if status:
        raise typer.Exit(status)


@app.command(epilog="Example: broadsheet page sync hf arxiv:cs.CL")
def sync(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE…",
            help="hf (the days since the last time), hf:DAY|WEEK|MONTH, arxiv:cs.CL, arxiv-query:…, or arxiv-known.",
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=30_000, help="Papers of one query, the latest.")] = 1_000,
    store: Place = None,
) -> None:
    """Ask sources online for what is new. Nothing else is asked, and nothing is told to them but the question.

    `arxiv-known` asks arXiv about the papers that are here without an abstract. Each source ends in one line, which
    says why nothing is new where nothing is. Stopped or killed, the next run goes on where it was. The exit status is 1
    where a source may answer later, 2 where it refuses.
    """
    from broadsheet.daily.sources.sync import KINDS, Spec

    found = _open(store)
    specs = [Spec.online(each) for each in source or ()]
    if not specs:
        raise InputError(f"got no source; expected one or more of {KINDS}")
    if status := _sync(found, specs, most):
        raise typer.Exit(status)


@app.command("list", epilog="Example: broadsheet page list --week 2024-W33")
def list_(
    day: Annotated[str | None, typer.Option(help="As in 2024-08-18.")] = None,
    week: Annotated[str | None, typer.Option(help="As in 2024-W33.")] = None,
    month: Annotated[str | None, typer.Option(help="As in 2024-08.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Papers at most.")] = 500,
    store: Place = None,
) -> None:
    """List the papers of a day, a week or a month; without one, those of the latest day that has any.

    The day is the one on which a source listed a paper, not the one on which it was written.
    """
    found = _open(store)
    begin, end, name = _span(day, week, month)
    if not begin:
        begin = end = next(iter(found.days()), "")
        name = f"{date.fromisoformat(begin):%A, %-d %B %Y}" if begin else ""
    if begin:
        articles = [article for article, _ in found.listed(begin, end)]
        print(f"{name}: {_papers(len(articles))}")
    else:
        articles = found.latest(limit)
        print(f"no lists yet; the latest of {_papers(len(found))}")
    for article in articles[:limit]:
        print(_row(article))
    if len(articles) > limit:
        say(f"{len(articles) - limit} more: --limit {len(articles)}")
    if begin and not articles:
        near = [each for each in found.days() if each <= end][:1] or list(found.days())[-1:]
        say(f"the nearest list is that of {near[0]}" if near else "there are no lists yet: broadsheet page sync hf")


@app.command(epilog="Example: broadsheet page export --format json --out papers.json")
def export(
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}; json holds everything.")] = "json",
    out: Annotated[Path | None, typer.Option(help="A file; on stdout by default.")] = None,
    store: Place = None,
) -> None:
    """Write the papers, and what was said of them, in a format that others read.

    `json` holds all that sources and the user said: `broadsheet page add` makes an equal store of it anywhere.
    `markdown` holds the user's marks and notes; `bibtex` and `atom` the papers.
    """
    from broadsheet.daily import export as formats
    from broadsheet.daily.store import ALL, now

    if format not in FORMATS:
        raise InputError(f"got --format {format}; expected {', '.join(FORMATS)}")
    found = _open(store)
    articles = found.latest(ALL) if format in ("bibtex", "atom") else []
    parts: Iterable[str]
    if format == "atom":
        parts = [formats.atom(articles, title="Papers", at=now()).decode()]
    else:
        parts = (
            {"json": formats.everything, "markdown": formats.markdown}[format](found)
            if not articles
            else (formats.bibtex(articles))
        )
    if out is None:
        sys.stdout.writelines(parts)
        return
    from broadsheet.cache import atomic_write

    with atomic_write(out) as file:
        file.writelines(parts)
    say(f"{out}: {_papers(len(articles) or len(found))} as {format}")


@app.command(epilog='Example: broadsheet page search "speculative decoding" --meaning resource:minilm')
def search(
    words: Annotated[
        list[str],
        typer.Argument(help='Words, "phrases", author:, cat:, is:unread, runs:yes, after:2024-05, -without.'),
    ],
    meaning: Annotated[
        str | None, typer.Option(help="An embedder by which papers are found too: `resource:minilm`, a folder.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Papers at most.")] = 20,
    store: Place = None,
) -> None:
    """Find papers by their words; with --meaning also by what they mean, each hit with which of the two found it."""
    from broadsheet.daily.search import find

    found = _open(store)
    vectors = _vectors(found, meaning)
    hits = find(found, " ".join(words), limit, meaning=vectors)
    for hit in hits:
        why = f"  ({', '.join(hit.why)})" if vectors and hit.why else ""
        print(_row(hit.article) + why)
    if not hits:
        say(f"nothing among {_papers(len(found))}" + ("" if vectors else "; by words alone: --meaning finds more"))


@app.command(epilog="Example: broadsheet page similar 2407.12021")
def similar(
    paper: Annotated[str, typer.Argument(help="An arXiv identifier or address, or the name of one of ours.")],
    meaning: Annotated[
        str | None, typer.Option(help="An embedder by which they are compared; by words without one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Papers at most.")] = 10,
    store: Place = None,
) -> None:
    """List papers like one."""
    from broadsheet.daily import ids
    from broadsheet.daily import search as searching
    from broadsheet.page.papers import get

    identifier = known.bare if (known := ids.parse(paper)) else get(paper).arxiv
    found = _open(store)
    if not found.articles([identifier]):
        raise InputError(f"there is no paper {identifier} here; expected one of {_papers(len(found))}")
    for hit in searching.similar(found, identifier, limit, meaning=_vectors(found, meaning)):
        print(_row(hit.article))


@app.command(epilog="Example: broadsheet page digest --mail localhost:25 --mail-from page@example.org --url URL")
def digest(
    mail: Annotated[str, typer.Option(help="HOST or HOST:PORT that sends.")],
    mail_from: Annotated[str, typer.Option(help="The address that letters come from.")],
    url: Annotated[str, typer.Option(help="The page's address, as letters have it.")],
    to: Annotated[str | None, typer.Option(help="Ask this address whether it wants the digest, instead.")] = None,
    query: Annotated[str, typer.Option(help="With --to: of what a search finds; all that is listed by default.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    jobs: Annotated[
        Path | None, typer.Option(help="Where the page keeps its runs; in the cache folder by default.")
    ] = None,
    store: Place = None,
) -> None:
    """Send a digest to each who has confirmed, of papers that are new for them and what runs here found; for cron.

    A letter that was not sent waits for the next run. BROADSHEET_SMTP_USER and BROADSHEET_SMTP_PASSWORD are the
    server's. The exit status is 1 where letters wait.
    """
    from broadsheet.cache import home
    from broadsheet.daily.digest import Digest, Mail
    from broadsheet.daily.finished import finished

    server = Mail(
        mail, mail_from, os.environ.get("BROADSHEET_SMTP_USER", ""), os.environ.get("BROADSHEET_SMTP_PASSWORD", "")
    )
    made = Digest(_open(store), url, server, runs=lambda: finished(jobs or home() / "jobs"))
    if dry_run:
        for each in made.subscribers():
            ran = len(made.evidence(each))
            state = _papers(len(made.news(each))) + f", {ran:,} run{'s' * (ran != 1)}" * bool(ran)
            print(f"{each.address}: {state if each.confirmed else 'has not confirmed'}")
        return
    if to is not None:
        made.ask(to, query)
    else:
        made.issue()
    sent, problems = made.send()
    say(f"{sent} letter{'s' * (sent != 1)} sent")
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(1)


def _vectors(store: Store, meaning: str | None) -> Vectors | None:
    """What papers mean, with what is missing made now."""
    if meaning is None:
        return None
    from broadsheet.daily.meaning import Vectors

    made = Vectors(store, meaning)
    made.update()
    return made


def _open(place: str | None) -> Store:
    from broadsheet.daily.store import Store, default_path

    return Store(place or default_path())


def _read(source: str, at: str) -> tuple[str, bytes, str]:
    """A source's name, its bytes, and when they were fetched."""
    from broadsheet.daily.sources.sync import KINDS

    name = "stdin" if source == "-" else source
    try:
        if source == "-":
            data, when = sys.stdin.buffer.read(_LARGEST + 1), datetime.now(UTC)
        else:
            path = Path(source)
            if not path.exists():
                raise InputError(f"there is no file {source}; expected one, -, or online {KINDS}")
            with path.open("rb") as file:
                data = file.read(_LARGEST + 1)
            when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}; expected a file that can be read") from None
    return name, data, at or f"{when:%Y-%m-%dT%H:%M:%SZ}"


def _parsed(store: Store, name: str, data: bytes, at: str) -> Page:
    from broadsheet.daily.sources.sniff import sniff

    return sniff(data, at=at, known=store.known_titles, name=name)()


def _take(store: Store, name: str, page: Page) -> None:
    """Add a file's page, all of it or nothing, and tell in one line what came of it."""
    from broadsheet.daily.sources.lists import UNCONFIRMED

    with store.writing():
        added = store.add(page.records)
        marks = store.take_marks(dict(page.marks))
        for topic in page.topics:
            store.follow(topic)
    parts = [f"{added.new:,} new", f"{added.changed:,} changed", f"{added.same:,} known"]
    if not page.rows:
        parts = ["0 new: it lists no papers"]
    parts += [f"{marks:,} marked"] * bool(marks) + [f"{len(page.topics):,} topics"] * bool(page.topics)
    parts += [f"{page.left.count(why):,} left out ({why})" for why in dict.fromkeys(page.left)]
    parts += ["known by their titles alone, unconfirmed"] * (UNCONFIRMED in page.kinds)
    _tell(f"{name}: {', '.join(parts)}")


def _sync(store: Store, specs: Sequence[Spec], most: int = 1_000) -> int:
    """Ask sources, telling first where; the highest status of their outcomes."""
    from broadsheet.daily.sources import sync as syncing

    fetcher = _fetcher(store)
    status = 0
    for spec in specs:
        say(f"asking {spec.where(fetcher.places)}")
        for outcome in syncing.sync(store, [spec], fetcher, most=most):
            _tell(outcome.line)
            status = max(status, outcome.status)
    return status


def _fetcher(store: Store) -> Fetcher:
    """What asks; tests put another clock in."""
    from broadsheet.daily.sources.fetch import Fetcher, Places

    return Fetcher(store, Places.of(os.environ))


def _span(day: str | None, week: str | None, month: str | None) -> tuple[str, str, str]:
    """First and last day, and a name for them; empty where none is given."""
    given = [(name, value) for name, value in (("day", day), ("week", week), ("month", month)) if value is not None]
    if not given:
        return "", "", ""
    if len(given) > 1:
        raise InputError(f"got --{given[0][0]} and --{given[1][0]}; expected one of them")
    [(name, value)] = given
    with suppress(ValueError):
        if name == "day" and len(value) == 10:
            first = last = date.fromisoformat(value)
            return first.isoformat(), last.isoformat(), f"{first:%A, %-d %B %Y}"
        if name == "week" and len(value) == 8:
            first = date.fromisoformat(f"{value}-1")
            last = first + timedelta(days=6)
            return first.isoformat(), last.isoformat(), f"Week {int(value[6:])} of {value[:4]}, from {first:%-d %B}"
        if name == "month" and len(value) == 7:
            first = date.fromisoformat(f"{value}-01")
            return first.isoformat(), f"{value}-31", f"{first:%B %Y}"
    example = {"day": "2024-08-18", "week": "2024-W33", "month": "2024-08"}[name]
    raise InputError(f"got --{name} {value}; expected one as in {example}")


def _papers(count: int) -> str:
    return f"{count:,} paper{'s' * (count != 1)}"


def _row(article: Article) -> str:
    """A paper on a line that fits a terminal."""
    title = article.title or "(its title is not known: broadsheet page sync arxiv-known)"
    said = f"{article.id:16}  {title}"
    return said if len(said) <= _WIDTH else f"{said[: _WIDTH - 1]}…"


def _tell(text: str) -> None:
    from textwrap import fill

    print(fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False))
