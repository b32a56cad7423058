"""The end of the appliance does not wait for a disk that never answers."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from hotpind.app import CLOSE_S, within
from hotpind.devices.device import Description
from hotpind.devices.registry import DeviceRegistry


async def test_a_registry_whose_disk_hangs_is_left_behind(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    registry = await DeviceRegistry.open(tmp_path)
    await registry.add(Description("kitchen", "Kitchen", "m", "1"))
    registry.seen("kitchen")
    hangs = threading.Event()

    def never(*_: object) -> None:
        hangs.wait(60)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(registry._database, "seen", never)
    begun = time.monotonic()
    try:
        await within(0.3, registry.close, "the registry of devices")
        assert time.monotonic() - begun < 5
        assert "was not waited for" in caplog.text
    finally:
        hangs.set()
    assert CLOSE_S < 5


async def test_what_ends_in_time_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    done = False

    async def close() -> None:
        nonlocal done
        await asyncio.sleep(0.05)
        done = True

    await within(5, close, "it")
    assert done
    assert caplog.text == ""
