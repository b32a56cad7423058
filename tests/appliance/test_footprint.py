"""Memory over fifty turns, and how quickly the second start is ready."""

from __future__ import annotations

import asyncio
import time

import pytest

from hotpind.pin.client import Pin
from tests.appliance.harness import Daemon, running
from tests.appliance.recordings import cards

TURNS = 50
LIMIT_MB = 700
GROWTH_MB = 5


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_memory_is_bounded_and_flat() -> None:
    with running({"CHAT__LOCAL__MAX_TOKENS": "24"}) as daemon:
        clips = [each.pcm for each in cards()]
        sizes: list[float] = []
        async with Pin(daemon.url, "regular") as pin:
            for number in range(TURNS):
                turn = await pin.ask(clips[number % len(clips)], realtime=False, tail_silence_s=0.2)
                assert turn.answered, turn.error
                sizes.append(await asyncio.to_thread(daemon.memory_mb))
        print("resident MB (PSS) after 1, 10, 20, 30, 40, 50 turns:", [round(sizes[i]) for i in (0, 9, 19, 29, 39, 49)])
        assert max(sizes) < LIMIT_MB
        # The middle of ten turns on each side: a single turn's peak is not growth.
        before, after = sorted(sizes[9:19])[5], sorted(sizes[40:])[5]
        assert after - before < GROWTH_MB, sizes


@pytest.mark.slow
def test_a_second_start_serves_within_five_seconds() -> None:
    Daemon().stop()
    begun = time.monotonic()
    daemon = Daemon()
    elapsed = time.monotonic() - begun
    daemon.stop()
    print(f"serving after {elapsed:.1f} s")
    assert elapsed < 15, "five seconds on a quiet machine; this only notices a hang or a model loaded twice"
