"""Appliances are found over real multicast, on the loopback interface only."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from hotpind.discovery.records import SERVICE_TYPE, Service
from hotpind.errors import PinOfflineError
from hotpind.pin.find import Found, SharedSearch, choose, find, read_service

LOOPBACK = ["127.0.0.1"]


def service(name: str, appliance_id: str, *, pairing_open: bool = False, tls_port: int = 0) -> ServiceInfo:
    """An announcement with the TXT record that the appliance really makes."""
    about = Service(appliance_id, f"hotpin-{appliance_id}.local", name, 8000, "0.1.0", "paired", tls_port=tls_port,
                    fingerprint="ab" * 32 if tls_port else "")
    return ServiceInfo(SERVICE_TYPE, f"{name}.{SERVICE_TYPE}", port=8000, server=f"{about.host_name}.",
                       addresses=[socket.inet_aton("127.0.0.1")], properties=dict(about.txt(pairing_open=pairing_open)))


@pytest.fixture
async def announcer() -> AsyncIterator[AsyncZeroconf]:
    zeroconf = AsyncZeroconf(interfaces=LOOPBACK)
    yield zeroconf
    await zeroconf.async_unregister_all_services()
    await zeroconf.async_close()


async def register(announcer: AsyncZeroconf, *services: ServiceInfo) -> None:
    announced = await asyncio.gather(*[announcer.async_register_service(each) for each in services])
    await asyncio.gather(*announced)


@pytest.mark.slow  # probing for a name takes its time
async def test_appliances_are_found_and_the_one_that_lets_pins_in_is_preferred(announcer: AsyncZeroconf) -> None:
    await register(announcer, service("A closed", "c1c1c1c1c1c1"), service("B open", "c2c2c2c2c2c2", pairing_open=True))
    began = time.monotonic()
    found = await find("c1c1c1c1c1c1", interfaces=LOOPBACK)
    assert time.monotonic() - began < 8
    assert found == Found("A closed", "c1c1c1c1c1c1", ("127.0.0.1",), 8000)
    assert [str(url) for url in found.urls] == ["http://127.0.0.1:8000/"]
    assert (await find(interfaces=LOOPBACK)).pairing_open


@pytest.mark.slow
async def test_one_that_comes_later_is_found_too(announcer: AsyncZeroconf) -> None:
    search = asyncio.create_task(find("f2f2f2f2f2f2", interfaces=LOOPBACK))
    await asyncio.sleep(0.3)
    await announcer.async_register_service(service("Hotpin Late", "f2f2f2f2f2f2", tls_port=8443))
    found = await asyncio.wait_for(search, 20)
    assert (found.tls_port, found.fingerprint) == (8443, "ab" * 32)
    assert [str(url) for url in found.urls] == ["https://127.0.0.1:8443/"]


async def test_nobody_there_is_told_after_three_tries() -> None:
    began = time.monotonic()
    with pytest.raises(PinOfflineError, match=r"The appliance nobody .* was not found .* in 3 tries of 0\.2 s"):
        await find("nobody", seconds=0.2, interfaces=LOOPBACK)
    assert 0.6 <= time.monotonic() - began < 10


def test_choosing() -> None:
    one, two = Found("b", "1", ("192.0.2.1",), 1), Found("a", "2", ("192.0.2.2",), 1)
    opened, silent = Found("z", "3", ("192.0.2.3",), 1, pairing_open=True), Found("0", "4", (), 1)
    assert choose([one, two, silent]) is two
    assert choose([one, two, opened]) is opened
    assert choose([one, two, opened], "1") is one
    assert choose([silent]) is None
    assert choose([one], "9") is None


def test_a_foreign_announcement_does_no_harm() -> None:
    info = AsyncServiceInfo(SERVICE_TYPE, f"x\x9b2J\u202e.{SERVICE_TYPE}", port=1, server="x.local.",
                            properties={b"tls": b"99999", b"fp": b"xyz", b"pair": None, b"\xff": b"\xff",
                                        b"id": b"\xff\xfe"},
                            addresses=[socket.inet_aton("192.0.2.9"), socket.inet_pton(socket.AF_INET6, "2001:db8::1"),
                                       socket.inet_aton("169.254.1.1")])
    found = read_service(info)
    assert (found.tls_port, found.fingerprint) == (0, "")
    assert found.name == "x2J"
    assert found.addresses == ("192.0.2.9", "169.254.1.1", "2001:db8::1")


async def test_many_pins_share_one_search() -> None:
    searches: list[str] = []

    async def search(wanted: str) -> Found:
        searches.append(wanted)
        await asyncio.sleep(0)
        if wanted == "gone":
            raise PinOfflineError("It is gone.")
        return Found("x", wanted or "1", ("192.0.2.1",), 1)

    now = 0.0
    shared = SharedSearch(search, clock=lambda: now)
    found = await asyncio.gather(*[shared("") for _ in range(10)])
    assert [each.appliance_id for each in found] == ["1"] * 10
    assert (await shared("2")).appliance_id == "2"
    assert searches == ["", "2"]
    now = 1.1
    results = await asyncio.gather(*[shared("gone") for _ in range(5)], return_exceptions=True)
    assert all(isinstance(result, PinOfflineError) for result in results)
    assert searches == ["", "2", "gone"]
