"""A speech server that speaks Wyoming and does what a test wants: answers, waits to be released, or hangs."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import Event, async_read_event, async_write_event
from wyoming.tts import Synthesize

RATE = 48_000


class FakeSpeech:
    """Ears and voice in one; every request is a connection of its own."""

    def __init__(self, socket: Path, *, text: str = "", answer_s: float = 0.5, held: bool = False,
                 held_voice: bool = False) -> None:
        """Understand ``text`` (empty: the number of bytes heard), and speak ``answer_s`` seconds for each piece.

        ``held``: a transcription waits for a place in `release`; ``held_voice``: a text to speak does, too.
        """
        self.uri = f"unix://{socket}"
        self.release = asyncio.Semaphore(0)
        self.heard: list[int] = []
        """Bytes of each recording that was to be transcribed, in order."""
        self.asked: list[Synthesize] = []
        """What was to be spoken, in order."""
        self.hung_up = 0
        """Requests that whoever asked did not wait for."""
        self._socket = socket
        self._text = text
        self._answer_s = answer_s
        self._held = held
        self._held_voice = held_voice
        self._requests: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeSpeech:
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = asyncio.current_task()
        assert request is not None
        self._requests.add(request)
        size = 0
        try:
            while (event := await async_read_event(reader)) is not None:
                if AudioChunk.is_type(event.type):
                    size += len(AudioChunk.from_event(event).audio)
                elif AudioStop.is_type(event.type):
                    await self._transcribe(size, reader, writer)
                elif Synthesize.is_type(event.type):
                    self.asked.append(Synthesize.from_event(event))
                    if not self._held_voice or await self._released(reader):
                        await self._speak(writer)
        except ConnectionError:
            pass
        finally:
            self._requests.discard(request)
            writer.close()

    async def _transcribe(self, size: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(size)
        if not self._held or await self._released(reader):
            await async_write_event(Transcript(text=self._text or str(size)).event(), writer)

    async def _released(self, reader: asyncio.StreamReader) -> bool:
        """Wait for a place in `release`; tell whether whoever asked waited, too."""
        released = asyncio.create_task(self.release.acquire())
        gone = asyncio.create_task(reader.read(1))
        await asyncio.wait({released, gone}, return_when=asyncio.FIRST_COMPLETED)
        for each in (released, gone):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await each
        waited = released.done() and not released.cancelled()
        self.hung_up += not waited
        return waited

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        async def send(event: Event) -> None:
            await async_write_event(event, writer)

        await send(AudioStart(rate=RATE, width=2, channels=1).event())
        second = bytes(2 * RATE)
        left = int(self._answer_s * RATE) * 2
        while left > 0:
            await send(AudioChunk(rate=RATE, width=2, channels=1, audio=second[:left]).event())
            left -= len(second)
        await send(AudioStop().event())
