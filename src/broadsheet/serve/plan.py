"""What is to be served, as the command says it: from it each process makes what it answers by.

Knows: which parts there are. Does not know: how any of them works; none is imported that is not served.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.serve.guard import Guard, KeyRing, Limits
from broadsheet.serve.trials.offers import Offers

if TYPE_CHECKING:
    from broadsheet.daily.digest import Digest, Mail
    from broadsheet.daily.meaning import Vectors
    from broadsheet.daily.sources.rounds import Rounds
    from broadsheet.daily.store import Store
    from broadsheet.serve.agents.tools import Agents
    from broadsheet.serve.page import DailyPage
    from broadsheet.serve.processes.workers import Shared
    from broadsheet.serve.trials.jobs import Jobs


@dataclass(frozen=True)
class ServingPlan:
    """What is to be served.

    Args:
        models: of `models.named.Models`; empty: none.
        agents: whether tools for agents are given.
        page: the file or server of the daily page; None: it is not shown.
        meaning: an embedder by which the page's papers are found too.
        mail: by whom the page sends its digest; None: it sends none.
        url: the page's address, as letters have it.
        sources: that the page asks every so many seconds (`every`); none: it asks nobody.
        offers: what trials may be run on.
        results: a folder whose files agents may compare.
        jobs: where trials are kept.
    """

    limits: Limits
    models: Mapping[str, Any] = field(default_factory=dict)
    agents: bool = False
    page: str | Path | None = None
    meaning: str | None = None
    mail: Mail | None = None
    url: str = ""
    sources: tuple[str, ...] = ()
    every: float = 0.0
    offers: Offers = field(default_factory=Offers)
    results: Path | None = None
    jobs: Path | None = None

    def check(self) -> None:
        """Refuse, before anything is loaded, what cannot be served.

        Raises:
            InputError: a package is missing, or a folder is none.
        """
        if self.agents:
            check_agents(self.results)
        if self.sources:
            check_sources(self.sources)

    @property
    def asks(self) -> str:
        """Which sources are asked how often, and where, in words."""
        from broadsheet.daily.sources.fetch import Places
        from broadsheet.daily.sources.rounds import told
        from broadsheet.daily.sources.sync import Spec

        return told([Spec.online(each) for each in self.sources], self.every, Places.of(os.environ))

    @property
    def what(self) -> str:
        """What is said once it is served, see `running.told`."""
        parts = {
            "serving on {url}/v1": self.models,
            "the page is on {url}": self.page,
            "tools for agents are on {url}/mcp": self.agents,
        }
        return ", ".join(part for part, there in parts.items() if there)

    def app(self, keys: KeyRing, shared: Shared | None = None) -> Guard:
        """What one process answers by, with its models loaded."""
        from broadsheet.serve.app import create_app

        jobs = made_jobs(self.jobs) if self.agents or self.page else None
        app: Guard = create_app(
            self._models(), keys, self.limits, agents=self._agents(jobs), page=self._page(jobs), shared=shared
        )
        return app

    def _models(self) -> Any:
        if not self.models:
            return None
        from broadsheet.serve.models.named import Models

        return Models(**self.models)

    def _agents(self, jobs: Jobs | None) -> Agents | None:
        if not self.agents or jobs is None:
            return None
        from broadsheet.serve.agents.tools import Agents

        return Agents(jobs, self.offers.models, self.offers.data, self.results)

    def _page(self, jobs: Jobs | None) -> DailyPage | None:
        if self.page is None or jobs is None:
            return None
        from broadsheet.daily.store import Store
        from broadsheet.serve.page import DailyPage

        store = Store(self.page)
        meaning = self._meaning(store)
        return DailyPage(store, jobs, self.offers, meaning, self._digest(store), self._rounds(store, meaning))

    def _rounds(self, store: Store, meaning: Vectors | None) -> Rounds | None:
        if not self.sources:
            return None
        from broadsheet.daily.sources.fetch import Fetcher
        from broadsheet.daily.sources.rounds import Rounds
        from broadsheet.daily.sources.sync import Spec

        specs = [Spec.online(each) for each in self.sources]
        return Rounds(store, specs, self.every, Fetcher(store), news=meaning.update if meaning else None)

    def _meaning(self, store: Store) -> Vectors | None:
        if self.meaning is None:
            return None
        from broadsheet.daily.meaning import Vectors

        vectors = Vectors(store, self.meaning)
        vectors.update()
        return vectors

    def _digest(self, store: Store) -> Digest | None:
        if self.mail is None:
            return None
        from broadsheet.daily.digest import Digest

        return Digest(store, self.url, self.mail)


def check_agents(results: Path | None) -> None:
    """Refuse tools for agents that cannot be given.

    Raises:
        InputError: the protocol's SDK is not installed, or `results` is no folder.
    """
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise InputError("tools for agents need the protocol's SDK: pip install -e '.[mcp]'") from None
    if results is not None and not results.is_dir():
        raise InputError(f"got --results {results}; expected a folder")


def check_sources(sources: Sequence[str]) -> None:
    """Refuse what is no source online, or cannot be asked.

    Raises:
        InputError: a name is none of a source, or an address of the environment is none.
    """
    from broadsheet.daily.sources.fetch import Places
    from broadsheet.daily.sources.sync import Spec

    for each in sources:
        Spec.online(each)
    Places.of(os.environ)


def made_jobs(folder: Path | None) -> Jobs:
    """The trials of a folder, by default of one in the cache folder."""
    from broadsheet.cache import home
    from broadsheet.serve.trials.jobs import Jobs

    return Jobs(folder or home() / "jobs")
