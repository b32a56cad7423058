"""Hurts an engine at a chosen moment of a turn."""

from __future__ import annotations

import asyncio
import signal
from enum import StrEnum
from typing import Any

from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from hotpind.pin.turn import PinStage
from tests.appliance.harness import Daemon
from tests.appliance.pins import assert_conforming
from tests.waiting import until

GIVES_UP_S = 60.0
"""After this a pin takes a turn for lost."""
ENGINES = ["llama", "piper", "whisper"]


ATTEMPTS = 4
"""An answer of one short word is over before anybody can see it begin; asked again, the model says something else."""


class Moment(StrEnum):
    """When an engine is hurt."""

    GIVEN_WORK = "given work"
    """Whisper in mid-speech, the others with the transcript."""
    LAST_DECODE = "last decode"
    """The recording has ended, and what was not yet transcribed is."""
    FIRST_TOKEN = "first token"
    """The first clause is written and the voice has begun with it, but nothing is at the pin."""
    FIRST_AUDIO = "first audio"
    """The first sound is at the pin, later sentences are not spoken yet."""


class Hurt:
    """Hits an engine once, at a moment of the turn that follows."""

    def __init__(self, daemon: Daemon, pin: Pin, engine: str, moment: Moment, number: signal.Signals) -> None:
        engines = daemon.engines()
        self.done = False
        self._pin = pin
        self._process = engines[engine]
        self._voice = engines["piper"]
        self._engine = engine
        self._moment = moment
        self._number = number

    def see(self, message: dict[str, Any]) -> None:
        """See a message to the pin."""
        match self._moment:
            case Moment.GIVEN_WORK if self._engine == "whisper":
                now = message.get("chunks_received", 0) >= 10
            case Moment.GIVEN_WORK:
                now = message.get("stage") == "llm"
            case Moment.LAST_DECODE:
                now = message.get("stage") == "transcription"
            case _:
                now = False
        if now:
            self._hit()

    async def watch(self) -> None:
        """Wait for what no message tells of: the voice at work on an answer, or the first sound."""
        idle: float | None = None
        while self._moment in {Moment.FIRST_TOKEN, Moment.FIRST_AUDIO} and not self.done:
            turn = self._pin.model.turn
            if turn is not None and turn.over_at is None and PinStage.THINKING in turn.stages:
                used = self._voice.cpu_times().user
                idle = used if idle is None else idle
                if turn.first_audio_at is not None or (self._moment is Moment.FIRST_TOKEN and used > idle):
                    self._hit()
            await asyncio.sleep(0.005)

    def _hit(self) -> None:
        if not self.done:
            self.done = True
            self._process.send_signal(self._number)


class Ambush:
    """Shows the messages to a pin to whoever lies in wait."""

    hurt: Hurt | None = None

    def __call__(self, _: float, message: dict[str, Any]) -> None:
        """See a message to the pin."""
        if self.hurt is not None:
            self.hurt.see(message)


async def hurt_in_a_turn(daemon: Daemon, pin: Pin, ambush: Ambush, engine: str, moment: Moment,
                         number: signal.Signals, question: bytes) -> PinTurn:
    """Ask, and have an engine hurt meanwhile."""
    await until(lambda: daemon.family() == ENGINES, 60, lambda: str(daemon.family()))
    hurt = Hurt(daemon, pin, engine, moment, number)
    ambush.hurt = hurt
    watching = asyncio.create_task(hurt.watch())
    try:
        for _ in range(ATTEMPTS):
            turn = await asyncio.wait_for(pin.ask(question, realtime=False, tail_silence_s=0.3), GIVES_UP_S)
            if hurt.done:
                break
    finally:
        watching.cancel()
        ambush.hurt = None
    assert hurt.done, (engine, moment)
    assert turn.answered or turn.error, (engine, moment, turn)
    assert_conforming(turn, holes=moment in {Moment.FIRST_TOKEN, Moment.FIRST_AUDIO})
    return turn
