"""Who may use a route: devices by their token, the administrator by the secret or over the control socket."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from hotpind.devices.device import TOKEN_BYTES, hash_token
from hotpind.devices.limiter import Rate, RateLimiter
from hotpind.devices.registry import DeviceRegistry
from hotpind.web.replies import address_of, path_of, refusal, retry_after, unix_socket_of

REFUSAL_DELAY = 0.5
"""Seconds before a wrong token is answered: it slows guessing and looks the same whatever was wrong."""
MOST_DELAYED = 64
"""Refusals that wait at the same time; further ones are answered 429 at once, so that they cost no memory."""
LONGEST_HEADER = 512
"""Bytes of an Authorization header; the pins' own limit."""

_EACH_ADDRESS = Rate(burst=10, per_second=0.5)
_ALL_ADDRESSES = Rate(burst=100, per_second=20)
_LOG_EACH = Rate(burst=1, per_second=1 / 60)
_LOG_ALL = Rate(burst=10, per_second=0.1)

_LOGGER = logging.getLogger(__name__)


class GrantKind(StrEnum):
    """Why a device was let in."""

    PAIRED = "paired"
    """It showed the token that it got when pairing."""
    OPEN = "open"
    """Anybody on the network may talk (``auth.mode = "open"``)."""
    TEMPORARY = "temporary"
    """A device that lives inside the daemon, such as its self-test."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to act as a device."""

    kind: GrantKind
    device_id: str | None
    """None when it is not known which device this is (`GrantKind.OPEN`)."""
    reserved: Collection[str] = ()
    """Sessions of those that have a token, which one that showed none may not use."""

    def may_use(self, session_id: str) -> bool:
        """Tell whether this session may be opened or given pictures: a known device has only its own."""
        if self.device_id is None:
            return bool(session_id) and session_id not in self.reserved
        return bool(session_id) and session_id == self.device_id


class Gatekeeper:
    """Checks the credentials of requests."""

    def __init__(self, registry: DeviceRegistry, *, mode: Literal["paired", "open"], admin_secret: str,
                 on_device: Callable[[str], None] = lambda _: None,
                 clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """``on_device`` is told the id of a registered device whenever its token was right."""
        self._registry = registry
        self._mode = mode
        self._admin_hash = hash_token(admin_secret)
        self._on_device = on_device
        self._clock = clock
        self._sleep = sleep
        self._temporary: dict[str, bytes] = {}
        self._failures = RateLimiter(_EACH_ADDRESS, _ALL_ADDRESSES)
        self._logged = RateLimiter(_LOG_EACH, _LOG_ALL)
        self._delayed = 0

    def issue_temporary(self, device_id: str) -> str:
        """Make a token for a device of the daemon's own; it lives in memory until `withdraw_temporary`.

        A second token for the same id replaces the first.
        """
        token = secrets.token_hex(TOKEN_BYTES)
        self._temporary[device_id] = hash_token(token)
        return token

    def withdraw_temporary(self, device_id: str) -> None:
        """End a temporary token; unknown ids are ignored."""
        self._temporary.pop(device_id, None)

    async def device(self, request: web.Request) -> Grant:
        """Check a device's token and say what it may do.

        Raises HTTPUnauthorized after a delay, or HTTPTooManyRequests when the address failed too often. A
        right token always works: of 2^256 none is guessed, so locking an address out would only hit its
        other devices.
        """
        token = bearer_of(request)
        grant = self._grant(token) if token else None
        if grant is not None:
            return grant
        if self._mode == "open":
            return Grant(GrantKind.OPEN, None, reserved={*self._registry.ids, *self._temporary})
        raise await self._refusal(request, "device", "This device is not paired with the appliance.")

    async def administrator(self, request: web.Request) -> None:
        """Check that the request is the administrator's.

        Over the control socket that is root and the daemon's own user, over TCP whoever has the secret.
        Raises HTTPForbidden, HTTPUnauthorized or HTTPTooManyRequests.
        """
        local = unix_socket_of(request)
        if local is not None:
            if peer_uid(local) not in (0, os.geteuid()):
                raise refusal(403, "Only root and the appliance's own user may do this; try with sudo.")
            return
        token = bearer_of(request)
        if token and hmac.compare_digest(hash_token(token), self._admin_hash):
            return
        raise await self._refusal(request, "administrator",
                                  "This needs the administrator's secret as a bearer token.")

    def guarded(self, handler: Handler) -> Handler:
        """Make a handler that lets only the administrator through."""
        async def check(request: web.Request) -> web.StreamResponse:
            await self.administrator(request)
            return await handler(request)

        return check

    def _grant(self, token: str) -> Grant | None:
        device = self._registry.authenticate(token)
        if device is not None:
            self._registry.seen(device.id)
            self._on_device(device.id)
            return Grant(GrantKind.PAIRED, device.id)
        given = hash_token(token)
        for device_id, expected in self._temporary.items():
            if hmac.compare_digest(given, expected):
                return Grant(GrantKind.TEMPORARY, device_id)
        return None

    async def _refusal(self, request: web.Request, who: str, message: str) -> web.HTTPException:
        address, now = address_of(request), self._clock()
        if self._logged.take(address, now) == 0:
            _LOGGER.warning("Refused a request from %s to %s: no valid %s token", address, path_of(request), who)
        wait = self._failures.take(address, now)
        if wait or self._delayed >= MOST_DELAYED:
            return refusal(429, "Too many attempts with a wrong token; wait before the next.",
                           {**retry_after(wait), "Connection": "close"})
        self._delayed += 1
        try:
            await self._sleep(REFUSAL_DELAY)
        finally:
            self._delayed -= 1
        return refusal(401, message, {"WWW-Authenticate": "Bearer"})


def peer_uid(local: socket.socket) -> int:
    """Return the user id of the process at the other end of a unix socket (SO_PEERCRED, unix(7))."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", local.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def bearer_of(request: web.Request) -> str:
    """Return the bearer token, empty when there is none. Raises HTTPBadRequest for what cannot be one."""
    headers = request.headers.getall("Authorization", [])
    if not headers:
        return ""
    if len(headers) > 1 or len(headers[0]) > LONGEST_HEADER:
        raise refusal(400, f"A request may carry one Authorization header of at most {LONGEST_HEADER} bytes.")
    scheme, _, token = headers[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
