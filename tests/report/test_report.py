"""A trial's report: everything measured is on it, nothing breaks it, and nothing on it comes from elsewhere."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from broadsheet import report
from broadsheet.report import plots, view, words
from broadsheet.report.html import html
from broadsheet.trial.claims import Claim, JudgedClaim, judge
from broadsheet.trial.results import ArmResult, Curve, Distribution, TrialResult, chance_level, listed
from broadsheet.trial.sentences import amount, sentence
from broadsheet.trial.stats import Interval, auroc, interval, tpr_at_fpr
from broadsheet.trial.verdicts import compare_samples, compare_seconds

# name, role, shift of machine scores in standard deviations, texts per second
DETECTORS = [
    ("Likelihood", "baseline", -0.55, 14.2),
    ("Rank", "sibling", 0.12, 14.1),
    ("LogRank", "sibling", -0.40, 14.1),
    ("Entropy", "sibling", 0.35, 14.0),
    ("LRR", "sibling", -0.62, 14.2),
    ("FastDetectGPT", "sibling", 0.85, 13.7),
    ("Binoculars", "sibling", 0.72, 7.1),
    ("DetectGPT", "sibling", 0.30, 0.62),
    ("NPR", "sibling", 0.42, 0.61),
    ("Lastde", "method", 0.58, 13.9),
    ("LastdePP", "method", 1.20, 9.8),
]


@cache
def example(pairs: int = 150, resamples: int = 400) -> TrialResult:
    """Twelve detectors on made-up scores, one of them failed, as `broadsheet try lastde` would leave them."""
    rng = np.random.default_rng(7)
    statistics = {"AUROC": auroc, "TPR at 1 % FPR": tpr_at_fpr(0.01)}
    texts = rng.normal(size=(pairs, 2)) * [1.0, 0.9]
    arms, comparisons, scores, seconds = [], [], {}, {}
    for name, role, shift, speed in DETECTORS:
        scores[name] = texts * 0.8 + rng.normal(size=(pairs, 2)) * 0.6 + [0, shift]
        seconds[name] = 8 / speed * np.exp(rng.normal(scale=0.04, size=12))
        rate = np.log(8 / seconds[name])
        half = 2.2 * rate.std() / math.sqrt(12)
        arm = ArmResult(
            name,
            role,
            n_items=2 * pairs,
            prepare_seconds=1.4,
            peak_bytes=int(1.31e9 + 4e8 * (name in ("Binoculars", "DetectGPT", "NPR"))),
        )
        arm.items_per_second = Interval(*np.exp([rate.mean(), rate.mean() - half, rate.mean() + half]).tolist())
        for metric, statistic in statistics.items():
            arm.values[metric] = interval(scores[name], statistic, resamples=resamples)
            if name != "Likelihood":
                a, b = scores["Likelihood"], scores[name]
                comparisons.append(
                    compare_samples(
                        a, b, metric=metric, baseline="Likelihood", arm=name, statistic=statistic, resamples=resamples
                    )
                )
        if name != "Likelihood":
            speeds = compare_seconds(
                seconds["Likelihood"],
                seconds[name],
                metric="texts/s",
                baseline="Likelihood",
                arm=name,
                noise_floor=0.011,
            )
            comparisons.append(speeds)
        arms.append(arm)
    arms[-2].description = "mean log-likelihood over the spread of multiscale diversity entropy (s=3, ε=10n, τ'=5)"
    arms[-1].description = "Lastde as a z-score against 100 sampled sequences (s=4, ε=8n, τ'=15)"
    arms.insert(
        9,
        ArmResult(
            "DNAGPT",
            "sibling",
            status="failed",
            error="InputError: text 17 has 6 words; cutting at half leaves nothing to regenerate",
            n_items=34,
        ),
    )
    lengths = [40, 60, 80, 120, 160, 240]
    lines = {
        name: [0.5 + gain * (1 - math.exp(-length / 90)) for length in lengths]
        for name, gain in (("Likelihood", -0.18), ("FastDetectGPT", 0.24), ("Lastde", 0.17), ("LastdePP", 0.33))
    }
    lines["Lastde"][0] = None
    return TrialResult(
        paper="lastde",
        title="Training-free LLM-generated Text Detection by Mining Token Probability Sequences",
        question="Do token probabilities, read as a time series, tell machine from human text better than their mean?",
        setting={
            "protocol": "white-box", "model": "default (SmolLM2-135M-Instruct)", "data": "pydocs", "human texts": pairs,
            "machine texts": pairs, "words per text": "150–200, equal in each pair", "device": "cpu, 2 threads",
            "dtype": "float32", "seed": 0,
        },
        arms=arms,
        comparisons=comparisons,
        item="text",
        judged=judge([Claim("AUROC", "Likelihood", "Lastde"), Claim("AUROC", "Likelihood", "LastdePP")], comparisons),
        figures=[
            *(Distribution(name, "score", dict(zip(("human", "machine"), scores[name].T.tolist(), strict=True)))
              for name in ("Likelihood", "LRR", "Entropy", "FastDetectGPT", "Lastde", "LastdePP")),
            Curve("AUROC by length of text", "words", "AUROC", lengths, lines,
                  low={"LastdePP": [value - 0.05 for value in lines["LastdePP"]]},
                  high={"LastdePP": [value + 0.04 for value in lines["LastdePP"]]}, log_x=True),
        ],
        notes=[
            "On documentation the model finds human text more predictable than its own samples: "
            "an AUROC below 0.5 for Likelihood and LRR is what is, not a sign error.",
            "DetectGPT and NPR had no fill model and resample with the default causal model; the paper uses T5-3B.",
            "With 150 + 150 texts the standard error of an AUROC is about 0.03.",
        ],
        command="broadsheet try lastde --model default --data pydocs --items 150 --detectors all --out reports/lastde",
        provenance={
            "date": "2025-11-03T09:41:07+00:00",
            "versions": {"python": "3.11.2", "broadsheet": "0.1.0", "torch": "2.9.1", "transformers": "5.23.0"},
            "seeds": {"data": 0, "generation": 0, "bootstrap": 0},
            "fingerprints": {"model": "9f0c2b51d6a1e7c4", "data": "41d3a9be02775f18", "texts": "c7701e52aa0b9d36"},
            "machine": {"system": "Linux x86_64", "processor": "Example", "cores": 2, "memory_bytes": 16_000_000_000},
        },
    )  # fmt: skip


class Page(HTMLParser):
    """A parsed page: its words, its links and loads, and whether every tag was closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def printed(result: TrialResult, width: int = 80, **options) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    report.terminal(result, console, **options)
    return console.file.getvalue()


def small(*arms: ArmResult, **fields) -> TrialResult:
    """A result of just these arms."""
    blank = {"title": "A title", "question": "Does it?", "setting": {}, "comparisons": []}
    return TrialResult(**{"paper": "none", "arms": list(arms), **blank, **fields})


def arm(name: str = "A", role: str = "baseline", **values: Interval) -> ArmResult:
    return ArmResult(name, role, n_items=1, values=values, items_per_second=values.pop("speed", None))


def test_page_holds_every_arm_verdict_number_and_note():
    result = example()
    page = Page(html(result))
    for one in result.arms:
        assert one.name in page.text
    for comparison in result.comparisons:
        assert sentence(comparison) in page.text
    for said in (result.question, *result.notes, result.arms[-1].description, "c7701e52aa0b9d36", "16 GB"):
        assert " ".join(said.split()) in page.text
    assert "failed: InputError: text 17 has 6 words" in page.text
    assert result.command in page.text
    assert page.text.count("the paper’s claim") == 2


def test_claims_come_first_and_what_is_many_is_folded():
    result = example()
    many = [replace(one, metric=f"{one.metric} {i}") for i in range(6) for one in result.comparisons]
    claimed = (many[-1].metric, many[-1].baseline, many[-1].arm)
    seen = view.View(replace(result, comparisons=[*result.comparisons, *many], judged=[JudgedClaim(*claimed)]))
    comparisons = dict(seen.groups("method", "baseline", "sibling", "peer"))[many[-1].arm]
    assert seen.claimed(comparisons[0])
    assert not any(seen.claimed(each) for each in comparisons[1:])
    assert len(comparisons) > 8
    assert (seen.leading(comparisons), seen.leading(comparisons[:8])) == (6, 8)
    text = html(seen.result)
    folded = sum(len(group) > 8 for _, group in seen.groups("method"))
    assert folded
    assert text.count("more comparisons</summary>") == folded
    said = Page(text).text
    for comparison in seen.result.comparisons:
        assert sentence(comparison) in said


def test_page_loads_nothing_and_links_only_to_arxiv():
    page = Page(html(example()))
    loads = [
        value for _, attributes in page.tags for key in ("src", "href", "xlink:href") if (value := attributes.get(key))
    ]
    assert loads == ["https://arxiv.org/abs/2410.06072"]
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", html(example()))


def test_a_result_that_is_on_no_page_of_papers_is_not_linked():
    assert not [tag for tag, _ in Page(html(replace(example(), paper="detect"))).tags if tag == "a"]


def test_pictures_are_named_and_described_for_those_who_cannot_see_them():
    text = html(example())
    pictures = re.findall(r'<svg role="img".*?</svg>', text, re.DOTALL)
    assert len(pictures) == 3 + 1 + 6 + 1  # metrics and speed, speed against quality, distributions, a curve
    for picture in pictures:
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", picture)
    assert "LastdePP: 0.798" in pictures[0]


def test_baseline_comes_first_and_what_failed_last():
    names = [one.name for one in view.View(example()).arms]
    assert (names[0], names[1], names[-1]) == ("Likelihood", "LastdePP", "DNAGPT")
    lower = [replace(c, higher_is_better=False) for c in example().comparisons]
    assert view.View(replace(example(), comparisons=lower)).arms[1].name == "LogRank"


HOSTILE = """<script>alert("1")</script> & 'x' [red]{{ 7*7 }}"""


def test_whatever_the_names_say_is_text():
    value = Interval(0.5, 0.4, 0.6)
    arms = [
        ArmResult(HOSTILE, "baseline", HOSTILE, n_items=2, values={HOSTILE: value}),
        ArmResult("B" + HOSTILE, "method", status="failed", error=HOSTILE),
    ]
    comparison = compare_samples(
        [1, 2, 3], [1, 2, 4], metric=HOSTILE, baseline=HOSTILE, arm="B" + HOSTILE, unit=HOSTILE
    )
    result = TrialResult(
        HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [HOSTILE]}, arms, [comparison], HOSTILE, notes=[HOSTILE], command=HOSTILE,
        figures=[
            Distribution(HOSTILE, HOSTILE, {HOSTILE: [1.0, 2.0]}),
            Curve(HOSTILE, HOSTILE, HOSTILE, [1.0, 2.0], {HOSTILE: [1.0, 2.0]}),
        ],
        provenance={HOSTILE: HOSTILE, "date": HOSTILE},
    )  # fmt: skip
    text = html(result)
    page = Page(text)
    assert not {"script", "x"} & {tag for tag, _ in page.tags}
    assert "alert(" not in re.sub(r"&[#\w]+;", "", "".join(re.findall(r"<[^>]*>", text)))
    assert page.text.count(HOSTILE) > 10
    assert "49" not in page.text
    assert "[red]{{ 7*7 }}" in printed(result, 100).replace("\n", " ")


def test_json_is_strict_and_complete(tmp_path):
    result = replace(example(), notes=["λ, \udcff"], command="broadsheet try lastde --data caf\udce9")
    result.arms[0] = replace(result.arms[0], samples={"score": [0.1, math.nan, math.inf]})
    data, page = report.write(result, tmp_path / "new")
    assert (data.name, page.name) == ("lastde.json", "lastde.html")

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(data.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["arms"][0].pop("samples") == {"score": [0.1, None, None]}
    expected = json.loads(json.dumps(result.to_dict()))
    expected["arms"][0].pop("samples")
    assert read == expected
    Page(page.read_text(encoding="utf-8"))
    assert sorted(path.name for path in data.parent.iterdir()) == ["index.html", "lastde.html", "lastde.json"]


def test_one_arm_no_figures_one_item():
    result = small(arm(AUROC=Interval(1.0, -math.inf, math.inf), speed=Interval(3.0, 2.0, 4.0)), item="text")
    page = Page(html(result))
    assert "The answer" not in page.text
    assert "How verdicts are made" not in page.text
    assert "A closer look" not in page.text
    assert "1.00 −∞ to ∞" in page.text
    assert "texts/s" in printed(result)


def test_numbers_that_are_none():
    nan = Interval(math.nan, math.nan, math.nan)
    comparison = compare_samples([1.0], [2.0], metric="F1", baseline="A", arm="B")
    result = small(arm(F1=nan, speed=nan), arm("B", "method", F1=nan), arm("C", "peer"), comparisons=[comparison])
    result.figures = [
        Distribution("D", "x", {"none": [], "odd": [math.nan, math.inf, 1.0]}),
        Curve("C", "x", "y", [1.0, 2.0], {"A": [None, None], "B": [math.nan, 2.0]}),
    ]
    text = html(result)
    assert "nan" not in text.lower().replace("nano", "")
    assert "not measured" in Page(text).text
    assert "2 not finite, left out" in Page(text).text
    assert "nan" not in printed(result)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_terminal_keeps_within_its_columns(width):
    lines = printed(example(), width, written=[], full=True).splitlines()
    assert max(map(cell_len, lines)) <= min(width, 100)
    text = " ".join(" ".join(lines).split())
    for one in example().arms:
        assert one.name in text
    methods = {arm.name for arm in example().arms if arm.role == "method"}
    for comparison in example().comparisons:
        if comparison.arm in methods:
            assert sentence(comparison) in text
    siblings = view.View(example()).groups("sibling", "peer")
    summary = view.View(example()).summary(siblings)
    assert summary
    for line in summary:
        assert line in text
    marks = {(c.metric, c.arm): view.MARKS[c.verdict] for _, comparisons in siblings for c in comparisons}
    for (metric, arm), mark in marks.items():
        [line] = [line for line in summary if line.startswith(f"{metric} against")]
        assert re.search(rf"{mark} [^;]*\b{re.escape(arm)}\b", line)
    assert "DNAGPT failed: InputError: text 17" in text
    assert "Likelihood *" in text


def test_terminal_is_plain_when_piped(capsys):
    report.terminal(example())
    assert "\x1b" not in capsys.readouterr().out


def test_verdicts_have_colour_on_a_terminal_and_marks_everywhere():
    console = Console(file=StringIO(), width=100, force_terminal=True, color_system="standard")
    report.terminal(example(), console, full=True)
    assert "\x1b[32m▲" in console.file.getvalue()
    assert "\x1b[31m▼" in console.file.getvalue()
    assert "▲ AUROC: LastdePP helps" in printed(example(), 100, full=True)


def test_many_metrics_and_long_names_still_fit():
    name = "an_arm_with_a_name_that_nobody_should_have_chosen_" * 3
    values = {f"metric {i} of many": Interval(0.5, 0.4, 0.6) for i in range(12)}
    result = small(arm(name, **values), arm("短い名前" * 20, "method", **values))
    text = printed(result, full=True).partition("* baseline")[2]  # after the few rows of the answer
    assert max(map(cell_len, text.splitlines())) <= 80
    assert text.count("0.50 0.40–0.60") == 2 * 12  # no number is broken over two lines
    page = Page(html(result))
    assert name in page.text


def test_a_folded_command_is_the_same_command():
    import shlex

    command = (
        """broadsheet try lastde --data 'my texts/a "b".jsonl' --model ~/models/x --note "two words" --out runs/y"""
    )
    result = small(arm(AUROC=Interval(0.5, 0.4, 0.6)), command=f"{command} {command}")
    shown = printed(result, 60, full=True).split("repeat  ")[1]
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(f"{command} {command}")
    assert shown.count("~/models/x") == 2
    assert max(map(len, shown.splitlines())) <= 60


def test_comparison_table(capsys):
    comparisons = [c for c in example().comparisons if c.arm == "LastdePP"]
    few = compare_samples([1.0, 2.0], [2.0, 4.0], metric="few", baseline="Likelihood", arm="LastdePP")
    noisy = replace(comparisons[0], metric="noisy", verdict="no measurable difference", p_value=0.0001)
    report.comparison_table([*comparisons, few, noisy], notes=["3 items were only in one file"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    words = {"helps": "better", "hurts": "worse"}
    differing = [c for c in comparisons if c.verdict in words]
    assert differing
    for c in differing:
        assert f"{c.metric}: LastdePP is {words[c.verdict]} than Likelihood: {amount(c)}" in text
    same = [c.metric for c in comparisons if c.verdict not in words]
    assert f"No measurable difference in {listed([*same, 'noisy'])}; the last column says" in text
    assert "In noisy the difference lies within the baseline's own noise." in text
    assert "Too few to say: few (n = 2)." in text
    assert "3 items were only in one file" in text
    assert "4 comparisons, 2 of them called better or worse" in text
    assert "helps" not in text


numbers = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan])
intervals = st.builds(
    lambda ends: Interval(ends[1], ends[0], ends[2]), st.tuples(numbers, numbers, numbers).map(sorted)
) | st.builds(lambda x: Interval(x, x, x), numbers)
arms = st.builds(
    plots.PlotRow,
    st.text(max_size=30),
    st.sampled_from(["baseline", "method", "sibling", "peer"]),
    st.none() | intervals,
    st.none() | intervals,
)


def inside(drawing: plots.Drawing) -> bool:
    """Whether every absolute coordinate of the drawing is a number within its view box."""
    text = str(drawing.svg())
    assert not re.search(r"nan|inf", re.sub(r"<(title|desc|text).*?</\1>", "", text))
    points = [pair for d in re.findall(r' d="([^"]*)"', text) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", d)]
    points += re.findall(r'x="([-\d.]+)" y="([-\d.]+)"', text)
    return all(0 <= float(x) <= plots.WIDTH and 0 <= float(y) <= drawing.height for x, y in points)


@settings(max_examples=150, deadline=None)
@given(st.lists(arms, max_size=5), st.none() | st.just(0.5))
@hypothesis.example([plots.PlotRow("", "baseline", Interval(0.0, 0.0, 5e-324), None)], None)
def test_whiskers_and_scatter_stay_inside(rows, chance):
    assert inside(plots.whiskers("t", rows, chance))
    assert inside(plots.scatter("t", rows, "x", "y"))


@settings(max_examples=80, deadline=None)
@given(st.lists(numbers, max_size=12), st.lists(numbers, max_size=60))
def test_distributions_stay_inside(a, b):
    assert inside(plots.distribution(Distribution("t", "x", {"a": a, "b": b}), {"a": "s0", "b": "s1"}))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(numbers, st.none() | numbers, numbers, numbers), max_size=14), st.booleans())
def test_curves_stay_inside(points, log_x):
    x, y, low, high = (list(column) for column in zip(*points, strict=True)) if points else ([], [], [], [])
    drawing = plots.curve(Curve("t", "x", "y", x, {"a": y}, {"a": low}, {"a": high}, log_x=log_x), {"a": "s0"})
    assert inside(drawing)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12), st.integers(2, 6))
def test_ticks_are_few_round_even_and_on_the_axis(low, width, count):
    axis = plots.scale([low, low + width], 0, 100)
    at = plots.ticks(axis, count)
    assert 1 <= len(at) <= 2 * count + 1
    tolerance = 1e-9 * max(abs(axis.low), abs(axis.high))
    assert all(axis.low - tolerance <= value <= axis.high + tolerance for value in at)
    steps = {float(f"{b - a:.3g}") for a, b in pairwise(at)}
    assert len(steps) <= 1 or max(abs(low), width) > 1e5 * width


def test_a_break_in_a_curve_is_a_gap():
    figure = Curve("t", "x", "y", [1, 2, 3, 4, 5], {"a": [1.0, 2.0, None, 2.0, 1.0]})
    strokes = re.findall(r'class="stroke s0" d="([^"]*)"', str(plots.curve(figure, {"a": "s0"}).svg()))
    assert [d.count("L") for d in strokes] == [1, 1]


def test_densities_have_equal_area_and_peak_where_the_values_are():
    rng = np.random.default_rng(0)
    figure = Distribution("t", "x", {"a": rng.normal(0, 1, 400).tolist(), "b": rng.normal(4, 0.5, 100).tolist()})
    drawing = plots.distribution(figure, {"a": "s0", "b": "s1"})
    areas, peaks = [], []
    for d in re.findall(r'class="stroke s\d" d="M([^"]*)"', str(drawing.svg())):
        points = np.array([point.split() for point in d.split("L")], dtype=float)
        heights = 140 - points[:, 1]
        areas.append(np.trapezoid(heights, points[:, 0]))
        peaks.append(points[heights.argmax(), 0])
    assert areas[0] == pytest.approx(areas[1], rel=0.02)
    assert peaks[0] < plots.WIDTH / 2 < peaks[1]


def test_far_outliers_are_counted_not_drawn():
    values = [*np.linspace(0, 1, 400).tolist(), 1e6]
    drawing = plots.distribution(Distribution("t", "x", {"a": values}), {"a": "s0"})
    assert drawing.note == "1 beyond the axis"


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.8624, 0.8251, 0.8993), ("0.862", "0.825–0.899")),
        (Interval(142.03, 138.2, 146.1), ("142", "138–146")),
        (Interval(1234.56, 1234.55, 1234.57), ("1,234.56", "1,234.55–1,234.57")),
        (Interval(-0.012, -0.061, 0.037), ("−0.012", "−0.061 to 0.037")),
        (Interval(2.0, 2.0, 2.0), ("2.00", "2.00–2.00")),
        (Interval(18.632813, 18.6328124, 18.6328129), ("18.6", "18.6–18.6")),
        (Interval(0.0, 0.0, 0.0), ("0", "0–0")),
        (Interval(1.0, -math.inf, math.inf), ("1.00", "−∞ to ∞")),
        (Interval(-1e-17, -0.05, 0.05), ("0.000", "−0.050 to 0.050")),
    ],
)
def test_intervals_are_said_with_the_figures_they_are_worth(interval, said):
    assert words.bracket(interval) == said


def test_human_units():
    assert [words.memory(size) for size in (0, 999, 1500, 1_310_000_000, 25 * 10**9)] == [
        "—",
        "999 B",
        "1.5 kB",
        "1.3 GB",
        "25 GB",
    ]
    assert [words.p_value(p) for p in (None, 0.0, 0.0004, 0.04321)] == ["—", "< 0.001", "< 0.001", "0.043"]


def test_colours_follow_roles():
    roles = {"base": "baseline", "ours": "method", "ours2": "method", "other": "sibling"}
    assert view.styles(roles, roles) == {"base": "s0 d0", "ours": "s1 d0", "ours2": "s1 d1", "other": "s2 d0"}
    assert view.styles(["human", "machine"], roles) == {"human": "s0 d0", "machine": "s1 d0"}


@pytest.mark.parametrize(
    ("metric", "level"),
    [("AUROC", 0.5), ("ROC-AUC", 0.5), ("TPR at 1 % FPR", 0.01), ("TPR@0.5%FPR", 0.005), ("F1", None)],
)
def test_chance_is_drawn_only_where_it_is_known(metric, level):
    assert chance_level(metric) == level
    assert ("chance" in str(plots.whiskers(metric, [], level).svg())) == (level is not None)


def test_a_metric_with_a_chance_level_is_drawn_evenly():
    rows = [
        plots.PlotRow("a", "baseline", Interval(0.05, 0.04, 0.06)),
        plots.PlotRow("b", "method", Interval(0.9, 0.8, 0.99)),
    ]
    assert ">0.0<" in plots.whiskers("AUROC", rows, chance=0.5).svg()
    assert ">0.0<" not in plots.whiskers("seconds", rows).svg()


def test_a_share_is_drawn_evenly_and_a_cost_is_not():
    arms = arm(found=Interval(0.05, 0.04, 0.06)), arm("B", "method", found=Interval(0.9, 0.8, 0.99))
    for bounds, even in (((0, 1), True), ((-math.inf, math.inf), False)):
        compared = compare_samples(
            [0.1, 0.0, 0.1, 0.0, 0.1, 0.0], [0.9] * 5 + [0.8], metric="found", baseline="A", arm="B", bounds=bounds
        )
        drawing = view.View(small(*arms, comparisons=[compared])).picture("found")
        assert (">0.0<" in drawing.svg()) == even


def test_several_of_an_item_are_spelled() -> None:
    from broadsheet.trial.results import plural

    assert (plural("text"), plural("query")) == ("texts", "queries")


def test_every_group_of_a_distribution_has_its_ticks():
    rng = np.random.default_rng(0)
    groups = {"few": [1.0, 2.0], "many": rng.normal(size=500).tolist(), "third": rng.normal(size=30).tolist()}
    text = str(plots.distribution(Distribution("d", "x", groups), dict.fromkeys(groups, "s1")).svg())
    ticks = [path.count("v4") for path in re.findall(r' d="([^"]*)"', text) if "v4" in path]
    assert ticks == [2, 60, 30]


def test_names_in_a_scatter_lie_on_no_whisker():
    rows = [
        plots.PlotRow(f"arm {i}", "sibling", Interval(0.5 + i / 1000, 0.4, 0.6), across=Interval(10.0 + i, 5, 20))
        for i in range(8)
    ]
    text = str(plots.scatter("s", rows, "x", "y").svg())
    assert text.count('class="name') < len(rows), "what has no room is told on the pointer"
    assert "<title>arm 7" in text


def test_long_names_stand_whole_on_two_lines_and_rows_make_room():
    assert plots.in_lines("Lastde", 15) == ["Lastde"]
    assert plots.in_lines("n-gram drafter, empty table", 15) == ["n-gram drafter,", "empty table"]
    assert plots.in_lines("x" * 40, 15)[0] == "x" * 15
    assert plots.in_lines("one two three four five six seven eight", 15)[1].endswith("…")
    assert plots.in_lines("", 15) == [""]
    short, long = (
        plots.whiskers("t", [plots.PlotRow(name, "sibling", Interval(1.0, 0.5, 1.5)) for name in names])
        for names in (["a", "b"], ["a", "ADED, tree size measured"])
    )
    assert long.height > short.height
    text = str(long.svg())
    assert "ADED, tree size" in text
    assert "measured<" in text
