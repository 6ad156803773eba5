"""Runs a peer's runner inside the peer's own environment: JSON lines in, JSON lines out (docs/external.md).

    python -I peer_process.py RUNNER.py ['{"option": value}']

Knows: the contract of external arms, and the standard library alone, since broadsheet is not installed there. The
runner is a file with `load(**options)`, which returns a function of a list of items that gives the outputs by name.
What the runner's library prints goes to stderr.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from typing import IO, Any


def serve(runner: str, options: dict[str, Any], answers: IO[str]) -> None:
    """Load the peer, say that it is ready, and answer each line of items until stdin ends."""

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    spec = importlib.util.spec_from_file_location("runner", runner)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = module.load(**options)
    tell({"ready": True})
    for line in sys.stdin:
        try:
            items = json.loads(line)["items"]
            start = time.perf_counter()
            outputs = run(items)
            tell({"outputs": outputs, "seconds": time.perf_counter() - start})
        except Exception as error:
            tell({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    # What a library prints must not mix with the answers.
    answering, sys.stdout = sys.stdout, sys.stderr
    serve(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}, answering)
