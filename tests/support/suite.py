"""How the suite runs: one paper's tests alone, all cores, and what each paper's tests cost.

Knows: test items, where they lie and what they import; the ids on the page. Does not know: what any test asserts.

`--paper ID` runs one paper's tests. `--budget` prints the seconds of each paper after the run; it fails nothing.
Seconds are the processor's, child processes included: another job on the machine hardly changes them.
With `pytest -n auto --dist loadgroup --no-loadscope-reorder` a file stays on one worker, the longest files start first,
and the tests that need the default model go to two workers at most: each copy takes about 600 MB.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

BUDGET = {"real": 5.0, "rest": 5.0}  # seconds a paper, each on one core
MODELS = 2  # workers that load the default model
WORKER_BYTES = 3 << 30  # what a worker takes at most: torch, the default model, a copy of it that is trained
SLOWEST = 20  # tests that are listed, where they take a second or more
SLOW = ("trial", "apply", "fitting")  # in the names of files that are slow, as a rule: used until a run has timed them
CACHE = "broadsheet/seconds"
LIBRARIES = ("sentence_transformers", "peft", "transformers.trainer", "transformers.models.llama.modeling_llama")


def workers() -> int:
    """One worker a usable core, as memory allows; 0 (no extra process) on a single core."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = min(cores, psutil.virtual_memory().available // WORKER_BYTES)
    return found if found > 1 else 0


def cpu_seconds() -> float:
    """Of this process and of its children that have ended, those included that the server of `forks` began."""
    return sum(os.times()[:4]) + forked_seconds()


def forked_seconds() -> float:
    """Of the processes that have ended of those that the server of `forks` began; 0.0 without a server."""
    from multiprocessing.forkserver import _forkserver

    server = getattr(_forkserver, "_forkserver_pid", None)
    if server is None:
        return 0.0
    import psutil

    try:
        spent = psutil.Process(server).cpu_times()
    except psutil.Error:
        return 0.0
    return float(spent.children_user + spent.children_system)


def paper_ids() -> frozenset[str]:
    from broadsheet.page import papers

    return frozenset(paper.id for paper in papers.page())


def owner(item: pytest.Item, ids: frozenset[str]) -> str:
    """The paper that a test belongs to, or its stage in parentheses where several papers share it.

    In this order: the mark `paper("ID")`; a parameter that is a paper, its id or its class; the id in the file's name;
    the only paper whose own module or trial the file imports from.
    """
    if mark := item.get_closest_marker("paper"):
        return mark.args[0]
    for value in (getattr(item, "callspec", None) and item.callspec.params.values()) or ():
        for name in (value, getattr(value, "paper", None), getattr(value, "id", None)):
            if isinstance(name, str) and name in ids:
                return name
    words = f"_{item.path.stem}_"
    if named := [paper for paper in ids if f"_{paper}_" in words]:
        return max(named, key=len)
    modules = (getattr(value, "__module__", None) or "" for value in vars(item.module).values())
    imported = {module.rpartition(".")[2] for module in modules if module.startswith("broadsheet.")} & ids
    if len(imported) == 1:
        return imported.pop()
    folder = item.path.parent.name
    return f"({'other' if folder == 'tests' else folder})"


def is_real(item: pytest.Item) -> bool:
    """Whether a test needs the default model."""
    return item.get_closest_marker("real") is not None or "default_model" in getattr(item, "fixturenames", ())


def group(items: list[pytest.Item], seconds: dict[str, float]) -> list[pytest.Item]:
    """Mark what runs on one worker, and put the longest groups first.

    A file is a group; of the files' tests that need the default model, `MODELS` groups of about the same length.
    `seconds`: what `key(item)` took in an earlier run.
    """
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[key(item)].append(item)
    cost = {name: seconds.get(name, 20.0 if any(word in name for word in SLOW) else 1.0) for name in files}
    longest = sorted(files, key=lambda name: (-cost[name], name))
    loads = [0.0] * MODELS
    groups: dict[str, list[str]] = defaultdict(list)
    for name in longest:
        title = name
        if name.endswith(" real"):
            lightest = loads.index(min(loads))
            loads[lightest] += cost[name]
            title = f"default model {lightest}"
        groups[title].append(name)
    ordered = []
    for title in sorted(groups, key=lambda title: -sum(cost[name] for name in groups[title])):
        for name in groups[title]:
            for item in files[name]:
                item.add_marker(pytest.mark.xdist_group(title))
                ordered.append(item)
    return ordered


def key(item: pytest.Item) -> str:
    """What is timed and grouped as one: a file, its tests on the default model apart."""
    return f"{item.nodeid.partition('::')[0]}{' real' if is_real(item) else ''}"


def freeze() -> None:
    """Collect garbage, and let no later collection look again at what is alive.

    Trainer, and whoever frees a model, collects all garbage; of the millions of objects that libraries hold, each
    collection would take a third of a second.
    """
    gc.collect()
    gc.freeze()


def budget_lines(seconds: dict[tuple[str, str], float]) -> list[str]:
    """A line per paper, the dearest first, then per stage for what its papers share.

    `seconds`: of (`owner`, "real" or "rest").
    """
    owners = sorted({name for name, _ in seconds}, key=lambda name: -sum(seconds.get((name, k), 0) for k in BUDGET))
    lines = [f"{'seconds a paper':<28}{'real':>8}{'rest':>8}"]
    for name in [n for n in owners if n[0] != "("] + [n for n in owners if n[0] == "("]:
        spent = {kind: seconds.get((name, kind), 0.0) for kind in BUDGET}
        over = [kind for kind in BUDGET if spent[kind] > BUDGET[kind] and name[0] != "("]
        mark = f"  over {BUDGET[over[0]]:g} s: {', '.join(over)}" if over else ""
        lines.append(f"{name:<28}{spent['real']:>8.1f}{spent['rest']:>8.1f}{mark}")
    return lines


class Meter:
    """Writes into each report what its phase (setup, call or teardown) took: `cpu_seconds`.

    What session fixtures take is left out: it is nobody's, the first test to ask for one only pays it.
    """

    def __init__(self, clock: Callable[[], float] = cpu_seconds) -> None:
        self.clock = clock
        self.since = clock()
        self.shared = 0.0
        self.depth = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self.since, self.shared = self.clock(), 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope != "session":
            return (yield)
        self.depth += 1
        start = self.clock()
        try:
            return (yield)
        finally:
            self.depth -= 1
            if not self.depth:
                self.shared += self.clock() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report = yield
        now = self.clock()
        report.cpu_seconds = max(0.0, now - self.since - self.shared)
        self.since, self.shared = now, 0.0
        return report


class Seconds:
    """Adds up the reports of a run; on the controller where there are workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.of: dict[tuple[str, str], float] = defaultdict(float)
        self.files: dict[str, float] = defaultdict(float)
        self.tests: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid.rfind("@") > report.nodeid.rfind("]"):  # as xdist writes the group
            report.nodeid = report.nodeid.rpartition("@")[0]
        properties = dict(report.user_properties)
        if "owner" in properties:
            spent = report.cpu_seconds
            self.of[properties["owner"], "real" if properties["key"].endswith(" real") else "rest"] += spent
            self.files[properties["key"]] += spent
            self.tests[report.nodeid] += spent

    def pytest_sessionfinish(self) -> None:
        cache = getattr(self.config, "cache", None)
        if cache is not None and self.files:
            cache.set(CACHE, cache.get(CACHE, {}) | {name: round(s, 2) for name, s in self.files.items()})

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.getoption("budget") and self.of:
            terminalreporter.section(f"budget: {BUDGET['real']:g} s real and {BUDGET['rest']:g} s rest a paper")
            slowest = sorted(self.tests.items(), key=lambda item: -item[1])[:SLOWEST]
            for line in [*budget_lines(self.of), *(f"{s:8.1f}  {name}" for name, s in slowest if s >= 1)]:
                terminalreporter.write_line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--paper", metavar="ID", help="run one paper's tests alone: its files, its cases, its oracles")
    parser.addoption("--budget", action="store_true", help="print what each paper's tests took")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "paper(id): the paper that a test belongs to, where its file does not tell")
    if (paper := config.getoption("paper")) and paper not in (ids := paper_ids()):
        near = sorted(i for i in ids if paper.lower() in i or i in paper.lower())
        raise pytest.UsageError(f"no paper {paper!r} on the page; {' '.join(near) or '`broadsheet papers` lists them'}")
    config.pluginmanager.register(Meter())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Seconds(config))


def pytest_xdist_auto_num_workers() -> int:
    return workers()


@pytest.hookimpl(tryfirst=True)  # before xdist writes the group into the test's id
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ids = paper_ids()
    for item in items:
        item.user_properties += [("owner", owner(item, ids)), ("key", key(item))]
    if paper := config.getoption("paper"):
        others = [item for item in items if dict(item.user_properties)["owner"] != paper]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if dict(item.user_properties)["owner"] == paper]
        if not items:
            raise pytest.UsageError(f"{paper} has no tests yet")
    if hasattr(config, "workerinput"):
        items[:] = group(items, config.cache.get(CACHE, {}) if getattr(config, "cache", None) else {})


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """A worker of a long run imports what most tests need before the clock of the first one runs."""
    if hasattr(session.config, "workerinput") and len(session.items) > 100:
        for name in LIBRARIES:
            importlib.import_module(name)
    freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    result = yield
    if nextitem is None or nextitem.path != item.path:
        freeze()
    return result
