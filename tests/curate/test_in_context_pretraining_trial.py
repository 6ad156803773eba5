"""The trial of in-context pretraining: the same documents in every arm but one, and what is asked of related text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import differ

from broadsheet.curate.trials.in_context_pretraining import (
    BY_LENGTH,
    COPIES,
    COSINE,
    KNN,
    OURS,
    RANDOM,
    USE,
    InContextPretrainingTrial,
)
from broadsheet.training.scratch import Size
from broadsheet.trial.trained.laboratory import LOSS, PACE

TINY = {"texts": 6, "steps": 12, "batch": 4, "length": 64, "vocabulary": 300, "size": "0.4M", "runs": 1, "lr": 1e-2}
KINDS = [
    ["flour", "water", "yeast", "salt", "oven", "dough", "crust", "knead", "rise", "loaf", "butter", "sugar"],
    ["sail", "mast", "anchor", "harbour", "tide", "captain", "rope", "deck", "crew", "storm", "wind", "wave"],
    ["orbit", "planet", "comet", "galaxy", "telescope", "light", "moon", "eclipse", "dust", "sky", "sun", "night"],
]


@pytest.fixture
def data(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """60 documents of three kinds, ten of which are nearly as another, in a folder."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        drawn = np.random.default_rng(i).choice(KINDS[i % 3], 30 if i % 2 else 120)
        (folder / f"{i:02d}.txt").write_text(" ".join(drawn))
        if i % 6 == 1:
            (folder / f"{i:02d} again.txt").write_text(" ".join(drawn) + " too")
    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(1, 16, 2)})
    return str(folder)


def prepared(data: str, **given) -> InContextPretrainingTrial:
    trial = InContextPretrainingTrial(data=data, **{**TINY, **given})
    trial.tasks()
    return trial


def test_random_order_and_the_path_are_compared_by_use_loss_and_cosine(data):
    trial = InContextPretrainingTrial(data=data, quick=True, **{**TINY, "runs": 2})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {name: arm.status for name, arm in arms.items()} == {RANDOM: "ok", OURS: "ok"}
    assert {(USE, OURS), (LOSS, OURS), (COSINE, OURS), (PACE, OURS)} <= {(c.metric, c.arm) for c in result.comparisons}
    assert arms[OURS].values[COSINE].estimate > arms[RANDOM].values[COSINE].estimate + 0.1
    assert {claim.metric for claim in result.judged} == {USE, LOSS, COSINE}
    assert "no neighbours" in result.setting["path"]
    assert differ(trial, RANDOM, OURS)


def test_all_arms_read_the_same_documents_and_as_many_tokens(data):
    trial = prepared(data)
    kept = trial._order.path
    assert 0 < len(kept) < len(trial.held.train), "copies were dropped"
    paths = {name: trial.path(name, 3) for name in (RANDOM, OURS, BY_LENGTH, COPIES, KNN)}
    for name in (RANDOM, BY_LENGTH, OURS):
        assert sorted(paths[name]) == sorted(kept), name
    assert sorted(paths[COPIES]) == list(range(len(trial.held.train)))
    assert len(set(paths[KNN].tolist())) < len(paths[KNN])
    assert set(paths[KNN].tolist()) <= set(kept.tolist())
    lengths = [len(trial._documents[i]) for i in paths[BY_LENGTH]]
    assert lengths == sorted(lengths)
    rows = {name: trial.rows(name, 3) for name in paths}
    assert {len(rows[name]) for name in (RANDOM, OURS, BY_LENGTH)} == {len(rows[RANDOM])}
    assert len(rows[KNN]) == len(rows[RANDOM])
    assert {row["input_ids"].numel() for each in rows.values() for row in each} == {64}
    for name in (RANDOM, OURS):
        other = trial.rows(name, 4)
        assert rows[name].identity() != other.identity(), "each seed has an order of its own"
    read = [tuple(row["input_ids"].tolist()) for row in rows[KNN]]
    groups = {tuple(context) for context in trial._knn(3)[1]}
    assert set(read) <= groups


def test_related_documents_are_learnt_from_and_like_what_is_asked(data):
    trial = prepared(data)
    assert len(trial._related) == len(trial.held.held_out)
    kinds = [
        {word: number for number, kind in enumerate(KINDS) for word in kind}[t.split()[0]] for t in trial.held.held_out
    ]
    for kind, place in zip(kinds, trial._related, strict=True):
        assert trial.held.train[place].split()[0] in KINDS[kind]
        assert place in trial._kept


class Copier(torch.nn.Module):
    """Expects the tokens that it has seen before in its row, all others less."""

    device = torch.device("cpu")

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, ids, **others):
        seen = torch.nn.functional.one_hot(ids, self.vocabulary).cumsum(1).clamp(max=1)
        return type("Out", (), {"logits": 3.0 * seen.float()})()


def test_what_is_gained_by_a_related_document_is_that_of_the_second_document_alone(data):
    trial = prepared(data)
    model = Copier(len(trial.tokenizer))
    found = trial.losses(model, trial.asked())
    assert found[USE].mean() > 0, "who copies gains"
    text = trial.held.held_out[0]
    [alone] = trial.after(model, [""], [text])
    [with_itself] = trial.after(model, [text], [text])
    assert with_itself < alone
    half, end = 31, trial.tokenizer.eos_token_id
    own = trial.tokenizer(text)["input_ids"][:half]
    ids = torch.tensor([[end, *own, end, *own]])
    expected = torch.log_softmax(model(ids).logits[0], -1)
    total = -sum(float(expected[half + 1 + i, token]) for i, token in enumerate(own))
    assert with_itself == pytest.approx(total / len(trial.tokenizer.decode(own).encode()), rel=1e-5)
    both = trial.after(model, ["", text], [text, text])
    assert both == pytest.approx([alone, with_itself]), "whatever is asked beside it"


def test_claims_name_arms_and_the_baseline_is_tuned_as_the_method_is(data):
    trial = prepared(data)
    trial.workdir = Path(data).parent
    trial.arms()
    lab = trial._lab
    assert {claim.arm for claim in trial.claims()} == {OURS}
    assert {claim.baseline for claim in trial.claims()} <= set(lab)
    assert {claim.kind for claim in trial.claims() if claim.baseline == BY_LENGTH} == {"control"}
    assert (lab[RANDOM].rate_of, lab[OURS].rate_of, lab[KNN].rate_of) == ("", "", "")
