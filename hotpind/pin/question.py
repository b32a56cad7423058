"""What a pin says and shows: recordings and pictures in files. Everything here blocks."""

from __future__ import annotations

from pathlib import Path

from hotpind.errors import AudioFormatError, PinError
from hotpind.speech.audio import Pcm, read_wav, resample_16k

LARGEST_FILE_BYTES = 200_000_000
LARGEST_PICTURE_BYTES = 50_000_000


def read_question(path: Path) -> bytes:
    """Read a WAV file of any rate and number of channels as 16 kHz 16-bit mono PCM.

    Raises `hotpind.errors.AudioFormatError` with the file's name in its sentence.
    """
    try:
        return pin_pcm(*read_wav(read_file(path, LARGEST_FILE_BYTES)))
    except AudioFormatError as error:
        raise AudioFormatError(f"{path}: {error}") from None


def read_file(path: Path, most: int) -> bytes:
    """Read a file of at most ``most`` bytes. Raises `PinError`."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise PinError(f"{path}: cannot be read: {error.strerror}.") from None
    if len(content) > most:
        raise PinError(f"{path}: is larger than {most // 1_000_000} MB; give a smaller file.")
    return content


def pin_pcm(pcm: Pcm, rate: int) -> bytes:
    """Return sound at ``rate`` hertz as a pin records it: 16 kHz 16-bit mono PCM."""
    return resample_16k(pcm, rate).astype("<i2").tobytes()
