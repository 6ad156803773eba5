"""Records of a catalogue of datasets: read, written, found; sizes keep their unit, `PL` is no Polish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.curate.cards.records import (
    CatalogueRecord,
    DatasetSize,
    as_row,
    catalogue,
    parse_catalogue,
    parse_language,
    parse_record,
    parse_size,
    search,
)

PAGE = """# A catalogue

- [News](#news)

## Evaluation Datasets
Prose - **about** them.

### Exam

- **First Exam  2023-X | Not | ZH | HG & MC | [Paper](https://a.org/p.pdf) | [Github1](https://b.org/x?row=0)**
  - Publisher: Someone et al.
  - Size: 1,034 instances
  - License: -
  - Question Type: SQ & OQ
- **Second   2019 | EN & PL | [Website] www.c.org
 | [Dataset](https://c.org)**
  - Train/Dev/Test/All Size: 33.4K/-/605k/-

### Platform

- **[A link](https://d.org)**
  - [Another](https://e.org): it

## Preference Datasets

- **Third - | All | Multi (7) | CI**
"""


def test_a_page_is_read_record_by_record_whatever_stands_between():
    first, second, third = parse_catalogue(PAGE)
    assert first.name == "First Exam"
    assert first.released == "2023-X"
    assert first.public == "Not"
    assert first.construction == ("HG", "MC")
    assert first.links == {"Paper": "https://a.org/p.pdf", "Github1": "https://b.org/x?row=0"}
    assert first.section == ("Evaluation Datasets", "Exam")
    assert first.size == DatasetSize(1034, "instances")
    assert (second.name, second.released, second.public, second.construction) == ("Second", "2019", "", ())
    assert second.links == {"Website": "www.c.org", "Dataset": "https://c.org"}, "over two lines"
    assert second.size is None, "its last size is not told"
    assert second.languages.programming
    assert second.languages.codes == ("en",)
    assert (third.name, third.released, third.section) == ("Third", "-", ("Preference Datasets",))


TEXTS = st.text("abcXYZ 0189.-_()/&", min_size=1, max_size=12).map(str.strip).filter(lambda text: text and text != "-")
WORDS = st.text("abcXYZ0189", min_size=1, max_size=8)


@given(
    st.builds(
        CatalogueRecord,
        name=WORDS,
        released=st.sampled_from(["2020-7", "2009-X", "1999", "-"]),
        language=st.sampled_from(["EN", "Multi (12)", "EN & ZH", "PL"]),
        public=st.sampled_from(["All", "Partial", "Not", ""]),
        construction=st.lists(st.sampled_from(["HG", "MC", "CI"]), unique=True).map(tuple),
        links=st.dictionaries(WORDS, WORDS.map("https://{}".format), max_size=3),
        fields=st.dictionaries(WORDS, TEXTS, max_size=4),
    )
)
def test_what_is_written_is_read_again(record):
    assert parse_record(record.render()) == record
    [again] = parse_catalogue(f"## One\n\n{record.render()}\n")
    assert again.fields == record.fields


@pytest.mark.parametrize("text", ["", "plain", "- **Name without a date | EN**", "  - Size: 3"])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(InputError, match="expected a record"):
        parse_record(text)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("2.5 TB", 2.5e12, "bytes"),
        ("251 GB", 2.51e11, "bytes"),
        ("35.8 MB", 3.58e7, "bytes"),
        ("900 KB", 9e5, "bytes"),
        ("12 B", 12, "bytes"),
        ("30.4 T Tokens", 3.04e13, "tokens"),
        ("55 B Tokens", 5.5e10, "tokens"),
        ("1.5B tokens", 1.5e9, "tokens"),
        ("12M instances", 1.2e7, "instances"),
        ("1,234,567 instances", 1234567, "instances"),
        ("5K+ instances", 5e3, "instances"),
        ("59996 Files", 59996, "files"),
        ("9 datasets", 9, "datasets"),
        ("605k", 6.05e5, "instances"),
        ("364", 364, "instances"),
    ],
)
def test_a_size_keeps_its_unit_and_prefixes_are_decimal(text, value, unit):
    found = parse_size(text)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.unit == unit
    assert parse_size(str(found)) == found


@given(st.integers(0, 10**18).map(float), st.sampled_from(["bytes", "tokens", "instances"]))
def test_sizes_are_read_as_they_were_written(value, unit):
    found = parse_size(str(DatasetSize(value, unit)))
    assert found is not None
    assert found.unit == unit
    assert found.value == pytest.approx(value, rel=1e-9)


def test_a_size_is_written_with_the_largest_unit_that_fits():
    assert str(DatasetSize(1e6, "bytes")) == "1 MB"
    assert str(DatasetSize(999_999, "bytes")) == "999.999 KB"
    assert str(DatasetSize(1e9, "tokens")) == "1B tokens"
    assert str(DatasetSize(1034, "instances")) == "1,034 instances"


def test_no_size_is_none_and_nonsense_is_refused():
    assert parse_size("-") is None
    assert parse_size(" ") is None
    for text in ("many", "3 4", "1.2.3 GB"):
        with pytest.raises(InputError, match="expected a number and a unit"):
            parse_size(text)


@pytest.mark.parametrize(
    ("text", "codes", "multilingual", "count", "programming"),
    [
        ("EN", ("en",), False, 1, False),
        ("EN & ZH", ("en", "zh"), True, 2, False),
        ("Multi (100)", (), True, 100, False),
        ("Multi", (), True, None, False),
        ("PL", (), False, 0, True),
        ("Multi & PL", (), True, None, True),
        ("-", (), False, 0, False),
    ],
)
def test_languages_are_read_and_code_is_no_language(text, codes, multilingual, count, programming):
    found = parse_language(text)
    assert (found.codes, found.multilingual, found.count, found.programming) == (
        codes,
        multilingual,
        count,
        programming,
    )
    assert str(found) == text


def test_the_catalogue_that_ships_reads_as_it_was_written():
    records = catalogue()
    assert len(records) == 470
    assert len({each.section[0] for each in records}) == 5
    assert not any({"Source", "Focus"} & set(each.fields) for each in records), "facts alone"
    for each in records:
        assert parse_record(each.render(), each.section) == each
    assert sum(each.license == "-" for each in records) > 100, "what is not known is not guessed"


def test_each_record_of_the_oracle_that_ships_is_the_oracles():
    cases = json.loads((Path(__file__).parents[1] / "oracles" / "datasets_survey.json").read_text())["cases"]
    known = {each.name: each for each in catalogue()}
    asked = [case["expected"] for case in cases if case["input"]["fn"] == "parse_record"]
    assert asked
    for expected in asked:
        found = known[expected["name"]]
        assert sorted(found.links) == expected["links"]
        assert found.fields == {k: v for k, v in expected["fields"].items() if k not in ("Source", "Focus")}


def test_a_query_finds_names_first_and_then_the_newest():
    old, new, named = (
        CatalogueRecord("One", "2019-12", fields={"License": "MIT", "Domain": "Law"}),
        CatalogueRecord("Two", "2023-2", fields={"License": "MIT", "Domain": "law"}),
        CatalogueRecord("LawBench", "-"),
    )
    assert search([old, new, named], "law") == [named, new, old]
    assert search([old, new, named], "LAW mit") == [new, old]
    assert search([old, new, named], "law gpl") == []


def test_a_record_as_json_leaves_out_what_is_empty():
    assert as_row(CatalogueRecord("A", "-", links={"Paper": "x"})) == {
        "name": "A", "released": "-", "language": "-", "links": {"Paper": "x"},
    }  # fmt: skip


def test_the_command_searches_and_narrows(run, tmp_path):
    status, told, _ = run("datasets", "medical", "--license", "apache", "--most", "1")
    assert status == 0
    assert "Apache-2.0" in told.splitlines()[0]
    assert " more: --most " in told.splitlines()[-1]
    rows = json.loads(run("datasets", "--language", "pl", "--most", "500", "--json")[1])
    assert rows
    assert all("PL" in row["language"] for row in rows)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    rows = json.loads(run("datasets", "--catalogue", str(page), "--json")[1])
    assert {row["name"] for row in rows} == {"First Exam", "Second", "Third"}
    status, _, error = run("datasets", "no such dataset at all")
    assert (status, error) == (2, "broadsheet: no record holds all of that; try fewer words\n")
    page.write_bytes(b"\xff\xfe\x00")
    status, _, error = run("datasets", "--catalogue", str(page))
    assert status == 2
    assert error.count("\n") == 1
