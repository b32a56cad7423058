"""From nothing to a connected pin: the remembered address first, else mDNS; paired on the way if need be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from hotpind.errors import PinError, PinOfflineError, PinRefusedError
from hotpind.pin import find, pairing
from hotpind.pin.client import Pin, base_url
from hotpind.pin.find import Found
from hotpind.pin.memory import Memory, load_memory, save_memory
from hotpind.pin.transport import Tls
from hotpind.pin.turn import Limits

HEAD_START_S = 1.0
"""The remembered address has this long before the network is searched as well."""
_FINGERPRINT_DIGITS = 64
_FORGET = "delete the pin's memory and pair it again if the appliance was set up anew or has TLS off now."


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is known about a pin and its appliance beforehand."""

    session_id: str
    memory_file: Path
    url: str = ""
    """The appliance's address; empty: the remembered one, else mDNS."""
    token: str = ""
    """A token from elsewhere; empty: the remembered one, else pairing."""
    fingerprint: str = ""
    """The certificate to expect, SHA-256 in hexadecimal digits; empty: the remembered one, else one that is valid."""
    pair_wait_s: float = 120.0
    """How long a person may take to let the pin in; 0: do not pair."""
    hello_extra: dict[str, Any] | None = None
    limits: Limits | None = None


Say = Callable[[str], None]
Browse = Callable[[str], Awaitable[Found]]


async def reach(wishes: Wishes, *, say: Say = lambda _: None, browse: Browse = find.find) -> Pin:
    """Return a connected pin; the caller closes it.

    ``say`` is told, in sentences, what goes on. What worked is remembered. A pin that knows a certificate talks and
    pairs with nothing but that, unless address and token are both given. Raises `PinOfflineError`,
    `PinRefusedError` or `PinError` (a bad address, or a memory that cannot be used).
    """
    memory = await asyncio.to_thread(load_memory, wishes.memory_file)
    trip = _Trip(wishes, memory, say)
    if wishes.url:
        return await trip.connect(base_url(wishes.url))
    if not memory.address:
        return await trip.connect_to(await browse(""))
    return await _remembered_first(trip, memory, browse, say)


async def _remembered_first(trip: _Trip, memory: Memory, browse: Browse, say: Say) -> Pin:
    """Try the remembered address, and look for the appliance too once that failed or took long."""
    known = base_url(memory.address)
    # Another appliance may have the address by now, so a refusal there is no reason to pair.
    direct = asyncio.create_task(trip.connect(known, may_pair=False), name="the remembered address")
    search: asyncio.Task[Found] | None = None
    try:
        await asyncio.wait({direct}, timeout=HEAD_START_S)
        if _succeeded(direct):
            return direct.result()
        say(f"{direct.exception() if direct.done() else f'{known} does not answer.'} Looking for it again.")
        search = asyncio.ensure_future(browse(memory.appliance_id))
        while True:
            await asyncio.wait({task for task in (direct, search) if not task.done()},
                               return_when=asyncio.FIRST_COMPLETED)
            if _succeeded(direct):
                return direct.result()
            if search.done() and (direct.done() or (_succeeded(search)
                                                    and known.host not in search.result().addresses)):
                await _drop(direct)
                return await trip.connect_to(search.result())
    except asyncio.CancelledError:
        if _succeeded(direct):
            await direct.result().close()
        raise
    finally:
        for task in (direct, search):
            if task is not None and not _succeeded(task):
                await _drop(task)


def _succeeded(task: asyncio.Future[Any]) -> bool:
    """Tell whether a task has a result. Raises what it raised if that is not a failure of the appliance."""
    if not task.done() or task.cancelled():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, PinError):
        raise error
    return error is None


async def _drop(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class _Trip:
    """One attempt to reach the appliance, with what was learnt on the way."""

    def __init__(self, wishes: Wishes, memory: Memory, say: Say) -> None:
        self._wishes = wishes
        self._memory = memory
        self._say = say
        self._token = wishes.token or memory.token
        self._fingerprint = wishes.fingerprint or memory.fingerprint
        # Who shows the certificate's key is the appliance. Plain text would hand the token to whoever took its address.
        self._encrypted_only = bool(self._fingerprint) and not (wishes.url and wishes.token)

    async def connect_to(self, found: Found) -> Pin:
        """Connect to an appliance that announced itself, at the first of its addresses that answers."""
        urls = found.encrypted_urls if self._encrypted_only else found.urls
        if not urls:
            why = "no encrypted port, and this pin knows a certificate; " + _FORGET if found.urls else "no address."
            raise PinOfflineError(f"{found.name} announces {why}")
        self._say(f"Found {found.name} at {urls[0]}.")
        self._met(found)
        for url in urls[:-1]:
            with contextlib.suppress(PinOfflineError):
                return await self.connect(url, expects_token=found.auth == "paired")
        return await self.connect(urls[-1], expects_token=found.auth == "paired")

    async def connect(self, base: URL, *, expects_token: bool = False, may_pair: bool = True) -> Pin:
        """Connect, pairing first when the appliance wants a token that this pin lacks."""
        if self._encrypted_only and base.scheme != "https":
            raise PinOfflineError(f"{base} is not encrypted, and this pin knows a certificate; use its https address, "
                                  "or " + _FORGET)
        may_pair = may_pair and not self._wishes.token and self._wishes.pair_wait_s > 0
        if self._token or not expects_token or not may_pair:
            try:
                return await self._open(base)
            except PinRefusedError:
                if not may_pair:
                    raise
        return await self._open(await self._pair(base))

    def _met(self, found: Found) -> None:
        """Take over what an announcement says."""
        self._memory = replace(self._memory, appliance_id=found.appliance_id, name=found.name)
        # A remembered certificate is never exchanged for an announced one: anybody can announce.
        self._fingerprint = self._fingerprint or found.fingerprint

    async def _open(self, base: URL) -> Pin:
        pin = Pin(str(base), self._wishes.session_id, token=self._token or None, ssl=self._tls(base),
                  hello_extra=self._wishes.hello_extra, limits=self._wishes.limits)
        await pin.connect()
        self._memory = replace(self._memory, address=str(base))
        await self._remember()
        return pin

    async def _pair(self, base: URL) -> URL:
        """Pair, and return the address to talk to from now on: the encrypted one when there is one."""
        self._say("Pairing.")
        paired = await pairing.pair(base, self._wishes.session_id, tls=self._tls(base),
                                    wait_s=self._wishes.pair_wait_s, on_waiting=self._say)
        self._token = paired.token
        if paired.tls_port and paired.fingerprint:
            self._fingerprint = paired.fingerprint
            base = base.with_scheme("https").with_port(paired.tls_port)
        self._memory = replace(self._memory, token=paired.token, address=str(base), fingerprint=self._fingerprint,
                               appliance_id=paired.appliance_id or self._memory.appliance_id,
                               name=paired.name or self._memory.name)
        await self._remember()
        self._say(f"Paired with {self._memory.name or base}.")
        return base

    def _tls(self, base: URL) -> Tls:
        if base.scheme != "https" or not self._fingerprint:
            return True
        digits = self._fingerprint.replace(":", "").lower()
        if len(digits) != _FINGERPRINT_DIGITS or not set(digits) <= set("0123456789abcdef"):
            raise PinError("The certificate's fingerprint has to be 64 hexadecimal digits (SHA-256).")
        return aiohttp.Fingerprint(bytes.fromhex(digits))

    async def _remember(self) -> None:
        # A token given for this run only is somebody else's to keep.
        memory = replace(self._memory, fingerprint=self._fingerprint)
        if not self._wishes.token:
            await asyncio.to_thread(save_memory, self._wishes.memory_file, memory)
