"""The administrator's part of the API: the pairing window, waiting requests and devices, under ``/api/v1``.

- ``GET /api/v1/pairing``: ``{"open", "seconds_left", "granting", "paired", "pending": [...]}``, where ``granting``
  says that the window closed for a device whose token is being written, and ``paired`` is the device that this
  window let in, or null; ``POST`` ``{"minutes"}`` opens the window, ``DELETE`` closes it, both with the same answer.
- ``POST /api/v1/pairing/{request}/approve`` and ``.../deny``: decides a waiting request, by its short name or
  device id.
- ``GET /api/v1/devices``: ``{"devices": [...], "pending": [...]}``; ``POST`` ``{"device_id", "name", ...}``
  registers one and answers 201 with its ``token``; a window that opened by itself closes.
- ``PATCH /api/v1/devices/{id}`` ``{"name"}`` renames, ``DELETE`` revokes.

Times are Unix seconds or null. Errors are ``{"status": "error", "message"}``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from aiohttp import web

from hotpind.devices.device import Device, check_text, describe
from hotpind.devices.pairing import Pending
from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import DEFAULT_MINUTES, MOST_MINUTES, PairingService
from hotpind.errors import DeviceError
from hotpind.web.auth import Gatekeeper
from hotpind.web.replies import read_json, reply

_OLDEST_CREDIBLE = 1_600_000_000.0
"""A board without a battery-backed clock writes times of 1970; nobody is helped by seeing them."""


def add_routes(app: web.Application, gatekeeper: Gatekeeper, registry: DeviceRegistry,
               service: PairingService, *,
               connected: Callable[[], Collection[str]] = tuple) -> None:
    """Serve the administrator's API. ``connected`` gives the session ids that are connected now."""
    routes = _AdminRoutes(registry, service, connected)

    for method, path, handler in (
        ("GET", "/api/v1/pairing", routes.get_pairing),
        ("POST", "/api/v1/pairing", routes.open_pairing),
        ("DELETE", "/api/v1/pairing", routes.close_pairing),
        ("POST", "/api/v1/pairing/{request}/approve", routes.approve),
        ("POST", "/api/v1/pairing/{request}/deny", routes.deny),
        ("GET", "/api/v1/devices", routes.list_devices),
        ("POST", "/api/v1/devices", routes.add),
        ("PATCH", "/api/v1/devices/{id}", routes.rename),
        ("DELETE", "/api/v1/devices/{id}", routes.revoke),
    ):
        app.router.add_route(method, path, gatekeeper.guarded(handler))


class _AdminRoutes:
    def __init__(self, registry: DeviceRegistry, service: PairingService,
                 connected: Callable[[], Collection[str]]) -> None:
        self._registry = registry
        self._service = service
        self._connected = connected

    async def get_pairing(self, _: web.Request) -> web.Response:
        return self._pairing()

    async def open_pairing(self, request: web.Request) -> web.Response:
        minutes = (await read_json(request)).get("minutes", DEFAULT_MINUTES)
        if isinstance(minutes, bool) or not isinstance(minutes, int | float) \
                or not 0 < minutes <= MOST_MINUTES:
            raise DeviceError(f"minutes has to be a number above 0 and at most {MOST_MINUTES:g}")
        self._service.open_window(float(minutes))
        return self._pairing()

    async def close_pairing(self, _: web.Request) -> web.Response:
        self._service.close_window()
        return self._pairing()

    async def approve(self, request: web.Request) -> web.Response:
        return reply({"approved": self._pending(self._service.approve(request.match_info["request"]))})

    async def deny(self, request: web.Request) -> web.Response:
        return reply({"denied": self._pending(self._service.deny(request.match_info["request"]))})

    async def list_devices(self, _: web.Request) -> web.Response:
        connected = set(self._connected())
        return reply({"devices": [_device(device, connected) for device in self._registry.devices()],
                      "pending": [self._pending(each) for each in self._service.pending()]})

    async def add(self, request: web.Request) -> web.Response:
        body = await read_json(request)
        description = describe(body.get("device_id"), body.get("name", ""), body.get("model", ""),
                               body.get("firmware", ""))
        token = await self._service.add(description, named=bool(body.get("name")))
        names = {device.id: device.name for device in self._registry.devices()}
        name = names.get(description.device_id, description.name)
        return reply({"device_id": description.device_id, "name": name, "token": token}, 201)

    async def rename(self, request: web.Request) -> web.Response:
        name = check_text((await read_json(request)).get("name"), "name")
        if not name:
            raise DeviceError("name must not be empty")
        device_id = request.match_info["id"]
        await self._registry.rename(device_id, name)
        return reply({"device_id": device_id, "name": name})

    async def revoke(self, request: web.Request) -> web.Response:
        device_id = request.match_info["id"]
        await self._service.revoke(device_id)
        return reply({"revoked": device_id})

    def _pairing(self) -> web.Response:
        left = self._service.open_for()
        return reply({"open": left > 0, "seconds_left": round(left, 1), "granting": self._service.is_granting,
                      "paired": self._service.paired_in_window,
                      "pending": [self._pending(each) for each in self._service.pending()]})

    def _pending(self, pending: Pending) -> dict[str, Any]:
        device = pending.device
        return {"request": pending.request, "device_id": device.device_id, "name": device.name,
                "model": device.model, "firmware": device.firmware, "address": pending.address,
                "waiting_s": round(self._service.waiting_for(pending), 1)}


def _device(device: Device, connected: Collection[str]) -> dict[str, Any]:
    return {"device_id": device.id, "name": device.name, "model": device.model, "firmware": device.firmware,
            "created": _credible(device.created), "last_seen": _credible(device.last_seen),
            "connected": device.id in connected}


def _credible(when: float | None) -> float | None:
    return round(when, 3) if when is not None and when >= _OLDEST_CREDIBLE else None
