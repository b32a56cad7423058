"""When a pin that lost its appliance tries again: 5 s to 60 s apart, and calm for 30 s after a reconnect. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SHORTEST_S = 5.0
LONGEST_S = 60.0
COOL_DOWN_S = 30.0
SPREAD = 0.2
"""Share of the wait by which it is lengthened at random, so that many pins do not come back at once."""


@dataclass(slots=True)
class Reconnect:
    """The state of one pin. Times are seconds on any clock that never goes back."""

    random: Callable[[], float]
    """Gives a number from 0 up to 1."""
    _failures: int = 0
    _reconnected_at: float | None = None

    def connected(self, now: float, *, again: bool) -> None:
        """Note a connection; ``again`` when there had been one before."""
        self._failures = 0
        if again:
            self._reconnected_at = now

    def next_try(self, now: float) -> float:
        """Return when to try after a connection was lost or could not be made at time ``now``."""
        wait = min(LONGEST_S, SHORTEST_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        due = now + min(LONGEST_S, wait * (1 + SPREAD * self.random()))
        if self._reconnected_at is not None:
            due = max(due, self._reconnected_at + COOL_DOWN_S)
        return due
