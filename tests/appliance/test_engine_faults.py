"""Engines killed or stopped in the middle of a turn: the device is answered, the next turn works, nothing leaks."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from hotpind.pin.client import Pin
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import assert_conforming
from tests.appliance.recordings import librivox

GIVES_UP_S = 60.0
QUESTION = librivox()[1]


@pytest.fixture(scope="module")
def victim() -> Iterator[Daemon]:
    """A daemon whose engines may be hurt."""
    with running({"CHAT__LOCAL__MAX_TOKENS": "40"}) as daemon:
        yield daemon


class Hurt:
    """Hits an engine when it has just been given work: whisper in mid-speech, the others with the transcript."""

    def __init__(self, daemon: Daemon, engine: str, number: signal.Signals) -> None:
        self.process = daemon.engines()[engine]
        self.engine = engine
        self.number = number
        self.armed = False
        self.done = False

    def __call__(self, _: float, message: dict[str, Any]) -> None:
        """See a message to the pin."""
        now = message.get("chunks_received", 0) >= 10 if self.engine == "whisper" else message.get("stage") == "llm"
        if self.armed and now and not self.done:
            self.done = True
            self.process.send_signal(self.number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("engine", ["whisper", "piper", "llama"])
async def test_a_hurt_engine_costs_at_most_a_turn(victim: Daemon, engine: str, number: signal.Signals) -> None:
    hurt = Hurt(victim, engine, number)
    async with Pin(victim.url, "witness", on_message=hurt) as pin:
        assert (await pin.ask(QUESTION.pcm, realtime=False)).answered
        before = victim.main.num_fds(), victim.main.num_threads()
        hurt.armed = True
        turn = await asyncio.wait_for(pin.ask(QUESTION.pcm, realtime=False), GIVES_UP_S)
        assert hurt.done
        assert turn.answered or turn.error, turn
        assert_conforming(turn)
        after = await asyncio.wait_for(pin.ask(QUESTION.pcm, realtime=False), GIVES_UP_S)
        assert after.answered, after.error
        assert_conforming(after)
    await asyncio.sleep(0.5)
    assert set(victim.engines()) == {"whisper", "piper", "llama"}
    assert victim.main.num_fds() <= before[0] + 3
    assert victim.main.num_threads() <= before[1] + 2
    assert {path.name for path in victim.runtime.iterdir()} == {
        "control.sock", "engine-llama.sock", "engine-piper.sock", "engine-whisper.sock", "hotpind.lock"}


@pytest.mark.slow
async def test_no_engine_survives_a_daemon_that_is_killed() -> None:
    daemon = await asyncio.to_thread(Daemon)
    engines = list(daemon.engines().values())
    assert len(engines) >= 2
    engines[0].suspend()
    daemon.process.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, engines, 5)
    assert not alive


@pytest.mark.slow
async def test_all_engines_end_within_five_seconds_of_sigterm(tmp_path: object) -> None:
    daemon = await asyncio.to_thread(Daemon)
    engines = list(daemon.engines().values())
    engines[0].suspend()
    assert await asyncio.to_thread(daemon.stop, 5.0) == 0
    assert not [engine for engine in engines if engine.is_running()]
