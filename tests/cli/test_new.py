"""`broadsheet new`: five places that run at once, and stay on rung 0."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkouts import ROOT, contents, copied, run

from broadsheet.page import discovery

ROWS = "src/broadsheet/page/papers.toml"
TOYS = '\n[[stage]]\nid = "toys"\nabout = "toys for tests"\n\n[[paper]]\nid = "blocks"\narxiv = "2"\nkind = "method"\n'
TOYS += 'stage = "toys"\ntitle = "Blocks: A \\"Toy\\" Paper' + " Whose Title Is Longer Than A Line Of Code" * 3 + '"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout whose page has a stage that nobody has built."""
    root = copied(tmp_path / "checkout")
    with (root / ROWS).open("a") as file:
        file.write(TOYS)
    rows = (json.dumps({"id": n, "text": "word " * (n % 7 + 1)}) + "\n" for n in range(30))
    (root / "rows.jsonl").write_text("".join(rows))
    return root


def lint(root: Path, *files: str, formatted: bool = True) -> str:
    """What ruff says of the files that were written, as `make lint` asks it."""
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "-q", "--output-format", "concise"], *[["format", "--check", "-q"]] * formatted):
        done = subprocess.run([ruff, *command, *files], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stdout + done.stderr
    return ""


def test_a_paper_of_a_stage_that_is_not_built_brings_the_stage_and_runs(checkout, home):
    before = contents(checkout)
    trial = ("broadsheet", "try", "blocks", "--data", "rows.jsonl", "--quick")
    state = "[papers.get('blocks').rung, papers.get('blocks').entry, papers.get('blocks').trial]"
    new, again, tests, tried, refused, shown, listed = run(
        ("broadsheet", "new", "blocks"),
        ("broadsheet", "new", "blocks"),
        ("pytest", "tests/toys/test_blocks.py"),
        trial,
        (*trial, "--record"),
        ("broadsheet", "show", "blocks"),
        ("show", state),
        root=checkout,
    )
    assert new[0] == 0, new
    written = set(re.findall(r"^wrote +(\S+)$", new[1], re.MULTILINE))
    changed = set(re.findall(r"^changed +(\S+)$", new[1], re.MULTILINE))
    stage = {f"src/broadsheet/toys/{name}.py" for name in ("__init__", "base", "trials/__init__", "trials/toys")}
    five = {"src/broadsheet/toys/blocks.py", "tests/toys/test_blocks.py", "docs/toys.md"}
    five |= {"tests/oracle_adapters/blocks.py", "tests/oracles/blocks.json"}
    reference = {f"docs/reference/{folder}toys.md" for folder in ("", "internals/", "trials/")}
    assert written == stage | five | reference
    assert changed == {"mkdocs.yml", "pyproject.toml"}, "the row is there already"
    after = contents(checkout)
    assert {name for name in before if before[name] != after[name]} == changed
    assert "| broadsheet.toys" in after["pyproject.toml"]
    named = {name: each for part in yaml.safe_load(after["mkdocs.yml"])["nav"] for name, each in part.items()}
    assert {"Toys": "toys.md"} in named["Stages"]
    assert {"toys": "reference/toys.md"} in named["Reference"]
    (inside,) = (each["Internals"] for each in named["Reference"] if "Internals" in each)
    assert {"toys": "reference/internals/toys.md"} in inside
    assert {"trials of toys": "reference/trials/toys.md"} in inside
    assert "| `Blocks` | [2](https://arxiv.org/abs/2) |" in after["docs/toys.md"]
    assert "`broadsheet try blocks`" in after["docs/toys.md"]
    assert again[0] == 2
    assert "blocks is built already" in again[2]
    assert tests[0] == 0, tests
    assert tried[0] == 0, tried
    assert "Blocks" in tried[1]
    assert refused[0] == 2
    assert "holds no case of blocks's equations" in refused[2]
    assert "from broadsheet.toys import Blocks" in shown[1]
    entry = ["broadsheet.toys.blocks:Blocks"]
    assert json.loads(listed[1]) == [0, entry, "broadsheet.toys.trials.toys:ToysTrial"]
    assert lint(checkout, *(name for name in written if name.endswith(".py"))) == ""


def test_a_paper_of_a_built_stage_that_is_not_listed_gets_a_row(checkout):
    before = contents(checkout)
    command = ("broadsheet", "new", "shadow_words", "--stage", "detect", "--title", 'A "quoted" \\ title')
    refused, new, state, tests, oracles, again = run(
        ("broadsheet", "new", "shadow_words", "--stage", "detect"),
        (*command, "--name", "Shadow"),
        ("show", "[papers.get('shadow_words').title, papers.get('shadow_words').entry, len(papers.ours())]"),
        ("pytest", "tests/detect/test_shadow_words.py"),
        ("oracles", "tests/oracles"),
        (*command, "--name", "Shadow"),
        root=checkout,
    )
    assert refused[0] == 2
    assert "shadow_words is not listed yet; give its --title" in refused[2]
    assert new[0] == 0, new
    assert json.loads(state[1]) == ["A 'quoted'  title", ["broadsheet.detect.shadow_words:Shadow"], 81]
    assert tests[0] == 0, tests
    assert oracles[0] == 0, oracles
    assert again[0] == 2
    after = contents(checkout)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {ROWS, "docs/detect.md"}
    row = next(line for line in after["docs/detect.md"].splitlines() if line.startswith("| `Shadow` |"))
    assert after["docs/detect.md"].index(row) < after["docs/detect.md"].index("<!-- new rows stand above -->")
    assert lint(checkout, *(name for name in set(after) - set(before) if name.endswith(".py"))) == ""


def test_nothing_is_overwritten_and_nothing_is_written_beside_it(checkout):
    (checkout / "tests" / "detect").mkdir()
    (checkout / "tests" / "detect" / "test_shadow.py").write_text("mine\n")
    before = contents(checkout)
    ((status, out, err),) = run(
        ("broadsheet", "new", "shadow", "--stage", "detect", "--title", "Shadow"), root=checkout
    )
    assert (status, out) == (2, "")
    assert "tests/detect/test_shadow.py is there already; nothing is overwritten, and nothing was written" in err
    assert contents(checkout) == before


def test_what_cannot_be_made_is_refused_in_one_line(checkout, tmp_path):
    cases = {
        ("lastde",): "lastde is built already: broadsheet.detect.lastde:Lastde",
        ("Bad-Id", "--stage", "detect", "--title", "x"): "got the id 'Bad-Id'; expected small letters",
        ("x", "--stage", "nowhere", "--title", "x"): "got --stage 'nowhere'; expected one of curate, ",
        ("cudrt", "--stage", "rank"): "got --stage rank; cudrt is listed in the stage detect",
        ("x", "--stage", "detect", "--title", "x", "--name", "a b"): "got --name 'a b'; expected a name",
        ("cudrt", "--package", "mine"): "cudrt is on broadsheet's page; a package of your own needs an id of its own",
        ("x", "--stage", "toys", "--title", "x", "--package", "mine"): "the stage toys has no scaffold",
        ("x", "--stage", "detect", "--title", "x", "--package", "1"): "expected a folder that is named like a Python",
        ("x", "--stage", "hear", "--title", "x"): "the stage hear has no scaffold: copy a neighbour's paper",
    }  # fmt: skip
    before = contents(checkout)
    results = run(*(("broadsheet", "new", *case) for case in cases), root=checkout)
    for message, (status, out, err) in zip(cases.values(), results, strict=True):
        assert (status, out) == (2, ""), message
        assert message in err
        assert len(err.splitlines()) == 1
    assert contents(checkout) == before


def test_outside_a_checkout_it_writes_into_the_one_that_runs_and_else_says_what_it_needs(tmp_path, monkeypatch):
    from broadsheet.cli import new
    from broadsheet.console import InputError

    assert new.checkout(tmp_path) == ROOT
    assert new.checkout(ROOT / "docs") == ROOT
    monkeypatch.setattr(new, "__file__", str(tmp_path / "site" / "broadsheet" / "cli" / "new.py"))
    with pytest.raises(InputError, match="run this inside one, or give --package DIR"):
        new.checkout(tmp_path)


def test_a_package_of_ones_own_is_made_grows_and_is_installed_by_pip(tmp_path):
    mine, site = tmp_path / "mine", tmp_path / "site"
    new = ("broadsheet", "new", "--stage", "detect", "--package", "mine")
    first, second, refused = run(
        (*new, "first_words", "--title", "First words"),
        (*new, "last_words", "--title", "Last words"),
        (*new, "last_words", "--title", "Last words"),
        root=tmp_path,
        path=[str(ROOT / "src")],
    )
    assert first[0] == second[0] == 0, (first, second)
    assert refused[0] == 2
    assert (mine / "README.md").read_text().count("\n## ") == 2
    assert lint(mine, ".", formatted=False) == "", "a line may be longer than a reader's own tools allow"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(mine)], check=True, capture_output=True)
    shutil.rmtree(mine / "src")
    listed, tests, state = run(
        ("broadsheet", "papers", "words", "--json"),
        ("pytest", str(mine / "tests")),
        ("show", "sorted(papers.stage_methods('detect'))"),
        root=tmp_path,
        path=[str(ROOT / "src"), str(site)],
    )
    rows = {row["id"]: row for row in json.loads(listed[1])}
    assert rows["first_words"]["package"] == rows["last_words"]["package"] == "mine"
    assert rows["first_words"]["entry"] == ["mine.first_words:FirstWords"]
    assert rows["first_words"]["trial"] == discovery.stage_trial("detect")
    assert rows["first_words"]["rung"] == 0
    assert tests[0] == 0, tests
    assert {"first_words", "last_words"} <= set(json.loads(state[1]))


SCAFFOLDS = sorted(path.parent.name for path in (ROOT / "src" / "broadsheet").glob("*/scaffold"))


@pytest.mark.parametrize("stage", [name for name in SCAFFOLDS if name != "cli"])
def test_each_stages_scaffold_runs_passes_its_own_tests_and_is_documented(stage, checkout):
    before = contents(checkout)
    new, tests, state = run(
        ("broadsheet", "new", "shadow_words", "--stage", stage, "--title", "Shadow words"),
        ("pytest", f"tests/{stage}/test_shadow_words.py"),
        ("show", "[(paper := papers.get('shadow_words')).entry, paper.trial, paper.rung]"),
        root=checkout,
    )
    assert new[0] == 0, new
    assert tests[0] == 0, tests
    entry, trial, rung = json.loads(state[1])
    assert entry == [f"broadsheet.{stage}.shadow_words:ShadowWords"]
    assert trial
    assert rung == 0
    added = [name for name in set(contents(checkout)) - set(before) if name.endswith(".py")]
    assert lint(checkout, *added) == ""
    source = ast.parse((checkout / f"src/broadsheet/{stage}/shadow_words.py").read_text())
    (kind,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "ShadowWords")
    text = ast.get_docstring(kind) or ""
    assert all(word in text for word in ("Use when", "Inputs:", "Relation:", "Example:", "Source:"))
