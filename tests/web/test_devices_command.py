"""`hotpinctl devices` and `hotpinctl pair` against a running server, over its control socket."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hotpind.cli import devices as devices_command
from hotpind.cli.control import call, find_socket
from hotpind.cli.ctl import app
from hotpind.config import Config
from hotpind.config.schema import PathsSection
from hotpind.devices.device import describe
from hotpind.errors import OperatorError
from tests.places import TOP
from tests.web.conftest import Doors, OpenDoors


def environment(runtime: Path) -> dict[str, str]:
    return {"HOTPIN_PATHS__RUNTIME": str(runtime), "NO_COLOR": "1", "COLUMNS": "200"}


async def hotpinctl(runtime: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it said. The server goes on meanwhile."""
    async with asyncio.timeout(30):
        result = await asyncio.to_thread(CliRunner(env=environment(runtime)).invoke, app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


async def told(doors: Doors, *arguments: str) -> str:
    code, output, errors = await hotpinctl(runtime_of(doors), *arguments)
    assert (code, errors) == (0, "")
    return output


def runtime_of(doors: Doors) -> Path:
    """Put the server's socket where the command looks for it."""
    link = doors.socket.with_name("control.sock")
    if not link.is_symlink():
        link.symlink_to(doors.socket)
    return doors.socket.parent


async def test_a_person_looks_after_the_devices(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    assert "hotpinctl pair" in await told(doors, "devices", "list")
    token = (await told(doors, "devices", "add", "esp32-cam-hotpin-001", "--name", "Kitchen [red]")).strip()
    assert (await doors.ask("GET", "/whoami", token=token))[1]["device_id"] == "esp32-cam-hotpin-001"
    await doors.pair("pin-2", model="esp32-cam")
    listed = await told(doors, "devices", "list")
    assert "Kitchen [red]" in listed, "a device's name is not markup"
    assert "pin-2" in listed
    assert "approve" in listed
    await told(doors, "devices", "rename", "esp32-cam-hotpin-001", "Garage")
    await told(doors, "devices", "approve", "pin-2")
    data = json.loads(await told(doors, "devices", "list", "--json"))
    assert [each["name"] for each in data["devices"]] == ["Garage"]
    assert data["pending"] == []
    await told(doors, "devices", "revoke", "esp32-cam-hotpin-001")
    assert (await doors.ask("GET", "/whoami", token=token))[0] == 401


async def test_a_person_turns_a_device_away(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    nonce = (await doors.pair("pin-1"))[1]["nonce"]
    assert "turned away" in await told(doors, "devices", "deny", "pin-1")
    assert (await doors.pair("pin-1", nonce=nonce))[0] == 403


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_command, "WATCH_SECONDS", 0.02)


def hurry(doors: Doors) -> None:
    """Have the shortest window's time, a tenth of a minute, pass as soon as it is opened."""
    clock = doors.pairing._clock
    doors.pairing.on_window_change(lambda _: setattr(doors.pairing, "_clock", lambda: clock() + 6.1))


@pytest.mark.usefixtures("_looks_often")
async def test_pair_waits_for_the_device(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    command = asyncio.create_task(told(doors, "pair", "--minutes", "1"))
    opened = asyncio.Event()
    doors.pairing.on_window_change(lambda is_open: opened.set())
    async with asyncio.timeout(10):
        await opened.wait()
    assert (await doors.pair("pin-1"))[0] == 200
    assert "Paired: pin-1" in await command


@pytest.mark.usefixtures("_looks_often")
async def test_pair_waits_until_the_device_is_on_disk(
        open_doors: OpenDoors, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = await open_doors(first_window=0)
    put = doors.registry._database.put

    def put_slowly(*arguments: Any, **options: Any) -> None:
        time.sleep(0.5)
        put(*arguments, **options)

    monkeypatch.setattr(doors.registry._database, "put", put_slowly)
    command = asyncio.create_task(told(doors, "pair", "--minutes", "1"))
    opened = asyncio.Event()
    doors.pairing.on_window_change(lambda is_open: opened.set())
    async with asyncio.timeout(10):
        await opened.wait()
    assert (await doors.pair("pin-1"))[0] == 200
    assert "Paired: pin-1" in await command


@pytest.mark.usefixtures("_looks_often")
async def test_pair_says_when_nobody_came(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    hurry(doors)
    code, output, errors = await hotpinctl(runtime_of(doors), "pair", "--minutes", "0.1")
    assert (code, errors.strip()) == (1, "No device asked in this time.")
    assert "0.1 minutes" in output


@pytest.mark.usefixtures("_looks_often")
async def test_pair_for_scripts_tells_how_it_ended(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    command = asyncio.create_task(told(doors, "pair", "--json"))
    opened = asyncio.Event()
    doors.pairing.on_window_change(lambda is_open: opened.set())
    async with asyncio.timeout(10):
        await opened.wait()
    assert (await doors.pair("pin-1"))[0] == 200
    data = json.loads(await command)
    assert (data["paired"], data["open"]) == ("pin-1", False)

    hurry(doors)
    code, output, errors = await hotpinctl(runtime_of(doors), "pair", "--json", "--minutes", "0.1")
    assert (code, errors) == (1, "")
    assert json.loads(output)["paired"] is None


async def test_pair_for_scripts_need_not_wait(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    data = json.loads(await told(doors, "pair", "--json", "--no-wait"))
    assert data["open"]
    assert 115 < data["seconds_left"] <= 120


@pytest.mark.parametrize("arguments", [
    ("devices", "revoke", "nobody"), ("devices", "rename", "nobody", "x"), ("devices", "approve", "nobody"),
    ("devices", "add", "a b"), ("devices", "rename", "pin-1", " "), ("devices", "revoke", "../../../etc/passwd")])
async def test_mistakes_are_one_sentence(doors: Doors, arguments: tuple[str, ...]) -> None:
    await doors.registry.add(describe("pin-1"))
    code, output, errors = await hotpinctl(runtime_of(doors), *arguments)
    assert (code, output) == (1, "")
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in errors


def test_a_daemon_that_does_not_run_is_named(tmp_path: Path) -> None:
    """As a user runs it, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "hotpind.cli.ctl", "devices", "list"], cwd=TOP, text=True,
                          env=os.environ | environment(tmp_path), capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "hotpind is not running" in done.stderr
    assert str(tmp_path) in done.stderr


async def test_a_socket_of_something_else_is_named(tmp_path: Path) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 not HTTP\r\n")
        writer.close()

    server = await asyncio.start_unix_server(talk, tmp_path / "control.sock")
    with pytest.raises(OperatorError, match="did not answer as expected"):
        await call("GET", "/api/v1/devices", config=config_of(tmp_path))
    server.close()


def config_of(runtime: Path) -> Config:
    return Config(paths=PathsSection(runtime=str(runtime)))


def test_the_packaged_service_is_preferred(tmp_path: Path) -> None:
    environ: dict[str, Any] = {"XDG_RUNTIME_DIR": str(tmp_path / "user")}
    system = tmp_path / "system"
    assert find_socket(Config(), environ, system=system) == tmp_path / "user" / "hotpin" / "control.sock"
    system.mkdir()
    import socket
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(system / "control.sock"))
        assert find_socket(Config(), environ, system=system) == system / "control.sock"
        assert find_socket(config_of(tmp_path / "own"), environ, system=system) == tmp_path / "own" / "control.sock"


def test_somebody_elses_directory_is_not_talked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    (tmp_path / "hotpin").mkdir()
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(OperatorError, match=r"hotpin: the directory for sockets belongs to user \d+, not to this one"):
        find_socket(Config(), environ, system=tmp_path / "none")
