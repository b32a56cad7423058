"""Pins that ask, and what every turn must look like to them."""

from __future__ import annotations

from collections.abc import Iterable

from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from hotpind.pin.turn import Limits
from hotpind.speech.audio import read_wav, resample_16k
from tests.appliance.harness import Daemon

ABORT_S = Limits().ack_abort_s
"""Without an acknowledgement for this long the firmware gives its recording up."""
HOLE_S = 2.0
"""Shorter holes in playback are let pass where a test is about something else: the machine that runs it may be busy.
`test_turns` shows that a machine which is not leaves none, and `hotpinctl bench` counts them."""


def breaches(violations: Iterable[str]) -> list[str]:
    """Return what the pin complained of, less what a busy machine explains.

    That is holes in playback and acknowledgements that came late, but came: `assert_conforming` judges both by what the
    firmware does, and `test_busy` has the appliance's own limit for an acknowledgement.
    """
    return [each for each in violations
            if not each.startswith(("The sound stopped", "The acknowledgement of frame"))]


def spoken(daemon: Daemon, text: str) -> bytes:
    """Have the daemon's voice say something, as a pin would record it (16 kHz, 16 bit)."""
    samples, rate = read_wav(daemon.say(text))
    return bytes(resample_16k(samples, rate).astype("<i2").tobytes())


async def ask_all(daemon: Daemon, name: str, sounds: list[bytes], *, realtime: bool = True) -> list[PinTurn]:
    """Ask one question after the other as one pin."""
    async with Pin(daemon.url, name) as pin:
        return [await pin.ask(sound, realtime=realtime, tail_silence_s=0.4) for sound in sounds]


def assert_conforming(turn: PinTurn, *, holes: bool = False) -> None:
    """Fail on anything that a pin in the field would trip over; ``holes``: the answer may pause."""
    assert not breaches(turn.violations)
    assert not turn.aborted
    assert turn.ack_max_s is None or turn.ack_max_s < ABORT_S
    if turn.playback is not None:
        assert holes or not [hole for hole in turn.playback.underruns if hole.duration_s > HOLE_S]
        assert not turn.playback.dropped_frames
