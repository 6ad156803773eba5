"""CONTRIBUTING.md's example is built from its own blocks in a copy of the checkout, tried, recorded and removed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from checkouts import ROOT, contents, copied, run

GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', GUIDE, re.MULTILINE | re.DOTALL))
PAPER, NEW = "repeated_bigrams", next(line for line in GUIDE.splitlines() if line.startswith("broadsheet new "))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Options for a trial on texts that are there: people vary their words, the machine repeats itself."""
    words = [f"word{i}" for i in range(12)]
    human = [" ".join(words[i:] + words[:i]) for i in range(12)]
    machine = [" ".join(words[i % 12 : i % 12 + 1] * 3 + words[:3] * 3) for i in range(12)]
    for name, rows in (("human", human), ("machine", machine)):
        lines = (json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(rows))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return ["--data", str(tmp_path / "human.jsonl"), "--machine", str(tmp_path / "machine.jsonl"), "--pairs", "12"]


def test_the_example_is_built_tried_recorded_and_removed(
    tmp_path: Path, tiny_folder: Path, texts: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(tmp_path / "checkout")
    before = contents(root)
    assert len(FILES) == 5, "the file, the row, the test, the oracle and its adapter"
    trial = ("broadsheet", "try", PAPER, "--quick", "--model", str(tiny_folder), *texts)
    row = FILES.pop("src/broadsheet/page/papers.toml")
    try:
        new, refused, *filled, tests, oracles, tried, rung, listed = run(
            ("broadsheet", *shlex.split(NEW)[1:]),
            (*trial, "--record"),
            *(("fill", path, text) for path, text in FILES.items()),
            ("pytest", f"tests/detect/test_{PAPER}.py"),
            ("oracles", "tests/oracles", "--record"),
            (*trial, "--record"),
            ("show", f"papers.get('{PAPER}').to_dict()"),
            ("broadsheet", "papers"),
            root=root,
        )
    finally:
        FILES["src/broadsheet/page/papers.toml"] = row
    assert new[0] == 0, new
    written = set(re.findall(r"^wrote +(\S+)$", new[1], re.MULTILINE))
    assert written == {path for path in FILES if path != "src/broadsheet/page/papers.toml"}
    assert (root / "src/broadsheet/page/papers.toml").read_text().endswith(f"\n{row}")
    assert f"`broadsheet try {PAPER}`" in (root / "docs/detect.md").read_text()
    assert refused[0] == 2
    assert f"{PAPER}.json holds no case" in refused[2]
    assert all(status == 0 for status, *_ in filled)
    assert tests[0] == 0, tests
    assert "3 passed" in tests[1]
    assert oracles[0] == 0, oracles
    assert tried[0] == 0, tried
    recorded = json.loads((root / "evidence" / f"{PAPER}.json").read_text())
    (claim,) = recorded["judged"]
    assert (claim["metric"], claim["baseline"], claim["arm"]) == ("AUROC", "Likelihood", "RepeatedBigrams")
    assert [arm["name"] for arm in recorded["arms"] if arm["role"] == "method"] == ["RepeatedBigrams"]
    assert recorded["command"].startswith(f"broadsheet try {PAPER}")
    assert json.loads(rung[1])["rung"] >= 2, "exact: its oracle passed"
    assert "80 of 80 papers" in listed[2]

    for name in (*written, f"evidence/{PAPER}.json"):
        (root / name).unlink()
    for name in ("src/broadsheet/page/papers.toml", "docs/detect.md", "evidence/oracles.json"):
        (root / name).write_text(before[name])
    assert contents(root) == before, "five places, and nothing else"


def test_each_test_of_the_example_fails_where_the_detector_is_broken(tmp_path: Path) -> None:
    names: dict = {}
    source = FILES["src/broadsheet/detect/repeated_bigrams.py"]
    assert "1 - len(set(ngrams)) / len(ngrams)" in source
    exec(source.replace("1 - len(set(ngrams)) / len(ngrams)", "len(set(ngrams)) / len(ngrams)"), names)
    broken = names["RepeatedBigrams"]
    case = json.loads(FILES["tests/oracles/repeated_bigrams.json"])["cases"][0]
    adapter: Callable = _adapter(broken)
    assert adapter(case["input"])["share"] != pytest.approx(case["expected"]["share"])


def _adapter(detector: type) -> Callable:
    names: dict = {"RepeatedBigrams": detector}
    exec(FILES["tests/oracle_adapters/repeated_bigrams.py"].replace("from broadsheet.detect import", "#"), names)
    return names["run"]
