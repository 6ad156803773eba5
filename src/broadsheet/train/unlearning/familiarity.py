"""What a model still knows of a text: probabilities of its terms, what it repeats, and how fast it learns it again.

Knows: prompts, texts, causal LMs. Does not know: how anything was unlearnt. No judge is needed. What unrelated text
costs is `training.scratch.document_losses`. A model that seems not to know a text may know more than it says: so each
measure is to be taken again after a few steps on the text (`relearning_curve`).
"""

from __future__ import annotations

import copy
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from broadsheet.console import InputError
from broadsheet.models import adapters
from broadsheet.models.batching import halve_on_oom, token_budget_batches
from broadsheet.train.base import LossMethod, MethodObjective
from broadsheet.train.unlearning.translation import Translator
from broadsheet.training.fit import fit
from broadsheet.training.losses import IGNORED, token_losses

_TOKENS = 4096  # padded, that are read at once


@dataclass(frozen=True)
class Prompt:
    """A context and words that only one who knows the text would go on with.

    Args:
        context: all that comes before, with the space before the word.
        words: one or more; what counts is the probability of any of them.
    """

    context: str
    words: tuple[str, ...]


def anchored_prompts(
    texts: Sequence[str], dictionary: Mapping[str, str], most: int = 300, seed: int = 0
) -> list[Prompt]:
    """Prompts from texts: all before a term that a text names for the first time, after another one; and the term.

    A term of which a word was named before is not asked for: it could be copied.

    Args:
        texts: that tell of the same as what is to be forgotten; best others than those themselves.
        dictionary: its terms.
        most: prompts, drawn by `seed`.
    """
    translator = Translator(dictionary)
    found = []
    for text in texts:
        translation = translator(text)
        for number, (term, (begin, _)) in enumerate(zip(translation.terms, translation.spans.tolist(), strict=True)):
            if number and not any(word in text[:begin] for word in term.split()):
                found.append(Prompt(text[:begin], (term,)))
    return random.Random(seed).sample(found, most) if len(found) > most else found


@torch.no_grad()
def familiarity(model: Any, tokenizer: Any, prompts: Sequence[Prompt], length: int = 512) -> np.ndarray:
    """The probability that a model goes on with the words of each prompt: (prompts,), float64.

    Words are asked as a whole, however many tokens they have. Their mean is the paper's probability familiarity.

    Args:
        tokenizer: a fast one.
        length: tokens that are read of a prompt at most, its last ones.

    Raises:
        InputError: a prompt has no words.
    """
    pairs = [(number, prompt.context, word) for number, prompt in enumerate(prompts) for word in prompt.words]
    if len({number for number, _, _ in pairs}) < len(prompts):
        raise InputError("got a prompt without words; expected one at least")
    if not prompts:
        return np.zeros(0)
    given = tokenizer(
        [context + word for _, context, word in pairs],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
    )
    start = [tokenizer.eos_token_id]
    rows = [[*start, *ids][-length:] for ids in given["input_ids"]]
    asked = [
        sum(end > len(context) for _, end in offsets)
        for offsets, (_, context, _) in zip(given["offset_mapping"], pairs, strict=True)
    ]
    logs, was = np.zeros(len(pairs)), model.training
    model.eval()
    try:
        for part in token_budget_batches([len(row) for row in rows], _TOKENS):
            logs[part] = halve_on_oom(
                lambda some: _log_probs(model, [rows[i] for i in some], [asked[i] for i in some]), part
            )
    finally:
        model.train(was)
    found = np.zeros(len(prompts))
    np.add.at(found, [number for number, _, _ in pairs], np.exp(logs))
    return found


def _log_probs(model: Any, rows: Sequence[Sequence[int]], asked: Sequence[int]) -> list[float]:
    """log p of the last tokens of each row, so many of each."""
    widest = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[0]] * (widest - len(row))] for row in rows], device=model.device)
    labels = torch.full_like(ids, IGNORED)
    for i, (row, count) in enumerate(zip(rows, asked, strict=True)):
        labels[i, len(row) - count : len(row)] = ids[i, len(row) - count : len(row)]
    losses, _ = token_losses(model(ids, use_cache=False).logits, labels)
    return (-losses.double().sum(1)).tolist()


@torch.no_grad()
def continuations(
    model: Any, tokenizer: Any, texts: Sequence[str], given: int = 32, new: int = 32, batch: int = 32
) -> list[tuple[str, str]]:
    """How a model goes on from the beginning of each text, the most probable token each time, and how the text does.

    Args:
        given: tokens of the beginning; half of the text's, where they are fewer than twice as many.
        new: tokens of what follows, at most.

    Returns:
        (the model's, the text's) for each text.

    Raises:
        InputError: a text has fewer than two tokens.
    """
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    if any(len(row) < 2 for row in rows):
        raise InputError("got a text of fewer than two tokens; expected a beginning, and something that follows")
    cuts = [min(given, len(row) // 2) for row in rows]
    end, was = tokenizer.eos_token_id, model.training
    model.eval()

    def go_on(part: Sequence[int]) -> list[Any]:
        widest = 1 + max(cuts[i] for i in part)
        begun = [[end, *rows[i][: cuts[i]]] for i in part]
        padded = torch.tensor([[end] * (widest - len(row)) + row for row in begun], device=model.device)
        mask = torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in begun], device=model.device)
        made = model.generate(
            padded, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=end, eos_token_id=end
        )
        return list(made[:, widest:].tolist())

    try:
        said = [
            row for first in range(0, len(rows), batch) for row in halve_on_oom(go_on, range(len(rows))[first:][:batch])
        ]
    finally:
        model.train(was)
    return [
        (tokenizer.decode(each, skip_special_tokens=True), tokenizer.decode(row[cut : cut + new]))
        for each, row, cut in zip(said, rows, cuts, strict=True)
    ]


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words, whatever their case; of any script.

    Example:
        >>> rouge_l("The cat sat there", "the old cat sat")
        0.75
    """
    one, other = (re.findall(r"\w+", text.casefold()) for text in (candidate, reference))
    if not one or not other:
        return float(one == other)
    # Bit by bit (Hyyrö, 2004): a bit is 0 where the subsequence grows.
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(one):
        places[word] |= 1 << i
    whole = row = (1 << len(one)) - 1
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & whole
    common = len(one) - row.bit_count()
    return 2 * common / (len(one) + len(other))


def relearning_curve(
    model: Any,
    rows: Any,
    measure: Callable[[Any], Mapping[str, float]],
    steps: int = 20,
    every: int = 5,
    *,
    method: str = "lora",
    **settings: Any,
) -> list[tuple[int, dict[str, float]]]:
    """What a model knows before, and after each few steps of training on the text again; it is left as it was.

    Args:
        rows: of the text, as `TokenBlocks` are.
        measure: a model to values by name, such as the mean of `familiarity`.
        steps: of that training; every: how many lie between measures.
        method: `"lora"`, or `"full"` on a copy.
        settings: further ones of `fit`.

    Returns:
        (step, values), from step 0 on.
    """
    borrowed = method == "lora" and not adapters.has_adapter(model)
    learner = model if borrowed else copy.deepcopy(model)
    asked = [each.requires_grad for each in model.parameters()]
    found = [(0, dict(measure(model)))]

    def watch(model: Any, step: int) -> Mapping[str, float]:
        if step % every == 0 or step == steps:
            found.append((step, dict(measure(model))))
        return {}

    try:
        objective = MethodObjective(LossMethod(), watch)
        if not fit(learner, rows, objective, steps=steps, method=method, **settings).finished:
            raise KeyboardInterrupt
    finally:
        if borrowed:
            adapters.remove(model)
            for parameter, was in zip(model.parameters(), asked, strict=True):
                parameter.requires_grad_(was)
    return found
