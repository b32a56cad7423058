"""How long to wait before an engine is started again."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 0.1
"""An engine that ran well and crashed once is missed in the turn under way: start it almost at once."""
CAP_S = 30.0
STEADY_S = 60.0
"""A life this long forgives the crashes before it."""


@dataclass(slots=True)
class Backoff:
    """Exponential backoff that forgets after a steady life. Pure: lives are told, not measured."""

    _next_s: float = FIRST_S

    def after_life_of(self, seconds: float) -> float:
        """Return the seconds to wait after a process that lived ``seconds``."""
        if seconds >= STEADY_S:
            self._next_s = FIRST_S
        delay = self._next_s
        self._next_s = min(self._next_s * 2.5, CAP_S)
        return delay
