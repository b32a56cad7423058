"""Memory over fifty turns, and a second start."""

from __future__ import annotations

import asyncio
import time

import pytest

from hotpind.pin.client import Pin
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import spoken
from tests.appliance.recordings import cards
from tests.appliance.soak import megabytes
from tests.waiting import wait_until

TURNS = 50
LIMIT_MB = 700
GROWTH_MB = 5
"""Of memory without a file: pages of files count for more or less as other programs map the same ones."""
LONG = "Please tell me a long story about a dog."
LONG_TURNS = (4, 24, 44)
"""Before the window in which memory has to be flat, in it and after it."""
SOON_S = 45.0
"""Ten times what it takes: the machine that runs the tests runs other things as well, but nothing may be loaded or made
twice."""


@pytest.mark.slow
@pytest.mark.timeout(2400)
async def test_memory_is_bounded_and_flat() -> None:
    with running() as daemon:
        clips = [each.pcm for each in cards()]
        long = await asyncio.to_thread(spoken, daemon, LONG)
        sizes: list[float] = []
        own: list[float] = []
        seconds: list[float] = []
        async with Pin(daemon.url, "regular") as pin:
            for number in range(TURNS):
                question = long if number in LONG_TURNS else clips[number % len(clips)]
                turn = await pin.ask(question, realtime=False, tail_silence_s=0.2)
                assert turn.answered, turn.error
                assert turn.playback is not None
                seconds.append(turn.playback.received_s)
                sizes.append(await asyncio.to_thread(daemon.memory_mb))
                own.append(sum((await asyncio.to_thread(megabytes, daemon)).values()))
        print("resident MB after 1, 10, 20, 30, 40, 50 turns:", [round(sizes[i]) for i in (0, 9, 19, 29, 39, 49)],
              "and after the long answers:", [(round(sizes[i]), f"{seconds[i]:.0f} s") for i in LONG_TURNS],
              "of its own:", [round(own[i]) for i in (0, 9, 19, 29, 39, 49)])
        assert min(seconds[i] for i in LONG_TURNS[:1]) > 8, "no answer was long"
        assert max(sizes) < LIMIT_MB
        # The middle of ten turns on each side: a single turn's peak is not growth.
        before, after = sorted(own[9:19])[5], sorted(own[40:])[5]
        assert after - before < GROWTH_MB, own


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_start_is_soon_ready_self_test_included() -> None:
    """A quiet machine takes three seconds; the figure is printed, and README says what was measured."""
    began = time.monotonic()
    daemon = Daemon(arguments=["--once"], wait=False)
    wait_until(lambda: "ready:" in daemon.log or daemon.process.poll() is not None, 240, lambda: daemon.log,
               step_s=0.02)
    seconds = time.monotonic() - began
    assert daemon.process.wait(60) == 0, daemon.log
    daemon.wait_for_output()
    assert "ready:" in daemon.log
    print(f"ready after {seconds:.1f} s")
    assert seconds < SOON_S
