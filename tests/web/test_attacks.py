"""What somebody hostile on the network sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import aiohttp
import pytest

from hotpind.devices.device import describe
from hotpind.web import replies
from hotpind.web.limits import ConnectionGuard
from tests.raw_http import send_raw, statuses
from tests.web.conftest import ADMIN_SECRET, Doors, OpenDoors


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b"42", b'"pin-1"', b"{}", b"\xff\xfe", b"[" * 4000, b'{"a":' * 800, b'{"device_id": 7}',
    b'{"device_id": "pin-1", "name": {}}', b'{"device_id": "pin-1", "nonce": 5}', b'{"device_id": "a b"}',
    b'{"device_id": "pin-1", "model": "' + b"m" * 65 + b'"}', b'{"device_id": "\\ud800"}',
    b'{"device_id": "pin-1", "attempt": "' + b"a" * 129 + b'"}', b"\x1f\x8b\x08" + b"\0" * 50])
async def test_malformed_json_is_told_so(doors: Doors, body: bytes) -> None:
    status, answer = await doors.ask("POST", "/pair", data=body)
    assert status == 400
    assert answer["status"] == "error"
    assert len(answer["message"]) < 200
    assert doors.pairing.is_open, "a request that was no request used up the window"


async def test_an_oversized_body_is_not_read(doors: Doors) -> None:
    answer = await send_raw(doors.port, b"POST /pair HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n{")
    assert statuses(answer) == [413]


async def test_an_oversized_chunked_body_is_cut(doors: Doors) -> None:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    answer = await send_raw(
        doors.port, b"POST /pair HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 3)
    assert statuses(answer)[:1] == [413]


async def test_a_compressed_body_is_not_unpacked(doors: Doors) -> None:
    import zlib
    bomb = zlib.compress(b" " * 50_000_000)
    status, _ = await doors.ask("POST", "/pair", data=bomb[:4000], headers={"Content-Encoding": "deflate"})
    assert status == 400


SMUGGLED = b"GET /api/v1/devices HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5, 6\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: xchunked\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Host: evil.example\r\n",
    b"X-A: b\r\n folded: c\r\n",
    b"X\0Y: z\r\n",
    b"X-A: a\rb\r\n"])
async def test_ambiguous_headers_are_refused(doors: Doors, head: bytes) -> None:
    answer = await send_raw(
        doors.port, b"POST /pair HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n0\r\n\r\n" + SMUGGLED)
    assert statuses(answer)[:1] in ([400], [421], []), answer
    assert 200 not in statuses(answer)
    assert doors.pairing.is_open


@pytest.mark.parametrize("data", [
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 5000 + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"])
async def test_headers_that_cannot_be_are_refused(doors: Doors, data: bytes) -> None:
    answer = await send_raw(doors.port, data)
    assert statuses(answer)[:1] in ([400], [421]), answer[:200]
    assert (await doors.ask("GET", "/health"))[0] == 200


async def test_errors_are_sentences_and_never_a_traceback(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down() -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(doors.registry, "devices", break_down)
    status, answer = await doors.ask("GET", "/api/v1/devices", token=ADMIN_SECRET)
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert "log" in answer["message"]


async def test_headers_that_trickle_are_given_up(open_doors: OpenDoors) -> None:
    doors = await open_doors(options={"keepalive_timeout": 1.0})
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.port)
    writer.write(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n")
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 10 and not reader.at_eof():
            writer.write(b"X-A: b\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await reader.read(100)
    assert time.monotonic() - began < 9
    writer.close()


async def test_a_body_that_trickles_is_given_up(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "BODY_SECONDS", 0.5)
    answer = await send_raw(
        doors.port, b"POST /pair HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", seconds=20)
    assert statuses(answer) == [408]
    assert doors.pairing.is_open


async def test_a_client_that_hangs_up_in_the_middle_leaves_no_traceback(
        doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    for data in (b"POST /pair HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
                 b"POST /pair HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
                 b"GET /whoami HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        _, writer = await asyncio.open_connection("127.0.0.1", doors.port)
        writer.write(data)
        await asyncio.sleep(0.05)
        writer.transport.abort()
    await asyncio.sleep(0.3)
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_connections_that_ask_nothing_are_bounded_and_devices_still_served(open_doors: OpenDoors) -> None:
    doors = await open_doors(guard=ConnectionGuard(most=60, per_address=10, grace=0.1))
    token = await doors.registry.add(describe("pin-1"))
    headers = {"Authorization": f"Bearer {token}"}
    async with doors.http.ws_connect(f"{doors.url}/ws", headers=headers) as device:
        await device.send_json({"session_id": "pin-1"})
        await device.receive_json()
        connections = []
        for n in range(300):
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.port,
                                                           local_addr=(f"127.0.0.{n % 5 + 2}", 0))
            writer.write(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n")
            connections.append((reader, writer))
            await asyncio.sleep(0.002)
        assert doors.runner.server is not None
        # Whoever comes next makes room, once the others have had their grace.
        for _ in range(100):
            await asyncio.sleep(0.1)
            connections.append(await asyncio.open_connection("127.0.0.1", doors.port, local_addr=("127.0.0.2", 0)))
            if len(doors.runner.server.connections) <= 5 * 10 + 3:
                break
        assert len(doors.runner.server.connections) <= 5 * 10 + 3
        await device.send_str("still here")
        assert (await device.receive_str(timeout=10)) == "still here"
        assert (await doors.ask("GET", "/whoami", token=token))[0] == 200
        for _, writer in connections:
            writer.close()


async def test_many_devices_behind_one_address_may_come_at_once(open_doors: OpenDoors) -> None:
    doors = await open_doors(guard=ConnectionGuard(grace=30))

    async def visit() -> int:
        async with (aiohttp.ClientSession() as http, http.get(f"{doors.url}/health") as response):
            return response.status

    assert await asyncio.gather(*(visit() for _ in range(150))) == [200] * 150
