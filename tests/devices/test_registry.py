"""The registry: tokens, changes, listeners, and what it costs."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from hotpind.devices import registry as registry_module
from hotpind.devices.database import DeviceDatabase
from hotpind.devices.device import describe
from hotpind.devices.registry import DATABASE_NAME, DeviceRegistry
from hotpind.errors import DeviceError, StateError
from tests.waiting import until


class Clock:
    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def registry(tmp_path: Path, clock: Clock) -> AsyncIterator[DeviceRegistry]:
    opened = await DeviceRegistry.open(tmp_path, clock=clock)
    yield opened
    await opened.close()


async def test_a_token_works_until_it_is_revoked(registry: DeviceRegistry) -> None:
    token = await registry.add(describe("pin-1", "Kitchen"))
    device = registry.authenticate(token)
    assert device is not None
    assert (device.id, device.name) == ("pin-1", "Kitchen")
    await registry.revoke("pin-1")
    assert registry.authenticate(token) is None
    assert registry.devices() == ()


async def test_tokens_are_random_and_long(registry: DeviceRegistry) -> None:
    tokens = {await registry.add(describe(f"pin-{n}")) for n in range(20)}
    assert len(tokens) == 20
    assert all(len(bytes.fromhex(token)) == 32 for token in tokens)


@pytest.mark.parametrize("wrong", ["", "x", "0" * 64, "\udcff", "é" * 1000])
async def test_wrong_tokens_are_nobody(registry: DeviceRegistry, wrong: str) -> None:
    await registry.add(describe("pin-1"))
    assert registry.authenticate(wrong) is None


async def test_only_the_hash_is_kept(registry: DeviceRegistry, tmp_path: Path) -> None:
    token = await registry.add(describe("pin-1"))
    await registry.rename("pin-1", "Other")
    everything = b"".join(map(Path.read_bytes, tmp_path.iterdir()))  # noqa: ASYNC240 - a test's own small files
    assert b"pin-1" in everything
    assert token.encode() not in everything
    assert bytes.fromhex(token) not in everything


async def test_pairing_again_replaces_the_token(registry: DeviceRegistry) -> None:
    first = await registry.add(describe("pin-1"))
    second = await registry.add(describe("pin-1"))
    assert registry.authenticate(first) is None
    assert registry.authenticate(second) is not None
    assert len(registry.devices()) == 1


async def test_whoever_holds_the_connection_hears_of_its_end(registry: DeviceRegistry) -> None:
    ended: list[str] = []
    registry.on_token_ended(ended.append)
    await registry.add(describe("pin-1"))
    await asyncio.sleep(0)
    assert ended == []
    await registry.add(describe("pin-1"))
    await asyncio.sleep(0)
    assert ended == ["pin-1"]
    await registry.revoke("pin-1")
    await asyncio.sleep(0)
    assert ended == ["pin-1", "pin-1"]


async def test_a_revocation_is_finished_even_if_the_request_is_gone(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await registry.add(describe("pin-1"))
    heard = asyncio.Event()
    registry.on_token_ended(lambda _: heard.set())
    go_on = threading.Event()
    delete = registry._database.delete
    monkeypatch.setattr(registry._database, "delete", lambda device_id: go_on.wait(5) and delete(device_id))
    task = asyncio.create_task(registry.revoke("pin-1"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    async with asyncio.timeout(5):
        await heard.wait()
    assert registry.authenticate(token) is None


async def test_unknown_devices_are_named(registry: DeviceRegistry) -> None:
    for change in (registry.revoke("nobody"), registry.rename("nobody", "x")):
        with pytest.raises(DeviceError, match="nobody") as refused:
            await change
        assert refused.value.status == 404


async def test_it_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    first = await DeviceRegistry.open(tmp_path, clock=clock)
    token = await first.add(describe("pin-1", "Kitchen", "esp32", "1.2"))
    clock.now += 60
    first.seen("pin-1")
    await first.close()
    second = await DeviceRegistry.open(tmp_path, clock=clock)
    device = second.authenticate(token)
    assert device is not None
    assert (device.name, device.model, device.firmware) == ("Kitchen", "esp32", "1.2")
    assert (device.created, device.last_seen) == (1.7e9, 1.7e9 + 60)
    await second.close()


async def test_being_seen_costs_no_write_until_later(
        tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "SEEN_INTERVAL", 0.2)
    registry = await DeviceRegistry.open(tmp_path, clock=clock)
    await registry.add(describe("pin-1"))
    reader = sqlite3.connect(tmp_path / DATABASE_NAME)
    for _ in range(1000):
        clock.now += 1
        registry.seen("pin-1")
    assert registry.devices()[0].last_seen == 1.7e9 + 1000
    assert reader.execute("SELECT last_seen FROM devices").fetchone() == (None,)
    await until(lambda: reader.execute("SELECT last_seen FROM devices").fetchone() == (1.7e9 + 1000,))
    reader.close()
    await registry.close()


async def test_a_device_that_stays_connected_is_seen_and_written_in_time(
        tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(registry_module, "SEEN_INTERVAL", 1.0)
    registry = await DeviceRegistry.open(tmp_path, clock=clock)
    writes: list[dict[str, float]] = []
    seen = registry._database.seen

    def count(times: Mapping[str, float]) -> None:
        writes.append(dict(times))
        seen(times)

    monkeypatch.setattr(registry._database, "seen", count)
    for device in ("pin-1", "pin-2"):
        await registry.add(describe(device))
        registry.seen(device)
    connected = {"pin-1", "a-guest"}
    registry.connected = lambda: connected
    clock.now += 86_400
    async with asyncio.timeout(10):
        while registry.devices()[0].last_seen != clock.now:
            await asyncio.sleep(0.01)
        assert len(writes) <= 1, "looking costs no write"
        while {"pin-1": clock.now, "pin-2": 1.7e9} not in writes:
            await asyncio.sleep(0.01)
        connected.clear()
        clock.now += 86_400
    await asyncio.sleep(0.1)
    assert [device.last_seen for device in registry.devices()] == [1.7e9 + 86_400, 1.7e9]
    await registry.close()


async def test_authentication_costs_no_disk_and_little_time(registry: DeviceRegistry) -> None:
    tokens = [await registry.add(describe(f"pin-{n}")) for n in range(100)]
    await registry._run(registry._database.close)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(10):
        assert all(registry.authenticate(token) for token in tokens)
    assert (loop.time() - began) / 1000 < 0.001
    registry._database = DeviceDatabase(sqlite3.connect(":memory:", check_same_thread=False), ())


async def test_the_number_of_devices_is_bounded(registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MOST_DEVICES", 3)
    for n in range(3):
        await registry.add(describe(f"pin-{n}"))
    with pytest.raises(DeviceError, match="3 devices"):
        await registry.add(describe("pin-3"))
    await registry.add(describe("pin-2"))


async def test_a_disk_that_fails_is_said_and_grants_nothing(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(registry._database, "put", full)
    with pytest.raises(StateError, match="disk is full"):
        await registry.add(describe("pin-1"))
    assert registry.devices() == ()


async def test_a_disk_that_hangs_does_not_hang_the_request(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "WRITE_DEADLINE", 0.1)
    go_on = threading.Event()
    monkeypatch.setattr(registry._database, "put", lambda *_, **__: go_on.wait(5))
    with pytest.raises(StateError, match="did not answer"):
        await registry.add(describe("pin-1"))
    go_on.set()


async def test_a_damaged_database_is_logged_and_the_appliance_goes_on(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"x" * 5000)
    registry = await DeviceRegistry.open(tmp_path)
    assert registry.notices[0] in caplog.text
    assert registry.ever_paired
    await registry.add(describe("pin-1"))
    await registry.close()


@pytest.mark.parametrize("device_id", ["", " ", "a b", "-x", "../x", "a" * 65, "pin\n", "pín", 7, None, ["x"]])
def test_ids_that_cannot_be_are_refused(device_id: object) -> None:
    with pytest.raises(DeviceError):
        describe(device_id)


def test_texts_of_a_device_are_cleaned() -> None:
    described = describe("esp32-cam-hotpin-001", "  Küche\x1b[31m\n ", "m", "f")
    assert described.name == "Küche[31m"
    assert describe("pin-1").name == "pin-1"
    with pytest.raises(DeviceError, match="model"):
        describe("pin-1", "", "m" * 65)
