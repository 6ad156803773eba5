"""The screens on which papers are tried: a form, the runs, one run as it lasts, its report.

Knows: runs, offers, how a screen is made (`daily.screens`). Does not know: processes, trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from markupsafe import Markup

from broadsheet.console import InputError
from broadsheet.daily.screens import routes
from broadsheet.daily.screens.views import MissingError
from broadsheet.page import papers
from broadsheet.serve.rendering import part, screen
from broadsheet.serve.trials import runs
from broadsheet.serve.trials.jobs import Job, Jobs
from broadsheet.serve.trials.offers import Offers, fields

_KINDS = {"js": "text/javascript", "css": "text/css"}
Values = Mapping[str, Sequence[str]]


async def _values(request: Request) -> Values:
    """The fields of a form, each with all its values."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise InputError("expected a form (application/x-www-form-urlencoded)")
    try:
        return parse_qs((await request.body()).decode("utf-8"), keep_blank_values=True, max_num_fields=300)
    except ValueError:
        raise InputError("got a form that is no UTF-8, or has more than 300 fields") from None


Form = Annotated[Values, Depends(_values)]


@dataclass(frozen=True)
class Trying:
    """What is tried, and with what.

    Args:
        closing: whether the server is, so that streams end.
        seats: streams that this process holds.
    """

    jobs: Jobs
    offers: Offers
    closing: Callable[[], bool]
    seats: runs.Seats = field(default_factory=runs.Seats)

    def routes(self, like: APIRouter) -> APIRouter:
        """These screens, made as those of a router are."""
        router = APIRouter(route_class=like.route_class, include_in_schema=False, dependencies=like.dependencies)
        self._forms(router)
        self._runs(router)
        return router

    def _forms(self, router: APIRouter) -> None:
        @routes.get(router, "/papers/{name}/try")
        def form(name: str) -> Response:
            paper = self._paper(name)
            chosen = {
                "model": self.offers.models[0] if self.offers.models else "",
                "data": "",
                "quick": True,
                "seed": "",
            }
            return screen(
                "try",
                paper=paper,
                fields=fields(paper.id),
                models=[(each, each) for each in self.offers.models],
                data=[(each, each) for each in self.offers.data],
                chosen=chosen,
            )

        @router.post("/papers/{name}/try")
        def start(name: str, form: Form) -> Response:
            job = self.jobs.start(self.offers.arguments(self._paper(name).id, form))
            return _back(job.id)

    def _runs(self, router: APIRouter) -> None:
        @routes.get(router, "/runs")
        def every() -> Response:
            return screen("runs", runs=runs.all_runs(self.jobs))

        @routes.get(router, "/runs/{name}")
        def one(name: str) -> Response:
            run = self._run(name)
            live = _live(run)
            return screen("run", run=run, live=Markup(live), mark=runs.mark(live))

        @router.get("/runs/{name}/events")
        def events(name: str, request: Request) -> Response:
            self._job(name)
            seen = request.headers.get("last-event-id") or request.query_params.get("after", "")
            live = runs.live(self.jobs, name, _live, self.closing, self.seats, seen)
            return StreamingResponse(live, media_type="text/event-stream", headers={"cache-control": "no-store"})

        @routes.get(router, "/runs/{name}/report")
        def report(name: str) -> Response:
            self._job(name)
            data = self.jobs.report(name).read_bytes()
            return Response(data, media_type="text/html", headers={"content-security-policy": routes.REPORT})

        @router.post("/runs/{name}/stop")
        def stop(name: str) -> Response:
            self.jobs.stop(self._job(name).id)
            return _back(name)

        @router.post("/runs/{name}/resume")
        def resume(name: str) -> Response:
            self.jobs.resume(self._job(name).id)
            return _back(name)

        @routes.get(router, "/static/run.{kind}")
        def static(kind: str) -> Response:
            if kind not in _KINDS:
                raise MissingError("There is no such file.")
            data = files("broadsheet.serve.trials").joinpath("static", f"run.{kind}").read_bytes()
            return Response(data, media_type=_KINDS[kind], headers={"cache-control": "no-cache"})

    def _paper(self, name: str) -> papers.Paper:
        known = {each.id: each for each in papers.page() if each.trial}
        if name not in known:
            raise MissingError("No paper of that name can be tried here.")
        return known[name]

    def _job(self, name: str) -> Job:
        try:
            return self.jobs.get(name)
        except InputError:
            raise MissingError("There is no such run.") from None

    def _run(self, name: str) -> runs.TrialRun:
        job = self._job(name)
        return runs.run_of(self.jobs, job, self.jobs.events(name)[0])


def _back(name: str) -> Response:
    """To a run's screen, where its state is told and what can be done comes next."""
    return routes.to(f"/runs/{name}#state")


def _live(run: runs.TrialRun) -> str:
    return part("live", run=run)
