"""Who gets a token: the pairing window and the requests that wait for a person.

Pure: no I/O; time and randomness are passed in. While the window is open the first device to ask is granted
and the window closes. Otherwise the request waits until a person approves or denies it; the device asks again
with the nonce it was given, which is good for one granted answer. Whoever carries out a grant calls
`PairingDesk.failed` when the token could not be stored, and `PairingDesk.unheard` when the device was gone before
its answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hotpind.devices.device import Description, hash_token
from hotpind.devices.limiter import network_of
from hotpind.errors import DeviceError

MOST_PENDING = 16
"""Requests that wait for a person; those that were decided do not count."""
MOST_PENDING_PER_ADDRESS = 4
"""One address (of IPv6, one network) cannot fill the list: the rest stays free for the pin that a person is holding."""
MOST_DECIDED = 64
"""Decided requests that are kept for their device; the oldest is forgotten."""
PENDING_SECONDS = 600.0
"""A request that was not repeated for this long is forgotten, and a denied one so long after it was denied."""
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
    attempt: bytes
    last_asked: float
    """When its device last asked; when it was denied, the time of that."""
    state: _State = _State.WAITING


@dataclass(slots=True, eq=False)
class Grant:
    """Leave to give a device a token, and what was paid for it, in case it has to be given back."""

    device_id: str
    address: str
    attempt: bytes
    """Hash of `Ask.attempt`; empty without one."""
    at: float
    window: tuple[int, float] | None = None
    """The window that it used up: its number, and when it would have closed."""
    approval: _Request | None = None
    """The approved request that it used up; None once that was given back."""
    used: bool = False
    """The device has its token: the same attempt is a request that was late on its way, and worth nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome, the nonce to come back with when it is pending, and what a granted one is carried out with."""

    outcome: Outcome
    nonce: str = ""
    grant: Grant | None = None


class PairingDesk:
    """The window and the list of waiting requests. Times are seconds on any clock that never goes back."""

    def __init__(self, new_nonce: Callable[[], str]) -> None:
        """Begin with the window closed.

        ``new_nonce`` makes text that cannot be guessed.
        """
        self._new_nonce = new_nonce
        self._closes_at: float | None = None
        self._window = 0
        """Number of the window, so that an old one is not opened again after a person decided otherwise."""
        self._requests: dict[str, _Request] = {}
        self._grants: dict[str, Grant] = {}
        """The last grant of each device, for as long as its answer may be repeated."""

    def open(self, now: float, seconds: float) -> None:
        """Open the window for one device, or for this long. A window that is open is set anew."""
        self._window += 1
        self._closes_at = now + seconds if seconds > 0 else None

    def close(self) -> None:
        """Close the window."""
        self._window += 1
        self._closes_at = None

    def open_for(self, now: float) -> float:
        """Seconds for which the window stays open; 0.0 when it is closed."""
        return max(0.0, self._closes_at - now) if self._closes_at is not None else 0.0

    def ask(self, ask: Ask, now: float) -> Answer:
        """Answer a device. A granted answer closes the window, or uses up the approval, there and then."""
        self._expire(now)
        last = self._grants.get(ask.device.device_id)
        repeated = last is not None and _is_repeated(ask, last)
        if repeated and last is not None and not last.used:
            return Answer(Outcome.GRANTED, grant=Grant(last.device_id, last.address, last.attempt, last.at))
        if ask.nonce:
            return self._ask_again(ask, now)
        if self.open_for(now) > 0 and not repeated:
            return self._let_in(ask, now)
        return self._wait(ask, now)

    def failed(self, grant: Grant, now: float) -> None:
        """Take back a grant whose token could not be stored: its window opens again, or its approval holds again."""
        self._forget(grant)
        if grant.window is not None:
            number, closes_at = grant.window
            if number == self._window and closes_at > now:
                self._closes_at = closes_at
        self._give_back(grant, now)

    def unheard(self, grant: Grant, now: float) -> None:
        """Note that the device hung up before it was told of its grant.

        A window stays used up, since the token is stored. Whoever was approved may come back with the same nonce:
        nobody was told anything for it.
        """
        if grant.approval is not None:
            # The approval is good for one answer: its nonce or a repeated attempt, not both.
            self._forget(grant)
            self._give_back(grant, now)

    def used(self, device_id: str) -> None:
        """Note that a device talked with its token, or lost it: its answer may not be repeated."""
        if device_id in self._grants:
            self._grants[device_id].used = True

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
        if request.state is _State.DENIED:
            return Answer(Outcome.DENIED)
        request.last_asked = now
        if request.state is _State.APPROVED:
            return self._redeem(request, ask, now)
        if self.open_for(now) > 0:
            del self._requests[request.shown.request]
            return self._let_in(ask, now)
        return Answer(Outcome.PENDING, ask.nonce)

    def _wait(self, ask: Ask, now: float) -> Answer:
        attempt = hash_token(ask.attempt) if ask.attempt else b""
        # Copied, since a request that is replaced leaves the table.
        for request in list(self._requests.values()):
            if request.shown.device.device_id != ask.device.device_id or request.shown.address != ask.address:
                continue
            if request.state is _State.DENIED:
                # It stays, or denying would last no longer than until the device asks again.
                return Answer(Outcome.DENIED)
            if attempt and hmac.compare_digest(request.attempt, attempt):
                # The device has not heard its nonce. By its attempt it is the one that a person saw.
                return self._redeem(request, ask, now) if request.state is _State.APPROVED else self._renew(
                    request, now)
            if request.state is _State.WAITING:
                # A device that restarted has lost its nonce: its earlier request makes room for this one. What was
                # approved is kept, as only its nonce shows who it was approved for.
                del self._requests[request.shown.request]
        waiting = self._waiting()
        network = network_of(ask.address)
        mine = [request for request in waiting if network_of(request.shown.address) == network]
        if len(mine) >= MOST_PENDING_PER_ADDRESS or len(waiting) >= MOST_PENDING:
            return Answer(Outcome.FULL)
        nonce = self._new_nonce()
        name = _short_name(nonce, self._requests)
        shown = Pending(name, ask.device, ask.address, now)
        self._requests[name] = _Request(shown, hash_token(nonce), attempt, now)
        return Answer(Outcome.PENDING, nonce)

    def _renew(self, request: _Request, now: float) -> Answer:
        nonce = self._new_nonce()
        request.nonce, request.last_asked = hash_token(nonce), now
        return Answer(Outcome.PENDING, nonce)

    def _let_in(self, ask: Ask, now: float) -> Answer:
        assert self._closes_at is not None
        window = self._window, self._closes_at
        self._closes_at = None
        return self._grant(ask, now, window=window)

    def _redeem(self, request: _Request, ask: Ask, now: float) -> Answer:
        del self._requests[request.shown.request]
        return self._grant(ask, now, approval=request)

    def _grant(self, ask: Ask, now: float, *, window: tuple[int, float] | None = None,
               approval: _Request | None = None) -> Answer:
        attempt = hash_token(ask.attempt) if ask.attempt else b""
        grant = Grant(ask.device.device_id, ask.address, attempt, now, window, approval)
        self._grants[grant.device_id] = grant
        return Answer(Outcome.GRANTED, grant=grant)

    def _forget(self, grant: Grant) -> None:
        if self._grants.get(grant.device_id) is grant:
            del self._grants[grant.device_id]

    def _give_back(self, grant: Grant, now: float) -> None:
        request, grant.approval = grant.approval, None
        if request is not None:
            request.last_asked = now
            self._requests[request.shown.request] = request

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
        found[0].last_asked = now
        decided = [name for name, request in self._requests.items() if request.state is not _State.WAITING]
        for oldest in decided[:-MOST_DECIDED]:
            del self._requests[oldest]
        return found[0].shown

    def _waiting(self) -> list[_Request]:
        return [request for request in self._requests.values() if request.state is _State.WAITING]

    def _expire(self, now: float) -> None:
        for name, request in list(self._requests.items()):
            if now - request.last_asked > PENDING_SECONDS:
                del self._requests[name]
        for device_id, grant in list(self._grants.items()):
            if now - grant.at > REPEAT_SECONDS:
                del self._grants[device_id]


def _is_repeated(ask: Ask, last: Grant) -> bool:
    return (bool(ask.attempt) and bool(last.attempt) and last.address == ask.address
            and hmac.compare_digest(last.attempt, hash_token(ask.attempt)))


def _short_name(nonce: str, taken: dict[str, _Request]) -> str:
    """Name a request with the first letters of a hash of its nonce: the nonce itself must not be shown."""
    digest = hash_token("request " + nonce).hex()
    return next(digest[start:start + 6] for start in range(len(digest) - 6)
                if digest[start:start + 6] not in taken)
