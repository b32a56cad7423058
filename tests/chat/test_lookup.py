"""Name lookups that hang, fail, and are shared."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import aiohttp
import pytest

from hotpind.chat import lookup as lookup_module
from hotpind.chat.lookup import HANGING, LookupResolver, NameLookup, is_address
from hotpind.errors import BackendUnreachable


class Names:
    """A resolver that hangs until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()
        self.error: OSError | None = None

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        self.go.wait(10)
        if self.error:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


async def test_a_name_is_found() -> None:
    found = await NameLookup().find("localhost", 80, timeout_s=5)
    assert any(address[0] in ("127.0.0.1", "::1") for *_, address in found)


async def test_a_hanging_lookup_costs_its_askers_only_their_patience() -> None:
    names = Names()
    lookup = NameLookup(names)
    begun = time.monotonic()
    results = await asyncio.gather(*(lookup.find("a", 1, timeout_s=1.0) for _ in range(10)), return_exceptions=True)
    assert time.monotonic() - begun < 5, "all at once"
    assert all(isinstance(result, BackendUnreachable) for result in results)
    assert names.asked == ["a"], "ten askers, one thread"
    names.go.set()
    assert await lookup.find("a", 1, timeout_s=5)


async def test_a_lost_packet_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_module, "JOIN_S", 0.05)
    names = Names()
    lookup = NameLookup(names)
    for _ in range(8):
        with pytest.raises(BackendUnreachable):
            await lookup.find("a", 1, timeout_s=0.1)
    assert len(names.asked) == HANGING, "but the threads are bounded"
    names.go.set()
    for _ in range(500):
        if not any(thread.name == "name-lookup" for thread in threading.enumerate()):
            break
        await asyncio.sleep(0.02)
    assert await lookup.find("a", 1, timeout_s=5)


async def test_the_event_loops_own_threads_stay_free() -> None:
    names = Names()
    lookup = NameLookup(names)
    askers = [asyncio.ensure_future(lookup.find(f"host{index}", 1, timeout_s=20)) for index in range(40)]
    await asyncio.sleep(0.05)
    begun = time.monotonic()
    await asyncio.to_thread(int)
    assert time.monotonic() - begun < 5
    names.go.set()
    await asyncio.gather(*askers)


async def test_an_unknown_name_is_unreachable() -> None:
    names = Names()
    names.go.set()
    names.error = socket.gaierror(-2, "Name or service not known")
    with pytest.raises(BackendUnreachable, match="a could not be looked up"):
        await NameLookup(names).find("a", 1, timeout_s=5)


async def test_a_cancelled_asker_leaves_nothing_behind() -> None:
    names = Names()
    lookup = NameLookup(names)
    asker = asyncio.ensure_future(lookup.find("a", 1, timeout_s=5))
    await asyncio.sleep(0.05)
    asker.cancel()
    await asyncio.gather(asker, return_exceptions=True)
    names.go.set()
    assert await lookup.find("a", 1, timeout_s=5)


def test_a_lookup_may_outlive_its_loop() -> None:
    names = Names()

    async def ask() -> None:
        with pytest.raises(BackendUnreachable):
            await NameLookup(names).find("a", 1, timeout_s=0.05)

    begun = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - begun < 5, "the loop's end does not wait for the thread"
    names.go.set()


async def test_aiohttp_uses_it() -> None:
    names = Names()
    names.go.set()
    resolver = LookupResolver(NameLookup(names), timeout_s=1)
    found = await resolver.resolve("nas", 11434)
    assert [(entry["host"], entry["port"], entry["hostname"]) for entry in found] == [("127.0.0.1", 11434, "nas")]
    names.error = socket.gaierror(-2, "x")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await session.get("http://nas:1/")


@pytest.mark.parametrize(("host", "expected"), [
    ("127.0.0.1", True), ("::1", True), ("[fe80::1%eth0]", True), ("localhost", False), ("api.groq.com", False),
    ("1.2.3", False), ("", False)])
def test_addresses_need_no_lookup(host: str, expected: bool) -> None:
    assert is_address(host) is expected
