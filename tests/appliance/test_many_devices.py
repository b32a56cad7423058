"""Several devices at once: each gets its own answer, history and picture, and nobody else's."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import pytest
from PIL import Image

from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import assert_conforming
from tests.appliance.recordings import Recording, cards, errors, librivox
from tests.fakes.groq import KEY, FakeGroq

DEVICES = 10


def colour_of(url: str) -> tuple[int, ...]:
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    pixel = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return tuple(round(value / 50) for value in pixel)


def echo(body: dict[str, Any]) -> str:
    """Answer with the question and how many questions came before it."""
    users = [message for message in body["messages"] if message["role"] == "user"]
    last = users[-1]["content"]
    text = last if isinstance(last, str) else next(part["text"] for part in last if part["type"] == "text")
    return f"Question {len(users)} was, {text}"


async def live(daemon: Daemon, number: int, recording: Recording) -> list[PinTurn]:
    """Be one device: two questions, the first one with a picture."""
    name = f"device-{number}"
    async with Pin(daemon.url, name) as pin:
        out = io.BytesIO()
        Image.new("RGB", (320, 240), (number * 25, 255 - number * 25, 100)).save(out, "JPEG", quality=95)
        reply = await pin.send_image(out.getvalue())
        assert reply.ok, reply
        return [await pin.ask(recording.pcm, tail_silence_s=0.3) for _ in range(2)]


@pytest.mark.slow
async def test_ten_devices_at_once_get_each_its_own() -> None:
    recordings = [*librivox(), *cards()]
    async with FakeGroq() as fake:
        fake.answer = echo
        daemon = await asyncio.to_thread(start, fake.url)
        try:
            all_turns = await asyncio.gather(*(live(daemon, number, recordings[number]) for number in range(DEVICES)))
        finally:
            assert await asyncio.to_thread(daemon.stop) == 0
    assert "Traceback" not in daemon.log, daemon.log
    for number, turns in enumerate(all_turns):
        recording = recordings[number]
        for count, turn in enumerate(turns, start=1):
            assert turn.answered, (number, turn.error)
            assert_conforming(turn)
            wrong, total = errors(recording.text, turn.transcript)
            assert wrong / total <= 0.5, (recording.text, turn.transcript)
            assert turn.response.startswith(f"Question {count} was,"), turn.response
            assert turn.extra["backend"] == "groq"
        assert [turn.has_image for turn in turns] == [True, False]
    for request in fake.questions:
        check_request(request.body, all_turns)


def start(url: str) -> Daemon:
    return Daemon({"GROQ_API_KEY": KEY, "CHAT__GROQ__BASE_URL": url, "SERVER__BUSY_TURNS": "16"})


def check_request(body: dict[str, Any], all_turns: list[list[PinTurn]]) -> None:
    """A request holds one device's picture, question and history only."""
    users = [message["content"] for message in body["messages"] if message["role"] == "user"]
    last = users[-1]
    if isinstance(last, str):
        return
    text = next(part["text"] for part in last if part["type"] == "text")
    (picture,) = [part["image_url"]["url"] for part in last if part["type"] == "image_url"]
    owners = [number for number, turns in enumerate(all_turns) if turns[0].transcript == text]
    expected = {tuple(round(value / 50) for value in (number * 25, 255 - number * 25, 100)) for number in owners}
    assert colour_of(picture) in expected
    assert len(users) == 1


@pytest.mark.slow
async def test_a_reconnecting_device_replaces_itself_and_keeps_its_history() -> None:
    async with FakeGroq() as fake:
        fake.answer = echo
        with running({"GROQ_API_KEY": KEY, "CHAT__GROQ__BASE_URL": fake.url}) as daemon:
            card = cards()[0].pcm
            async with Pin(daemon.url, "same") as first:
                assert (await first.ask(card, realtime=False)).response.startswith("Question 1")
                async with Pin(daemon.url, "same") as second:
                    turn = await second.ask(card, realtime=False)
                    assert turn.response.startswith("Question 2"), turn
                    assert first.closed.is_set()
                    await second.reset()
                    assert (await second.ask(card, realtime=False)).response.startswith("Question 1")
            assert daemon.status()["devices"] == []
