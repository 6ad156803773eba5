"""The command as a user types it: what it prints, what it refuses, and what that leaves behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from broadsheet import options, report
from broadsheet.cli import app as cli
from broadsheet.cli.root import app
from broadsheet.cli.show import _reflowed
from broadsheet.data import resources
from broadsheet.page import evidence, staleness
from broadsheet.page.docparts import example, use
from broadsheet.page.papers import docstring, get, page, stages
from broadsheet.report.answer import TrialAnswer
from broadsheet.trial.results import ArmResult, TrialResult

COMMANDS = (
    "papers",
    "show",
    "try",
    "study",
    "demo",
    "compare",
    "apply",
    "index",
    "search",
    "hear",
    "models",
    "new",
    "peer",
    "push",
    "serve",
    "mcp",
)
TEXTS = ["Return the number of items in the list, or zero when it is empty.", "", "x", "Ünïcode — 日本語 " * 5]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def command(*arguments: str) -> None:
    """`broadsheet …` in a process of its own."""
    sys.argv = ["broadsheet", *arguments]
    cli.main()


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def test_help_names_every_command_and_each_has_an_example(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(re.search(rf"^  {command}  ", out, re.MULTILINE) for command in COMMANDS)
    for command in COMMANDS:
        status, out, _ = run(command, "--help")
        assert status == 0
        assert f"Example: broadsheet {command}" in out


@pytest.mark.parametrize("command", ["advise", "guide long-context", "try", "peer", "show"])
def test_a_command_that_is_built_alone_is_the_one_among_all(command):
    name, *more = command.split()
    alone = cli.narrowed(name)
    assert alone is not None
    assert len(alone.registered_commands) + len(alone.registered_groups) == 1
    for arguments in (["--help"], ["--no-such-option"], []):
        one, all_ = (
            CliRunner().invoke(each, [name, *more, *arguments], prog_name="broadsheet") for each in (alone, cli.whole())
        )
        assert (one.exit_code, one.output, repr(one.exception)) == (all_.exit_code, all_.output, repr(all_.exception))


@pytest.mark.parametrize("first", ["index", "--help", "nope", "-h", ""])
def test_what_is_no_command_of_its_own_needs_all(first):
    assert cli.narrowed(first) is None


def test_looking_around_imports_nothing_heavy():
    commands = ["papers", "--help", "show salt", *(f"{command} --help" for command in COMMANDS)]
    code = (
        "import sys; from broadsheet import cli\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = ['broadsheet', *command.split()]\n"
        "    try: cli.main()\n"
        "    except SystemExit as ended: assert not ended.code, command\n"
        "    heavy = {'torch', 'transformers', 'sklearn'} | ({'pydantic', 'rich'} if command == 'papers' else set())\n"
        "    heavy = sorted(heavy & set(sys.modules))\n"
        "    assert not heavy, f'{command} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"Example: broadsheet {command}" in done.stdout for command in COMMANDS)


def test_papers_lists_searches_and_filters(run):
    _, out, err = run("papers")
    assert len(out.splitlines()) == 80
    assert "79 of 79 papers" in err
    _, out, _ = run("papers", "sliding", "--stage", "rank", "--json")
    assert [paper["id"] for paper in json.loads(out)] == ["fullrank"]
    assert run("papers", "no such thing")[1] == ""


def test_show_fits_a_screen_and_says_what_to_do(run, monkeypatch):
    monkeypatch.setattr(staleness, "stale", lambda name: "")
    monkeypatch.setenv("COLUMNS", "80")
    for paper in page():
        _, out, _ = run("show", paper.id)
        lines = out.splitlines()
        assert len(lines) <= 40, paper.id
        words = " ".join(out.split())
        assert paper.title in words
        assert f"rung {paper.rung} " in words
        if paper.summary:
            assert paper.summary in words
        if paper.entry and paper.in_stage:
            assert f"import {paper.entry[0].partition(':')[2]}" in out
            assert use(docstring(paper.entry[0])) in words
            for line in example(docstring(paper.entry[0])).splitlines():
                assert f"    {line}\n" in out, "code is not broken"
        elif not paper.entry:
            assert "Listed; not built yet" in out
        if recorded := evidence.read(paper.id, evidence.folder()):
            answer = TrialAnswer(TrialResult.from_dict(recorded))
            assert all(told in words for told in (str(answer), *answer.beside))
        assert (f"broadsheet try {paper.id} --quick" in out) == bool(paper.trial)
        assert "Options of" not in out


def test_show_full_teaches_everything(run):
    _, out, _ = run("show", "2410.06072", "--full")
    assert "from broadsheet.detect import LastdePP" in out
    assert "broadsheet try lastde" in out
    paper, words = get("lastde"), " ".join(out.split())
    assert all(phrase in words for phrases in paper.scope.values() for phrase in phrases)
    begins = [f"rung {paper.rung} ", *(f"{heading} {phrases[0]}" for heading, phrases in paper.scope.items())]
    places = [words.index(begin) for begin in begins]
    assert len(places) == 4
    assert places == sorted(places), "beside the rung, in the order of the row"
    assert words.index("from broadsheet.detect import Lastde") > places[-1]
    assert json.loads(run("show", "lastde", "--json")[1])["stands_in"] == paper.stands_in
    assert re.search(r"--generator +A second model writes", out)
    assert json.loads(run("show", "lastde", "--json")[1])["id"] == "lastde"
    assert "leaves out" not in run("show", "a_llmrec", "--full")[1]


def test_show_of_a_stage_says_which_method_to_take(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for stage in stages():
        _, out, _ = run("show", stage.id)
        words = " ".join(out.split())
        assert stage.about in words
        assert all(f"{paper.id} " in out for paper in stage.papers)
        assert max(map(cell_len, out.splitlines())) <= 80
        if stage.trial:
            assert f"broadsheet try {stage.id}" in out
    assert "FastDetectGPT" in run("show", "detect")[1]
    assert "decode=" in run("show", "RANK")[1]
    assert "reciprocal-rank fusion" in " ".join(run("show", "search")[1].split()), "a folder that is no stage"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "lastd"], "did you mean lastde"),
        (["try", "detekt"], "did you mean detect"),
        (["try", "a_llmrec"], "listed but not built"),
        (["papers", "--stage", "x"], "no stage 'x'"),
        (["try", "lastde", "--no-such", "1"], "no option --no-such"),
        (["try", "lastde", "--pairs", "many"], "got --pairs 'many'; expected a whole number"),
        (["try", "lastde", "stray"], "got 'stray' where an option was expected"),
        (["try", "lastde", "--pairs", "1"], "got --pairs 1; expected 2 or more"),
        (["try", "lastde", "--model", "tiny", "--temperatures", "hot"], "expected numbers separated by commas"),
        (["try", "lastde", "--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["apply", "lastde", "nowhere.jsonl", "--out", "o"], "no corpus at nowhere.jsonl"),
        (["apply", "a_llmrec", "corpus.jsonl", "--out", "o"], "nothing to apply yet"),
        (["apply", "lastde", "empty", "--out", "o"], "holds no documents"),
        (
            ["apply", "lastde", "corpus.jsonl", "--out", "o", "--method", "x"],
            "got --method x; expected one of Lastde, ",
        ),
        (["apply", "lastde", "corpus.jsonl", "--out", "o", "--batch", "0"], "got --batch 0; expected 1 or more"),
        (["compare", "a.csv", "b.csv"], "a.csv"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(run, corpus, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("broadsheet: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self/mem").exists(), reason="needs a folder nobody can write")
def test_a_report_folder_that_cannot_be_written_is_said_before_the_work(run):
    status, _, err = run("try", "lastde", "--out", "/proc/nowhere")
    assert status == 2
    assert "give another folder with --out" in err


def test_an_unwritable_cache_is_said(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "file" / "home"))
    status, _, err = run("try", "lastde")
    assert status == 2
    assert "set BROADSHEET_HOME to a writable folder" in err


def test_no_network_on_first_use_is_one_line_with_the_remedy(run, monkeypatch, corpus):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    status, _, err = run("apply", "lastde", str(corpus), "--out", "o")
    assert status == 2
    assert "PIP_FIND_LINKS" in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["show", "lastde"], ["show", "lastd"], ["papers"]])
def test_a_terminal_without_unicode_is_served(arguments):
    command = [str(Path(sys.executable).with_name("broadsheet")), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "broadsheet", "papers", "sliding", "--stage", "rank", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [paper["id"] for paper in json.loads(done.stdout)] == ["fullrank"]
    refused = subprocess.run([*command[:3], "compare", "none.jsonl", "none.jsonl"], capture_output=True, check=False)
    assert refused.returncode == 2


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("broadsheet.page.papers.search", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["broadsheet", "papers"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_negative_seed_is_refused(run):
    status, _, err = run("try", "lastde", "--seed", "-1")
    assert status == 2
    assert "--seed" in err


def test_help_lists_the_options_of_a_trial_and_of_a_recipe(run):
    status, out, _ = run("try", "lastde", "--help")
    assert status == 0
    assert re.search(r"--perturbations N +Of DetectGPT and NPR .*\s.*\s*.*\(5; with --quick 0\)", out)
    status, out, _ = run("apply", "lastde", "--help")
    assert status == 0
    assert "--calibrate FILE" in out
    assert "--pairs" not in out


def test_a_switch_is_true_or_false_in_words_and_nothing_else(run):
    status, _, err = run("try", "lastde", "--quick=maybe")
    assert status == 2
    assert "got --quick 'maybe'; expected true or false" in err


def test_docstrings_are_reflowed_but_keep_their_items():
    long = "word " * 21 + "end"
    text = f"{long}\ngoes on.\n\nArgs:\n    one: {long}\n        more.\n    two: short"
    assert _reflowed(text) == f"{long} goes on.\n\nArgs:\n    one: {long} more.\n    two: short"


def test_compare_prints_a_verdict(run, tmp_path):
    for name, right in (("a", 0), ("b", 1)):
        rows = [{"id": i, "correct": int(right or i % 2)} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run("compare", "a.jsonl", "b.jsonl")
    assert "correct: b is better than a: +0.50" in " ".join(out.split())
    _, out, _ = run("compare", "b.jsonl", "a.jsonl", "--names", "tuned, base")
    assert "correct: base is worse than tuned: −0.50" in " ".join(out.split())
    for wrong in ("one", "a,a", "a,b,c", ","):
        assert "expected two different names" in run("compare", "a.jsonl", "b.jsonl", "--names", wrong)[2]
    [comparison] = json.loads(run("compare", "a.jsonl", "b.jsonl", "--json")[1])
    assert (comparison["test"], comparison["verdict"]) == ("exact McNemar", "helps")


def test_models_lists_the_default(run):
    [row] = [model for model in json.loads(run("models", "--json")[1]) if model["name"] == "default"]
    assert row["whole"] is False


@pytest.fixture
def tiny(tiny_folder) -> str:
    return str(tiny_folder)


def test_apply_scores_each_document_once_and_refuses_to_overwrite(run, corpus, tiny):
    arguments = ("apply", "detect", str(corpus), "--out", "scores.jsonl", "--model", tiny, "--method", "likelihood")
    assert run(*arguments)[0] == 0
    lines = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["d0", "d1", "d2", "d3"]
    assert [line["score"] is None for line in lines] == [False, True, True, False]
    before = Path("scores.jsonl").read_bytes()
    status, _, err = run(*arguments)
    assert status == 2
    assert "--force" in err
    assert run(*arguments, "--force")[0] == 0
    assert Path("scores.jsonl").read_bytes() == before


def test_apply_calibrates_on_labelled_documents(run, corpus, tiny, tmp_path):
    labelled = tmp_path / "labelled.jsonl"
    rows = [{"text": text * 2, "label": i % 2} for i, text in enumerate(TEXTS * 3) if len(text) > 1]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("apply", "detect", str(corpus), "--model", tiny, "--method", "rank")
    assert run(*common, "--out", "o.jsonl", "--calibrate", str(labelled))[0] == 0
    probabilities = [json.loads(line)["probability"] for line in Path("o.jsonl").read_text().splitlines()]
    assert 0 < probabilities[0] < 1
    assert probabilities[1] is None
    status, _, err = run(*common, "--out", "p.jsonl", "--calibrate", str(corpus))
    assert status == 2
    assert "expected a field `label` of 0 or 1" in err


def test_bad_lines_stop_or_are_skipped(run, tiny, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"id": "a", "text": "some words to read here"}\nnot json\n{"id": "b"}\n{"text": "\xff"}\n')
    common = ("apply", "detect", str(bad), "--model", tiny, "--method", "likelihood", "--out", "o.jsonl")
    status, _, err = run(*common)
    assert status == 2
    assert "bad.jsonl:2" in err
    status, _, err = run(*common, "--on-error", "skip", "--force")
    assert status == 0
    assert "3 bad rows skipped" in err
    assert len(Path("o.jsonl").read_text().splitlines()) == 1


def test_a_hostile_config_runs_and_fetches_nothing(run, corpus, tiny, tmp_path):
    config = Path(tiny) / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"_attn_implementation": "someone/kernel"}))
    status, _, err = run("apply", "lastde", str(corpus), "--out", "o.jsonl", "--model", tiny)
    assert status == 2
    assert "someone/kernel" in err
    (Path(tiny) / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config.write_text(json.dumps(settings | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    assert run("apply", "lastde", str(corpus), "--out", "o.jsonl", "--model", tiny)[0] == 2
    assert not (tmp_path / "ran").exists()


def test_truncated_weights_are_one_line(run, corpus, tiny):
    weights = Path(tiny) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    status, _, err = run("apply", "lastde", str(corpus), "--out", "o.jsonl", "--model", tiny)
    assert status == 2
    assert "model.safetensors" in err


def test_a_reference_of_another_family_is_one_line(run, corpus, tiny, tiny_tokenizer, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(other)
    arguments = ("--model", tiny, "--reference", str(other), "--method", "binoculars")
    status, _, err = run("apply", "detect", str(corpus), "--out", "o.jsonl", *arguments)
    assert status == 2
    assert "tokenizer" in err


def test_apply_resumes_after_kill_9_with_no_line_lost_or_doubled(run, tiny, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"{i} " + TEXTS[0]}) + "\n" for i in range(60)))
    arguments = ["apply", "lastde", str(path), "--model", tiny, "--batch", "4", "--method", "lastdepp", "--out"]
    partial = tmp_path / "killed.jsonl.partial"
    process = forks.start(command, *arguments, "killed.jsonl")
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size > 500):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not Path("killed.jsonl").exists()
    kept = partial.read_bytes()
    assert run(*arguments, "killed.jsonl")[0] == 0
    assert run(*arguments, "whole.jsonl")[0] == 0
    assert Path("killed.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("killed.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert len(Path("whole.jsonl").read_text().splitlines()) == 60


def test_try_runs_end_to_end_on_a_tiny_model(run, tiny, tmp_path):
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    documents = [" ".join(words[(i * j + j) % 10] for j in range(1, 200)) for i in range(1, 40)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"body": f"{i} {text}"}) + "\n" for i, text in enumerate(documents)))
    status, out, _ = run(
        *("try", "lastde", "--model", tiny, "--data", str(data), "--text-field", "body", "--pairs", "6"),
        *("--generator", tiny, "--perturbations", "2", "--regenerations", "2", "--quick", "--full"),
    )
    assert status == 0
    for name in ("Likelihood *", "Lastde++", "DetectGPT", "NPR", "DNA-GPT", "AUROC, black-box", "T=0.8"):
        assert name in out
    result = json.loads(Path("runs/lastde.json").read_text())
    # A random model writes hardly any spaces: too few words to mask, which is said and not dropped.
    errors = {arm["name"]: arm["error"] for arm in result["arms"] if arm["error"]}
    assert errors.keys() <= {"DetectGPT", "NPR"}
    assert all("are NaN" in error and error in " ".join(out.split()) for error in errors.values())
    assert len(result["arms"]) == 12
    assert result["setting"]["pairs"].startswith("6 from ")
    assert Path("runs/lastde.html").read_text().startswith("<!DOCTYPE html>") or Path("runs/lastde.html").exists()
    assert not list((tmp_path / "home" / "trials").iterdir())
    assert result["command"].startswith("broadsheet try lastde --model")


def test_a_result_names_the_data_that_others_can_have_too(run, monkeypatch, tmp_path):
    class Trial:
        def for_paper(self, paper):
            return self

        def given(self):
            return {"data": "resource:cranfield", "sts": "resource:stsb/stsb-dev.tsv", "seed": 0}

        def run(self):
            arm = ArmResult("one", "baseline")
            return TrialResult("gem", "t", "q", {}, [arm], [], provenance=evidence.provenance(seed=0))

        def finish(self):
            pass

    written = []
    monkeypatch.setattr(options, "construct", lambda kind, given: Trial())
    monkeypatch.setattr(report, "write", lambda result, out: written.append(result) or [])
    monkeypatch.setattr(report, "terminal", lambda result, **options: None)
    assert run("try", "gem")[0] == 0
    made = written[0].provenance
    assert list(made["named data"]) == ["resource:cranfield", "resource:stsb/stsb-dev.tsv"]
    assert made["named data"]["resource:cranfield"] == resources.fingerprint("resource:cranfield")


def test_show_says_when_evidence_is_older_than_its_code(run, monkeypatch):
    monkeypatch.setattr(staleness, "stale", lambda name: f"{name} changed since")
    status, out, _ = run("show", "lastde")
    assert status == 0
    assert "Perhaps out of date: lastde changed since." in out
    assert json.loads(run("show", "lastde", "--json")[1])["stale"] == "lastde changed since"
    monkeypatch.setattr(staleness, "stale", lambda name: "")
    assert "Perhaps out of date" not in run("show", "lastde")[1]


def test_the_runner_of_other_tools_works_too():
    assert CliRunner().invoke(app, ["--version"]).output.startswith("broadsheet 0.")


def test_try_takes_machine_texts_that_are_there(run, tiny, tmp_path):
    for name, word in (("human", "bird"), ("machine", "engine")):
        texts = [" ".join(f"{word}{(i * j) % 17}" for j in range(1, 40)) for i in range(1, 9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    common = ("try", "detect", "--quick", "--model", tiny, "--data", "human.jsonl")
    assert run(*common, "--machine", "machine.jsonl", "--pairs", "8")[0] == 0
    result = json.loads(Path("runs/detect.json").read_text())
    assert result["setting"]["pairs"].startswith("8 from ")
    assert result["setting"]["written by"] == "machine.jsonl (given)"
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import json, sys\nprint(json.dumps({'ready': True}), flush=True)\nfor line in sys.stdin:\n"
        "    scores = [float('engine' in text) for text in json.loads(line)['items']]\n"
        "    print(json.dumps({'outputs': {'score': scores}}), flush=True)\n"
    )
    command = shlex.join([sys.executable, str(peer)])
    assert run(*common, "--machine", "machine.jsonl", "--pairs", "8", "--peer", command)[0] == 0
    arms = {arm["name"]: arm for arm in json.loads(Path("runs/detect.json").read_text())["arms"]}
    assert arms["peer: peer.py"]["values"]["AUROC"]["estimate"] == 1.0
    assert arms["peer: peer.py"]["role"] == "peer"
    status, _, err = run(*common, "--machine", "machine.jsonl", "--generator", tiny)
    assert status == 2
    assert "got --machine and --generator" in err


def test_a_stage_whose_packages_are_missing_says_what_to_install(run, monkeypatch):
    from broadsheet.page import papers

    def load(entry):
        raise ModuleNotFoundError("No module named 'sentence_transformers'", name="sentence_transformers")

    monkeypatch.setattr(papers, "load", load)
    status, _, err = run("try", "gem")
    assert status == 2
    assert err.strip().endswith("this needs sentence_transformers: pip install -e '.[embed]'")


def test_compare_holds_the_line_with_a_margin(run, tmp_path):
    def rows(name: str, values: list[float]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"id": i, "score": value}) + "\n" for i, value in enumerate(values)))
        return str(path)

    base = rows("base.jsonl", [(i * 7 % 10) / 10 for i in range(60)])
    alike = rows("alike.jsonl", [(i * 7 % 10) / 10 + 0.02 * (-1) ** i for i in range(60)])
    worse = rows("worse.jsonl", [(i * 7 % 10) / 10 - 0.3 + 0.02 * (-1) ** i for i in range(60)])
    status, out, _ = run("compare", base, alike, "--margin", "score=0.05", "--strict")
    assert status == 0
    assert "equal within 0.05" in " ".join(out.split())
    status, _, err = run("compare", base, alike, "--margin", "score=0.001", "--strict")
    assert status == 1
    assert "worse, or not shown to be no worse: score" in err
    assert run("compare", base, worse, "--strict")[0] == 1
    assert run("compare", base, worse)[0] == 0
    status, _, err = run("compare", base, alike, "--margin", "beauty=1")
    assert status == 2
    assert "expected one of the metrics score" in err


def test_without_arguments_it_says_what_there_is(run):
    status, out, err = run()
    assert status == 0
    assert "Commands" in out
    assert err == ""


def test_the_demo_writes_the_same_texts_twice(run, tiny):
    status, out, _ = run("demo", "--model", tiny, "--tokens", "12")
    assert status == 0
    assert "the same text token for token: 3 of 3" in " ".join(out.split())
    assert out.count("with drafts,") == 3, "side by side"
    assert "broadsheet try aded --quick" in out


def test_a_config_file_gives_options_and_the_kept_command_spells_them_out(run, tiny, corpus, tmp_path):
    (tmp_path / "mine.toml").write_text(f'model = "{tiny}"\nmethod = "likelihood"\n')
    assert run("apply", "detect", str(corpus), "--out", "scores.jsonl", "--config", "mine.toml")[0] == 0
    (tmp_path / "all.toml").write_text(f'[apply]\nmodel = "{tiny}"\nmethod = "likelihood"\nout = "other.jsonl"\n')
    assert run("--config", "all.toml", "apply", "detect", str(corpus))[0] == 0
    assert Path("other.jsonl").read_bytes() == Path("scores.jsonl").read_bytes()
    (tmp_path / "wrong.toml").write_text("modle = 3\n")
    status, _, err = run("apply", "detect", str(corpus), "--out", "third.jsonl", "--config", "wrong.toml")
    assert status == 2
    assert "no option --modle" in err
