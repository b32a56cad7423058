"""No word that was said or answered is in the log at any level, whatever happens; with the user's leave all are."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

import aiohttp
import pytest

from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from tests.appliance.ambush import ENGINES, Ambush, Moment, hurt_in_a_turn
from tests.appliance.clouded import clouded
from tests.appliance.harness import Daemon
from tests.appliance.recordings import librivox
from tests.pictures import plain
from tests.waiting import until

QUESTION = librivox()[0].pcm
ANSWER = "Pineapples underneath Kilimanjaro flourish. Rhubarb outlasts every chrysanthemum."
PATIENT_S = 30.0
TELLING_LETTERS = 7
"""Shorter words are in messages of our own as well."""


def telling(texts: Iterable[str]) -> set[str]:
    """The words that only what was said can have brought into a log."""
    return {word for text in texts for word in re.findall(r"[a-z']+", text.lower()) if len(word) >= TELLING_LETTERS}


async def logged(daemon: Daemon, turn: PinTurn) -> None:
    """Wait until the log has the turn's line."""
    await until(lambda: f"turn {turn.extra['turn']}" in daemon.log, PATIENT_S)


async def say_nonsense(daemon: Daemon) -> None:
    """Send what the appliance ignores with a message at the debug level, and wait for that."""
    async with aiohttp.ClientSession() as session, session.ws_connect(daemon.url + "/ws") as ws:
        await ws.send_str('{"session_id":"odd"}')
        await ws.send_str('{"signal":"DANCE"}')
        await until(lambda: "sent a message that is ignored" in daemon.log, PATIENT_S)


@pytest.mark.slow
async def test_not_a_word_is_in_the_log_at_the_debug_level() -> None:
    turns: list[PinTurn] = []
    async with clouded({"LOG__LEVEL": "debug"}) as house:
        daemon, fake = house.daemon, house.fake
        ambush = Ambush()
        async with Pin(daemon.url, "talker", on_message=ambush) as pin:

            async def ask() -> PinTurn:
                turns.append(await pin.ask(QUESTION, realtime=False, tail_silence_s=0.3))
                return turns[-1]

            # The cloud answers, about a picture; then breaks off, refuses, and is away.
            fake.answer = ANSWER
            assert (await pin.send_image(plain())).ok
            turn = await ask()
            assert (turn.extra["backend"], turn.has_image) == ("groq", True)
            fake.behave("reset", words=6, times=1)
            assert (await ask()).answered
            fake.behave("error", status=500, times=1)
            assert (await ask()).extra["backend"] == "local"
            await fake.unplug()
            assert (await pin.send_image(plain())).ok
            assert (await ask()).extra["backend"] == "local"
            # Engines die with the words in their hands.
            turns += [await hurt_in_a_turn(daemon, pin, ambush, engine, Moment.GIVEN_WORK, signal.SIGKILL, QUESTION)
                      for engine in ENGINES]
            assert (await ask()).answered
            await logged(daemon, turns[-1])
        await say_nonsense(daemon)
        house.assert_nothing_secret(*turns)
    assert " debug " in daemon.log
    assert daemon.log.count("engine ended (killed by SIGKILL") == 3, daemon.log
    words = telling([ANSWER, *(text for turn in turns for text in (turn.transcript, turn.response))])
    assert {"kilimanjaro", "chrysanthemum"} <= words
    assert len(words) > 8
    assert {word for word in words if word in daemon.log.lower()} == set()


async def test_with_the_users_leave_the_log_holds_what_was_said() -> None:
    async with clouded({"PRIVACY__LOG_TRANSCRIPTS": "true"}) as house:
        house.fake.answer = ANSWER
        async with Pin(house.daemon.url, "open") as pin:
            turn = await pin.ask(QUESTION, realtime=False, tail_silence_s=0.3)
        assert turn.answered, turn.error
        await logged(house.daemon, turn)
    house.daemon.wait_for_output()
    lines = [line for line in house.daemon.lines if f"turn {turn.extra['turn']}" in line]
    assert [line for line in lines if turn.transcript in line], house.daemon.log
    assert [line for line in lines if turn.response in line], house.daemon.log
