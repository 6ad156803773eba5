"""Wherever JSONL is read, the other formats and the hub are too, and bad rows can be skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rowfiles import write

from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.retrieval.beir import Beir
from broadsheet.embed.data import lexicon
from broadsheet.embed.data import rows as embed_rows
from broadsheet.embed.data.feedback import open_requests, read_examples
from broadsheet.embed.data.tasks import sts
from broadsheet.evaluate.loogle import LooGLE
from broadsheet.hear.data.rows import read_rows as read_audio
from broadsheet.hear.listening import Requests
from broadsheet.hear.training.plan import open_data, planned
from broadsheet.rank.prompts.formats import read_requests
from broadsheet.rank.training.rows import read_rows as read_lists
from broadsheet.trial.compare import read_results

FORMATS = ("jsonl", "parquet", "csv", "tsv")
REQUEST = {
    "query": {"text": "q", "qid": "7"},
    "candidates": [{"docid": "1", "score": 9.5, "doc": {"text": "first"}}],
}
AUDIO = {"task": "asr", "audio": ["a.wav"], "answer": "one"}
QUESTION = {"input": "Ada wrote it.", "qa_pairs": [{"Q": "Who?", "A": "Ada", "S": ["Ada wrote"]}], "title": "T"}


def relevance(path: Path) -> Any:
    """A BEIR folder whose three files have the format of `path`."""
    form = path.suffix
    write(path.parent / f"queries{form}", [{"_id": "q", "text": "red hats"}])
    write(path.parent / f"corpus{form}", [{"_id": "d", "title": "t", "text": "a red hat"}])
    (path.parent / "qrels").mkdir()
    path.rename(path.parent / "qrels" / f"test{form}")
    return [(each.query, each.ids, each.labels) for each in Beir(path.parent).lists("test")]


SITES: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "corpora": ({"id": "a", "text": "One, two."}, lambda path: list(corpora.load(path))),
    "pairs": (
        {"question": "q", "answer": "p", "negatives": ["n", "m"]},
        lambda path: embed_rows.pairs(embed_rows.open_data(str(path)), 0),
    ),
    "sentence pairs": ({"sentence1": "a", "sentence2": "b", "score": 2.5}, sts),
    "word pairs": ({"word1": "hat", "word2": "cap", "lang1": "en"}, lambda path: lexicon.load(str(path))),
    "word pairs of a command": (
        {"word1": "hat", "word2": "cap"},
        lambda path: embed_rows.word_pairs(embed_rows.open_data(str(path))),
    ),
    "candidates": (
        {"query": "q", "pos": ["p"], "neg": ["n"], "teacher_scores": [0.5, -1.0], "id": "r"},
        lambda path: read_examples(open_requests(str(path))),
    ),
    "lists": ({"query": "q", "documents": ["a", "b"], "labels": [0.0, 1.0]}, read_lists),
    "rank_llm": (REQUEST, read_requests),
    "qrels": ({"query-id": "q", "corpus-id": "d", "score": 2}, relevance),
    "audio": (AUDIO, lambda path: [row.audio for row in read_audio(path)]),
    "audio by stage": (AUDIO, lambda path: [stage.rows for stage in planned(open_data(str(path)))]),
    "requests": (
        {"audio": ["a.wav"], "instruction": "What?", "id": "r"},
        lambda path: [(row.id, row.text, row.metadata) for row in Requests(path, "stop")],
    ),
    "LooGLE": (QUESTION, lambda path: list(LooGLE().read(str(path)))),
    "results": ({"id": "i", "score": 0.25}, lambda path: read_results(path).scores),
}


@pytest.mark.parametrize("site", SITES)
def test_every_site_reads_every_format_alike(tmp_path: Path, site: str) -> None:
    row, read_site = SITES[site]
    found = []
    for form in FORMATS:
        folder = tmp_path / form
        folder.mkdir()
        found.append(repr(read_site(write(folder / f"rows.{form}", [row]))).replace(str(folder), "FOLDER"))
    assert found[0] not in ("[]", "{}")
    assert len(set(found)) == 1


@pytest.mark.parametrize("site", sorted(SITES.keys() - {"qrels"}))
def test_every_site_reads_the_hub(hub: SimpleNamespace, site: str) -> None:
    row, read_site = SITES[site]
    hub.rows = [row]
    spec: Any = "hf:org/name:test"
    assert read_site(spec)
    assert hub.asked == ["org/name"]


SKIPPING: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "pairs": (
        {"query": "q", "positive": "p"},
        lambda spec: embed_rows.pairs(embed_rows.open_data(spec, on_error="skip"), 0),
    ),
    "word pairs": (
        {"word1": "hat", "word2": "cap"},
        lambda spec: embed_rows.word_pairs(embed_rows.open_data(spec, on_error="skip")),
    ),
    "sentence pairs": ({"a": "x", "b": "y", "score": 1}, lambda spec: sts(spec, on_error="skip")),
    "candidates": ({"query": "q", "pos": ["p"]}, lambda spec: read_examples(open_requests(spec, "skip"))),
    "lists": ({"query": "q", "documents": ["a", "b"], "labels": [0, 1]}, lambda spec: read_lists(spec, "skip")),
    "rank_llm": (REQUEST, lambda spec: read_requests(spec, "skip")),
    "audio": (AUDIO, lambda spec: read_audio(spec, on_error="skip")),
    "LooGLE": (QUESTION, lambda spec: list(LooGLE().read(spec, on_error="skip"))),
}


@pytest.mark.parametrize("site", SKIPPING)
def test_bad_rows_are_skipped_and_counted_everywhere(
    tmp_path: Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row, read_site = SKIPPING[site]
    path = write(tmp_path / "a.jsonl", [row, {"nothing": "of use"}, row])
    with path.open("a") as file:
        file.write("{broken\n")
    assert len(read_site(str(path))) == 2
    assert f"{path}: 2 bad rows skipped (1 × " in capsys.readouterr().err
    path.write_text("{broken\n")
    if site not in ("rank_llm", "LooGLE", "candidates"):
        with pytest.raises(InputError, match=r"holds no .* that can be used"):
            read_site(str(path))
