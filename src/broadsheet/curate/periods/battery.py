"""The models of all periods together, asked about texts.

Knows: models in the order of their periods. Does not know: how they were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from broadsheet.curate.periods.change import places
from broadsheet.curate.periods.counts import CountModel, Floats

CONTEXTS = 2  # places in a text


@dataclass
class Battery:
    """The models of all periods, in order."""

    models: Sequence[Any]

    def bits(self, texts: Sequence[str]) -> Floats:
        """(texts, models) bits a character."""
        return np.stack([model.bits(texts) for model in self.models], 1)

    def later(self, period: int, texts: Sequence[str], words: Sequence[str]) -> Floats:
        """(texts,) the probability that a period's model gives to words, where a word begins."""
        model = self.models[period]
        if isinstance(model, CountModel):
            return np.full(len(texts), sum(map(model.word_probability, words)))
        asked = [places(text, CONTEXTS) or [""] for text in texts]
        found = model.probability([each for some in asked for each in some], words).sum(1)
        ends = np.cumsum([len(some) for some in asked])[:-1]
        return np.array([some.mean() for some in np.split(found, ends)])
