"""The hub behind a real server on loopback, with a brain, ears and a voice that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from hotpind.chat.messages import AnswerStream, ChatRequest
from hotpind.config import Config
from hotpind.conversation.assistant import Assistant
from hotpind.conversation.memory import Memory
from hotpind.conversation.turn import TurnRecord
from hotpind.speech.endpoint import RemoteEndpoint
from hotpind.speech.stt import Transcriber
from hotpind.speech.tts import Synthesizer
from hotpind.wearable.hub import Hub
from tests.fakes.wyoming import FakeSpeech

SMALL = 4096
"""Socket buffers, in bytes: a device that stops reading is to be noticed soon."""
EOS = '{"signal":"EOS"}'
PATIENCE_S = 60.0
"""For what happens in a moment, unless the machine has other things to do."""


class Answer:
    """A stream of an answer's text."""

    backend, model, reason = "fake", "fake", ""
    token_at: float | None = None

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[str]:
        for piece in self._pieces:
            yield piece

    async def aclose(self) -> None:
        """Nothing goes on."""


@dataclass
class Parrot:
    """A brain that always answers the same."""

    pieces: list[str] = field(default_factory=lambda: ["One two three four five six seven, ", "eight nine ten."])

    async def ask(self, request: ChatRequest) -> AnswerStream:
        """Answer."""
        return Answer(self.pieces)


@dataclass
class House:
    """What a test looks at."""

    url: str
    assistant: Assistant
    hub: Hub
    speech: FakeSpeech
    turns: list[TurnRecord]
    server: web.Server
    client: aiohttp.ClientSession

    async def device(self, name: str = "pin-1", *features: str) -> aiohttp.ClientWebSocketResponse:
        """Connect a device, up to the answer to its hello."""
        ws = await self.client.ws_connect(self.url, autoping=True, autoclose=True)
        await ws.send_str(json.dumps({"session_id": name, "features": list(features)}))
        assert (await said(ws))["status"] == "connected"
        return ws


async def said(ws: aiohttp.ClientWebSocketResponse, *, but: str = "receiving") -> dict[str, Any]:
    """Return the next text message whose status is not ``but``."""
    while True:
        message: dict[str, Any] = json.loads(await ws.receive_str(timeout=PATIENCE_S))
        if message["status"] != but:
            return message


async def speak(ws: aiohttp.ClientWebSocketResponse, pcm: bytes) -> None:
    """Send a recording in frames."""
    for start in range(0, len(pcm), 4096):
        await ws.send_bytes(pcm[start:start + 4096])


@contextlib.asynccontextmanager
async def house(tmp_path: Path, settings: dict[str, Any] | None = None, *, clock: Callable[[], float] = time.monotonic,
                **speech: Any) -> AsyncIterator[House]:
    """Build it; ``speech`` goes to `FakeSpeech`."""
    config = Config.model_validate(settings or {})
    turns: list[TurnRecord] = []
    async with contextlib.AsyncExitStack() as stack:
        speech = {"text": "What is it?", **speech}
        fake = await stack.enter_async_context(FakeSpeech(tmp_path / "speech.sock", **speech))
        ears = Transcriber(RemoteEndpoint("speech-to-text", fake.uri), language="en", deadline_s=config.stt.deadline_s)
        voice = Synthesizer(RemoteEndpoint("text-to-speech", fake.uri), deadline_s=config.tts.deadline_s)
        workers = stack.enter_context(ThreadPoolExecutor(1))
        assistant = Assistant(config, Parrot(), ears, voice, workers, Memory(10), new_turn_id=lambda: "t1",
                              on_turn=[turns.append], clock=clock)

        async def may_use(request: web.Request, name: str) -> None:
            """Everybody may."""

        hub = Hub(assistant, may_use, dict)
        app = web.Application()
        app.router.add_get("/ws", hub.connect)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        await web.SockSite(runner, listening).start()
        client = await stack.enter_async_context(aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=_small_socket)))
        assert runner.server is not None
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/ws"
        stack.push_async_callback(hub.close)
        yield House(url, assistant, hub, fake, turns, runner.server, client)


def _small_socket(address: Any) -> socket.socket:
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    return made


async def end_of(ws: aiohttp.ClientWebSocketResponse) -> None:
    """Read until the connection ends."""
    async with asyncio.timeout(PATIENCE_S):
        async for _ in ws:
            pass
