"""What a device may send, and what happens to it when it sends more."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest
from PIL import Image

from hotpind.pin.client import Pin
from hotpind.wearable.protocol import LONGEST_SESSION_ID
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import assert_conforming
from tests.appliance.recordings import cards

CARD = cards()[0].pcm
_RUNS = itertools.count()
"""Pictures are counted by device for a minute, and a test may run twice."""


@pytest.fixture(scope="module")
def small() -> Iterator[Daemon]:
    """A daemon with low limits."""
    with running({"LIMITS__RECORDING_S": "4", "LIMITS__IMAGE_BYTES": "250000", "LIMITS__IMAGE_PIXELS": "1000000",
                  "LIMITS__IMAGES_PER_MINUTE": "4", "SERVER__MAX_DEVICES": "3",
                  "SERVER__MAX_MESSAGE_BYTES": "16384"}) as daemon:
        yield daemon


def picture(width: int = 320, height: int = 240, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(out, kind)
    return out.getvalue()


def plain(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(out, "JPEG")
    return out.getvalue()


def bilevel(width: int, height: int) -> bytes:
    """A black PNG of a bit for each pixel, which shrinks to a thousandth of that."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


async def post(daemon: Daemon, parts: dict[str, tuple[bytes, str | None]], path: str = "/image") -> tuple[int, bytes]:
    """Post multipart parts: by name the content and the file name."""
    form = aiohttp.FormData()
    for name, (content, filename) in parts.items():
        form.add_field(name, content, filename=filename, content_type="image/jpeg" if filename else None)
    async with aiohttp.ClientSession() as session, session.post(daemon.url + path, data=form) as response:
        return response.status, await response.read()


async def test_a_recording_over_the_limit_is_refused_and_the_next_one_works(small: Daemon) -> None:
    async with Pin(small.url, "talker") as pin:
        turn = await pin.ask(bytes(16_000 * 2 * 6), realtime=False)
        assert turn.error == "The recording was longer than 4 seconds. Please ask a shorter question."
        assert_conforming(turn)
        turn = await pin.ask(CARD, realtime=False)
        assert turn.answered, turn.error


async def test_a_message_over_the_limit_is_refused_with_the_protocols_error(small: Daemon) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(small.url + "/ws") as ws:
        await ws.send_str('{"session_id":"large"}')
        await ws.receive_str(timeout=20)
        for message in (bytes(20_000), '{"a":"' + "x" * 20_000 + '"}'):
            await (ws.send_bytes(message) if isinstance(message, bytes) else ws.send_str(message))
            assert json.loads(await ws.receive_str(timeout=20))["status"] == "error"
            assert json.loads(await ws.receive_str(timeout=20)) == {"status": "idle"}


async def test_a_message_far_over_the_limit_ends_only_that_connection(small: Daemon) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(small.url + "/ws") as ws:
        await ws.send_str('{"session_id":"huge"}')
        await ws.receive_str(timeout=20)
        await ws.send_bytes(bytes(80_000))
        message = await ws.receive(timeout=20)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1009
    async with Pin(small.url, "huge") as pin:
        assert (await pin.ask(CARD, realtime=False)).answered


async def test_one_device_too_many_is_told_so(small: Daemon) -> None:
    pins = [Pin(small.url, f"pin {number}") for number in range(3)]
    for pin in pins:
        await pin.connect()
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(small.url + "/ws") as ws:
            await ws.send_str('{"session_id":"pin 4"}')
            said = json.loads(await ws.receive_str(timeout=20))
            assert said == {"status": "error",
                            "message": "The appliance already serves 3 devices. Please try again later."}
            assert json.loads(await ws.receive_str(timeout=20)) == {"status": "idle"}
            assert (await ws.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
        # The same device again is not one too many: it replaces its old connection.
        async with Pin(small.url, "pin 0") as again:
            assert (await again.ask(CARD, realtime=False)).answered
    finally:
        await asyncio.gather(*(pin.close() for pin in pins))


@pytest.mark.parametrize("first", [b"\0" * 4096, '{"session_id":""}', '{"session_id":7}'])
async def test_a_connection_that_does_not_say_who_it_is_is_closed(small: Daemon, first: bytes | str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(small.url + "/ws") as ws:
        await (ws.send_bytes(first) if isinstance(first, bytes) else ws.send_str(first))
        message = await ws.receive(timeout=8)  # sooner than one that says nothing
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)


async def test_a_silent_connection_is_closed_after_ten_seconds(small: Daemon) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(small.url + "/ws") as ws:
        begun = asyncio.get_running_loop().time()
        message = await ws.receive(timeout=30)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        assert 9 < asyncio.get_running_loop().time() - begun < 25


async def test_nonsense_from_a_device_is_ignored(small: Daemon) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(small.url + "/ws") as ws:
        await ws.send_str('{"session_id":"odd"}')
        await ws.receive_str(timeout=20)
        for text in ("{", "[]", '{"signal":"DANCE"}', "\ud800".encode("utf-8", "replace").decode(), '{"a":' * 900):
            await ws.send_str(text)
        await ws.send_bytes(b"\x01\x02\x03")
        await ws.send_bytes(b"")
        assert json.loads(await ws.receive_str(timeout=20))["status"] == "receiving"
        await ws.send_str('{"signal":"EOS"}')
        assert json.loads(await ws.receive_str(timeout=20)) == {"status": "processing", "stage": "transcription"}
        assert "Could not understand audio" in json.loads(await ws.receive_str(timeout=20))["message"]
        assert json.loads(await ws.receive_str(timeout=20)) == {"status": "idle"}


async def test_an_eos_without_audio_unlocks_the_device(small: Daemon) -> None:
    async with Pin(small.url, "empty") as pin:
        turn = await pin.ask(b"", realtime=False)
        assert turn.error is not None
        assert "Could not understand audio" in turn.error
        assert_conforming(turn)


async def test_pictures_are_taken_within_the_limits_only(small: Daemon) -> None:
    good = picture()
    bomb = bilevel(20_000, 20_000)
    assert len(bomb) <= 250_000, "it has to be refused for what it would become, not for its size"
    cam = f"cam {next(_RUNS)}".encode()
    cases: list[tuple[dict[str, tuple[bytes, str | None]], int]] = [
        ({"session": (cam, None), "file": (good, "image.jpg")}, 200),
        ({"session": (cam, None), "file": (picture(kind="PNG"), "image.png")}, 200),
        ({"file": (good, "image.jpg")}, 400),
        ({"session": (b"", None), "file": (good, "image.jpg")}, 400),
        ({"session": (cam, None)}, 400),
        ({"session": (b"cam2", None), "file": (bytes(2250_000), "image.jpg")}, 413),
        ({"session": (b"cam2", None), "file": (b"GIF89a" + bytes(100), "image.jpg")}, 415),
        ({"session": (b"cam2", None), "file": (good[:len(good) // 2], "image.jpg")}, 400),
        ({"session": (b"cam3", None), "file": (b"\xff\xd8\xff", "image.jpg")}, 415),
        ({"session": (b"cam3", None), "file": (plain(1200, 1200), "image.jpg")}, 400),
        ({"session": (b"cam4", None), "file": (bomb, "image.png")}, 400),
        ({"session": (b"x" * 200, None), "file": (good, "image.jpg")}, 400),
    ]
    for parts, expected in cases:
        status, body = await post(small, parts)
        assert status == expected, (parts.keys(), body)
        assert len(body) < 1024
        answer = json.loads(body)
        assert answer["status"] == ("success" if expected == 200 else "error")
        assert answer["message"]


async def test_too_many_pictures_in_a_minute_are_refused(small: Daemon) -> None:
    name = f"paparazzo {next(_RUNS)}".encode()
    for expected in (200, 200, 200, 200, 429):
        status, body = await post(small, {"session": (name, None), "file": (picture(), "image.jpg")})
        assert status == expected, body


async def test_the_pins_own_upload_is_understood(small: Daemon) -> None:
    async with Pin(small.url, f"firmware {next(_RUNS)}") as pin:
        content = picture()
        reply = await pin.send_image(content)
        assert reply.ok, reply
        assert reply.violations == ()
        assert set(reply.body) == {"status", "message", "session", "filename", "size_bytes", "context_ready"}
        assert (reply.body["filename"], reply.body["size_bytes"]) == ("image.jpg", len(content))


async def test_the_longest_reply_fits_the_pins_buffer(small: Daemon) -> None:
    """A session id of the most characters, each of which takes the most bytes in JSON."""
    async with Pin(small.url, "\U0001f600" * LONGEST_SESSION_ID) as pin:
        reply = await pin.send_image(picture(), filename="\U0001f600" * 200)
        assert reply.ok or reply.status == 400, reply
        assert not [each for each in reply.violations if "bytes" in each]


async def test_bodies_that_are_not_multipart_are_refused_in_a_sentence(small: Daemon) -> None:
    async with aiohttp.ClientSession() as session:
        for headers, body in (({"Content-Type": "application/json"}, b"{}"),
                              ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\nbroken"),
                              ({"Content-Type": "multipart/form-data"}, b"")):
            async with session.post(small.url + "/image", data=body, headers=headers) as response:
                assert response.status in {400, 415}, await response.text()
                assert (await response.json())["status"] == "error"


async def test_the_endpoints_that_older_pins_call(small: Daemon) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(small.url + "/health") as response:
            assert response.status == 200
            assert "hotpin" in await response.text()
        async with session.get(small.url + "/voices") as response:
            voices = await response.json()
            assert voices["count"] == len(voices["voices"]) == 1
        async with session.get(small.url + "/", headers={"Accept": "application/json"}) as response:
            root = await response.json()
            assert root["websocket_endpoint"] == "/ws"
            assert root["service"]
            assert root["version"]
