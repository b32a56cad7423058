"""The appliance's floor: how long its engines take for what a turn needs of them, each measured alone.

For every recording: whisper for the last piece (cut by the same voice activity detection as in a turn), the language
model up to its first clause with its prompt's beginning evaluated already, and Piper up to that clause's first sound.
Nobody else uses the engines meanwhile. Two sums are made: of all three, and of what cannot be done before the end of
speech, since whisper may begin as soon as the speaker pauses.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from hotpind.bench.local_model import body_of, messages_for, words
from hotpind.bench.recordings import Recording, with_room_silence
from hotpind.bench.spread import Spread, spread
from hotpind.bench.stand_in import StandIn
from hotpind.chat.speakable import Speakable
from hotpind.config import Config
from hotpind.errors import EngineBroke, EngineError, OperatorError
from hotpind.speech.audio import PIN_RATE
from hotpind.speech.clauses import ClauseSplitter
from hotpind.speech.endpoint import Endpoint, RemoteEndpoint
from hotpind.speech.listener import Listener
from hotpind.speech.stt import Transcriber, Urgency
from hotpind.speech.tts import Synthesizer

ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class FloorSample:
    """The engines' times for one recording, in seconds."""

    recording: str
    hearing: float
    """Whisper, for the whole last piece."""
    hearing_left: float
    """What of that is left at the end of speech when whisper begins at the pause before it."""
    first_word: float
    thinking: float
    """The language model, up to its first clause."""
    speaking: float
    """Piper, up to the first sound of that clause."""

    @property
    def engines(self) -> float:
        """All that the engines do."""
        return self.hearing + self.thinking + self.speaking

    @property
    def after_speech(self) -> float:
        """What of it cannot be done before the end of speech."""
        return self.hearing_left + self.thinking + self.speaking


@dataclass(frozen=True, slots=True)
class Floor:
    """All measurements of the floor."""

    samples: tuple[FloorSample, ...]

    def of(self, name: str) -> Spread:
        """Return the spread of one of `FloorSample`'s times."""
        found = spread(getattr(sample, name) for sample in self.samples)
        assert found is not None
        return found

    def as_json(self, first_audio: Spread | None) -> dict[str, Any]:
        """Plain JSON values, with the ratios of the appliance's median to the floor's medians."""
        names = ("hearing", "hearing_left", "first_word", "thinking", "speaking", "engines", "after_speech")
        ratios = {} if first_audio is None else {
            name: round(first_audio.p50 / self.of(name).p50, 3) for name in ("engines", "after_speech")}
        return {**{name: self.of(name).as_json() for name in names}, "ratio": ratios}


class FloorMeter:
    """Uses the engines of a running appliance that nobody talks to."""

    def __init__(self, config: Config, sockets: Path, cloud: StandIn | None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Find the engines' sockets in the directory ``sockets``; ``cloud`` answers in place of the local model."""
        self._config = config
        self._cloud = cloud
        self._llama = sockets / "engine-llama.sock"
        self._clock = clock

        def endpoint(name: str, uri: str, engine: str) -> Endpoint:
            return RemoteEndpoint(name, uri or f"unix://{sockets}/engine-{engine}.sock")

        self._ears = Transcriber(endpoint("speech-to-text", config.stt.uri, "whisper"),
                                 language=config.stt.language, deadline_s=config.stt.deadline_s)
        self._voice = Synthesizer(endpoint("text-to-speech", config.tts.uri, "piper"),
                                  deadline_s=config.tts.deadline_s)

    async def measure(self, said: Sequence[Recording], tail_silence_s: float, rounds: int) -> Floor:
        """Measure every recording ``rounds`` times. Raises `OperatorError` when an engine does not answer."""
        try:
            return Floor(tuple([await self._one(recording, tail_silence_s)
                                for _ in range(rounds) for recording in said]))
        except (EngineError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise OperatorError("the floor needs the appliance's engines on this machine, but one does not answer "
                                f"({error})") from None

    async def _one(self, recording: Recording, tail_silence_s: float) -> FloorSample:
        sound = with_room_silence(recording.pcm, tail_silence_s)
        piece, head_start = await self._last_piece(sound)
        began = self._clock()
        question = await self._ears.transcribe(piece) if piece else ""
        hearing = self._clock() - began
        left = max(0.0, hearing - head_start)
        # What is understood before the end of speech can be in the model's cache by then.
        first_word, thinking, clause = await self._think(question or "Hello.", known=left == 0)
        began = self._clock()
        async with aclosing(self._voice.speak(clause)) as audio:
            async for _ in audio:
                break
            else:
                raise EngineBroke("the voice gave no sound")
            speaking = self._clock() - began
        return FloorSample(recording.name, hearing, left, first_word, thinking, speaking)

    async def _last_piece(self, sound: bytes) -> tuple[bytes, float]:
        """Return what is transcribed, and how long before the end of the recording that could begin."""
        stt, note = self._config.stt, _Note()
        with ThreadPoolExecutor(1) as worker:
            listener = Listener(note, worker, ahead=False, pause_s=stt.pause_s)  # type: ignore[arg-type]  # only its `transcribe` is used
            listener.feed(sound)
            await listener.finish()
        if not stt.ahead:
            return note.pcm, 0.0
        silence_s = len(sound) / 2 / PIN_RATE - listener.tracker.speech_end / PIN_RATE
        return note.pcm, max(0.0, silence_s - stt.pause_s)

    async def _think(self, question: str, *, known: bool) -> tuple[float, float, str]:
        messages = messages_for(self._config, question, cloud=self._cloud is not None)
        body = body_of(self._config, messages)
        async with asyncio.timeout(ANSWER_S), aiohttp.ClientSession(
                connector=None if self._cloud else aiohttp.UnixConnector(str(self._llama))) as session:
            if not self._cloud:
                warm = {"messages": messages if known else messages[:-1]}
                async with session.post("http://localhost/hotpind/warm", json=warm) as response:
                    response.raise_for_status()
            base = f"{self._cloud.url}/openai" if self._cloud else "http://localhost"
            began = self._clock()
            async with session.post(f"{base}/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                return await self._first_clause(response.content, began)

    async def _first_clause(self, lines: aiohttp.StreamReader, began: float) -> tuple[float, float, str]:
        # As in a turn: tokens become words that can be spoken, and these a clause.
        speakable, splitter, first_word = Speakable(self._config.chat.max_answer_words), ClauseSplitter(), 0.0
        async for text in words(lines):
            first_word = first_word or self._clock() - began
            for word in re.findall(r"\s*\S+", speakable.feed(text)):
                if pieces := splitter.feed(word):
                    return first_word, self._clock() - began, pieces[0]
        pieces = splitter.feed(speakable.finish()) or splitter.finish()
        if not pieces:
            raise EngineBroke("the language model had nothing to say")
        return first_word, self._clock() - began, pieces[0]


class _Note:
    """Takes a transcriber's place to see what it would be given."""

    def __init__(self) -> None:
        self.pcm = b""

    async def transcribe(self, pcm: bytes, _: Urgency = Urgency.FINAL) -> str:
        self.pcm = pcm
        return ""
