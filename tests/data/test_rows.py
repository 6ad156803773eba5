"""One reader for every format: the same rows from each, and each fault named by file and line, or counted."""

from __future__ import annotations

import gzip
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowfiles import write

from broadsheet.console import InputError
from broadsheet.data import rows, schemas, sources
from broadsheet.data.rows import column, read
from broadsheet.data.schemas import (
    AudioQA,
    Captioned,
    Instruction,
    Interaction,
    Judgement,
    Labelled,
    Pair,
    Parallel,
    Ranked,
    SentencePair,
    Spans,
)

FORMATS = ("jsonl", "jsonl.gz", "json", "parquet", "csv", "csv.gz", "tsv")


@dataclass(frozen=True)
class Note:
    """A row with a field of each kind."""

    text: str = column("text", "body")
    score: float = column("score", default=0.0)
    count: int = column("count", default=0)
    tags: tuple[str, ...] = column("tags", default=())
    about: dict[str, Any] = column("about", default=None)
    id: str = column(kind="id")
    rest: dict[str, Any] = column(kind="rest")


GIVEN = [
    {"id": "a", "Body": 'He said "no", twice.', "score": 0.5, "count": 3, "tags": ["x", "y, z"], "about": {"k": 1}},
    {"id": "b", "Body": "日本語, ünïcödé \u2028 🙂", "score": -2.0, "count": 0, "tags": ["[1]"], "about": {"k": 2}},
    {"id": "c", "Body": " [not json", "score": 1e3, "count": -1, "tags": ["null"], "about": {"k": 3}},
]
EXPECTED = [Note(r["Body"], r["score"], r["count"], tuple(r["tags"]), r["about"], r["id"]) for r in GIVEN]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_rows_in_the_same_order(tmp_path: Path, form: str) -> None:
    found = read(write(tmp_path / f"rows.{form}", GIVEN), Note)
    assert list(found) == EXPECTED
    assert list(found) == EXPECTED  # again from the start


@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives_jsonl_and_csv(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("texts")
    given = [{"text": text, "count": i} for i, text in enumerate(texts)]
    for form in ("jsonl", "csv"):
        assert [note.text for note in read(write(folder / f"a.{form}", given), Note)] == texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \t \n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_marks_line_ends_and_blank_lines_are_no_rows(tmp_path: Path, form: str, start: str, end: str) -> None:
    lines = {
        "jsonl": ['{"text": "one"}', '{"text": "two"}'],
        "csv": ["text,count", "one,1", "two,2"],
        "tsv": ["text\tcount", "one\t1", "two\t2"],
    }[form]
    path = tmp_path / f"a.{form}"
    path.write_text(start + end.join(lines), encoding="utf-8", newline="")
    assert [note.text for note in read(path, Note)] == ["one", "two"]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet", "json"])
def test_an_empty_file_has_no_rows_or_is_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"empty.{form}"
    path.write_bytes(b"")
    if form in ("parquet", "json"):
        with pytest.raises(InputError, match=rf"empty\.{form}:1: not (Parquet|JSON)"):
            list(read(path, Note))
    else:
        assert list(read(path, Note)) == []
    path.write_bytes(b"[]") if form == "json" else None
    if form != "parquet":
        with pytest.raises(InputError, match=rf"empty\.{form} holds no notes"):
            read(path, Note).some("notes")


GOOD = b'{"text": "one"}\n'
FAULTS = {
    b"{broken": ("not JSON", "correct it"),
    b"[1, 2]": ("not a JSON object", "expected one with text"),
    b'{"note": "x", "n": 1}': ("no field 'text'", r"the row has note, n; expected text \(or body\)"),
    b'{"text": null}': ("field 'text' is null", "give each row one"),
    b'{"text": " \\n"}': ("an empty text", "give each row one"),
    b'{"body": 7}': ("field 'body' is not a string", ""),
    b'{"text": "\\ud800"}': ("field 'text' holds half a surrogate pair", ""),
    b'{"text": "a", "other": {"deep": ["\\uDFFF"]}}': ("field 'other' holds half a surrogate pair", ""),
    b'"\\ud800"': ("half a surrogate pair", ""),
    b'{"text": "\xff"}': ("not UTF-8", "save it as UTF-8"),
    b'{"text": "a", "score": "high"}': ("field 'score' is not a number", ""),
    b'{"text": "a", "score": NaN}': ("field 'score' is not a number", ""),
    b'{"text": "a", "count": 1.5}': ("field 'count' is not a whole number", ""),
    b'{"text": "a", "tags": [1]}': ("field 'tags' is not a list of texts", ""),
    b'{"text": "a", "about": "k"}': ("field 'about' is not an object", ""),
}


@pytest.mark.parametrize("line", FAULTS)
def test_a_fault_in_the_middle_is_named_or_counted(
    tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    reason, remedy = FAULTS[line]
    with pytest.raises(InputError, match=rf"^{path}:2: {reason}.*{remedy}.*--on-error skip$"):
        list(read(path, Note))
    found = read(path, Note, on_error="skip")
    for _ in range(2):
        assert [note.id for note in found] == ["a.jsonl:1", "a.jsonl:3"]
        assert found.skipped == Counter({reason: 1})
    assert capsys.readouterr().err == f"{path}: 1 bad rows skipped (1 × {reason})\n"


def test_what_was_got_is_shown_and_does_not_part_the_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a", "score": "x" * 99}, {"text": "b", "score": "high"}])
    with pytest.raises(InputError, match=r"\(got 'x{59}…\)"):
        list(read(path, Note))
    found = read(path, Note, on_error="skip")
    assert list(found) == []
    assert found.skipped == {"field 'score' is not a number": 2}
    with pytest.raises(InputError, match="holds no rows that can be used"):
        found.some()


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_a_line_beyond_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 200)
    path = write(tmp_path / f"a.{form}", [{"text": "one"}, {"text": "x" * 1000}, {"text": "y" * 150}])
    place = 2 if form == "jsonl" else 3
    with pytest.raises(InputError, match=rf"a\.{form}:{place}: .*a line of more than 200 bytes"):
        list(read(path, Note))
    kept = [note.text for note in read(path, Note, on_error="skip")]
    assert kept == ["one", *["y" * 150] * (form != "csv")]  # a CSV record may go on in the next line


def test_a_cell_may_be_longer_than_pythons_own_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"text": "x" * 200_000}])
    assert len(next(iter(read(path, Note))).text) == 200_000


TABLES = [
    ("a.csv", b'text,count\none,1\n"two\nlines",2\nthree,3,4\n', "a.csv:5: columns: 3, but 2 in the first line"),
    ("a.csv", b'text,count\n"a",1\n"b"x,2\n', "a.csv:3: not valid CSV"),
    ("a.csv", b'text,count\na,1\n"b,2\n', "a.csv:3: not valid CSV .got unexpected end"),
    ("a.csv", b"text,text\na,b\n", "a.csv:1: two columns of one name"),
    ("a.csv", b"text,count\na,1\n\xe9,2\n", "a.csv:3: not UTF-8"),
    ("a.csv", b"t\xe9xt,count\na,1\n", "a.csv:1: not UTF-8"),
    ("a.tsv", b"text\tcount\na\n", "a.tsv:2: columns: 1, but 2 in the first line"),
    ("a.tsv", b"text\tcount\na\tmany\n", "a.tsv:2: field 'count' is not a whole number .got 'many'."),
    ("a.tsv", b"body text\tcount\na\t1\n", "a.tsv:2: no field 'text'; the row has body text, count; expected text"),
]


@pytest.mark.parametrize(("name", "data", "message"), TABLES)
def test_a_bad_line_of_a_table_is_named_by_where_its_record_begins(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read(tmp_path / name, Note))


def test_tsv_quotes_nothing_and_csv_does(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tscore\n"a, b"\t1\n')
    (tmp_path / "a.csv").write_text('text,score\n"a, ""b""\nc",1\n')
    assert [note.text for note in read(tmp_path, Note)] == ['a, "b"\nc', '"a, b"']


def test_a_folder_of_mixed_files_is_read_in_order(tmp_path: Path) -> None:
    for i, name in enumerate(("b.csv", "a/z.parquet", "a/y.jsonl.gz", "c.tsv", ".hidden.jsonl", ".git/d.jsonl")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"text": name, "count": i}, {"text": f"{name} again", "count": i}])
    (tmp_path / "README.txt").write_text("no row")
    (tmp_path / "notes.json").write_text("{}")
    found = read(tmp_path, Note)
    names = ["a/y.jsonl.gz", "a/z.parquet", "b.csv", "c.tsv"]
    assert [note.text for note in found] == [text for name in names for text in (name, f"{name} again")]
    assert [note.id for note in found][::2] == ["a/y.jsonl.gz:1", "a/z.parquet:1", "b.csv:2", "c.tsv:2"]
    assert found.identity()["files"][0][0] == "a/y.jsonl.gz"
    before = found.fingerprint()
    write(tmp_path / "c.tsv", [{"text": "other", "count": 1}])
    assert read(tmp_path, Note).fingerprint() != before


def test_a_damaged_file_is_one_bad_row(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD * 2)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-4])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    write(tmp_path / "c.jsonl", [{"text": "last"}])
    found = read(tmp_path, Note, on_error="skip")
    assert [note.text for note in found] == ["one", "one", "last"]
    assert found.skipped == {"not gzip, or cut off": 1, "not Parquet, or damaged": 1}


def test_what_is_not_there_is_named_with_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [{"text": "a"}])
    with pytest.raises(InputError, match=r"no file or folder at .*piars\.jsonl; did you mean pairs\.jsonl\?"):
        read(tmp_path / "piars.jsonl", Note)
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(InputError, match=r"a\.xlsx: expected a name that ends in \.jsonl"):
        read(tmp_path / "a.xlsx", Note)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no rows; expected files that end in"):
        read(tmp_path / "empty", Note)
    with pytest.raises(InputError, match=r"^cannot read n{200}…: File name too long$"):
        read("n" * 5_000 + ".jsonl", Note)
    with pytest.raises(InputError, match="expected 'stop' or 'skip'"):
        read(tmp_path / "pairs.jsonl", Note, on_error="ignore")  # type: ignore[arg-type]


def test_a_column_can_be_named_and_a_field_required(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "no", "mine": "yes", "tags": "alone"}, {"mine": "and", "text": "x"}])
    found = read(path, Note, columns={"text": "mine"})
    assert [(note.text, note.tags, note.rest) for note in found] == [
        ("yes", ("alone",), {"text": "no"}),
        ("and", (), {"text": "x"}),
    ]
    with pytest.raises(InputError, match=r"a\.jsonl:2: no field 'tags'; the row has mine, text"):
        list(read(path, Note, required=("tags",)))
    with pytest.raises(InputError, match="Note has no field 'title'; it has text, score"):
        read(path, Note, columns={"title": "mine"})


def test_a_sample_follows_from_its_seed(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.jsonl", [{"text": f"t{i}"} for i in range(50)]), Note)
    sample = [note.text for note in found.some(n=5, seed=1)]
    assert sample == [note.text for note in found.take(5, 1)]
    assert sample != [note.text for note in found.take(5, 2)]
    assert sample == sorted(sample, key=lambda text: int(text[1:]))
    assert len(found.some()) == 50


# The hub


def test_the_hub_gives_the_same_rows(hub: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    hub.rows = GIVEN
    found = read("hf:org/name:train", Note)
    assert "looking up the data set org/name" in capsys.readouterr().err  # before anything is read
    assert list(found) == EXPECTED
    hub.rows = [{"note": 1}]
    with pytest.raises(InputError, match=r"^hf:org/name:train:1: no field 'text'; the row has note"):
        list(found)


def test_sound_in_rows_of_the_hub_or_of_parquet_becomes_files(
    hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    sound = {"bytes": b"RIFF sound", "path": "a.wav"}
    hub.rows = [{"audio": sound, "instruction": "What?"}]
    hub.features = {"audio": type("Audio", (), {})()}
    (clip,) = next(iter(read("hf:org/name:train", AudioQA))).audio
    assert not hub.decoded
    assert Path(clip).suffix == ".wav"
    assert Path(clip).read_bytes() == sound["bytes"]
    path = write(tmp_path / "a.parquet", hub.rows)
    assert next(iter(read(path, AudioQA))).audio == (clip,)


# Schemas


SCHEMAS: list[tuple[type, dict[str, Any], Any]] = [
    (Pair, {"question": "q", "answer": "p", "negative_10": "o", "negative_2": "m", "negative_1": ["n"]},
     Pair("q", "p", ("n", "m", "o"))),
    (Pair, {"anchor": "q", "passage": "p", "negatives": ["n"], "negative": "m"}, Pair("q", "p", ("n", "m"))),
    (SentencePair, {"sentence_A": "x", "sentence_B": "y", "relatedness_score": "4.5"}, SentencePair("x", "y", 4.5)),
    (Ranked, {"query": "q", "documents": ["a", {"text": "b"}], "labels": [0, 1]},
     Ranked("q", ("a", {"text": "b"}), (0.0, 1.0))),
    (Ranked, {"query": "q", "documents": '["a", "b"]', "ranking": "[1, 0]"}, Ranked("q", ("a", "b"), None, (1, 0))),
    (Judgement, {"query-id": 1, "corpus-id": "d", "score": 2.0}, Judgement("1", "d", 2)),
    (Labelled, {"text": "t", "label": 3}, Labelled("t", "3")),
    (Labelled, {"sentence": "t", "class": "spam"}, Labelled("t", "spam")),
    (Instruction, {"prompt": "do", "context": "it", "response": "done"}, Instruction("do", "done", "it")),
    (Interaction, {"user_id:token": 7, "item_id:token": "i", "timestamp:float": "12"}, Interaction("7", "i", 12.0)),
    (Spans, {"text": "Ada wrote", "entities": [{"start": 0, "end": 3, "label": "P"}]},
     Spans("Ada wrote", ({"start": 0, "end": 3, "label": "P"},))),
    (Parallel, {"src": "Haus", "tgt": "house"}, Parallel("Haus", "house")),
    (AudioQA, {"task": "asr", "audio": "a.wav", "answer": "one", "voice": "slt"},
     AudioQA("asr", ("{folder}/a.wav",), "one", more={"voice": "slt"})),
    (Captioned, {"file_name": "a.png", "caption": "A."}, Captioned("{folder}/a.png", "A.")),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "row", "expected"), SCHEMAS)
def test_a_schema_knows_the_names_of_its_columns(tmp_path: Path, schema: type, row: dict[str, Any], expected: Any):
    (found,) = read(write(tmp_path / "a.jsonl", [row]), schema)
    assert repr(found) == repr(expected).replace("{folder}", str(tmp_path))
    if "negative_2" in row or isinstance(expected, AudioQA | Captioned):
        assert vars(found).keys() == vars(expected).keys()


def test_every_schema_is_tested_and_described() -> None:
    shared = {name for name, value in vars(schemas).items() if getattr(value, "__module__", "") == schemas.__name__}
    assert {schema.__name__ for schema, _, _ in SCHEMAS} == shared
    for schema, _, _ in SCHEMAS:
        assert "\n" not in (schema.__doc__ or "\n").partition("\n")[0]
        assert (schema.__doc__ or "").strip().endswith((".", "`."))


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (Pair, {"query": "q", "positive": "p", "negatives": {"a": 1}}, "field 'negatives' is not a list of texts"),
    (Ranked, {"query": "q", "documents": ["a"], "labels": [1]}, "1 documents; expected a list of at least two"),
    (Ranked, {"query": "q", "documents": ["a", "b"]}, "neither ranking nor labels"),
    (Ranked, {"query": "q", "documents": ["a", "b"], "labels": [1]}, "1 labels; expected 2"),
    (Ranked, {"query": "q", "documents": ["a", "b"], "ranking": [0, 2]}, "expected indices 0 to 1, best first"),
    (Ranked, {"query": "q", "documents": ["a", "b"], "ranking": [0.5, 1]}, "not a list of whole numbers"),
    (Judgement, {"query": "q", "document": "d", "relevance": "very"}, "is not a whole number .got 'very'"),
    (Spans, {"text": "Ada", "spans": [{"start": 1, "end": 9}]}, "a span that is not in the text"),
    (AudioQA, {"task": "asr"}, "no audio; expected a path"),
    (AudioQA, {"audio": "a.wav"}, "neither task nor instruction"),
    (AudioQA, {"task": "asr", "audio": {"array": [0.0]}}, "field 'audio' is not a list of texts"),
    (Captioned, {"image": 3, "caption": "A."}, "field 'image' is not a path"),
]


@pytest.mark.parametrize(("schema", "row", "message"), REFUSED)
def test_a_schema_refuses_what_does_not_fit(tmp_path: Path, schema: type, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(InputError, match=rf"a\.jsonl:1: .*{message}"):
        list(read(path, schema))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5\ta b\tc\n4\td\te\n", [("a b", 5.0), ("d", 4.0)]),
        ("score\tsentence1\tsentence2\n5\ta b\tc\n", [("a b", 5.0)]),
        ("sentence_b\tSentence_A\tnote\tgold\nc\ta b\t!\t5\n", [("a b", 5.0)]),
    ],
)
def test_a_table_may_come_without_names(tmp_path: Path, text: str, expected: list[tuple[str, float]]) -> None:
    (tmp_path / "a.tsv").write_text(text)
    assert [(pair.a, pair.score) for pair in read(tmp_path / "a.tsv", SentencePair)] == expected


def test_rows_in_memory_are_listed() -> None:
    given = [Note("a", id="1"), Note("b", id="2")]
    listed = rows.Listed("notes", given)
    assert list(listed) == given
    assert listed.count == 2
    assert listed.identity() != rows.Listed("notes", given[:1]).identity()
