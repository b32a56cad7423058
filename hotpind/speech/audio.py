"""WAV files and PCM: reading, writing, and conversion to the pin's 16 kHz mono."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

from hotpind.errors import AudioFormatError

Pcm = npt.NDArray[np.int16]
"""Samples, mono, shape (samples,)."""

PIN_RATE = 16_000
"""Sample rate of the pin's microphone, in hertz."""

SAMPLE_BYTES = 2
HEADER_BYTES = 44
"""Size of the canonical RIFF/WAVE header that `wav_header` makes."""

UNKNOWN_DATA_BYTES = 0x7FFFFF00
"""Data size written when the length is not known yet.

A pin ends playback at ``data_size + 44`` in unsigned 32-bit arithmetic: the customary 0xFFFFFFFF would wrap.
"""

_LARGEST_DATA_BYTES = 0xFFFFFFFF - HEADER_BYTES

_FORMAT_PCM = 1
_FORMAT_FLOAT = 3
_FORMAT_EXTENSIBLE = 0xFFFE
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 384_000
_MOST_CHANNELS = 32

_ZERO_CROSSINGS = 24
"""Half width of the resampling filter, in periods of the lower of the two rates."""
_KAISER_BETA = 8.6
"""Stop band about 85 dB down, below the noise of 16-bit samples."""
_ROLLOFF = 0.945
"""Where the filter's edge lies, as a share of the lower Nyquist frequency."""


def wav_header(rate: int, data_bytes: int | None) -> bytes:
    """Make the 44-byte RIFF/WAVE header of 16-bit mono PCM at ``rate`` hertz.

    ``data_bytes`` is the size of the samples in bytes, or None when it is not known yet. Raises ValueError
    for a size that a pin's 32-bit sum of data and header could not hold.
    """
    size = UNKNOWN_DATA_BYTES if data_bytes is None else data_bytes
    if not 0 <= size <= _LARGEST_DATA_BYTES:
        raise ValueError(f"a WAV file cannot hold {size} bytes of samples")
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", size + HEADER_BYTES - 8, b"WAVE",
                       b"fmt ", 16, _FORMAT_PCM, 1, rate, rate * SAMPLE_BYTES, SAMPLE_BYTES, 8 * SAMPLE_BYTES,
                       b"data", size)


def read_wav(content: bytes) -> tuple[Pcm, int]:
    """Decode a WAV file into mono samples and their rate in hertz.

    Takes integer PCM of 8 to 32 bits and floating point of 32 and 64 bits, any number of channels (averaged),
    plain or extensible. A data size larger than the file, as streams have it, means "to the end of the file".
    Raises `hotpind.errors.AudioFormatError`.
    """
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise AudioFormatError("This is not a WAV file (no RIFF/WAVE header); convert it to WAV first.")
    form: _Format | None = None
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        body = position + 8
        if name == b"fmt ":
            form = _read_format(content[body:body + size])
        elif name == b"data":
            if form is None:
                raise AudioFormatError("The WAV file is broken (samples before format); export it again.")
            return _decode(content[body:body + size], form), form.rate
        position = body + size + (size & 1)
    raise AudioFormatError("The WAV file is cut short: it holds no samples; copy or export it again.")


def resample(pcm: Pcm, rate: int, to_rate: int) -> Pcm:
    """Convert mono samples from ``rate`` to ``to_rate`` hertz with a windowed-sinc filter, without delay.

    The result has round(samples * to_rate / rate) samples.
    """
    if rate == to_rate or not len(pcm):
        return pcm
    common = gcd(rate, to_rate)
    up, down = to_rate // common, rate // common
    slow = min(1.0, to_rate / rate)
    half = int(np.ceil(_ZERO_CROSSINGS / slow))
    taps = 2 * half + 1
    padded = np.concatenate([np.zeros(half), pcm.astype(np.float64), np.zeros(half + 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    total = round(len(pcm) * to_rate / rate)
    out = np.empty(total)
    offsets = np.arange(-half, half + 1, dtype=np.float64)
    # Outputs `up` apart lie at the same place between two input samples and share one set of taps.
    for phase in range(min(up, total)):
        first, remainder = divmod(phase * down, up)
        count = len(range(phase, total, up))
        distance = (offsets - remainder / up) * slow
        inside = np.clip(1.0 - (distance / (_ZERO_CROSSINGS + 1)) ** 2, 0.0, None)
        kernel = _ROLLOFF * np.sinc(_ROLLOFF * distance) * np.i0(_KAISER_BETA * np.sqrt(inside))
        out[phase::up] = windows[first::down][:count] @ (kernel / kernel.sum())
    return _rounded(out)


def resample_16k(pcm: Pcm, rate: int) -> Pcm:
    """Convert mono samples at ``rate`` hertz to the 16 kHz of a pin."""
    return resample(pcm, rate, PIN_RATE)


@dataclass(frozen=True, slots=True)
class _Format:
    """The `fmt ` chunk of a WAV file."""

    code: int
    channels: int
    rate: int
    bits: int


def _read_format(chunk: bytes) -> _Format:
    if len(chunk) < 16:
        raise AudioFormatError("The WAV file is broken (its format is cut short); export it again.")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == _FORMAT_EXTENSIBLE and len(chunk) >= 26:
        (code,) = struct.unpack_from("<H", chunk, 24)
    known = (code == _FORMAT_PCM and bits in (8, 16, 24, 32)) or (code == _FORMAT_FLOAT and bits in (32, 64))
    if not known:
        raise AudioFormatError(f"The WAV file is compressed or of an unknown kind (format {code}, "
                               f"{bits} bits); export it as 16-bit PCM.")
    if not (1 <= channels <= _MOST_CHANNELS and _LOWEST_RATE <= rate <= _HIGHEST_RATE):
        raise AudioFormatError(f"The WAV file claims {channels} channels at {rate} Hz, "
                               "which cannot be; export it again.")
    return _Format(code, channels, rate, bits)


def _decode(data: bytes, form: _Format) -> Pcm:
    width = form.bits // 8
    data = data[:len(data) - len(data) % (width * form.channels)]
    if form.code == _FORMAT_FLOAT:
        samples = np.nan_to_num(np.frombuffer(data, f"<f{width}").astype(np.float64)) * 32768.0
    elif width == 1:
        samples = (np.frombuffer(data, np.uint8).astype(np.float64) - 128.0) * 256.0
    elif width == 3:
        # Three bytes become the upper part of a 32-bit integer.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4").ravel() / 65536.0
    elif width == 2 and form.channels == 1:
        plain: Pcm = np.frombuffer(data, "<i2").astype(np.int16)
        return plain
    else:
        samples = np.frombuffer(data, f"<i{width}").astype(np.float64) / (1 << (form.bits - 16))
    mono = samples.reshape(-1, form.channels).mean(axis=1)
    return _rounded(mono)


def _rounded(samples: npt.NDArray[np.float64]) -> Pcm:
    whole: Pcm = np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
    return whole
