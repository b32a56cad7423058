"""An appliance for a test LAN, as a process: real discovery and pairing, and the strict device protocol of the tests.

Run as ``python -m tests.pin.lan_appliance STATE``. Prints ``ready`` once it is announced, then each hello that it
gets and ``answered`` for each answer that it has given; ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from aiohttp import web

from hotpind.devices.identity import load_identity
from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.discovery.announcer import Announcer
from hotpind.discovery.network import NetworkWatch
from hotpind.discovery.records import Service
from hotpind.web import pairing_routes
from hotpind.web.pairing_routes import ApplianceFacts
from hotpind.web.replies import errors_middleware
from tests.pin.appliance import Appliance, Link, Recording, good_answer

PORT = 8000
NAME = "Hotpin Test"


async def serve(state: Path) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    identity = await asyncio.to_thread(load_identity, state)
    registry = await DeviceRegistry.open(state)
    pairing = PairingService(registry, first_window_minutes=10)

    def add_pairing(app: web.Application) -> None:
        app.middlewares.append(errors_middleware)
        pairing_routes.add_routes(app, pairing, lambda: ApplianceFacts(identity.appliance_id, NAME))

    async def answer(link: Link, recording: Recording) -> None:
        await good_answer(link, recording)
        print("answered", flush=True)

    appliance = Appliance(answer)
    appliance.host, appliance.port = "0.0.0.0", PORT
    appliance.more_routes.append(add_pairing)
    appliance.knows = lambda token: registry.authenticate(token) is not None
    appliance.on_hello = lambda hello: print(hello, flush=True)
    async with appliance:
        watch = NetworkWatch()
        announcer = Announcer(Service(identity.appliance_id, identity.host_name, NAME, PORT, "0.0.0", "paired"), watch,
                              pairing_open=pairing.is_open)
        watch.start()
        announcer.start()
        print("ready", flush=True)
        await stop.wait()
        await announcer.close()
        await watch.close()
    pairing.close()
    await registry.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
