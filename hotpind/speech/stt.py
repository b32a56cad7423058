"""Speech to text through a Wyoming server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from enum import IntEnum

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop

from hotpind.errors import EngineError
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES
from hotpind.speech.endpoint import (
    Endpoint,
    MadeWayError,
    Ticket,
    Turnstile,
    conversation,
    interruptible,
    next_event,
)

CHUNK_BYTES = 32_768


class Urgency(IntEnum):
    """Which transcription goes first when several wait."""

    FINAL = 0
    """Somebody let go of the button and waits."""
    AHEAD = 1
    """Somebody pauses and will probably go on talking."""
    GLANCE = 2
    """Somebody talks on; what was said so far is of use, but nobody waits for it."""


class Transcriber:
    """Turns recordings into text, the final ones before those transcribed ahead."""

    def __init__(self, endpoint: Endpoint, *, language: str, deadline_s: float, places: int = 1) -> None:
        """Use ``endpoint``; a request may take ``deadline_s`` seconds and ``places`` run at once."""
        self._endpoint = endpoint
        self._language = language
        self.deadline_s = deadline_s
        self.queue = Turnstile(places)
        self._under_way: dict[Ticket, asyncio.Task[str]] = {}

    async def transcribe(self, pcm: bytes, urgency: Urgency | Ticket = Urgency.FINAL) -> str:
        """Return the text of 16-bit 16 kHz mono PCM, empty when nothing was said.

        With a `Ticket` the urgency may change while the request waits or runs. One that runs makes way for a more
        urgent one, and is begun again later; of urgency `Urgency.GLANCE` it is given up, with empty text. A failed
        request of urgency `Urgency.FINAL` is retried once, because a crashed engine is back in a second. Raises
        `EngineError`.
        """
        ticket = urgency if isinstance(urgency, Ticket) else Ticket(urgency)
        while True:
            self._make_way(ticket)
            async with self.queue.passage(ticket):
                try:
                    return await self._interruptible(pcm, ticket)
                except MadeWayError:
                    if ticket.urgency == Urgency.GLANCE:
                        return ""
                except EngineError:
                    if urgency is not Urgency.FINAL:
                        raise
                    return await self._once(pcm)

    def _make_way(self, ticket: Ticket) -> None:
        """Interrupt the least urgent request, the last begun, when a more urgent one would have to wait for it."""
        if not self.queue.in_use:
            return
        others = [other for other, task in reversed(self._under_way.items())
                  if other.urgency > ticket.urgency and not task.cancelling()]
        if others:
            self._under_way[max(others, key=lambda other: other.urgency)].cancel()

    def hasten(self, ticket: Ticket) -> None:
        """Make a request final that waits or runs, because its speaker has come to the end."""
        ticket.urgency = Urgency.FINAL
        if ticket not in self._under_way:
            self._make_way(ticket)

    async def _interruptible(self, pcm: bytes, ticket: Ticket) -> str:
        task = asyncio.create_task(self._once(pcm), name="transcribe")
        with self._counted(ticket, task):
            return await interruptible(task)

    @contextlib.contextmanager
    def _counted(self, ticket: Ticket, task: asyncio.Task[str]) -> Iterator[None]:
        self._under_way[ticket] = task
        try:
            yield
        finally:
            del self._under_way[ticket]

    async def _once(self, pcm: bytes) -> str:
        async with conversation(self._endpoint, self.deadline_s) as client:
            await client.write_event(Transcribe(language=self._language).event())
            await client.write_event(AudioStart(rate=PIN_RATE, width=SAMPLE_BYTES, channels=1).event())
            for start in range(0, len(pcm), CHUNK_BYTES):
                await client.write_event(AudioChunk(rate=PIN_RATE, width=SAMPLE_BYTES, channels=1,
                                                    audio=pcm[start:start + CHUNK_BYTES]).event())
            await client.write_event(AudioStop().event())
            while True:
                event = await next_event(client, self._endpoint)
                if Transcript.is_type(event.type):
                    return Transcript.from_event(event).text.strip()
