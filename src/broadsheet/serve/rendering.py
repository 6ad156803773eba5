"""Screens made as the daily page's are, from templates of the server's own.

Knows: templates. Does not know: what they show.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import Response
from jinja2 import ChoiceLoader, Environment, PackageLoader

from broadsheet.daily.screens import routes

_POLICY = routes.HEADERS["content-security-policy"]


def screen(template: str, status: int = 200, **given: Any) -> Response:
    """A screen: a template with what it is given."""
    text = part(template, trying=True, **given)
    # A run's script listens to it.
    headers = {"cache-control": "no-cache", "content-security-policy": f"{_POLICY}; connect-src 'self'"}
    return Response(text.encode("utf-8", "replace"), status, headers, "text/html; charset=utf-8")


def part(template: str, **given: Any) -> str:
    """A template with what it is given, as text."""
    return _templates().get_template(f"{template}.html.jinja").render(**given)


@cache
def _templates() -> Environment:
    page = routes.templates()
    assert page.loader is not None
    own = [PackageLoader(f"broadsheet.serve{folder}") for folder in ("", ".trials")]
    made: Environment = page.overlay(loader=ChoiceLoader([*own, page.loader]))
    return made
