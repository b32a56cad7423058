"""The text-to-speech engine: a Wyoming server around Piper, one process.

Takes ``synthesize``; answers ``audio-start``, an ``audio-chunk`` for each tenth of a second or so, ``audio-stop``.
A client that leaves cancels what is left of its text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from piper import PiperVoice, SynthesisConfig
from piper.config import PiperConfig
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Info, TtsProgram, TtsVoice, TtsVoiceSpeaker
from wyoming.tts import Synthesize

from hotpind import __version__
from hotpind.engines.child import EngineHandler, cores, run_engine, serve_wyoming
from hotpind.errors import ModelFileError

LONGEST_TEXT = 2000
"""Most characters of one request: two minutes of speech. The appliance asks by clause and sentence."""
CHUNK_BYTES = 8192


class PiperHandler(EngineHandler):
    """One client of the engine."""

    def __init__(self, voice: PiperVoice, style: SynthesisConfig, worker: ThreadPoolExecutor, info: Info,
                 reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection with the shared voice and its one worker thread."""
        super().__init__(reader, writer)
        self.info = info
        self._voice = voice
        self._style = style
        self._worker = worker
        self._gone = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_event(self, event: Event) -> bool:
        """Start synthesis; the connection is watched meanwhile."""
        if Synthesize.is_type(event.type):
            text = Synthesize.from_event(event).text
            if len(text) > LONGEST_TEXT:
                await self.write_event(Error(text=f"the text has {len(text)} characters; at most {LONGEST_TEXT} "
                                             "can be spoken at once", code="too-long").event())
                return True
            if len(self._tasks) >= 4:
                return False
            task = asyncio.create_task(self.carry_out(partial(self._speak, text)), name="synthesize")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    async def disconnect(self) -> None:
        """Let the synthesis for a client that left end early: the next one may be waited for."""
        self._gone.set()
        session = self._voice.session
        if isinstance(session, FrugalSession):
            session.stop(self._gone)
        for task in self._tasks:
            task.cancel()

    async def _speak(self, text: str) -> None:
        rate = self._voice.config.sample_rate
        await self.write_event(AudioStart(rate=rate, width=2, channels=1).event())
        loop = asyncio.get_running_loop()
        sentences = sentences_of(self._voice, text, self._style, self._gone)
        while (audio := await loop.run_in_executor(self._worker, next, sentences, None)) is not None:
            for start in range(0, len(audio), CHUNK_BYTES):
                await self.write_event(AudioChunk(rate=rate, width=2, channels=1,
                                                  audio=audio[start:start + CHUNK_BYTES]).event())
        await self.write_event(AudioStop().event())


def sentences_of(voice: PiperVoice, text: str, style: SynthesisConfig, gone: threading.Event) -> Iterator[bytes]:
    """Yield 16-bit mono PCM for each sentence of the text, until the client is gone."""
    session = voice.session
    if isinstance(session, FrugalSession):
        # One worker thread has all texts spoken, a sentence of each at a time.
        session.speaking_for = gone
    try:
        for chunk in voice.synthesize(text, style):
            if gone.is_set():
                return
            yield chunk.audio_int16_bytes
            if isinstance(session, FrugalSession):
                session.speaking_for = gone
    except Fail:
        # onnxruntime's way to end a run that was told to stop.
        if not gone.is_set():
            raise


class FrugalSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime has no complete types
    """Gives the arena's memory back after each sentence, and can be stopped in the middle of one.

    Kept, the arena grows to the longest sentence's (345 MB after long answers); without one every tensor is mapped anew
    by the kernel, and a clause takes 100 ms in place of 60 (measured on two cores).
    """

    speaking_for: threading.Event | None = None
    """Who is spoken for in the worker thread: the event that tells that they are gone."""
    _options: Any = None

    def run(self, output_names: Sequence[str] | None, input_feed: dict[str, Any], run_options: Any = None) -> Any:
        options = run_options or onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._options = options
        try:
            if self.speaking_for is not None and self.speaking_for.is_set():
                options.terminate = True
            return super().run(output_names, input_feed, options)
        finally:
            self._options = None

    def stop(self, gone: threading.Event) -> None:
        """End the run that is under way for ``gone``, between two of its operators; it raises `Fail`."""
        options = self._options
        if options is not None and self.speaking_for is gone:
            options.terminate = True


def load(model: Path, threads: int) -> PiperVoice:
    """Load a voice with a session tuned for short texts on few cores, and warm it.

    Raises `ModelFileError` when onnxruntime or Piper cannot read the files.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning workers would take the cores from the recogniser and the language model between two sentences.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Every sentence has another length, and the plan of its memory would be kept for each.
    options.enable_mem_pattern = False
    try:
        settings = PiperConfig.from_dict(json.loads(model.with_name(model.name + ".json").read_text("utf-8")))
        session = FrugalSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
    except FileNotFoundError as error:
        raise ModelFileError(f"{error.filename}: a Piper voice needs its .onnx file and the .onnx.json "
                             "beside it") from None
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated classes for a broken file
        raise ModelFileError(f"{model}: this voice cannot be loaded ({str(error)[:200]}); fetch it again with "
                             "`hotpinctl models pull`") from None
    voice = PiperVoice(session=session, config=settings)
    # The first run plans memory and kernels; the first answer should not pay for that.
    for text in ("Yes.", "The first sentence is slow, the second is not."):
        for _ in voice.synthesize(text):
            pass
    return voice


def main() -> None:
    """Load the voice and serve."""
    parser = argparse.ArgumentParser()
    for name in ("socket", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--speaker", type=int, default=0)
    parser.add_argument("--length-scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()
    threads = args.threads or cores()

    async def serve() -> None:
        worker = ThreadPoolExecutor(1, thread_name_prefix="piper")
        voice = await asyncio.get_running_loop().run_in_executor(worker, partial(load, args.model, threads))
        several = voice.config.num_speakers > 1
        if args.speaker and args.speaker >= voice.config.num_speakers:
            raise ModelFileError(f"tts.speaker is {args.speaker}, but the voice {args.model.stem} has speakers 0 to "
                                 f"{voice.config.num_speakers - 1}")
        style = SynthesisConfig(speaker_id=args.speaker if several else None, length_scale=args.length_scale)
        attribution = Attribution(name="Piper", url="https://github.com/OHF-Voice/piper1-gpl")
        language = args.model.stem.split("-")[0]
        speakers = [TtsVoiceSpeaker(name=name) for name in voice.config.speaker_id_map]
        info = Info(tts=[TtsProgram(
            name="piper", attribution=attribution, installed=True, description="Piper", version=__version__,
            voices=[TtsVoice(name=args.model.stem, attribution=attribution, installed=True, description=None,
                             version=None, languages=[language], speakers=speakers or None)])])
        await serve_wyoming(args.socket, partial(PiperHandler, voice, style, worker, info),
                            rate=voice.config.sample_rate, voice=args.model.stem)

    run_engine(serve, parent=args.parent)


if __name__ == "__main__":
    main()
