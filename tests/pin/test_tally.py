"""Sums over many turns, and wearers who come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.errors import PinOfflineError, PinRefusedError
from hotpind.pin.client import Pin
from hotpind.pin.playback import PlaybackReport, Underrun
from hotpind.pin.reconnect import Reconnect
from hotpind.pin.result import PinTurn, Timings
from hotpind.pin.tally import MOST_SENTENCES, Tally, percentile
from hotpind.pin.wearer import Habits, Wearer
from tests.pin.appliance import Appliance, Link, Recording

WAV = b"RIFF not really"


def turn(first_audio: float | None = 0.5, *, error: str | None = None, violations: tuple[str, ...] = (),
         playback: PlaybackReport | None = None) -> PinTurn:
    return PinTurn("", "", b"" if error else WAV, False, error, False, Timings(first_audio=first_audio), 0.01, 0.02,
                   playback, violations)


def test_sums() -> None:
    report = PlaybackReport(16000, None, 0, 0.0, 2.5, 0.0, (Underrun(1.0, 0.25),), 2, 8192, 100, True, ())
    tally = Tally()
    tally.add(turn(0.3))
    tally.add(turn(0.4, playback=report, violations=("Late.", "Wrong.")))
    tally.add(turn(None, error="Busy.", violations=("Late.",)))
    sums = json.loads(json.dumps(tally.as_json()))
    assert (sums["turns"], sums["answered"], sums["failed"]) == (3, 2, 1)
    assert sums["playback"] == {"underruns": 1, "underrun_s": 0.25, "lost_bytes": 8292, "most_ahead_s": 2.5}
    assert sums["times"]["first_audio"] == {"p50": 0.3, "p95": 0.4, "p99": 0.4, "max": 0.4}
    assert sums["times"]["ack"]["max"] == 0.02
    assert sums["times"]["complete"]["p50"] is None
    assert sums["problems"] == {"Busy.": 1}
    assert sums["violations"] == {"Late.": 2, "Wrong.": 1}


def test_different_sentences_are_bounded() -> None:
    tally = Tally()
    for number in range(500):
        tally.problem(f"Problem {number}.")
    assert len(tally.problems) == MOST_SENTENCES + 1
    assert sum(tally.problems.values()) == 500


@given(st.lists(st.floats(0, 100), min_size=1), st.integers(1, 100))
def test_a_percentile_splits_the_values(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


class Clock:
    """Time that only passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.now += seconds


def wearer(tally: Tally, clock: Clock, turns: int = 3, patience_s: float = 60.0) -> Wearer:
    return Wearer([bytes(2000), bytes(4000)], Habits(turns, realtime=False, listen=False, tail_silence_s=0,
                                                     patience_s=patience_s),
                  tally, plan=Reconnect(lambda: 0.0), clock=clock, sleep=clock.sleep)


def reach(appliance: Appliance) -> Callable[[], Awaitable[Pin]]:
    async def connect() -> Pin:
        pin = Pin(appliance.url, "worn")
        await pin.connect()
        return pin

    return connect


async def test_a_wearer_asks_in_turn(appliance: Appliance) -> None:
    tally, clock = Tally(), Clock()
    await wearer(tally, clock).run(reach(appliance))
    assert (tally.answered, tally.failed, tally.connects, tally.reconnects) == (3, 0, 1, 0)
    assert [len(each.pcm) for each in appliance.recordings["worn"]] == [2000, 4000, 2000]
    assert clock.slept == [1.0, 1.0]


async def test_a_wearer_comes_back_as_the_firmware_does(appliance: Appliance) -> None:
    good = appliance.answer

    async def hang_up_on_first(link: Link, recording: Recording) -> None:
        if len(appliance.hellos) <= 2:
            await link.ws.close(code=1012)
        else:
            await good(link, recording)

    appliance.answer = hang_up_on_first
    tally, clock = Tally(), Clock()
    await wearer(tally, clock).run(reach(appliance))
    assert (tally.answered, tally.failed, tally.connects, tally.reconnects) == (1, 2, 3, 2)
    assert tally.problems == {"The appliance closed the connection (code 1012).": 2}
    assert clock.slept == [1.0, 5.0, 1.0, 29.0]


async def test_a_wearer_gives_an_absent_appliance_up() -> None:
    async def nobody() -> Pin:
        raise PinOfflineError("Nobody there.")

    tally, clock = Tally(), Clock()
    await wearer(tally, clock, patience_s=100).run(nobody)
    assert clock.slept == [5, 10, 20, 40]
    assert tally.problems == {"Nobody there.": 5}


async def test_a_wearer_who_is_refused_goes_at_once() -> None:
    async def no() -> Pin:
        raise PinRefusedError("Go away.")

    tally, clock = Tally(), Clock()
    await wearer(tally, clock).run(no)
    assert (clock.slept, tally.problems) == ([], {"Go away.": 1})


@pytest.mark.parametrize("problem", [5, 6])
async def test_an_appliance_that_always_hangs_up_is_given_up(appliance: Appliance, problem: int) -> None:
    """It lets pins in and closes before they can ask: without progress the patience ends all the same."""
    tally, clock = Tally(), Clock()
    connect = reach(appliance)

    async def closed() -> Pin:
        pin = await connect()
        await pin.close()
        return pin

    await wearer(tally, clock, patience_s=30.0 * problem).run(closed)
    assert tally.turns == 0
    assert clock.now <= 30.0 * problem


async def test_a_pin_whose_appliance_moved_reconnects_at_once(appliance: Appliance) -> None:
    tally, clock = Tally(), Clock()
    waited: list[Pin] = []

    async def moved(pin: Pin) -> None:
        waited.append(pin)
        if len(waited) > 1:
            await asyncio.Event().wait()
        while not appliance.recordings:
            await asyncio.sleep(0.01)

    pausing = asyncio.Event()

    async def long_pause(seconds: float) -> None:
        clock.slept.append(seconds)
        if len(clock.slept) == 1:
            await pausing.wait()

    person = Wearer([bytes(2000)], Habits(2, pause_s=600, realtime=False, listen=False, tail_silence_s=0), tally,
                    plan=Reconnect(lambda: 0.0), clock=clock, sleep=long_pause)
    await asyncio.wait_for(person.run(reach(appliance), moved), 5)
    assert (tally.answered, tally.connects, tally.reconnects) == (2, 2, 1)
    assert clock.slept == [600], "neither the pause nor the firmware's wait is sat out"
