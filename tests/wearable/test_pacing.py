"""How far ahead of playback audio is sent."""

from __future__ import annotations

import asyncio
import struct

from hypothesis import given
from hypothesis import strategies as st

from hotpind.wearable.pacing import Pacer
from hotpind.wearable.voice_out import VoiceOut


def test_the_lead_is_sent_at_once_and_the_rest_in_real_time() -> None:
    pacer, now, sent = Pacer(bytes_per_s=44_100, lead_s=3.0), 100.0, 0
    while pacer.wait_s(now, 4096) == 0:
        pacer.sent(now, 4096)
        sent += 4096
    assert sent / 44_100 <= 3.0 < (sent + 4096) / 44_100
    wait = pacer.wait_s(now, 4096)
    assert 0 < wait <= 4096 / 44_100
    assert pacer.wait_s(now + wait, 4096) < 1e-9


def test_a_gap_is_an_underrun_and_starts_the_clock_again() -> None:
    pacer = Pacer(bytes_per_s=32_000, lead_s=2.0)
    pacer.sent(0.0, 32_000)
    assert pacer.ahead_s(0.25) == 0.75
    pacer.sent(5.0, 32_000)
    assert pacer.underruns == 1
    assert pacer.ahead_s(5.0) == 1.0


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_never_more_than_the_lead_is_ahead(idle: list[float]) -> None:
    pacer, now = Pacer(bytes_per_s=44_100, lead_s=3.0), 0.0
    for pause in idle:
        now += pause + pacer.wait_s(now + pause, 4096)
        pacer.sent(now, 4096)
        assert pacer.ahead_s(now) <= 3.0 + 1e-6


async def test_one_header_full_frames_and_a_zero_length_frame_at_the_end() -> None:
    frames: list[bytes] = []

    async def send(frame: bytes) -> None:
        frames.append(frame)

    out = VoiceOut(send, 22_050, lead_s=4.0)
    pcm = bytes(range(256)) * 100
    async with asyncio.timeout(60):
        await out.audio(pcm[:3000])
        assert frames == []
        await out.audio(pcm[3000:])
        await out.end()
    assert [len(frame) for frame in frames[:-2]] == [4096] * (len(frames) - 2)
    assert frames[-1] == b""
    whole = b"".join(frames)
    assert whole[:4] == b"RIFF"
    assert struct.unpack_from("<I", whole, 40)[0] == 0x7FFFFF00
    assert whole[44:] == pcm
    assert out.sent_bytes == len(pcm)
