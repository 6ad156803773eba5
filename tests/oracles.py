"""Numeric oracles: `python tests/oracles.py DIR…` feeds every case of every `DIR/<slug>.json` to the slug's adapter.

A case holds `input`, `expected` and `tolerance`; an adapter turns the input into a dictionary that has at least the
expected keys. A tolerance is absolute: one number for all keys, or one per key; the keys `relative` and
`relative_scores` give a relative tolerance for every key that has none of its own. A slug without adapter is skipped.

`--record` writes how many cases passed to the evidence folder, which the second rung rests on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "support")]


def adapter(slug: str) -> Any:
    """The function `run(input) -> dict` in `tests/oracle_adapters/<slug>.py`, or None."""
    if not (Path(__file__).parent / "oracle_adapters" / f"{slug}.py").exists():
        return None
    return importlib.import_module(f"oracle_adapters.{slug}").run


def difference(got: Any, expected: Any, absolute: float, relative: float) -> str:
    """The first place where `got` is not `expected` within the tolerance; empty where it is."""
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return f"got {got!r}, expected {expected!r}"
        for key, value in expected.items():
            if key not in got:
                return f"{key}: missing"
            if found := difference(got[key], value, absolute, relative):
                return f"{key}: {found}"
        return ""
    if isinstance(expected, list):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return f"got {got!r}, expected {expected!r}"
        pairs = zip(got, expected, strict=True)
        return next(
            (f"[{i}]: {d}" for i, (g, e) in enumerate(pairs) if (d := difference(g, e, absolute, relative))), ""
        )
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return "" if got == expected else f"got {got!r}, expected {expected!r}"
    same = isinstance(got, int | float) and (got == expected or (math.isnan(expected) and math.isnan(got)))
    close = same or (isinstance(got, int | float) and abs(got - expected) <= absolute + relative * abs(expected))
    return "" if close else f"got {got!r}, expected {expected!r}"


def check(case: dict[str, Any], got: Any) -> str:
    """Why a case fails; empty when it passes."""
    tolerance = case["tolerance"]
    if not isinstance(tolerance, dict):
        relative = case.get("tolerance_kind") == "relative"
        return difference(got, case["expected"], 0.0 if relative else tolerance, tolerance if relative else 0.0)
    shared = tolerance.get("relative", tolerance.get("relative_scores"))
    for key, expected in case["expected"].items():
        if key not in got:
            return f"{key}: missing"
        if key not in tolerance and shared is None:
            return f"{key}: the case gives no tolerance for it"
        absolute, relative = (tolerance[key], 0.0) if key in tolerance else (0.0, shared)
        if found := difference(got[key], expected, absolute, relative):
            return f"{key}: {found}"
    return ""


def run_file(path: Path) -> dict[str, int]:
    """Run every case of one file, a line each; how many passed, failed and were skipped."""
    document = json.loads(path.read_text(encoding="utf-8"))
    slug = document.get("slug", path.stem)
    run = adapter(slug)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in document["cases"]:
        label = f"{slug}/{case['name']}"
        if run is None:
            print(f"skipped  {label}: no adapter yet")
            counts["skipped"] += 1
            continue
        try:
            reason = check(case, run(case["input"]))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        print(f"FAILED   {label}: {reason}" if reason else f"passed   {label}")
        counts["failed" if reason else "passed"] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the numeric oracles in the given folders.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a folder with <slug>.json files")
    parser.add_argument("--record", action="store_true", help="write the counts to evidence/oracles.json")
    arguments = parser.parse_args()
    files = [path for folder in arguments.folders for path in sorted(folder.glob("*.json"))]
    if not files:
        print(f"no <slug>.json in {', '.join(map(str, arguments.folders))}", file=sys.stderr)
        return 2
    slugs: dict[str, dict[str, int]] = {}
    for path in files:
        counts = run_file(path)
        total = slugs.setdefault(path.stem, {"passed": 0, "failed": 0, "skipped": 0})
        for key, value in counts.items():
            total[key] += value
    totals = {key: sum(counts[key] for counts in slugs.values()) for key in ("passed", "failed", "skipped")}
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    if arguments.record:
        from broadsheet.page import evidence

        done = {slug: counts for slug, counts in slugs.items() if counts["passed"] or counts["failed"]}
        evidence.record("oracles", {"slugs": done, "provenance": evidence.provenance()}, evidence.folder())
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
