"""A daemon whose cloud is `tests.fakes.groq`, brought back to health between tests, and what its users heard."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from hotpind.chat.key import Secret, store_key
from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from tests.appliance.harness import Daemon
from tests.appliance.pins import assert_conforming
from tests.appliance.recordings import cards, letter_error_rate
from tests.fakes.groq import FakeGroq
from tests.waiting import until

QUESTION = next(card for card in cards() if card.text == "seven of clubs")
"""Short: what is heard is not this area's business."""
KEYS = (f"gsk_turn{number:04}abcdefghijklmnopqrstuvwxyz" for number in itertools.count())
_VISITS = itertools.count()

SETTINGS = {"CHAT__LOCAL__PRELOAD": "always", "CHAT__LOCAL__MAX_TOKENS": "16", "SPEAKING__LEAD_S": "4"}
"""The local model at hand, and short turns."""


def visitor(name: object) -> str:
    """Return the name of a pin that was never here: what was said is kept by name, and a test may run twice."""
    return f"{name} {next(_VISITS)}"


class Clouded:
    """The daemon and its cloud."""

    def __init__(self, fake: FakeGroq, daemon: Daemon, key: str) -> None:
        """Take a daemon that asks ``fake`` with ``key``, which lies in its state directory."""
        self.fake = fake
        self.daemon = daemon
        self.keys = [key]

    async def fresh(self) -> None:
        """Make the cloud well and let the daemon know by way of a new key; returns when it was looked at."""
        if self.fake.unplugged:
            await self.fake.plug()
        self.fake.behave("ok")
        self.use_key(next(KEYS))
        seen = len(self.lists())
        self.daemon.process.send_signal(signal.SIGHUP)
        await until(lambda: len(self.lists()) > seen and self.lists()[-1].finished, 30)
        await self.until_state("online")
        await asyncio.sleep(0.05)

    def lists(self) -> list[Any]:
        """The requests for the list of models with the key of now."""
        return [request for request in self.fake.requests if request.path.endswith("/models")
                and request.headers.get("authorization") == f"Bearer {self.keys[-1]}"]

    def use_key(self, key: str) -> None:
        """Have the service take another key only, and put it where the daemon finds it."""
        self.keys.append(key)
        self.fake.key = key
        store_key(self.daemon.root / "state", Secret(key))

    async def until_state(self, state: str, seconds: float = 30.0) -> None:
        """Wait until Groq is in a state, to the daemon."""
        end = asyncio.get_running_loop().time() + seconds
        while (row := await asyncio.to_thread(self.groq))["state"] != state:
            assert asyncio.get_running_loop().time() < end, (state, row, self.daemon.log)
            await asyncio.sleep(0.05)

    def backend(self, name: str) -> dict[str, Any]:
        """Return a backend's row of the status."""
        return dict(next(row for row in self.daemon.status()["backends"] if row["name"] == name))

    def groq(self) -> dict[str, Any]:
        """Return Groq's row of the status."""
        return self.backend("groq")

    def changes(self) -> list[str]:
        """Return the lines of the log that tell of Groq's condition."""
        return [line for line in self.daemon.lines if " is " in line and "groq is " in line and "(was " in line]

    def assert_nothing_secret(self, *turns: PinTurn) -> None:
        """Fail when a key, a question or an answer is in the log or the status."""
        shown = self.daemon.log + json.dumps(self.daemon.status())
        for key in self.keys:
            assert key not in shown
        for turn in turns:
            for text in (turn.transcript, turn.response):
                assert not text or text not in shown, text
        assert "Traceback" not in self.daemon.log, self.daemon.log


async def ask(pin: Pin, pcm: bytes = QUESTION.pcm, *, holes: bool = False) -> PinTurn:
    """Ask, and take nothing that would make a pin stumble; ``holes``: but for silence while words are missing."""
    turn = await pin.ask(pcm, realtime=False, tail_silence_s=0.3)
    assert_conforming(turn, holes=holes)
    return turn


def assert_heard(daemon: Daemon, turn: PinTurn) -> None:
    """Fail unless the sound is the response: about as long as its words take to say, and of the fixed texts the words.

    What the small local model says is too odd to be understood reliably.
    """
    assert turn.answered, turn.error
    assert turn.playback is not None
    words = len(turn.response.split())
    assert 0.12 * words < turn.playback.received_s < 1.5 + 0.8 * words, (turn.playback.received_s, turn.response)
    if turn.extra["backend"] != "local":
        said = daemon.transcribe(turn.wav)
        assert letter_error_rate(turn.response, said) <= 0.35, (turn.response, said)


def history(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the exchanges before the question in a request."""
    past = [text_of(message) for message in messages if message["role"] != "system"][:-1]
    return list(zip(past[::2], past[1::2], strict=True))


def text_of(message: dict[str, Any]) -> str:
    """Return a message's text, without its pictures."""
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")


@contextlib.asynccontextmanager
async def plugged(fake: FakeGroq | None) -> AsyncIterator[FakeGroq]:
    """Give a fake that its owner runs, or run one."""
    if fake is not None:
        yield fake
        return
    async with FakeGroq(key=next(KEYS)) as own:
        yield own


@contextlib.asynccontextmanager
async def clouded(settings: Mapping[str, str] | None = None, *, toml: str = "", fake: FakeGroq | None = None,
                  root: Path | None = None) -> AsyncIterator[Clouded]:
    """Run a daemon with a fake cloud; it must end in order and without a traceback."""
    async with plugged(fake) as cloud:
        root = root or Path(tempfile.mkdtemp(prefix="hotpin-test-"))
        store_key(root / "state", Secret(cloud.key or ""))
        daemon = Daemon({"CHAT__GROQ__BASE_URL": cloud.url, **SETTINGS, **(settings or {})}, toml=toml, root=root,
                        wait=False)
        try:
            await asyncio.to_thread(daemon.wait_until_serving)
            each = Clouded(cloud, daemon, cloud.key or "")
            await until(lambda: each.backend("local")["state"] != "loading", 90)
            yield each
        finally:
            status = await asyncio.to_thread(daemon.stop)
        assert status == 0, daemon.log
        assert "Traceback" not in daemon.log, daemon.log
