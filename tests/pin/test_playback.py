"""The model of the pin's playback notices every way in which an answer can fail to be heard."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpind.pin.playback import BUFFER_BYTES, Playback, PlaybackReport
from hotpind.speech.audio import wav_header

RATE = 22050
BYTE_RATE = RATE * 2
FRAME = 4096
FRAME_S = FRAME / BYTE_RATE


def frames(seconds: float, *, size: int | None = None, rate: int = RATE) -> list[bytes]:
    """An answer of so many seconds in 4096-byte frames, its header with ``size`` (default: exact)."""
    data = bytes(round(seconds * rate) * 2)
    header = wav_header(rate, len(data))
    if size is not None:
        header = header[:40] + size.to_bytes(4, "little")
        header = header[:4] + ((size + 36) % (1 << 32)).to_bytes(4, "little") + header[8:]
    whole = header + data
    return [whole[start:start + FRAME] for start in range(0, len(whole), FRAME)]


def play(answer: list[bytes], times: list[float], *, end: bool = True) -> PlaybackReport:
    """Feed the frames at their times, then the zero-length frame."""
    playback = Playback(0.0)
    for at, frame in zip(times, answer, strict=True):
        playback.frame(at, frame)
    if end:
        playback.frame(times[-1] + 0.01, b"")
    return playback.report(times[-1] + 30.0)


def paced(count: int, lead_s: float = 3.0, start: float = 0.2) -> list[float]:
    """Times of frames sent at most ``lead_s`` ahead of playback."""
    return [start + max(0.0, number * FRAME_S - lead_s) for number in range(count)]


def test_a_paced_answer_has_no_fault() -> None:
    answer = frames(20)
    report = play(answer, paced(len(answer)))
    assert report.faults == ()
    assert report.received_s == pytest.approx(20.0)
    assert report.most_ahead_s == pytest.approx(3.0, abs=2 * FRAME_S)
    assert report.sample_rate == RATE
    assert report.ended


def test_sent_all_at_once_a_20_s_answer_overflows_at_12_s() -> None:
    answer = frames(20)
    report = play(answer, [0.2] * len(answer))
    kept = BUFFER_BYTES + BYTE_RATE * 1.0
    assert report.received_bytes == pytest.approx(kept, abs=2 * FRAME)
    assert report.received_bytes + report.dropped_bytes == 20 * BYTE_RATE
    assert any("buffer was full" in fault for fault in report.faults)


def test_sent_all_at_once_11_s_just_fit() -> None:
    answer = frames(11.5)
    assert play(answer, [0.2] * len(answer)).faults == ()


def test_a_frame_that_finds_room_within_a_second_is_kept() -> None:
    fits = frames(BUFFER_BYTES / BYTE_RATE + 0.9)
    assert play(fits, [0.2] * len(fits)).dropped_frames == 0
    too_long = frames(BUFFER_BYTES / BYTE_RATE + 1.2)
    assert play(too_long, [0.2] * len(too_long)).dropped_frames >= 1


def test_an_underrun_is_measured() -> None:
    answer = frames(4)
    times = [0.0] * 20 + [20 * FRAME_S + 0.25] * (len(answer) - 20)
    report = play(answer, times)
    (hole,) = report.underruns
    assert hole.duration_s == pytest.approx(0.25, abs=0.002)
    assert hole.at_s == pytest.approx(20 * FRAME_S, abs=0.002)
    assert report.underrun_s == hole.duration_s
    assert any("stopped for 25" in fault for fault in report.faults)


def test_running_dry_at_the_end_is_no_underrun() -> None:
    answer = frames(1)
    playback = Playback(0.0)
    for frame in answer:
        playback.frame(0.0, frame)
    playback.frame(5.0, b"")
    assert playback.report(6.0).faults == ()


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFD4])
def test_a_size_that_wraps_cuts_the_answer_after_the_first_frame(size: int) -> None:
    answer = frames(3, size=size)
    report = play(answer, paced(len(answer)))
    assert report.received_bytes == FRAME - 44
    assert report.cut_bytes == 3 * BYTE_RATE - (FRAME - 44)
    assert any("wraps" in fault for fault in report.faults)
    assert any("ended playback early" in fault for fault in report.faults)


def test_the_largest_size_that_does_not_wrap_is_fine() -> None:
    answer = frames(3, size=0xFFFFFFD3)
    assert play(answer, paced(len(answer))).faults == ()


def test_the_size_for_an_unknown_length_is_fine() -> None:
    answer = frames(3, size=0x7FFFFF00)
    assert play(answer, paced(len(answer))).faults == ()


def test_a_size_smaller_than_the_answer_cuts_it() -> None:
    answer = frames(3, size=BYTE_RATE)
    report = play(answer, paced(len(answer)))
    assert report.cut_bytes >= 2 * BYTE_RATE - FRAME
    assert any("ended playback early" in fault for fault in report.faults)


def test_a_size_larger_than_the_answer_is_told() -> None:
    answer = frames(3, size=4 * BYTE_RATE)
    assert any("promised" in fault for fault in play(answer, paced(len(answer))).faults)


@pytest.mark.parametrize("split", [0, 1, 7, 11])
def test_a_second_header_is_found_also_across_frames(split: int) -> None:
    second = wav_header(RATE, 1000)
    playback = Playback(0.0)
    playback.frame(0.0, wav_header(RATE, None) + bytes(1000))
    playback.frame(0.01, bytes(1000) + second[:split])
    playback.frame(0.02, second[split:] + bytes(1000))
    playback.frame(0.03, b"")
    assert any("second WAV header" in fault for fault in playback.report(1.0).faults)


def test_a_header_may_come_in_pieces() -> None:
    playback = Playback(0.0)
    header = wav_header(RATE, None)
    playback.frame(0.0, header[:10])
    playback.frame(0.0, header[10:] + bytes(100))
    playback.frame(0.0, b"")
    report = playback.report(1.0)
    assert report.faults == ()
    assert report.received_bytes == 100


def test_a_gap_of_more_than_10_s() -> None:
    answer = frames(1)
    times = [0.0] * 5 + [10.2] * (len(answer) - 5)
    report = play(answer, times)
    assert any("No audio came for 10.2 s" in fault for fault in report.faults)
    assert report.longest_gap_s == pytest.approx(10.2)


def test_a_late_zero_length_frame_is_a_gap_too() -> None:
    playback = Playback(0.0)
    playback.frame(0.0, wav_header(RATE, None) + bytes(100))
    playback.frame(10.5, b"")
    assert any("longer than 10 s" in fault for fault in playback.report(11.0).faults)


def test_a_late_header() -> None:
    answer = frames(1)
    assert play(answer, [4.9] * len(answer)).faults == ()
    assert any("5.1 s after the tts stage" in fault for fault in play(answer, [5.1] * len(answer)).faults)


def test_a_missing_zero_length_frame() -> None:
    answer = frames(1)
    report = play(answer, paced(len(answer)), end=False)
    assert not report.ended
    assert any("zero-length frame that ends the audio is missing" in fault for fault in report.faults)


def test_no_audio_at_all() -> None:
    assert Playback(0.0).report(9.0).faults == ("No audio came after the tts stage.",)


def test_ended_without_header() -> None:
    playback = Playback(0.0)
    playback.frame(0.1, b"")
    assert "The audio ended before its WAV header was complete." in playback.report(1.0).faults


def test_audio_after_the_end() -> None:
    playback = Playback(0.0)
    for frame in (*frames(1), b"", bytes(10)):
        playback.frame(0.1, frame)
    assert any("after the zero-length frame" in fault for fault in playback.report(1.0).faults)


@pytest.mark.parametrize(("position", "value", "sentence"), [
    (0, b"RIFX", "does not begin"),
    (20, b"\x03\x00", "format 3"),
    (22, b"\x02\x00", "2 channels"),
    (34, b"\x08\x00", "8 bits"),
    (24, (96000).to_bytes(4, "little"), "96000 Hz"),
    (28, (1).to_bytes(4, "little"), "byte rate"),
    (4, (5).to_bytes(4, "little"), "RIFF size"),
    (36, b"LIST", "does not begin"),
])
def test_a_wrong_header(position: int, value: bytes, sentence: str) -> None:
    header = bytearray(wav_header(RATE, 1000))
    header[position:position + len(value)] = value
    playback = Playback(0.0)
    playback.frame(0.0, bytes(header) + bytes(1000))
    playback.frame(0.0, b"")
    assert any(sentence in fault for fault in playback.report(1.0).faults)


def test_half_a_sample() -> None:
    playback = Playback(0.0)
    playback.frame(0.0, wav_header(RATE, None) + bytes(101))
    playback.frame(0.0, b"")
    assert playback.report(1.0).faults == ("The audio ended in the middle of a sample.",)


def test_plays_until() -> None:
    playback = Playback(0.0)
    playback.frame(1.0, wav_header(RATE, None) + bytes(BYTE_RATE // 2))
    assert playback.plays_until == pytest.approx(1.5)
    playback.frame(1.1, bytes(BYTE_RATE // 2))
    assert playback.plays_until == pytest.approx(2.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 1.5), st.integers(1, 4096)), min_size=1, max_size=80),
       st.integers(8192, 65536))
def test_every_byte_is_played_dropped_or_cut(steps: list[tuple[float, int]], capacity: int) -> None:
    playback = Playback(0.0, capacity=capacity)
    at, sent = 0.0, 0
    playback.frame(at, wav_header(16000, None))
    for wait, size in steps:
        at += wait
        sent += size
        playback.frame(at, bytes(size))
    playback.frame(at, b"")
    report = playback.report(at + 5.0)
    assert report.received_bytes + report.dropped_bytes + report.cut_bytes == sent
    assert report.most_ahead_s <= capacity / 32000 + 1e-6
    ends = [hole.at_s for hole in report.underruns]
    assert all(earlier <= later for earlier, later in pairwise(ends))
    assert report.underrun_s <= at + 1e-6
