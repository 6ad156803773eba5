"""How the arms of a trial read a long text: in chunks through one cache, in one piece, or only what truncation leaves.

Knows: models, long texts with hidden passwords, what is measured. Does not know: methods, metrics, or the A/B engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from broadsheet.attend.trials import streaming
from broadsheet.attend.trials.longtexts import LongText
from broadsheet.attend.trials.metrics import LengthMetrics, Plan

DECODED = 8  # tokens read one by one at each length

# What a text is read by, up to these lengths: metrics at them, and the mean loss of each stretch where all were scored.
Reading = Callable[[LongText, Sequence[int]], tuple[list[LengthMetrics], list[float]]]


@dataclass(frozen=True)
class LongTextReader:
    """A model that reads texts by a plan, as it is or under a method that is installed meanwhile."""

    model: PreTrainedModel
    plan: Plan

    def chunks(self, text: LongText, lengths: Sequence[int]) -> tuple[list[LengthMetrics], list[float]]:
        """One pass in chunks, measured on the way; and the mean loss of each stretch of `scored` tokens."""
        record = streaming.read(self.model, text.ids, lengths, decode=DECODED, visitor=self._examiner(text))
        width = self.plan.scored
        whole = record.losses[: lengths[-1] // width * width].reshape(-1, width)
        return [self._metrics(record, stop) for stop in record.stops], whole.nanmean(1).tolist()

    def one_piece(
        self, text: LongText, lengths: Sequence[int], following: int = 128
    ) -> tuple[list[LengthMetrics], list[float]]:
        """Up to each length anew: what lies before the scored tokens as a prompt, in one piece; then these.

        Args:
            following: scored tokens read at once; a method that changes prefill alone leaves so few as they are.
        """
        return [self._anew(text, 0, length, chunk=None, following=following) for length in lengths], []

    def truncated(self, text: LongText, lengths: Sequence[int]) -> tuple[list[LengthMetrics], list[float]]:
        """Before each length, the scored tokens and a window in front of them anew; nothing else."""
        reach = self.plan.window + self.plan.scored
        return [self._anew(text, max(0, length - reach), length, chunk=512) for length in lengths], []

    def _anew(
        self, text: LongText, start: int, length: int, chunk: int | None, following: int | None = None
    ) -> LengthMetrics:
        record = streaming.read(
            self.model,
            text.ids[start : length + DECODED],
            [length - start],
            chunk=chunk,
            tail=self.plan.scored,
            following=following,
            decode=DECODED,
            visitor=self._examiner(text, start),
        )
        return self._metrics(record, record.stops[0])

    def _examiner(self, text: LongText, start: int = 0) -> Callable[[Cache, int], list[list[float]]]:
        """A visitor that asks for every password told before the stop, read or not: `right`, `said`, `chosen` and
        `attended`."""

        def examine(cache: Cache, stop: int) -> list[list[float]]:
            known = [question for question in text.questions if question.position < start + stop]
            asked = [question.ids for question in known]
            right, said, chosen, attended = np.full((4, len(text.questions)), np.nan)
            if asked:
                told = [question.position + len(question.ids) - start for question in known]
                logits, shares = streaming.ask(self.model, cache, asked, told)
                attended[: len(asked)] = shares.numpy()
                answers = np.arange(len(asked))
                chosen[: len(asked)] = logits[:, text.answers].argmax(1).numpy()
                right[: len(asked)] = chosen[: len(asked)] == answers
                said[: len(asked)] = logits.argmax(1).numpy() == np.asarray(text.answers)[answers]
            return [right.tolist(), said.tolist(), chosen.tolist(), attended.tolist()]

        return examine

    def _metrics(self, record: streaming.StreamRecord, stop: streaming.Stop) -> LengthMetrics:
        scored = record.losses[max(1, stop.length - self.plan.scored) : stop.length]  # a text's first token has no loss
        return LengthMetrics(float(scored.mean()), stop.seconds, stop.decode_seconds, sum(stop.held), *stop.visit)
