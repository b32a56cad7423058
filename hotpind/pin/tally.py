"""Sums up the turns of many pins: times by percentile, and everything that went wrong. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hotpind.pin.result import PinTurn

PERCENTILES = (50, 95, 99)
MOST_SENTENCES = 50
"""Different problems that are counted apart."""


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least ``percent`` of the values do not exceed; None when there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(slots=True)
class Tally:
    """Counts turns as they end."""

    answered: int = 0
    failed: int = 0
    aborted: int = 0
    connects: int = 0
    reconnects: int = 0
    underruns: int = 0
    underrun_s: float = 0.0
    lost_bytes: int = 0
    """Sound that was dropped or cut in the pins."""
    most_ahead_s: float = 0.0
    times: dict[str, list[float]] = field(default_factory=lambda: {
        "transcription": [], "llm": [], "first_audio": [], "complete": [], "ack": []})
    """Seconds since EOS by stage; ``ack`` is each turn's slowest acknowledgement."""
    problems: Counter[str] = field(default_factory=Counter)
    """How often each sentence was told: errors, lost connections."""
    violations: Counter[str] = field(default_factory=Counter)
    """Breaches of the protocol."""

    def add(self, turn: PinTurn) -> None:
        """Count a turn that is over."""
        if turn.answered:
            self.answered += 1
        else:
            self.failed += 1
            self.problem(turn.error or "The answer had no sound.")
        self.aborted += turn.aborted
        for name, seen in self.times.items():
            seconds = turn.ack_max_s if name == "ack" else getattr(turn.timings, name)
            if seconds is not None:
                seen.append(seconds)
        for sentence in turn.violations:
            _count(self.violations, sentence)
        report = turn.playback
        if report is not None:
            self.underruns += len(report.underruns)
            self.underrun_s += report.underrun_s
            self.lost_bytes += report.dropped_bytes + report.cut_bytes
            self.most_ahead_s = max(self.most_ahead_s, report.most_ahead_s)

    def problem(self, sentence: str) -> None:
        """Count something that went wrong outside of a turn's own record."""
        _count(self.problems, sentence)

    @property
    def turns(self) -> int:
        """Turns that are over."""
        return self.answered + self.failed

    def as_json(self) -> dict[str, Any]:
        """The sums as plain JSON values, times in seconds."""
        return {
            "turns": self.turns, "answered": self.answered, "failed": self.failed, "aborted": self.aborted,
            "connects": self.connects, "reconnects": self.reconnects,
            "playback": {"underruns": self.underruns, "underrun_s": round(self.underrun_s, 4),
                         "lost_bytes": self.lost_bytes, "most_ahead_s": round(self.most_ahead_s, 3)},
            "times": {name: self.stage(name) for name in self.times},
            "problems": dict(self.problems.most_common()), "violations": dict(self.violations.most_common()),
        }

    def stage(self, name: str) -> dict[str, float | None]:
        """Percentiles and the maximum of one stage, in seconds."""
        seen = self.times[name]
        found = {f"p{percent}": percentile(seen, percent) for percent in PERCENTILES}
        found["max"] = max(seen, default=None)
        return {key: None if value is None else round(value, 4) for key, value in found.items()}


def _count(counter: Counter[str], sentence: str) -> None:
    if sentence in counter or len(counter) < MOST_SENTENCES:
        counter[sentence] += 1
    else:
        counter["(further ones)"] += 1
