"""The sound of a room in which nobody speaks."""

from __future__ import annotations

import numpy as np

from hotpind.speech.audio import PIN_RATE

ROOM_NOISE = 8.0
"""Standard deviation in sample values (about -72 dB of full scale)."""


def room_silence(seconds: float) -> bytes:
    """Return so much of a quiet room, always the same, as 16 kHz 16-bit mono PCM."""
    noise = np.random.default_rng(1).normal(0.0, ROOM_NOISE, round(seconds * PIN_RATE))
    return noise.astype("<i2").tobytes()
