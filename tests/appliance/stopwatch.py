"""Times programs that tests start, and tells what they would have taken had they had the machine for themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IDLE = (3, 4)
"""Places of idle and iowait among the numbers of /proc/stat (proc(5))."""
_KINDS = 8
"""The ninth and tenth number are part of the first two."""


class Stopwatch:
    """Begun with what it times; `stop` when the programs have ended and were waited for."""

    def __init__(self) -> None:
        """Begin."""
        self._began = time.monotonic()
        self._ours = _children_s()
        self._machine = _ticks()

    def stop(self) -> float:
        """Return which part of the machine was idle or our children's since the beginning, from 0 to 1."""
        now = _ticks()
        spent = [after - before for before, after in zip(self._machine, now, strict=True)]
        whole = sum(spent) or 1
        busy = whole - sum(spent[place] for place in _IDLE)
        ours = (_children_s() - self._ours) * os.sysconf("SC_CLK_TCK")
        return 1 - max(0.0, busy - ours) / whole

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began


def _children_s() -> float:
    """Processor seconds of all children that have ended, theirs included."""
    times = os.times()
    return times.children_user + times.children_system


def _ticks() -> list[int]:
    return [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:_KINDS + 1]]
