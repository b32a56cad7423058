"""The text-to-speech engine: a Wyoming server around Piper, one process.

Takes ``synthesize``; answers ``audio-start``, an ``audio-chunk`` for each tenth of a second or so, ``audio-stop``.
A client that leaves cancels what is left of its text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Info, TtsProgram, TtsVoice, TtsVoiceSpeaker
from wyoming.tts import Synthesize

from hotpind import __version__
from hotpind.engines.child import PATIENT, EngineHandler, core_of_each, cores, run_engine, serve_wyoming, stay_on
from hotpind.engines.prepared import Shelf
from hotpind.engines.speaker import Speaker, give_back_memory
from hotpind.engines.voice import load, recipe

LONGEST_TEXT = 2000
"""Most characters of one request: two minutes of speech. The appliance asks by clause and sentence."""
CHUNK_BYTES = 8192
LONGEST_REST_S = 2.0
"""Most that a patient request waits after a piece."""
REST_S = 1.0
"""After so many seconds without a text the memory that was needed for it is given back."""


class Resting:
    """Gives memory back when nothing was spoken for a moment."""

    def __init__(self, worker: ThreadPoolExecutor, give_back: Callable[[], None] = give_back_memory) -> None:
        """Let ``worker`` do it."""
        self._worker = worker
        self._give_back = give_back
        self._speaking = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[None]:
        """Keep the memory while a text is spoken, however that ends."""
        if self._timer is not None:
            self._timer.cancel()
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1
            if not self._speaking:
                self._timer = asyncio.get_running_loop().call_later(REST_S, self._worker.submit, self._give_back)


class PiperHandler(EngineHandler):
    """One client of the engine."""

    def __init__(self, speaker: Speaker, worker: ThreadPoolExecutor, resting: Resting, info: Info,
                 reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection with the shared voice and its one worker thread."""
        super().__init__(reader, writer)
        self.info = info
        self._speaker = speaker
        self._worker = worker
        self._resting = resting
        self._gone = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_event(self, event: Event) -> bool:
        """Start synthesis; the connection is watched meanwhile."""
        if Synthesize.is_type(event.type):
            request = Synthesize.from_event(event)
            text = request.text
            if len(text) > LONGEST_TEXT:
                await self.write_event(Error(text=f"the text has {len(text)} characters; at most {LONGEST_TEXT} "
                                             "can be spoken at once", code="too-long").event())
                return True
            if len(self._tasks) >= 4:
                return False
            patient = isinstance(request.context, dict) and bool(request.context.get(PATIENT))
            task = asyncio.create_task(self.carry_out(partial(self._speak, text, patient=patient)), name="synthesize")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    async def disconnect(self) -> None:
        """Let the synthesis for a client that left end early: the next one may be waited for."""
        self._gone.set()
        self._speaker.stop(self._gone)
        for task in self._tasks:
            task.cancel()

    async def _speak(self, text: str, *, patient: bool) -> None:
        rate = self._speaker.rate
        await self.write_event(AudioStart(rate=rate, width=2, channels=1).event())
        loop = asyncio.get_running_loop()
        with self._resting.interrupted():
            pieces = self._speaker.speak(text, self._gone)
            while True:
                began = loop.time()
                audio = await loop.run_in_executor(self._worker, next, pieces, None)
                if audio is None:
                    break
                for start in range(0, len(audio), CHUNK_BYTES):
                    await self.write_event(AudioChunk(rate=rate, width=2, channels=1,
                                                      audio=audio[start:start + CHUNK_BYTES]).event())
                if patient:
                    # Nothing else is as favoured by the scheduler: without this a long text starves the recogniser.
                    await asyncio.sleep(min(loop.time() - began, LONGEST_REST_S))
        await self.write_event(AudioStop().event())


def main() -> None:
    """Load the voice and serve."""
    parser = argparse.ArgumentParser()
    for name in ("socket", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, help="directory for what loading makes of the voice")
    parser.add_argument("--speaker", type=int, default=0)
    parser.add_argument("--length-scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()
    threads = args.threads or cores()

    async def serve() -> None:
        worker = ThreadPoolExecutor(1, thread_name_prefix="piper", initializer=stay_on,
                                    initargs=(core_of_each(threads)[:1],))
        shelf = Shelf(args.prepared, recipe(args.model, args.speaker, args.length_scale))
        speaker = await asyncio.get_running_loop().run_in_executor(worker, partial(
            load, args.model, threads, speaker=args.speaker, length_scale=args.length_scale, shelf=shelf))
        attribution = Attribution(name="Piper", url="https://github.com/OHF-Voice/piper1-gpl")
        language = args.model.stem.split("-")[0]
        speakers = [TtsVoiceSpeaker(name=name) for name in speaker.names]
        info = Info(tts=[TtsProgram(
            name="piper", attribution=attribution, installed=True, description="Piper", version=__version__,
            voices=[TtsVoice(name=args.model.stem, attribution=attribution, installed=True, description=None,
                             version=None, languages=[language], speakers=speakers or None)])])
        await serve_wyoming(args.socket, partial(PiperHandler, speaker, worker, Resting(worker), info),
                            partial(asyncio.to_thread, shelf.settle), rate=speaker.rate, voice=args.model.stem)

    run_engine(serve, parent=args.parent)


if __name__ == "__main__":
    main()
