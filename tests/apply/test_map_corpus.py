"""The resumable map: whatever cuts it off, the finished file is that of a run nobody disturbed."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from broadsheet.apply.corpus import map_corpus
from broadsheet.console import InputError
from broadsheet.data.corpora import load

N = 1000


def describe(batch):
    """Results that tell which batch they were computed in, so that no other batches give the same file."""
    return [{"length": len(document.text), "first": batch[0].id} for document in batch]


def run(corpus, out, function=describe, **options):
    return map_corpus(load(corpus), out, function, **({"batch_size": 7, "settings": {"width": 3}} | options))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": "x" * (n % 90)}) + "\n" for n in range(N)))
    return path


@pytest.fixture
def undisturbed(tmp_path, corpus):
    run(corpus, tmp_path / "undisturbed.jsonl")
    return (tmp_path / "undisturbed.jsonl").read_bytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def cut_off(corpus, out, after=10, **options):
    """Begin a run that fails in the batch after `after` batches."""
    batches = iter(range(after))

    def function(batch):
        next(batches)
        return describe(batch)

    with pytest.raises(StopIteration):
        run(corpus, out, function, **options)


def test_one_line_per_document_in_order(tmp_path, corpus, capsys):
    out = tmp_path / "new" / "out.jsonl"
    summary = run(corpus, out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"d{n}" for n in range(N)]
    assert lines[8] == {"id": "d8", "length": 8, "first": "d7"}
    assert (summary.documents, summary.resumed, summary.finished) == (N, 0, True)
    assert summary.documents_per_second > 0
    assert names(out.parent) == ["out.jsonl"]
    assert capsys.readouterr().err.startswith(f"{out}: 1,000 documents, ")


SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_map_corpus import describe, run

def slowly(batch):
    time.sleep(0.001)
    return describe(batch)

run(sys.argv[1], Path(sys.argv[2]), slowly)
"""


def test_killed_again_and_again(tmp_path, corpus, undisturbed):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    generator = random.Random(0)
    reached = 0
    for kill in range(5):
        reached += generator.randrange(1, len(undisturbed) // 6)
        process = subprocess.Popen([sys.executable, "-c", SLOWLY, corpus, out, Path(__file__).parent])
        while process.poll() is None and not (partial.exists() and partial.stat().st_size >= reached):
            time.sleep(0.0005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
        if kill % 2:  # a kill can also fall into the middle of a line
            with partial.open("r+b") as file:
                file.truncate(partial.stat().st_size - generator.randrange(1, 60))
    summary = run(corpus, out)
    assert 0 < summary.resumed < N
    assert out.read_bytes() == undisturbed
    assert names(tmp_path) == ["corpus.jsonl", "out.jsonl", "undisturbed.jsonl"]


@pytest.mark.parametrize(
    "tail", [b"", b'{"id": "d70", "le', b"\0\0\0\0", b'{"id": "d70", "length": 1, "first": "d70"}\n']
)
def test_what_follows_the_last_whole_batch_is_computed_again(tmp_path, corpus, undisturbed, tail):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    cut_off(corpus, out)
    partial.write_bytes(partial.read_bytes() + tail)
    assert run(corpus, out).resumed == 70
    assert out.read_bytes() == undisturbed


def test_cut_off_between_the_last_line_and_the_end(tmp_path, corpus, undisturbed):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    cut_off(corpus, out)
    partial.write_bytes(undisturbed)
    assert run(corpus, out).resumed == N - N % 7
    assert out.read_bytes() == undisturbed


def test_other_batches_than_before_give_every_document_once(tmp_path, corpus):
    out = tmp_path / "out.jsonl"
    cut_off(corpus, out)
    assert run(corpus, out, batch_size=64).resumed == 64
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [f"d{n}" for n in range(N)]


def test_other_settings_are_refused_and_force_starts_over(tmp_path, corpus, undisturbed):
    out = tmp_path / "out.jsonl"
    cut_off(corpus, out, settings={"width": 4, "mode": "a"})
    with pytest.raises(InputError, match=r"begun with mode 'a', now None; width 4, now 3: .*--force"):
        run(corpus, out)
    assert run(corpus, out, force=True).resumed == 0
    assert out.read_bytes() == undisturbed


def test_another_corpus_is_refused(tmp_path, corpus):
    out = tmp_path / "out.jsonl"
    cut_off(corpus, out)
    before = corpus.read_bytes()
    rows = [json.loads(line) for line in before.splitlines()]
    turned = [row | {"text": row["text"].swapcase()} for row in rows]
    others = {
        "an id": before.replace(b'"d5"', b'"e5"'),
        "a row more": before + b'{"text": "one more"}\n',
        "other texts in place": "".join(json.dumps(row) + "\n" for row in turned).encode(),
    }
    assert len(others["other texts in place"]) == len(before), "name and size are the same"
    for what, content in others.items():
        corpus.write_bytes(content)
        with pytest.raises(InputError, match="begun with another corpus"):
            run(corpus, out)
        assert content != before, what
    corpus.write_bytes(before)
    assert run(corpus, out).resumed == 70


def test_lines_of_other_documents_are_refused(tmp_path, corpus):
    out = tmp_path / "out.jsonl"
    cut_off(corpus, out)
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes().replace(b'"d5"', b'"e5"'))
    with pytest.raises(InputError, match=r"1 of 70 lines of .* are not the corpus's documents; --force"):
        run(corpus, out)


def test_without_its_record_a_partial_file_is_refused(tmp_path, corpus):
    out = tmp_path / "out.jsonl"
    cut_off(corpus, out)
    (tmp_path / "out.jsonl.partial.json").unlink()
    with pytest.raises(InputError, match=r"partial\.json is missing or damaged"):
        run(corpus, out)


def test_a_finished_file_is_kept_unless_forced(tmp_path, corpus, undisturbed):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"out\.jsonl exists; choose another --out, or --force"):
        run(corpus, out)
    assert names(tmp_path) == ["corpus.jsonl", "out.jsonl", "undisturbed.jsonl"]
    cut_off(corpus, out, force=True)
    assert out.read_text() == "mine"  # until the new one is whole
    assert run(corpus, out).resumed == 70
    assert out.read_bytes() == undisturbed


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path, corpus):
    out = tmp_path / "out.jsonl"
    cut_off(corpus, out)
    out.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        run(corpus, out)
    assert out.read_text() == "mine"


def test_a_bad_line_can_be_skipped_on_the_second_call(tmp_path, corpus):
    out = tmp_path / "out.jsonl"
    lines = corpus.read_bytes().splitlines(keepends=True)
    lines[100] = b"not JSON\n"
    corpus.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"corpus\.jsonl:101: not JSON"):
        run(corpus, out)
    summary = map_corpus(load(corpus, on_error="skip"), out, describe, batch_size=7, settings={"width": 3})
    assert (summary.resumed, summary.documents) == (98, N - 1)


def test_ctrl_c_stops_after_the_batch(tmp_path, corpus, undisturbed, capsys):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    before = signal.getsignal(signal.SIGINT)

    def interrupted(batch):
        if batch[0].id == "d70":
            signal.raise_signal(signal.SIGINT)
        return describe(batch)

    summary = run(corpus, out, interrupted)
    assert (summary.documents, summary.finished) == (77, False)
    assert partial.read_bytes() == b"".join(undisturbed.splitlines(keepends=True)[:77])
    assert "stopped after 77 documents; the same command resumes there\n" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert run(corpus, out).resumed == 77
    assert out.read_bytes() == undisturbed


def test_a_second_ctrl_c_stops_at_once(tmp_path, corpus, request):
    # a shell starts its background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupted(batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out.jsonl", interrupted)


def test_outside_the_main_thread(tmp_path, corpus, undisturbed):
    thread = threading.Thread(target=run, args=(corpus, tmp_path / "out.jsonl"))
    thread.start()
    thread.join()
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed


def test_two_at_once(tmp_path, corpus, undisturbed):
    out = tmp_path / "out.jsonl"

    def intruding(batch):
        with pytest.raises(InputError, match="another broadsheet is writing"):
            run(corpus, out, force=True)
        return describe(batch)

    run(corpus, out, intruding, batch_size=500)
    assert len(out.read_bytes().splitlines()) == N


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from broadsheet.console import InputError
from test_map_corpus import run

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    run(sys.argv[1], Path(sys.argv[2]))
except InputError as error:
    print(error)
"""


def test_no_room_keeps_what_is_done(tmp_path, corpus, undisturbed):
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", FULL, corpus, out, Path(__file__).parent]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"cannot write {out}.partial: File too large; make room")
    assert said.count("\n") == 1
    assert (tmp_path / "out.jsonl.partial").stat().st_size == 5000
    assert run(corpus, out).resumed > 70
    assert out.read_bytes() == undisturbed


def test_nowhere_to_write(tmp_path, corpus):
    with pytest.raises(InputError, match=r"cannot write .*out: Not a directory"):
        run(corpus, corpus / "below" / "out")
    with pytest.raises(InputError, match="is a folder"):
        run(corpus, tmp_path)
    assert names(tmp_path) == ["corpus.jsonl"]


def test_an_empty_corpus_gives_an_empty_file(tmp_path, capsys):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out.jsonl"
    corpus.touch()
    assert run(corpus, out).finished
    assert out.read_bytes() == b""
    assert capsys.readouterr().err == f"{out}: empty, as the corpus holds no documents\n"


def test_odd_values_are_written_as_json(tmp_path):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out.jsonl"
    ids = ["\x00", "ünï\u2028\n", '"quoted"\\']
    corpus.write_text("".join(json.dumps({"id": id, "text": ""}) + "\n" for id in ids))
    values = [{"a": float("nan"), "b": float("-inf")}, {"a": 1e-300, "b": "é"}, {"a": "\udfff", "b": [True]}]

    def function(batch):
        return [values[ids.index(document.id)] for document in batch]

    cut_off_after = iter(range(2))
    with pytest.raises(StopIteration):
        run(corpus, out, lambda batch: (next(cut_off_after), function(batch))[1], batch_size=1)
    assert run(corpus, out, function, batch_size=1).resumed == 2
    lines = out.read_text("utf-8").split("\n")
    assert lines.pop() == ""
    expected = [{"a": None, "b": None}, *values[1:]]
    assert [json.loads(line) for line in lines] == [{"id": id} | value for id, value in zip(ids, expected, strict=True)]
    assert "ünï" in lines[1]


def test_a_function_that_drops_documents_is_caught(tmp_path, corpus):
    with pytest.raises(ValueError, match="got 6 results for 7 documents"):
        run(corpus, tmp_path / "out.jsonl", lambda batch: describe(batch)[1:])
