"""About a hundred files that are wrong, odd or hostile, made of rows that are right.

Knows: what a reader may be given by mistake or by intent. Does not know: who reads it, and whether it is an error
there: some are unusual and right.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

# The texts of a row, replaced by these. Numbers and lists of a row stay.
TEXTS: Mapping[str, Any] = {
    "null": None,
    "a number": 12,
    "no number": math.nan,
    "a list": ["a", "b"],
    "an object": {"a": "b"},
    "true": True,
    "nothing": "",
    "white space": " \t\n\r\u00a0\u2028",
    "a letter": "a",
    "a mark": "?",
    "zeros": "\x00\x00\x00",
    "controls": "".join(map(chr, range(1, 32))),
    "escapes of a terminal": "\x1b[2J\x1b]0;owned\x07 text",
    "half a character": "half \ud800 of one",
    "no characters": "\ufffe\uffff\ufdd0",
    "marks without letters": "\u0301" * 400,
    "from right to left": "\u202egnirts \u2066a\u2069",
    "joined people": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 50,
    "one word of a hundred thousand letters": "a" * 100_000,
    "a hundred thousand lines": "\n" * 100_000,
    "a hundred thousand letters of words": "word and word. " * 6_600,
    "Chinese": "他说：“这是一本书。”我们读了它。" * 20,
    "Thai": "ภาษาไทยไม่เว้นวรรค" * 20,
    "code": "for (;;) { x <<= 1; } /* " * 30,
    "HTML": "<html><script>alert(1)</script><body>text &amp; &#0; " * 20,
    "a template": "{{ 7 * 7 }} {% raw %} {0} %s ${HOME}",
    "special tokens": "<|im_end|><|endoftext|><s></s>[INST]",
    "a path": "../../../../etc/passwd",
}  # fmt: skip

# What stands in a row's other fields: labels, years, ids, scores, lists.
FIELDS: Mapping[str, Any] = {
    "null": None,
    "no number": math.nan,
    "an infinity": -math.inf,
    "below zero": -1,
    "a huge number": 10**400,
    "a tiny number": 1e-320,
    "a text": "many",
    "an empty text": "",
    "an empty list": [],
    "a list of one": [0],
    "a list of nulls": [None, None, None, None],
    "nested": [[[[0]]]],
    "an object": {"0": 0},
    "half a character": "\ud800",
    "a long text": "9" * 5000,
}

# Whole lines in the place of one.
LINES: Mapping[str, bytes] = {
    "no JSON": b"this is no JSON",
    "half a line": b'{"id": "x", "text": "half',
    "two values": b'{"id": 1} {"id": 2}',
    "a number": b"12",
    "a list": b"[1, 2]",
    "a text": b'"text"',
    "null": b"null",
    "an empty object": b"{}",
    "deep lists": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no UTF-8": b'{"id": "x", "text": "caf\xe9"}',
    "a NUL": b'{"id": "x", \x00 "text": "a"}',
    "a name twice": b'{"id": "x", "text": "a", "text": 1}',
    "a long number": b'{"id": "x", "text": "a", "score": ' + b"9" * 10_000 + b"}",
    "a line of NULs": b"\x00" * 1000,
    "one of three megabytes": b"x" * 3_000_000,
}


def _jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# Whole files: name of the file, and what is in it.
FILES: Mapping[str, tuple[str, Callable[[Rows], bytes]]] = {
    "empty": ("rows.jsonl", lambda rows: b""),
    "line ends alone": ("rows.jsonl", lambda rows: b"\n\r\n\n"),
    "a byte order mark": ("rows.jsonl", lambda rows: b"\xef\xbb\xbf" + _jsonl(rows)),
    "UTF-16": ("rows.jsonl", lambda rows: _jsonl(rows).decode().encode("utf-16")),
    "line ends of Windows": ("rows.jsonl", lambda rows: _jsonl(rows).replace(b"\n", b"\r\n")),
    "no last line end": ("rows.jsonl", lambda rows: _jsonl(rows).rstrip()),
    "one row": ("rows.jsonl", lambda rows: _jsonl(rows[:1])),
    "two rows": ("rows.jsonl", lambda rows: _jsonl(rows[:2])),
    "one row many times": ("rows.jsonl", lambda rows: _jsonl(rows[:1] * 12)),
    "rows twice": ("rows.jsonl", lambda rows: _jsonl(rows * 2)),
    "a list of rows by name of lines": ("rows.jsonl", lambda rows: json.dumps(rows).encode()),
    "lines by name of a list": ("rows.json", _jsonl),
    "a picture": ("rows.jsonl", lambda rows: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40),
    "no gzip": ("rows.jsonl.gz", _jsonl),
    "half of a gzip": ("rows.jsonl.gz", lambda rows: gzip.compress(_jsonl(rows))[:-40]),
    "a gzip of 30 megabytes": ("rows.jsonl.gz", lambda rows: gzip.compress(b"0" * 30_000_000)),
    "no Parquet": ("rows.parquet", _jsonl),
    "the ends of Parquet": ("rows.parquet", lambda rows: b"PAR1" + bytes(40) + struct.pack("<I", 2**31) + b"PAR1"),
    "a table without rows": ("rows.csv", lambda rows: b"id,text\n"),
    "a ragged table": ("rows.csv", lambda rows: b'id,text\n1,a,b\n2\n"3,unclosed\n'),
    "a name of a column twice": ("rows.csv", lambda rows: b"text,text,id\na,b,1\n"),
    "a table of NULs": ("rows.tsv", lambda rows: b"\x00\t\x00\n" * 5),
    "a pickle": ("rows.pkl", lambda rows: b"cos\nsystem\n(S'true'\ntR."),
    "another suffix": ("rows.docx", lambda rows: b"PK\x03\x04" + bytes(60)),
    "no suffix": ("rows", _jsonl),
    "a name with spaces": ("the rows é.jsonl", _jsonl),
}

# What is no file of rows at all.
PLACES: Mapping[str, Callable[[Path], Path | str]] = {
    "nowhere": lambda folder: folder / "nowhere.jsonl",
    "an empty folder": lambda folder: _made(folder / "empty"),
    "a folder of folders": lambda folder: _made(folder / "deep" / "a" / "b").parents[1],
    "a link to nowhere": lambda folder: _link(folder / "link.jsonl", folder / "gone"),
    "a link to itself": lambda folder: _link(folder / "self.jsonl", folder / "self.jsonl"),
    "nothing": lambda folder: "",
    "a name too long": lambda folder: folder / ("x" * 300 + ".jsonl"),
    "no device's file": lambda folder: "/dev/null",
    "no scheme": lambda folder: "ftp://nowhere.invalid/rows.jsonl",
    "a resource that is none": lambda folder: "resource:nothing/at-all.jsonl",
    "a resource outside": lambda folder: "resource:../../etc/passwd",
    "a hub id that is none": lambda folder: "hf:///:::",
}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _link(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


NAMES = [
    *(f"text: {name}" for name in TEXTS),
    *(f"field: {name}" for name in FIELDS),
    *(f"line: {name}" for name in LINES),
    *(f"file: {name}" for name in FILES),
    *(f"place: {name}" for name in PLACES),
]


def spoilt(name: str, rows: Rows, folder: Path) -> Path | str:
    """One of `NAMES`, below a folder: of eight rows at most, where one is wrong the fourth is."""
    rows = [dict(row) for row in rows[:8]]
    kind, _, which = name.partition(": ")
    path = folder / "rows.jsonl"
    if kind == "place":
        return PLACES[which](folder)
    if kind == "file":
        file, make = FILES[which]
        path = folder / file
        path.write_bytes(make(rows))
    elif kind == "line":
        lines = _jsonl(rows).split(b"\n")
        lines[3] = LINES[which]
        path.write_bytes(b"\n".join(lines))
    else:
        value = TEXTS[which] if kind == "text" else FIELDS[which]
        for field, was in rows[3].items():
            texts = isinstance(was, str) and field not in ("id", "audio", "task")
            if texts == (kind == "text"):
                rows[3][field] = value
        path.write_bytes(_jsonl(rows))
    return path


def clips(name: str, whole: Path, folder: Path) -> Path | str:
    """As `spoilt`, of a folder of clips: its first stage is spoilt."""
    made = folder / "clips"
    shutil.copytree(whole, made)
    stage = made / "stage1.jsonl"
    rows = [json.loads(line) for line in stage.read_text().splitlines()]
    stage.unlink()
    found = spoilt(name, rows, made)
    if isinstance(found, Path) and found.name == "rows.jsonl":
        found.rename(stage)
        return made
    return found
