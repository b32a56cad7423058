"""Text to speech through a Wyoming server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.tts import Synthesize

from hotpind.engines.child import PATIENT
from hotpind.errors import EngineBroke, EngineError
from hotpind.speech.audio import SAMPLE_BYTES, resample
from hotpind.speech.clauses import sentences
from hotpind.speech.endpoint import (
    Endpoint,
    MadeWayError,
    Ticket,
    Turnstile,
    conversation,
    interruptible,
    next_event,
)


class Synthesizer:
    """Speaks text as 16-bit mono PCM, the most urgent request first."""

    def __init__(self, endpoint: Endpoint, *, deadline_s: float, places: int = 1) -> None:
        """Use ``endpoint``; a request may take ``deadline_s`` seconds and ``places`` run at once."""
        self._endpoint = endpoint
        self.deadline_s = deadline_s
        self.queue = Turnstile(places)
        self.rate = 0
        """Sample rate in hertz of all audio given out; known after the first request."""
        self._patient: set[asyncio.Task[bytes]] = set()

    async def speak(self, text: str, due: float = math.inf) -> AsyncGenerator[bytes, None]:
        """Yield PCM at `rate`; ``due`` is when it is needed, in seconds on the monotonic clock; the earliest is first.

        A request that failed before any audio came is retried once. Raises `EngineError`.
        """
        if self.queue.in_use:
            for other in self._patient:
                other.cancel()
        async with self.queue.passage(Ticket(due)), aclosing(self._tried_twice(text)) as audio:
            async for pcm in audio:
                yield pcm

    async def whole(self, text: str, due: float = math.inf) -> bytes:
        """Return all PCM of a text at `rate`. Raises `EngineError`."""
        return b"".join([pcm async for pcm in self.speak(text, due)])

    async def read_out(self, text: str) -> bytes:
        """Return all PCM, at `rate`, of a text of any length for which nobody waits as one does for an answer.

        Each of its sentences makes way for every other request, and is begun again after it. Raises `EngineError`.
        """
        return b"".join([await self._patiently(sentence) for sentence in sentences(text) or [text]])

    async def _patiently(self, sentence: str) -> bytes:
        async def speak() -> bytes:
            return b"".join([pcm async for pcm in self._tried_twice(sentence, patient=True)])

        while True:
            async with self.queue.passage(Ticket(math.inf)):
                task = asyncio.create_task(speak(), name="read out")
                self._patient.add(task)
                try:
                    return await interruptible(task)
                except MadeWayError:
                    pass
                finally:
                    self._patient.discard(task)

    async def _tried_twice(self, text: str, *, patient: bool = False) -> AsyncGenerator[bytes, None]:
        for attempt in (1, 2):
            begun = False
            try:
                async with aclosing(self._once(text, patient=patient)) as audio:
                    async for pcm in audio:
                        begun = True
                        yield pcm
                return
            except EngineError:
                if begun or attempt == 2:
                    raise

    async def _once(self, text: str, *, patient: bool) -> AsyncGenerator[bytes, None]:
        async with conversation(self._endpoint, self.deadline_s) as client:
            await client.write_event(Synthesize(text=text, context={PATIENT: True} if patient else None).event())
            while True:
                event = await next_event(client, self._endpoint)
                if AudioStart.is_type(event.type):
                    self.rate = self.rate or AudioStart.from_event(event).rate
                elif AudioChunk.is_type(event.type):
                    yield await self._same_rate(AudioChunk.from_event(event))
                elif AudioStop.is_type(event.type):
                    return

    async def _same_rate(self, chunk: AudioChunk) -> bytes:
        if chunk.width != SAMPLE_BYTES or chunk.channels != 1:
            raise EngineBroke(f"the {self._endpoint.name} engine speaks {8 * chunk.width} bit with {chunk.channels} "
                              "channels; 16 bit mono is needed")
        self.rate = self.rate or chunk.rate
        if chunk.rate == self.rate:
            return bytes(chunk.audio)
        samples = np.frombuffer(chunk.audio, dtype="<i2")
        return (await asyncio.to_thread(resample, samples, chunk.rate, self.rate)).astype("<i2").tobytes()
