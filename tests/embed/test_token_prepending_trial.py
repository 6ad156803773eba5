"""The trial of Token Prepending on a tiny model: what is tuned on what, compared, said, resumed and refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from shown import shown

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.data.retrieval.documentation import Documentation
from broadsheet.embed import sweep as sweeping
from broadsheet.embed.data import tasks
from broadsheet.embed.data.tasks import documented_pairs, sts
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.template import PROMPT_EOL
from broadsheet.embed.token_prepending import TokenPrepending
from broadsheet.embed.trials.token_prepending import MEAN, METHOD, TokenPrependingTrial

WORDS = ["hat", "mat", "red", "sea", "reed", "inn", "tree", "near", "rat", "stone"]
LAST = "PromptEOL, last layer"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """24 pairs whose score is how many words they share."""
    generator = random.Random(0)
    lines = ["score\tsentence1\tsentence2"]
    for i in range(24):
        first = generator.sample(WORDS, 4)
        second = first[: i % 5] + generator.sample(WORDS, 4 - i % 5)
        lines.append(f"{i % 5}\t{' '.join(first)}\t{' '.join(second)}")
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def options(tmp_path: Path, pairs: Path, tiny_model: Any, tiny_tokenizer: Any, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    tiny_model(num_hidden_layers=6, max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return {"model": str(tmp_path / "model"), "sts": str(pairs)}


def test_both_arms_are_tuned_alike_on_one_half_and_compared_on_the_other(options, monkeypatch):
    asked: list[tuple[type, list[tuple[str, str]], Any]] = []

    def watched(encoder: Any, first: list[str], second: list[str], gold: list[float], **settings: Any) -> Any:
        asked.append((type(encoder), list(zip(first, second, strict=True)), settings))
        return real(encoder, first, second, gold, **settings)

    real = sweeping.sweep
    monkeypatch.setattr(sweeping, "sweep", watched)
    trial = TokenPrependingTrial(**options, exits=(2, 4), layers=(3, 4, 6))
    result = trial.run()
    names = ["PromptEOL", METHOD, LAST, MEAN]
    assert [(arm.name, arm.role, arm.status) for arm in result.arms] == [
        (name, role, "ok") for name, role in zip(names, ["baseline", "method", "sibling", "sibling"], strict=True)
    ]
    assert [kind for kind, *_ in asked] == [CausalEncoder, TokenPrepending]
    assert asked[0][1:] == asked[1][1:]  # the same pairs, and the same layers to choose from
    tuning = asked[0][1]
    everything = [(pair.a, pair.b) for pair in sts(options["sts"])]
    assert len(tuning) == 12
    assert [arm.n_items for arm in result.arms] == [12] * 4
    golds = [row[1] for row in result.arms[0].samples["similarity"]]
    rest = [pair.score for pair in sts(options["sts"]) if (pair.a, pair.b) not in tuning]
    assert golds == rest
    assert set(tuning) <= set(everything)
    assert all(example.expected.startswith("Right: more alike than ") for example in shown(result))
    assert set(result.claims) == {("Spearman", "PromptEOL", METHOD)}
    assert set(result.claims) <= {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    trial.finish()


def test_arms_are_the_encoders_that_were_chosen(options):
    from broadsheet import models

    trial = TokenPrependingTrial(**options, exits=(2, 4), layers=(3, 4, 6))
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    model, tokenizer = models.load(options["model"])
    tuning = set(random.Random("0/halves").sample(range(24), 12))
    halves = [[p for i, p in enumerate(sts(options["sts"])) if (i in tuning) == half] for half in (True, False)]
    kinds = {"PromptEOL": CausalEncoder, METHOD: TokenPrepending}
    for name, kind in kinds.items():
        start = kind(model, tokenizer, template=PROMPT_EOL)
        given = [[p.a for p in halves[0]], [p.b for p in halves[0]], [p.score for p in halves[0]]]
        best = sweeping.sweep(start, *given, exits=[2, 4], layers=[3, 4, 6]).best
        assert str(best) in arms[name].description
        read = sweeping.variant(start, **best.settings)
        one, other = (
            torch.tensor(sweeping.layer_vectors(read, texts, [best.layer])[best.layer])
            for texts in ([p.a for p in halves[1]], [p.b for p in halves[1]])
        )
        cosines = torch.cosine_similarity(one, other).tolist()
        assert [row[0] for row in arms[name].samples["similarity"]] == pytest.approx(cosines, abs=1e-5)


def test_the_figure_and_the_notes_say_what_was_chosen(options):
    result = TokenPrependingTrial(**options, exits=(2, 4), layers=(3, 4, 6)).run()
    [curve] = result.figures
    assert curve.x == [3.0, 4.0, 6.0]
    assert list(curve.lines) == ["PromptEOL alone", f"{METHOD}, exit 2", f"{METHOD}, exit 4"]
    arms = {arm.name: arm for arm in result.arms}
    layer = int(arms["PromptEOL"].description.split("layer ")[1])
    alone = curve.lines["PromptEOL alone"]
    assert alone[curve.x.index(layer)] == max(alone)
    notes = "\n".join(result.notes)
    assert f"Chosen on 12 pairs that are not in the test: PromptEOL alone reads layer {layer}" in notes
    assert "the best of 3 settings in 1 pass over the texts" in notes
    assert "the best of 6 in 2 passes" in notes
    assert "At equal layers" in notes
    verdict = next(c.verdict for c in result.comparisons if (c.metric, c.arm) == ("Spearman", METHOD))
    assert ("gain that the paper reports is absent" in notes) == (verdict != "helps")


def test_further_templates_and_pairs_for_the_choice_alone(options, tmp_path, pairs):
    dev = tmp_path / "dev.tsv"
    dev.write_text("\n".join(pairs.read_text().splitlines()[:9]) + "\n")
    result = TokenPrependingTrial(
        **options, dev=str(dev), templates=("knowledge", "meta-eol"), exits=(2,), layers=(4, 6)
    ).run()
    names = ["Knowledge", METHOD, "Knowledge, last layer", "MetaEOL", f"MetaEOL + {METHOD}", MEAN]
    assert [(arm.name, arm.status, arm.n_items) for arm in result.arms] == [(name, "ok", 24) for name in names]
    assert ("Spearman", "MetaEOL", f"MetaEOL + {METHOD}") in {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert "Chosen on 8 pairs" in result.notes[0]
    assert len(result.figures) == 2


def test_all_layers_are_there_to_choose_from(options):
    result = TokenPrependingTrial(**options, exits=(4,)).run()
    assert result.figures[0].x == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    arms = {arm.name: arm for arm in result.arms}
    assert ("layer 6" in arms["PromptEOL"].description) == (
        arms[LAST].samples["similarity"] == arms["PromptEOL"].samples["similarity"]
    )
    verdict = next(c.verdict for c in result.comparisons if (c.metric, c.arm) == ("Spearman", METHOD))
    alone = result.figures[0].lines["PromptEOL alone"]
    said = f"before layers 1 to 3: in the template alone these reach a Spearman of at most {max(alone[:3]):.3f}"
    assert (said in result.notes[-1]) == (verdict != "helps")


def test_an_interrupted_trial_keeps_its_choice(options, monkeypatch):
    given = options | {"exits": (2,), "layers": (4, 6)}
    first = TokenPrependingTrial(**given).run()

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(sweeping, "sweep", never)
    again = TokenPrependingTrial(**given).run()
    for one, other in zip(first.arms, again.arms, strict=True):
        assert one.samples == other.samples
    assert first.notes == again.notes


def test_without_a_file_documentation_asks(options, monkeypatch):
    monkeypatch.setattr(
        tasks, "documentation", lambda words, seed, data: Documentation(documents(), words=words, seed=seed)
    )
    result = TokenPrependingTrial(**options | {"sts": None}, pairs=8, exits=(2,), layers=(4, 6)).run()
    assert [(arm.status, arm.n_items) for arm in result.arms] == [("ok", 8)] * 4
    assert [row[1] for row in result.arms[0].samples["similarity"]] == [1.0, 0.0] * 4
    assert "summaries and bodies" in result.setting["STS"]


def documents() -> list[Document]:
    """Docstrings of twelve packages."""
    generator = random.Random(1)
    rows = []
    for package in range(12):
        for i in range(4):
            summary = f"Find {' '.join(generator.sample(WORDS, 4))} in case {package} {i}"
            body = f"{' '.join(generator.choices(WORDS, k=14))} n{package}x{i}"
            metadata = {"kind": "function", "package": f"p{package}", "module": f"p{package}", "body": body}
            metadata |= {"title": f"p{package}.f{i}", "summary": summary}
            rows.append(Document(f"{package}/{i}", f"{summary}\n\n{body}", metadata))
    return rows


def test_documented_pairs_hold_each_summary_once_with_its_body_and_once_with_anothers(monkeypatch):
    docs = Documentation(documents(), words=20)
    monkeypatch.setattr(tasks, "documentation", lambda words, seed, data: docs)
    bodies = {entry.summary: entry.text for entry in docs.entries}
    test, tuning = documented_pairs(8, True), documented_pairs(8, False)
    for pair in [*test, *tuning]:
        assert (bodies[pair.a] == pair.b) == (pair.score == 1.0)
    assert not {pair.a for pair in test} & {pair.a for pair in tuning}
    assert len(documented_pairs(7, True)) == 7
    with pytest.raises(InputError, match="3 pairs; expected 4"):
        documented_pairs(3, True)
    with pytest.raises(InputError, match="ask for fewer"):
        documented_pairs(1000, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ("eol",)}, "--templates 'eol'"),
        ({"templates": ()}, "got no --templates"),
        ({"pairs": 0}, "--pairs 0; expected 4 or more"),
        ({"sts": None, "dev": "x.tsv"}, "--dev without --sts"),
        ({"sts": None, "data": "corpus.jsonl"}, "--sts FILE"),
        ({"sts": "missing.tsv"}, "missing.tsv"),
        ({"exits": (2, 2)}, "each value once"),
        ({"layers": (7,)}, "numbers from 1 to 6"),
        ({"exits": (1,)}, "no exit after a start"),
    ],
)
def test_impossible_options_are_refused(options, changes, message):
    with pytest.raises(InputError, match=message):
        TokenPrependingTrial(**options | changes).run()
