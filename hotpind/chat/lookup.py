"""Name lookups that can hang without taking anything else with them.

getaddrinfo(3) waits for half a minute when the line is down, cannot be interrupted, and by default runs on
the event loop's few shared threads, which are also joined at exit. Here lookups run on daemon threads of
their own, few per name; whoever asks meanwhile waits for one under way, for as long as they like.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from hotpind.errors import BackendUnreachable

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""What getaddrinfo gives: family, type, protocol, canonical name, socket address."""


JOIN_S = 2.0
"""A lookup younger than this is waited for; an older one has probably lost its packet."""
HANGING = 3
"""Lookups of one name that may be under way; further askers wait for the newest."""


class NameLookup:
    """Looks names up, sharing lookups that are under way."""

    def __init__(self, getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._getaddrinfo = getaddrinfo
        self._pending: dict[tuple[str, int], list[_Pending]] = {}

    async def find(self, host: str, port: int, *, timeout_s: float) -> list[AddressInfo]:
        """Return the addresses of ``host``.

        Raises `BackendUnreachable` when there are none or it takes longer than ``timeout_s`` seconds.
        """
        now = asyncio.get_running_loop().time()
        pending = self._pending.setdefault((host, port), [])
        if not pending or (now - pending[-1].begun > JOIN_S and len(pending) < HANGING):
            pending.append(_Pending(now, self._begin(host, port)))
        newest = pending[-1].future
        done, _ = await asyncio.wait({newest}, timeout=timeout_s)
        if not done:
            raise BackendUnreachable(f"the name {host} could not be looked up within {timeout_s:g} s; "
                                     "is the network connected?")
        if newest.exception() is not None:
            raise BackendUnreachable(f"the name {host} could not be looked up; is the network connected?")
        return newest.result()

    def _begin(self, host: str, port: int) -> asyncio.Future[list[AddressInfo]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[AddressInfo]] = loop.create_future()
        future.add_done_callback(lambda done: self._forget(host, port, done))

        def finish(result: list[AddressInfo] | None, error: OSError | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result or [])

        def look() -> None:
            result, failure = None, None
            try:
                result = self._getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                failure = error if isinstance(error, OSError) else OSError(str(error))
            # The loop may have closed while the lookup hung; then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, result, failure)

        threading.Thread(target=look, name="name-lookup", daemon=True).start()
        return future

    def _forget(self, host: str, port: int, done: asyncio.Future[list[AddressInfo]]) -> None:
        done.exception()  # seen here, whether or not anybody still waits
        left = [pending for pending in self._pending.pop((host, port), []) if pending.future is not done]
        if left:
            self._pending[host, port] = left


@dataclass(frozen=True, slots=True)
class _Pending:
    begun: float
    future: asyncio.Future[list[AddressInfo]]


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address, which needs no lookup."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


class LookupResolver(AbstractResolver):
    """Makes aiohttp use a `NameLookup`."""

    def __init__(self, lookup: NameLookup, *, timeout_s: float) -> None:
        self._lookup = lookup
        self._timeout_s = timeout_s

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
                      ) -> list[ResolveResult]:
        """Return the addresses of ``host``; raises OSError, as aiohttp expects."""
        try:
            found = await self._lookup.find(host, port, timeout_s=self._timeout_s)
        except BackendUnreachable as error:
            raise OSError(str(error)) from None
        return [ResolveResult(hostname=host, host=address[0], port=port, family=info_family, proto=proto,
                              flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
                for info_family, _, proto, _, address in found
                if family in (socket.AF_UNSPEC, info_family)]

    async def close(self) -> None:
        """Nothing is held."""
