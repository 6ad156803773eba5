"""A page for each paper, made while the site is built: none is committed, so none goes stale.

Knows: the row of a paper, its classes' docstrings, its recorded trial. Does not know: any method, other pages.

It is a hook for mkdocs. `page(paper)` gives the Markdown of `papers/<id>.md`.
"""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import generate

from broadsheet.page.docparts import example, first_sentences, use
from broadsheet.page.guides.data import surveys
from broadsheet.page.papers import RUNGS, Paper, docstring, ours
from broadsheet.page.staleness import stale
from broadsheet.report import words
from broadsheet.report.answer import TrialAnswer
from broadsheet.report.view import CLAIM_MARKS, View

if TYPE_CHECKING:
    from broadsheet.trial.results import TrialResult

RELATED = 6  # papers named on a page, at most
BUILT = 3  # of them, beside a paper that is not built


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that mkdocs found."""
    from mkdocs.structure.files import File, InclusionLevel

    for paper in ours():
        made = File.generated(config, f"papers/{paper.id}.md", content=page(paper), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(made)
    return files


def page(paper: Paper) -> str:
    """A paper's page as Markdown: what it is, when to use it and how, what was measured, what is beside it."""
    result = generate.trial_of(paper)
    parts = [f"# {paper.title}", _head(paper), paper.summary, _topics(paper), _when(paper), _code(paper)]
    parts += [_measured(paper, result), _examples(result)] if result else [_unmeasured(paper)]
    parts += [_here(paper), _options(paper), _source(paper), _related(paper)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(paper: Paper) -> str:
    state = f"[rung](../index.md#rungs) {paper.rung} {RUNGS[paper.rung]}"
    if paper.verdict:
        state += f", claims [{paper.verdict}](../verdicts.md)"
    of = f"[{paper.stage}](../{paper.stage}.md)" if generate.has_page(paper.stage) else paper.stage
    told = (f"`{paper.id}`", f"[arXiv:{paper.arxiv}]({paper.url})", paper.kind, f"stage {of}", state)
    return f"[All papers](../papers.md) › {' · '.join(told)}"


def _topics(paper: Paper) -> str:
    """The topics, each of which leads to the papers that share it."""
    links = (f'<a href="../papers.html?words={quote(topic)}">{html.escape(topic)}</a>' for topic in paper.topics)
    return f"Topics: {' · '.join(links)}" if paper.topics else ""


def _when(paper: Paper) -> str:
    """When to take each of its classes, and what instead."""
    told = []
    for entry in paper.entry:
        text = docstring(entry)
        name = entry.partition(":")[2]
        told.append(" ".join(filter(None, (f"**`{name}`**:", first_sentences(text, 1), use(text)))))
    if not told:
        return ""
    if generate.which(paper.stage) and generate.has_page(paper.stage):
        told.append(f"[What to take when](../{paper.stage}.md#which-one), among all of the stage.")
    return "## When to use it\n\n" + "\n\n".join(told)


def _code(paper: Paper) -> str:
    """An example of each class, and the commands."""
    parts = []
    for entry in paper.entry:
        if code := example(docstring(entry)):
            module, _, name = entry.partition(":")
            home = (
                f"broadsheet.{paper.stage}" if paper.in_stage and not module.startswith("broadsheet.page.") else module
            )
            line = f"from {home} import {name}"
            whole = code if f"import {name}" in code else f"{line}\n\n{code}"
            parts.append(f"```python\n{whole}\n```")
    commands = [f"broadsheet try {paper.id} --quick    # against the plain baseline, here and now"] * bool(paper.trial)
    commands += [f"broadsheet apply {paper.id} --help   # on data of yours"] * bool(paper.apply)
    commands += [f"broadsheet map {paper.id}"] * (paper.id in surveys())
    if commands:
        parts.append("```sh\n" + "\n".join(commands) + "\n```")
    if paper.in_stage and generate.has_reference(paper.stage):
        modules = dict.fromkeys(entry.partition(":")[0] for entry in paper.entry)
        links = (f"[`{module}`](../reference/{paper.stage}.md#{module})" for module in modules)
        parts.append(f"Every parameter: {', '.join(links)}.")
    return "## Use it\n\n" + "\n\n".join(parts) if parts else ""


def _measured(paper: Paper, result: TrialResult) -> str:
    """The answer, the picture of the metric that it is about, the claims, what to know first, and where it was run."""
    answer, view, made = TrialAnswer(result), View(result), result.provenance
    parts = ["## What was measured", f"**{_text(answer)}**"]
    if answer.why:
        parts.append(f"What to know first: {_text(answer.why)}")
    if metric := answer.lead.metric if answer.lead else next(iter(view.metrics), ""):
        parts.append(figure(view, metric))
    if view.judged:
        lines = [_claim(*each) for each in view.judged]
        tested = f"\n\n{view.tested}." if view.tested else ""
        parts.append("### Its claims\n\n" + "\n".join(lines) + tested)
    where = f"Recorded {made['date'][:10]} by\n\n```sh\n{result.command}\n```"
    setting = "\n".join(f"    - {_text(key)}: {_text(value)}" for key, value in words.flat(result.setting))
    parts += [where, f'??? note "On what"\n\n{setting}' if setting else "", _stale(paper)]
    if generate.has_page(paper.stage):
        parts.append(f"[Every arm and metric](../{paper.stage}.md), and [how a verdict is reached](../verdicts.md).")
    return "\n\n".join(filter(None, parts))


def _stale(paper: Paper) -> str:
    old = stale(paper.id)
    return f"Perhaps out of date: {_text(old)}." if old else ""


def _unmeasured(paper: Paper) -> str:
    if not paper.entry:
        told = f"Not built yet: nothing here runs it. `broadsheet new {paper.id}` writes the places that it takes."
        built = [each for each, _ in related(paper, most=len(ours())) if each.entry][:BUILT]
        links = "\n".join(f"- [{each.title}]({each.id}.md)" for each in built)
        return f"{told} Nearest to it, of what is built:\n\n{links}" if built else told
    if not paper.trial:
        return ""
    return f"## What was measured\n\nNothing is recorded yet. `broadsheet try {paper.id} --record` records it."


def figure(view: View, metric: str) -> str:
    """A metric of every arm as the report draws it, as one block of HTML."""
    drawing = view.picture(metric)
    said = "Marks are estimates, whiskers their 95 % intervals; the dashed line is the baseline."
    caption = f"<figcaption><b>{html.escape(drawing.title)}</b><br>{said} {html.escape(drawing.note)}</figcaption>"
    return f'<figure class="evidence">{drawing.svg()}{caption}</figure>'


def _claim(kind: str, verdict: str, said: str) -> str:
    control = " (a control)" * (kind == "control")
    return f"- {CLAIM_MARKS[verdict]} **{verdict}**{control}: {_text(said)}" + "." * (not said.endswith("."))


def _examples(result: TrialResult) -> str:
    """Items that a reader can judge, and what each arm made of them."""
    parts, view = [], View(result)
    for each in result.examples:
        rows = "".join(f"<dt>{html.escape(arms)}</dt><dd>{html.escape(made)}</dd>" for arms, made in view.told(each))
        expected = f"<p>{html.escape(each.expected)}</p>" if each.expected else ""
        item = " ".join(html.escape(each.item).split())
        parts.append(f"<blockquote>{item}</blockquote>{expected}<dl>{' '.join(rows.split())}</dl>")
    said = "The items on which the arms differ most. How often they differ, the numbers say."
    return f'## Read it yourself\n\n{said}\n\n<div class="examples">' + "".join(parts) + "</div>" if parts else ""


def _here(paper: Paper) -> str:
    """What of the paper is here."""
    if not paper.scope:
        return ""
    lines = []
    for heading, phrases in paper.scope.items():
        lines.append(f"**{heading[0].upper()}{heading[1:]}**\n\n" + "\n".join(f"- {_text(each)}" for each in phrases))
    return "## What of the paper is here\n\n" + "\n\n".join(lines)


def _options(paper: Paper) -> str:
    """The options of its commands, folded."""
    commands = ["try"] * bool(paper.trial) + ["apply"] * bool(paper.apply)
    parts = [
        f'??? note "broadsheet {command} {paper.id}"\n\n'
        + textwrap.indent(generate.options(command, paper.id), "    ", lambda line: bool(line.strip()))
        for command in commands
    ]
    return "## Options\n\n" + "\n\n".join(parts) if parts else ""


def _source(paper: Paper) -> str:
    """The files of its classes, folded: each can be read beside the paper."""
    parts = []
    for name in generate.files(paper) if paper.in_stage else ():
        code = (generate.ROOT / "src" / "broadsheet" / name).read_text(encoding="utf-8").rstrip()
        fence = textwrap.indent(f"````python\n{code}\n````", "    ", lambda line: bool(line.strip()))
        parts.append(f'??? note "src/broadsheet/{name}, {len(code.splitlines())} lines"\n\n{fence}')
    return "## Its code {: data-search-exclude }\n\n" + "\n\n".join(parts) if parts else ""


def _related(paper: Paper) -> str:
    lines = [
        f"- [{each.title}]({each.id}.md) ({each.stage}, {RUNGS[each.rung] if each.entry else 'not built yet'})"
        + f": {', '.join(shared)}" * bool(shared)
        for each, shared in related(paper)
    ]
    return "## Related papers\n\n" + "\n".join(lines) if lines else ""


def related(paper: Paper, most: int = RELATED) -> list[tuple[Paper, list[str]]]:
    """The nearest papers, at most so many, each with the topics that it shares.

    Rare topics weigh more; so does the same stage.
    """
    shared = {other: [topic for topic in paper.topics if topic in other.topics] for other in ours() if other != paper}

    def near(other: Paper) -> float:
        return sum(1 / _often()[topic] for topic in shared[other]) + 0.2 * (other.stage == paper.stage)

    found = sorted((other for other in shared if near(other) > 0), key=near, reverse=True)
    return [(other, shared[other]) for other in found[:most]]


@cache
def _often() -> Counter[str]:
    return Counter(topic for paper in ours() for topic in paper.topics)


def _text(said: Any) -> str:
    """Words that may hold signs of Markdown or HTML, as they are."""
    marked = html.escape(str(said), quote=False)
    return "".join(f"\\{sign}" if sign in "*_[]|" else sign for sign in marked)
