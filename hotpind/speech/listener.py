"""Listens to one recording: voice activity as it arrives, transcription at pauses, the rest at its end.

While the user talks, each pause is used to transcribe what has been said since the last seam. If nothing more comes,
that text is the answer and nothing is left to do at EOS; if speech goes on, it is transcribed again together with
what follows, because whisper is better at whole sentences. Only after `SEAM_S` seconds is a piece kept for good, and
cut in the middle of a pause, so that no word is lost or doubled. A piece may be kept before its text is there: where
decoding takes longer than people pause, all would be left for EOS otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass

from hotpind.errors import EngineError
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES
from hotpind.speech.endpoint import Ticket
from hotpind.speech.stt import Transcriber, Urgency
from hotpind.speech.vad import CHUNK_BYTES, SpeechTracker, VoiceDetector

_LOG = logging.getLogger(__name__)

SEAM_S = 9.0
"""Whisper hears whole sentences best, but encoding time grows with the clip; past this a pause becomes a seam."""
PENDING = 2
"""Kept pieces whose text is not there yet; with more, the engine cannot keep up and the next piece grows instead."""
LEAD_IN = int(0.3 * PIN_RATE)
TAIL = int(0.3 * PIN_RATE)
"""Samples kept around the speech: soft consonants lie outside what VAD marks, and whisper wants a little silence."""
PARTIAL_S = 1.5
"""How much speech without a pause is worth a new partial transcript to show."""
GLANCE_S = 2.5
"""How much is worth one that only lets the language model read the question's beginning."""
UNSURE_WORDS = 2
"""Words at the end of a partial transcript that often become others."""
VAD_BATCH_BYTES = CHUNK_BYTES * 16
"""At most half a second of audio at a time, so that ten devices share the worker fairly."""


@dataclass(slots=True)
class _Piece:
    """A transcription started at a pause."""

    task: asyncio.Task[str]
    ticket: Ticket
    start: int
    """First sample."""
    speech_end: int
    """End of the speech it covers, in samples."""
    draft: str = ""
    """What is shown until its text is there."""

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    @property
    def text(self) -> str:
        return self.task.result() if self.task.done() and not self.failed else self.draft


class Listener:
    """One recording. `feed` never waits; `finish` gives the transcript; `cancel` drops everything."""

    def __init__(self, transcriber: Transcriber, workers: Executor, *, ahead: bool, pause_s: float,
                 partials: bool = False, glances: bool = False,
                 on_progress: Callable[[Listener, str], None] = lambda _, __: None) -> None:
        """Start listening; ``on_progress`` is called after each batch of voice activity, and with each text.

        Speech without a pause is transcribed now and then too: with ``partials`` often enough to be shown, with
        ``glances`` so that ``on_progress`` gets the surer part of it.
        """
        self.tracker = SpeechTracker()
        self.ready_ahead = False
        """Tells, after `finish`, whether the text was ready before EOS."""
        self._transcriber = transcriber
        self._workers = workers
        self._ahead_allowed = ahead
        self._pause_s = pause_s
        self._on_progress = on_progress
        self._detector = VoiceDetector()
        self._audio = bytearray()
        self._new = asyncio.Event()
        self._ended = False
        self._kept: list[_Piece] = []
        self._window = 0
        """Where what is not kept begins, in samples."""
        self._ahead: _Piece | None = None
        self._partials = partials
        self._glances = glances and ahead
        self._partial: asyncio.Task[str] | None = None
        self._partial_text = ""
        self._partial_at = 0
        self._tasks: set[asyncio.Task[str]] = set()
        """Every transcription that may be under way."""
        self._task = asyncio.create_task(self._listen(), name="listen")

    @property
    def seconds(self) -> float:
        """Length of the recording so far."""
        return len(self._audio) / SAMPLE_BYTES / PIN_RATE

    @property
    def seams(self) -> int:
        """Pieces that are kept for good."""
        return len(self._kept)

    @property
    def text_so_far(self) -> str:
        """What was understood up to the last pause, for partial transcripts."""
        latest = self._ahead.text if self._ahead is not None else ""
        return _join([*(piece.text for piece in self._kept), latest or self._partial_text])

    def feed(self, pcm: bytes) -> None:
        """Add 16-bit 16 kHz mono PCM; an odd last byte, as a cut frame has it, is dropped."""
        self._audio += pcm[:len(pcm) // SAMPLE_BYTES * SAMPLE_BYTES]
        self._new.set()

    async def finish(self) -> str:
        """Return the transcript of the whole recording, empty when nobody spoke. Raises `EngineError`."""
        self._ended = True
        self._new.set()
        await self._task
        self._settle()
        if not self.tracker.heard_speech:
            await self._drop_all_but([])
            return ""
        pieces = [*self._kept, *([self._ahead] if self._ahead is not None else [])]
        await self._drop_all_but(pieces)
        self.ready_ahead = self._ahead is not None and all(piece.task.done() for piece in pieces)
        for piece in pieces:
            if not piece.task.done():
                # It may still wait behind others that listen ahead, while somebody waits for this one.
                self._transcriber.hasten(piece.ticket)
        texts: list[str] = []
        try:
            for piece in pieces:
                texts += [await piece.task]
        except EngineError:
            _LOG.debug("transcription ahead failed; once more, with all that follows")
            self._window = pieces[len(texts)].start
            await self._drop_all_but([])
        else:
            if self._ahead is not None:
                return _join(texts)
        start, stop = self._window_bounds()
        if stop > start:
            texts.append(await self._transcriber.transcribe(self._pcm(start, stop), Urgency.FINAL))
        return _join(texts)

    async def cancel(self) -> None:
        """Stop all work for this recording."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._drop_all_but([])

    async def _drop_all_but(self, pieces: Collection[_Piece]) -> None:
        dropped = self._tasks - {piece.task for piece in pieces}
        for task in dropped:
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)

    def _transcribe(self, urgency: Urgency | Ticket, name: str) -> asyncio.Task[str]:
        """Begin to transcribe the window."""
        pcm = self._pcm(*self._window_bounds())
        task = asyncio.create_task(self._transcriber.transcribe(pcm, urgency), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        seen = 0
        while True:
            available = (len(self._audio) - seen) // CHUNK_BYTES * CHUNK_BYTES
            if available:
                batch = bytes(self._audio[seen:seen + min(available, VAD_BATCH_BYTES)])
                seen += len(batch)
                for probability in await loop.run_in_executor(self._workers, self._detector.probabilities, batch):
                    self.tracker.feed(probability)
                self._look_at_pause()
                self._look_for_partial()
                self._on_progress(self, "")
            elif self._ended:
                rest = bytes(self._audio[seen:])
                if rest:
                    padded = rest + bytes(CHUNK_BYTES - len(rest))
                    for probability in await loop.run_in_executor(self._workers, self._detector.probabilities, padded):
                        self.tracker.feed(probability)
                return
            else:
                self._new.clear()
                await self._new.wait()

    def _look_at_pause(self) -> None:
        self._settle()
        tracker = self.tracker
        if (self._ahead_allowed and self._ahead is None and not self._ended and tracker.heard_speech
                and not tracker.speaking and tracker.silence_s >= self._pause_s and tracker.speech_end > self._window):
            ticket = Ticket(Urgency.AHEAD)
            task = self._transcribe(ticket, "transcribe ahead")
            task.add_done_callback(self._ahead_done)
            self._ahead = _Piece(task, ticket, self._window_bounds()[0], tracker.speech_end)

    def _settle(self) -> None:
        """Go back to a kept piece that failed; keep or drop what was transcribed ahead when speech went on."""
        failed = next((at for at, piece in enumerate(self._kept) if piece.failed), None)
        if failed is not None:
            # What follows goes with it, and is transcribed again together with it, so that nothing is lost.
            self._window = self._kept[failed].start
            for piece in self._kept[failed:]:
                piece.task.cancel()
            del self._kept[failed:]
        ahead = self._ahead
        if ahead is None or (failed is None and self.tracker.speech_end <= ahead.speech_end):
            return
        self._ahead = None
        pending = sum(not piece.task.done() for piece in (*self._kept, ahead))
        if (failed is None and not ahead.failed and pending <= PENDING
                and ahead.speech_end - ahead.start >= SEAM_S * PIN_RATE):
            ahead.draft, self._partial_text = self._partial_text, ""
            self._kept.append(ahead)
            self._window = ahead.speech_end + TAIL // 2
            if self._partial is not None:
                # It began before the seam, and would be shown after it.
                self._partial.cancel()
        else:
            ahead.task.cancel()

    def _look_for_partial(self) -> None:
        """Transcribe what there is of speech without a pause, when nobody else needs the engine."""
        tracker = self.tracker
        every_s = PARTIAL_S if self._partials else GLANCE_S
        if ((self._partials or self._glances) and tracker.speaking and tracker.heard_speech
                and not self._transcriber.queue.in_use and self._partial is None
                and tracker.position - max(self._partial_at, tracker.first_speech or 0) >= every_s * PIN_RATE):
            self._partial_at = tracker.position
            self._partial = self._transcribe(Urgency.GLANCE, "transcribe what there is")
            self._partial.add_done_callback(self._partial_done)

    def _partial_done(self, task: asyncio.Task[str]) -> None:
        self._partial = None
        if not task.cancelled() and task.exception() is None and not self._ended and task.result():
            self._partial_text = task.result()
            self._on_progress(self, " ".join(self.text_so_far.split()[:-UNSURE_WORDS]) if self._glances else "")

    def _ahead_done(self, task: asyncio.Task[str]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._on_progress(self, self.text_so_far)

    def _window_bounds(self) -> tuple[int, int]:
        """Return the samples from the last seam (or the beginning of speech) to the end of speech, with margins."""
        first = self.tracker.first_speech or 0
        start = max(self._window, first - LEAD_IN, 0)
        return start, min(self.tracker.speech_end + TAIL, len(self._audio) // SAMPLE_BYTES)

    def _pcm(self, start: int, stop: int) -> bytes:
        return bytes(self._audio[start * SAMPLE_BYTES:stop * SAMPLE_BYTES])


def _join(pieces: list[str]) -> str:
    return " ".join(piece.strip() for piece in pieces if piece.strip())
