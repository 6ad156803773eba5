"""llama.cpp writes greedily: items `{"tokens": [ids], "new_tokens": n}`, outputs `tokens` and `seconds` of each."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener


def load(gguf: str, threads: int, context: int) -> Any:
    """A model read by llama.cpp.

    Args:
        gguf: its file.
        threads: of the CPU.
        context: the most tokens of a prompt with what is written.
    """
    import xllamacpp

    key = secrets.token_hex(16)  # it listens on loopback; nobody else is to ask it anything
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel = 1
    params.n_ctx = context
    params.verbosity = -1
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    # its calls within the process give text alone; this route gives tokens
    url, headers = f"{server.listening_address}/completion", {"Authorization": f"Bearer {key}"}
    ask = build_opener(ProxyHandler({})).open

    def write(item: dict[str, Any]) -> tuple[list[int], float]:
        request = {
            "prompt": item["tokens"],
            "n_predict": item["new_tokens"],
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        start = time.perf_counter()
        with ask(Request(url, json.dumps(request).encode(), {**headers, "Content-Type": "application/json"})) as answer:
            tokens = json.load(answer)["tokens"]
        return tokens, time.perf_counter() - start

    def run(items: list[dict[str, Any]]) -> dict[str, Any]:
        written = [write(item) for item in items]
        return {"tokens": [tokens for tokens, _ in written], "seconds": [seconds for _, seconds in written]}

    # the server lives as long as what asks it
    run.server = server  # type: ignore[attr-defined]
    return run
