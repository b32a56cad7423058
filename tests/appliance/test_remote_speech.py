"""A speech server elsewhere that is away, comes, goes and comes back; the server is our own Piper engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hotpind.config import Config
from hotpind.engines.fleet import piper_spec
from hotpind.engines.remote import ASK_EVERY_S, ask
from hotpind.engines.supervisor import Engine
from hotpind.errors import EngineUnavailable
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.appliance.harness import Daemon
from tests.places import models_path


def voice() -> Path:
    return ModelStore(models_path()).resolve(Config().tts.voice, Role.TTS).main


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[Engine]:
    """Run a voice that belongs to nobody; it can be stopped and started."""
    engine = Engine(piper_spec(Config(), folder, voice))
    try:
        yield engine
    finally:
        await engine.stop()


async def until(condition: Callable[[], object], seconds: float, daemon: Daemon) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            assert daemon.process.poll() is None, daemon.log
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_a_voice_elsewhere_that_goes_and_comes_back_is_told_and_nothing_else_suffers() -> None:
    with tempfile.TemporaryDirectory(prefix="hp-") as folder:
        async with server(Path(folder)) as piper:
            uri = f"unix://{piper.spec.socket}"
            daemon = await asyncio.to_thread(Daemon, {"TTS__URI": uri}, wait=False)
            try:
                def faults() -> list[str]:
                    with contextlib.suppress(OSError):
                        return [fault for fault in daemon.status()["faults"] if uri in fault]
                    return []

                await until(faults, 120, daemon)
                assert "text-to-speech server" in faults()[0]
                assert not daemon.status()["ready"]
                assert not daemon.url
                shown = daemon.status()["speech_servers"]
                assert shown == [{"name": "text-to-speech", "uri": uri, "state": "offline"}]
                piper.start()
                await asyncio.to_thread(daemon.wait_until_serving)
                assert not faults()
                assert [each["state"] for each in daemon.status()["speech_servers"]] == ["online"]
                assert await asyncio.to_thread(doctor, daemon) == "fine"
                await asyncio.to_thread(say, daemon)
                restarts = [engine["restarts"] for engine in daemon.status()["engines"]]
                await piper.stop()
                assert await asyncio.to_thread(doctor, daemon) == "fault"
                await until(faults, ASK_EVERY_S + 45, daemon)
                status = daemon.status()
                assert status["ready"]
                assert [engine["restarts"] for engine in status["engines"]] == restarts
                told = daemon.log.count("answers again")
                piper.start()
                await until(lambda: not faults(), 60, daemon)
                await asyncio.to_thread(say, daemon)
                await until(lambda: daemon.log.count("answers again") > told, 10, daemon)
            finally:
                assert await asyncio.to_thread(daemon.stop) == 0, daemon.log


def say(daemon: Daemon) -> None:
    script = ("import http.client, socket, sys\n"
              "c = http.client.HTTPConnection('localhost'); c.sock = socket.socket(socket.AF_UNIX)\n"
              "c.sock.connect(sys.argv[1]); c.request('POST', '/api/v1/say', b'{\"text\": \"one\"}')\n"
              "print(c.getresponse().read()[:4])")
    heard = subprocess.run([sys.executable, "-c", script, str(daemon.runtime / "control.sock")], capture_output=True,
                           text=True, timeout=60, check=True)
    assert heard.stdout.strip() == "b'RIFF'"


def doctor(daemon: Daemon) -> str:
    found = json.loads(daemon.ctl("doctor", "--json", check=False).stdout)
    return str(next(finding["verdict"] for finding in found if finding["topic"] == "voice"))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"type":"pong"}\n', b'{"type":5}\n'])
async def test_what_is_not_a_speech_server_is_named(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        with pytest.raises(EngineUnavailable, match="does not answer as"):
            await ask(f"unix://{tmp_path / 's'}")
    with pytest.raises(EngineUnavailable, match="takes no connection"):
        await ask(f"unix://{tmp_path / 'nothing'}")
    with pytest.raises(EngineUnavailable, match="does not answer as"):
        await ask("http://localhost")
