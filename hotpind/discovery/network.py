"""Notices that the machine's network changed: an address, a cable, Wi-Fi gone and back, or a sleep in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotpind.discovery.netlink import Snapshot, drain, open_monitor, take_snapshot

SETTLE_SECONDS = 0.25
"""Changes come in bursts (an interface, its addresses, its routes); this long after the first they are looked at."""
TICK_SECONDS = 2.0
"""How often the clocks are compared to notice that the machine was asleep; without netlink, the interfaces too."""
SLEEP_SECONDS = 1.0
"""The clocks differ by more than this after a sleep that matters."""
CHECK_SECONDS = 60.0
"""The interfaces are looked at this often even if netlink said nothing."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """What listeners are told."""

    snapshot: Snapshot
    resumed: bool
    """The machine was asleep: whoever heard of us may have forgotten us, even if no address changed."""


Listener = Callable[[NetworkChange], None]


def sleep_offset() -> float:
    """Seconds that the machine has slept since boot (CLOCK_BOOTTIME counts them, CLOCK_MONOTONIC does not)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class NetworkWatch:
    """Watches the network and calls its listeners on the event loop, first with the state found at the start."""

    def __init__(self, *, slept: Callable[[], float] = sleep_offset,
                 snapshot: Callable[[], Snapshot] = take_snapshot) -> None:
        """``slept`` gives the seconds slept since boot; ``snapshot`` blocks and runs on a thread."""
        self._slept = slept
        self._take_snapshot = snapshot
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._last: Snapshot | None = None
        self._changed = asyncio.Event()
        self._complained = False
        self._monitor: socket.socket | None = None
        self._unmonitored = False

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` at each change. It must not block; what it raises is logged."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to watch. Never fails: what cannot be watched is logged and tried again."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="discovery: network watch")

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        try:
            await self._watch(asyncio.get_running_loop())
        finally:
            self._close_monitor()

    async def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._open_monitor()
        slept = self._slept()
        looked = loop.time()
        await self._look(resumed=False)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._changed.wait()
            now_slept = self._slept()
            resumed = now_slept - slept > SLEEP_SECONDS
            slept = now_slept
            if self._monitor is None:
                self._open_monitor()
            patience = CHECK_SECONDS if self._monitor is not None else TICK_SECONDS
            if self._changed.is_set() or resumed or loop.time() - looked >= patience:
                await asyncio.sleep(SETTLE_SECONDS)
                self._changed.clear()
                looked = loop.time()
                await self._look(resumed=resumed)

    def _open_monitor(self) -> None:
        """Have the kernel report changes; says once that it does not."""
        try:
            monitor = open_monitor()
        except OSError as error:
            if not self._unmonitored:
                self._unmonitored = True
                _LOGGER.warning("The kernel does not report network changes (%s); they are noticed within %.0f s",
                                error.strerror, TICK_SECONDS)
            return
        self._unmonitored = False
        self._monitor = monitor
        asyncio.get_running_loop().add_reader(monitor, self._readable, monitor)

    def _close_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            asyncio.get_running_loop().remove_reader(monitor)
            monitor.close()

    def _readable(self, monitor: socket.socket) -> None:
        try:
            drain(monitor)
        except OSError as error:
            _LOGGER.debug("The kernel ended its reports of network changes (%s); it is asked again", error.strerror)
            self._close_monitor()
        self._changed.set()

    async def _look(self, *, resumed: bool) -> None:
        try:
            snapshot = await asyncio.to_thread(self._take_snapshot)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _LOGGER.warning("The network interfaces cannot be listed (%s)", error.strerror or error)
            return
        self._complained = False
        if snapshot == self._last and not resumed:
            return
        self._last = snapshot
        change = NetworkChange(snapshot, resumed)
        for listener in self._listeners:
            try:
                listener(change)
            except Exception:
                _LOGGER.exception("A listener to network changes failed")
