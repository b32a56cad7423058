"""Pictures that fit."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.pictures import GROQ_LIMITS, PictureLimits, base64_size, fit, newest_pictures, shrink


def picture(width: int, height: int, *, noisy: bool = False, quality: int = 90) -> Picture:
    if noisy:
        image = Image.frombytes("RGB", (width, height), random.Random(7).randbytes(width * height * 3))
    else:
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Picture(buffer.getvalue(), width, height)


def request(*pictures: Picture) -> ChatRequest:
    return ChatRequest((Message("system", "s"), Message("user", "what?", tuple(pictures))), "device", "turn")


def sizes(of: ChatRequest) -> list[tuple[int, int]]:
    out = []
    for message in of.messages:
        for item in message.pictures:
            with Image.open(io.BytesIO(item.jpeg)) as image:
                assert image.size == (item.width, item.height)
                assert image.format == "JPEG"
                out.append(image.size)
    return out


def total(of: ChatRequest) -> int:
    return sum(base64_size(len(item.jpeg)) for message in of.messages for item in message.pictures)


def test_what_fits_is_not_touched() -> None:
    asked = request(picture(640, 480), picture(800, 600))
    assert fit(asked, GROQ_LIMITS) == asked


def test_only_the_newest_pictures_are_kept() -> None:
    marks = [Picture(bytes([index]), 1, 1) for index in range(8)]
    messages = (Message("user", "a", (marks[0], marks[1], marks[2])), Message("assistant", "b"),
                Message("user", "c", (marks[3],)), Message("user", "d", (marks[4], marks[5], marks[6], marks[7])))
    kept = newest_pictures(messages, 5)
    assert [message.pictures for message in kept] == [(), (), (marks[3],), (marks[4], marks[5], marks[6], marks[7])]
    assert [message.text for message in kept] == ["a", "b", "c", "d"]
    assert [message.pictures for message in newest_pictures(messages, 2)][-1] == (marks[6], marks[7])
    assert not any(message.pictures for message in newest_pictures(messages, 0))


def test_too_many_bytes_are_re_encoded() -> None:
    asked = request(*(picture(1400, 1000, noisy=True) for _ in range(4)))
    assert total(asked) > 4_000_000
    fitted = fit(asked, GROQ_LIMITS)
    assert total(fitted) <= 4_000_000
    assert len(sizes(fitted)) == 4
    assert (fitted.device, fitted.turn) == ("device", "turn")


def test_too_many_pixels_are_made_fewer() -> None:
    fitted = fit(request(picture(400, 300)), PictureLimits(pixels=40_000))
    ((width, height),) = sizes(fitted)
    assert width * height <= 40_000
    assert width / height == pytest.approx(4 / 3, rel=0.02)


def test_a_longest_side() -> None:
    asked = request(picture(1600, 400), picture(300, 900))
    assert sizes(fit(asked, PictureLimits(side=512))) == [(512, 128), (171, 512)]
    assert sizes(fit(request(picture(300, 200)), PictureLimits(side=512))) == [(300, 200)]


def test_what_cannot_fit_or_be_decoded_is_left_out() -> None:
    assert sizes(fit(request(picture(800, 600, noisy=True), picture(64, 64)), PictureLimits(base64_bytes=4000))) == [
        (64, 64)]
    broken = Picture(b"\xff\xd8 not a jpeg", 4000, 3000)
    assert sizes(fit(request(broken, picture(64, 64)), PictureLimits(side=512))) == [(64, 64)]


def test_only_jpegs_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (900, 900)).save(buffer, "PNG")
    assert sizes(fit(request(Picture(buffer.getvalue(), 900, 900)), PictureLimits(side=512))) == []


def test_shrinking_keeps_the_shape_and_drops_metadata() -> None:
    image = Image.new("RGB", (1000, 500), "red")
    exif = image.getexif()
    exif[0x010E] = "secret place"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    small = shrink(Picture(buffer.getvalue(), 1000, 500), side=200, quality=80)
    assert (small.width, small.height) == (200, 100)
    assert b"secret" not in small.jpeg
