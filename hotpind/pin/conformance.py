"""A pure model of a pin on its connection, which checks all that the appliance sends, in order and time.

The rules are those of docs/protocol.md; each breach becomes one sentence in `PinModel.violations`. Time is
passed in, in seconds of any clock that never goes back.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any, NoReturn

from hotpind.pin.playback import Playback
from hotpind.pin.turn import Limits, PinStage, TurnRecord
from hotpind.speech.audio import HEADER_BYTES

FRAME_BYTES = 4096
"""Size of every binary frame but the last, both ways."""
MESSAGE_BYTES = 4096
"""Text messages stay below this."""
FRAMES_PER_ACK = 2
NOT_UNDERSTOOD = "Could not understand audio"
"""Words that a pin looks for in an error's message."""
MOST_ANSWER_BYTES = 32 * 1024 * 1024
"""More of an answer is not kept (six minutes of sound at 44.1 kHz)."""

_MOST_VIOLATIONS = 200

_BEFORE = {PinStage.TRANSCRIBING: PinStage.WAITING, PinStage.THINKING: PinStage.TRANSCRIBING,
           PinStage.SPEAKING: PinStage.THINKING}
_LOCKED = frozenset({PinStage.WAITING, PinStage.TRANSCRIBING, PinStage.THINKING, PinStage.SPEAKING})
_KNOWN = frozenset({"connected", "receiving", "processing", "complete", "error", "idle", "reset_complete"})


@dataclass(frozen=True, slots=True)
class _DueAck:
    frames: int
    bytes: int
    since: float


class PinModel:
    """One connection of a pin. Tell it all that is sent and received, in order, and `tick` now and then."""

    def __init__(self, session_id: str, *, limits: Limits | None = None,
                 server_ends_speech: bool = False) -> None:
        """Model pin ``session_id``; with ``server_ends_speech`` (protocol version 2) no EOS is needed."""
        self.violations: list[str] = []
        self.stage = PinStage.READY
        self.turn: TurnRecord | None = None
        self.connected = False
        self.reset_at: float | None = None
        """When an unanswered RESET was sent."""
        self._session_id = session_id
        self._limits = limits or Limits()
        self._server_ends_speech = server_ends_speech
        self._hello_at: float | None = None
        self._frames = 0
        self._bytes = 0
        self._due: deque[_DueAck] = deque()
        self._acks_over = False
        self._playback: Playback | None = None
        self._error_at: float | None = None
        self.idle_missing = False
        """The idle that must follow an error is overdue."""
        self._locked_since: float | None = None
        self._cancel_at: float | None = None
        self._may_idle = False

    @property
    def ready(self) -> bool:
        """The pin is neither recording nor in a turn."""
        return self.stage == PinStage.READY

    @property
    def plays_until(self) -> float | None:
        """When the sound that has arrived will have been played; None when there is none."""
        return self._playback.plays_until if self._playback else None

    @property
    def may_send_frame(self) -> bool:
        """Flow control lets the next frame of a recording go."""
        return not self._due

    @property
    def ack_deadline(self) -> float | None:
        """When the recording must be aborted for want of an acknowledgement."""
        return self._due[0].since + self._limits.ack_abort_s if self._due else None

    def locked_until(self) -> float | None:
        """When a turn that the appliance does not end unlocks the pin by itself; None when it is ready."""
        if self.stage not in _LOCKED or self._locked_since is None:
            return None
        since = self._locked_since
        if self._playback is not None and self._playback.last_frame_at is not None:
            since = max(since, self._playback.last_frame_at)
        return since + self._limits.turn_s

    def next_deadline(self) -> float | None:
        """When `tick` has something to do unless a message comes before."""
        if self.stage == PinStage.RECORDING:
            return self.ack_deadline
        times = [self.locked_until()]
        if self._error_at is not None and not self.idle_missing:
            times.append(self._error_at + self._limits.idle_s)
        return min((at for at in times if at is not None), default=None)

    def sent_hello(self, at: float) -> None:
        """The first message went out."""
        self._hello_at = at

    def sent_audio(self, at: float, size: int) -> None:
        """A frame of ``size`` bytes of speech went out."""
        if self.stage == PinStage.READY:
            self._begin(at)
            self.stage = PinStage.RECORDING
        assert self.stage == PinStage.RECORDING, "a pin only records when it is ready"
        assert self.turn is not None
        self._frames += 1
        self._bytes += size
        self.turn.sent_bytes += size
        if self._frames % FRAMES_PER_ACK == 0:
            self._due.append(_DueAck(self._frames, self._bytes, at))

    def sent_signal(self, at: float, signal: str) -> None:
        """An EOS, RESET or CANCEL went out."""
        if signal == "EOS":
            if self.stage == PinStage.READY:
                self._begin(at)
            assert self.turn is not None
            self.turn.eos_at = at
            self.stage = PinStage.WAITING
            self._locked_since = at
        elif signal == "RESET":
            self.reset_at = at
            self._may_idle = True
            self._due.clear()
            if self.stage == PinStage.RECORDING:
                self._settle(at)
                self.stage = PinStage.READY
        elif signal == "CANCEL":
            self._cancel_at = at
            self._may_idle = True

    def abort(self, at: float) -> None:
        """The recording is given up because an acknowledgement is missing; EOS is next."""
        assert self.turn is not None
        self.turn.aborted = True
        self._acks_over = True
        overdue = self._due[0] if self._due else None
        if overdue is not None:
            self._say(f"Frame {overdue.frames} was not acknowledged within "
                      f"{(at - overdue.since) * 1000:.0f} ms: the pin aborts its recording.")
        self._due.clear()

    def text(self, at: float, raw: str) -> dict[str, Any] | None:
        """Take a text frame; return its object, or None when it is none."""
        self.tick(at)
        size = len(raw.encode())
        if size >= MESSAGE_BYTES:
            self._say(f"A message has {size} bytes; a pin takes less than {MESSAGE_BYTES}.")
        try:
            message = json.loads(raw, parse_constant=_not_json)
        except (ValueError, RecursionError):
            self._say("A text frame is not one whole JSON value.")
            return None
        if not isinstance(message, dict):
            self._say("A text frame is JSON, but not an object.")
            return None
        status = message.get("status")
        if isinstance(status, str) and status in _KNOWN:
            self._known(at, status, message)
        elif status == "endpoint" and self._server_ends_speech and self.stage == PinStage.RECORDING:
            self._stop_capturing(at)
        return message

    def binary(self, at: float, data: bytes) -> None:
        """Take a binary frame."""
        self.tick(at)
        if len(data) > FRAME_BYTES:
            self._say(f"An audio frame has {len(data)} bytes; a pin takes {FRAME_BYTES}.")
        if self.stage != PinStage.SPEAKING or self._playback is None or self.turn is None:
            self._say(f"Audio came while the pin was {self.stage.name.lower()}, outside of an answer.")
            return
        if self._cancel_at is not None and data and at - self._cancel_at > self._limits.cancel_s:
            self._say(f"Audio came {(at - self._cancel_at) * 1000:.0f} ms after CANCEL, "
                      f"later than {self._limits.cancel_s * 1000:.0f} ms.")
        self._playback.frame(at, data)
        if not data:
            return
        if len(self.turn.audio) + len(data) <= MOST_ANSWER_BYTES:
            self.turn.audio += data
        else:
            self._say("The answer is too long to be kept.")
        self.turn.last_audio_at = at
        if self.turn.first_audio_at is None and len(self.turn.audio) > HEADER_BYTES:
            self.turn.first_audio_at = at

    def closed(self, at: float) -> None:
        """The connection is gone."""
        self.tick(at)
        if self.turn is not None and self.turn.over_at is None:
            self._settle(at)
        self.stage = PinStage.READY

    def tick(self, at: float) -> None:
        """Notice what should have come by time ``at`` and did not."""
        if self._error_at is not None and at - self._error_at > self._limits.idle_s and not self.idle_missing:
            self.idle_missing = True
            self._say(f"An error was not followed by idle within {self._limits.idle_s:.1f} s: "
                      f"the pin stays locked for up to {self._limits.turn_s:.0f} s.")
            self._settle(at)
        if self.reset_at is not None and at - self.reset_at > self._limits.reset_s:
            self._say("RESET was not answered by reset_complete.")
            self.reset_at = None
        until = self.locked_until()
        if until is not None and at >= until:
            if self._error_at is None:
                self._say(f"The turn did not end within {self._limits.turn_s:.0f} s: the pin gave it up.")
                if self.turn is not None:
                    self.turn.given_up = True
            self._error_at = None
            self._settle(at)
            self.stage = PinStage.READY

    @property
    def _settled(self) -> bool:
        return self.turn is None or self.turn.over_at is not None

    def _say(self, sentence: str) -> None:
        for told in (self.violations, self.turn.violations if self.turn else []):
            if sentence not in told and len(told) < _MOST_VIOLATIONS:
                told.append(sentence)

    def _begin(self, at: float) -> None:
        self.turn = TurnRecord(began_at=at)
        self._frames = self._bytes = 0
        self._due.clear()
        self._playback = None
        self._acks_over = False
        self._error_at = None
        self.idle_missing = False
        self._cancel_at = None
        self._may_idle = False
        self._locked_since = None

    def _known(self, at: float, status: str, message: dict[str, Any]) -> None:
        if not self.connected and status != "connected":
            self._say(f"Status {status} came before connected.")
        if self._error_at is not None and status not in ("idle", "receiving", "error"):
            self._say(f"Status {status} came after an error, before the idle that must follow it.")
        match status:
            case "connected":
                self._connected(at, message)
            case "receiving":
                self._receiving(at, message)
            case "processing":
                self._processing(at, message)
            case "complete":
                self._complete(at, message)
            case "error":
                self._error(at, message)
            case "idle":
                self._idle(at)
            case _:
                if self.reset_at is None:
                    self._say("Status reset_complete came without a RESET.")
                self.reset_at = None

    def _connected(self, at: float, message: dict[str, Any]) -> None:
        if self._hello_at is None or self.connected:
            self._say("Status connected came twice, or before the first message.")
        elif at - self._hello_at > self._limits.connected_s:
            self._say(f"Status connected came {at - self._hello_at:.1f} s after the first message.")
        if message.get("session_id") != self._session_id:
            self._say("Status connected names another session.")
        self.connected = True

    def _receiving(self, at: float, message: dict[str, Any]) -> None:
        if self._acks_over or self.reset_at is not None:
            return
        frames, size = message.get("chunks_received"), message.get("bytes_received")
        if self.turn is None or not self._due:
            self._say(f"An acknowledgement of frame {frames} came when none was due.")
            return
        due = self._due.popleft()
        took = at - due.since
        self.turn.ack_s.append(took)
        if (frames, size) != (due.frames, due.bytes) or isinstance(frames, bool):
            self._say(f"An acknowledgement says {frames} frames and {size} bytes; "
                      f"{due.frames} frames with {due.bytes} bytes were sent.")
        if took > self._limits.ack_s:
            self._say(f"The acknowledgement of frame {due.frames} took {took * 1000:.0f} ms, "
                      f"longer than {self._limits.ack_s * 1000:.0f} ms.")

    def _processing(self, at: float, message: dict[str, Any]) -> None:
        name = message.get("stage")
        if self.stage == PinStage.RECORDING:
            # A pin stops capturing at any stage, whether it was meant or not.
            if not self._server_ends_speech:
                self._say(f"Stage {name} came before EOS: the pin stops capturing.")
            self._stop_capturing(at)
        stage = next((stage for stage in _BEFORE if stage.value == name), None)
        if stage is None:
            return
        if self.stage != _BEFORE[stage]:
            self._say(f"Stage {stage} came while the pin was {self.stage.name.lower()}.")
        if self.turn is None:
            return
        self.stage = stage
        self.turn.stages.setdefault(stage, at)
        if self._locked_since is None:
            self._locked_since = at
        if stage == PinStage.TRANSCRIBING:
            self._transcribing(at, self.turn)
        elif stage == PinStage.THINKING:
            self._heard(message)
        elif self._playback is None:
            self._playback = Playback(at)
            self.turn.response = self._string(message, "response", "The tts stage")

    def _transcribing(self, at: float, turn: TurnRecord) -> None:
        if turn.eos_at is not None and at - turn.eos_at > self._limits.transcription_s:
            self._say(f"The transcription stage came {at - turn.eos_at:.2f} s after EOS, "
                      f"later than {self._limits.transcription_s} s.")
        if self._due:
            self._say(f"Frame {self._due[0].frames} was never acknowledged.")
            self._due.clear()

    def _stop_capturing(self, at: float) -> None:
        """The appliance ends the recording; no EOS is sent."""
        assert self.turn is not None
        self.turn.eos_at = at
        self._acks_over = True
        self.stage = PinStage.WAITING
        self._locked_since = at
        self._due.clear()

    def _heard(self, message: dict[str, Any]) -> None:
        assert self.turn is not None
        self.turn.transcript = self._string(message, "transcript", "The llm stage")
        if not isinstance(message.get("has_image"), bool):
            self._say("The llm stage does not say has_image as true or false.")
        self.turn.has_image = message.get("has_image") is True

    def _string(self, message: dict[str, Any], key: str, what: str) -> str:
        value = message.get(key)
        if isinstance(value, str):
            return value
        self._say(f"{what} has no text {key}.")
        return ""

    def _complete(self, at: float, message: dict[str, Any]) -> None:
        if self.turn is None or self._settled:
            self._say("Status complete came without a turn.")
            return
        if self.stage != PinStage.SPEAKING and self._cancel_at is None:
            self._say(f"Status complete came while the pin was {self.stage.name.lower()}, without an answer.")
        if not self.turn.sent_bytes:
            self._say("An empty recording was answered as if something had been said.")
        self.turn.complete_at = at
        self.turn.extra = {key: value for key, value in message.items() if key not in ("status", "response")}
        if isinstance(message.get("response"), str):
            self.turn.response = message["response"]
        self._over(at)

    def _error(self, at: float, message: dict[str, Any]) -> None:
        sentence = message.get("message")
        if not isinstance(sentence, str) or not sentence:
            self._say("An error has no message.")
            sentence = "(no message)"
        if self._playback is not None and self._playback.begun and not self._playback.ended:
            self._say("An error came in the middle of the audio, without the zero-length frame before it.")
        self._error_at = at
        self.idle_missing = False
        if self.turn is not None and not self._settled:
            self.turn.error = sentence
            if not self.turn.sent_bytes and NOT_UNDERSTOOD not in sentence:
                self._say(f"The error after an empty recording does not say {NOT_UNDERSTOOD!r}.")

    def _idle(self, at: float) -> None:
        if self._error_at is None and not self._settled and not self._may_idle:
            self._say("Status idle ended the turn, which had neither an answer nor an error.")
        self._over(at)

    def _over(self, at: float) -> None:
        """The pin is ready again."""
        self._error_at = None
        self._settle(at)
        self.stage = PinStage.READY
        self._locked_since = None

    def _settle(self, at: float) -> None:
        """Close the turn's books, once."""
        if self.turn is None or self.turn.over_at is not None:
            return
        self.turn.over_at = at
        if self.turn.eos_at is not None and PinStage.TRANSCRIBING not in self.turn.stages:
            self._say("The transcription stage never came after EOS.")
        if self._playback is not None:
            self.turn.playback = self._playback.report(at)
            silent = not self._playback.begun and (self.turn.error is not None or self._may_idle)
            for fault in () if silent else self.turn.playback.faults:
                self._say(fault)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(constant)
