"""What the guides print: advice, the rules for a paper, a tree, what a long input costs.

Knows: the guides' results. Does not know: options, questions, JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from broadsheet.cli.plain import Part, folded, title, write
from broadsheet.console import say
from broadsheet.page.papers import RUNGS

if TYPE_CHECKING:
    from broadsheet.page.guides.advice import Advice, AdvisedPaper, Rule
    from broadsheet.page.guides.longcontext import AdvisedWay, LongInput, ModelShape
    from broadsheet.page.guides.maps import MapNode
    from broadsheet.page.papers import Paper


def print_advice(made: Advice, everything: bool) -> None:
    """Papers by section, five to try or all; then the ways to bring knowledge, and what the flow says."""
    from broadsheet.page.guides import advice

    known = ", ".join(f"{fact} {made.answers[fact]}" for fact in advice.facts() if fact in made.answers)
    write(("For", "bold"), f" {known or 'no answers: every branch is open'}")
    for section in advice.SECTIONS:
        papers = made.section(section)
        shown = papers if everything else papers[: advice.SHOWN]
        if shown:
            title(section.capitalize())
        for paper in shown:
            _print_paper(paper.paper, _told(paper))
        if len(papers) > len(shown):
            write(f"and {len(papers) - len(shown)} more: --all")
    if made.injection:
        write()
        write(("Ways to bring knowledge to a model", "bold"), " (arXiv:2502.10708, Table 2)")
    for way in made.injection:
        write(f"{way['title']}: {way['form']}; training {way['training']}; speed: {way['speed']}; fails {way['fails']}")
    if made.flow is not None:
        write()
        told = " or ".join(made.flow.outcomes)
        write(
            ("Tune or prompt?", "bold"),
            f" The flow of arXiv:2304.13712 (April 2023) says: {told}.",
            f" That is: {'; or '.join(made.route)}." * bool(made.route),
        )


def print_rules(told: Iterable[tuple[Rule, str]]) -> None:
    """How each rule for one paper came out, with what it says and who says so."""
    for rule, came in told:
        write((rule.id, "bold"), f": {came}")
        write(f"{rule.because} ({_source(rule)})", indent=2)


def _source(rule: Rule) -> str:
    return "our own mapping" if rule.source == "ours" else rule.source


def _print_paper(paper: Paper, lines: Iterable[str]) -> None:
    for line in folded(((paper.id, "bold"), f" {paper.title}"), "", "    "):
        typer.echo(line)
    for line in lines:
        write(line, indent=2)


def _recorded(paper: Paper) -> str:
    """`"rung 3 helps, shown"`."""
    return f"rung {paper.rung} {RUNGS[paper.rung]}" + f", {paper.verdict}" * bool(paper.verdict)


def _told(paper: AdvisedPaper) -> list[str]:
    """What is told of a paper below its title."""
    lines = [f"{paper.rules[0].because} ({_source(paper.rules[0])})"]
    lines += [f"if {' and '.join(paper.conditions)}"] * bool(paper.conditions)
    needs = f"needs {', '.join(paper.needs)}" if paper.needs else ""
    training = f"training: {paper.training}" if paper.training else ""
    lines.append(" · ".join(filter(None, (needs, training, _recorded(paper.paper)))))
    lines += [paper.warning] * bool(paper.warning)
    lines.append(paper.command or f"not built yet: {paper.paper.url}")
    return lines


def print_tree(node: MapNode) -> None:
    """A tree, a node a line, papers in bold; how many leaves are gaps is said on stderr."""
    write((node.title, "bold"), _marked(node), f"  {node.about}" * bool(node.about))
    _print_branches(node, "")
    gaps = sum(each.gap for each in node.walk())
    if gaps:
        say(f"{gaps} leaves are gaps: no paper of the page covers them")


def _print_branches(node: MapNode, before: str) -> None:
    """What is below a node; `before` stands before each line."""
    for child in node.children:
        last = child is node.children[-1]
        below = before + ("    " if last else "│   ")
        first = before + ("└── " if last else "├── ")
        for line in folded(_label(child), first, below + "│   " * bool(child.children)):
            typer.echo(line)
        _print_branches(child, below)


def _label(node: MapNode) -> tuple[Part, ...]:
    parts: list[Part] = [node.title + _marked(node)]
    for number, paper in enumerate(node.papers):
        parts += [", " if number else ": ", (paper, "bold")]
    if node.examples:
        parts.append((f" ({', '.join(node.examples)})", "dim"))
    return (*parts, " — a gap" * node.gap)


def _marked(node: MapNode) -> str:
    return f" ‹{node.mark}›" * (node.mark != "s")


def print_long_input(name: str, dtype: str, made: LongInput) -> None:
    """What the text costs, then the ways that apply, then those that do not."""
    from broadsheet.report.words import memory

    context = f"trained on {made.shape.context:,}" if made.shape.context else "trained length not given"
    write((name, "bold"), f", {made.length:,} tokens ({context}), {dtype}")
    rows = [
        ("weights", memory(made.weights) if made.weights else f"not counted: {made.shape.uncounted}"),
        ("layers", _kinds(made.shape)),
        ("cache", _cache(made)),
        ("prefill", _prefill(made)),
    ]
    if made.fits is not None and made.memory is not None:
        rows.append(("memory", f"{memory(made.memory)}: it {'fits' if made.fits else 'does not fit'}"))
    elif made.memory is not None:
        rows.append(("memory", f"{memory(made.memory)}: whether it fits is not known, since not all is counted"))
    for heading, words in rows:
        for line in folded((words,), f"  {heading:9}", " " * 11):
            typer.echo(line)
    for applies, heading in ((True, "Applies"), (False, "Does not apply")):
        ways = [each for each in made.ways if each.applies is applies]
        if ways:
            title(heading)
        for each in ways:
            _print_paper(each.way.paper, _costs(each))
    write()
    write("Measure with ", ("broadsheet try loogle", "bold"), "; keeping the two ends of the text is the rival.")


_WORDS = {
    "full": "attend to the whole text",
    "sliding": "attend to a window of {window:,} tokens",
    "chunked": "attend in chunks of {window:,} tokens",
    "latent": "keep a latent of {numbers:,} numbers a token, not keys and values",
    "indexed": "keep a latent of {numbers:,} numbers a token, and pick what they attend to",
    "linear": "keep a state, whatever the length",
    "conv": "keep the last inputs of a convolution",
    "hybrid": "attend to the whole text, and keep a state",
    "shared": "read another layer's keys and values",
    "none": "keep nothing",
}


def _kinds(shape: ModelShape) -> str:
    """`"36 of 48 keep a state, whatever the length; 12 attend to all of the text"`."""
    if shape.unread:
        return f"not read: {shape.unread}"
    found = Counter(_WORDS[each.kind].format(window=each.window, numbers=each.numbers) for each in shape.kept)
    return "; ".join(f"{'all' if number == shape.layers else number} {words}" for words, number in found.items())


def _cache(made: LongInput) -> str:
    from broadsheet.report.words import memory

    if made.cache is None or made.per_token is None:
        return "not known"
    each = f"{made.per_token / 1024:,.1f} KiB a token"
    if not made.states:
        return f"{memory(made.cache)}, {each}"
    if made.cache == made.states:
        return f"{memory(made.cache)}, the same for any length"
    return f"{memory(made.cache)}: {each}, and {memory(made.states)} of states"


def _prefill(made: LongInput) -> str:
    from broadsheet.report.words import number

    if made.operations is not None and made.attention_share is not None:
        told = f"{number(made.operations / 1e12)} trillion operations, {made.attention_share:.0%} of them attention"
        return told.replace("%", " %")
    if made.of_attention:
        return f"{number(made.of_attention / 1e12)} trillion operations of attention, those of weights not counted"
    return "not counted"


def _costs(each: AdvisedWay) -> list[str]:
    """What is told of a way below its title."""
    from broadsheet.report.words import memory

    facets = each.way.facets
    lines = [each.reason[0].upper() + each.reason[1:] + "."]
    if each.applies and each.cache is not None:
        exact = "same output" if facets["lossless"] else "approximate"
        lines.append(
            f"changes {', '.join(facets['changes'])}; training: {facets['training']}; {exact}; "
            f"cache on the device {memory(each.cache)}"
            + {True: ", fits", False: ", does not fit", None: ""}[each.fits]
            + "; with offload=True most of it waits in the host's memory" * each.way.offloads
        )
        lines.append(_recorded(each.way.paper) + f" · {each.command}" * bool(each.command))
    return lines
