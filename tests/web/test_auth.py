"""Who may use a route."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from hotpind.devices.device import describe
from hotpind.web.auth import MOST_DELAYED, REFUSAL_DELAY, Grant, GrantKind
from tests.web.conftest import ADMIN_SECRET, Doors, OpenDoors


async def test_a_token_names_its_device(doors: Doors) -> None:
    token = await doors.registry.add(describe("pin-1"))
    assert await doors.ask("GET", "/whoami", token=token) == (200, {"device_id": "pin-1", "kind": "paired"})
    assert doors.delays == []
    lower = {"Authorization": f"bearer  {token} "}
    assert (await doors.ask("GET", "/whoami", headers=lower))[0] == 200
    assert doors.registry.devices()[0].last_seen is not None


@pytest.mark.parametrize("header", [
    None, "Bearer", "Bearer ", "Bearer wrong", "Basic dXNlcjpwYXNz", f"Bearer {ADMIN_SECRET}", "Bearer " + "0" * 64])
async def test_everything_else_is_refused_alike(doors: Doors, header: str | None) -> None:
    await doors.registry.add(describe("pin-1"))
    status, answer = await doors.ask("GET", "/whoami", headers={"Authorization": header} if header else {})
    assert doors.delays == [REFUSAL_DELAY]
    assert (status, answer["message"]) == (401, "This device is not paired with the appliance.")


async def test_a_long_header_is_refused(doors: Doors) -> None:
    assert (await doors.ask("GET", "/whoami", token="0" * 600))[0] == 400


async def test_a_second_header_is_refused(doors: Doors) -> None:
    token = await doors.registry.add(describe("pin-1"))
    headers = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {token}")]
    async with doors.http.get(f"{doors.url}/whoami", headers=headers) as response:
        assert response.status == 400


async def test_a_wrong_token_never_opens_the_websocket(doors: Doors) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await doors.http.ws_connect(f"{doors.url}/ws", headers={"Authorization": "Bearer wrong"})
    assert refused.value.status == 401


async def test_a_device_has_only_its_own_session(doors: Doors) -> None:
    token = await doors.registry.add(describe("pin-1"))
    await doors.registry.add(describe("pin-2"))
    headers = {"Authorization": f"Bearer {token}"}
    for session_id, code in (("pin-1", None), ("pin-2", 1008), ("", 1008), ("PIN-1", 1008)):
        async with doors.http.ws_connect(f"{doors.url}/ws", headers=headers) as socket:
            await socket.send_json({"session_id": session_id})
            message = await socket.receive(5)
            assert (message.data if message.type is aiohttp.WSMsgType.CLOSE else None) == code, session_id


async def test_guessing_is_slowed_and_then_turned_away(doors: Doors) -> None:
    token = await doors.registry.add(describe("pin-1"))
    began = time.monotonic()
    answers = await asyncio.gather(*(doors.ask("GET", "/whoami", token=f"guess-{n}") for n in range(30)))
    statuses = [status for status, _ in answers]
    # Ten at once, and one more in two seconds.
    refused = statuses.count(401)
    assert 10 <= refused <= 10 + (time.monotonic() - began) / 2
    assert statuses.count(429) == 30 - refused
    assert doors.delays == [REFUSAL_DELAY] * refused
    for _ in range(10):
        async with doors.http.get(f"{doors.url}/whoami", headers={"Authorization": "Bearer x"}) as response:
            if response.status == 429:
                break
    assert response.status == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert (await doors.ask("GET", "/whoami", token=token))[0] == 200, "the address's own device is not locked out"


async def test_a_guesser_does_not_lock_out_the_neighbours(doors: Doors) -> None:
    await asyncio.gather(*(doors.ask("GET", "/whoami", token=f"guess-{n}") for n in range(20)))
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.9", 0))
    async with (aiohttp.ClientSession(connector=connector) as other,
                other.get(f"{doors.url}/whoami", headers={"Authorization": "Bearer x"}) as response):
        assert response.status == 401


async def test_waiting_refusals_are_bounded(open_doors: OpenDoors) -> None:
    never = asyncio.Event()

    async def wait(_: float) -> None:
        await never.wait()

    doors = await open_doors(sleep=wait)
    sessions = [aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(f"127.0.1.{n + 1}", 0)))
                for n in range(12)]
    asking = [asyncio.create_task(session.get(f"{doors.url}/whoami", headers={"Authorization": f"Bearer {n}"}))
              for session in sessions for n in range(8)]
    done: set[asyncio.Task[aiohttp.ClientResponse]] = set()
    async with asyncio.timeout(10):
        while len(done) < len(asking) - MOST_DELAYED:
            done, _ = await asyncio.wait(asking, timeout=0.2)
    assert {(await task).status for task in done} == {429}
    never.set()
    assert [(await task).status for task in asking].count(401) == MOST_DELAYED
    for session in sessions:
        await session.close()


async def test_refusals_are_logged_but_do_not_flood_the_log(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await asyncio.gather(*(doors.ask("GET", "/whoami", token=f"secret-{n}") for n in range(30)))
    lines = [record.message for record in caplog.records if record.name == "hotpind.web.auth"]
    assert len(lines) == 1
    assert "127.0.0.1" in lines[0]
    assert "secret" not in lines[0]


@pytest.mark.parametrize("path", ["/whoami%0A2026-01-01%20ERROR%20forged", "/whoami%1B%5B2J", "/whoami%E2%80%A8x"])
async def test_a_path_writes_no_lines_into_the_log(doors: Doors, caplog: pytest.LogCaptureFixture, path: str) -> None:
    async def anything(request: web.Request) -> web.StreamResponse:
        await doors.gatekeeper.device(request)
        raise AssertionError

    request = make_mocked_request("GET", path, app=web.Application())
    with caplog.at_level(logging.WARNING), pytest.raises(web.HTTPUnauthorized):
        await anything(request)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "hotpind.web.auth"]
    assert line.isprintable()
    assert path in line, "as it was sent"


async def test_open_mode_lets_anybody_in_but_knows_its_devices(open_doors: OpenDoors) -> None:
    doors = await open_doors(mode="open")
    token = await doors.registry.add(describe("pin-1"))
    assert await doors.ask("GET", "/whoami") == (200, {"device_id": None, "kind": "open"})
    assert (await doors.ask("GET", "/whoami", token="an-old-pins-token"))[1]["kind"] == "open"
    assert (await doors.ask("GET", "/whoami", token=token))[1] == {"device_id": "pin-1", "kind": "paired"}
    assert (await doors.ask("GET", "/api/v1/devices"))[0] == 401, "the administrator's part stays closed"


async def test_in_open_mode_the_sessions_of_paired_devices_are_theirs(open_doors: OpenDoors) -> None:
    doors = await open_doors(mode="open")
    token = await doors.registry.add(describe("pin-1"))
    guest = doors.gatekeeper.issue_temporary("guest")

    async def may_use(session_id: str, shown: str = "") -> bool:
        headers = {"Authorization": f"Bearer {shown}"} if shown else {}
        async with doors.http.ws_connect(f"{doors.url}/ws", headers=headers) as socket:
            await socket.send_json({"session_id": session_id})
            return (await socket.receive(10)).type is aiohttp.WSMsgType.TEXT

    assert await may_use("pin-1", token)
    assert await may_use("guest", guest)
    assert await may_use("old-pin")
    assert not await may_use("pin-1")
    assert not await may_use("pin-1", "an-old-token")
    assert not await may_use("guest")
    await doors.registry.revoke("pin-1")
    assert await may_use("pin-1"), "nobody's any more"


def test_what_a_grant_allows() -> None:
    assert Grant(GrantKind.OPEN, None).may_use("anything")
    assert not Grant(GrantKind.OPEN, None).may_use("")
    assert Grant(GrantKind.PAIRED, "pin-1").may_use("pin-1")
    assert not Grant(GrantKind.PAIRED, "pin-1").may_use("pin-10")


async def test_a_temporary_device_comes_and_goes(doors: Doors) -> None:
    token = doors.gatekeeper.issue_temporary("self-test")
    assert await doors.ask("GET", "/whoami", token=token) == (200, {"device_id": "self-test", "kind": "temporary"})
    assert doors.registry.devices() == ()
    doors.gatekeeper.withdraw_temporary("self-test")
    assert (await doors.ask("GET", "/whoami", token=token))[0] == 401


async def test_the_administrator_needs_the_secret_over_tcp(doors: Doors) -> None:
    device_token = await doors.registry.add(describe("pin-1"))
    assert (await doors.ask("GET", "/api/v1/devices", token=ADMIN_SECRET))[0] == 200
    for token in ("", "wrong", device_token, ADMIN_SECRET + "x"):
        assert (await doors.ask("GET", "/api/v1/devices", token=token))[0] == 401
    assert doors.delays == [REFUSAL_DELAY] * 4


async def test_the_administrator_needs_no_secret_on_the_box(doors: Doors) -> None:
    async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(doors.socket))) as session,
                session.get("http://localhost/api/v1/devices") as response):
        assert response.status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_other_users_on_the_box_are_refused(doors: Doors, tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents]:
        if directory == Path(tempfile.gettempdir()):
            break
        directory.chmod(0o755)
    doors.socket.chmod(0o666)
    script = ("import http.client, socket, sys; c = http.client.HTTPConnection('localhost'); "
              "c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(sys.argv[1]); "
              "c.request('GET', '/api/v1/devices'); r = c.getresponse(); print(r.status, r.read().decode())")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(doors.socket), user=65534,
                                                   stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    status, _, body = output.decode().partition(" ")
    assert status == "403"
    assert "sudo" in json.loads(body)["message"]


async def test_revoking_is_heard_at_once(doors: Doors) -> None:
    token = await doors.registry.add(describe("pin-1"))
    ended = asyncio.Event()
    doors.registry.on_token_ended(lambda _: ended.set())
    async with asyncio.timeout(10):
        assert (await doors.ask("DELETE", "/api/v1/devices/pin-1", token=ADMIN_SECRET))[0] == 200
        await ended.wait()
    assert (await doors.ask("GET", "/whoami", token=token))[0] == 401
