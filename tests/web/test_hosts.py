"""The Host and Origin headers."""

from __future__ import annotations

import aiohttp
import pytest

from hotpind.web.hosts import host_is_allowed, is_same_origin, own_names
from tests.web.conftest import HOST_NAME, Doors, OpenDoors

NAMES = own_names(HOST_NAME)


@pytest.mark.parametrize("host", [
    "192.168.1.7", "192.168.1.7:8000", "[fe80::1]", "[fe80::1]:8000", "[fe80::1%25eth0]:8000", "localhost:8000",
    HOST_NAME, f"{HOST_NAME.upper()}:8000", f"{HOST_NAME}."])
def test_own_names_are_allowed(host: str) -> None:
    assert host_is_allowed(host, NAMES)


@pytest.mark.parametrize("host", [
    "", "evil.example", "evil.example:8000", f"{HOST_NAME}.evil.example", f"evil.{HOST_NAME}",
    "192.168.1.7.evil.example", "localhost:8000@evil.example", "user@localhost", "localhost/evil", "[::1",
    "::1", "localhost:80:80", "127.0.0.1:x",
    "loc alhost", "127.1.evil", "localhost\\evil", "0x7f.example"])
def test_foreign_names_are_not(host: str) -> None:
    assert not host_is_allowed(host, NAMES)


@pytest.mark.parametrize(("origin", "host"), [
    ("http://192.168.1.7:8000", "192.168.1.7:8000"), ("http://localhost", "localhost"), ("http://a:80", "a"),
    ("http://[fe80::1]:8000", "[fe80::1]:8000"), ("http://HOTPIN.local:8000", "hotpin.local:8000")])
def test_own_pages_are_allowed(origin: str, host: str) -> None:
    assert is_same_origin(origin, host, "http")


@pytest.mark.parametrize(("origin", "host"), [
    ("http://evil.example", "192.168.1.7:8000"), ("null", "192.168.1.7:8000"), ("", "192.168.1.7"),
    ("http://192.168.1.7:9000", "192.168.1.7:8000"), ("http://192.168.1.7", "192.168.1.7:8000"),
    ("file://192.168.1.7:8000", "192.168.1.7:8000"), ("http://[::1", "[::1]"), ("http://a:99999", "a")])
def test_foreign_pages_are_not(origin: str, host: str) -> None:
    assert not is_same_origin(origin, host, "http")


async def test_a_rebound_name_is_refused(doors: Doors) -> None:
    for path in ("/health", "/pair", "/ws", "/nowhere"):
        status, answer = await doors.ask("GET", path, headers={"Host": "evil.example:8000"})
        assert status == 421
        assert "server.allowed_hosts" in answer["message"]


async def test_a_foreign_page_cannot_open_the_websocket(open_doors: OpenDoors) -> None:
    doors = await open_doors(mode="open")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await doors.http.ws_connect(f"{doors.url}/ws", origin="http://evil.example")
    assert refused.value.status == 403
    async with doors.http.ws_connect(f"{doors.url}/ws", origin=doors.url) as socket:
        await socket.send_json({"session_id": "pin-1"})
        assert (await socket.receive_json())["status"] == "connected"


async def test_a_foreign_page_cannot_pair(doors: Doors) -> None:
    # What a form or fetch with mode no-cors can send: a "simple" request that needs no preflight.
    status, _ = await doors.ask("POST", "/pair", data='{"device_id": "evil"}',
                                headers={"Origin": "https://evil.example", "Content-Type": "text/plain"})
    assert status == 403
    assert doors.pairing.is_open
    assert doors.registry.devices() == ()


async def test_plain_http_can_be_refused(open_doors: OpenDoors) -> None:
    doors = await open_doors(tls_required=True)
    assert (await doors.ask("GET", "/health"))[0] == 200
    status, answer = await doors.pair()
    assert status == 426
    assert "TLS" in answer["message"]
    async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(doors.socket))) as session,
                session.get("http://localhost/api/v1/devices") as response):
        assert response.status == 200, "the control socket is not a network"
