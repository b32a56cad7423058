"""One measured turn, cut into the spans between the end of speech and the first sound at the pin. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotpind.pin.result import PinTurn

MARKS: Mapping[str, str] = {
    "transcript": "question understood",
    "first_token": "model's first token",
    "first_clause": "first clause complete",
    "first_audio_ready": "first sound made",
}
"""The appliance's marks on the way to the first sound, in order, with what people call them."""
SPANS: Mapping[str, str] = {
    "transcript": "Hearing",
    "first_token": "Thinking",
    "first_clause": "Phrasing",
    "first_audio_ready": "Speaking",
    "first_audio": "Sending",
}
"""What happens up to each mark; the last one, up to the first sound at the pin, is the way there and back."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn. Times are seconds since the end of speech, as the pin sees it unless said otherwise."""

    device: str
    recording: str
    answered: bool
    first_audio: float | None
    complete: float | None
    backend: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)
    """The appliance's own stages, from when the end of speech reached it."""
    error: str = ""
    has_image: bool = False
    """The appliance had a picture to the question."""

    @property
    def spans(self) -> dict[str, float]:
        """Seconds spent up to each mark since the one before; together they are `first_audio`.

        Empty when no sound came. A mark that lies before the one it follows, as work done ahead has it, adds nothing.
        """
        if self.first_audio is None:
            return {}
        spans: dict[str, float] = {}
        so_far = 0.0
        for name in MARKS:
            if name in self.marks:
                # The pin's clock starts a little earlier than the appliance's, so no mark lies beyond its first sound.
                at = min(max(so_far, self.marks[name]), self.first_audio)
                spans[name] = at - so_far
                so_far = at
        spans["first_audio"] = self.first_audio - so_far
        return spans

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; no word of question or answer."""
        return {"device": self.device, "recording": self.recording, "answered": self.answered, "backend": self.backend,
                "first_audio": _rounded(self.first_audio), "complete": _rounded(self.complete),
                "stages": dict(self.marks), "has_image": self.has_image, "error": self.error}


CANNED = "A canned sentence was said in place of an answer."


def sample_of(turn: PinTurn, device: str, recording: str) -> Sample:
    """Take from a pin's turn what is measured.

    A canned sentence ("I'm busy just now") comes quickly and from no language model: it is no answer.
    """
    stages = turn.extra.get("timings")
    marks = {str(name): float(seconds) for name, seconds in (stages.items() if isinstance(stages, dict) else ())
             if isinstance(seconds, int | float)}
    backend = str(turn.extra.get("backend") or "")
    answered = turn.answered and bool(backend)
    error = turn.error or (CANNED if turn.answered and not backend else "")
    return Sample(device, recording, answered, turn.timings.first_audio if answered else None, turn.timings.complete,
                  backend, marks, error, turn.has_image)


def median_turn(samples: Iterable[Sample]) -> Sample | None:
    """Return the answered turn in the middle by time to first sound; None when none was answered."""
    ordered = sorted((sample for sample in samples if sample.first_audio is not None),
                     key=lambda sample: sample.first_audio or 0.0)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
