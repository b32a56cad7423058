"""Pairs and revokes devices until it is killed: ``python -m tests.devices.churn STATE SEED``.

Prints a line for each change, once the registry has answered: ``+ ID TOKEN`` or ``- ID``.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from hotpind.devices.device import describe
from hotpind.devices.registry import DeviceRegistry


async def churn(state: Path, seed: int) -> None:
    """Go on until killed."""
    choices = random.Random(seed)
    registry = await DeviceRegistry.open(state)
    for notice in registry.notices:
        print(f"! {notice}", flush=True)
    while True:
        known = [device.id for device in registry.devices()]
        if known and choices.random() < 0.45:
            device_id = choices.choice(known)
            print(f"? {device_id}", flush=True)
            await registry.revoke(device_id)
            print(f"- {device_id}", flush=True)
        else:
            device_id = f"pin-{choices.randrange(30)}"
            print(f"? {device_id}", flush=True)
            print(f"+ {device_id} {await registry.add(describe(device_id))}", flush=True)


if __name__ == "__main__":
    asyncio.run(churn(Path(sys.argv[1]), int(sys.argv[2])))
