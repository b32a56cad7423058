"""Who gets a token: the pairing window and the requests that wait for a person.

Pure: no I/O; time and randomness are passed in. While the window is open the first device to ask is granted
and the window closes. Otherwise the request waits until a person approves or denies it; the device asks again
with the nonce it was given, which is good for one granted answer. Whoever carries out a grant calls
`PairingDesk.failed` when the token could not be stored.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hotpind.devices.device import Description, hash_token
from hotpind.errors import DeviceError

MOST_PENDING = 16
MOST_PENDING_PER_ADDRESS = 4
"""One address cannot fill the list: the rest stays free for the pin that a person is holding."""
PENDING_SECONDS = 600.0
"""A request that was not repeated for this long is forgotten."""
REPEAT_SECONDS = 60.0
"""How long a device may repeat a request whose answer it lost (see `Ask.attempt`)."""


class Outcome(StrEnum):
    """What is answered to a device."""

    GRANTED = "granted"
    PENDING = "pending"
    DENIED = "denied"
    FULL = "full"
    """Too many requests wait already; ask again later."""
    BAD_NONCE = "bad_nonce"
    """The nonce is unknown, was used, or belongs to another device; ask again without it."""


class _State(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be paired."""

    device: Description
    address: str
    nonce: str = ""
    """The nonce of an earlier pending answer, when this asks how it stands."""
    attempt: str = ""
    """Random text that the device makes up once for each time it wants to pair.

    A device that lost the answer (with its token) repeats the request with the same text and is answered
    again, from the same address and for a minute. Without it, a lost answer means asking anew.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome, and the nonce to come back with when it is pending."""

    outcome: Outcome
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for a person."""

    request: str
    """Short name that tells two requests with the same device id apart."""
    device: Description
    address: str
    since: float
    """Seconds on the clock that is passed in."""


@dataclass(slots=True)
class _Request:
    shown: Pending
    nonce: bytes
    last_asked: float
    state: _State = _State.WAITING


@dataclass(frozen=True, slots=True)
class _Granted:
    device_id: str
    address: str
    attempt: bytes
    at: float


class PairingDesk:
    """The window and the list of waiting requests. Times are seconds on any clock that never goes back."""

    def __init__(self, new_nonce: Callable[[], str]) -> None:
        """Begin with the window closed.

        ``new_nonce`` makes text that cannot be guessed.
        """
        self._new_nonce = new_nonce
        self._closes_at: float | None = None
        self._requests: dict[str, _Request] = {}
        self._last_grant: _Granted | None = None

    def open(self, now: float, seconds: float) -> None:
        """Open the window for one device, or for this long. A window that is open is set anew."""
        self._closes_at = now + seconds if seconds > 0 else None

    def close(self) -> None:
        """Close the window."""
        self._closes_at = None

    def open_for(self, now: float) -> float:
        """Seconds for which the window stays open; 0.0 when it is closed."""
        return max(0.0, self._closes_at - now) if self._closes_at is not None else 0.0

    def ask(self, ask: Ask, now: float) -> Answer:
        """Answer a device. A granted answer closes the window, or uses up the approval, there and then."""
        self._expire(now)
        if self._is_repeated(ask, now):
            return Answer(Outcome.GRANTED)
        if ask.nonce:
            return self._ask_again(ask, now)
        if self.open_for(now) > 0:
            self._closes_at = None
            self._grant(ask, now)
            return Answer(Outcome.GRANTED)
        return self._wait(ask, now)

    def failed(self, ask: Ask, now: float, reopen_for: float) -> None:
        """Take back a grant whose token could not be stored.

        The window opens again for the ``reopen_for`` seconds that were left of it.
        """
        if self._last_grant is not None and self._last_grant.device_id == ask.device.device_id:
            self._last_grant = None
        if reopen_for > 0:
            self.open(now, reopen_for)

    def used(self, device_id: str) -> None:
        """Note that a device talked with its token: its answer arrived and may not be repeated."""
        if self._last_grant is not None and self._last_grant.device_id == device_id:
            self._last_grant = None

    def pending(self, now: float) -> tuple[Pending, ...]:
        """Return the requests that wait for a person, oldest first."""
        self._expire(now)
        return tuple(request.shown for request in self._waiting())

    def approve(self, name: str, now: float) -> Pending:
        """Let a waiting request in; its device gets its token when it asks again.

        ``name`` is a request's short name or its device id. Raises `DeviceError` (404, 409).
        """
        return self._decide(name, _State.APPROVED, now)

    def deny(self, name: str, now: float) -> Pending:
        """Turn a waiting request away. ``name`` and errors as for `approve`."""
        return self._decide(name, _State.DENIED, now)

    def _ask_again(self, ask: Ask, now: float) -> Answer:
        given = hash_token(ask.nonce)
        # Every entry is compared, so that the time taken does not tell how far the nonce was right.
        found = [request for request in self._requests.values() if hmac.compare_digest(request.nonce, given)]
        if not found or found[0].shown.device.device_id != ask.device.device_id:
            return Answer(Outcome.BAD_NONCE)
        request = found[0]
        request.last_asked = now
        if request.state is _State.DENIED:
            return Answer(Outcome.DENIED)
        if request.state is _State.WAITING and self.open_for(now) <= 0:
            return Answer(Outcome.PENDING, ask.nonce)
        if request.state is _State.WAITING:
            self._closes_at = None
        del self._requests[request.shown.request]
        self._grant(ask, now)
        return Answer(Outcome.GRANTED)

    def _wait(self, ask: Ask, now: float) -> Answer:
        mine = [request for request in self._requests.values() if request.shown.address == ask.address]
        # A device that restarted has lost its nonce: its earlier request makes room for this one. A denied
        # one stays, or denying would last no longer than until the device asks again.
        for request in mine:
            if request.shown.device.device_id == ask.device.device_id:
                if request.state is _State.DENIED:
                    return Answer(Outcome.DENIED)
                del self._requests[request.shown.request]
                mine.remove(request)
                break
        if len(mine) >= MOST_PENDING_PER_ADDRESS or len(self._requests) >= MOST_PENDING:
            return Answer(Outcome.FULL)
        nonce = self._new_nonce()
        name = _short_name(nonce, self._requests)
        shown = Pending(name, ask.device, ask.address, now)
        self._requests[name] = _Request(shown, hash_token(nonce), now)
        return Answer(Outcome.PENDING, nonce)

    def _grant(self, ask: Ask, now: float) -> None:
        attempt = hash_token(ask.attempt) if ask.attempt else b""
        self._last_grant = _Granted(ask.device.device_id, ask.address, attempt, now)

    def _is_repeated(self, ask: Ask, now: float) -> bool:
        last = self._last_grant
        return (last is not None and bool(ask.attempt) and bool(last.attempt)
                and now - last.at <= REPEAT_SECONDS
                and last.device_id == ask.device.device_id and last.address == ask.address
                and hmac.compare_digest(last.attempt, hash_token(ask.attempt)))

    def _decide(self, name: str, state: _State, now: float) -> Pending:
        self._expire(now)
        found = [request for request in self._waiting()
                 if name in (request.shown.request, request.shown.device.device_id)]
        if not found:
            raise DeviceError(f"no request {name!r} waits for approval; "
                              "`hotpinctl devices list` shows the ones that do", status=404)
        if len(found) > 1:
            names = ", ".join(f"{each.shown.request} (from {each.shown.address})" for each in found)
            raise DeviceError(f"several requests wait under the id {name!r}: name one of {names}", status=409)
        found[0].state = state
        return found[0].shown

    def _waiting(self) -> list[_Request]:
        return [request for request in self._requests.values() if request.state is _State.WAITING]

    def _expire(self, now: float) -> None:
        for name, request in list(self._requests.items()):
            if now - request.last_asked > PENDING_SECONDS:
                del self._requests[name]


def _short_name(nonce: str, taken: dict[str, _Request]) -> str:
    """Name a request with the first letters of a hash of its nonce: the nonce itself must not be shown."""
    digest = hash_token("request " + nonce).hex()
    return next(digest[start:start + 6] for start in range(len(digest) - 6)
                if digest[start:start + 6] not in taken)
