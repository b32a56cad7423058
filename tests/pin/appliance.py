"""A small, strict appliance for the pin's tests: speaks the protocol, checks the pin, and misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from hotpind.speech.audio import wav_header

RATE = 16000
LEAD_S = 2.0


@dataclass
class Recording:
    """What the pin sent in one recording."""

    frames: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def pcm(self) -> bytes:
        return b"".join(self.frames)


class Link:
    """One connection, with a method for each message of the protocol."""

    def __init__(self, ws: web.WebSocketResponse, session: str) -> None:
        self.ws = ws
        self.session = session

    async def send(self, **message: Any) -> None:
        await self.ws.send_str(json.dumps(message))

    async def stage(self, name: str, **fields: Any) -> None:
        defaults: dict[str, dict[str, Any]] = {
            "llm": {"transcript": f"Question of {self.session}", "has_image": False}, "tts": {"response": "Well"}}
        await self.send(status="processing", stage=name, **{**defaults.get(name, {}), **fields})

    async def audio(self, seconds: float, *, header: bytes | None = None, paced: bool = True, end: bool = True) -> None:
        await self.bytes((wav_header(RATE, None) if header is None else header) + bytes(round(seconds * RATE) * 2),
                         paced=paced)
        if end:
            await self.ws.send_bytes(b"")

    async def bytes(self, data: bytes, *, paced: bool = True) -> None:
        began = time.monotonic()
        for start in range(0, len(data), 4096):
            ahead = start / (RATE * 2) - (time.monotonic() - began)
            if paced and ahead > LEAD_S:
                await asyncio.sleep(ahead - LEAD_S)
            await self.ws.send_bytes(data[start:start + 4096])

    async def complete(self, **fields: Any) -> None:
        await self.send(status="complete", response=f"Answer to {self.session}", turn="t-1", backend="test",
                        timings={"stt": 0.1}, **fields)

    async def sorry(self, sentence: str = "Could not understand audio. Please try again.") -> None:
        await self.send(status="error", message=sentence)
        await self.send(status="idle")


Answer = Callable[[Link, Recording], Awaitable[None]]


async def good_answer(link: Link, recording: Recording) -> None:
    """Answer as the protocol wants it: 0.5 s of sound, or an error for an empty recording."""
    await link.stage("transcription")
    if not recording.frames:
        await link.sorry()
        return
    await link.stage("llm")
    await link.stage("tts")
    await link.audio(0.5)
    await link.complete()


class Appliance:
    """The server. Set its attributes to make it misbehave; look at what it noticed afterwards."""

    def __init__(self, answer: Answer = good_answer) -> None:
        self.answer = answer
        self.knows: Callable[[str], bool] | None = None
        """Whether a token is right; None lets everybody in."""
        self.ack_delay_s = 0.0
        self.acks = True
        self.welcome = True
        self.close_on_frame: int | None = None
        self.recordings: dict[str, list[Recording]] = {}
        self.hellos: list[str] = []
        self.on_hello: Callable[[str], None] = lambda _: None
        self.texts: list[str] = []
        self.pings = 0
        self.images: list[tuple[bytes, bytes]] = []
        """Header and body of each picture's request."""
        self.image_reply: tuple[int, bytes] | None = None
        self.complaints: list[str] = []
        """What the pin did wrong."""
        self.url = ""
        self.links: list[Link] = []
        self._runner: web.AppRunner | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.more_routes: list[Callable[[web.Application], None]] = []
        self.host = "127.0.0.1"
        self.port = 0
        self.tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Appliance:
        app = web.Application(client_max_size=6_000_000)
        app.add_routes([web.get("/ws", self._ws), web.post("/image", self._image)])
        for add_routes in self.more_routes:
            add_routes(app)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, reuse_address=True, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_answers()
        assert self._runner is not None
        await self._runner.cleanup()

    def _refuse(self, request: web.Request) -> bool:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.knows is not None and not self.knows(token)

    async def _image(self, request: web.Request) -> web.Response:
        if self._refuse(request):
            return web.json_response({"status": "error", "message": "Unknown token."}, status=401)
        body = await request.read()
        self.images.append((request.headers["Content-Type"].encode(), body))
        if self.image_reply is not None:
            status, content = self.image_reply
            return web.Response(status=status, body=content, content_type="application/json")
        size = len(body.split(b"image/jpeg\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
        session = body.split(b"\r\n\r\n", 1)[1].split(b"\r\n", 1)[0].decode()
        return web.json_response({"status": "success", "message": "Taken.", "session": session,
                                  "filename": "image.jpg", "size_bytes": size, "context_ready": True})

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        if self._refuse(request):
            return web.json_response({"status": "error", "message": "Unknown token."}, status=401)
        if "Sec-WebSocket-Extensions" in request.headers:
            self.complaints.append("the pin offered compression")
        ws = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=65536)
        await ws.prepare(request)
        hello = await ws.receive_str()
        self.hellos.append(hello)
        self.on_hello(hello)
        link = Link(ws, json.loads(hello)["session_id"])
        self.links.append(link)
        if self.welcome:
            await link.send(status="connected", session_id=link.session)
        with contextlib.suppress(ConnectionError):
            await self._serve(link)
        return ws

    async def _serve(self, link: Link) -> None:
        recording, unanswered = Recording(), 0
        async for message in link.ws:
            if message.type == WSMsgType.PING:
                self.pings += 1
                await link.ws.pong(message.data)
            elif message.type == WSMsgType.BINARY:
                self._check_frame(recording, message.data)
                unanswered += 1
                if unanswered > 2:
                    self.complaints.append("a third frame came before the acknowledgement")
                if len(recording.frames) == self.close_on_frame:
                    await link.ws.close(code=1012)
                    return
                if len(recording.frames) % 2 == 0 and self.acks:
                    unanswered = 0
                    await asyncio.sleep(self.ack_delay_s)
                    await link.send(status="receiving", chunks_received=len(recording.frames),
                                    bytes_received=len(recording.pcm))
            elif message.type == WSMsgType.TEXT:
                await self._signal(link, recording, message.data)
                recording, unanswered = Recording(), 0

    async def _signal(self, link: Link, recording: Recording, text: str) -> None:
        self.texts.append(text)
        match json.loads(text).get("signal"):
            case "EOS":
                self.recordings.setdefault(link.session, []).append(recording)
                self._begin(self.answer(link, recording))
            case "CANCEL":
                await self._stop_answers()
                await link.ws.send_bytes(b"")
                await link.send(status="idle")
            case "RESET":
                await link.send(status="reset_complete")
            case _:
                self.complaints.append("the pin sent an unknown signal")

    def _check_frame(self, recording: Recording, data: bytes) -> None:
        if len(data) > 4096 or (recording.frames and len(recording.frames[-1]) < 4096):
            self.complaints.append("a frame other than the last is not 4096 bytes")
        recording.frames.append(data)
        recording.times.append(time.monotonic())

    async def _stop_answers(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, answer: Awaitable[None]) -> None:
        async def run() -> None:
            with contextlib.suppress(ConnectionError):
                await answer

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
