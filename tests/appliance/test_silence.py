"""No answer falls silent for as long as a pin waits for the next of it (10 s), whoever is at fault: model or voice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import async_read_event, async_write_event
from wyoming.info import Attribution, Describe, Info, TtsProgram
from wyoming.tts import Synthesize

from hotpind.conversation.prompts import BROKEN_OFF
from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from tests.appliance.clouded import ask, clouded, history

pytestmark = pytest.mark.slow

MUTE_S = 9.0
"""A pin takes an answer without audio for 10 s for dead, and its violations would say so as well."""
FACT = ("Turnips are round. Gardeners who have grown them for many years say that they like cool weather and much "
        "water and soil without stones and that they taste best in the late autumn days after the first frost.")
RATE, LETTERS_PER_S = 16_000, 15


def assert_broken_off(turn: PinTurn, at_least: str) -> None:
    """Fail unless the beginning of `FACT` was said, and then the closing sentence, without a long silence."""
    assert turn.playback is not None
    print(f"{turn.response!r}, longest gap {turn.playback.longest_gap_s:.1f} s")
    assert turn.playback.longest_gap_s < MUTE_S
    assert turn.response.endswith(BROKEN_OFF)
    said = turn.response.removesuffix(BROKEN_OFF).strip()
    assert FACT.startswith(said)
    assert said.startswith(at_least)


@pytest.mark.parametrize(("kind", "options"), [("drip", {"every": 4.0, "after": 12}), ("think_aloud", {"words": 12})])
async def test_a_model_that_has_no_words_left(kind: str, options: dict[str, Any]) -> None:
    async with clouded() as appliance:
        appliance.fake.answer = FACT
        appliance.fake.behave(kind, **options)
        async with Pin(appliance.daemon.url, f"user of {kind}") as pin:
            turn = await ask(pin, holes=True)
        assert turn.extra["backend"] == "groq"
        # Words that were there are spoken, though their sentence was not whole.
        assert_broken_off(turn, "Turnips are round. Gardeners who have grown them for many years")


class Voice:
    """A Wyoming server that hums, and hangs in the middle of a piece with a certain word, as long as it is told to."""

    def __init__(self) -> None:
        self.hangs_at = "\0"
        self.hung = 0
        self.uri = ""
        self._asking: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Voice]:
        """Serve on a port of loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.uri = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for each in self._asking:
                each.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while (event := await async_read_event(reader)) is not None:
                if Describe.is_type(event.type):
                    program = TtsProgram("hum", Attribution("", ""), installed=True, description=None, version=None,
                                         voices=[])
                    await async_write_event(Info(tts=[program]).event(), writer)
                elif Synthesize.is_type(event.type):
                    await self._speak(Synthesize.from_event(event).text, writer)
        self._asking.discard(task)

    async def _speak(self, text: str, writer: asyncio.StreamWriter) -> None:
        await async_write_event(AudioStart(RATE, 2, 1).event(), writer)
        hangs = self.hangs_at in text
        seconds = 0.5 if hangs else len(text) / LETTERS_PER_S
        await async_write_event(AudioChunk(RATE, 2, 1, b"\1\1" * int(RATE * seconds)).event(), writer)
        if hangs:
            self.hung += 1
            await writer.drain()
            await asyncio.sleep(3600)
        await async_write_event(AudioStop().event(), writer)


async def test_a_voice_that_hangs_in_a_later_sentence() -> None:
    async with Voice().serving() as voice, clouded({"TTS__URI": voice.uri}) as appliance, \
            Pin(appliance.daemon.url, "user of a voice") as pin:
        appliance.fake.answer = FACT
        voice.hangs_at = "Gardeners"
        turn = await ask(pin, holes=True)
        assert voice.hung == 1
        assert_broken_off(turn, "Turnips are round.")
        assert len(turn.response.split()) < 20, "words that were not spoken are not said to be"
        voice.hangs_at = "\0"
        after = await ask(pin, holes=True)
        assert after.response == FACT
        assert history(appliance.fake.questions[-1].body["messages"]) == [(turn.transcript, turn.response)]
