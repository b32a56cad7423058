"""Server-sent events: every way of cutting and ending lines, and every bound."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.chat.sse import EventReader
from hotpind.errors import BadAnswer

EVENTS: list[dict[str, Any]] = [{"a": 1}, {"text": "hé\n 你好 \u2028"}, {"nested": {"list": [1, 2, {"x": "}"}]}}]


def read(*chunks: bytes, **bounds: int) -> tuple[list[dict[str, Any]], bool]:
    reader = EventReader(**bounds)
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events + reader.finish(), reader.done


def stream(end: str, *, blank: bool = True, space: bool = True) -> bytes:
    lines = []
    for event in EVENTS:
        lines += [": a comment", "event: message", "id: 7",
                  f"data:{' ' if space else ''}{json.dumps(event, ensure_ascii=False)}", *([""] if blank else [])]
    return end.join([*lines, "data: [DONE]", "", ""]).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("blank", [True, False])
@pytest.mark.parametrize("space", [True, False])
def test_every_line_ending_at_every_split(end: str, blank: bool, space: bool) -> None:
    data = stream(end, blank=blank, space=space)
    for cut in range(len(data) + 1):
        assert read(data[:cut], data[cut:]) == (EVENTS, True)


def test_byte_by_byte() -> None:
    data = stream("\r\n")
    assert read(*(data[index:index + 1] for index in range(len(data)))) == (EVENTS, True)


def test_an_object_over_several_data_lines() -> None:
    assert read(b'data: {"a":\ndata: 1}\n\ndata: [DONE]\n\n') == ([{"a": 1}], True)


def test_an_event_is_given_before_its_empty_line_comes() -> None:
    assert EventReader().feed(b'data: {"a": 1}\n') == [{"a": 1}]


def test_a_plain_document_instead_of_a_stream() -> None:
    text = json.dumps({"choices": [{"message": {"content": "data: no\n\n"}}]}, indent=1).encode()
    for cut in range(0, len(text), 7):
        events, done = read(text[:cut], text[cut:])
        assert events[0]["choices"][0]["message"]["content"] == "data: no\n\n"
        assert not done


def test_what_follows_the_closing_mark_is_ignored() -> None:
    assert read(b'data: {"a": 1}\n\ndata: [DONE]\n\ndata: {"b": 2}\n\n') == ([{"a": 1}], True)


def test_a_body_that_is_no_stream_gives_nothing() -> None:
    assert read(b"<html>\n<body>Please log in</body></html>\n") == ([], False)


@pytest.mark.parametrize("bad", [b"data: {not json]\n\n", b"data: [1, 2]\n\n", b"data: 7\n\n", b"data: {\n\n",
                                 b'{"error": ', b"data: " + b'{"a":' * 20_000 + b"\n\n"])
def test_malformed_events_are_bad_answers(bad: bytes) -> None:
    with pytest.raises(BadAnswer, match="malformed"):
        read(bad)


def test_a_line_without_end_is_refused_at_its_bound() -> None:
    reader = EventReader(max_line=1000)
    reader.feed(b"data: " + b"x" * 900)
    with pytest.raises(BadAnswer, match="1000 bytes"):
        reader.feed(b"x" * 200)


def test_an_event_without_end_is_refused_at_its_bound() -> None:
    with pytest.raises(BadAnswer, match="1000 bytes"):
        read(*[b"data: xxxxxxxxxx\n"] * 200, max_line=1000)


def test_a_document_without_end_is_refused_at_its_bound() -> None:
    with pytest.raises(BadAnswer, match="1000 bytes"):
        read(*[b"{xxxxxxxxxx\n"] * 200, max_line=1000)


def test_a_body_without_end_is_refused_at_its_bound() -> None:
    with pytest.raises(BadAnswer, match="10000 bytes"):
        read(*[b": \n"] * 5000, max_total=10_000)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_are_read_or_refused_whatever_the_cuts(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    results: list[object] = []
    for chunks in ([data], [data[a:b] for a, b in pairwise(edges)]):
        try:
            results.append(read(*chunks))
        except BadAnswer:
            results.append("refused")
    assert results[0] == results[1]
