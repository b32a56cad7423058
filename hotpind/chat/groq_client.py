"""The official Groq client, set up for somebody who waits for a spoken answer, and its errors in our
words.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import urllib.request
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import cast

import groq
import httpx
from groq.types.chat import ChatCompletionChunk

from hotpind.chat.completions import Service, status_error
from hotpind.chat.key import Secret
from hotpind.chat.lookup import NameLookup, is_address
from hotpind.chat.sse import MAX_TOTAL_BYTES
from hotpind.chat.streaming import CONNECTIONS, ERROR_BYTES
from hotpind.errors import BackendError, BackendTooLate, BackendUnreachable, BadAnswer

SERVICE = Service("groq", "set a valid one with `hotpinctl key set`")
API_PATH = "/openai/v1"
"""The client adds it; addresses copied from a documentation page often have it already."""
ADDRESS_VARIABLE = "GROQ_BASE_URL"
"""The client reads it by itself, but takes it as it is."""
_STREAM = groq.AsyncStream[ChatCompletionChunk]
KEEP_ALIVE_S = 50.0
"""How long an idle connection is kept: the TLS handshake is the largest part of a short question's way."""
UNPACKED_BYTES = 64 * 1024
"""As much of a compressed answer as is unpacked at a time."""
NAME_GOOD_S = 60.0
"""For so long after a name was found it is not looked up ahead of a request."""


class GroqClient:
    """One `groq.AsyncGroq` with one connection pool: short timeouts, no retries, no redirects, bounded
    answers.
    """

    def __init__(self, base_url: str | None, key: Secret, *, connect_timeout_s: float, lookup: NameLookup,
                 tls: ssl.SSLContext) -> None:
        """``base_url``: None for $GROQ_BASE_URL or the service itself; the API's own path is added to it."""
        base_url = base_url or os.environ.get(ADDRESS_VARIABLE)
        if base_url:
            base_url = base_url.rstrip("/").removesuffix(API_PATH)
        self._connect_timeout_s = connect_timeout_s
        self._lookup = lookup
        self._name_good_until = 0.0
        # Libraries that log requests would log questions and pictures.
        for name in ("groq", "httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        http = httpx.AsyncClient(
            verify=tls, follow_redirects=False, event_hooks={"response": [_bound]},
            # Compressing a stream of tokens saves nothing and delays each of them.
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=4,
                                keepalive_expiry=KEEP_ALIVE_S))
        self._http = http
        self.groq = groq.AsyncGroq(api_key=key.reveal(), base_url=base_url, http_client=http, max_retries=0,
                                   timeout=self.timeout(5.0))

    @classmethod
    async def open(cls, base_url: str | None, key: Secret, *, connect_timeout_s: float, lookup: NameLookup
                   ) -> GroqClient:
        """Make a client; reading the certificate authorities is done in a thread.

        Raises `BadAnswer` when the address is none.
        """
        tls = await asyncio.to_thread(httpx.create_ssl_context)
        try:
            return cls(base_url, key, connect_timeout_s=connect_timeout_s, lookup=lookup, tls=tls)
        except (httpx.InvalidURL, ValueError):
            raise BadAnswer("chat.groq.base_url is not a web address; correct it or leave it empty") from None

    def use_key(self, key: Secret) -> None:
        """Use another key from the next request on."""
        self.groq.api_key = key.reveal()

    def timeout(self, quiet_s: float) -> httpx.Timeout:
        """Return the timeouts of a request whose connection may be silent for ``quiet_s`` seconds."""
        return httpx.Timeout(connect=self._connect_timeout_s, pool=self._connect_timeout_s, read=quiet_s,
                             write=quiet_s)

    async def post(self, body: bytes, *, quiet_s: float) -> httpx.Response:
        """Post an encoded request for a streamed answer; the caller reads the response and closes it.

        The body is encoded elsewhere because that takes the client 20 ms per megabyte of pictures, on the event
        loop. Raises what the groq client raises; see `mapped`.
        """
        await self.look_up()
        response = await self.groq.post(
            f"{API_PATH}/chat/completions", content=body, cast_to=httpx.Response, stream=True, stream_cls=_STREAM,
            options={"timeout": self.timeout(quiet_s), "headers": {"Content-Type": "application/json"}})
        # The client's types do not know that this cast gives the response itself.
        return cast("httpx.Response", response)

    async def models(self, *, quiet_s: float) -> set[str]:
        """Return the names of the models that the key may use.

        Raises what the groq client raises; see `mapped`.
        """
        await self.look_up()
        listing = await self.groq.models.list(timeout=self.timeout(quiet_s))
        try:
            return {str(model.id) for model in listing.data}
        except (AttributeError, TypeError):
            raise BadAnswer("groq answers, but not with a list of models; check chat.groq.base_url") from None

    async def look_up(self) -> None:
        """Look the service's name up ahead of the HTTP library, whose own lookup could hang.

        Raises `BackendUnreachable`.
        """
        url = self.groq.base_url
        now = asyncio.get_running_loop().time()
        # Behind a proxy the name is the proxy's business.
        if now < self._name_good_until or is_address(url.host) or urllib.request.getproxies():
            return
        await self._lookup.find(url.host, url.port or 443, timeout_s=self._connect_timeout_s)
        self._name_good_until = now + NAME_GOOD_S

    def mapped(self, error: Exception, *, model: str) -> BackendError:
        """Return what an exception of the groq client or of httpx means."""
        name = SERVICE.name
        if isinstance(error, BackendError):
            return error
        if isinstance(error, groq.APIStatusError):
            return status_error(error.status_code, error.response.headers, error.body, service=SERVICE,
                                model=model, now=datetime.now(UTC))
        self._name_good_until = 0.0
        cause: BaseException = error
        if isinstance(error, groq.APIConnectionError) and error.__cause__ is not None:
            cause = error.__cause__
        if isinstance(cause, BackendError):
            return cause
        if isinstance(cause, httpx.ReadTimeout):
            return BackendTooLate(f"{name} was silent for too long")
        if isinstance(cause, httpx.TimeoutException):
            return BackendUnreachable(f"{name} cannot be reached in time")
        if isinstance(cause, httpx.ConnectError) and _is_certificate(cause):
            return BackendUnreachable(f"{name} shows a certificate that is not valid for its address")
        if isinstance(cause, httpx.TransportError) and not isinstance(cause, httpx.UnsupportedProtocol):
            return BackendUnreachable(f"{name} cannot be reached")
        return BadAnswer(f"{name} does not speak HTTP as expected ({type(cause).__name__})")

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def was_stale(error: Exception) -> bool:
    """Whether a kept connection turned out to be closed: the request was not taken, so it may be sent
    again.
    """
    cause = error.__cause__ if isinstance(error, groq.APIConnectionError) else None
    return isinstance(cause, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)


def _is_certificate(error: BaseException) -> bool:
    seen = 0
    link: BaseException | None = error
    while link is not None and seen < 8:
        if isinstance(link, ssl.SSLCertVerificationError):
            return True
        link, seen = link.__cause__ or link.__context__, seen + 1
    return False


async def _bound(response: httpx.Response) -> None:
    """Put a bound on what is read of an answer: on what comes over the wire and on what that unpacks to.

    A kilobyte can unpack to a megabyte, and the library unpacks a body as a whole, so it is not left to do that.
    """
    packed = response.headers.pop("content-encoding", "").strip().lower() in {"gzip", "x-gzip", "deflate"}
    response.stream = _Bounded(cast("httpx.AsyncByteStream", response.stream),
                               MAX_TOTAL_BYTES + 1 if response.status_code == 200 else ERROR_BYTES, packed=packed)


class _Bounded(httpx.AsyncByteStream):
    """Stops reading at a limit, as if the body ended there; whoever parses it finds it cut."""

    def __init__(self, stream: httpx.AsyncByteStream, limit: int, *, packed: bool) -> None:
        self._stream = stream
        self._limit = limit
        # With or without the header of gzip.
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = given = 0
        async for chunk in self._stream:
            taken += len(chunk)
            for part in self._unpacked(chunk):
                yield part[:self._limit - given]
                given += len(part)
                if given >= self._limit:
                    return
            if taken >= self._limit:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _unpacked(self, chunk: bytes) -> Iterator[bytes]:
        if self._unpacker is None:
            yield chunk
            return
        try:
            while chunk:
                yield self._unpacker.decompress(chunk, UNPACKED_BYTES)
                chunk = self._unpacker.unconsumed_tail
        except zlib.error:
            raise BadAnswer(f"{SERVICE.name} sent a compressed answer that cannot be unpacked") from None
