"""Voice activity on real speech and on other sounds."""

from __future__ import annotations

import pytest

from hotpind.speech.vad import CHUNK_BYTES, CHUNK_SAMPLES, SpeechTracker, VoiceDetector
from hotpind.wearable.endpointing import Endpointer
from tests.appliance import recordings


def track(pcm: bytes) -> SpeechTracker:
    tracker = SpeechTracker()
    for probability in VoiceDetector().probabilities(pcm):
        tracker.feed(probability)
    return tracker


def feed(tracker: SpeechTracker, probability: float, seconds: float) -> None:
    for _ in range(round(seconds * 16_000 / CHUNK_SAMPLES)):
        tracker.feed(probability)


@pytest.mark.models
def test_people_are_heard_from_beginning_to_end() -> None:
    for recording in [*recordings.librivox(), *recordings.cards()]:
        tracker = track(recording.pcm + bytes(CHUNK_BYTES * 16))
        assert tracker.heard_speech, recording.name
        assert tracker.first_speech is not None
        assert tracker.first_speech < 16_000
        assert tracker.speech_end > len(recording.pcm) / 2 - 16_000


@pytest.mark.models
@pytest.mark.parametrize("name", ["silence", "room", "mains hum", "white noise", "applause", "dog", "telephone",
                                  "clicks"])
def test_other_sounds_are_not_speech(name: str) -> None:
    assert not track(recordings.not_speech()[name]).heard_speech


def test_a_click_is_not_speech_and_a_word_is() -> None:
    tracker = SpeechTracker()
    feed(tracker, 0.0, 0.5)
    feed(tracker, 0.95, 0.064)
    feed(tracker, 0.0, 0.5)
    assert tracker.first_speech is None
    feed(tracker, 0.95, 0.4)
    assert tracker.heard_speech
    feed(tracker, 0.1, 0.32)
    assert tracker.silence_s == pytest.approx(0.32, abs=0.04)


def test_an_utterance_ends_after_silence_and_slow_speakers_get_more() -> None:
    tracker, endpointer = SpeechTracker(), Endpointer(silence_s=0.7, max_wait_s=3.0)
    feed(tracker, 0.95, 2.0)
    assert not endpointer.ended(tracker)
    feed(tracker, 0.0, 0.5)
    assert not endpointer.ended(tracker)
    feed(tracker, 0.0, 0.25)
    assert endpointer.ended(tracker)
    slow, patient = SpeechTracker(), Endpointer(silence_s=0.7, max_wait_s=3.0)
    feed(slow, 0.95, 1.0)
    feed(slow, 0.0, 0.65)
    assert not patient.ended(slow)
    feed(slow, 0.95, 1.0)
    assert not patient.ended(slow)
    feed(slow, 0.0, 0.75)
    assert not patient.ended(slow), "who paused for 0.65 s before is given 0.85 s"
    feed(slow, 0.0, 0.2)
    assert patient.ended(slow)


def test_who_says_nothing_is_not_waited_for() -> None:
    tracker, endpointer = SpeechTracker(), Endpointer(silence_s=0.7, max_wait_s=3.0)
    feed(tracker, 0.0, 2.9)
    assert not endpointer.ended(tracker)
    feed(tracker, 0.0, 0.2)
    assert endpointer.ended(tracker)
