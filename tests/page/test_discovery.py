"""What discovery finds: every class with its paper or stage, and the papers of a reader's own package."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from checkouts import ROOT, run

from broadsheet.page import discovery, papers
from broadsheet.page.discovery import Exports, Found, Package

METHOD = '''"""Toy."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from broadsheet.detect.base import Detector


@dataclass
class {name}(Detector):
    """How long its words are.

    Use when … Inputs: … Relation: … Example: … Source: arXiv:1.
    """

    paper: ClassVar[str] = "{id}"
    beats: ClassVar[str] = "Likelihood"

    def score_readings(self, texts, readings, reader):
        return np.array([np.mean([len(word) for word in text.split()] or [0]) for text in texts])
'''
ROW = '[[paper]]\nid = "{id}"\narxiv = "1.{id}"\nkind = "method"\nstage = "detect"\ntitle = "Toy paper {id}"\n'


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """A package `name` with an entry point, as `pip install --target site` would leave it."""
    for file, text in files.items():
        path = site / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{discovery.GROUP}]\n{name} = {name}\n")


def scanned(folder: Path, **files: str) -> list[Found]:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(discovery._scan(Package("somebody", folder)))


# What is found


def test_a_class_is_found_by_its_line_and_named_by_what_it_is(tmp_path):
    source = (
        'class One:\n    paper: ClassVar[str] = "a"\n\n'
        'class OneTrial:\n    paper: ClassVar[str] = "a"\n\n'
        'class OneRecipe(Map):\n    """Doc."""\n    paper: ClassVar[str] = "a"\n\n'
        'class AllTrial:\n    stage: ClassVar[str] = "detect"\n\n'
        'class Nothing:\n    title: ClassVar[str] = "a"\n'
    )
    assert scanned(tmp_path, parts__one=source) == [
        Found("somebody.parts.one:One", "paper", "a", "method", "somebody"),
        Found("somebody.parts.one:OneTrial", "paper", "a", "trial", "somebody"),
        Found("somebody.parts.one:OneRecipe", "paper", "a", "recipe", "somebody"),
        Found("somebody.parts.one:AllTrial", "stage", "detect", "trial", "somebody"),
    ]


def test_what_only_looks_like_the_line_is_not_found(tmp_path):
    source = 'class One:\n    # paper: ClassVar[str] = "a"\n    def f(self):\n        paper: ClassVar[str] = "a"\n'
    assert scanned(tmp_path, one=source, two='paper: ClassVar[str] = "a"\n') == []


@pytest.mark.parametrize("found", discovery.classes(), ids=lambda found: f"{found.entry}-{found.key}")
def test_every_class_is_what_it_is_found_as(found):
    kind = discovery.load(found.entry)
    assert getattr(kind, found.key) == found.id, "inherited, or set anew"
    listed = {paper.id: paper for paper in papers.page()}
    assert found.id in (listed if found.key == "paper" else {stage.id for stage in papers.stages()})
    if found.key == "paper" and found.package == "broadsheet":
        assert f".{listed[found.id].stage}." in found.entry, "in the folder of its stage"
    if found.kind == "trial":
        from broadsheet.trial.base import Trial

        assert issubclass(kind, Trial)
    if found.kind == "recipe":
        from broadsheet.apply.base import Recipe

        assert issubclass(kind, Recipe)


def test_each_paper_and_stage_has_at_most_one_trial_and_one_recipe():
    kept = [(each.key, each.id, each.kind) for each in discovery.classes() if each.kind != "method"]
    assert len(set(kept)) == len(kept)


def test_a_paper_without_a_trial_of_its_own_has_its_stages(monkeypatch):
    assert (
        papers.get("lastde").trial == discovery.stage_trial("detect") == "broadsheet.detect.trials.detect:DetectTrial"
    )
    assert papers.get("lastde").apply == discovery.stage_recipe("detect")
    assert papers.get("cudrt").trial == "", "of the same stage, but not built"
    own = Found("broadsheet.detect.trials.lastde:LastdeTrial", "paper", "lastde", "trial", "broadsheet")
    found = discovery.classes_of(discovery.own())
    monkeypatch.setattr(discovery, "classes_of", lambda package: (*found, own))
    assert papers.get("lastde").trial == own.entry


def test_a_stage_exports_its_papers_classes_and_its_parts():
    exports = Exports("broadsheet.detect", {"base": ("score_all",)})
    assert exports.names == ["Lastde", "LastdePP", "score_all"]
    assert exports.get("LastdePP") is import_module("broadsheet.detect.lastde").LastdePP
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        exports.get("Nothing")


# A reader's own package


def test_a_package_adds_papers_that_are_listed_shown_tried_and_compared(tmp_path, tiny_folder, home):
    site, table = tmp_path / "site", ROW.format(id="toy_words") + ROW.format(id="mute")
    recipe = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom broadsheet.apply.base import Map\n\n"
        '@dataclass\nclass ToyRecipe(Map):\n    """Count."""\n    paper: ClassVar[str] = "toy_words"\n\n'
        "    def settings(self):\n        return {}\n\n"
        '    def results(self, documents):\n        return [{"words": len(d.text.split())} for d in documents]\n'
    )
    command = (
        "import typer\nNAME = None\napp = typer.Typer()\n\n@app.command()\ndef hello():\n    print('hello')\n\n"
        "@app.callback()\ndef root():\n    pass\n"
    )
    method = METHOD.format(name="ToyWords", id="toy_words")
    thief = METHOD.format(name="Thief", id="lastde")  # credits itself to a paper of ours
    mute = METHOD.format(name="Mute", id="mute").replace('= "Likelihood"', '= ""')  # claims nothing
    files = {"__init__.py": "", "papers.toml": table, "toy_words.py": method, "thief.py": thief, "mute.py": mute}
    install(site, "somebody", files | {"recipes.py": recipe, "commands.py": command})
    for name, word in (("human", "long"), ("machine", "longest")):
        rows = (json.dumps({"id": i, "text": f"{word} words {'ab ' * (i + 1)}"}) + "\n" for i in range(8))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    texts = ("--data", "human.jsonl", "--machine", "machine.jsonl", "--model", str(tiny_folder), "--quick")
    listed, listed_json, shown, tried, refused, compared, applied, ours, mounted = run(
        ("broadsheet", "papers", "--stage", "detect"),
        ("broadsheet", "papers", "toy", "--json"),
        ("broadsheet", "show", "toy_words"),
        ("broadsheet", "try", "toy_words", *texts, "--record"),
        ("broadsheet", "try", "mute", *texts, "--record"),
        ("broadsheet", "try", "detect", *texts, "--out", "all"),
        ("broadsheet", "apply", "toy_words", "human.jsonl", "--out", "words.jsonl"),
        ("show", "[papers.get('lastde').entry, len(papers.ours()), papers.get('toy_words').rung]"),
        ("broadsheet", "somebody", "hello"),
        root=tmp_path,
        path=[str(ROOT / "src"), str(site)],
    )
    assert "toy_words" in listed[1]
    assert "Toy paper toy_words [somebody]" in listed[1]
    assert "[somebody]" not in next(line for line in listed[1].splitlines() if line.startswith("lastde"))
    assert "3 of 79 papers, and 2 of other packages" in listed[2]
    assert [row["package"] for row in json.loads(listed_json[1])] == ["somebody"] * 2
    assert "added by the package somebody" in shown[1]
    assert "from somebody.toy_words import ToyWords" in shown[1]
    assert tried[0] == 0, tried
    recorded = json.loads((site / "somebody" / "evidence" / "toy_words.json").read_text())
    assert [claim["arm"] for claim in recorded["judged"]] == ["ToyWords"]
    roles = {arm["name"]: arm["role"] for arm in recorded["arms"]}
    assert (roles["ToyWords"], roles["Likelihood"]) == ("method", "baseline")
    assert refused[0] == 2
    assert "nothing is recorded: the trial of mute names no claim of the paper" in refused[2]
    assert not (site / "somebody" / "evidence" / "mute.json").exists()
    assert compared[0] == 0, compared
    together = {arm["name"] for arm in json.loads((tmp_path / "all" / "detect.json").read_text())["arms"]}
    assert {"ToyWords", "Lastde", "Lastde++"} <= together
    assert applied[0] == 0, applied
    assert [json.loads(line)["words"] for line in (tmp_path / "words.jsonl").read_text().splitlines()] == list(
        range(3, 11)
    )
    entry, number, rung = json.loads(ours[1])
    assert entry == ["broadsheet.detect.lastde:Lastde", "broadsheet.detect.lastde:LastdePP"], "ours stays ours"
    assert (number, rung) == (79, 1)
    assert mounted[:2] == (0, "hello\n")


SYNTAX = 'class X(:\n    paper: ClassVar[str] = "x"\n'
BROKEN = {
    "bad toml": ({"papers.toml": "[[paper]\n"}, r"papers.toml: .*line 1"),
    "no table": ({"__init__.py": ""}, r"expected .*papers.toml"),
    "a key too few": ({"papers.toml": '[[paper]]\nid = "x"\n'}, r"paper 1: got id; expected id, arxiv, kind"),
    "an id of ours": ({"papers.toml": ROW.format(id="lastde")}, r"the id 'lastde' is taken by broadsheet"),
    "phrases that are no list": (
        {"papers.toml": ROW.format(id="x") + 'implements = "all of it"\n'},
        r"papers.toml, paper 1 \(x\): got implements = 'all of it'; expected a list of texts",
    ),
    "a phrase that is no text": (
        {"papers.toml": ROW.format(id="x") + 'leaves_out = ["a part", 3]\n'},
        r"paper 1 \(x\): got leaves_out = \['a part', 3\]; expected a list of texts",
    ),
    "an empty phrase": (
        {"papers.toml": ROW.format(id="x") + 'implements = [" "]\n'},
        r"paper 1 \(x\): got implements = \[' '\]; expected a list of texts",
    ),
    "offers that are no list": (
        {"papers.toml": ROW.format(id="x") + 'offers = "x:y"\n'},
        r"paper 1 \(x\): got offers = 'x:y'; expected a list of texts",
    ),
    "stand-ins that are no table": (
        {"papers.toml": ROW.format(id="x") + 'stands_in = ["a model"]\n'},
        r"paper 1 \(x\): got stands_in = \['a model'\]; expected a table of texts",
    ),
    "a stand-in that is no text": (
        {"papers.toml": ROW.format(id="x") + "[paper.stands_in]\nmodel = 7\n"},
        r"paper 1 \(x\): got stands_in = \{'model': 7\}; expected a table of texts",
    ),
    "no such stage": ({"papers.toml": ROW.format(id="x").replace("detect", "nowhere")}, r"no stage 'nowhere'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_costs_one_line_and_nothing_else(tmp_path, name):
    files, message = BROKEN[name]
    install(tmp_path, "somebody", {"__init__.py": ""} | files)
    ((status, out, err),) = run(
        ("broadsheet", "papers", "lastde"), root=tmp_path, path=[str(ROOT / "src"), str(tmp_path)]
    )
    assert (status, len(out.splitlines())) == (0, 2)
    first, last = err.splitlines()
    assert first.startswith("the package 'somebody' (entry-point group broadsheet.papers) is left out: ")
    assert re.search(message, first)
    assert last == "1 of 79 papers"


def test_a_broken_command_of_a_package_costs_one_line_where_commands_are_listed(tmp_path):
    install(tmp_path, "somebody", {"__init__.py": "", "papers.toml": "", "commands.py": "1 / 0"})
    listed, papers_alone, missing = run(
        ("broadsheet", "--help"),
        ("broadsheet", "papers", "lastde"),
        ("broadsheet", "somebody"),
        root=tmp_path,
        path=[str(ROOT / "src"), str(tmp_path)],
    )
    line = "the package 'somebody' (entry-point group broadsheet.papers) is left out: somebody.commands: ZeroDivision"
    assert listed[0] == 0
    assert "  advise  " in listed[1]
    assert listed[2].startswith(line)
    assert len(listed[2].splitlines()) == 1
    assert papers_alone[2] == "1 of 79 papers\n", "it needs no other command"
    assert missing[0] == 2
    assert missing[2].startswith(line)
    assert "No such command 'somebody'" in missing[2]


def test_a_package_that_is_gone_and_a_class_that_cannot_be_imported(tmp_path):
    install(tmp_path, "somebody", {"papers.toml": ROW.format(id="x"), "__init__.py": "", "x.py": SYNTAX})
    info = tmp_path / "gone-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{discovery.GROUP}]\ngone = gone_away\n")
    listed, shown, others = run(
        ("broadsheet", "papers", "toy"),
        ("broadsheet", "show", "x"),
        ("show", "sorted(papers.stage_methods('detect'))"),
        root=tmp_path,
        path=[str(ROOT / "src"), str(tmp_path)],
    )
    assert listed[0] == 0
    assert "'gone_away' (entry-point group broadsheet.papers) is left out: it is no package" in listed[2]
    assert "Toy paper x [somebody]" in listed[1]
    assert shown[0] == 2
    assert re.search(r"broadsheet: .*x.py:1: ", shown[2].splitlines()[-1])
    assert json.loads(others[1]) == ["lastde", "lastde.LastdePP"]
    assert "'somebody' (entry-point group broadsheet.papers) is left out: somebody.x:X cannot be imported" in others[2]
