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
from tests.appliance.recordings import Recording, cards, letter_error_rate, librivox, words
from tests.fakes.groq import KEY, FakeGroq

DEVICES = 10
MISHEARD = 0.5
"""Letters that may be wrong: enough to tell whose question it was."""


def sentences() -> list[Recording]:
    """One for each device: a card alone is so short that two may be heard as the same."""
    short = cards()
    pairs = [Recording(f"{one.name} and {other.name}", one.pcm + other.pcm, f"{one.text} {other.text}")
             for one, other in zip(short, [*short[1:], short[0]], strict=True)]
    return [*librivox(), *pairs]


def colour_of(url: str) -> tuple[int, ...]:
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    pixel = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return tuple(round(value / 50) for value in pixel)


def said(message: dict[str, Any]) -> str:
    """The words of a message."""
    content = message["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def pictures(message: dict[str, Any]) -> list[str]:
    """The pictures of a message."""
    content = message["content"]
    return [] if isinstance(content, str) else [part["image_url"]["url"] for part in content
                                                if part["type"] == "image_url"]


def echo(body: dict[str, Any]) -> str:
    """Answer with the question and how many questions came before it."""
    users = [message for message in body["messages"] if message["role"] == "user"]
    return f"Question {len(users)} was, {said(users[-1])}"


def picture_of(number: int) -> tuple[int, int, int]:
    """The colour of a device's picture."""
    return (number * 25, 255 - number * 25, 100)


async def live(daemon: Daemon, number: int, recording: Recording) -> list[PinTurn]:
    """Be one device: two questions, the first one with a picture."""
    name = f"device-{number}"
    async with Pin(daemon.url, name) as pin:
        out = io.BytesIO()
        Image.new("RGB", (320, 240), picture_of(number)).save(out, "JPEG", quality=95)
        reply = await pin.send_image(out.getvalue())
        assert reply.ok, reply
        return [await pin.ask(recording.pcm, tail_silence_s=0.3) for _ in range(2)]


@pytest.mark.slow
async def test_ten_devices_at_once_get_each_its_own() -> None:
    recordings = sentences()
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
            assert letter_error_rate(recording.text, turn.transcript) <= MISHEARD, (recording.text, turn.transcript)
            assert words(turn.response) == words(f"Question {count} was, {turn.transcript}")
            assert turn.extra["backend"] == "groq"
        assert [turn.has_image for turn in turns] == [True, False]
    asked = {request_key(request.body): request.body for request in fake.questions}
    for number, turns in enumerate(all_turns):
        check_requests(asked, number, turns)
    assert not asked, "a request belongs to no device"


def start(url: str) -> Daemon:
    return Daemon({"GROQ_API_KEY": KEY, "CHAT__GROQ__BASE_URL": url, "SERVER__BUSY_TURNS": "16"})


def request_key(body: dict[str, Any]) -> tuple[int, str]:
    """How many questions a request holds, and the last one: what each device said is unlike what the others said."""
    users = [message for message in body["messages"] if message["role"] == "user"]
    return len(users), said(users[-1])


def check_requests(asked: dict[tuple[int, str], dict[str, Any]], number: int, turns: list[PinTurn]) -> None:
    """Find a device's requests, and fail on anything in them that is not its own; they are taken out of ``asked``."""
    past: list[str] = []
    for count, turn in enumerate(turns, start=1):
        body = asked.pop((count, turn.transcript))
        talk = [message for message in body["messages"] if message["role"] != "system"]
        assert [said(message) for message in talk] == [*past, turn.transcript], (number, count)
        shown = [url for message in talk for url in pictures(message)]
        assert {colour_of(url) for url in shown} <= {tuple(round(value / 50) for value in picture_of(number))}
        assert shown or not turn.has_image, "its picture is missing"
        past += [turn.transcript, turn.response]


LOCAL_DEVICES = 4


@pytest.mark.slow
async def test_several_devices_at_once_get_each_its_own_from_the_local_model(daemon: Daemon) -> None:
    """Nobody hears what another one hears when that is alone, and somebody what it hears itself.

    Not everybody: what is heard ahead at a pause depends on how busy the machine is, and how a prompt is read, in one
    part or in several, decides between words that are nearly as likely.
    """
    recordings = librivox()[:LOCAL_DEVICES]

    async def live_locally(name: str, recording: Recording) -> list[PinTurn]:
        async with Pin(daemon.url, name) as pin:
            return [await pin.ask(recording.pcm, realtime=False, tail_silence_s=0.3) for _ in range(2)]

    alone = [await live_locally(f"alone-{number}", recording) for number, recording in enumerate(recordings)]
    together = await asyncio.gather(*(live_locally(f"together-{number}", recording)
                                      for number, recording in enumerate(recordings)))
    said_alone = [{turn.response for turn in turns} for turns in alone]
    same = 0
    for number, (recording, turns) in enumerate(zip(recordings, together, strict=True)):
        others = set[str]().union(*said_alone[:number], *said_alone[number + 1:]) - said_alone[number]
        for turn in turns:
            assert turn.answered, turn.error
            assert turn.extra["backend"] == "local"
            assert_conforming(turn, holes=True)
            assert letter_error_rate(recording.text, turn.transcript) <= MISHEARD, (recording.text, turn.transcript)
            assert turn.response not in others
            same += turn.response in said_alone[number]
    assert same, (alone, together)


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
