"""Somebody hostile on the network, against the whole daemon: nothing gets in, and the paired device is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from hotpind.pin.client import Pin
from hotpind.wearable.hub import MOST_STRANGERS
from hotpind.wearable.protocol import HELLO_DEADLINE_S
from hotpind.web.limits import MOST_IDLE_PER_ADDRESS
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import ABORT_S, assert_conforming
from tests.appliance.recordings import cards
from tests.appliance.strangers import FLOOD, PAIRED, PIN, admin_secret, ask, pair, stranger
from tests.appliance.test_limits import picture
from tests.raw_http import send_raw, statuses
from tests.waiting import until

CARD = cards()[0].pcm
MOST_HELD = 6 * MOST_IDLE_PER_ADDRESS + 8
"""File descriptors, of six addresses and the device."""
EVIL = "http://evil.example"
FLOOD_S = 6
LEAST_REQUESTS, LEAST_ANSWERS = 100, 20
"""A second, or there was no flood; how many there were is printed. Who asks too often is answered late or loses the
connection."""
LET_IN_S = 5.0
"""For the device to connect. An idle machine takes a few milliseconds; kept out, it waits for strangers' deadlines."""


@dataclass(frozen=True)
class Home:
    """A daemon and its two devices."""

    daemon: Daemon
    token: str
    """Of the device ``PIN``."""
    others_token: str

    def pin(self) -> Pin:
        return Pin(self.daemon.url, PIN, token=self.token)

    @property
    def port(self) -> int:
        return URL(self.daemon.url).port or 0

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def devices(self) -> set[str]:
        return {each["device_id"] for each in self.daemon.call("GET", "/api/v1/devices")["devices"]}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running(PAIRED) as daemon:
        began = time.monotonic()
        status, answer = asyncio.run(pair(daemon, PIN))
        assert status == 200
        yield Home(daemon, answer["token"], daemon.ctl("devices", "add", "pin-2").stdout.strip())
        assert "Traceback" not in daemon.log
        minutes = (time.monotonic() - began) // 60
        assert 1 <= daemon.log.count("not proper HTTP") <= 1 + minutes, "one line a minute"
        for line in daemon.lines:
            assert not re.search(r"\b(error|critical)\b", line), line


async def test_guessed_tokens_are_delayed_counted_and_told_nothing(home: Home) -> None:
    """The device's own token with one digit changed is answered like any nonsense."""
    near = ("0" if home.token[0] != "0" else "1") + home.token[1:]
    guesses = [near, secrets.token_hex(32), "x", "", near[:-1], admin_secret(home.daemon), home.token.upper(), "é" * 40]
    answers = []
    async with stranger(10) as http:
        for guess in guesses:
            began = time.monotonic()
            path = "/image" if guess == "x" else "/ws"
            answers.append(await ask(http, "GET" if path == "/ws" else "POST", home.daemon.url + path, token=guess))
            assert time.monotonic() - began >= 0.45, "a refusal is delayed"
        assert {status for status, _, _ in answers} == {401}
        assert len({json.dumps(answer) for _, _, answer in answers}) == 1
        flood = await asyncio.gather(*(ask(http, "GET", home.daemon.url + "/ws", token=secrets.token_hex(32))
                                       for _ in range(30)))
        refused = [(headers, answer) for status, headers, answer in flood if status == 429]
        assert len(refused) >= 20
        assert all(int(headers["Retry-After"]) >= 1 for headers, _ in refused)
        status, _, _ = await ask(http, "GET", home.daemon.url + "/ws", token=home.token)
        assert status in {400, 426}, "a right token is let through, to a handshake that is none"
    assert not [line for line in home.daemon.lines if home.token in line or near in line]
    assert len([line for line in home.daemon.lines if "127.0.9.10" in line]) <= 2, "the log cannot be flooded"


async def test_a_used_nonce_and_a_used_attempt_are_worth_nothing(home: Home) -> None:
    status, first = await pair(home.daemon, "nonce-1", number=11, attempt="a" * 32)
    assert status == 202
    assert (await pair(home.daemon, "nonce-1", number=11, nonce=first["nonce"]))[0] == 202
    assert (await pair(home.daemon, "other", number=12, nonce=first["nonce"]))[0] == 410, "it is bound to its device"
    home.daemon.call("POST", "/api/v1/pairing/nonce-1/approve")
    status, granted = await pair(home.daemon, "nonce-1", number=11, nonce=first["nonce"], attempt="a" * 32)
    assert status == 200
    assert (await pair(home.daemon, "nonce-1", number=11, nonce=first["nonce"]))[0] == 410, "a replayed nonce"
    assert (await pair(home.daemon, "nonce-1", number=12, attempt="a" * 32))[0] == 202, "another address's attempt"
    async with Pin(home.daemon.url, "nonce-1", token=granted["token"]):
        pass
    assert (await pair(home.daemon, "nonce-1", number=11, attempt="a" * 32))[0] == 202, "its token arrived already"
    home.daemon.call("DELETE", "/api/v1/devices/nonce-1")


async def test_of_many_devices_that_race_for_the_window_one_gets_in(home: Home) -> None:
    for window in range(3):
        home.daemon.call("POST", "/api/v1/pairing", b'{"minutes": 1}')
        answers = await asyncio.gather(*(
            pair(home.daemon, f"racer-{window}-{number}", number=20 + 10 * window + number) for number in range(4)))
        assert sorted(status for status, _ in answers) == [200, 202, 202, 202]
        (won,) = [answer for status, answer in answers if status == 200]
        pairing = home.daemon.call("GET", "/api/v1/pairing")
        assert not pairing["open"]
        assert pairing["paired"] == won["device_id"]
        assert home.devices() == {PIN, "pin-2", won["device_id"]}
        async with Pin(home.daemon.url, won["device_id"], token=won["token"]):
            pass
        home.daemon.call("DELETE", f"/api/v1/devices/{won['device_id']}")


async def test_another_devices_session_is_out_of_reach(home: Home) -> None:
    headers = {"Authorization": f"Bearer {home.others_token}"}
    async with home.pin() as pin, aiohttp.ClientSession() as http:
        async with http.ws_connect(home.daemon.url + "/ws", headers=headers) as ws:
            await ws.send_str(json.dumps({"session_id": PIN}))
            assert json.loads(await ws.receive_str(timeout=20))["status"] == "error"
            assert json.loads(await ws.receive_str(timeout=20)) == {"status": "idle"}
            closing = await ws.receive(timeout=20)
            assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        form = aiohttp.FormData()
        form.add_field("session", PIN)
        form.add_field("file", picture(), filename="image.jpg", content_type="image/jpeg")
        status, _, answer = await ask(http, "POST", home.daemon.url + "/image", token=home.others_token, data=form)
        assert (status, answer["status"]) == (403, "error")
        turn = await pin.ask(CARD, realtime=False)
        assert turn.answered, turn.error
        assert not turn.has_image


async def test_a_device_is_no_administrator_and_no_route_is_open(home: Home) -> None:
    async with stranger(61) as http:
        for method, path in (("GET", "/api/v1/status"), ("GET", "/api/v1/devices"), ("POST", "/api/v1/pairing"),
                             ("GET", "/metrics"), ("GET", "/api/v1/turns"), ("POST", "/api/v1/guests"),
                             ("POST", "/api/v1/say"), ("DELETE", f"/api/v1/devices/{PIN}")):
            status, _, answer = await ask(http, method, home.daemon.url + path, token=home.token)
            assert (status, answer["status"]) == (401, "error"), path
        status, _, answer = await ask(http, "GET", home.daemon.url + "/api/v1/status", token=admin_secret(home.daemon))
        assert status == 200


@pytest.mark.parametrize("path", ["/api/v1/devices", "/api/v1/pairing", "/api/v1/guests", "/api/v1/say", "/pair"])
async def test_broken_bodies_get_a_sentence_everywhere(home: Home, path: str) -> None:
    bodies = [b"{", b"[]", b"\xff", b"[" * 4000, b'{"a":' * 700, b'{"device_id":"../../x","text":7,"minutes":"NaN"}',
              b'{"device_id":"\\ud800","text":"","minutes":1e999}', b'{"device_id": {}, "minutes": NaN}', b" " * 5000]
    secret = admin_secret(home.daemon)
    async with stranger(62) as http:
        for body in bodies:
            status, _, answer = await ask(http, "POST", home.daemon.url + path, token=secret, data=body)
            assert status in {400, 413, 429}, (body[:40], answer)
            assert answer["status"] == "error"
            assert 0 < len(answer["message"]) < 200
    assert not home.daemon.call("GET", "/api/v1/pairing")["open"]


@pytest.mark.parametrize("head", [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Host: localhost\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"X\0Y: z\r\n", b"Content-Length: 0x10\r\n"])
@pytest.mark.parametrize("route", [b"POST /pair", b"POST /image", b"POST /api/v1/say"])
async def test_no_request_is_smuggled(home: Home, route: bytes, head: bytes) -> None:
    secret = admin_secret(home.daemon).encode()
    hidden = (b"DELETE /api/v1/devices/pin-1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + secret
              + b"\r\n\r\n")
    answer = await send_raw(home.port, route + b" HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n0\r\n\r\n" + hidden)
    assert statuses(answer) in ([400], []), answer
    assert home.devices() == {PIN, "pin-2"}


async def test_what_was_hidden_would_be_served_after_a_body_that_is_framed_right(home: Home) -> None:
    """The control to the test above: inside of a body the same bytes are no request, and after it they are."""
    secret = admin_secret(home.daemon).encode()
    head = (b"POST /api/v1/say HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + secret
            + b"\r\nContent-Length: %d\r\n\r\n")
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /voices HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert statuses(await send_raw(home.port, head % 0 + hidden + last, seconds=20)) == [400, 200, 200]
    assert statuses(await send_raw(home.port, head % len(hidden) + hidden + last, seconds=20)) == [400, 200]


@pytest.mark.parametrize("chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\n{}\n0\n\n",
                                    b"2;" + b"x" * 9000 + b"\r\n{}\r\n0\r\n\r\n", b"ffffffffffffffff1\r\n{}"])
async def test_broken_chunks_are_refused(home: Home, chunks: bytes) -> None:
    head = b"POST /pair HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = await send_raw(home.port, head + chunks, seconds=10)
    assert statuses(answer)[:1] in ([400], [413], [429]), answer
    assert 200 not in statuses(answer)


async def test_no_path_leads_out(home: Home) -> None:
    """With the administrator's secret, so that every route is reached."""
    secret = admin_secret(home.daemon)
    ways = ["../" * 8 + "etc/passwd", "..%2f" * 8 + "etc%2fpasswd", "%2e%2e/" * 8 + "etc/passwd",
            "..%5c" * 8 + "etc%5cpasswd", "....//" * 8 + "etc/passwd", "%2fetc%2fpasswd", "/etc/passwd",
            "..%00/etc/passwd", "%c0%ae%c0%ae/etc/passwd"]
    roots = ["/", "/ws/", "/image/", "/voices/", "/health/", "/pair/", "/metrics/", "/api/v1/devices/",
             "/api/v1/guests/", "/api/v1/pairing/", "/api/v1/status/"]
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    before = sorted(str(path) for path in home.daemon.root.rglob("*"))
    for root in roots:
        requests = b"".join(
            f"{method} {root}{way}{tail} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n"
            f"Content-Length: 0\r\n\r\n".encode()
            for way in ways for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/approve")))
        answer = await send_raw(home.port, requests + last, seconds=20)
        assert b"root:" not in answer
        assert statuses(answer)[-1] == 200, "all were read"
        assert not [status for status in statuses(answer) if status >= 500], answer
    form = aiohttp.FormData()
    form.add_field("session", PIN)
    form.add_field("file", picture(), filename="../../../../tmp/hotpin-escaped.jpg", content_type="image/jpeg")
    async with aiohttp.ClientSession() as http:
        status, _, _ = await ask(http, "POST", home.daemon.url + "/image", token=home.token, data=form)
    assert status == 200
    assert not await asyncio.to_thread(Path("/tmp/hotpin-escaped.jpg").exists)
    assert sorted(str(path) for path in home.daemon.root.rglob("*")) == before, "a picture is kept in memory only"
    assert home.devices() == {PIN, "pin-2"}


async def test_foreign_pages_and_names_are_refused_even_with_the_right_token(home: Home) -> None:
    own = home.daemon.url
    async with stranger(63) as http:
        for origin in (EVIL, "null", "http://127.0.0.1:1", "https://" + own.removeprefix("http://") + ".evil.example"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(own + "/ws", headers=home.bearer | {"Origin": origin})
            assert refused.value.status == 403
            for path in ("/pair", "/image", "/api/v1/pairing"):
                status, _, _ = await ask(http, "POST", own + path, token=home.token, headers={"Origin": origin},
                                         data=b'{"device_id":"page"}')
                assert status == 403, (path, origin)
        secret = admin_secret(home.daemon)
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "",
                     "a@127.0.0.1"):
            for method, path in (("GET", "/ws"), ("GET", "/health"), ("POST", "/pair"), ("GET", "/api/v1/status")):
                status, _, _ = await ask(http, method, own + path, token=secret, headers={"Host": host})
                assert status in {400, 421}, (host, path)
        async with http.ws_connect(own + "/ws", headers=home.bearer | {"Origin": own}) as ws:
            await ws.send_str(json.dumps({"session_id": PIN}))
            assert json.loads(await ws.receive_str(timeout=20))["status"] == "connected"
    assert "page" not in {each["device_id"] for each in home.daemon.call("GET", "/api/v1/pairing")["pending"]}


@pytest.mark.slow
async def test_a_flood_of_pairing_requests_does_not_keep_the_device_waiting(home: Home) -> None:
    async with home.pin() as pin:
        flood = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, str(home.port), str(FLOOD_S),
                                                     stdout=subprocess.PIPE)
        await asyncio.sleep(0.5)
        assert pin.connected
    began = time.monotonic()
    async with home.pin() as pin:
        back = time.monotonic() - began
        assert flood.returncode is None, "it comes back during the flood"
        turn = await pin.ask(cards()[1].pcm, tail_silence_s=0.4, drain="fast")
    async with asyncio.timeout(FLOOD_S + 60):
        output, _ = await flood.communicate()
    sent, answered = map(int, output.split())
    assert turn.answered, turn.error
    assert turn.ack_max_s is not None
    print(f"{sent / FLOOD_S:.0f} pairing requests/s, {answered / FLOOD_S:.0f} answers/s: worst acknowledgement "
          f"{turn.ack_max_s * 1000:.0f} ms, first sound after {turn.timings.first_audio:.2f} s, reconnected in "
          f"{back * 1000:.0f} ms")
    assert sent >= LEAST_REQUESTS * FLOOD_S
    assert answered >= LEAST_ANSWERS * FLOOD_S, "requests that nobody reads are no load"
    assert turn.ack_max_s < ABORT_S
    assert back < LET_IN_S
    pairing = home.daemon.call("GET", "/api/v1/pairing")
    assert len(pairing["pending"]) <= 16
    assert home.daemon.memory_mb() < 1000


@pytest.mark.slow
@pytest.mark.parametrize("opening", [b"", b"POST /pair HTTP/1.1\r\nHost: local",
                                     b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nSec-WebSocket-Ver",
                                     b"POST /pair HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n{"])
async def test_slow_strangers_do_not_keep_the_device_out(home: Home, opening: bytes) -> None:
    """300 from five addresses and 40 from the device's own, each sending another byte from time to time."""
    writers: list[asyncio.StreamWriter] = []
    before = home.daemon.main.num_fds()
    try:
        for number in range(340):
            address = f"127.0.8.{number % 5}" if number < 300 else "127.0.0.1"
            _, writer = await asyncio.open_connection("127.0.0.1", home.port, local_addr=(address, 0))
            writer.write(opening)
            writers.append(writer)
        await asyncio.sleep(1.2)
        for writer in writers:
            with contextlib.suppress(ConnectionError):
                writer.write(b"x")
        began = time.monotonic()
        async with home.pin() as pin:
            took = time.monotonic() - began
            await until(lambda: home.daemon.main.num_fds() - before <= MOST_HELD, 15,
                        lambda: f"{home.daemon.main.num_fds() - before} connections are held")
            held = home.daemon.main.num_fds() - before
            turn = await pin.ask(CARD, realtime=False, drain="fast")
        print(f"{opening[:12]!r}: the device was in after {took * 1000:.0f} ms beside {held} connections")
        assert took < LET_IN_S
        assert turn.answered, turn.error
        assert_conforming(turn)
    finally:
        for writer in writers:
            writer.close()


async def test_strangers_that_say_nothing_do_not_keep_a_device_from_an_open_appliance(daemon: Daemon) -> None:
    """With ``auth.mode = "open"`` the handshake costs nothing: what bounds strangers is that they have to speak."""
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        silent = []
        for number in range(100):
            http = await stack.enter_async_context(stranger(70 + number % 3))
            silent.append(await stack.enter_async_context(http.ws_connect(daemon.url + "/ws")))
        assert len(silent) > MOST_STRANGERS
        # The newest has its ten seconds to say who it is; the oldest had to go before theirs were over.
        with pytest.raises(TimeoutError):
            await silent[-1].receive(timeout=0.3)
        for ws in silent[:len(silent) - MOST_STRANGERS]:
            message = await ws.receive(timeout=10)
            assert message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
        assert time.monotonic() - began < HELLO_DEADLINE_S, "too slow a machine to tell one from the other"
        async with asyncio.timeout(10):
            pin = await stack.enter_async_context(Pin(daemon.url, "patient"))
        assert (await pin.ask(CARD, realtime=False)).answered
    assert "Traceback" not in daemon.log
