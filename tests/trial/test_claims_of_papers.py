"""What the trials say that their papers claim: in words, by how much, and what is a control and earns nothing."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import broadsheet
from broadsheet.attend.trials.flexprefill import FlexPrefillTrial
from broadsheet.attend.trials.infllm import InfLLMTrial
from broadsheet.attend.trials.lm_infinite import LMInfiniteTrial
from broadsheet.attend.trials.longheads import LongHeadsTrial
from broadsheet.attend.trials.transnormer import TransNormerTrial
from broadsheet.decode.trials.aded import AdedTrial
from broadsheet.detect.trials.detect import DetectTrial, Texts
from broadsheet.embed.trials.gem import GEMTrial
from broadsheet.embed.trials.llm_embedder import LLMEmbedderTrial
from broadsheet.embed.trials.study_presets import PRESETS, Axes, StudyQuestion, StudyRecipe
from broadsheet.embed.trials.token_prepending import TokenPrependingTrial
from broadsheet.hear.trials.roster import SHUFFLED, STACK
from broadsheet.hear.trials.salmonn import claims_of
from broadsheet.page import discovery
from broadsheet.page.papers import ours
from broadsheet.rank.trials.first import FirstTrial
from broadsheet.rank.trials.fullrank import FullRankTrial
from broadsheet.rank.trials.pg_rank import PGRankTrial
from broadsheet.rank.trials.teaching import GRADED
from broadsheet.trial.base import Claim, Trial

SOURCE = Path(broadsheet.__file__).parent
SALMONN = claims_of()
AXES = Axes(("small", "large"), {"small": (0,), "large": (0,)})


def detect(setting: str) -> list[Claim]:
    trial = DetectTrial().for_paper("lastde")
    trial._texts = Texts({setting: []}, {setting: "a model"}, 0, "")
    return list(trial.claims())


def study(preset: str) -> list[Claim]:
    return PRESETS[preset](AXES, StudyRecipe(), StudyQuestion()).claims


def effects(claims: list[Claim]) -> dict[str, float | None]:
    return {claim.metric: claim.effect for claim in claims}


def pooled(claims: list[Claim]) -> list[float | None]:
    return [claim.effect for claim in claims]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(node, id=f"{path.relative_to(SOURCE)}:{node.lineno}")
        for path in sorted(SOURCE.glob("*/trials/*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Claim"
    ],
)
def test_every_claim_has_a_sentence(call: ast.Call) -> None:
    assert any(isinstance(argument, ast.Starred) for argument in call.args) or len(call.args) >= 4
    assert not any(isinstance(argument, ast.Constant) and argument.value == "" for argument in call.args)


@pytest.mark.parametrize("entry", sorted({each.trial for each in ours() if each.trial and each.kind == "method"}))
def test_every_trial_has_reasons_of_its_own_for_a_gain_that_is_absent(entry: str) -> None:
    kind = discovery.load(entry)
    assert not issubclass(kind, Trial) or kind.absence is not Trial.absence


def test_effects_are_the_papers_figures_in_the_unit_of_the_metric() -> None:
    # Points of a percentage become shares, perplexities nats, seconds saved a factor.
    infinite = [win.effect for win in LMInfiniteTrial.wins]
    assert infinite == [pytest.approx(math.log(8.5e3 / 3.3), abs=0.01), pytest.approx(6.43 - 1.02), None]
    assert [win.effect for win in InfLLMTrial.wins] == pytest.approx([(100 - 28.8) / 100])
    assert pooled(detect("white-box")) == pytest.approx([(95.89 - 90.80) / 100, (98.85 - 97.82) / 100])
    gem = GEMTrial(sts="pairs.tsv").claims()
    assert [claim.effect for claim in gem[2:]] == [None] * 4, "of the bottleneck alone the paper gives an MTEB mean"
    assert effects(gem[:2]) == pytest.approx(
        {"Spearman": (68.42 - 33.32) / 100, "nDCG@10": (25.6 - 4.38) / 100}, abs=1e-3
    )
    half = pytest.approx(1 / (1 - 0.5))
    assert effects(FirstTrial(reranker="folder").claims()) == {"nDCG@10": None, "lists/s": half}
    first = FirstTrial().claims()
    assert [claim.effect for claim in first[1:]] == [
        pytest.approx((54.3 - 52.3) / 100), pytest.approx((54.3 - 51.7) / 100), half
    ]  # fmt: skip
    assert first[0].margin, "it may be no better than a written order, and only faster"
    better, faster = pytest.approx((72.55 - 70.34) / 100), pytest.approx(1 / (1 - 0.293), abs=5e-3)
    full = FullRankTrial().claims()
    assert [claim.effect for claim in full] == [better, None, faster]
    assert full[1].least == 0.01, "the paper's 0.007 is out of reach"
    assert effects(FullRankTrial(reranker="folder").claims()) == {"lists/s": faster}, "untrained it ranks worse"
    assert [claim.metric for claim in (*first, *full)] == [
        *[GRADED] * 3, "lists/s", *[GRADED] * 2, "lists/s"
    ], "judged by grades, as the papers are"  # fmt: skip
    labels = FirstTrial(teacher="none").claims()
    assert [claim.metric for claim in labels] == [*["nDCG@10"] * 3, "lists/s"]
    assert effects(AdedTrial().claims()) == {"tokens/s": 1.9, "tokens per forward": None}
    # Of the gain by what is fetched at all, here 0.21 nats: outputs are shorter than the paper's.
    share = math.log(6.134 / 6.097) / math.log(6.400 / 6.134)
    assert [each.least for each in LLMEmbedderTrial(encoder="folder").claims()[:2]] == [pytest.approx(0.21 * share)] * 2
    assert {claim.effect for claim in SALMONN} == {None}, "it counts stories that follow, whatever they are about"
    assert [claim.least or claim.margin for claim in SALMONN if claim.kind == "claim"] == [0.1, 0.2, 0.05, 0.2]
    assert all(claim.effect or claim.least for preset in PRESETS for claim in study(preset))
    assert {claim.least for claim in study("F")} == {0.02}
    found = {preset: study(preset)[0].effect for preset in "ABCDEF"}
    assert found == {
        "A": pytest.approx((49.5 - 43.3) / 100),
        "B": pytest.approx((39.0 - 33.6) / 100),
        "C": pytest.approx((52.8 - 43.8) / 100),
        "D": pytest.approx((21.1 - 17.6) / 100),
        "E": pytest.approx(1.7 / 100),
        "F": None,
    }


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("prompt-eol", 70.03, 77.19),
        ("pretended-cot", 76.86, 77.54),
        ("knowledge", 77.14, 77.54),
        ("meta-eol", 75.96, 77.91),
    ],
)
def test_the_effect_of_token_prepending_is_that_on_the_template_that_is_tried(template, before, after) -> None:
    other = "meta-eol" if template == "prompt-eol" else "prompt-eol"
    (claim,) = TokenPrependingTrial(templates=(template, other)).claims()
    assert claim.effect == pytest.approx((after - before) / 100)


def test_where_the_paper_gives_no_figure_in_the_unit_there_is_no_effect() -> None:
    assert [win.effect for win in (*LongHeadsTrial.wins, *FlexPrefillTrial.wins)] == [None] * 6
    assert all(
        win.says for trial in (LMInfiniteTrial, InfLLMTrial, LongHeadsTrial, FlexPrefillTrial) for win in trial.wins
    )
    assert pooled(PGRankTrial().claims()) == [None] * 3
    losses = [claim for claim in TransNormerTrial().claims() if claim.metric == "loss"]
    assert pooled(losses) == pytest.approx([2.362 / 2.248, math.log2(4.899) / math.log2(4.770)]), "ratios have no unit"


def test_texts_that_are_there_are_judged_by_the_black_box_figures() -> None:
    assert pooled(detect("given")) == pytest.approx([0.8638 - 0.8045, 0.9147 - 0.8568])


def test_what_no_paper_has_to_win_is_a_control() -> None:
    assert [claim.kind for claim in SALMONN] == ["control"] * 2 + ["claim"] * 4
    assert {claim.baseline for claim in SALMONN if claim.kind == "control"} == {SHUFFLED}
    assert STACK not in {claim.baseline for claim in SALMONN}, "the paper does not compare its connector with that"
    assert all("all arms have the warm start" in claim.sentence for claim in SALMONN)
    assert not any("warm start" in claim.sentence for claim in claims_of(warmed=False))
    assert [claim.kind for claim in AdedTrial().claims()] == ["claim", "claim", "control", "control"]
    # BGE, from which the paper starts, is a trained retriever; the model's own mean pooling is not.
    own = LLMEmbedderTrial(encoder="model").claims()
    assert [claim.baseline for claim in own if claim.kind == "control"] == ["untrained", "untrained"]
    assert {claim.kind for claim in LLMEmbedderTrial().claims()} == {"claim"}
    assert [claim.kind for claim in PGRankTrial().claims()] == ["claim", "claim", "control"]
    others = [*FirstTrial().claims(), *FullRankTrial().claims(), *detect("white-box")]
    assert {claim.kind for claim in others} == {"claim"}
