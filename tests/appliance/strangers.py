"""What the tests of the doors need: clients with addresses of their own, pairing, a flood, the secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from tests.appliance.harness import Daemon

PAIRED = {"AUTH__MODE": "paired"}
PIN = "pin-1"

FLOOD = """
import asyncio, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
body = b'{"device_id": "flood"}'
request = (b"POST /pair HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)) + body
sent = answered = 0
async def one(number):
    global sent, answered
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.2.{number}", 0))
            while time.monotonic() < end:
                writer.write(request)
                sent += 1
                try:
                    async with asyncio.timeout(0.02):
                        answer = await reader.read(65536)
                        answered += answer.count(b"HTTP/1.1 ")
                        if not answer:
                            break
                except TimeoutError:
                    pass
            writer.close()
        except OSError:
            await asyncio.sleep(0.01)
async def main():
    await asyncio.gather(*(one(n + 1) for n in range(40)))
asyncio.run(main())
print(sent, answered)
"""
"""Sends pairing requests to a port for so many seconds, from 40 addresses; prints how many, and how many answers came.

For ``python -c``.
"""

Answer = tuple[int, Mapping[str, str], dict[str, Any]]


def stranger(number: int) -> aiohttp.ClientSession:
    """A client with an address of its own on the loopback network: rates are counted by address."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(f"127.0.9.{number}", 0), force_close=True),
                                 timeout=aiohttp.ClientTimeout(total=20))


async def ask(http: aiohttp.ClientSession, method: str, url: str, *, token: str = "", **options: Any) -> Answer:
    """Make a request; an answer that is not JSON fails."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= options.pop("headers", {})
    async with http.request(method, url, headers=headers, **options) as response:
        return response.status, response.headers, json.loads(await response.text() or "{}")


async def pair(daemon: Daemon, device: str, *, number: int = 1, **more: str) -> tuple[int, dict[str, Any]]:
    """Ask to be paired, from the address of stranger ``number``."""
    async with stranger(number) as http:
        status, _, answer = await ask(http, "POST", f"{daemon.url}/pair", json={"device_id": device, **more})
    return status, answer


def admin_secret(daemon: Daemon) -> str:
    """Return what root may read."""
    return (daemon.root / "state" / "admin-secret").read_text().strip()
