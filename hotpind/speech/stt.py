"""Speech to text through a Wyoming server."""

from __future__ import annotations

from enum import IntEnum

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop

from hotpind.errors import EngineError
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES
from hotpind.speech.endpoint import Endpoint, Ticket, Turnstile, conversation, next_event

CHUNK_BYTES = 32_768


class Urgency(IntEnum):
    """Which transcription goes first when several wait."""

    FINAL = 0
    """Somebody let go of the button and waits."""
    AHEAD = 1
    """Somebody pauses and will probably go on talking."""


class Transcriber:
    """Turns recordings into text, the final ones before those transcribed ahead."""

    def __init__(self, endpoint: Endpoint, *, language: str, deadline_s: float, places: int = 1) -> None:
        """Use ``endpoint``; a request may take ``deadline_s`` seconds and ``places`` run at once."""
        self._endpoint = endpoint
        self._language = language
        self.deadline_s = deadline_s
        self.queue = Turnstile(places)

    async def transcribe(self, pcm: bytes, urgency: Urgency | Ticket = Urgency.FINAL) -> str:
        """Return the text of 16-bit 16 kHz mono PCM, empty when nothing was said.

        With a `Ticket` the urgency may change while the request waits. A failed request of urgency `Urgency.FINAL` is
        retried once, because a crashed engine is back in a second. Raises `EngineError`.
        """
        ticket = urgency if isinstance(urgency, Ticket) else Ticket(urgency)
        async with self.queue.passage(ticket):
            try:
                return await self._once(pcm)
            except EngineError:
                if urgency is not Urgency.FINAL:
                    raise
                return await self._once(pcm)

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
