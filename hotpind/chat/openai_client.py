"""A streaming client for OpenAI-compatible chat servers: on the LAN over TCP, our own engine over a unix
socket.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from hotpind.chat.backend import Event
from hotpind.chat.completions import AnswerReader, Service, status_error
from hotpind.chat.key import Secret
from hotpind.chat.lookup import LookupResolver, NameLookup
from hotpind.chat.streaming import CONNECTIONS, ERROR_BYTES, events_of
from hotpind.errors import BackendTooLate, BackendUnreachable, BadAnswer

LIST_BYTES = 1024 * 1024
"""As much of a list of models as is read."""
KEEP_ALIVE_S = 30.0


class _StaleError(BackendUnreachable):
    """The connection ended before the first byte of an answer, as a kept one does that the server closed meanwhile."""


class ChatClient:
    """One server. Raises `hotpind.errors.BackendError` and nothing else."""

    def __init__(self, base_url: str, service: Service, *, lookup: NameLookup, connect_timeout_s: float,
                 socket: Path | None = None, key: Callable[[], Secret | None] = lambda: None) -> None:
        """Talk to ``base_url`` (up to ``/v1``), through the unix socket ``socket`` when there is one.

        A server on the network whose kept connection turns out to be closed is asked once more; behind a socket it is
        the caller who knows what became of the server.
        """
        self._base = base_url.rstrip("/")
        self._service = service
        self._name = service.name
        self._lookup = lookup
        self._connect_timeout_s = connect_timeout_s
        self._socket = socket
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def stream(self, body: Mapping[str, Any] | bytes, *, model: str, quiet_s: float
                     ) -> AsyncGenerator[Event, None]:
        """Post a request for a streamed answer (its JSON, encoded or not) and yield what comes back.

        ``quiet_s``: longest silence in seconds. Closing the generator closes the connection.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        for last in (self._socket is not None, True):
            try:
                async with self._request("POST", "/chat/completions", data, quiet_s=quiet_s) as response:
                    await self._check(response, model)
                    reader = AnswerReader(self._service, model=model)
                    async with contextlib.aclosing(events_of(response.content.iter_any(), reader)) as events:
                        async for event in events:
                            yield event
                return
            except _StaleError:
                if last:
                    raise

    async def models(self, *, quiet_s: float) -> list[str]:
        """Return the names of the models that the server has; none when it offers no list (not every one does)."""
        async with self._request("GET", "/models", None, quiet_s=quiet_s) as response:
            if response.status in (404, 405):
                await _at_most(response, ERROR_BYTES)
                return []
            await self._check(response, "")
            try:
                listing = json.loads(await _at_most(response, LIST_BYTES))
                return [str(model["id"]) for model in listing["data"]]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BadAnswer(f"{self._name} answers, but not with a list of models; check its address") from None

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @contextlib.asynccontextmanager
    async def _request(self, method: str, path: str, data: bytes | None, *, quiet_s: float
                       ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s, sock_read=quiet_s)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json",
                   # Compressing a stream of tokens saves nothing and delays each of them.
                   "Accept-Encoding": "identity"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key.reveal()}"
        answered = False
        try:
            async with self._opened().request(method, self._base + path, data=data, headers=headers,
                                              timeout=timeout, allow_redirects=False) as response:
                answered = True
                yield response
        except aiohttp.ClientConnectorCertificateError:
            raise BackendUnreachable(f"{self._name} shows a certificate that is not valid for its address") from None
        except aiohttp.ConnectionTimeoutError:
            raise BackendUnreachable(f"{self._name} cannot be reached within "
                                     f"{self._connect_timeout_s:g} s") from None
        except TimeoutError:
            raise BackendTooLate(f"{self._name} was silent for {quiet_s:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            kind = BackendUnreachable if answered or isinstance(error, aiohttp.ClientConnectorError) else _StaleError
            raise kind(f"{self._name} cannot be reached") from None
        except aiohttp.ClientPayloadError:
            raise BackendUnreachable(f"{self._name} ended the connection too early") from None
        except aiohttp.ClientError as error:
            raise BadAnswer(f"{self._name} does not speak HTTP as expected ({type(error).__name__})") from None

    async def _check(self, response: aiohttp.ClientResponse, model: str) -> None:
        if response.status == 200:
            return
        try:
            body = json.loads(await _at_most(response, ERROR_BYTES))
        except (ValueError, RecursionError):
            body = None
        raise status_error(response.status, response.headers, body, service=self._service, model=model,
                           now=datetime.now(UTC))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._socket is not None:
                connector = aiohttp.UnixConnector(str(self._socket), limit=CONNECTIONS,
                                                  keepalive_timeout=KEEP_ALIVE_S)
            else:
                resolver = LookupResolver(self._lookup, timeout_s=self._connect_timeout_s)
                connector = aiohttp.TCPConnector(resolver=resolver, limit=CONNECTIONS, ttl_dns_cache=60,
                                                 keepalive_timeout=KEEP_ALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


async def _at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read the body up to ``limit`` bytes; the rest stays unread and the connection is dropped."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit])
    return bytes(body)
