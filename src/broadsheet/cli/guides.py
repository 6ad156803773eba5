"""The commands `advise`, `map` and `guide`: the page's surveys as an adviser, as trees, as answers about a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broadsheet.cli.root import Json, app
from broadsheet.console import InputError, say

if TYPE_CHECKING:
    from broadsheet.page.guides.advice import Advice, AdvisedPaper
    from broadsheet.page.guides.longcontext import LongInput
    from broadsheet.page.guides.maps import MapNode

guide = typer.Typer(no_args_is_help=True, help="Guides: what a long input costs, and whether to tune or to prompt.")
app.add_typer(guide, name="guide")


@app.command(epilog="Example: broadsheet advise --goal classify --labels none --unlabelled much")
def advise(
    goal: Annotated[str | None, typer.Option(help="What is to be done: an id, or in your own words.")] = None,
    need: Annotated[str | None, typer.Option(help="Which case of it.")] = None,
    labels: Annotated[str | None, typer.Option(help="none, few, some or many labelled examples.")] = None,
    unlabelled: Annotated[str | None, typer.Option(help="none, little, much or huge amounts of raw text.")] = None,
    weights: Annotated[str | None, typer.Option(help="What may be trained: closed, adapters or all.")] = None,
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

    options = {
        "need": need,
        "labels": labels,
        "unlabelled": unlabelled,
        "weights": weights,
        "size": size,
        "knowledge": knowledge,
        "machine": machine,
        "input": input_,
        "latency": latency,
        "language": language,
    }
    given = _answers(answers) if answers else {}
    given |= {fact: value for fact, value in options.items() if value is not None}
    goals = advice.facts()["goal"].values
    free = goal is not None and goal not in goals
    if goal is not None and not free:
        given["goal"] = goal
    advice.check(given)
    asking = ask and not as_json and not why and sys.stdin.isatty() and sys.stdout.isatty()
    assumed = near = nearest_goals(goal)[:3] if goal is not None and free else []
    if near and asking:
        assumed = []
        if chosen := _chosen("Which of these is it?", {each: goals[each] for each in near}, named=True):
            given["goal"] = chosen
    elif near:
        given["goal"] = near[0]
        others = " or ".join(f"{each} ({goals[each]})" for each in near[1:])
        _say(f"assumed goal: {near[0]} ({goals[near[0]]}); perhaps it is {others}: --goal ID says which")
    if asking:
        given = _asked(given)
    if why:
        told = advice.why(why, given)
        if as_json:
            rows = [
                {"rule": rule.id, "came": came, "because": rule.because, "source": rule.source} for rule, came in told
            ]
            print(json.dumps(rows, indent=1, ensure_ascii=False))
            return
        for rule, came in told:
            _print(f"{rule.id}: {came}")
            _print(f"{rule.because} ({rule.source})", 2)
        return
    made = advice.advise(given)
    if as_json:
        whole = made.to_dict() | ({"assumed": {"goal": assumed[0], "or": assumed[1:]}} if assumed else {})
        print(json.dumps(whole, indent=1, ensure_ascii=False))
        return
    _print_advice(made, everything)


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
    _print_tree(name, node)
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
    _print_long_input(models.title(model), dtype, made)


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
            _print(f"{waiting[0]}. {asked[waiting[0] - 1].ask}")
            said.append(_yes(input("yes, no, or Enter where it is not known: ")))
    elif as_json:
        print(json.dumps({"questions": [question.ask for question in asked]}, indent=1))
        return
    else:
        for number, question in enumerate(asked, 1):
            _print(f"{number}. {question.ask}")
        return
    found = flow.follow(said)
    if as_json:
        print(json.dumps({"outcomes": found.outcomes, "path": found.path}, indent=1))
        return
    for number, answer in found.path:
        _print(f"{number}. {asked[number - 1].ask} {'not known' if answer is None else 'yes' if answer else 'no'}")
    print(f"→ {' or '.join(found.outcomes)} (arXiv:2304.13712, April 2023)")
    if found.emergent:
        _print("It rests on abilities that models below about 10 billion parameters mostly lack.", 2)


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


def _print(text: str, indent: int = 0) -> None:
    """Print a line on stdout, wrapped to the terminal."""
    from rich.console import Console
    from rich.padding import Padding

    Console(highlight=False).print(Padding(text, (0, 0, 0, indent), expand=False), markup=False)


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


def _print_advice(made: Advice, everything: bool) -> None:
    from rich.console import Console
    from rich.padding import Padding

    from broadsheet.page.guides import advice

    console = Console(highlight=False)
    known = ", ".join(f"{fact} {made.answers[fact]}" for fact in advice.facts() if fact in made.answers)
    console.print(f"[bold]For[/bold] {known or 'no answers: every branch is open'}", markup=True)
    for section in advice.SECTIONS:
        papers = made.section(section)
        shown = papers if everything else papers[: advice.SHOWN]
        if shown:
            console.print(f"\n[bold]{section.capitalize()}[/bold]")
        for paper in shown:
            console.print(f"[bold]{paper.paper.id}[/bold] {paper.paper.title}")
            for line in _told(paper):
                console.print(Padding(line, (0, 0, 0, 2)), markup=False)
        if len(papers) > len(shown):
            console.print(f"and {len(papers) - len(shown)} more: --all", markup=False)
    for way in made.injection:
        if way is made.injection[0]:
            console.print("\n[bold]Ways to bring knowledge to a model[/bold] (arXiv:2502.10708, Table 2)")
        console.print(
            f"{way['title']}: {way['form']}; training {way['training']}; speed: {way['speed']}; fails {way['fails']}",
            markup=False,
        )
    if made.flow is not None:
        told = " or ".join(made.flow.outcomes)
        console.print(
            f"\n[bold]Tune or prompt?[/bold] The flow of arXiv:2304.13712 (April 2023) says: {told}."
            + f" That is: {'; or '.join(made.route)}." * bool(made.route)
        )


def _told(paper: AdvisedPaper) -> list[str]:
    """What is told of a paper below its title."""
    from broadsheet.page.papers import RUNGS

    source = "our own mapping" if paper.rules[0].source == "ours" else paper.rules[0].source
    lines = [f"{paper.rules[0].because} ({source})"]
    lines += [f"if {' and '.join(paper.conditions)}"] * bool(paper.conditions)
    recorded = f"rung {paper.paper.rung} {RUNGS[paper.paper.rung]}"
    recorded += f", {paper.paper.verdict}" * bool(paper.paper.verdict)
    needs = f"needs {', '.join(paper.needs)}" if paper.needs else ""
    training = f"training: {paper.training}" if paper.training else ""
    lines.append(" · ".join(filter(None, (needs, training, recorded))))
    lines += [paper.warning] * bool(paper.warning)
    lines.append(paper.command or f"not built yet: {paper.paper.url}")
    return lines


def _print_tree(name: str, node: MapNode) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.tree import Tree

    def marked(each: MapNode) -> str:
        return f" ‹{each.mark}›" * (each.mark != "s")

    def label(each: MapNode) -> str:
        words = escape(each.title) + marked(each)
        if each.papers:
            words += ": " + ", ".join(f"[bold]{paper}[/bold]" for paper in each.papers)
        if each.examples:
            words += f" [dim]({escape(', '.join(each.examples))})[/dim]"
        return words + " — a gap" * (each.gap and each is not node)

    def grow(branch: Tree, each: MapNode) -> None:
        for child in each.children:
            grow(branch.add(label(child)), child)

    root = Tree(f"[bold]{escape(node.title)}[/bold]{marked(node)}" + f"  {escape(node.about)}" * bool(node.about))
    grow(root, node)
    Console(highlight=False).print(root)
    gaps = sum(each.gap for each in node.walk())
    if gaps:
        say(f"{gaps} leaves are gaps: no paper of the page covers them")


def _print_long_input(title: str, dtype: str, made: LongInput) -> None:
    from rich.console import Console
    from rich.padding import Padding

    from broadsheet.page.papers import RUNGS
    from broadsheet.report.words import memory, number

    console = Console(highlight=False)
    context = f"trained on {made.shape.context:,}" if made.shape.context else "trained length not given"
    console.print(f"[bold]{title}[/bold], {made.length:,} tokens ({context}), {dtype}")
    console.print(f"  weights  {memory(made.weights) if made.weights else 'not counted (a mixture of experts)'}")
    console.print(f"  cache    {memory(made.cache)}, {made.cache / made.length / 1024:,.1f} KiB a token")
    if made.operations is None:
        prefill = f"{number(made.of_attention / 1e12)} trillion operations of attention, those of weights not counted"
    else:
        prefill = f"{number(made.operations / 1e12)} trillion operations, {made.attention_share:.0%} of them attention"
    console.print(f"  prefill  {prefill}".replace("%", " %"), markup=False)
    if made.fits is not None and made.memory is not None:
        console.print(f"  memory   {memory(made.memory)}: it {'fits' if made.fits else 'does not fit'}")
    for applies, heading in ((True, "Applies"), (False, "Does not apply")):
        ways = [each for each in made.ways if each.applies is applies]
        if ways:
            console.print(f"\n[bold]{heading}[/bold]")
        for each in ways:
            paper, facets = each.way.paper, each.way.facets
            console.print(f"[bold]{each.way.id}[/bold] {paper.title}")
            lines = [each.reason[0].upper() + each.reason[1:] + "."]
            if applies:
                exact = "same output" if facets["lossless"] else "approximate"
                lines.append(
                    f"changes {', '.join(facets['changes'])}; training: {facets['training']}; {exact}; "
                    f"cache on the device {memory(each.cache)}"
                    + {True: ", fits", False: ", does not fit", None: ""}[each.fits]
                    + "; with offload=True most of it waits in the host's memory" * each.way.offloads
                )
                lines.append(
                    f"rung {paper.rung} {RUNGS[paper.rung]}"
                    + f", {paper.verdict}" * bool(paper.verdict)
                    + f" · {each.command}" * bool(each.command)
                )
            for line in lines:
                console.print(Padding(line, (0, 0, 0, 2)), markup=False)
    console.print("\nMeasure with [bold]broadsheet try loogle[/bold]; keeping the two ends of the text is the rival.")


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
