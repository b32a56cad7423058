"""When a turn needs its audio: what decides whose sentence is spoken first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from hotpind.conversation.memory import Conversation
from hotpind.conversation.turn import FIRST_WORD_PATIENCE_S, Canned, Turn, TurnRecord
from hotpind.speech.tts import Synthesizer

RATE = 1000


class Voice:
    """Speaks a second of silence for every piece, and notes when it was needed."""

    rate = RATE

    def __init__(self) -> None:
        self.due: list[float] = []

    async def speak(self, _: str, due: float) -> AsyncGenerator[bytes, None]:
        self.due.append(due)
        yield bytes(RATE * 2)
        await asyncio.sleep(0.02)


class Ear:
    """A device with so many seconds still to play."""

    ahead = 0.0

    def ahead_s(self) -> float:
        return self.ahead

    def played_bytes(self) -> float:
        return 0.0

    async def audio(self, _: bytes) -> None:
        self.ahead = 2.5

    def __getattr__(self, name: str) -> Any:
        async def nothing(*_: object, **__: object) -> None:
            return None

        return nothing


class Answer:
    """Two sentences, word by word."""

    backend = model = reason = ""

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        for word in ("One", " is", " said.", " Two", " is", " said", " too."):
            yield word
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        return None


class Brain:
    async def ask(self, _: object) -> Answer:
        return Answer()


async def test_the_first_piece_is_needed_soon_and_a_later_one_when_playback_would_run_dry() -> None:
    voice = Voice()
    turn = Turn(brain=cast(Any, Brain()), voice=cast(Synthesizer, voice), canned=Canned(), ear=cast(Any, Ear()),
                conversation=Conversation(10), record=TurnRecord("1", "kitchen", 100.0), system_prompt="",
                deadline_s=50.0, clock=lambda: 103.0)
    await turn.answer("what?")
    assert voice.due == [100.0 + FIRST_WORD_PATIENCE_S, 103.0 + 2.5]
