"""``POST /pair``: how a device that has no token gets one.

The body is a JSON object with ``device_id`` and, each optional, ``name``, ``model``, ``firmware``, ``nonce``
(from an earlier pending answer) and ``attempt`` (random text, so that a lost answer can be asked for again).
Answers:

- 200 ``{"status": "paired", "token", "device_id", "id", "name"}``, with ``tls_port`` and ``fp`` if TLS is on;
- 202 ``{"status": "pending", "nonce", "retry_after", "message"}``: ask again with the nonce, so many seconds
  later;
- 403 ``{"status": "denied"}``, 410 ``{"status": "expired"}`` (the nonce is not good; ask without it),
  429 with ``Retry-After``, 400 and 413 for a body that is not what it should be.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from hotpind.devices.device import describe
from hotpind.devices.limiter import Rate, RateLimiter
from hotpind.devices.pairing import Ask, Outcome
from hotpind.devices.service import PairingService
from hotpind.errors import DeviceError
from hotpind.web.replies import address_of, read_json, reply, too_often

RETRY_SECONDS = 3
FULL_RETRY_SECONDS = 60
MOST_HELD = 16
HOLD_SECONDS = 0.5
"""An address that asks too often is answered late: a flood over one connection slows down to two a second."""

_EACH_ADDRESS = Rate(burst=10, per_second=1)
_ALL_ADDRESSES = Rate(burst=50, per_second=10)
_LONGEST_SECRET = 128


@dataclass(frozen=True, slots=True)
class ApplianceFacts:
    """What a device is told of the appliance when it is paired."""

    appliance_id: str
    name: str
    tls_port: int = 0
    """0 when there is no encrypted port."""
    fingerprint: str = ""


def add_routes(app: web.Application, service: PairingService, facts: Callable[[], ApplianceFacts], *,
               clock: Callable[[], float] = time.monotonic) -> None:
    """Serve ``POST /pair``.

    ``facts`` is asked at each pairing, as ports are known only once they are bound.
    """
    app.router.add_post("/pair", _PairRoute(service, facts, clock).post)


class _PairRoute:
    def __init__(self, service: PairingService, facts: Callable[[], ApplianceFacts],
                 clock: Callable[[], float]) -> None:
        self._service = service
        self._facts = facts
        self._clock = clock
        self._limiter = RateLimiter(_EACH_ADDRESS, _ALL_ADDRESSES)
        self._held = 0

    async def post(self, request: web.Request) -> web.Response:
        address = address_of(request)
        wait = self._limiter.take(address, self._clock())
        if wait:
            return await self._too_often(wait)
        body = await read_json(request)
        ask = Ask(describe(body.get("device_id"), body.get("name", ""), body.get("model", ""),
                           body.get("firmware", "")),
                  address, _secret(body, "nonce"), _secret(body, "attempt"))
        answer = await self._service.ask(ask)
        match answer.outcome:
            case Outcome.GRANTED:
                return self._granted(ask, answer.token)
            case Outcome.PENDING:
                return reply({"status": "pending", "nonce": answer.nonce, "retry_after": RETRY_SECONDS,
                              "message": "Waiting for a person to let this device in."}, 202)
            case Outcome.DENIED:
                return reply({"status": "denied", "message": "This device was turned away."}, 403)
            case Outcome.BAD_NONCE:
                return reply({"status": "expired", "message": "The nonce is not valid; ask without it."}, 410)
            case Outcome.FULL:
                return _busy("Too many devices wait to be let in; ask again later.", FULL_RETRY_SECONDS)

    def _granted(self, ask: Ask, token: str) -> web.Response:
        facts = self._facts()
        data: dict[str, Any] = {"status": "paired", "token": token, "device_id": ask.device.device_id,
                                "id": facts.appliance_id, "name": facts.name}
        if facts.tls_port:
            data |= {"tls_port": facts.tls_port, "fp": facts.fingerprint}
        return reply(data)

    async def _too_often(self, wait: float) -> web.Response:
        response = _busy("Too many requests to pair; ask again later.", wait)
        if self._held >= MOST_HELD:
            response.force_close()
            return response
        self._held += 1
        try:
            await asyncio.sleep(HOLD_SECONDS)
        finally:
            self._held -= 1
        return response


def _busy(message: str, wait: float) -> web.Response:
    return too_often(message, wait, retry_after=max(1, math.ceil(wait)))


def _secret(body: dict[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str) or len(value) > _LONGEST_SECRET:
        raise DeviceError(f"{key} has to be text of at most {_LONGEST_SECRET} characters")
    return value
