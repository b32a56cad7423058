"""A device that stops reading in mid-answer: its connection ends, and with it everything that was done for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from hotpind.errors import DeviceGone
from hotpind.wearable import hub, link
from hotpind.wearable.link import Link
from tests.appliance.recordings import cards
from tests.waiting import until
from tests.wearable.house import EOS, PATIENCE_S, House, end_of, house, said, speak

QUESTION = cards()[4].pcm
LONG = {"speaking": {"lead_s": 4.0}}
ANSWER_S = 20.0
"""At 48 kHz twice what all buffers between the appliance and a device that does not read hold."""
NEVER_S = 600.0


@pytest.fixture(autouse=True)
def deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the appliance's deadlines passes but those that a test sets."""
    monkeypatch.setattr(link, "SEND_DEADLINE_S", NEVER_S)
    monkeypatch.setattr(hub, "HEARTBEAT_S", NEVER_S)


async def stall(home: House) -> aiohttp.ClientWebSocketResponse:
    """Ask, and read nothing any more once the answer has begun."""
    ws = await home.device()
    await speak(ws, QUESTION)
    await ws.send_str(EOS)
    while (await said(ws)).get("stage") != "tts":
        pass
    return ws


def unsent(home: House) -> bool:
    """Tell whether the appliance has sent more than the buffers on the way take."""
    return any(each.transport is not None and each.transport.get_write_buffer_size()
               for each in home.server.connections)


async def test_the_turn_and_the_connection_end_and_nothing_unheard_is_remembered(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(link, "SEND_DEADLINE_S", 2.0)
    async with house(tmp_path, LONG, answer_s=ANSWER_S) as home:
        ws = await stall(home)
        await until(lambda: home.turns, PATIENCE_S)
        assert home.turns[0].outcome == "cancelled"
        kept = [exchange.answer for exchange in home.assistant.memory.of("pin-1").exchanges]
        assert all(answer.count(" ") < 4 for answer in kept), kept
        await until(lambda: not home.hub.sessions, PATIENCE_S)
        # The link recovers: the device finds its connection closed, and not a turn that never ends.
        await end_of(ws)
        again = await home.device()
        assert "pin-1" in home.hub.sessions
        await again.close()
    assert not caplog.records, caplog.text


async def until_stuck(home: House) -> None:
    """Wait until what is sent has not left for a while: at first all of it does, into one buffer after the other."""
    async with asyncio.timeout(PATIENCE_S):
        stuck = 0
        while stuck < 20:
            await asyncio.sleep(0.02)
            stuck = stuck + 1 if unsent(home) else 0


@pytest.mark.parametrize("full", [False, True], ids=["buffers have room", "buffers are full"])
async def test_a_connection_that_was_replaced_does_not_linger(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    monkeypatch.setattr(link, "CLOSE_DEADLINE_S", 0.2)
    async with house(tmp_path, LONG, answer_s=ANSWER_S) as home:
        old = await stall(home)
        if full:
            await until_stuck(home)
        else:
            # The lead is on its way by then; it stays so for more than a second.
            await asyncio.sleep(0.3)
        new = await home.device()
        # It is cut, and does not wait for a deadline of aiohttp's.
        await until(lambda: len(home.server.connections) == 1, 8)
        await until(lambda: home.turns, PATIENCE_S)
        assert home.turns[0].outcome == "cancelled"
        await end_of(old)
        await new.close()


async def test_a_device_that_answers_no_ping_does_not_linger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HEARTBEAT_S", 3.0)
    async with house(tmp_path, LONG, answer_s=ANSWER_S) as home:
        ws = await stall(home)
        await until(lambda: not home.server.connections, PATIENCE_S)
        assert not home.hub.sessions
        await end_of(ws)


class Transport:
    """Counts how often it was cut."""

    cuts = 0

    def abort(self) -> None:
        self.cuts += 1


class Full:
    """A WebSocket in whose drain all senders wait for the same future, as aiohttp has it."""

    def __init__(self) -> None:
        self.drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send_str(self, text: str) -> None:
        await self.drained


async def test_a_sender_whose_wait_is_cancelled_by_another_one_says_that_the_device_is_gone() -> None:
    transport = Transport()
    full = Link(cast(web.WebSocketResponse, Full()), cast(asyncio.Transport, transport))
    first, second = (asyncio.create_task(full.send_text("x")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], DeviceGone)
    assert transport.cuts == 1
    with contextlib.suppress(DeviceGone):
        await full.send_text("y")
    assert transport.cuts == 2
