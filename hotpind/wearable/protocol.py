"""The wearable's messages, both ways. Pure: bytes in, typed messages out, and back.

The ESP32-CAM pin's firmware cannot be changed, so these bytes are not ours to design. Text frames hold one compact
JSON object of less than 4 KiB; binary frames hold audio. Protocol version 2 (docs/protocol.md) adds keys and
messages that a version 1 pin ignores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

FRAME_BYTES: Final = 4096
"""Size of a full binary frame in either direction."""
ACK_EVERY: Final = 2
"""The pin sends two frames and then waits for an acknowledgement, for 1000 ms at most."""
LARGEST_TEXT_BYTES: Final = 4000
"""The pin copies a text frame to its heap; every message stays under 4 KiB."""
HELLO_DEADLINE_S: Final = 10.0
LONGEST_SESSION_ID: Final = 128

NOT_UNDERSTOOD: Final = "Could not understand audio. Please try again."
"""The pin looks for the words "Could not understand audio"."""


class Signal(StrEnum):
    """What a device can signal."""

    EOS = "EOS"
    """End of speech: the button was released."""
    RESET = "RESET"
    """Begin a new conversation."""
    CANCEL = "CANCEL"
    """Stop speaking (version 2)."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a connection."""

    session_id: str
    features: frozenset[str] = frozenset()
    """What a version 2 device can do: "endpointing", "partials", "barge-in"."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that is to be ignored."""

    why: str


Incoming = Hello | Signal | Unknown


def parse(text: str) -> Incoming:
    """Read a text frame. Never raises: what is not understood is `Unknown`, for the debug log."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return Unknown("not JSON")
    if not isinstance(message, dict):
        return Unknown("not a JSON object")
    if "session_id" in message:
        session = message["session_id"]
        features = message.get("features", [])
        known = [name for name in features if isinstance(name, str)] if isinstance(features, list) else []
        usable = isinstance(session, str) and len(session) <= LONGEST_SESSION_ID and session.isprintable()
        return Hello(session.strip() if usable else "", frozenset(known[:16]))
    signal = message.get("signal")
    if isinstance(signal, str) and signal in Signal.__members__:
        return Signal(signal)
    return Unknown("neither a session_id nor a known signal")


def connected(session_id: str, **extra: Any) -> str:
    """Answer a hello. ``extra`` is for version 2 devices and ignored by the pin."""
    return _compact({"status": "connected", "session_id": session_id, **extra})


def receiving(chunks: int, received_bytes: int) -> str:
    """Acknowledge audio: frames and bytes of this recording so far."""
    return _compact({"status": "receiving", "chunks_received": chunks, "bytes_received": received_bytes})


def transcription_stage() -> str:
    """Tell the device that its recording is being transcribed; due at once after every EOS."""
    return _compact({"status": "processing", "stage": "transcription"})


def llm_stage(transcript: str, *, has_image: bool) -> str:
    """Give the transcript; from here to the end the device sends no audio."""
    return _fitted({"status": "processing", "stage": "llm", "transcript": transcript, "has_image": has_image},
                   "transcript")


def tts_stage(response: str) -> str:
    """Start the device's decoder: a WAV header must follow within 5 s."""
    return _fitted({"status": "processing", "stage": "tts", "response": response}, "response")


def complete(**record: Any) -> str:
    """End a turn. The pin ignores the record: response, turn, backend, timings."""
    return _fitted({"status": "complete", **record}, "response")


def error(message: str) -> str:
    """Report a failure in one sentence; the device stays locked until `idle` follows."""
    return _fitted({"status": "error", "message": message}, "message")


def idle() -> str:
    """Unlock the device after an error."""
    return _compact({"status": "idle"})


def reset_complete() -> str:
    """Answer RESET."""
    return _compact({"status": "reset_complete"})


def partial_transcript(text: str) -> str:
    """Show what was understood so far (version 2)."""
    return _fitted({"status": "partial", "transcript": text}, "transcript")


def sentence(text: str) -> str:
    """Show the sentence that is being spoken (version 2)."""
    return _fitted({"status": "sentence", "text": text}, "text")


def speech_end() -> str:
    """Tell a version 2 device that the appliance heard the end of speech, so that it stops capturing."""
    return _compact({"status": "endpoint"})


@dataclass(slots=True)
class Recording:
    """Counts a recording's frames for the flow control, which restarts after each EOS."""

    chunks: int = 0
    received_bytes: int = 0

    def add(self, size: int) -> str | None:
        """Count a frame of ``size`` bytes; return the acknowledgement when one is due."""
        self.chunks += 1
        self.received_bytes += size
        return receiving(self.chunks, self.received_bytes) if self.chunks % ACK_EVERY == 0 else None


def _compact(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def _fitted(message: dict[str, Any], long_key: str) -> str:
    """Serialise a message, with the text under ``long_key`` cut so that the whole stays under 4 KiB and valid JSON."""
    text = _compact(message)
    value = message.get(long_key)
    while len(text.encode()) > LARGEST_TEXT_BYTES and isinstance(value, str) and value:
        surplus = len(text.encode()) - LARGEST_TEXT_BYTES
        # A character is at most 12 bytes of JSON (an escaped surrogate pair), at least one.
        value = value[:max(0, len(value) - max(1, surplus // 12) - 1)]
        message = {**message, long_key: value.rstrip() + "…"}
        text = _compact(message)
    return text
