"""The cache folder's habits: lock, write aside then rename, name by content; and what is said on stderr."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from kills import Killed, dying

from broadsheet.cache import (
    atomic_folder,
    atomic_write,
    fingerprint,
    home,
    locked,
    remove_folder,
    replace_folder,
    restore_folder,
    sha256_file,
)
from broadsheet.console import InputError, progress, say, track


def test_home_is_made_and_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "a" / "b"))
    assert home() == tmp_path / "a" / "b"
    assert home().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "file" / "x"))
    with pytest.raises(InputError, match="set BROADSHEET_HOME"):
        home()


def test_fingerprints_follow_content_and_not_order():
    assert fingerprint({"a": 1, "b": [1.5, "ü"]}) == fingerprint({"b": [1.5, "ü"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint("\ud800")) == 16
    with pytest.raises(TypeError):
        fingerprint({"a": object()})


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "file.json"
    with atomic_write(path) as file:
        file.write("first")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_stands_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, exchanges):
    """Killed at each of its file operations: what stood there is there, or what is new, never a half of either."""
    if not exchanges:
        monkeypatch.setattr("broadsheet.cache._exchange", lambda one, other: False)
    names = [str(i) for i in range(4)]

    def begin(folder: Path) -> Path:
        for name in ("old", "new"):
            (folder / name).mkdir(parents=True)
            for file in names:
                (folder / name / file).write_text(name)
        return folder / "old"

    with dying(tmp_path / "counted") as death:
        replace_folder(tmp_path / "counted" / "new", begin(tmp_path / "counted"))
    at, seen = 0, set()
    for at in range(death.count):
        path = begin(tmp_path / f"killed{at}")
        with dying(path.parent, at), suppress(Killed):
            replace_folder(path.parent / "new", path)
        if exchanges:
            assert path.exists(), "it is never missing"
        restore_folder(path)
        told = {file.read_text() for file in path.iterdir()}
        assert len(told) == 1, "of one of them alone"
        assert sorted(file.name for file in path.iterdir()) == names
        seen |= told
    assert seen == ({"new"} if exchanges else {"old", "new"}), "an exchange is one step"
    assert at > 3


def test_a_folder_takes_the_place_of_nothing_or_of_a_file(tmp_path):
    for before in (None, "file"):
        made, path = tmp_path / "made", tmp_path / "path"
        made.mkdir()
        (made / "a").write_text("1")
        if before:
            shutil.rmtree(path)
            path.write_text("x")
        replace_folder(made, path)
        assert [file.name for file in path.iterdir()] == ["a"]
        assert not made.exists()
    restore_folder(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["path"]


def test_a_failed_folder_leaves_what_was_there(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as aside:
        (aside / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(path) as aside:
        (aside / "b").write_text("2")
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["a"]
    with atomic_folder(path) as aside:
        (aside / "c").write_text("3")
    assert [file.name for file in path.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_runs_are_swept(tmp_path):
    leftover = tmp_path / ".folder.12345.tmp"
    leftover.mkdir()
    with atomic_folder(tmp_path / "folder"):
        assert not leftover.exists()


COUNTER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from broadsheet.cache import locked
    path = Path(sys.argv[1])
    for _ in range(20):
        with locked(path):
            value = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(value + 1))
    """
)


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path):
    def filled(name: str) -> Path:
        folder = tmp_path / name / "work"
        folder.mkdir(parents=True)
        for i in range(3):
            (folder / f"{i}.json").write_text("{}")
        return folder

    counted = filled("counted")
    with dying(counted.parent) as life:
        remove_folder(counted)
    assert life.count > 4
    for at in range(life.count):
        folder = filled(f"killed{at}")
        with dying(folder.parent, at), suppress(Killed):
            remove_folder(folder)
        assert not folder.exists() or len(list(folder.iterdir())) == 3
        remove_folder(folder)
        assert not list(folder.parent.iterdir())


def test_the_lock_keeps_processes_apart(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNTER, str(path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert path.read_text() == "60"


def test_waiting_for_the_lock_is_said(tmp_path, capsys):
    import threading

    entered, leave = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "model"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    threading.Timer(0.4, leave.set).start()
    with locked(tmp_path / "model"):
        pass
    thread.join()
    assert "waiting for another broadsheet that is preparing model" in capsys.readouterr().err


def test_messages_and_progress_keep_stdout_clean(capsys):
    say("something")
    with progress("working", total=2) as bar:
        bar.advance(bar.task_ids[0])
    assert list(track([1, 2], "counting")) == [1, 2]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "something\n")  # no terminal: no bar
