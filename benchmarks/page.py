"""The daily page: does its search find a known paper, do topics gain by what is liked, and how long does a screen take.

    python benchmarks/page.py
    python benchmarks/page.py --part time --papers 5000 --requests 100
    python benchmarks/page.py --record

1. *A known paper.* What we say of each of the page's papers, in words of ours, is looked for among all of them; the
   right answer is that paper. Documents are what is left without these words, as abstracts are not shipped: titles
   alone, and titles with the topics of our table (ours too, and so easier than an abstract would be). By words
   (SQLite's BM25), by meaning, and by both as the page fuses them: the mean reciprocal rank, and how often the paper
   comes first, and among the first five, with a bootstrap over papers. Others: `--meaning NAME`, more than once.
2. *Topics.* Each stage of the page stands for a topic, its description for the search. Of its papers three, drawn by a
   seed, are called right, and the first two of others that the search finds wrong; how many of the next five are of
   the stage? By the search alone, by likeness alone, by both as the page fuses them; and with a classifier that is
   fitted on those five papers alone, in the place of the page's.
3. *Time.* `broadsheet serve` in a process of its own, over made-up papers, asked over one connection on loopback:
   until the last byte, in ms, the median and the 95th percentile; what the process took of the processor, which
   others on the machine hardly change; and kB. A screen is to take 50 ms and 60 kB at most.
   Texts are drawn word by word, as often as words are used in real ones; vectors are drawn at random: what is looked
   for is encoded, what is found by meaning means nothing. Five papers are called such as more are wanted of.
"""

from __future__ import annotations

import argparse
import http.client
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote_plus, urlsplit

import numpy as np
import psutil

from broadsheet.daily import meaning, search, store
from broadsheet.daily.meaning import Vectors
from broadsheet.daily.records import Fact, Listing, Record
from broadsheet.daily.store import Store, Topic
from broadsheet.page import evidence, papers
from broadsheet.trial.stats import Interval, interval

MINILM = "resource:minilm"
MILLISECONDS, KILOBYTES = 50, 60  # of a screen, at most
SIZE = 384  # dimensions of MiniLM's vectors
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "en", "or", "al")]
NAMES = ("Ada Ito", "Béla Nagy", "Chen Wei", "Dana Okafor", "Émile Roux", "Farid Aziz", "Greta Lind", "Hugo Sá")


def told(found: Interval, digits: int = 3) -> str:
    return f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


# A known paper


def known_papers(embedders: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each kind of document, length of what is looked for, and way to search."""
    page = papers.page()
    kinds: dict[str, Callable[[papers.Paper], str]] = {
        "titles": lambda paper: "", "titles and topics": lambda paper: " ".join(paper.topics),
    }  # fmt: skip
    looked_for = {
        "our first sentence": [plain(paper.summary.split(". ")[0]) for paper in page],
        "our whole summary": [plain(paper.summary) for paper in page],
    }
    for kind, words in kinds.items():
        said = {paper.arxiv: words(paper) for paper in page}
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(store, "ours", lambda one, said=said: said.get(one, "")),
            patch.object(meaning, "ours", lambda one, said=said: said.get(one, "")),
        ):
            made = Store(Path(folder) / "page.sqlite")
            ways = searches(made, embedders)
            for length, queries in looked_for.items():
                ranks: dict[str, list[int]] = {}
                for way, find in ways.items():
                    ranks[way] = [place(paper.arxiv, find(query)) for paper, query in zip(page, queries, strict=True)]
                    yield {"documents": kind, "query": length, "way": way, **measures(ranks[way], ranks["words"])}


def searches(made: Store, embedders: Sequence[str]) -> dict[str, Callable[[str], list[str]]]:
    """Ways to search a store, by name: a text to papers, the best first."""

    def by_words(text: str) -> list[str]:
        return ids(search.find(made, text, 200))

    ways: dict[str, Callable[[str], list[str]]] = {"words": by_words}
    for name in embedders:
        vectors = Vectors(made, name)
        vectors.update()

        def by_both(text: str, vectors: Vectors = vectors) -> list[str]:
            return ids(search.find(made, text, 200, meaning=vectors))

        ways |= {f"meaning ({name})": partial(vectors.nearest, limit=200), f"both ({name})": by_both}
    return ways


def plain(text: str) -> str:
    """A text's words alone, so that nothing in it is read as a condition."""
    return " ".join(re.findall(r"\w+(?:[-’']\w+)*", text))


def place(wanted: str, found: Sequence[str]) -> int:
    """From 1; 0 where it is not found."""
    return found.index(wanted) + 1 if wanted in found else 0


def ids(hits: Sequence[search.Hit]) -> list[str]:
    return [hit.article.id for hit in hits]


def measures(ranks: Sequence[int], by_words: Sequence[int]) -> dict[str, Any]:
    """What comes of the places at which papers are found, and by how much it beats the search by words."""
    inverse, words = (np.array([1 / rank if rank else 0.0 for rank in some]) for some in (ranks, by_words))
    found = {
        "mrr": interval(inverse, binary=False),
        "first": interval([float(rank == 1) for rank in ranks], binary=False),
        "first five": interval([float(0 < rank <= 5) for rank in ranks], binary=False),
        "mrr over words": interval(inverse - words, binary=False),
    }
    return {name: [each.estimate, each.low, each.high] for name, each in found.items()}


# Topics


def topics(right: int = 3, wrong: int = 2, seeds: int = 12, first: int = 5) -> Iterator[dict[str, Any]]:
    """A row for each way: of the first papers after those that were judged, the share that is of the stage."""
    stages: dict[str, list[str]] = {}
    for paper in papers.page():
        stages.setdefault(paper.stage, []).append(paper.arxiv)
    about = {stage.id: stage.about for stage in papers.stages()}
    shares: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Store(Path(folder) / "page.sqlite")
        vectors = Vectors(made, MINILM)
        vectors.update()
        every = [each.id for each in made.latest(1000)]
        matrix = vectors._embedder.encode_document([meaning.text_of(each) for each in made.articles(every)])
        for stage, own in stages.items():
            if len(own) < right + 2:
                continue
            by_meaning = ids(search.find(made, about[stage], 200, meaning=vectors))
            by_words = ids(search.find(made, about[stage], 200))
            for seed in range(seeds):
                likes = tuple(random.Random(seed).sample(own, right))
                dislikes = tuple(each for each in by_meaning if each not in own)[:wrong]
                fitted = of_classifier(every, matrix, likes, dislikes)
                topic = Topic("", about[stage], likes, dislikes)
                alone = Topic("", "", likes, dislikes)
                orders = {
                    "search, words": by_words,
                    "search, words and meaning": by_meaning,
                    "likeness, words": ids(search.followed(made, alone, 200)),
                    "likeness, meaning": ids(search.followed(made, alone, 200, meaning=vectors)),
                    "likeness, a fitted classifier": fitted,
                    "fused, words": ids(search.followed(made, topic, 200)),
                    "fused, words and meaning": ids(search.followed(made, topic, 200, meaning=vectors)),
                    "fused, with the fitted classifier": search.fused([by_meaning, fitted]),
                }
                left = len(set(own) - {*likes, *dislikes})
                for way, order in orders.items():
                    rest = [each for each in order if each not in (*likes, *dislikes)][:first]
                    shares.setdefault(way, []).append(sum(each in own for each in rest) / min(first, left))
    kept = [stage for stage, own in stages.items() if len(own) >= right + 2]
    clusters = [stage for stage in kept for _ in range(seeds)]
    for way, values in shares.items():
        found = interval(values, binary=False, clusters=clusters)
        yield {"way": way, "share": [found.estimate, found.low, found.high], "stages": len(kept)}


def of_classifier(every: Sequence[str], matrix: np.ndarray, likes: Sequence[str], dislikes: Sequence[str]) -> list[str]:
    """Papers by a logistic regression that is fitted on the judged ones alone."""
    from sklearn.linear_model import LogisticRegression

    rows = [every.index(each) for each in (*likes, *dislikes)]
    fitted = LogisticRegression(class_weight="balanced", max_iter=1000)
    fitted.fit(matrix[rows], [1] * len(likes) + [0] * len(dislikes))
    return [every[i] for i in np.argsort(-fitted.decision_function(matrix), kind="stable")]


# Time


def vocabulary(count: int = 20_000, seed: int = 0) -> tuple[list[str], list[float]]:
    """Words, and how often each is used: the nth 1/n as often as the first, as in real texts (Zipf's law).

    The first ones are those of what we say of the page's papers, by how often we use them; the others are made up.
    """
    draw, texts = random.Random(seed), [f"{paper.title} {paper.summary}".lower() for paper in papers.page()]
    words = [word for word, _ in Counter(re.findall(r"[a-z]{2,}", " ".join(texts))).most_common()]
    words += ["".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))) for _ in range(count - len(words))]
    return words, list(accumulate(1 / (n + 3) for n in range(count)))


def made_up(count: int, seed: int = 0) -> list[Record]:
    """So many papers, listed over 120 days."""
    draw, (words, often) = random.Random(seed), vocabulary()

    def text(length: int) -> str:
        return " ".join(draw.choices(words, cum_weights=often, k=length)).capitalize()

    made = []
    for i in range(count):
        day = f"2024-{1 + i * 4 // count:02}-{1 + i * 120 // count % 28:02}"
        made.append(
            Record(
                f"{day[2:4]}{day[5:7]}.{10_000 + i}", "hf", 1,
                title=text(draw.randint(5, 12)), abstract=". ".join(text(18) for _ in range(9)) + ".",
                authors=tuple(draw.sample(NAMES, k=draw.randint(1, 8))),
                categories=tuple(draw.sample(("cs.CL", "cs.LG", "cs.IR", "cs.AI"), k=2)),
                published=f"{day}T00:{i % 60:02}:00Z", listings=(Listing("hf", day, i),),
                facts=(Fact("upvotes", str(i % 90), f"{day}T12:00:00Z"),),
            )
        )  # fmt: skip
    return made


class Drawn:
    """Stands for an embedder of documents: vectors drawn at random."""

    def encode_document(self, texts: Sequence[str], **_: object) -> np.ndarray:
        return np.random.default_rng(len(texts)).normal(size=(len(texts), SIZE))


def filled(path: Path, count: int) -> list[str]:
    """A store of so many papers with vectors, seeds and a topic; the identifiers of those made up."""
    made = Store(path)
    records = made_up(count)
    made.add(records)
    vectors = Vectors(made, MINILM)
    name = vectors.name
    drawn = Vectors(made, MINILM)
    drawn.name, drawn._embedder = name, Drawn()  # type: ignore[assignment]
    drawn.update()
    some = [record.id for record in records]
    for each in some[::1000]:
        made.mark(each, seed=True)
    made.follow(Topic("liked", "long context attention", tuple(some[10:20]), tuple(some[30:35])))
    return some


@contextmanager
def serving(path: Path, *options: str) -> Iterator[tuple[http.client.HTTPConnection, psutil.Process]]:
    """A connection to `broadsheet serve` over a store, and its process."""
    command = [sys.executable, "-m", "broadsheet", "serve", "--port", "0", "--store", str(path)]
    command += ["--jobs", str(path.parent / "jobs"), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        found = next(filter(None, (re.search(r"the page is on (http://\S+?);", line) for line in process.stderr)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        connection = http.client.HTTPConnection(urlsplit(found[1]).netloc, timeout=60)
        yield connection, psutil.Process(process.pid)
        connection.close()
    finally:
        process.kill()
        process.wait()


def times(count: int, requests: int) -> Iterator[dict[str, Any]]:
    """A row for each screen: ms and kB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.sqlite"
        some = filled(path, count)
        draw, words = random.Random(1), vocabulary()[0]
        # A word of most papers, one of a tenth, one that few have.
        among = ((20, 40), (100, 300), (1_000, 20_000))
        chosen = [[draw.choice(words[a:b]) for a, b in among] for _ in range(requests)]
        queries = [f"/search?q={quote_plus(' '.join(each))}" for each in chosen]
        screens = {
            "/": ["/"],
            "/papers": ["/papers", "/papers?p=7", "/papers?sort=title"],
            "/papers?sort=rung": ["/papers?sort=rung"],
            "/papers/ID": [f"/papers/{each}" for each in draw.sample(some, min(requests, count))],
            "/papers/lastde, with evidence": ["/papers/lastde"],
            "/search": queries,
            "/search, looked for before": queries[:1],
            "/day, /week, /month": ["/day/2024-03-05", "/week/2024-W10", "/month/2024-03"],
            "/topics/NAME, with likes": ["/topics/liked"],
            "/feed.atom?topic=NAME": ["/feed.atom?topic=liked"],
        }
        for how, options in (("words", ()), ("words and meaning", ("--meaning", MINILM))):
            with serving(path, *options) as (connection, process):
                for screen, paths in screens.items():
                    yield {"screen": screen, "search": how, **timed(connection, process, paths, requests)}


def timed(
    connection: http.client.HTTPConnection, process: psutil.Process, paths: Sequence[str], requests: int
) -> dict[str, Any]:
    """Requests for addresses in turns, after the first ones were asked for once."""
    spent, sizes, turns = [], [], cycle(paths)
    for path in paths[:3]:
        asked(connection, path)
    before = process.cpu_times()
    for _ in range(requests):
        begun = time.perf_counter()
        sizes.append(len(asked(connection, next(turns))) / 1000)
        spent.append(1000 * (time.perf_counter() - begun))
    after = process.cpu_times()
    return {
        "median_ms": float(np.median(spent)),
        "p95_ms": float(np.percentile(spent, 95)),
        "cpu_ms": 1000 * (after.user + after.system - before.user - before.system) / requests,
        "kilobytes": max(sizes),
    }


def asked(connection: http.client.HTTPConnection, path: str) -> bytes:
    """The body of an answer."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["known", "topics", "time"], default=None, help="only this")
    parser.add_argument("--meaning", action="append", help=f"an embedder of the first part; {MINILM} by default")
    parser.add_argument("--papers", type=int, default=5_000, help="made up, of the third part")
    parser.add_argument("--requests", type=int, default=100, help="for each screen")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.record and arguments.part:
        parser.error("--record keeps all parts together: leave --part out")
    results: dict[str, list[dict[str, Any]]] = {}

    def part(name: str) -> bool:
        return arguments.part in (None, name)

    if part("known"):
        print(f"what we say of each of {len(papers.page())} papers, looked for among all")
        for row in known_papers(arguments.meaning or [MINILM]):
            results.setdefault("known", []).append(row)
            said = [f"{name} {told(Interval(*row[name]))}" for name in ("mrr", "first", "first five")]
            over = "" if row["way"] == "words" else f"; MRR over words {told(Interval(*row['mrr over words']))}"
            print(f"  {row['documents']:17} {row['query']:18} {row['way']:25} {', '.join(said)}{over}", flush=True)
    if part("topics"):
        print("of the five papers after those that were judged, the share of the stage")
        for row in topics():
            results.setdefault("topics", []).append(row)
            print(f"  {row['way']:35} {told(Interval(*row['share']))}", flush=True)
    if part("time"):
        print(f"over {arguments.papers:,} made-up papers, {arguments.requests} requests each")
        for row in times(arguments.papers, arguments.requests):
            results.setdefault("time", []).append(row)
            over = " over" * (row["p95_ms"] > MILLISECONDS or row["kilobytes"] > KILOBYTES)
            print(
                f"  {row['search']:18} {row['screen']:30} median {row['median_ms']:6.1f} ms, "
                f"95th percentile {row['p95_ms']:6.1f} ms, of the processor {row['cpu_ms']:5.1f} ms, "
                f"{row['kilobytes']:5.1f} kB{over}",
                flush=True,
            )
    if arguments.record:
        result = {
            **results,
            "command": " ".join(["python", *sys.argv]),
            "provenance": evidence.provenance(data="the page's own papers; made-up papers", seed=0),
        }
        print(evidence.record("page.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()
