"""The daemon on a state directory that is damaged, newer, read-only or full: nothing is emptied in silence."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appliance.harness import Daemon
from tests.appliance.strangers import PAIRED, PIN, ask, pair, stranger

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The state of an appliance that has paired ``PIN``, and its token."""
    root = tmp_path_factory.mktemp("used")
    daemon = Daemon(PAIRED, root=root)
    try:
        _, answer = asyncio.run(pair(daemon, PIN))
    finally:
        assert daemon.stop() == 0
    return root, str(answer["token"])


@pytest.fixture
def root(used: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that state."""
    return Path(shutil.copytree(used[0], tmp_path / "root"))


async def knows(daemon: Daemon, token: str) -> bool:
    async with stranger(1) as http:
        status, _, _ = await ask(http, "GET", daemon.url + "/ws", token=token)
    assert status in {400, 401}
    return status == 400


def faults(daemon: Daemon) -> list[str]:
    found: list[str] = daemon.status()["faults"]
    return found


def check_set_aside(root: Path, token: str, kind: str, advice: str, content: bytes) -> None:
    daemon = Daemon(PAIRED, root=root)
    try:
        (kept,) = (root / "state").glob(f"devices.sqlite3.{kind}-*")
        assert kept.read_bytes() == content
        (fault,) = faults(daemon)
        assert str(root / "state" / "devices.sqlite3") in fault
        assert kept.name in fault
        assert advice in fault
        shown = "".join(daemon.ctl("status").stdout.split())
        assert f"fault:{''.join(fault.split())}" in shown, "in lines of eighty letters"
        assert fault in daemon.log
        assert not asyncio.run(knows(daemon, token))
        assert asyncio.run(pair(daemon, "somebody"))[0] == 202, "it does not take in whoever asks first, as a new one"
    finally:
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_a_damaged_database_is_kept_and_named(root: Path, used: tuple[Path, str]) -> None:
    database = root / "state" / "devices.sqlite3"
    content = bytearray(database.read_bytes())
    content[4096:8192] = os.urandom(4096)
    database.write_bytes(content)
    check_set_aside(root, used[1], "damaged", "pair the devices again", bytes(content))


def test_a_newer_database_is_kept_named_and_good_again_after_an_update(root: Path, used: tuple[Path, str]) -> None:
    database = root / "state" / "devices.sqlite3"
    good = database.read_bytes()
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("UPDATE facts SET value = 99 WHERE key = 'readable_from'")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    check_set_aside(root, used[1], "newer", "update hotpind and rename it back", database.read_bytes())
    for leftover in (root / "state").glob("devices.sqlite3*"):
        leftover.unlink()
    database.write_bytes(good)
    daemon = Daemon(PAIRED, root=root)
    try:
        assert faults(daemon) == []
        assert asyncio.run(knows(daemon, used[1]))
    finally:
        assert daemon.stop() == 0


@needs_root
@pytest.mark.parametrize("fresh", [True, False])
def test_a_read_only_state_directory_is_one_sentence(root: Path, fresh: bool) -> None:
    state = root / "state"
    if fresh:
        shutil.rmtree(state)
        state.mkdir()
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    script = f'mount --bind {state} {state} && mount -o remount,bind,ro {state} && exec "$@"'
    daemon = Daemon(PAIRED, root=root, wait=False, prefix=["unshare", "--mount", "sh", "-c", script, "sh"])
    assert daemon.process.wait(90) == 1
    daemon.wait_for_output()
    (sentence,) = daemon.lines
    assert sentence.startswith(f"hotpind: {state}"), sentence
    assert sentence.endswith("directory's owner, mode and free space"), sentence
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """The same state on a disk of 1 MB."""
    state = root / "state"
    aside = root / "aside"
    state.rename(aside)
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(state)], check=True)
    try:
        for path in aside.iterdir():
            shutil.copy2(path, state / path.name)
        yield state
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


@needs_root
def test_a_full_disk_loses_nothing_and_says_so(root: Path, used: tuple[Path, str], small_disk: Path) -> None:
    daemon = Daemon(PAIRED, root=root)
    try:
        ballast = fill(small_disk)
        daemon.call("POST", "/api/v1/pairing", b'{"minutes": 5}')
        refused = []
        for number in range(200):
            status, answer = asyncio.run(pair(daemon, f"new-{number}", number=number % 200 + 1))
            if status != 200:
                refused.append((status, answer))
                break
            assert asyncio.run(knows(daemon, answer["token"])), "what was answered is kept"
            daemon.call("POST", "/api/v1/pairing", b'{"minutes": 5}')
        ((status, answer),) = refused
        assert status == 503
        assert "disk" in answer["message"]
        assert daemon.call("GET", "/api/v1/pairing")["open"], "nobody got in, so the window is open still"
        revoked = daemon.ctl("devices", "revoke", PIN, check=False)
        assert (revoked.returncode, asyncio.run(knows(daemon, used[1]))) in {(1, True), (0, False)}
        if revoked.returncode:
            assert "disk" in revoked.stderr
            assert len(revoked.stderr.splitlines()) == 1
        ballast.unlink()
        assert asyncio.run(pair(daemon, "after", number=201))[0] == 200, "it works again, without a restart"
        if revoked.returncode:
            daemon.ctl("devices", "revoke", PIN)
        devices: list[dict[str, Any]] = daemon.call("GET", "/api/v1/devices")["devices"]
    finally:
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log
    again = Daemon(PAIRED, root=root)
    try:
        assert {each["device_id"] for each in again.call("GET", "/api/v1/devices")["devices"]} \
            == {each["device_id"] for each in devices}
        assert not asyncio.run(knows(again, used[1]))
    finally:
        assert again.stop() == 0
