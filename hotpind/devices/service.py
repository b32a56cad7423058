"""Pairing as it is carried out: the desk's decisions, the registry's tokens, real time and randomness."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from hotpind.devices.device import Description
from hotpind.devices.limiter import Rate, RateLimiter
from hotpind.devices.pairing import Ask, Grant, Outcome, PairingDesk, Pending
from hotpind.devices.registry import DeviceRegistry
from hotpind.errors import HotpinError

DEFAULT_MINUTES = 2.0
MOST_MINUTES = 60.0

_LOG_EACH = Rate(burst=1, per_second=1 / 600)
"""A request is told of once; a device that forgets its nonce asks anew every few seconds."""
_LOG_ALL = Rate(burst=20, per_second=0.1)

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PairingAnswer:
    """What a device is told."""

    outcome: Outcome
    nonce: str = ""
    token: str = ""
    """Only when granted; shown this once and kept nowhere."""


def _boottime() -> float:
    # Goes on while the machine sleeps, so that a window does not outlive a night in suspend.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PairingService:
    """The pairing window of a running appliance."""

    def __init__(self, registry: DeviceRegistry, *, first_window_minutes: float,
                 clock: Callable[[], float] = _boottime,
                 new_nonce: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        """Open the window at once for ``first_window_minutes`` when there has never been a device."""
        self._registry = registry
        self._clock = clock
        self._desk = PairingDesk(new_nonce)
        self._listeners: list[Callable[[bool], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._was_open = False
        self._opened_by_itself = not registry.ever_paired
        self._logged = RateLimiter(_LOG_EACH, _LOG_ALL)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._granting: set[Grant] = set()
        self.paired_in_window: str | None = None
        """Id of the device that the window let in since it was last opened."""
        if self._opened_by_itself:
            self._desk.open(clock(), first_window_minutes * 60)
            if self.open_for() > 0:
                _LOGGER.info("No device is paired yet: the first one to ask within %g minutes gets in",
                             first_window_minutes)
        self._follow_window()

    def close(self) -> None:
        """Stop watching the window. What is being written is finished by the registry, whose `close` waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_window_change(self, listener: Callable[[bool], None]) -> None:
        """Call ``listener(is_open)`` whenever the window opens or closes."""
        self._listeners.append(listener)

    @property
    def is_open(self) -> bool:
        """Whether the next device to ask is let in."""
        return self.open_for() > 0

    def open_for(self) -> float:
        """Seconds for which the window stays open; 0.0 when it is closed."""
        return self._desk.open_for(self._clock())

    @property
    def is_granting(self) -> bool:
        """Whether the window is closed for a device whose token is being written just now."""
        return any(grant.window is not None for grant in self._granting)

    def open_window(self, minutes: float = DEFAULT_MINUTES) -> None:
        """Let the next device in that asks within ``minutes``."""
        self._desk.open(self._clock(), minutes * 60)
        self.paired_in_window = None
        self._opened_by_itself = False
        _LOGGER.info("The pairing window is open for %g minutes", minutes)
        self._follow_window()

    def close_window(self) -> None:
        """Let nobody in but who is approved."""
        self._desk.close()
        self._follow_window()

    async def ask(self, ask: Ask) -> PairingAnswer:
        """Answer a device; when it is granted its token is on disk already.

        Raises `StateError` when the token cannot be stored (the window opens again, an approval holds on) and
        `DeviceError` when there are too many devices.
        """
        answer = self._desk.ask(ask, self._clock())
        grant = answer.grant
        if grant is None:
            if answer.outcome is Outcome.PENDING and not ask.nonce:
                self._tell_of(ask)
            return PairingAnswer(answer.outcome, answer.nonce)
        self._granting.add(grant)
        self._follow_window()
        try:
            token = await self._finish(self._carry_out(ask, grant))
        except asyncio.CancelledError:
            self._desk.unheard(grant, self._clock())
            raise
        return PairingAnswer(Outcome.GRANTED, token=token)

    async def add(self, description: Description, *, named: bool = False) -> str:
        """Register a device for a person and return its token; raises as `DeviceRegistry.add` does.

        The window that was open because there was no device yet closes: now there is one.
        """
        return await self._finish(self._add(description, named=named))

    async def revoke(self, device_id: str) -> None:
        """Forget a device and its token; raises as `DeviceRegistry.revoke` does.

        A lost answer may not be asked for again after that, or the device would be back.
        """
        self._desk.used(device_id)
        await self._registry.revoke(device_id)

    def used(self, device_id: str) -> None:
        """Note that a device authenticated itself: its token arrived."""
        self._desk.used(device_id)

    def pending(self) -> tuple[Pending, ...]:
        """Return the requests that wait for a person, oldest first."""
        return self._desk.pending(self._clock())

    def waiting_for(self, pending: Pending) -> float:
        """Seconds since a request came in."""
        return max(0.0, self._clock() - pending.since)

    def approve(self, name: str) -> Pending:
        """Let a request in. Raises `DeviceError`; see `PairingDesk.approve`."""
        return self._desk.approve(name, self._clock())

    def deny(self, name: str) -> Pending:
        """Turn a request away. Raises `DeviceError`; see `PairingDesk.deny`."""
        return self._desk.deny(name, self._clock())

    async def _add(self, description: Description, *, named: bool) -> str:
        token = await self._registry.add(description, named=named)
        if self._opened_by_itself:
            self.close_window()
        return token

    async def _carry_out(self, ask: Ask, grant: Grant) -> str:
        try:
            token = await self._registry.add(ask.device)
        except HotpinError:
            self._desk.failed(grant, self._clock())
            self._follow_window()
            raise
        finally:
            self._granting.discard(grant)
        if grant.window is not None:
            self.paired_in_window = ask.device.device_id
        _LOGGER.info("%s (%s) is paired", ask.device.device_id, ask.address)
        return token

    async def _finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for work that goes on when the client hangs up: what follows from a write belongs to it."""
        task = asyncio.create_task(work, name="pairing")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at, since the client that would be told of it may be gone.
            task.exception()

    def _tell_of(self, ask: Ask) -> None:
        device_id = ask.device.device_id
        if self._logged.take(f"{ask.address} {device_id}", self._clock()) == 0:
            _LOGGER.info("%s asks to be paired from %s; `hotpinctl devices approve %s` lets it in",
                         device_id, ask.address, device_id)

    def _follow_window(self) -> None:
        self.close()
        left = self.open_for()
        if left > 0:
            # Timers stop while the machine sleeps; a look each minute finds a window that ended meanwhile.
            self._timer = asyncio.get_running_loop().call_later(min(left, 60.0) + 0.01, self._follow_window)
        if (left > 0) != self._was_open:
            self._was_open = left > 0
            for listener in self._listeners:
                listener(self._was_open)
