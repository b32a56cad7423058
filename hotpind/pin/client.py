"""A wearable in software: speaks the pin's protocol over a real connection, with the firmware's timing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, Literal, Self

import aiohttp
from yarl import URL

from hotpind.errors import PinError, PinOfflineError, PinRefusedError
from hotpind.pin.conformance import FRAME_BYTES, PinModel
from hotpind.pin.image import ImageReply, post_image
from hotpind.pin.result import PinTurn, turn_result
from hotpind.pin.room import room_silence
from hotpind.pin.transport import Tls, why
from hotpind.pin.turn import Limits, PinStage, TurnRecord
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES

CONNECT_WAIT_S = 10.0
"""For TCP, TLS and the upgrade; the same for the first reply."""
PING_S = 10.0
PINGS_UNANSWERED = 3
"""Pings without any pong after which the connection counts as dead."""
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 10, 5, 3
MESSAGE_BUFFER_BYTES = 64 * 1024
"""The pin's receive buffer."""
FRAME_SPACING_S = 0.020
"""The firmware's loop sends frames no closer than this."""
AUTHORIZATION_BYTES = 512
"""The firmware's buffer for the Authorization header."""
SEND_WAIT_S = 10.0
"""For the connection to take a frame; far more than the flow control ever leaves to be sent."""
CLOSE_WAIT_S = 2.0
PORTS = {"http": 8000, "https": 8443}


def base_url(address: str) -> URL:
    """Normalise an appliance's address: ``host``, ``host:port``, or an http, https, ws or wss URL of it.

    The appliance's own ports are the defaults. Raises `hotpind.errors.PinError` for anything else.
    """
    text = address.strip()
    if "://" not in text:
        text = f"http://{text}"
    with contextlib.suppress(ValueError):
        url = URL(text)
        scheme = {"ws": "http", "wss": "https"}.get(url.scheme, url.scheme)
        if scheme in PORTS and url.host:
            return URL.build(scheme=scheme, host=url.host, port=url.explicit_port or PORTS[scheme],
                             path=url.path.rstrip("/").removesuffix("/ws") or "/")
    raise PinError(f"{address!r} is no address of an appliance; give one such as http://192.168.1.20:8000.")


class Pin:
    """One pin and its connection. Use `connect`, `ask`, `send_image` and `close`, or ``async with``."""

    def __init__(self, url: str, session_id: str, *, token: str | None = None, ssl: Tls | None = None,
                 hello_extra: dict[str, Any] | None = None, limits: Limits | None = None,
                 on_message: Callable[[float, dict[str, Any]], None] | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare a pin that reaches its appliance at ``url`` and is known there as ``session_id``.

        ``hello_extra`` is added to the first message, as newer pins do (``{"features": ["endpointing"]}``);
        ``on_message`` sees every JSON object as it comes, with its time. Raises `hotpind.errors.PinError`.
        """
        self.base = base_url(url)
        self.session_id = session_id
        self._token = token
        if token is not None and len(f"Bearer {token}".encode()) > AUTHORIZATION_BYTES:
            raise PinError(f"The token is too long: a pin's Authorization header holds {AUTHORIZATION_BYTES} "
                           "bytes.")
        self._tls: Tls = True if ssl is None else ssl
        self._hello_extra = dict(hello_extra or {})
        self._limits = limits or Limits()
        self._on_message = on_message
        self._clock = clock
        self._http: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._turn_lock = asyncio.Lock()
        self._pings_out = 0
        self._lost = ""
        self.closed = asyncio.Event()
        """Set when the connection is gone."""
        self.model = self._new_model()
        """What the pin makes of this connection; anew with every `connect`."""

    @property
    def connected(self) -> bool:
        """The appliance has answered the first message and the connection stands."""
        return self._ws is not None and self.model.connected and not self.closed.is_set()

    @property
    def violations(self) -> tuple[str, ...]:
        """Breaches of the protocol on this connection, those of its turns included."""
        return tuple(self.model.violations)

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def connect(self) -> None:
        """Open the connection and wait for the appliance's welcome.

        Raises `PinRefusedError` for a wrong or missing token, `PinOfflineError` for every other failure.
        """
        await self.close()
        self.model = self._new_model()
        self._changed.clear()
        self.closed.clear()
        self._lost, self._pings_out = "", 0
        try:
            self._ws = await self._open()
            self._tasks = [asyncio.create_task(self._read(self._ws), name=f"pin {self.session_id} reads"),
                           asyncio.create_task(self._ping(self._ws), name=f"pin {self.session_id} pings")]
            await self._hello()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave; may be called at any time and more than once."""
        tasks, self._tasks = self._tasks, []
        ws, self._ws = self._ws, None
        http, self._http = self._http, None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._gone("The pin closed the connection.")
        if ws is not None and not ws.closed:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(CLOSE_WAIT_S):
                    await ws.close()
        if http is not None:
            await http.close()

    async def send_image(self, jpeg: bytes, filename: str = "image.jpg") -> ImageReply:
        """Send a picture on a connection of its own, connected or not.

        Raises `PinOfflineError` when no reply came; a refusal is a reply.
        """
        return await post_image(self.base, self.session_id, jpeg, token=self._token, tls=self._tls,
                                filename=filename)

    async def reset(self) -> None:
        """Begin a new conversation. Raises `PinOfflineError` when the appliance does not confirm it."""
        ws = self._require()
        self.model.sent_signal(self._clock(), "RESET")
        await self._send_text(ws, {"signal": "RESET"})
        deadline = self._clock() + self._limits.reset_s
        while self.model.reset_at is not None and not self.closed.is_set() and self._clock() < deadline:
            await self._wait_change(deadline)
        if self.closed.is_set() or self.model.reset_at is not None:
            raise PinOfflineError(self._lost or "The appliance did not confirm the new conversation in time.")

    async def cancel(self) -> None:
        """Stop the answer being given (protocol version 2); a running `ask` returns what was heard."""
        ws = self._require()
        self.model.sent_signal(self._clock(), "CANCEL")
        await self._send_text(ws, {"signal": "CANCEL"})

    async def ask(self, pcm: bytes, *, realtime: bool = True, tail_silence_s: float = 0.0,
                  drain: Literal["model", "fast"] = "fast") -> PinTurn:
        """Say ``pcm`` (16 kHz, 16-bit little-endian, mono) and take the answer.

        ``realtime`` sends it as a microphone would, else as fast as the flow control lets. ``tail_silence_s``
        adds a room's silence before EOS. ``drain="model"`` returns when the modelled pin has played the
        answer, ``"fast"`` as soon as the appliance has sent it. A failed turn is a result with ``error`` set;
        raises `PinOfflineError` only when there is no connection to begin with.
        """
        async with self._turn_lock:
            ws = self._require()
            await self._until_ready()
            previous = self.model.turn
            sound = pcm + room_silence(tail_silence_s)
            try:
                await self._talk(ws, sound, realtime=realtime)
                await self._listen()
                if drain == "model":
                    await self._play_out()
            finally:
                self.model.tick(self._clock())
            turn = self.model.turn
            if turn is None or turn is previous:
                raise PinOfflineError(self._lost or "The connection broke before anything was said.")
            return turn_result(turn, None if turn.complete_at is not None else self._reason(turn))

    def _new_model(self) -> PinModel:
        features = self._hello_extra.get("features")
        ends = isinstance(features, list | tuple) and "endpointing" in features
        return PinModel(self.session_id, limits=self._limits, server_ends_speech=ends)

    def _require(self) -> aiohttp.ClientWebSocketResponse:
        if self._ws is None or not self.connected:
            raise PinOfflineError(self._lost or "The pin is not connected.")
        return self._ws

    def _reason(self, turn: TurnRecord) -> str:
        if self.closed.is_set():
            return self._lost
        if turn.given_up:
            return f"The appliance gave no answer within {self._limits.turn_s:g} s."
        return "The turn was ended without an answer."

    async def _open(self) -> aiohttp.ClientWebSocketResponse:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._tls))
        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                ws = await self._http.ws_connect(self.base / "ws", headers=headers, autoping=False,
                                                 compress=0, max_msg_size=MESSAGE_BUFFER_BYTES)
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise PinRefusedError(f"The appliance at {self.base} does not know this pin or its token "
                                      f"({error.status}); pair it.") from None
            if error.status == HTTPStatus.UPGRADE_REQUIRED:
                raise PinOfflineError(f"{self.base} wants an encrypted connection; use its https address.") from None
            raise PinOfflineError(f"{self.base} opens no WebSocket; it answered {error.status}.") from None
        except TimeoutError:
            raise PinOfflineError(f"{self.base} did not answer within {CONNECT_WAIT_S:.0f} s.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PinOfflineError(f"{self.base} cannot be reached: {why(error)}.") from None
        _keep_alive(ws)
        return ws

    async def _hello(self) -> None:
        assert self._ws is not None
        self.model.sent_hello(self._clock())
        await self._send_text(self._ws, {"session_id": self.session_id, **self._hello_extra})
        deadline = self._clock() + self._limits.connected_s
        while not self.model.connected and not self.closed.is_set() and self._clock() < deadline:
            await self._wait_change(deadline)
        if not self.model.connected:
            raise PinOfflineError(self._lost or "The appliance opened the connection but did not answer.")

    async def _send_text(self, ws: aiohttp.ClientWebSocketResponse, message: dict[str, Any]) -> None:
        # The firmware's cJSON prints without spaces.
        await self._sending(ws.send_str(json.dumps(message, separators=(",", ":"))))

    async def _sending(self, send: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(SEND_WAIT_S):
                await send
        except TimeoutError:
            self._gone(f"The appliance took no data for {SEND_WAIT_S:.0f} s.")
        except (aiohttp.ClientError, OSError) as error:
            self._gone(f"The connection to the appliance broke: {why(error)}.")

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await ws.receive()
            now = self._clock()
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    found = self.model.text(now, message.data)
                    if found is not None and self._on_message is not None:
                        self._on_message(now, found)
                case aiohttp.WSMsgType.BINARY:
                    self.model.binary(now, message.data)
                case aiohttp.WSMsgType.PING:
                    await self._sending(ws.pong(message.data))
                case aiohttp.WSMsgType.PONG:
                    self._pings_out = 0
                case aiohttp.WSMsgType.ERROR:
                    self._gone(f"The connection to the appliance broke: {message.data}.")
                    return
                case _:
                    detail = f", {message.extra}" if message.extra else ""
                    self._gone(f"The appliance closed the connection (code {ws.close_code}{detail}).")
                    return
            self._changed.set()

    async def _ping(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while not self.closed.is_set():
            await asyncio.sleep(PING_S)
            if self._pings_out >= PINGS_UNANSWERED:
                self._gone(f"The appliance did not answer {PINGS_UNANSWERED} pings.")
                return
            self._pings_out += 1
            await self._sending(ws.ping())

    def _gone(self, reason: str) -> None:
        if not self.closed.is_set():
            self._lost = reason
            self.model.closed(self._clock())
            self.closed.set()
        self._changed.set()

    async def _wait_change(self, until: float | None) -> None:
        """Wait for something to be received, at most until ``until`` on the clock."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if until is None else max(0.0, until - self._clock())):
                await self._changed.wait()

    async def _until_ready(self) -> None:
        """A pin that the last turn left locked does not talk before it gives that turn up."""
        while not self.model.ready and not self.closed.is_set():
            await self._wait_change(self.model.locked_until())
            self.model.tick(self._clock())
        self._require()

    async def _talk(self, ws: aiohttp.ClientWebSocketResponse, sound: bytes, *, realtime: bool) -> None:
        """Send the recording and EOS, unless the appliance ends it or the connection breaks."""
        earliest = began = self._clock()
        stage = PinStage.READY
        for captured_s, frame in _frames(sound):
            if realtime:
                earliest = max(earliest, began + captured_s)
            if not await self._until_sendable(earliest, stage):
                break
            stage = PinStage.RECORDING
            now = self._clock()
            self.model.sent_audio(now, len(frame))
            await self._sending(ws.send_bytes(frame))
            earliest = now + FRAME_SPACING_S
        recording = self.model.stage == PinStage.RECORDING or not sound
        if recording and not self.closed.is_set():
            self.model.sent_signal(self._clock(), "EOS")
            await self._send_text(ws, {"signal": "EOS"})

    async def _until_sendable(self, earliest: float, stage: PinStage) -> bool:
        """Wait until the next frame may go; False when the pin left ``stage`` or gave the recording up."""
        while not self.closed.is_set() and self.model.stage == stage:
            now = self._clock()
            deadline = self.model.ack_deadline
            if deadline is not None and now >= deadline:
                self.model.abort(now)
                return False
            if now >= earliest and self.model.may_send_frame:
                return True
            await self._wait_change(earliest if deadline is None else deadline)
        return False

    async def _listen(self) -> None:
        """Take the answer to its end, to an error, or to the pin's patience."""
        while not (self.model.ready or self.model.idle_missing or self.closed.is_set()):
            await self._wait_change(self.model.next_deadline())
            self.model.tick(self._clock())

    async def _play_out(self) -> None:
        until = self.model.plays_until
        while until is not None and not self.closed.is_set() and self._clock() < until:
            await self._wait_change(until)


def _frames(sound: bytes) -> Iterator[tuple[float, bytes]]:
    """Cut a recording into frames, each with the seconds after which a microphone has captured it."""
    for start in range(0, len(sound), FRAME_BYTES):
        frame = sound[start:start + FRAME_BYTES]
        yield (start + len(frame)) / SAMPLE_BYTES / PIN_RATE, frame


def _keep_alive(ws: aiohttp.ClientWebSocketResponse) -> None:
    """Set the firmware's TCP keepalive."""
    link: socket.socket | None = ws.get_extra_info("socket")
    if link is not None and link.family in (socket.AF_INET, socket.AF_INET6):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
