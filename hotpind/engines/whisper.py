"""The speech-to-text engine: a Wyoming server around whisper.cpp, one process.

Events taken: ``transcribe`` (optional), ``audio-start``, ``audio-chunk``, ``audio-stop``; answered by
``transcript``. A client that leaves cancels its decode.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from hotpind import __version__
from hotpind.engines.child import EngineHandler, cores, run_engine, serve_wyoming
from hotpind.engines.recognizer import FLOOR, FULL_WINDOW, SAMPLE_RATE, Audio, Recognizer, recognise
from hotpind.engines.whisper_bindings import BINDINGS
from hotpind.models.catalogue import Role
from hotpind.models.formats import check_model_file

LONGEST_S = 700
"""Most seconds of audio kept for one request; the appliance's own limit on a recording is far lower."""

QUIET_S = 3.0
"""Nobody asked for so many seconds: a start is over."""


class WhisperHandler(EngineHandler):
    """One client of the engine."""

    def __init__(self, recognizer: Recognizer, worker: ThreadPoolExecutor, info: Info, asked: threading.Event,
                 reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection with the shared model and its one worker thread; ``asked`` is set when it is wanted."""
        super().__init__(reader, writer)
        self.info = info
        self._recognizer = recognizer
        self._worker = worker
        self._asked = asked
        self._audio = bytearray()
        self._gone = threading.Event()
        self._decode: asyncio.Task[None] | None = None

    async def on_event(self, event: Event) -> bool:
        """Collect audio, and decode it in the worker thread while the connection is still watched."""
        if AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            if (chunk.rate, chunk.width, chunk.channels) != (SAMPLE_RATE, 2, 1):
                await self.write_event(Error(
                    text=f"audio must be 16 kHz, 16 bit, mono; this is {chunk.rate} Hz, {8 * chunk.width} bit, "
                    f"{chunk.channels} channels", code="bad-audio").event())
                return False
            if len(self._audio) + len(chunk.audio) <= LONGEST_S * SAMPLE_RATE * 2:
                self._audio += chunk.audio
        elif AudioStart.is_type(event.type):
            self._asked.set()
            self._audio.clear()
        elif AudioStop.is_type(event.type) and (self._decode is None or self._decode.done()):
            audio, self._audio = self._audio, bytearray()
            self._decode = asyncio.create_task(self.carry_out(partial(self._answer, bytes(audio))), name="decode")
        else:
            # transcribe only names what is configured anyway; events of later versions are no reason to fail.
            Transcribe.is_type(event.type)
        return True

    async def disconnect(self) -> None:
        """Let the decode of a client that left end early."""
        self._gone.set()
        if self._decode is not None:
            self._decode.cancel()

    async def _answer(self, pcm: bytes) -> None:
        samples = np.frombuffer(pcm[:len(pcm) // 2 * 2], dtype="<i2").astype(np.float32) / 32768.0
        text = ""
        if len(samples):
            text = await asyncio.get_running_loop().run_in_executor(
                self._worker, partial(self._unless_gone, samples))
        await self.write_event(Transcript(text=text).event())

    def _unless_gone(self, samples: Audio) -> str:
        return "" if self._gone.is_set() else recognise(self._recognizer, samples, self._gone.is_set)


def main() -> None:
    """Load the model, warm it, and serve."""
    parser = argparse.ArgumentParser()
    for name in ("socket", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--engine", choices=sorted(BINDINGS), required=True)
    parser.add_argument("--language", default="en")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()
    threads = args.threads or cores()

    async def serve() -> None:
        worker = ThreadPoolExecutor(1, thread_name_prefix="whisper")
        recognizer = await asyncio.get_running_loop().run_in_executor(
            worker, partial(load, args.engine, args.model, args.language, threads))
        attribution = Attribution(name="whisper.cpp", url="https://github.com/ggml-org/whisper.cpp")
        info = Info(asr=[AsrProgram(
            name=args.engine, attribution=attribution, installed=True, description="whisper.cpp", version=__version__,
            models=[AsrModel(name=args.model.stem, attribution=attribution, installed=True, description=None,
                             version=None, languages=[args.language])])])
        asked = threading.Event()
        await serve_wyoming(args.socket, partial(WhisperHandler, recognizer, worker, info, asked),
                            partial(warm_largest, recognizer, worker, asked), model=args.model.stem)

    run_engine(serve, parent=args.parent)


def load(engine: str, model: Path, language: str, threads: int) -> Recognizer:
    """Load a model and decode half a second of silence, so that the first question finds warm buffers.

    Raises `ModelFileError` or `ImportError`.
    """
    # The libraries abort the process on some broken files; this reads the header and compares the size.
    check_model_file(model, Role.STT)
    recognizer: Recognizer = BINDINGS[engine](model, language=language, threads=threads)
    _warm(recognizer, FLOOR, lambda: False)
    return recognizer


async def warm_largest(recognizer: Recognizer, worker: ThreadPoolExecutor, asked: threading.Event,
                       quiet_s: float = QUIET_S) -> None:
    """Warm the largest buffers, for the first question that has to be heard twice, when nobody asked for a while."""
    loop = asyncio.get_running_loop()
    while True:
        asked.clear()
        await asyncio.sleep(quiet_s)
        if not asked.is_set():
            await loop.run_in_executor(worker, _warm, recognizer, FULL_WINDOW, asked.is_set)
            if not asked.is_set():
                return


def _warm(recognizer: Recognizer, window: int, cancelled: Callable[[], bool]) -> None:
    silence = np.zeros(SAMPLE_RATE // 2, dtype=np.float32)
    recognizer.decode(silence, audio_ctx=window, max_tokens=4, cancelled=cancelled)


if __name__ == "__main__":
    main()
