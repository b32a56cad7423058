"""`hotpinctl devices` and `hotpinctl pair` against the daemon, and what they do to pins that are connected."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpind.errors import PinRefusedError
from hotpind.pin.client import Pin
from hotpind.pin.home import Wishes, reach
from tests.appliance.harness import Daemon, running
from tests.appliance.recordings import cards, librivox
from tests.appliance.strangers import PAIRED, PIN, pair
from tests.waiting import until

CARD = cards()[0].pcm
PATIENT_S = 20.0
REVOKED_S = 1.0
"""Within which a revoked pin's connection has to end."""
TRIES = 2
"""The best counts: a busy machine may hold up this process or the daemon for as long."""


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    with running(PAIRED) as daemon:
        assert asyncio.run(pair(daemon, "first"))[0] == 200
        yield daemon


async def ctl(house: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(house.ctl, *arguments)


def listed(house: Daemon) -> dict[str, dict[str, object]]:
    return {each["device_id"]: each for each in house.call("GET", "/api/v1/devices")["devices"]}


async def revoked(house: Daemon, pin: Pin) -> float:
    """Revoke a pin that is connected; return after how many seconds its connection had ended."""
    began = time.monotonic()
    house.call("DELETE", f"/api/v1/devices/{PIN}")
    async with asyncio.timeout(PATIENT_S):
        await pin.closed.wait()
    return time.monotonic() - began


async def test_a_pin_is_added_renamed_seen_and_revoked(house: Daemon) -> None:
    token = (await ctl(house, "devices", "add", PIN, "--name", "Old pin")).stdout.strip()
    assert len(bytes.fromhex(token)) == 32
    assert "Kitchen [red]" in (await ctl(house, "devices", "rename", PIN, "Kitchen [red]")).stdout
    async with Pin(house.url, PIN, token=token) as pin:
        assert (await pin.ask(CARD, realtime=False)).answered
        assert listed(house)[PIN]["name"] == "Kitchen [red]"
        table = (await ctl(house, "devices", "list")).stdout
        assert "Kitchen" in table
        assert "now" in table
        took = [await revoked(house, pin)]
    while len(took) < TRIES and min(took) >= REVOKED_S:
        token = (await ctl(house, "devices", "add", PIN)).stdout.strip()
        async with Pin(house.url, PIN, token=token) as pin:
            took.append(await revoked(house, pin))
    print("a revoked pin's connection ended after", ", ".join(f"{each * 1000:.0f} ms" for each in took))
    assert min(took) < REVOKED_S
    with pytest.raises(PinRefusedError):
        await Pin(house.url, PIN, token=token).connect()
    again = await asyncio.to_thread(house.ctl, "devices", "revoke", PIN, check=False)
    assert (again.returncode, again.stdout) == (1, "")
    assert len(again.stderr.splitlines()) == 1


async def test_revoking_ends_a_turn_that_is_being_spoken(house: Daemon) -> None:
    token = (await ctl(house, "devices", "add", PIN)).stdout.strip()
    async with Pin(house.url, PIN, token=token) as pin:
        asking = asyncio.create_task(pin.ask(librivox()[0].pcm, realtime=True))
        await until(lambda: pin.model.turn is not None or asking.done(), PATIENT_S)
        revoking = await ctl(house, "devices", "revoke", PIN)
        assert "may no longer talk" in revoking.stdout
        async with asyncio.timeout(PATIENT_S):
            await pin.closed.wait()
        await asyncio.gather(asking, return_exceptions=True)
    assert house.status()["devices"] == []


async def test_pairing_again_replaces_the_token_and_ends_the_old_connection(house: Daemon) -> None:
    house.call("POST", "/api/v1/pairing", b'{"minutes": 1}')
    _, old = await pair(house, PIN, number=2)
    async with Pin(house.url, PIN, token=old["token"]) as pin:
        house.call("POST", "/api/v1/pairing", b'{"minutes": 1}')
        _, new = await pair(house, PIN, number=2, firmware="2.0")
        async with asyncio.timeout(PATIENT_S):
            await pin.closed.wait()
    with pytest.raises(PinRefusedError):
        await Pin(house.url, PIN, token=old["token"]).connect()
    async with Pin(house.url, PIN, token=new["token"]) as pin:
        assert pin.connected
    assert listed(house)[PIN]["firmware"] == "2.0"
    house.call("DELETE", f"/api/v1/devices/{PIN}")


async def test_a_waiting_pin_is_approved_by_a_person(house: Daemon, tmp_path_factory: pytest.TempPathFactory) -> None:
    said: list[str] = []
    wishes = Wishes("late", tmp_path_factory.mktemp("late") / "late.json", url=house.url, pair_wait_s=60)
    arriving = asyncio.create_task(reach(wishes, say=said.append))
    deadline = time.monotonic() + PATIENT_S
    while not house.call("GET", "/api/v1/pairing")["pending"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert "late" in (await ctl(house, "devices", "list")).stdout
    assert "gets its token" in (await ctl(house, "devices", "approve", "late")).stdout
    async with asyncio.timeout(PATIENT_S):
        pin = await arriving
    await pin.close()
    assert any("devices approve late" in sentence for sentence in said)
    house.call("DELETE", "/api/v1/devices/late")


async def test_the_next_pin_is_let_in_by_hotpinctl_pair(house: Daemon) -> None:
    waiting = asyncio.create_task(ctl(house, "pair", "--minutes", "1"))
    deadline = time.monotonic() + PATIENT_S
    while not house.call("GET", "/api/v1/pairing")["open"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (await pair(house, "guest", number=3))[0] == 200
    assert "Paired: guest." in (await waiting).stdout
    house.call("DELETE", "/api/v1/devices/guest")


async def test_a_pin_that_stays_connected_is_seen_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that looks every fifth of a second in place of every minute."""
    (tmp_path / "sitecustomize.py").write_text("from hotpind.devices import registry\nregistry.LOOK_INTERVAL = 0.2\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hasty = await asyncio.to_thread(Daemon, PAIRED)
    try:
        _, answer = await pair(hasty, PIN)
        async with Pin(hasty.url, PIN, token=answer["token"]):
            seen = listed(hasty)[PIN]["last_seen"]
            await until(lambda: listed(hasty)[PIN]["last_seen"] != seen, PATIENT_S)
    finally:
        assert await asyncio.to_thread(hasty.stop) == 0


def test_an_open_appliance_says_so_plainly(daemon: Daemon) -> None:
    """The daemon of the other tests here runs with ``auth.mode = "open"``."""
    assert "any device on the network may talk to this appliance" in daemon.ctl("status").stdout
    assert json.loads(daemon.ctl("status", "--json").stdout)["auth"] == "open"
