"""How long trials took on this machine, so that the next one can say beforehand how long it takes.

Knows: a JSON file in the cache folder. Does not know: what a trial does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from broadsheet.cache import atomic_write, fingerprint, home


class Took:
    """What a trial with these options took here before.

    Args:
        paper: whose trial it is.
        given: its options, as far as they decide how long it takes.
    """

    def __init__(self, paper: str, given: Mapping[str, Any]) -> None:
        self.key = fingerprint([paper, dict(given)])
        self.path = home() / "took.json"

    @property
    def before(self) -> float | None:
        """Seconds; None where it was never tried, or not to the end."""
        return self._known().get(self.key)

    def keep(self, seconds: float) -> None:
        """Remember it."""
        known = {**self._known(), self.key: round(seconds, 3)}
        with atomic_write(self.path) as file:
            json.dump(known, file)

    def _known(self) -> dict[str, float]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(key): float(seconds) for key, seconds in known.items()}
        except (OSError, ValueError, AttributeError, TypeError):  # none yet, or damaged: it is only a convenience
            return {}
