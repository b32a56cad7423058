"""Pairing as it is carried out: the desk's decisions, the registry's tokens, real time and randomness."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotpind.devices.pairing import Answer, Ask, Outcome, PairingDesk, Pending
from hotpind.devices.registry import DeviceRegistry
from hotpind.errors import HotpinError

DEFAULT_MINUTES = 2.0
MOST_MINUTES = 60.0

_LOGGER = logging.getLogger(__name__)


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
        self.paired_in_window: str | None = None
        """Id of the device that got in since the window was last opened."""
        if not registry.ever_paired:
            self._desk.open(clock(), first_window_minutes * 60)
            if self.open_for() > 0:
                _LOGGER.info("No device is paired yet: the first one to ask within %g minutes gets in",
                             first_window_minutes)
        self._follow_window()

    def close(self) -> None:
        """Stop watching the window."""
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

    def open_window(self, minutes: float = DEFAULT_MINUTES) -> None:
        """Let the next device in that asks within ``minutes``."""
        self._desk.open(self._clock(), minutes * 60)
        self.paired_in_window = None
        _LOGGER.info("The pairing window is open for %g minutes", minutes)
        self._follow_window()

    def close_window(self) -> None:
        """Let nobody in but who is approved."""
        self._desk.close()
        self._follow_window()

    async def ask(self, ask: Ask) -> PairingAnswer:
        """Answer a device; when it is granted its token is on disk already.

        Raises `StateError` when the token cannot be stored (the window opens again) and `DeviceError` when
        there are too many devices.
        """
        left = self.open_for()
        answer: Answer = self._desk.ask(ask, self._clock())
        if answer.outcome is not Outcome.GRANTED:
            if answer.outcome is Outcome.PENDING and not ask.nonce:
                _LOGGER.info("%s asks to be paired from %s; `hotpinctl devices approve %s` lets it in",
                             ask.device.device_id, ask.address, ask.device.device_id)
            return PairingAnswer(answer.outcome, answer.nonce)
        self._follow_window()
        try:
            token = await self._registry.add(ask.device)
        except (HotpinError, asyncio.CancelledError):
            # Cancelled means that the device hung up before its answer: without its token it has to ask again.
            self._desk.failed(ask, self._clock(), left)
            self._follow_window()
            raise
        self.paired_in_window = ask.device.device_id
        _LOGGER.info("%s (%s) is paired", ask.device.device_id, ask.address)
        return PairingAnswer(Outcome.GRANTED, token=token)

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
