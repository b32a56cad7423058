"""Long answers, interrupted answers and the record they leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from hotpind.pin.client import Pin
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import assert_conforming
from tests.appliance.recordings import cards, letter_error_rate, librivox, word_error_rate
from tests.fakes.groq import KEY, FakeGroq

CARD = cards()[4].pcm
LONG = ("The library opens at nine in the morning. On weekdays it stays open until eight in the evening. "
        "On Saturdays it closes at five. On Sundays it is closed all day. Children may borrow ten books at a time. "
        "Adults may borrow as many as they can carry. A lost book has to be paid for. The reading room is on the "
        "second floor. Please be quiet there. The next reading is on Friday evening.")
SETTINGS = {"GROQ_API_KEY": KEY}


@pytest.fixture
async def cloud() -> AsyncIterator[tuple[FakeGroq, Daemon]]:
    async with FakeGroq() as fake:
        daemon = await asyncio.to_thread(Daemon, {**SETTINGS, "CHAT__GROQ__BASE_URL": fake.url})
        try:
            yield fake, daemon
        finally:
            assert await asyncio.to_thread(daemon.stop) == 0
        assert "Traceback" not in daemon.log, daemon.log


@pytest.mark.slow
async def test_a_twenty_second_answer_reaches_the_pin_whole(cloud: tuple[FakeGroq, Daemon]) -> None:
    fake, daemon = cloud
    fake.answer = LONG
    async with Pin(daemon.url, "listener") as pin:
        turn = await pin.ask(CARD, realtime=False, drain="model")
    assert turn.answered, turn.error
    assert_conforming(turn)
    assert turn.playback is not None
    assert turn.playback.received_s > 20
    assert turn.playback.most_ahead_s <= 4
    assert turn.playback.cut_bytes == 0
    assert turn.response == LONG
    assert word_error_rate([(LONG, await asyncio.to_thread(daemon.transcribe, turn.wav))]) <= 0.25


async def test_the_log_holds_a_line_per_turn_and_nothing_that_was_said(cloud: tuple[FakeGroq, Daemon]) -> None:
    fake, daemon = cloud
    fake.answer = "Pineapples grow on the ground."
    async with Pin(daemon.url, "private") as pin:
        turn = await pin.ask(CARD, realtime=False)
    assert turn.answered
    async with asyncio.timeout(20):
        while not [line for line in daemon.lines if f"turn {turn.extra['turn']}" in line]:
            await asyncio.sleep(0.05)
    lines = [line for line in daemon.lines if f"turn {turn.extra['turn']}" in line]
    assert len(lines) == 1, daemon.log
    for stage in ("transcript=", "first_token=", "first_audio=", "complete="):
        assert stage in lines[0]
    assert "Pineapple" not in daemon.log
    assert turn.transcript not in daemon.log
    assert KEY not in daemon.log + json.dumps(daemon.status())


async def test_a_turn_ends_when_its_device_leaves(cloud: tuple[FakeGroq, Daemon]) -> None:
    fake, daemon = cloud
    fake.answer = LONG
    fake.token_s = 0.05
    async with Pin(daemon.url, "leaver") as pin:
        asking = asyncio.create_task(pin.ask(CARD, realtime=False))
        while not fake.questions:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
    await asking
    async with asyncio.timeout(20):
        while not fake.questions[-1].dropped:
            await asyncio.sleep(0.05)
        while daemon.status()["last_turn"] is None:
            await asyncio.sleep(0.05)
    assert daemon.status()["last_turn"]["outcome"] == "cancelled"


async def test_reset_stops_the_answer_and_unlocks_the_device(cloud: tuple[FakeGroq, Daemon]) -> None:
    fake, daemon = cloud
    fake.answer = LONG
    async with aiohttp.ClientSession() as session, session.ws_connect(daemon.url + "/ws") as ws:
        await ws.send_str('{"session_id":"resetter"}')
        for start in range(0, len(CARD), 4096):
            await ws.send_bytes(CARD[start:start + 4096])
        await ws.send_str('{"signal":"EOS"}')
        texts, audio = [], 0
        async with asyncio.timeout(60):
            async for message in ws:
                if message.type is aiohttp.WSMsgType.BINARY:
                    audio += 1
                    if audio == 3:
                        await ws.send_str('{"signal":"RESET"}')
                    ended = message.data == b""
                else:
                    texts.append((json.loads(message.data)["status"], ended if audio else None))
                    if texts[-1][0] == "idle":
                        break
    assert [status for status, _ in texts[-2:]] == ["reset_complete", "idle"]
    assert texts[-2][1] is True, "the zero-length frame comes before reset_complete"
    assert "complete" not in [status for status, _ in texts]


async def test_an_abandoned_recording_is_not_put_before_the_next_one() -> None:
    with running() as daemon:
        async with Pin(daemon.url, "rebooted") as pin:
            talking = asyncio.create_task(pin.ask(cards()[4].pcm, realtime=True))
            await asyncio.sleep(1.5)
            talking.cancel()
        question = librivox()[1]
        async with Pin(daemon.url, "rebooted") as pin:
            turn = await pin.ask(question.pcm, realtime=False, tail_silence_s=0.3)
        assert turn.answered, turn.error
        assert "spades" not in turn.transcript.lower()
        assert letter_error_rate(question.text, turn.transcript) <= 0.4, turn.transcript
