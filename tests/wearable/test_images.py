"""Pictures as devices send them: what is taken, what becomes of it, and how much memory that takes."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import textwrap
import threading
import time
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

    async def anybody(_: web.Request, __: str) -> None:
        return

    kept: list[Picture] = []
    with ThreadPoolExecutor(3) as workers:
        intake = ImageIntake(lambda: LIMITS, workers, anybody, lambda _, picture: kept.append(picture))
        app = web.Application(client_max_size=LIMITS.image_bytes)
        app.router.add_post("/image", intake.post)
        content = as_file(Image.new("RGB", size), "JPEG")

        async def send(client: TestClient[web.Request, web.Application]) -> int:
            form = aiohttp.FormData()
            form.add_field("session", "pin")
            form.add_field("file", content, filename="image.jpg", content_type="image/jpeg")
            async with client.post("/image", data=form) as response:
                return response.status

        async with TestClient(TestServer(app)) as client:
            assert await asyncio.gather(*(send(client) for _ in range(4))) == [200] * 4
    assert len(kept) == 4
    assert most == at_once
