"""FineWeb2's trial: junk is junk in every script, what stays is told apart, and models learn from it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from datatrove.utils.text import TERMINAL_PUNCTUATION

from broadsheet.console import InputError
from broadsheet.curate.fineweb2 import FineWeb2
from broadsheet.curate.languages.recipe import FineWeb2Recipe
from broadsheet.curate.trials.fineweb2 import ENGLISH, JUNK, OURS, RAW, REPEATED, RIGHT, FineWeb2Trial, junk
from broadsheet.data import corpora
from broadsheet.trial.trained.laboratory import LOSS

TINY = {"texts": 6, "steps": 12, "batch": 4, "length": 32, "vocabulary": 300, "size": "0.4M", "runs": 1, "lr": 1e-2}
WORDS = {
    "de": "der die und das mit haben nicht auch Haus Fluss Fenster Morgen Tisch Silber Wasser weil Menschen zusammen",
    "fr": "le la et que dans avec pour sur maison fleuve rue matin table argent eau parce gens toujours quelque chose",
    "en": "the of and to be that have with house river window street morning table silver water because people always",
}


@pytest.fixture
def data(tmp_path: Path, home: Path) -> str:
    """Forty pages of each language."""
    rows = []
    for language, words in WORDS.items():
        for number in range(40):
            drawn = random.Random(f"{language} {number}")
            lines = [" ".join(drawn.choices(words.split(), k=12)).capitalize() + "." for _ in range(12)]
            rows.append({"id": f"{language}{number}", "text": "\n".join(lines)})
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.real
def test_pages_are_told_from_junk_and_models_learn_from_what_stays(data):
    trial = FineWeb2Trial(data=data, quick=True, languages=2, **TINY)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys((RAW, ENGLISH, OURS), "ok")
    values = {arm.name: {name: each.estimate for name, each in arm.values.items()} for arm in result.arms}
    assert values[RAW][RIGHT] < 0.6, "half of it is junk"
    assert values[OURS][RIGHT] > 0.7
    assert len({values[name][LOSS] for name in (RAW, OURS)}) == 2, "they learnt from other texts"
    assert result.setting[f"kept by {RAW}"].startswith("a page 100%")
    assert {claim.arm for claim in trial.claims()} == {OURS}


@pytest.mark.real
def test_reference_corpus_and_held_out_pages_share_none_and_arms_differ_in_thresholds_and_copies(
    data, tmp_path, monkeypatch
):
    trial = FineWeb2Trial(data=data, quick=True, languages=2, **TINY)
    trial.prepare(corpora.load(data))
    parts = [
        {row["text"] for row in trial._reference if row["language"] != "en"},
        {page.text for page in trial._pages if page.good},
        {*trial.held.tuning, *trial.held.held_out},
    ]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    made = {}
    trial.workdir = tmp_path / "work"
    for name in (ENGLISH, OURS, REPEATED):
        monkeypatch.setattr(FineWeb2Recipe, "run", lambda self, *_, name=name: made.setdefault(name, self))
        trial._curated(name)
    assert {name: recipe.rehydrate for name, recipe in made.items()} == {ENGLISH: False, OURS: False, REPEATED: True}
    assert {name: recipe.method.count("English") for name, recipe in made.items()} == {ENGLISH: 3, OURS: 0, REPEATED: 0}
    assert made[OURS].reference == made[ENGLISH].reference
    out = trial._curated(OURS)
    out.mkdir(parents=True)
    (out / "documents.jsonl").write_text('{"id": "a", "text": "A."}\n')
    told = [{"id": "b", "reason": "near_duplicate"}, {"id": "c", "reason": "dup_line_frac"}]
    (out / "reasons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    assert trial._stays(OURS) == {"a", "b"}, "a copy of what stays is no loss"


def test_the_whole_trial_claims_for_the_paper_alone(data):
    trial = FineWeb2Trial(data=data)
    arms = {arm.name: arm for arm in trial.lab()}
    assert set(arms) == {RAW, ENGLISH, OURS, REPEATED}
    assert {name for name, arm in arms.items() if arm.paper} == {OURS, REPEATED}
    assert {claim.arm for claim in trial.claims()} == {OURS, REPEATED}
    assert FineWeb2.paper == trial.paper


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize(
    "text",
    [
        "Ein Satz mit Wörtern.\nNoch ein ganz anderer Satz hier.\nUnd ein dritter.",
        "犬はソファで寝ている。\n猫は庭で遊んでいる。\n鳥は空を飛ぶ。",
    ],
)
def test_junk_is_of_the_same_script_and_no_page(kind, text):
    if kind == "glued words" and " " not in text:
        return  # it is asked of scripts with spaces alone
    made = junk(text, kind, random.Random(0))
    assert made != text
    assert made == junk(text, kind, random.Random(0))
    lines = made.split("\n")
    match kind:
        case "repeated lines":
            assert set(lines) <= set(text.split("\n"))
        case "a list":
            assert not any(line.endswith(tuple(TERMINAL_PUNCTUATION)) for line in lines)
        case "signs":
            assert made.count("#") >= len(text.split())
        case "glued words":
            assert made.count(" ") <= text.count(" ") // 2
        case "near copy":
            assert made.startswith(text)


@pytest.mark.real
def test_too_few_languages_or_pages_are_refused_in_a_line(tmp_path, data, home):
    rows = Path(data).read_text().splitlines()
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(rows[:45]) + "\n")  # forty of one language, five of another
    with pytest.raises(InputError, match=r"got 1 languages .* with 12 pages or more .* expected 3: fewer --languages"):
        FineWeb2Trial(data=str(path), quick=True, languages=3, **TINY).run()
