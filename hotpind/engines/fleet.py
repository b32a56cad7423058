"""Which engines a configuration asks for, how each is started, and their common end."""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp
from wyoming.client import AsyncUnixClient
from wyoming.ping import Ping, Pong

from hotpind.config import Config
from hotpind.engines.child import cores
from hotpind.engines.supervisor import Engine, EngineSpec
from hotpind.errors import EngineUnavailable
from hotpind.models.store import RECORD_FILE

SPINS = "1000" if platform.machine() == "x86_64" else "13000"
"""Times round libgomp's waiting loop, about 17 us: on x86-64 each holds a pause instruction, elsewhere nothing."""
QUIET_THREADS: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPINS, "OMP_PROC_BIND": "false"}
"""OpenMP's workers meet after every matrix. Left alone they spin for each other without end, and two engines on the
same cores turn a decode of 0.5 s into 45 s (measured: SmolLM2 beside whisper on two cores). Always asleep, each meeting
costs two calls of the kernel: whisper takes 1.5 times as long, and the model's first word twice as long. Some
microseconds catch most meetings. Measured on two cores with 0, 300, 1000, 3000 and 10000 rounds, on a machine that
wakes a thread in 40 us: whisper alone 450, 350, 320, 300, 330 ms; beside a busy model with 300 and more 690, 680, 770,
850 ms."""
LEAN_MEMORY: Mapping[str, str] = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "262144",
                                     "MALLOC_TRIM_THRESHOLD_": "262144"}
"""glibc would keep an arena for each thread, each with its peak; Piper alone keeps 40 to 60 MB more without this."""
LARGE_PAGES: Mapping[str, str] = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Piper takes and gives back some hundred megabytes with each sentence; in large pages that is a tenth quicker."""
PREPARED = "prepared"
"""Directory in a voice's own."""
NICE = {"piper": 0, "llama": 10, "whisper": 12}
"""Speaking before thinking before listening ahead: most of what whisper does is done before anybody waits for it."""


async def ping_wyoming(socket: Path) -> None:
    """Ask a speech engine for a sign of life. Raises OSError or `EngineUnavailable`."""
    client = AsyncUnixClient(socket)
    await client.connect()
    try:
        await client.write_event(Ping().event())
        event = await client.read_event()
        if event is None or not Pong.is_type(event.type):
            raise EngineUnavailable("it does not answer ping")
    finally:
        with contextlib.suppress(OSError):
            await client.disconnect()


async def _ping_http(socket: Path) -> None:
    async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
                session.get("http://localhost/health") as response):
        if response.status != 200:
            # Our own engine, so this is its own sentence.
            raise EngineUnavailable((await response.json())["error"]["message"])


def whisper_spec(config: Config, runtime: Path, model: Callable[[], Path]) -> EngineSpec:
    """Describe the speech-to-text engine; ``model`` finds its file, blocking."""
    return _spec("whisper", runtime, lambda: [
        "--model", str(model()), "--engine", config.stt.engine, "--language", config.stt.language,
        "--threads", str(config.stt.threads or cores())])


def piper_spec(config: Config, runtime: Path, voice: Callable[[], Path]) -> EngineSpec:
    """Describe the text-to-speech engine; ``voice`` finds its .onnx file, blocking."""
    def arguments() -> list[str]:
        file = voice()
        # Only a directory of ours, which goes with the voice; nothing is put beside somebody's own file.
        ours = (file.parent / RECORD_FILE).exists()
        return ["--model", str(file), *(["--prepared", str(file.parent / PREPARED)] if ours else []),
                "--speaker", str(config.tts.speaker), "--length-scale", str(config.tts.length_scale),
                "--threads", str(config.tts.threads or cores())]

    return _spec("piper", runtime, arguments)


def llama_spec(config: Config, runtime: Path, files: Callable[[], tuple[Path, Path | None]]) -> EngineSpec:
    """Describe the language model engine; ``files`` finds the model and its vision projector, blocking."""
    def arguments() -> list[str]:
        model, mmproj = files()
        local = config.chat.local
        return ["--model", str(model), *(["--mmproj", str(mmproj)] if mmproj else []),
                "--context", str(local.context_tokens), "--threads", str(local.threads or cores()),
                "--gpu-layers", str(local.gpu_layers)]

    return _spec("llama", runtime, arguments)


def _spec(name: str, runtime: Path, arguments: Callable[[], list[str]]) -> EngineSpec:
    return EngineSpec(name, lambda: ["-m", f"hotpind.engines.{name}", *arguments()], runtime / f"engine-{name}.sock",
                      _ping_http if name == "llama" else ping_wyoming, NICE[name],
                      {**QUIET_THREADS, **LEAN_MEMORY, **(LARGE_PAGES if name == "piper" else {})})


async def stop_all(engines: list[Engine]) -> None:
    """Stop every engine, all at once: within two seconds each, so within five in all."""
    await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)
