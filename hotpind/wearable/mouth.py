"""What a device is told of its turns: stages, audio, and how each ends.

The `hotpind.conversation.turn.Ear` of a session's turns. It knows whether the device takes the turn for over, and what
it has played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hotpind.conversation.turn import TurnRecord
from hotpind.wearable import protocol
from hotpind.wearable.link import Link
from hotpind.wearable.voice_out import VoiceOut


class Mouth:
    """Speaks to one device."""

    def __init__(self, link: Link, features: frozenset[str], lead_s: Callable[[], float],
                 clock: Callable[[], float]) -> None:
        """Send over ``link``, at most ``lead_s()`` seconds of audio ahead of playback."""
        self.told_end = False
        """Whether the device was told that the turn is over."""
        self._link = link
        self._features = features
        self._lead_s = lead_s
        self._clock = clock
        self._out: VoiceOut | None = None
        self._past_underruns = 0

    @property
    def underruns(self) -> int:
        """Times that playback ran dry in all answers, as far as can be known here."""
        return self._past_underruns + (self._out.underruns if self._out is not None else 0)

    def begin(self) -> None:
        """Make ready for a new turn."""
        self.told_end = False
        self.rest()

    def rest(self) -> None:
        """Let go of the answer that was spoken last."""
        if self._out is not None:
            self._past_underruns += self._out.underruns
            self._out = None

    async def cut(self) -> None:
        """End the audio under way, if there is any, in the middle."""
        if self._out is not None:
            await self._out.cut()

    async def interrupted(self) -> None:
        """Tell the device that somebody wants the turn to be over."""
        await self.cut()
        self.told_end = True
        await self._link.send_text(protocol.idle())

    async def thinking(self, transcript: str, *, has_image: bool) -> None:
        """See `Ear.thinking`."""
        await self._link.send_text(protocol.llm_stage(transcript, has_image=has_image))

    async def speaking(self, response: str, rate: int) -> None:
        """See `Ear.speaking`."""
        self._out = VoiceOut(self._link.send_bytes, rate, self._lead_s(), self._clock)
        await self._link.send_text(protocol.tts_stage(response))

    async def audio(self, pcm: bytes) -> None:
        """See `Ear.audio`."""
        assert self._out is not None
        await self._out.audio(pcm)

    async def sentence(self, text: str) -> None:
        """See `Ear.sentence`."""
        if "partials" in self._features:
            await self._link.send_text(protocol.sentence(text))

    async def end_audio(self) -> None:
        """See `Ear.end_audio`."""
        if self._out is not None:
            await self._out.end()
            if "barge-in" in self._features:
                # The turn is over when its last word was heard, not when it was sent: until then it can be interrupted.
                await asyncio.sleep(self._out.ahead_s)

    async def complete(self, record: TurnRecord, response: str) -> None:
        """See `Ear.complete`."""
        self.told_end = True
        await self._link.send_text(protocol.complete(response=response, turn=record.turn, backend=record.backend,
                                                     reason=record.reason, timings=record.stages))

    async def failed(self, message: str) -> None:
        """See `Ear.failed`: the zero-length frame if audio had begun, the error, and the idle that unlocks the pin."""
        await self.cut()
        self.rest()
        await self._link.send_text(protocol.error(message))
        self.told_end = True
        await self._link.send_text(protocol.idle())

    def ahead_s(self) -> float:
        """See `Ear.ahead_s`."""
        return self._out.ahead_s if self._out is not None else 0.0

    def played_bytes(self) -> float:
        """See `Ear.played_bytes`."""
        return self._out.played_bytes() if self._out is not None else 0.0
