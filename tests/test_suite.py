"""The suite's own rules: which paper a test belongs to, what runs where and in what order, what each paper costs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import suite
from forks import fresh

pytestmark = pytest.mark.paper("(other)")  # though papers are parameters here

IDS = frozenset({"first", "gem", "llm_embedder", "embedder"})
MODULES = {"one": "broadsheet.embed.gem", "two": "broadsheet.rank.trials.first", "base": "broadsheet.embed.base"}


def item(
    path: str, *, imports: tuple[str, ...] = (), params: tuple[Any, ...] = (), marks: tuple[Any, ...] = (), **more: Any
) -> Any:
    """What `suite` looks at of a test."""
    found = SimpleNamespace(
        path=Path(path),
        nodeid=f"{path}::test_x",
        module=SimpleNamespace(**{name: SimpleNamespace(__module__=MODULES[name]) for name in imports}),
        get_closest_marker=lambda name: next((mark for mark in marks if mark.name == name), None),
        groups=[],
        **more,
    )
    if params:
        found.callspec = SimpleNamespace(params=dict(enumerate(params)))
    found.add_marker = lambda mark: found.groups.append(mark.mark.args[0])
    return found


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (item("tests/embed/test_gem.py"), "gem"),
        (item("tests/embed/test_gem_trial.py"), "gem"),
        (item("tests/embed/test_llm_embedder.py"), "llm_embedder"),  # not the other id that its name holds
        (item("tests/embed/test_gemstones.py"), "(embed)"),
        (item("tests/embed/test_parts.py", imports=("one", "base")), "gem"),
        (item("tests/rank/test_parts.py", imports=("two",)), "first"),
        (item("tests/rank/test_parts.py", imports=("one", "two")), "(rank)"),
        (item("tests/page/test_papers.py", params=(7, "gem")), "gem"),
        (item("tests/page/test_papers.py", params=(SimpleNamespace(id="first"),)), "first"),
        (item("tests/page/test_papers.py", params=(SimpleNamespace(paper="first"),)), "first"),
        (item("tests/page/test_papers.py", params=("gemstones",)), "(page)"),
        (item("tests/embed/test_gem.py", marks=(pytest.mark.paper("first").mark,)), "first"),
        (item("tests/test_docs.py"), "(other)"),
    ],
)
def test_a_test_belongs_to_a_paper_or_to_its_stage(test, expected):
    assert suite.owner(test, IDS) == expected


def test_the_longest_start_first_and_the_model_goes_to_two_workers():
    real = (pytest.mark.real.mark,)
    items = [item("a.py"), item("b.py"), item("b.py", marks=real), item("b_trial.py"), item("c.py", marks=real)]
    items += [item("d.py", fixturenames=["default_model"]), item("e.py"), item("a.py")]
    ordered = suite.group(items, {"b.py real": 30.0, "c.py real": 10.0, "d.py real": 15.0, "a.py": 50.0, "e.py": 0.1})
    assert [(i.nodeid[:-8], i.groups) for i in ordered] == [
        ("a.py", ["a.py"]),
        ("a.py", ["a.py"]),
        ("b.py", ["default model 0"]),
        ("d.py", ["default model 1"]),
        ("c.py", ["default model 1"]),
        ("b_trial.py", ["b_trial.py"]),  # not timed yet: 20 s for a trial, 1 s for another
        ("b.py", ["b.py"]),
        ("e.py", ["e.py"]),
    ]


def test_the_budget_marks_what_is_over_it():
    seconds = {("gem", "rest"): 6.0, ("gem", "real"): 5.0, ("first", "real"): 9.04, ("(embed)", "rest"): 700.0}
    assert suite.budget_lines(seconds)[1:] == [
        "gem                              5.0     6.0  over 5 s: rest",
        "first                            9.0     0.0  over 5 s: real",
        "(embed)                          0.0   700.0",
    ]


def report(seconds: float, owner: str = "gem", key: str = "test_gem.py") -> Any:
    return SimpleNamespace(
        nodeid="test_gem.py::test_x[a@b]@default model 0",
        cpu_seconds=seconds,
        user_properties=[("owner", owner), ("key", key)],
    )


def test_what_reports_add_up_to():
    stored: dict[str, Any] = {suite.CACHE: {"test_old.py": 3.0, "test_gem.py": 9.0}}
    cache = SimpleNamespace(get=stored.get, set=stored.__setitem__)
    seconds = suite.Seconds(SimpleNamespace(cache=cache))
    reports = [report(0.5), report(1), report(4, key="test_gem.py real"), report(8, owner="(embed)")]
    for one in reports:
        seconds.pytest_runtest_logreport(one)
    assert seconds.of == {("gem", "rest"): 1.5, ("gem", "real"): 4, ("(embed)", "rest"): 8}
    assert reports[0].nodeid == "test_gem.py::test_x[a@b]"
    seconds.pytest_sessionfinish()
    assert stored[suite.CACHE] == {"test_old.py": 3.0, "test_gem.py": 9.5, "test_gem.py real": 4}


def finish(hook: Any, value: Any = None) -> Any:
    with pytest.raises(StopIteration) as stopped:
        hook.send(value)
    return stopped.value.value


def test_a_phase_costs_what_passed_without_the_sessions_fixtures():
    clock = iter([1.0, 100.0, 101.0, 102.0, 107.0, 110.0, 110.5])
    meter = suite.Meter(lambda: next(clock))
    meter.pytest_runtest_logstart()
    outer, inner = (meter.pytest_fixture_setup(SimpleNamespace(scope="session")) for _ in range(2))
    own = meter.pytest_fixture_setup(SimpleNamespace(scope="module"))
    for hook in (own, outer, inner):
        next(hook)
    for hook in (inner, outer, own):  # from 101 to 107: the inner one is part of the outer one
        finish(hook)
    for expected in (10 - 6, 0.5):
        hook = meter.pytest_runtest_makereport()
        next(hook)
        assert finish(hook, SimpleNamespace()).cpu_seconds == expected


def test_child_processes_count_when_they_have_ended():
    before = suite.cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert suite.cpu_seconds() > before


def test_processes_of_the_fork_server_count_when_they_have_ended():
    assert fresh(sum, [1]) == 1  # the server is there by now
    before = suite.forked_seconds()
    assert fresh(sum, range(30_000_000)) > 0
    assert suite.forked_seconds() >= before + 0.1


def test_as_many_workers_as_cores_and_memory_allow(monkeypatch):
    import psutil

    memory = SimpleNamespace(available=100 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert suite.workers() == 16
    memory.available = 10 << 30
    assert suite.workers() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert suite.workers() == 0


GEM = """
import os, pytest

def test_one():
    pass

@pytest.mark.real
def test_two():
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert False, "as it should"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of three files with this one's conftest."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nmarkers = real: slow\n")
    (folder / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (folder / "test_gem.py").write_text(GEM)
    (folder / "test_gem_more.py").write_text("import pytest\n@pytest.mark.real\ndef test_three():\n    pass\n")
    (folder / "test_page.py").write_text(
        "import pytest\n@pytest.mark.parametrize('turn', range(4))\n"
        "@pytest.mark.parametrize('paper', ['gem', 'first'])\ndef test_row(paper, turn):\n    pass\n"
    )
    return folder


def _alone(*options: str) -> tuple[int, list[str]]:
    for name in [name for name in os.environ if name.startswith(("PYTEST_", "OMP_", "COV_"))]:
        del os.environ[name]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = pytest.main(["-p", "no:randomly", "-W", "ignore::pytest.PytestAssertRewriteWarning", *options])
    return int(status), said.getvalue().splitlines()


def run(folder: Path, *options: str) -> tuple[int, list[str]]:
    """Exit status and lines of a run of the folder's suite, in a process of its own."""
    return fresh(_alone, *options, cwd=folder, path=[str(Path(suite.__file__).parent)])


def run_workers(folder: Path, *options: str) -> tuple[int, list[str]]:
    """The same with the processes that xdist starts: from an ordinary interpreter, as `make test` does."""
    support = Path(suite.__file__).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "OMP_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", *options],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_two_workers_report_what_each_paper_took(folder):
    status, lines = run_workers(folder, "-vv", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", "--budget")
    assert status == 1
    assert "1 failed, 10 passed" in lines[-1]
    rows = {line.split()[0] for line in lines if line.startswith("[gw") and "test_page.py" in line}
    assert len(rows) == 1, "a file's tests ran on two workers"
    [failed] = [line for line in lines if line.startswith("FAILED")]
    assert failed == "FAILED test_gem.py::test_two - AssertionError: as it should"  # a name that can be run again
    assert {line.split()[0] for line in lines if line.startswith(("gem  ", "first  "))} == {"gem", "first"}


def test_one_paper_runs_alone(folder):
    status, lines = run(folder, "--paper", "gem")
    assert status == 1
    assert (
        lines[-1].split(" in ")[0].strip("= ").startswith("1 failed, 6 passed, 4 deselected")
    )  # perhaps with warnings
    assert not any("seconds a paper" in line for line in lines)


@pytest.mark.parametrize(("paper", "expected"), [("gems", "no paper 'gems' on the page; gem"), ("salt", "no tests")])
def test_a_paper_that_is_not_there_is_an_error(folder, paper, expected):
    status, lines = run(folder, "--paper", paper)
    assert status == 4
    assert any(expected in line for line in lines)
