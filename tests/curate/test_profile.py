"""Profiles: what rows tell is counted, whatever their order and the ranks; what they do not tell is unknown."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.stats import DocStats
from hypothesis import given
from hypothesis import strategies as st
from kills import Killed, dying
from tokenizers.processors import TemplateProcessing

from broadsheet.console import InputError
from broadsheet.curate import Profiler
from broadsheet.curate.cards import columns
from broadsheet.curate.cards.card import card, declared_in, header, standing
from broadsheet.curate.cards.overlap import BenchmarkIndex
from broadsheet.curate.cards.records import CatalogueRecord
from broadsheet.curate.cards.steps import SURE, CharacterStats, Measure, RowReader, added, tables_of
from broadsheet.curate.datasets_survey import DIMENSIONS, Profile
from broadsheet.curate.languages.lid import Languages

GERMAN = (
    "Der Fluss fließt langsam durch die kleine Stadt, und am Abend sitzen die Menschen am Ufer. "
    "Sie erzählen einander, was sie am Tag gesehen haben, und gehen dann nach Hause zurück."
)
ENGLISH = (
    "The river runs slowly through the small town, and in the evening people sit on its banks. "
    "They tell each other what they have seen during the day, and then they go home again."
)
SPANISH = (
    "El río corre despacio por el pueblo pequeño, y por la tarde la gente se sienta en la orilla. "
    "Se cuentan lo que han visto durante el día, y después vuelven todos juntos a su casa."
)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def varied(text: str, number: int) -> str:
    """A text of its own, in the same language."""
    words = text.split()
    random.Random(number).shuffle(words)
    return " ".join(words)


@pytest.fixture
def corpus() -> list[dict[str, Any]]:
    """Sixty English rows and forty German ones; ten come again, and ten nearly."""
    rows = [
        {"text": varied(ENGLISH if i < 60 else GERMAN, i), "url": f"https://www.site{i % 3}.org/{i}"}
        for i in range(100)
    ]
    rows += [dict(rows[i]) for i in range(10)]
    return rows + [{**rows[i], "text": f"{rows[i]['text']} end"} for i in range(20, 30)]


def figures(profile: Profile) -> dict[str, Any]:
    return {name: value for name, value in profile.as_json().items() if name != "data"}


def test_figures_are_what_was_put_in(corpus, tmp_path):
    found = Profiler().measure(write(tmp_path / "a.jsonl", corpus))
    assert found.instances == 120
    assert found.total("bytes") == sum(len(row["text"].encode()) for row in corpus)
    assert found.total("characters") == sum(len(row["text"]) for row in corpus)
    assert found.exact == 10
    assert found.near == 20, "those that are equal among them"
    assert found.table("hosts") == Counter(row["url"][12:21] for row in corpus)
    english = sum(len(row["text"].encode()) for row in corpus if "river" in row["text"])
    assert found.languages == pytest.approx(
        {"en": english / found.total("bytes"), "de": 1 - english / found.total("bytes")}
    )
    assert found.language.codes == ("en", "de")
    assert found.quantiles("lengths") == pytest.approx(
        np.quantile([len(row["text"]) for row in corpus], [0.05, 0.5, 0.95]).tolist()
    )


def test_order_ranks_and_workers_change_nothing(corpus, tmp_path):
    one = figures(Profiler().measure(write(tmp_path / "a.jsonl", corpus)))
    random.Random(0).shuffle(corpus)
    data = write(tmp_path / "b.jsonl", corpus)
    benchmark = write(tmp_path / "items.jsonl", corpus[:7])
    assert figures(Profiler().measure(data)) == one
    assert figures(Profiler().measure(data, tasks=3)) == one
    both = Profiler().measure(data, tasks=2, workers=2, benchmark=benchmark)
    assert figures(both) == {**one, "overlap": figures(Profiler().measure(data, benchmark=benchmark))["overlap"]}


def test_the_counts_of_a_union_are_the_sums(corpus, tmp_path):
    parts = [
        Profiler().measure(write(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate((corpus[:50], corpus[50:]))
    ]
    whole = Profiler().measure(write(tmp_path / "whole.jsonl", corpus))
    assert added(each.tables for each in parts) == whole.tables


def test_a_corpus_of_one_language_never_becomes_multi_by_noise(tmp_path):
    """A language counts by its share of the text, not of the rows, and what is of none is no language."""
    rows = [{"text": varied(ENGLISH, i)} for i in range(97)] + [{"text": f"{GERMAN[:60]} {i}"} for i in range(8)]
    rows += [{"text": f"{i} 1234567890 " * 20} for i in range(20)] + [{"text": "ok"}, {"text": "def f(x): pass"}]
    profiler = Profiler(near=False)
    found = profiler.measure(write(tmp_path / "a.jsonl", rows))
    told = {each.dimension.name: each for each in profiler.fill(found)}
    assert found.table("languages")["de"] > 0.05 * 97, "of the rows it would be enough"
    assert found.languages["und"] > 0.05
    assert told["language"].value == "EN"
    assert "de 2" in told["language"].note, "it is told nevertheless"
    strict = Profiler(near=False, least=0.02)
    again = strict.measure(write(tmp_path / "b.jsonl", rows))
    assert {each.dimension.name: each.value for each in strict.fill(again)}["language"] == "Multi (2)"
    assert found.table("languages")["und"] == 22, "numbers, and what is too short to tell"


def test_a_language_that_is_not_sure_is_not_told(tmp_path):
    class Unsure(Languages):
        def best(self, texts):
            return [("de", SURE - 0.01 if "maybe" in text else SURE) for text in texts]

    step = Measure(tmp_path / "a", lid=Unsure())
    rows = [Document(f"{ENGLISH} {word}", word, metadata={"row": {}, "split": "all"}) for word in ("maybe", "surely")]
    list(step.run(rows))
    assert tables_of(tmp_path / "a", 1)["languages"] == {"de": 1, "und": 1}


def test_every_dimension_is_measured_declared_or_unknown(corpus, tmp_path):
    profiler = Profiler(near=False)
    found = profiler.measure(write(tmp_path / "a.jsonl", corpus))
    filled = profiler.fill(found, {"publisher": "Someone", "language": "EN", "size": "12 GB"})
    assert [each.dimension.number for each in filled] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    told = {each.dimension.name: each for each in filled}
    assert (told["publisher"].value, told["publisher"].how) == ("Someone", "declared")
    assert (told["domain"].value, told["domain"].how) == ("unknown", "unknown")
    assert (told["language"].value, told["language"].how) == ("Multi (2)", "measured")
    assert told["language"].note.endswith("declared: EN"), "what is measured stands"
    assert told["size"].value == f"{found.total('bytes') / 1000:.3g} KB"
    assert told["source"].value == "site0.org, site2.org, site1.org", "the most frequent first"
    for how in ("measured", "declared"):
        assert all(each.value != "unknown" for each in filled if each.how == how)
    assert [each.number for each in DIMENSIONS] == list(range(1, 21))


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["text"], columns.PRETRAINING),
        (["content", "url"], columns.PRETRAINING),
        (["instruction", "input", "output"], columns.INSTRUCTION),
        (["messages"], columns.INSTRUCTION),
        (["prompt", "completion"], columns.INSTRUCTION),
        (["prompt", "chosen", "rejected"], columns.PREFERENCE),
        (["prompt", "responses", "ranking"], columns.PREFERENCE),
        (["instruction", "response", "score"], columns.PREFERENCE),
        (["question", "choices", "answer"], columns.EVALUATION),
        (["Question", "Options", "Answer"], columns.EVALUATION),
        (["sentence1", "sentence2", "label"], columns.TRADITIONAL),
        (["tokens", "ner_tags"], columns.TRADITIONAL),
    ],
)
def test_columns_tell_the_family(names, family):
    assert columns.family(names) == family


@pytest.mark.parametrize(
    ("names", "method"),
    [
        ({"chosen", "rejected"}, "VO"),
        ({"prompt", "responses", "ranks"}, "SO"),
        ({"prompt", "completion", "rating"}, "SC"),
        ({"prompt", "completion"}, ""),
        ({"text", "score"}, ""),
    ],
)
def test_columns_tell_how_preferences_were_given(names, method):
    assert columns.preference(names) == method


def test_an_evaluation_tells_its_questions_and_categories(tmp_path):
    rows = [
        {
            "question": varied(ENGLISH, i),
            "options": ["a", "b"],
            "answer": 0,
            "subject": ["law", "art"][i % 2],
            "subtopic": f"s{i % 5}",
        }
        for i in range(20)
    ]
    profiler = Profiler(near=False)
    told = {each.dimension.name: each for each in profiler.fill(profiler.measure(write(tmp_path / "a.jsonl", rows)))}
    assert told["question type"].value == "OQ"
    assert told["evaluation method"].value == "CE"
    assert told["numbers of evaluation categories"].value == "2/5"
    assert told["evaluation category"].value == "art, law"
    assert told["focus"].how == "unknown", "nobody guesses it"
    assert told["size"].value == "20 instances"


def test_a_traditional_set_tells_splits_labels_and_what_train_shares_with_test(tmp_path):
    folder = tmp_path / "ner"
    folder.mkdir()
    made = [
        {
            "text": f"{varied(ENGLISH, i)} {i}",
            "entities": [{"start": 0, "label": "B-PER"}, {"label": "LOC"}, {"label": "O"}],
        }
        for i in range(30)
    ]
    signs = {"text": "!!!", "entities": []}
    write(folder / "train.jsonl", [*made[:20], signs])
    again = [
        {**made[0], "text": made[0]["text"].upper() + "!"},
        {**made[1], "text": made[1]["text"].replace(" 1", " 77")},
    ]
    write(folder / "test.jsonl", [*made[20:25], *again, signs])
    write(folder / "validation.jsonl", [*made[25:], made[2]])
    found = Profiler(near=False).measure(str(folder))
    told = {each.dimension.name: each for each in Profiler().fill(found)}
    assert found.family == columns.TRADITIONAL
    assert told["size"].value == "21/6/8/35"
    assert told["number of entity categories"].value == "2"
    assert told["number of entity categories"].note == "LOC, PER"
    assert told["number of relationship categories"].how == "unknown"
    assert found.shared == 3, "case, signs and numbers do not matter, and a row without words is no row shared"


@pytest.mark.parametrize(
    ("name", "row", "split"),
    [
        ("train.jsonl:3", {}, "train"),
        ("data/dev-00000.parquet:1", {}, "dev"),
        ("x/validation.csv:1", {}, "dev"),
        ("test_matched.jsonl:9", {}, "test"),
        ("org/name/test:4", {}, "test"),
        ("contest.jsonl:1", {}, "all"),
        ("latest.jsonl:1", {}, "all"),
        ("rows.jsonl:1", {"split": "Training"}, "train"),
        ("train.jsonl:1", {"split": "test"}, "test"),
    ],
)
def test_a_file_or_a_column_names_the_split(name, row, split):
    assert columns.split_of(name, row) == split


def test_the_name_of_a_document_is_no_split(tmp_path):
    for name in ("test.txt", "train.txt", "notes.txt"):
        (tmp_path / name).write_text(ENGLISH)
    assert Profiler(near=False).measure(str(tmp_path)).table("instances") == {"all": 3}
    read = RowReader("pydocs:stdlib")._document(0, "unittest.test", {"text": ENGLISH})
    assert read.metadata["split"] == "all"


def test_all_texts_of_a_row_count_where_none_is_the_text():
    row = {
        "id": "x",
        "messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}],
        "n": 3,
        "note": None,
    }
    assert columns.text_of(row, "text") == "One\nTwo"
    assert columns.text_of({"text": "Own", "other": "x"}, "text") == "Own"
    assert columns.text_of({"text": None, "other": "x"}, "text") == "x"


def test_what_rows_name_of_a_license_goes_behind_what_is_declared(tmp_path):
    rows = [{"text": ENGLISH, "license": name, "url": "https://a.org/x"} for name in ("MIT", "MIT", "GPL-3.0")]
    found = Profiler(near=False).measure(write(tmp_path / "a.jsonl", rows))
    seen = {each.dimension.name: each for each in Profiler().fill(found)}
    assert (seen["license"].value, seen["license"].how) == ("MIT, GPL-3.0", "measured")
    told = {each.dimension.name: each for each in Profiler().fill(found, {"license": "cc0-1.0", "source": "a crawl"})}
    assert (told["license"].value, told["license"].how, told["license"].note) == (
        "cc0-1.0", "declared", "rows name MIT, GPL-3.0",
    )  # fmt: skip
    assert (told["source"].value, told["source"].note) == ("a crawl", "rows name a.org")


def test_licenses_are_those_that_rows_name():
    assert columns.licenses({"license": "MIT"}, "") == {"MIT"}
    assert columns.licenses({"max_stars_repo_licenses": ["MIT", "BSD-3-Clause"]}, "") == {"MIT", "BSD-3-Clause"}
    assert columns.licenses({}, "# SPDX-License-Identifier: GPL-2.0-or-later\n") == {"GPL-2.0-or-later"}
    assert columns.licenses({"license": None, "licensed": "x"}, "the MIT license") == set()


def test_personal_data_is_counted(tmp_path):
    texts = [f"{ENGLISH} a.b@example.org and c@example.org", f"{ENGLISH} 8.8.8.8 but 10.0.0.1", ENGLISH]
    found = Profiler(near=False).measure(write(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
    assert found.table("e-mail addresses") == {"hits": 2, "documents": 1}
    assert found.table("public IP addresses") == {"hits": 1, "documents": 1}, "private ones are nobody's"


@given(st.text(min_size=0, max_size=200))
def test_characters_are_counted_as_datatrove_counts_them(text):
    ours, theirs = (kind("/tmp", []).extract_stats(Document(text, "a")) for kind in (CharacterStats, DocStats))
    assert ours == {name: theirs[name] for name in ours}


def test_rows_that_cannot_be_read_are_counted_and_pass_no_further(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "'
        + ENGLISH.encode()
        + b'"}\n[1]\n{"text": broken\n{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": " "}\n'
    )
    found = Profiler().measure(str(path))
    assert found.instances == 2
    assert found.total("unreadable") == 4
    assert found.total("empty") == 1
    assert found.total("languages") == 1, "an empty row is of no language"
    path.write_text("[1]\n")
    with pytest.raises(InputError, match=r"holds no row that can be read \(1: not a JSON object\)"):
        Profiler().measure(str(path))


def test_an_item_is_held_where_its_words_stand_in_a_row(tmp_path):
    words = [f"word{chr(97 + i)}" for i in range(20)]
    items = [" ".join(words), " ".join(words[:9]), " ".join(words[10:17]), " ".join(reversed(words))]
    index = BenchmarkIndex(write(tmp_path / "items.jsonl", [{"text": item} for item in items]))
    assert (index.items, index.short) == (4, 1)
    assert index.found_in("x " + " ".join(words[3:16]) + " y") == {0}, "13 of its words"
    assert index.found_in("x " + " ".join(words[3:15]) + " y") == set(), "12 are too few"
    assert index.found_in(" ".join(words[:9]).upper().replace(" ", ", ")) == {1}, "the whole of a short one"
    assert index.found_in(" ".join(words[:8])) == set()
    data = write(tmp_path / "a.jsonl", [{"text": items[0]}, {"text": ENGLISH}, {"text": items[0]}])
    found = Profiler(near=False).measure(data, benchmark=str(tmp_path / "items.jsonl")).overlap
    assert found is not None
    assert (found.held, found.documents, found.items, found.share) == (2, 2, 4, pytest.approx(2 / 3))
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no rows"):
        BenchmarkIndex(str(tmp_path / "none.jsonl"))


def test_tokens_are_counted_by_the_tokenizer_that_is_named(tiny_folder, tiny_tokenizer, corpus, tmp_path):
    """Without those that it puts before each text."""
    begins = tiny_tokenizer()
    mark = begins.eos_token
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{mark} $A", special_tokens=[(mark, begins.convert_tokens_to_ids(mark))]
    )
    begins.save_pretrained(tiny_folder)
    assert len(begins("a")["input_ids"]) == 1 + len(tiny_tokenizer()("a", add_special_tokens=False)["input_ids"])
    data = write(tmp_path / "a.jsonl", corpus[:5])
    found = Profiler(near=False).measure(data, tokenizer=str(tiny_folder))
    expected = sum(len(tiny_tokenizer()(row["text"], add_special_tokens=False)["input_ids"]) for row in corpus[:5])
    assert found.total("tokens") == expected
    [size] = [each for each in Profiler().fill(found) if each.dimension.name == "size"]
    assert f"{expected:,} tokens of {tiny_folder}" in size.note
    assert Profiler(near=False).measure(data).as_json()["tokens"] is None, "bytes are never made tokens"


def test_wrong_names_and_figures_are_refused(corpus, tmp_path):
    found = Profiler(near=False).measure(write(tmp_path / "a.jsonl", corpus[:3]))
    with pytest.raises(InputError, match="no dimension 'licence'; expected one of name, "):
        Profiler().fill(found, {"licence": "MIT"})
    with pytest.raises(InputError, match="no family 'books'"):
        Profiler().fill(found, family="books")
    for wrong in ({"least": 0.0}, {"least": 1.0}, {"words": 0}):
        with pytest.raises(InputError, match="expected a share"):
            Profiler(**wrong)


# The card and the command


def test_the_card_is_one_that_the_hub_reads(corpus, tmp_path):
    from huggingface_hub import DatasetCard

    profiler = Profiler()
    corpus[0] |= {"x|y": 1, "license": "GPL-3.0"}
    found = profiler.measure(write(tmp_path / "a|b.jsonl", corpus))
    assert "license" not in header(found, profiler.fill(found)), "what a row names is not the license of the whole"
    text = card(found, profiler.fill(found, {"license": "MIT & CC0-1.0", "name": "Rivers"}))
    read = DatasetCard(text).data.to_dict()
    assert read == {
        "language": ["en", "de"], "license": ["mit", "cc0-1.0"], "pretty_name": "Rivers",
        "size_categories": ["n<1K"], "task_categories": ["text-generation"],
    }  # fmt: skip
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (3, 5) for line in table), "no cell breaks its row"
    assert "| 11 | domain | unknown | unknown |" in table
    assert "# Rivers" in text
    assert "| `x\\|y` | 1 number |" in table


def test_a_folders_card_declares(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit, cc0-1.0]\npretty_name: Rivers\n---\n# Rivers\n")
    assert declared_in(tmp_path) == {"license": "mit & cc0-1.0", "name": "Rivers"}
    (tmp_path / "README.md").write_text("# no header\n")
    assert declared_in(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(InputError, match=r"the header of .* is no YAML"):
        declared_in(tmp_path)


def test_a_size_stands_beside_those_in_the_same_unit_alone(corpus, tmp_path):
    found = Profiler(near=False).measure(write(tmp_path / "a.jsonl", corpus))
    section = ("Pre-training Corpora",)
    records = [
        CatalogueRecord(str(i), "-", fields={"Size": size}, section=section)
        for i, size in enumerate(["1 KB", "2 KB", "2 TB", "1 T Tokens", "-"])
    ]
    assert standing(found, columns.PRETRAINING, records) == "larger than 2 of the catalogue's 3 of its family"
    assert standing(found, columns.PREFERENCE, records) == ""


def test_the_command_tells_writes_and_refuses(run, corpus, tmp_path, home):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "rows.jsonl", corpus)
    out = tmp_path / "card.md"
    status, told, error = run("profile", str(folder), "--declare", "license=mit", "--card", str(out))
    assert status == 0, error
    assert "Multi (2)" in told
    assert "declared" in told
    assert max(map(len, told.splitlines())) <= 80
    assert out.read_text().startswith("---\nlanguage:\n- en\n- de\nlicense: mit\n")
    before = out.read_text()
    status, _, error = run("profile", str(folder), "--card", str(out))
    assert (status, error.count("\n")) == (2, 1)
    assert "--force" in error
    assert out.read_text() == before
    status, told, _ = run("profile", str(folder), "--json", "--no-near")
    assert json.loads(told)["near duplicates"] is None
    assert json.loads(told)["instances"] == 120
    for wrong, message in (
        (["--declare", "license"], "expected NAME=VALUE"),
        (["--declare", "licence=mit"], "no dimension 'licence'"),
        (["--family", "books"], "no family 'books'"),
        (["--benchmark", str(tmp_path / "none.jsonl")], "no corpus at"),
    ):
        status, _, error = run("profile", str(folder), *wrong)
        assert (status, error.count("\n")) == (2, 1)
        assert message in error
    status, _, error = run("profile", str(tmp_path / "nothing.jsonl"))
    assert (status, error.count("\n")) == (2, 1)
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    assert run("profile", str(tmp_path / "bad.jsonl"))[0] == 2
    assert not list((home / "profiles").iterdir()), "nothing is left behind"


def test_a_profile_whose_earlier_work_is_damaged_says_so_and_then_starts_over(run, corpus, tmp_path, home):
    data = write(tmp_path / "rows.jsonl", corpus)
    run("profile", data)  # what is cached once is there
    with dying(home) as life:
        assert run("profile", data)[0] == 0
    with pytest.raises(Killed), dying(home, 2 * life.count // 3):
        run("profile", data)
    parts = [path for path in (home / "profiles").rglob("*.json") if path.stat().st_size]
    assert parts, "the kill left what can be resumed"
    for path in parts:
        path.write_bytes(path.read_bytes()[:5])
    status, _, error = run("profile", data)
    assert (status, error.count("\n")) == (2, 1)
    assert error.rstrip().endswith("run the same command again")
    status, told, error = run("profile", data)
    assert status == 0, error
    assert "Multi (2)" in told
