"""The server beside the library, in one run: answers together and one by one, vectors, and who comes late.

    python benchmarks/serve.py
    python benchmarks/serve.py --chats 8 --tokens 48 --rounds 5 --record

The server is a process of its own, asked over loopback; the library runs in this process, in turn with it. Ratios are
of the same work in the same round. That texts and vectors are the library's own is checked on the way.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from broadsheet.data import corpora
from broadsheet.embed.base import load
from broadsheet.page import evidence
from broadsheet.teacher import Teacher
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison, compare_seconds


@contextmanager
def server(model: str) -> Iterator[str]:
    """The address of `broadsheet serve` with a language model and its mean pooling."""
    command = [sys.executable, "-m", "broadsheet", "serve", "--port", "0", "--dtype", "float32"]
    process = subprocess.Popen([*command, "--model", model, "--embedder", "default"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        found = next(filter(None, (re.search(r"serving on (http://\S+)/v1", line) for line in process.stderr)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1]
    finally:
        process.kill()
        process.wait()


def ask(url: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def chats(url: str, teacher: Teacher, n: int, tokens: int, rounds: int) -> tuple[list[Comparison], bool]:
    """Conversations together and one by one, and the library's own batch; whether all texts are the same."""
    asked = [[{"role": "user", "content": f"Name {i + 2} things that are {c}."}] for i, c in enumerate("abcdefgh"[:n])]
    settings = {"temperature": 0, "max_tokens": tokens}

    def one(messages: Any) -> str:
        answer = ask(url, "/v1/chat/completions", {"model": "default", "messages": messages, **settings})
        return str(answer["choices"][0]["message"]["content"])

    def together() -> list[str]:
        with ThreadPoolExecutor(n) as pool:
            return list(pool.map(one, asked))

    ways = {
        "one by one": lambda: [one(messages) for messages in asked],
        "together": together,
        "library": lambda: [answer.text for [answer] in teacher.chat(asked, **settings)],
    }
    return compared("chats", ways, rounds, [("one by one", "together"), ("library", "together")])


def vectors(url: str, model: str, n: int, rounds: int) -> tuple[list[Comparison], bool]:
    """Texts to vectors over HTTP and by the library; whether these are the same to 1e-5, in one request and in 16."""
    texts = [" ".join(each.text.split()[:60]) for each in corpora.load("pydocs:stdlib").take(n)]
    embedder = load(model, dtype="float32")

    def served(some: list[str]) -> Any:
        body = {"model": "default", "input": some, "encoding_format": "base64"}
        rows = ask(url, "/v1/embeddings", body)["data"]
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])

    def parted() -> Any:
        parts = [texts[i::16] for i in range(16)]
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(served, parts))
        whole = np.empty((n, made[0].shape[1]), np.float32)
        for i, part in enumerate(made):
            whole[i::16] = part
        return whole

    ways = {"library": lambda: embedder.encode(texts), "served": lambda: served(texts), "served to 16": parted}
    return compared("vectors", ways, rounds, [("library", "served"), ("library", "served to 16")])


def compared(
    metric: str, ways: dict[str, Callable[[], Any]], rounds: int, pairs: list[tuple[str, str]]
) -> tuple[list[Comparison], bool]:
    """Ways in turn, round by round, after one that is not timed; and whether all gave the same."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    made: list[Any] = [work() for work in ways.values()]
    for _ in range(rounds):
        for name, work in ways.items():
            took, result = seconds(work)
            spent[name].append(took)
            made.append(result)
    same = all(
        np.allclose(made[0], each, atol=1e-5) if isinstance(each, np.ndarray) else each == made[0] for each in made
    )
    for name, values in spent.items():
        print(f"  {metric}, {name:12} {np.median(values):7.2f} s")
    found = []
    for before, after in pairs:
        comparison = compare_seconds(
            np.array(spent[before]), np.array(spent[after]), metric=f"{metric}/s", baseline=before, arm=after
        )
        print(f"  {sentence(comparison)}")
        found.append(comparison)
    print(f"  the same in all of them: {same}")
    return found, same


def late(url: str) -> dict[str, float]:
    """A long answer is on its way when a short one is asked for: seconds until the one's end and the other's first."""
    times: dict[str, float] = {}
    start = time.perf_counter()

    def stream(name: str, tokens: int) -> None:
        body = {"model": "default", "prompt": f"{name} goes", "max_tokens": tokens, "temperature": 0, "stream": True}
        request = urllib.request.Request(
            url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    times.setdefault(f"first token of the {name} one", time.perf_counter() - start)
        times[f"end of the {name} one"] = time.perf_counter() - start

    early = threading.Thread(target=stream, args=("early", 120))
    early.start()
    time.sleep(2)
    times["the late one is asked for"] = time.perf_counter() - start
    stream("late", 8)
    early.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--texts", type=int, default=96, help="to vectors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="default")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    teacher = Teacher.load(arguments.model, cache=False, dtype="float32")
    with server(arguments.model) as url:
        together, same_texts = chats(url, teacher, arguments.chats, arguments.tokens, arguments.rounds)
        waited = late(url)
        for name, value in sorted(waited.items(), key=lambda each: each[1]):
            print(f"  {value:6.2f} s  {name}")
        coded, same_vectors = vectors(url, arguments.model, arguments.texts, arguments.rounds)
    if arguments.record:
        result = {
            "comparisons": [asdict(each) for each in (*together, *coded)],
            "late": waited,
            "same texts": same_texts,
            "same vectors": same_vectors,
            "options": vars(arguments),
            "provenance": evidence.provenance(model={"name": arguments.model}),
        }
        print(evidence.record("serve.benchmark", evidence.finite(result), evidence.folder()))


if __name__ == "__main__":
    main()
