"""A trial's answer: it follows from the result alone, says what won and what came of the claims, and fits a screen."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from broadsheet import report
from broadsheet.page import evidence
from broadsheet.report.answer import TrialAnswer, difference
from broadsheet.report.html import BRIEF, _tables, html
from broadsheet.report.view import View
from broadsheet.trial.claims import Claim, judge
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.results import Example, TrialResult, beside_chance
from broadsheet.trial.sentences import sentence
from broadsheet.trial.stats import auroc

RECORDED = sorted(
    path.stem for path in evidence.folder().glob("*.json") if "arms" in json.loads(path.read_text("utf-8"))
)
SCORE = Metric("score")
SHIFTS = {"plain": 0.0, "method": 1.0, "other": 2.0}


def tried(
    shifts: dict[str, float] = SHIFTS,
    metric: Metric = SCORE,
    claims: tuple[Claim, ...] = (Claim("score", "plain", "method"),),
    pairs: tuple[tuple[str, str], ...] = (),
    n: int = 60,
    notes: tuple[str, ...] = (),
    paper: str = "",
) -> TrialResult:
    """Arms whose values lie so far from the first one's, as a trial would leave them."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=n)
    values = {name: items + shift + rng.normal(scale=0.1, size=n) for name, shift in shifts.items()}
    if metric.statistic is auroc:
        values = {name: np.stack([items, items + shift], 1) for name, shift in shifts.items()}
    if metric.binary:
        values = {name: np.full(n, shift) for name, shift in shifts.items()}
    first = next(iter(shifts))
    arms = [
        Arm(
            name,
            lambda block, name=name: {metric.name: values[name][block].tolist()},  # type: ignore[misc]
            "baseline" if name == first else "method" if name == "method" else "sibling",
        )
        for name in shifts
    ]
    results, comparisons = run_arms(arms, list(range(n)), [metric], pairs=pairs, resamples=400)
    return TrialResult(
        paper,
        "A title",
        "Does it help?",
        {},
        results,
        comparisons,
        judged=judge(claims, comparisons),
        notes=list(notes),
    )


def lines_of(result: TrialResult, **options: object) -> list[str]:
    console = Console(file=StringIO(), width=80)
    report.terminal(result, console, **options)  # type: ignore[arg-type]
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("paper", RECORDED)
def test_what_was_recorded_is_answered_on_one_screen(paper):
    result = TrialResult.from_dict(evidence.read(paper, evidence.folder()))
    lines = lines_of(result, written=[Path("runs/x.json"), Path("runs/x.html")])
    assert len(lines) <= BRIEF
    assert max(map(cell_len, lines)) <= 80
    answer = TrialAnswer(result)
    said = " ".join(" ".join(lines).split())
    assert str(answer) in said
    assert answer.lead is not None
    assert answer.lead.arm.lower() in str(answer).lower()
    claims = [claim for claim in result.judged if claim.kind == "claim"]
    for verdict in {claim.verdict for claim in claims}:
        assert verdict in str(answer)
    assert any("runs/x.html" in line for line in lines)
    assert lines[-1] == f"use     {answer.use}"
    assert len(lines_of(result, full=True)) > len(lines)
    assert all(str(escape(told)) in html(result) for told in answer.beside)


def test_names_that_break_over_lines_cost_the_last_columns_and_not_the_screen():
    recorded = json.dumps(evidence.read("transnormer", evidence.folder()))
    long = "TransNormer, no decay of any kind, in any layer, at any head"
    result = TrialResult.from_dict(json.loads(recorded.replace("TransNormer, no decay", long)))
    metrics = TrialAnswer(result).metrics
    lines = lines_of(result, written=[Path("runs/x.json"), Path("runs/x.html")])
    assert len(lines) <= BRIEF
    assert lines[lines.index("") + 1].split() == [metrics[0]], "the first column alone is left, of several"
    assert len(metrics) > 1
    assert any(long in line for line in lines)
    assert all(metric in html(result) for metric in metrics)


def test_an_answer_says_what_won_by_how_much_and_what_came_of_the_claim():
    result = tried(notes=("Read this first.", "And that."))
    answer = TrialAnswer(result)
    c = result.comparison("score", "plain", "method")
    assert str(answer).startswith("Method beats plain: score ")
    assert f"({c.difference.estimate:+.2f}" in str(answer)
    assert "Best here is other (" in str(answer)
    assert str(answer).endswith("The paper's claim is shown.")
    assert answer.why == "Read this first."
    assert [arm.name for arm, _ in answer.rows] == ["plain", "method", "other"]
    assert [cells[0].mark for _, cells in answer.rows] == ["", "▲", "▲"]


def test_what_is_worse_and_what_does_not_differ_is_said_so():
    assert "method is worse than plain: score" in difference(tried({"plain": 0.0, "method": -1.0}).comparisons[0])
    same = tried({"plain": 0.0, "method": 0.0})
    assert "do not differ measurably" in difference(same.comparisons[0])
    assert "could have seen" in difference(same.comparisons[0])
    assert "Best here" not in str(TrialAnswer(tried({"plain": 0.0, "method": 0.0, "other": 0.01}))), (
        "within its interval"
    )


def test_an_arm_at_chance_does_not_help_whatever_the_baseline():
    metric = Metric("AUROC", statistic=auroc, bounds=(0, 1))
    claim = Claim("AUROC", "plain", "method", effect=0.1)
    result = tried({"plain": -2.0, "method": -0.3, "other": 1.0}, metric, (claim,))
    by_arm = {c.arm: c for c in result.comparisons if c.metric == "AUROC"}
    assert by_arm["method"].verdict == "helps"
    assert by_arm["method"].at_chance
    assert not by_arm["other"].at_chance
    assert by_arm["method"].chance == 0.5
    assert "is at chance" in sentence(by_arm["method"])
    assert "helps" not in sentence(by_arm["method"])
    assert "helps" in sentence(by_arm["other"])
    assert [judged.verdict for judged in result.judged] == ["open"]
    answer = TrialAnswer(result)
    assert str(answer).startswith("Method is at chance: AUROC ")
    assert "The paper's claim is open: it is at chance, where guessing gives 0.5." in str(answer)
    assert [cells[0].mark for arm, cells in answer.rows if arm.name == "method"] == ["="]
    again = TrialResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert [c.at_chance for c in again.comparisons] == [c.at_chance for c in result.comparisons]


def test_a_metric_may_have_a_chance_level_of_its_own():
    result = tried(metric=Metric("score", chance=5.0))
    assert {c.at_chance for c in result.comparisons if c.metric == "score"} == {True}
    found = beside_chance(result.comparisons, result.arms, {"score": -5.0})
    assert {c.at_chance for c in found if c.metric == "score"} == {False}
    low = tried({"plain": 0.0, "method": 1.0}, Metric("score", higher_is_better=False, chance=0.5))
    assert low.comparisons[0].at_chance, "high is bad here"


def test_equality_by_design_is_counted():
    metric = Metric("identical output", binary=True, bounds=(0, 1))
    result = tried({"plain": 1.0, "method": 1.0}, metric, (Claim("items/s", "plain", "method"),))
    same = result.comparison("identical output", "plain", "method")
    assert sentence(same) == "identical output: method as plain: 60 of 60"
    assert "its output identical on 60 of 60" in str(TrialAnswer(result))
    other = tried({"plain": 1.0, "method": 0.0}, metric, ()).comparisons[0]
    assert "60 of 60" not in sentence(other)


def test_several_claims_are_counted_and_those_that_are_not_shown_are_named():
    claims = (Claim("score", "plain", "method", effect=0.5), Claim("score", "other", "method", effect=0.5))
    result = tried(claims=claims, pairs=(("other", "method"),))
    assert [claim.verdict for claim in result.judged] == ["shown", "refuted here"]
    told = "1 is shown and 1 is refuted here (score over other; the interval excludes the paper's 0.5)."
    assert f"Of the paper's 2 claims {told}" in str(TrialAnswer(result))
    both = tried(claims=(claims[0], Claim("score", "plain", "other", effect=0.5)))
    assert "Both claims of the paper are shown." in str(TrialAnswer(both))
    both.judged = [replace(claim, verdict="open", trained_once=True) for claim in both.judged]
    assert "score over plain): arms were trained from one seed." in str(TrialAnswer(both))


def peered(**found: tuple[str, bool | None, float | None]) -> TrialResult:
    """The method beside a peer, by what each metric was found to be: its verdict, whether no worse, by which margin."""
    result = tried(pairs=(("other", "method"),))
    result.arms[2].role = "peer"
    known = result.comparison("score", "other", "method")
    units = {"memory": "MiB"}
    result.comparisons = [c for c in result.comparisons if (c.baseline, c.arm) != ("other", "method")]
    result.comparisons += [
        replace(known, metric=metric, unit=units.get(metric, ""), verdict=verdict, no_worse=no_worse, margin=margin)
        for metric, (verdict, no_worse, margin) in found.items()
    ]
    return result


def beside(
    verdict: str = "shown", demonstration: str = "", **found: tuple[str, bool | None, float | None]
) -> list[str]:
    result = peered(**found)
    result.judged[0] = replace(result.judged[0], verdict=verdict)
    result.demonstration = demonstration
    return TrialAnswer(result).beside


SAME = "no measurable difference"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"memory": ("helps", None, None), "F1": (SAME, True, 0.1)}, "leaner in memory (−0.99 MiB). It leads."),
        ({"memory": ("hurts", None, None), "F1": ("helps", True, 0.1)}, "larger in memory (−0.99 MiB); better in F1"),
        ({"memory": ("hurts", None, None), "F1": ("helps", True, 0.1)}, "It does not lead: it costs more."),
        (
            {"memory": ("helps", None, None), "F1": ("hurts", True, 2.0)},
            "leaner in memory (−0.99 MiB); worse in F1 (−0.99). It leads.",
        ),
        (
            {"memory": ("helps", None, None), "F1": ("hurts", False, 0.1), "accuracy": (SAME, True, 0.1)},
            "worse in F1 (−0.99). It does not lead: F1 is worse.",
        ),
        (
            {"memory": ("helps", None, None), "F1": (SAME, False, 0.1)},
            "It does not lead: it is not shown to be no worse in F1 by more than 0.1.",
        ),
        (
            {"memory": ("helps", None, None), "F1": (SAME, None, None)},
            "It does not lead: no margin was named beforehand for any quality.",
        ),
        ({"F1": (SAME, True, 0.1)}, "no measurable difference. It does not lead: its costs were not measured."),
        (
            {"memory": (SAME, None, None), "F1": (SAME, True, 0.1)},
            "no measurable difference. It does not lead: no cost is measurably lower.",
        ),
        ({"memory": ("helps", None, None)}, "It does not lead: no quality was compared."),
        ({"memory": ("not measured", None, None)}, "too few to say. It does not lead: its costs were not measured."),
    ],
)
def test_a_method_beside_a_peer_leads_or_it_is_said_why_not(found, said):
    [told] = beside(**found)
    assert told.startswith("Method beside other: ")
    assert said in told


def test_several_peers_share_a_sentence():
    others = {f"peer {i}": 0.5 for i in range(3)}
    result = tried(SHIFTS | others, pairs=tuple((name, "method") for name in others))
    for arm in result.arms:
        arm.role = "peer" if arm.name in others else arm.role
    for i, name in enumerate(others):
        known = result.comparison("score", name, "method")
        result.comparisons.remove(known)
        result.comparisons.append(replace(known, metric="bytes", verdict="helps" if i else "hurts"))
        result.comparisons.append(replace(known, verdict=SAME, margin=0.1, no_worse=i != 1))
    [told] = TrialAnswer(result).beside
    assert told == (
        "Method leads peer 2, but not peer 0 (it costs more) and peer 1 (it is not shown to be no worse in score by "
        "more than 0.1)."
    )
    result.judged[0] = replace(result.judged[0], verdict="refuted here")
    [told] = TrialAnswer(result).beside
    assert told.startswith("Method costs less than, and is no worse than, peer 2, but not peer 0 (it costs more)")


def test_what_costs_less_leads_only_where_the_claims_are_shown_and_nothing_is_a_demonstration():
    found = {"memory": ("helps", None, None), "F1": (SAME, True, 0.1)}
    assert beside(verdict="shown", **found)[0].endswith("It leads.")
    assert beside(verdict="refuted here", **found)[0].endswith("It costs less, and is no worse.")
    assert beside(demonstration="its weights are random", **found) == []


def test_peers_are_told_on_the_terminal():
    result = peered(memory=("helps", None, None), F1=(SAME, True, 0.1))
    assert "peers   Method beside other: leaner in memory (−0.99 MiB). It leads." in lines_of(result)


def test_who_has_no_peer_stands_beside_none():
    assert TrialAnswer(tried()).beside == []


def test_a_control_is_not_what_the_paper_says():
    claims = (
        Claim("score", "plain", "method", "it helps"),
        Claim("score", "plain", "other", "it hears", kind="control"),
    )
    said = {kind: sentence for kind, _, sentence in View(tried(claims=tuple(claims))).judged}
    assert said["claim"].endswith(". The paper: it helps.")
    assert said["control"].endswith(". It hears.")
    assert "The paper" not in said["control"]


def test_what_failed_or_is_a_demonstration_comes_before_other_notes():
    result = tried(notes=("Read this first.",))
    result.demonstration = "its weights are random"
    assert TrialAnswer(result).why == "A demonstration alone: its weights are random"
    result.arms[2].status, result.arms[2].error = "failed", "InputError: no room"
    assert TrialAnswer(result).why == "other failed: InputError: no room."
    lines = lines_of(result)
    assert any("failed: InputError" in line for line in lines)


def test_a_gain_that_is_absent_is_explained_first():
    absent = "The gain that the paper reports is absent here in score of method over plain. The model is small."
    claim = Claim("score", "plain", "method", effect=5.0)
    none = {"plain": 0.0, "method": 0.0}
    assert TrialAnswer(tried(none, claims=(claim,), notes=("Read this.", absent))).why == "The model is small."
    assert TrialAnswer(tried(claims=(claim,), notes=("Read this.",))).why == "Read this."
    assert TrialAnswer(tried()).why == ""


def test_a_result_without_comparisons_has_an_answer_too():
    result = tried({"plain": 0.0}, claims=())
    assert str(TrialAnswer(result)) == "Nothing was compared."
    assert lines_of(result)
    long = tried(claims=(), notes=("word " * 400,))
    assert len(lines_of(long)) <= BRIEF


def test_too_few_to_say_counts_what_the_metric_is_measured_on():
    result = tried(n=3)
    for arm in result.arms:
        arm.n_items = 27  # with the items of other tasks
    assert "too few to say (n = 3)" in " ".join(lines_of(result))
    assert "too few to say (n = 3)" in " ".join(lines_of(result, full=True))
    result.comparisons.clear()
    assert "too few to say (n = 27)" in " ".join(lines_of(result, full=True))


def test_the_report_begins_with_the_answer_its_figure_and_what_to_know_first():
    result = tried(notes=("Read <this> first.", "And that."))
    result.examples = [Example("The <passage> itself.", {"plain": "0.1", "method": "0.9"}, "Right: high.")]
    page = html(result)
    assert f"<h1>{escape(str(TrialAnswer(result)))}</h1>" in page
    first = page[page.index("<h1>") : page.index("What the paper claims")]
    assert "Read &lt;this&gt; first." in first
    assert first.count("<figure>") == 1
    assert page.count("<figcaption>score</figcaption>") == 1, "the figure of the answer stands once"
    shown = page[page.index("Read it yourself") :]
    for words in ("The &lt;passage&gt; itself.", "Right: high.", "<dt>method</dt><dd>0.9</dd>"):
        assert words in shown
    again = TrialResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert html(again) == page
    result.examples = [Example("It.", {"plain": "The same.", "method": "The same.", "gone": "Another."})]
    shown = re.sub(r"<.*?>", "|", html(result)[html(result).index("Read it yourself") :])
    assert "plain · method||The same." in shown, "arms that made the same of it stand together"
    result.examples = []
    assert "Read it yourself" not in html(result)


def test_how_long_arms_took_to_be_prepared_is_told_only_where_that_was_any_time():
    result = tried()
    assert "preparation" not in html(result)
    result.arms[1].prepare_seconds = 75.0
    assert "<td>75 s</td>" in html(result)
    assert html(result).count("<td>—</td>") >= 2, "the others took none"


def test_an_index_lists_the_reports_of_a_folder(tmp_path):
    first, second = tried(paper="one"), tried({"plain": 0.0, "method": -1.0}, paper="two")
    first.title, second.title = "The first <paper>", "The second paper"
    first.provenance, second.provenance = {"date": "2026-01-01T00:00:00"}, {"date": "2026-02-01T00:00:00"}
    report.write(first, tmp_path)
    report.write(second, tmp_path)
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    page = (tmp_path / "index.html").read_text()
    assert page.index("The second paper") < page.index("The first &lt;paper&gt;")
    assert 'href="one.html"' in page
    assert str(escape(str(TrialAnswer(second)))) in page
    assert page.count("<article>") == 2


def test_long_titles_are_folded_before_any_value_is():
    names = [Text(name) for name in ("random order *", "sorted by length")]
    values = {
        "cosine of the next document": "▲ 0.378 0.351–0.405",
        "gain of a related document": "▲ 0.0128 0.0086–0.0182",
        "loss": "= 1.26 1.22–1.29",
    }
    columns = [(title, [Text(value)] * 2) for title, value in values.items()]

    def printed(chosen):
        (table,) = _tables(("", names), chosen, 80)
        return ["".join(part.text for part in line) for line in Console(width=80).render_lines(table, pad=False)]

    lines = printed(columns)
    assert len(lines) == 4, "two of titles, and one for each name"
    assert all(value in line for value in values.values() for line in lines[2:])
    assert "cosine of the next document" in printed(columns[:1])[0], "where there is room, nothing is folded"
