"""An appliance with nothing but discovery and pairing, as a process: ``python -m tests.discovery.appliance STATE``.

Prints ``ready PORT`` once it listens; ends on SIGTERM, saying goodbye. Its log goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

from aiohttp import web

from hotpind.devices.identity import load_identity
from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.discovery.announcer import Announcer
from hotpind.discovery.network import NetworkWatch
from hotpind.discovery.records import Service, instance_name
from hotpind.web.auth import Gatekeeper
from hotpind.web.hosts import host_middleware, own_names
from hotpind.web.limits import RUNNER_OPTIONS, ConnectionGuard, GuardedSite
from hotpind.web.pairing_routes import ApplianceFacts, add_routes
from hotpind.web.replies import errors_middleware, reply


async def serve(state: Path, name: str, room: str, interfaces: list[str]) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    identity = load_identity(state)
    registry = await DeviceRegistry.open(state)
    pairing = PairingService(registry, first_window_minutes=10)
    gatekeeper = Gatekeeper(registry, mode="paired", admin_secret=identity.admin_secret, on_device=pairing.used)
    guard = ConnectionGuard()
    names = own_names(identity.host_name)
    app = web.Application(middlewares=[guard.middleware, errors_middleware, host_middleware(lambda: names)])
    add_routes(app, pairing, lambda: ApplianceFacts(identity.appliance_id, name))

    async def who_am_i(request: web.Request) -> web.Response:
        return reply({"device_id": (await gatekeeper.device(request)).device_id})

    app.router.add_get("/whoami", who_am_i)
    runner = web.AppRunner(app, **RUNNER_OPTIONS)
    await runner.setup()
    site = GuardedSite(runner, guard, "", 0)
    await site.start()
    watch = NetworkWatch()
    announcer = Announcer(
        Service(identity.appliance_id, identity.host_name, instance_name(name, room), site.port, "0.0.0", "paired"),
        watch, interfaces=interfaces, pairing_open=pairing.is_open)
    pairing.on_window_change(lambda is_open: announcer.update(pairing_open=is_open))
    watch.start()
    announcer.start()
    print(f"ready {site.port}", flush=True)
    await stop.wait()
    await announcer.close()
    await watch.close()
    await runner.cleanup()
    pairing.close()
    await registry.close()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--name", default="Hotpin")
    parser.add_argument("--room", default="")
    parser.add_argument("--interface", action="append", default=[])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    asyncio.run(serve(arguments.state, arguments.name, arguments.room, arguments.interface))


if __name__ == "__main__":
    main()
