"""WAV files are read and written exactly, and resampling keeps the sound."""

from __future__ import annotations

import contextlib
import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.errors import AudioFormatError
from hotpind.speech.audio import Pcm, read_wav, resample, resample_16k, wav_header
from tests.wav import write_wav


def tone(rate: int, hertz: float, seconds: float = 1.0) -> Pcm:
    """A sine at half of full scale."""
    times = np.arange(round(rate * seconds)) / rate
    samples: Pcm = np.rint(16_000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)
    return samples


def wav(data: bytes, code: int, channels: int, rate: int, bits: int, extra: bytes = b"") -> bytes:
    """A WAV file put together by hand, with a LIST chunk of odd size before the samples."""
    width = channels * bits // 8
    fmt = struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits) + extra
    chunks = (b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"LIST" + struct.pack("<I", 3) + b"abc\0"
              + b"data" + struct.pack("<I", len(data)) + data)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def test_header_bytes_are_pinned() -> None:
    assert wav_header(22050, 1000) == bytes.fromhex(
        "52494646 0c040000 57415645 666d7420 10000000 0100 0100 22560000 44ac0000 0200 1000"
        "64617461 e8030000")


def test_unknown_length_does_not_wrap_when_44_is_added() -> None:
    header = wav_header(16000, None)
    riff, data = struct.unpack_from("<I", header, 4)[0], struct.unpack_from("<I", header, 40)[0]
    assert data == 0x7FFFFF00
    assert riff == data + 36
    assert data + 44 < 1 << 32


@pytest.mark.parametrize("size", [-1, 0xFFFFFFFF, 0xFFFFFFFF - 43])
def test_a_size_that_would_wrap_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        wav_header(16000, size)


def test_written_files_are_read_by_the_standard_library() -> None:
    pcm = tone(22050, 440)
    with wave.open(io.BytesIO(write_wav(pcm, 22050))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22050, 1, 2)
        assert file.readframes(file.getnframes()) == pcm.tobytes()


@given(st.binary(max_size=600), st.sampled_from([8000, 16000, 44100]))
def test_what_is_written_is_read_back(data: bytes, rate: int) -> None:
    pcm = np.frombuffer(data[:len(data) // 2 * 2], "<i2").astype(np.int16)
    again, again_rate = read_wav(write_wav(pcm, rate))
    assert again_rate == rate
    assert again.tolist() == pcm.tolist()


VALUES = np.array([-32768, -1, 0, 1, 12345, 32767])


@pytest.mark.parametrize(("data", "code", "bits"), [
    (VALUES.astype("<i2").tobytes(), 1, 16),
    (b"".join(struct.pack("<i", value << 8)[:3] for value in VALUES.tolist()), 1, 24),
    ((VALUES << 16).astype("<i4").tobytes(), 1, 32),
    ((VALUES / 32768).astype("<f4").tobytes(), 3, 32),
    ((VALUES / 32768).astype("<f8").tobytes(), 3, 64),
])
def test_kinds_of_samples(data: bytes, code: int, bits: int) -> None:
    pcm, rate = read_wav(wav(data, code, 1, 48000, bits))
    assert rate == 48000
    assert pcm.tolist() == VALUES.tolist()


def test_eight_bits_are_unsigned() -> None:
    assert read_wav(wav(bytes([0, 128, 255]), 1, 1, 8000, 8))[0].tolist() == [-32768, 0, 32512]


def test_channels_are_averaged() -> None:
    stereo = np.array([[100, 300], [-7, -9], [32767, 32767]], "<i2").tobytes()
    assert read_wav(wav(stereo, 1, 2, 16000, 16))[0].tolist() == [200, -8, 32767]


def test_extensible_format() -> None:
    extra = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + bytes(14)
    assert read_wav(wav(struct.pack("<hh", 5, -5), 0xFFFE, 1, 16000, 16, extra))[0].tolist() == [5, -5]


def test_a_stream_of_unknown_length_ends_with_the_file() -> None:
    pcm, _ = read_wav(wav_header(16000, None) + struct.pack("<hhh", 1, 2, 3) + b"\x04")
    assert pcm.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("content", "sentence"), [
    (b"", "not a WAV"),
    (b"ID3\x04" + bytes(200), "not a WAV"),
    (write_wav(tone(16000, 440), 16000)[:40], "cut short"),
    (wav(bytes(8), 85, 1, 16000, 0), "compressed"),
    (wav(bytes(8), 1, 0, 16000, 16), "0 channels"),
    (wav(bytes(8), 1, 1, 5, 16), "5 Hz"),
    (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0abcd", "before format"),
    (b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0\x01\0", "cut short"),
])
def test_broken_files_get_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(AudioFormatError, match=sentence) as caught:
        read_wav(content)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_lead_to_anything_but_a_sentence(noise: bytes) -> None:
    for content in (noise, b"RIFF\0\0\0\0WAVE" + noise, wav(noise, 1, 3, 16000, 24)):
        with contextlib.suppress(AudioFormatError):
            pcm, _ = read_wav(content)
            assert pcm.dtype == np.int16


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone_in_place_and_in_level(rate: int) -> None:
    result = resample_16k(tone(rate, 1000), rate)
    expected = tone(16000, 1000)
    assert len(result) == 16000
    middle = slice(800, -800)
    error = np.std(result[middle].astype(float) - expected[middle])
    assert error < 3.0


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_what_16_khz_cannot_hold_is_filtered_out_not_folded_back(rate: int) -> None:
    result = resample_16k(tone(rate, 9500), rate)[800:-800]
    assert np.std(result.astype(float)) < 3.0


@given(st.integers(0, 500), st.sampled_from([8000, 22050, 44100, 48000]))
def test_lengths(count: int, rate: int) -> None:
    result = resample(np.full(count, 1000, np.int16), rate, 16000)
    assert len(result) == round(count * 16000 / rate)
    if count > 400 and len(result) > 200:
        assert abs(int(result[len(result) // 2]) - 1000) <= 1


def test_full_scale_does_not_wrap() -> None:
    square = np.where(np.arange(4410) // 50 % 2, 32767, -32768).astype(np.int16)
    result = resample_16k(square, 44100).astype(int)
    jumps = np.abs(np.diff(result))
    assert result.max() == 32767
    assert result.min() == -32768
    assert (jumps > 60000).sum() < 10
