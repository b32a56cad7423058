"""Who gets the floor when several backends work on the same question. Pure.

Backends stand in the chain's order, best first. Until the deadline a better one is waited for; at the
deadline the best of those that have spoken answers; after it, the first to speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

HEAD_START_S = 1.0
"""How long before the deadline the next in the chain begins to think: a model that has to be loaded or has a
long conversation to read then speaks at the deadline, not a second after it. A healthy cloud speaks in under
half a second, so this costs nothing on ordinary turns."""


class Standing(StrEnum):
    """How far a backend has come with the question."""

    IDLE = "idle"
    """Not asked yet."""
    PENDING = "pending"
    """Asked, has not spoken."""
    SPOKE = "spoke"
    FAILED = "failed"


def winner(standings: Sequence[Standing], *, past_deadline: bool) -> int | None:
    """Return the index of the backend that answers; None while that is open (or all failed)."""
    for index, standing in enumerate(standings):
        if standing is Standing.SPOKE:
            return index
        if standing is Standing.FAILED or past_deadline:
            continue
        return None
    return None


def to_start(standings: Sequence[Standing], *, hedge: bool) -> list[int]:
    """Return the indices of the backends to be asked now.

    One at a time, the next when all before it failed; with ``hedge`` (the best is nearly late) all the rest.
    """
    if hedge:
        return [index for index, standing in enumerate(standings) if standing is Standing.IDLE]
    for index, standing in enumerate(standings):
        if standing is Standing.IDLE:
            return [index]
        if standing is not Standing.FAILED:
            break
    return []


def head_start(deadline_s: float) -> float:
    """Return after how many seconds the rest of the chain is started, for a first-word deadline in
    seconds.
    """
    return deadline_s - min(HEAD_START_S, deadline_s / 2)
