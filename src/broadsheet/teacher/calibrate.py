"""Taking a model's taste for certain answers out of its scores of them.

Knows: arrays of log-probabilities. Does not know: prompts, models. Both functions first turn each row into
log-probabilities over the choices, so that only the choices' shares count, not how likely it was to get any of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def _shares(scores: np.ndarray) -> np.ndarray:
    import numpy as np

    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def content_free(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Subtract the log of each choice's mean probability under inputs that say nothing ("N/A", "", "[MASK]").

    Args:
        scores: (prompts, choices), log-probabilities.
        baseline: (content-free prompts, choices), log-probabilities.

    Returns:
        (prompts, choices): 0 where a choice is as likely as without content, above where the prompt speaks for it.

    Source: Zhao et al., 2021, "Calibrate Before Use", arXiv:2102.09690, Sec. 5: W = diag(p_cf)⁻¹, b = 0.
    """
    import numpy as np

    return _shares(scores) - (np.logaddexp.reduce(_shares(baseline), axis=0) - np.log(len(baseline)))


def batch_median(scores: np.ndarray) -> np.ndarray:
    """Subtract each choice's median over the batch: what is likely for every prompt says nothing about any of them.

    Assumes that the batch holds the choices in roughly equal numbers; with two choices it splits the batch in halves.

    Args:
        scores: (prompts, choices), log-probabilities.

    Returns:
        (prompts, choices), with column medians 0.
    """
    import numpy as np

    shares = _shares(scores)
    return shares - np.median(shares, axis=0)
