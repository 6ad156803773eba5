"""What an arm of a trial writes, timed: `generate` for a fixed number of tokens, and greedy decoding to compare with.

Knows: `generate`, prompts. Does not know: which arms there are, or what they are compared by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broadsheet.decode.base import DecodeStats
from broadsheet.decode.ngram import NgramDrafter
from broadsheet.decode.trials.prompts import DecodePrompt
from broadsheet.trial.engine import Measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCES = {
    "corpus": "by tri-grams of the corpus as they were counted",
    "raised": "by tri-grams of the corpus that adaptation had raised",
    "adapted": "by tri-grams that adaptation brought",
    "copied": "by copying from what was read and written",
}  # what proposes a draft token, in words


@dataclass(frozen=True)
class Written:
    """What one call of `generate` gave: new tokens, seconds, passes of the model, and a drafter's own account."""

    tokens: list[int]
    seconds: float
    forwards: int
    account: DecodeStats | None = None


class TimedWriter:
    """Calls `generate` for a fixed number of tokens, times it, and counts the model's passes.

    An end of text does not end it: all arms write equally many tokens, so that tokens per second are comparable.
    """

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        self.model = model
        self.tokens = tokens
        self.never = int(model.get_input_embeddings().num_embeddings)  # an id that no token has

    def __call__(self, prompt: DecodePrompt, **options: Any) -> Written:
        """Greedy decoding after `prompt`, or with `custom_generate=` or another option of `generate`."""
        import torch

        ids = torch.tensor([prompt.tokens], device=self.model.device)
        with _counted(self.model) as passes:
            start = time.perf_counter()
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.tokens,
                eos_token_id=self.never,
                pad_token_id=0,
                **options,
            )
            new = out[0, ids.shape[1] :].tolist()
            seconds = time.perf_counter() - start
        drafter = options.get("custom_generate")
        return Written(new, seconds, passes[0], drafter.stats_ if drafter else None)


@contextmanager
def _counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list whose element counts the model's forward passes in the body."""
    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    handle = model.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


class Reference:
    """Greedy decoding as an arm, and as what all arms have to write.

    An arm whose turn comes first has the reference written off its own clock; the greedy arm then takes that run for
    its own instead of writing the same text once more.
    """

    def __init__(self, writer: TimedWriter) -> None:
        self.writer = writer
        self._tokens: dict[str, list[int]] = {}
        self._fresh: dict[str, Written] = {}

    def tokens(self, prompt: DecodePrompt) -> list[int]:
        """What greedy decoding writes."""
        if prompt.id not in self._tokens:
            self._fresh[prompt.id] = written = self.writer(prompt)
            self._tokens[prompt.id] = written.tokens
        return self._tokens[prompt.id]

    def write(self, prompt: DecodePrompt) -> Written:
        """A run that no one has been given yet."""
        written = self._fresh.pop(prompt.id, None) or self.writer(prompt)
        self._tokens.setdefault(prompt.id, written.tokens)
        return written


def step_seconds(writer: TimedWriter, prompt: DecodePrompt) -> dict[int, float]:
    """Seconds of a step by its size, measured by a drafter on this model: one measurement that all arms share."""
    drafter = NgramDrafter()
    TimedWriter(writer.model, 4)(prompt, custom_generate=drafter)
    [step_cost] = drafter.step_costs_[writer.model].values()
    return step_cost.seconds


def measured(
    runs: Sequence[tuple[Written, list[int]]], decode: Callable[[list[int]], str], *, plain: bool = False
) -> Measured:
    """An arm's outputs for a block; what was spent on the reference is not its own.

    Args:
        decode: tokens to text. Texts are kept of the reference, and of other arms where theirs differ from it.
        plain: the arm is the reference.
    """
    outputs: dict[str, list[Any]] = {
        "text": [decode(written.tokens) if plain or written.tokens != expected else "" for written, expected in runs],
        "identical output": [float(written.tokens == expected) for written, expected in runs],
        "tokens per forward": [len(written.tokens) / written.forwards for written, _ in runs],
        "seconds": [written.seconds for written, _ in runs],
    }
    accounts = [written.account for written, _ in runs if written.account]
    if accounts:
        outputs["steps"] = [account.steps for account in accounts]
        outputs["drafted"] = [account.drafted for account in accounts]
        outputs["accepted"] = [account.accepted for account in accounts]
        for source in SOURCES:
            outputs[f"from {source}"] = [account.accepted_from.get(source, 0) for account in accounts]
        outputs["unknown"] = [account.unknown for account in accounts]
        outputs["drafting seconds"] = [account.draft_seconds for account in accounts]
    return Measured(outputs, seconds=sum(outputs["seconds"]))
