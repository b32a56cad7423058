"""Somebody else on the network, written with python-zeroconf alone: ``python -m tests.discovery.stranger``.

``watch`` prints a JSON line with "Browsing" for its change when it begins to browse, and then one for every change of a
_hotpin._tcp service until it is ended, with the seconds from the beginning until the service was resolved
(``resolved``). ``pair`` browses as a pin does (5 s at a time), pairs and uses its token, and prints one line with the
seconds that each step was done at.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import sys
import time
from typing import Any

import aiohttp
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

SERVICE_TYPE = "_hotpin._tcp.local."
BROWSE_SECONDS = 5.0
ATTEMPT_SECONDS = 5.0


def describe(info: AsyncServiceInfo) -> dict[str, Any]:
    """Return what was found of a service."""
    return {"server": info.server, "port": info.port, "addresses": sorted(info.parsed_scoped_addresses()),
            "txt": {key.decode(): (value or b"").decode() for key, value in info.properties.items()}}


async def watch() -> None:
    """Print changes."""
    zeroconf = AsyncZeroconf(ip_version=IPVersion.All)
    tasks: set[asyncio.Task[None]] = set()
    began = time.monotonic()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        at = time.monotonic()

        async def show() -> None:
            short = name.removesuffix(f".{service_type}")
            event: dict[str, Any] = {"at": at, "change": state_change.name, "name": short}
            if state_change is not ServiceStateChange.Removed:
                info = AsyncServiceInfo(service_type, name)
                await info.async_request(zeroconf, 3000)
                event |= describe(info) | {"resolved": time.monotonic() - began}
            print(json.dumps(event), flush=True)

        task = asyncio.get_running_loop().create_task(show())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[changed])
    print(json.dumps({"at": began, "change": "Browsing"}), flush=True)
    await asyncio.Event().wait()


async def browse(seconds: float) -> AsyncServiceInfo | None:
    """Look for a service with an address for so long."""
    zeroconf = AsyncZeroconf(ip_version=IPVersion.All)
    names: asyncio.Queue[str] = asyncio.Queue()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed:
            names.put_nowait(name)

    try:
        async with asyncio.timeout(seconds):
            AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[changed])
            while True:
                info = AsyncServiceInfo(SERVICE_TYPE, await names.get())
                if await info.async_request(zeroconf.zeroconf, 3000) and info.addresses:
                    return info
    except TimeoutError:
        return None
    finally:
        await zeroconf.async_close()


async def ask(session: aiohttp.ClientSession, base: str, attempt: str) -> str | None:
    """Ask once to be paired and check the token; None when the network ate it."""
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        body = {"device_id": "stranger-1", "name": "Stranger", "attempt": attempt}
        async with session.post(f"{base}/pair", json=body, timeout=timeout) as response:
            if response.status == 200:
                return str((await response.json())["token"])
            print(await response.text(), file=sys.stderr, flush=True)
            await asyncio.sleep(1)
    return None


async def pair(deadline: float) -> dict[str, float | None]:
    """Find and pair within so many seconds."""
    began = time.monotonic()
    result: dict[str, float | None] = {"found": None, "paired": None, "used": None}
    attempt = secrets.token_hex(16)
    token = None
    async with aiohttp.ClientSession() as session:
        while time.monotonic() - began < deadline and result["used"] is None:
            info = await browse(BROWSE_SECONDS)
            if info is None:
                continue
            result["found"] = result["found"] or time.monotonic() - began
            base = f"http://{info.parsed_addresses(IPVersion.V4Only)[0]}:{info.port}"
            while time.monotonic() - began < deadline and result["used"] is None:
                token = token or await ask(session, base, attempt)
                if token is None:
                    continue
                result["paired"] = result["paired"] or time.monotonic() - began
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{base}/whoami", headers={"Authorization": f"Bearer {token}"},
                                           timeout=aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)) as response:
                        if (await response.json())["device_id"] == "stranger-1":
                            result["used"] = time.monotonic() - began
    return result


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["watch", "pair"])
    parser.add_argument("--deadline", type=float, default=30.0)
    arguments = parser.parse_args()
    if arguments.what == "watch":
        asyncio.run(watch())
    else:
        print(json.dumps(asyncio.run(pair(arguments.deadline))), flush=True)


if __name__ == "__main__":
    main()
