"""Whole turns with other engines than the default ones: speech servers over TCP, and the second binding of whisper."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotpind.config import Config
from hotpind.engines.fleet import piper_spec, whisper_spec
from hotpind.engines.supervisor import Engine
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import ask_all, assert_conforming, spoken
from tests.appliance.recordings import letter_error_rate, librivox, word_error_rate
from tests.places import models_path

READY_S = 60.0
RECORDING = librivox()[0]
QUESTION = "What is the capital of France?"


@contextlib.asynccontextmanager
async def over_tcp(engine: Engine) -> AsyncIterator[str]:
    """Run an engine that belongs to nobody behind a TCP port of the loopback; gives its address."""
    passing: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(engine.spec.socket)
        for task in (asyncio.create_task(pump(reader, inner_writer)), asyncio.create_task(pump(inner_reader, writer))):
            passing.add(task)
            task.add_done_callback(passing.discard)

    engine.start()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        await engine.ready(READY_S)
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await engine.stop()
        for task in [*passing]:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)


@pytest.mark.slow
async def test_ears_and_voice_on_another_machine_serve_a_whole_turn() -> None:
    store, config = ModelStore(models_path()), Config()

    def ears() -> Path:
        return store.resolve(config.stt.model, Role.STT).main

    def voice() -> Path:
        return store.resolve(config.tts.voice, Role.TTS).main

    with tempfile.TemporaryDirectory(prefix="hp-") as folder:
        async with (over_tcp(Engine(whisper_spec(config, Path(folder), ears))) as hears,
                    over_tcp(Engine(piper_spec(config, Path(folder), voice))) as speaks):
            daemon = await asyncio.to_thread(Daemon, {"STT__URI": hears, "TTS__URI": speaks})
            try:
                question = await asyncio.to_thread(spoken, daemon, QUESTION)
                recorded, synthetic = await ask_all(daemon, "far", [RECORDING.pcm, question])
                for turn in (recorded, synthetic):
                    assert turn.answered, turn.error
                    assert_conforming(turn)
                assert word_error_rate([(RECORDING.text, recorded.transcript)]) <= 0.2, recorded.transcript
                heard = await asyncio.to_thread(daemon.transcribe, synthetic.wav)
                assert letter_error_rate(synthetic.response, heard) <= 0.35, (synthetic.response, heard)
                assert daemon.family() == ["llama"], "no speech engine runs here"
                status = await asyncio.to_thread(daemon.status)
                assert [(each["uri"], each["state"]) for each in status["speech_servers"]] == [
                    (hears, "online"), (speaks, "online")]
                assert status["faults"] == []
            finally:
                assert await asyncio.to_thread(daemon.stop) == 0, daemon.log
    assert "Traceback" not in daemon.log, daemon.log


@pytest.mark.slow
async def test_the_second_binding_of_whisper_serves_a_whole_turn() -> None:
    with running({"STT__ENGINE": "whisper-cpp-python"}) as daemon:
        question = await asyncio.to_thread(spoken, daemon, QUESTION)
        recorded, synthetic = await ask_all(daemon, "old", [RECORDING.pcm, question], realtime=False)
        for turn in (recorded, synthetic):
            assert turn.answered, turn.error
            assert_conforming(turn)
        assert word_error_rate([(RECORDING.text, recorded.transcript)]) <= 0.2, recorded.transcript
        assert "france" in synthetic.transcript.lower()
        assert "whisper-cpp-python" in daemon.engines()["whisper"].cmdline()
