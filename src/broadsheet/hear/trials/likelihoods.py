"""Is a story likelier than a caption where a story is asked for? The perplexities of given texts.

Knows: an audio model's batches and logits, a cascade. Does not know: who wrote the texts, how models are trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from broadsheet.hear.processing import IGNORED
from broadsheet.hear.prompts import instruction
from broadsheet.hear.trials.cascade import Cascade
from broadsheet.hear.trials.metrics import OF_CLIPS, AudioQuestion, HearTask
from broadsheet.trial.engine import Metric

LIKELIHOODS, RATIO, LIKELIER = "likelihoods", "story PPL / caption PPL", "stories likelier than captions"


def likelihoods(asked: Sequence[AudioQuestion]) -> HearTask:
    """A story about each clip against its caption, both as answers to a request for a story.

    An arm's answer is two numbers: nats a token of the story and of the caption, the end of text included. A story that
    was cut at its limit of tokens is charged with an end that its writer never wrote: one token of a hundred.

    Args:
        asked: whose right answers are captions.
    """

    def judge(question: AudioQuestion, answer: tuple[float, float]) -> dict[str, float]:
        story, caption = answer
        return {RATIO: math.exp(story - caption), LIKELIER: int(story < caption)}

    metrics = [
        Metric(RATIO, scale="ratio", higher_is_better=False, **OF_CLIPS),
        Metric(LIKELIER, binary=True, **OF_CLIPS),
    ]
    requests = [replace(each, instruction=instruction("story"), labels=()) for each in asked]
    return HearTask(LIKELIHOODS, requests, metrics, judge, {}, texts=False)


def perplexities(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The perplexity of stories and of captions, the geometric mean over clips, from nats a token of each."""
    story, caption = (math.exp(sum(column) / len(column)) for column in zip(*pairs, strict=True))
    return story, caption


def weigh(
    model: Any, requests: Sequence[tuple[Any, str]], texts: Sequence[tuple[str, str]]
) -> list[tuple[float, float]]:
    """Nats a token of two texts as answers to each (audio, instruction) request.

    Args:
        model: a `SalmonnForConditionalGeneration`, or a `Cascade`.
    """
    if isinstance(model, Cascade):
        return model.nats(requests, texts)
    # Each on its own: beside a story, a caption of a few tokens would be padded to a hundred.
    first, second = (nats(model, requests, list(column)) for column in zip(*texts, strict=True))
    return list(zip(first, second, strict=True))


@torch.inference_mode()
def nats(model: Any, requests: Sequence[tuple[Any, str]], answers: Sequence[str], batch_size: int = 16) -> list[float]:
    """Nats a token of each answer to its (audio, instruction) request, the end of text included."""
    model.eval()
    found: list[float] = []
    for start in range(0, len(requests), batch_size):
        batch = model.prepared(requests[start : start + batch_size], answers[start : start + batch_size])
        logits = model(**batch).logits[:, :-1].float()  # (batch, columns that predict an answer, vocabulary)
        targets = batch["labels"][:, -logits.shape[1] :]
        lost = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        found += (lost.sum(1) / (targets != IGNORED).sum(1)).tolist()
    return found
