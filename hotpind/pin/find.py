"""Finding appliances over mDNS as a pin does: browse for 5 s, three times."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from yarl import URL
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from hotpind.discovery.records import SERVICE_TYPE
from hotpind.errors import PinOfflineError

BROWSE_S = 5.0
TRIES = 3
OTHERS_S = 0.4
"""After the first appliance, time for others to answer too, so that the better one can be chosen."""
RESOLVE_MS = 3000
MOST_FOUND = 64
MOST_ADDRESSES = 1000
CACHE_FLUSH_S = 1.2

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Found:
    """An appliance that announced itself."""

    name: str
    """Instance name, for people."""
    appliance_id: str
    addresses: tuple[str, ...]
    """IPv4 first; IPv6 link-local ones with their scope."""
    port: int
    auth: str = "paired"
    pairing_open: bool = False
    tls_port: int = 0
    """0 when there is no encrypted port."""
    fingerprint: str = ""

    @property
    def urls(self) -> tuple[URL, ...]:
        """Base URLs to try in order; encrypted ones when the appliance has them."""
        return self.encrypted_urls if self.fingerprint and self.tls_port else self._at("http", self.port)

    @property
    def encrypted_urls(self) -> tuple[URL, ...]:
        """Base URLs of the encrypted port, for a pin that knows a certificate already; empty when there is none."""
        return self._at("https", self.tls_port) if self.tls_port else ()

    def _at(self, scheme: str, port: int) -> tuple[URL, ...]:
        return tuple(URL.build(scheme=scheme, host=address, port=port, path="/") for address in self.addresses)


async def find(wanted: str = "", *, seconds: float = BROWSE_S, tries: int = TRIES,
               interfaces: Sequence[str | int] | InterfaceChoice = InterfaceChoice.All) -> Found:
    """Browse until an appliance is found, ``tries`` times for ``seconds``.

    ``wanted`` is the id of the only appliance that will do; without it one whose pairing is open comes first.
    Raises `PinOfflineError` when none is found.
    """
    for _ in range(tries):
        found = choose(await browse(seconds, wanted=wanted, interfaces=interfaces), wanted)
        if found is not None:
            return found
    which = f"The appliance {wanted} that this pin is paired with" if wanted else "No appliance"
    raise PinOfflineError(f"{which} was {'not ' if wanted else ''}found on this network in {tries} tries of "
                          f"{seconds:g} s; is it on, and is this network the same? Else give its address with --url.")


async def browse(seconds: float = BROWSE_S, *, wanted: str = "", enough: bool = True,
                 interfaces: Sequence[str | int] | InterfaceChoice = InterfaceChoice.All) -> list[Found]:
    """Browse once, for ``seconds``, or with ``enough`` until the wanted or any appliance was found.

    Raises `PinOfflineError` when this machine has no network at all.
    """
    zeroconf = _open_zeroconf(interfaces)
    search = _Search(zeroconf.zeroconf)
    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[search.changed])
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await search.until(wanted, forever=not enough)
    finally:
        await browser.async_cancel()
        await search.stop()
        await zeroconf.async_close()
    return list(search.found.values())


def _open_zeroconf(interfaces: Sequence[str | int] | InterfaceChoice) -> AsyncZeroconf:
    # Left alone, zeroconf would listen with IPv4 only; where there is no IPv6, it cannot be asked for both.
    versions = (IPVersion.All, IPVersion.V4Only) if isinstance(interfaces, InterfaceChoice) else (None,)
    problem: Exception | None = None
    for version in versions:
        try:
            return AsyncZeroconf(interfaces=interfaces, ip_version=version)
        except (OSError, RuntimeError) as error:
            problem = error
    raise PinOfflineError(f"No network to look for an appliance on: {problem}.")


def choose(found: Sequence[Found], wanted: str = "") -> Found | None:
    """Pick the wanted appliance, else one that would let a new pin in, else the first by name. Pure."""
    fitting = [each for each in found if each.addresses and (not wanted or each.appliance_id == wanted)]
    return min(fitting, key=lambda each: (not each.pairing_open, each.name), default=None)


class SharedSearch:
    """One search for many pins that look for an appliance at the same time."""

    def __init__(self, search: Callable[[str], Awaitable[Found]] = find, *, fresh_s: float = 1.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Share what ``search`` finds for ``fresh_s`` seconds."""
        self._search = search
        self._fresh_s = fresh_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: tuple[float, Found | PinOfflineError] | None = None

    async def __call__(self, wanted: str) -> Found:
        """Find as `find` does, or share what came of it a moment ago, be it nothing."""
        async with self._lock:
            if self._last is not None and self._clock() - self._last[0] <= self._fresh_s:
                result = self._last[1]
                if isinstance(result, PinOfflineError):
                    raise result
                if wanted in ("", result.appliance_id):
                    return result
            try:
                found = await self._search(wanted)
            except PinOfflineError as error:
                self._last = self._clock(), error
                raise
            self._last = self._clock(), found
            return found


class Follower:
    """Listens to announcements while pins are connected, so that they notice at once when their appliance moves.

    Use it as an asynchronous context manager; one serves any number of pins.
    """

    def __init__(self, *, interfaces: Sequence[str | int] | InterfaceChoice = InterfaceChoice.All) -> None:
        """Listen on ``interfaces`` once entered."""
        self._interfaces = interfaces
        self._announced: dict[str, set[str]] = {}
        """The addresses of each appliance by its service name."""
        self._owners: dict[str, str] = {}
        """Who was last known under an address."""
        self._names: dict[str, str] = {}
        """The service names by appliance id."""
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None

    async def __aenter__(self) -> Self:
        """Begin to listen. Raises `PinOfflineError` when this machine has no network at all."""
        self._zeroconf = _open_zeroconf(self._interfaces)
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._changed])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        assert self._zeroconf is not None
        assert self._browser is not None
        await self._browser.async_cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._zeroconf.async_close()

    async def moved_from(self, address: str, appliance_id: str = "") -> None:
        """Wait until the appliance that was at ``address`` announces other addresses only.

        ``appliance_id`` tells which one that is when it moves before it was ever heard of there.
        """
        while True:
            news = self._news
            owner = self._owners.get(address) or self._names.get(appliance_id, "")
            now = self._announced.get(owner, set())
            if now and address not in now:
                return
            await news.wait()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and len(self._tasks) < MOST_FOUND:
            task = asyncio.get_running_loop().create_task(self._read(zeroconf, service_type, name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        # What a new announcement replaces stays in the cache for another second (RFC 6762, 10.2).
        for wait in (0.0, CACHE_FLUSH_S):
            await asyncio.sleep(wait)
            info = AsyncServiceInfo(service_type, name)
            if await info.async_request(zeroconf, RESOLVE_MS):
                self._learn(name, set(info.parsed_scoped_addresses()), read_service(info).appliance_id)

    def _learn(self, name: str, addresses: set[str], appliance_id: str) -> None:
        if len(self._announced) < MOST_FOUND or name in self._announced:
            self._announced[name] = addresses
            self._names = {known: owner for known, owner in self._names.items() if owner != name}
            if appliance_id:
                self._names[appliance_id] = name
            self._owners |= dict.fromkeys(addresses, name)
        if len(self._owners) > MOST_ADDRESSES:
            self._owners = {address: owner for owner, known in self._announced.items() for address in known}
        self._news.set()
        self._news = asyncio.Event()


@dataclass
class _Search:
    """Resolves the names that a browser reports."""

    zeroconf: Zeroconf
    found: dict[str, Found] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called by the browser, on the event loop; the names of the arguments are zeroconf's."""
        del zeroconf
        if state_change is ServiceStateChange.Removed:
            self.found.pop(name, None)
        elif len(self._tasks) < MOST_FOUND:
            task = asyncio.get_running_loop().create_task(self._resolve(service_type, name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def until(self, wanted: str, *, forever: bool) -> None:
        while forever or choose(list(self.found.values()), wanted) is None:
            self._news.clear()
            await self._news.wait()
        if not wanted:
            await asyncio.sleep(OTHERS_S)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _resolve(self, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        # On bad Wi-Fi the name may come through and the address not; the browser reports a name only once.
        while not await info.async_request(self.zeroconf, RESOLVE_MS):
            pass
        if len(self.found) < MOST_FOUND:
            self.found[name] = read_service(info)
            self._news.set()


def read_service(info: AsyncServiceInfo) -> Found:
    """Read an announcement; what is missing or malformed in it counts as not said."""
    text = {key: value or "" for key, value in info.decoded_properties.items()}
    addresses = sorted(set(info.parsed_scoped_addresses()), key=_preference)
    port, fingerprint = text.get("tls", ""), text.get("fp", "").lower()
    return Found(
        # Shown on terminals, and chosen by whoever announces.
        name="".join(letter for letter in info.name.removesuffix("." + info.type) if letter.isprintable()),
        appliance_id=text.get("id", ""), addresses=tuple(addresses),
        port=info.port or 0, auth=text.get("auth", "paired"), pairing_open=text.get("pair") == "open",
        tls_port=int(port) if port.isascii() and port.isdigit() and int(port) < 65536 else 0,
        fingerprint=fingerprint if _FINGERPRINT.fullmatch(fingerprint) else "")


def _preference(address: str) -> tuple[bool, bool, str]:
    parsed = ipaddress.ip_address(address)
    return parsed.version == 6, parsed.is_link_local, address
