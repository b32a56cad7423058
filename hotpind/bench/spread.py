"""How measured values lie: median, percentiles, maximum. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hotpind.pin.tally import percentile


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of at least one value, in the values' own unit (seconds unless said otherwise)."""

    count: int
    p50: float
    p95: float
    p99: float
    most: float

    def as_json(self) -> dict[str, float]:
        """Plain JSON values."""
        return {"count": self.count, **{name: round(getattr(self, name), 4) for name in ("p50", "p95", "p99", "most")}}


def spread(values: Iterable[float]) -> Spread | None:
    """Sum up values; None when there are none. The median of an even number is the mean of the middle two."""
    ordered = sorted(values)
    if not ordered:
        return None
    p95, p99 = (percentile(ordered, percent) for percent in (95, 99))
    assert p95 is not None
    assert p99 is not None
    return Spread(len(ordered), median(ordered), p95, p99, ordered[-1])


def median(ordered: Sequence[float]) -> float:
    """Return the median of values that are in order; raises IndexError when there are none."""
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
