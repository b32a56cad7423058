"""One request to the cloud, byte for byte, and how long it is waited for."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from hotpind.chat.prompts import SYSTEM_PROMPT
from hotpind.pin.client import Pin
from tests.appliance.clouded import Clouded, ask, clouded, visitor
from tests.fakes.groq import ANSWER, MODELS
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SCOUT, _ = MODELS
RED, BLUE = (200, 30, 30), (30, 30, 200)
WIDTH, HEIGHT = 640, 480


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def appliance() -> AsyncIterator[Clouded]:
    async with clouded() as made:
        yield made


def picture(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Make a photo, red on the left and blue on the right, with a camera's metadata."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def assert_same_picture(jpeg: bytes, width: int, height: int) -> None:
    """Fail unless it is `picture` at a size, without its metadata."""
    assert b"Secret Camera" not in jpeg
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (width, height), "RGB")
        for x, colour in ((width // 4, RED), (3 * width // 4, BLUE)):
            pixel = image.getpixel((x, height // 2))
            assert isinstance(pixel, tuple)
            assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12


async def test_a_question_with_a_picture_is_the_request_that_groq_documents(appliance: Clouded) -> None:
    await appliance.fresh()
    async with Pin(appliance.daemon.url, visitor("looker")) as pin:
        assert (await pin.send_image(picture())).status == 200
        turn = await ask(pin)
        assert turn.has_image
        assert turn.response == ANSWER
        request = appliance.fake.questions[-1]
        url = request.body["messages"][1]["content"][1]["image_url"]["url"]
        head, _, encoded = url.partition(",")
        assert head == "data:image/jpeg;base64"
        assert_same_picture(base64.b64decode(encoded, validate=True), WIDTH, HEIGHT)
        wanted: dict[str, Any] = {
            "model": SCOUT, "stream": True, "max_completion_tokens": 300,
            "messages": [{"role": "system", "content": SYSTEM_PROMPT},
                         {"role": "user", "content": [{"type": "text", "text": turn.transcript},
                                                      {"type": "image_url", "image_url": {"url": url}}]}]}
        assert request.raw == json.dumps(wanted).encode(), "these bytes and no others"
        assert (request.method, request.path) == ("POST", "/openai/v1/chat/completions")
        headers = request.headers
        assert headers["authorization"] == f"Bearer {appliance.fake.key}"
        assert headers["content-type"] == "application/json"
        assert headers["accept-encoding"] == "identity"
        assert headers["content-length"] == str(len(request.raw))
        assert headers["user-agent"].startswith("AsyncGroq/")
        assert headers["x-stainless-retry-count"] == "0"
        private = {name: value for name, value in headers.items() if "looker" in value or "hotpin" in value.lower()}
        assert not private, "neither the device nor the appliance is told to the service"

        # The picture came with that question, which the next one may be about, too.
        again = await ask(pin)
        assert not again.has_image
        assert appliance.fake.questions[-1].body == {
            **wanted, "messages": [*wanted["messages"], {"role": "assistant", "content": ANSWER},
                                   {"role": "user", "content": again.transcript}]}


async def test_a_large_picture_is_sent_at_most_1568_pixels_wide(appliance: Clouded) -> None:
    await appliance.fresh()
    async with Pin(appliance.daemon.url, visitor("photographer")) as pin:
        assert (await pin.send_image(picture(3136, 2352))).status == 200
        await ask(pin)
    url = appliance.fake.questions[-1].body["messages"][-1]["content"][1]["image_url"]["url"]
    assert_same_picture(base64.b64decode(url.partition(",")[2]), 1568, 1176)


async def test_a_picture_that_is_too_large_for_the_service_is_sent_smaller_once(appliance: Clouded) -> None:
    await appliance.fresh()
    async with Pin(appliance.daemon.url, visitor("shrinker")) as pin:
        await pin.send_image(picture(1568, 1176))
        appliance.fake.behave("too_large", most=15_000)
        before = len(appliance.fake.questions)
        turn = await ask(pin)
        assert (turn.extra["backend"], turn.extra["reason"], turn.response) == ("groq", "", ANSWER)
        first, second = appliance.fake.questions[before:]
        assert len(second.raw) < 15_000 < len(first.raw)
        url = second.body["messages"][-1]["content"][1]["image_url"]["url"]
        assert_same_picture(base64.b64decode(url.partition(",")[2]), 512, 384)

        # Even that is too much: once is enough, and it is not the service's fault.
        await pin.send_image(picture(1568, 1176))
        appliance.fake.behave("too_large")
        before = len(appliance.fake.questions)
        turn = await ask(pin)
        assert (turn.extra["backend"], turn.extra["reason"]) == ("local", "groq found the request too large")
        assert turn.response.startswith("I can't see the picture.")
        assert len(appliance.fake.questions) == before + 2
        assert appliance.groq()["state"] == "online"


async def test_one_question_is_one_request_even_after_an_error(appliance: Clouded) -> None:
    await appliance.fresh()
    appliance.fake.behave("error", status=500)
    async with Pin(appliance.daemon.url, visitor("patient")) as pin:
        before = len(appliance.fake.questions)
        assert (await ask(pin)).extra["backend"] == "local"
        await until(lambda: time.monotonic() - appliance.fake.questions[-1].at > 3.0)
        assert len(appliance.fake.questions) == before + 1


async def test_the_deadlines_are_ours_not_the_clients(appliance: Clouded) -> None:
    await appliance.fresh()
    async with Pin(appliance.daemon.url, visitor("hurried")) as pin:
        for kind, deadline in (("silent", 2.5), ("stall", 5.0)):
            await appliance.fresh()
            appliance.fake.behave(kind)
            await ask(pin, holes=True)
            request = appliance.fake.questions[-1]
            await until(lambda request=request: request.dropped, 30)  # type: ignore[misc]  # mypy has no type for it
            # The fake notices when the connection is closed, not later than the turn's end.
            taken = time.monotonic() - request.at
            print(f"{kind}: given up, and its connection closed, {taken:.1f} s after the request")
            assert deadline - 0.1 < taken < deadline + 15
