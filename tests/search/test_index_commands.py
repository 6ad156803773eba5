"""An index that embeds: what is embedded and when, and `broadsheet index` and `search` as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import Killed, dying

from broadsheet import cli, embed
from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.search import Change, VectorIndex, store, updating, vectorindex

WORDS = ("zebra", "matrix", "socket", "thread", "string", "window", "planet", "garden", "bridge", "violin")
TEXTS = [f"{word.capitalize()}: all about the {word}, and how a {word} is used" for word in WORDS]


def documents(texts: list[str] = TEXTS) -> list[Document]:
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


@pytest.fixture
def embedder(tiny_model: Callable, tiny_tokenizer: Callable):
    """Mean of the token vectors of a random model, with a prompt for each side."""
    prompts = {"query": "about ", "document": "text: "}
    return embed.embedder((tiny_model(), tiny_tokenizer()), "mean", prompts=prompts, include_prompt=False)


@pytest.fixture
def saved(embedder, tmp_path: Path) -> Path:
    folder = tmp_path / "embedder"
    embedder.save(str(folder))
    return folder


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The texts that are embedded as documents, in order."""
    from broadsheet.embed.modules import encode

    texts: list[str] = []
    plain = encode.encode_texts

    def count(embedder, batch, **options):
        if options.get("prompt") == "text: ":
            texts.extend(batch)
        return plain(embedder, batch, **options)

    monkeypatch.setattr(encode, "encode_texts", count)
    return texts


def by_content(text: str) -> torch.Tensor:
    """A vector that hangs on the text alone."""
    return torch.randn(32, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def corpus_file(path: Path, texts: list[str], start: int = 0) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts, start)), "utf-8"
    )
    return path


# Embedding


def test_vectors_are_the_embedders_and_queries_get_their_prompt(tmp_path, embedder):
    index = VectorIndex.create(tmp_path / "index", embedder)
    index.add(documents())
    stored = index._contents.gather(np.arange(len(TEXTS)))
    np.testing.assert_allclose(stored, embedder.encode_document(TEXTS, normalize_embeddings=True), atol=1e-5)
    query = embedder.encode_query(["zebra"], normalize_embeddings=True)
    expected = np.argsort(-(query @ stored.T)[0])[:3]
    assert [hit.id for hit in index.search(["zebra"], 3)[0]] == [f"d{i}" for i in expected]


def test_hybrid_search_fuses_both_orders(tmp_path, embedder):
    index = VectorIndex.create(tmp_path / "index", embedder)
    index.add(documents())
    dense, words = (index.search(["violin used"], 10, mode=mode)[0] for mode in ("dense", "bm25"))
    scores = {hit.id: 1 / (60 + place) for place, hit in enumerate(dense, start=1)}
    for place, hit in enumerate(words, start=1):
        scores[hit.id] = scores.get(hit.id, 0) + 1 / (60 + place)
    fused = index.search(["violin used"], 4, mode="hybrid")[0]
    assert len(fused) == 4
    assert [hit.score for hit in fused] == pytest.approx(sorted(scores.values(), reverse=True)[:4])
    assert all(hit.score == pytest.approx(scores[hit.id]) for hit in fused)


def test_a_grown_corpus_embeds_only_what_is_new_or_changed(tmp_path, embedder, counted):
    index = VectorIndex.create(tmp_path / "index", embedder)
    index.add(documents())
    assert len(counted) == len(TEXTS)
    counted.clear()
    grown = [*documents(), Document("new", "Something new about rivers")]
    grown[2] = Document("d2", "Socket: another text")
    assert VectorIndex.open(tmp_path / "index", embedder).add(grown) == Change(added=1, changed=1, unchanged=9)
    assert counted == ["Socket: another text", "Something new about rivers"]
    whole = VectorIndex.create(tmp_path / "whole", embedder)
    whole.add(grown)
    for mode in ("dense", "bm25", "hybrid"):
        found, wanted = (
            {hit.id: hit.score for hit in VectorIndex.open(folder, embedder).search(["river socket"], 11, mode=mode)[0]}
            for folder in (tmp_path / "index", tmp_path / "whole")
        )
        if mode != "hybrid":
            assert found.keys() == wanted.keys()
        if mode == "dense":
            assert found == pytest.approx(wanted, abs=1e-5)


def test_a_killed_embedding_is_gone_on_with_even_if_the_corpus_changed(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(vectorindex, "CHUNK", 2)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    counted: list[str] = []

    def quickly(embedder, batch, **options):
        counted.extend(batch)
        return torch.nn.functional.normalize(torch.stack([by_content(text) for text in batch]))

    monkeypatch.setattr("broadsheet.embed.modules.encode.encode_texts", quickly)
    texts = TEXTS[:6]
    index = VectorIndex.create(tmp_path / "index", embedder)
    index.add([Document("old", "An old text")])
    base = tmp_path / "base"
    shutil.copytree(tmp_path / "index", base)
    with dying(tmp_path / "index") as life:
        VectorIndex.open(tmp_path / "index", embedder).add(documents(texts))
    changed = [*documents(texts)[1:], Document("last", "A last text")]
    resumed = 0
    for at in range(life.count):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(base, folder)
        with dying(folder, at), pytest.raises(Killed):
            VectorIndex.open(folder, embedder).add(documents(texts))
        assert sorted(VectorIndex.open(folder).ids()) in (["old"], [*(f"d{i}" for i in range(len(texts))), "old"])
        begun = (updating.pending(folder, store.read(folder)) / updating.DOCUMENTS).exists()
        counted.clear()
        again = VectorIndex.open(folder, embedder)
        told = again.add(changed, prune=True)
        assert told.finished == (len(texts) if begun else 0)
        resumed += begun and 0 < len(counted) <= len(texts) - 2
        live = np.flatnonzero(~again._contents.dead)
        found = dict(again._contents.texts(live))
        assert found == {each.id: each.text for each in changed}
        np.testing.assert_allclose(again._contents.gather(live), quickly(embedder, list(found.values())), atol=1e-6)
        shutil.rmtree(folder)
    assert resumed > 0


def test_another_embedder_is_refused(tmp_path, embedder, tiny_model, tiny_tokenizer):
    index = VectorIndex.create(tmp_path / "index", embedder, source="runs/first")
    index.add(documents())
    other = embed.embedder((tiny_model(seed=1), tiny_tokenizer()), "mean")
    wide = embed.embedder((tiny_model(hidden_size=64), tiny_tokenizer()), "mean")
    with pytest.raises(InputError, match=r"built with runs/first .fingerprint [0-9a-f]{16}., this embedder is another"):
        VectorIndex.open(index.folder, other)
    with pytest.raises(InputError, match=r"64 dimensions; .*holds 32"):
        VectorIndex.open(index.folder, wide)
    with pytest.raises(InputError, match="got 5 dimensions; the embedder has 32"):
        VectorIndex.create(tmp_path / "new", embedder, dimensions=5)
    assert len(VectorIndex.open(index.folder, embedder)) == 10


def test_damaged_vectors_are_embedded_again(tmp_path, embedder, counted):
    index = VectorIndex.create(tmp_path / "index", embedder)
    index.add(documents())
    before = index._contents.gather(np.arange(10))
    path = index.folder / index.manifest.segments[0].vectors.name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="bytes where"):
        VectorIndex.open(index.folder)
    counted.clear()
    mended = VectorIndex.rebuild(index.folder, embedder)
    assert len(counted) == 10
    np.testing.assert_allclose(mended._contents.gather(np.arange(10)), before, atol=1e-5)
    assert VectorIndex.open(index.folder, embedder).check().recall == 1


# Commands


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `broadsheet …` in this process; (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["broadsheet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_index_grow_delete_prune_check_and_search(run, tmp_path, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, out = corpus_file(tmp_path / "corpus.jsonl", TEXTS), tmp_path / "index"
    status, said, _ = run("index", data, "--embedder", "embedder", "--out", out)
    assert status == 0
    assert "10 added" in said
    assert "10 documents, 32 dimensions" in said
    corpus_file(data, [*TEXTS, "A river, and how it is used"])
    monkeypatch.chdir("/")  # the index knows where its embedder lies
    status, said, _ = run("index", data, "--out", out, "--json")
    assert status == 0
    assert json.loads(said)["change"] == {
        "added": 1,
        "changed": 0,
        "unchanged": 10,
        "removed": 0,
        "empty": 0,
        "finished": 0,
    }
    status, said, _ = run("index", out, "--delete", "d3", "--delete", "d4")
    assert status == 0
    assert "2 deleted" in said
    corpus_file(data, TEXTS[:6])
    status, said, _ = run("index", data, "--out", out, "--prune", "--check")
    assert status == 0
    assert "5 removed" in said
    assert "recall@5 1.000 against exact search" in said
    status, said, _ = run("search", out, "zebra", "--mode", "bm25", "--top-k", 3)
    assert status == 0
    assert said.split()[0] == "1"
    assert " d0 " in said
    assert "Zebra: all about the zebra" in said
    for mode in ([], ["--mode", "dense"], ["--mode", "hybrid"], ["--exact"]):
        status, said, err = run("search", out, "how is a zebra used", "--json", "--top-k", 4, *mode)
        assert status == 0, err
        found = json.loads(said)
        assert len(found) == 4
        assert set(found[0]) == {"id", "score", "text"}


def test_more_than_there_are_is_said_and_no_word_in_common_too(run, tmp_path, saved):
    out = tmp_path / "index"
    run("index", corpus_file(tmp_path / "corpus.jsonl", TEXTS), "--embedder", saved, "--out", out)
    status, said, err = run("search", out, "zebra", "--top-k", 50, "--mode", "dense")
    assert status == 0
    assert len(said.splitlines()) == 10
    assert "asked for 50" in err
    assert "10 documents" in err
    status, said, err = run("search", out, "qwertz", "--mode", "bm25")
    assert (status, said) == (0, "")
    assert "no document shares a word" in err


def test_rebuild_is_one_command(run, tmp_path, saved):
    out = tmp_path / "index"
    run("index", corpus_file(tmp_path / "corpus.jsonl", TEXTS), "--embedder", saved, "--out", out)
    name = json.loads((out / store.NAME).read_text())["segments"][0]["vectors"]["name"]
    (out / name).write_bytes(b"no vectors")
    status, _, err = run("search", out, "zebra")
    assert status == 2
    assert f"{out / name} is damaged" in err
    assert f"`broadsheet index {out} --rebuild`" in err
    status, said, _ = run("index", out, "--rebuild", "--check")
    assert status == 0
    assert "recall@9 1.000" in said
    assert run("search", out, "zebra")[0] == 0


@pytest.fixture(scope="module")
def indexed(tmp_path_factory, tiny_model: Callable, tiny_tokenizer: Callable) -> Path:
    """A folder with an index, its embedder and two others, and corpora of which some cannot be indexed."""
    folder = tmp_path_factory.mktemp("indexed")
    corpus_file(folder / "corpus.jsonl", TEXTS)
    (folder / "empty.jsonl").touch()
    corpus_file(folder / "blank.jsonl", ["", " "])
    (folder / "twice.jsonl").write_text('{"id": "d0", "text": "a"}\n{"id": "d0", "text": "b"}\n')
    (folder / "bad.jsonl").write_text("no JSON\n")
    (folder / "full").mkdir()
    (folder / "full/letter").touch()
    for name, settings in (("embedder", {}), ("other", {"seed": 3}), ("wide", {"seed": 3, "hidden_size": 64})):
        embed.embedder((tiny_model(**settings), tiny_tokenizer()), "mean").save(str(folder / name))
    index = VectorIndex.create(folder / "index", embed.load(folder / "embedder"), source=str(folder / "embedder"))
    index.add(documents())
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere", "words"], "no index at nowhere"),
        (["search", ".", "words"], "holds no index.json"),
        (["search", "index", " "], "empty query"),
        (["search", "index", "half \udcff"], "is not UTF-8"),
        (["search", "corpus.jsonl", "words"], "is no index"),
        (["search", "index", "words", "--embedder", "other"], "this embedder is another"),
        (["search", "index", "words", "--embedder", "wide"], "64 dimensions"),
        (["search", "index", "words", "--embedder", "nowhere/at-all/x"], "nowhere/at-all/x"),
        (["index", "corpus.jsonl", "--out", "index", "--embedder", "other"], "this embedder is another"),
        (["index", "corpus.jsonl"], "give --out DIR"),
        (["index", "index"], "got nothing to do"),
        (["index", "index", "--prune"], "give --out DIR"),
        (["index", "index", "--prune", "--check"], "--prune needs documents"),
        (["index", "corpus.jsonl", "--check"], "is no index"),
        (["index", "empty.jsonl", "--out", "new"], "holds no documents with text"),
        (["index", "empty.jsonl", "--out", "index", "--prune"], "holds no documents with text"),
        (["index", "blank.jsonl", "--out", "new"], "holds no documents with text"),
        (["index", "twice.jsonl", "--out", "index"], "'d0' comes twice"),
        (["index", "bad.jsonl", "--out", "new"], "bad.jsonl:1"),
        (["index", "corpus.jsonl", "--out", "full"], "not empty"),
        (["index", "corpus.jsonl", "--out", "corpus.jsonl"], "is a file"),
        (["index", "index", "--delete", "d0", "--delete", "d77"], "holds no document 'd77'"),
        (["index", "nowhere.jsonl", "--out", "new"], "no corpus at nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(run, tmp_path, indexed, arguments, message, monkeypatch):
    shutil.copytree(indexed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = (Path("index") / store.NAME).read_bytes()
    status, said, err = run(*arguments)
    assert status == 2
    assert said == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("broadsheet: ")
    assert message in line
    assert (Path("index") / store.NAME).read_bytes() == before
    assert not Path("new").exists()


def test_a_search_by_words_loads_no_model(tmp_path, embedder):
    VectorIndex.create(tmp_path / "index", embedder).add(documents())
    code = (
        "import sys; from broadsheet import cli\n"
        f"sys.argv = ['broadsheet', 'search', {str(tmp_path / 'index')!r}, 'zebra', '--mode', 'bm25']\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'faiss'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Zebra" in done.stdout
    assert done.stderr.strip().endswith("[]")
