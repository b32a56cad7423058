"""The announcement on one interface: a python-zeroconf responder of its own.

One responder for each interface, and not one for all, since an answer may only hold addresses that are valid
on the link that it goes out on (RFC 6762, 6.2): a pin on one network must not be told the address on the
other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping

from zeroconf import (  # type: ignore[attr-defined]  # DNSService is exported, but not in __all__
    DNSService,
    IPVersion,
    NonUniqueNameException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from hotpind.discovery.interfaces import Interface
from hotpind.discovery.records import SERVICE_TYPE

GOODBYE_SECONDS = 2.0
"""Time for the three goodbye packets and for closing the sockets."""

_WHO_MILLISECONDS = 1000


class NameTaken(Exception):
    """Another host on this link announces a service with our name."""


class Responder:
    """Announces one service on one interface, with fixed addresses; made with `open`."""

    def __init__(self, interface: Interface, zeroconf: AsyncZeroconf, host: str,
                 on_conflict: Callable[[Responder, str], None]) -> None:
        self.interface = interface
        self._zeroconf = zeroconf
        self._host = host
        self._on_conflict = on_conflict
        self._info: ServiceInfo | None = None
        self._sending: asyncio.Future[None] | None = None
        self._listener = _ConflictListener(self._heard)

    @classmethod
    async def open(cls, interface: Interface, host: str, on_conflict: Callable[[Responder, str], None]) -> Responder:
        """Open the sockets. ``on_conflict(responder, host)`` is called when ``host`` uses our name later on.

        Raises OSError when the interface is gone already or port 5353 is not to be had.
        """
        zeroconf = AsyncZeroconf(interfaces=_senders(interface), ip_version=_ip_version(interface))
        try:
            await zeroconf.zeroconf.async_wait_for_start()
            _keep_to_link(zeroconf.zeroconf, interface.name)
        except BaseException:
            await zeroconf.async_close()
            raise
        return cls(interface, zeroconf, host, on_conflict)

    async def announce(self, name: str, port: int, txt: Mapping[str, str], *, probe: bool) -> None:
        """Announce the service under a name, after asking whether anybody has it if ``probe``.

        Raises `NameTaken`.
        """
        info = ServiceInfo(SERVICE_TYPE, f"{name}.{SERVICE_TYPE}", port=port, properties=dict(txt),
                           server=f"{self._host}.", addresses=[ip.packed for ip in self.interface.addresses])
        try:
            sending = await self._zeroconf.async_register_service(info, cooperating_responders=not probe)
        except NonUniqueNameException:
            # Our own announcement comes back when two interfaces lead to the same link. An owner that does not
            # say its host name is taken for us as well: a real one is heard later on.
            if await self._owner(info.name) not in ("", self._host):
                raise NameTaken(name) from None
            sending = await self._zeroconf.async_register_service(info, cooperating_responders=True)
        self._info = info
        self._follow(sending)
        self._zeroconf.zeroconf.async_add_listener(self._listener, None)

    async def update(self, txt: Mapping[str, str]) -> None:
        """Announce the service again, with these keys."""
        if self._info is None:
            return
        known = self._info
        self._info = ServiceInfo(SERVICE_TYPE, known.name, port=known.port, properties=dict(txt),
                                 server=known.server, addresses=known.addresses_by_version(IPVersion.All))
        self._follow(await self._zeroconf.async_update_service(self._info))

    async def close(self, *, goodbye: bool) -> None:
        """Close the sockets, after telling the link that the service is gone if ``goodbye``."""
        zeroconf = self._zeroconf.zeroconf
        zeroconf.async_remove_listener(self._listener)
        if self._sending is not None:
            self._sending.cancel()
        if not goodbye:
            zeroconf.registry.async_remove(zeroconf.registry.async_get_service_infos())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._zeroconf.async_close()

    def _follow(self, sending: object) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._sending = asyncio.ensure_future(_finish(sending))

    async def _owner(self, name: str) -> str:
        """Ask which host announces a name; empty when nobody says."""
        found = AsyncServiceInfo(SERVICE_TYPE, name)
        await found.async_request(self._zeroconf.zeroconf, _WHO_MILLISECONDS)
        return (found.server or "").rstrip(".").lower()

    def _heard(self, service: DNSService) -> None:
        if self._info is not None and service.key == self._info.key and not service.is_expired(service.created) \
                and service.server_key != f"{self._host}.":
            self._on_conflict(self, service.server.rstrip("."))


class _ConflictListener(RecordUpdateListener):
    """Passes on every SRV record that is heard."""

    def __init__(self, heard: Callable[[DNSService], None]) -> None:
        self._heard = heard

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        for update in records:
            if isinstance(update.new, DNSService):
                self._heard(update.new)

    def async_update_records_complete(self) -> None:
        pass


async def _finish(sending: object) -> None:
    if isinstance(sending, asyncio.Future):
        await sending


def _senders(interface: Interface) -> list[str | int]:
    """Name the addresses to send from as zeroconf takes them: an IPv6 one by address or, if shared, by index."""
    return [str(ip) if ip.version == 4 or interface.unique_senders else interface.index
            for ip in interface.senders]


def _ip_version(interface: Interface) -> IPVersion:
    versions = {ip.version for ip in interface.senders}
    if versions == {4}:
        return IPVersion.V4Only
    return IPVersion.V6Only if versions == {6} else IPVersion.All


def _keep_to_link(zeroconf: Zeroconf, interface: str) -> None:
    """Bind every socket to the interface.

    Otherwise the kernel passes on what arrives at other interfaces as well (for IPv6, a group that is joined on one
    is received from all), and this responder would answer strangers there with this link's addresses. Needs no
    privilege since Linux 5.7; before that, answers may hold addresses of another link.
    """
    for reader in zeroconf.engine.readers:
        with contextlib.suppress(PermissionError):
            reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
