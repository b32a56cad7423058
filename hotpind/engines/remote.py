"""Somebody else's speech server (``stt.uri``, ``tts.uri``): whether it answers, asked now and then.

Nothing here can mend it, so nothing is restarted; a person is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from aiohttp.abc import AbstractResolver
from wyoming.client import AsyncClient, AsyncTcpClient
from wyoming.info import Describe, Info

from hotpind.errors import EngineUnavailable

_LOG = logging.getLogger(__name__)

ASK_EVERY_S = 20.0
ASK_AGAIN_S = 5.0
"""While it does not answer: it should be in use again soon after it came back."""
ASK_DEADLINE_S = 3.0


async def connected(uri: str, resolver: AbstractResolver | None = None) -> AsyncClient:
    """Connect to a Wyoming server, at the first of its addresses that takes the connection.

    ``resolver`` looks its name up. Without one asyncio does, in a thread that the end of the program waits for, however
    long the name server keeps silent. Raises `OSError`, and `ValueError` for what is no address.
    """
    client = AsyncClient.from_uri(uri)
    if resolver is None or not isinstance(client, AsyncTcpClient):
        await client.connect()
        return client
    failure = OSError(f"the name {client.host} has no address")
    for address in await resolver.resolve(client.host, client.port):
        client = AsyncTcpClient(address["host"], address["port"])
        try:
            await client.connect()
        except OSError as error:
            failure = error
        else:
            return client
    raise failure


async def ask(uri: str, resolver: AbstractResolver | None = None) -> None:
    """Have a Wyoming server describe itself; unlike ping, every kind of server answers that.

    ``resolver`` is that of `connected`. Raises `EngineUnavailable` with a phrase that says what is wrong.
    """
    try:
        async with asyncio.timeout(ASK_DEADLINE_S):
            client = await connected(uri, resolver)
            try:
                await client.write_event(Describe().event())
                while (event := await client.read_event()) is not None:
                    if Info.is_type(event.type):
                        return
            finally:
                with contextlib.suppress(OSError):
                    await client.disconnect()
    except TimeoutError:
        raise EngineUnavailable(f"gives no answer within {ASK_DEADLINE_S:.0f} s") from None
    except OSError as error:
        raise EngineUnavailable(f"takes no connection ({error.strerror or error})") from None
    except (EOFError, ValueError, KeyError, TypeError):
        pass
    raise EngineUnavailable("does not answer as a Wyoming server does")


class RemoteServer:
    """Watches one server."""

    def __init__(self, name: str, uri: str, resolver: AbstractResolver | None = None) -> None:
        """Take the server at ``uri``, called ``name`` in messages; it is not asked before `watch`.

        ``resolver`` is that of `connected`.
        """
        self.name = name
        self.uri = uri
        self._resolver = resolver
        self.fault = ""
        """What is wrong with it, one sentence; empty while it answers and before it was asked."""
        self._answered = asyncio.Event()

    @property
    def state(self) -> str:
        """online, offline, or unknown before it was asked, for the status."""
        return "offline" if self.fault else "online" if self._answered.is_set() else "unknown"

    async def until_answers(self) -> None:
        """Wait until it answers, however long that takes."""
        await self._answered.wait()

    async def watch(self) -> None:
        """Ask it again and again, until cancelled."""
        while True:
            await self._ask()
            await asyncio.sleep(ASK_AGAIN_S if self.fault else ASK_EVERY_S)

    async def _ask(self) -> None:
        try:
            await ask(self.uri, self._resolver)
        except EngineUnavailable as error:
            fault = f"the {self.name} server at {self.uri} {error}; check that it runs and can be reached"
            if not self.fault:
                _LOG.warning("%s", fault[0].upper() + fault[1:])
            self.fault = fault
            self._answered.clear()
            return
        if self.fault:
            _LOG.warning("The %s server at %s answers again", self.name, self.uri)
        self.fault = ""
        self._answered.set()
