"""What a device is told when a turn fails, and which of its audio belongs to a recording."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from hotpind.chat.messages import AnswerStream, ChatRequest
from hotpind.config import Config
from hotpind.conversation.assistant import Assistant
from hotpind.conversation.memory import Memory
from hotpind.conversation.prompts import BUSY, MISTAKE, NOT_UNDERSTOOD, TOO_LATE
from hotpind.errors import DeviceGone, EngineBroke
from hotpind.speech.listener import Listener
from hotpind.wearable.protocol import Hello
from hotpind.wearable.session import IN_FLIGHT_S, Session
from tests.appliance.recordings import cards
from tests.waiting import until
from tests.wearable.house import EOS, PATIENCE_S, house, said, speak


class Kept:
    """A link that keeps what a session sends."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def send_text(self, text: str) -> None:
        self.sent.append(json.loads(text))


class Lost:
    """A link to a device that is gone."""

    async def send_text(self, text: str) -> None:
        raise DeviceGone("gone")


class Broken:
    """A brain with a mistake in it."""

    async def ask(self, request: ChatRequest) -> AnswerStream:
        raise TypeError("a coroutine was expected")


class Heard:
    """A listener that has understood a question."""

    seconds, ready_ahead = 1.0, False

    async def finish(self) -> str:
        return "What is that?"

    async def cancel(self) -> None:
        pass


async def test_a_mistake_of_ours_ends_the_turn_for_the_device(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    kept, unused = Kept(), cast(Any, None)
    with ThreadPoolExecutor(1) as workers:
        assistant = Assistant(Config(), Broken(), unused, cast(Any, Voice()), workers, Memory(10),
                              new_turn_id=lambda: "t1")
        session = Session(cast(Any, kept), Hello("pin-1", frozenset()), assistant, dict)
        record = assistant.record("pin-1")
        async with asyncio.timeout(PATIENCE_S):
            await session._answer(cast(Listener, Heard()), record, too_long=False)
    assert [message["status"] for message in kept.sent][-2:] == ["error", "idle"]
    assert MISTAKE in kept.sent[-2].values()
    assert record.outcome == "failed"
    assert assistant.turns_running == 0
    assert "unforeseen" in caplog.text


class Deaf(Heard):
    """A listener whose engine is broken."""

    async def finish(self) -> str:
        raise EngineBroke("the engine broke off")


async def test_a_device_that_is_gone_when_its_turn_fails_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as workers:
        assistant = Assistant(Config(), Broken(), cast(Any, None), cast(Any, Voice()), workers, Memory(10),
                              new_turn_id=lambda: "t1")
        session = Session(cast(Any, Lost()), Hello("pin-1", frozenset()), assistant, dict)
        record = assistant.record("pin-1")
        await session._answer(cast(Listener, Deaf()), record, too_long=False)
    assert record.outcome == "cancelled"
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_ears_that_never_answer_end_the_turn_at_its_deadline(tmp_path: Path) -> None:
    async with house(tmp_path, {"speaking": {"turn_deadline_s": 2.0}}, held=True) as home:
        ws = await home.device()
        await speak(ws, cards()[4].pcm)
        await ws.send_str(EOS)
        assert (await said(ws))["stage"] == "transcription"
        assert await said(ws) == {"status": "error", "message": TOO_LATE}
        assert await said(ws) == {"status": "idle"}
        await until(lambda: home.turns)
        assert home.turns[0].outcome == "failed"
        # Nothing goes on for it.
        await until(lambda: home.speech.heard and home.speech.hung_up == len(home.speech.heard))
        assert not home.assistant.transcriber.queue.in_use
        await ws.close()


async def test_a_recording_may_pass_the_limit_by_a_frame_but_not_by_much(tmp_path: Path) -> None:
    async with house(tmp_path, {"limits": {"recording_s": 2.0}}) as home:
        ws = await home.device()
        clip = cards()[4].pcm
        for frames, status in ((16, "complete"), (25, "error")):
            await speak(ws, (clip + bytes(4096 * 25))[:4096 * frames])
            await ws.send_str(EOS)
            while (message := await until_text(ws))["status"] not in {"complete", "error"}:
                pass
            assert message["status"] == status, message
        assert "longer than 2 seconds" in message["message"]
        await ws.close()


async def test_what_was_under_way_when_the_appliance_heard_nothing_begins_no_recording(tmp_path: Path) -> None:
    now = [100.0]
    async with house(tmp_path, {"endpointing": {"max_wait_s": 1.0}}, clock=lambda: now[0]) as home:
        ws = await home.device("modern", "endpointing")
        frame = bytes(4096)
        for ends_with_eos in (True, False):
            await speak(ws, frame * 9)
            assert (await said(ws))["status"] == "endpoint"
            assert (await said(ws))["stage"] == "transcription"
            assert "Could not understand audio" in (await said(ws))["message"]
            assert await said(ws) == {"status": "idle"}
            await ws.send_bytes(frame)
            if ends_with_eos:
                await ws.send_str(EOS)
            else:
                # The reader has to have seen the frame before the time is over.
                await ws.send_str('{"session_id":"modern"}')
                assert (await said(ws))["status"] == "connected"
                now[0] += IN_FLIGHT_S + 0.01
            # A new recording, counted from its own first frame.
            await ws.send_bytes(frame)
            await ws.send_bytes(frame)
            assert json.loads(await ws.receive_str(timeout=PATIENCE_S)) == {
                "status": "receiving", "chunks_received": 2, "bytes_received": 8192}
            await ws.send_str(EOS)
            assert (await said(ws))["stage"] == "transcription"
            assert (await said(ws))["status"] == "error"
            assert await said(ws) == {"status": "idle"}
        await ws.close()
        await until(lambda: not home.hub.sessions)
        assert len(home.turns) == 4


async def until_text(ws: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """Return the next text message, past any audio."""
    while True:
        message = await ws.receive(timeout=PATIENCE_S)
        if message.type is aiohttp.WSMsgType.TEXT:
            read: dict[str, Any] = json.loads(message.data)
            return read


class Voice:
    """A voice that is not asked for anything."""

    rate = 0


async def test_beyond_the_bound_a_device_is_told_politely_and_costs_the_others_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, {"server": {"busy_turns": 1}}, held=True) as home:
        first, second, third = [await home.device(name) for name in ("first", "second", "third")]
        for ws in (first, second, third):
            await speak(ws, cards()[4].pcm)
            await ws.send_str(EOS)
            assert (await said(ws))["stage"] == "transcription"
        for ws in (second, third):
            assert (await said(ws))["stage"] == "llm"
            assert (await said(ws))["response"] == BUSY
            assert (await played(ws))["response"] == BUSY
        home.speech.release.release()
        assert (await said(first))["transcript"] == "What is it?"
        assert (await said(first))["stage"] == "tts"
        assert "eight nine ten" in (await played(first))["response"]
        await until(lambda: len(home.turns) == 3)
        assert sorted(turn.outcome for turn in home.turns) == ["answered", "busy", "busy"]
        # Only the first one's question was transcribed to its end.
        await until(lambda: home.speech.hung_up == len(home.speech.heard) - 1)


async def test_an_answer_can_be_interrupted_until_its_last_word_was_heard(tmp_path: Path) -> None:
    now = [100.0]
    async with house(tmp_path, {"speaking": {"lead_s": 4.0}}, clock=lambda: now[0], answer_s=1.9) as home:
        ws = await home.device("pin-1", "barge-in")
        await speak(ws, cards()[4].pcm)
        await ws.send_str(EOS)
        # All of it is there at once, and nearly four seconds are left to play.
        while (await ws.receive(timeout=PATIENCE_S)).data != b"":
            pass
        now[0] += 0.6
        await ws.send_str('{"signal":"CANCEL"}')
        assert await said(ws) == {"status": "idle"}
        await until(lambda: home.turns)
        assert home.turns[0].outcome == "cancelled"
        (kept,) = home.assistant.memory.of("pin-1").exchanges
        assert kept.answer == "One two", "0.6 s of the 1.9 s that seven words take"
        # Nothing of it comes later, and no second end of the audio.
        await ws.send_str('{"session_id":"pin-1"}')
        assert (await said(ws))["status"] == "connected"
        await ws.close()


async def test_what_a_device_hears_while_it_speaks_is_no_part_of_the_next_question(tmp_path: Path) -> None:
    settings = {"endpointing": {"max_wait_s": 1.0}, "limits": {"recording_s": 4.0}, "speaking": {"lead_s": 4.0}}
    now = [100.0]
    async with house(tmp_path, settings, clock=lambda: now[0], answer_s=1.9) as home:
        ws = await home.device("modern", "endpointing", "barge-in")
        await speak(ws, cards()[4].pcm)
        await ws.send_str(EOS)
        assert (await said(ws))["stage"] == "transcription"
        assert (await said(ws))["stage"] == "llm"
        now[0] += IN_FLIGHT_S + 0.01
        # Six seconds of silence, more than a recording may have and than is waited for a word.
        await speak(ws, bytes(6 * 32_000))
        await ws.send_str('{"session_id":"modern"}')
        while (message := await until_text(ws))["status"] != "connected":
            assert message["status"] != "complete", "the answer was over before the silence"
        assert (await played(ws))["status"] == "complete"
        await until(lambda: home.turns)
        session = home.hub.sessions["modern"]
        await speak(ws, bytes(20_000))
        await until(lambda: session._listener is not None and session._listener.tracker.position >= 9_000)
        await ws.send_str('{"session_id":"modern"}')
        assert (await said(ws))["status"] == "connected", "0.6 s of silence end nothing"
        await ws.send_str(EOS)
        assert (await said(ws))["stage"] == "transcription"
        assert "Could not understand audio" in (await said(ws))["message"], "it is not too long either"
        await ws.close()


async def test_a_device_that_wants_to_hear_it_is_told_aloud_that_nothing_was_understood(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.assistant.prepare_canned()
        for features, status in (((), "error"), (("apologies",), "complete")):
            ws = await home.device("pin-1", *features)
            await speak(ws, bytes(32_000))
            await ws.send_str(EOS)
            assert (await said(ws))["stage"] == "transcription"
            if status == "error":
                assert (await said(ws))["message"].startswith("Could not understand audio")
                assert await said(ws) == {"status": "idle"}
            else:
                assert (await said(ws))["transcript"] == ""
                assert (await played(ws))["response"] == NOT_UNDERSTOOD
            await ws.close()
        await until(lambda: len(home.turns) == 2)
        assert {turn.outcome for turn in home.turns} == {"not-understood"}
        assert not home.assistant.memory.of("pin-1").exchanges


async def played(ws: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """Read on to the end of an answer."""
    while True:
        message = await ws.receive(timeout=PATIENCE_S)
        if message.type is aiohttp.WSMsgType.TEXT and (status := json.loads(message.data))["status"] == "complete":
            return dict(status)
        assert message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}, message
