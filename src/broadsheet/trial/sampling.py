"""How many items a trial takes: a pilot tells how much they spread, the claims tell what has to be seen.

Knows: claims, comparisons on a pilot, seconds. Does not know: arms, tasks, models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from broadsheet.console import InputError, duration, say
from broadsheet.trial.claims import Claim, target_of, tested_by
from broadsheet.trial.engine import SamplePlan
from broadsheet.trial.power import needed
from broadsheet.trial.stats import MIN_UNITS
from broadsheet.trial.verdicts import Comparison

MOST_RUNS = 6  # that are made by default
PILOT = 30  # items of a pilot, where one of them costs little


@dataclass
class PilotSampling:
    """Decides after a pilot, and says so.

    Thirty items tell a spread by a quarter wrong, those of skewed values by more, and too low more often than too high.
    So what is needed is computed with the bound that the spread stays below in 9 of 10 cases (`unit_error_bound`):
    with the pilot's own spread, an effect was found in 67 (skewed) to 78 (normal) of 100 trials, for which 80 are
    promised; with the bound in 77 to 89, for a third more items. Where the pilot has fewer than five clusters, it tells
    nothing, and all items are asked. Claims that are tested together are each asked at 5 % over their number, and by
    as many items as any p-value needs there. What training runs add is not in it: more items do not lessen that.

    Args:
        items: what is asked, in the plural; `pilot` of them before it is decided, `most` there are.
        budget: seconds that all items may take; None without a limit.
    """

    claims: Sequence[Claim]
    items: str
    pilot: int
    most: int
    budget: float | None
    _told: list[str] = field(default_factory=list)

    @property
    def plan(self) -> SamplePlan:
        """For the engine."""
        return SamplePlan(min(self.most, self.pilot), self._decide)

    def _decide(self, comparisons: Sequence[Comparison], asked: int, seconds: float) -> int:
        wanted, found = asked, {(c.metric, c.baseline, c.arm): c for c in comparisons}
        for claim in self.claims:
            comparison = found.get((claim.metric, claim.baseline, claim.arm))
            if comparison is None or comparison.unit_error is None:
                continue
            target = target_of(claim, comparison)
            if target is None:
                continue
            wanted = max(wanted, self._enough(claim, comparison, target, asked))
        affordable = self.most if self.budget is None else int(self.budget / max(seconds, 1e-9))
        taken = max(asked, min(wanted, self.most, affordable))
        more = f", about {duration(seconds * (taken - asked))} more (--budget caps it)" if taken > asked else ""
        say(
            f"after a pilot of {asked}: {'; '.join(self._told) or 'no claim tells how many are needed'}; taking "
            f"{taken:,} of {self.most:,} {self.items}{more}"
        )
        return taken

    def _enough(self, claim: Claim, comparison: Comparison, target: float, asked: int) -> int:
        """The items that would show `target`."""
        if comparison.n < MIN_UNITS:
            self._told.append(
                f"{comparison.n} {comparison.counted or self.items} tell nothing of the spread of {claim.metric}"
            )
            return self.most
        reach = math.log(target) if comparison.scale == "ratio" else target
        error = comparison.unit_error_bound if comparison.unit_error_bound is not None else comparison.unit_error
        tested = sum(each.corrected for each in self.claims) if claim.corrected else 1
        of = tested_by(comparison, tested)
        would = needed(reach, error or 0.0, comparison.n, floor=comparison.noise_floor, **of).units
        # Clusters, and timed blocks, are met in the proportion that the pilot met them.
        enough = self.most if would is None else -(-would * asked // comparison.n)
        self._told.append(f"{enough:,} would show {target:.3g} in {claim.metric} of {claim.arm} over {claim.baseline}")
        return enough

    def told(self, asked: int) -> str:
        """The decision, for the report."""
        return f"after a pilot: {'; '.join(self._told)}; {asked:,} of {self.most:,} were asked" if self._told else ""


def seconds_of(time: str | None) -> float | None:
    """`"30m"`, `"2h"` or `"90s"` in seconds; None for None.

    Raises:
        InputError: it is no such time.
    """
    if time is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)", time.strip())
    if not match or not float(match[1]) > 0:
        raise InputError(f"got --budget {time}; expected a time such as 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
