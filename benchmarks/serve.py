"""The server beside the library and other servers, in one run: answers together and one by one, vectors, latecomers.

    python benchmarks/serve.py
    python benchmarks/serve.py --chats 8 --tokens 48 --rounds 5 --record

The servers are processes of their own, asked over loopback; the library runs in this process, in turn with them. Ratios
are of the same work in the same round. That texts and vectors are the library's own is checked on the way. Peers:
`transformers serve` on the same weights in float32, and llama.cpp on the default model's GGUF file, which it reads as
it is quantized. Where one is not installed, it is left out and that is said.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.embed.base import load
from broadsheet.page import evidence
from broadsheet.teacher import Teacher
from broadsheet.trial.sentences import sentence
from broadsheet.trial.verdicts import Comparison, compare_seconds


@contextmanager
def server(model: str, *options: str) -> Iterator[str]:
    """The address of `broadsheet serve` with a language model and its mean pooling."""
    command = [sys.executable, "-m", "broadsheet", "serve", "--port", "0", "--dtype", "float32", *options]
    process = subprocess.Popen([*command, "--model", model, "--embedder", "default"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        found = next(filter(None, (re.search(r"serving on (http://\S+)/v1", line) for line in process.stderr)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1]
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Peer:
    """Another server: its address, and what it is asked with."""

    url: str
    model: str
    key: str = "none"
    more: dict[str, Any] = field(default_factory=dict)


@contextmanager
def transformers_serve(folder: str) -> Iterator[Peer]:
    """`transformers serve` on a folder, in float32, with its continuous batching."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", folder, "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command += ["--continuous-batching", "--attn-implementation", "sdpa"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(url + "/health", timeout=5).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("transformers serve does not start") from None
                time.sleep(0.5)
        yield Peer(url, folder)
    finally:
        process.kill()
        process.wait()


@contextmanager
def llama_server(slots: int) -> Iterator[Peer]:
    """llama.cpp's server in this process, on the default model's GGUF file."""
    from broadsheet.teacher.llamacpp import LlamaCpp

    made = LlamaCpp("default", slots=slots)
    yield Peer(made.url.removesuffix("/v1"), made.model, made.key, made.extra)


def peers(model: str, slots: int, held: ExitStack) -> dict[str, Peer]:
    """Those that can be started; why others cannot is printed."""
    found: dict[str, Peer] = {}
    folder = models.load(model).model.config.name_or_path
    ways = {"transformers serve": lambda: transformers_serve(folder), "llama.cpp": lambda: llama_server(slots)}
    for name, start in ways.items():
        try:
            found[name] = held.enter_context(start())
        except (InputError, OSError, RuntimeError) as error:
            print(f"  {name} is left out: {error}")
    return found


def ask(url: str, path: str, body: Any, key: str = "none") -> Any:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def chats(
    url: str, drafting: str, teacher: Teacher, others: dict[str, Peer], n: int, tokens: int, rounds: int
) -> tuple[list[Comparison], dict[str, bool]]:
    """Conversations together and one by one, the library's own batch, and other servers; whether texts are the same."""
    asked = [[{"role": "user", "content": f"Name {i + 2} things that are {c}."}] for i, c in enumerate("abcdefgh"[:n])]
    settings = {"temperature": 0, "max_tokens": tokens}

    def one(messages: Any, peer: Peer) -> str:
        body = {"model": peer.model, "messages": messages, **settings, **peer.more}
        return str(ask(peer.url, "/v1/chat/completions", body, peer.key)["choices"][0]["message"]["content"])

    def together(peer: Peer) -> list[str]:
        with ThreadPoolExecutor(n) as pool:
            return list(pool.map(lambda messages: one(messages, peer), asked))

    ours = Peer(url, "default")
    ways: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [one(messages, ours) for messages in asked],
        "drafted": lambda: [one(messages, Peer(drafting, "default")) for messages in asked],
        "together": lambda: together(ours),
        "library": lambda: [answer.text for [answer] in teacher.chat(asked, **settings)],
    }
    ways |= {name: partial(together, peer) for name, peer in others.items()}
    pairs = [("one by one", "together"), ("one by one", "drafted"), ("library", "together")]
    return compared("chats", ways, rounds, pairs + [(name, "together") for name in others])


def vectors(url: str, model: str, n: int, rounds: int) -> tuple[list[Comparison], dict[str, bool]]:
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
) -> tuple[list[Comparison], dict[str, bool]]:
    """Ways in turn, round by round, after one that is not timed; and which gave the same as the first."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    made: list[Any] = [work() for work in ways.values()]
    for _ in range(rounds):
        for name, work in ways.items():
            took, result = seconds(work)
            spent[name].append(took)
            made.append(result)
    same = {name: agree(made[0], own) for name, own in zip(ways, made, strict=False)}
    repeated = all(agree(made[i % len(ways)], each) for i, each in enumerate(made))
    for name, values in spent.items():
        print(f"  {metric}, {name:18} {np.median(values):7.2f} s" + ("" if same[name] else "   (not the same)"))
    found = []
    for before, after in pairs:
        comparison = compare_seconds(
            np.array(spent[before]), np.array(spent[after]), metric=f"{metric}/s", baseline=before, arm=after
        )
        print(f"  {sentence(comparison)}")
        found.append(comparison)
    print(f"  the same in each round: {repeated}")
    return found, {"repeated": repeated, **same}


def agree(one: Any, other: Any) -> bool:
    """Whether texts are the same, or vectors to 1e-5."""
    return np.allclose(one, other, atol=1e-5) if isinstance(one, np.ndarray) else bool(one == other)


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
    with ExitStack() as held:
        url = held.enter_context(server(arguments.model))
        drafting = held.enter_context(server(arguments.model, "--draft", "ngramdrafter"))
        others = peers(arguments.model, arguments.chats, held)
        together, same_texts = chats(
            url, drafting, teacher, others, arguments.chats, arguments.tokens, arguments.rounds
        )
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
