"""One turn: from the transcript to the last byte of the spoken answer.

Three tasks run at once: one reads the model's words and cuts them into pieces, one has the pieces spoken, one sends
the audio at the pace of playback. Bounded queues lie between them; cancelling the turn ends all three.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from hotpind.chat.messages import Brain, ChatRequest, Picture
from hotpind.conversation.heard import Heard
from hotpind.conversation.memory import Conversation
from hotpind.conversation.prompts import BROKEN_OFF, NO_ANSWER, NO_VOICE, TOO_LATE
from hotpind.errors import BackendError, DeviceGone, EngineError, NoAnswer
from hotpind.speech.clauses import ClauseSplitter
from hotpind.speech.tts import Synthesizer
from hotpind.system.logs import fields

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

PIECES_WAITING = 4
"""Pieces of text that may wait for the voice; the model waits beyond that."""
AUDIO_AHEAD_S = 6.0
"""Synthesis stays this many seconds ahead of what is being sent, so that a slow sentence is not heard as a gap."""
LENT_S = 2.0
"""With more than this to play, a turn leaves the cores to others who have asked and hear nothing yet. Below it, it goes
on as always: a sentence takes a voice that answers in time less than this."""
CANNED_PART = 8192
"""Bytes of a prepared sentence handed on at once."""
LETTERS_PER_S = 15.0
"""How fast a voice is, where it could not be measured."""

FIRST_CLAUSE_S = 0.15
"""From the model's first word until fewer words than a clause are spoken: somebody waits in silence. A model that has
the cores to itself makes a clause in this time on a PC."""
DRIPPING_S = 1.0
"""A model that takes longer than this for those few words would leave gaps after them: its clause is waited for, and
another model may yet answer in its place."""
RUNWAY_S = 0.8
"""With less audio than this before it, a piece is spoken up to the last whole word rather than leave a gap: Piper
needs 0.1 s for a clause on a PC, three times that on a Pi 4."""
DRY_S = 2.0
"""After so much silence even a word or two are spoken: they may be all that a slow model has."""
TICK_S = 0.2
"""How often it is looked whether the device will have something to play."""
SILENCE_S = 8.0
"""An answer that had no audio to send for so long is ended with a sentence that is at hand: a pin takes one without
audio for 10 s for dead."""
FIRST_WORD_PATIENCE_S = 1.0
"""With several devices, an answer that would fall silent within this time goes before one that has not begun: a gap
in a sentence is worse than a moment more before it."""


class Ear(Protocol):
    """Where a turn's messages and audio go: to a device (`hotpind.wearable.mouth.Mouth`)."""

    async def thinking(self, transcript: str, *, has_image: bool) -> None:
        """Show the transcript."""

    async def speaking(self, response: str, rate: int) -> None:
        """Announce audio of ``rate`` Hz."""

    async def audio(self, pcm: bytes) -> None:
        """Send PCM; returns when the pace of playback allows more."""

    async def sentence(self, text: str) -> None:
        """Tell which piece is spoken next, to devices that want to know."""

    async def end_audio(self) -> None:
        """End the audio."""

    async def complete(self, record: TurnRecord, response: str) -> None:
        """End the turn well."""

    async def failed(self, message: str) -> None:
        """End the turn with an error, whether or not audio has begun."""

    def ahead_s(self) -> float:
        """Seconds of audio that the device has still to play."""

    def played_bytes(self) -> float:
        """PCM bytes that the device has played by now, by the playback clock."""


@dataclass(slots=True)
class TurnRecord:
    """What is known of a turn, for the log, the metrics and the device; no transcript, no answer."""

    turn: str
    device: str
    began: float
    """When the end of speech arrived, on the monotonic clock."""
    outcome: str = "answered"
    """answered, not-understood, busy, canned, failed, cancelled."""
    backend: str = ""
    model: str = ""
    reason: str = ""
    has_image: bool = False
    audio_s: float = 0.0
    """Seconds of speech in the question."""
    answer_s: float = 0.0
    """Seconds of audio in the answer."""
    ahead: bool = False
    """The transcript was ready before the end of speech."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds since the end of speech at which each stage was done, in order."""

    def mark(self, stage: str, now: float) -> None:
        """Note that a stage is done, the first time."""
        self.stages.setdefault(stage, round(now - self.began, 4))


@dataclass(frozen=True, slots=True)
class Canned:
    """Sentences synthesised ahead: PCM by text."""

    audio: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Piece:
    """A piece of the answer on its way to the device."""

    text: str
    audio: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    broke: bool = False
    """Its audio is not whole."""


class Turn:
    """Answers one question."""

    def __init__(self, *, brain: Brain, voice: Synthesizer, canned: Canned, ear: Ear, conversation: Conversation,
                 record: TurnRecord, system_prompt: str, deadline_s: float,
                 on_spoken: Callable[[str], None] = lambda _: None,
                 on_made: Callable[[Conversation], None] = lambda _: None,
                 on_left: Callable[[asyncio.Task[None]], object] = asyncio.Task.cancel,
                 others_wait: Callable[[], bool] = lambda: False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; ``deadline_s`` is how long after the end of speech the answer must have begun, ``on_spoken`` is
        told the whole answer, ``on_made`` how the conversation will be when all audio is made and nothing but playback
        is left, ``on_left`` takes over a request to a voice that hangs, and ``others_wait`` tells whether somebody else
        has asked and hears nothing yet.
        """
        self._brain = brain
        self._voice = voice
        self._canned = canned
        self._ear = ear
        self._conversation = conversation
        self._record = record
        self._about = fields(turn=record.turn, device=record.device)
        self._system_prompt = system_prompt
        self._on_spoken = on_spoken
        self._on_made = on_made
        self._question = ""
        self._pictures: tuple[Picture, ...] = ()
        self._on_left = on_left
        self.others_wait = others_wait
        self._deadline_s = deadline_s
        self._clock = clock
        self._heard = Heard()
        self._text: asyncio.Queue[str | None] = asyncio.Queue(PIECES_WAITING)
        self._pieces: asyncio.Queue[_Piece | None] = asyncio.Queue()
        self._queued_bytes = 0
        self._unsaid = 0
        self._given = False
        self._room = asyncio.Event()
        self._began_speaking = asyncio.Event()
        self._thought = asyncio.Event()
        self._splitter = ClauseSplitter()
        self._producers: list[asyncio.Task[None]] = []
        """The tasks that make the audio, ended when it does not come."""
        self._silenced = False
        self._sent_at = 0.0

    async def answer(self, question: str) -> None:
        """Answer a question aloud; always ends the turn for the device, by audio and `complete` or by an error."""
        self._question = question
        self._pictures = pictures = self._conversation.take_pictures(self._clock())
        self._record.has_image = bool(pictures)
        request = ChatRequest(self._conversation.messages(self._system_prompt, question, pictures),
                              device=self._record.device, turn=self._record.turn)
        try:
            await self._finish(self._words(request), transcript=question)
        finally:
            # Whatever the end was: what was heard is remembered, and nothing else.
            self._conversation.add(question, self._what_was_heard(), self._clock(), pictures)

    def _what_was_heard(self) -> str:
        """Return what goes into the history: an interrupted answer cut where it was, an apology not at all."""
        if self._record.outcome == "cancelled":
            return self._heard.text_played(self._ear.played_bytes())
        return "" if self._record.outcome == "canned" else self._heard.sent_text

    async def say(self, text: str, outcome: str) -> None:
        """Speak a sentence that needs no model."""
        self._record.outcome = outcome
        await self._finish(_single(_AsIs(text)))

    async def _finish(self, words: AsyncGenerator[str, None], *, transcript: str = "") -> None:
        try:
            failure = await self._pipeline(words, transcript)
            if failure:
                self._record.outcome = "failed"
                await self._ear.failed(failure)
                return
            await self._ear.end_audio()
            self._record.mark("complete", self._clock())
            self._on_spoken(self._heard.sent_text)
            await self._ear.complete(self._record, self._heard.sent_text)
        except (asyncio.CancelledError, DeviceGone):
            self._record.outcome = "cancelled"
            raise

    async def _pipeline(self, words: AsyncGenerator[str, None], transcript: str) -> str:
        """Think, speak and send at once; return the sentence for the device when that failed. Raises `DeviceGone`."""
        failure = ""
        gone: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._producers = [tasks.create_task(self._think(words), name="think"),
                                   tasks.create_task(self._speak(), name="speak"),
                                   tasks.create_task(self._keep_up(), name="keep up")]
                tasks.create_task(self._send(transcript), name="send")
                tasks.create_task(self._hurry(), name="hurry")
        except* DeviceGone as group:
            # Raised below: what is raised in here would reach the caller inside an exception group.
            gone = group.exceptions[0]
        except* EngineError as group:
            _LOG.warning("%s", group.exceptions[0], extra=self._about)
            failure = NO_VOICE
        except* TimeoutError:
            failure = TOO_LATE
        if gone is not None:
            raise gone
        return failure

    async def _hurry(self) -> None:
        """Fail the turn when speaking has not begun by the deadline: a device gives up after 60 s."""
        left = self._record.began + self._deadline_s - self._clock()
        async with asyncio.timeout(max(0.0, left)):
            await self._began_speaking.wait()

    async def _words(self, request: ChatRequest) -> AsyncGenerator[str, None]:
        """Stream the model's words; a chain that failed altogether answers with a plain sentence."""
        for again in (False, True):
            begun = False
            try:
                async with contextlib.aclosing(self._stream(request)) as stream:
                    async for text in stream:
                        begun = True
                        yield text
                if begun:
                    return
                break
            except NoAnswer as error:
                _LOG.warning("No model answered: %s", error, extra=self._about)
                break
            except BackendError as error:
                _LOG.warning("The answer broke off: %s", error, extra=self._about)
                if self._given or (begun and again):
                    yield _AsIs(BROKEN_OFF)
                    return
            # Nothing of it has reached the voice, so another model may answer as if this one had never spoken.
            yield _StartOver()
        self._record.outcome, self._record.backend, self._record.model = "canned", "", ""
        yield _AsIs(NO_ANSWER)

    async def _stream(self, request: ChatRequest) -> AsyncGenerator[str, None]:
        stream = await self._brain.ask(request)
        self._record.backend, self._record.model, self._record.reason = stream.backend, stream.model, stream.reason
        try:
            async for text in stream:
                if stream.token_at is not None:
                    self._record.mark("first_token", stream.token_at)
                yield text
        finally:
            await stream.aclose()

    async def _think(self, words: AsyncGenerator[str, None]) -> None:
        """Cut the words into pieces to speak; an answer without a word becomes a plain sentence."""
        async with contextlib.aclosing(words):
            async for text in words:
                if isinstance(text, _StartOver):
                    self._splitter = ClauseSplitter()
                    continue
                self._record.mark("first_token", self._clock())
                whole = isinstance(text, _AsIs)
                pieces = [*self._splitter.finish(), text] if whole else self._splitter.feed(text)
                if whole:
                    self._splitter = ClauseSplitter()
                if not pieces and self._clause_is_late():
                    pieces = self._splitter.first_words()
                if not pieces and self._runs_dry():
                    pieces = self._splitter.hurry()
                for piece in pieces:
                    await self._give(piece)
        for piece in self._splitter.finish() or ([] if self._given else [NO_ANSWER]):
            await self._give(piece)
        await self._text.put(None)
        self._thought.set()

    async def _keep_up(self) -> None:
        """Speak what there is of a sentence when its end does not come in time."""
        dry_since: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._thought.wait()
                return
            now = asyncio.get_running_loop().time()
            if not self._runs_dry():
                dry_since = None
                continue
            if self._ear.ahead_s() <= 0 and dry_since is None:
                dry_since = now
            pieces = self._splitter.hurry()
            if not pieces and dry_since is not None and now - dry_since >= DRY_S:
                pieces, self._splitter = self._splitter.finish(), ClauseSplitter()
            for piece in pieces:
                await self._give(piece)

    def _clause_is_late(self) -> bool:
        """Tell whether the model has spoken for a while and nothing of it has gone to the voice."""
        since_first_word = self._clock() - self._record.began - self._record.stages["first_token"]
        return not self._given and FIRST_CLAUSE_S <= since_first_word <= DRIPPING_S

    def _runs_dry(self) -> bool:
        """Tell whether the device will soon have nothing left to play and nothing is being made for it."""
        if not self._began_speaking.is_set() or self._unsaid or not self._voice.rate:
            return False
        return self._ear.ahead_s() + self._queued_bytes / (self._voice.rate * 2) < RUNWAY_S

    async def _give(self, piece: str) -> None:
        self._unsaid += 1
        self._given = True
        self._record.mark("first_clause", self._clock())
        await self._text.put(piece)

    async def _speak(self) -> None:
        texts = []
        while (text := await self._text.get()) is not None:
            texts.append(text)
            await self._let_others_go_first()
            piece = _Piece(text)
            self._pieces.put_nowait(piece)
            try:
                await self._synthesise(piece)
            finally:
                self._unsaid -= 1
                piece.audio.put_nowait(None)
        self._pieces.put_nowait(None)
        if self._question and self._record.outcome == "answered":
            self._on_made(self._conversation.after(self._question, " ".join(texts), self._clock(), self._pictures))

    async def _let_others_go_first(self) -> None:
        """Wait while enough audio is made, or some is and somebody else waits for the first."""
        while self._voice.rate:
            queued_s = self._queued_bytes / (self._voice.rate * 2)
            lends = self.others_wait() and self._ear.ahead_s() + queued_s > LENT_S
            if queued_s <= AUDIO_AHEAD_S and not lends:
                return
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                # Nothing tells when the others have been served.
                async with asyncio.timeout(TICK_S if lends else None):
                    await self._room.wait()

    async def _synthesise(self, piece: _Piece) -> None:
        canned = self._canned.audio.get(piece.text)
        if canned is not None:
            for part in _parts(canned):
                self._queue(piece, part)
            return
        work = asyncio.create_task(self._speak_with_voice(piece), name="speak a piece")
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            if self._silenced:
                # Only its own deadline gets a voice that hangs replaced.
                self._on_left(work)
            else:
                work.cancel()
                await asyncio.wait({work})
            raise
        work.result()

    async def _speak_with_voice(self, piece: _Piece) -> None:
        begun = False
        try:
            async with contextlib.aclosing(self._voice.speak(piece.text, self._due())) as audio:
                async for pcm in audio:
                    begun = True
                    self._queue(piece, pcm)
        except EngineError as error:
            if not begun and not self._began_speaking.is_set():
                raise
            # Half a sentence is never begun again: what is lost is less bad than what is said twice.
            _LOG.warning("A sentence was lost: %s", error, extra=self._about)
            piece.broke = True

    def _due(self) -> float:
        """Return the point on the clock at which the next audio is needed."""
        if not self._voice.rate or not (self._queued_bytes or self._began_speaking.is_set()):
            return self._record.began + FIRST_WORD_PATIENCE_S
        return self._clock() + self._ear.ahead_s() + self._queued_bytes / (self._voice.rate * 2)

    def _queue(self, piece: _Piece, pcm: bytes) -> None:
        self._record.mark("first_audio_ready", self._clock())
        self._queued_bytes += len(pcm)
        piece.audio.put_nowait(pcm)

    async def _send(self, transcript: str) -> None:
        if transcript:
            await self._ear.thinking(transcript, has_image=self._record.has_image)
        try:
            while (piece := await self._next(self._pieces)) is not None:
                self._heard.begin(piece.text)
                while (pcm := await self._next(piece.audio)) is not None:
                    await self._send_part(piece.text, pcm)
                    self._queued_bytes -= len(pcm)
                    self._room.set()
                if piece.broke:
                    self._cut_short()
        except _SilenceError:
            await self._close()
        self._began_speaking.set()

    async def _next(self, queue: asyncio.Queue[_T]) -> _T:
        """Take the next of a queue; raises `_SilenceError` when the device had nothing for too long."""
        if not self._began_speaking.is_set():
            return await queue.get()
        try:
            async with asyncio.timeout_at(self._sent_at + SILENCE_S):
                return await queue.get()
        except TimeoutError:
            raise _SilenceError from None

    async def _send_part(self, text: str, pcm: bytes) -> None:
        """Send a part of a piece's audio."""
        if not self._began_speaking.is_set():
            await self._ear.speaking(text, self._voice.rate)
            self._began_speaking.set()
            await self._ear.sentence(text)
        elif not self._heard.last_has_audio:
            await self._ear.sentence(text)
        self._heard.audio(len(pcm))
        self._record.answer_s += len(pcm) / (self._voice.rate * 2)
        await self._ear.audio(pcm)
        self._sent_at = asyncio.get_running_loop().time()
        self._record.mark("first_audio", self._clock())

    async def _close(self) -> None:
        """End an answer of which no more comes, with the closing sentence."""
        _LOG.warning("The answer broke off: there was nothing to play for %g s", SILENCE_S, extra=self._about)
        self._silenced = True
        for task in self._producers:
            task.cancel()
        self._cut_short()
        self._heard.begin(BROKEN_OFF)
        for pcm in _parts(self._canned.audio.get(BROKEN_OFF, b"")):
            await self._send_part(BROKEN_OFF, pcm)

    def _cut_short(self) -> None:
        """Note that the piece begun last is not whole."""
        self._heard.cut_short(self._voice.rate * 2 / LETTERS_PER_S)


class _SilenceError(Exception):
    """The device had nothing to play for too long."""


class _AsIs(str):
    """A sentence to be spoken whole, not part of a stream."""

    __slots__ = ()


class _StartOver(str):
    """What came before it in this stream is not to be spoken: it broke off, and another answer follows."""

    __slots__ = ()


def _parts(pcm: bytes) -> list[bytes]:
    """Cut prepared audio as the voice gives it: a part is sent, and counts as sent, as a whole."""
    return [pcm[start:start + CANNED_PART] for start in range(0, len(pcm), CANNED_PART)]


async def _single(text: str) -> AsyncGenerator[str, None]:
    yield text
