"""The doors for pairing and revoking, as a process to be killed: ``python -m tests.devices.served STATE``.

Prints ``opening`` just before the registry is opened, ``! NOTICE`` for each of its notices, and ``ready PORT`` once it
listens on loopback.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.web import admin_routes, pairing_routes
from hotpind.web.auth import Gatekeeper
from hotpind.web.limits import RUNNER_OPTIONS, ConnectionGuard, GuardedSite
from hotpind.web.pairing_routes import ApplianceFacts
from hotpind.web.replies import errors_middleware

SECRET = "secret-of-the-churn"


async def serve(state: Path) -> None:
    """Serve until killed."""
    print("opening", flush=True)
    registry = await DeviceRegistry.open(state)
    for notice in registry.notices:
        print(f"! {notice}", flush=True)
    pairing = PairingService(registry, first_window_minutes=10)
    gatekeeper = Gatekeeper(registry, mode="paired", admin_secret=SECRET, on_device=pairing.used)
    guard = ConnectionGuard()
    app = web.Application(middlewares=[guard.middleware, errors_middleware])
    pairing_routes.add_routes(app, pairing, lambda: ApplianceFacts("0123456789ab", "Churn"))
    admin_routes.add_routes(app, gatekeeper, registry, pairing)
    runner = web.AppRunner(app, **RUNNER_OPTIONS)
    await runner.setup()
    site = GuardedSite(runner, guard, "127.0.0.1", 0)
    await site.start()
    print(f"ready {site.port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
