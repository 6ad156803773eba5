"""Two corpora in one training: exact shares of each in every batch, each read in an order of its own.

Knows: rows, batches, shares. Does not know: tokens, models, what the corpora are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.training.objective import content


def replayed(batch: int, fraction: float, step: int) -> int:
    """How many rows of a step's batch are of the second corpus.

    Up to any step there are as many as the fraction asks for, to the nearest row (a half to the even one): small
    batches take turns in having one more.
    """
    return round(fraction * batch * (step + 1)) - round(fraction * batch * step)


class Mixture(Sequence[Any]):
    """A whole training's rows: in each batch a share of a second corpus, and of the first what is left.

    Its length does not depend on the share: what one corpus takes the other gives. No row of a corpus comes again
    before all of it has been read; each pass has an order of its own. Without a share the rows are those that `fit`
    reads of the first corpus alone, in their order.

    Args:
        first, second: rows.
        fraction: of the second, from 0 to 1.
        batch: rows of an optimizer step, on all devices together.
        steps: of the training.
        seed: of the orders.

    Attributes:
        second_at: (rows,) whether each row of the training is of the second corpus.

    Raises:
        InputError: a fraction out of range, no steps, an empty corpus that has a share.

    Example:
        Trainer(model, TrainingArguments(…, train_sampling_strategy="sequential"), train_dataset=Mixture(new, old, …))
    """

    in_order = True

    def __init__(
        self, first: Sequence[Any], second: Sequence[Any], fraction: float, batch: int, steps: int, seed: int = 0
    ) -> None:
        if not 0 <= fraction <= 1 or min(batch, steps) < 1:
            raise InputError(f"got fraction {fraction}, batch {batch}, steps {steps}; expected a share, and 1 or more")
        self.first, self.second = first, second
        self.second_at = torch.zeros(batch * steps, dtype=torch.bool)
        for step in range(steps):
            count = replayed(batch, fraction, step)
            # Evenly among the others, so that parts of a batch have as much of it each.
            places = (torch.arange(count) * 2 + 1) * batch // (2 * max(1, count))
            self.second_at[step * batch + places] = True
        taken = int(self.second_at.sum())
        self._places = torch.empty(batch * steps, dtype=torch.long)
        self._places[~self.second_at] = _order(len(first), batch * steps - taken, seed)
        self._places[self.second_at] = _order(len(second), taken, seed)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        place = range(len(self))[place]
        return (self.second if self.second_at[place] else self.first)[int(self._places[place])]

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [
            content(self.first),
            content(self.second),
            fingerprint(self.second_at.tolist()),
            fingerprint(self._places.tolist()),
        ]


def _order(rows: int, count: int, seed: int) -> Tensor:
    """So many places of a corpus, pass after pass, each shuffled as `fit` shuffles an epoch.

    Raises:
        InputError: places are asked for, and there are no rows.
    """
    if count and not rows:
        raise InputError("got a corpus without rows; expected one at least, or no share of it")
    passes = [
        torch.randperm(rows, generator=torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63))
        for number in range(-(-count // max(1, rows)))
    ]
    return torch.cat(passes)[:count] if passes else torch.empty(0, dtype=torch.long)
