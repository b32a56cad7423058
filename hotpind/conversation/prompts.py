"""The sentences that need no model."""

from __future__ import annotations

NO_ANSWER = "Sorry, I can't think of an answer right now. Please ask me again in a moment."
BUSY = "I'm busy with other questions right now. Please ask me again in a moment."
BROKEN_OFF = "Sorry, I lost my train of thought there."
NOT_UNDERSTOOD = "Sorry, I did not understand that."
"""For devices that want to hear so; others show the protocol's own words."""
CANNED = (NO_ANSWER, BUSY, BROKEN_OFF, NOT_UNDERSTOOD)
"""Synthesised soon after the start, so that they can be spoken when nothing else works."""

NO_VOICE = "The voice of the appliance does not work right now. Please try again in a moment."
NO_HEARING = "The appliance cannot hear right now. Please try again in a moment."
MISTAKE = "Something went wrong in the appliance. Please ask again."
TOO_LATE = "That took too long. Please ask again."
STOPPING = "The appliance is being switched off. Please try again later."
"""Shown by the device; there is no way to speak them."""


def too_long(limit_s: float) -> str:
    """Say that a recording passed the limit in seconds."""
    return f"The recording was longer than {limit_s:.0f} seconds. Please ask a shorter question."
