"""`broadsheet apply clear`: rows in, the same rows out with what became of each; resumed, refused, corrected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import Scripted
from test_clear import CAPITALS, ROWS, knows, shares

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.curate.clear import Clear
from broadsheet.curate.targets.recipe import ClearRecipe
from broadsheet.teacher import Teacher


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def data(tmp_path, home) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def backend(monkeypatch) -> Scripted:
    """Answers in place of every model; the one that was tuned knows Rome alone."""
    made = Scripted(knows, shares)
    tuned = Scripted(lambda messages, n: "Rome" if "Italy" in str(messages) else "")
    teachers = {"default": Teacher(made, cache=False), "tuned": Teacher(tuned, cache=False)}
    monkeypatch.setattr("broadsheet.curate.clear._loaded", lambda name, *_: teachers[name])
    return made


def applied(data: str, out: Path, force: bool = False, **options) -> list[dict]:
    assert ClearRecipe(**options).run(Source(data), out, force=force).finished
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)] == [out.name]
    return rows_of(out)


def test_all_rows_are_written_as_the_library_gives_them_with_counts(data, backend, tmp_path, capsys):
    found = applied(data, tmp_path / "out.jsonl", method="clear(filter=0.5)")
    assert "6 rows: 4 kept, 2 dropped" in capsys.readouterr().err
    assert found == Clear("default", filter=0.5).fit_transform(ROWS)
    assert applied(data, tmp_path / "one.jsonl", method="clear(filter=0.5)", tasks=1) == found


def test_dropped_rows_are_left_out_and_corrected_ones_are_not(data, backend, tmp_path, capsys):
    found = applied(data, tmp_path / "out.jsonl", method="clear(filter=0.5)", tuned="tuned", drop=True)
    assert "6 rows: 4 kept, 1 corrected, 1 dropped" in capsys.readouterr().err
    expected = {**CAPITALS, "Kenya": None}
    assert [row["completion"] for row in found] == [capital for capital in expected.values() if capital]
    assert [row["action"] for row in found] == ["kept", "kept", "corrected", "kept", "kept"]


def test_what_is_there_is_neither_replaced_nor_done_again(data, backend, tmp_path):
    out = tmp_path / "out.jsonl"
    first = applied(data, out)
    with pytest.raises(InputError, match=r"out.jsonl exists; choose another --out, or --force"):
        applied(data, out, method="clear(filter=0.9)")
    assert rows_of(out) == first
    assert {row["action"] for row in applied(data, out, force=True, method="clear(filter=9.0)")} == {"dropped"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        applied(data, tmp_path / "folder")


def test_a_run_that_ends_in_the_middle_goes_on_there_under_the_same_settings(data, backend, tmp_path):
    def stops(messages, n):
        if "Peru" in str(messages):
            raise KeyboardInterrupt
        return knows(messages)

    out = tmp_path / "out.jsonl"
    backend.says = stops
    with pytest.raises(KeyboardInterrupt):
        applied(data, out, tasks=6)
    assert not out.exists()
    with pytest.raises(InputError, match=r"begun with other settings.k 5, now 2"):
        applied(data, out, tasks=6, method="clear(k=2)")
    backend.says, backend.asked = knows, []
    found = applied(data, out, tasks=6)
    assert [row["n"] for row in found] == list(range(6))
    assert not any("France" in text for text in backend.asked), "its part was done"
    assert any("Peru" in text for text in backend.asked)


def test_rows_that_are_none_are_named_or_skipped(data, backend, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"text": "x"}) + "\n")
    with pytest.raises(InputError, match=r"bad.jsonl:2: neither messages, nor prompt and completion.*--on-error skip"):
        applied(str(path), tmp_path / "out.jsonl")
    ClearRecipe().run(Source(str(path), on_error="skip"), tmp_path / "out2.jsonl")
    assert len(rows_of(tmp_path / "out2.jsonl")) == 1
    path.write_text("")
    with pytest.raises(InputError, match="no rows"):
        applied(str(path), tmp_path / "out3.jsonl")
    with pytest.raises(InputError, match="pydocs holds documents; expected rows with messages"):
        applied("pydocs", tmp_path / "out4.jsonl")


def test_a_small_model_scores_from_the_command_line(run, data, tiny_folder, tmp_path):
    out = tmp_path / "out.jsonl"
    code, _, err = run("apply", "clear", data, "--out", str(out), "--model", str(tiny_folder), "--by", "PMI")
    assert code == 0, err
    assert "6 rows: 3 kept, 3 dropped" in err
    assert rows_of(out)[0]["consistency"] is None
    assert "apply clear corpus.jsonl --out out.jsonl" in " ".join(run("apply", "clear", "--help")[1].split())
    for wrong, told in {
        ("--method", "clear(q=1)"): "Clear has no field 'q'",
        ("--by", "luck"): "expected one of confidence, PMI, log-probability",
        ("--nli", "nothing"): "unknown classifier 'nothing'",
    }.items():
        code, _, err = run("apply", "clear", data, "--out", str(tmp_path / "x"), "--model", str(tiny_folder), *wrong)
        assert code == 2
        assert told in " ".join(err.split())
        assert not (tmp_path / "x").exists()
