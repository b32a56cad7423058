"""Questions spoken by people, streamed as a pin does, answered aloud."""

from __future__ import annotations

import asyncio

import pytest

from hotpind.pin.client import Pin
from tests.appliance.harness import Daemon
from tests.appliance.pins import ask_all, assert_conforming, spoken
from tests.appliance.recordings import cards, librivox, not_speech, word_error_rate

QUIET_TRIES = 3


@pytest.mark.slow
async def test_human_speech_is_understood_and_answered_aloud(daemon: Daemon) -> None:
    recordings = [*librivox(), *cards()]
    turns = await ask_all(daemon, "reader", [each.pcm for each in recordings])
    for turn in turns:
        assert turn.answered, turn.error
        assert_conforming(turn)
    read = [(each.text, turn.transcript) for each, turn in zip(librivox(), turns, strict=False)]
    assert word_error_rate(read) <= 0.10, read
    # What was said can be understood by the same ears.
    heard = [(turn.response, await asyncio.to_thread(daemon.transcribe, turn.wav)) for turn in turns]
    assert word_error_rate(heard) <= 0.25, heard


@pytest.mark.slow
async def test_an_answer_plays_without_the_smallest_hole(daemon: Daemon) -> None:
    """Paced as on a real day; other work on the machine may spoil one, but not three in a row."""
    question = await asyncio.to_thread(spoken, daemon, "Please tell me a story about a dog.")
    complaints = []
    async with Pin(daemon.url, "listener") as pin:
        for _ in range(QUIET_TRIES):
            turn = await pin.ask(question, tail_silence_s=0.4, drain="model")
            assert turn.answered, turn.error
            assert turn.playback is not None
            assert turn.playback.ended
            if turn.violations == () and turn.playback.underruns == ():
                assert turn.playback.received_s > 2, "too short to have had a hole"
                return
            complaints.append((turn.violations, turn.playback.underruns))
    pytest.fail(f"every answer had holes: {complaints}")


@pytest.mark.slow
async def test_sounds_that_are_not_speech_never_reach_the_model(daemon: Daemon) -> None:
    before = daemon.status()["turns"]
    sounds = not_speech()
    turns = await ask_all(daemon, "noisy", list(sounds.values()), realtime=False)
    for name, turn in zip(sounds, turns, strict=True):
        assert turn.error is not None, (name, turn.transcript)
        assert "Could not understand audio" in turn.error
        assert turn.timings.llm is None, name
        assert_conforming(turn)
    status = daemon.status()
    assert status["turns"] == before + len(sounds)
    assert status["last_turn"]["outcome"] == "not-understood"
