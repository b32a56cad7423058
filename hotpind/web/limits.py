"""The HTTP server's own limits: what a client may hold open, and for how long, before it asks for anything.

A client that sends its headers a byte at a time (slowloris) costs a connection each. aiohttp ends a
connection whose next request is not complete after ``keepalive_timeout``; `ConnectionGuard` bounds how many
there can be until then, and gives up the oldest of them, never one whose request is being served. `Handshakes` does
the same for encrypted connections that are not there yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from hotpind.devices.limiter import Rate, RateLimiter

HEADERS_SECONDS = 15.0
"""Time for a request's headers to be complete, counted from the connection or from the request before."""
HANDSHAKE_SECONDS = 10.0
"""Time for the TLS handshake."""
MOST_HANDSHAKES = 64
BACKLOG = 100
ACCEPT_RETRY_SECONDS = 0.5
MOST_IDLE = 512
MOST_IDLE_PER_ADDRESS = 32
GRACE_SECONDS = 1.0
"""Time to ask something before an address's connections count as too many: many devices may live behind one."""

_PORT_ATTEMPTS = 8
_LOG_EACH = Rate(burst=1, per_second=1 / 60)
_LOG_ALL = Rate(burst=10, per_second=0.1)


class NotHttp(logging.Filter):
    """Turns the server's traceback for bytes that are no HTTP into a sentence, a few times a minute at most.

    Anybody can send such bytes, so they must not fill the log, nor be quoted in it: they may hold a token.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said = RateLimiter(_LOG_EACH, _LOG_ALL)

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass everything else on as it is."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        address = str(record.args[0]) if isinstance(record.args, tuple) and record.args else "somewhere"
        record.msg, record.args = "Refused a request from %s that is not proper HTTP", (address,)
        record.exc_info = record.exc_text = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return self._said.take(address, self._clock()) == 0


_SERVER_LOG = logging.getLogger("hotpind.web.server")
_SERVER_LOG.addFilter(NotHttp())

RUNNER_OPTIONS: dict[str, Any] = {
    "keepalive_timeout": HEADERS_SECONDS,
    "max_line_size": 4096,
    "max_field_size": 4096,
    "lingering_time": 2.0,
    # A compressed request body would be unpacked before anybody could look at its size; no client sends one.
    "auto_decompress": False,
    "logger": _SERVER_LOG,
}
"""Arguments for `aiohttp.web.AppRunner`."""


class ConnectionGuard:
    """Bounds the connections on which no request is being served.

    Its ``middleware`` has to be the first of the application, and its sites have to be `GuardedSite`s.
    """

    def __init__(self, *, most: int = MOST_IDLE, per_address: int = MOST_IDLE_PER_ADDRESS,
                 grace: float = GRACE_SECONDS) -> None:
        self._most = most
        self._per_address = per_address
        self._grace = grace
        self._serving: set[object] = set()
        self._made: dict[object, float] = {}

    @property
    def middleware(self) -> Middleware:
        """Marks the connection of each request as busy while it is served."""
        @web.middleware
        async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._serving.add(request.protocol)
            try:
                return await handler(request)
            finally:
                self._serving.discard(request.protocol)

        return serve

    def factory(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """Wrap aiohttp's protocol factory: each new connection makes room for itself."""
        loop = asyncio.get_running_loop()

        def make() -> asyncio.Protocol:
            self._make_room(server, loop.time())
            connection = server()
            self._made[connection] = loop.time()
            return connection

        return make

    def _make_room(self, server: web.Server, now: float) -> None:
        # aiohttp lists connections in the order in which they were made; one is listed once it is set up.
        connections = server.connections
        listed = set(connections)
        self._made = {each: made for each, made in self._made.items() if each in listed or now - made <= self._grace}
        idle = [each for each in connections if each not in self._serving and each.transport is not None]
        if len(idle) < min(self._most, self._per_address):
            return
        by_address: dict[str, list[web.RequestHandler]] = defaultdict(list)
        for each in idle:
            by_address[_peer(each)].append(each)
        for mine in by_address.values():
            patient = [each for each in mine if now - self._made.get(each, 0.0) > self._grace]
            for each in patient[:max(0, len(mine) + 1 - self._per_address)]:
                each.force_close()
                idle.remove(each)
        for each in idle[:max(0, len(idle) + 1 - self._most)]:
            each.force_close()


def _peer(connection: web.RequestHandler) -> str:
    peer = connection.transport.get_extra_info("peername") if connection.transport is not None else None
    return str(peer[0]) if peer else ""


class Handshakes:
    """Accepts connections on a socket and does their TLS handshakes, so many at a time.

    asyncio's own server keeps any number of half-open ones, out of reach until they are complete or too old: whoever
    opens some thousands would use up the process's file descriptors. Here the oldest is given up, of the address that
    has the most of them: a pin, which takes a second or two for its only one, is left alone.
    """

    def __init__(self, listener: socket.socket, factory: Callable[[], asyncio.Protocol], context: ssl.SSLContext, *,
                 most: int = MOST_HANDSHAKES) -> None:
        """Begin at once; ``listener`` is bound and becomes this object's to close."""
        self._listener = listener
        self._factory = factory
        self._context = context
        self._most = most
        self._going_on: dict[asyncio.Task[None], str] = {}
        listener.listen(BACKLOG)
        self._accepting = asyncio.create_task(self._accept(), name="TLS: accept")

    async def close(self) -> None:
        """Stop accepting, and give up handshakes that are going on."""
        tasks = [self._accepting, *self._going_on]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError:
                # The client is gone already, or there is no file descriptor left.
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            task = asyncio.create_task(self._shake_hands(connection), name="TLS: handshake")
            self._going_on[task] = str(peer[0])
            task.add_done_callback(lambda done: self._going_on.pop(done, None))
            if len(self._going_on) > self._most:
                ((crowd, _),) = Counter(self._going_on.values()).most_common(1)
                oldest = next(each for each, address in self._going_on.items() if address == crowd)
                # At once, since a cancelled task ends a moment later only and must not be chosen again until then.
                del self._going_on[oldest]
                oldest.cancel()
            # A flood of connections must not keep everything else from its turn.
            await asyncio.sleep(0)

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):  # what goes wrong here is the client's affair
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._factory, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        except asyncio.CancelledError:
            connection.close()
            raise


class GuardedSite(web.BaseSite):
    """A TCP address on which a runner's application is served within the limits."""

    __slots__ = ("_guard", "_handshakes", "_host", "_listeners", "_port")

    def __init__(self, runner: web.BaseRunner, guard: ConnectionGuard, host: str, port: int, *,
                 ssl_context: ssl.SSLContext | None = None) -> None:
        """``host`` is an address, or empty for all of them, IPv4 and IPv6; ``port`` 0 takes a free one."""
        super().__init__(runner, ssl_context=ssl_context)
        self._guard = guard
        self._host = host
        self._port = port
        self._listeners: list[asyncio.Server] = []
        self._handshakes: list[Handshakes] = []

    @property
    def port(self) -> int:
        """The port in use, once started."""
        return self._port

    @property
    def name(self) -> str:
        """The address, for the log."""
        host = f"[{self._host}]" if ":" in self._host else self._host or "*"
        return f"{'https' if self._ssl_context else 'http'}://{host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when the address is taken or not one of this machine's."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner has to be set up before its sites are started")
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(self._host or None, self._port, type=socket.SOCK_STREAM,
                                       flags=socket.AI_PASSIVE)
        sockets = bind_all([(info[0], info[4]) for info in infos])
        self._port = sockets[0].getsockname()[1]
        for bound in sockets:
            factory = self._guard.factory(server)
            if self._ssl_context is None:
                self._listeners.append(await loop.create_server(factory, sock=bound))
            else:
                self._handshakes.append(Handshakes(bound, factory, self._ssl_context))

    async def stop(self) -> None:
        """Stop listening; connections go on until the runner ends them."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await asyncio.gather(*(each.close() for each in self._handshakes))
        self._handshakes.clear()
        await super().stop()


def bind_all(addresses: Sequence[tuple[int, tuple[Any, ...]]]) -> list[socket.socket]:
    """Bind a TCP socket for each (family, address), all to the same port, also when that is 0 for a free one.

    Families that the machine does not have are left out. Raises OSError when an address is taken or none is left.
    """
    attempts = _PORT_ATTEMPTS if addresses[0][1][1] == 0 else 1
    while True:
        try:
            return _bind_same_port(addresses)
        except OSError as error:
            attempts -= 1
            # A free port of one family may be taken in the other: then another one is tried.
            if error.errno != errno.EADDRINUSE or attempts == 0:
                raise


def _bind_same_port(addresses: Sequence[tuple[int, tuple[Any, ...]]]) -> list[socket.socket]:
    bound: list[socket.socket] = []
    failure: OSError | None = None
    for family, (host, port, *scope) in addresses:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            failure = error
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, bound[0].getsockname()[1] if bound else port, *scope))
            bound.append(sock)
        except OSError as error:
            sock.close()
            failure = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or len(addresses) == 1:
                for other in bound:
                    other.close()
                raise
    if not bound:
        raise failure or OSError(errno.EADDRNOTAVAIL, "there is no address to listen on")
    return bound
