"""One backend at work, with a backend that does after its last word what none should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from hotpind.chat.backend import Ended, Event, Probe, Words
from hotpind.chat.messages import ChatRequest, Message
from hotpind.chat.runner import Pace, Runner
from hotpind.errors import BackendError, BackendTooLate, BackendUnreachable

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

    async def probe(self, kind: Probe, *, quiet_s: float) -> None:
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
    await asyncio.wait_for(runner.task, 8)
    assert backend.closed
    assert broke == []
