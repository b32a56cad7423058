"""Transcribing ahead at pauses, with the real engine: nothing is lost or doubled, and nothing is left to do at EOS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotpind.config import Config
from hotpind.config.paths import models_dir
from hotpind.engines.fleet import whisper_spec
from hotpind.engines.supervisor import Engine
from hotpind.errors import EngineBroke
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from hotpind.speech.audio import PIN_RATE
from hotpind.speech.endpoint import EngineEndpoint, RemoteEndpoint, Ticket
from hotpind.speech.listener import PENDING, SEAM_S, TAIL, Listener
from hotpind.speech.stt import Transcriber, Urgency
from tests.appliance.recordings import (
    Recording,
    cards,
    letter_error_rate,
    librivox,
    not_speech,
    without_pauses,
    word_error_rate,
    words,
)
from tests.waiting import until

pytestmark = pytest.mark.models
FRAME = 4096
FRAME_S = FRAME / 2 / 16_000
ROOM = bytes(2 * 16_000)
Listen = Callable[..., Listener]


@pytest.fixture
async def transcriber(tmp_path: Path) -> AsyncIterator[Transcriber]:
    store = ModelStore(Path(os.environ.get("HOTPIN_PATHS__MODELS") or models_dir(Config())))
    config = Config()
    engine = Engine(whisper_spec(config, tmp_path, lambda: store.resolve(config.stt.model, Role.STT).main))
    engine.start()
    await engine.ready(90)
    yield Transcriber(EngineEndpoint(engine), language="en", deadline_s=30)
    await engine.stop()


@pytest.fixture
async def listen(transcriber: Transcriber) -> AsyncIterator[Listen]:
    workers = ThreadPoolExecutor(2)
    begun: list[Listener] = []

    def listen(*, ahead: bool = True, **more: Any) -> Listener:
        begun.append(Listener(transcriber, workers, ahead=ahead, pause_s=0.16, **more))
        return begun[-1]

    yield listen
    await asyncio.gather(*(each.cancel() for each in begun))
    workers.shutdown()


async def hear(listener: Listener, pcm: bytes, *, pace: float = 1.0) -> str:
    for start in range(0, len(pcm), FRAME):
        listener.feed(pcm[start:start + FRAME])
        await asyncio.sleep(FRAME_S * pace)
    return await listener.finish()


async def test_the_text_is_ready_before_eos_when_the_speaker_has_paused(listen: Listen) -> None:
    recording = cards()[4]
    listener = listen()
    for start in range(0, len(recording.pcm), FRAME):
        listener.feed(recording.pcm[start:start + FRAME])
        await asyncio.sleep(FRAME_S)

    def heard_to_its_end() -> bool:
        ahead, tracker = listener._ahead, listener.tracker
        return (tracker.position > len(recording.pcm) // 2 + PIN_RATE // 2 and ahead is not None and ahead.task.done()
                and ahead.speech_end == tracker.speech_end)

    # The room is silent for as long as the engine needs.
    async with asyncio.timeout(30):
        while not heard_to_its_end():
            listener.feed(ROOM[:FRAME])
            await asyncio.sleep(FRAME_S)
    text = await listener.finish()
    assert listener.ready_ahead
    assert letter_error_rate(recording.text, text) <= 0.4, text


async def test_the_beginning_of_long_speech_is_known_before_it_pauses(listen: Listen) -> None:
    told: list[str] = []

    def on_progress(listener: Listener, text: str) -> None:
        if text and listener.tracker.speaking:
            told.append(text)

    recording = librivox()[0]
    listener = listen(on_progress=on_progress, glances=True)
    speech = Recording("without a pause", without_pauses(recording.pcm), recording.text)
    # As slowly as the engine needs: a glance must end before the speech does.
    text = await hear(listener, speech.pcm, pace=2.0)
    assert told
    assert any(len(words(beginning)) >= 3 for beginning in told)
    for beginning in told:
        assert len(words(beginning)) < len(words(text))
        assert letter_error_rate(" ".join(words(text)[:len(words(beginning))]), beginning) <= 0.4, (beginning, text)


def miscounted(pairs: list[tuple[str, str]]) -> int:
    """Return how many words are too many or missing: one that is only misheard is there, one at a seam may not be."""
    return sum(abs(len(words(heard)) - len(words(text))) for text, heard in pairs)


@pytest.mark.slow
async def test_no_word_is_lost_or_doubled_at_a_seam(listen: Listen, transcriber: Transcriber) -> None:
    first, second, third = librivox()[0], librivox()[3], librivox()[1]
    whole = Recording("three sentences", first.pcm + ROOM + second.pcm + ROOM + third.pcm + ROOM,
                      f"{first.text} {second.text} {third.text}")
    listener = listen()
    text = await hear(listener, whole.pcm)
    assert listener.seams >= 1
    at_once = await transcriber.transcribe(whole.pcm, Urgency.FINAL)
    assert letter_error_rate(whole.text, text) <= letter_error_rate(whole.text, at_once) + 0.10, text
    assert miscounted([(whole.text, text)]) <= miscounted([(whole.text, at_once)]) + 2, text


@pytest.mark.slow
async def test_listening_ahead_is_as_accurate_as_hearing_it_all_at_the_end(listen: Listen) -> None:
    pairs: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for recording in [*librivox(), *cards()]:
        for ahead in (True, False):
            heard = await hear(listen(ahead=ahead), recording.pcm + ROOM, pace=0.5 if ahead else 0)
            pairs[ahead].append((recording.text, heard))
    print({ahead: round(word_error_rate(each), 3) for ahead, each in pairs.items()})
    letters = {ahead: sum(letter_error_rate(text, heard) for text, heard in each) / len(each)
               for ahead, each in pairs.items()}
    assert letters[True] <= letters[False] + 0.10, pairs
    assert miscounted(pairs[True]) <= miscounted(pairs[False]) + 2, pairs


async def test_speech_right_up_to_eos_is_transcribed_then(listen: Listen) -> None:
    recording = librivox()[1]
    listener = listen()
    text = await hear(listener, recording.pcm, pace=0.2)
    assert letter_error_rate(recording.text, text) <= 0.3, text


@pytest.mark.parametrize("name", ["silence", "applause", "dog"])
async def test_sounds_that_are_not_speech_give_no_text(listen: Listen, name: str) -> None:
    assert await hear(listen(), not_speech()[name], pace=0.1) == ""


async def test_nothing_and_an_odd_byte_are_no_error(listen: Listen) -> None:
    assert await listen().finish() == ""
    listener = listen()
    listener.feed(b"\x01")
    assert await listener.finish() == ""


async def test_a_cancelled_recording_leaves_nothing_running(listen: Listen) -> None:
    before = asyncio.all_tasks()
    listener = listen()
    for start in range(0, len(librivox()[1].pcm), FRAME):
        listener.feed(librivox()[1].pcm[start:start + FRAME])
    await asyncio.sleep(0.3)
    await listener.cancel()
    assert asyncio.all_tasks() == before


class Slow(Transcriber):
    """An engine that is slower than people pause: a decode lasts for `TAKES_S` more seconds of the recording.

    Its texts name the samples that it heard, so that nothing lost or doubled escapes.
    """

    TAKES_S = 3.0

    def __init__(self, sound: bytes) -> None:
        """Find what is heard in ``sound``."""
        super().__init__(RemoteEndpoint("slow", ""), language="en", deadline_s=30)
        self.workers = ThreadPoolExecutor(1)
        self.listener = Listener(self, self.workers, ahead=True, pause_s=0.16)
        self.tickets: list[Ticket] = []
        self.last_s = 0.0
        """How much was heard in the last request."""
        self.failures = 0
        """How many of the next requests that are long enough for a seam fail."""
        self.stuck = False
        self._sound = sound
        self._ended = False

    async def hear(self) -> None:
        for start in range(0, len(self._sound), FRAME):
            self.listener.feed(self._sound[start:start + FRAME])
            # What is left is less than a chunk of voice activity.
            while self.listener.tracker.position <= min(start + FRAME, len(self._sound)) // 2 - 512:
                await asyncio.sleep(0.001)

    async def finish(self) -> str:
        self._ended = True
        return await self.listener.finish()

    async def transcribe(self, pcm: bytes, urgency: Urgency | Ticket = Urgency.FINAL) -> str:
        if isinstance(urgency, Ticket):
            self.tickets.append(urgency)
        return await super().transcribe(pcm, urgency)

    async def _once(self, pcm: bytes) -> str:
        start, self.last_s = self._sound.index(pcm) // 2, len(pcm) / 2 / PIN_RATE
        due = self.listener.tracker.position + self.TAKES_S * PIN_RATE
        while self.stuck or (self.listener.tracker.position < due and not self._ended):
            await asyncio.sleep(0.002)
        if self.failures and self.last_s > SEAM_S:
            self.failures -= 1
            raise EngineBroke("it failed")
        return f"{start}-{start + len(pcm) // 2}"

    def assert_all_was_heard_once(self, text: str) -> None:
        reached = self.listener.tracker.first_speech
        assert reached is not None
        for piece in text.split():
            start, stop = map(int, piece.split("-"))
            assert reached - TAIL <= start <= reached, text
            reached = stop
        assert reached >= self.listener.tracker.speech_end, text


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    """A minute of speech with pauses of a quarter of a second. The noise makes each moment of it one of a kind."""
    clips = [*librivox(), *cards()] * 2
    sound = np.frombuffer(b"".join(clip.pcm + ROOM[:8000] for clip in clips), "<i2")
    noise = np.random.default_rng(5).integers(-3, 4, len(sound))
    slow = Slow((np.clip(sound[:60 * PIN_RATE] + noise[:60 * PIN_RATE], -32768, 32767)).astype("<i2").tobytes())
    yield slow
    slow.stuck = False
    await slow.listener.cancel()
    slow.workers.shutdown()


async def test_a_slow_engine_leaves_no_more_than_a_piece_for_the_end_of_speech(slow: Slow) -> None:
    await slow.hear()
    text = await slow.finish()
    assert slow.listener.seams >= 3
    assert slow.last_s < 2 * SEAM_S
    slow.assert_all_was_heard_once(text)


@pytest.mark.parametrize("failures", [1, 2, 100])
async def test_no_word_is_lost_when_a_kept_piece_fails(slow: Slow, failures: int) -> None:
    slow.failures = failures
    await slow.hear()
    assert slow.failures < failures
    slow.failures = min(slow.failures, 1)
    slow.assert_all_was_heard_once(await slow.finish())


async def test_an_engine_that_answers_nothing_gets_few_pieces_and_the_end_of_speech_hurries_them(slow: Slow) -> None:
    slow.stuck = True
    await slow.hear()
    assert slow.listener.seams == PENDING
    assert slow.queue.waiting <= PENDING
    finishing = asyncio.create_task(slow.finish())
    await until(lambda: sum(ticket.urgency is Urgency.FINAL for ticket in slow.tickets) >= PENDING)
    slow.stuck = False
    slow.assert_all_was_heard_once(await finishing)
    assert not slow.listener.ready_ahead


async def test_kept_pieces_end_with_a_cancelled_recording(slow: Slow) -> None:
    before = asyncio.all_tasks() - {slow.listener._task}
    slow.stuck = True
    await slow.hear()
    assert slow.listener.seams
    await slow.listener.cancel()
    assert asyncio.all_tasks() == before
    assert not slow.queue.in_use
