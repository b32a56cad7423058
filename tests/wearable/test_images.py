"""Pictures as devices send them: what is taken, what becomes of it, and how much memory that takes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from hotpind.chat.messages import Picture
from hotpind.config.schema import LimitsSection
from hotpind.errors import DeviceError
from hotpind.wearable import images
from hotpind.wearable.images import ImageIntake, prepare_picture

LIMITS = LimitsSection()
MEASURE = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from hotpind.config.schema import LimitsSection
    from hotpind.wearable.images import prepare_picture

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    content = Path(sys.argv[1]).read_bytes()
    before = peak()
    prepare_picture(content, LimitsSection())
    print(peak() - before)
""")


def as_file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shown(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.jpeg))


def near(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(have - want) < 12 for have, want in zip(pixel, colour, strict=True))


@pytest.mark.parametrize(("kind", "size", "most_mb"), [
    ("JPEG", (6600, 5000), 60.0),
    ("PNG", (4000, 3000), 150.0),
])
def test_a_large_picture_takes_little_memory(tmp_path: Path, kind: str, size: tuple[int, int], most_mb: float) -> None:
    file = tmp_path / "picture"
    file.write_bytes(as_file(Image.new("RGB" if kind == "JPEG" else "RGBA", size), kind))
    grown = subprocess.run([sys.executable, "-c", MEASURE, str(file)], check=True, capture_output=True, text=True)
    assert float(grown.stdout) < most_mb


def test_a_png_may_have_fewer_pixels_than_a_jpeg() -> None:
    side = int(LIMITS.png_pixels ** 0.5) + 1
    with pytest.raises(DeviceError, match=r"at most 12,000,000 pixels .* .limits.png_pixels; a JPEG may have more"):
        prepare_picture(as_file(Image.new("L", (side, side))), LIMITS)
    with pytest.raises(DeviceError, match=r"at most 20,000 pixels are taken .limits.png_pixels"):
        prepare_picture(as_file(Image.new("L", (200, 101))), LIMITS.model_copy(update={"png_pixels": 20_000}))
    picture = prepare_picture(as_file(Image.new("L", (6600, 5000)), "JPEG"), LIMITS)
    assert (picture.width, picture.height) == (1568, 1188)
    with pytest.raises(DeviceError, match=r"at most 33,000,000 pixels are taken .limits.image_pixels"):
        prepare_picture(as_file(Image.new("L", (6700, 5000)), "JPEG"), LIMITS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(3000, 1000), (300, 100)], ids=["large", "small"])
def test_every_kind_of_pixel_becomes_a_plain_jpeg(mode: str, size: tuple[int, int]) -> None:
    white: dict[str, int | tuple[int, ...]] = {"I;16": 65535, "1": 1, "P": 0, "L": 255, "LA": (255, 255),
                                               "RGBA": (255,) * 4, "CMYK": (0,) * 4}
    image = Image.new(mode, size, white.get(mode, (255,) * 3))
    if mode == "P":
        image.putpalette([255] * 768)
    picture = prepare_picture(as_file(image, "JPEG" if mode == "CMYK" else "PNG"), LIMITS)
    assert (picture.width, picture.height) == ((1568, 523) if size[0] == 3000 else size)
    assert shown(picture).mode == "RGB"
    assert near(shown(picture).getpixel((50, 50)), (255, 255, 255))


@pytest.mark.parametrize("size", [(3000, 2000), (300, 200)], ids=["large", "small"])
def test_what_is_transparent_becomes_white(size: tuple[int, int]) -> None:
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, size[0] // 2, size[1]))
    small = shown(prepare_picture(as_file(image), LIMITS))
    assert near(small.getpixel((small.width // 4, 20)), (0, 0, 200))
    assert near(small.getpixel((small.width * 3 // 4, 20)), (255, 255, 255))
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 0, 0, 0])
    small = shown(prepare_picture(as_file(palette, transparency=1), LIMITS))
    assert near(small.getpixel((20, 20)), (255, 255, 255))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(3000, 2000), (300, 200)], ids=["large", "small"])
def test_it_is_turned_upright_and_forgets_where_it_was_taken(kind: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    image.paste((0, 0, 255), (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the left: the left half has to become the upper one
    exif[0x010F] = "the maker"
    picture = prepare_picture(as_file(image, kind, exif=exif), LIMITS)
    assert picture.width < picture.height <= 1568
    upright = shown(picture)
    assert not upright.getexif()
    assert b"maker" not in picture.jpeg
    assert near(upright.getpixel((upright.width // 2, 10)), (0, 0, 254))
    assert near(upright.getpixel((upright.width // 2, upright.height - 10)), (254, 0, 0))


def test_a_truncated_picture_is_refused_with_a_sentence() -> None:
    for kind in ("JPEG", "PNG"):
        content = as_file(Image.effect_noise((640, 480), 90), kind)
        with pytest.raises(DeviceError, match="truncated or broken"):
            prepare_picture(content[:len(content) // 2], LIMITS)


Client = TestClient[web.Request, web.Application]


@contextlib.asynccontextmanager
async def taking_in(keep: Callable[[str, Picture], None] = lambda *_: None, *,
                    limits: LimitsSection = LIMITS) -> AsyncIterator[Client]:
    """Serve the route to everybody."""
    async def anybody(_: web.Request, __: str) -> None:
        return

    with ThreadPoolExecutor(3) as workers:
        intake = ImageIntake(lambda: limits, workers, anybody, keep)
        app = web.Application(client_max_size=limits.image_bytes)
        app.router.add_post("/image", intake.post)
        async with TestClient(TestServer(app)) as client:
            yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


async def send(client: Client, content: bytes, *, session: str = "pin", token: str = "") -> int:
    form = aiohttp.FormData()
    form.add_field("session", session)
    form.add_field("file", content, filename="image.jpg", content_type="image/jpeg")
    async with client.post("/image", data=form, headers=bearer(token)) as response:
        return response.status


class Slow:
    """An upload whose body is on its way: its headers are sent, and half of it."""

    def __init__(self, client: Client, token: str = "") -> None:
        self.go_on = asyncio.Event()
        self.answer = asyncio.ensure_future(self._send(client, token))

    async def _send(self, client: Client, token: str) -> int:
        async def body() -> AsyncIterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="session"\r\n\r\npin'
            await self.go_on.wait()
            yield b"\r\n--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"} | bearer(token)
        async with client.post("/image", data=body(), headers=headers) as response:
            return response.status


async def test_uploads_of_a_device_are_bounded_before_they_are_read() -> None:
    """The third one is answered although no more than its headers and half its body were sent."""
    async with taking_in() as client:
        slow = [Slow(client, "a") for _ in range(images.UPLOADS_OF_DEVICE)]
        await asyncio.sleep(0.2)
        assert not any(each.answer.done() for each in slow)
        late = Slow(client, "a")
        assert await asyncio.wait_for(late.answer, 10) == 429
        other = Slow(client, "b")
        await asyncio.sleep(0.2)
        assert not other.answer.done(), "another device has its own places"
        for each in (*slow, other):
            each.go_on.set()
            assert await each.answer == 400, "it had no picture"
        assert await send(client, as_file(Image.new("RGB", (64, 48)), "JPEG"), token="a") == 200


@pytest.mark.parametrize(("most", "at_once"), [("UPLOADS_OF_ADDRESS", 10), ("UPLOADS_AT_ONCE", 3)])
async def test_uploads_of_an_address_and_of_all_are_bounded(
        monkeypatch: pytest.MonkeyPatch, most: str, at_once: int) -> None:
    monkeypatch.setattr(images, most, at_once)
    async with taking_in() as client:
        slow = [Slow(client, f"token-{n}") for n in range(at_once)]
        await asyncio.sleep(0.2)
        late = Slow(client, "late")
        assert await asyncio.wait_for(late.answer, 10) == 429
        assert not any(each.answer.done() for each in slow)
        for each in slow:
            each.go_on.set()
            await each.answer
        late = Slow(client, "late")
        await asyncio.sleep(0.2)
        assert not late.answer.done()
        late.go_on.set()
        await late.answer


async def test_a_device_over_its_quota_is_told_before_its_picture_is_read() -> None:
    content = as_file(Image.new("RGB", (64, 48)), "JPEG")
    async with taking_in(limits=LIMITS.model_copy(update={"images_per_minute": 2})) as client:
        assert [await send(client, content, session=f"pin-{n}", token="a") for n in range(3)] == [200, 200, 429]
        assert await asyncio.wait_for(Slow(client, "a").answer, 10) == 429
        assert await send(client, content, token="b") == 200
        statuses = [await send(client, content, session=f"x-{n}", token=f"made-up-{n}") for n in range(18)]
    assert statuses == [200] * 15 + [429] * 3, "other tokens do not help an address: 20, of which 5 are used"


@pytest.mark.parametrize(("size", "at_once"), [((2400, 1800), 1), ((640, 480), 2)])
async def test_big_pictures_are_decoded_one_at_a_time(
        monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], at_once: int) -> None:
    running, most, lock = 0, 0, threading.Lock()
    prepare = images.prepare_picture

    def counted(content: bytes, limits: LimitsSection) -> Picture:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            time.sleep(0.2)
            return prepare(content, limits)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(images, "prepare_picture", counted)

    kept: list[Picture] = []
    content = as_file(Image.new("RGB", size), "JPEG")
    async with taking_in(lambda _, picture: kept.append(picture)) as client:
        assert await asyncio.gather(*(send(client, content) for _ in range(4))) == [200] * 4
    assert len(kept) == 4
    assert most == at_once
