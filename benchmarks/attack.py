"""All that commands are attacked with, and how much of it they withstand: `python benchmarks/attack.py [--record]`.

Runs the tests of `tests/attack`, and those of hostile model folders, at full size: half an hour on two cores. Exits
with 1 where something is not withstood. `--record` keeps the figures as evidence/attack.benchmark.json.

Knows: which tests are attacks. Does not know: what they do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ATTACKS = ("tests/attack", "tests/models/test_sentences.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    recorded = ["--record-attack"] if parser.parse_args().record else []
    words = [sys.executable, "-m", "pytest", "-n", "auto", "--dist", "loadgroup", "--attack", *recorded, *ATTACKS]
    sys.exit(subprocess.run(words, cwd=Path(__file__).parents[1]).returncode)


if __name__ == "__main__":
    main()
