"""Rows of prompt and answer: what is asked of them, and that padding asks nothing."""

from __future__ import annotations

import pytest
import torch

from broadsheet.curate.targets.answers import AnswerLoss, AnswerRows
from broadsheet.teacher import Teacher
from broadsheet.teacher.local import Local
from broadsheet.training.fit import fit

PROMPTS, ANSWERS = ["Hello?", "One, two"], ["Yes.", "three, and four, and five"]


@pytest.mark.parametrize("chat", [True, False])
def test_a_row_is_what_a_teacher_scores(home, tiny_model, tiny_tokenizer, chat):
    model, tokenizer = tiny_model(), tiny_tokenizer(chat=chat)
    local = Local(model, tokenizer)
    rows = AnswerRows.of(local, [[{"role": "user", "content": text}] for text in PROMPTS], ANSWERS)
    assert all(answer[-1] == tokenizer.eos_token_id for _, answer in rows)
    open_ended = [(prompt, answer[:-1]) for prompt, answer in rows]
    losses = [
        AnswerLoss().loss(model, AnswerLoss().collate([(0, row)]), torch.Generator()).item() for row in open_ended
    ]
    scores = Teacher(local, cache=False).score(PROMPTS, [[answer] for answer in ANSWERS], per_token=True)[:, 0]
    assert losses == pytest.approx((-scores).tolist(), abs=1e-5)


def test_rows_beside_change_no_loss_and_prompts_are_not_asked(tiny_model, tiny_tokenizer):
    model = tiny_model()
    rows = AnswerRows.of(Local(model, tiny_tokenizer()), PROMPTS, ANSWERS)
    loss = AnswerLoss(2)
    alone = [loss.loss(model, loss.collate([(0, row)]), torch.Generator()) for row in rows]
    together = loss.collate(list(enumerate(rows)))
    torch.testing.assert_close(loss.loss(model, together, torch.Generator()), sum(alone) / 2)
    assert (together["labels"] != -100).sum(1).tolist() == [len(answer) for _, answer in rows]
    assert loss.tokens(together) == sum(len(prompt) + len(answer) for prompt, answer in rows)


def test_adapters_learn_the_answers_alike_from_the_same_seed(tiny_model, tiny_tokenizer):
    def trained(seed: int) -> tuple[float, list[torch.Tensor]]:
        model = tiny_model()
        rows = AnswerRows.of(Local(model, tiny_tokenizer()), PROMPTS * 4, ANSWERS * 4)
        done = fit(
            model, rows, AnswerLoss(2), method="lora", lora_rank=4, steps=12, batch_size=4, learning_rate=1e-2,
            autocast="none", seed=seed,
        )  # fmt: skip
        return done.history[-1]["loss"] / done.history[0]["loss"], [p for p in model.parameters() if p.requires_grad]

    share, weights = trained(0)
    assert share < 0.9
    assert all(torch.equal(one, other) for one, other in zip(weights, trained(0)[1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(weights, trained(1)[1], strict=True))
