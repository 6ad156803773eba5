"""The commands `advise`, `map` and `guide`: the page's surveys as an adviser, as trees, as answers about a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from broadsheet.cli.plain import write
from broadsheet.cli.root import Json, LightGroup, app
from broadsheet.console import InputError, say

guide = typer.Typer(
    cls=LightGroup, no_args_is_help=True, help="Guides: what a long input costs, and whether to tune or to prompt."
)
app.add_typer(guide, name="guide")


@app.command(epilog="Example: broadsheet advise --goal classify --labels none --unlabelled much")
def advise(
    goal: Annotated[str | None, typer.Option(help="What is to be done: an id, or in your own words.")] = None,
    need: Annotated[str | None, typer.Option(help="Which case of it.")] = None,
    labels: Annotated[str | None, typer.Option(help="none, few, some or many labelled examples.")] = None,
    unlabelled: Annotated[str | None, typer.Option(help="none, little, much or huge amounts of raw text.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="What may be trained: adapters, all, or nothing (frozen).")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the model: small (below 10 B parameters) or large.")] = None,
    knowledge: Annotated[str | None, typer.Option(help="in-model, stable, changing or contrary.")] = None,
    machine: Annotated[str | None, typer.Option(help="cpu, gpu or cluster.")] = None,
    input_: Annotated[str | None, typer.Option("--input", help="within the context, beyond, far-beyond.")] = None,
    latency: Annotated[str | None, typer.Option(help="relaxed or strict.")] = None,
    language: Annotated[str | None, typer.Option(help="english, high-resource, low-resource or mixed.")] = None,
    answers: Annotated[Path | None, typer.Option(help="A JSON or TOML file of answers, by fact.")] = None,
    why: Annotated[str | None, typer.Option(metavar="ID", help="How each rule for one paper came out.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All papers that fit, not five to try.")] = False,
    ask: Annotated[bool, typer.Option(help="Ask what is not given, on a terminal.")] = True,
    as_json: Json = False,
) -> None:
    """Ask what is to be done, and say which papers to try, to measure with and to read, and why.

    At most nine questions are asked, each of which may be skipped; none where input is piped, or what follows would not
    change. Rules come from the page's surveys and name them. What is recorded here stands beside each paper, and counts
    more than a rule: a paper that was refuted comes last.
    """
    from broadsheet.page.guides import advice

    given = _answers(answers) if answers else {}
    # In the order of the facts; the goal may be in free words.
    options = (need, labels, unlabelled, weights, size, knowledge, machine, input_, latency, language)
    given |= {fact: value for fact, value in zip(list(advice.facts())[1:], options, strict=True) if value is not None}
    asking = ask and not as_json and not why and sys.stdin.isatty() and sys.stdout.isatty()
    assumed: list[str] = []
    free = goal is not None and goal not in advice.facts()["goal"].values
    if goal is not None and not free:
        given["goal"] = goal
    advice.check(given)
    if goal is not None and free:
        near = nearest_goals(goal)[:3]
        assumed = [] if asking else near
        chosen = _chosen("Which of these is it?", _goals(near), named=True) if asking else _assumed(near)
        given |= {"goal": chosen} if chosen else {}
    if asking:
        given = _asked(given)
    if why:
        _tell_why(why, given, as_json)
        return
    made = advice.advise(given)
    if as_json:
        whole = made.to_dict() | ({"assumed": {"goal": assumed[0], "or": assumed[1:]}} if assumed else {})
        print(json.dumps(whole, indent=1, ensure_ascii=False))
        return
    from broadsheet.cli.guides_text import print_advice

    print_advice(made, everything)


def _goals(ids: Iterable[str]) -> dict[str, str]:
    """Goals in words."""
    from broadsheet.page.guides.advice import facts

    return {each: facts()["goal"].values[each] for each in ids}


def _assumed(near: Sequence[str]) -> str:
    """The nearest goal, and say that it is a guess."""
    goals = _goals(near)
    others = " or ".join(f"{each} ({goals[each]})" for each in near[1:])
    _say(f"assumed goal: {near[0]} ({goals[near[0]]}); perhaps it is {others}: --goal ID says which")
    return near[0]


def _tell_why(paper_id: str, given: Mapping[str, str], as_json: bool) -> None:
    """How each rule for one paper came out."""
    from broadsheet.cli.guides_text import print_rules
    from broadsheet.page.guides.advice import why

    told = why(paper_id, given)
    if as_json:
        rows = [{"rule": rule.id, "came": came, "because": rule.because, "source": rule.source} for rule, came in told]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print_rules(told)


@app.command("map", epilog="Example: broadsheet map llm_survey/adaptation")
def map_(
    leaf: Annotated[
        str, typer.Argument(help="A goal, a survey, or a branch of one, as in llm_survey/adaptation.")
    ] = "goals",
    as_json: Json = False,
) -> None:
    """Print the map: the page by goal, or a survey's own tree with the papers of the page at its leaves.

    A leaf that no paper of the page covers is shown as a gap. Marks say how a node is known: d from a digest, m from
    memory, o our own mapping; unmarked ones were read in the paper or its authors' repository.
    """
    from broadsheet.page.guides import maps

    name, node = maps.find(leaf)
    if as_json:
        print(json.dumps({"tree": name, **node.to_dict()}, indent=1, ensure_ascii=False))
        return
    from broadsheet.cli.guides_text import print_tree

    print_tree(node)
    if leaf == maps.GOALS:
        _say("other trees: " + ", ".join(maps.trees()[1:]))


@guide.command("long-context", epilog="Example: broadsheet guide long-context --length 32k --memory 16")
def long_context(
    length: Annotated[str, typer.Option(help="Tokens of the text: 8192, 32k or 1M.")],
    model: Annotated[str, typer.Option(help="`default`, a hub id, or a folder; its config alone is read.")] = "default",
    memory: Annotated[float | None, typer.Option(help="GB for weights and cache.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    need: Annotated[
        str | None, typer.Option(help="stream, recall, slow-prefill, slow-decoding or new-model; by default all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute what a long text costs a model, and say which methods of the page apply.

    From the config alone: bytes of weights and cache, operations of the prefill and attention's share of them, whether
    it fits the memory; and for each method whether it is for this length, what it changes, and what is recorded of it.
    """
    from broadsheet import models
    from broadsheet.page.guides.longcontext import long_input

    made = long_input(models.config(model), _tokens(length), memory=memory, dtype=dtype, need=need)
    if as_json:
        print(json.dumps({"model": model, "dtype": dtype, **made.to_dict()}, indent=1, ensure_ascii=False))
        return
    from broadsheet.cli.guides_text import print_long_input

    print_long_input(models.title(model), dtype, made)


@guide.command("llm-or-tuned", epilog="Example: broadsheet guide llm-or-tuned --answers no,no,no,no,yes")
def llm_or_tuned(
    answers: Annotated[
        str | None, typer.Option(help="yes, no or ? for each question in turn; asked for on a terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow a survey's flow of ten questions: a large model as it is, or a smaller one tuned for the task?

    The flow is of April 2023 (arXiv:2304.13712). An answer that is not known keeps both branches.
    """
    from broadsheet.page.guides import flow

    asked = flow.questions()
    if answers is not None:
        said = [_yes(each) for each in answers.split(",")]
    elif sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        said = []
        while len(said) < len(asked):
            waiting = [number for number, answer in flow.follow(said).path if number > len(said)]
            if not waiting:
                break
            said += [None] * (waiting[0] - 1 - len(said))
            write(f"{waiting[0]}. {asked[waiting[0] - 1].ask}")
            said.append(_yes(input("yes, no, or Enter where it is not known: ")))
    elif as_json:
        print(json.dumps({"questions": [question.ask for question in asked]}, indent=1))
        return
    else:
        for number, question in enumerate(asked, 1):
            write(f"{number}. {question.ask}")
        return
    found = flow.follow(said)
    if as_json:
        print(json.dumps({"outcomes": found.outcomes, "path": found.path}, indent=1))
        return
    for number, answer in found.path:
        write(f"{number}. {asked[number - 1].ask} {'not known' if answer is None else 'yes' if answer else 'no'}")
    print(f"→ {' or '.join(found.outcomes)} (arXiv:2304.13712, April 2023)")
    if found.emergent:
        write("It rests on abilities that models below about 10 billion parameters mostly lack.", indent=2)


def nearest_goals(text: str) -> list[str]:
    """All goals, those whose words lie nearest to a text first, by the default model's embeddings (PromptEOL).

    A guess: of thirty described cases the first is right in eight, and the right one is among three in nineteen.

    Raises:
        InputError: the text is empty.
    """
    from broadsheet.page.guides.advice import facts

    if not text.strip():
        raise InputError("got an empty --goal; expected an id or a few words")
    import numpy as np

    from broadsheet.embed.base import baseline

    goals = facts()["goal"].values
    say("reading your words with the default model …")
    vectors = baseline("prompt-eol").encode([text, *goals.values()], normalize_embeddings=True)
    return [list(goals)[i] for i in np.argsort(-(vectors[1:] @ vectors[0]), kind="stable")]


def _say(message: str) -> None:
    """Say a line that may be long: wrapped to the terminal."""
    from shutil import get_terminal_size
    from textwrap import fill

    say(fill(message, get_terminal_size().columns, break_on_hyphens=False))


def _answers(path: Path) -> dict[str, str]:
    """Answers by fact from a JSON or TOML file.

    Raises:
        InputError: it cannot be read, or holds no table of texts.
    """
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f'{path}: {error}; expected JSON, or TOML such as: goal = "classify"') from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f'{path}: expected a table of texts by fact, such as goal = "classify"')
    return found


def _asked(given: Mapping[str, str]) -> dict[str, str]:
    """The answers, after those that are missing were asked for; Enter skips a question."""
    from broadsheet.page.guides import advice

    answers, skipped = dict(given), set[str]()
    while fact := advice.next_fact(answers, frozenset(skipped)):
        chosen = _chosen(fact.ask, advice.offered(fact.id, answers), named=fact.id == "goal")
        if chosen:
            answers[fact.id] = chosen
        else:
            skipped.add(fact.id)
    print()
    return answers


def _chosen(question: str, values: Mapping[str, str], *, named: bool = False) -> str:
    """The value that is chosen on the terminal, by number or by name; empty where the question is skipped.

    Args:
        values: in words.
        named: print their names too.
    """
    print(f"\n{question}")
    for number, (value, words) in enumerate(values.items(), 1):
        print(f"  {number:2}  {words}" + f"  ({value})" * named)
    said = input("number, or Enter to skip: ").strip()
    if said.isdigit() and 1 <= int(said) <= len(values):
        return list(values)[int(said) - 1]
    return said if said in values else ""


def _tokens(text: str) -> int:
    """`"32k"`, `"1M"` or `"8192"` as a number: k is 1,024, M its square.

    Raises:
        InputError: it is no such number.
    """
    scales = {"k": 1024, "m": 1024**2}
    number, scale = (text[:-1], scales[text[-1].lower()]) if text[-1:].lower() in scales else (text, 1)
    try:
        return int(float(number) * scale)
    except (ValueError, OverflowError):  # no number, or an infinite one
        raise InputError(f"got --length {text}; expected tokens such as 8192, 32k or 1M") from None


def _yes(text: str) -> bool | None:
    """An answer in words.

    Raises:
        InputError: it is none.
    """
    said = text.strip().lower()
    if said in ("y", "yes"):
        return True
    if said in ("n", "no"):
        return False
    if said in ("", "?"):
        return None
    raise InputError(f"got the answer {text.strip()!r}; expected yes, no or ?")
