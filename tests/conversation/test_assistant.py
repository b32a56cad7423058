"""What all devices share: who is told of a question, and when the brain gets ready for the next."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest

from hotpind.chat.messages import ChatRequest, Picture
from hotpind.config import Config
from hotpind.conversation.assistant import Assistant
from hotpind.conversation.memory import Memory


class Clock:
    """Stands still unless told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def expected() -> list[ChatRequest]:
    """What the brain was told to expect."""
    return []


@pytest.fixture
def assistant(clock: Clock, expected: list[ChatRequest]) -> Assistant:
    numbers = itertools.count()
    nobody = cast(Any, None)
    return Assistant(Config(), nobody, nobody, nobody, nobody, Memory(10), lambda: str(next(numbers)), clock,
                     on_expected=expected.append)


def turn(assistant: Assistant, device: str, outcome: str = "answered") -> None:
    record = assistant.record(device)
    with assistant.running(record):
        assistant.conversation(device).add("What?", "That.", assistant.clock())
        record.outcome = outcome


def texts(request: ChatRequest) -> list[str]:
    return [message.text for message in request.messages[1:]]


def test_after_an_answer_the_conversation_is_read_ahead(assistant: Assistant, expected: list[ChatRequest]) -> None:
    turn(assistant, "kitchen")
    assert [(request.device, texts(request)) for request in expected] == [("kitchen", ["What?", "That.", ""])]


def test_it_is_read_ahead_as_it_will_be_while_the_answer_is_still_played(
        assistant: Assistant, expected: list[ChatRequest]) -> None:
    record = assistant.record("kitchen")
    made = assistant.turn(cast(Any, None), record)._on_made
    future = assistant.conversation("kitchen").after("What?", "That.", assistant.clock())
    with assistant.running(record):
        made(future)
        assert expected == [], "a cloud has nothing to read"
        assistant.reads_ahead = lambda: True
        made(future)
        assert [(request.device, texts(request)) for request in expected] == [("kitchen", ["What?", "That.", ""])]
        with assistant.running(assistant.record("hall")):
            made(future)
        assert len(expected) == 1, "somebody else is being answered"
        record.outcome = "cancelled"
    assert len(expected) == 1


@pytest.mark.parametrize("outcome", ["cancelled", "failed", "canned", "busy", "not-understood"])
def test_after_anything_else_nothing_is_read_ahead(assistant: Assistant, expected: list[ChatRequest],
                                                   outcome: str) -> None:
    turn(assistant, "kitchen", outcome)
    assert expected == []


def test_nothing_is_read_ahead_while_others_need_the_model(assistant: Assistant, expected: list[ChatRequest],
                                                           clock: Clock) -> None:
    assistant.expect_question("hall")
    turn(assistant, "kitchen")
    assert [request.device for request in expected] == ["hall"], "somebody is asking"
    with assistant.running(assistant.record("hall")):
        turn(assistant, "kitchen")
        assert len(expected) == 1, "somebody is being answered"
    assert expected[-1].device == "hall"
    assistant.expect_question("attic")
    clock.now += 61
    turn(assistant, "kitchen")
    assert expected[-1].device == "kitchen", "nobody asks for longer than a recording may be"
    told = len(expected)
    assistant.stopping = True
    turn(assistant, "kitchen")
    assert len(expected) == told


def test_the_end_of_each_turn_is_told_with_the_conversation_if_nobody_else_asks(assistant: Assistant) -> None:
    ended: list[ChatRequest | None] = []
    assistant.on_ended = ended.append
    turn(assistant, "kitchen")
    turn(assistant, "kitchen", "not-understood")
    once = ["What?", "That."]
    assert [texts(request) for request in ended if request] == [[*once, ""], [*once, *once, ""]]
    assistant.expect_question("hall")
    turn(assistant, "kitchen")
    assert ended[2:] == [None]
    assistant.stopping = True
    turn(assistant, "kitchen")
    assert len(ended) == 3


def test_a_question_is_expected_with_all_pictures_that_wait(assistant: Assistant, expected: list[ChatRequest]) -> None:
    shots = tuple(Picture(bytes([number]), 4, 3) for number in range(2))
    for shot in shots:
        assistant.conversation("kitchen").keep_picture(shot, until=2000.0)
    assistant.expect_question("kitchen", "What are")
    assert expected[-1].messages[-1].pictures == shots


def test_a_turn_knows_whether_somebody_else_hears_nothing_yet(assistant: Assistant) -> None:
    mine, theirs = assistant.record("kitchen"), assistant.record("attic")
    my_turn = assistant.turn(cast(Any, None), mine)
    with assistant.running(mine):
        assert not my_turn.others_wait()
        with assistant.running(theirs):
            assert my_turn.others_wait()
            theirs.mark("first_audio", assistant.clock())
            assert not my_turn.others_wait()
        theirs.stages.clear()
        assert not my_turn.others_wait()
