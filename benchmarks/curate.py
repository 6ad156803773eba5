"""How fast documents are curated, beside the libraries that one would use: `python benchmarks/curate.py`.

1. *Signatures.* The same documents by datatrove's first MinHash pass with its own English words (spaCy) and with ours,
   by `Signatures`, and by rensa over the same words; and how many planted near copies each finds (bands of 14 × 8).
2. *Filters.* datatrove's own, with spaCy's words and with ours; and ours, which decide alike.
3. *Steps.* What a document costs in each step of a pipeline.
4. *Processes.* The same pipeline in one process, and in two.
5. *A profile.* Seconds of `broadsheet profile` for 100 MB of rows, with and without a search for near copies.
6. *A stream.* The most memory that a pipeline takes for a quarter of a stream, and for all of it.

Ratios are of processor time in turns. `--record` keeps the result as evidence/curate.benchmark.json. Needs
`pip install -e '.[curate,bench]'`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rensa
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from figures import ends, ratio, told

from broadsheet.curate import (
    AdaptedFilters,
    CorpusReader,
    Finish,
    Identify,
    Profiler,
    Ranks,
    Readable,
    ShardWriter,
    Signatures,
)
from broadsheet.curate.fineweb2 import UNADAPTED
from broadsheet.curate.languages.gopher import GopherQuality, GopherRepetition
from broadsheet.curate.minhash import simplified
from broadsheet.curate.running import without_logs
from broadsheet.curate.words import WORDS
from broadsheet.data import corpora
from broadsheet.page import evidence

SPACY, SAME, OURS = "datatrove, spaCy's words", "datatrove, our words", "broadsheet"


def documents(texts: Iterable[str]) -> list[Document]:
    return [Document(text, str(number), metadata={"language": "en"}) for number, text in enumerate(texts)]


def in_turns(
    ways: dict[str, Callable[[Sequence[str]], None]], texts: Sequence[str], rounds: int, few: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Processor seconds a document, of each way in each turn; those named in `few` get a tenth of the documents."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, do in ways.items():
            some = texts[turn % 10 :: 10] if name in few else texts
            begun = time.process_time()
            do(some)
            if turn:
                spent[name].append((time.process_time() - begun) / len(some))
    return spent


# Signatures


def signatures(texts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    def pass_one(kind: Any, **more: Any) -> Callable[[Sequence[str]], None]:
        def do(some: Sequence[str]) -> None:
            with tempfile.TemporaryDirectory() as folder:
                list(kind(folder, **more).run(iter(documents(some))) or ())

        return do

    def by_rensa(some: Sequence[str]) -> None:
        for text in some:
            rensa_digest(text)

    ways = {
        SPACY: pass_one(MinhashDedupSignature),
        "datatrove, our words": pass_one(MinhashDedupSignature, language=WORDS),
        "rensa, our words": by_rensa,
        OURS: pass_one(Signatures),
    }
    spent = in_turns(ways, texts, rounds, few=[SPACY])
    found = {OURS: recall(texts, _ours), "rensa, our words": recall(texts, rensa_digest)}
    return [
        {
            "way": name,
            "documents/s": ends([1 / each for each in spent[name]]),
            "times": ratio(spent[name], spent[OURS]),
            "recall": found.get(name),
        }
        for name in ways
    ]


def rensa_digest(text: str) -> np.ndarray:
    words = WORDS.word_tokenize(simplified(text))
    made = rensa.RMinHash(num_perm=112, seed=1)
    made.update([" ".join(words[i : i + 5]) for i in range(len(words) - 4)])
    return np.array(made.digest(), np.uint64)


def _ours(text: str) -> np.ndarray:
    return Signatures("unused").signatures([text])[0][0]


def recall(texts: Sequence[str], digest: Callable[[str], np.ndarray]) -> float:
    """The share of documents that meet their near copy, one in thirty words of which is another, in a band."""
    drawn, met, asked = random.Random(0), 0, 0
    for text in (each for each in texts if 60 <= len(each.split()) <= 400):
        words = text.split()
        for place in drawn.sample(range(len(words)), max(1, len(words) // 30)):
            words[place] = "elsewhere"
        one, other = digest(text).reshape(14, 8), digest(" ".join(words)).reshape(14, 8)
        met, asked = met + bool((one == other).all(1).any()), asked + 1
        if asked == 500:
            break
    return met / asked


# Filters and steps


def filters(texts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for kind, ours in ((GopherQualityFilter, GopherQuality), (GopherRepetitionFilter, GopherRepetition)):
        long = [text for text in texts if len(text.split()) >= 50]

        def judged(step: Any) -> Callable[[Sequence[str]], None]:
            return lambda some: [step.filter(each) for each in documents(some)] and None

        ways = {SPACY: judged(kind()), SAME: judged(kind(language=WORDS)), OURS: judged(ours(language=WORDS))}
        spent = in_turns(ways, long, rounds, few=[SPACY])
        rows += [
            {
                "filter": kind.__name__,
                "way": name,
                "documents/s": ends([1 / each for each in spent[name]]),
                "times": ratio(spent[name], spent[OURS]),
            }
            for name in ways
        ]
    return rows


def steps(texts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "readable": Readable(),
            "language": Identify(),
            "signature": Signatures(folder),
            "quality": AdaptedFilters({"en": UNADAPTED}),
            "finish": Finish(),
            "shard": ShardWriter(folder),
        }
        ways = {
            name: lambda some, step=step: list(step.run(iter(documents(some)))) and None for name, step in made.items()
        }
        spent = in_turns(ways, texts, rounds)
    return [{"step": name, "documents/s": ends([1 / each for each in spent[name]])} for name in made]


# Processes and streams


def pipeline(data: str, folder: Path, tasks: int, workers: int) -> None:
    line = [
        CorpusReader(data),
        Readable(),
        Identify(),
        Signatures(folder / "signatures"),
        AdaptedFilters({"en": UNADAPTED}),
    ]
    Ranks([*line, ShardWriter(folder / "kept")], folder / "work", tasks, workers, "pipeline").run()


def written(data: str, megabytes: float, folder: Path) -> Path:
    """The first documents of the data, as JSON lines."""
    path, size = folder / "rows.jsonl", 0
    with path.open("wb") as file:
        for document in corpora.load(data):
            size += file.write(json.dumps({"id": document.id, "text": document.text}).encode() + b"\n")
            if size > 1e6 * megabytes:
                break
    return path


def processes(rows: Path, rounds: int) -> list[float]:
    """How many times as fast two processes are as one, by the clock."""
    spent: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, seconds in spent.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                pipeline(str(rows), Path(folder), 2, workers)
                seconds.append(time.perf_counter() - begun)
    return ratio(spent[1], spent[2])


def profiles(rows: Path) -> dict[str, float]:
    """Seconds of processor time for 100 MB, by what is looked for."""
    found = {}
    for name, near in (("all", True), ("without near copies", False)):
        begun = time.process_time()
        Profiler(near=near).measure(str(rows))
        found[name] = 1e8 * (time.process_time() - begun) / rows.stat().st_size
    return found


def stream(texts: Sequence[str], count: int) -> list[dict[str, float]]:
    """The most memory of a process of its own, for a part of a stream and for all of it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for share in (count // 4, count):
            path = Path(folder) / "stream.jsonl"
            with path.open("w") as file:
                for number in range(share):
                    file.write(json.dumps({"id": str(number), "text": f"{texts[number % len(texts)]} {number}"}) + "\n")
            command = [sys.executable, __file__, "--memory", str(path)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"documents": share, **told})
    return rows


def memory(path: str) -> dict[str, float]:
    """The stream through a pipeline, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        line = [CorpusReader(path), Readable(), Signatures(Path(folder) / "signatures"), _Half(), ShardWriter(folder)]
        Ranks(line, Path(folder) / "work").run()
        seconds = time.perf_counter() - begun
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, "seconds": seconds}


class _Half(Readable):
    """Drops every second document, so that what is said of each counts too."""

    def decide(self, documents: list[Document]) -> list[Any]:
        return [True if int(each.id) % 2 else (False, "even") for each in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs:stdlib")
    parser.add_argument("--documents", type=int, default=4_000, help="of the data, in the timed parts")
    parser.add_argument("--stream", type=int, default=1_000_000, help="documents of the stream; 0: none")
    parser.add_argument("--whole", default="pydocs", help="the data of the profile, and of one process and two")
    parser.add_argument("--megabytes", type=float, default=20, help="of it, at most")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(memory(arguments.memory)))
        return
    texts = [document.text for document in corpora.load(arguments.data).take(arguments.documents, 0)]
    with without_logs():
        signed, filtered, single = (
            signatures(texts, arguments.rounds),
            filters(texts, arguments.rounds),
            steps(texts, arguments.rounds),
        )
    words = np.mean([len(text.split()) for text in texts])
    print(f"{len(texts):,} documents of {words:.0f} words; a second of processor time")
    for row in signed:
        found = f"; {row['recall']:.1%} of near copies found" if row["recall"] is not None else ""
        print(f"  {row['way']:26} {told(row['documents/s'], 0):28} {told(row['times'])} times the time of ours{found}")
    for row in filtered:
        print(f"  {row['filter']:24} {row['way']:26} {told(row['documents/s'], 0):26} {told(row['times'])}")
    for row in single:
        print(f"  {row['step']:26} {told(row['documents/s'], 0)}")
    with tempfile.TemporaryDirectory() as folder, without_logs():
        rows = written(arguments.whole, arguments.megabytes, Path(folder))
        twice = processes(rows, max(3, arguments.rounds // 2))
        print(f"two processes are {told(twice)} times as fast as one")
        described = profiles(rows)
    for name, seconds in described.items():
        print(f"a profile, {name}: {seconds:,.0f} s for 100 MB")
    flat = stream(texts, arguments.stream) if arguments.stream else []
    for row in flat:
        print(f"  {row['documents']:,} documents: {row['peak_mb']:,.0f} MB at most, {row['seconds']:,.0f} s")
    if arguments.record:
        result = {
            "signatures": signed,
            "filters": filtered,
            "steps": single,
            "processes": twice,
            "profile": described,
            "stream": flat,
            "command": " ".join(["python", *sys.argv]),
            "provenance": evidence.provenance(data=arguments.data, seed=0),
        }
        print(evidence.record("curate.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
