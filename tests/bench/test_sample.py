from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.bench.sample import CANNED, MARKS, Sample, median_turn, sample_of
from hotpind.pin.result import PinTurn, Timings


def sample(first_audio: float | None, **marks: float) -> Sample:
    return Sample("pin", "hello", answered=first_audio is not None, first_audio=first_audio, complete=None, marks=marks)


def test_the_steps_of_an_ordinary_turn() -> None:
    turn = sample(0.42, transcript=0.1, first_token=0.25, first_clause=0.31, first_audio_ready=0.4, complete=3.0)
    assert turn.spans == pytest.approx({"transcript": 0.1, "first_token": 0.15, "first_clause": 0.06,
                                        "first_audio_ready": 0.09, "first_audio": 0.02})


def test_work_done_ahead_takes_no_time() -> None:
    turn = sample(0.2, transcript=0.1, first_token=0.04, first_clause=0.12, first_audio_ready=0.19)
    assert turn.spans["first_token"] == 0
    assert turn.spans["first_clause"] == pytest.approx(0.02)


def test_a_stage_that_was_left_out_belongs_to_the_next() -> None:
    turn = sample(0.3, transcript=0.1, first_audio_ready=0.25)
    assert turn.spans == pytest.approx({"transcript": 0.1, "first_audio_ready": 0.15, "first_audio": 0.05})


def test_a_turn_without_sound_has_no_steps() -> None:
    assert sample(None, transcript=0.1).spans == {}


@given(st.floats(0, 60), st.dictionaries(st.sampled_from(sorted(MARKS)), st.floats(0, 60)))
def test_the_steps_always_add_up(first_audio: float, marks: dict[str, float]) -> None:
    spans = sample(first_audio, **marks).spans
    assert sum(spans.values()) == pytest.approx(first_audio, abs=1e-9)
    assert all(seconds >= 0 for seconds in spans.values())


def test_the_median_turn_is_one_that_was_answered() -> None:
    turns = [sample(0.5), sample(None), sample(0.3), sample(0.9), sample(0.4)]
    found = median_turn(turns)
    assert found is not None
    assert found.first_audio == 0.4
    assert median_turn([sample(None)]) is None


def turn(**extra: object) -> PinTurn:
    return PinTurn("hello", "", b"RIFF", False, None, False, Timings(first_audio=0.3), None, None, None, (), extra)


def test_a_canned_sentence_is_no_answer() -> None:
    answered = sample_of(turn(backend="local"), "pin", "hello")
    assert (answered.answered, answered.first_audio, answered.error) == (True, 0.3, "")
    for canned in (turn(backend=""), turn()):
        found = sample_of(canned, "pin", "hello")
        assert (found.answered, found.first_audio, found.error) == (False, None, CANNED)


def test_the_sentence_of_a_failed_turn_is_kept() -> None:
    failed = replace(turn(), error="Could not understand audio.", wav=b"")
    assert sample_of(failed, "pin", "hello").error == "Could not understand audio."
