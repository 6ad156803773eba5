"""What given texts cost a model: a token's mean, in whatever batch; what a story and a caption of a clip say of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hearing import noise, tiny

from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.trials.cascade import Cascade
from broadsheet.hear.trials.likelihoods import LIKELIER, RATIO, likelihoods, nats, perplexities, weigh
from broadsheet.hear.trials.metrics import questions

pytestmark = pytest.mark.usefixtures("home")

ASKED = "Write a story about the audio."
TEXTS = ["a bell", "once upon a time there was a bell that nobody rang", "horn"]


@torch.no_grad()
def test_nats_are_the_loss_of_an_answer_alone_and_in_a_batch(tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    model = tiny(tiny_model(max_position_embeddings=512), tiny_tokenizer(), lora_dropout=0.5)
    requests = [(noise(16_000 * (1 + i), i), ASKED) for i in range(3)]
    alone = [float(model(**model.prepared([each], [text])).loss) for each, text in zip(requests, TEXTS, strict=True)]
    model.train()  # as a training leaves it
    assert nats(model, requests, TEXTS) == pytest.approx(alone, abs=1e-5)
    assert nats(model, requests, TEXTS, batch_size=2) == pytest.approx(alone, abs=1e-5)
    widths: list[int] = []
    forward = model.forward
    model.forward = lambda **batch: widths.append(batch["input_ids"].shape[1]) or forward(**batch)
    pairs = weigh(model, requests, [(text, TEXTS[0]) for text in TEXTS])
    assert widths[0] > widths[1], "the shorter texts are not padded to the longer ones"
    assert pairs[2] != pairs[2][::-1]
    assert [first for first, _ in pairs] == pytest.approx(alone, abs=1e-5)
    assert pairs[0][0] == pytest.approx(pairs[0][1])


def test_a_cascade_weighs_them_by_its_own_means(tiny_model: Callable, tiny_tokenizer: Callable) -> None:
    class Silent:
        def transcribe(self, waves: list[torch.Tensor]) -> list[str]:
            return ["" for _ in waves]

    cascade = Cascade(Silent(), (tiny_model(max_position_embeddings=512), tiny_tokenizer()))
    requests, texts = [(noise(16_000), ASKED)], [("a bell", "a horn")]
    assert weigh(cascade, requests, texts) == cascade.nats(requests, texts)


def test_a_story_is_likelier_where_it_costs_less_a_token() -> None:
    rows = [AudioRow("caption", (f"{i}.wav",), f"caption {i}") for i in range(2)]
    job = likelihoods(questions(rows))
    assert [each.answer for each in job.questions] == ["caption 0", "caption 1"]
    assert {each.instruction for each in job.questions} == {ASKED}
    judged = job.outputs(job.questions, [(2.0, 1.0), (1.0, 3.0)])
    assert judged[LIKELIER] == [0, 1]
    assert judged[RATIO] == pytest.approx([math.e, math.exp(-2)])
    ratio, share = job.metrics
    assert (ratio.higher_is_better, ratio.scale, share.higher_is_better) == (False, "ratio", True)
    assert job.examples(job.questions, {}) == []
    assert perplexities([(2.0, 1.0), (1.0, 3.0)]) == pytest.approx((math.exp(1.5), math.exp(2)))
