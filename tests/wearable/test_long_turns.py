"""A device that may interrupt and listens all the while: however long the answer is, it is not cut, and can be."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp

from hotpind.wearable.session import DEVICE_GIVES_UP_S
from tests.appliance.recordings import librivox
from tests.waiting import until
from tests.wearable.house import EOS, house, said, speak

SETTINGS = {"speaking": {"lead_s": 4.0}, "limits": {"recording_s": 2.0}}


async def test_silence_sent_for_more_than_a_minute_ends_no_answer_and_speech_still_does(tmp_path: Path) -> None:
    now = [100.0]
    async with house(tmp_path, SETTINGS, clock=lambda: now[0], answer_s=3.0) as home:
        ws = await home.device("modern", "barge-in")
        await speak(ws, librivox()[1].pcm[:40_000])
        await ws.send_str(EOS)
        assert (await said(ws))["stage"] == "transcription"
        assert (await said(ws))["stage"] == "llm"
        session = home.hub.sessions["modern"]
        await until(lambda: session.in_turn and session._mouth.ahead_s() > 0)
        # The clock of the turn is ahead of that of its sound, as with a slow model and a long answer.
        assert session.turn_now is not None
        session.turn_now.began -= DEVICE_GIVES_UP_S + 5
        for _ in range(3):
            await speak(ws, bytes(2 * 32_000))
        await ws.send_str('{"session_id":"modern"}')
        while (message := json.loads(await text_of(ws)))["status"] != "connected":
            assert message["status"] not in {"idle", "complete"}, "silence has ended the answer"
        assert session.in_turn
        await speak(ws, librivox()[1].pcm)
        while (message := json.loads(await text_of(ws)))["status"] != "idle":
            assert message["status"] != "complete", "speech has not interrupted the answer"
        await until(lambda: home.turns)
        assert home.turns[0].outcome == "cancelled"
        await ws.close()


async def text_of(ws: aiohttp.ClientWebSocketResponse) -> str:
    """Return the next text, past the audio."""
    while True:
        message = await ws.receive(timeout=20)
        if message.type is aiohttp.WSMsgType.TEXT:
            return str(message.data)
        assert message.type is aiohttp.WSMsgType.BINARY, message
