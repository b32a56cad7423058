"""Speech servers elsewhere that are named, with a name server that keeps silent."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from wyoming.event import async_read_event, async_write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from hotpind.chat.lookup import LookupResolver, NameLookup
from hotpind.engines import remote
from hotpind.engines.remote import RemoteServer, ask
from hotpind.errors import EngineUnavailable
from hotpind.speech import endpoint
from hotpind.speech.endpoint import RemoteEndpoint, conversation
from tests.places import TOP


class Names:
    """A resolver that gives these addresses, and hangs until it is let go when there are none."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.threads: list[str] = []
        self.go = threading.Event()

    def __call__(self, _host: str, port: int, **_: Any) -> list[Any]:
        self.threads.append(threading.current_thread().name)
        if not self.addresses:
            self.go.wait(30)
            raise OSError("no name server answers")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@pytest.fixture
def silent() -> Iterator[Names]:
    names = Names()
    yield names
    names.go.set()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Serve Wyoming on 127.0.0.1."""
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (event := await async_read_event(reader)) is not None:
            if Describe.is_type(event.type):
                await async_write_event(Info().event(), writer)
            if Ping.is_type(event.type):
                await async_write_event(Pong().event(), writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def resolver(names: Names) -> AbstractResolver:
    return LookupResolver(NameLookup(names), timeout_s=0.2)


async def test_every_address_of_a_name_is_tried(port: int) -> None:
    # 127.0.0.2 is this machine too, and nothing listens there.
    both = resolver(Names("127.0.0.2", "127.0.0.1"))
    await ask(f"tcp://voice.lan:{port}", both)
    async with conversation(RemoteEndpoint("text-to-speech", f"tcp://voice.lan:{port}", both), 5) as client:
        await client.write_event(Ping().event())
        event = await client.read_event()
        assert event is not None
        assert Pong.is_type(event.type)
    with pytest.raises(EngineUnavailable, match="takes no connection"):
        await ask(f"tcp://voice.lan:{port}", resolver(Names("127.0.0.2")))


async def test_a_silent_name_server_is_a_sentence(silent: Names) -> None:
    server = RemoteServer("speech-to-text", "tcp://ears.lan:10300", resolver(silent))
    watching = asyncio.create_task(server.watch())
    async with asyncio.timeout(40):
        while not server.fault:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert "ears.lan could not be looked up" in server.fault
    ears = RemoteEndpoint("speech-to-text", "tcp://ears.lan:10300", resolver(silent))
    with pytest.raises(EngineUnavailable, match="does not accept connections"):
        async with conversation(ears, 5):
            pass
    assert set(silent.threads) == {"name-lookup"}, "never a thread of the loop's own, which its end waits for"


async def test_deadlines_hold_even_for_a_patient_resolver(silent: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "CONNECT_DEADLINE_S", 0.1)
    monkeypatch.setattr(remote, "ASK_DEADLINE_S", 0.1)
    patient = LookupResolver(NameLookup(silent), timeout_s=60)
    begun = time.monotonic()
    with pytest.raises(EngineUnavailable):
        async with conversation(RemoteEndpoint("speech-to-text", "tcp://ears.lan:10300", patient), 5):
            pass
    with pytest.raises(EngineUnavailable):
        await ask("tcp://ears.lan:10300", patient)
    assert time.monotonic() - begun < 20


DAEMON = textwrap.dedent("""
    import asyncio, socket, sys, time
    real = socket.getaddrinfo
    def slow(host, *rest, **more):
        if host == "ears.lan":
            print("asked", flush=True)
            time.sleep(60)
        return real(host, *rest, **more)
    socket.getaddrinfo = slow
    from hotpind.cli.daemon import main
    sys.argv = ["hotpind"]
    main()
""")


def test_a_daemon_stops_at_once_although_a_lookup_hangs(tmp_path: Path) -> None:
    # Both are elsewhere, so no model is needed; the first question of the watch hangs.
    settings = {"STT__URI": "tcp://ears.lan:10300", "TTS__URI": "tcp://ears.lan:10301", "SERVER__HOST": "127.0.0.1",
                "SERVER__PORT": "0", "DISCOVERY__ENABLED": "false", "PATHS__STATE": str(tmp_path / "s"),
                "PATHS__RUNTIME": str(tmp_path / "r"), "PATHS__MODELS": str(tmp_path / "m"),
                "CHAT__LOCAL__MODEL": "/nowhere/model.gguf"}
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(TOP),
               **{f"HOTPIN_{name}": value for name, value in settings.items()}}
    with subprocess.Popen([sys.executable, "-c", DAEMON], env=environ, cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if line == "asked\n":
                    break
            else:
                raise AssertionError("".join(said))
            time.sleep(0.5)
            begun = time.monotonic()
            process.terminate()
            process.wait(50)
            assert time.monotonic() - begun < 40
        finally:
            process.kill()
