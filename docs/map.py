"""The map of docs/guide.md: every goal of the adviser, its conditions as short labels, and the papers at them by rung.

Knows: goals with their leaves; how wide letters can be at most. Does not know: rules, evidence, files; `goals` alone
reads them. Text is text, in one light and one dark set of colours; the same goals give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from xml.sax.saxutils import escape

from broadsheet.page.guides.advice import facts, rules
from broadsheet.page.guides.maps import ANY, conditions
from broadsheet.page.papers import RUNGS, Paper, get

WIDTH, MARGIN, GAP, LABELS, TOP = 760, 12, 16, 138, 92  # of the picture; between columns; of labels; above all goals
COLUMN = (WIDTH - 2 * MARGIN - GAP) // 2
CHIP, PITCH, LINE = 18, 22, 15  # heights: of a paper's chip, of a row of chips, of a line of text
PAD, BESIDE = 5, 5  # room in a chip on each side of its name, and between chips
MONO, SANS = 11.5, 12.0  # sizes of the letters
MONO_EM, SANS_EM = 0.61, 0.6  # width of a letter over its size, at most: all of a monospaced font, the mean of others
REFUTED = "refuted here"
# Of each rung fill and text: listed is grey; the further, the more blue. Of the page: fill, text, muted text, lines.
RUNG_COLOURS = {
    "light": ("#ecebe8 #55514b", "#dbe9f8 #1b2b3b", "#a9cdf0 #0f2032", "#2767a8 #ffffff", "#123a68 #ffffff"),
    "dark": ("#2b3037 #b9c0c9", "#223b54 #dbe7f3", "#2d5f92 #ffffff", "#82bbf0 #0a1724", "#d3e8fc #0a1724"),
}
PAGE_COLOURS = {"light": "#fffefb #1d1c1a #5c5851 #d8d4cc", "dark": "#171b21 #e7eaee #a9b2bd #3a424d"}


@dataclass(frozen=True)
class Place:
    """A paper on the map: its id, what is said of it when pointed at, its rung, and whether it is refuted."""

    id: str
    title: str
    rung: int
    refuted: bool = False

    @property
    def text(self) -> str:
        """`"lastde 3"`; a paper that is listed alone bears no number."""
        return f"{self.id} {self.rung}" if self.rung else self.id

    @property
    def width(self) -> float:
        return round(len(self.text) * MONO * MONO_EM + 2 * PAD, 1)


@dataclass(frozen=True)
class Leaf:
    """A condition as a short label and in words, and the papers at it."""

    label: str
    words: str
    papers: tuple[Place, ...]


@dataclass(frozen=True)
class Goal:
    """A goal's id, what it is in words, and its leaves."""

    id: str
    words: str
    leaves: tuple[Leaf, ...]


def goals() -> list[Goal]:
    """The adviser's goals; rules of one goal with the same conditions are one leaf."""
    found = []
    for goal, words in facts()["goal"].values.items():
        leaves: dict[str, Leaf] = {}
        for rule in rules():
            if rule.when["goal"] == (goal,):
                asked = conditions(rule)
                label, told = ("; ".join(pair[i] for pair in asked) or ANY for i in (0, 1))
                before = leaves[label].papers if label in leaves else ()
                papers = dict.fromkeys((*before, *(_place(get(paper)) for paper in rule.recommend)))
                leaves[label] = Leaf(label, told, tuple(papers))
        found.append(Goal(goal, words, tuple(leaves.values())))
    return found


def _place(paper: Paper) -> Place:
    refuted = paper.verdict == REFUTED
    told = f"{paper.title}: rung {paper.rung}, {RUNGS[paper.rung]}" + f", {REFUTED}" * refuted
    return Place(paper.id, told, paper.rung, refuted)


def figure(drawn: Sequence[Goal]) -> str:
    """The map as SVG: goals one below the other, in two columns of about the same height."""
    split = _split([_height(goal) for goal in drawn])
    columns = drawn[:split], drawn[split:]
    height = TOP + max(sum(map(_height, column)) for column in columns) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="map-title map-about">',
        '<title id="map-title">The page by goal: papers to look at, and how far the evidence of each reaches</title>',
        f'<desc id="map-about">{escape(_about(drawn))}</desc>',
        f"<style>{_style()}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        *_legend(),
    ]
    for place, column in enumerate(columns):
        x, y = MARGIN + place * (COLUMN + GAP), TOP
        for goal in column:
            parts += _goal(goal, x, y)
            y += _height(goal)
    return "\n".join([*parts, "</svg>", ""])


def _about(drawn: Sequence[Goal]) -> str:
    """The whole map in words, for those who hear it."""
    told = [f"{len(drawn)} goals; under each, conditions and the papers that are recommended there."]
    for goal in drawn:
        leaves = [f"{leaf.words}: {', '.join(place.text for place in leaf.papers)}" for leaf in goal.leaves]
        told.append(f"{goal.words[0].upper()}{goal.words[1:]} ({goal.id}). {'. '.join(leaves)}.")
    return " ".join(told)


def _style() -> str:
    """Classes `page`, `line`, `t` (text), `m` (muted text), `r0` … `r4` (chips of a rung), in light and in dark."""
    letters = (
        f"text{{font:{SANS:g}px Helvetica,Arial,sans-serif}}"
        f".c{{font:{MONO:g}px Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace}}"
        ".b{font-weight:700}.i{text-anchor:middle}.x{stroke-dasharray:3 2}\n"
    )
    return letters + _colours("light") + f"@media(prefers-color-scheme:dark){{{_colours('dark')}}}"


def _colours(scheme: str) -> str:
    page, text, muted, line = PAGE_COLOURS[scheme].split()
    styles = [f".page{{fill:{page}}}.t{{fill:{text}}}.m{{fill:{muted}}}.line{{stroke:{line}}}.x{{stroke:{text}}}"]
    for rung, colours in enumerate(RUNG_COLOURS[scheme]):
        fill, ink = colours.split()
        styles.append(f"rect.r{rung}{{fill:{fill}}}text.r{rung}{{fill:{ink}}}")
    return "".join(styles) + "\n"


def _legend() -> list[str]:
    """What colours, dashes and labels mean."""
    parts = [f'<text class="t b" x="{MARGIN}" y="24">The page by goal</text>']
    samples = [Place(word, f"rung {rung}", rung) for rung, word in enumerate(RUNGS)]
    x = float(MARGIN)
    for sample in (*samples, Place(REFUTED, "a claim of the paper is refuted by the trial recorded", 0, True)):
        parts += _chip(sample, x, 36)
        x += sample.width + 6
    said = "Papers by the rung that their evidence has reached. Grey is listed: nothing has been shown yet."
    parts.append(f'<text class="m" x="{MARGIN}" y="{TOP - 20}">{said}</text>')
    said = 'Labels are answers to <tspan class="c">broadsheet advise</tspan>; a paper stands wherever a rule names it.'
    parts.append(f'<text class="m" x="{MARGIN}" y="{TOP - 5}">{said}</text>')
    return parts


def _goal(goal: Goal, x: float, y: float) -> list[str]:
    """A goal's head and its leaves, `_height(goal)` high."""
    parts = [f'<line class="line" x1="{x}" x2="{x + COLUMN}" y1="{y + 8.5}" y2="{y + 8.5}"/>']
    parts.append(f'<text class="t c b" x="{x}" y="{y + 26}">{escape(goal.id)}</text>')
    head = _wrapped(goal.words, SANS * SANS_EM, COLUMN - LABELS)
    parts += [
        f'<text class="t" x="{x + LABELS}" y="{y + 26 + LINE * i}">{escape(line)}</text>' for i, line in enumerate(head)
    ]
    y += 16 + LINE * len(head) + 6
    for leaf in goal.leaves:
        label = _label(leaf)
        parts.append(f"<g><title>{escape(leaf.words)}</title>")
        parts += [
            f'<text class="m c" x="{x}" y="{y + 13 + LINE * i}">{escape(line)}</text>' for i, line in enumerate(label)
        ]
        parts.append("</g>")
        for i, row in enumerate(_rows(leaf)):
            at = float(x + LABELS)
            for place in row:
                parts += _chip(place, at, y + _above(leaf) + PITCH * i)
                at += place.width + BESIDE
        y += _leaf_height(leaf)
    return parts


def _chip(place: Place, x: float, y: float) -> list[str]:
    """A paper's name on its rung's colour; a dashed edge where it is refuted."""
    kind, middle = f"r{place.rung}", x + place.width / 2
    box = f'x="{x:.1f}" y="{y}" width="{place.width:.1f}" height="{CHIP}" rx="4"'
    return [
        f"<g><title>{escape(place.title)}</title>"
        f'<rect class="{kind}{" x" * place.refuted}" {box}/>'
        f'<text class="{kind} c i" x="{middle:.1f}" y="{y + 13}">{escape(place.text)}</text></g>'
    ]


def _height(goal: Goal) -> int:
    head = _wrapped(goal.words, SANS * SANS_EM, COLUMN - LABELS)
    return 16 + LINE * len(head) + 6 + sum(map(_leaf_height, goal.leaves)) + 4


def _leaf_height(leaf: Leaf) -> int:
    above = _above(leaf)
    return above + PITCH * len(_rows(leaf)) + (4 if above else 0)


def _label(leaf: Leaf) -> list[str]:
    """A leaf's label in lines, as wide as the column where it does not fit beside the papers."""
    return _wrapped(leaf.label, MONO * MONO_EM, COLUMN)


def _above(leaf: Leaf) -> int:
    """Room that a label takes above its papers: none where it fits beside them."""
    label = _label(leaf)
    return 0 if len(label[0]) * MONO * MONO_EM <= LABELS - 4 and len(label) == 1 else LINE * len(label) + 3


def _wrapped(text: str, letter: float, width: float) -> list[str]:
    return wrap(text, int(width / letter))


def _rows(leaf: Leaf) -> list[list[Place]]:
    """A leaf's papers in rows that are no wider than there is room."""
    rows: list[list[Place]] = [[]]
    for place in leaf.papers:
        if rows[-1] and sum(each.width + BESIDE for each in rows[-1]) + place.width > COLUMN - LABELS:
            rows.append([])
        rows[-1].append(place)
    return rows


def _split(heights: Sequence[int]) -> int:
    """How many goals stand in the first column, so that the higher of the two is as low as can be."""
    return min(range(len(heights) + 1), key=lambda i: max(sum(heights[:i]), sum(heights[i:])))
