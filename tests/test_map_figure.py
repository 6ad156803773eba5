"""The map of docs/guide.md as a picture: all that the rules say is on it, can be read, and can be heard."""

from __future__ import annotations

import importlib.util
import re
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from broadsheet.page.guides.advice import facts, rules
from broadsheet.page.guides.maps import conditions
from broadsheet.page.papers import RUNGS, get

PATH = Path(__file__).parents[1] / "docs" / "map.py"
SVG = "{http://www.w3.org/2000/svg}"
MONOSPACED, MEAN = 0.602, 0.6  # width of a letter over its size: Menlo, DejaVu Sans Mono; at most, of a sans in English


@pytest.fixture(scope="module")
def drawing():
    specification = importlib.util.spec_from_file_location("map_of_goals", PATH)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(drawing):
    """The map of the page."""
    return drawing.figure(drawing.goals())


@pytest.fixture(scope="module")
def picture(text):
    return ElementTree.fromstring(text)


@pytest.fixture(scope="module")
def long_goals(drawing):
    """Goals with more and longer words than any on the page, none with the same text as another."""
    papers = [drawing.Place("a" * 3 + "_b" * i, f"Paper {i} <&>", i % 5, i % 7 == 0) for i in range(14)]
    wordy = "; ".join(f"fact{i} value{i}, other{i}" for i in range(6))
    leaves = (
        drawing.Leaf("nineteen-letters-ab", "words", tuple(papers[:1])),
        drawing.Leaf(wordy, "words <&>", tuple(papers)),
        drawing.Leaf("short", "words", tuple(papers[3:5])),
        drawing.Leaf("forty letters in a label that wraps once", "words", tuple(papers[5:7])),
    )
    return [
        drawing.Goal(f"goal{i}", f"words of goal {i} " + "and more of them " * i, leaves[i % 3 :]) for i in range(7)
    ]


def classes(element) -> set[str]:
    return set(element.get("class", "").split())


def said(element) -> str:
    return (element.text or "") + "".join((each.text or "") + (each.tail or "") for each in element)


def box(element, drawing) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a text, or of a rectangle."""
    x, y = float(element.get("x", 0)), float(element.get("y", 0))
    if element.tag == f"{SVG}rect":
        return x, y, x + float(element.get("width")), y + float(element.get("height"))
    mono = "c" in classes(element)
    size = drawing.MONO if mono else drawing.SANS
    width = len(said(element)) * size * (MONOSPACED if mono else MEAN)
    left = x - width / 2 if "i" in classes(element) else x
    return left, y - 0.78 * size, left + width, y + 0.22 * size


def boxes(picture, drawing) -> list[tuple[str, tuple[float, float, float, float]]]:
    """What must not overlap: papers' chips, and texts outside of them."""
    found = []
    for element in picture.iter():
        chip = element.tag == f"{SVG}rect" and "page" not in classes(element)
        if chip or (element.tag == f"{SVG}text" and "i" not in classes(element)):
            found.append((said(element) or f"chip at {element.get('x')}", box(element, drawing)))
    return found


def read_back(picture, drawing) -> dict[str, list[tuple[str, list[str]]]]:
    """Goal → (label, papers) as a reader finds them: by column, from the top, a label beside or above its papers."""
    middle = drawing.WIDTH / 2
    texts = []
    for element in picture.iter(f"{SVG}text"):
        x, y = float(element.get("x")), float(element.get("y"))
        if y > drawing.TOP:
            texts.append((x > middle, y, x, classes(element), said(element)))
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for _, _, _, kind, text in sorted(texts, key=lambda each: each[:3]):
        if {"c", "b"} <= kind:
            leaves = found[text] = []
        elif {"m", "c"} <= kind:
            if leaves and not leaves[-1][1]:  # a label's next line
                leaves[-1] = (f"{leaves[-1][0]} {text}", leaves[-1][1])
            else:
                leaves.append((text, []))
        elif "i" in kind:
            leaves[-1][1].append(text.split()[0])
    return found


def test_every_rule_is_on_the_map_where_a_reader_looks_for_it(drawing, picture):
    wanted: dict[str, dict[str, list[str]]] = {goal: {} for goal in facts()["goal"].values}
    for rule in rules():
        label = "; ".join(answers for answers, _ in conditions(rule)) or "in any case"
        papers = wanted[rule.when["goal"][0]].setdefault(label, [])
        papers += [paper for paper in rule.recommend if paper not in papers]
    found = read_back(picture, drawing)
    assert {goal: dict(leaves) for goal, leaves in found.items()} == wanted
    assert sum(map(len, found.values())) == sum(map(len, wanted.values()))  # no label twice


@pytest.mark.parametrize("given", ["goals of the page", "long goals"])
def test_nothing_overlaps_or_leaves_the_page(drawing, picture, long_goals, given):
    if given == "long goals":
        picture = ElementTree.fromstring(drawing.figure(long_goals))
    width, height = map(float, picture.get("viewBox").split()[2:])
    drawn = boxes(picture, drawing)
    assert len(drawn) > 60
    for name, (left, top, right, bottom) in drawn:
        assert 0 <= left < right <= width, name
        assert 0 <= top < bottom <= height, name
    for i, (name, (left, top, right, bottom)) in enumerate(drawn):
        for other, (its_left, its_top, its_right, its_bottom) in drawn[i + 1 :]:
            apart = right <= its_left or its_right <= left or bottom <= its_top or its_bottom <= top
            assert apart, f"{name} and {other}"
    for group in picture.iter(f"{SVG}g"):
        chip, text = group.find(f"{SVG}rect"), group.find(f"{SVG}text")
        if chip is not None:  # a name lies within its chip
            (left, top, right, bottom), within = box(text, drawing), box(chip, drawing)
            assert within[0] < left < right < within[2], said(text)
            assert within[1] < top < bottom < within[3], said(text)


def test_columns_are_about_as_high_as_each_other(drawing, long_goals):
    for given in (drawing.goals(), long_goals):
        lows = {False: 0.0, True: 0.0}
        for chip in ElementTree.fromstring(drawing.figure(given)).iter(f"{SVG}rect"):
            if "page" not in classes(chip):
                side = float(chip.get("x")) > drawing.WIDTH / 2
                lows[side] = max(lows[side], float(chip.get("y")))
        assert abs(lows[True] - lows[False]) <= max(map(drawing._height, given))


def test_a_chip_shows_the_rung_and_that_a_paper_is_refuted(picture):
    chips = [group for group in picture.iter(f"{SVG}g") if group.find(f"{SVG}rect") is not None]
    legend, chips = chips[: len(RUNGS) + 1], chips[len(RUNGS) + 1 :]
    assert [said(group.find(f"{SVG}text")).split()[0] for group in legend[:-1]] == list(RUNGS)
    assert said(legend[-1].find(f"{SVG}text")) == "refuted here"
    for group in chips:
        name, *number = said(group.find(f"{SVG}text")).split()
        paper = get(name)
        assert number == ([str(paper.rung)] if paper.rung else [])
        for part in ("rect", "text"):
            assert f"r{paper.rung}" in classes(group.find(f"{SVG}{part}"))
        assert ("x" in classes(group.find(f"{SVG}rect"))) == (paper.verdict == "refuted here")
        assert group.find(f"{SVG}title").text.startswith(paper.title)
    assert len({said(group.find(f"{SVG}text")) for group in chips}) > 60


def test_a_refuted_paper_and_each_rung_have_a_look_of_their_own(drawing):
    places = [drawing.Place("p", "t", rung) for rung in range(5)] + [drawing.Place("p", "t", 2, refuted=True)]
    looks = {re.search(r'<rect class="([^"]+)"', drawing._chip(place, 0, 0)[0])[1] for place in places}
    assert looks == {"r0", "r1", "r2", "r3", "r4", "r2 x"}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_in_light_and_in_dark(picture):
    style = picture.find(f"{SVG}style").text
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    fills = []
    for scheme in (light, dark):
        colours = dict(re.findall(r"([\w.]+)\{fill:(#\w{6})\}", scheme))
        assert contrast(colours[".t"], colours[".page"]) >= 7
        assert contrast(colours[".m"], colours[".page"]) >= 4.5
        for rung in range(5):
            assert contrast(colours[f"text.r{rung}"], colours[f"rect.r{rung}"]) >= 4.5
        rungs = [luminance(colours[f"rect.r{rung}"]) for rung in range(5)]
        away = [abs(each - luminance(colours[".page"])) for each in rungs]
        assert all(less < more for less, more in pairwise(away))  # the further, the more it stands out
        fills.append(colours)
    assert luminance(fills[0][".page"]) > 0.9
    assert luminance(fills[1][".page"]) < 0.05


def test_it_says_itself_to_those_who_hear_it_and_loads_nothing(text, picture):
    assert picture.get("role") == "img"
    named = [picture.find(f"*[@id='{each}']") for each in picture.get("aria-labelledby").split()]
    assert [each.tag for each in named] == [f"{SVG}title", f"{SVG}desc"]
    for rule in rules():
        assert all(words in named[1].text for _, words in conditions(rule))
        assert all(paper in named[1].text for paper in rule.recommend)
    assert not re.search(r"href|url\(|@import|@font-face|<script|<image|<foreignObject", text)


def test_letters_that_mean_something_in_xml_are_kept(drawing, long_goals):
    picture = ElementTree.fromstring(drawing.figure(long_goals))
    titles = {title.text for title in picture.iter(f"{SVG}title")}
    assert {"Paper 0 <&>", "words <&>"} <= titles
