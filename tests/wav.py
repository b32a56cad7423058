"""WAV files for the tests."""

from __future__ import annotations

from hotpind.speech.audio import Pcm, wav_header


def write_wav(pcm: Pcm, rate: int) -> bytes:
    """Make a whole WAV file with exact sizes from mono samples at ``rate`` hertz."""
    samples = pcm.astype("<i2", copy=False).tobytes()
    return wav_header(rate, len(samples)) + samples
