"""The appliance's doors around a minimal application: pairing, the administrator's API, ``/whoami`` and ``/ws``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.web import admin_routes, pairing_routes
from hotpind.web.auth import Gatekeeper
from hotpind.web.hosts import host_middleware, own_names
from hotpind.web.limits import RUNNER_OPTIONS, ConnectionGuard, GuardedSite
from hotpind.web.replies import errors_middleware, reply

ADMIN_SECRET = "the-administrators-secret-of-these-tests"
HOST_NAME = "hotpin-0123456789ab.local"


@dataclass
class Doors:
    """A running server and its parts."""

    registry: DeviceRegistry
    pairing: PairingService
    gatekeeper: Gatekeeper
    guard: ConnectionGuard
    runner: web.AppRunner
    site: GuardedSite
    socket: Path
    http: aiohttp.ClientSession
    delays: list[float]
    """What refusals were delayed by; here they take no time."""
    answered: Callable[[web.Request, int], None] = lambda _, __: None
    """Is told of each request and the status that it was answered with."""

    @property
    def port(self) -> int:
        return self.site.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ask(self, method: str, path: str, *, token: str = "", **options: Any) -> tuple[int, dict[str, Any]]:
        """Make a request over TCP and return its status and JSON."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= options.pop("headers", {})
        async with self.http.request(method, self.url + path, headers=headers, **options) as response:
            return response.status, await response.json()

    async def pair(self, device_id: str = "pin-1", **more: str) -> tuple[int, dict[str, Any]]:
        """Ask to be paired."""
        return await self.ask("POST", "/pair", json={"device_id": device_id, **more})


OpenDoors = Callable[..., Awaitable[Doors]]


@pytest.fixture
async def open_doors(tmp_path: Path) -> AsyncIterator[OpenDoors]:
    opened: list[Doors] = []

    async def start(*, mode: Literal["paired", "open"] = "paired", first_window: float = 10, tls_required: bool = False,
                    options: dict[str, Any] | None = None, guard: ConnectionGuard | None = None,
                    **gatekeeper_options: Any) -> Doors:
        registry = await DeviceRegistry.open(tmp_path / f"state-{len(opened)}")
        pairing = PairingService(registry, first_window_minutes=first_window)
        delays: list[float] = []

        async def delay(seconds: float) -> None:
            delays.append(seconds)

        gatekeeper_options.setdefault("sleep", delay)
        gatekeeper = Gatekeeper(registry, mode=mode, admin_secret=ADMIN_SECRET, on_device=pairing.used,
                                **gatekeeper_options)
        guard = guard or ConnectionGuard()
        names = own_names(HOST_NAME)

        @web.middleware
        async def listen(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                made.answered(request, error.status)
                raise
            made.answered(request, response.status)
            return response

        app = web.Application(middlewares=[guard.middleware, listen, errors_middleware,
                                           host_middleware(lambda: names, tls_required=tls_required)])
        connected: set[str] = set()
        pairing_routes.add_routes(app, pairing, lambda: pairing_routes.ApplianceFacts("0123456789ab", "Hotpin Test"))
        admin_routes.add_routes(app, gatekeeper, registry, pairing, connected=lambda: connected)
        _add_device_routes(app, gatekeeper, connected)
        # A connection whose request was refused lingers in case its client is still sending; here nobody is.
        options = RUNNER_OPTIONS | {"lingering_time": 0.1} | (options or {})
        runner = web.AppRunner(app, **options, shutdown_timeout=0.1)
        await runner.setup()
        site = GuardedSite(runner, guard, "127.0.0.1", 0)
        await site.start()
        socket = tmp_path / f"control-{len(opened)}.sock"
        await web.UnixSite(runner, str(socket)).start()
        made = Doors(registry, pairing, gatekeeper, guard, runner, site, socket, aiohttp.ClientSession(),
                     delays)
        opened.append(made)
        return made

    yield start
    for doors in opened:
        await doors.http.close()
        await doors.runner.cleanup()
        doors.pairing.close()
        await doors.registry.close()


@pytest.fixture
async def doors(open_doors: OpenDoors) -> Doors:
    return await open_doors()


def _add_device_routes(app: web.Application, gatekeeper: Gatekeeper, connected: set[str]) -> None:
    async def health(_: web.Request) -> web.Response:
        return reply({"service": "hotpin"})

    async def who_am_i(request: web.Request) -> web.Response:
        grant = await gatekeeper.device(request)
        return reply({"device_id": grant.device_id, "kind": grant.kind})

    async def connect(request: web.Request) -> web.WebSocketResponse:
        grant = await gatekeeper.device(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        session_id = (await socket.receive_json(timeout=10))["session_id"]
        if not grant.may_use(session_id):
            await socket.close(code=1008)
            return socket
        connected.add(session_id)
        await socket.send_json({"status": "connected", "session_id": session_id})
        async for message in socket:
            await socket.send_str(str(message.data))
        connected.discard(session_id)
        return socket

    app.router.add_get("/health", health)
    app.router.add_get("/whoami", who_am_i)
    app.router.add_get("/ws", connect)
