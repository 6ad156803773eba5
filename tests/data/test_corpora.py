"""Documents from files, folders and the hub, and the answers to files that hold something else."""

import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.data import corpora, pydocs, sources
from broadsheet.data.corpora import Document, load

ROWS = [{"id": "a", "text": "One."}, {"id": "b", "text": "Two, ünïcödé \u2028 and all.", "year": 1999}, {"text": " "}]


def jsonl(rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def write_parquet(path, columns):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


def documents(name):
    return [
        Document("a", "One.", {}),
        Document("b", "Two, ünïcödé \u2028 and all.", {"year": 1999}),
        Document(f"{name}:3", " ", {}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_jsonl(tmp_path, start, end):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(start + jsonl(ROWS, end))
    corpus = load(path)
    expected = documents("corpus.jsonl")
    expected[2].id = "corpus.jsonl:5" if end == "\n\n" else "corpus.jsonl:3"  # blank lines count as lines
    assert list(corpus) == expected
    assert list(corpus) == expected


def test_jsonl_gz(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(ROWS)))
    assert list(load(path)) == documents("corpus.jsonl.gz")


def test_parquet(tmp_path):
    path = tmp_path / "corpus.parquet"
    write_parquet(path, {"id": ["a", None], "text": ["One.", ""], "year": [1, 2]})
    assert list(load(path)) == [Document("a", "One.", {"year": 1}), Document("corpus.parquet:2", "", {"year": 2})]


def test_txt_is_one_document(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_bytes(b"\xef\xbb\xbfDear reader,\r\nyours\n")
    assert list(load(path)) == [Document("letter.txt", "Dear reader,\r\nyours\n", {})]


def test_folder_is_read_in_order_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/.hidden.txt", ".git/c.txt", "a/notes.md", "c/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "row"}\n')
    corpus = load(tmp_path)
    assert [document.id for document in corpus] == ["a/z.txt", "b.txt", "c/d.jsonl:1"]
    assert corpus.describe() == f"{tmp_path}: 3 files, 48 bytes"


def test_other_fields_may_hold_text_and_id(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl([{"id": 1, "key": 7, "text": "no", "body": "yes"}]))
    assert list(load(path, text_field="body", id_field="key")) == [Document("7", "yes", {"id": 1, "text": "no"})]


BAD_LINES = {
    b"{not json": "not JSON",
    b"[" * 100_000: "not JSON",
    b'{"text": ' + b"1" * 5000 + b"}": "not JSON",
    b'"a string"': "not a JSON object",
    b'{"txt": "x"}': "no field 'text'",
    b'{"text": null}': "field 'text' is not a string",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "\\ud800"}': "field 'text' holds half a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=BAD_LINES.values())
def test_a_bad_line_stops_or_is_counted(tmp_path, capsys, line):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(ROWS[:1]) + line + b"\n" + jsonl(ROWS[1:2]))
    with pytest.raises(InputError) as stopped:
        list(load(path))
    assert str(stopped.value).startswith(f"{path}:2: {BAD_LINES[line]}; ")
    corpus = load(path, on_error="skip")
    for _ in range(2):
        assert [document.id for document in corpus] == ["a", "b"]
        assert corpus.skipped == Counter({BAD_LINES[line]: 1})
    assert capsys.readouterr().err == f"{path}: 1 bad rows skipped (1 × {BAD_LINES[line]})\n"


def damaged(tmp_path, kind):
    """A file with two good rows before the damage (none for a broken header), and the row it is found at."""
    if kind == "gzip cut off":
        path = tmp_path / "corpus.jsonl.gz"
        path.write_bytes(gzip.compress(jsonl(ROWS[:2]))[:-4])
        return path, 3, "not gzip, or cut off"
    if kind == "gzip corrupt":
        path = tmp_path / "corpus.jsonl.gz"
        first = gzip.compress(jsonl(ROWS[:2]))
        second = bytearray(gzip.compress(jsonl(ROWS)))
        second[10] = 0xFF  # an invalid deflate block
        path.write_bytes(first + bytes(second))
        return path, 3, "not gzip, or cut off"
    if kind == "not gzip":
        path = tmp_path / "corpus.jsonl.gz"
        path.write_bytes(jsonl(ROWS))
        return path, 1, "not gzip, or cut off"
    path = tmp_path / "corpus.parquet"
    if kind == "not parquet":
        path.write_bytes(jsonl(ROWS))
        return path, 1, "not Parquet, or damaged"
    import pyarrow as pa

    text = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"ab\xff")]
    )
    write_parquet(path, {"id": ["a", "b", "c"], "text": text})
    return path, 3, "not UTF-8"


@pytest.mark.parametrize("kind", ["gzip cut off", "gzip corrupt", "not gzip", "not parquet", "parquet not UTF-8"])
def test_a_damaged_file_stops_or_is_counted(tmp_path, kind):
    path, row, reason = damaged(tmp_path, kind)
    (tmp_path / "later.txt").write_text("still read")
    with pytest.raises(InputError) as stopped:
        list(load(path))
    assert str(stopped.value).startswith(f"{path}:{row}: {reason}; ")
    corpus = load(tmp_path, on_error="skip")
    assert [document.id for document in corpus] == [*"ab"[: row - 1], "later.txt"]
    assert corpus.skipped == Counter({reason: 1})


def test_txt_that_is_not_utf8_names_its_line(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear\nreader \xe9\n")
    with pytest.raises(InputError, match=r"letter\.txt:2: not UTF-8; save it as UTF-8"):
        list(load(path))


def test_missing_file_suggests_near_names(tmp_path, monkeypatch):
    (tmp_path / "corpus.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"did you mean corpus\.jsonl\?"):
        load(tmp_path / "corpsu.jsonl")
    with pytest.raises(InputError, match=r"did you mean pydocs\?"):
        load("pydoc")
    with pytest.raises(InputError, match="no corpus at /nowhere/at/all"):
        load("/nowhere/at/all")


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match=r"holds no documents; expected files that end in \.jsonl"):
        load(tmp_path)
    (tmp_path / "corpus.docx").touch()
    with pytest.raises(InputError, match=r"corpus\.docx: expected a name that ends in"):
        load(tmp_path / "corpus.docx")
    with pytest.raises(InputError, match="expected 'stop' or 'skip'"):
        load("pydocs", on_error="ignore")


def test_a_file_that_vanishes_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    corpus = load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*a\.txt: No such file"):
        list(corpus)


READ_AND_WATCH = """
import sys, psutil, pyarrow.parquet
from broadsheet.data.corpora import load

rss = psutil.Process().memory_info
start = peak = rss().rss
total = 0
for number, document in enumerate(load(sys.argv[1])):
    total += len(document.text)
    if number % 1000 == 0:
        peak = max(peak, rss().rss)
print(total, peak - start)
"""


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet"])
def test_memory_stays_flat(tmp_path, name):
    path = tmp_path / name
    generator = random.Random(0)
    texts = [generator.randbytes(1000).hex() for _ in range(25_000)]
    if name.endswith(".parquet"):
        write_parquet(path, {"text": texts})  # one row group
    else:
        lines = jsonl({"text": text} for text in texts)
        path.write_bytes(gzip.compress(lines, 0) if name.endswith(".gz") else lines)
    done = subprocess.run([sys.executable, "-c", READ_AND_WATCH, path], capture_output=True, check=True)
    total, growth = map(int, done.stdout.split())
    assert total == 50_000_000
    assert growth < 0.9 * total


def test_fingerprint_and_identity_follow_the_bytes(tmp_path):
    path = tmp_path / "corpus.jsonl"
    prints, identities = set(), set()
    for text in ("One.", "Two.", "Three."):
        path.write_bytes(jsonl([{"text": text}]))
        prints.add(load(path).fingerprint())
        identities.add(json.dumps(load(path).identity()))
    assert (len(prints), len(identities)) == (3, 3)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert load(path.rename(moved / "corpus.jsonl")).fingerprint() in prints


@given(size=st.integers(0, 40), n=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_take_is_a_seeded_sample_in_order(size, n, seed):
    corpus = Listed(size)
    sample = corpus.take(n, seed)
    assert sample == corpus.take(n, seed)
    assert len(sample) == min(n, size)
    numbers = [int(document.text) for document in sample]
    assert numbers == sorted(set(numbers))


def test_take_is_uniform():
    counts = Counter(document.text for seed in range(3000) for document in Listed(10).take(3, seed))
    # Each is taken with probability 0.3: 900 times, with a standard deviation of 25.
    assert all(abs(counts[str(number)] - 900) < 100 for number in range(10))


def test_take_refuses_a_negative_size():
    with pytest.raises(ValueError, match="n is -1"):
        Listed(3).take(-1, 0)


class Listed(corpora.Corpus):
    """Numbers as documents."""

    def __init__(self, size):
        super().__init__("listed", "stop", "text", "id")
        self.size = size

    def identity(self):
        return {}

    def fingerprint(self):
        return ""

    def describe(self):
        return "numbers"

    def _rows(self):
        for number in range(self.size):
            yield corpora.RowLocation(str(number), str(number)), {"text": str(number)}


def test_pydocs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    monkeypatch.setattr(pydocs, "_installed", dict)
    library = tmp_path / "lib"
    library.mkdir()
    (library / "shelf.py").write_text('"""Keep books\nin order.\n\nBy size."""\n')
    monkeypatch.setattr(pydocs, "_standard_library", lambda: library)
    corpus = load("pydocs")
    assert list(corpus) == [
        Document(
            "shelf",
            "Keep books\nin order.\n\nBy size.",
            {
                "title": "shelf",
                "kind": "module",
                "package": "shelf",
                "module": "shelf",
                "summary": "Keep books in order.",
                "body": "By size.",
            },
        )
    ]
    assert corpus.count == 1
    assert corpus.fingerprint() == corpus.stats.key
    assert "pydocs: 1 documents, tokens not counted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("hf:imdb:train", ("imdb", None, "train")),
        ("hf:stanfordnlp/imdb:test", ("stanfordnlp/imdb", None, "test")),
        ("hf:nyu-mll/glue/sst2:validation", ("nyu-mll/glue", "sst2", "validation")),
    ],
)
def test_hub_specs(spec, parsed):
    assert sources.parse_hub_spec(spec) == parsed


@pytest.mark.parametrize("spec", ["hf:", "hf:imdb", "hf:imdb:", "hf::train", "hf:a/b/c/d:train", "hf:a//b:train"])
def test_hub_specs_that_name_nothing(spec):
    with pytest.raises(InputError, match="names no hub data set; expected hf:org/name:split"):
        load(spec)


def test_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[hub\]'"):
        load("hf:imdb:train")


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set, as far as the two libraries show it."""
    asked = []

    def load_dataset(name, config, *, split, streaming, revision):
        asked.append((name, config, split, streaming, revision))
        splits = {split: SimpleNamespace(num_examples=2, num_bytes=2_500_000)}
        return Stream(splits)

    class Stream(list):
        def __init__(self, splits):
            super().__init__([{"text": "One."}, {"text": "Two.", "label": 1}])
            self.info = SimpleNamespace(splits=splits)

    api = SimpleNamespace(endpoint="https://hub.example", dataset_info=lambda name: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: api))
    return SimpleNamespace(api=api, asked=asked)


def test_hub_data_set_is_streamed_at_one_commit(hub, capsys):
    corpus = load("hf:org/name/config:train")
    assert hub.asked == [("org/name", "config", "train", True, "c0ffee")]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "hf:org/name/config:train: looking up the data set org/name at https://hub.example"
    assert said[1] == "hf:org/name/config:train: 2 rows, 2.5 MB, commit c0ffee, downloaded as it is read"
    assert list(corpus) == [
        Document("org/name/train:1", "One.", {}),
        Document("org/name/train:2", "Two.", {"label": 1}),
    ]
    before = corpus.fingerprint()
    hub.api.dataset_info = lambda name: SimpleNamespace(sha="decaf")
    assert load("hf:org/name/config:train").fingerprint() != before


def test_hub_that_cannot_be_reached(hub):
    def dataset_info(name):
        raise ConnectionError("Name or service not known\nand a long explanation")

    hub.api.dataset_info = dataset_info
    with pytest.raises(
        InputError, match=r"cannot read hf:org/name:train .*: Name or service not known; check the spec"
    ):
        load("hf:org/name:train")
