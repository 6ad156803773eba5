"""The datasets survey's trial: what is planted is known, and each arm is as far off as it is."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from broadsheet.console import InputError
from broadsheet.curate.trials.datasets_survey import (
    ALL,
    DUPLICATES,
    EXACT,
    GUESSED,
    HELD,
    LANGUAGES,
    SAMPLE,
    SECONDS,
    DatasetsSurveyTrial,
    apart,
)
from broadsheet.curate.trials.planted_sets import edited, passages, planted
from broadsheet.data import corpora

SENTENCES = {
    "en-US": "the river runs slowly through the small town and in the evening people sit on its banks and tell stories",
    "de-DE": "der fluss fließt langsam durch die kleine stadt und am abend sitzen die menschen am ufer und reden",
    "es-ES": "el río corre despacio por el pueblo pequeño y por la tarde la gente se sienta en la orilla para contar",
    "fr-FR": "la rivière coule lentement dans la petite ville et le soir les gens sont assis sur ses rives pour parler",
}
SHARED = "this line was never translated and stands in each edition of the book as it is in the first one of all"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A book of 120 pages in four editions."""
    path = tmp_path_factory.mktemp("book") / "pages.jsonl"
    with path.open("w") as file:
        for language, words in SENTENCES.items():
            for number in range(120):
                draw = random.Random(f"{language} {number}")
                lines = [" ".join(draw.sample(words.split(), 18)).capitalize() + "." for _ in range(7)]
                text = "\n".join([*lines, SHARED, "short"])
                file.write(json.dumps({"id": f"{language}{number}", "language": language, "text": text}) + "\n")
    return str(path)


def test_passages_are_of_their_language_alone(data):
    found = passages(corpora.load(data))
    assert set(found) == {"en", "de", "es", "fr"}
    assert all(len(text) >= 500 for some in found.values() for text in some)
    assert not any("translated" in text for name in ("de", "es", "fr") for text in found[name])
    assert not any("short" in text for some in found.values() for text in some)
    lines = [line for some in found.values() for text in some for line in text.splitlines()]
    assert len(set(lines)) == len(lines), "no line stands in two passages"


def test_pages_without_editions_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "language": "en"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match=r"got 0 languages with 100 passages \(none\)"):
        passages(corpora.load(str(path)))


def test_what_is_planted_is_what_is_told(data):
    found = passages(corpora.load(data))
    whose = {text: name for name, some in found.items() for text in some}
    for number in range(6):
        made = planted(found, number, 120, seed=0)
        assert planted(found, number, 120, seed=0) == made
        originals = [text for text in made.rows if text in whose]
        sizes = dict.fromkeys(found, 0)
        for text in made.rows:
            [name] = {whose[each] for each in whose if each in text}
            sizes[name] += len(text.encode())
        shares = {name: size / sum(sizes.values()) for name, size in sizes.items() if size}
        assert made.languages == pytest.approx(shares)
        assert made.duplicates == pytest.approx(1 - len(set(originals)) / len(made.rows), abs=1e-9)
        assert made.held == pytest.approx(np.mean([any(item in text for text in made.rows) for item in made.benchmark]))
        assert len(made.benchmark) == 40
    assert planted(found, 0, 120, seed=1) != planted(found, 0, 120, seed=0)


def test_a_copy_is_edited_at_its_ends_alone():
    text = "one two three"
    copy = edited(text, random.Random(0))
    assert copy != text
    assert text in copy


def test_distributions_are_apart_by_half_their_differences():
    assert apart({"a": 1.0}, {"a": 1.0}) == 0
    assert apart({"a": 1.0}, {"b": 1.0}) == 1
    assert apart({"a": 0.5, "b": 0.5}, {"a": 0.75, "und": 0.25}) == pytest.approx(0.5)


def test_all_rows_tell_what_is_true_and_a_sample_does_not(data, tiny_folder, home):
    result = DatasetsSurveyTrial(data=data, model=str(tiny_folder), quick=True, sets=5, rows=130).run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys((SAMPLE, ALL, EXACT, GUESSED), "ok")
    values = {arm.name: {name: each.estimate for name, each in arm.values.items()} for arm in result.arms}
    assert values[ALL][DUPLICATES] < 0.02
    assert values[ALL][HELD] < 0.05
    assert values[ALL][LANGUAGES] < 0.02
    assert values[EXACT][DUPLICATES] > values[ALL][DUPLICATES] + 0.02, "two copies of three are edited"
    assert values[SAMPLE][HELD] > values[ALL][HELD]
    assert values[GUESSED][LANGUAGES] > values[ALL][LANGUAGES]
    assert values[GUESSED][DUPLICATES] == values[SAMPLE][DUPLICATES], "the same but for languages"
    assert SECONDS.name in values[ALL]
    trial = DatasetsSurveyTrial(data=data)
    assert trial.claims() == [], "the survey claims no effect"
    assert {arm for _, arm in trial.also_compare()} == {ALL}
    assert [arm.name for arm in trial.arms() if arm.paper] == [ALL]
