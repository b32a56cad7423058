"""Questions spoken by people, streamed as a pin does, answered aloud."""

from __future__ import annotations

import asyncio

import pytest

from tests.appliance.harness import Daemon
from tests.appliance.pins import ask_all, assert_conforming
from tests.appliance.recordings import cards, librivox, not_speech, word_error_rate


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
