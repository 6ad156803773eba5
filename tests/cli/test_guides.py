"""`broadsheet advise`, `map` and `guide`: what they print, ask, and refuse."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from configs import DEFAULT
from rich.cells import cell_len

from broadsheet.cli import guides
from broadsheet.page import evidence, papers
from broadsheet.page.guides import advice, flow, longcontext, maps

GOALS = list(advice.facts()["goal"].values)
LONG = ["guide", "long-context", "--model", "small", "--length", "32k"]


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    """A folder with the configs of two models; a terminal of 80 columns, and nobody at it."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for name, more in (("small", {}), ("mixture", {"num_experts": 8})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(DEFAULT | more))
    monkeypatch.setattr(builtins, "input", lambda prompt="": pytest.fail(f"asked {prompt!r}"))
    monkeypatch.setattr(evidence, "read", cache(evidence.read))


@pytest.fixture
def terminal(monkeypatch) -> Callable[..., list[str]]:
    """`terminal("1", "")`: somebody who types these replies; the list that comes back fills with what was asked."""

    def sit(*replies: str) -> list[str]:
        asked: list[str] = []
        said: Iterator[str] = iter(replies)

        def reply(prompt: str = "") -> str:
            asked.append(prompt)
            try:
                return next(said)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setenv("TERM", "dumb")  # no colours in what is compared
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", reply)
        return asked

    return sit


def told(run: Callable, *arguments: str) -> Any:
    """What a command prints as JSON."""
    status, out, _ = run(*arguments, "--json")
    assert status == 0
    return json.loads(out)


def lines_of(out: str, paper: str) -> str:
    """What is printed of a paper: from its line to the next that is not indented."""
    found = re.search(rf"^{paper} .*\n(?:(?!  ).+\n)?(?:  .*\n)+", out, re.MULTILINE)
    assert found, f"nothing of {paper}"
    return " ".join(found[0].split())


@pytest.mark.parametrize("command", ["advise", "map", "guide long-context", "guide llm-or-tuned"])
def test_help_has_an_example(run, command):
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert f"Example: broadsheet {command}" in out


@pytest.mark.parametrize(
    "command",
    [
        ["advise"],
        *(["advise", "--goal", goal, "--all"] for goal in GOALS),
        ["advise", "--goal", "classify", "--labels", "few", "--unlabelled", "much", "--size", "small"],
        *(["advise", "--why", paper] for paper in ("label_supervised", "loogle", "a_llmrec")),
        *(["map", name] for name in maps.trees()),
        *(["map", place] for place in ("classify", "llm_survey/adaptation", "rerank/rerank-metric")),
        *([*LONG, *more] for more in ([], ["--memory", "1"], ["--model", "mixture"], ["--need", "recall"])),
        ["guide", "llm-or-tuned"],
        ["guide", "llm-or-tuned", "--answers", "no,?,no"],
        ["guide", "llm-or-tuned", "--answers", "no,yes"],
    ],
    ids=" ".join,
)
def test_nothing_is_wider_than_the_terminal(run, command):
    status, out, err = run(*command)
    assert status == 0
    assert len(out.splitlines()) > 1
    wide = [line for line in (out + err).splitlines() if cell_len(line.rstrip()) > 80]
    assert not wide


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["advise", "--goal", "classify", "--labels", "lots"],
            "got labels 'lots'; expected one of none, few, some, many",
        ),
        (["advise", "--goal", "rerank", "--latency", "0"], "got latency '0'"),
        (["advise", "--goal", " "], "got an empty --goal"),
        (["advise", "--why", "lastd"], "no rule recommends 'lastd'"),
        (["advise", "--answers", "none.json"], "cannot read none.json: No such file"),
        (["advise", "--answers", "small"], "cannot read small: Is a directory"),
        (["advise", "--why", "gemm"], "no rule recommends 'gemm'; did you mean gem?"),
        (["advise", "--need", "many-candidate"], "got need 'many-candidate'; did you mean many-candidates"),
        (["advise", "--goal", "rerank", "--need", "x"], "got need 'x'; expected one of many-candidates, own-metric"),
        (["advise", "--need", "x"], "got need 'x'; expected one of unknown-labels, noisy-labels"),
        (["map", "clasify"], "no tree 'clasify'; did you mean classify?"),
        (["map", "nope"], "no tree 'nope'; expected one of goals"),
        (["map", "llm_survey/nope"], "no leaf 'llm_survey/nope'; llm_survey has llm_survey/resources"),
        (["guide", "long-context", "--length", "many", "--model", "small"], "got --length many; expected tokens"),
        (["guide", "long-context", "--length", "inf", "--model", "small"], "got --length inf; expected tokens"),
        (["guide", "long-context", "--length", "k", "--model", "small"], "got --length k; expected tokens"),
        (["guide", "long-context", "--length", "0", "--model", "small"], "got a length of 0"),
        (["guide", "long-context", "--length", "8k", "--model", "nowhere"], "unknown model 'nowhere'"),
        ([*LONG, "--memory", "inf"], "got a memory of inf GB"),
        ([*LONG, "--memory", "-1"], "got a memory of -1 GB"),
        ([*LONG, "--dtype", "int8"], "got dtype 'int8'"),
        ([*LONG, "--need", "speed"], "got need 'speed'"),
        (["guide", "llm-or-tuned", "--answers", "perhaps"], "got the answer 'perhaps'; expected yes, no or ?"),
        (["guide", "llm-or-tuned", "--answers", ",".join("n" * 11)], "got 11 answers; the flow has 10 questions"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_be_mended_is_one_line_and_status_2(run, command, message):
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"broadsheet: {message}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"goal": ', "a.json: "),
        ("a.toml", 'goal = "classify', "a.toml: "),
        ("a.toml", '{"goal": "classify"}', "expected JSON, or TOML such as"),
        ("a.json", '["classify"]', "expected a table of texts by fact"),
        ("a.json", '{"goal": "classify", "labels": 30}', "expected a table of texts by fact"),
        ("a.toml", 'goal = ["classify"]', "expected a table of texts by fact"),
        ("a.toml", 'colour = "red"', "got an answer to 'colour'"),
        ("a.toml", 'goal = "cook"', "got goal 'cook'"),
        ("a.json", b"\xff\xfe", "a.json: "),
    ],
)
def test_a_file_of_answers_that_cannot_be_read_is_one_line(run, tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    status, out, err = run("advise", "--answers", name)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_answers_come_from_a_file_or_from_options_which_count_more(run, tmp_path):
    (tmp_path / "a.json").write_text('{"goal": "classify", "labels": "few", "size": "large"}')
    (tmp_path / "a.toml").write_text('goal = "classify"\nlabels = "few"\nsize = "large"\n')
    options = ("--goal", "classify", "--labels", "few", "--size", "large")
    _, by_hand, _ = run("advise", *options, "--json")
    for name in ("a.json", "a.toml"):
        assert run("advise", "--answers", name, "--json") == (0, by_hand, "")
    assert json.loads(by_hand)["answers"] == {"goal": "classify", "labels": "few", "size": "large"}
    assert json.loads(by_hand) == json.loads(json.dumps(advice.advise(json.loads(by_hand)["answers"]).to_dict()))
    mixed = told(run, "advise", "--answers", "a.json", "--labels", "many", "--goal", "data")["answers"]
    assert mixed == {"goal": "data", "labels": "many", "size": "large"}


def test_every_fact_has_its_option(run):
    for fact in advice.facts().values():
        value = list(fact.values)[-1]
        assert told(run, "advise", f"--{fact.id}", value)["answers"] == {fact.id: value}


def test_advice_is_printed_with_reason_source_conditions_costs_evidence_and_command(run):
    _, out, err = run("advise", "--goal", "search", "--weights", "adapters", "--all")
    assert err == ""
    assert out.startswith("For goal search, weights adapters\n")
    assert [line for line in out.splitlines() if line in ("Try", "Measure with", "Read")] == [
        "Try",
        "Measure with",
        "Read",
    ]
    made = advice.advise({"goal": "search", "weights": "adapters"})
    for each in made.papers:
        words, paper = lines_of(out, each.paper.id), each.paper
        assert paper.title in words
        source = "our own mapping" if each.rules[0].source == "ours" else each.rules[0].source
        assert f"{each.rules[0].because} ({source})" in words
        assert (f" if {' and '.join(each.conditions)} " in words) == bool(each.conditions)
        assert f"rung {paper.rung} {papers.RUNGS[paper.rung]}{f', {paper.verdict}' * bool(paper.verdict)} " in words
        assert (f"needs {', '.join(each.needs)} · training: {each.training} · " in words) == (paper.kind != "survey")
        tree = f"broadsheet map {paper.id}" if paper.kind == "survey" else f"not built yet: {paper.url}"
        assert words.endswith(f"broadsheet try {paper.id} --quick" if paper.trial else tree)
    assert "token_prepending" not in out, "the answers speak against it"


def test_five_to_try_are_printed_and_all_where_asked_for(run):
    made = advice.advise({"goal": "search"})
    tries = [each.paper.id for each in made.section("try")]
    assert len(tries) > advice.SHOWN
    for more, shown in (((), tries[:5]), (("--all",), tries)):
        _, out, _ = run("advise", "--goal", "search", *more)
        assert [paper for paper in tries if re.search(rf"^{paper} ", out, re.MULTILINE)] == shown
        assert (f"and {len(tries) - 5} more: --all" in out) == (not more)
    assert len(told(run, "advise", "--goal", "search")["papers"]) == len(made.papers), "JSON has them all"


def test_a_refuted_paper_is_printed_last_with_its_warning(run, monkeypatch):
    monkeypatch.setattr(
        papers.Paper, "verdict", property(lambda paper: "refuted here" if paper.id == "llm2llm" else "open")
    )
    _, out, _ = run("advise", "--goal", "classify", "--labels", "some", "--all")
    assert "refuted here, by the trial recorded: `broadsheet show llm2llm`" in lines_of(out, "llm2llm")
    last = max(papers.ours(), key=lambda paper: out.rfind(f"\n{paper.id} ")).id
    assert last == "llm2llm" or papers.get(last).kind != "method"


def test_the_flow_and_the_ways_to_bring_knowledge_are_printed_where_they_apply(run):
    words = " ".join(run("advise", "--goal", "classify", "--labels", "few")[1].split())
    assert "The flow of arXiv:2304.13712 (April 2023) says: LLM. That is: prompt a model as it is." in words
    words = " ".join(run("advise", "--goal", "domain", "--knowledge", "changing")[1].split())
    assert "look it up when asking: y = M(x, R(x, K); θ); training none, but a retriever is needed" in words
    assert "put it into the prompt" not in words
    assert "Tune or prompt?" not in words
    assert "put it into the prompt: y = M([p; x]; θ)" in " ".join(run("advise", "--goal", "domain")[1].split())


def test_why_prints_each_rule_and_how_it_came_out(run):
    _, out, _ = run("advise", "--why", "clear", "--goal", "classify")
    words = " ".join(out.split())
    assert "classify-noisy-labels: fired if need: some labels are wrong" in words
    assert "corpus-pairs: goal is classify, not corpus" in words
    assert "(alignment_survey, managing instructions)" in words
    rows = told(run, "advise", "--why", "clear", "--goal", "classify")
    assert [(row["rule"], row["came"].split()[0]) for row in rows] == [
        ("classify-noisy-labels", "fired"),
        ("corpus-pairs", "goal"),
    ]


def test_a_goal_in_free_words_is_assumed_aloud_and_answers_as_that_goal_by_hand(run, monkeypatch):
    monkeypatch.setattr(guides, "nearest_goals", lambda text: ["rerank", "search", "data", text])
    by_hand = run("advise", "--goal", "rerank", "--latency", "strict")
    status, out, err = run("advise", "--goal", "order my hits", "--latency", "strict")
    assert (status, out) == (0, by_hand[1])
    assert " ".join(err.split()) == (
        "assumed goal: rerank (put search results in a better order); perhaps it is search (embed texts, search by "
        "meaning) or data (make training examples with a model): --goal ID says which"
    )
    free = told(run, "advise", "--goal", "order my hits")
    assert free.pop("assumed") == {"goal": "rerank", "or": ["search", "data"]}
    assert free == told(run, "advise", "--goal", "rerank")


def test_a_wrong_answer_is_refused_before_a_model_reads_the_goal(run, monkeypatch):
    monkeypatch.setattr(guides, "nearest_goals", lambda text: pytest.fail("read"))
    assert run("advise", "--goal", "order my hits", "--latency", "soon")[0] == 2


def test_on_a_terminal_what_matters_is_asked_and_enter_skips(run, terminal):
    asked = terminal("1", "", "few", "9", "x")
    status, out, _ = run("advise")
    assert status == 0
    assert len(asked) == 4, "goal, case, labels, and size, for what only large models can do"
    assert "For goal classify, labels few\n" in out
    shown = [out.index(advice.facts()[fact].ask) for fact in ("goal", "need", "labels", "size")]
    assert shown == sorted(shown)
    assert "give texts labels  (classify)" in out
    assert "the set of labels is not known yet" in out
    assert "tables have to be cleaned or filled" not in out, "a case of another goal"


def test_what_is_given_is_not_asked_and_where_nothing_matters_nothing_is(run, terminal):
    asked = terminal("2")
    _, out, _ = run("advise", "--goal", "rerank", "--need", "own-metric", "--latency", "relaxed")
    assert len(asked) == 1
    assert "For goal rerank, need own-metric, weights adapters, latency relaxed" in out
    asked = terminal()
    assert run("advise", "--goal", "understand")[0] == 0
    assert asked == []


@pytest.mark.parametrize("more", [["--no-ask"], ["--json"], ["--why", "first"]])
def test_nothing_is_asked_where_that_is_said_or_a_script_reads(run, terminal, more):
    asked = terminal()
    assert run("advise", "--goal", "rerank", *more)[0] == 0
    assert asked == []


@pytest.mark.parametrize(("said", "goal"), [("2", "goal search"), ("rerank", "goal rerank"), ("", "no answers")])
def test_on_a_terminal_a_goal_in_free_words_is_chosen_from_the_three_nearest(run, terminal, monkeypatch, said, goal):
    monkeypatch.setattr(guides, "nearest_goals", lambda text: ["rerank", "search", "data", "forget"])
    asked = terminal(said, *[""] * 12)
    status, out, err = run("advise", "--goal", "order my hits")
    assert status == 0
    assert len(asked) > 1
    assert "assumed" not in err
    first = out[: out.index(advice.facts()["goal" if not said else "need"].ask)]
    assert re.findall(r"\((\S+)\)$", first, re.MULTILINE) == ["rerank", "search", "data"]
    assert f"For {goal}" in out


def test_the_end_of_the_input_ends_the_questions_without_a_traceback(run, terminal):
    terminal("1")
    status, _, err = run("advise")
    assert status != 0
    assert "Traceback" not in err


def test_a_map_prints_the_tree_with_its_papers_marks_and_gaps(run):
    _, out, err = run("map", "llm_survey/adaptation")
    words = " ".join(out.replace("│", " ").split())
    for node in maps.find("llm_survey/adaptation")[1].walk():
        assert node.title in words
        assert all(paper in words for paper in node.papers)
    assert words.count("— a gap") == sum(node.gap for node in maps.find("llm_survey/adaptation")[1].walk())
    assert "are gaps" in err
    tree = told(run, "map", "llm_survey/adaptation")
    assert (tree["tree"], tree["at"]) == ("llm_survey", "adaptation")
    assert tree["children"]
    assert told(run, "map") == {"tree": "goals", **json.loads(json.dumps(maps.tree("goals").to_dict()))}


@pytest.mark.parametrize("name", maps.trees())
def test_a_map_marks_every_node_that_was_not_read_in_the_paper(run, name):
    _, out, _ = run("map", name)
    for mark in maps.MARKS:
        nodes = sum(node.mark == mark for node in maps.tree(name).walk())
        assert out.count(f"‹{mark}›") == (nodes if mark != "s" else 0)


def test_the_map_of_goals_names_the_other_trees(run):
    _, out, err = run("map")
    assert all(name in err for name in maps.trees()[1:])
    assert "put search results in a better order" in out
    assert "other trees" not in run("map", "llm_survey")[2]


def test_a_long_input_is_told_in_units_with_each_way_and_what_is_recorded_of_it(run):
    _, out, _ = run(*LONG, "--memory", "1")
    assert "32,768 tokens (trained on 8,192), float32" in out
    assert re.search(r"weights +538 MB", out)
    assert re.search(r"cache +1\.5 GB, 45\.0 KiB a token", out)
    assert re.search(r"prefill +44\.1 trillion operations, 84 % of them attention", out)
    assert re.search(r"memory +1\.0 GB: it does not fit", out)
    applies, _, not_ = out.partition("Does not apply")
    for each in longcontext.long_input(DEFAULT, 32768).ways:
        paper, words = each.way.paper, lines_of(applies if each.applies else not_, each.way.id)
        assert paper.title in words
        assert each.reason[1:] in words
        recorded = f"rung {paper.rung} {papers.RUNGS[paper.rung]}{f', {paper.verdict}' * bool(paper.verdict)} · "
        assert (recorded + f"broadsheet try {paper.id}" in words) == each.applies
        assert ("offload=True" in words) == (each.way.id == "infllm")
    assert "approximate; cache on the device 95 MB, fits" in lines_of(applies, "lm_infinite")
    within = run(*LONG[:-1], "4k", "--memory", "1")[1].partition("Does not apply")[0]
    assert "same output; cache on the device 189 MB, fits" in lines_of(within, "aded")


@pytest.mark.parametrize(
    ("length", "tokens"), [("8192", 8192), ("32k", 32768), ("1M", 1048576), ("1.5K", 1536), ("1m", 1048576)]
)
def test_a_length_may_have_a_unit(run, length, tokens):
    assert told(run, "guide", "long-context", "--model", "small", "--length", length)["length"] == tokens


def test_a_long_input_as_json_is_what_was_computed(run):
    given = told(run, *LONG, "--memory", "2", "--dtype", "bfloat16", "--need", "recall")
    assert (given.pop("model"), given.pop("dtype")) == ("small", "bfloat16")
    made = longcontext.long_input(DEFAULT, 32768, memory=2, dtype="bfloat16", need="recall")
    assert given == json.loads(json.dumps(made.to_dict()))


def test_a_mixture_of_experts_is_told_without_what_is_not_counted(run):
    _, out, _ = run("guide", "long-context", "--model", "mixture", "--length", "4k", "--memory", "1")
    assert re.search(r"weights +not counted: a mixture of experts", out)
    assert re.search(r"prefill .* trillion operations of attention, those of weights not\s+counted", out)
    assert re.search(r"memory +1\.0 GB: whether it fits is not known, since not all is counted\n", out)
    assert re.search(r"memory +100 MB: it does not fit\n", run(*LONG[:3], "mixture", *LONG[4:], "--memory", "0.1")[1])


def test_the_flow_prints_its_questions_the_path_and_the_outcome(run):
    _, out, _ = run("guide", "llm-or-tuned")
    words = " ".join(out.split())
    assert all(f"{number}. {question.ask}" in words for number, question in enumerate(flow.questions(), 1))
    assert told(run, "guide", "llm-or-tuned") == {"questions": [question.ask for question in flow.questions()]}
    _, out, _ = run("guide", "llm-or-tuned", "--answers", "no,YES")
    words = " ".join(out.split())
    assert "1. Must it act like a person, as a chatbot does? no 2. " in words
    assert "→ LLM (arXiv:2304.13712, April 2023) It rests on abilities that models below about 10 billion" in words
    given = told(run, "guide", "llm-or-tuned", "--answers", "n, n,?,n,y")
    assert given == {"outcomes": ["LLM"], "path": [[1, False], [2, False], [3, None], [4, False], [5, True]]}


def test_the_flow_asks_on_a_terminal_until_it_is_decided(run, terminal):
    asked = terminal("n", "", "no", "n", "y", "n")
    status, out, _ = run("guide", "llm-or-tuned")
    assert status == 0
    assert len(asked) == 5
    assert "→ LLM (" in out
    asked = terminal("n", "n", "n", "y")
    assert "→ fine-tuned (" in run("guide", "llm-or-tuned")[1]
    assert len(asked) == 4
    asked = terminal(*[""] * 10)
    assert "→ LLM or fine-tuned or open (" in run("guide", "llm-or-tuned")[1]
    assert len(asked) == 10


def test_advice_and_maps_import_nothing_heavy():
    commands = [
        "advise --goal classify",
        "advise --why gem",
        "advise --goal domain --json",
        "map",
        "map llm_survey",
        "guide llm-or-tuned --answers no",
        "--version",
    ]
    code = (
        "import sys; from broadsheet import cli\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = ['broadsheet', *command.split()]\n"
        "    try: cli.main()\n"
        "    except SystemExit as ended: assert not ended.code, command\n"
        "    heavy = {'torch', 'transformers', 'sklearn', 'numpy', 'pydantic', 'rich', 'importlib.metadata'}\n"
        "    heavy = sorted(heavy & set(sys.modules)) + [m for m in sys.modules if m.endswith('.commands')]\n"
        "    assert not heavy, f'{command} imports {heavy}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert "For goal classify" in done.stdout


def test_piped_input_is_not_read():
    command = [sys.executable, "-m", "broadsheet", "advise", "--goal", "rerank"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, input="1\n1\n1\n")
    assert "For goal rerank\n" in done.stdout
    assert advice.facts()["need"].ask not in done.stdout


@pytest.mark.real
def test_the_default_model_is_guided_at_the_lengths_that_it_was_tried_at(run, default_model):
    for length, ids in (("4k", {"aded", "transnormer"}), ("8k", {"flexprefill", "aded", "transnormer"})):
        given = told(run, "guide", "long-context", "--length", length)
        assert given["model"] == "default"
        assert {way["id"] for way in given["ways"] if way["applies"]} == ids
        assert given["weights_bytes"] == 4 * default_model.model.num_parameters()
    assert run("guide", "long-context", "--length", "4k")[1].startswith(
        "the default model (SmolLM2-135M-Instruct), 4,096"
    )
