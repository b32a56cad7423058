"""The bytes of every message, both ways."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.wearable import protocol
from hotpind.wearable.protocol import Hello, Recording, Signal, Unknown, parse


def test_messages_to_the_pin_are_these_bytes() -> None:
    assert protocol.connected("esp32-cam-hotpin-001") == '{"status":"connected","session_id":"esp32-cam-hotpin-001"}'
    assert protocol.receiving(2, 8192) == '{"status":"receiving","chunks_received":2,"bytes_received":8192}'
    assert protocol.transcription_stage() == '{"status":"processing","stage":"transcription"}'
    assert protocol.llm_stage("what is it", has_image=True) == \
        '{"status":"processing","stage":"llm","transcript":"what is it","has_image":true}'
    assert protocol.tts_stage("A cup.") == '{"status":"processing","stage":"tts","response":"A cup."}'
    assert protocol.complete(response="A cup.", turn="ab12") == \
        '{"status":"complete","response":"A cup.","turn":"ab12"}'
    assert protocol.error(protocol.NOT_UNDERSTOOD) == \
        '{"status":"error","message":"Could not understand audio. Please try again."}'
    assert protocol.idle() == '{"status":"idle"}'
    assert protocol.reset_complete() == '{"status":"reset_complete"}'


def test_messages_of_version_2_are_these_bytes() -> None:
    assert protocol.partial_transcript("what is") == '{"status":"partial","transcript":"what is"}'
    assert protocol.sentence("A cup.") == '{"status":"sentence","text":"A cup."}'
    assert protocol.speech_end() == '{"status":"endpoint"}'


@pytest.mark.parametrize(("text", "meaning"), [
    ('{"session_id":"esp32-cam-hotpin-001"}', Hello("esp32-cam-hotpin-001")),
    ('{"session_id":"a","features":["endpointing",7]}', Hello("a", frozenset({"endpointing"}))),
    ('{"session_id":""}', Hello("")),
    ('{"session_id":5}', Hello("")),
    ('{"session_id":"' + "x" * 129 + '"}', Hello("")),
    ('{"session_id":"a\\nb"}', Hello("")),
    ('{"signal":"EOS"}', Signal.EOS),
    ('{"signal":"RESET"}', Signal.RESET),
    ('{"signal":"CANCEL"}', Signal.CANCEL),
])
def test_messages_of_a_device_are_understood(text: str, meaning: object) -> None:
    assert parse(text) == meaning


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"EOS"', '{"signal":"eos"}', '{"signal":null}', "{}",
                                  '{"status":"idle"}', "[" * 100_000])
def test_what_is_not_understood_is_ignored(text: str) -> None:
    assert isinstance(parse(text), Unknown)


@given(st.text())
def test_no_text_frame_can_raise(text: str) -> None:
    parse(text)


@given(st.text(min_size=0, max_size=6000))
def test_long_texts_are_cut_but_the_json_is_not(text: str) -> None:
    for message in (protocol.llm_stage(text, has_image=False), protocol.tts_stage(text), protocol.error(text),
                    protocol.complete(response=text, turn="x", timings={"transcript": 0.1})):
        assert len(message.encode("utf-8", "surrogatepass")) < 4096
        assert json.loads(message)["status"] in {"processing", "error", "complete"}


def test_a_cut_text_keeps_its_beginning() -> None:
    spoken = json.loads(protocol.tts_stage("word " * 2000))["response"]
    assert spoken.startswith("word word")
    assert spoken.endswith("word…")
    assert len(spoken) > 3800


def test_every_second_frame_is_acknowledged_with_the_counts_of_this_recording() -> None:
    recording = Recording()
    answers = [recording.add(4096) for _ in range(4)]
    assert answers == [None, protocol.receiving(2, 8192), None, protocol.receiving(4, 16384)]
    assert Recording().add(100) is None
