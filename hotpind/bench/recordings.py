"""What is said while measuring: recordings of people, or the appliance's own voice when there are none. Blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotpind.config import Config
from hotpind.errors import PinError
from hotpind.pin.question import read_question
from hotpind.pin.room import room_silence
from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES
from hotpind.spoken import speak

TEST_DATA = Path("/usr/share/pocketsphinx/test/data")
"""Debian's pocketsphinx-testdata: sentences of LibriVox and spoken cards."""
SHORTEST_S, LONGEST_S = 1.8, 7.5
"""How long questions usually are."""
SPOKEN = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Recording:
    """16 kHz 16-bit mono PCM and where it comes from."""

    name: str
    pcm: bytes

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.pcm) / SAMPLE_BYTES / PIN_RATE


def recordings(files: Sequence[Path], config: Config, *, test_data: Path = TEST_DATA) -> list[Recording]:
    """Read ``files``, else Debian's test recordings, else let the configured voice speak a question.

    Raises what `hotpind.pin.question` and `hotpind.spoken` raise, each with one sentence.
    """
    if files:
        found = [Recording(path.stem, read_question(path)) for path in files]
        if any(not recording.pcm for recording in found):
            raise PinError(f"{files[0]}: there is no sound in it; give a recording of a question.")
        return found
    everything = [Recording(path.stem[-12:], read_question(path)) for path in sorted(test_data.glob("*/*.wav"))]
    fitting = [recording for recording in everything if SHORTEST_S <= recording.seconds <= LONGEST_S]
    return fitting or [Recording("spoken by Piper", speak([SPOKEN], config)[0])]


def with_room_silence(pcm: bytes, seconds: float) -> bytes:
    """Append a quiet room, always the same, as it is heard until a person lets go of the button."""
    return pcm + room_silence(seconds)
