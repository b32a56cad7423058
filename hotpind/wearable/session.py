"""One device's WebSocket connection, from hello to goodbye.

The reader answers every message within milliseconds and never waits for an engine: a pin that misses an
acknowledgement for a second throws the rest of the sentence away. Turns run in a task of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import WSCloseCode, WSMsgType

from hotpind.conversation import prompts
from hotpind.conversation.assistant import Assistant
from hotpind.conversation.turn import TurnRecord
from hotpind.errors import DeviceGone, EngineError
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES
from hotpind.speech.listener import Listener
from hotpind.system.logs import fields
from hotpind.wearable import protocol
from hotpind.wearable.endpointing import Endpointer
from hotpind.wearable.link import Link
from hotpind.wearable.mouth import Mouth
from hotpind.wearable.protocol import Hello, Recording, Signal

_LOG = logging.getLogger(__name__)

STOP_DEADLINE_S = 0.8
"""For a turn to end when it is stopped: a pin that misses an acknowledgement for a second aborts its recording."""
LEAVE_DEADLINE_S = 3.0
"""For the last words to a device when the appliance stops; the service's time to stop covers it."""
ABANDONED_S = 5.0
"""Frames come every 128 ms while a button is held; after such a gap the next frame begins a new recording."""
IN_FLIGHT_S = 0.4
"""Audio captured before a device learned of the end of its recording arrives within this time."""
RECORDING_SLACK_S = 1.0
"""Let through beyond `limits.recording_s`: a pin that stops at the limit still sends the frame that it had begun."""
DEVICE_GIVES_UP_S = 60.0
"""A pin gives a turn up after a minute; audio after that is a new question."""


class Session:
    """A connected device."""

    def __init__(self, link: Link, hello: Hello, assistant: Assistant,
                 condition: Callable[[], dict[str, Any]]) -> None:
        """Serve the device that said ``hello``; ``condition`` tells version 2 devices how the appliance is."""
        self.device = hello.session_id
        self.features = hello.features
        self.turn_now: TurnRecord | None = None
        self._link = link
        self._assistant = assistant
        self._condition = condition
        self._recording = Recording()
        self._listener: Listener | None = None
        self._endpointer: Endpointer | None = None
        self._listened_bytes = 0
        self._last_frame = 0.0
        self._ended_here: float | None = None
        """When the appliance ended an utterance by itself, as long as the device may not know."""
        self._turn: asyncio.Task[None] | None = None
        self._turn_cancelled = False
        self._mouth = Mouth(link, hello.features, lambda: assistant.config.speaking.lead_s, assistant.clock)
        self._changing = asyncio.Lock()
        """Held while a turn begins or is stopped, which the reader and `_show_progress` both do."""
        self._ending: list[asyncio.Task[None]] = []
        self._progress = asyncio.Event()

    async def run(self) -> None:
        """Answer messages until the connection ends; leaves nothing running."""
        helpers = asyncio.create_task(self._show_progress(), name="progress") if self.features else None
        try:
            await self._link.send_text(protocol.connected(self.device, **self._condition()))
            async for message in self._link:
                if message.type is WSMsgType.BINARY:
                    await self._on_audio(message.data)
                elif message.type is WSMsgType.TEXT:
                    await self._on_text(message.data)
        except DeviceGone as error:
            _LOG.debug("%s: %s", self.device, error)
        finally:
            if helpers is not None:
                helpers.cancel()
                self._tidy_up(helpers)
            await self._drop_recording()
            await self._stop_turn()
            await self._reap()

    async def close(self, code: int, reason: str) -> None:
        """End the connection from outside (replaced, revoked, shutting down)."""
        await self._link.close(code, reason)

    async def leave(self) -> None:
        """End the connection because the appliance stops; an answer under way is cut so that the pin can go on."""
        with contextlib.suppress(DeviceGone, TimeoutError):
            async with asyncio.timeout(LEAVE_DEADLINE_S):
                async with self._changing:
                    if self.in_turn:
                        await self._silence()
                        await self._mouth.failed(prompts.STOPPING)
        await self.close(WSCloseCode.GOING_AWAY, "the appliance stops")

    @property
    def in_turn(self) -> bool:
        """Tell whether a turn is under way, as the device sees it: until it was told `complete` or `idle`."""
        return self._turn is not None and not self._turn.done() and not self._mouth.told_end

    @property
    def underruns(self) -> int:
        """Times that playback ran dry in the answers of this connection, as far as can be known here."""
        return self._mouth.underruns

    async def _on_text(self, text: str) -> None:
        if len(text.encode()) > self._assistant.config.server.max_message_bytes:
            await self._refuse("That message was too long and is ignored.")
            return
        message = protocol.parse(text)
        if message is Signal.EOS:
            if self._in_flight(self._assistant.clock()):
                # The last of that recording: whatever follows is new.
                self._ended_here = None
            else:
                async with self._changing:
                    await self._on_end_of_speech()
        elif message is Signal.RESET:
            await self._on_reset()
        elif message is Signal.CANCEL:
            if await self._barge_in():
                self._listen_afresh()
        elif isinstance(message, Hello):
            if message.session_id == self.device:
                await self._link.send_text(protocol.connected(self.device, **self._condition()))
            else:
                await self.close(WSCloseCode.POLICY_VIOLATION, "one connection has one session_id")
        else:
            _LOG.debug("%s sent a message that is ignored: %s", self.device, message.why)

    async def _on_audio(self, pcm: bytes) -> None:
        now = self._assistant.clock()
        most = self._assistant.config.server.max_message_bytes
        if len(pcm) > most:
            await self._refuse(f"An audio message may have at most {most:,} bytes; this one was not listened to.")
            return
        if self._in_flight(now) or (self.in_turn and not await self._listens_in_turn(now)):
            return
        if self._listener is not None and now - self._last_frame > ABANDONED_S:
            _LOG.debug("%s: a recording was abandoned", self.device)
            await self._drop_recording()
        self._last_frame = now
        acknowledgement = self._recording.add(len(pcm))
        if acknowledgement is not None:
            await self._link.send_text(acknowledgement)
        if self._listener is None:
            self._begin_listening()
        assert self._listener is not None
        self._listened_bytes += len(pcm)
        if not self._too_long:
            self._listener.feed(pcm)

    def _in_flight(self, now: float) -> bool:
        """Tell whether what comes was sent before the device could know that the appliance ended its utterance.

        That turn may be over by now, if nothing was understood: a new recording must not begin with such audio.
        """
        return self._ended_here is not None and now - self._ended_here <= IN_FLIGHT_S

    async def _listens_in_turn(self, now: float) -> bool:
        """Tell whether audio that comes during a turn is listened to: for a barge-in, or because the pin gave up."""
        assert self.turn_now is not None
        age = now - self.turn_now.began
        if "barge-in" in self.features:
            if self._too_long and self._listener is not None and not self._listener.tracker.speaking:
                # However long the answer and the silence around it: it is listened to until its end.
                self._listen_afresh()
            # A pin may still flush what it had captured when it sent EOS, or when it was told that speech had ended.
            return age > IN_FLIGHT_S
        if age > DEVICE_GIVES_UP_S:
            await self._barge_in()
            return True
        return False

    async def _refuse(self, sentence: str) -> None:
        if self.in_turn:
            # Its `idle` would tell the device that the answer is over.
            _LOG.debug("%s: %s", self.device, sentence)
            return
        await self._link.send_text(protocol.error(sentence))
        await self._link.send_text(protocol.idle())

    @property
    def _too_long(self) -> bool:
        most_s = self._assistant.config.limits.recording_s + RECORDING_SLACK_S
        return self._listened_bytes > most_s * PIN_RATE * SAMPLE_BYTES

    def _begin_listening(self) -> None:
        self._assistant.expect_question(self.device)
        self._listened_bytes = 0
        self._listener = self._assistant.listen(self._on_progress, partials="partials" in self.features)
        if "endpointing" in self.features:
            settings = self._assistant.config.endpointing
            self._endpointer = Endpointer(settings.silence_s, settings.max_wait_s)

    def _on_progress(self, listener: Listener, text: str) -> None:
        if listener is self._listener:
            if text:
                self._assistant.expect_question(self.device, text)
            self._progress.set()

    async def _on_end_of_speech(self) -> None:
        if self.in_turn:
            if self._listener is None or not self._listener.tracker.heard_speech:
                _LOG.debug("%s: EOS during a turn is ignored", self.device)
                await self._drop_recording()
                return
            # Somebody spoke over the answer, too shortly to have been noticed while doing so.
            await self._interrupt()
        await self._link.send_text(protocol.transcription_stage())
        listener, self._listener = self._listener, None
        too_long, self._recording = self._too_long, Recording()
        self._endpointer = None
        record = self.turn_now = self._assistant.record(self.device)
        if self._turn is not None:
            self._tidy_up(self._turn)
        self._turn_cancelled = False
        self._mouth.begin()
        self._turn = asyncio.create_task(self._answer(listener, record, too_long=too_long),
                                         name=f"turn {record.turn}")

    async def _answer(self, listener: Listener | None, record: TurnRecord, *, too_long: bool) -> None:
        with self._assistant.running(record):
            try:
                await self._respond(listener, record, too_long=too_long)
            except asyncio.CancelledError:
                record.outcome = "cancelled"
                raise
            except DeviceGone as error:
                _LOG.debug("%s: %s", self.device, error)
                record.outcome = "cancelled"
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave the device locked for a minute
                _LOG.error("a turn failed in an unforeseen way", exc_info=error,
                           extra=fields(turn=record.turn, device=record.device))
                record.outcome = "failed"
                with contextlib.suppress(DeviceGone):
                    await self._mouth.failed(prompts.MISTAKE)
            finally:
                if self.turn_now is record:
                    self._mouth.rest()
                    if not self._turn_cancelled:
                        self._listen_afresh()
                if listener is not None:
                    await asyncio.shield(listener.cancel())

    async def _respond(self, listener: Listener | None, record: TurnRecord, *, too_long: bool) -> None:
        """End the turn for the device in one way or another. Raises `DeviceGone`."""
        assistant = self._assistant
        refusal = self._refusal(too_long=too_long)
        if refusal or listener is None:
            record.outcome = "failed" if refusal else "not-understood"
            await self._mouth.failed(refusal or protocol.NOT_UNDERSTOOD)
        elif assistant.overloaded:
            with assistant.refusing():
                # Whoever is refused must not keep the engines from the others.
                await listener.cancel()
                await self._mouth.thinking("", has_image=False)
                await assistant.turn(self._mouth, record).say(prompts.BUSY, "busy")
        else:
            await self._hear_and_answer(listener, record)

    def _refusal(self, *, too_long: bool) -> str:
        if self._assistant.stopping:
            return prompts.STOPPING
        if too_long:
            return prompts.too_long(self._assistant.config.limits.recording_s)
        return ""

    async def _hear_and_answer(self, listener: Listener, record: TurnRecord) -> None:
        assistant = self._assistant
        record.audio_s = round(listener.seconds, 2)
        question, failure = await self._hear(listener, record)
        record.mark("transcript", assistant.clock())
        record.ahead = listener.ready_ahead
        if not question and not failure and "apologies" in self.features:
            await self._mouth.thinking("", has_image=False)
            await assistant.turn(self._mouth, record).say(prompts.NOT_UNDERSTOOD, "not-understood")
            return
        if not question:
            record.outcome = "failed" if failure else "not-understood"
            await self._mouth.failed(failure or protocol.NOT_UNDERSTOOD)
            return
        assistant.log_words(record, "asked", question)
        await assistant.turn(self._mouth, record).answer(question)

    async def _hear(self, listener: Listener, record: TurnRecord) -> tuple[str, str]:
        """Return what was asked, or the sentence that says why that is not known; neither if nothing was said."""
        left = record.began + self._assistant.config.speaking.turn_deadline_s - self._assistant.clock()
        try:
            async with asyncio.timeout(left):
                return await listener.finish(), ""
        except TimeoutError:
            _LOG.warning("a recording could not be transcribed in time; look at the speech-to-text engine",
                         extra=fields(turn=record.turn, device=record.device))
            return "", prompts.TOO_LATE
        except EngineError as error:
            _LOG.warning("%s", error, extra=fields(turn=record.turn, device=record.device))
            return "", prompts.NO_HEARING

    async def _on_reset(self) -> None:
        async with self._changing:
            was_in_turn = self.in_turn
            self._ended_here = None
            await self._drop_recording()
            await self._silence()
            self._assistant.memory.forget(self.device)
            await self._link.send_text(protocol.reset_complete())
            if was_in_turn:
                await self._link.send_text(protocol.idle())

    async def _barge_in(self) -> bool:
        """Stop the turn, if there is one; what was heard of it stays in the history."""
        async with self._changing:
            if not self.in_turn:
                return False
            await self._interrupt()
            return True

    async def _interrupt(self) -> None:
        """Tell the device that the turn is over, before the engines have let go of it."""
        self._cancel_turn()
        await self._mouth.interrupted()
        await self._stop_turn()

    async def _silence(self) -> None:
        self._cancel_turn()
        await self._mouth.cut()
        await self._stop_turn()

    def _cancel_turn(self) -> None:
        """Cancel the turn once; a second time would disturb what it tidies up."""
        if self._turn is not None and not self._turn_cancelled:
            self._turn_cancelled = True
            self._turn.cancel()

    async def _stop_turn(self) -> None:
        self._cancel_turn()
        turn, self._turn = self._turn, None
        if turn is not None:
            # Not awaited for itself: a task that fails to end must not take the connection's reader with it.
            await asyncio.wait({turn}, timeout=STOP_DEADLINE_S)
            if not turn.done():
                _LOG.warning("a turn of %s takes long to end after it was stopped", self.device)
                self._tidy_up(turn)

    def _listen_afresh(self) -> None:
        """Forget what was heard during an answer, unless somebody has begun to speak: it is no part of a question."""
        listener = self._listener
        if listener is not None and not listener.tracker.speaking:
            self._listener = self._endpointer = None
            self._tidy_up(asyncio.create_task(listener.cancel(), name="drop what was heard meanwhile"))

    async def _drop_recording(self) -> None:
        listener, self._listener = self._listener, None
        self._recording = Recording()
        self._endpointer = None
        if listener is not None:
            # The reader must not wait for the engines to let go.
            self._tidy_up(asyncio.create_task(listener.cancel(), name="drop recording"))

    def _tidy_up(self, task: asyncio.Task[None]) -> None:
        """Keep a task that is about to end until it has."""
        self._ending = [each for each in self._ending if not each.done()]
        self._ending.append(task)

    async def _reap(self) -> None:
        """Wait for everything that is about to end."""
        if not self._ending:
            return
        ended, late = await asyncio.wait(self._ending, timeout=LEAVE_DEADLINE_S)
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                _LOG.error("something failed in an unforeseen way", exc_info=error, extra=fields(device=self.device))
        for task in late:
            _LOG.error("%s of %s did not end", task.get_name(), self.device)

    async def _show_progress(self) -> None:
        """Send partial transcripts and find the end of speech, for version 2 devices."""
        shown, shown_of = "", None
        while True:
            await self._progress.wait()
            self._progress.clear()
            listener = self._listener
            if listener is not shown_of:
                shown, shown_of = "", listener
            if listener is None:
                continue
            try:
                shown = await self._look_at(listener, shown)
            except DeviceGone as error:
                _LOG.debug("%s: %s", self.device, error)
            except Exception as error:  # noqa: BLE001 - one mistake must not cost the rest of the connection its ears
                _LOG.error("a device's speech could not be followed", exc_info=error, extra=fields(device=self.device))

    async def _look_at(self, listener: Listener, shown: str) -> str:
        """Act on what was heard of a recording; return the partial transcript that the device has seen."""
        if self.in_turn:
            if listener.tracker.interrupts:
                # The question begins now, however long the answer was listened to.
                self._listened_bytes = 0
                await self._barge_in()
            return shown
        if "partials" in self.features and listener.text_so_far not in {"", shown}:
            shown = listener.text_so_far
            await self._link.send_text(protocol.partial_transcript(shown))
        async with self._changing:
            if (self._listener is listener and not self.in_turn and self._endpointer is not None
                    and self._endpointer.ended(listener.tracker)):
                self._ended_here = self._assistant.clock()
                await self._link.send_text(protocol.speech_end())
                await self._on_end_of_speech()
        return shown
