"""How far ahead of playback audio may be sent. Pure: time is passed in.

The pin buffers 512 KiB (11.9 s at 22.05 kHz) and drops for good what finds the buffer full for a second, while a gap
is heard as a stutter; a few seconds of lead keep clear of both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pacer:
    """The playback clock of one answer."""

    bytes_per_s: int
    """PCM bytes played in a second: rate x 2 for 16-bit mono."""
    lead_s: float
    """Seconds of audio that may be sent ahead of playback."""
    _ends: float | None = None
    underruns: int = 0
    """Times that playback ran dry before the next frame was sent."""

    def wait_s(self, now: float, size: int) -> float:
        """Return the seconds to wait before a frame of ``size`` bytes may be sent at time ``now``."""
        if self._ends is None:
            return 0.0
        return max(0.0, self._ends + size / self.bytes_per_s - self.lead_s - now)

    def sent(self, now: float, size: int) -> None:
        """Count a frame sent at ``now``: playback begins with the first one, and again after it ran dry."""
        if self._ends is None:
            self._ends = now
        elif self._ends < now:
            self.underruns += 1
            self._ends = now
        self._ends += size / self.bytes_per_s

    def ahead_s(self, now: float) -> float:
        """Return the seconds of audio sent that are still to be played."""
        return max(0.0, (self._ends or now) - now)
