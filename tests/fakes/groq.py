"""A Groq that misbehaves on command.

It speaks the chat completions API under ``/openai/v1`` (as the service does) and under ``/v1`` (as servers on
a LAN do), over TCP, TLS or a unix socket:

    async with FakeGroq() as fake:
        fake.behave("late", after=10)           # until told otherwise
        fake.behave("reset", words=3, times=1)  # for one request, then well again
        ... settings: chat.groq.base_url = fake.url ...
        assert fake.chats[-1].body["stream"] is True

The kinds are the methods of `_Misbehaviour`; `FakeGroq.unplug` and `plug` take the whole service away and back.
``python -m tests.fakes.groq --host ADDRESS`` runs one as a process, in a network namespace for example.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import io
import ipaddress
import json
import socket
import ssl
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

KEY = "gsk_fake0123456789abcdefghijklmnopqrstuvwxyz"
MODELS = ("meta-llama/llama-4-scout-17b-16e-instruct", "qwen/qwen3.6-27b")
ANSWER = "Paris is the capital of France. It lies on the river Seine."


@dataclass(slots=True)
class Recorded:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    raw: bytes
    body: Any
    """The decoded JSON; None when there is none."""
    at: float
    """`time.monotonic()` when the request had come in."""
    finished: bool = False
    """The answer was sent to its end."""
    dropped: bool = False
    """The client closed the connection before that."""
    sent_words: int = 0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What happens to requests."""

    kind: str = "ok"
    options: dict[str, Any] = field(default_factory=dict)
    models_too: bool = False


class FakeGroq:
    """The service; see the module."""

    _place: socket.socket | None = None
    """Bound to the port and never listening: while unplugged nobody else is given it, and connecting is refused."""

    def __init__(self, *, tls: Literal["", "good", "self-signed", "wrong-name"] = "", socket: Path | None = None,
                 host: str = "127.0.0.1", idle_s: float = 75.0, key: str | None = KEY) -> None:
        """``key``: requests with another one get 401; None takes every one. ``idle_s``: idle connections are
        closed.
        """
        self.answer: str | Callable[[dict[str, Any]], str] = ANSWER
        self.token_s = 0.0
        """Seconds before each word."""
        self.key = key
        self.models: list[str] = list(MODELS)
        self.limits: dict[str, str] = {}
        """Further headers of every answer, such as x-ratelimit-remaining-tokens."""
        self.tokens_per_minute = 0
        """When not 0, answers cost tokens of a bucket of so many, which fills up again within a minute; 429 without."""
        self.list_status = 200
        """Status of requests for the list of models: 404 and 405 are what servers say that offer none."""
        self.list_s = 0.0
        """Seconds before each list of models."""
        self.requests: list[Recorded] = []
        self.ca_file: Path | None = None
        """The certificate authority to trust (``tls="good"``)."""
        self.connections = 0
        """Connections accepted so far."""
        self._tls = tls
        self._socket = socket
        self._host = host
        self._idle_s = idle_s
        self._bucket = (0.0, 0.0)
        self._behaviour = Behaviour()
        self._left: int | None = None
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._context: ssl.SSLContext | None = None
        self._open: set[asyncio.Transport] = set()
        self._files = tempfile.TemporaryDirectory(prefix="fake-groq-")

    async def __aenter__(self) -> FakeGroq:
        if self._tls:
            self._context = self._certified()
        await self.plug()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unplug()
        if self._place is not None:
            self._place.close()
        self._files.cleanup()

    @property
    def port(self) -> int:
        """TCP port, the same after `unplug` and `plug`."""
        return self._port

    @property
    def unplugged(self) -> bool:
        """Whether the service was taken away."""
        return self._runner is None

    @property
    def open_connections(self) -> int:
        """Connections that are open now and have sent a request."""
        return sum(not transport.is_closing() for transport in self._open)

    @property
    def url(self) -> str:
        """What `chat.groq.base_url` or $GROQ_BASE_URL is set to."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    @property
    def openai_url(self) -> str:
        """What a `[[chat.backend]]` table's url is set to."""
        return f"{self.url}/v1"

    @property
    def chats(self) -> list[Recorded]:
        """The requests for answers, probes included."""
        return [request for request in self.requests if request.path.endswith("/chat/completions")]

    @property
    def questions(self) -> list[Recorded]:
        """The requests for answers to people: those for more than one token."""
        return [request for request in self.chats
                if (request.body.get("max_completion_tokens") or request.body.get("max_tokens")) != 1]

    def behave(self, kind: str = "ok", *, times: int | None = None, models_too: bool = False, **options: Any) -> None:
        """Do ``kind`` from now on, or for the next ``times`` requests for answers; see `_Misbehaviour`."""
        if not hasattr(_Misbehaviour, kind):
            raise ValueError(f"this Groq cannot behave {kind!r}")
        self._behaviour = Behaviour(kind, options, models_too)
        self._left = times

    async def unplug(self) -> None:
        """Stop listening and reset every connection: connecting is refused."""
        runner, self._runner = self._runner, None
        for transport in list(self._open):
            if not transport.is_closing():
                transport.abort()
        if runner:
            await runner.cleanup()

    async def plug(self) -> None:
        """Listen again, on the same port."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        for base in ("/openai/v1", "/v1"):
            app.add_routes([web.post(f"{base}/chat/completions", self._chat), web.get(f"{base}/models", self._list)])
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1,
                                     keepalive_timeout=self._idle_s)
        await self._runner.setup()
        if self._socket is not None:
            await web.UnixSite(self._runner, str(self._socket)).start()
            return
        if self._place is None:
            self._place = socket.socket()
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._place.bind((self._host, self._port))
            self._port = self._place.getsockname()[1]
        await web.TCPSite(self._runner, self._host, self._port, ssl_context=self._context, reuse_address=True).start()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        record = await self._record(request)
        behaviour = self._next()
        if (refusal := self._refusal(record) or self._spent(record)) is not None:
            record.finished = True
            return refusal
        return await self._do(behaviour, request, record)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        record = await self._record(request)
        await asyncio.sleep(self.list_s)
        if self.list_status != 200:
            record.finished = True
            return web.Response(status=self.list_status, text="404 page not found")
        if self._behaviour.models_too:
            return await self._do(self._behaviour, request, record)
        if (refusal := self._refusal(record)) is None:
            refusal = web.json_response({"object": "list", "data": [
                {"id": name, "object": "model", "created": 1, "owned_by": "fake"} for name in self.models]},
                headers=self.limits)
        record.finished = True
        return refusal

    async def _do(self, behaviour: Behaviour, request: web.Request, record: Recorded) -> web.StreamResponse:
        act: Callable[..., Awaitable[web.StreamResponse]] = getattr(_Misbehaviour(self, request, record),
                                                                    behaviour.kind)
        try:
            response = await act(**behaviour.options)
        except asyncio.CancelledError:
            record.dropped = True
            raise
        except ConnectionError:
            record.dropped = True
            return web.Response()  # goes nowhere
        record.finished = True
        return response

    async def _record(self, request: web.Request) -> Recorded:
        transport = request.transport
        if isinstance(transport, asyncio.Transport) and transport not in self._open:
            self._open = {known for known in self._open if not known.is_closing()} | {transport}
            self.connections += 1
        raw = await request.read()
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        headers = {name.lower(): value for name, value in request.headers.items()}
        record = Recorded(request.method, request.path, headers, raw, body, time.monotonic())
        self.requests.append(record)
        return record

    def _next(self) -> Behaviour:
        behaviour = self._behaviour
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._behaviour, self._left = Behaviour(), None
        return behaviour

    def _refusal(self, record: Recorded) -> web.Response | None:
        if self.key is not None and record.headers.get("authorization") != f"Bearer {self.key}":
            return problem(401, "Invalid API Key", "invalid_request_error", "invalid_api_key")
        model = record.body.get("model") if isinstance(record.body, dict) else None
        if model is not None and model not in self.models:
            return problem(404, f"The model `{model}` does not exist or you do not have access to it.",
                           "invalid_request_error", "model_not_found")
        return None

    def _spent(self, record: Recorded) -> web.Response | None:
        """Take a request's tokens from the bucket; returns the refusal when there are too few."""
        most = self.tokens_per_minute
        if not most:
            return None
        left, at = self._bucket
        left = min(most, left + (record.at - at) * most / 60) if at else most
        cost = request_tokens(record.body)
        enough = cost <= left
        left -= cost if enough else 0
        self._bucket = left, record.at
        self.limits = {"x-ratelimit-limit-tokens": str(most), "x-ratelimit-remaining-tokens": str(int(left)),
                       "x-ratelimit-reset-tokens": f"{(most - left) * 60 / most:.2f}s"}
        wait = (cost - left) * 60 / most
        return None if enough else problem(429, "Rate limit reached for model", "tokens", "rate_limit_exceeded",
                                           {"retry-after": f"{wait:.0f}", **self.limits})

    def text_for(self, record: Recorded) -> str:
        """Return the answer to a request."""
        return self.answer(record.body) if callable(self.answer) else self.answer

    def _certified(self) -> ssl.SSLContext:
        """Make a certificate: of an authority of its own, of none, or for another name."""
        folder = Path(self._files.name)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake groq")])
        names: list[x509.GeneralName] = ([x509.DNSName("elsewhere.example")] if self._tls == "wrong-name" else
                                         [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(self._host))])
        now = datetime.now(UTC)
        certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
                       .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
                       .not_valid_after(now + timedelta(days=1))
                       .add_extension(x509.SubjectAlternativeName(names), critical=False)
                       .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
                       .sign(key, hashes.SHA256()))
        pem = folder / "certificate.pem"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        if self._tls != "self-signed":
            self.ca_file = pem
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem, folder / "key.pem")
        return context


class _Misbehaviour:
    """Each method is a kind of behaviour."""

    def __init__(self, fake: FakeGroq, request: web.Request, record: Recorded) -> None:
        self._fake = fake
        self._request = request
        self._record = record
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **fake.limits})

    async def ok(self) -> web.StreamResponse:
        """Answer."""
        return await self._answer(self._fake.text_for(self._record))

    async def says(self, text: str, finish: str = "stop") -> web.StreamResponse:
        """Answer with ``text``."""
        return await self._answer(text, finish=finish)

    async def late(self, after: float = 3600.0) -> web.StreamResponse:
        """Answer only after so many seconds, headers included."""
        await asyncio.sleep(after)
        return await self.ok()

    async def silent(self) -> web.StreamResponse:
        """Send the headers, then nothing."""
        await self._begin()
        await asyncio.sleep(3600)
        return self._response

    async def drip(self, every: float = 3.0, after: int = 1) -> web.StreamResponse:
        """Send the first words (``after`` of them) at once, then one every so many seconds."""
        await self._begin()
        for index, word in enumerate(_words(self._fake.text_for(self._record))):
            if index >= after:
                await asyncio.sleep(every)
            await self._say(word)
        return await self._end()

    async def stall(self, words: int = 3) -> web.StreamResponse:
        """Fall silent after so many words, with the connection open."""
        await self._begin()
        await self._say_first(words)
        await asyncio.sleep(3600)
        return self._response

    async def reset(self, words: int = 3) -> web.StreamResponse:
        """Reset the connection in the middle of a token, after so many words (0: before the headers)."""
        if words:
            await self._begin()
            await self._say_first(words)
            await self._response.write(b'data: {"id":"x","object":"chat.completion.chunk","choi')
        self._abort()
        return self._response

    async def truncated(self, words: int = 3) -> web.StreamResponse:
        """End the body properly after so many words, without the closing mark."""
        await self._begin()
        await self._say_first(words)
        await self._response.write_eof()
        return self._response

    async def stall_at_end(self) -> web.StreamResponse:
        """Answer, say that this was all, and then neither send the closing mark nor close the connection."""
        await self._say_all()
        await asyncio.sleep(3600)
        return self._response

    async def reset_at_end(self, *, closing_mark: bool = False, after: float = 0.05) -> web.StreamResponse:
        """Answer, say that this was all (with ``closing_mark`` in both ways), and reset the connection a moment later,
        before the end of the body.
        """
        await self._say_all()
        if closing_mark:
            await self._response.write(b"data: [DONE]\n\n")
        await asyncio.sleep(after)
        self._abort()
        return self._response

    async def malformed(self, words: int = 0) -> web.StreamResponse:
        """Send events that are not JSON."""
        await self._begin()
        await self._say_first(words)
        for _ in range(3):
            await self._response.write(b"data: {this is : not json]\n\n")
        return await self._end()

    async def error_in_stream(self, words: int = 0, code: str = "internal_server_error") -> web.StreamResponse:
        """Answer 200 and put an error object into the stream."""
        await self._begin()
        await self._say_first(words)
        await self._event({"error": {"message": "something went wrong", "type": "server_error", "code": code}})
        await self._response.write_eof()
        return self._response

    async def gzip(self) -> web.StreamResponse:
        """Compress the answer although nobody asked for it."""
        body = b"".join(_encoded(chunk) for chunk in _chunks(_words(self._fake.text_for(self._record)), "stop"))
        return web.Response(body=gzip.compress(body + b"data: [DONE]\n\n"),
                            headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})

    async def packed_badly(self) -> web.StreamResponse:
        """Say that the answer is compressed, which it is not."""
        self._response.headers["Content-Encoding"] = "gzip"
        return await self.ok()

    async def redirect(self, to: str) -> web.StreamResponse:
        """Send the client elsewhere, as nobody should go with a key."""
        return web.Response(status=307, headers={"Location": to})

    async def huge(self, status: int = 200, size: int = 100_000_000, shape: str = "line") -> web.StreamResponse:
        """Send a body of so many bytes: one ``line``, ``events`` that carry nothing, or a ``bomb``: a thousandth of
        that, which unpacks to it.
        """
        self._response.set_status(status)
        if shape == "bomb":
            self._response.headers["Content-Encoding"] = "gzip"
            await self._begin()
            packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
            for _ in range(size // 1_000_000):
                await self._response.write(packer.compress(b"x" * 1_000_000) + packer.flush(zlib.Z_SYNC_FLUSH))
            await self._response.write_eof(packer.flush())
            return self._response
        await self._begin()
        piece = b"x" * 65536 if shape == "line" else (_encoded({"choices": []}) * 3000)
        sent = 0
        while sent < size:
            await self._response.write(piece)
            sent += len(piece)
            self._record.sent_words = sent
        await self._response.write_eof()
        return self._response

    async def rate_limited(self, retry_after: str | float | None = 7.0, *, as_date: bool = False) -> web.StreamResponse:
        """Answer 429; ``retry_after`` seconds as a number, or ``as_date``; None sends no header."""
        headers = dict(self._fake.limits)
        if retry_after is not None:
            headers["retry-after"] = str(retry_after)
            if as_date:
                when = datetime.now(UTC) + timedelta(seconds=float(retry_after))
                headers["retry-after"] = format_datetime(when, usegmt=True)
        return problem(429, "Rate limit reached for model", "tokens", "rate_limit_exceeded", headers)

    async def retired(self) -> web.StreamResponse:
        """Answer 404 as for a model that is gone."""
        return problem(404, "The model `x` does not exist or you do not have access to it.",
                       "invalid_request_error", "model_not_found")

    async def decommissioned(self) -> web.StreamResponse:
        """Answer 400 as for a model that is gone."""
        return problem(400, "The model `x` has been decommissioned and is no longer supported.",
                       "invalid_request_error", "model_decommissioned")

    async def too_large(self, most: int = 0) -> web.StreamResponse:
        """Answer 413 to requests of more than ``most`` bytes."""
        if len(self._record.raw) <= most:
            return await self.ok()
        return problem(413, "Request Entity Too Large", "invalid_request_error", "request_too_large")

    async def unauthorized(self) -> web.StreamResponse:
        """Answer 401."""
        return problem(401, "Invalid API Key", "invalid_request_error", "invalid_api_key")

    async def forbidden(self, *, model: bool = False) -> web.StreamResponse:
        """Answer 403; ``model``: because of the model that was asked for."""
        if model:
            name = self._record.body["model"]
            return problem(403, f"The model `{name}` is blocked at the organization level.", "permissions_error",
                           "model_permission_blocked_org")
        return problem(403, "Access denied. Please check your network settings.", "permission_error", "")

    async def error(self, status: int = 500) -> web.StreamResponse:
        """Answer with an HTTP status of trouble: 5xx, 498."""
        return problem(status, "Internal Server Error", "internal_server_error", "")

    async def bad_request(self) -> web.StreamResponse:
        """Answer 400 for a reason of its own."""
        return problem(400, "'messages' is odd", "invalid_request_error", "")

    async def html(self) -> web.StreamResponse:
        """Answer 200 with the login page of a hotel."""
        return web.Response(text="<html><body>Welcome! Please log in.</body></html>", content_type="text/html")

    async def garbage(self) -> web.StreamResponse:
        """Answer with something that is not HTTP."""
        if self._request.transport is not None:
            self._request.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        self._abort(rudely=False)
        return self._response

    async def empty(self) -> web.StreamResponse:
        """Answer with nothing."""
        return await self._answer("")

    async def think(self, *, closed: bool = False) -> web.StreamResponse:
        """Answer with thoughts only."""
        return await self._answer("<think>The user wants to know a thing. I wonder." + ("</think>" if closed else ""))

    async def think_aloud(self, every: float = 0.05, words: int = 0) -> web.StreamResponse:
        """Think without end, after so many words."""
        await self._begin()
        await self._say_first(words)
        await self._say("<think>")
        while True:
            await self._say("hmm ")
            await asyncio.sleep(every)

    async def repeat(self) -> web.StreamResponse:
        """Say the same sentence without end."""
        return await self._without_end("I am a helpful assistant and I am here to help you. ")

    async def loop(self) -> web.StreamResponse:
        """Say the same words without end and without a full stop."""
        return await self._without_end("and then the cat and then ")

    async def long(self, words: int = 2000) -> web.StreamResponse:
        """Answer with so many words."""
        return await self._answer(" ".join(f"Sentence number {index} is about thing {index}."
                                           for index in range(words // 6)))

    async def _without_end(self, text: str) -> web.StreamResponse:
        await self._begin()
        while True:
            for word in _words(text):
                await self._say(word)
            await asyncio.sleep(0)

    async def _answer(self, text: str, *, finish: str = "stop") -> web.StreamResponse:
        if not (self._record.body or {}).get("stream"):
            return web.json_response({"id": "x", "object": "chat.completion", "choices": [
                {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]})
        await self._begin()
        for word in _words(text):
            if self._fake.token_s:
                await asyncio.sleep(self._fake.token_s)
            await self._say(word)
        return await self._end(finish)

    async def _begin(self) -> None:
        await self._response.prepare(self._request)

    async def _say_all(self) -> None:
        await self._begin()
        for word in _words(self._fake.text_for(self._record)):
            await self._say(word)
        await self._event(_chunk({}, "stop"))

    async def _say_first(self, words: int) -> None:
        for word in _words(self._fake.text_for(self._record))[:words]:
            await self._say(word)

    async def _say(self, word: str) -> None:
        await self._event(_chunk({"content": word}))
        self._record.sent_words += 1

    async def _end(self, finish: str = "stop") -> web.StreamResponse:
        await self._event(_chunk({}, finish))
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()
        return self._response

    async def _event(self, event: dict[str, Any]) -> None:
        await self._response.write(_encoded(event))

    def _abort(self, *, rudely: bool = True) -> None:
        transport = self._request.transport
        if isinstance(transport, asyncio.Transport):
            with contextlib.suppress(OSError):
                if rudely:
                    transport.abort()
                else:
                    transport.close()


def request_tokens(body: dict[str, Any]) -> int:
    """Return what a request costs: its texts, its pictures by their size, and the longest answer that it allows."""
    tokens = int(body.get("max_completion_tokens") or 0)
    for message in body["messages"]:
        parts = message["content"]
        plain: list[dict[str, Any]] = [{"type": "text", "text": parts}]
        for part in plain if isinstance(parts, str) else parts:
            if part["type"] == "text":
                tokens += len(part["text"]) // 4 + 4
            else:
                jpeg = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                with Image.open(io.BytesIO(jpeg)) as image:
                    tokens += image.width * image.height // 784
    return tokens


def problem(status: int, message: str, kind: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return an error as Groq words it."""
    return web.json_response({"error": {"message": message, "type": kind, "code": code}}, status=status,
                             headers=headers)


def _words(text: str) -> list[str]:
    """Cut a text into pieces as tokens come: a word with the space before it."""
    pieces = text.split(" ")
    return [pieces[0], *(f" {piece}" for piece in pieces[1:])] if text else []


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": "fake",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def _chunks(words: list[str], finish: str) -> list[dict[str, Any]]:
    return [*(_chunk({"content": word}) for word in words), _chunk({}, finish)]


def _encoded(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


async def _serve(host: str, port: int, key: str | None) -> None:
    """Run the fake as a process of its own: print the port, then obey lines of JSON on standard input.

    ``{"kind": "late", "after": 10}`` is `FakeGroq.behave`; each line is answered by one with the number of questions.
    """
    fake = FakeGroq(host=host, key=key)
    fake._port = port
    async with fake:
        print(fake.port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            fake.behave(**json.loads(line))
            print(json.dumps({"questions": len(fake.questions), "requests": len(fake.requests)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.host, arguments.port, arguments.key or None))
