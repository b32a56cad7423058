"""Pairing as it runs: the first window, its end, listeners, and what happens when the disk fails."""

from __future__ import annotations

import asyncio
import sqlite3
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


async def test_a_device_that_hangs_up_leaves_the_window_open(registry: DeviceRegistry) -> None:
    service = PairingService(registry, first_window_minutes=10)
    asking = asyncio.create_task(service.ask(ask()))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert service.is_open
    assert (await service.ask(ask())).outcome is Outcome.GRANTED
    service.close()
