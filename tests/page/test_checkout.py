"""The commit that runs, and what changed since another, in a repository made for the test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from broadsheet.page import checkout, evidence


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    ran = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return ran.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout with one commit of two files and a folder of evidence."""
    folder = tmp_path / "checkout"
    (folder / "evidence").mkdir(parents=True)
    for name in ("one.py", "two.py", "evidence/x.json"):
        (folder / name).write_text("0\n")
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Begin")
    checkout.commit.cache_clear()
    yield folder
    checkout.commit.cache_clear()


def commit(folder: Path) -> str | None:
    checkout.commit.cache_clear()
    return checkout.commit(folder)


def test_a_commit_has_a_plus_where_files_differ_evidence_aside(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert commit(repository) == head
    (repository / "evidence" / "x.json").write_text("1\n")
    (repository / "evidence" / "y.json").write_text("1\n")
    assert commit(repository) == head
    (repository / "one.py").write_text("1\n")
    assert commit(repository) == f"{head}+"
    git(repository, "checkout", "-q", "one.py")
    (repository / "new.py").write_text("1\n")
    assert commit(repository) == f"{head}+"


def test_the_commit_is_that_at_the_first_question(repository):
    first = checkout.commit(repository)
    (repository / "one.py").write_text("1\n")
    git(repository, "commit", "-q", "-a", "-m", "Go on")
    assert checkout.commit(repository) == first
    assert commit(repository) == git(repository, "rev-parse", "HEAD") != first


def test_a_hook_does_not_lead_elsewhere(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert commit(repository)


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    assert commit(tmp_path) is None
    monkeypatch.setattr(checkout, "root", lambda: None)
    assert commit(None) is None
    assert evidence.provenance(seed=1)["commit"] is None


def test_without_git_there_is_no_commit(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(repository) is None


def test_provenance_names_the_commit(repository, monkeypatch):
    monkeypatch.setattr(checkout, "root", lambda: repository)
    checkout.commit.cache_clear()
    assert evidence.provenance(seed=1)["commit"] == git(repository, "rev-parse", "HEAD")


def test_what_changed_is_that_of_the_files_asked_for(repository):
    since = git(repository, "rev-parse", "HEAD")
    files = [repository / "one.py", repository / "two.py"]
    assert checkout.changed(since, files, repository) == []
    (repository / "one.py").write_text("1\n")
    assert checkout.changed(since, files, repository) == ["one.py"]
    assert checkout.changed(since, files[1:], repository) == []
    assert checkout.changed(since, [], repository) == []
    git(repository, "commit", "-q", "-a", "-m", "Go on")
    (repository / "two.py").unlink()
    assert checkout.changed(since, files, repository) == ["one.py", "two.py"]
    assert checkout.changed("0" * 40, files, repository) is None
