"""Pairing as it runs: the first window, its end, listeners, and what happens when the disk fails."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotpind.devices.device import describe
from hotpind.devices.pairing import Ask, Outcome
from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.errors import StateError


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[DeviceRegistry]:
    opened = await DeviceRegistry.open(tmp_path)
    yield opened
    await opened.close()


def hold_writes(registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no token be written until the returned event is set."""
    go_on = threading.Event()
    put = registry._database.put

    def wait_and_put(*arguments: object, **options: object) -> None:
        go_on.wait(10)
        put(*arguments, **options)  # type: ignore[arg-type]  # whatever the registry gave

    monkeypatch.setattr(registry._database, "put", wait_and_put)
    return go_on


def ask(device: str = "pin-1", *, nonce: str = "", attempt: str = "") -> Ask:
    return Ask(describe(device), "198.51.100.20", nonce, attempt)


async def test_a_new_appliance_takes_the_first_device_and_then_nobody(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=10)
    changes: list[bool] = []
    service.on_window_change(changes.append)
    assert 599 < service.open_for() <= 600
    answer = await service.ask(ask("pin-1"))
    assert answer.outcome is Outcome.GRANTED
    assert registry.authenticate(answer.token) is not None
    assert changes == [False]
    assert (await service.ask(ask("pin-2"))).outcome is Outcome.PENDING
    service.close()


async def test_the_window_does_not_open_by_itself_again(registry: DeviceRegistry) -> None:
    await registry.add(describe("pin-1"))
    await registry.revoke("pin-1")
    service = PairingService(registry, first_window_minutes=10)
    assert not service.is_open, "a device that was revoked would get in again by itself"
    service.close()


async def test_the_first_window_can_be_switched_off(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=0)
    assert not service.is_open
    service.close()


async def test_two_devices_race_and_one_wins(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=10)
    answers = await asyncio.gather(*(service.ask(ask(f"pin-{n}")) for n in range(20)))
    assert [answer.outcome for answer in answers].count(Outcome.GRANTED) == 1
    assert len(registry.devices()) == 1
    service.close()


async def test_listeners_hear_when_the_time_is_over(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=0)
    changes: list[bool] = []
    service.on_window_change(changes.append)
    service.open_window(0.2 / 60)
    assert changes == [True]
    await asyncio.sleep(0.4)
    assert changes == [True, False]
    service.close()


async def test_a_person_approves(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=0)
    waiting = await service.ask(ask())
    assert [each.device.device_id for each in service.pending()] == ["pin-1"]
    service.approve("pin-1")
    assert registry.devices() == ()
    answer = await service.ask(ask(nonce=waiting.nonce))
    assert answer.outcome is Outcome.GRANTED
    assert registry.authenticate(answer.token) is not None
    service.close()


async def test_a_lost_answer_gives_a_new_token_and_ends_the_lost_one(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=10)
    lost = await service.ask(ask(attempt="a" * 32))
    got = await service.ask(ask(attempt="a" * 32))
    assert got.outcome is Outcome.GRANTED
    assert registry.authenticate(lost.token) is None
    assert registry.authenticate(got.token) is not None
    service.used("pin-1")
    assert (await service.ask(ask(attempt="a" * 32))).outcome is Outcome.PENDING
    service.close()


async def test_a_disk_that_fails_leaves_the_window_open(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    service = PairingService(registry, first_window_minutes=10)
    with monkeypatch.context() as broken:
        broken.setattr(registry._database, "put", full)
        with pytest.raises(StateError):
            await service.ask(ask())
    assert service.is_open
    assert (await service.ask(ask())).outcome is Outcome.GRANTED
    service.close()


async def hang_up(service: PairingService, asked: Ask) -> None:
    """Ask, and be gone while the token is written."""
    asking = asyncio.create_task(service.ask(asked))
    await asyncio.sleep(0.05)
    assert not asking.done()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_device_that_hangs_up_has_used_the_window(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is written, so a window that opened again would take in a second device."""
    service = PairingService(registry, first_window_minutes=10)
    go_on = hold_writes(registry, monkeypatch)
    await hang_up(service, ask(attempt="a" * 32))
    go_on.set()
    assert not service.is_open
    assert (await service.ask(ask("pin-2"))).outcome is Outcome.PENDING
    got = await service.ask(ask(attempt="a" * 32))
    assert got.outcome is Outcome.GRANTED
    assert registry.authenticate(got.token) is not None
    assert [device.id for device in registry.devices()] == ["pin-1"]
    service.close()


async def test_a_write_that_fails_after_the_device_hung_up_opens_the_window_again(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def full(*_: object, **__: object) -> None:
        go_on.wait(10)
        raise sqlite3.OperationalError("database or disk is full")

    service = PairingService(registry, first_window_minutes=10)
    opened = asyncio.Event()
    service.on_window_change(lambda is_open: opened.set() if is_open else None)
    with monkeypatch.context() as broken:
        broken.setattr(registry._database, "put", full)
        await hang_up(service, ask())
        go_on.set()
        async with asyncio.timeout(10):
            await opened.wait()
    assert (await service.ask(ask())).outcome is Outcome.GRANTED
    service.close()


async def test_an_approval_survives_a_device_that_hangs_up(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    service = PairingService(registry, first_window_minutes=0)
    nonce = (await service.ask(ask())).nonce
    service.approve("pin-1")
    go_on = hold_writes(registry, monkeypatch)
    await hang_up(service, ask(nonce=nonce))
    go_on.set()
    got = await service.ask(ask(nonce=nonce))
    assert registry.authenticate(got.token) is not None
    assert (await service.ask(ask(nonce=nonce))).outcome is Outcome.BAD_NONCE
    service.close()


async def test_an_approval_survives_a_full_disk(registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    service = PairingService(registry, first_window_minutes=0)
    nonce = (await service.ask(ask())).nonce
    service.approve("pin-1")
    with monkeypatch.context() as broken:
        broken.setattr(registry._database, "put", full)
        with pytest.raises(StateError):
            await service.ask(ask(nonce=nonce))
    assert (await service.ask(ask(nonce=nonce))).outcome is Outcome.GRANTED
    service.close()


async def test_a_window_that_closed_for_a_device_tells_that_it_is_being_written(
        registry: DeviceRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    service = PairingService(registry, first_window_minutes=10)
    seen: list[bool] = []
    service.on_window_change(lambda _: seen.append(service.is_granting))
    go_on = hold_writes(registry, monkeypatch)
    asking = asyncio.create_task(service.ask(ask()))
    await asyncio.sleep(0.05)
    assert (service.is_open, service.is_granting, service.paired_in_window) == (False, True, None)
    go_on.set()
    await asking
    assert (service.is_open, service.is_granting, service.paired_in_window) == (False, False, "pin-1")
    assert seen == [True]
    service.close()


async def test_a_device_that_a_person_adds_is_the_first_one(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=10)
    changes: list[bool] = []
    service.on_window_change(changes.append)
    assert registry.authenticate(await service.add(describe("old-pin"))) is not None
    assert changes == [False]
    assert (await service.ask(ask("stranger"))).outcome is Outcome.PENDING
    service.open_window(1)
    await service.add(describe("older-pin"))
    assert service.is_open, "this one was opened by a person, for another device"
    service.close()


async def test_a_revoked_device_does_not_come_back_with_a_repeated_request(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=10)
    await service.ask(ask(attempt="a" * 32))
    await service.revoke("pin-1")
    assert (await service.ask(ask(attempt="a" * 32))).outcome is Outcome.PENDING
    service.close()


async def test_a_request_that_is_repeated_is_logged_once(
        registry: DeviceRegistry, caplog: pytest.LogCaptureFixture) -> None:
    service = PairingService(registry, first_window_minutes=0)
    with caplog.at_level(logging.INFO, "hotpind.devices.service"):
        for _ in range(50):
            assert (await service.ask(ask("pin-1"))).outcome is Outcome.PENDING
        await service.ask(ask("pin-2"))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["pin-1", "pin-2"]
    service.close()
