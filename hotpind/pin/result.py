"""What one question to the appliance gave: the answer, its timings, and how the pin fared."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hotpind.pin.playback import PlaybackReport
from hotpind.pin.turn import PinStage, TurnRecord


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since EOS, measured at the pin; None for what did not happen."""

    transcription: float | None = None
    llm: float | None = None
    tts: float | None = None
    first_audio: float | None = None
    """First byte of sound beyond the WAV header."""
    last_audio: float | None = None
    complete: float | None = None


@dataclass(frozen=True, slots=True)
class PinTurn:
    """One question and what came of it."""

    transcript: str
    response: str
    wav: bytes
    """The answer as one WAV file with exact sizes; empty when there was none."""
    has_image: bool
    error: str | None
    """The appliance's sentence, or ours when the connection broke or the time was up."""
    aborted: bool
    """The recording was cut because an acknowledgement was missing for a second."""
    timings: Timings
    ack_p50_s: float | None
    ack_max_s: float | None
    playback: PlaybackReport | None
    violations: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the ``complete`` message: turn, backend, timings."""

    @property
    def answered(self) -> bool:
        """An answer came and could be heard."""
        return self.error is None and bool(self.wav)

    def as_json(self) -> dict[str, Any]:
        """Everything but the sound itself, as plain JSON values."""
        return {
            "answered": self.answered, "transcript": self.transcript, "response": self.response,
            "has_image": self.has_image, "error": self.error, "aborted": self.aborted,
            "timings": {name: _rounded(getattr(self.timings, name)) for name in Timings.__slots__},
            "ack": {"p50": _rounded(self.ack_p50_s), "max": _rounded(self.ack_max_s)},
            "playback": _playback_json(self.playback), "violations": list(self.violations),
            "complete": self.extra,
        }


def turn_result(record: TurnRecord, error: str | None = None) -> PinTurn:
    """Sum up a turn that is over; ``error`` is a reason of our own why it ended without an answer."""
    def since_eos(at: float | None) -> float | None:
        return None if at is None or record.eos_at is None else at - record.eos_at

    return PinTurn(
        transcript=record.transcript, response=record.response, wav=record.answer_wav,
        has_image=record.has_image, error=record.error or error, aborted=record.aborted,
        timings=Timings(
            transcription=since_eos(record.stages.get(PinStage.TRANSCRIBING)),
            llm=since_eos(record.stages.get(PinStage.THINKING)),
            tts=since_eos(record.stages.get(PinStage.SPEAKING)),
            first_audio=since_eos(record.first_audio_at), last_audio=since_eos(record.last_audio_at),
            complete=since_eos(record.complete_at)),
        ack_p50_s=median(record.ack_s) if record.ack_s else None, ack_max_s=max(record.ack_s, default=None),
        playback=record.playback, violations=tuple(record.violations), extra=dict(record.extra))


def _playback_json(report: PlaybackReport | None) -> dict[str, Any] | None:
    if report is None:
        return None
    return {
        "sample_rate": report.sample_rate, "received_s": _rounded(report.received_s),
        "most_ahead_s": _rounded(report.most_ahead_s), "longest_gap_s": _rounded(report.longest_gap_s),
        "underruns": [{"at": _rounded(hole.at_s), "duration": _rounded(hole.duration_s)}
                      for hole in report.underruns],
        "dropped_frames": report.dropped_frames, "dropped_bytes": report.dropped_bytes,
        "cut_bytes": report.cut_bytes, "ended": report.ended, "faults": list(report.faults),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
