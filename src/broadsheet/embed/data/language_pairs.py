"""Batches that weigh rows by their pair of languages: small pairs come more often than their share.

Knows: the languages of each row. Does not know: words, losses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

from broadsheet.cache import fingerprint
from broadsheet.console import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def pair_weights(languages: Sequence[Sequence[str]], alpha: float = 0.5) -> Floats:
    """The probability with which each row is drawn: language pairs by the power α of their share.

        p_l = share of rows of the unordered language pair l,  q_l = p_l^α / Σ p^α,  weight = q_l / count_l

    α = 1 draws all rows alike, α = 0 all language pairs. In between small ones come more often than their share, and
    large ones still most often (0.5 in the paper).

    Args:
        languages: (rows, 2) language names; the order of the two does not matter.

    Returns:
        (rows,), sum 1.
    """
    kinds = [tuple(sorted(pair)) for pair in languages]
    counts = Counter(kinds)
    powers = {kind: (count / len(kinds)) ** alpha for kind, count in counts.items()}
    total = sum(powers.values())
    return np.array([powers[kind] / total / counts[kind] for kind in kinds])


class _WeightedBatches(DefaultBatchSampler):
    """Rows drawn with replacement, as many an epoch as there are; by (seed, epoch) alone."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, weights: Floats | None, seed: int) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed)
        self.weights = weights
        self.count = len(dataset)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            order = generator.permutation(self.count)
        else:
            order = generator.choice(self.count, self.count, p=self.weights)
        for start in range(0, self.count, self.batch_size):
            batch = order[start : start + self.batch_size].tolist()
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + bool(rest and not self.drop_last)


@dataclass(frozen=True)
class LanguagePairSampler:
    """A `batch_sampler` for the trainer that weighs rows by their language pair; see `pair_weights`.

    Args:
        languages: of each row of the data set, in its order.
        alpha: α; −1 shuffles, each row once an epoch.

    Example:
        fit(embedder, rows, loss, batch_sampler=LanguagePairSampler(languages, alpha=0.5))
    """

    languages: tuple[tuple[str, str], ...]
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and (self.alpha >= 0 or self.alpha == -1)):
            raise InputError(f"got alpha {self.alpha}; expected 0 or more, or -1 for plain shuffling")

    def __call__(self, dataset: Any, batch_size: int, drop_last: bool, **others: Any) -> DefaultBatchSampler:
        """The sampler of a data set, as sentence-transformers asks for it."""
        if len(dataset) != len(self.languages):
            raise InputError(f"got {len(dataset)} rows for {len(self.languages)} language pairs; expected one each")
        weights = None if self.alpha == -1 else pair_weights(self.languages, self.alpha)
        return _WeightedBatches(dataset, batch_size, drop_last, weights, others.get("seed") or 0)

    def __repr__(self) -> str:  # names the sampler by content in what a training is made from
        return f"LanguagePairSampler({fingerprint(self.languages)}, alpha={self.alpha})"
