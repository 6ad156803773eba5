"""Vectors on disk: whatever cuts the work off, and however many processes share it, the folder is the same."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
from kills import Killed, dying
from sentence_transformers import SentenceTransformer

from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.embed.base import Embedder, embedder
from broadsheet.embed.modules import encode
from broadsheet.search.encoding import streaming
from broadsheet.search.encoding.folder import header
from broadsheet.search.encoding.streaming import Encoded, encode_corpus, identity, read_manifest, read_vectors

N, CHUNK = 26, 4
Encode = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def tiny(tiny_model: Any, tiny_tokenizer: Any) -> Embedder:
    return embedder((tiny_model(), tiny_tokenizer()), prompts={"document": "of: "})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [{"id": f"d{n}", "text": f"text {n} " + "word " * (n % 5)} for n in range(N)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run(tiny: Embedder, path: Path, tmp_path: Path) -> Callable[..., Encoded]:
    def run(out: str = "out", model: SentenceTransformer = tiny, **options: Any) -> Encoded:
        return encode_corpus(model, corpora.load(path), tmp_path / out, **({"chunk": CHUNK} | options))

    return run


@pytest.fixture
def undisturbed(run: Any, tmp_path: Path) -> dict[str, bytes]:
    run("undisturbed")
    return contents(tmp_path / "undisturbed")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], list[int]]:
    """`watched(see)`: `see(number)` is called before each chunk is encoded; the list holds those that were."""

    def watch(see: Callable[[int], None]) -> list[int]:
        real, done = encode.encode_texts, []

        def encode_texts(*given: Any, **options: Any) -> torch.Tensor:
            see(len(done))
            done.append(len(done))
            return real(*given, **options)

        monkeypatch.setattr(encode, "encode_texts", encode_texts)
        return done

    return watch


def process(
    tiny: Embedder, path: Path, out: Path, shard: tuple[int, int] | None = None, kill: int = -1, threads: int = 1
) -> None:
    """What a process of `processes` does; it kills itself before chunk `kill`."""
    torch.set_num_threads(threads)  # on which the last bit depends
    real, done = encode.encode_texts, []

    def encode_texts(*given: Any, **options: Any) -> torch.Tensor:
        if len(done) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(len(done))
        return real(*given, **options)

    encode.encode_texts = encode_texts
    encode_corpus(tiny, corpora.load(path), out, chunk=CHUNK, **({"shard": shard} if shard else {}))


def processes(given: list[tuple[Any, ...]]) -> list[int | None]:
    """The exit codes of new processes that run beside each other; no fork of this one, which threads do not survive."""
    new = forks.context()
    threads = {"threads": torch.get_num_threads()}
    started = [new.Process(target=process, args=each, kwargs=threads) for each in given]
    for each in started:
        each.start()
    for each in started:
        each.join()
    return [each.exitcode for each in started]


class Stop(Exception):  # noqa: N818
    pass


def stopping(at: int) -> Callable[[int], None]:
    """Raises before chunk `at`, the first time."""
    raised = []

    def see(number: int) -> None:
        if number == at and not raised:
            raised.append(number)
            raise Stop

    return see


def test_the_folder_holds_each_documents_vector_in_order(run: Any, tiny: Embedder, tmp_path: Path) -> None:
    done = run(texts=True)
    assert (done.documents, done.resumed, done.shard_finished, done.finished) == (N, 0, True, True)
    assert names(tmp_path) == ["corpus.jsonl", "out"]
    assert names(done.out) == ["ids.jsonl", "manifest.json", "vectors.npy"]
    ids, vectors = read_vectors(done.out)
    assert ids == [f"d{n}" for n in range(N)]
    assert isinstance(vectors, np.memmap)
    assert vectors.dtype == np.float32
    texts = [json.loads(line)["text"] for line in (done.out / "ids.jsonl").read_text().splitlines()]
    expected = tiny.encode_document(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)
    assert np.abs(vectors - tiny.encode(texts)).max() > 1e-3  # without the prompt
    np.testing.assert_array_equal(np.load(done.out / "vectors.npy"), vectors)
    manifest = read_manifest(done.out)
    assert manifest["documents"] == N
    assert manifest["dimensions"] == 32
    assert manifest["dtype"] == "float32"
    assert manifest["prompt"] == "of: "
    assert manifest["texts"]
    assert not manifest["normalized"]
    assert manifest["embedder"] == identity(tiny)
    assert manifest["corpus"] == corpora.load(tmp_path / "corpus.jsonl").identity()


def test_settings_reach_the_vectors(run: Any, tiny: Embedder) -> None:
    half = run(dtype="float16", normalize=True, prompt="").out
    _, vectors = read_vectors(half)
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=2e-3)
    expected = tiny.encode(["text 0 "], normalize_embeddings=True)[0]
    np.testing.assert_allclose(vectors[0], expected, atol=1e-3)
    assert read_manifest(half)["normalized"]
    assert read_manifest(half)["prompt"] is None


def test_any_sentence_transformer_will_do(run: Any, tiny: Embedder) -> None:
    plain = SentenceTransformer(modules=list(tiny), prompts={"document": "of: "}, device="cpu")
    _, expected = read_vectors(run("ours").out)
    _, found = read_vectors(run("plain", plain).out)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_it_goes_on_after_any_file_operation_that_was_its_last(
    run: Any, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "dies"
    folder.mkdir()
    with dying(folder) as life:
        run("dies/alive")
    assert contents(folder / "alive") == undisturbed
    assert life.count > 10
    resumed = set()
    for at in range(life.count):
        out = folder / f"out{at}"
        with pytest.raises(Killed), dying(folder, at):
            run(f"dies/out{at}")
        if out.exists():  # it died clearing away
            with pytest.raises(InputError, match="exists"):
                run(f"dies/out{at}")
        else:
            with pytest.raises(InputError, match=r"no manifest\.json"):
                read_vectors(out)
            resumed.add(run(f"dies/out{at}").resumed)
        assert contents(out) == undisturbed
        assert not out.with_name(f"out{at}.partial").exists()
    assert resumed >= {0, N}


@pytest.mark.parametrize("at", range(N // CHUNK + 1))
def test_whole_chunks_are_kept_and_no_more_is_done_again(
    run: Any, undisturbed: dict[str, bytes], watched: Any, tmp_path: Path, at: int
) -> None:
    done = watched(stopping(at))
    with pytest.raises(Stop):
        run()
    assert names(tmp_path) == ["corpus.jsonl", "out.partial", "out.partial.lock", "undisturbed"]
    with pytest.raises(InputError, match="not finished: run the same command again"):
        read_vectors(tmp_path / "out")
    [begun] = tmp_path.glob("out.partial/*/vectors.npy")
    with pytest.raises((ValueError, EOFError)):  # nothing takes it for an array
        np.load(begun)
    assert run().resumed == CHUNK * at
    assert contents(tmp_path / "out") == undisturbed
    assert len(done) == -(-N // CHUNK)


def test_a_killed_process_is_gone_on_with(
    run: Any, undisturbed: dict[str, bytes], tiny: Embedder, path: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        assert processes([(tiny, path, tmp_path / "out", None, 2)]) == [-signal.SIGKILL]
    assert run().resumed == 6 * CHUNK
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("torn", ["vectors.npy", "ids.jsonl"])
def test_what_a_kill_left_half_written_is_written_again(
    run: Any, undisturbed: dict[str, bytes], watched: Any, tmp_path: Path, torn: str
) -> None:
    watched(stopping(3))
    with pytest.raises(Stop):
        run()
    [file] = tmp_path.glob(f"out.partial/*/{torn}")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 9)
    assert run().resumed == 2 * CHUNK
    assert contents(tmp_path / "out") == undisturbed


def test_a_header_written_too_early_is_taken_back(run: Any, watched: Any, tmp_path: Path) -> None:
    watched(stopping(3))
    with pytest.raises(Stop):
        run()
    [begun] = tmp_path.glob("out.partial/*/vectors.npy")
    with begun.open("r+b") as file:  # as if killed between the header and the manifest
        file.write(header((3 * CHUNK, 32), "float32"))
    assert len(np.load(begun)) == 3 * CHUNK
    watched(stopping(1))
    with pytest.raises(Stop):
        run()
    with pytest.raises((ValueError, EOFError)):
        np.load(begun)


def test_the_first_ctrl_c_stops_after_the_chunk(
    run: Any, undisturbed: dict[str, bytes], watched: Any, tmp_path: Path, capsys: Any
) -> None:
    watched(lambda number: signal.raise_signal(signal.SIGINT) if number == 1 else None)
    done = run()
    assert (done.documents, done.shard_finished, done.finished) == (2 * CHUNK, False, False)
    assert "stopped after 8 documents; the same call resumes there" in capsys.readouterr().err
    assert run().resumed == 2 * CHUNK
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("shards", [2, 3, 9])
def test_shards_make_the_same_folder_in_any_order(
    run: Any, undisturbed: dict[str, bytes], tmp_path: Path, shards: int
) -> None:
    order = [*range(1, shards), 0]
    for part in order:
        done = run(shard=(part, shards))
        assert done.finished == (part == order[-1])
        assert (tmp_path / "out").exists() == done.finished
        assert not done.finished or names(tmp_path) == ["corpus.jsonl", "out", "undisturbed"]
    assert contents(tmp_path / "out") == undisturbed


def test_shards_run_beside_each_other(
    undisturbed: dict[str, bytes], tiny: Embedder, path: Path, tmp_path: Path
) -> None:
    assert processes([(tiny, path, tmp_path / "out", (part, 3)) for part in range(3)]) == [0, 0, 0]
    assert contents(tmp_path / "out") == undisturbed


def test_what_was_cut_off_while_shards_were_put_together_is_done_again(
    run: Any, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(shard=(0, 2))
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "write_manifest", written_once := Once(streaming.write_manifest))
        with pytest.raises(Stop):
            run(shard=(1, 2))
    assert written_once.calls == 2
    assert not (tmp_path / "out").exists()
    assert run(shard=(0, 2)).finished
    assert contents(tmp_path / "out") == undisturbed


class Once:
    """A function that raises Stop the second time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise Stop
        return self.function(*given)


def test_two_processes_do_not_write_one_shard(run: Any, watched: Any, tmp_path: Path) -> None:
    def again(number: int) -> None:
        for force in (False, True):
            with pytest.raises(InputError, match="another broadsheet is writing shard-0-of-1"):
                run(force=force)
        with pytest.raises(InputError, match="another broadsheet is writing shard-0-of-1"):
            run(normalize=True, force=True)

    watched(again)
    assert run().finished


def test_a_finished_folder_is_replaced_only_by_force_and_only_at_the_end(
    run: Any, watched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run()
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="exists; choose another folder, or --force"):
        run()
    with monkeypatch.context(), pytest.raises(Stop):
        watched(stopping(2))
        run(normalize=True, force=True)
    assert contents(tmp_path / "out") == before
    monkeypatch.undo()
    assert run(normalize=True).resumed == 2 * CHUNK  # without force it goes on
    assert read_manifest(tmp_path / "out")["normalized"]
    assert names(tmp_path) == ["corpus.jsonl", "out"]


def test_another_thing_of_that_name_is_left_alone(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run().finished  # an empty folder is none
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="exists and has no manifest"):
            run("taken", force=force)
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalize": True}, "normalize False, now True"),
        ({"chunk": 5}, "chunk 4, now 5"),
        ({"shard": (0, 2)}, "shards 1, now 2"),
        ({"dtype": "float16"}, "dtype 'float32', now 'float16'"),
    ],
)
def test_work_begun_otherwise_is_not_gone_on_with(
    run: Any, watched: Any, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    watched(stopping(2))
    with pytest.raises(Stop):
        run()
    with pytest.raises(InputError, match=said):
        run(**change)


def test_another_embedder_or_corpus_is_told_from_the_first(
    run: Any, watched: Any, tiny: Embedder, tiny_model: Any, tiny_tokenizer: Any, path: Path, monkeypatch: Any
) -> None:
    watched(stopping(2))
    with pytest.raises(Stop):
        run()
    monkeypatch.undo()
    other = embedder((tiny_model(seed=1), tiny_tokenizer()), prompts={"document": "of: "})
    with pytest.raises(InputError, match="begun with another embedder"):
        run(model=other)
    text = path.read_text()
    path.write_text(text.replace('"d5"', '"e5"'))  # of the same size
    with pytest.raises(InputError, match="begun with another corpus"):
        run()
    path.write_text(text[:200])
    with pytest.raises(InputError, match="another corpus"):
        run()


def test_a_fingerprint_follows_from_weights_and_settings_alone(
    tiny: Embedder, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def found(seed: int = 0, pooling: Any = "mean", **settings: Any) -> str:
        return str(identity(embedder((tiny_model(seed), tiny_tokenizer()), pooling, **settings))["fingerprint"])

    assert found() == found() == found(spec="elsewhere") == identity(tiny)["fingerprint"]
    others = [
        found(1),
        found(pooling="last-token"),
        found(layer=1),
        found(normalize=True),
        found(append=["<|im_end|>"]),
    ]
    assert len({found(), *others}) == 6


def test_numbers_that_are_none_are_not_written(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = encode.encode_texts

    def spoiled(value: float) -> Encode:
        def encode_texts(*given: Any, **options: Any) -> torch.Tensor:
            vectors = real(*given, **options)
            vectors[1, 3] = value
            return vectors

        return encode_texts

    monkeypatch.setattr(encode, "encode_texts", spoiled(1e5))
    with pytest.raises(InputError, match="'d1' is not finite; float16 holds up to 65,504"):
        run("half", dtype="float16")
    monkeypatch.setattr(encode, "encode_texts", spoiled(float("nan")))
    with pytest.raises(InputError, match="'d1' is not finite; take a model in float32"):
        run()


def test_a_full_disk_is_said_and_gone_on_from(
    run: Any, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(streaming.os, "fsync", fsync)
    with pytest.raises(InputError, match="No space left on device; make room and repeat"):
        run()
    monkeypatch.undo()
    assert run().resumed > 0
    assert contents(tmp_path / "out") == undisturbed


class Drawn(corpora.Corpus):
    """A corpus that counts the documents drawn from it."""

    drawn = 0

    def __init__(self, count: int) -> None:
        super().__init__("drawn", "stop", "text", "id")
        self.length = count

    def __iter__(self) -> Iterator[Document]:
        for n in range(self.length):
            self.drawn += 1
            yield Document(str(n), f"text {n}")

    def identity(self) -> dict[str, Any]:
        return {"drawn": self.length}

    def fingerprint(self) -> str:
        return "drawn"

    def describe(self) -> str:
        return "drawn"

    def _rows(self) -> Iterator[Any]:
        return iter(())


def test_one_chunk_is_in_memory_at_a_time(tiny: Embedder, watched: Any, tmp_path: Path) -> None:
    corpus = Drawn(30)
    drawn: list[int] = []
    watched(lambda _: drawn.append(corpus.drawn))
    encode_corpus(tiny, corpus, tmp_path / "out", chunk=8)
    assert drawn == [8, 16, 24, 30]


def test_no_documents_make_an_empty_folder(tiny: Embedder, tmp_path: Path) -> None:
    encode_corpus(tiny, Drawn(0), tmp_path / "out")
    ids, vectors = read_vectors(tmp_path / "out")
    assert ids == []
    assert vectors.shape == (0, 32)
    assert np.load(tmp_path / "out" / "vectors.npy").shape == (0, 32)


def test_damage_is_named(run: Any, tmp_path: Path) -> None:
    out = run().out
    with (out / "ids.jsonl").open("a") as file:
        file.write('{"id": "one too many"}\n')
    with pytest.raises(InputError, match="27 ids and vectors of shape"):
        read_vectors(out)
    (out / "vectors.npy").write_bytes((out / "vectors.npy").read_bytes()[:-5])
    with pytest.raises(InputError, match="is damaged"):
        read_vectors(out)
    (out / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(InputError, match="is not of the format"):
        read_vectors(out)
    with pytest.raises(InputError, match="give a folder of encoded vectors"):
        read_vectors(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shard": (2, 2)}, "shard 2 of 2; expected 0 to 1 of 2"),
        ({"dtype": "int8"}, "expected float32 or float16"),
        ({"chunk": 0}, "expected 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(run: Any, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(**wrong)
    assert names(tmp_path) == ["corpus.jsonl"]
