"""One backend at work, with a backend that does after its last word what none should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import pytest

from hotpind.chat import runner as runner_module
from hotpind.chat.backend import Aside, Ended, Event, Probe, Words
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.runner import Pace, Runner
from hotpind.errors import BackendError, BackendTooLate, BackendUnreachable, StreamBroke

PACE = Pace(first_s=10.0, next_s=10.0, steady=True)


class Odd:
    """A backend with an answer of two words and a bad end."""

    name = "odd"
    model = "m"
    ready = True
    note = ""

    def __init__(self, end: Callable[[], Awaitable[None]]) -> None:
        self.retired: list[str] = []
        self._end = end
        self.closed = False

    async def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Answer, and go on to the bad end."""
        try:
            yield Words("Good morning.")
            yield Ended()
            await self._end()
        finally:
            self.closed = True

    async def probe(self, kind: Probe, *, quiet_s: float) -> float:
        """Do nothing."""
        return 0.0

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Do nothing."""

    async def refresh_key(self) -> bool:
        """Say no."""
        return False

    async def close(self) -> None:
        """Do nothing."""


async def stalls() -> None:
    await asyncio.sleep(3600)


def raises(error: Exception) -> Callable[[], Awaitable[None]]:
    async def end() -> None:
        raise error

    return end


@pytest.mark.parametrize("end", [stalls, raises(BackendUnreachable("reset")), raises(BackendTooLate("silent")),
                                 raises(RuntimeError("a mistake"))])
async def test_after_the_last_word_nothing_is_a_fault_and_nothing_lasts(end: Callable[[], Awaitable[None]]) -> None:
    backend = Odd(end)
    broke: list[BackendError] = []
    runner = Runner(backend, ChatRequest((Message("user", "x"),)), pace=PACE, max_words=50, changed=lambda: None,
                    broke=broke.append)
    assert [await runner.next() for _ in range(3)] == ["Good", " morning.", None]
    if end is stalls:
        assert not runner.task.done(), "the listener has the whole answer before the end of the connection"
    await runner.stop()
    await asyncio.wait_for(runner.task, 30)
    assert backend.closed
    assert broke == []


class Script(Odd):
    """A backend whose words come at times: text and the seconds before it."""

    def __init__(self, *lines: tuple[float, str]) -> None:
        super().__init__(stalls)
        self._lines = lines

    async def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Say the lines."""
        for wait, text in self._lines:
            await asyncio.sleep(wait)
            yield Words(text)
        yield Ended()


class Blind(Script):
    """One that has something said before."""

    async def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Say so, and the lines."""
        yield Aside("I can't see the picture.")
        async for event in super().stream(request, quiet_s=quiet_s):
            yield event


@pytest.mark.parametrize(("answer", "said"), [
    ("It is red.", "I can't see the picture. It is red."),
    ("I can't see the picture. It is red.", "I can't see the picture. It is red."),
    ("I can't see the picture.", "I can't see the picture."),
])
async def test_what_is_said_first_is_said_once(answer: str, said: str) -> None:
    pieces, broke = await said_by(Blind((0, answer[:9]), (0, answer[9:])))
    assert broke is None
    assert "".join(text for _, text in pieces) == said


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech that takes no time, and little patience."""
    monkeypatch.setattr(runner_module, "SPOKEN_WORDS_PER_S", 1000.0)
    monkeypatch.setattr(runner_module, "HOLD_S", 0.2)
    monkeypatch.setattr(runner_module, "SILENCE_S", 1.6)


async def said_by(backend: Odd) -> tuple[list[tuple[float, str]], BackendError | None]:
    """Return what is given out, each with its second, and how it broke off."""
    broke: list[BackendError] = []
    runner = Runner(backend, ChatRequest((Message("user", "x"),)), pace=Pace(10.0, 10.0, steady=False), max_words=50,
                    changed=lambda: None, broke=broke.append)
    begun = asyncio.get_running_loop().time()
    said: list[tuple[float, str]] = []
    try:
        while (text := await runner.next()) is not None:
            said.append((asyncio.get_running_loop().time() - begun, text))
    except StreamBroke:
        assert len(broke) == 1
        return said, broke[0]
    finally:
        await runner.cancel()
    assert broke == []
    return said, None


@pytest.mark.usefixtures("quick")
async def test_a_held_sentence_is_given_out_before_its_listener_is_long_in_silence() -> None:
    said, broke = await said_by(Script((0, "It is so. It drips slowly and "), (1.0, "on "), (1.0, "on.")))
    assert broke is None
    assert "".join(text for _, text in said) == "It is so. It drips slowly and on on."
    released = next(at for at, text in said if text == " It drips slowly and")
    assert 0.15 < released < 0.9, said


@pytest.mark.usefixtures("quick")
async def test_words_that_come_slowly_are_no_fault_of_a_model_that_may_be_slow() -> None:
    said, broke = await said_by(Script((0, "It is so. "), *[(0.5, f"word{number} ") for number in range(5)]))
    assert broke is None
    assert "".join(text for _, text in said).count("word") == 5


@pytest.mark.usefixtures("quick")
async def test_thoughts_in_the_middle_of_an_answer_are_silence() -> None:
    said, broke = await said_by(Script((0, "It is so. <think>"), *[(0.1, "hmm ")] * 100))
    assert "in silence" in str(broke)
    assert "".join(text for _, text in said) == "It is so."


@pytest.mark.usefixtures("quick")
async def test_what_may_be_a_repetition_is_not_released() -> None:
    said, broke = await said_by(Script((0, "One two three four. One two three "), (0.6, "four. "), (0, "One")))
    assert broke is None
    assert "".join(text for _, text in said) == "One two three four."


@pytest.mark.usefixtures("quick")
async def test_nobody_is_in_silence_over_an_answer_that_is_not_listened_to() -> None:
    runner = Runner(Script((0, "It is so. <think>"), *[(0.2, "hmm ")] * 10, (0, "</think> Yes.")),
                    ChatRequest((Message("user", "x"),)), pace=Pace(10.0, 10.0, steady=False), max_words=50,
                    changed=lambda: None, broke=lambda error: pytest.fail(str(error)))
    await asyncio.sleep(2.4)
    assert await runner.next() == "It is so."
    assert await runner.next() == " Yes."
    await runner.cancel()


async def test_who_comes_too_late_to_listen_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "UNCLAIMED_S", 0.1)
    words = " ".join(f"word{number}" for number in range(runner_module.QUEUED * 2))
    runner = Runner(Script(*[(0, f"{word} ") for word in words.split()]), ChatRequest((Message("user", "x"),)),
                    pace=PACE, max_words=1000, changed=lambda: None, broke=lambda _: None)
    await asyncio.wait_for(runner.task, 30)
    said = [await asyncio.wait_for(runner.next(), 10) for _ in range(runner_module.QUEUED)]
    assert words.startswith("".join(text or "" for text in said))
    for _ in range(2):
        with pytest.raises(StreamBroke):
            await asyncio.wait_for(runner.next(), 10)
