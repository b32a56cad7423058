"""Keeps the appliance announced on every interface, through changes of address, sleep and name conflicts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection

from hotpind.discovery.interfaces import Interface, choose
from hotpind.discovery.network import NetworkChange, NetworkWatch
from hotpind.discovery.records import Service, numbered
from hotpind.discovery.responder import NameTaken, Responder

RETRY_SECONDS = 5.0
"""An interface on which announcing failed is tried again after so long, while it is there."""
CONFLICT_SECONDS = 5.0
"""A conflict is looked at this often at most: whoever spoofs conflicts does not keep us busy."""
MOST_NAMES = 20
"""Names tried before giving up: nobody has so many appliances, so somebody is playing."""

_MOST_COMPLAINTS = 100
_LONGEST_HOST = 80

_LOGGER = logging.getLogger(__name__)


class Announcer:
    """Announces a service until it is closed. Nothing that happens on the network makes it fail."""

    def __init__(self, service: Service, watch: NetworkWatch, *, interfaces: Collection[str] = (),
                 pairing_open: bool = False) -> None:
        """``interfaces`` names the only ones to use; empty means every one that leads to a home network.

        ``watch`` belongs to the caller, who starts and closes it.
        """
        self._service = service
        self._configured = tuple(interfaces)
        self._pairing_open = pairing_open
        self._wanted: tuple[Interface, ...] = ()
        self._responders: dict[int, Responder] = {}
        self._number = 1
        self._wake = asyncio.Event()
        self._network_known = asyncio.Event()
        self._refresh = False
        self._reprobe = False
        self._conflict_at = -CONFLICT_SECONDS
        self._complaints: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        watch.subscribe(self._network_changed)

    @property
    def name(self) -> str:
        """The name that is announced, which differs from the configured one when that is taken."""
        return numbered(self._service.name, self._number)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The interfaces on which the appliance is announced now, for the status."""
        return tuple(responder.interface.name for responder in self._responders.values())

    def start(self) -> None:
        """Begin to announce, now or as soon as there is a network."""
        if self._task is None:
            logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
            self._task = asyncio.create_task(self._run(), name="discovery: announcer")

    def update(self, *, pairing_open: bool) -> None:
        """Announce whether the pairing window is open."""
        if pairing_open != self._pairing_open:
            self._pairing_open = pairing_open
            self._refresh = True
            self._wake.set()

    async def close(self) -> None:
        """Say goodbye on every interface; takes two seconds at most."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        await asyncio.gather(*(self._close(responder, goodbye=True) for responder in self._responders.values()))
        self._responders.clear()

    def _network_changed(self, change: NetworkChange) -> None:
        for name in set(self._configured) - {link.name for link in change.snapshot.links}:
            self._complain(f"discovery.interfaces: there is no interface {name!r}; the appliance will be announced on "
                           "it should it appear")
        wanted = choose(change.snapshot, self._configured)
        if wanted != self._wanted or change.resumed:
            self._wanted = wanted
            self._reprobe = self._reprobe or change.resumed
            self._wake.set()

    async def _run(self) -> None:
        while True:
            retry = None
            try:
                if not await self._reconcile():
                    retry = RETRY_SECONDS
            except NameTaken:
                await self._rename()
                continue
            except Exception:
                # Announcing is a convenience: a mistake in it must not take the appliance down.
                _LOGGER.exception("Announcing over mDNS failed; it is tried again")
                retry = RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry):
                    await self._wake.wait()
            self._wake.clear()

    async def _reconcile(self) -> bool:
        """Make the responders match the interfaces; False when one could not be opened."""
        if self._reprobe:
            self._reprobe = False
            await self._drop_all(goodbye=False)
        wanted = {interface.index: interface for interface in self._wanted}
        for index in [index for index in self._responders if index not in wanted]:
            # The interface is gone or down: there is nobody to say goodbye to. But another one may lead to the same
            # network, where the address of the one that announced last is the only one that is remembered.
            self._refresh = True
            await self._close(self._responders.pop(index), goodbye=False)
        complete = not self._refresh or await self._announce_anew()
        for index, interface in wanted.items():
            old = self._responders.get(index)
            if old is None or old.interface != interface:
                complete = await self._replace(old, interface) and complete
        return complete

    async def _announce_anew(self) -> bool:
        """Announce what has changed on the interfaces that are in use; False when that has to be tried again."""
        # Before and not after: the window may open or close again meanwhile.
        self._refresh = False
        failed = False
        for responder in list(self._responders.values()):
            try:
                await responder.update(self._txt())
            except Exception as error:  # noqa: BLE001 - whatever it is, the other interfaces have to hear the news
                failed = True
                self._complain(f"{responder.interface.name}: cannot announce what has changed ({error!r}); it is tried "
                               "again")
        self._refresh = self._refresh or failed
        return not failed

    async def _replace(self, old: Responder | None, interface: Interface) -> bool:
        """Announce on an interface that is new or has other addresses; the new addresses before the old are gone."""
        try:
            responder = await Responder.open(interface, self._service.host_name, self._heard_conflict)
        except OSError as error:
            self._complain(f"{interface.name}: cannot announce the appliance ({error.strerror or error}); "
                           "is another mDNS responder keeping port 5353 to itself?")
            return False
        try:
            # On a link that we are on already the name is ours.
            await responder.announce(self.name, self._service.port, self._txt(), probe=old is None)
        except BaseException:
            await self._close(responder, goodbye=False)
            raise
        self._responders[interface.index] = responder
        if old is not None:
            await self._close(old, goodbye=False)
        _LOGGER.info("Announced as %r on %s (%s)", self.name, interface.name,
                     ", ".join(str(ip) for ip in interface.addresses))
        return True

    async def _rename(self) -> None:
        taken = self.name
        await self._drop_all(goodbye=True)
        if self._number < MOST_NAMES:
            self._number += 1
            self._complain(f"The name {taken!r} is taken by another appliance, this one is announced as {self.name!r}; "
                           "set discovery.name or discovery.room to tell them apart")
        else:
            self._complain(f"{MOST_NAMES} names of appliances are taken on this network; waiting before the next try")
            await asyncio.sleep(RETRY_SECONDS * 12)
            self._number = 1

    def _heard_conflict(self, responder: Responder, other_host: str) -> None:
        """Settle a conflict that came up later: two networks were joined, or both were silent when the other asked.

        Of two appliances the one with the greater host name gives way, so that they do not both do; the other
        repeats its claim. Anything else that has the name keeps it.
        """
        now = time.monotonic()
        if now - self._conflict_at < CONFLICT_SECONDS or responder not in self._responders.values():
            return
        self._conflict_at = now
        if other_host.startswith("hotpin-") and self._service.host_name < other_host:
            self._refresh = True
        else:
            self._reprobe = True
            self._number = min(self._number + 1, MOST_NAMES)
            taken = numbered(self._service.name, self._number - 1)
            # Anybody on the network chooses that name, and may go on choosing.
            self._complain(f"The name {taken!r} is used by {other_host[:_LONGEST_HOST]!r} too, this appliance is "
                           f"announced as {self.name!r}", about=other_host)
        self._wake.set()

    async def _drop_all(self, *, goodbye: bool) -> None:
        responders = list(self._responders.values())
        self._responders.clear()
        await asyncio.gather(*(self._close(responder, goodbye=goodbye) for responder in responders))

    async def _close(self, responder: Responder, *, goodbye: bool) -> None:
        try:
            await responder.close(goodbye=goodbye)
        except Exception as error:  # noqa: BLE001 - closing is best effort; the process or interface goes away anyway
            _LOGGER.debug("Closing the announcement on %s failed: %r", responder.interface.name, error)

    def _txt(self) -> dict[str, str]:
        return self._service.txt(pairing_open=self._pairing_open)

    def _complain(self, sentence: str, *, about: str = "") -> None:
        """Log a warning, once for each sentence or for what it is about."""
        if (about or sentence) not in self._complaints and len(self._complaints) < _MOST_COMPLAINTS:
            self._complaints.add(about or sentence)
            _LOGGER.warning("%s", sentence)
