"""Engines killed or stopped in the middle of a turn: the device is answered, the next turn works, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import stat
import time
from collections.abc import Iterator

import psutil
import pytest

from hotpind.pin.client import Pin
from tests.appliance.ambush import ENGINES, GIVES_UP_S, Ambush, Moment, hurt_in_a_turn
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import assert_conforming, spoken
from tests.appliance.recordings import cards, librivox
from tests.waiting import until

QUESTION = librivox()[1]
GONE_S = 5.0
"""From SIGTERM to the end of everything."""
SOCKETS = ("control.sock", "engine-llama.sock", "engine-piper.sock", "engine-whisper.sock")


@pytest.fixture(scope="module")
def victim() -> Iterator[Daemon]:
    """A daemon whose engines may be hurt."""
    with running({"CHAT__LOCAL__MAX_TOKENS": "40"}) as daemon:
        yield daemon


async def assert_nothing_leaked(daemon: Daemon, before: tuple[int, int]) -> None:
    """All is as it was: three engines, nobody else and no zombie, as many descriptors and threads, private sockets."""
    def all_is_well() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (daemon.family() == ENGINES and sockets(daemon) == dict.fromkeys(SOCKETS, 0o600)
                    and {path.name for path in daemon.runtime.iterdir()} == {*SOCKETS, "hotpind.lock"}
                    and daemon.main.num_fds() <= before[0] + 3 and daemon.main.num_threads() <= before[1] + 3)
        return False

    await until(all_is_well, 45, lambda: f"{daemon.family()} {sockets(daemon)} {before} {daemon.main.num_fds()} "
                                         f"{daemon.main.num_threads()} {[*daemon.runtime.iterdir()]}")


def sockets(daemon: Daemon) -> dict[str, int]:
    """The sockets and who may use them."""
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in daemon.runtime.iterdir() if path.is_socket()}


CASES = [
    *((engine, Moment.GIVEN_WORK, number) for engine in ENGINES for number in (signal.SIGKILL, signal.SIGSTOP)),
    ("whisper", Moment.LAST_DECODE, signal.SIGSTOP)]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "moment", "number"), CASES, ids=lambda each: getattr(each, "name", each))
async def test_a_hurt_engine_costs_at_most_a_turn(victim: Daemon, engine: str, moment: Moment,
                                                  number: signal.Signals) -> None:
    ambush = Ambush()
    async with Pin(victim.url, "witness", on_message=ambush) as pin:
        assert (await pin.ask(QUESTION.pcm, realtime=False)).answered
        before = victim.main.num_fds(), victim.main.num_threads()
        await hurt_in_a_turn(victim, pin, ambush, engine, moment, number, QUESTION.pcm)
        after = await asyncio.wait_for(pin.ask(QUESTION.pcm, realtime=False), GIVES_UP_S)
        assert after.answered, after.error
        assert_conforming(after)
    await assert_nothing_leaked(victim, before)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [Moment.LAST_DECODE, Moment.FIRST_TOKEN, Moment.FIRST_AUDIO])
async def test_an_engine_killed_late_in_a_turn_costs_at_most_that_turn(victim: Daemon, moment: Moment) -> None:
    """One engine after the other; where it matters, the answer is one of several sentences."""
    ambush = Ambush()
    short = cards()[0].pcm
    long = spoken(victim, "Please tell me a long story about a dog.")
    async with Pin(victim.url, "late", on_message=ambush) as pin:
        assert (await pin.ask(short, realtime=False)).answered
        before = victim.main.num_fds(), victim.main.num_threads()
        for engine in ENGINES:
            several = engine != "whisper" and moment is not Moment.LAST_DECODE
            turn = await hurt_in_a_turn(victim, pin, ambush, engine, moment, signal.SIGKILL, long if several else short)
            if engine == "whisper" and moment is not Moment.LAST_DECODE:
                assert turn.answered, "it has nothing to do any more"
            after = await asyncio.wait_for(pin.ask(short, realtime=False), GIVES_UP_S)
            assert after.answered, (engine, after.error)
            assert_conforming(after)
            await pin.reset()
    await assert_nothing_leaked(victim, before)


@pytest.mark.slow
async def test_no_engine_survives_a_daemon_that_is_killed() -> None:
    daemon = await asyncio.to_thread(Daemon)
    engines = list(daemon.engines().values())
    assert len(engines) >= 2
    engines[0].suspend()
    daemon.process.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, engines, 15)
    assert not alive


@pytest.mark.slow
async def test_all_engines_end_within_five_seconds_of_sigterm() -> None:
    """The best of two tries: the interpreter's own end takes longer on a busy machine."""
    took: list[float] = []
    while len(took) < 2 and min(took, default=GONE_S) >= GONE_S:
        daemon = await asyncio.to_thread(Daemon)
        engines = list(daemon.engines().values())
        engines[0].suspend()
        began = time.monotonic()
        assert await asyncio.to_thread(daemon.stop) == 0
        took.append(time.monotonic() - began)
        assert not [engine for engine in engines if engine.is_running()]
    print("ended after", ", ".join(f"{each:.1f} s" for each in took))
    assert min(took) < GONE_S
