"""The daily page's screens behind their guard, on a free port; and a store of made-up papers."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from broadsheet.daily.query import Query
from broadsheet.daily.records import Fact, Listing, Record
from broadsheet.daily.screens.routes import routes
from broadsheet.daily.store import Article, Store
from broadsheet.serve.guard import Guard, KeyRing, Limits

TOKEN = "a-token-of-these-tests"
NOW = "2024-08-20T09:30:00Z"
_WORDS = (
    "sparse attention language models retrieval decoding speculative drafts long context tuning alignment data "
    "curation translation ranking documents embedding tokens training efficient evaluation reasoning judge preference"
)
_NAMES = ("Ada Ito", "Béla Nagy", "Chen Wei", "Dana Okafor", "Émile Roux", "Farid Aziz", "Greta Lind", "Hugo Sá")


@dataclass(frozen=True)
class Hit:
    article: Article
    why: tuple[str, ...] = ("words",)
    snippet: tuple[tuple[str, bool], ...] = ()


def finder(store: Store) -> Callable[[str, int], list[Hit]]:
    """A search by the store's words, every word needed."""

    def find(query: str, limit: int) -> list[Hit]:
        asked = Query(phrases=tuple(query.split()))
        found = store.articles(store.db.find_words(asked, "TRUE", [], limit))
        return [Hit(each, ("words",), tuple(_pieces(store.db.place(asked, each.id)))) for each in found]

    return find


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    for i, part in enumerate(text.replace("\x03", "\x02").split("\x02")):
        if part:
            yield part, i % 2 == 1


def records(count: int, seed: int = 7) -> list[Record]:
    """So many made-up papers, listed over forty days before `NOW`, weekends left out."""
    draw, words = random.Random(seed), _WORDS.split()
    days = [f"2024-{7 if d <= 31 else 8:02}-{d if d <= 31 else d - 31:02}" for d in range(12, 51)]
    days = [day for day in days if _weekday(day) < 5]
    made = []
    for i in range(count):
        day = days[i * len(days) // count]
        title = " ".join(draw.choices(words, k=draw.randint(5, 12))).capitalize()
        made.append(
            Record(
                f"{day[2:4]}{day[5:7]}.{10_000 + i}",
                "hf",
                1,
                title=title,
                abstract=". ".join(" ".join(draw.choices(words, k=18)).capitalize() for _ in range(8)) + ".",
                authors=tuple(draw.sample(_NAMES, k=draw.randint(1, 8))),
                categories=tuple(draw.sample(("cs.CL", "cs.LG", "cs.IR", "cs.AI"), k=2)),
                published=f"{day}T00:{i % 60:02}:00Z",
                listings=(Listing("hf", day, i),),
                facts=(Fact("upvotes", str(i % 90), NOW), Fact("repository", f"https://example.org/{i}", NOW)),
            )
        )
    return made


@cache
def _written(count: int) -> bytes:
    """A store's file with so many made-up papers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.sqlite"
        store = Store(path, clock=lambda: NOW)
        store.add(records(count))
        store.db.run("PRAGMA journal_mode = DELETE")  # all of it in the one file
        store.close()
        return path.read_bytes()


def stored(path: Path, count: int) -> Store:
    """A store with so many made-up papers, which are made once for all tests."""
    path.write_bytes(_written(count))
    return Store(path, clock=lambda: NOW)


def _weekday(day: str) -> int:
    from datetime import date

    return date.fromisoformat(day).weekday()


def screens(store: Store, find: Callable[..., Any] | None = None) -> Any:
    """The screens as an app behind the guard."""
    app = FastAPI(openapi_url=None)
    app.include_router(routes(store, find, lambda: TOKEN))
    return Guard(app, KeyRing(), Limits(hosts=("127.0.0.1", "localhost", "testserver")), {}, token=TOKEN)


@contextmanager
def reading(folder: Path, given: Sequence[Record] = (), now: str = NOW) -> Iterator[tuple[str, Store]]:
    """(address, store) of the screens of a new store with these papers, on a free port."""
    from serving import serving

    store = Store(folder / "page.sqlite", clock=lambda: now)
    store.add(given)
    with serving(screens(store, finder(store))) as running:
        yield running.url, store


if __name__ == "__main__":  # python tests/support/reading.py FOLDER [PAPERS]: look at it in a browser
    with reading(Path(sys.argv[1]), records(int(sys.argv[2]) if len(sys.argv) > 2 else 500)) as (address, _):
        print(address, flush=True)
        input("Enter ends it. ")
