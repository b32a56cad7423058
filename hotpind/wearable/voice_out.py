"""Sends an answer's audio to a device: one WAV header, full frames, the pace of playback, the closing empty frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from hotpind.speech.audio import wav_header
from hotpind.wearable.pacing import Pacer
from hotpind.wearable.protocol import FRAME_BYTES


class VoiceOut:
    """The audio of one answer on its way out."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], rate: int, lead_s: float,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Send frames with ``send``; how much there will be is not known when the header is sent."""
        self._send = send
        self._clock = clock
        self._buffer = bytearray(wav_header(rate, None))
        self._header_bytes = len(self._buffer)
        self._pacer = Pacer(rate * 2, lead_s)
        self.sent_bytes = 0
        """PCM bytes sent."""
        self.ended = False
        """Whether the device was told, or is being told, that no more audio comes."""

    @property
    def underruns(self) -> int:
        """Times that playback ran dry because audio came late."""
        return self._pacer.underruns

    @property
    def ahead_s(self) -> float:
        """Seconds of audio sent that are still to be played."""
        return self._pacer.ahead_s(self._clock())

    def played_bytes(self) -> float:
        """Return the PCM bytes that the device has played by now."""
        return max(0.0, self.sent_bytes - self.ahead_s * self._pacer.bytes_per_s)

    async def audio(self, pcm: bytes) -> None:
        """Send full frames; returns when less than a frame is left."""
        self._buffer += pcm
        while len(self._buffer) >= FRAME_BYTES:
            frame = bytes(self._buffer[:FRAME_BYTES])
            del self._buffer[:FRAME_BYTES]
            await self._paced(frame)

    async def end(self) -> None:
        """Send the last, shorter frame and the zero-length frame that ends the audio."""
        if self._buffer:
            rest, self._buffer = bytes(self._buffer), bytearray()
            await self._paced(rest)
        await self.cut()

    async def cut(self) -> None:
        """Send the zero-length frame now, if it was not sent yet."""
        if not self.ended:
            self.ended = True
            await self._send(b"")

    async def _paced(self, frame: bytes) -> None:
        size = len(frame) - self._header_bytes
        self._header_bytes = 0
        wait = self._pacer.wait_s(self._clock(), size)
        if wait > 0:
            await asyncio.sleep(wait)
        await self._send(frame)
        self._pacer.sent(self._clock(), size)
        self.sent_bytes += size
