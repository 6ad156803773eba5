"""What the guides print: advice, the rules for a paper, a tree, what a long input costs.

Knows: the guides' results. Does not know: options, questions, JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from broadsheet.cli.plain import Part, folded, title, write
from broadsheet.console import say
from broadsheet.page.papers import RUNGS

if TYPE_CHECKING:
    from broadsheet.page.guides.advice import Advice, AdvisedPaper, Rule
    from broadsheet.page.guides.longcontext import AdvisedWay, LongInput
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
    write((paper.id, "bold"), f" {paper.title}")
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
    from broadsheet.report.words import memory, number

    context = f"trained on {made.shape.context:,}" if made.shape.context else "trained length not given"
    write((name, "bold"), f", {made.length:,} tokens ({context}), {dtype}")
    write(f"weights  {memory(made.weights) if made.weights else 'not counted (a mixture of experts)'}", indent=2)
    write(f"cache    {memory(made.cache)}, {made.cache / made.length / 1024:,.1f} KiB a token", indent=2)
    if made.operations is None:
        prefill = f"{number(made.of_attention / 1e12)} trillion operations of attention, those of weights not counted"
    else:
        prefill = f"{number(made.operations / 1e12)} trillion operations, {made.attention_share:.0%} of them attention"
    write(f"prefill  {prefill}".replace("%", " %"), indent=2)
    if made.fits is not None and made.memory is not None:
        write(f"memory   {memory(made.memory)}: it {'fits' if made.fits else 'does not fit'}", indent=2)
    for applies, heading in ((True, "Applies"), (False, "Does not apply")):
        ways = [each for each in made.ways if each.applies is applies]
        if ways:
            title(heading)
        for each in ways:
            _print_paper(each.way.paper, _costs(each))
    write()
    write("Measure with ", ("broadsheet try loogle", "bold"), "; keeping the two ends of the text is the rival.")


def _costs(each: AdvisedWay) -> list[str]:
    """What is told of a way below its title."""
    from broadsheet.report.words import memory

    facets = each.way.facets
    lines = [each.reason[0].upper() + each.reason[1:] + "."]
    if each.applies:
        exact = "same output" if facets["lossless"] else "approximate"
        lines.append(
            f"changes {', '.join(facets['changes'])}; training: {facets['training']}; {exact}; "
            f"cache on the device {memory(each.cache)}"
            + {True: ", fits", False: ", does not fit", None: ""}[each.fits]
            + "; with offload=True most of it waits in the host's memory" * each.way.offloads
        )
        lines.append(_recorded(each.way.paper) + f" · {each.command}" * bool(each.command))
    return lines
