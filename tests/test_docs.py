"""The README and the docs say what is: nothing generated is stale, commands and links exist, examples run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from loopback import Loopback
from names import undefined

import broadsheet
from broadsheet import detect, models
from broadsheet.cli import main
from broadsheet.cli.app import whole
from broadsheet.options import describe
from broadsheet.page import evidence
from broadsheet.page.guides import maps
from broadsheet.page.guides.advice import facts, rules
from broadsheet.page.guides.longcontext import FACETS, long_input, ways
from broadsheet.page.papers import RUNGS, get, get_recipe, get_trial, load, ours, page, stages, which
from broadsheet.report.answer import TrialAnswer
from broadsheet.report.words import bracket, number
from broadsheet.trial.claims import Claim, judge
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.results import Example, TrialResult

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*sorted(ROOT.glob("docs/**/*.md")), *NOTEBOOKS]
COMMANDS = typer.main.get_command(whole()).commands  # type: ignore[attr-defined]
EXAMPLE = {"repeated_bigrams": "lastde"}  # a paper that CONTRIBUTING.md adds, and one whose trial it shares
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all today. "


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def written(path: Path) -> str:
    """A page as Markdown; of a notebook its cells, those of code between fences."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced code blocks of a page in these languages; `""` is a fence that names none."""
    fences = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", written(path), re.MULTILINE | re.DOTALL)
    return [body for language, body in fences if language in languages]


def prose(page: Path | str) -> str:
    """A page without its fenced code."""
    text = page if isinstance(page, str) else written(page)
    return re.sub(r"^ *(```+).*?^ *\1$", "", text, flags=re.MULTILINE | re.DOTALL)


def in_fences(path: Path) -> Iterator[list[str]]:
    """The `broadsheet` commands a reader may copy."""
    for block in blocks(path, "sh", "console", "text", ""):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("broadsheet "):
                yield shlex.split(line, comments=True)


def below(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that is named, in its group where it is in one, and its own arguments."""
    command, *rest = arguments
    found = COMMANDS[command]
    if rest and rest[0] in getattr(found, "commands", {}):
        return found.commands[rest[0]], rest[1:]
    return found, rest


def in_prose(path: Path) -> Iterator[list[str]]:
    """The `broadsheet` commands that are mentioned, perhaps with capital names where a value goes."""
    for code in re.findall(r"`(broadsheet [^`]+)`", prose(path)):
        yield code.split()


def extra_options(command: str, arguments: list[str]) -> set[str]:
    """What the trial or the recipe of the paper that is named takes beyond the command's own options."""
    named = [argument for argument in arguments if re.fullmatch(r"[a-z0-9_.]+", argument)]
    if command not in ("try", "study", "apply") or not named:
        return set()
    name = f"{named[0]}_study" if command == "study" else EXAMPLE.get(named[0], named[0])
    rows = describe(load((get_recipe if command == "apply" else get_trial)(name)[1]))
    return {row.name for row in rows} | {"--config"}


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def paperpages(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/paperpages.py, which makes a page for each paper, beside the same docs/generate.py."""
    monkeypatch.setitem(sys.modules, "generate", generate)
    monkeypatch.delitem(sys.modules, "paperpages", raising=False)
    return importlib.import_module("paperpages")


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialResult:
    """A recorded trial of lastde in an evidence folder of its own: one claim holds, one arm has failed."""
    rng = np.random.default_rng(0)

    def fail(block: Any) -> Any:
        raise RuntimeError("no such | model")

    arms = [
        Arm("Likelihood", lambda block: {"AUROC": [x for x, _ in block]}, role="baseline"),
        Arm("Lastde", lambda block: {"AUROC": [x + 0.8 + 0.1 * e for x, e in block]}),
        Arm("DNA-GPT", fail, role="sibling"),
    ]
    results, comparisons = run_arms(arms, (0.1 * rng.normal(size=(40, 2))).tolist(), [Metric("AUROC")], item="text")
    result = TrialResult(
        paper="lastde", title="t", question="q", setting={"data": "pydocs"}, arms=results, comparisons=comparisons,
        item="text", judged=judge([Claim("AUROC", "Likelihood", "Lastde")], comparisons), notes=["A note."],
        command="broadsheet try lastde --record", provenance=evidence.provenance(seed=0),
    )  # fmt: skip
    evidence.record("lastde", result.to_dict(), tmp_path)
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    return result


# Generated parts


def test_generated_parts_are_not_stale(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_check_names_what_is_stale_and_writes_nothing(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    stale = "# Page\n<!-- generated: status -->\nAll papers are built.\n<!-- end: status -->\nKept.\n"
    (tmp_path / "README.md").write_text(stale)
    assert generate.main(["--check"]) == 1
    assert "README.md: stale" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == stale
    assert generate.main([]) == 0
    written = (tmp_path / "README.md").read_text()
    assert "All papers are built" not in written
    assert "79 papers" in written
    assert written.endswith("Kept.\n")
    assert generate.main(["--check"]) == 0


def test_the_page_of_all_papers_says_what_each_is_about(generate: ModuleType) -> None:
    rows = {row.split("`")[1]: row for row in generate.all_papers().splitlines() if "](papers/" in row}
    assert len(rows) == len(ours())
    for paper in ours():
        assert paper.summary
        assert f"<br>{paper.summary}<span" in rows[paper.id]
        assert all(topic in rows[paper.id] for topic in paper.topics), "the filter searches what is in the row"


def test_recorded_numbers_reach_the_pages(generate: ModuleType, recorded: TrialResult) -> None:
    text = generate.stage_evidence("detect")
    rows = {row.split(" | ")[0].strip("| *"): row for row in text.splitlines() if row.startswith("|")}
    assert "no such \\| model" in rows["DNA-GPT"]
    assert rows["Lastde"].startswith("| **Lastde** |")
    method = next(arm for arm in recorded.arms if arm.name == "Lastde")
    assert number(method.values["AUROC"].estimate, step=0.001) in rows["Lastde"]
    claimed = next(c for c in recorded.comparisons if c.arm == "Lastde" and c.metric == "AUROC")
    assert f"helps: +{bracket(claimed.difference)[0]} [" in rows["Lastde"]
    assert "AUROC: Lastde helps" in text
    assert "- A note." in text
    assert "`broadsheet try lastde --record`" in text
    assert recorded.provenance["date"][:10] in text
    assert "1&nbsp;runs" in next(line for line in generate.all_papers().splitlines() if "`lastde`" in line)


def test_without_evidence_the_page_says_so(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    nothing = "Nothing is recorded yet. `broadsheet try {} --record` records it."
    assert generate.stage_evidence("detect").endswith(nothing.format("lastde"))
    assert nothing.format("gem") in generate.stage_evidence("embed")
    assert generate.stage_evidence("see") == "Nothing is recorded yet."
    assert "0&nbsp;listed" in next(line for line in generate.all_papers().splitlines() if "`lastde`" in line)


def test_what_of_a_paper_is_here_stands_in_its_part_of_the_stages_page(generate: ModuleType) -> None:
    text = generate.stage_evidence("attend")
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)[1:]
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    built = {paper.title: paper for paper in ours() if paper.stage == "attend" and paper.in_stage}
    assert told.keys() == built.keys()
    for title, paper in built.items():
        for heading, phrases in (("Implements", paper.implements), ("Leaves out", paper.leaves_out)):
            assert f"- *{heading}*: {'; '.join(phrases)}." in told[title]
        stand_ins = "; ".join(f"{theirs} → {here}" for theirs, here in paper.stands_in.items())
        assert f"- *Stands in*: {stand_ins}." in told[title]
        assert told[title].index("- *Stands in*") < told[title].index("Recorded ")


def test_every_paper_is_in_the_tables(generate: ModuleType) -> None:
    text = generate.all_papers()
    for paper in ours():
        (row,) = (line for line in text.splitlines() if f"| `{paper.id}` |" in line)
        assert row.startswith(f"| [{paper.title}](papers/{paper.id}.md)")
        assert f"({paper.url})" in row
        assert f"| {paper.kind} | {paper.rung}&nbsp;{RUNGS[paper.rung]} | {paper.verdict or '—'} |" in row
    assert text.count("| `") == len(ours())


def test_what_filters_the_table_reads_columns_that_it_has(generate: ModuleType) -> None:
    header, *_ = (line for line in generate.all_papers().splitlines() if line.startswith("|"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    script = (ROOT / "docs" / "papers.js").read_text("utf-8")
    assert set(re.findall(r'said\(row, "(\w+)"\)', script)) == {"stage", "kind", "rung", "claims"} <= set(columns)
    page = (ROOT / "docs" / "papers.md").read_text("utf-8")
    assert '<div class="papers" markdown>' in page
    assert '<script src="papers.js"></script>' in page
    assert '"—"' in script, "as the table has it where nothing was measured"


# A page for each paper


def test_each_paper_has_a_page_that_says_what_it_is_and_how_to_use_it(paperpages: ModuleType) -> None:
    for paper in ours():
        text = paperpages.page(paper)
        assert text.startswith(f"# {paper.title}\n")
        assert paper.summary in text
        assert paper.url in text
        assert all(f">{topic}</a>" in text for topic in paper.topics)
        assert f"{paper.rung} {RUNGS[paper.rung]}" in text
        for entry in paper.entry:
            name = entry.partition(":")[2]
            assert f"**`{name}`**" in text
            assert re.search(rf"^from broadsheet\S* import .*{name}", text, re.MULTILINE)
        for command, there in (("try", paper.trial), ("apply", paper.apply)):
            assert bool(there) == (f'??? note "broadsheet {command} {paper.id}"' in text)
        assert ("Not built yet" in text) == (not paper.entry)
        for phrase in (*paper.implements, *paper.leaves_out):
            assert phrase.replace("_", "\\_").replace("[", "\\[").replace("]", "\\]") in text


def test_the_code_on_the_papers_pages_is_python_and_imports(paperpages: ModuleType) -> None:
    for paper in ours():
        for block in re.findall(r"^```python\n(.*?)^```$", paperpages.page(paper), re.MULTILINE | re.DOTALL):
            imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), paper.id, "exec"), {})


def test_links_of_the_papers_pages_lead_somewhere(paperpages: ModuleType) -> None:
    made = {paper.id for paper in ours()}
    for paper in ours():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose(paperpages.page(paper))):
            place = Path(os.path.normpath(ROOT / "docs" / "papers" / target))  # the folder is made with the site
            assert place.exists() or (target.endswith(".md") and target[:-3] in made), f"{paper.id}: no {target}"


def test_a_papers_page_holds_its_recorded_answer_picture_and_claims(
    paperpages: ModuleType, recorded: TrialResult
) -> None:
    recorded.judged[0] = replace(recorded.judged[0], sentence="it tells machine texts better (Sec. 4)")
    recorded.examples = [Example("A text <b> of\n\ntwo parts", {"Lastde": "0.9 & more"}, expected="a machine's")]
    evidence.record("lastde", recorded.to_dict(), evidence.folder())
    text = paperpages.page(get("lastde"))
    assert f"**{paperpages._text(TrialAnswer(recorded))}**" in text
    assert '<figure class="evidence"><svg' in text
    (line,) = (line for line in text.splitlines() if "it tells machine texts better" in line)
    assert line.startswith("- ✓ **shown**: AUROC of Lastde over Likelihood. The paper: it tells")
    assert "broadsheet try lastde --record\n```" in text
    assert "    - data: pydocs" in text
    (shown,) = (line for line in text.splitlines() if "examples" in line)
    assert "<blockquote>A text &lt;b&gt; of two parts</blockquote>" in shown
    assert "<dt>Lastde</dt><dd>0.9 &amp; more</dd>" in shown
    assert "a machine's" in shown.replace("&#x27;", "'")


def test_the_papers_pages_hold_the_code_as_it_is(paperpages: ModuleType) -> None:
    text = paperpages.page(get("lastde"))
    code = (ROOT / "src/broadsheet/detect/lastde.py").read_text("utf-8")
    fence = text.split("    ````python\n")[1].split("    ````\n")[0]
    assert "".join(line.removeprefix("    ") for line in fence.splitlines(keepends=True)) == code
    assert "````" not in code


def test_pages_lose_their_blank_lines_outside_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import slim

    page = "<p>\n\n    one  two\n  </p>\n<pre>\n\n  kept\n</pre>\n\n\n<p>three</p>"
    assert slim.on_post_page(page) == "<p>\none  two\n</p>\n<pre>\n\n  kept\n</pre>\n<p>three</p>"


def test_related_papers_share_topics_or_the_stage(paperpages: ModuleType) -> None:
    for paper in ours():
        found = paperpages.related(paper)
        assert found
        for other, shared in found:
            assert other != paper
            assert shared or other.stage == paper.stage
            assert set(shared) == set(paper.topics) & set(other.topics)
    assert "loogle" in {other.id for other, _ in paperpages.related(get("longheads"), most=20)}


def test_the_site_gets_the_pages_that_the_links_lead_to(
    paperpages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class File:
        @staticmethod
        def generated(config: Any, name: str, *, content: str, inclusion: str) -> tuple[str, str, str]:
            return name, content, inclusion

    structure = ModuleType("mkdocs.structure.files")
    structure.File, structure.InclusionLevel = File, SimpleNamespace(NOT_IN_NAV="not in nav")  # type: ignore[attr-defined]
    for name in ("mkdocs", "mkdocs.structure"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "mkdocs.structure.files", structure)
    made = paperpages.on_files([], None)
    assert [name for name, _, _ in made] == [f"papers/{paper.id}.md" for paper in ours()]
    assert all(content.startswith("# ") and inclusion == "not in nav" for _, content, inclusion in made)


def test_options_come_from_the_trial_and_the_recipe(generate: ModuleType) -> None:
    text = generate.part("options of try lastde")
    assert re.search(r"\| `--regenerations N` \| Of DNA-GPT .*\(3; with --quick 0\) \|", text)
    assert "`--model`" in text.splitlines()[-1]
    assert not any(line.startswith("| `--model") for line in text.splitlines())
    assert "| `--calibrate FILE` |" in generate.part("options of apply detect")
    assert generate.part("options of try a_llmrec") == "There is nothing to try yet."
    with pytest.raises(KeyError):
        generate.part("no such part")


def test_the_guide_holds_every_rule_and_tree_with_its_source(generate: ModuleType) -> None:
    found: dict[str, list[tuple[list[str], str]]] = {}
    goal = ""
    for line in generate.part("goals of guide").splitlines()[2:]:
        told, papers, source = (cell.strip() for cell in line[1:-1].split(" | "))
        if papers:
            found[goal].append((re.findall(r"`(\w+)`", papers), source))
        else:
            (goal,) = re.findall(r"^\*\*(.+)\*\*", told)
            found[goal] = []
    wanted: dict[str, list[tuple[list[str], str]]] = {each: [] for each in facts()["goal"].values}
    for rule in rules():
        source = "our own mapping" if rule.source == "ours" else rule.source
        wanted[rule.when["goal"][0]].append((list(rule.recommend), source))
    assert found == wanted
    rows = [line.strip("| ").split(" | ") for line in generate.part("surveys of guide").splitlines()[2:]]
    assert [row[1].strip("`") for row in rows] == list(maps.trees()[1:])
    for _, name, nodes, leaves, gaps, papers, known in rows:
        below = [node for node in maps.tree(name.strip("`")).walk() if node.at]
        counts = (len(below), sum(not node.children for node in below), sum(node.gap for node in below))
        assert (int(nodes), int(leaves), int(gaps)) == counts
        assert int(papers) == len({paper for node in below for paper in node.papers})
        marked = {mark: int(count) for count, mark in re.findall(r"(\d+)&nbsp;(\w)", known)}
        assert marked == {mark: n for mark in maps.MARKS if (n := sum(node.mark == mark for node in below))}


def test_the_guide_holds_every_way_with_its_facets(generate: ModuleType) -> None:
    header, _, *lines = generate.part("ways of guide").splitlines()
    assert re.findall(r"`(\w+)`", header) == [way.id for way in ways()]
    rows = {name: cells for name, *cells in ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)}
    assert len(rows) == len(FACETS) + 3  # need, length, rung
    for place, way in enumerate(ways()):
        told = {name: cells[place] for name, cells in rows.items()}
        assert told["need"] == ", ".join(way.needs)
        assert told["changes"] == ", ".join(way.facets["changes"])
        assert told["output"] == ("the same" if way.facets["lossless"] else "approximate")
        assert told["keys before rotation"] == ("yes" if way.facets["pre_rope"] else "no")
        assert told["uneven batches"] == ("yes" if way.facets["batch"] else "no")
        assert told["rung"].startswith(f"{way.paper.rung}&nbsp;")
        for name, facet in (("training",) * 2, ("acts in", "phase"), ("reading n tokens", "cost"), ("hardware",) * 2):
            assert told[name] == way.facets[facet]


def test_what_a_command_prints_reaches_the_page(generate: ModuleType) -> None:
    text = generate.part("output of broadsheet guide llm-or-tuned --answers no,no,no,no,yes")
    assert text.startswith("```sh\nbroadsheet guide llm-or-tuned --answers no,no,no,no,yes\n```")
    assert "→ LLM (arXiv:2304.13712, April 2023)\n```" in text
    told = generate.part("output of broadsheet advise --goal rerank").split("```text")[1]
    assert "broadsheet try first --quick" in told
    assert max(map(len, told.splitlines())) <= 78  # no scrolling
    assert max(map(len, text.splitlines())) <= 78
    with pytest.raises(ValueError, match="no-such-goal: ended with"):
        generate.part("output of broadsheet map no-such-goal")


@pytest.mark.real
def test_the_docs_have_the_default_models_config(generate: ModuleType) -> None:
    config = models.config("default")
    guides = sys.modules["guides"]
    assert {key: config[key] for key in guides.DEFAULT_CONFIG} == guides.DEFAULT_CONFIG
    assert long_input(config, 32_768) == long_input(guides.DEFAULT_CONFIG, 32_768)


def test_each_stage_that_is_built_has_a_reference_page_of_its_exports(generate: ModuleType) -> None:
    built = {paper.stage for paper in ours() if paper.in_stage}
    assert "detect" in built
    for stage in built:
        written = (ROOT / "docs" / "reference" / f"{stage}.md").read_text()
        assert f"<!-- generated: reference of {stage} -->" in written
        written = (ROOT / "docs" / "reference" / "internals" / f"{stage}.md").read_text()
        assert f"<!-- generated: internals of {stage} -->" in written
        package = importlib.import_module(f"broadsheet.{stage}")
        told = generate.part(f"reference of {stage}")
        listed = set(re.findall(r"^\| \[`(\w+)`\]", told, re.MULTILINE))
        assert listed <= set(package.__all__)
        elsewhere = set(package.__all__) - listed
        assert not any(getattr(package, name).__module__ in generate._modules(stage) for name in elsewhere)
    text = generate.part("reference of detect")
    listed = re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE)
    assert sorted(listed) == sorted(detect.__all__)
    assert set(listed[:2]) == {"Lastde", "LastdePP"}, "what the papers offer stands first"
    kinds = [isinstance(getattr(detect, name), type) for name in listed]
    assert kinds == sorted(kinds, reverse=True), "then other classes, then what is called"
    assert "| [`LastdePP`](#broadsheet.detect.lastde) | Lastde as a z-score" in text
    inside = generate.part("internals of detect")
    for module in sorted(
        {kind.__module__ for name in detect.__all__ if isinstance(kind := getattr(detect, name), type)}
    ):
        assert f"::: {module}\n    options:\n      members: [" in text
        assert f"::: {module}\n" not in inside
    assert "::: broadsheet.detect.trials.detect\n" in generate.part("trials of detect")
    assert "broadsheet.detect.trials" not in inside
    assert text.index("::: broadsheet.detect.base") < text.index("::: broadsheet.detect.lastde")


def test_papers_of_other_packages_are_not_mixed_with_ours(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = replace(get("lastde"), id="theirs", package="somebody", title="Somebody's paper")
    monkeypatch.setattr("broadsheet.page.papers.page", lambda: (*page(), theirs))
    stages.cache_clear()
    for text in (generate.all_papers(), generate.status()):
        assert "theirs" not in text
    stages.cache_clear()


def test_pictures_are_those_of_the_code_that_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import pictures

    made = json.loads((ROOT / "docs/images/made.json").read_text("utf-8"))
    assert made.keys() == pictures.PICTURES.keys()
    for name, picture in pictures.PICTURES.items():
        assert (ROOT / "docs/images" / name).is_file()
        assert made[name] == pictures.state(picture), f"{name} is older than its code: python docs/pictures.py {name}"
    assert "url(http" not in (drawn := (ROOT / "docs/images/demo.svg").read_text("utf-8"))
    assert 'url("http' not in drawn, "it loads nothing from elsewhere"


def test_screens_are_those_of_the_code_that_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import screens

    made = json.loads((screens.IMAGES / "made.json").read_text("utf-8"))
    assert made.keys() == screens.SCREENS.keys()
    files = {f"{name}-{scheme}.webp" for name in made for scheme in screens.SCHEMES}
    assert {path.name for path in screens.IMAGES.glob("*.webp")} == files
    assert sum((screens.IMAGES / name).stat().st_size for name in files) < 600_000
    shown = (ROOT / "docs/page.md").read_text("utf-8")
    assert all(f"](images/page/{name})" in shown for name in files)
    for name, screen in screens.SCREENS.items():
        assert made[name] == screens.state(screen), f"{name} is older than its code: python docs/screens.py {name}"


# What the pages show exists


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_commands_and_options_exist(path: Path) -> None:
    for arguments in [*in_fences(path), *in_prose(path)]:
        shown = " ".join(arguments)
        known = {"--version", "--help", "--config", "--install-completion"}
        if len(arguments) > 1 and not arguments[1].startswith("-"):
            assert arguments[1] in COMMANDS, f"{shown}: no such command"
            command, arguments = below(arguments[1:])
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            known |= extra_options(command.name, arguments)
        options = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
        assert options <= known, f"{shown}: no option {options - known}"


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_commands_that_can_be_copied_parse(path: Path) -> None:
    for _, *shown in in_fences(path):
        command, arguments = below(shown)
        context = command.make_context(command.name, list(arguments))  # raises on a missing or a wrong argument
        if command.name == "show":
            assert which(name := context.params["name"]) or get(name)


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(path)):
        place = (path.parent / target).resolve() if target else path
        if place.parent == ROOT / "docs" / "papers":  # made with the site
            assert place.stem in {paper.id for paper in ours()}, f"{target}: no such paper"
            continue
        assert place.exists(), f"{target}: no such file"
        if anchor:
            text = place.read_text("utf-8")
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-") for heading in headings}
            anchors |= set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
            assert anchor in anchors, f"{target}#{anchor}: no such place"


@pytest.mark.parametrize("path", [path for path in PAGES if path.stem != "CONTRIBUTING"], ids=by_name)
def test_imports_work(path: Path) -> None:
    for block in blocks(path, "python"):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), by_name(path), "exec"), {})


def test_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in PAGES:
        text = written(path)
        for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{by_name(path)}: no make {target}"
        for extra in re.findall(r"(?:broadsheet|\.)\[([a-z]+)\]'", text):
            assert extra in extras, f"{by_name(path)}: no extra {extra}"


def test_reference_pages_name_modules() -> None:
    named = [name for path in PAGES for name in re.findall(r"^::: ([\w.]+)$", path.read_text("utf-8"), re.MULTILINE)]
    assert len(named) > 20
    for name in named:
        try:
            assert importlib.import_module(name)
        except ModuleNotFoundError:  # a class or a function of a module
            module, _, member = name.rpartition(".")
            assert hasattr(importlib.import_module(module), member), name


def test_the_glossary_explains_the_words_of_a_report() -> None:
    terms = re.findall(r"^\*\*(.+)\*\*\n:   ", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
    assert terms == sorted(terms)
    wanted = "arm baseline claim control rung verdict noise_floor minimum_effect peer sibling item open refuted_here"
    assert {word.replace("_", " ") for word in wanted.split()} <= {term.lower() for term in terms}


def test_the_site_asks_no_other_host_and_is_searched_from_the_disk() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  - offline$", text, re.MULTILINE)
    (shim,) = re.findall(r"^  polyfills: \[(\S*iframe-worker\S*)\]", text, re.MULTILINE)
    assert (ROOT / "docs" / shim).is_file(), "without one of this name the plugin takes another host's"
    assert "https:" not in re.sub(r"#.*", "", text)
    for name in ("papers.js", "iframe-worker.js", "style.css"):
        assert "//" not in re.sub(r"^\s*//.*", "", (ROOT / "docs" / name).read_text("utf-8"), flags=re.MULTILINE)


def test_the_navigation_holds_every_page() -> None:
    navigation = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")]
    assert sorted(navigation) == sorted([*pages, *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)])


def test_each_stage_that_is_built_has_a_notebook() -> None:
    (pages,) = re.findall(r"^  - Stages:\n((?:      - .+\n)+)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {path.stem for path in NOTEBOOKS} == set(re.findall(r": (\w+)\.md", pages))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebooks_are_kept_as_they_are_before_they_run_and_name_nothing_they_do_not_make(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    assert undefined("\n".join(blocks(path, "python"))) == set()


def test_links_of_a_notebook_lead_from_its_page_too(generate: ModuleType) -> None:
    notebooks = importlib.import_module("notebooks")
    assert notebooks.linked("[Which](../docs/attend.md#which-one)") == "[Which](../attend.md#which-one)"


# What the pages say is true


def test_counts_versions_and_rungs() -> None:
    for name in ("README.md", "docs/index.md", "CITATION.cff"):
        assert f"page of {len(ours())} papers" in (ROOT / name).read_text("utf-8")
    for name in ("docs/index.md", "CONTRIBUTING.md"):
        rungs = re.findall(r"^\| (\d) (\w+) \|", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert rungs == [(str(i), word) for i, word in enumerate(RUNGS)][-len(rungs) :]
        assert len(rungs) >= 4
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == broadsheet.__version__
    changes = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert changes[0] == broadsheet.__version__


def test_the_table_of_detectors_holds_each_with_its_paper_and_cost() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| \[([\d.]+)\]\((\S+)\) \|.*\| (.+) \|$", (ROOT / "docs/detect.md").read_text(), re.M
    )
    kinds = {name: kind for name in detect.__all__ if isinstance(kind := getattr(detect, name), type)}
    methods = {n for n, kind in kinds.items() if issubclass(kind, detect.Detector) and not kind.__abstractmethods__}
    assert sorted(name for name, *_ in rows) == sorted(methods)
    for name, arxiv, url, cost in rows:
        assert url.endswith(f"/{arxiv}")
        assert arxiv in kinds[name].__doc__
        for field in ("n_samples", "n_perturbations", "n_regenerations"):
            if isinstance(value := getattr(kinds[name], field, None), int):  # a property where nothing is sampled
                assert str(value) in cost


# Examples run


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    """The default model of the detectors is a tiny one."""
    loaded = tiny_model(), tiny_tokenizer()
    monkeypatch.setattr("broadsheet.detect.reading.load", lambda *_, **__: loaded)


def sample() -> dict[str, Any]:
    """The names that the pages' examples leave to the reader."""
    import torch

    texts = [TEXT, TEXT[::-1], TEXT.upper(), TEXT.title()]
    generator = torch.Generator().manual_seed(0)
    return {
        "texts": texts,
        "labelled_texts": texts,
        "labels": [0, 1, 0, 1],
        "logits": torch.randn(60, 50, generator=generator),
        "token_ids": torch.randint(50, (60,), generator=generator),
    }


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["docs/index.md", "docs/detect.md"])
def test_detector_examples_run(name: str) -> None:
    examples = [block for block in blocks(ROOT / name, "python") if "broadsheet.detect" in block]
    assert examples
    for example in examples:
        names = sample()
        exec(example, names)
        for result in (names.get("scores"), names.get("probabilities")):
            values = list(result.values()) if isinstance(result, dict) else [] if result is None else [result]
            assert all(value.shape == (4,) and np.isfinite(value).all() for value in values)
        assert {"scores", "score", "probabilities", "step"} & names.keys()


def test_the_examples_of_the_readme_run_as_they_stand(
    default_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("broadsheet.models", "broadsheet.detect.reading"):  # what is loaded already serves
        monkeypatch.setattr(f"{module}.load", lambda *_, **__: default_model)
    examples = blocks(ROOT / "README.md", "python")
    assert len(examples) == 3
    printed = []
    for example in examples:
        exec(example, {})
        printed.append(capsys.readouterr().out)
    machine, story, ranked = printed
    human, written = map(float, machine.strip("[] \n").split())
    assert written > human, "the second text is a model's"
    assert "very long text" in story
    assert len(ranked.splitlines()) == 3


def test_the_tutorial_runs_line_by_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code and commands, in order, in one folder; a tiny model stands for the default one."""
    monkeypatch.chdir(tmp_path)
    fences = re.findall(
        r"^```(python|sh)\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [language for language, _ in fences] == ["python", "python", "sh", "python", "sh", "python"]
    names: dict[str, Any] = {}
    for language, body in fences:
        given = body.replace('"default"', repr(str(tiny_folder))).replace("--model default", f"--model {tiny_folder}")
        if language == "python":
            exec(given, names)
            continue
        for line in given.splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, capsys.readouterr().err
    assert len(names["human"]) == 24
    assert len({json.loads(line)["id"] for line in Path("machine.jsonl").read_text().splitlines()}) == 24
    assert Path("runs/lastde.html").read_text().startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert str(TrialAnswer(names["result"])) in printed
    assert {"Likelihood", "Lastde", "Lastde++"} <= {arm.name for arm in names["result"].arms}
    scores = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scores] == [str(i) for i in range(24)]
    assert np.isfinite(names["scores"]).all()


def test_endpoint_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    (example,) = (block for block in blocks(ROOT / "docs/teacher.md", "python") if "endpoint:" in block)
    with Loopback() as server:
        exec(example.replace("http://127.0.0.1:8000/v1", server.url), {})
    assert capsys.readouterr().out.count("Name three birds.") == 4
    assert len(server.requests) == 2


def test_external_skeleton_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skeleton, comparison = blocks(ROOT / "docs" / "external.md", "python")
    peer = tmp_path / "peer_arm.py"
    peer.write_text(skeleton)
    comparison = comparison.replace("/opt/peer/bin/python", sys.executable).replace("peer_arm.py", str(peer))
    names: dict[str, Any] = {"items": ["one two three", "four"]}
    exec(comparison, names)
    baseline, words = names["results"]
    assert (words.status, words.error) == ("ok", "")
    assert words.samples["score"] == [3.0, 1.0]
    assert baseline.values["length"].estimate == (len("one two three") + len("four")) / 2
    assert words.peak_bytes > 0
    assert "length: " in capsys.readouterr().out


def test_external_skeleton_reports_its_errors(tmp_path: Path) -> None:
    skeleton, _ = blocks(ROOT / "docs" / "external.md", "python")
    peer = tmp_path / "peer_arm.py"
    peer.write_text(skeleton)
    from broadsheet.trial.outside.external import external_arm

    arms = [
        Arm("baseline", lambda block: {"score": [0.0 for _ in block]}, role="baseline"),
        external_arm("peer", [sys.executable, str(peer)]),
    ]
    results, _ = run_arms(arms, ["text", 7], [Metric("score")], block_size=1)
    assert results[1].status == "failed"
    assert "AttributeError" in results[1].error
