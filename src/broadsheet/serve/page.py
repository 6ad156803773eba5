"""The daily page within the server: its screens, its API and feeds, and the runs that are started from it.

Knows: what belongs together. Does not know: screens, processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from broadsheet.daily import api, following, search
from broadsheet.daily.databases.base import NoDatabaseError
from broadsheet.daily.digest import Digest
from broadsheet.daily.screens import routes
from broadsheet.daily.screens.leaving import leaving
from broadsheet.daily.screens.subscribing import LINK, subscribing
from broadsheet.daily.store import Store
from broadsheet.serve import failures
from broadsheet.serve.guard import Guard
from broadsheet.serve.signing import Signing, is_read
from broadsheet.serve.trials import runs
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers
from broadsheet.serve.trials.screens import Trying

if TYPE_CHECKING:
    from broadsheet.daily.search import Meaning
    from broadsheet.daily.sources.rounds import Rounds
    from broadsheet.serve.processes.workers import Shared


@dataclass(frozen=True)
class DailyPage:
    """The page: papers, and how they are tried.

    Args:
        jobs: the runs.
        offers: what may be tried, and on what.
        meaning: by which papers are found that have none of the words; None: the words decide alone.
        digest: by mail; None: the page sends none.
        rounds: to sources, as long as the server runs; None: it asks nobody.
    """

    store: Store
    jobs: Jobs
    offers: Offers
    meaning: Meaning | None = None
    digest: Digest | None = None
    rounds: Rounds | None = None

    def install(self, app: FastAPI, guard: Guard, closing: Callable[[], bool], shared: Shared | None = None) -> None:
        """Give an app the page.

        Args:
            guard: in front of the app; it gets the page's refusals, and where there are keys, its way to sign in.
            closing: whether the server is.
            shared: what other processes of the server share, such as the streams that a browser can hold.
        """
        token, workers = guard.token, shared.workers if shared else 1
        seats = runs.Seats(runs.SEATS // workers)
        find = partial(search.find, self.store, meaning=self.meaning)
        similar = partial(search.similar, self.store, meaning=self.meaning)
        asks = str(self.rounds) if self.rounds else ""
        likes = search.Likes(self.store, self.meaning)
        screens = routes.routes(self.store, find, lambda: token, similar=similar, likes=likes, trying=True, asks=asks)
        app.include_router(api.routes(self.store, find))
        app.include_router(following.routes(self.store, find, likes, self.jobs.folder))
        app.include_router(Trying(self.jobs, self.offers, closing, seats).routes(screens))
        app.include_router(subscribing(self.digest, screens, self.store.topics))
        app.include_router(leaving(self.store, screens, self.jobs.folder))
        guard.links = LINK
        signing = Signing(guard, shared)
        if guard.keys:
            app.include_router(signing.routes(screens))
        app.include_router(screens)

        @app.exception_handler(NoDatabaseError)
        async def away(request: Request, failure: NoDatabaseError) -> Response:
            return failures.answer(503, str(failure), {"retry-after": "10"})

        @app.exception_handler(404)
        async def missing(request: Request, failure: HTTPException) -> Response:
            if is_read(request) and request.method in ("GET", "HEAD"):
                routes.TRYING.set(True)
                return routes.missing()
            return failures.answer(404, str(failure.detail), failure.headers)
