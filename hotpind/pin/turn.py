"""One turn as a pin sees it: its stages, its limits in time, and all that was received."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hotpind.pin.playback import PlaybackReport
from hotpind.speech.audio import HEADER_BYTES, wav_header


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the appliance may take, in seconds."""

    connected_s: float = 10.0
    """From the hello to ``connected``."""
    ack_abort_s: float = 1.0
    """Without an acknowledgement for this long a pin aborts its recording."""
    ack_s: float = 0.1
    """Stricter than the pin: what this appliance promises for an acknowledgement."""
    transcription_s: float = 1.5
    """From EOS to the transcription stage."""
    idle_s: float = 1.0
    """From an error to the ``idle`` that unlocks the pin."""
    reset_s: float = 5.0
    """From RESET to ``reset_complete``."""
    cancel_s: float = 0.15
    """From CANCEL (protocol version 2) to the last audio frame."""
    turn_s: float = 60.0
    """A pin gives a turn up after this long without an answer."""


class PinStage(StrEnum):
    """What the pin is doing."""

    READY = "ready"
    RECORDING = "recording"
    WAITING = "waiting"
    """EOS was sent; the button is blocked until the transcription stage."""
    TRANSCRIBING = "transcription"
    THINKING = "llm"
    SPEAKING = "tts"


@dataclass(slots=True)
class TurnRecord:
    """What happened in one turn; times are those that were passed in."""

    began_at: float
    eos_at: float | None = None
    stages: dict[PinStage, float] = field(default_factory=dict)
    """When each stage was first seen."""
    first_audio_at: float | None = None
    """First byte of sound beyond the WAV header."""
    last_audio_at: float | None = None
    complete_at: float | None = None
    over_at: float | None = None
    """When the pin was, or should have been, ready again."""
    sent_bytes: int = 0
    transcript: str = ""
    response: str = ""
    """The whole spoken text from ``complete``, else what the tts stage said."""
    has_image: bool = False
    error: str | None = None
    given_up: bool = False
    """The pin's own limit ended the turn."""
    aborted: bool = False
    """The recording was given up because an acknowledgement was missing."""
    ack_s: list[float] = field(default_factory=list)
    """Seconds that each acknowledgement took."""
    audio: bytearray = field(default_factory=bytearray)
    """All binary frames, header included."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The further fields of ``complete``."""
    playback: PlaybackReport | None = None
    violations: list[str] = field(default_factory=list)

    @property
    def answer_wav(self) -> bytes:
        """The answer as one WAV file with exact sizes; empty when there was none."""
        samples = self.audio[HEADER_BYTES:]
        if self.playback is None or not self.playback.sample_rate or not samples:
            return b""
        return wav_header(self.playback.sample_rate, len(samples)) + samples
