"""The announcer on the loopback interface, with a real responder; and when things go wrong."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from hotpind.discovery import announcer as announcer_module
from hotpind.discovery.announcer import Announcer
from hotpind.discovery.netlink import take_snapshot
from hotpind.discovery.network import NetworkChange, NetworkWatch
from hotpind.discovery.records import SERVICE_TYPE, Service
from hotpind.discovery.responder import Responder

# Probing for a name and announcing it take their time.
pytestmark = pytest.mark.slow


def service(name: str, appliance_id: str = "0123456789ab", port: int = 8000) -> Service:
    return Service(appliance_id, f"hotpin-{appliance_id}.local", name, port, "0.0.0", "paired")


@pytest.fixture
def name() -> str:
    """A name that no other test on this machine uses at the same time."""
    return f"Test {secrets.token_hex(4)}"


async def look_up(name: str, milliseconds: int = 1500) -> AsyncServiceInfo | None:
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        found = AsyncServiceInfo(SERVICE_TYPE, f"{name}.{SERVICE_TYPE}")
        return found if await found.async_request(zeroconf.zeroconf, milliseconds) else None
    finally:
        await zeroconf.async_close()


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (result := await condition()):
            await asyncio.sleep(0.05)
        return result


async def announced(announcer: Announcer) -> None:
    async def is_announced() -> bool:
        return announcer.interfaces == ("lo",)

    await until(is_announced)


async def test_it_announces_follows_the_window_and_says_goodbye(name: str) -> None:
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo"])
    announcer.start()
    watch.start()
    found = await until(lambda: look_up(name))
    assert (found.server, found.port) == ("hotpin-0123456789ab.local.", 8000)
    assert found.parsed_addresses(IPVersion.V4Only) == ["127.0.0.1"]
    assert found.decoded_properties["pair"] == "closed"
    announcer.update(pairing_open=True)

    async def is_open() -> bool:
        info = await look_up(name)
        return info is not None and info.decoded_properties["pair"] == "open"

    await until(is_open)
    await announcer.close()
    assert announcer.interfaces == ()
    assert await look_up(name, 500) is None
    await watch.close()


async def test_the_same_appliance_may_start_again_at_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = NetworkWatch()
    first = Announcer(service(name), watch, interfaces=["lo"])
    second = Announcer(service(name, port=8001), watch, interfaces=["lo"])
    first.start()
    watch.start()
    await announced(first)
    second.start()
    await announced(second)
    assert second.name == name, "its own earlier announcement is no conflict"
    assert caplog.text == ""
    await first.close()
    await second.close()
    await watch.close()


async def test_another_appliance_takes_another_name(name: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = NetworkWatch()
    first = Announcer(service(name, "00000000000a"), watch, interfaces=["lo"])
    second = Announcer(service(name, "00000000000b"), watch, interfaces=["lo"])
    first.start()
    watch.start()
    await announced(first)
    second.start()
    await announced(second)
    assert (first.name, second.name) == (name, f"{name}-2")
    assert len(caplog.records) == 1
    await first.close()
    await second.close()
    await watch.close()


async def test_a_conflict_that_comes_up_later_is_settled_by_one_of_two(name: str) -> None:
    watch = NetworkWatch()
    first = Announcer(service(name, "00000000000a"), watch, interfaces=["lo"])
    second = Announcer(service(name, "00000000000b"), watch, interfaces=["lo"])
    first.start()
    second.start()
    # Both ask at the same moment and hear nobody who has the name yet, or hear each other; one keeps it.
    watch.start()

    async def settled() -> bool:
        return {first.name, second.name} == {name, f"{name}-2"} and first.interfaces == second.interfaces == ("lo",)

    await until(settled, 40)
    await asyncio.sleep(1)
    assert await settled(), "and it stays so"
    await first.close()
    await second.close()
    await watch.close()


async def test_waking_up_announces_anew(name: str) -> None:
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo"])
    announcer.start()
    watch.start()
    await announced(announcer)
    before = announcer._responders
    announced_by = list(before.values())
    announcer._network_changed(NetworkChange(take_snapshot(), resumed=True))

    async def anew() -> bool:
        return bool(announcer._responders) and list(announcer._responders.values()) != announced_by

    await until(anew)
    assert await until(lambda: look_up(name))
    await announcer.close()
    await watch.close()


async def test_a_port_that_another_responder_keeps_is_tried_again_and_said_once(
        name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(announcer_module, "RETRY_SECONDS", 0.05)
    really_open = Responder.open
    failures = 0

    async def taken(*arguments: Any) -> Responder:
        nonlocal failures
        failures += 1
        if failures < 5:
            raise OSError(98, "Address already in use")
        return await really_open(*arguments)

    monkeypatch.setattr(Responder, "open", taken)
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo"])
    announcer.start()
    watch.start()
    await announced(announcer)
    assert caplog.text.count("another mDNS responder") == 1
    await announcer.close()
    await watch.close()


async def test_a_mistake_in_announcing_does_not_end_it(
        name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(announcer_module, "RETRY_SECONDS", 0.05)
    really_announce = Responder.announce
    failures = 0

    async def fail(self: Responder, *arguments: Any, **options: Any) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise ZeroDivisionError
        await really_announce(self, *arguments, **options)

    monkeypatch.setattr(Responder, "announce", fail)
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo"])
    announcer.start()
    watch.start()
    await announced(announcer)
    assert "tried again" in caplog.text
    await announcer.close()
    await watch.close()


async def test_news_that_could_not_be_announced_are_not_lost(
        name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(announcer_module, "RETRY_SECONDS", 0.05)
    really_update = Responder.update
    failures = 0

    async def fail(self: Responder, txt: Mapping[str, str]) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise OSError(101, "Network is unreachable")
        await really_update(self, txt)

    monkeypatch.setattr(Responder, "update", fail)
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo"])
    announcer.start()
    watch.start()
    await announced(announcer)
    announcer.update(pairing_open=True)

    async def is_open() -> bool:
        info = await look_up(name)
        return info is not None and info.decoded_properties["pair"] == "open"

    await until(is_open)
    assert failures == 3
    assert caplog.text.count("cannot announce what has changed") == 1
    await announcer.close()
    await watch.close()


async def test_a_conflict_is_told_of_once_and_in_one_line(
        name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(announcer_module, "CONFLICT_SECONDS", 0.0)
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo"])
    announcer.start()
    watch.start()
    await announced(announcer)
    for _ in range(5):
        (responder,) = announcer._responders.values()
        announcer._heard_conflict(responder, "evil\nERROR forged\x1b[2J.local")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.isprintable()
    assert "evil" in line
    await announcer.close()
    await watch.close()


async def test_a_configured_interface_that_is_not_there_is_named_once(
        name: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = NetworkWatch()
    announcer = Announcer(service(name), watch, interfaces=["lo", "wlan7"])
    announcer.start()
    watch.start()
    await announced(announcer)
    announcer._network_changed(NetworkChange(take_snapshot(), resumed=False))
    assert caplog.text.count("'wlan7'") == 1
    await announcer.close()
    await watch.close()


async def test_closing_leaves_no_task_behind(name: str) -> None:
    before = asyncio.all_tasks()
    for pause in (0.0, 0.3, 1.0):
        watch = NetworkWatch()
        announcer = Announcer(service(name), watch, interfaces=["lo"])
        announcer.start()
        watch.start()
        await asyncio.sleep(pause)
        async with asyncio.timeout(10):
            await announcer.close()
        await watch.close()

    async def gone() -> bool:
        return asyncio.all_tasks() == before

    await until(gone)
