"""Several processes on one address: who answers, what they share, who is replaced, how they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from serving import Running, dies, lacking, served, stream_until_signal, unloadable

from broadsheet.console import InputError
from broadsheet.serve.guard import KeyRing
from broadsheet.serve.processes.workers import run, share_threads

KEY, SLOW = "k" * 24, "s" * 24
Server = tuple["subprocess.Popen[str]", Running]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, endless_folder: Path) -> Iterator[Server]:
    """A server of two workers, on a tiny model."""
    keys = f"{KEY}\n{SLOW} requests=1"
    home = tmp_path_factory.mktemp("two")
    with served(home, "--model", str(endless_folder), "--workers", "2", BROADSHEET_SERVE_KEYS=keys) as started:
        yield started


def pids(process: subprocess.Popen[str] | None = None) -> list[int]:
    """Of the workers of a server, or of this process."""
    children = psutil.Process(process.pid if process else None).children()
    return [each.pid for each in children if any("spawn_main" in word for word in each.cmdline())]


@contextmanager
def held(*stopped: int) -> Iterator[None]:
    """Processes stand still meanwhile: others answer."""
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def status(server: Running, path: str = "/v1/models", key: str = KEY) -> int:
    return server.ask(path, authorization=f"Bearer {key}")[0]


def counted(server: Running) -> float:
    """Requests for the list of models, as a scrape gives them."""
    _, text = server.ask("/metrics", authorization=f"Bearer {KEY}")
    assert 'broadsheet_queued_tokens{model="tiny"} 0.0' in text
    found = re.search(r'broadsheet_requests_total\{route="/v1/models",status="200"\} (\S+)', text)
    return float(found[1]) if found else 0.0


def test_each_answers_alone_and_a_scrape_of_either_gives_the_sum(two: Server) -> None:
    process, server = two
    first, second = pids(process)
    before = counted(server)
    for stopped, times in ((first, 2), (second, 3)):
        with held(stopped):
            assert [status(server) for _ in range(times)] == [200] * times
            assert status(server, "/health/live") == 200  # what came before is counted now
    for stopped in (first, second):
        with held(stopped):
            assert counted(server) == before + 5
    whole = server.ask("/v1/completions", {"prompt": "the", "max_tokens": 8}, authorization=f"Bearer {KEY}")
    assert (whole[0], whole[1]["usage"]["completion_tokens"]) == (200, 8)


def test_what_a_key_may_in_a_minute_holds_for_all_together(two: Server) -> None:
    process, server = two
    first, second = pids(process)
    with held(first):
        assert status(server, key=SLOW) == 200
    with held(second):
        assert status(server, key=SLOW) == 429


def test_one_that_is_killed_is_replaced_and_its_requests_still_count(two: Server) -> None:
    process, server = two
    killed, other = pids(process)
    with held(other):
        assert status(server) == status(server, "/health/live") == 200
    before = counted(server)
    os.kill(killed, signal.SIGKILL)
    assert process.stderr
    told = process.stderr.readline()
    assert re.fullmatch(rf"worker \d \(process {killed}\) ended by signal 9; another is started in 1 s\n", told)
    assert status(server) == status(server, "/health/live") == 200
    with held(other):
        assert status(server) == status(server, "/health/live") == 200  # by the new one, once it is there
        assert counted(server) == before + 2
    assert other in pids(process)
    assert len(pids(process)) == 2


def test_at_a_signal_all_end_when_their_answers_are_written(two: Server) -> None:
    process, server = two
    workers = pids(process)
    again = [(pid, signal.SIGTERM) for pid in workers]  # as service managers tell all processes
    text, statuses = stream_until_signal(process, server, KEY, *again)
    assert b"data: [DONE]" in text
    assert 503 in statuses
    assert process.wait(30) == 0
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert process.stderr
    assert not process.stderr.read()


def test_what_one_cannot_load_is_its_error_and_no_worker_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # which is set, and then as it was
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    before = set(pids())
    with pytest.raises(InputError, match=r"no such model: missing\.gguf"):
        run(partial(unloadable, "missing.gguf"), KeyRing(), 3, "127.0.0.1", 0)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'") as missing:
        run(partial(lacking, "nowhere"), KeyRing(), 3, "127.0.0.1", 0)
    assert missing.value.name == "nowhere"  # by which the command tells what to install
    with pytest.raises(SystemExit, match="1"):
        run(partial(dies, signal.SIGKILL), KeyRing(), 3, "127.0.0.1", 0)
    assert set(pids()) == before
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_workers_share_the_threads_unless_it_is_said_how_many_each_has(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(7)
        share_threads(2)  # OMP_NUM_THREADS is set in these tests
        assert torch.get_num_threads() == 7
        monkeypatch.delenv("OMP_NUM_THREADS")
        share_threads(2)
        assert torch.get_num_threads() == 3
        share_threads(8)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
