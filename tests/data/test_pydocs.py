"""The embedded corpus, extracted from a small made-up environment."""

import importlib.metadata
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from broadsheet.data import pydocs

FILES = {
    "site-packages/demo/__init__.py": '''
        """A demonstration package for the tests.

        It does nothing, at some length.
        """
        raise SystemExit("never import me")

        class Thing:
            """A thing that stands for others."""

            def act(self):
                """Act upon whatever is the matter."""
                def inner():
                    """Act from within, which still counts."""

            def short(self):
                """Too short."""

            @property
            def size(self):
                """The size of the thing, in things."""

            @size.setter
            def size(self, value):
                """The size of the thing, now settable."""

        try:
            pass
        except ImportError:
            async def fetch():
                """Fetch what is far away, patiently."""
    ''',
    "site-packages/demo/Thing.py": '"""A module whose name is that of a class."""',
    "site-packages/demo/bad.py": '"""This is not Python at all.""" (',
    "site-packages/demo/latin.py": b'# -*- coding: latin-1 -*-\n"""Un module \xe9crit \xe0 la main."""',
    "site-packages/demo/mislabelled.py": b'"""Bytes that are not UTF-8: \xff\xfe."""',
    "site-packages/demo/half.py": r'"""Half of a surrogate pair: \ud800 is spelt here."""',
    "site-packages/demo/plain.py": "'A docstring without triple quotes is not looked at.'",
    "site-packages/demo/guide.md": "# The guide\n\nHow to do nothing at all.\n",
    "site-packages/demo/tests/test_demo.py": '"""Tests of the demonstration are left out."""',
    "site-packages/demo-1.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: Demo_Pkg\nVersion: 1.0\n\n# Demo\n\nThe long description of it.\n"
    ),
    "site-packages/broadsheet/own.py": '"""Our own docstrings are no data for us."""',
    "site-packages/broadsheet-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: broadsheet\nVersion: 0.1\n",
    "lib/shelf.py": '"""The standard library speaks here."""',
    "lib/test/test_shelf.py": '"""The standard library\'s tests are left out."""',
    "lib/idlelib/run.py": '"""An editor nobody asked about here."""',
    "lib/site-packages/other.py": '"""Packages are found by their records alone."""',
    "lib/pydoc_data/topics.py": "topics = {'assert': 'It asserts.', 'in': 'Membership tests.'}",
}

EXPECTED = [
    ("demo-pkg README", "readme", "demo"),
    ("demo.Thing", "module", "demo"),
    ("demo", "module", "demo"),
    ("demo.Thing@demo/__init__.py:8", "class", "demo"),
    ("demo.Thing.act", "function", "demo"),
    ("demo.Thing.act.<locals>.inner", "function", "demo"),
    ("demo.Thing.size", "function", "demo"),
    ("demo.Thing.size@demo/__init__.py:24", "function", "demo"),
    ("demo.fetch", "function", "demo"),
    ("demo/guide.md", "doc", "demo"),
    ("demo.half", "module", "demo"),
    ("demo.latin", "module", "demo"),
    ("pydoc_data.topics.assert", "doc", "pydoc_data"),
    ("pydoc_data.topics.in", "doc", "pydoc_data"),
    ("shelf", "module", "shelf"),
]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A site-packages and a standard library under `tmp_path`, instead of those that run the tests."""
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
    site = tmp_path / "site-packages"
    for package, metadata in (("demo", "demo-1.0"), ("broadsheet", "broadsheet-0.1")):
        files = [path for path in (site / package).rglob("*") if path.is_file()]
        record = site / f"{metadata}.dist-info" / "RECORD"
        record.write_text("".join(f"{path.relative_to(site).as_posix()},,\n" for path in sorted(files, reverse=True)))
    monkeypatch.setattr(pydocs, "distributions", lambda: importlib.metadata.distributions(path=[str(site)]))
    monkeypatch.setattr(pydocs, "_standard_library", lambda: tmp_path / "lib")
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    return tmp_path


def test_rows_are_the_documents_of_the_environment(environment):
    folder, stats = pydocs.prepare()
    rows = list(pydocs.rows(folder))
    assert [(row["id"], row["kind"], row["package"]) for row in rows] == EXPECTED
    assert (stats.documents, stats.distributions, stats.unreadable) == (len(EXPECTED), 1, 2)
    assert stats.characters == sum(len(row["text"]) for row in rows)
    by_id = {row["id"]: row for row in rows}
    assert by_id["demo"] == {
        "id": "demo",
        "title": "demo",
        "kind": "module",
        "package": "demo",
        "module": "demo",
        "text": "A demonstration package for the tests.\n\nIt does nothing, at some length.",
        "summary": "A demonstration package for the tests.",
        "body": "It does nothing, at some length.",
    }
    assert by_id["demo.Thing@demo/__init__.py:8"]["title"] == "demo.Thing"
    assert by_id["demo.latin"]["text"] == "Un module écrit à la main."
    assert by_id["demo.half"]["text"] == "Half of a surrogate pair: \ufffd is spelt here."
    assert by_id["demo-pkg README"]["text"] == "# Demo\n\nThe long description of it."


def test_rows_do_not_depend_on_the_workers(environment, monkeypatch):
    folder, _ = pydocs.prepare(workers=1)
    one = (folder / "pydocs.jsonl").read_bytes()
    monkeypatch.setenv("BROADSHEET_HOME", str(environment / "other"))
    monkeypatch.setattr(pydocs, "FILES_PER_CHUNK", 2)
    folder, _ = pydocs.prepare(workers=3)
    assert (folder / "pydocs.jsonl").read_bytes() == one


def test_the_standard_library_alone_does_not_depend_on_what_is_installed(environment, monkeypatch):
    (environment / "lib/shelve.py").write_text('"""The standard library keeps objects."""')
    folder, stats = pydocs.prepare("pydocs:stdlib")
    rows = list(pydocs.rows(folder))
    assert [row["id"] for row in rows] == ["pydoc_data.topics.assert", "pydoc_data.topics.in", "shelve"]
    assert str(stats).startswith("pydocs:stdlib: 3 documents, ")
    assert f"'s standard library; fingerprint {stats.fingerprint}" in str(stats)
    monkeypatch.setattr(pydocs, "distributions", list)
    monkeypatch.setenv("BROADSHEET_HOME", str(environment / "other"))
    (environment / "lib/left_by_a_build.py").write_text('"""No module of the standard library."""')
    folder, again = pydocs.prepare("pydocs:stdlib")
    assert list(pydocs.rows(folder)) == rows
    assert again.fingerprint == stats.fingerprint != pydocs.prepare()[1].fingerprint


def test_the_standard_librarys_fingerprint_is_that_of_its_rows(environment):
    (environment / "lib/shelve.py").write_text('"""The standard library keeps objects."""')
    _, stats = pydocs.prepare("pydocs:stdlib")
    (environment / "lib/shelve.py").write_text('"""The standard library keeps any object."""')
    _, changed = pydocs.prepare("pydocs:stdlib")
    assert (changed.documents, changed.python) == (stats.documents, stats.python)
    assert changed.fingerprint != stats.fingerprint


@pytest.mark.parametrize(
    ("spec", "is_one"), [("pydocs", True), ("pydocs:stdlib", True), ("pydocs.jsonl", False), ("hf:pydocs:x", False)]
)
def test_one_function_decides_what_is_pydocs(spec, is_one):
    assert pydocs.is_pydocs(spec) == is_one
    assert pydocs.is_pydocs(Path(spec)) == is_one


def test_another_part_of_pydocs_is_refused():
    with pytest.raises(pydocs.InputError, match="got pydocs:numpy; expected pydocs, or pydocs:stdlib for"):
        pydocs.is_pydocs("pydocs:numpy")


def test_extracted_once_until_the_environment_changes(environment, capsys):
    first, stats = pydocs.prepare()
    (environment / "site-packages/demo/__init__.py").unlink()
    assert pydocs.prepare() == (first, stats)
    assert capsys.readouterr().err.count("reading") == 1
    metadata = environment / "site-packages/demo-1.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    second, _ = pydocs.prepare()
    assert second != first
    assert "demo.fetch" not in {row["id"] for row in pydocs.rows(second)}


def test_a_build_cut_off_leaves_nothing_that_looks_whole(environment, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(pydocs, "_read_aside", lambda chunk: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pydocs.prepare()
    assert [path.suffix for path in (environment / "home/corpora").iterdir()] == [".lock"]
    assert pydocs.prepare()[1].documents == len(EXPECTED)


def test_tokens_are_counted_once_there_is_a_tokenizer(environment):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(3)
    tokenizer.save(str(environment / "tokenizer.json"))
    _, stats = pydocs.prepare()
    assert stats.tokens is None
    assert "tokens not counted" in str(stats)
    folder, stats = pydocs.prepare(tokenizer_file=environment / "tokenizer.json")
    assert stats.tokens == sum(len(row["text"].split()) for row in pydocs.rows(folder))
    assert pydocs.prepare()[1] == stats
    assert json.loads((folder / "stats.json").read_text())["tokens"] == stats.tokens


SCRIPT = """
import pathlib, resource, sys
from broadsheet.data import pydocs

print("ran")
pydocs.distributions = lambda: []
pydocs._standard_library = lambda: pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    print(pydocs.prepare(workers=2)[1].documents)
except pydocs.InputError as error:
    print(error)
"""


def run_script(environment, largest_file):
    (environment / "script.py").write_text(SCRIPT)
    command = [sys.executable, environment / "script.py", environment / "lib", str(largest_file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_plain_script_is_not_run_again_by_the_workers(environment):
    assert run_script(environment, 10_000) == ["ran", "3"]


def test_no_room_leaves_nothing(environment):
    _, said = run_script(environment, 100)
    assert said.startswith(f"cannot make the corpus {environment}/home/corpora/pydocs-")
    assert said.endswith(": File too large; make room, or set BROADSHEET_HOME elsewhere")
    assert [path.suffix for path in (environment / "home/corpora").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("text", "summary", "body"),
    [
        ("One line.", "One line.", ""),
        ("Join two\npaths.\n\nEmpty parts.\n\nMore.", "Join two paths.", "Empty parts.\n\nMore."),
        ("\n\nLate start.\n\n\nBody.", "Late start.", "Body."),
    ],
)
def test_split_summary(text, summary, body):
    assert pydocs.split_summary(text) == (summary, body)


def test_the_standard_library_itself():
    """One real file, read as the corpus reads it."""
    source = pydocs.DocSource("json/decoder.py", str(Path(json.__file__).with_name("decoder.py")))
    entries = {entry.name: entry for entry in pydocs._read(source) or []}
    assert entries["json.decoder.JSONDecoder"].text.startswith("Simple JSON <https://json.org> decoder")
    assert entries["json.decoder.JSONDecoder.raw_decode"].kind == "function"
