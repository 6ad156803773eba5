"""Files that a reader takes along: all that the page holds, in formats that others read.

Knows: the formats (`daily.export`), how a file is sent piece by piece. Does not know: what stands in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from broadsheet.daily import export, following
from broadsheet.daily.finished import finished, result
from broadsheet.daily.screens import routes
from broadsheet.daily.screens.views import MissingError
from broadsheet.daily.store import ALL, Store

PIECE = 1 << 16  # characters that are sent at once, at least, but for the last
_KINDS = {
    "papers.json": "application/json",
    "papers.bib": "application/x-bibtex; charset=utf-8",
    "notes.md": "text/markdown; charset=utf-8",
    "feeds.opml": "text/x-opml",
    "runs.json": "application/json",
}


def leaving(store: Store, like: APIRouter, runs: Path) -> APIRouter:
    """The files of a store, with routes made as those of a router are.

    Args:
        runs: the folder of the runs of this page.
    """
    router = APIRouter(route_class=like.route_class, include_in_schema=False)

    def feeds(base: str) -> Iterator[str]:
        yield following.opml(store, base).decode()

    @routes.get(router, "/export/{name}")
    def file(name: str, request: Request) -> Response:
        if name not in _KINDS:
            raise MissingError(f"There is no such file; expected one of {', '.join(_KINDS)}.")
        makes: dict[str, Callable[[], Iterable[str]]] = {
            "papers.json": lambda: export.everything(store),
            "papers.bib": lambda: export.bibtex(store.latest(ALL)),
            "notes.md": lambda: export.markdown(store),
            "feeds.opml": lambda: feeds(str(request.base_url).rstrip("/")),
            "runs.json": lambda: evidence(runs),
        }
        stem, _, suffix = name.partition(".")
        headers = {
            "content-disposition": f'attachment; filename="broadsheet-{stem}-{store.clock()[:10]}.{suffix}"',
            "cache-control": "no-store",
        }
        if request.method == "HEAD":
            return Response(headers=headers, media_type=_KINDS[name])
        sent = pieces(makes[name]())
        first = next(sent, b"")  # what cannot be read is told by a status, not in the middle of a file
        return StreamingResponse(chain([first], sent), headers=headers, media_type=_KINDS[name])

    return router


def evidence(folder: Path) -> Iterator[str]:
    """What the runs of a page found, each as its report has it, as JSON in pieces."""
    yield '{"broadsheet runs": 1, "runs": ['
    before = "\n"
    for run in finished(folder):
        told = {"id": run.id, "command": run.command, "at": run.at, "answer": run.answer, "verdict": run.verdict}
        yield before + json.dumps(told | {"result": result(folder, run)}, ensure_ascii=False)
        before = ",\n"
    yield "\n]}\n"


def pieces(parts: Iterable[str], size: int = PIECE) -> Iterator[bytes]:
    """Texts one after the other, in pieces that are worth sending."""
    kept: list[str] = []
    length = 0
    for part in parts:
        kept.append(part)
        length += len(part)
        if length >= size:
            yield "".join(kept).encode("utf-8", "replace")
            kept, length = [], 0
    if kept:
        yield "".join(kept).encode("utf-8", "replace")
