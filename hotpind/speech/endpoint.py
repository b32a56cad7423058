"""Where a speech engine is: our own supervised process, or any Wyoming server on the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp.abc import AbstractResolver
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event

from hotpind.engines.remote import connected
from hotpind.engines.supervisor import Engine
from hotpind.errors import EngineBroke, EngineTimeout, EngineUnavailable

CONNECT_DEADLINE_S = 2.0
"""A server on the LAN accepts in milliseconds; past two seconds the turn is better retried."""
RESTART_WAIT_S = 8.0
"""How long a request waits for an engine that is being restarted: tiny.en and Piper load in one second on a PC,
about four on a Pi 4."""


class Endpoint(Protocol):
    """A Wyoming server and what to do when it hangs."""

    name: str
    resolver: AbstractResolver | None
    """Looks up the name in the address, if it has one."""

    async def uri(self, *, refused: bool = False) -> str:
        """Return the address, waiting for a restart if need be; ``refused``: the one before took no connection.

        Raises `EngineUnavailable`, also when nothing can be hoped for after a refusal.
        """

    def request(self) -> AbstractContextManager[None]:
        """Mark a request as under way."""

    def hung(self, reason: str) -> None:
        """Report that a request passed its deadline."""


class EngineEndpoint:
    """Our own engine process."""

    def __init__(self, engine: Engine) -> None:
        """Wrap a supervised engine."""
        self.engine = engine
        self.name = engine.spec.name
        self.resolver: AbstractResolver | None = None

    async def uri(self, *, refused: bool = False) -> str:
        """See `Endpoint.uri`."""
        return f"unix://{await self.engine.ready(RESTART_WAIT_S, refused=refused)}"

    def request(self) -> AbstractContextManager[None]:
        """See `Endpoint.request`."""
        return self.engine.request()

    def hung(self, reason: str) -> None:
        """See `Endpoint.hung`."""
        self.engine.replace(reason)


class RemoteEndpoint:
    """Somebody else's Wyoming server."""

    def __init__(self, name: str, uri: str, resolver: AbstractResolver | None = None) -> None:
        """Take the server at ``uri`` (tcp://host:port or unix:///path); ``resolver`` as in `connected`."""
        self.name = name
        self.resolver = resolver
        self._uri = uri

    async def uri(self, *, refused: bool = False) -> str:
        """See `Endpoint.uri`."""
        if refused:
            raise EngineUnavailable(f"the {self.name} server at {self._uri} does not accept connections; "
                                    "check that it runs")
        return self._uri

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """See `Endpoint.request`."""
        yield

    def hung(self, reason: str) -> None:
        """See `Endpoint.hung`: nothing can be done about a remote server but to say so in the error."""


@contextlib.asynccontextmanager
async def conversation(endpoint: Endpoint, deadline_s: float) -> AsyncIterator[AsyncClient]:
    """Connect to the endpoint for one request of at most ``deadline_s`` seconds.

    Leaving early closes the connection, which cancels the work at the other end. Raises `EngineUnavailable`,
    `EngineTimeout` or `EngineBroke`.
    """
    try:
        client = await _connected(await endpoint.uri(), endpoint.resolver)
    except (OSError, TimeoutError):
        uri = await endpoint.uri(refused=True)
        try:
            client = await _connected(uri, endpoint.resolver)
        except (OSError, TimeoutError):
            raise EngineUnavailable(f"the {endpoint.name} engine at {uri} does not accept connections") from None
    try:
        with endpoint.request():
            async with asyncio.timeout(deadline_s):
                yield client
    except TimeoutError:
        reason = f"no answer within {deadline_s:.0f} s"
        endpoint.hung(reason)
        raise EngineTimeout(f"the {endpoint.name} engine gave {reason}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise EngineBroke(f"the {endpoint.name} engine broke off ({type(error).__name__})") from None
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await client.disconnect()


async def _connected(uri: str, resolver: AbstractResolver | None) -> AsyncClient:
    try:
        # Not the library's own connect_timeout: it uses wait_for, which in Python 3.11 can swallow a cancellation that
        # arrives as the connection is made, and a turn that was to be stopped would wait for ever.
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            return await connected(uri, resolver)
    except ValueError:
        # Also for a host name that cannot be one.
        raise EngineUnavailable(f"{uri} is not an address; use tcp://host:port or unix:///path") from None


async def next_event(client: AsyncClient, endpoint: Endpoint) -> Event:
    """Read an event. Raises `EngineBroke` when the server closed the connection or sent an error."""
    event = await client.read_event()
    if event is None:
        raise EngineBroke(f"the {endpoint.name} engine closed the connection")
    if Error.is_type(event.type):
        raise EngineBroke(f"the {endpoint.name} engine refused: {Error.from_event(event).text[:200]}")
    return event


Result = TypeVar("Result")


class MadeWayError(Exception):
    """The request was interrupted by a more urgent one."""


async def interruptible(task: asyncio.Task[Result]) -> Result:
    """Return a task's result; raises `MadeWayError` when somebody else cancelled it.

    Whoever waits for it may be cancelled, too: then it is, and the engine is told by the connection's end.
    """
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
    if task.cancelled():
        raise MadeWayError
    return task.result()


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place in a queue."""

    urgency: float
    """The smallest goes first; may be changed while the request waits."""


class Turnstile:
    """Lets a bounded number of requests through at once, the most urgent of the waiting ones first."""

    def __init__(self, places: int) -> None:
        """Allow ``places`` requests at once."""
        self._free = places
        self._waiting: list[tuple[Ticket, asyncio.Future[None]]] = []

    @property
    def in_use(self) -> bool:
        """Tell whether the next request would have to wait."""
        return not self._free

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def passage(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a place; equally urgent requests go in order of arrival."""
        await self._enter(ticket)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, ticket: Ticket) -> None:
        if self._free:
            self._free -= 1
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, called))
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._leave()
            else:
                self._waiting.remove((ticket, called))
            raise

    def _leave(self) -> None:
        """Call the most urgent of the waiting requests; those cancelled just now are still in the queue."""
        able = [each for each in self._waiting if not each[1].done()]
        if not able:
            self._free += 1
            return
        first = min(able, key=lambda each: each[0].urgency)
        self._waiting.remove(first)
        first[1].set_result(None)
