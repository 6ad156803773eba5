"""Steps, ranks and files: what is counted, what two ranks give, and what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import GopherQualityFilter

from broadsheet.console import InputError
from broadsheet.curate import CorpusReader, Ranks, ShardReader, ShardWriter, Step, Words
from broadsheet.curate.base import batches
from broadsheet.curate.files import Examples, in_order, once, parts, write_part
from broadsheet.curate.recipe import remedied

TEXTS = [f"Text number {i} of the corpus, the one that is read and that we have with us." for i in range(20)]


@pytest.mark.parametrize(
    ("size", "characters", "lengths"),
    [(3, 10**6, [3, 3, 1]), (7, 10**6, [7]), (3, 10, [2, 2, 2, 1]), (3, 1, [1] * 7), (1, 9, [1] * 7)],
)
def test_batches_end_at_so_many_documents_or_characters(size, characters, lengths):
    documents = [Document("a text", str(i)) for i in range(7)]
    found = list(batches(iter(documents), size, characters))
    assert [len(batch) for batch in found] == lengths
    assert [each for batch in found for each in batch] == documents
    assert not list(batches([], size))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS)))
    return str(path)


class Odd(Step):
    """Drops every third document, and shouts every fourth of the others."""

    name = "odd"

    def decide(self, documents: list[Document]) -> Sequence[bool | tuple[bool, str]]:
        found: list[bool | tuple[bool, str]] = []
        for document in documents:
            n = document.metadata["n"]
            if n % 3 == 0:
                found.append((False, "third"))
            elif n % 4 == 0:
                document.text = document.text.upper()
                found.append((True, "shouted"))
            else:
                found.append(True)
        return found


class Killed(Step):
    """Ends its process at a document, once."""

    def __init__(self, mark: Path, at: str) -> None:
        super().__init__()
        self.mark, self.at = mark, at

    def decide(self, documents: list[Document]) -> Sequence[bool]:
        if not self.mark.exists() and any(document.id == self.at for document in documents):
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [True] * len(documents)


class Waiting(Step):
    """Waits for what never comes, once it has left a mark; not where `folder/go` stands."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def decide(self, documents: list[Document]) -> Sequence[bool]:
        if not (self.folder / "go").exists():
            (self.folder / f"waits{os.getpid()}").touch()
            time.sleep(600)
        return [True] * len(documents)


class Full(Step):
    """Finds the disk full at a document."""

    def decide(self, documents: list[Document]) -> Sequence[bool]:
        if any(document.id == "d7" for document in documents):
            raise OSError(28, "No space left on device")
        return [True] * len(documents)


def steps(corpus: str, folder: Path, *more: Step) -> list[object]:
    return [CorpusReader(corpus), Odd(batch_size=3), *more, ShardWriter(folder)]


def written(folder: Path) -> list[tuple[str, str]]:
    return [(document.id, document.text) for document in in_order(folder)]


EXPECTED = [(f"d{i}", text.upper() if i % 4 == 0 else text) for i, text in enumerate(TEXTS) if i % 3]


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_ranks_give_what_one_gives_and_count_every_document(corpus, tmp_path, tasks):
    ranks = Ranks(steps(corpus, tmp_path / "kept"), tmp_path / "work", tasks)
    ranks.run()
    assert written(tmp_path / "kept") == EXPECTED
    read, odd, _ = ranks.counts()
    assert read.totals["documents"] == 20
    assert (odd.totals["total"], odd.totals["forwarded"]) == (20, 13)
    assert odd.by_reason("dropped") == {"third": 7}
    assert odd.by_reason("changed") == {"shouted": 3}
    assert [len(shown) for shown in odd.excerpts.values()] == [3, 3]
    assert odd.excerpts["third"][0] == ("d0", TEXTS[0])


def test_two_processes_and_datatroves_own_executor_give_the_same(corpus, tmp_path):
    ours = [CorpusReader(corpus), GopherQualityFilter(min_doc_words=5, language=Words()), ShardWriter(tmp_path / "one")]
    Ranks(ours, tmp_path / "work", 2, workers=2).run()
    theirs = [*ours[:2], ShardWriter(tmp_path / "two")]
    LocalPipelineExecutor(theirs, tasks=2, workers=1, logging_dir=str(tmp_path / "logs")).run()
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert len(written(tmp_path / "one")) == 20


def test_a_worker_that_is_killed_is_told_in_a_line_and_the_run_resumes(corpus, tmp_path):
    def ranks() -> Ranks:
        return Ranks(
            steps(corpus, tmp_path / "kept", Killed(tmp_path / "mark", "d10")), tmp_path / "work", 4, workers=2
        )

    with pytest.raises(InputError, match="a worker was killed"):
        ranks().run()
    assert "00002.jsonl" not in {path.name for path in (tmp_path / "kept").glob("*")}, "d10 is of rank 2"
    ranks().run()
    assert written(tmp_path / "kept") == EXPECTED


def test_an_interrupt_ends_all_workers_in_silence_and_the_run_resumes(corpus, tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.curate.test_curate_base import Ranks, Waiting, steps\n"
        "corpus, folder = sys.argv[1], Path(sys.argv[2])\n"
        "ranks = Ranks(steps(corpus, folder / 'kept', Waiting(folder)), folder / 'work', 4, workers=2)\n"
        "try:\n"
        "    ranks.run() if __name__ == '__main__' else None\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, corpus, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until = time.monotonic() + 120
        while len(list(tmp_path.glob("waits*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert error.splitlines() == ["stopped"]
    (tmp_path / "go").touch()
    subprocess.run(command, cwd=root, check=True)
    assert written(tmp_path / "kept") == EXPECTED


def test_a_whole_run_that_is_killed_resumes_without_doing_again_what_is_done(corpus, tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.curate.test_curate_base import Killed, Ranks, steps\n"
        "corpus, folder = sys.argv[1], Path(sys.argv[2])\n"
        "Ranks(steps(corpus, folder / 'kept', Killed(folder / 'mark', 'd10')), folder / 'work', 4).run()\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, corpus, str(tmp_path)]
    assert subprocess.run(command, cwd=root, check=False, capture_output=True).returncode == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.jsonl")}
    assert set(done) == {"00000.jsonl", "00001.jsonl"}
    assert subprocess.run(command, cwd=root, check=False, capture_output=True).returncode == 0
    assert written(tmp_path / "kept") == EXPECTED
    assert {name: (tmp_path / "kept" / name).stat().st_mtime_ns for name in done} == done


def test_a_rank_whose_disk_is_full_does_not_look_finished(corpus, tmp_path):
    ranks = Ranks([CorpusReader(corpus), Full(), ShardWriter(tmp_path / "kept")], tmp_path / "work", 4)
    with pytest.raises(InputError, match="No space left on device; make room and repeat"):
        ranks.run()
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"00000.jsonl", "00001.jsonl", "00002.jsonl"}
    assert not ranks.is_rank_completed(3), "d7 is of rank 3"
    with pytest.raises(InputError, match="missing or damaged: run rank 3 of 4 again"):
        ranks.counts()


def test_shards_are_read_back_as_they_were(corpus, tmp_path):
    Ranks([CorpusReader(corpus), ShardWriter(tmp_path / "one")], tmp_path / "work", 2).run()
    Ranks([ShardReader(tmp_path / "one"), ShardWriter(tmp_path / "two")], tmp_path / "again", 2).run()
    for name in ("00000.jsonl", "00001.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("line", [b"{half", b"\xff", b"12", b"[" * 100_000, b'{"no": "document"}'])
def test_a_shard_that_was_damaged_is_told_in_a_line(tmp_path, line):
    (tmp_path / "00000.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match=r"00000\.jsonl is damaged$"):
        list(in_order(tmp_path))


def test_files_are_named_after_metadata_and_an_empty_rank_leaves_an_empty_shard(tmp_path):
    documents = [Document("a", "1", metadata={"language": "de"}), Document("b", "2", metadata={"language": "en"})]
    list(ShardWriter(tmp_path, "${language}/${rank}.jsonl").run(documents, 3))
    assert {path.parent.name for path in tmp_path.glob("*/00003.jsonl")} == {"de", "en"}
    list(ShardWriter(tmp_path).run([], 5))
    assert (tmp_path / "00005.jsonl").read_text() == ""


def test_examples_of_a_step_that_fails_are_not_kept(tmp_path):
    def failing() -> Iterable[Document]:
        yield Document("a", "1", metadata={"n": 0})
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(Odd(Examples(tmp_path), batch_size=1).run(failing()))
    assert not list(tmp_path.iterdir())


def test_statistics_of_ranks_are_merged_whole_or_refused(tmp_path):
    for rank in (0, 1):
        write_part(tmp_path, rank, {"n": rank})
    assert parts(tmp_path, 2) == [{"n": 0}, {"n": 1}]
    (tmp_path / "00001.json").write_text("{")
    with pytest.raises(InputError, match="run rank 1 of 2 again"):
        parts(tmp_path, 2)


def test_what_lies_between_passes_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        assert once(tmp_path / "value.json", lambda: made.append(1) or [1, 2]) == [1, 2]
    assert made == [1]
    (tmp_path / "value.json").write_bytes(b"[1, ")
    with pytest.raises(InputError, match=r"value\.json is damaged"):
        once(tmp_path / "value.json", list)


def test_a_damaged_working_file_is_told_with_what_can_be_done(tmp_path):
    (tmp_path / "00000.jsonl").write_text("{half\n")

    @remedied()
    def reads() -> None:
        list(in_order(tmp_path))

    for _ in range(2):  # as often as it is called
        with pytest.raises(InputError, match=r"00000\.jsonl is damaged: start over with --force, or in another folder"):
            reads()
