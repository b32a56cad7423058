"""Keeps the service manager's watchdog quiet for as long as the event loop turns and the engines answer."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping

from hotpind.system.notify import Notifier

_LOG = logging.getLogger(__name__)

PINGS_PER_INTERVAL = 3
"""sd_watchdog_enabled(3) advises half the interval; a third leaves room for one slow health check."""

GRACE_S = 60.0
"""Seconds without health before the pings stop: the supervisor replaces a dead engine well within this, and
only when it does not should the whole appliance be restarted."""


def watchdog_interval(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds after which the service manager gives the daemon up; None when it does not watch this process.

    From $WATCHDOG_USEC and $WATCHDOG_PID, see sd_watchdog_enabled(3).
    """
    text = environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or int(text) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(pid or os.getpid())) != str(pid or os.getpid()):
        return None
    return int(text) / 1e6


class Watchdog:
    """Asks for the appliance's health and pings; `run` is meant to be an owned task."""

    def __init__(self, notifier: Notifier, interval_s: float, healthy: Callable[[], Awaitable[bool]], *,
                 grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic) -> None:
        """``healthy`` tells whether the engines answer; it gets a third of ``interval_s`` seconds for it."""
        self._notifier = notifier
        self._period = interval_s / PINGS_PER_INTERVAL
        self._healthy = healthy
        self._grace_s = grace_s
        self._clock = clock
        self._last_healthy = clock()
        self._warned = False

    async def run(self) -> None:
        """Check and ping until cancelled."""
        while True:
            begun = self._clock()
            await self.beat()
            await asyncio.sleep(max(0.0, self._period - (self._clock() - begun)))

    async def beat(self) -> bool:
        """Check once and ping if health was seen within the grace; tells whether it pinged."""
        if await self._check():
            self._last_healthy = self._clock()
            self._warned = False
        elif self._clock() - self._last_healthy > self._grace_s:
            if not self._warned:
                _LOG.error("the engines have not answered for %.0f s; the service manager will restart "
                           "the appliance", self._clock() - self._last_healthy)
                self._warned = True
            return False
        self._notifier.watchdog()
        return True

    async def _check(self) -> bool:
        try:
            async with asyncio.timeout(self._period):
                return await self._healthy()
        except TimeoutError:
            return False
        except Exception:  # noqa: BLE001 - a health check that breaks is an unhealthy appliance, not a dead watchdog
            _LOG.warning("the health check failed", exc_info=True)
            return False
