"""llama.cpp writes greedily: items `{"tokens": [ids], "new_tokens": n}`, outputs `tokens` and `seconds` of each item."""

from __future__ import annotations

import secrets
import time
from typing import Any


def load(gguf: str, threads: int, context: int) -> Any:
    """A model read by llama.cpp.

    Args:
        gguf: its file.
        threads: of the CPU.
        context: the most tokens of a prompt with what is written.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel = 1
    params.n_ctx = context
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.api_keys = [secrets.token_hex(16)]  # it listens on loopback; nobody else is to ask it anything
    server = xllamacpp.Server(params)

    def write(item: dict[str, Any]) -> tuple[list[int], float]:
        start = time.perf_counter()
        answer = server.handle_completions(
            {
                "prompt": item["tokens"],
                "n_predict": item["new_tokens"],
                "temperature": 0.0,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
            }
        )
        seconds = time.perf_counter() - start
        if "tokens" not in answer:
            raise RuntimeError(f"llama.cpp answered without tokens: {str(answer)[:200]}")
        return answer["tokens"], seconds

    def run(items: list[dict[str, Any]]) -> dict[str, Any]:
        written = [write(item) for item in items]
        return {"tokens": [tokens for tokens, _ in written], "seconds": [seconds for _, seconds in written]}

    return run
