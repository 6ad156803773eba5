"""Peers: built once, whole or not at all, named on the command line, run as external arms."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_peers

from broadsheet.console import InputError
from broadsheet.trial.outside import peers
from broadsheet.trial.outside.external import ExternalProcess


@pytest.fixture
def counter(tmp_path, home, monkeypatch):
    peer = toy_peers.toy(tmp_path / "toy")
    toy_peers.register(monkeypatch, peer)
    return peer


@pytest.fixture(scope="module")
def built_home(tmp_path_factory):
    """A cache in which the peer is built, for tests that do not build it; its own folder lies beside."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROADSHEET_HOME", str(folder / "home"))
        peer = toy_peers.toy(folder / "toy")
        toy_peers.register(patch, peer)
        peers.build(peer)
    return folder / "home", peer


@pytest.fixture
def built(built_home, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(built_home[0]))
    toy_peers.register(monkeypatch, built_home[1])
    return built_home[1]


def test_a_peer_is_built_once_and_its_command_answers(counter, run, monkeypatch):
    status, out, err = run("peer", "counter")
    assert status == 0
    assert err.index("building the peer counter: 1 package, about 1 MB to download") < err.index("1 of 1: ")
    process = ExternalProcess(shlex.split(out))
    process.start()
    try:
        answer = process.run(["one", "one two three"])
    finally:
        process.close()
    assert answer.outputs == {"score": [1, 3]}  # what the library prints is no answer
    assert answer.seconds is not None
    monkeypatch.setattr(subprocess, "Popen", None)
    again = run("peer", "counter")
    assert again[:2] == (0, out)
    assert "building" not in again[2]
    [row] = json.loads(run("peer", "--json")[1])
    assert row["built"] == str(counter.environment)
    assert json.loads(run("peer", "counter", "--json")[1])["command"] == shlex.split(out)


def test_other_requirements_are_another_environment(counter):
    first = counter.environment
    counter.requirements.write_text("counter-of-words==1.0  # the same, said otherwise\n")
    assert counter.environment == first
    counter.requirements.write_text("counter-of-words==1.1\n")
    assert counter.environment != first


def test_the_environment_sees_nothing_of_ours(built, monkeypatch, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "counter_of_words.py").write_text("def count(text):\n    return -1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    probe = "import importlib.util; print(importlib.util.find_spec('broadsheet'), importlib.util.find_spec('numpy'))"
    seen = subprocess.run([str(built.python), "-I", "-c", probe], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["None", "None"]
    process = ExternalProcess(built.command(times=2))
    process.start()
    assert process.run(["one two"]).outputs == {"score": [4]}
    process.close()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
import pytest, toy_peers
from broadsheet.trial.outside import peers
peer = toy_peers.toy(Path({folder!r}))
run = peers._run
def dies(peer, command, **more):
    run(peer, command, **more)
    if "pip" in command:
        os.kill(os.getpid(), signal.SIGKILL)
peers._run = dies
peers.build(peer)
"""


def test_a_killed_build_never_looks_finished(counter, capsys):
    other = counter.environment.with_name("counter-00000000")
    other.mkdir(parents=True)
    script = KILLED.format(path=[p for p in sys.path if p], folder=str(counter.folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    left = [path for path in counter.environment.parent.iterdir() if path.is_dir() and path != other]
    assert left
    assert any(left[0].rglob("counter_of_words.py"))
    assert not counter.built
    with pytest.raises(InputError, match=r"the peer counter is not built; build it once: broadsheet peer counter"):
        counter.command()
    peers.build(counter)
    assert counter.built
    folders = {path for path in counter.environment.parent.iterdir() if path.is_dir()}
    assert folders == {counter.environment, other}  # only what the killed build left is gone
    assert f"{other} is of other requirements" in capsys.readouterr().err


def test_a_build_that_fails_says_why_in_one_line_and_leaves_nothing(counter, run):
    counter.requirements.write_text("counter-of-words==7.0\n")
    status, _, err = run("peer", "counter")
    assert status == 2
    assert "cannot build the peer counter: No matching distribution found for counter-of-words==7.0" in err
    assert len([line for line in err.splitlines() if "cannot build" in line]) == 1
    assert not [path for path in counter.environment.parent.iterdir() if path.is_dir()]
    with pytest.raises(InputError, match="cannot build the peer counter: No module named 'no_such_module'"):
        peers._run(counter, [sys.executable, "-c", "import no_such_module"])
    with pytest.raises(InputError, match="cannot build the peer counter: got 403 from the index; the packages"):
        address = "https://name:secret@127.0.0.1/simple"
        peers._run(counter, [sys.executable, "-c", f"print('ERROR: got 403 from {address}'); print('x'); exit(1)"])


def test_a_full_disk_is_refused_before_anything_is_fetched(counter, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(InputError, match=r"needs 1 MB in .*, which has 1 MB; free some space"):
        peers.build(counter)


def test_uv_builds_where_this_python_has_no_pip(counter, monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(peers.importlib.machinery.PathFinder, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/uv")
    monkeypatch.setattr(peers, "_run", lambda peer, command, **_: ran.append(command))
    peers._fill(counter, Path("/env"))
    assert [command[:3] for command in ran[:2]] == [["/bin/uv", "venv", "--quiet"], ["/bin/uv", "pip", "install"]]
    assert str(counter.requirements) in ran[1]
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="no pip, and there is no uv"):
        peers._fill(counter, Path("/env"))


def test_an_unknown_name_is_refused_with_names_near_it(run, home):
    status, out, err = run("peer", "xllama")
    assert (status, out) == (2, "")
    assert err.strip() == "broadsheet: got peer 'xllama'; expected xllamacpp: `broadsheet peer` lists all"
    status, _, err = run("peer", "nonsense")
    assert status == 2
    assert "expected one of draftretriever, faster_whisper, kvpress, xllamacpp" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("counter", "the peer counter is not built; build it once: broadsheet peer counter"),
        ("countr", "got peer 'countr'; expected counter"),
        ("counter(words=2)", "the peer counter has no option 'words'; its options: times=1"),
        ("counter(", "expected a command|got --peer 'counter\\('"),
        ("'open", "No closing quotation"),
        ("", "got an empty --peer"),
    ],
)
def test_what_is_neither_a_peer_nor_a_command_is_refused(counter, given, message):
    with pytest.raises(InputError, match=message):
        call = peers.parse(given, "detect")
        raise InputError(f"expected a command, got {call.words}")


def test_a_name_is_its_command_and_a_command_stays_one(built, tmp_path):
    with pytest.raises(InputError, match="got --peer counter, a peer for trials of detect; expected a command"):
        peers.parse("counter", "decode")
    call = peers.parse("counter(times=3)", "detect")
    assert call.label == "peer: counter(times=3)"
    assert call.command(times=1, model="m")[:2] == [str(built.python), "-I"]
    assert json.loads(call.command(model="m")[-1]) == {"times": 3, "model": "m"}
    own = peers.parse(f"{sys.executable} arm.py --fast", "decode")
    assert (own.label, own.command(model="m")) == ("peer: --fast", [sys.executable, "arm.py", "--fast"])
    program = tmp_path / "arm"
    program.write_text("")
    assert peers.parse(str(program), "detect").command() == [str(program)]


def test_every_registered_peer_is_complete():
    for name, peer in peers.known().items():
        assert name == peer.name
        assert name.isidentifier()
        assert peer.stage in str(peer.folder)
        assert peer.runner.is_file()
        assert peer.pins
        assert all(len(pin.split("==")) == 2 for pin in peer.pins), name
        assert any(pin.partition("==")[0].replace("-", "_") == peer.module for pin in peer.pins)
        assert 0 < peer.download_mb < peer.disk_mb
        assert peer.licence
