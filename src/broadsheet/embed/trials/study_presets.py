"""The study's six tables at a small scale, A to F, and a free grid: which cells each of them is made of.

Knows: the study's dimensions, and what each of them holds fixed. Does not know: how cells are trained or shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from broadsheet.console import InputError
from broadsheet.embed.dense_retrieval_study import UNSEEN, StudyQuestion, StudyRecipe
from broadsheet.trial.base import Claim
from broadsheet.trial.results import Role

LEAST = 0.02  # of nDCG@10: a smaller gain would not matter
INSTRUCTION = "Find the passage of the documentation that answers the query. Query: "


@dataclass(frozen=True)
class PresetRow:
    """A row of the table: an embedder, and what it is asked.

    Args:
        recipe, step: see `dense_retrieval_study.StudyCell`.
        questions: by a label that its metrics carry; "" for a table with one question.
    """

    name: str
    recipe: StudyRecipe
    step: int
    questions: dict[str, StudyQuestion]
    role: Role = "sibling"
    about: str = ""


@dataclass(frozen=True)
class Table:
    """What a preset gives.

    Args:
        title, question: as printed.
        rows: one of them with role "baseline".
        pairs: further comparisons, `(baseline row, row)`.
        claims: what the study found, between two rows.
        notes: what has to be said whatever comes out.
        curve: `(title, x label, [(line, x, row)])` to draw nDCG@10 over.
    """

    title: str
    question: str
    rows: list[PresetRow]
    pairs: list[tuple[str, str]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curve: tuple[str, str, list[tuple[str, float, str]]] | None = None


@dataclass(frozen=True)
class Axes:
    """What may vary: the first of each is the standard.

    Args:
        backbones: of `StudyRecipe`, the smallest first. layers: by backbone, ascending; 0 for all of them.
        poolings, attentions, losses, methods: of `StudyRecipe`.
        tasks: to train on. sets: to be asked beside them, tasks or BEIR folders. cutoffs: tokens that are read.
        instructed: whether queries have an instruction.
    """

    backbones: tuple[str, ...]
    layers: dict[str, tuple[int, ...]]
    poolings: tuple[str, ...] = ("last-token",)
    attentions: tuple[str, ...] = ("causal",)
    losses: tuple[str, ...] = ("infonce",)
    methods: tuple[str, ...] = ("lora",)
    tasks: tuple[str, ...] = ("summary", "name")
    sets: tuple[str, ...] = ("name", "half")
    cutoffs: tuple[int, ...] = (64, 128, 256, 512)
    instructed: tuple[bool, ...] = (False,)

    def sizes(self, recipe: StudyRecipe) -> list[tuple[str, StudyRecipe]]:
        """A name and a recipe for each backbone and depth, smallest first within a backbone."""
        several = len(self.backbones) > 1
        return [
            (
                ", ".join([Path(backbone).name] * (several or not layers) + [f"{layers} layers"] * bool(layers)),
                replace(recipe, backbone=backbone, layers=layers),
            )
            for backbone in self.backbones
            for layers in self.layers[backbone]
        ]

    def compared(self, recipe: StudyRecipe) -> tuple[str, str] | None:
        """The smallest and the largest backbone as they were pre-trained, which the study's claims on size are about.

        None where fewer than two are whole: the first layers of a model are no smaller backbone.
        """
        whole = [name for name, made in self.sizes(recipe) if not made.layers]
        return (whole[0], whole[-1]) if len(whole) > 1 else None


def in_domain(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """A: the same recipe for every backbone and size, each beside the raw model."""
    sizes = axes.sizes(recipe)
    rows = [
        PresetRow(name, r, r.total_steps, {"": question}, _role(i, len(sizes))) for i, (name, r) in enumerate(sizes)
    ]
    raw = [PresetRow(f"{name}, untrained", r, 0, {"": question}) for name, r in sizes]
    return Table(
        "In-domain accuracy by backbone and size",
        "Does a larger backbone, trained alike, retrieve better?",
        rows + raw,
        [(f"{name}, untrained", name) for name, _ in sizes],
        # Table A: 43.3 for Qwen1.5-0.5B, 49.5 for its 32B.
        _of_size(axes, recipe, ["nDCG@10"], "larger backbones retrieve better (dimension A)", effect=0.062),
    )


def efficiency(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """B: the smallest and the largest size of each backbone after a fifth, two fifths and all of the steps."""
    ends = [sizes for b in axes.backbones for sizes in _ends(axes, recipe, b)]
    rows, points = [], []
    for name, r in ends:
        for step in (*r.checkpoints(), r.total_steps):
            rows.append(PresetRow(f"{name}, {step} steps", r, step, {"": question}, "method"))
            points.append((name, float(step), rows[-1].name))
    first = [row.name for row in rows if row.step == min(recipe.checkpoints() or [recipe.total_steps])]
    rows[0] = replace(rows[0], role="baseline")
    last = [f"{name}, {r.total_steps} steps" for name, r in ends]
    # After 100 of 3,700 steps: 33.6 for Qwen1.5-0.5B, 39.0 for Llama-2-7B. Here a fifth of the steps is the first.
    claims = _of_size(axes, recipe, ["nDCG@10"], "larger backbones need fewer steps (dimension B)", effect=0.054)
    early = dict(zip((name for name, _ in ends), first, strict=True))
    return Table(
        "Data efficiency: accuracy by steps of one run",
        "How far does each size come in the first steps?",
        rows,
        [(a, b) for a, b in zip(first, last, strict=True) if a != b],
        [replace(claim, baseline=early[claim.baseline], arm=early[claim.arm]) for claim in claims],
        ["The steps are checkpoints of the runs of table A, whose learning rate falls to 0 at the last one alone."],
        ("nDCG@10 by steps", "steps", points),
    )


def zero_shot(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """C: the sizes of A, asked what they were not trained for."""
    sizes = axes.sizes(recipe)
    questions = {_label(name): replace(question, task=name) for name in axes.sets}
    rows = [PresetRow(name, r, r.total_steps, questions, _role(i, len(sizes))) for i, (name, r) in enumerate(sizes)]
    says = "larger backbones carry over better to other sets (dimension C)"
    metrics = [f"nDCG@10 ({label})" for label in questions]
    return Table(
        "Zero-shot transfer to other retrieval sets",
        "Does a larger backbone carry over better to queries it was not trained on?",
        rows,
        [],
        # Mean over 13 sets of BEIR: 43.8 for Qwen1.5-0.5B, 52.8 for its 32B.
        _of_size(axes, recipe, metrics, says, effect=0.09),
        ["Sets have different numbers of candidate passages; only rows of one column compare."],
    )


def length(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """D: texts that are long, read further than in training."""
    name, largest = axes.sizes(recipe)[-1]
    asked = replace(question, task="long")
    rows = [
        PresetRow(f"first {cut} tokens", largest, largest.total_steps, {"": replace(asked, length=cut)}, "method")
        for cut in axes.cutoffs
    ]
    rows[0] = replace(rows[0], role="baseline")
    return Table(
        f"Longer passages than in training ({name})",
        f"Trained on {recipe.length} tokens: does reading more of a long passage help?",
        rows,
        [],
        # NarrativeQA with Qwen1.5-0.5B: 17.6 at 256 tokens, its training length, and 21.1 at eight times as many.
        [
            Claim(
                "nDCG@10",
                rows[0].name,
                rows[-1].name,
                "reading further than in training helps (dimension D)",
                effect=0.035,
            )
        ]
        if len(rows) > 1
        else [],
        curve=(
            "nDCG@10 by tokens read",
            "tokens of a passage",
            [(name, float(cut), row.name) for cut, row in zip(axes.cutoffs, rows, strict=True)],
        ),
    )


def instruction(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """E: the same data in the same order, with and without an instruction before the queries."""
    _, largest = axes.sizes(recipe)[-1]
    with_it = replace(largest, instructed=True)
    rows = [
        PresetRow(
            "no instruction", largest, largest.total_steps, {"": question}, "baseline", "neither trained nor asked"
        )
    ]
    for name, text in (("instruction", INSTRUCTION), ("unseen wording 1", UNSEEN[0]), ("unseen wording 2", UNSEEN[1])):
        asked = replace(question, instruction=text)
        role: Role = "method" if name == "instruction" else "sibling"
        rows.append(PresetRow(name, with_it, with_it.total_steps, {"": asked}, role, f"asked with “{text.strip()}”"))
    rows.append(
        PresetRow("instruction left out", with_it, with_it.total_steps, {"": question}, "sibling", "trained with it")
    )
    return Table(
        "Instructions before the queries",
        "Does an instruction help, and does its wording matter?",
        rows,
        [("instruction", "unseen wording 1"), ("instruction", "unseen wording 2")],
        # Mean over six sets with Qwen1.5-0.5B: + 1.7 points of nDCG.
        [Claim("nDCG@10", "no instruction", "instruction", "an instruction helps LLMs (dimension E)", 0.017)],
        ["Five paraphrases in training, drawn by seed; data and their order are those of the run without instruction."],
    )


def multi_task(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """F: one run for all tasks against one run for each."""
    _, largest = axes.sizes(recipe)[-1]
    questions = {_label(name): replace(question, task=name) for name in axes.tasks}
    says = "joint training costs a task (dimension F)"
    joint = replace(largest, tasks=axes.tasks)
    rows = [
        PresetRow("joint", joint, joint.total_steps, questions, "baseline", f"{joint.total_steps} steps, all tasks")
    ]
    for name in axes.tasks:
        single = replace(largest, tasks=(name,))
        rows.append(
            PresetRow(f"{name} alone", single, single.total_steps, questions, "method", f"trained on {name} alone")
        )
    return Table(
        "Joint against single-task training",
        "Does training for several tasks at once cost each of them something?",
        rows,
        [],
        # Its mean loss of 0.8 to 2.0 points is over five tasks with different metrics: of one task it is no figure.
        [Claim(f"nDCG@10 ({_label(name)})", "joint", f"{name} alone", says, least=LEAST) for name in axes.tasks],
        [
            "The joint run sees as many examples of each task as that task's own run, in batches that mix the tasks; "
            "the study does not say how it does this."
        ],
    )


def grid(axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """Every combination of the axes; the first one is the baseline."""
    names = ("pooling", "attention", "loss", "method", "instructed")
    values = (axes.poolings, axes.attentions, axes.losses, axes.methods, axes.instructed)
    varied = [name for name, options in zip(names, values, strict=True) if len(options) > 1]
    rows: list[PresetRow] = []
    for (name, sized), chosen in product(axes.sizes(recipe), product(*values)):
        settings: dict[str, Any] = dict(zip(names, chosen, strict=True))
        made = replace(sized, **settings)
        told = ["instructed" if n == "instructed" else str(settings[n]) for n in varied if settings[n] is not False]
        asked = replace(question, instruction=INSTRUCTION if made.instructed else "")
        rows.append(PresetRow(", ".join([name, *told]), made, made.total_steps, {"": asked}, _role(len(rows), 0)))
    return Table("A grid of one's own", "Which of these settings retrieves best?", rows)


PRESETS: dict[str, Callable[[Axes, StudyRecipe, StudyQuestion], Table]] = {
    "A": in_domain,
    "B": efficiency,
    "C": zero_shot,
    "D": length,
    "E": instruction,
    "F": multi_task,
    "grid": grid,
}


def table(preset: str, axes: Axes, recipe: StudyRecipe, question: StudyQuestion) -> Table:
    """The preset's table.

    Raises:
        InputError: no such preset.
    """
    if preset not in PRESETS:
        raise InputError(f"got --preset {preset}; expected one of {', '.join(PRESETS)}")
    return PRESETS[preset](axes, recipe, question)


def _of_size(axes: Axes, recipe: StudyRecipe, metrics: list[str], says: str, effect: float) -> list[Claim]:
    """That the largest backbone beats the smallest, where both are whole."""
    ends = axes.compared(recipe)
    return [Claim(metric, *ends, says, effect=effect) for metric in metrics] if ends else []


def _ends(axes: Axes, recipe: StudyRecipe, backbone: str) -> list[tuple[str, StudyRecipe]]:
    """The smallest and the largest size of a backbone."""
    sizes = [(name, r) for name, r in axes.sizes(recipe) if r.backbone == backbone]
    return sizes if len(sizes) < 2 else [sizes[0], sizes[-1]]


def _role(i: int, n: int) -> Role:
    """The first row is the baseline, the last of n the method."""
    return "baseline" if i == 0 else "method" if n in (0, i + 1) else "sibling"


def _label(task: str) -> str:
    return Path(task).name
