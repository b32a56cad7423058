"""Protocol version 2: the appliance ends the utterance, shows what it understands, and lets itself be interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hotpind.pin.client import Pin
from hotpind.wearable.session import IN_FLIGHT_S
from tests.appliance.harness import Daemon
from tests.appliance.pins import breaches
from tests.appliance.recordings import cards, letter_error_rate, librivox, word_error_rate
from tests.fakes.groq import KEY, FakeGroq

ROOM = bytes(2 * 16_000 * 3)
LONG = ("The first house is red and has a small garden. The second one is made of old grey stone. In the third lives a "
        "baker with two dogs. Nobody has seen the fourth since last winter. A tall tree stands before the fifth. From "
        "the sixth you can hear music every evening. Seven has a broken window. Eight is for sale.")
"""Nothing twice: a model that repeats itself is cut short."""
FEATURES: dict[str, Any] = {"features": ["endpointing", "partials", "barge-in"]}


@pytest.fixture
async def cloud() -> AsyncIterator[tuple[FakeGroq, Daemon]]:
    async with FakeGroq() as fake:
        daemon = await asyncio.to_thread(Daemon, {"GROQ_API_KEY": KEY, "CHAT__GROQ__BASE_URL": fake.url})
        try:
            yield fake, daemon
        finally:
            assert await asyncio.to_thread(daemon.stop) == 0
        assert "Traceback" not in daemon.log, daemon.log


@pytest.mark.slow
async def test_the_appliance_hears_the_end_of_speech_and_shows_what_it_understands(
        cloud: tuple[FakeGroq, Daemon]) -> None:
    _, daemon = cloud
    seen: list[tuple[float, dict[str, Any]]] = []
    async with Pin(daemon.url, "modern", hello_extra=FEATURES,
                   on_message=lambda at, message: seen.append((at, message))) as pin:
        for recording in (librivox()[3], cards()[4]):
            seen.clear()
            begun = time.monotonic()
            turn = await pin.ask(recording.pcm + ROOM, realtime=True)
            assert turn.answered, (turn.error, seen)
            assert word_error_rate([(recording.text, turn.transcript)]) <= 0.35
            statuses = [message["status"] for _, message in seen]
            assert "endpoint" in statuses
            assert "partial" in statuses
            assert "sentence" in statuses
            ended = next(at for at, message in seen if message["status"] == "endpoint") - begun
            assert recording.seconds < ended < recording.seconds + 2.0, (recording.seconds, ended)


async def test_cancel_stops_the_answer_within_150_ms_and_history_keeps_what_was_heard(
        cloud: tuple[FakeGroq, Daemon]) -> None:
    fake, daemon = cloud
    fake.answer = LONG
    async with Pin(daemon.url, "modern", hello_extra={"features": ["barge-in"]}) as pin:
        asking = asyncio.create_task(pin.ask(cards()[4].pcm, realtime=False))
        while pin.model.turn is None or pin.model.turn.first_audio_at is None:
            await asyncio.sleep(0.02)
        await asyncio.sleep(3.0)
        assert not asking.done()
        await pin.cancel()
        turn = await asking
        assert not breaches(turn.violations)
        fake.answer = "It has a blue door."
        assert (await pin.ask(cards()[0].pcm, realtime=False)).answered
    kept = [message["content"] for message in fake.questions[-1].body["messages"] if message["role"] == "assistant"]
    assert len(kept) == 1
    assert LONG.startswith(kept[0][:40])
    assert 3 <= len(kept[0].split()) < len(LONG.split()) / 2, kept


async def test_new_speech_interrupts_the_answer(cloud: tuple[FakeGroq, Daemon]) -> None:
    fake, daemon = cloud
    fake.answer = LONG
    async with Pin(daemon.url, "modern", hello_extra={"features": ["barge-in"]}) as pin:
        asking = asyncio.create_task(pin.ask(cards()[4].pcm, realtime=False))
        while pin.model.turn is None or pin.model.turn.first_audio_at is None:
            await asyncio.sleep(0.02)
        # What comes at once is taken for the end of the question.
        await asyncio.sleep(2 * IN_FLIGHT_S)
        assert pin._ws is not None
        seen = len(fake.questions)
        spoken = librivox()[1]
        for start in range(0, len(spoken.pcm), 4096):
            await pin._ws.send_bytes(spoken.pcm[start:start + 4096])
        turn = await asyncio.wait_for(asking, 10)
        assert not turn.answered, "it was interrupted"
        await pin._ws.send_str('{"signal":"EOS"}')
        async with asyncio.timeout(20):
            while len(fake.questions) == seen:
                await asyncio.sleep(0.05)
    asked = fake.questions[-1].body["messages"][-1]["content"]
    assert letter_error_rate(spoken.text, asked) <= 0.35, asked
