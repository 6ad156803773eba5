"""The forest plot of the evidence: each interval on the scale of the effect that was looked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from broadsheet.trial.claims import Claim, judge
from broadsheet.trial.verdicts import compare_samples

PATH = Path(__file__).parents[1] / "docs" / "forest.py"


@pytest.fixture(scope="module")
def forest():
    specification = importlib.util.spec_from_file_location("forest_of_evidence", PATH)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def row(forest, paper, difference, effect, **options):
    noise = np.tile([-1.0, 1.0], 50) / 10
    found = compare_samples(noise, difference - noise, metric="m", baseline="A", arm="B <x>", **options)
    (claim,) = judge([Claim("m", "A", "B <x>", effect=effect)], [found])
    return forest.ForestRow(paper, claim, found)


def test_a_claim_stands_at_its_measured_share_of_the_effect(forest):
    half = row(forest, "half", 0.5, 1.0)
    assert half.ends[0] == pytest.approx(0.5)
    worse = row(forest, "worse", 0.5, 1.0, higher_is_better=False)
    assert worse.ends[0] == pytest.approx(-0.5)
    nothing = row(forest, "nothing", 0.5, None)
    assert nothing.ends is None
    ceiling = row(forest, "ceiling", 0.125, None, bounds=(0, 1))
    assert ceiling.ends[0] == pytest.approx(0.5, abs=0.01)
    picture = ElementTree.fromstring(forest.forest([half, worse, nothing, ceiling]))
    circles = [each for each in picture if each.tag.endswith("circle")]
    assert [float(each.get("cx")) for each in circles] == pytest.approx(
        [forest._x(0.5), forest._x(-0.5), forest._x(0.5)], abs=2
    )
    assert [each.get("fill") == "#fffefb" for each in circles] == [False, False, True]  # hollow: no figure of the paper
    names = " ".join(each.text or "" for each in picture)
    assert "half: m, B <x> over A" in names
    assert "nothing" not in names


def test_what_lies_beyond_the_axis_ends_in_an_arrow(forest):
    far = forest.forest([row(forest, "far", 50.0, 1.0)])
    assert far.count("<path") == 2
    assert forest.forest([row(forest, "near", 1.0, 1.0)]).count("<path") == 0
