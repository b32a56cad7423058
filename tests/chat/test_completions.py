"""The chat completions API: what its events and its errors mean."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.chat.backend import Ended, Event, Words
from hotpind.chat.completions import (
    RETRY_AFTER_DEFAULT_S,
    RETRY_AFTER_MOST_S,
    AnswerReader,
    Service,
    encoded_messages,
    object_error,
    retry_after,
    status_error,
)
from hotpind.chat.messages import Message, Picture
from hotpind.errors import (
    BackendError,
    BackendRateLimited,
    BackendUnreachable,
    BadAnswer,
    KeyRejected,
    ModelRetired,
    PayloadTooLarge,
)

GROQ = Service("groq", "set a valid one with `hotpinctl key set`")
NOW = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)
SECRET = "gsk_secretsecretsecret What is my diagnosis?"


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def read(*chunks: bytes) -> list[Event]:
    reader = AnswerReader(GROQ, model="m")
    return [event for chunk in chunks for event in reader.feed(chunk)] + reader.finish()


def words(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Words))


def test_messages_are_encoded_as_text_or_as_parts() -> None:
    picture = Picture(b"\xff\xd8jpeg", 4, 3)
    encoded = encoded_messages([Message("system", "Be brief."), Message("user", "What is this?", (picture,)),
                                Message("user", "", (picture, picture))])
    assert encoded[0] == {"role": "system", "content": "Be brief."}
    text, image = encoded[1]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert image["type"] == "image_url"
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == picture.jpeg
    assert [part["type"] for part in encoded[2]["content"]] == ["image_url", "image_url"]


def test_an_answer_ends_once_whatever_the_server_ends_it_with() -> None:
    said = event(delta={"content": "Hi"})
    for end in (event(delta={}, finish_reason="stop"), b"data: [DONE]\n\n",
                event(delta={}, finish_reason="stop") + b"data: [DONE]\n\n",
                event(delta={}, finish_reason="stop") + b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'):
        events = read(said + end)
        assert words(events) == "Hi"
        assert [item for item in events if isinstance(item, Ended)] == [Ended()]


def test_an_answer_cut_by_its_limit_says_so() -> None:
    assert read(event(delta={"content": "Hi"}, finish_reason="length"))[-1] == Ended(truncated=True)


def test_an_answer_that_just_stops_is_broken() -> None:
    with pytest.raises(BackendUnreachable, match="too early"):
        read(event(delta={"content": "Hi"}))


def test_a_whole_answer_in_place_of_a_stream() -> None:
    document = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Hi"},
                                        "finish_reason": "stop"}]}, indent=2).encode()
    assert read(document) == [Words("Hi"), Ended()]


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"x": 1}]
    assert words(read(event(delta={"content": parts}, finish_reason="stop"))) == "Hi"


def test_reasoning_is_no_text_but_a_sign_of_life() -> None:
    assert read(event(delta={"reasoning": "hm"}), event(delta={}, finish_reason="stop"))[0] == Words("")


@pytest.mark.parametrize("shape", [{"choices": 7}, {"choices": [7]}, {"choices": ["x"]}])
def test_an_odd_shape_is_a_bad_answer(shape: Any) -> None:
    with pytest.raises(BadAnswer):
        read(b"data: " + json.dumps(shape).encode() + b"\n\n")


def test_a_withheld_answer_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer, match="withheld"):
        read(event(delta={}, finish_reason="content_filter"))


def test_groqs_own_error_field() -> None:
    with pytest.raises(BackendUnreachable):
        read(b'data: {"choices": [], "x_groq": {"error": "over_capacity"}}\n\n')


@pytest.mark.parametrize(("status", "code", "message", "expected"), [
    (401, "invalid_api_key", SECRET, KeyRejected),
    (403, "", SECRET, KeyRejected),
    (429, "rate_limit_exceeded", SECRET, BackendRateLimited),
    (413, "request_too_large", SECRET, PayloadTooLarge),
    (400, "context_length_exceeded", SECRET, PayloadTooLarge),
    (404, "model_not_found", SECRET, ModelRetired),
    (400, "model_decommissioned", SECRET, ModelRetired),
    (404, "", "The model `x` does not exist", ModelRetired),
    (404, "not_found_error", "model \"x\" not found, try pulling it first", ModelRetired),
    (404, "", "page not found", BadAnswer),
    (400, "", SECRET, BadAnswer),
    (422, "", SECRET, BadAnswer),
    (307, "", SECRET, BadAnswer),
    (500, "", SECRET, BackendUnreachable),
    (502, "", SECRET, BackendUnreachable),
    (503, "", SECRET, BackendUnreachable),
    (498, "", SECRET, BackendUnreachable),
])
def test_each_status_has_its_meaning_and_quotes_nothing(status: int, code: str, message: str,
                                                        expected: type[BackendError]) -> None:
    error = status_error(status, {}, {"error": {"message": message, "code": code}}, service=GROQ, model="m", now=NOW)
    assert type(error) is expected
    assert "secret" not in str(error)
    assert "diagnosis" not in str(error)
    if isinstance(error, BackendUnreachable):
        assert error.server_fault


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_services_own_remedy(status: int) -> None:
    error = status_error(status, {}, None, service=Service("nas", "look into /nas-key"), model="m", now=NOW)
    assert isinstance(error, KeyRejected)
    assert str(error).endswith("look into /nas-key")
    keyless = status_error(status, {}, None, service=Service("nas", "name a file", has_key=False), model="m", now=NOW)
    assert isinstance(keyless, BackendUnreachable)
    assert keyless.server_fault
    assert str(keyless).endswith("name a file")


def test_what_follows_the_end_in_the_same_piece_is_not_looked_at() -> None:
    end = event(delta={}, finish_reason="stop")
    reader = AnswerReader(GROQ, model="m")
    assert reader.feed(event(delta={"content": "Hi"}) + end + b'data: {"error": {"code": "x"}}\n\n')[-1] == Ended()
    assert reader.ended


@pytest.mark.parametrize("body", [None, "text", [], {}, {"error": None}, {"error": "model 'x' not found"},
                                  {"error": [1]}, {"error": {"message": 7, "code": {"a": 1}}}, b"bytes"])
def test_any_body_of_an_error_is_survived(body: Any) -> None:
    for status in (301, 400, 401, 404, 413, 429, 498, 500):
        assert isinstance(status_error(status, {}, body, service=GROQ, model="m", now=NOW), BackendError)


@pytest.mark.parametrize(("code", "expected"), [
    ("rate_limit_exceeded", BackendRateLimited), ("invalid_api_key", KeyRejected),
    ("model_decommissioned", ModelRetired), ("internal_server_error", BackendUnreachable), ("", BackendUnreachable)])
def test_an_error_object_inside_an_answer(code: str, expected: type[BackendError]) -> None:
    assert type(object_error({"message": SECRET, "code": code}, service=GROQ, model="m")) is expected
    with pytest.raises(expected):
        read(b"data: " + json.dumps({"error": {"message": SECRET, "code": code}}).encode() + b"\n\n")


@pytest.mark.parametrize(("header", "seconds"), [
    ("7", 7.0), ("7.5", 7.5), (" 12 ", 12.0),
    ("Wed, 21 Oct 2026 07:28:40 GMT", 40.0),
    ("Wed, 21 Oct 2026 07:27:00 GMT", 1.0),
    ("0", 1.0), ("-5", 1.0),
    ("999999999", RETRY_AFTER_MOST_S), ("inf", RETRY_AFTER_MOST_S), ("nan", RETRY_AFTER_DEFAULT_S),
    ("", RETRY_AFTER_DEFAULT_S), ("soon", RETRY_AFTER_DEFAULT_S),
    ("Wed, 99 Oct 2026 99:99:99 GMT", RETRY_AFTER_DEFAULT_S),
])
def test_retry_after_in_seconds_or_as_a_date(header: str, seconds: float) -> None:
    assert retry_after({"retry-after": header}, NOW) == pytest.approx(seconds)


def test_no_retry_after() -> None:
    assert retry_after({}, NOW) == RETRY_AFTER_DEFAULT_S


@given(st.text(max_size=40))
def test_any_retry_after_is_survived(header: str) -> None:
    assert 1.0 <= retry_after({"retry-after": header}, NOW) <= RETRY_AFTER_MOST_S
