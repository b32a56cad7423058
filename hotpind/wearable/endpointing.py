"""Decides when a speaker has finished, for devices that leave this to the appliance. Pure.

The silence asked for adapts: who has said only a word or two is probably thinking, who has paused before and gone on
is a slow speaker, and both are given more time.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotpind.speech.audio import PIN_RATE
from hotpind.speech.vad import SpeechTracker

SHORT_SPEECH_S = 0.8
SHORT_FACTOR = 1.4
"""More silence for who has said only a word or two."""
PAUSE_MARGIN = 1.3
"""How much longer than the speaker's own longest pause the silence has to be."""
MOST_FACTOR = 2.0


@dataclass(slots=True)
class Endpointer:
    """Watches one utterance."""

    silence_s: float
    """Seconds of silence that end an utterance of usual length."""
    max_wait_s: float
    """Seconds without any speech after which listening ends."""
    _longest_pause_s: float = 0.0
    _pause_s: float = 0.0

    def ended(self, tracker: SpeechTracker) -> bool:
        """Tell whether the utterance is over."""
        if not tracker.heard_speech:
            return tracker.position / PIN_RATE >= self.max_wait_s
        if tracker.speaking:
            self._longest_pause_s = max(self._longest_pause_s, self._pause_s)
            self._pause_s = 0.0
            return False
        self._pause_s = tracker.silence_s
        return tracker.silence_s >= self.wanted_silence_s(tracker)

    def wanted_silence_s(self, tracker: SpeechTracker) -> float:
        """Return the seconds of silence that would end the utterance now."""
        wanted = self.silence_s
        if tracker.speech_samples < SHORT_SPEECH_S * PIN_RATE:
            wanted *= SHORT_FACTOR
        return min(max(wanted, self._longest_pause_s * PAUSE_MARGIN), self.silence_s * MOST_FACTOR)
