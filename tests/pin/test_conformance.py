"""The model of a pin accepts a correct turn and names every breach of the protocol in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hotpind.pin.conformance import PinModel
from hotpind.pin.turn import Limits, PinStage
from hotpind.speech.audio import wav_header

SESSION = "esp32-cam-hotpin-001"
ANSWER = wav_header(16000, None) + bytes(32000)


class Play:
    """A dialogue with the model on a clock of its own."""

    def __init__(self, *, limits: Limits | None = None, version2: bool = False, welcome: bool = True) -> None:
        self.model = PinModel(SESSION, limits=limits, server_ends_speech=version2)
        self.now = 100.0
        if welcome:
            self.model.sent_hello(self.now)
            self.get({"status": "connected", "session_id": SESSION})

    def get(self, message: dict[str, Any] | str, after: float = 0.01) -> Play:
        self.now += after
        self.model.text(self.now, message if isinstance(message, str) else json.dumps(message))
        return self

    def ack(self, frames: int, size: int | None = None, after: float = 0.005) -> Play:
        return self.get({"status": "receiving", "chunks_received": frames,
                         "bytes_received": frames * 4096 if size is None else size}, after)

    def say(self, frames: int = 4) -> Play:
        for number in range(1, frames + 1):
            self.now += 0.128
            self.model.sent_audio(self.now, 4096)
            if number % 2 == 0:
                self.ack(number)
        return self

    def frames(self, count: int) -> Play:
        """Short frames at once, unacknowledged."""
        for _ in range(count):
            self.model.sent_audio(self.now, 9)
        return self

    def signal(self, name: str = "EOS") -> Play:
        self.now += 0.01
        self.model.sent_signal(self.now, name)
        return self

    def stage(self, name: str, after: float = 0.01, **fields: Any) -> Play:
        defaults: dict[str, dict[str, Any]] = {"llm": {"transcript": "What time is it?", "has_image": False},
                                               "tts": {"response": "It is"}}
        return self.get({"status": "processing", "stage": name, **defaults.get(name, {}), **fields}, after)

    def audio(self, data: bytes = ANSWER, *, after: float = 0.01, end: bool = True) -> Play:
        self.now += after
        for start in range(0, len(data), 4096):
            self.model.binary(self.now, data[start:start + 4096])
        if end:
            self.model.binary(self.now, b"")
        return self

    def complete(self, after: float = 0.01, **fields: Any) -> Play:
        return self.get({"status": "complete", "response": "It is noon.", **fields}, after)

    def error(self, message: str = "The answer could not be spoken.") -> Play:
        return self.get({"status": "error", "message": message})

    def idle(self, after: float = 0.01) -> Play:
        return self.get({"status": "idle"}, after)

    def wait(self, seconds: float) -> Play:
        self.now += seconds
        self.model.tick(self.now)
        return self

    def asked(self) -> Play:
        """Everything up to the transcription stage."""
        return self.say().signal().stage("transcription")

    def speaking(self) -> Play:
        """Everything up to the tts stage."""
        return self.asked().stage("llm").stage("tts")

    def answered(self) -> Play:
        """A whole, correct turn."""
        return self.speaking().audio().complete()


def test_a_correct_turn_has_no_violation_and_is_recorded() -> None:
    play = Play()
    play.asked().stage("llm", has_image=True).stage("tts").audio().complete(turn="t1", backend="local")
    turn = play.model.turn
    assert play.model.violations == []
    assert play.model.ready
    assert turn is not None
    assert (turn.transcript, turn.response, turn.has_image) == ("What time is it?", "It is noon.", True)
    assert turn.extra == {"turn": "t1", "backend": "local"}
    assert turn.answer_wav == wav_header(16000, 32000) + bytes(32000)
    assert turn.ack_s == pytest.approx([0.005, 0.005])
    assert turn.eos_at is not None
    assert turn.first_audio_at is not None
    assert turn.first_audio_at - turn.eos_at == pytest.approx(0.04)
    assert turn.sent_bytes == 4 * 4096


def test_turns_follow_each_other_and_counts_start_anew() -> None:
    play = Play()
    for _ in range(3):
        play.answered()
    assert play.model.violations == []


def test_unknown_statuses_stages_and_keys_are_ignored() -> None:
    play = Play()
    play.get({"status": "partial", "text": "what"}).get({"hello": 1}).get({"status": 7}).get({"status": []})
    play.say().signal().get({"status": "processing", "stage": "planning"}).stage("transcription", extra=[1])
    play.stage("llm").stage("tts").audio().complete()
    assert play.model.violations == []


def test_an_odd_last_frame_needs_no_acknowledgement() -> None:
    play = Play()
    play.say(3).signal().stage("transcription").stage("llm").stage("tts").audio().complete()
    assert play.model.violations == []


def test_an_acknowledgement_may_cross_the_eos() -> None:
    play = Play()
    play.model.sent_audio(play.now, 4096)
    play.model.sent_audio(play.now + 0.02, 1000)
    play.signal().ack(2, 5096).stage("transcription").stage("llm").stage("tts").audio().complete()
    assert play.model.violations == []


def test_not_understood_then_idle() -> None:
    play = Play()
    play.asked().error("Could not understand audio. Please try again.").idle()
    assert play.model.violations == []
    assert play.model.ready
    assert play.model.turn is not None
    assert play.model.turn.error == "Could not understand audio. Please try again."


def test_an_empty_recording_is_not_understood() -> None:
    play = Play()
    play.signal().stage("transcription").error("Could not understand audio. Please try again.").idle()
    assert play.model.violations == []


def test_error_in_the_middle_of_the_answer() -> None:
    play = Play()
    play.speaking().audio().error().idle()
    assert play.model.violations == []


def test_error_before_any_audio() -> None:
    play = Play()
    play.speaking().error().idle()
    assert play.model.violations == []


def test_flow_control() -> None:
    model = Play().model
    seen = []
    model.sent_audio(0.0, 4096)
    seen.append((model.may_send_frame, model.ack_deadline))
    model.sent_audio(0.1, 4096)
    seen.append((model.may_send_frame, model.ack_deadline))
    model.text(0.2, '{"status":"receiving","chunks_received":2,"bytes_received":8192}')
    seen.append((model.may_send_frame, model.ack_deadline))
    assert seen == [(True, None), (False, pytest.approx(1.1)), (True, None)]


def test_reset_in_the_quiet() -> None:
    play = Play()
    play.answered().signal("RESET").get({"status": "reset_complete"}).answered()
    assert play.model.violations == []


def test_reset_while_recording_forgets_the_recording() -> None:
    play = Play()
    play.say(3).signal("RESET").ack(2).get({"status": "reset_complete"}).answered()
    assert play.model.violations == []


def test_reset_while_thinking_unlocks_with_idle() -> None:
    play = Play()
    play.asked().stage("llm").signal("RESET").get({"status": "reset_complete"}).idle().answered()
    assert play.model.violations == []


def test_version_2_appliance_ends_the_speech() -> None:
    play = Play(version2=True)
    play.say().stage("transcription").stage("llm").stage("tts").audio().complete()
    assert play.model.violations == []


def test_version_2_endpoint_stops_the_recording_without_eos() -> None:
    play = Play(version2=True)
    play.say(3).get({"status": "endpoint"})
    assert play.model.stage == PinStage.WAITING
    play.stage("transcription").stage("llm").stage("tts").audio().complete().say(2)
    assert play.model.violations == []


def test_a_pin_of_version_1_knows_no_endpoint() -> None:
    play = Play()
    play.say(3).get({"status": "endpoint"}).signal().stage("transcription")
    assert play.model.violations == []


def test_version_2_cancel_before_the_first_sound() -> None:
    play = Play(version2=True)
    play.speaking().signal("CANCEL").audio(b"").idle()
    play.speaking().audio(b"").error().idle()
    assert play.model.violations == []


def test_version_2_cancel_stops_the_sound() -> None:
    play = Play(version2=True)
    play.speaking().audio(end=False).signal("CANCEL").audio(b"\0\0", after=0.1).complete()
    assert play.model.violations == []
    play.speaking().audio(end=False).signal("CANCEL").audio(b"\0\0", after=0.2).complete()
    assert play.model.violations == ["Audio came 200 ms after CANCEL, later than 150 ms."]


Faulty = Callable[[Play], object]
FAULTS: dict[str, tuple[Faulty, str]] = {
    "ack missing at transcription": (
        lambda p: p.frames(2).signal().stage("transcription"),
        "Frame 2 was never acknowledged"),
    "ack of the wrong frame": (lambda p: p.frames(2).ack(1, 18),
                               "says 1 frames and 18 bytes; 2 frames with 18 bytes were sent"),
    "ack of the wrong size": (lambda p: p.frames(2).ack(2, 17),
                              "says 2 frames and 17 bytes"),
    "ack of every frame": (lambda p: p.frames(1).ack(1, 9), "when none was due"),
    "ack without numbers": (lambda p: p.frames(2).get({"status": "receiving"}), "says None frames"),
    "ack twice": (lambda p: p.say(2).ack(2), "when none was due"),
    "ack without recording": (lambda p: p.ack(2), "when none was due"),
    "count goes on after EOS": (lambda p: p.answered().frames(2).ack(6, 18), "says 6 frames"),
    "ack late": (lambda p: p.frames(2).ack(2, 18, after=0.12),
                 "took 120 ms, longer than 100 ms"),
    "stage late": (lambda p: p.say().signal().stage("transcription", after=1.6), "1.60 s after EOS"),
    "stage before EOS": (lambda p: p.say().stage("transcription"), "before EOS: the pin stops capturing"),
    "unknown stage before EOS": (lambda p: p.say().stage("warming"), "Stage warming came before EOS"),
    "stage without question": (lambda p: p.stage("transcription"), "while the pin was ready"),
    "stage twice": (lambda p: p.asked().stage("transcription"), "while the pin was transcribing"),
    "llm before transcription": (lambda p: p.say().signal().stage("llm"), "while the pin was waiting"),
    "tts before llm": (lambda p: p.asked().stage("tts"), "Stage tts came while the pin was transcribing"),
    "no transcript": (lambda p: p.asked().stage("llm", transcript=None), "has no text transcript"),
    "has_image is no bool": (lambda p: p.asked().stage("llm", has_image=0), "has_image"),
    "no response": (lambda p: p.asked().stage("llm").stage("tts", response=5), "has no text response"),
    "audio before tts": (lambda p: p.asked().stage("llm").audio(), "Audio came while the pin was thinking"),
    "audio after complete": (lambda p: p.answered().audio(), "Audio came while the pin was ready"),
    "audio while recording": (lambda p: p.say().audio(), "Audio came while the pin was recording"),
    "frame too large": (lambda p: p.speaking().model.binary(p.now, bytes(4097)), "4097 bytes"),
    "no zero-length frame": (lambda p: p.speaking().audio(end=False).complete(),
                             "zero-length frame that ends the audio is missing"),
    "complete without audio": (lambda p: p.speaking().complete(), "No audio came"),
    "complete without tts": (lambda p: p.asked().stage("llm").complete(), "thinking, without an answer"),
    "complete without a turn": (lambda p: p.complete(), "complete came without a turn"),
    "complete twice": (lambda p: p.answered().complete(), "complete came without a turn"),
    "header wraps": (lambda p: p.speaking()
                     .audio(ANSWER[:40] + b"\xff\xff\xff\xff" + ANSWER[44:]).complete(), "wraps"),
    "second header": (lambda p: p.speaking().audio(ANSWER + ANSWER).complete(),
                      "second WAV header"),
    "gap": (lambda p: p.speaking().audio(end=False).audio(bytes(8), after=10.5).complete(),
            "No audio came for 10.5 s"),
    "header late": (lambda p: p.speaking().audio(after=5.5).complete(),
                    "5.5 s after the tts stage"),
    "overflow": (lambda p: p.speaking().audio(ANSWER + bytes(32000 * 20)).complete(),
                 "buffer was full"),
    "error without idle": (lambda p: p.asked().error().wait(1.2), "not followed by idle"),
    "complete after an error": (lambda p: p.asked().error().complete(), "before the idle"),
    "error outside of a turn without idle": (lambda p: p.error().wait(1.2), "not followed by idle"),
    "error without message": (lambda p: p.asked().get({"status": "error"}).idle(), "no message"),
    "error inside the audio": (lambda p: p.speaking().audio(end=False).error().idle(),
                               "without the zero-length frame before it"),
    "empty recording answered": (lambda p: p.signal().stage("transcription").stage("llm").stage("tts").audio()
                                 .complete(), "empty recording was answered"),
    "empty recording, odd error": (lambda p: p.signal().stage("transcription").error("Oh.").idle(),
                                   "does not say 'Could not understand audio'"),
    "idle in place of an answer": (lambda p: p.asked().idle(), "neither an answer nor an error"),
    "no transcription stage": (lambda p: p.say().signal().error("Busy.").idle(), "never came after EOS"),
    "turn of 60 s": (lambda p: p.asked().stage("llm").wait(60.1), "did not end within 60 s"),
    "reset unanswered": (lambda p: p.signal("RESET").wait(5.1), "RESET was not answered"),
    "reset_complete unasked": (lambda p: p.get({"status": "reset_complete"}), "without a RESET"),
    "connected twice": (lambda p: p.get({"status": "connected", "session_id": SESSION}), "twice"),
    "message of 4 KiB": (lambda p: p.get({"status": "note", "text": "x" * 4096}), "less than 4096"),
    "umlauts are two bytes": (lambda p: p.get('{"status":"note","text":"' + "ü" * 2040 + '"}'),
                              "less than 4096"),
    "two objects": (lambda p: p.get('{"status":"idle"}{"status":"idle"}'), "not one whole JSON"),
    "half an object": (lambda p: p.get('{"status":"idle"'), "not one whole JSON"),
    "an array": (lambda p: p.get('[{"status":"idle"}]'), "not an object"),
    "NaN": (lambda p: p.get('{"status":"note","x":NaN}'), "not one whole JSON"),
    "deep nesting": (lambda p: p.get("[" * 3000 + "]" * 3000), "not one whole JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named(name: str) -> None:
    fault, sentence = FAULTS[name]
    play = Play()
    fault(play)
    assert any(sentence in violation for violation in play.model.violations), play.model.violations
    assert all(violation.endswith(".") and "\n" not in violation for violation in play.model.violations)


def test_a_wrong_session_and_an_early_status() -> None:
    play = Play(welcome=False)
    play.model.sent_hello(play.now)
    play.idle().get({"status": "connected", "session_id": "somebody else"})
    assert play.model.violations == ["Status idle came before connected.",
                                     "Status connected names another session."]


def test_a_late_welcome() -> None:
    play = Play(welcome=False)
    play.model.sent_hello(play.now)
    play.get({"status": "connected", "session_id": SESSION}, after=11.0)
    assert play.model.violations == ["Status connected came 11.0 s after the first message."]


def test_the_limit_for_acknowledgements_can_be_relaxed() -> None:
    play = Play(limits=Limits(ack_s=1.0))
    for _ in range(2):
        play.model.sent_audio(play.now, 9)
    play.ack(2, 18, after=0.5)
    assert play.model.violations == []


def test_a_pin_stays_locked_after_an_error_without_idle() -> None:
    play = Play()
    play.asked().error().wait(30)
    assert play.model.locked_until() == pytest.approx(160.6, abs=1.0)
    seen = [play.model.ready, play.wait(31).model.ready]
    assert seen == [False, True]
    late = Play()
    late.asked().error().wait(30).idle()
    assert late.model.ready


def test_an_aborted_recording_is_told_and_its_late_acknowledgement_is_forgiven() -> None:
    play = Play()
    for _ in range(2):
        play.model.sent_audio(play.now, 4096)
    play.now += 1.0
    play.model.abort(play.now)
    play.signal().ack(2, 8192).stage("transcription").stage("llm").stage("tts").audio().complete()
    assert play.model.violations == ["Frame 2 was not acknowledged within 1000 ms: "
                                     "the pin aborts its recording."]
    assert play.model.turn is not None
    assert play.model.turn.aborted


def test_a_long_answer_does_not_run_into_the_60_s() -> None:
    play = Play()
    play.speaking().audio(end=False)
    for _ in range(80):
        play.audio(bytes(32000), after=1.0, end=False)
    play.audio(b"").complete()
    assert play.model.violations == []
    assert play.model.ready


def test_a_turn_that_is_given_up_is_closed() -> None:
    play = Play()
    play.speaking().audio(end=False).wait(61)
    assert play.model.ready
    assert play.model.turn is not None
    assert play.model.turn.given_up
    assert play.model.turn.over_at == play.now
    assert play.model.turn.playback is not None
    assert any("zero-length" in violation for violation in play.model.violations)


@pytest.mark.parametrize(("size", "told"), [(4095, False), (4096, True)])
def test_the_exact_bound_of_a_message(size: int, told: bool) -> None:
    play = Play()
    frame = '{"status":"note","text":""}'
    play.get(frame[:-2] + "x" * (size - len(frame)) + frame[-2:])
    assert bool(play.model.violations) == told


def test_a_lost_connection_ends_the_turn() -> None:
    play = Play()
    play.speaking().audio(end=False)
    play.model.closed(play.now)
    assert play.model.stage == PinStage.READY
    assert play.model.turn is not None
    assert play.model.turn.playback is not None


def test_violations_are_bounded() -> None:
    play = Play()
    for number in range(1000):
        play.ack(number)
    assert len(play.model.violations) <= 200
